/* The schedule: what each operation costs, in units of work. One table; a change of any number is a new version, and so a new engine.
   Free is only what becomes no machine code of its own: constants, reading a local, blocks and their ends (their values are charged
   as moves where the block begins). Loads are charged as if they hit a cache. */
#ifndef IPOS_WEIGHTS_H
#define IPOS_WEIGHTS_H

#include "base.h"

#define WEIGHTS_VERSION 1

typedef struct { u16 first, last, weight; } Weight;
/* Codes as in decode.h: 0xfc00 and 0xfd00 plus the number behind the prefix; what is not named here costs WEIGHT_PLAIN. */
enum { WEIGHT_PLAIN = 1 };
static const Weight weights[] = {
    {0x00, 0x03, 0},         /* unreachable, nop, block, loop */
    {0x05, 0x05, 0},         /* else */
    {0x0b, 0x0b, 0},         /* end */
    {0x0e, 0x0e, 3},         /* br_table */
    {0x10, 0x10, 6},         /* call, and one for each parameter and result */
    {0x11, 0x11, 8},         /* call_indirect, likewise */
    {0x1a, 0x1a, 0},         /* drop */
    {0x20, 0x20, 0},         /* local.get */
    {0x41, 0x42, 0},         /* i32.const, i64.const */
    {0x40, 0x40, 500},       /* memory.grow, and WEIGHT_NEW_PAGE for each page */
    {0x6d, 0x70, 8},         /* i32 division */
    {0x7f, 0x82, 12},        /* i64 division */
    {0x91, 0x91, 6},         /* f32.sqrt */
    {0x95, 0x95, 5},         /* f32.div */
    {0x9f, 0x9f, 6},         /* f64.sqrt */
    {0xa3, 0xa3, 5},         /* f64.div */
    {0xfc00, 0xfc07, 2},     /* saturating conversions */
    {0xfc08, 0xfc11, 20},    /* bulk operations, and their length */
    {0xfd54, 0xfd5b, 2},     /* lane loads and stores */
    {0xfde3, 0xfde3, 6},     /* f32x4.sqrt */
    {0xfde7, 0xfde7, 5},     /* f32x4.div */
    {0xfdef, 0xfdef, 6},     /* f64x2.sqrt */
    {0xfdf3, 0xfdf3, 5},     /* f64x2.div */
    {0xfdf8, 0xfdfb, 2},     /* vector conversions */
    {0xff13, 0xff14, 3},     /* table.get, table.set of tables that are arrays */
};

enum {
    WEIGHT_CALL_BOUNDED = 2,  /* a call of a function that cannot stop; its own path comes on top */
    WEIGHT_FUNCTION = 2,      /* entering a function */
    WEIGHT_LOOP = 1,          /* one turn of a loop */
    WEIGHT_OUTSIDE = 100,     /* a call that leaves the program (OPEN only; the WASI is metered itself) */
    WEIGHT_NEW_PAGE = 4096,   /* 64 KiB more of memory: the kernel clears them */
    BULK_BYTES_SHIFT = 3,     /* bulk operations on memories: one for each 8 bytes */
    BULK_ELEMENTS_SHIFT = 0,  /* on tables: one for each element */
    BULK_CHUNK_BYTES = 256 << 10, /* a longer one is done in pieces of this size with a safepoint before each */

    FOLD_BLOCK = 24,   /* a conditional block that costs no more is charged where it is decided ... */
    FOLD_SUM = 96,     /* ... as long as no more than this is charged for what may not run */
    BOUNDED_PATH = 400, /* the longest path of a function without safepoints */
};

#endif
