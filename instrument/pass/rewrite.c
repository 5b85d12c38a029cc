/* One function, rewritten: walked quietly until nothing new is learned, then once more to be written. */
#include "emit.h"

#include "admit.h"
#include "control.h"
#include "weights.h"

u32 real_base;
u32 function_label;
bool alive;
__typeof__(controls) controls;

static u32 depth_weight; /* of a counted function; else 0 */
static const Type *function_type;

void stack_to_temporaries(void) {
    for (u32 d = stack.n; d > real_base; d--) local_set(temporary(d - 1, stack.at[d - 1].type));
}

void temporaries_to_stack(u32 from, u32 to) {
    for (u32 d = from; d < to; d++) local_get(temporary(d, stack.at[d].type));
}

/* ---- entry, loops, calls ---- */

static void enter_depth(void) {
    u32 local = own_temporary(2, I32);
    function_label = new_label();
    e8(BLOCK);
    if (function_type->nr == 0) e8(VOID);
    else if (function_type->nr == 1) e8(function_type->results[0]);
    else es(type_intern(NULL, 0, function_type->results, function_type->nr));
    open_label(function_label);
    runtime_get(G_DEPTH);
    const32((i32)depth_weight);
    e8(I32_ADD);
    local_tee(local);
    runtime_set(G_DEPTH);
    local_get(local);
    const32(DEPTH_LIMIT);
    e8(I32_GT_U);
    u32 label = begin_if();
    const32(1);
    op_u(CALL, trap_import);
    e8(UNREACHABLE);
    end_if(label);
}

static void leave_depth(void) {
    runtime_get(G_DEPTH);
    const32((i32)depth_weight);
    e8(I32_SUB);
    runtime_set(G_DEPTH);
}

/* A safepoint: is there anything left on the meter? */
static void ask_meter(void) {
    meter_get();
    local_tee(own_temporary(1, I64));
    const64(0);
    e8(I64_LT_S);
}

static void charge_asked(u32 cost) {
    local_get(own_temporary(1, I64));
    const64(cost);
    e8(I64_SUB);
    meter_set();
}

/* On the way out of the check: to stop here, unless the meter is negative because the frames are being put back. */
static u32 begin_slow_path(u32 stop) {
    u32 label = begin_if();
    runtime_get(G_STATE);
    e8(I32_EQZ);
    branch_if(stops.at[stop].stub);
    return label;
}

static void write_entry(void) {
    open_hoisted(0);
    ask_meter();
    u32 label = begin_slow_path(0);
    runtime_get(G_SP);
    const32((i32)frame_bytes);
    e8(I32_SUB);
    runtime_set(G_SP);
    resume_in(0, label);
    end_if(label);
    charge_asked(entry_charge);
}

/* What is on the stack at a stop, as learned on the quiet walks. */
static void note_stack(Stop *s, u32 depth) {
    s->depth = depth;
    if (!s->kept) s->kept = scratch((u64)(stack.n + 1) * sizeof(Value));
    copy_bytes(s->kept, stack.at, stack.n * sizeof(Value));
}

static void write_loop_head(u32 i) {
    u32 region = region_of.at[i], header = regions.at[region].header;
    note_stack(&stops.at[header], stack.n);
    regions.at[region].base = stack.n - block_signature(&ops.at[i]).np;
    end_block(regions.at[region].gate);
    e8(LOOP);
    e8(VOID);
    open_label(label_of.at[i]);
    open_hoisted(region);
    ask_meter();
    if (regions.at[region].leaf) branch_if(stops.at[header].stub);
    else {
        u32 label = begin_slow_path(header);
        resume_in(region, NONE);
        end_if(label);
    }
    charge_asked(charge_inside.at[i]);
}

