/* Out of a function and back into it: the stubs that save a frame, and the branches that lead back to where it stopped. */
#include "emit.h"

/* The meter and the stack are the program's again: the innermost frame is back. */
void finish_rewind(void) {
    runtime_get(G_SAVED);
    meter_set();
    runtime_get(G_BASE);
    runtime_set(G_SP);
    const32(0);
    runtime_set(G_STATE);
}

/* Opens the blocks that were moved up to the head of the region: the first to end is the innermost. */
void open_hoisted(u32 region) {
    for (u32 label = regions.at[region].hoisted; label != NONE; label = label_next.at[label]) begin_block(label);
}

/* Entering a region from outside puts back what its stops need and nobody inside will put back: locals that the region sets are read from
   the frame by the region itself, all others by the outermost region that sets them, so that they stay invariant inside. */
static void load_locals(const Region *here, const u64 *wanted, const u64 *except) {
    bool function = here == &regions.at[0];
    for (u32 l = 0; l < words * 64 && l < locals.n; l++)
        if (IN_SET(wanted, l) && !(except && IN_SET(except, l)) && (function || IN_SET(here->assigned, l))) load_local(l);
}

static void load_operands(const Stop *s, u32 from, u32 to) {
    for (u32 d = from; d < to; d++) load_local(temporary(d, s->kept[d].type));
}

static void resume_call(const Stop *s) {
    const Op *op = &ops.at[s->op];
    u32 arguments = argument_count(op), index = op->code == CALL_INDIRECT;
    for (u32 d = s->depth; d < s->depth + arguments - index; d++) {
        u32 local = temporary(d, s->kept[d].type);
        if (s->save_args) load_local(local);
        else { /* its callee is on its way back too and does not look at them */
            zero_of(locals.at[local]);
            local_set(local);
        }
    }
    if (index) load_local(temporary(s->depth + arguments - 1, I32));
    if (s->save_args) finish_rewind(); /* it is called again, and nobody else ends the rewind */
    branch(s->label);
}

static bool has_inside(const Stop *s) { return s->place == AT_LOOP && !regions.at[s->inner].leaf; }

/* Reads the number of the stop from the frame and goes there. Does not come back. */
void resume_in(u32 region, u32 after_entry) {
    if (quiet) return;
    const Region *here = &regions.at[region];
    u32 first = label_count, count = 0, nowhere;
    for (u32 i = here->items; i != NONE; i = stops.at[i].next) count += has_inside(&stops.at[i]) ? 2 : 1;
    for (u32 i = 0; i < count; i++) new_label();
    nowhere = new_label();
    begin_block(nowhere);
    for (u32 i = count; i-- > 0;) begin_block(first + i);
    runtime_get(G_SP);
    frame_access(false, I32, 0);
    if (here->first) {
        const32((i32)here->first);
        e8(I32_SUB);
    }
    e8(BR_TABLE);
    eu(here->end - here->first);
    u32 label = first;
    for (u32 i = here->items; i != NONE; i = stops.at[i].next) {
        const Stop *s = &stops.at[i];
        eu(depth_of(label++));
        if (!has_inside(s)) continue;
        const Region *inner = &regions.at[s->inner];
        for (u32 k = inner->first; k < inner->end; k++) eu(depth_of(label));
        label++;
    }
    eu(depth_of(nowhere));
    label = first;
    u32 base = here->base;
    for (u32 i = here->items; i != NONE; i = stops.at[i].next) {
        const Stop *s = &stops.at[i];
        end_block(label++);
        load_locals(here, s->live, NULL);
        load_operands(s, base, s->depth);
        if (s->place == AT_CALL) resume_call(s);
        else {
            finish_rewind();
            if (s->place == AT_LOOP) branch(s->label);
            else { /* the meter is asked again, as the head of a loop would */
                meter_get();
                local_tee(own_temporary(1, I64));
                const64(0);
                e8(I64_LT_S);
                branch_if(s->stub);
                branch(after_entry);
            }
        }
        if (!has_inside(s)) continue;
        end_block(label++);
        load_locals(here, regions.at[s->inner].live_inside, regions.at[s->inner].assigned);
        load_operands(s, base, regions.at[s->inner].base);
        branch(s->label);
    }
    end_block(nowhere);
    e8(UNREACHABLE);
}

/* Saves the frame of stop `id`: its number, the locals that are live, the operands. */
void write_stub(u32 id) {
    const Stop *s = &stops.at[id];
    end_block(s->stub);
    runtime_get(G_SP);
    const32((i32)id);
    frame_access(true, I32, 0);
    for (u32 l = 0; l < words * 64 && l < locals.n; l++)
        if (IN_SET(s->live, l)) save_local(l, nan_local(l));
    for (u32 d = 0; d < s->depth; d++) save_local(temporary(d, s->kept[d].type), s->kept[d].nan);
    if (s->place != AT_CALL) {
        const32(1);
        runtime_set(G_STATE);
        return;
    }
    const Op *op = &ops.at[s->op];
    u32 arguments = argument_count(op), index = op->code == CALL_INDIRECT;
    if (s->save_args)
        for (u32 d = s->depth; d < s->depth + arguments - index; d++) save_local(temporary(d, s->kept[d].type), s->kept[d].nan);
    if (index) save_local(temporary(s->depth + arguments - 1, I32), false);
}
