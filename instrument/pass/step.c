/* What each operation does to the operand stack, what it costs, and which of its results may be a NaN of the machine's choice. */
#include "admit.h"
#include "decode.h"
#include "weights.h"

__typeof__(stack) stack;

/* Operands, '>' and results; i l f d v = i32 i64 f32 f64 v128. */
typedef struct { u32 first, last; const char *effect; } Effect;
static const Effect effects[] = {
    {0x28, 0x28, "i>i"}, {0x29, 0x29, "i>l"}, {0x2a, 0x2a, "i>f"}, {0x2b, 0x2b, "i>d"}, {0x2c, 0x2f, "i>i"}, {0x30, 0x35, "i>l"},
    {0x36, 0x36, "ii>"}, {0x37, 0x37, "il>"}, {0x38, 0x38, "if>"}, {0x39, 0x39, "id>"}, {0x3a, 0x3b, "ii>"}, {0x3c, 0x3e, "il>"},
    {MEMORY_SIZE, MEMORY_SIZE, ">i"}, {MEMORY_GROW, MEMORY_GROW, "i>i"},
    {I32_CONST, I32_CONST, ">i"}, {I64_CONST, I64_CONST, ">l"}, {F32_CONST, F32_CONST, ">f"}, {F64_CONST, F64_CONST, ">d"},
    {0x45, 0x45, "i>i"}, {0x46, 0x4f, "ii>i"}, {0x50, 0x50, "l>i"}, {0x51, 0x5a, "ll>i"}, {0x5b, 0x60, "ff>i"}, {0x61, 0x66, "dd>i"},
    {0x67, 0x69, "i>i"}, {0x6a, 0x78, "ii>i"}, {0x79, 0x7b, "l>l"}, {0x7c, 0x8a, "ll>l"},
    {0x8b, 0x91, "f>f"}, {0x92, 0x98, "ff>f"}, {0x99, 0x9f, "d>d"}, {0xa0, 0xa6, "dd>d"},
    {0xa7, 0xa7, "l>i"}, {0xa8, 0xa9, "f>i"}, {0xaa, 0xab, "d>i"}, {0xac, 0xad, "i>l"}, {0xae, 0xaf, "f>l"}, {0xb0, 0xb1, "d>l"},
    {0xb2, 0xb3, "i>f"}, {0xb4, 0xb5, "l>f"}, {0xb6, 0xb6, "d>f"}, {0xb7, 0xb8, "i>d"}, {0xb9, 0xba, "l>d"}, {0xbb, 0xbb, "f>d"},
    {0xbc, 0xbc, "f>i"}, {0xbd, 0xbd, "d>l"}, {0xbe, 0xbe, "i>f"}, {0xbf, 0xbf, "l>d"}, {0xc0, 0xc1, "i>i"}, {0xc2, 0xc4, "l>l"},
    {0xfc00, 0xfc01, "f>i"}, {0xfc02, 0xfc03, "d>i"}, {0xfc04, 0xfc05, "f>l"}, {0xfc06, 0xfc07, "d>l"},
    {MEMORY_INIT, MEMORY_INIT, "iii>"}, {DATA_DROP, DATA_DROP, ">"}, {MEMORY_COPY, TABLE_INIT, "iii>"}, {ELEM_DROP, ELEM_DROP, ">"},
    {TABLE_COPY, TABLE_COPY, "iii>"}, {TABLE_SIZE, TABLE_SIZE, ">i"},
    {0xfd00, 0xfd0a, "i>v"}, {0xfd0b, 0xfd0b, "iv>"}, {0xfd0c, 0xfd0c, ">v"}, {0xfd0d, 0xfd0e, "vv>v"}, {0xfd0f, 0xfd11, "i>v"},
    {0xfd12, 0xfd12, "l>v"}, {0xfd13, 0xfd13, "f>v"}, {0xfd14, 0xfd14, "d>v"}, {0xfd15, 0xfd16, "v>i"}, {0xfd17, 0xfd17, "vi>v"},
    {0xfd18, 0xfd19, "v>i"}, {0xfd1a, 0xfd1a, "vi>v"}, {0xfd1b, 0xfd1b, "v>i"}, {0xfd1c, 0xfd1c, "vi>v"}, {0xfd1d, 0xfd1d, "v>l"},
    {0xfd1e, 0xfd1e, "vl>v"}, {0xfd1f, 0xfd1f, "v>f"}, {0xfd20, 0xfd20, "vf>v"}, {0xfd21, 0xfd21, "v>d"}, {0xfd22, 0xfd22, "vd>v"},
    {0xfd23, 0xfd4c, "vv>v"}, {0xfd4d, 0xfd4d, "v>v"}, {0xfd4e, 0xfd51, "vv>v"}, {0xfd52, 0xfd52, "vvv>v"}, {0xfd53, 0xfd53, "v>i"},
    {0xfd54, 0xfd57, "iv>v"}, {0xfd58, 0xfd5b, "iv>"}, {0xfd5c, 0xfd5d, "i>v"}, {0xfd5e, 0xfd62, "v>v"}, {0xfd63, 0xfd64, "v>i"},
    {0xfd65, 0xfd66, "vv>v"}, {0xfd67, 0xfd6a, "v>v"}, {0xfd6b, 0xfd6d, "vi>v"}, {0xfd6e, 0xfd73, "vv>v"}, {0xfd74, 0xfd75, "v>v"},
    {0xfd76, 0xfd79, "vv>v"}, {0xfd7a, 0xfd7a, "v>v"}, {0xfd7b, 0xfd7b, "vv>v"}, {0xfd7c, 0xfd81, "v>v"}, {0xfd82, 0xfd82, "vv>v"},
    {0xfd83, 0xfd84, "v>i"}, {0xfd85, 0xfd86, "vv>v"}, {0xfd87, 0xfd8a, "v>v"}, {0xfd8b, 0xfd8d, "vi>v"}, {0xfd8e, 0xfd93, "vv>v"},
    {0xfd94, 0xfd94, "v>v"}, {0xfd95, 0xfd99, "vv>v"}, {0xfd9b, 0xfd9f, "vv>v"}, {0xfda0, 0xfda1, "v>v"}, {0xfda3, 0xfda4, "v>i"},
    {0xfda7, 0xfdaa, "v>v"}, {0xfdab, 0xfdad, "vi>v"}, {0xfdae, 0xfdae, "vv>v"}, {0xfdb1, 0xfdb1, "vv>v"}, {0xfdb5, 0xfdba, "vv>v"},
    {0xfdbc, 0xfdbf, "vv>v"}, {0xfdc0, 0xfdc1, "v>v"}, {0xfdc3, 0xfdc4, "v>i"}, {0xfdc7, 0xfdca, "v>v"}, {0xfdcb, 0xfdcd, "vi>v"},
    {0xfdce, 0xfdce, "vv>v"}, {0xfdd1, 0xfdd1, "vv>v"}, {0xfdd5, 0xfddf, "vv>v"}, {0xfde0, 0xfde1, "v>v"}, {0xfde3, 0xfde3, "v>v"},
    {0xfde4, 0xfdeb, "vv>v"}, {0xfdec, 0xfded, "v>v"}, {0xfdef, 0xfdef, "v>v"}, {0xfdf0, 0xfdf7, "vv>v"}, {0xfdf8, 0xfdff, "v>v"},
    {X_REF_FUNC, X_TABLE_SIZE, ">i"}, {X_TABLE_RESIZE, X_TABLE_RESIZE, "i>"}, {X_TABLE_GET, X_TABLE_GET, "i>i"}, {X_TABLE_SET, X_TABLE_SET, "ii>"},
    {X_TABLE_LOAD, X_TABLE_LOAD, "i>i"}, {X_TABLE_STORE, X_TABLE_STORE, "ii>"}, {X_ELEM_SIZE, X_ELEM_SIZE, ">i"}, {X_ELEM_LOAD, X_ELEM_LOAD, "i>i"},
    {X_ELEM_DROP, X_ELEM_DROP, ">"}, {X_WORK, X_WORK, ">l"}, {X_CHARGE, X_CHARGE, "l>"}, {X_STOP, X_STOP, ">"},
};

