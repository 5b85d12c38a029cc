/* From bytes to the module: LEB numbers, sections, segments. Every length is checked against what holds it. */
#include "admit.h"
#include "module.h"

Source program, wasi, made;
u32 flags;
__typeof__(funcs) funcs;
__typeof__(globals) globals;
__typeof__(tables) tables;
__typeof__(imports) imports;
__typeof__(exports) exports;
__typeof__(elems) elems;
__typeof__(datas) datas;
U32s edges;
Memory program_memory, wasi_memory;
bool program_has_memory;

const Source *source_of(const u8 *where, u32 *offset) {
    const Source *both[] = {&program, &wasi};
    for (int i = 0; i < 2; i++)
        if (where && both[i]->bytes && where >= both[i]->bytes && where <= both[i]->bytes + both[i]->size) {
            *offset = (u32)(where - both[i]->bytes);
            return both[i];
        }
    return NULL;
}

u8 read8(Reader *r) {
    if (r->p >= r->end) refuse(r->p, "the module ends too early");
    return *r->p++;
}

void read_skip(Reader *r, u64 n) {
    if ((u64)(r->end - r->p) < n) refuse(r->p, "the module ends too early");
    r->p += n;
}

u32 read_u32(Reader *r) {
    const u8 *at = r->p;
    u32 value = 0;
    for (u32 shift = 0;; shift += 7) {
        u8 b = read8(r);
        if (shift == 28 && b > 15) refuse(at, "a number is longer than 32 bits");
        value |= (u32)(b & 127) << shift;
        if (!(b & 128)) return value;
    }
}

static i64 read_signed(Reader *r, u32 bits) {
    const u8 *at = r->p;
    u64 value = 0;
    u32 shift = 0;
    u8 b;
    do {
        if (shift >= (bits + 6) / 7 * 7) refuse(at, "a number is longer than %u bits", bits);
        b = read8(r);
        value |= (u64)(b & 127) << shift;
        shift += 7;
    } while (b & 128);
    if (shift < 64 && (b & 64)) value |= ~(u64)0 << shift;
    return (i64)value;
}

i32 read_s32(Reader *r) { return (i32)read_signed(r, 32); }
i64 read_s64(Reader *r) { return read_signed(r, 64); }

u8 read_value_type(Reader *r) {
    const u8 *at = r->p;
    u8 type = read8(r);
    switch (type) {
    case I32: case I64: case F32: case F64: case V128: return type;
    case FUNCREF: case EXTERNREF: uses_references = true; return type;
    case 0x63: case 0x64: refuse(at, "typed references are not supported");
    case 0x69: case 0x74: refuse(at, "exceptions are not supported: an exnref");
    default:
        if (type >= 0x6a && type <= 0x73) refuse(at, "garbage-collected references are not supported: type 0x%x", (u32)type);
        refuse(at, "0x%x is not a value type", (u32)type);
    }
}

static u8 reference_type(Reader *r) {
    const u8 *at = r->p;
    bool before = uses_references;
    u8 type = read_value_type(r);
    if (type != FUNCREF && type != EXTERNREF) refuse(at, "a table must hold references");
    uses_references = before || type == EXTERNREF; /* a table of functions that stays as it is needs nothing */
    return type;
}

static u32 read_count(Reader *r, u32 most, const char *what) {
    const u8 *at = r->p;
    u32 n = read_u32(r);
    if (n > most) refuse(at, "%u %s are more than the %u that a module may have", n, what, most);
    if (n > (u64)(r->end - r->p)) refuse(at, "the module ends too early: %u %s", n, what);
    return n;
}

static void finished(const Reader *r) {
    if (r->p != r->end) refuse(r->p, "the section is longer than what it holds");
}

static void read_types(Source *s, Reader r) {
    s->types = read_count(&r, MAX_TYPES, "types");
    for (u32 i = 0; i < s->types; i++) {
        const u8 *at = r.p;
        u8 form = read8(&r);
        if (form != 0x60) refuse(at, "garbage-collected types are not supported: type form 0x%x", (u32)form);
        Type t = {0};
        t.np = read_count(&r, MAX_PARAMS, "parameters");
        t.params = r.p;
        for (u32 k = 0; k < t.np; k++) read_value_type(&r);
        t.nr = read_count(&r, MAX_PARAMS, "results");
        t.results = r.p;
        for (u32 k = 0; k < t.nr; k++) read_value_type(&r);
        type_add(t);
    }
    finished(&r);
}

