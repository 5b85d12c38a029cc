/* The process: arguments, environment, its end. */
#ifndef IPOS_WASI_PROCESS
#define IPOS_WASI_PROCESS

#include "types.h"

/* Strings, each ended by NUL, one behind the other. */
typedef struct {
    u8 *text;
    u32 count, bytes;
} Strings;

void process_boot(Strings arguments, Strings environment);

#endif
