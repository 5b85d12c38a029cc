/* Programs whose tables change, or that handle references as values. The machine has no way to save a reference; so in such a program a
   reference is a number (0: null; else 1 + the function's index in the output), a table is an array of numbers in ipos_stack, and one constant
   table holds all functions for call_indirect. Then references may live anywhere, and tables are saved with everything else. */
#include "admit.h"
#include "emit.h"

bool uses_references, lowered;

static U32s grows; /* per table: may become larger */

static bool is_reference(u8 type) { return type == FUNCREF || type == EXTERNREF; }

void lower_references(void) {
    lowered = true;
    for (u32 i = 0; i < types.n; i++) {
        Type *t = &types.at[i];
        u8 *copy = keep((u64)t->np + t->nr + 1);
        for (u32 k = 0; k < t->np; k++) copy[k] = is_reference(t->params[k]) ? I32 : t->params[k];
        for (u32 k = 0; k < t->nr; k++) copy[t->np + k] = is_reference(t->results[k]) ? I32 : t->results[k];
        t->params = copy;
        t->results = copy + t->np;
    }
    types_changed();
    for (u32 i = 0; i < globals.n; i++)
        if (is_reference(globals.at[i].type)) globals.at[i].type = I32;
    u64 elements = 0;
    for (u32 i = 0; i < tables.n; i++) {
        tables.at[i].type = I32;
        vec_push(grows, 0);
        elements += tables.at[i].min;
    }
    if (elements > MAX_TABLE_ELEMENTS) refuse(program.bytes, "the tables have more than %u elements", MAX_TABLE_ELEMENTS);
}

/* A table that grows gets room for all it may ever hold, since its address is fixed; one that has no limit gets a modest one. */
u32 table_capacity(u32 table) {
    const Table *t = &tables.at[table];
    if (!grows.at[table]) return (u32)t->min;
    u64 room = MAX_TABLE_ELEMENTS / tables.n;
    if (t->has_max && t->max < room) room = t->max;
    return (u32)(room > t->min ? room : t->min);
}

/* ---- operations on whole tables: loops, so that they can be stopped ---- */

static Buf b;

static void op1(u8 code) { put8(&b, code); }
static void op2(u8 code, u32 a) {
    put8(&b, code);
    put_u(&b, a);
}
static void get(u32 local) { op2(LOCAL_GET, local); }
static void set(u32 local) { op2(LOCAL_SET, local); }
static void number(i64 value) {
    put8(&b, I32_CONST);
    put_s(&b, value);
}
static void table_op(u32 code, u32 index) {
    put8(&b, 0xff);
    put8(&b, (u8)code);
    put_u(&b, index);
}

/* Traps if local + length goes beyond what `code` says is there. */
static void check(u32 local, u32 length, u32 code, u32 index) {
    get(local), op1(I64_EXTEND_I32_U), get(length), op1(I64_EXTEND_I32_U), op1(I64_ADD);
    table_op(code, index), op1(I64_EXTEND_I32_U), op1(I64_GT_U);
    op2(IF, VOID), op1(UNREACHABLE), op1(END);
}

static void step_local(u32 local, i32 by) { get(local), number(by), op1(I32_ADD), set(local); }

/* fill(to, value, n) */
static void body_fill(u32 table) {
    check(0, 2, X_TABLE_SIZE, table);
    op2(BLOCK, VOID), op2(LOOP, VOID);
    get(2), op1(I32_EQZ), op2(BR_IF, 1);
    get(0), get(1), table_op(X_TABLE_STORE, table);
    step_local(0, 1), step_local(2, -1);
    op2(BR, 0), op1(END), op1(END), op1(END);
}

/* grow(value, n) -> size before or -1; local 2: the size before, 3: where to write */
static void body_grow(u32 table) {
    table_op(X_TABLE_SIZE, table), set(2);
    get(1), op1(I64_EXTEND_I32_U), get(2), op1(I64_EXTEND_I32_U), op1(I64_ADD);
    op1(I64_CONST), put_s(&b, table_capacity(table)), op1(I64_GT_U);
    op2(IF, VOID), number(-1), op1(RETURN), op1(END);
    get(2), set(3);
    get(2), get(1), op1(I32_ADD), table_op(X_TABLE_RESIZE, table);
    op2(BLOCK, VOID), op2(LOOP, VOID);
    get(1), op1(I32_EQZ), op2(BR_IF, 1);
    get(3), get(0), table_op(X_TABLE_STORE, table);
    step_local(3, 1), step_local(1, -1);
    op2(BR, 0), op1(END), op1(END);
    get(2), op1(END);
}

