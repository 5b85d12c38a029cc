/* Finds the stops and the regions of a function, and when each operation is charged. */
#include "plan.h"
#include "weights.h"

Mode mode;
__typeof__(regions) regions;
__typeof__(stops) stops;
U32s region_of, stop_of, label_of, else_label_of, charge_before, charge_inside, label_next;
u32 label_count, fixed_labels, entry_charge, words;

u32 new_label(void) {
    if (label_count >= label_next.n) vec_push(label_next, NONE);
    return label_count++;
}

static void hoist(u32 region, u32 label) {
    label_next.at[label] = regions.at[region].hoisted;
    regions.at[region].hoisted = label;
}

u32 argument_count(const Op *op) {
    return op->code == CALL ? types.at[funcs.at[op->a].type].np : types.at[op->a].np + 1;
}

bool outside_call(const Op *op) {
    if (op->code != CALL) return false;
    Origin o = funcs.at[op->a].origin;
    return o == IMPORTED || o == FROM_WASI;
}

static bool is_stop(const Op *op) {
    return op->code == CALL_INDIRECT || (op->code == CALL && (outside_call(op) || funcs.at[op->a].may));
}

static u32 new_region(u32 parent, u32 op) {
    vec_push(regions, (Region){.parent = parent, .op = op, .first = stops.n, .items = NONE, .last_item = NONE, .hoisted = NONE, .gate = NONE,
                               .header = NONE, .leaf = true});
    Region *r = &regions.at[regions.n - 1];
    r->assigned = scratch((u64)words * 8);
    r->live_header = scratch((u64)words * 8);
    r->live_inside = scratch((u64)words * 8);
    return regions.n - 1;
}

static u32 new_stop(Place place, u32 op, u32 region) {
    vec_push(stops, (Stop){.place = place, .op = op, .region = region, .next = NONE, .inner = NONE});
    u32 id = stops.n - 1;
    stops.at[id].live = scratch((u64)words * 8);
    stops.at[id].stub = new_label();
    stops.at[id].label = place == AT_ENTRY ? NONE : new_label();
    Region *r = &regions.at[region];
    if (r->last_item == NONE) r->items = id;
    else stops.at[r->last_item].next = id;
    r->last_item = id;
    return id;
}

static U32s nest; /* of operations, then of regions */

/* Which blocks have a stop inside. */
static void find_split_blocks(void) {
    nest.n = 0;
    for (u32 i = 0; i < ops.n; i++) {
        Op *op = &ops.at[i];
        bool stop = false;
        if (op->code == BLOCK || op->code == LOOP || op->code == IF) {
            vec_push(nest, i);
            op->splits = op->code == LOOP && !op->dead;
            continue;
        }
        if (op->code == END && op->match != NONE) {
            nest.n--;
            stop = ops.at[op->match].splits;
        } else if (!op->dead) stop = is_stop(op);
        if (stop && nest.n) ops.at[nest.at[nest.n - 1]].splits = true;
    }
}

static void per_op(U32s *list, u32 value) {
    list->n = 0;
    vec_room(*list, ops.n + 1);
    list->n = ops.n + 1;
    for (u32 i = 0; i <= ops.n; i++) list->at[i] = value;
}

static u32 enter_loop(u32 op, u32 region) {
    u32 header = new_stop(AT_LOOP, op, region);
    u32 inner = new_region(region, op);
    stops.at[header].inner = inner;
    regions.at[inner].header = header;
    regions.at[inner].gate = stops.at[header].label;
    hoist(region, stops.at[header].label);
    regions.at[region].leaf = false;
    stop_of.at[op] = header;
    return inner;
}

