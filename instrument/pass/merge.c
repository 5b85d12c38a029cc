/* The WASI's functions become the module's own, and the program's imports are answered by them. */
#include "decode.h"

/* Calls of these are single operations: on the program's memory (P), the WASI's own (M), the cache (C). */
static const struct { const char *name; u32 code, a, b; } pseudo[] = {
    {"l8", 0x2d, 0, MEM_PROGRAM},  {"l16", 0x2f, 0, MEM_PROGRAM}, {"l32", 0x28, 0, MEM_PROGRAM}, {"l64", 0x29, 0, MEM_PROGRAM},
    {"s8", 0x3a, 0, MEM_PROGRAM},  {"s16", 0x3b, 0, MEM_PROGRAM}, {"s32", 0x36, 0, MEM_PROGRAM}, {"s64", 0x37, 0, MEM_PROGRAM},
    {"in", MEMORY_COPY, MEM_WASI, MEM_PROGRAM},   {"out", MEMORY_COPY, MEM_PROGRAM, MEM_WASI},
    {"cin", MEMORY_COPY, MEM_WASI, MEM_CACHE},    {"cout", MEMORY_COPY, MEM_PROGRAM, MEM_CACHE},
    {"fill", MEMORY_FILL, MEM_PROGRAM, 0},        {"size", MEMORY_SIZE, MEM_PROGRAM, 0},
    {"cl64", 0x29, 0, MEM_CACHE},  {"cs64", 0x37, 0, MEM_CACHE},  {"csize", MEMORY_SIZE, MEM_CACHE, 0},
    {"work", X_WORK, 0, 0},        {"charge", X_CHARGE, 0, 0},    {"stop", X_STOP, 0, 0},
};

void pseudo_import(Func *f, const u8 *name, u32 n, const u8 *where) {
    for (u32 i = 0; i < sizeof pseudo / sizeof *pseudo; i++)
        if (text_length(pseudo[i].name) == n && same_bytes(pseudo[i].name, name, n)) {
            f->pseudo = pseudo[i].code | pseudo[i].a << 16 | pseudo[i].b << 24;
            return;
        }
    refuse(where, "the WASI imports x.%n, which is not an operation", name, n);
}

static bool is_named(const Export *e, const char *text, bool whole) {
    u32 n = text_length(text);
    return e->kind == 0 && (whole ? e->name_size == n : e->name_size > n) && same_bytes(e->name, text, n);
}

static U32s unscanned;

/* The copy of a function that charges nothing, and so on for all that it calls. */
static void make_free(u32 id) {
    if (funcs.at[id].origin != FROM_WASI || funcs.at[id].free || funcs.at[id].twin != NONE) return;
    Func twin = funcs.at[id];
    twin.free = 1;
    vec_push(funcs, twin);
    funcs.at[id].twin = funcs.n - 1;
    vec_push(unscanned, id);
}

void merge_wasi(const u8 *bytes, u32 size) {
    u32 first_export = exports.n;
    read_module(&wasi, bytes, size);
    if (!wasi.memories || wasi_memory.imported) refuse(bytes, "the WASI has no memory of its own");
    if (wasi.elems) refuse(bytes, "the WASI has a table");
    if (wasi.start != NONE) refuse(bytes, "the WASI has a start function");
    tables.n -= wasi.tables; /* an empty one that a linker put there */
    wasi.tables = 0;
    for (u32 i = 0; i < wasi.imported_funcs; i++) funcs.at[wasi.func_base + i].free = 1; /* a plain call */
    for (u32 i = first_export; i < exports.n; i++)
        if (is_named(&exports.at[i], "free_", false)) {
            funcs.at[exports.at[i].index].free = 1;
            vec_push(unscanned, exports.at[i].index);
        }
    for (u32 i = first_export; i < exports.n; i++)
        if (is_named(&exports.at[i], "wasi_", false)) make_free(exports.at[i].index);
    while (unscanned.n) {
        decode(unscanned.at[--unscanned.n]);
        for (u32 i = 0; i < ops.n; i++)
            if (ops.at[i].code == CALL) make_free(ops.at[i].a);
    }
}

/* ---- the program's side ---- */

static u32 wasi_function(const u8 *name, u32 n) {
    for (u32 i = 0; i < exports.n; i++) {
        const Export *e = &exports.at[i];
        u32 offset;
        if (e->kind == 0 && source_of(e->where, &offset) == &wasi && e->name_size == n && same_bytes(e->name, name, n)) return e->index;
    }
    return NONE;
}

static bool same_signature(u32 a, u32 b) {
    const Type *s = &types.at[a], *t = &types.at[b];
    return s->np == t->np && s->nr == t->nr && same_bytes(s->params, t->params, s->np) && same_bytes(s->results, t->results, s->nr);
}

static void answer_import(const Import *import) {
    Reader r = import->import;
    const u8 *at = r.p;
    u32 module_size = read_u32(&r);
    const u8 *module = r.p;
    read_skip(&r, module_size);
    u32 name_size = read_u32(&r);
    const u8 *name = r.p;
    bool preview1 = module_size == 22 && same_bytes(module, "wasi_snapshot_preview1", 22);
    u32 answer = preview1 && wasi.bytes ? wasi_function(name, name_size) : NONE;
    bool reserved = (name_size > 5 && same_bytes(name, "wasi_", 5)) || (name_size > 5 && same_bytes(name, "free_", 5));
    if (answer == NONE || reserved) {
        if (flags & FLAG_OPEN) return;
        refuse(at, "the program imports %n.%n, which is not a function of WASI preview 1", module, module_size, name, name_size);
    }
    if (!same_signature(funcs.at[import->func].type, funcs.at[answer].type))
        refuse(at, "the program imports %n with another signature than WASI preview 1 has", name, name_size);
    funcs.at[import->func].alias = answer;
}

void link_program(void) {
    bool memory_exported = false, uses_wasi = false;
    for (u32 i = 0; i < imports.n; i++)
        if (imports.at[i].func != NONE && imports.at[i].func < program.funcs) answer_import(&imports.at[i]), uses_wasi = true;
    u32 n = exports.n;
    for (u32 i = 0; i < n; i++) {
        Export e = exports.at[i];
        u32 offset;
        if (source_of(e.where, &offset) == &wasi) continue;
        bool kept = e.name_size >= 5 && (same_bytes(e.name, "ipos_", 5) || (same_bytes(e.name, "wasi_", 5) && wasi_function(e.name, e.name_size) != NONE));
        if (kept)
            refuse(e.where, "the export '%n' has a name that is kept for the engine", e.name, e.name_size);
        if (e.kind == 0) entry_of(e.index);
        if (e.kind == 2 && e.name_size == 6 && same_bytes(e.name, "memory", 6)) memory_exported = true;
    }
    if (program.start != NONE) entry_of(program.start);
    if (uses_wasi && program_has_memory && !memory_exported && !(flags & FLAG_OPEN))
        refuse(program.bytes + 8, "the program's memory is not exported as 'memory'");
}