/* copy or init (to, from, n); `load` reads from the source */
static void body_copy(u32 to, u32 load, u32 size, u32 from) {
    check(0, 2, X_TABLE_SIZE, to), check(1, 2, size, from);
    if (load == X_TABLE_LOAD) { /* backwards, if the ranges may overlap that way */
        get(1), get(0), op1(I32_LT_U), op2(IF, VOID);
        op2(BLOCK, VOID), op2(LOOP, VOID);
        get(2), op1(I32_EQZ), op2(BR_IF, 1);
        step_local(2, -1);
        get(0), get(2), op1(I32_ADD), get(1), get(2), op1(I32_ADD), table_op(load, from), table_op(X_TABLE_STORE, to);
        op2(BR, 0), op1(END), op1(END), op1(RETURN), op1(END);
    }
    op2(BLOCK, VOID), op2(LOOP, VOID);
    get(2), op1(I32_EQZ), op2(BR_IF, 1);
    get(0), get(1), table_op(load, from), table_op(X_TABLE_STORE, to);
    step_local(0, 1), step_local(1, 1), step_local(2, -1);
    op2(BR, 0), op1(END), op1(END), op1(END);
}

typedef struct { u32 operation, a, b, func; } Helper;
static VEC(Helper) helpers;

static u32 table_helper(const Op *op) {
    u32 source = op->code == TABLE_COPY || op->code == TABLE_INIT ? op->b : 0;
    for (u32 i = 0; i < helpers.n; i++)
        if (helpers.at[i].operation == op->code && helpers.at[i].a == op->a && helpers.at[i].b == source) return helpers.at[i].func;
    if (helpers.n > 1000) refuse(op->at, "more than 1000 different operations on tables are not supported");
    static const u8 i32s[] = {I32, I32, I32};
    b.n = 0;
    if (op->code == TABLE_GROW) {
        grows.at[op->a] = 1;
        put_u(&b, 1), put_u(&b, 2), put8(&b, I32);
        body_grow(op->a);
    } else {
        put_u(&b, 0);
        if (op->code == TABLE_FILL) body_fill(op->a);
        else if (op->code == TABLE_COPY) body_copy(op->a, X_TABLE_LOAD, X_TABLE_SIZE, source);
        else body_copy(op->a, X_ELEM_LOAD, X_ELEM_SIZE, source);
    }
    bool grow = op->code == TABLE_GROW;
    u32 func = make_func(type_intern(i32s, grow ? 2 : 3, i32s, grow), &b);
    vec_push(helpers, (Helper){op->code, op->a, source, func});
    return func;
}

/* ---- single operations ---- */

void lower_op(Op *op) {
    switch (op->code) {
    case REF_NULL:
        op->code = I32_CONST;
        op->a = 0;
        break;
    case REF_FUNC: op->code = X_REF_FUNC; break;
    case REF_IS_NULL: op->code = I32_EQZ; break;
    case SELECT_TYPED:
        if (is_reference((u8)op->a)) op->a = I32, op->code = SELECT, op->bytes = 1;
        break;
    case TABLE_SIZE: op->code = X_TABLE_SIZE; break;
    case TABLE_GET: op->code = X_TABLE_GET; break;
    case TABLE_SET: op->code = X_TABLE_SET; break;
    case ELEM_DROP: op->code = X_ELEM_DROP; break;
    case TABLE_FILL: case TABLE_GROW: case TABLE_COPY: case TABLE_INIT:
        op->a = table_helper(op);
        op->code = CALL;
        break;
    default: break;
    }
}

static void element(bool store, u32 address) { /* [index * 4, value] */
    e8(store ? 0x36 : 0x28);
    e8(64);
    eu(MEM_STACK);
    eu(address);
}

static void times_four(void) {
    const32(2);
    e8(I32_SHL);
}

static void check_index(u32 table, u32 local) {
    op_u(GLOBAL_GET, table_size_global(table));
    e8(I32_GE_U);
    u32 label = begin_if();
    e8(UNREACHABLE);
    end_if(label);
    local_get(local);
    times_four();
}

void write_table_index(u32 table) {
    u32 index = own_temporary(0, I32);
    local_tee(index);
    check_index(table, index);
    element(false, table_address(table));
}

void write_table_op(const Op *op) {
    u32 index = own_temporary(0, I32), value = own_temporary(1, I32);
    switch (op->code) {
    case X_REF_FUNC: const32((i32)funcs.at[op->a].final + 1); break;
    case X_TABLE_SIZE: op_u(GLOBAL_GET, table_size_global(op->a)); break;
    case X_TABLE_RESIZE: op_u(GLOBAL_SET, table_size_global(op->a)); break;
    case X_ELEM_SIZE: op_u(GLOBAL_GET, elem_size_global(op->a)); break;
    case X_ELEM_DROP:
        const32(0);
        op_u(GLOBAL_SET, elem_size_global(op->a));
        break;
    case X_TABLE_LOAD: case X_ELEM_LOAD:
        times_four();
        element(false, op->code == X_TABLE_LOAD ? table_address(op->a) : elem_address(op->a));
        break;
    case X_TABLE_STORE:
        local_set(value);
        times_four();
        local_get(value);
        element(true, table_address(op->a));
        break;
    case X_TABLE_GET: write_table_index(op->a); break;
    default: /* X_TABLE_SET */
        local_set(value);
        local_tee(index);
        check_index(op->a, index);
        local_get(value);
        element(true, table_address(op->a));
    }
}
