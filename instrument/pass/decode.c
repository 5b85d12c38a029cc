/* Function bodies into operations: names what is refused, resolves indices to ids, finds what is never reached. */
#include "decode.h"
#include "admit.h"
#include "weights.h"

__typeof__(ops) ops;
__typeof__(locals) locals;
u32 param_count;

static U32s open_blocks;
static VEC(u8) open_alive;

static void read_locals(const Func *f, Reader *r) {
    const Type *t = &types.at[f->type];
    locals.n = 0;
    for (u32 i = 0; i < t->np; i++) vec_push(locals, t->params[i]);
    param_count = t->np;
    for (u32 groups = read_u32(r); groups; groups--) {
        const u8 *at = r->p;
        u32 n = read_u32(r);
        u8 type = read_value_type(r);
        if (n > MAX_LOCALS || locals.n + n > MAX_LOCALS)
            refuse(at, "a function with more than %u locals is more than a compiler can take", MAX_LOCALS);
        if (lowered && (type == FUNCREF || type == EXTERNREF)) type = I32;
        for (u32 i = 0; i < n; i++) vec_push(locals, type);
    }
}

static u32 read_index(Reader *r, u32 count, u32 base, const char *what) {
    const u8 *at = r->p;
    u32 index = read_u32(r);
    if (index >= count) refuse(at, "there is no %s %u", what, index);
    return base + index;
}

static void read_memarg(Reader *r, Op *op, const Source *s) {
    u32 align = read_u32(r);
    if (align & 64) {
        const u8 *at = r->p;
        if (read_u32(r) != 0) refuse(at, "more than one memory is not supported");
    }
    if ((align & 63) > 4) refuse(r->p, "the alignment is too large");
    if (!s->memories) refuse(op->at, "there is no memory");
    op->align = align & 63;
    op->offset = read_u32(r);
    op->b = s == &wasi ? MEM_WASI : MEM_PROGRAM;
}

static u32 read_memory(Reader *r, const Source *s) {
    const u8 *at = r->p;
    if (read_u32(r) != 0) refuse(at, "more than one memory is not supported");
    if (!s->memories) refuse(at, "there is no memory");
    return s == &wasi ? MEM_WASI : MEM_PROGRAM;
}

static void read_block_type(Reader *r, Op *op, const Source *s) {
    const u8 *at = r->p;
    if (r->p < r->end && (*r->p & 0x40) && !(*r->p & 0x80)) { /* a negative number of one byte: a type by itself */
        u8 type = *r->p;
        if (type == VOID) r->p++;
        else read_value_type(r);
        op->a = lowered && (type == FUNCREF || type == EXTERNREF) ? I32 : type;
        return;
    }
    i64 index = read_s64(r);
    if (index < 0 || index >= s->types) refuse(at, "there is no type for the block");
    op->typed = true;
    op->a = s->type_base + (u32)index;
}

/* The operations behind prefix 0xfc. `a` is the destination or the segment, `b` the source. */
static void read_bulk(Reader *r, Op *op, const Source *s) {
    u32 number = read_u32(r);
    op->code = 0xfc00 + number;
    if (number > 255) number = 255;
    if (number >= 12 && number <= 17) uses_references = true;
    switch (number) {
    case 0: case 1: case 2: case 3: case 4: case 5: case 6: case 7: return;
    case 8: /* memory.init */
        op->a = read_index(r, s->datas, s->data_base, "data segment");
        op->b = read_memory(r, s);
        return;
    case 9:
        op->a = read_index(r, s->datas, s->data_base, "data segment");
        datas.at[op->a].dropped = true;
        return;
    case 10:
        op->a = read_memory(r, s);
        op->b = read_memory(r, s);
        return;
    case 11: op->a = read_memory(r, s); return;
    case 12:
        op->b = read_index(r, s->elems, s->elem_base, "element segment");
        op->a = read_index(r, s->tables, s->table_base, "table");
        return;
    case 13:
        op->a = read_index(r, s->elems, s->elem_base, "element segment");
        elems.at[op->a].dropped = true;
        return;
    case 14:
        op->a = read_index(r, s->tables, s->table_base, "table");
        op->b = read_index(r, s->tables, s->table_base, "table");
        return;
    case 15: case 16: case 17: op->a = read_index(r, s->tables, s->table_base, "table"); return;
    case 19: case 20: case 21: case 22: refuse(op->at, "wide arithmetic is not supported");
    default: refuse(op->at, "the operation 0xfc 0x%x is not known", number);
    }
}

