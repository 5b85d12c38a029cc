/* The schedule: what each operation costs. One table; a change of any number is a new version, and so a new engine.

   1 unit of work is about 1 ns of a 2020s core in this engine, 1 Gop about a second; the meter counts in *ticks*, of which TICKS_PER_WORK
   make a unit, so that an addition has a price at all. `python -m bench.weights` measures each operation, fits the numbers to real programs
   and prints what they ought to be. Free is only what becomes no machine code of its own: constants, reading a local, blocks and their ends
   (their values are charged as moves where the block begins). Loads are charged as if they hit a cache. */
#ifndef IPOS_WEIGHTS_H
#define IPOS_WEIGHTS_H

#include "base.h"

#define WEIGHTS_VERSION 3

typedef struct { u16 first, last, weight; } Weight;
/* In ticks. Codes as in decode.h: 0xfc00 and 0xfd00 plus the number behind the prefix; what is not named here costs WEIGHT_PLAIN. */
static const Weight weights[] = {
    {0x00, 0x03, 0},         /* unreachable, nop, block, loop */
    {0x04, 0x04, 6},        /* if */
    {0x05, 0x05, 0},         /* else */
    {0x0b, 0x0b, 0},         /* end */
    {0x0c, 0x0d, 6},        /* br, br_if */
    {0x0e, 0x0e, 50},        /* br_table */
    {0x10, 0x10, 80},        /* call */
    {0x11, 0x11, 150},       /* call_indirect */
    {0x1a, 0x1a, 0},         /* drop */
    {0x1b, 0x1c, 6},        /* select */
    {0x20, 0x20, 0},         /* local.get */
    {0x21, 0x22, 1},         /* local.set, local.tee */
    {0x23, 0x24, 6},         /* global.get, global.set */
    {0x28, 0x35, 6},        /* loads */
    {0x36, 0x3e, 6},        /* stores */
    {0x40, 0x40, 1600},      /* memory.grow, and WEIGHT_NEW_PAGE for each page */
    {0x41, 0x44, 0},         /* constants */
    {0x5b, 0x66, 8},        /* comparisons of floats */
    {0x6c, 0x6c, 10},        /* i32.mul */
    {0x6d, 0x70, 70},        /* i32 division */
    {0x7e, 0x7e, 10},        /* i64.mul */
    {0x7f, 0x82, 80},       /* i64 division */
    {0x8b, 0x90, 14},        /* f32: sign, rounding */
    {0x91, 0x91, 100},       /* f32.sqrt */
    {0x92, 0x94, 10},        /* f32: add, sub, mul */
    {0x95, 0x95, 60},        /* f32.div */
    {0x96, 0x98, 24},        /* f32: min, max, copysign */
    {0x99, 0x9e, 14},        /* f64: sign, rounding */
    {0x9f, 0x9f, 120},       /* f64.sqrt */
    {0xa0, 0xa2, 10},        /* f64: add, sub, mul */
    {0xa3, 0xa3, 70},       /* f64.div */
    {0xa4, 0xa6, 24},        /* f64: min, max, copysign */
    {0xa8, 0xab, 24},        /* float to i32 */
    {0xae, 0xb1, 24},        /* float to i64 */
    {0xb2, 0xbb, 20},        /* to float */
    {0xfc00, 0xfc07, 30},    /* saturating conversions */
    {0xfc08, 0xfc11, 150},   /* bulk operations, and their length */
    {0xfd00, 0xfd53, 6},    /* vectors: loads, stores, lanes, comparisons, bits */
    {0xfd54, 0xfd5b, 12},    /* lane loads and stores */
    {0xfd5c, 0xfdff, 8},    /* vectors: the rest of integers */
    {0xfd67, 0xfd6a, 60},    /* f32x4 rounding */
    {0xfd74, 0xfd75, 60},    /* f64x2 rounding */
    {0xfd7a, 0xfd7a, 60},    /* f64x2.trunc */
    {0xfd94, 0xfd94, 60},    /* f64x2.nearest */
    {0xfd5e, 0xfd5f, 60},    /* demote, promote */
    {0xfde3, 0xfde3, 150},   /* f32x4.sqrt */
    {0xfde4, 0xfde6, 50},    /* f32x4: add, sub, mul */
    {0xfde7, 0xfde7, 100},   /* f32x4.div */
    {0xfde8, 0xfdeb, 70},    /* f32x4: min, max */
    {0xfdef, 0xfdef, 150},   /* f64x2.sqrt */
    {0xfdf0, 0xfdf2, 50},    /* f64x2: add, sub, mul */
    {0xfdf3, 0xfdf3, 100},   /* f64x2.div */
    {0xfdf4, 0xfdf7, 70},    /* f64x2: min, max */
    {0xfdf8, 0xfdff, 60},    /* vector conversions */
    {0xff13, 0xff14, 30},    /* table.get, table.set of tables that are arrays */
};

enum {
    TICK_BITS = 5,
    TICKS_PER_WORK = 1 << TICK_BITS,

    /* in ticks */
    WEIGHT_PLAIN = 4,
    WEIGHT_MOVE = 2,          /* each parameter and result of a call or a block */
    WEIGHT_CALL_BOUNDED = 50, /* a call of a function that cannot stop; its own path comes on top */
    WEIGHT_FUNCTION = 50,     /* entering a function */
    WEIGHT_LOOP = 16,         /* one turn of a loop */
    WEIGHT_OUTSIDE = 6400,    /* a call that leaves the program (OPEN only; the WASI is metered itself) */
    WEIGHT_NEW_PAGE = 960000, /* 64 KiB more of memory: the kernel clears them */
    WEIGHT_BULK_BYTE = 3,     /* each byte of a bulk operation on memories */
    WEIGHT_ELEMENT = 32,      /* each element of one on tables, and of table.grow */

    FOLD_BLOCK = 64,     /* ticks: a conditional block that costs no more is charged where it is decided ... */
    FOLD_SUM = 256,      /* ... as long as no more than this is charged for what may not run */
    BOUNDED_PATH = 3200, /* ticks, so 100 ns: the longest path of a function without safepoints */

    BULK_FIXED_BYTES = 4096,      /* a bulk operation of a known length up to this one is charged with its block */
    BULK_CHUNK_BYTES = 256 << 10, /* a longer one is done in pieces of this size, some 30 us, with a safepoint before each */
};

#endif
