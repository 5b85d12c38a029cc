/* Function types: by number, and by content. */
#include "module.h"

__typeof__(types) types;

/* Types by content: open addressing; each slot holds the number of a type, plus one. */
static U32s type_slots;

static bool same_type(const Type *t, const Type *u) {
    return t->np == u->np && t->nr == u->nr && same_bytes(t->params, u->params, t->np) && same_bytes(t->results, u->results, t->nr);
}

static u32 *type_slot(const Type *t) {
    u32 hash = t->np * 31 + t->nr;
    for (u32 i = 0; i < t->np; i++) hash = hash * 0x9e3779b1u + t->params[i];
    for (u32 i = 0; i < t->nr; i++) hash = hash * 0x9e3779b1u + t->results[i];
    for (u32 i = hash ^ hash >> 15;; i++) {
        u32 *slot = &type_slots.at[i & (type_slots.n - 1)];
        if (!*slot || same_type(t, &types.at[*slot - 1])) return slot;
    }
}

static void hash_types(u32 slots) {
    type_slots.n = 0;
    vec_room(type_slots, slots);
    type_slots.n = slots;
    zero_bytes(type_slots.at, (size_t)slots * 4);
    for (u32 i = 0; i < types.n; i++) {
        u32 *slot = type_slot(&types.at[i]);
        if (!*slot) *slot = i + 1;
    }
}

void types_changed(void) {
    if (type_slots.n) hash_types(type_slots.n);
}

void type_add(Type t) {
    vec_push(types, t);
    if (types.n * 2 > type_slots.n) {
        hash_types(type_slots.n ? type_slots.n * 2 : 256);
        return;
    }
    u32 *slot = type_slot(&types.at[types.n - 1]);
    if (!*slot) *slot = types.n;
}

u32 type_intern(const u8 *params, u32 np, const u8 *results, u32 nr) {
    Type wanted = {params, results, np, nr};
    u32 found = type_slots.n ? *type_slot(&wanted) : 0;
    if (found) return found - 1;
    u8 *copy = keep((u64)np + nr + 1);
    copy_bytes(copy, params, np);
    copy_bytes(copy + np, results, nr);
    type_add((Type){copy, copy + np, np, nr});
    return types.n - 1;
}
