/* Canonical NaNs. WebAssembly lets the machine choose the bits of a NaN that arithmetic gives, and machines differ. The bits matter only where
   they can be seen: stored, reinterpreted, passed on, saved. So each value is followed within its function: *nan* means that it may hold a NaN
   of the machine's choice, and it is made canonical where it escapes. Vectors are made canonical after each arithmetic operation. */
#include "emit.h"

bool canonical, nan_learned;
static VEC(u8) affected; /* by local */
static u32 original_locals;

void nan_start(void) {
    affected.n = 0;
    for (u32 i = 0; i < locals.n; i++) vec_push(affected, 0);
    original_locals = locals.n;
    canonical = !(flags & FLAG_NO_NAN) && (mode == STOPPING || mode == BOUNDED);
}

static bool is_float(u8 type) { return type == F32 || type == F64; }

void nan_all_locals(void) {
    for (u32 i = 0; i < original_locals; i++) affected.at[i] = is_float(locals.at[i]);
}

bool nan_local(u32 local) { return is_float(locals.at[local]) && affected.at[local]; }

void nan_set_local(u32 local, bool nan) {
    if (!nan || affected.at[local]) return;
    affected.at[local] = 1;
    nan_learned = true;
}

static const u8 nan32[4] = {0, 0, 0xc0, 0x7f}, nan64[8] = {0, 0, 0, 0, 0, 0, 0xf8, 0x7f};

static void nan_bytes(u8 type) {
    for (u32 i = 0; i < (type == F64 ? 8u : 4u); i++) e8((type == F64 ? nan64 : nan32)[i]);
}

/* Pushes the local; it is canonical afterwards, and so is what was pushed. */
void canonical_local(u32 local) {
    u8 type = locals.at[local];
    local_get(local);
    local_get(local);
    e8(type == F64 ? 0x62 : 0x5c); /* ne: only a NaN differs from itself */
    u32 label = begin_if();
    e8(type == F64 ? F64_CONST : F32_CONST);
    nan_bytes(type);
    local_set(local);
    end_if(label);
    local_get(local);
}

void canonical_top(void) {
    Value *top = &stack.at[stack.n - 1];
    if (!is_float(top->type) || !top->nan) return;
    u32 local = own_temporary(0, top->type);
    local_set(local);
    canonical_local(local);
    top->nan = false;
}

void canonical_top_n(u32 n) {
    if (!canonical) return;
    u32 lowest = stack.n;
    for (u32 d = stack.n - n; d < stack.n && lowest == stack.n; d++)
        if (stack.at[d].nan && is_float(stack.at[d].type)) lowest = d;
    for (u32 d = stack.n; d > lowest; d--) local_set(temporary(d - 1, stack.at[d - 1].type));
    for (u32 d = lowest; d < stack.n; d++) {
        u32 local = temporary(d, stack.at[d].type);
        if (stack.at[d].nan && is_float(stack.at[d].type)) canonical_local(local);
        else local_get(local);
        stack.at[d].nan = false;
    }
}

/* The bits of the topmost operand can be seen after this operation. */
bool bits_escape(const Op *op) {
    switch (op->code) {
    case 0x38: case 0x39:                                  /* stores */
    case 0xbc: case 0xbd:                                  /* reinterpretation */
    case 0x98: case 0xa6:                                  /* copysign: the sign of the second operand */
    case GLOBAL_SET:
    case 0xfd13: case 0xfd14: case 0xfd20: case 0xfd22: return true; /* into a vector */
    default: return false;
    }
}

void canonical_vector(u32 code) {
    u32 lanes = vector_arithmetic(code);
    u32 local = own_temporary(0, V128);
    local_set(local);
    local_get(local);
    e8(0xfd);
    eu(12);
    for (u32 i = 0; i < (lanes == 2 ? 2u : 4u); i++) nan_bytes(lanes == 2 ? F64 : F32);
    local_get(local);
    local_get(local);
    e8(0xfd);
    eu(lanes == 2 ? 71 : 65); /* eq: all ones where it is no NaN */
    e8(0xfd);
    eu(82); /* bitselect */
}
