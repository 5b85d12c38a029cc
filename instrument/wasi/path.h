/* From text to node. No path leads out of the directory of the descriptor that it starts at. */
#ifndef IPOS_WASI_PATH
#define IPOS_WASI_PATH

#include "node.h"

/* What to do with a symlink that a path ends in. */
typedef enum {
    FOLLOW,
    STAY,  /* do not follow, unless a slash follows it */
    NAME,  /* never: the path means the name itself, to remove or replace it */
} Last;

typedef struct {
    Node *node;      /* NULL: there is no such name in `directory` */
    Node *directory; /* where the last name is; NULL where the path ends in `.` or `..`, or is the start */
    Entry *entry;    /* of the last name */
    const u8 *name;
    u32 length;
    u32 slash; /* the path ends in a slash */
} Place;

/* Two paths may be in use at once (rename, link): `which` is 0 or 1. */
Errno path_find(u32 number, u64 rights, u32 which, u32 path, u32 length, Last last, Place *place);

Errno path_text(u32 which, u32 path, u32 length, const u8 **text); /* copied from P and checked: UTF-8 without NUL, not empty */

#endif