void plan_stops(void) {
    words = (locals.n + 63) / 64;
    if (!words) words = 1;
    regions.n = stops.n = 0;
    label_count = 0;
    per_op(&region_of, 0);
    per_op(&stop_of, NONE);
    per_op(&label_of, NONE);
    per_op(&else_label_of, NONE);
    if (mode == STOPPING) find_split_blocks();
    u32 region = new_region(0, NONE);
    if (mode == STOPPING) new_stop(AT_ENTRY, NONE, region);
    for (u32 i = 0; i < ops.n; i++) {
        Op *op = &ops.at[i];
        region_of.at[i] = region;
        switch (op->code) {
        case BLOCK: case IF: case LOOP:
            if (op->dead) break;
            if (op->code == LOOP && mode == STOPPING) region = enter_loop(i, region);
            region_of.at[i] = region;
            label_of.at[i] = new_label();
            if (op->code == IF && op->splits) else_label_of.at[i] = op->els == NONE ? label_of.at[i] : new_label();
            break;
        case ELSE:
            if (!op->dead && ops.at[op->match].splits) hoist(region, else_label_of.at[op->match]);
            break;
        case END: {
            if (op->match == NONE) break;
            const Op *opener = &ops.at[op->match];
            if (opener->dead || !opener->splits) break;
            if (opener->code != LOOP) {
                hoist(region, label_of.at[op->match]);
                break;
            }
            Region *r = &regions.at[region];
            r->end = stops.n;
            for (u32 w = 0; w < words; w++) regions.at[r->parent].assigned[w] |= r->assigned[w];
            region = r->parent;
            break;
        }
        case LOCAL_SET: case LOCAL_TEE:
            if (!op->dead) ADD_TO_SET(regions.at[region].assigned, op->a);
            break;
        default:
            if (op->dead || mode != STOPPING || !is_stop(op)) break;
            u32 stop = new_stop(AT_CALL, i, region);
            stops.at[stop].save_args = outside_call(op);
            stop_of.at[i] = stop;
            hoist(region, stops.at[stop].label);
            regions.at[region].leaf = false;
        }
    }
    regions.at[0].end = stops.n;
    fixed_labels = label_count;
}

/* ---- charges ---- */

/* A block is charged where it begins; a conditional one that is cheap already where the decision is taken, even if it will not run: fewer
   charges, and as deterministic. `point` is where that is: the entry, the inside of a loop, or an operation. The first block of a function
   or a loop begins at its point, whatever it costs. */
typedef struct { u32 op; bool inside; u32 cost, folded; } Point;
static VEC(Point) points;
static u32 point, block_start, block_cost;
static bool first_block;

static void end_block_at(u32 next) {
    Point *p = &points.at[point];
    if (first_block) p->cost += block_cost;
    else if (block_cost) {
        if (block_cost <= FOLD_BLOCK && p->folded + block_cost <= FOLD_SUM) {
            p->cost += block_cost;
            p->folded += block_cost;
        } else {
            vec_push(points, (Point){block_start, false, block_cost, 0});
            point = points.n - 1;
        }
    }
    first_block = false;
    block_cost = 0;
    block_start = next;
}

void plan_charges(void) {
    per_op(&charge_before, 0);
    per_op(&charge_inside, 0);
    entry_charge = 0;
    if (mode == BOUNDED || mode == FREE) return;
    points.n = 0;
    nest.n = 0;
    vec_push(points, (Point){NONE, false, WEIGHT_FUNCTION, 0});
    point = block_start = block_cost = 0;
    first_block = true;
    for (u32 i = 0; i < ops.n; i++) {
        const Op *op = &ops.at[i];
        if (op->dead) continue;
        block_cost += weight_of(op);
        switch (op->code) {
        case BLOCK: vec_push(nest, point); break;
        case LOOP:
            end_block_at(i);
            vec_push(nest, point);
            vec_push(points, (Point){i, true, WEIGHT_LOOP, 0});
            point = points.n - 1;
            block_start = i + 1;
            first_block = true;
            break;
        case IF:
            end_block_at(i + 1);
            vec_push(nest, point);
            break;
        case ELSE:
            end_block_at(i + 1);
            point = nest.at[nest.n - 1];
            break;
        case END:
            end_block_at(i + 1);
            if (nest.n) point = nest.at[--nest.n];
            break;
        case BR: case BR_IF: case BR_TABLE: case RETURN: case UNREACHABLE: end_block_at(i + 1); break;
        default: break;
        }
    }
    end_block_at(ops.n);
    entry_charge = points.at[0].cost;
    for (u32 i = 1; i < points.n; i++) (points.at[i].inside ? &charge_inside : &charge_before)->at[points.at[i].op] += points.at[i].cost;
}
