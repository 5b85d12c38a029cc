/* The small parts that rewriting is made of. */
#include "emit.h"

#include "admit.h"
#include "runtime.h"
#include "weights.h"

bool quiet;
Buf out;

void e8(u8 byte) {
    if (!quiet) put8(&out, byte);
}
void eu(u64 value) {
    if (!quiet) put_u(&out, value);
}
void es(i64 value) {
    if (!quiet) put_s(&out, value);
}
void op_u(u32 code, u32 a) {
    e8((u8)code);
    eu(a);
}
void const32(i32 value) {
    e8(I32_CONST);
    es(value);
}
void const64(i64 value) {
    e8(I64_CONST);
    es(value);
}
void local_get(u32 l) { op_u(LOCAL_GET, l); }
void local_set(u32 l) { op_u(LOCAL_SET, l); }
void local_tee(u32 l) { op_u(LOCAL_TEE, l); }
void runtime_get(u32 which) { op_u(GLOBAL_GET, runtime_global(which)); }
void runtime_set(u32 which) { op_u(GLOBAL_SET, runtime_global(which)); }
void meter_get(void) { runtime_get(G_METER); }
void meter_set(void) { runtime_set(G_METER); }

void charge(u32 cost) {
    if (!cost || mode == FREE) return;
    meter_get();
    const64(cost);
    e8(I64_SUB);
    meter_set();
}

void settle_pages(void) {
    op_u(CALL, function_count + PAGES_WORK);
    runtime_set(G_PAGES_WORK);
    op_u(CALL, function_count + USED);
    runtime_set(G_PAGES_SINCE);
}

static void memory_access(const Op *op) {
    if (op->code >= 0xfd00) {
        e8(0xfd);
        eu(op->code & 255);
    } else e8((u8)op->code);
    eu(op->b ? op->align | 64u : op->align);
    if (op->b) eu(op->b);
    eu(op->offset);
}

/* An operation as it was, with the indices of the output for its ids. */
void copy_op(const Op *op) {
    if (quiet) return;
    u32 c = op->code;
    if ((c >= FIRST_LOAD && c <= LAST_STORE) || (c >= 0xfd00 && c <= V128_STORE) || c == 0xfd5c || c == 0xfd5d) {
        memory_access(op);
        return;
    }
    if (c >= 0xfd54 && c <= 0xfd5b) {
        memory_access(op);
        e8((u8)op->a);
        return;
    }
    switch (c) {
    case BLOCK: case LOOP: case IF:
        e8((u8)c);
        if (op->typed) es(op->a);
        else e8((u8)op->a);
        return;
    case CALL: {
        const Func *f = &funcs.at[op->a];
        op_u(CALL, mode == FREE && f->twin != NONE ? funcs.at[f->twin].final : f->final);
        return;
    }
    case CALL_INDIRECT:
        op_u(CALL_INDIRECT, op->a);
        eu(lowered ? 0 : op->b); /* then one table holds all functions */
        return;
    case I32_CONST: const32((i32)op->a); return;
    case GLOBAL_GET: case GLOBAL_SET: case TABLE_GET: case TABLE_SET: case MEMORY_SIZE: case MEMORY_GROW: op_u(c, op->a); return;
    case REF_FUNC: op_u(REF_FUNC, funcs.at[op->a].final); return;
    case X_WORK: /* in ticks: what is given back must be exactly what was taken */
        runtime_get(G_TOTAL);
        const64(TICK_BITS);
        e8(I64_SHL);
        meter_get();
        e8(I64_SUB);
        return;
    case X_CHARGE: /* meter = -value + meter; what is free otherwise may still charge by its own word */
        const64(-1);
        e8(I64_MUL);
        meter_get();
        e8(I64_ADD);
        meter_set();
        return;
    case X_STOP:
        const32(1);
        runtime_set(G_STATE);
        return;
    default: break;
    }
    if (c >= X_REF_FUNC) {
        write_table_op(op);
        return;
    }
    if (c < 256 && op->bytes == 1) { /* not always the one that was read */
        e8((u8)c);
        return;
    }
    if (c >= MEMORY_INIT && c <= TABLE_FILL) {
        e8(0xfc);
        eu(c & 255);
        if (c == TABLE_INIT) eu(op->b), eu(op->a);
        else eu(op->a);
        if (c == MEMORY_INIT || c == MEMORY_COPY || c == TABLE_COPY) eu(op->b);
        if (c == DATA_DROP || c == ELEM_DROP) {
            const32(1);
            op_u(GLOBAL_SET, dropped_flag(c == ELEM_DROP, op->a));
        }
        return;
    }
    put_bytes(&out, op->at, op->bytes);
}