static void write_call(u32 i) {
    const Op *op = &ops.at[i];
    u32 arguments = argument_count(op);
    if (stack.n < arguments) pop_types(arguments, op->at);
    if (lowered && op->code == CALL_INDIRECT) write_table_index(op->b);
    canonical_top_n(arguments);
    if (stop_of.at[i] == NONE) {
        copy_op(op);
        step(op);
        return;
    }
    Stop *s = &stops.at[stop_of.at[i]];
    u32 below = stack.n - arguments;
    note_stack(s, below);
    stack_to_temporaries();
    end_block(s->label);
    temporaries_to_stack(below, stack.n);
    copy_op(op);
    runtime_get(G_STATE);
    branch_if(s->stub);
    step(op);
    if (below > real_base) {
        for (u32 d = stack.n; d > below; d--) local_set(temporary(d - 1, stack.at[d - 1].type));
        temporaries_to_stack(real_base, stack.n);
    }
}

/* ---- operations whose cost is known only when they run ---- */

static void charge_length(u32 ticks) {
    if (mode == FREE) return;
    u32 local = own_temporary(0, I32);
    local_tee(local);
    meter_get();
    local_get(local);
    e8(I64_EXTEND_I32_U);
    const64(ticks);
    e8(I64_MUL);
    e8(I64_SUB);
    meter_set();
}

/* Growing is charged only when it worked. */
static void write_growth(const Op *op) {
    u32 n = own_temporary(0, I32), before = own_temporary(1, I32);
    if (op->code == MEMORY_GROW) settle_pages();
    if (mode == FREE) {
        copy_op(op);
        return;
    }
    local_tee(n);
    copy_op(op);
    local_tee(before);
    const32(-1);
    e8(I32_NE);
    u32 label = begin_if();
    meter_get();
    local_get(n);
    e8(I64_EXTEND_I32_U);
    const64(op->code == MEMORY_GROW ? WEIGHT_NEW_PAGE : WEIGHT_ELEMENT);
    e8(I64_MUL);
    e8(I64_SUB);
    meter_set();
    end_if(label);
    local_get(before);
}

static void write_plain(const Op *op) {
    if (canonical && bits_escape(op) && stack.n) canonical_top();
    switch (op->code) {
    case MEMORY_COPY: case MEMORY_FILL: case MEMORY_INIT:
        if (!op->fixed) charge_length(WEIGHT_BULK_BYTE);
        break;
    case TABLE_INIT: case TABLE_COPY: case TABLE_FILL: charge_length(WEIGHT_ELEMENT); break;
    case MEMORY_GROW: case TABLE_GROW:
        write_growth(op);
        step(op);
        return;
    default: break;
    }
    if (canonical && stack.n && (op->code == LOCAL_SET || op->code == LOCAL_TEE)) nan_set_local(op->a, stack.at[stack.n - 1].nan);
    copy_op(op);
    step(op);
    if (!canonical) return;
    if (op->code == LOCAL_GET) stack.at[stack.n - 1].nan = nan_local(op->a);
    else if (op->code >= 0xfd00 && op->code < 0xfe00 && vector_arithmetic(op->code)) canonical_vector(op->code);
}

/* ---- the whole ---- */

static void write_end(void) {
    if (alive) canonical_top_n(function_type->nr);
    if (depth_weight) {
        if (!alive) e8(UNREACHABLE);
        end_block(function_label);
        leave_depth();
        e8(RETURN);
    } else if (mode == STOPPING) e8(alive ? RETURN : UNREACHABLE);
}

static void write_op(u32 i) {
    const Op *op = &ops.at[i];
    if (op->dead && !(op->code == END && op->match == NONE)) return;
    charge(charge_before.at[i]);
    switch (op->code) {
    case BLOCK: case IF: case LOOP:
        begin_control(i);
        if (op->code == LOOP) {
            if (op->splits) write_loop_head(i);
            else charge(charge_inside.at[i]);
        }
        enter_control();
        break;
    case ELSE: else_control(); break;
    case END:
        if (op->match == NONE) write_end();
        else end_control();
        break;
    case BR: case BR_IF: write_branch(op, function_type); break;
    case BR_TABLE: write_branch_table(op, function_type); break;
    case RETURN:
        if (stack.n < function_type->nr) pop_types(function_type->nr, op->at);
        canonical_top_n(function_type->nr);
        if (depth_weight) branch(function_label);
        else copy_op(op);
        alive = false;
        break;
    case UNREACHABLE:
        copy_op(op);
        alive = false;
        break;
    case CALL: case CALL_INDIRECT: write_call(i); break;
    default: write_plain(op);
    }
}

