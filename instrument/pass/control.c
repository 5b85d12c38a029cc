/* Blocks and branches. A block that is split lost its beginning: values cannot pass through it on the stack, so they travel in the
   temporaries of their depth, and the block has no type of its own any more. */
#include "control.h"

#include "emit.h"

/* Per result of each open block: may a NaN of the machine's choice arrive? Known at its end, for all branches to it come before. */
static VEC(u8) arrivals;

static void note_arrival(const Control *c, u32 n) {
    if (c->code == LOOP) return; /* its parameters are assumed to */
    for (u32 k = 0; k < n; k++) arrivals.at[c->arrivals + k] |= stack.at[stack.n - n + k].nan;
}

static Control *top_control(void) { return &controls.at[controls.n - 1]; }

static void values_to(u32 base, u32 n, const u8 *value_types) {
    for (u32 k = n; k > 0; k--) local_set(temporary(base + k - 1, value_types[k - 1]));
}

/* Before the head of a loop is written. */
void begin_control(u32 i) {
    const Op *op = &ops.at[i];
    Signature s = block_signature(op);
    u32 condition = op->code == IF;
    if (stack.n < s.np + condition) pop_types(s.np + condition, op->at);
    stack.n -= condition;
    if (op->code == LOOP) /* a value may come around the loop */
        for (u32 d = stack.n - s.np; d < stack.n; d++) stack.at[d].nan = true;
    u32 first_arrival = arrivals.n;
    if (!controls.n) first_arrival = arrivals.n = 0;
    for (u32 k = 0; k < s.nr; k++) vec_push(arrivals, op->code == IF && op->els == NONE ? stack.at[stack.n - s.np + k].nan : 0);
    vec_push(controls, (Control){.arrivals = first_arrival, .op = i, .code = op->code, .label = label_of.at[i], .base = stack.n - s.np, .outer_base = real_base, .splits = op->splits});
    if (!op->splits) {
        copy_op(op);
        open_label(label_of.at[i]);
        return;
    }
    if (op->code == IF) {
        if (stack.n > real_base) {
            u32 local = temporary(stack.n, I32);
            local_set(local);
            stack_to_temporaries();
            local_get(local);
        }
        e8(I32_EQZ);
        branch_if(else_label_of.at[i]);
    } else stack_to_temporaries();
}

/* After it: the operands of the block are back on the stack. */
void enter_control(void) {
    const Control *c = top_control();
    if (!c->splits) return;
    real_base = c->base;
    temporaries_to_stack(real_base, stack.n);
}

void else_control(void) {
    const Control *c = top_control();
    const Op *opener = &ops.at[c->op];
    Signature s = block_signature(opener);
    if (alive) {
        if (stack.n < c->base + s.nr) pop_types(stack.n + 1, opener->at);
        note_arrival(c, s.nr);
    }
    if (!c->splits) {
        e8(ELSE);
    } else {
        if (alive) {
            values_to(c->base, s.nr, s.results);
            branch(c->label);
        }
        end_block(else_label_of.at[c->op]);
    }
    stack.n = c->base;
    for (u32 k = 0; k < s.np; k++) {
        push_type(s.params[k]);
        stack.at[stack.n - 1].nan = true; /* as they came to the if: not remembered */
    }
    if (c->splits) {
        real_base = c->base;
        temporaries_to_stack(real_base, stack.n);
    }
    alive = true;
}

void end_control(void) {
    Control c = controls.at[--controls.n];
    Signature s = block_signature(&ops.at[c.op]);
    if (alive) {
        if (stack.n < c.base + s.nr) pop_types(stack.n + 1, ops.at[c.op].at);
        for (u32 k = 0; k < s.nr; k++) arrivals.at[c.arrivals + k] |= stack.at[stack.n - s.nr + k].nan;
        if (c.splits) values_to(c.base, s.nr, s.results);
    }
    end_block(c.label);
    stack.n = c.base;
    for (u32 k = 0; k < s.nr; k++) {
        push_type(s.results[k]);
        stack.at[stack.n - 1].nan = arrivals.at[c.arrivals + k];
    }
    arrivals.n = c.arrivals;
    if (c.splits) {
        real_base = c.outer_base;
        temporaries_to_stack(real_base, stack.n);
    }
    alive = true;
}

/* ---- branches ---- */

typedef struct {
    u32 label;
    u32 n;            /* values that go along */
    const u8 *values; /* their types */
    u32 base;         /* depth of the first at the target */
    bool split;       /* they go in temporaries */
    bool leaves;      /* the function */
} Target;

