/* The functions and globals that the pass adds for the runtime: grants, stopping, and what to save. */
#include "runtime.h"

#include "admit.h"
#include "emit.h"
#include "weights.h"

u32 trap_import = NONE;

/* ---- the layout of ipos_stack: globals and tables, then two halves; frames are saved in one while the other is read ---- */

static u32 globals_bytes, tables_bytes, elems_bytes, half_bytes;
static U32s data_flags, elem_flags, table_sizes, elem_sizes; /* which of the added globals; NONE: has none */
static U32s added;                                           /* their values at the beginning */
static U32s table_addresses, elem_addresses;

enum { BLOCK_BYTES = 65536, METER_BYTES = 24 };
static u32 round_up(u32 bytes) { return (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES; }

static bool is_saved(const Global *g) { return g->mutable && !g->imported && g->type != FUNCREF && g->type != EXTERNREF; }

static u32 add_global(bool wanted, u32 value) {
    if (!wanted) return NONE;
    vec_push(added, value);
    return added.n - 1;
}

void plan_runtime(void) {
    globals_bytes = tables_bytes = elems_bytes = 0;
    for (u32 i = 0; i < globals.n; i++)
        if (is_saved(&globals.at[i])) globals_bytes += globals.at[i].type == V128 ? 16 : 8;
    for (u32 i = 0; i < datas.n; i++) vec_push(data_flags, add_global(datas.at[i].dropped, 0));
    for (u32 i = 0; i < elems.n; i++) vec_push(elem_flags, add_global(elems.at[i].dropped && !lowered, 0));
    for (u32 i = 0; i < tables.n && lowered; i++) vec_push(table_sizes, add_global(true, (u32)tables.at[i].min));
    for (u32 i = 0; i < elems.n && lowered; i++) vec_push(elem_sizes, add_global(true, elems.at[i].mode == PASSIVE ? elems.at[i].n : 0));
    globals_bytes += added.n * 8 + METER_BYTES;
    for (u32 i = 0; i < tables.n && lowered; i++) {
        vec_push(table_addresses, globals_bytes + tables_bytes);
        tables_bytes += table_capacity(i) * 4;
    }
    for (u32 i = 0; i < elems.n && lowered; i++) {
        vec_push(elem_addresses, globals_bytes + tables_bytes + elems_bytes);
        elems_bytes += elems.at[i].mode == PASSIVE ? elems.at[i].n * 4 : 0;
        if (elems_bytes > MAX_TABLE_ELEMENTS * 16) refuse(elems.at[i].items.p, "the element segments are too long");
    }
    half_bytes = round_up(DEPTH_LIMIT + (flags & FLAG_NO_DEPTH ? MAX_STATIC_DEPTH : static_depth));
}

static u32 first_half(void) { return round_up(globals_bytes + tables_bytes + elems_bytes); }
u32 stack_pages(void) { return (first_half() + 2 * half_bytes) / BLOCK_BYTES; }

u32 runtime_global(u32 which) { return globals.n + which; }
static u32 added_global(u32 which) { return globals.n + RUNTIME_GLOBALS + which; }
u32 dropped_flag(bool elem, u32 segment) { return added_global((elem ? elem_flags : data_flags).at[segment]); }
u32 table_size_global(u32 table) { return added_global(table_sizes.at[table]); }
u32 elem_size_global(u32 elem) { return added_global(elem_sizes.at[elem]); }
u32 table_address(u32 table) { return table_addresses.at[table]; }
u32 elem_address(u32 elem) { return elem_addresses.at[elem]; }

static void write_global(Buf *section, u8 type, i64 value) {
    put8(section, type);
    put8(section, 1);
    put8(section, type == I64 ? I64_CONST : I32_CONST);
    put_s(section, value);
    put8(section, END);
}

static bool is_long(u32 which) {
    return which == G_METER || which == G_SAVED || which == G_TOTAL || which == G_PAGES_WORK || which == G_PAGES_SINCE;
}

u32 write_runtime_globals(Buf *section) {
    for (u32 i = 0; i < RUNTIME_GLOBALS; i++)
        write_global(section, is_long(i) ? I64 : I32, i == G_BASE || i == G_SP ? first_half() : 0);
    for (u32 i = 0; i < added.n; i++) write_global(section, I32, (i32)added.at[i]);
    return RUNTIME_GLOBALS + added.n;
}

/* ---- the functions ---- */

static void get(u32 which) { runtime_get(which); }
static void set(u32 which) { runtime_set(which); }

static void fill_stack(void) {
    e8(0xfc);
    eu(MEMORY_FILL & 255);
    eu(MEM_STACK);
}

/* What was frames in this half is in the way of canonical bytes in the next stop but one. */
static void swap_halves(void) {
    u32 both = first_half() * 2 + half_bytes;
    const32((i32)both), get(G_BASE), e8(I32_SUB), const32(0), get(G_DIRTY), fill_stack();
    get(G_SP), get(G_BASE), e8(I32_SUB), set(G_DIRTY);
    const32((i32)both), get(G_BASE), e8(I32_SUB), set(G_BASE);
}

static void body_enter(void) {
    get(G_TOTAL), local_get(0), e8(I64_ADD), set(G_TOTAL);
    get(G_METER), local_get(0), const64(TICK_BITS), e8(I64_SHL), e8(I64_ADD), set(G_METER);
    get(G_STATE), e8(IF), e8(VOID);
    get(G_METER), set(G_SAVED);
    const64(-((i64)1 << 62)), set(G_METER); /* every safepoint on the way back is asked what to do */
    const32(2), set(G_STATE);
    swap_halves();
    e8(ELSE);
    const32(0), set(G_DEPTH); /* a first call; an earlier one may have trapped */
    get(G_BASE), set(G_SP);
    e8(END);
}

/* Whole units, rounded down: what is used is rounded up, and exceeds a grant exactly when the meter is below zero. */
static void body_left(void) { get(G_METER), const64(TICK_BITS), e8(I64_SHR_S); }
static void body_used(void) { get(G_TOTAL), body_left(), e8(I64_SUB); }

static void body_set(void) {
    local_get(0), set(G_TOTAL);
    const64(0), set(G_METER);
    const64(0), set(G_PAGES_WORK);
    local_get(0), set(G_PAGES_SINCE);
}

static void body_state(void) { get(G_STATE); }

static void pair(void) { /* i32 address, i32 length -> i64 */
    e8(I64_EXTEND_I32_U), local_set(0);
    e8(I64_EXTEND_I32_U), const64(32), e8(I64_SHL), local_get(0), e8(I64_OR);
}

static void body_frames(void) { get(G_BASE), get(G_SP), get(G_BASE), e8(I32_SUB), pair(); }

static void body_restore(void) {
    get(G_BASE), local_get(0), e8(I32_ADD), local_tee(1), get(G_SP), e8(I32_LT_U), e8(IF), e8(VOID);
    local_get(1), const32(0), get(G_SP), local_get(1), e8(I32_SUB), fill_stack();
    e8(END);
    local_get(1), set(G_SP);
    const32(1), set(G_STATE);
}

static void body_frames_at(void) { get(G_BASE); }
static void body_globals_at(void) { const32(0), const32((i32)(globals_bytes + tables_bytes)), pair(); }

/* The parts of a unit that are left, and the memory integral. */
static void meter_out(u32 at) {
    const32(0), get(G_METER), const64(TICKS_PER_WORK - 1), e8(I64_AND), frame_access(true, I64, at);
    const32(0), get(G_PAGES_WORK), frame_access(true, I64, at + 8);
    const32(0), get(G_PAGES_SINCE), frame_access(true, I64, at + 16);
}

static void meter_in(u32 at) {
    const32(0), frame_access(false, I64, at), set(G_METER);
    const32(0), frame_access(false, I64, at + 8), set(G_PAGES_WORK);
    const32(0), frame_access(false, I64, at + 16), set(G_PAGES_SINCE);
}

static void body_globals(bool store) {
    u32 at = 0;
    for (u32 i = 0; i < globals.n; i++) {
        const Global *g = &globals.at[i];
        if (!is_saved(g)) continue;
        const32(0);
        if (store) op_u(GLOBAL_GET, i);
        frame_access(store, g->type, at);
        if (!store) op_u(GLOBAL_SET, i);
        at += g->type == V128 ? 16 : 8;
    }
    for (u32 i = 0; i < added.n; i++, at += 8) {
        const32(0);
        if (store) op_u(GLOBAL_GET, added_global(i));
        frame_access(store, I32, at);
        if (!store) op_u(GLOBAL_SET, added_global(i));
    }
    (store ? meter_out : meter_in)(at);
    if (store) return;
    for (u32 elem = 0; elem < 2; elem++) { /* what was dropped is dropped again */
        const U32s *list = elem ? &elem_flags : &data_flags;
        for (u32 i = 0; i < list->n; i++) {
            if (list->at[i] == NONE) continue;
            op_u(GLOBAL_GET, added_global(list->at[i])), e8(IF), e8(VOID);
            e8(0xfc), eu((elem ? ELEM_DROP : DATA_DROP) & 255), eu(i);
            e8(END);
        }
    }
}

static void body_globals_out(void) { body_globals(true); }
static void body_globals_in(void) { body_globals(false); }
/* The integral, with the pages of now since it was last settled: they are the program's and its files'. It stays at the largest number. */
static void body_pages_work(void) {
    op_u(MEMORY_SIZE, MEM_PROGRAM);
    if (wasi.bytes) op_u(MEMORY_SIZE, MEM_WASI), e8(I32_ADD);
    e8(I64_EXTEND_I32_U), local_tee(0), e8(I64_EQZ), e8(IF), e8(VOID);
    get(G_PAGES_WORK), e8(RETURN);
    e8(END);
    body_used(), get(G_PAGES_SINCE), e8(I64_SUB), local_tee(1);
    const64(INT64_MAX), get(G_PAGES_WORK), e8(I64_SUB), local_get(0), e8(I64_DIV_U), e8(I64_GT_U), e8(IF), e8(VOID);
    const64(INT64_MAX), e8(RETURN);
    e8(END);
    get(G_PAGES_WORK), local_get(0), local_get(1), e8(I64_MUL), e8(I64_ADD);
}

static void body_stop(void) { const32(1), set(G_STATE); }

/* param and result: a value type, or 0; local: two more of that type */
static const struct { const char *name; u8 param, result, local; void (*body)(void); } functions[RUNTIME_FUNCTIONS] = {
    {"ipos_enter", I64, 0, 0, body_enter},
    {"ipos_left", 0, I64, 0, body_left},
    {"ipos_set", I64, 0, 0, body_set},
    {"ipos_state", 0, I32, 0, body_state},
    {"ipos_frames", 0, I64, I64, body_frames},
    {"ipos_restore", I32, 0, I32, body_restore},
    {"ipos_frames_at", 0, I32, 0, body_frames_at},
    {"ipos_globals_at", 0, I64, I64, body_globals_at},
    {"ipos_globals_out", 0, 0, 0, body_globals_out},
    {"ipos_globals_in", 0, 0, 0, body_globals_in},
    {"ipos_stop", 0, 0, 0, body_stop},
    [USED] = {"ipos_used", 0, I64, 0, body_used},
    [PAGES_WORK] = {"ipos_pages_work", 0, I64, I64, body_pages_work},
};

u32 runtime_type(u32 i) { return type_intern(&functions[i].param, functions[i].param != 0, &functions[i].result, functions[i].result != 0); }
const char *runtime_name(u32 i) { return functions[i].name; }

void write_runtime_body(u32 i, Buf *code) {
    quiet = false;
    out.n = 0;
    if (functions[i].local) eu(1), eu(2), e8(functions[i].local);
    else eu(0);
    functions[i].body();
    e8(END);
    put_u(code, out.n);
    put_bytes(code, out.at, out.n);
}
