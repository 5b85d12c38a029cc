/* Standard input and output. */
#ifndef IPOS_WASI_STDIO
#define IPOS_WASI_STDIO

#include "types.h"

enum { STDIN_EMPTY, STDIN_STREAM, STDIN_FILE, STDIN_TERMINAL, STDIN_KINDS };

void output_limit(u64 bytes);
u64 output_room(void);
u64 output_written(u32 stream); /* 0 stdout, 1 stderr */
void output_append(u32 stream, u32 from, u32 length); /* from P; no more than output_room() */

i32 stdin_read(u32 length);                   /* as host_stdin, into a buffer of the WASI */
const u8 *stdin_bytes(void);
void stdin_done(u32 length);
u64 stdin_taken(void); /* bytes so far */
#define STDIN_BYTES PAGE_BYTES

#endif
