/* One function body as an array of operations, and the type of everything on its operand stack. */
#ifndef IPOS_DECODE_H
#define IPOS_DECODE_H

#include "module.h"

enum {
    UNREACHABLE = 0x00, NOP = 0x01, BLOCK = 0x02, LOOP = 0x03, IF = 0x04, ELSE = 0x05, END = 0x0b,
    BR = 0x0c, BR_IF = 0x0d, BR_TABLE = 0x0e, RETURN = 0x0f, CALL = 0x10, CALL_INDIRECT = 0x11,
    DROP = 0x1a, SELECT = 0x1b, SELECT_TYPED = 0x1c, LOCAL_GET = 0x20, LOCAL_SET = 0x21, LOCAL_TEE = 0x22,
    GLOBAL_GET = 0x23, GLOBAL_SET = 0x24, TABLE_GET = 0x25, TABLE_SET = 0x26, FIRST_LOAD = 0x28, LAST_LOAD = 0x35,
    FIRST_STORE = 0x36, LAST_STORE = 0x3e, MEMORY_SIZE = 0x3f, MEMORY_GROW = 0x40,
    I32_CONST = 0x41, I64_CONST = 0x42, F32_CONST = 0x43, F64_CONST = 0x44,
    I32_EQZ = 0x45, I32_NE = 0x47, I32_LT_U = 0x49, I32_GT_S = 0x4a, I32_GT_U = 0x4b, I32_LE_U = 0x4d, I32_GE_U = 0x4f,
    I64_EQZ = 0x50, I64_LT_S = 0x53, I64_GT_U = 0x56, I32_ADD = 0x6a, I32_SUB = 0x6b, I32_OR = 0x72, I32_SHL = 0x74, I64_ADD = 0x7c,
    I64_SUB = 0x7d, I64_MUL = 0x7e, I64_DIV_U = 0x80, I64_AND = 0x83, I64_OR = 0x84, I64_SHL = 0x86, I64_SHR_S = 0x87, I64_SHR_U = 0x88, I64_EXTEND_I32_U = 0xad,
    REF_NULL = 0xd0, REF_IS_NULL = 0xd1, REF_FUNC = 0xd2,
    MEMORY_INIT = 0xfc08, DATA_DROP, MEMORY_COPY, MEMORY_FILL, TABLE_INIT, ELEM_DROP, TABLE_COPY, TABLE_GROW, TABLE_SIZE, TABLE_FILL,
    V128_LOAD = 0xfd00, V128_STORE = 0xfd0b, V128_CONST = 0xfd0c,
    /* what only the WASI can say */
    X_WORK = 0xff00, X_CHARGE, X_STOP,
    /* references as numbers, tables as arrays; `a` is the table, the segment or the function */
    X_REF_FUNC = 0xff10, X_TABLE_SIZE, X_TABLE_RESIZE, X_TABLE_GET, X_TABLE_SET, X_TABLE_LOAD, X_TABLE_STORE, X_ELEM_SIZE, X_ELEM_LOAD, X_ELEM_DROP,
};

typedef struct {
    const u8 *at; /* where the operation begins in the module */
    u32 bytes;
    u32 code;
    u32 a, b;     /* its immediates; ids where they are indices */
    u64 offset;   /* of a memory access */
    u32 match;    /* BLOCK, LOOP, IF: their END; ELSE, END: their beginning; NONE for the end of the function */
    u32 els;      /* IF: its ELSE or NONE */
    u8 align;
    bool dead;    /* never reached */
    bool typed;   /* a block whose type is the type id `a`; else `a` is its result or VOID */
    bool splits;  /* a block with a resume point inside: its beginning is moved up */
    bool fixed;   /* a bulk operation whose length is the constant `fixed_bytes` */
    u32 fixed_bytes;
} Op;

extern VEC(Op) ops;
extern VEC(u8) locals;  /* their types, parameters first */
extern u32 param_count;

void decode(u32 func);
void lower_op(Op *op);             /* tables.c */
void write_table_op(const Op *op);
void write_table_index(u32 table); /* the index on the stack becomes the number of the function there */

/* The signature of the block that `op` begins. */
typedef struct { const u8 *params, *results; u32 np, nr; } Signature;
Signature block_signature(const Op *op);

/* ---- the operand stack ---- */
typedef struct { u8 type; bool nan; /* may be a NaN whose bits the machine chose */ } Value;
extern VEC(Value) stack;
void push_type(u8 type);
void pop_types(u32 n, const u8 *where);
/* The effect of `op` on the stack; not of branches, blocks, returns, else and end. */
void step(const Op *op);
u32 weight_of(const Op *op);
/* 1: f32x4, 2: f64x2 arithmetic that makes NaNs of its own; else 0. */
u32 vector_arithmetic(u32 code);

#endif