static void read_vector(Reader *r, Op *op, const Source *s) {
    u32 number = read_u32(r);
    if (number >= 256) {
        if (number < 276) refuse(op->at, "relaxed SIMD is not supported: operation 0xfd 0x%x", number);
        refuse(op->at, "the operation 0xfd 0x%x is not known", number);
    }
    op->code = 0xfd00 + number;
    if (number <= 11 || number == 92 || number == 93) read_memarg(r, op, s);
    else if (number == 12 || number == 13) read_skip(r, 16);
    else if (number >= 21 && number <= 34) read8(r);
    else if (number >= 84 && number <= 91) {
        read_memarg(r, op, s);
        op->a = read8(r);
    }
}

/* A call of a pseudo import of the WASI is the operation that it stands for. */
static void read_call(Reader *r, Op *op, const Source *s) {
    u32 id = read_index(r, s->funcs, s->func_base, "function");
    if (funcs.at[id].alias != NONE) id = funcs.at[id].alias;
    op->a = id;
    if (funcs.at[id].origin != PSEUDO) return;
    u32 pseudo = funcs.at[id].pseudo;
    op->code = pseudo & 0xffff;
    op->a = pseudo >> 16 & 0xff;
    op->b = pseudo >> 24;
}

static void refuse_proposal(const Op *op) {
    u32 code = op->code;
    if (code == 0x12 || code == 0x13) refuse(op->at, "tail calls are not supported: %s", code == 0x12 ? "return_call" : "return_call_indirect");
    if (code == 0x14 || code == 0x15) refuse(op->at, "calls of typed references are not supported");
    if ((code >= 0x06 && code <= 0x0a) || code == 0x18 || code == 0x19 || code == 0x1f)
        refuse(op->at, "exceptions are not supported: %s",
               code == 0x08 ? "throw" : code == 0x0a ? "throw_ref" : code == 0x1f ? "try_table" : "the legacy exception operations");
    if (code == 0xfe) refuse(op->at, "threads are not supported: an atomic operation");
    if (code == 0xfb) refuse(op->at, "garbage-collected types are not supported: an operation with prefix 0xfb");
    if (code >= 0xd3 && code <= 0xd6) refuse(op->at, "typed references are not supported: operation 0x%x", code);
    refuse(op->at, "the operation 0x%x is not known", code);
}

static void read_op(Reader *r, Op *op, const Source *s) {
    switch (op->code) {
    case UNREACHABLE: case NOP: case RETURN: case DROP: case SELECT: case REF_IS_NULL: case ELSE: case END: return;
    case BLOCK: case LOOP: case IF: read_block_type(r, op, s); return;
    case BR: case BR_IF: op->a = read_u32(r); return;
    case BR_TABLE: {
        u32 n = read_u32(r);
        op->a = n;
        op->b = (u32)(r->p - op->at);
        for (u64 i = 0; i <= n; i++) {
            const u8 *at = r->p;
            if (read_u32(r) > open_blocks.n) refuse(at, "there is no such label");
        }
        return;
    }
    case CALL: read_call(r, op, s); return;
    case CALL_INDIRECT:
        op->a = read_index(r, s->types, s->type_base, "type");
        op->b = read_index(r, s->tables, s->table_base, "table");
        return;
    case SELECT_TYPED: {
        if (read_u32(r) != 1) refuse(op->at, "a select of several values is not supported");
        op->a = read_value_type(r);
        return;
    }
    case LOCAL_GET: case LOCAL_SET: case LOCAL_TEE: op->a = read_index(r, locals.n, 0, "local"); return;
    case GLOBAL_GET: case GLOBAL_SET: op->a = read_index(r, s->globals, s->global_base, "global"); return;
    case TABLE_GET: case TABLE_SET:
        uses_references = true;
        op->a = read_index(r, s->tables, s->table_base, "table"); return;
    case MEMORY_SIZE: case MEMORY_GROW: op->a = read_memory(r, s); return;
    case I32_CONST: op->a = (u32)read_s32(r); return;
    case I64_CONST: read_s64(r); return;
    case F32_CONST: read_skip(r, 4); return;
    case F64_CONST: read_skip(r, 8); return;
    case REF_NULL: op->a = read_value_type(r); return;
    case REF_FUNC:
        uses_references = true;
        op->a = entry_of(read_index(r, s->funcs, s->func_base, "function")); return;
    case 0xff:
        if (s != &made) refuse_proposal(op);
        op->code = 0xff00 + read8(r);
        op->a = read_u32(r);
        return;
    case 0xfc: read_bulk(r, op, s); return;
    case 0xfd: read_vector(r, op, s); return;
    default:
        if (op->code >= FIRST_LOAD && op->code <= LAST_STORE) read_memarg(r, op, s);
        else if (!(op->code >= I32_EQZ && op->code <= 0xc4)) refuse_proposal(op);
    }
}

