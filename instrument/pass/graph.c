/* The call graph: which functions may stop, what the others cost, and where the depth of calls is counted.

   A function is *bounded* if it has no loop, calls nothing but bounded functions and its longest path is short: it keeps its code, and
   its caller is charged for the longest path (if its address is taken, callers do not know it, so it charges itself). All others may stop.

   Depth: every cycle of the call graph (an indirect call may reach every function of that type whose address is taken) contains a
   *counted* function, a target of a back edge. It adds its weight while it runs: its own frame and the deepest path below it through
   functions that are not counted. So the sum of weights bounds the frames of all functions. */
#include "admit.h"
#include "decode.h"
#include "weights.h"

u32 static_depth;

static bool outside(u32 id) {
    Origin o = funcs.at[id].origin;
    return o == IMPORTED || o == FROM_WASI;
}

/* ---- what each function calls, and how deep its operand stack gets ---- */

static U32s heights; /* below each open block */
static U32s direct, indirect;

static void note_indirect(u32 type) {
    for (u32 i = 0; i < indirect.n && i < 64; i++) /* duplicates beyond do no harm */
        if (indirect.at[indirect.n - 1 - i] == type) return;
    vec_push(indirect, type);
}

/* Runs the types of a body: its height at every moment. Returns the deepest stack in bytes. */
static u32 run_types(u32 func) {
    u32 deepest = 0;
    bool vectors = false;
    heights.n = 0;
    stack.n = 0;
    const Type *ft = &types.at[funcs.at[func].type];
    for (u32 i = 0; i < ops.n; i++) {
        const Op *op = &ops.at[i];
        if (op->dead) continue;
        switch (op->code) {
        case UNREACHABLE: case BR_TABLE: case BR: break;
        case RETURN: pop_types(ft->nr, op->at); break;
        case BR_IF: pop_types(1, op->at); break;
        case BLOCK: case LOOP: case IF: {
            Signature s = block_signature(op);
            pop_types((op->code == IF) + s.np, op->at);
            vec_push(heights, stack.n);
            for (u32 k = 0; k < s.np; k++) push_type(s.params[k]);
            break;
        }
        case ELSE: {
            Signature s = block_signature(&ops.at[op->match]);
            stack.n = heights.at[heights.n - 1];
            for (u32 k = 0; k < s.np; k++) push_type(s.params[k]);
            break;
        }
        case END: {
            if (op->match == NONE) break;
            Signature s = block_signature(&ops.at[op->match]);
            stack.n = heights.at[--heights.n];
            for (u32 k = 0; k < s.nr; k++) push_type(s.results[k]);
            break;
        }
        default: step(op);
        }
        if (stack.n > MAX_OPERANDS) refuse(op->at, "an operand stack of more than %u values is more than a compiler can take", MAX_OPERANDS);
        if (stack.n > deepest) deepest = stack.n;
        if (op->code >> 8 == 0xfd || (stack.n && stack.at[stack.n - 1].type == V128)) vectors = true;
    }
    return deepest * (vectors ? 16 : 8);
}

static void scan(u32 id) {
    decode(id);
    direct.n = indirect.n = 0;
    u8 loops = 0, calls_outside = 0;
    for (u32 i = 0; i < ops.n; i++) {
        const Op *op = &ops.at[i];
        if (op->dead) continue;
        if (op->code == LOOP) loops = 1;
        else if (op->code == CALL_INDIRECT) note_indirect(op->a);
        else if (op->code == CALL) {
            vec_push(direct, op->a);
            if (outside(op->a)) calls_outside = 1;
        }
    }
    u32 frame = 96 + run_types(id);
    for (u32 l = 0; l < locals.n; l++) frame += locals.at[l] == V128 ? 16 : 8;
    Func *f = &funcs.at[id];
    f->loops = loops;
    f->outside = calls_outside;
    f->frame = frame;
    f->callees = edges.n;
    f->callees_n = direct.n;
    for (u32 i = 0; i < direct.n; i++) vec_push(edges, direct.at[i]);
    f->indirects = edges.n;
    f->indirects_n = indirect.n;
    for (u32 i = 0; i < indirect.n; i++) vec_push(edges, indirect.at[i]);
}

/* ---- bounded functions ---- */

typedef struct { u64 label, branch; u32 op; } Path;
static VEC(Path) paths;

