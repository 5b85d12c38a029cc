/* The output: all sections anew, in the numbering of the output. */
#include "admit.h"
#include "decode.h"
#include "runtime.h"
#include "weights.h"

#define PASS_VERSION "1"

u32 function_count;
static u32 imported_count;

static bool kept_import(const Func *f) { return f->origin == IMPORTED && f->alias == NONE; }
bool has_body(const Func *f) { return f->origin == FROM_PROGRAM || f->origin == FROM_WASI || f->origin == FROM_PASS; }

void number_functions(void) {
    u32 next = 0;
    bool counted = false;
    for (u32 i = 0; i < funcs.n; i++) {
        if (kept_import(&funcs.at[i])) funcs.at[i].final = next++;
        if (funcs.at[i].counted) counted = true;
    }
    if (counted) trap_import = next++;
    imported_count = next;
    for (u32 i = 0; i < funcs.n; i++)
        if (has_body(&funcs.at[i])) funcs.at[i].final = next++;
    function_count = next;
}

u32 final_of(u32 id) { return funcs.at[funcs.at[id].alias != NONE ? funcs.at[id].alias : id].final; }

/* ---- sections ---- */

static Buf section;

static void put_section(Buf *to, u8 id) {
    put8(to, id);
    put_u(to, section.n);
    put_bytes(to, section.at, section.n);
    section.n = 0;
}

static void write_types(void) {
    put_u(&section, types.n);
    for (u32 i = 0; i < types.n; i++) {
        const Type *t = &types.at[i];
        put8(&section, 0x60);
        put_u(&section, t->np);
        put_bytes(&section, t->params, t->np);
        put_u(&section, t->nr);
        put_bytes(&section, t->results, t->nr);
    }
}

static u32 write_imports(u32 trap_type) {
    u32 n = 0;
    for (u32 i = 0; i < imports.n; i++) n += imports.at[i].func == NONE || kept_import(&funcs.at[imports.at[i].func]);
    if (trap_import != NONE) n++;
    put_u(&section, n);
    for (u32 i = 0; i < imports.n; i++) {
        const Import *import = &imports.at[i];
        if (import->func != NONE && !kept_import(&funcs.at[import->func])) continue;
        Reader r = import->import;
        for (int k = 0; k < 2; k++) read_skip(&r, read_u32(&r));
        if (import->func == NONE) {
            put_bytes(&section, import->import.p, (u32)(import->import.end - import->import.p));
            continue;
        }
        put_bytes(&section, import->import.p, (u32)(r.p - import->import.p));
        put8(&section, 0);
        put_u(&section, funcs.at[import->func].type);
    }
    if (trap_import != NONE) {
        put_name(&section, "ipos");
        put_name(&section, "trap");
        put8(&section, 0);
        put_u(&section, trap_type);
    }
    return n;
}

static void write_functions(void) {
    put_u(&section, function_count - imported_count + RUNTIME_FUNCTIONS);
    for (u32 i = 0; i < funcs.n; i++)
        if (has_body(&funcs.at[i])) put_u(&section, funcs.at[i].type);
    for (u32 i = 0; i < RUNTIME_FUNCTIONS; i++) put_u(&section, runtime_type(i));
}

static u32 write_tables(void) {
    u32 n = 0;
    if (lowered) { /* all functions by number: 0 is null */
        put_u(&section, 1);
        put8(&section, FUNCREF);
        put8(&section, 1);
        put_u(&section, function_count + 1);
        put_u(&section, function_count + 1);
        return 1;
    }
    for (u32 i = 0; i < tables.n; i++) n += !tables.at[i].imported;
    put_u(&section, n);
    for (u32 i = 0; i < tables.n; i++) {
        const Table *t = &tables.at[i];
        if (t->imported) continue;
        put8(&section, t->type);
        /* a table that grows is bounded in any case */
        u64 max = t->has_max && t->max < MAX_TABLE_ELEMENTS ? t->max : MAX_TABLE_ELEMENTS;
        put8(&section, 1);
        put_u(&section, t->min);
        put_u(&section, flags & FLAG_OPEN && t->has_max ? t->max : max);
    }
    return n;
}

static void write_memory(u64 min, bool has_max, u64 max) {
    put8(&section, has_max);
    put_u(&section, min);
    if (has_max) put_u(&section, max);
}

static void write_memories(void) {
    bool imported = program_has_memory && program_memory.imported;
    put_u(&section, 2u - imported + (wasi.bytes ? 2 : 0));
    if (!program_has_memory) write_memory(0, true, 0);
    else if (!imported) write_memory(program_memory.min, program_memory.has_max, program_memory.max);
    write_memory(stack_pages(), true, stack_pages());
    if (!wasi.bytes) return;
    write_memory(wasi_memory.min, wasi_memory.has_max, wasi_memory.max);
    write_memory(0, false, 0); /* the host lets the cache grow */
}