/* Bulk operations of a program may be long: they become calls of functions that do them in pieces, unless they are known to be short. */
static void replace_bulk(Op *op, const Op *before) {
    if (before && before->code == I32_CONST && before->a <= BULK_FIXED_BYTES) {
        op->fixed = true;
        op->fixed_bytes = before->a;
        return;
    }
    if (op->code == MEMORY_INIT && datas.at[op->a].size <= BULK_FIXED_BYTES) return;
    u32 helper = bulk_helper(op->code, op->a, op->at);
    op->code = CALL;
    op->a = helper;
}

static void match_blocks(u32 i, u32 *loops, const u8 *at) {
    Op *op = &ops.at[i];
    switch (op->code) {
    case LOOP:
        if (++*loops > MAX_LOOPS_NESTED) refuse(at, "loops nested more than %u deep are more than a compiler can take", MAX_LOOPS_NESTED);
        /* fall through */
    case BLOCK: case IF:
        if (open_blocks.n >= MAX_BLOCKS_NESTED) refuse(at, "blocks nested more than %u deep are more than a compiler can take", MAX_BLOCKS_NESTED);
        vec_push(open_blocks, i);
        break;
    case ELSE:
        if (!open_blocks.n || ops.at[open_blocks.at[open_blocks.n - 1]].code != IF || ops.at[open_blocks.at[open_blocks.n - 1]].els != NONE)
            refuse(at, "an else without an if");
        op->match = open_blocks.at[open_blocks.n - 1];
        ops.at[op->match].els = i;
        break;
    case END:
        if (!open_blocks.n) break;
        op->match = open_blocks.at[--open_blocks.n];
        ops.at[op->match].match = i;
        if (ops.at[op->match].code == LOOP) --*loops;
        break;
    case BR: case BR_IF:
        if (op->a > open_blocks.n) refuse(at, "there is no such label");
        break;
    default: break;
    }
}

static void mark_dead(void) {
    bool alive = true;
    open_alive.n = 0;
    for (u32 i = 0; i < ops.n; i++) {
        Op *op = &ops.at[i];
        switch (op->code) {
        case BLOCK: case LOOP: case IF:
            op->dead = !alive;
            vec_push(open_alive, alive);
            break;
        case ELSE: case END:
            if (op->match == NONE) break;
            alive = open_alive.at[open_alive.n - 1];
            op->dead = !alive;
            if (op->code == END) open_alive.n--;
            break;
        default:
            op->dead = !alive;
            if (op->code == UNREACHABLE || op->code == BR || op->code == BR_TABLE || op->code == RETURN) alive = false;
        }
    }
}

void decode(u32 func) {
    Func f = funcs.at[func];
    const Source *s = f.origin == FROM_WASI ? &wasi : f.origin == FROM_PASS ? &made : &program;
    Reader r = {f.body, f.body + f.size};
    read_locals(&f, &r);
    ops.n = 0;
    open_blocks.n = 0;
    u32 loops = 0;
    bool ended = false;
    while (r.p < r.end) {
        if (ended) refuse(r.p, "code after the end of the function");
        Op op = {.at = r.p, .match = NONE, .els = NONE};
        op.code = read8(&r);
        read_op(&r, &op, s);
        op.bytes = (u32)(r.p - op.at);
        if (s == &program && lowered) lower_op(&op);
        if (s == &program && (op.code == MEMORY_COPY || op.code == MEMORY_FILL || op.code == MEMORY_INIT))
            replace_bulk(&op, ops.n ? &ops.at[ops.n - 1] : NULL);
        vec_push(ops, op);
        if (op.code == END && !open_blocks.n) ended = true;
        match_blocks(ops.n - 1, &loops, op.at);
    }
    if (!ended) refuse(r.p, "the function does not end");
    mark_dead();
}

Signature block_signature(const Op *op) {
    static u8 single[256];
    if (op->typed) {
        const Type *t = &types.at[op->a];
        return (Signature){t->params, t->results, t->np, t->nr};
    }
    if (op->a == VOID) return (Signature){NULL, NULL, 0, 0};
    single[op->a & 255] = (u8)op->a;
    return (Signature){NULL, &single[op->a & 255], 0, 1};
}