/* The cost of the longest path of a function without loops; `charged` leaves out what its callees charge themselves. */
static u32 longest_path(u32 id) {
    decode(id);
    u64 cost = WEIGHT_FUNCTION, end = 0;
    paths.n = 0;
    for (u32 i = 0; i < ops.n; i++) {
        const Op *op = &ops.at[i];
        if (op->dead) continue;
        cost += weight_of(op);
        switch (op->code) {
        case BLOCK: case IF:
            vec_push(paths, (Path){0, cost, i});
            break;
        case ELSE:
            if (cost > paths.at[paths.n - 1].label) paths.at[paths.n - 1].label = cost;
            cost = paths.at[paths.n - 1].branch;
            break;
        case END: {
            if (op->match == NONE) break;
            u32 top = --paths.n;
            if (paths.at[top].label > cost) cost = paths.at[top].label;
            const Op *opener = &ops.at[paths.at[top].op];
            if (opener->code == IF && opener->els == NONE && paths.at[top].branch > cost) cost = paths.at[top].branch;
            break;
        }
        case BR: case BR_IF: {
            u64 *label = op->a < paths.n ? &paths.at[paths.n - 1 - op->a].label : &end;
            if (cost > *label) *label = cost;
            break;
        }
        case BR_TABLE: {
            Reader r = {op->at + op->b, op->at + op->bytes};
            for (u64 k = 0; k <= op->a; k++) {
                u32 depth = read_u32(&r);
                u64 *label = depth < paths.n ? &paths.at[paths.n - 1 - depth].label : &end;
                if (cost > *label) *label = cost;
            }
            break;
        }
        case RETURN:
            if (cost > end) end = cost;
            break;
        default: break;
        }
    }
    if (end > cost) cost = end;
    return cost > 0xffffff ? 0xffffff : (u32)cost;
}

static U32s path; /* of the depth-first walks */
static U32s next_edge;

static void start_walk(u32 nodes) {
    path.n = 0;
    next_edge.n = 0;
    vec_room(next_edge, nodes);
    zero_bytes(next_edge.at, (size_t)nodes * 4);
}

static bool analysed(const Func *f) { return f->origin == FROM_PROGRAM || f->origin == FROM_PASS; }

/* Depth-first, callees first: when a function is left, all its callees are known, except on a cycle, whose functions may stop. */
static void find_bounded(void) {
    enum { NEW, OPEN, DONE };
    start_walk(funcs.n);
    u32 *total = keep((u64)funcs.n * 4); /* the longest path with all that it calls */
    for (u32 root = 0; root < funcs.n; root++) {
        if (!analysed(&funcs.at[root]) || funcs.at[root].visited != NEW) continue;
        vec_push(path, root);
        funcs.at[root].visited = OPEN;
        while (path.n) {
            u32 id = path.at[path.n - 1];
            Func *f = &funcs.at[id];
            if (next_edge.at[id] < f->callees_n) {
                u32 callee = edges.at[f->callees + next_edge.at[id]++];
                Func *g = &funcs.at[callee];
                if (!analysed(g)) continue;
                if (g->visited == NEW) {
                    g->visited = OPEN;
                    vec_push(path, callee);
                } else if (g->visited == OPEN) f->may = g->may = 1;
                continue;
            }
            path.n--;
            f->visited = DONE;
            if (f->loops || f->outside || f->indirects_n) f->may = 1;
            u64 below = 0;
            for (u32 i = 0; i < f->callees_n && !f->may; i++) {
                const Func *g = &funcs.at[edges.at[f->callees + i]];
                if (g->may) f->may = 1;
                else if (g->taken) below += total[edges.at[f->callees + i]];
            }
            if (f->may) continue;
            u32 cost = longest_path(id);
            f = &funcs.at[id];
            f->cost = cost;
            total[id] = cost + (below > 0xffffff ? 0xffffff : (u32)below);
            if (total[id] > BOUNDED_PATH || flags & FLAG_ALL_STOP) f->may = 1;
        }
    }
}

/* ---- depth ---- */

/* Nodes: functions, then types (the call_indirect of that type); a type's edges go to the functions of that type that are taken. */
static U32s first_of_type, next_of_type;

static void link_types(void) {
    first_of_type.n = next_of_type.n = 0;
    for (u32 i = 0; i < types.n; i++) vec_push(first_of_type, NONE);
    for (u32 i = 0; i < funcs.n; i++) vec_push(next_of_type, NONE);
    /* equal types under different numbers are one type to call_indirect */
    u32 *canonical = keep((u64)types.n * 4);
    for (u32 i = 0; i < types.n; i++) canonical[i] = type_intern(types.at[i].params, types.at[i].np, types.at[i].results, types.at[i].nr);
    for (u32 i = funcs.n; i-- > 0;) {
        if (!funcs.at[i].taken || !analysed(&funcs.at[i])) continue;
        u32 t = canonical[funcs.at[i].type];
        next_of_type.at[i] = first_of_type.at[t];
        first_of_type.at[t] = i;
    }
    for (u32 i = 0; i < funcs.n; i++)
        for (u32 k = 0; k < funcs.at[i].indirects_n; k++) {
            u32 *edge = &edges.at[funcs.at[i].indirects + k];
            *edge = canonical[*edge];
        }
}

