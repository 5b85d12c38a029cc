/* What fills tables and memories when the module is instantiated, and constants: in the numbering of the output. */
#include "admit.h"
#include "decode.h"

static u32 reference_number(u32 id) { return final_of(entry_of(id)) + 1; }

/* A constant expression with the numbering of the output. */
void write_const_expr(Buf *section, Reader expr, const Source *s) {
    Reader r = expr;
    while (r.p < r.end) {
        const u8 *at = r.p;
        u8 op = read8(&r);
        switch (op) {
        case 0x41: read_s32(&r); break;
        case 0x42: read_s64(&r); break;
        case 0x43: read_skip(&r, 4); break;
        case 0x44: read_skip(&r, 8); break;
        case 0x23:
            put8(section, op);
            put_u(section, s->global_base + read_u32(&r));
            continue;
        case 0xd0:
            read8(&r);
            if (!lowered) break;
            put8(section, I32_CONST);
            put_s(section, 0);
            continue;
        case 0xd2:
            if (lowered) {
                put8(section, I32_CONST);
                put_s(section, reference_number(s->func_base + read_u32(&r)));
                continue;
            }
            put8(section, op);
            put_u(section, final_of(entry_of(s->func_base + read_u32(&r))));
            continue;
        case 0xfd:
            read_u32(&r);
            read_skip(&r, 16);
            break;
        default: break;
        }
        put_bytes(section, at, (u32)(r.p - at));
    }
}

/* ---- references as numbers ---- */

/* The value of a constant of type i32, or of a reference. Programs that are lowered import no globals. */
static u32 constant_of(Reader expr, const Source *s, u32 nested) {
    u32 values[32], n = 0;
    Reader r = expr;
    if (nested > 32) refuse(expr.p, "the constant is too complicated");
    for (;;) {
        u8 op = read8(&r);
        if (op == END) break;
        if (n == 32) refuse(expr.p, "the constant is too complicated");
        switch (op) {
        case I32_CONST: values[n++] = (u32)read_s32(&r); break;
        case GLOBAL_GET: values[n] = constant_of(globals.at[s->global_base + read_u32(&r)].init, s, nested + 1), n++; break;
        case REF_NULL:
            read8(&r);
            values[n++] = 0;
            break;
        case REF_FUNC: values[n++] = reference_number(s->func_base + read_u32(&r)); break;
        case I32_ADD: case I32_SUB: case 0x6c:
            if (n < 2) refuse(expr.p, "not a constant");
            n--;
            values[n - 1] = op == I32_ADD ? values[n - 1] + values[n] : op == I32_SUB ? values[n - 1] - values[n] : values[n - 1] * values[n];
            break;
        default: refuse(expr.p, "not a constant of 32 bits");
        }
    }
    if (n != 1) refuse(expr.p, "not a constant");
    return values[0];
}

static void write_all_functions(Buf *section) {
    static U32s taken;
    for (u32 i = 0; i < function_count; i++) vec_push(taken, 0);
    for (u32 i = 0; i < funcs.n; i++)
        if (funcs.at[i].taken && has_body(&funcs.at[i])) taken.at[funcs.at[i].final] = 1;
    put_u(section, 1);
    put8(section, 4);
    put8(section, I32_CONST), put_s(section, 1), put8(section, END);
    put_u(section, function_count);
    for (u32 i = 0; i < function_count; i++) {
        put8(section, taken.at[i] ? REF_FUNC : REF_NULL);
        if (taken.at[i]) put_u(section, i);
        else put8(section, FUNCREF);
        put8(section, END);
    }
}

/* What fills the arrays that were tables, when the module is instantiated. */
static u32 write_table_datas(Buf *section) {
    u32 n = 0;
    for (u32 i = 0; i < elems.n; i++) {
        const Elem *e = &elems.at[i];
        if (e->mode == DECLARED) continue;
        u32 address = 0;
        if (e->mode == PASSIVE) address = elem_address(i);
        else {
            u32 offset = constant_of(e->offset, e->source, 0);
            if ((u64)offset + e->n > tables.at[e->table].min) refuse(e->offset.p, "the element segment does not fit into its table");
            address = table_address(e->table) + offset * 4;
        }
        if (!e->n) continue;
        n++;
        put8(section, 2);
        put_u(section, MEM_STACK);
        put8(section, I32_CONST), put_s(section, (i32)address), put8(section, END);
        put_u(section, e->n * 4);
        Reader r = e->items;
        for (u32 k = 0; k < e->n; k++) {
            u32 number = e->exprs ? constant_of(read_const_expr(&r, e->source), e->source, 0) : reference_number(e->source->func_base + read_u32(&r));
            for (u32 b = 0; b < 32; b += 8) put8(section, (u8)(number >> b));
        }
    }
    return n;
}

void write_elems(Buf *section) {
    if (lowered) {
        write_all_functions(section);
        return;
    }
    put_u(section, elems.n);
    for (u32 i = 0; i < elems.n; i++) {
        const Elem *e = &elems.at[i];
        put8(section, (e->mode == ACTIVE ? 2 : e->mode == PASSIVE ? 1 : 3) | (e->exprs ? 4 : 0));
        if (e->mode == ACTIVE) {
            put_u(section, e->table);
            write_const_expr(section, e->offset, e->source);
        }
        put8(section, e->exprs ? e->type : 0);
        put_u(section, e->n);
        Reader r = e->items;
        for (u32 k = 0; k < e->n; k++) {
            if (e->exprs) write_const_expr(section, read_const_expr(&r, e->source), e->source);
            else put_u(section, final_of(entry_of(e->source->func_base + read_u32(&r))));
        }
    }
}

u32 write_datas(Buf *section) {
    for (u32 i = 0; i < datas.n; i++) {
        const Data *d = &datas.at[i];
        put8(section, d->mode == PASSIVE ? 1 : d->memory ? 2 : 0);
        if (d->mode == ACTIVE) {
            if (d->memory) put_u(section, d->memory);
            write_const_expr(section, d->offset, d->source);
        }
        put_u(section, d->size);
        put_bytes(section, d->bytes, d->size);
    }
    return datas.n + (lowered ? write_table_datas(section) : 0);
}