static u32 read_type_id(Reader *r, const Source *s) {
    const u8 *at = r->p;
    u32 index = read_u32(r);
    if (index >= s->types) refuse(at, "there is no type %u", index);
    return s->type_base + index;
}

static void read_limits(Reader *r, u64 *min, u64 *max, bool *has_max, bool table) {
    const u8 *at = r->p;
    u8 kind = read8(r);
    if (kind & 4) refuse(at, table ? "64-bit tables are not supported" : "64-bit memories are not supported");
    if (kind & 2) refuse(at, "threads are not supported: a shared memory");
    if (kind & 8) refuse(at, "custom page sizes are not supported");
    if (kind > 1) refuse(at, "0x%x is not a kind of limits", (u32)kind);
    *min = read_u32(r);
    *has_max = kind & 1;
    *max = *has_max ? read_u32(r) : 0;
    u64 most = table ? MAX_TABLE_ELEMENTS : 65536;
    if (*min > most) refuse(at, table ? "a table of %u elements is larger than a table may be (%u)" : "a memory of %u pages is larger than 4 GiB", (u32)*min, (u32)most);
    if (*has_max && *max < *min) refuse(at, "the maximum is less than the minimum");
}

static void add_memory(Source *s, Reader *r, bool imported) {
    const u8 *at = r->p;
    Memory m = {.imported = imported};
    read_limits(r, &m.min, &m.max, &m.has_max, false);
    if (s->memories++) refuse(at, "more than one memory is not supported");
    if (s == &wasi) wasi_memory = m;
    else program_memory = m, program_has_memory = true;
}

static void add_table(Source *s, Reader *r, bool imported) {
    const u8 *at = r->p;
    if (r->p < r->end && *r->p == 0x40) refuse(at, "tables with an initial value are not supported");
    Table t = {.imported = imported};
    t.type = reference_type(r);
    bool has_max;
    read_limits(r, &t.min, &t.max, &has_max, true);
    t.has_max = has_max;
    if (++s->tables > MAX_TABLES) refuse(at, "more than %u tables are not supported", MAX_TABLES);
    vec_push(tables, t);
}

static void add_global(Source *s, Reader *r, bool imported) {
    const u8 *at = r->p;
    Global g = {.imported = imported, .source = s};
    g.type = read_value_type(r);
    g.mutable = read8(r);
    if (g.mutable > 1) refuse(at, "threads are not supported: a shared global");
    if (!imported) g.init = read_const_expr(r, s);
    s->globals++;
    vec_push(globals, g);
}

static void read_imports(Source *s, Reader r) {
    u32 n = read_count(&r, MAX_FUNCTIONS, "imports");
    for (u32 i = 0; i < n; i++) {
        Import import = {.import.p = r.p, .func = NONE};
        const u8 *at = r.p;
        u32 module_size = read_u32(&r);
        const u8 *module = r.p;
        read_skip(&r, module_size);
        u32 name_size = read_u32(&r);
        const u8 *name = r.p;
        read_skip(&r, name_size);
        u8 kind = read8(&r);
        bool open = flags & FLAG_OPEN && s != &wasi;
        if (kind != 0 && !open)
            refuse(at, "the import %n.%n is not a function", module, module_size, name, name_size);
        switch (kind) {
        case 0: {
            Func f = {.origin = IMPORTED, .type = read_type_id(&r, s), .alias = NONE, .wrapper = NONE, .twin = NONE};
            if (s == &wasi && module_size == 1 && module[0] == 'x') f.origin = PSEUDO;
            else if (s == &wasi && !(module_size == 4 && same_bytes(module, "ipos", 4)))
                refuse(at, "the WASI imports %n.%n", module, module_size, name, name_size);
            if (f.origin == PSEUDO) pseudo_import(&f, name, name_size, at);
            else import.func = funcs.n;
            s->imported_funcs++;
            s->funcs++;
            vec_push(funcs, f);
            break;
        }
        case 1: add_table(s, &r, true); break;
        case 2: add_memory(s, &r, true); break;
        case 3: add_global(s, &r, true); break;
        case 4: refuse(at, "exceptions are not supported: an imported tag");
        default: refuse(at, "0x%x is not a kind of import", (u32)kind);
        }
        import.import.end = r.p;
        if (kind != 0 || import.func != NONE) vec_push(imports, import);
    }
    finished(&r);
}