static void write_globals(void) {
    u32 own = 0;
    for (u32 i = 0; i < globals.n; i++) own += !globals.at[i].imported;
    static Buf added;
    added.n = 0;
    u32 n = write_runtime_globals(&added);
    put_u(&section, own + n);
    for (u32 i = 0; i < globals.n; i++) {
        const Global *g = &globals.at[i];
        if (g->imported) continue;
        put8(&section, g->type);
        put8(&section, g->mutable);
        write_const_expr(&section, g->init, g->source);
    }
    put_bytes(&section, added.at, added.n);
}

static u32 export_count;

static void put_export(const char *name, u8 kind, u32 index) {
    put_name(&section, name);
    put8(&section, kind);
    put_u(&section, index);
    export_count++;
}

static bool starts_with(const Export *e, const char *text) {
    u32 n = text_length(text);
    return e->name_size >= n && same_bytes(e->name, text, n);
}

static void write_exports(Buf *to) {
    export_count = 0;
    for (u32 i = 0; i < exports.n; i++) {
        const Export *e = &exports.at[i];
        u32 offset;
        bool from_wasi = source_of(e->where, &offset) == &wasi;
        if (lowered && e->kind == 1) continue; /* there is no table any more */
        if (from_wasi && (e->kind != 0 || !starts_with(e, "wasi_"))) continue;
        put_u(&section, e->name_size);
        put_bytes(&section, e->name, e->name_size);
        put8(&section, e->kind);
        u32 id = e->index;
        if (e->kind == 0) { /* the runtime's calls into the WASI are not the program's work */
            if (from_wasi && funcs.at[id].twin != NONE) id = funcs.at[id].twin;
            put_u(&section, from_wasi ? funcs.at[id].final : final_of(entry_of(id)));
        } else put_u(&section, id);
        export_count++;
    }
    for (u32 i = 0; i < RUNTIME_FUNCTIONS; i++) put_export(runtime_name(i), 0, function_count + i);
    put_export("ipos_mem", 2, MEM_PROGRAM);
    put_export("ipos_stack", 2, MEM_STACK);
    if (wasi.bytes) {
        put_export("ipos_wasi", 2, MEM_WASI);
        put_export("ipos_cache", 2, MEM_CACHE);
    }
    if (program.start != NONE) put_export("ipos_begin", 0, final_of(entry_of(program.start)));
    static Buf body;
    body.n = 0;
    put_u(&body, export_count);
    put_bytes(&body, section.at, section.n);
    section.n = 0;
    put_bytes(&section, body.at, body.n);
    put_section(to, 7);
}

static void write_version(Buf *to) {
    put_name(&section, "ipos");
    const char *lines = "pass " PASS_VERSION "\nweights ";
    put_bytes(&section, lines, text_length(lines));
    put8(&section, '0' + WEIGHTS_VERSION);
    put8(&section, '\n');
    put_section(to, 0);
}

void write_module(Buf *to) {
    /* bodies first: they may need more types */
    static Buf code;
    put_u(&code, function_count - imported_count + RUNTIME_FUNCTIONS);
    for (u32 i = 0; i < funcs.n; i++)
        if (has_body(&funcs.at[i])) rewrite(i, &code);
    for (u32 i = 0; i < RUNTIME_FUNCTIONS; i++) write_runtime_body(i, &code), runtime_type(i);
    static const u8 one[] = {I32};
    u32 trap_type = type_intern(one, 1, NULL, 0);

    put_bytes(to, "\0asm\1\0\0\0", 8);
    write_types();
    put_section(to, 1);
    if (write_imports(trap_type)) put_section(to, 2);
    section.n = 0;
    write_functions();
    put_section(to, 3);
    if (write_tables()) put_section(to, 4);
    section.n = 0;
    write_memories();
    put_section(to, 5);
    write_globals();
    put_section(to, 6);
    write_exports(to);
    if (lowered || elems.n) {
        write_elems(&section);
        put_section(to, 9);
    }
    static Buf contents;
    u32 data_count = write_datas(&contents);
    if (data_count) {
        put_u(&section, data_count);
        put_section(to, 12);
    }
    put8(to, 10);
    put_u(to, code.n);
    put_bytes(to, code.at, code.n);
    if (data_count) {
        put_u(&section, data_count);
        put_bytes(&section, contents.at, contents.n);
        put_section(to, 11);
    }
    write_version(to);
    admit_output(program.payload + wasi.payload, to->n);
}

void admit_output(u32 input, u32 output) {
    if ((u64)output > (u64)input * OUTPUT_PER_INPUT + OUTPUT_EXTRA)
        refuse(NULL, "the instrumented module would have %u bytes, more than %u times the program's %u", output, OUTPUT_PER_INPUT, input);
}
