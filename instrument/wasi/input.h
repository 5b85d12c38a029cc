/* Blocks of input files: immutable, fetched by the host into the cache C, which is not state. Nothing here may be metered (exports
   named free_*): what a program costs must not depend on what this node has at hand. */
#ifndef IPOS_WASI_INPUT
#define IPOS_WASI_INPUT

#include "types.h"

u32 input_waits(u32 file, u64 offset, u32 length); /* not 0: the host must get blocks first, and the call must wait */
u32 input_block(u32 file, u32 block);              /* address in C; never waits after input_waits said 0 */

#endif