static void read_functions(Source *s, Reader r) {
    u32 n = read_count(&r, MAX_FUNCTIONS, "functions");
    for (u32 i = 0; i < n; i++)
        vec_push(funcs, (Func){.origin = s == &wasi ? FROM_WASI : FROM_PROGRAM, .type = read_type_id(&r, s),
                               .alias = NONE, .wrapper = NONE, .twin = NONE});
    s->funcs += n;
    finished(&r);
}

Reader read_const_expr(Reader *r, const Source *s) {
    Reader expr = {r->p, NULL};
    for (;;) {
        const u8 *at = r->p;
        u8 op = read8(r);
        switch (op) {
        case 0x0b: expr.end = r->p; return expr;
        case 0x41: read_s32(r); break;
        case 0x42: read_s64(r); break;
        case 0x43: read_skip(r, 4); break;
        case 0x44: read_skip(r, 8); break;
        case 0x23:
            if (read_u32(r) >= s->globals) refuse(at, "a constant refers to a global that is not there");
            break;
        case 0xd0: reference_type(r); break;
        case 0xd2: {
            u32 f = read_u32(r);
            if (f >= s->funcs) refuse(at, "a constant refers to function %u, which is not there", f);
            entry_of(s->func_base + f);
            break;
        }
        case 0x6a: case 0x6b: case 0x6c: case 0x7c: case 0x7d: case 0x7e: break;
        case 0xfd: {
            if (read_u32(r) != 12) refuse(at, "the vector operation is not a constant");
            read_skip(r, 16);
            break;
        }
        case 0xfb: refuse(at, "garbage-collected types are not supported: a constant");
        default: refuse(at, "0x%x is not a constant expression", (u32)op);
        }
    }
}

static void read_exports(Source *s, Reader r) {
    u32 n = read_count(&r, MAX_FUNCTIONS, "exports");
    for (u32 i = 0; i < n; i++) {
        Export e = {.where = r.p};
        e.name_size = read_u32(&r);
        e.name = r.p;
        read_skip(&r, e.name_size);
        e.kind = read8(&r);
        e.index = read_u32(&r);
        u32 counts[] = {s->funcs, s->tables, s->memories, s->globals};
        if (e.kind == 4) refuse(e.where, "exceptions are not supported: an exported tag");
        if (e.kind > 3 || e.index >= counts[e.kind]) refuse(e.where, "the export '%n' is of something that is not there", e.name, e.name_size);
        u32 bases[] = {s->func_base, s->table_base, 0, s->global_base};
        e.index += bases[e.kind];
        vec_push(exports, e);
    }
    finished(&r);
}

static void read_elems(Source *s, Reader r) {
    s->elems = read_count(&r, MAX_SEGMENTS, "element segments");
    for (u32 i = 0; i < s->elems; i++) {
        const u8 *at = r.p;
        u32 kind = read_u32(&r);
        if (kind > 7) refuse(at, "%u is not a kind of element segment", kind);
        Elem e = {.source = s, .type = FUNCREF, .exprs = (kind & 4) != 0};
        e.mode = !(kind & 1) ? ACTIVE : kind & 2 ? DECLARED : PASSIVE;
        if (e.mode == ACTIVE) {
            if (kind & 2) e.table = read_u32(&r);
            if (e.table >= s->tables) refuse(at, "there is no table %u", e.table);
            e.table += s->table_base;
            e.offset = read_const_expr(&r, s);
        }
        if (kind & 3) {
            if (e.exprs) e.type = reference_type(&r);
            else if (read8(&r)) refuse(at, "the element segment does not hold functions");
        }
        e.n = read_count(&r, MAX_TABLE_ELEMENTS, "elements");
        e.items.p = r.p;
        for (u32 k = 0; k < e.n; k++) {
            const u8 *item = r.p;
            if (e.exprs) {
                read_const_expr(&r, s);
                continue;
            }
            u32 f = read_u32(&r);
            if (f >= s->funcs) refuse(item, "there is no function %u", f);
            entry_of(s->func_base + f);
        }
        e.items.end = r.p;
        vec_push(elems, e);
    }
    finished(&r);
}

static void read_datas(Source *s, Reader r) {
    s->datas = read_count(&r, MAX_SEGMENTS, "data segments");
    for (u32 i = 0; i < s->datas; i++) {
        const u8 *at = r.p;
        u32 kind = read_u32(&r);
        if (kind > 2) refuse(at, "%u is not a kind of data segment", kind);
        Data d = {.source = s, .mode = kind == 1 ? PASSIVE : ACTIVE, .memory = s == &wasi ? MEM_WASI : MEM_PROGRAM};
        u32 memory = kind == 2 ? read_u32(&r) : 0;
        if (d.mode == ACTIVE) {
            if (memory >= s->memories) refuse(at, "there is no memory %u", memory);
            d.offset = read_const_expr(&r, s);
        }
        d.size = read_u32(&r);
        d.bytes = r.p;
        read_skip(&r, d.size);
        vec_push(datas, d);
    }
    finished(&r);
}