/* Codes pressed into one table: one byte, 0xfc.., 0xfd.., 0xff... */
enum { SLOTS = 1024 };
static u32 slot_of(u32 code) {
    if (code < 256) return code;
    return (code >> 8 == 0xfc ? 256 : code >> 8 == 0xfd ? 512 : 768) + (code & 255);
}

static const char *effect_of[SLOTS];
static u16 weight_table[SLOTS];
static bool ready;

static void fill_tables(void) {
    for (u32 i = 0; i < sizeof effects / sizeof *effects; i++)
        for (u32 c = effects[i].first; c <= effects[i].last; c++) effect_of[slot_of(c)] = effects[i].effect;
    for (u32 i = 0; i < SLOTS; i++) weight_table[i] = WEIGHT_PLAIN;
    for (u32 i = 0; i < sizeof weights / sizeof *weights; i++)
        for (u32 c = weights[i].first; c <= weights[i].last; c++) weight_table[slot_of(c)] = weights[i].weight;
    ready = true;
}

static u8 type_of(char letter) {
    switch (letter) {
    case 'i': return I32;
    case 'l': return I64;
    case 'f': return F32;
    case 'd': return F64;
    default: return V128;
    }
}

void push_type(u8 type) { vec_push(stack, (Value){type, false}); }

