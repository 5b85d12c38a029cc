/* What is in a file: pages that the program wrote over the bytes of an input file over zeros. */
#ifndef IPOS_WASI_CONTENTS
#define IPOS_WASI_CONTENTS

#include "node.h"

#define FILE_BYTES ((u64)4096 * 4096 * PAGE_BYTES) /* 1 TiB: two levels of tables */

/* Not 0: the call must wait for input blocks in these bytes; nothing was changed. `offset` + `length` <= FILE_BYTES. */
u32 contents_read_waits(const Node *file, u64 offset, u32 length);
u32 contents_write_waits(const Node *file, u64 offset, u32 length);

void contents_read(const Node *file, u64 offset, u32 to, u32 length); /* to P; only bytes within `size` */
u32 contents_write(Node *file, u64 offset, u32 from, u32 length);     /* from P; how much had space */
Errno contents_resize(Node *file, u64 size);
void contents_free(Node *file);

void *contents_page(const Node *file, u64 block); /* NULL: none lies there */

#endif