/* ---- labels ---- */

static U32s open_labels, label_height;

void start_labels(void) {
    open_labels.n = 0;
    label_count = fixed_labels;
}

void open_label(u32 label) {
    while (label_height.n <= label) vec_push(label_height, 0);
    label_height.at[label] = open_labels.n;
    vec_push(open_labels, label);
}

void close_label(u32 label) {
    if (!open_labels.n || open_labels.at[open_labels.n - 1] != label) refuse(NULL, "the pass lost track of its labels: a bug in the pass");
    open_labels.n--;
}

u32 outermost_depth(void) { return open_labels.n; }
u32 depth_of(u32 label) { return open_labels.n - 1 - label_height.at[label]; }

void begin_block(u32 label) {
    e8(BLOCK);
    e8(VOID);
    open_label(label);
}

void end_block(u32 label) {
    e8(END);
    close_label(label);
}

void branch(u32 label) { op_u(BR, depth_of(label)); }
void branch_if(u32 label) { op_u(BR_IF, depth_of(label)); }

u32 begin_if(void) {
    u32 label = new_label();
    e8(IF);
    e8(VOID);
    open_label(label);
    return label;
}

void end_if(u32 label) { end_block(label); }

/* ---- locals ---- */

static U32s temporaries; /* by depth and type */
static u32 own[16];

static u32 type_number(u8 type) {
    switch (type) {
    case I32: return 0;
    case I64: return 1;
    case F32: return 2;
    case F64: return 3;
    case V128: return 4;
    case FUNCREF: return 5;
    default: return 6;
    }
}

void start_locals(void) {
    for (u32 i = 0; i < temporaries.n; i++) temporaries.at[i] = NONE;
    for (u32 i = 0; i < 16; i++) own[i] = NONE;
}

u32 made_local(u8 type) {
    vec_push(locals, type);
    return locals.n - 1;
}

u32 temporary(u32 depth, u8 type) {
    u32 key = depth * 7 + type_number(type);
    while (temporaries.n <= key) vec_push(temporaries, NONE);
    if (temporaries.at[key] == NONE) temporaries.at[key] = made_local(type);
    return temporaries.at[key];
}

u32 own_temporary(u32 which, u8 type) {
    u32 key = which * 7 + type_number(type);
    if (own[key] == NONE) own[key] = made_local(type);
    return own[key];
}

/* ---- frames ---- */

static U32s slots; /* by local; 0: none yet */
u32 frame_bytes;

void frame_start(void) {
    for (u32 i = 0; i < slots.n; i++) slots.at[i] = 0;
    frame_bytes = 4;
}

u32 frame_slot(u32 local) {
    while (slots.n <= local) vec_push(slots, 0);
    if (!slots.at[local]) {
        u8 type = locals.at[local];
        if (type == FUNCREF || type == EXTERNREF)
            refuse(ops.at[0].at, "a reference is needed after a call or in a loop of the function: references live across a call are not supported");
        slots.at[local] = frame_bytes;
        frame_bytes += type == V128 ? 16 : type == I64 || type == F64 ? 8 : 4;
    }
    return slots.at[local];
}

void frame_access(bool store, u8 type, u32 slot) {
    if (type == V128) {
        e8(0xfd);
        eu(store ? 11 : 0);
    } else {
        static const u8 loads[] = {0x28, 0x29, 0x2a, 0x2b}, stores[] = {0x36, 0x37, 0x38, 0x39};
        e8((store ? stores : loads)[type_number(type)]);
    }
    e8(64); /* any alignment, and a memory index follows */
    eu(MEM_STACK);
    eu(slot);
}

void save_local(u32 local, bool nan) {
    runtime_get(G_SP);
    u8 type = locals.at[local];
    if (canonical && nan && (type == F32 || type == F64)) canonical_local(local);
    else local_get(local);
    frame_access(true, type, frame_slot(local));
}

void load_local(u32 local) {
    runtime_get(G_SP);
    frame_access(false, locals.at[local], frame_slot(local));
    local_set(local);
}

static void zeros(u32 n) {
    for (u32 i = 0; i < n; i++) e8(0);
}

void zero_of(u8 type) {
    switch (type) {
    case I32: const32(0); break;
    case I64: const64(0); break;
    case F32:
        e8(F32_CONST);
        zeros(4);
        break;
    case F64:
        e8(F64_CONST);
        zeros(8);
        break;
    case V128:
        e8(0xfd);
        eu(12);
        zeros(16);
        break;
    default:
        e8(REF_NULL);
        e8(type);
    }
}
