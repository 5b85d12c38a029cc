#ifndef IPOS_WASI_RANDOM
#define IPOS_WASI_RANDOM

#include "types.h"

#define SEED_BYTES 32u
void random_boot(const u8 *seed);

#endif
