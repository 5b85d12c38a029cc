/* The module under construction: the program, the WASI merged into it, and the functions that the pass makes.
   Functions, types, globals and segments of all three share one numbering ("id"): the program's own indices first. */
#ifndef IPOS_MODULE_H
#define IPOS_MODULE_H

#include "base.h"

enum { I32 = 0x7f, I64 = 0x7e, F32 = 0x7d, F64 = 0x7c, V128 = 0x7b, FUNCREF = 0x70, EXTERNREF = 0x6f, VOID = 0x40 };

enum { FLAG_OPEN = 1, FLAG_NO_NAN = 2, FLAG_NO_DEPTH = 4, FLAG_ALL_STOP = 8 /* no function is bounded: more to test */ };
extern u32 flags;

/* Memories of the output. */
enum { MEM_PROGRAM = 0, MEM_STACK = 1, MEM_WASI = 2, MEM_CACHE = 3 };

typedef struct { const u8 *p, *end; } Reader;

/* One of the two modules read. The bases turn its indices into ids. */
typedef struct {
    const u8 *bytes;
    u32 size;
    u32 payload; /* without custom sections */
    Reader section[14];
    bool has[14];
    u32 type_base, func_base, global_base, table_base, data_base, elem_base;
    u32 types, funcs, imported_funcs, globals, tables, memories, datas, elems;
    u32 start; /* function id or NONE */
} Source;
extern Source program, wasi, made;
/* The module that `where` points into, or NULL. */
const Source *source_of(const u8 *where, u32 *offset);

typedef struct { const u8 *params, *results; u32 np, nr; } Type;
extern VEC(Type) types;
u32 type_intern(const u8 *params, u32 np, const u8 *results, u32 nr);
void type_add(Type t); /* under the next number, even if there is one like it */
void types_changed(void);

typedef enum { FROM_PROGRAM, FROM_WASI, FROM_PASS, IMPORTED, PSEUDO } Origin;

typedef struct {
    Origin origin;
    u32 type;
    const u8 *body; /* of a function with a body: from the local declarations to the last end */
    u32 size;
    u32 alias;   /* an import that the WASI answers: the id of its function, else NONE */
    u32 wrapper; /* of an imported or WASI function whose address is taken: the program function that calls it, else NONE */
    u32 final;   /* index in the output */
    u32 pseudo;  /* PSEUDO: the operation that a call stands for */
    u32 twin;    /* FROM_WASI: the unmetered copy, else NONE */
    /* call graph */
    u32 callees, callees_n;     /* in `edges` */
    u32 indirects, indirects_n; /* type ids, in `edges` */
    u32 cost;   /* bounded: what its caller is charged; taken: what it charges itself */
    u32 frame;  /* bytes: an upper bound of its saved frame and our measure of its native frame */
    u32 weight; /* frame and the deepest path below it through functions that are not counted */
    u8 loops, outside; /* has a loop; calls what is not the program's */
    u8 may;     /* may stop: has safepoints */
    u8 taken;   /* reached by table, reference, export or start: by callers that cannot charge for it */
    u8 counted; /* counts the depth of calls */
    u8 free;    /* not metered */
    u8 visited;
} Func;
extern VEC(Func) funcs;
extern U32s edges;

typedef struct { u8 type, mutable, imported; Reader init; const Source *source; } Global;
extern VEC(Global) globals;

typedef struct { u8 type, imported, has_max; u64 min, max; } Table;
extern VEC(Table) tables;

typedef struct { Reader import; u32 func; } Import; /* the bytes of one import entry; `func` is an id or NONE */
extern VEC(Import) imports;

typedef struct { const u8 *name; u32 name_size; u8 kind; u32 index; const u8 *where; } Export;
extern VEC(Export) exports;

typedef struct { u8 mode; u8 type; u8 exprs; u32 table; Reader offset, items; u32 n; const Source *source; bool dropped; } Elem;
extern VEC(Elem) elems;
enum { ACTIVE = 0, PASSIVE = 1, DECLARED = 2 };

typedef struct { u8 mode; u32 memory; Reader offset; const u8 *bytes; u32 size; const Source *source; bool dropped; } Data;
extern VEC(Data) datas;

typedef struct { u64 min, max; bool has_max, imported; } Memory;
extern Memory program_memory, wasi_memory;
extern bool program_has_memory;

/* read.c */
u8 read8(Reader *r);
u32 read_u32(Reader *r);
i32 read_s32(Reader *r);
i64 read_s64(Reader *r);
void read_skip(Reader *r, u64 n);
void read_module(Source *source, const u8 *bytes, u32 size);
/* One constant expression; `r` is moved behind its end. Calls `found` for each function that it refers to. */
Reader read_const_expr(Reader *r, const Source *source);
u8 read_value_type(Reader *r);

/* merge.c */
void merge_wasi(const u8 *bytes, u32 size);
void link_program(void);
void pseudo_import(Func *func, const u8 *name, u32 n, const u8 *where);

/* made.c */
u32 make_func(u32 type, const Buf *body);
u32 entry_of(u32 func); /* what a table, an export or a reference may hold in place of `func` */
u32 bulk_helper(u32 operation, u32 segment, const u8 *where);

/* graph.c */
void analyse_calls(void);
extern u32 static_depth; /* bytes: the deepest path through functions that are not counted */

/* tables.c */
extern bool uses_references; /* tables that change, or references as values */
extern bool lowered;         /* references are numbers and tables are arrays in ipos_stack */
void lower_references(void);
u32 table_capacity(u32 table);

/* rewrite.c */
void rewrite(u32 func, Buf *code);

/* runtime.c */
enum {
    G_METER, G_STATE, G_SP, G_SAVED, G_BASE, G_TOTAL, G_DIRTY, G_DEPTH,
    G_PAGES_WORK,  /* the memory integral up to ... */
    G_PAGES_SINCE, /* ... this work */
    RUNTIME_GLOBALS
};
void plan_runtime(void);
u32 runtime_global(u32 which); /* its index in the output */
u32 dropped_flag(bool elem, u32 segment); /* global that says that a passive segment was dropped */
u32 table_size_global(u32 table);         /* lowered */
u32 elem_size_global(u32 elem);
u32 table_address(u32 table); /* in ipos_stack */
u32 elem_address(u32 elem);
extern u32 trap_import; /* final index of ipos.trap, NONE if no function counts depth */

/* write.c */
void number_functions(void);
bool has_body(const Func *f);
u32 final_of(u32 func); /* index in the output, of whatever answers it */
extern u32 function_count; /* of the output, without the runtime's */
void write_module(Buf *out);

/* segments.c: append to a section */
void write_const_expr(Buf *section, Reader expr, const Source *source);
void write_elems(Buf *section);
u32 write_datas(Buf *section); /* their number */

/* admit.h's numbers are checked where the thing is read; this one at the end */
void admit_output(u32 input, u32 output);

#endif
