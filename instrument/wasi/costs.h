/* Work that the pass cannot see: it meters instructions, and the price of these lies elsewhere (page faults and hashing of a fresh
   page, a host call, output that is stored). Part of the engine version. One unit is about a nanosecond. */
#ifndef IPOS_WASI_COSTS
#define IPOS_WASI_COSTS

#define COST_PAGE 20000        /* a page taken: touched for the first time, later hashed and saved */
#define COST_INPUT_BLOCK 300   /* a block of an input file looked up, whether cached or not */
#define COST_OUTPUT_WRITE 40   /* a write to stdout or stderr ... */
#define COST_OUTPUT_BYTE_DIVISOR 2 /* ... and half a unit a byte */
#define COST_STDIN_READ 500

#endif