static U32s cursor; /* of each type: the next function to go to */

static u32 next_node(u32 node) {
    if (node >= funcs.n) {
        u32 to = cursor.at[node - funcs.n];
        if (to != NONE) cursor.at[node - funcs.n] = next_of_type.at[to];
        return to;
    }
    const Func *f = &funcs.at[node];
    u32 k = next_edge.at[node]++;
    if (k < f->callees_n) return edges.at[f->callees + k];
    k -= f->callees_n;
    if (k < f->indirects_n) return funcs.n + edges.at[f->indirects + k];
    return NONE;
}

static void start_graph_walk(void) {
    start_walk(funcs.n + types.n);
    cursor.n = 0;
    for (u32 i = 0; i < types.n; i++) vec_push(cursor, first_of_type.at[i]);
}

static void find_counted(void) {
    u32 nodes = funcs.n + types.n;
    u8 *seen = keep(nodes);
    enum { NEW, OPEN, DONE };
    start_graph_walk();
    for (u32 root = 0; root < funcs.n; root++) {
        if (!analysed(&funcs.at[root]) || seen[root]) continue;
        vec_push(path, root);
        seen[root] = OPEN;
        while (path.n) {
            u32 to = next_node(path.at[path.n - 1]);
            if (to == NONE) {
                seen[path.at[--path.n]] = DONE;
                continue;
            }
            if (to < funcs.n && !analysed(&funcs.at[to])) continue;
            if (seen[to] == NEW) {
                seen[to] = OPEN;
                vec_push(path, to);
            } else if (seen[to] == OPEN) {
                if (to < funcs.n) funcs.at[to].counted = 1;
                else
                    for (u32 f = first_of_type.at[to - funcs.n]; f != NONE; f = next_of_type.at[f]) funcs.at[f].counted = 1;
            }
        }
    }
}

/* Without the counted functions the graph has no cycle left: the deepest path below each node, callees first. */
static void find_weights(void) {
    u32 nodes = funcs.n + types.n;
    u64 *below = keep((u64)nodes * 8);
    u8 *seen = keep(nodes);
    start_graph_walk();
    for (u32 root = 0; root < funcs.n; root++) {
        if (!analysed(&funcs.at[root]) || seen[root]) continue;
        vec_push(path, root);
        seen[root] = 1;
        while (path.n) {
            u32 node = path.at[path.n - 1], to = next_node(node);
            if (to == NONE) {
                path.n--;
                if (node < funcs.n) {
                    u64 weight = below[node] + funcs.at[node].frame;
                    if (weight > MAX_STATIC_DEPTH)
                        refuse(funcs.at[node].body, "the frames of this function and those below it need %u bytes and more; a machine gives %u", (u32)weight, MAX_STATIC_DEPTH);
                    funcs.at[node].weight = (u32)weight;
                    if (weight > static_depth) static_depth = (u32)weight;
                    below[node] = weight;
                }
                if (path.n) {
                    u32 parent = path.at[path.n - 1];
                    if (!(node < funcs.n && funcs.at[node].counted) && below[node] > below[parent]) below[parent] = below[node];
                }
                continue;
            }
            /* what is counted is a root of its own, sooner or later */
            if (to < funcs.n && (!analysed(&funcs.at[to]) || funcs.at[to].counted)) continue;
            if (!seen[to]) {
                seen[to] = 1;
                vec_push(path, to);
            } else if (below[to] > below[node]) below[node] = below[to];
        }
    }
}

void analyse_calls(void) {
    for (u32 i = 0; i < funcs.n; i++) /* helpers made on the way are appended, and scanned too */
        if (analysed(&funcs.at[i])) scan(i);
    if (uses_references && !(flags & FLAG_OPEN)) {
        lower_references();
        edges.n = 0;
        for (u32 i = 0; i < funcs.n; i++)
            if (analysed(&funcs.at[i])) scan(i);
    }
    find_bounded();
    link_types();
    find_counted();
    for (u32 i = 0; i < funcs.n; i++) /* a bounded function is on no cycle, whatever its type */
        if (flags & FLAG_NO_DEPTH || !funcs.at[i].may) funcs.at[i].counted = 0;
    if (!(flags & FLAG_NO_DEPTH)) find_weights();
}