static void write_stubs(void) {
    u32 tail = fixed_labels; /* the first label made */
    for (u32 k = 0; k < stops.n; k++) {
        write_stub(k);
        if (k + 1 < stops.n) branch(tail);
    }
    end_block(tail);
    runtime_get(G_SP);
    const32((i32)frame_bytes);
    e8(I32_ADD);
    runtime_set(G_SP);
    if (depth_weight) leave_depth();
    for (u32 k = 0; k < function_type->nr; k++) zero_of(function_type->results[k]);
    e8(RETURN);
}

static void walk(u32 self_charge) {
    start_labels();
    stack.n = 0;
    controls.n = 0;
    real_base = 0;
    alive = true;
    if (mode == STOPPING) {
        begin_block(new_label()); /* the tail of all stubs */
        for (u32 k = stops.n; k-- > 0;) begin_block(stops.at[k].stub);
    }
    function_label = NONE;
    if (depth_weight) enter_depth();
    if (mode == STOPPING) write_entry();
    else charge(mode == BOUNDED ? self_charge : entry_charge);
    for (u32 i = 0; i < ops.n; i++) write_op(i);
    if (mode == STOPPING) write_stubs();
    e8(END);
}

static void place_slots(u32 original_locals) {
    u64 saved = 0;
    for (u32 k = 0; k < stops.n; k++) {
        const Stop *s = &stops.at[k];
        for (u32 l = 0; l < original_locals; l++)
            if (IN_SET(s->live, l)) frame_slot(l);
        u32 kept = s->depth;
        if (s->place == AT_CALL && (s->save_args || ops.at[s->op].code == CALL_INDIRECT)) kept += argument_count(&ops.at[s->op]);
        for (u32 d = 0; d < kept; d++)
            if (d < s->depth || s->save_args || d == kept - 1) frame_slot(temporary(d, s->kept[d].type));
        saved += kept;
    }
    if (saved > MAX_SAVED_VALUES)
        refuse(ops.at[0].at, "a function that may stop with more than %u values to save is more than a compiler can take", MAX_SAVED_VALUES);
}

static void write_locals(Buf *code) {
    static Buf groups;
    groups.n = 0;
    u32 n = 0;
    for (u32 i = param_count; i < locals.n; n++) {
        u32 j = i;
        while (j < locals.n && locals.at[j] == locals.at[i]) j++;
        put_u(&groups, j - i);
        put8(&groups, locals.at[i]);
        i = j;
    }
    static Buf head;
    head.n = 0;
    put_u(&head, n);
    put_bytes(&head, groups.at, groups.n);
    put_u(code, (u64)head.n + out.n);
    put_bytes(code, head.at, head.n);
    put_bytes(code, out.at, out.n);
}

void rewrite(u32 id, Buf *code) {
    scratch_reset();
    decode(id);
    const Func *f = &funcs.at[id];
    u32 original_locals = locals.n;
    mode = f->origin == FROM_WASI ? (f->free ? FREE : METERED) : f->may ? STOPPING : BOUNDED;
    depth_weight = mode == STOPPING && f->counted ? f->weight : 0;
    Type type = types.at[f->type];
    function_type = &type;
    u32 self_charge = f->taken ? f->cost : 0;
    plan_stops();
    if (mode == STOPPING) find_live();
    plan_charges();
    start_locals();
    frame_start();
    nan_start();
    quiet = true;
    for (u32 walks = 0;; walks++) {
        nan_learned = false;
        walk(self_charge);
        if (!nan_learned) break;
        if (walks == 8) nan_all_locals(); /* a long chain of locals: enough was learned, the rest is assumed */
    }
    if (mode == STOPPING) place_slots(original_locals);
    if (locals.n > 40000) refuse(ops.at[0].at, "the function needs more than 40000 locals");
    quiet = false;
    out.n = 0;
    walk(self_charge);
    write_locals(code);
}