static Target target_of(u32 depth, const Type *function_type) {
    if (depth >= controls.n)
        return (Target){.label = function_label, .n = function_type->nr, .values = function_type->results, .leaves = true};
    const Control *c = &controls.at[controls.n - 1 - depth];
    Signature s = block_signature(&ops.at[c->op]);
    bool loop = c->code == LOOP;
    return (Target){.label = c->label, .n = loop ? s.np : s.nr, .values = loop ? s.params : s.results, .base = c->base, .split = c->splits};
}

/* The end of a function that does not count its depth has no label: its number is the number of open blocks. */
static u32 open_depth(const Target *t) { return t->label == NONE ? outermost_depth() : depth_of(t->label); }

static void write_branch_if(const Op *op, const Target *t) {
    if (t->leaves) {
        if (t->n && canonical) {
            u32 condition = temporary(stack.n, I32);
            local_set(condition);
            canonical_top_n(t->n);
            local_get(condition);
        }
        op_u(op->code, open_depth(t));
        return;
    }
    if (!t->split || !t->n) {
        op_u(op->code, depth_of(t->label));
        return;
    }
    u32 condition = temporary(stack.n, I32), first = stack.n - t->n;
    local_set(condition);
    values_to(first, t->n, t->values);
    local_get(condition);
    if (first == t->base) branch_if(t->label);
    else {
        u32 label = begin_if();
        for (u32 k = 0; k < t->n; k++) {
            local_get(temporary(first + k, t->values[k]));
            local_set(temporary(t->base + k, t->values[k]));
        }
        branch(t->label);
        end_if(label);
    }
    for (u32 k = 0; k < t->n; k++) local_get(temporary(first + k, t->values[k]));
}

void write_branch(const Op *op, const Type *function_type) {
    Target t = target_of(op->a, function_type);
    u32 condition = op->code == BR_IF;
    if (stack.n < t.n + condition) pop_types(t.n + condition, op->at);
    stack.n -= condition;
    if (!t.leaves) note_arrival(&controls.at[controls.n - 1 - op->a], t.n);
    if (condition) {
        write_branch_if(op, &t);
        return;
    }
    if (t.leaves) canonical_top_n(t.n);
    if (t.split) values_to(t.base, t.n, t.values);
    op_u(BR, open_depth(&t));
    alive = false;
}

static U32s table_depths, table_labels;

/* With values to carry, the table leads to small blocks that carry them, one for each target. */
static void write_carrying_table(const Op *op, const Type *function_type, u32 n) {
    u32 index = temporary(stack.n, I32), first = stack.n - n;
    local_set(index);
    canonical_top_n(n);
    Target any = target_of(table_depths.at[0], function_type);
    values_to(first, n, any.values);
    u32 targets = table_depths.n;
    table_labels.n = 0;
    for (u32 k = 0; k < targets; k++) vec_push(table_labels, new_label());
    for (u32 k = targets; k-- > 0;) begin_block(table_labels.at[k]);
    local_get(index);
    e8(BR_TABLE);
    eu(op->a);
    Reader r = {op->at + op->b, op->at + op->bytes};
    for (u64 i = 0; i <= op->a; i++) {
        u32 depth = read_u32(&r), k = 0;
        while (table_depths.at[k] != depth) k++;
        eu(depth_of(table_labels.at[k]));
    }
    for (u32 k = 0; k < targets; k++) {
        end_block(table_labels.at[k]);
        Target t = target_of(table_depths.at[k], function_type);
        for (u32 v = 0; v < n; v++) local_get(temporary(first + v, t.values[v]));
        if (t.split) values_to(t.base, n, t.values);
        op_u(BR, open_depth(&t));
    }
}

void write_branch_table(const Op *op, const Type *function_type) {
    pop_types(1, op->at);
    Reader r = {op->at + op->b, op->at + op->bytes};
    bool carry = false;
    u32 n = 0;
    table_depths.n = 0;
    for (u64 i = 0; i <= op->a; i++) {
        u32 depth = read_u32(&r);
        Target t = target_of(depth, function_type);
        n = t.n;
        if (!n) continue;
        if (t.split || (t.leaves && canonical)) carry = true;
        u32 k = 0;
        while (k < table_depths.n && table_depths.at[k] != depth) k++;
        if (k < table_depths.n) continue;
        vec_push(table_depths, depth);
        if (stack.n < n) pop_types(n, op->at);
        if (!t.leaves) note_arrival(&controls.at[controls.n - 1 - depth], n);
        if (table_depths.n > 300) refuse(op->at, "a br_table with values to more than 300 different labels is not supported");
    }
    alive = false;
    if (n && carry) {
        write_carrying_table(op, function_type, n);
        return;
    }
    op_u(BR_TABLE, op->a);
    r.p = op->at + op->b;
    for (u64 i = 0; i <= op->a; i++) {
        Target t = target_of(read_u32(&r), function_type);
        eu(open_depth(&t));
    }
}
