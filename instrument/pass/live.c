/* Which locals are needed after each stop: backwards over the structured code, until the heads of loops no longer change. */
#include "admit.h"
#include "plan.h"

/* Live sets: at the end of each open block, and at the beginning of the else branch. */
static u64 *at_label, *at_else;
static u64 *live;

static u64 *label_set(u32 height, u32 depth) { return at_label + (u64)(height - 1 - depth) * words; }
static void copy_set(u64 *to, const u64 *from) { copy_bytes(to, from, (size_t)words * 8); }
static void join_set(u64 *to, const u64 *from) {
    for (u32 w = 0; w < words; w++) to[w] |= from[w];
}

/* Walks the body once; true if the head of a loop got more. */
static bool walk_back(void) {
    bool changed = false;
    u32 height = 0;
    zero_bytes(live, (size_t)words * 8);
    for (u32 i = ops.n; i-- > 0;) {
        const Op *op = &ops.at[i];
        if (op->code == END) {
            height++;
            u64 *set = label_set(height, 0);
            if (op->match == NONE) {
                zero_bytes(set, (size_t)words * 8);
                zero_bytes(live, (size_t)words * 8);
            } else if (!ops.at[op->match].dead)
                copy_set(set, ops.at[op->match].code == LOOP ? regions.at[region_of.at[op->match]].live_header : live);
            continue;
        }
        if (op->code == BLOCK || op->code == LOOP || op->code == IF) {
            height--;
            if (op->dead) continue;
            if (op->code == IF) join_set(live, op->els == NONE ? at_label + (u64)height * words : at_else + (u64)height * words);
            if (op->code == LOOP) {
                Region *r = &regions.at[region_of.at[i]];
                for (u32 w = 0; w < words; w++)
                    if (live[w] & ~r->live_header[w]) r->live_header[w] |= live[w], changed = true;
                copy_set(stops.at[r->header].live, r->live_header);
            }
            continue;
        }
        if (op->dead) continue;
        switch (op->code) {
        case ELSE:
            copy_set(at_else + (u64)(height - 1) * words, live);
            copy_set(live, label_set(height, 0));
            break;
        case BR: copy_set(live, label_set(height, op->a)); break;
        case BR_IF: join_set(live, label_set(height, op->a)); break;
        case BR_TABLE: {
            zero_bytes(live, (size_t)words * 8);
            Reader r = {op->at + op->b, op->at + op->bytes};
            u32 last = NONE;
            for (u64 k = 0; k <= op->a; k++) {
                u32 depth = read_u32(&r);
                if (depth != last) join_set(live, label_set(height, depth));
                last = depth;
            }
            break;
        }
        case UNREACHABLE: case RETURN: zero_bytes(live, (size_t)words * 8); break;
        case LOCAL_GET: ADD_TO_SET(live, op->a); break;
        case LOCAL_SET: case LOCAL_TEE: TAKE_FROM_SET(live, op->a); break;
        case CALL: case CALL_INDIRECT:
            if (stop_of.at[i] != NONE) copy_set(stops.at[stop_of.at[i]].live, live);
            break;
        default: break;
        }
    }
    return changed;
}

static u32 size_of_set(const u64 *set) {
    u32 n = 0;
    for (u32 w = 0; w < words; w++) n += (u32)__builtin_popcountll(set[w]);
    return n;
}

void find_live(void) {
    live = scratch((u64)words * 8);
    u32 height = 0, deepest = 0;
    for (u32 i = 0; i < ops.n; i++) {
        u32 code = ops.at[i].code;
        if (code == BLOCK || code == LOOP || code == IF) height++;
        else if (code == END && ops.at[i].match != NONE) height--;
        if (height > deepest) deepest = height;
    }
    at_label = scratch((u64)(deepest + 1) * words * 8);
    at_else = scratch((u64)(deepest + 1) * words * 8);
    while (walk_back()) {}
    /* at the entry, what is not a parameter is zero anyway */
    copy_set(stops.at[0].live, live);
    for (u32 l = param_count; l < locals.n; l++) TAKE_FROM_SET(stops.at[0].live, l);
    u32 saved = 0;
    for (u32 s = 0; s < stops.n; s++) {
        u32 r = stops.at[s].region;
        saved += size_of_set(stops.at[s].live);
        if (saved > MAX_SAVED_VALUES)
            refuse(ops.at[0].at, "a function that may stop with more than %u values to save is more than a compiler can take", MAX_SAVED_VALUES);
        if (s == 0) {
            join_set(regions.at[0].live_inside, stops.at[s].live);
            continue;
        }
        for (;; r = regions.at[r].parent) {
            join_set(regions.at[r].live_inside, stops.at[s].live);
            if (!r) break;
        }
    }
}
