/* Admission: the largest module that a machine agrees to compile for a stranger. Real maxima seen in compilers' output: 187 locals,
   bodies of 432 KB (GCC's cc1plus), loops nested 20 deep. Compilers take super-linear time beyond such sizes. */
#ifndef IPOS_ADMIT_H
#define IPOS_ADMIT_H

enum {
    MAX_MODULE_BYTES = 128 << 20,
    MAX_TYPES = 100000,
    MAX_PARAMS = 255,
    MAX_FUNCTIONS = 500000,
    MAX_LOCALS = 1000,
    MAX_OPERANDS = 1000,      /* values on the operand stack of one function */
    MAX_BODY_BYTES = 512 << 10,
    MAX_LOOPS_NESTED = 64,
    MAX_BLOCKS_NESTED = 4000,
    MAX_GLOBALS = 20000,
    MAX_TABLES = 100,
    MAX_TABLE_ELEMENTS = 1 << 20,
    MAX_SEGMENTS = 100000,
    MAX_SAVED_VALUES = 1 << 19, /* of one function: values to be saved, summed over its resume points */
    MAX_STATIC_DEPTH = 8 << 20, /* bytes: frames of functions that do not count the depth of calls */
    DEPTH_LIMIT = 32 << 20,     /* bytes: frames of those that do; what would exceed it traps */
    OUTPUT_PER_INPUT = 8,       /* the output is at most this many times the input and ... */
    OUTPUT_EXTRA = 1 << 20,     /* ... this many bytes more */
};

#endif