static void read_code(Source *s, Reader r) {
    u32 n = read_count(&r, MAX_FUNCTIONS, "function bodies");
    if (n != s->funcs - s->imported_funcs) refuse(r.p, "%u bodies for %u functions", n, s->funcs - s->imported_funcs);
    for (u32 i = 0; i < n; i++) {
        const u8 *at = r.p;
        Func *f = &funcs.at[s->func_base + s->imported_funcs + i];
        f->size = read_u32(&r);
        if (f->size > MAX_BODY_BYTES) refuse(at, "a function body of %u bytes is larger than a body may be (%u)", f->size, MAX_BODY_BYTES);
        f->body = r.p;
        read_skip(&r, f->size);
    }
    finished(&r);
}

/* The order in which sections must appear; customs anywhere. */
static u32 rank(u8 id) {
    static const u8 ranks[14] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 12, 13, 11, 6};
    return ranks[id];
}

static void find_sections(Source *s) {
    Reader r = {s->bytes, s->bytes + s->size};
    if (s->size < 8 || !same_bytes(s->bytes, "\0asm", 4)) refuse(s->bytes, "not a WebAssembly module");
    if (same_bytes(s->bytes + 4, "\x0d\0\1\0", 4)) refuse(s->bytes + 4, "components are not supported: the program must be a core module");
    if (!same_bytes(s->bytes + 4, "\1\0\0\0", 4)) refuse(s->bytes + 4, "not version 1 of WebAssembly");
    read_skip(&r, 8);
    u32 last = 0;
    while (r.p < r.end) {
        const u8 *at = r.p;
        u8 id = read8(&r);
        u32 size = read_u32(&r);
        const u8 *start = r.p;
        read_skip(&r, size);
        if (id == 0) continue;
        s->payload += size;
        if (id == 13) refuse(at, "exceptions are not supported: a tag section");
        if (id > 13) refuse(at, "0x%x is not a section", (u32)id);
        if (rank(id) <= last) refuse(at, "section %u is out of order", (u32)id);
        last = rank(id);
        s->section[id] = (Reader){start, r.p};
        s->has[id] = true;
    }
}

void read_module(Source *s, const u8 *bytes, u32 size) {
    s->bytes = bytes;
    s->size = size;
    s->start = NONE;
    s->type_base = types.n;
    s->func_base = funcs.n;
    s->global_base = globals.n;
    s->table_base = tables.n;
    s->data_base = datas.n;
    s->elem_base = elems.n;
    if (size > MAX_MODULE_BYTES) refuse(bytes, "a module of %u bytes is larger than a module may be (%u)", size, MAX_MODULE_BYTES);
    find_sections(s);
    if (s->has[1]) read_types(s, s->section[1]);
    if (s->has[2]) read_imports(s, s->section[2]);
    if (s->has[3]) read_functions(s, s->section[3]);
    if (s->has[4]) {
        Reader r = s->section[4];
        for (u32 n = read_count(&r, MAX_TABLES, "tables"); n; n--) add_table(s, &r, false);
        finished(&r);
    }
    if (s->has[5]) {
        Reader r = s->section[5];
        for (u32 n = read_count(&r, 100, "memories"); n; n--) add_memory(s, &r, false);
        finished(&r);
    }
    if (s->has[6]) {
        Reader r = s->section[6];
        for (u32 n = read_count(&r, MAX_GLOBALS, "globals"); n; n--) add_global(s, &r, false);
        finished(&r);
    }
    if (s->has[7]) read_exports(s, s->section[7]);
    if (s->has[8]) {
        Reader r = s->section[8];
        u32 f = read_u32(&r);
        if (f >= s->funcs) refuse(r.p, "the start function %u is not there", f);
        s->start = s->func_base + f;
        finished(&r);
    }
    if (s->has[9]) read_elems(s, s->section[9]);
    if (s->has[12]) read_u32(&s->section[12]);
    if (s->has[10]) read_code(s, s->section[10]);
    else if (s->funcs != s->imported_funcs) refuse(bytes + size, "the functions have no bodies");
    if (s->has[11]) read_datas(s, s->section[11]);
}
