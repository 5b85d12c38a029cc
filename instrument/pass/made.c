/* Functions that the pass makes: wrappers around what is not the program's, and bulk operations in pieces. They are written as plain
   WebAssembly (with ids for indices) and then go through the same rewriting as the program's own. */
#include "decode.h"
#include "weights.h"

u32 make_func(u32 type, const Buf *body) {
    u8 *copy = keep(body->n);
    copy_bytes(copy, body->at, body->n);
    vec_push(funcs, (Func){.origin = FROM_PASS, .type = type, .body = copy, .size = body->n, .alias = NONE, .wrapper = NONE, .twin = NONE});
    made.types = types.n;
    made.funcs = funcs.n;
    made.globals = globals.n;
    made.datas = datas.n;
    made.memories = 1;
    return funcs.n - 1;
}

/* What tables, exports and references hold must be able to rewind by itself; an import or a function of the WASI is wrapped. The wrapper
   of an import that turns out to be answered by the WASI calls that one. */
u32 entry_of(u32 id) {
    if (funcs.at[id].wrapper != NONE) return funcs.at[id].wrapper;
    if (funcs.at[id].origin != IMPORTED && funcs.at[id].origin != FROM_WASI) {
        funcs.at[id].taken = 1;
        return id;
    }
    static Buf body;
    body.n = 0;
    put_u(&body, 0);
    for (u32 i = 0; i < types.at[funcs.at[id].type].np; i++) put8(&body, LOCAL_GET), put_u(&body, i);
    put8(&body, CALL);
    put_u(&body, id);
    put8(&body, END);
    u32 wrapper = make_func(funcs.at[id].type, &body);
    funcs.at[wrapper].taken = 1;
    funcs.at[id].wrapper = wrapper;
    return wrapper;
}

/* ---- bulk operations ---- */

static Buf b;

static void op1(u8 code) { put8(&b, code); }
static void op2(u8 code, u32 a) {
    put8(&b, code);
    put_u(&b, a);
}
static void get(u32 local) { op2(LOCAL_GET, local); }
static void set(u32 local) { op2(LOCAL_SET, local); }
static void number(i64 value) {
    put8(&b, I32_CONST);
    put_s(&b, value);
}

enum { TO = 0, FROM = 1, LENGTH = 2, PIECE = 3 };

static u32 doing, segment;

static void do_it(void) {
    put8(&b, 0xfc);
    put_u(&b, doing & 255);
    if (doing == MEMORY_INIT) put_u(&b, segment);
    put8(&b, 0);
    if (doing == MEMORY_COPY) put8(&b, 0);
}

static void all_at_once(void) {
    get(TO), get(FROM), get(LENGTH);
    do_it();
    op1(RETURN);
}

/* local + length > what there is, in 64 bits */
static void beyond(u32 local) {
    get(local), op1(I64_EXTEND_I32_U), get(LENGTH), op1(I64_EXTEND_I32_U), op1(I64_ADD);
    if (local == FROM && doing == MEMORY_INIT) {
        put8(&b, I64_CONST);
        put_s(&b, datas.at[segment].size);
    } else {
        op2(MEMORY_SIZE, 0), op1(I64_EXTEND_I32_U);
        put8(&b, I64_CONST);
        put_s(&b, 16);
        op1(I64_SHL);
    }
    op1(I64_GT_U);
}

static void advance(u32 local) { get(local), get(PIECE), op1(I32_ADD), set(local); }

/* PIECE = min(LENGTH, chunk) */
static void next_piece(void) {
    get(LENGTH), number(BULK_CHUNK_BYTES), get(LENGTH), number(BULK_CHUNK_BYTES), op1(I32_LT_U), op1(SELECT), set(PIECE);
    get(LENGTH), get(PIECE), op1(I32_SUB), set(LENGTH);
}

static void forwards(void) {
    op2(LOOP, VOID);
    next_piece();
    get(TO), get(FROM), get(PIECE);
    do_it();
    advance(TO);
    if (doing != MEMORY_FILL) advance(FROM);
    get(LENGTH);
    op2(BR_IF, 0);
    op1(END);
}

static void backwards(void) {
    op2(LOOP, VOID);
    next_piece();
    get(TO), get(LENGTH), op1(I32_ADD), get(FROM), get(LENGTH), op1(I32_ADD), get(PIECE);
    do_it();
    get(LENGTH);
    op2(BR_IF, 0);
    op1(END);
}

typedef struct { u32 operation, segment, func; } Helper;
static VEC(Helper) helpers;

/* f(to, from or value, length): the whole operation, stoppable between its pieces. What would trap is done at once, so that it traps
   before anything has changed; so are dropped segments, whose length of 0 only the machine knows. */
u32 bulk_helper(u32 operation, u32 data, const u8 *where) {
    if (operation != MEMORY_INIT) data = 0;
    for (u32 i = 0; i < helpers.n; i++)
        if (helpers.at[i].operation == operation && helpers.at[i].segment == data) return helpers.at[i].func;
    if (helpers.n > 1000) refuse(where, "memory.init of more than 1000 long segments is not supported");
    doing = operation;
    segment = data;
    b.n = 0;
    put_u(&b, 1), put_u(&b, 1), put8(&b, I32); /* one local: PIECE */
    get(LENGTH), number(BULK_CHUNK_BYTES), op1(I32_LE_U);
    op2(IF, VOID);
    all_at_once();
    op1(END);
    beyond(TO);
    if (operation != MEMORY_FILL) beyond(FROM), op1(I32_OR);
    op2(IF, VOID);
    all_at_once();
    op1(END);
    if (operation == MEMORY_COPY) {
        get(FROM), get(TO), op1(I32_LT_U);
        op2(IF, VOID);
        backwards();
        op1(RETURN);
        op1(END);
    }
    forwards();
    op1(END);
    static const u8 three[] = {I32, I32, I32};
    u32 func = make_func(type_intern(three, 3, NULL, 0), &b);
    vec_push(helpers, (Helper){operation, data, func});
    return func;
}