void pop_types(u32 n, const u8 *where) {
    if (stack.n < n) refuse(where, "not a valid module: the operand stack is empty");
    stack.n -= n;
}

static void pop_push(const Type *t, u32 extra, const u8 *where) {
    pop_types(t->np + extra, where);
    for (u32 i = 0; i < t->nr; i++) push_type(t->results[i]);
}

/* Only the kind of a result depends on what is on the stack: whether a NaN among the operands may come through. */
static void step_types(const Op *op) {
    switch (op->code) {
    case NOP: case LOCAL_TEE: return;
    case DROP: case LOCAL_SET: case GLOBAL_SET: pop_types(1, op->at); return;
    case SELECT: pop_types(2, op->at); return;
    case SELECT_TYPED: pop_types(3, op->at); push_type((u8)op->a); return;
    case LOCAL_GET: push_type(locals.at[op->a]); return;
    case GLOBAL_GET: push_type(globals.at[op->a].type); return;
    case TABLE_GET: pop_types(1, op->at); push_type(tables.at[op->a].type); return;
    case TABLE_SET: pop_types(2, op->at); return;
    case TABLE_GROW: pop_types(2, op->at); push_type(I32); return;
    case TABLE_FILL: pop_types(3, op->at); return;
    case REF_NULL: push_type((u8)op->a); return;
    case REF_IS_NULL: pop_types(1, op->at); push_type(I32); return;
    case REF_FUNC: push_type(FUNCREF); return;
    case CALL: pop_push(&types.at[funcs.at[op->a].type], 0, op->at); return;
    case CALL_INDIRECT: pop_push(&types.at[op->a], 1, op->at); return;
    default: break;
    }
    if (!ready) fill_tables();
    const char *effect = effect_of[slot_of(op->code)];
    if (!effect) refuse(op->at, "the operation 0x%x is not known", op->code);
    u32 operands = 0;
    while (effect[operands] != '>') operands++;
    pop_types(operands, op->at);
    if (effect[operands + 1]) push_type(type_of(effect[operands + 1]));
}

void step(const Op *op) {
    u32 c = op->code;
    bool top = stack.n && stack.at[stack.n - 1].nan;
    bool second = stack.n > 1 && stack.at[stack.n - 2].nan, third = stack.n > 2 && stack.at[stack.n - 3].nan;
    step_types(op);
    if (!stack.n || c == DROP || c == LOCAL_SET || c == GLOBAL_SET) return;
    bool *nan = &stack.at[stack.n - 1].nan;
    if (c == SELECT || c == SELECT_TYPED) *nan = second || third;
    else if ((c >= 0x8d && c <= 0x97) || (c >= 0x9b && c <= 0xa5) || c == 0xb6 || c == 0xbb) *nan = true; /* arithmetic, demote, promote */
    else if (c == 0x8b || c == 0x8c || c == 0x99 || c == 0x9a) *nan = top;                                /* abs, neg */
    else if (c == 0x98 || c == 0xa6) *nan = second;                                                      /* copysign */
}

u32 weight_of(const Op *op) {
    if (!ready) fill_tables();
    u32 weight = weight_table[slot_of(op->code)];
    switch (op->code) {
    case BLOCK: case LOOP: case IF: {
        Signature s = block_signature(op);
        return weight + (s.np + s.nr) * WEIGHT_MOVE;
    }
    case CALL: {
        const Func *f = &funcs.at[op->a];
        const Type *t = &types.at[f->type];
        u32 moves = (t->np + t->nr) * WEIGHT_MOVE;
        if (f->origin == IMPORTED) return (f->free ? weight : WEIGHT_OUTSIDE) + moves;
        if (f->origin == FROM_WASI || f->may) return weight + moves;
        return WEIGHT_CALL_BOUNDED + moves + (f->taken ? 0 : f->cost);
    }
    case CALL_INDIRECT: return weight + (types.at[op->a].np + types.at[op->a].nr) * WEIGHT_MOVE;
    case MEMORY_COPY: case MEMORY_FILL: case MEMORY_INIT:
        return weight + (op->fixed ? op->fixed_bytes * WEIGHT_BULK_BYTE : 0);
    default: return weight;
    }
}

u32 vector_arithmetic(u32 c) {
    if ((c >= 0xfd67 && c <= 0xfd6a) || c == 0xfd5e || c == 0xfde3 || (c >= 0xfde4 && c <= 0xfde9)) return 1;
    if (c == 0xfd74 || c == 0xfd75 || c == 0xfd7a || c == 0xfd94 || c == 0xfd5f || c == 0xfdef || (c >= 0xfdf0 && c <= 0xfdf5)) return 2;
    return 0;
}
