/* Memory, buffers, and the one way out: a refusal. */
#include "base.h"
#include "module.h"

#define PAGE 65536u
#define CHUNK (1u << 20)

extern u8 __heap_base;

static uintptr_t top;

/* Pages are zero when they are new and nothing here is ever given back, so kept memory needs no clearing. */
void *keep(u64 bytes) {
    if (!top) top = ((uintptr_t)&__heap_base + 15) & ~(uintptr_t)15;
    u64 end = (u64)top + ((bytes + 15) & ~(u64)15);
    u64 have = (u64)__builtin_wasm_memory_size(0) * PAGE;
    if (end > have) {
        u64 pages = (end - have + PAGE - 1) / PAGE;
        if (end > 0xffffffffu || __builtin_wasm_memory_grow(0, (u32)pages) == (size_t)-1)
            refuse(NULL, "the module is too much for the memory of the pass");
    }
    void *at = (void *)top;
    top = (uintptr_t)end;
    return at;
}

typedef struct Chunk {
    struct Chunk *next;
    u32 bytes, used;
    u8 at[];
} Chunk;

static Chunk *first_chunk, *chunk;

void *scratch(u64 bytes) {
    bytes = (bytes + 15) & ~(u64)15;
    while (chunk && chunk->bytes - chunk->used < bytes) {
        if (!chunk->next || chunk->next->bytes < bytes) {
            u64 size = bytes > CHUNK ? bytes : CHUNK;
            Chunk *made = keep(sizeof(Chunk) + size);
            made->bytes = (u32)size;
            made->next = chunk->next;
            chunk->next = made;
        }
        chunk = chunk->next;
        chunk->used = 0;
    }
    if (!chunk) {
        u64 size = bytes > CHUNK ? bytes : CHUNK;
        first_chunk = chunk = keep(sizeof(Chunk) + size);
        chunk->bytes = (u32)size;
    }
    void *at = chunk->at + chunk->used;
    chunk->used += (u32)bytes;
    zero_bytes(at, (size_t)bytes);
    return at;
}

void scratch_reset(void) {
    chunk = first_chunk;
    if (chunk) chunk->used = 0;
}

void *vec_grow(void *old, u32 used, u32 *room, u64 wanted, u32 item_bytes) {
    u64 next = wanted * 2 < 64 ? 64 : wanted * 2;
    if (next > 0x7fffffffu) refuse(NULL, "the module is too much for the memory of the pass");
    void *at = keep(next * item_bytes);
    if (used) copy_bytes(at, old, (size_t)used * item_bytes);
    *room = (u32)next;
    return at;
}

void copy_bytes(void *to, const void *from, size_t n) { __builtin_memmove(to, from, n); }
void zero_bytes(void *at, size_t n) { __builtin_memset(at, 0, n); }

bool same_bytes(const void *a, const void *b, size_t n) {
    const u8 *x = a, *y = b;
    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i]) return false;
    return true;
}

u32 text_length(const char *text) {
    u32 n = 0;
    while (text[n]) n++;
    return n;
}

void put8(Buf *b, u8 value) { vec_push(*b, value); }

void put_bytes(Buf *b, const void *bytes, u32 n) {
    vec_room(*b, n);
    if (n) copy_bytes(b->at + b->n, bytes, n);
    b->n += n;
}

void put_u(Buf *b, u64 value) {
    do {
        u8 low = value & 127;
        value >>= 7;
        put8(b, value ? low | 128 : low);
    } while (value);
}

void put_s(Buf *b, i64 value) {
    for (;;) {
        u8 low = value & 127;
        value >>= 7;
        if ((value == 0 && !(low & 64)) || (value == -1 && (low & 64))) {
            put8(b, low);
            return;
        }
        put8(b, low | 128);
    }
}

void put_name(Buf *b, const char *name) {
    u32 n = text_length(name);
    put_u(b, n);
    put_bytes(b, name, n);
}

/* ---- the refusal ---- */

/* Not a vector: a refusal must not need memory. */
char sentence[512];
u32 sentence_length;

static void say(char c) {
    if (sentence_length < sizeof sentence) sentence[sentence_length++] = c;
}

static void say_text(const char *text, u32 n) {
    for (u32 i = 0; i < n; i++) say(text[i]);
}

static void say_number(u32 value, u32 radix) {
    char digits[16];
    u32 n = 0;
    do digits[n++] = "0123456789abcdef"[value % radix];
    while (value /= radix);
    while (n) say(digits[--n]);
}

/* A name out of a hostile module: printable ASCII as it is, the rest as '?', so that the sentence is one line of UTF-8. */
static void say_name(const u8 *name, u32 n) {
    for (u32 i = 0; i < n && i < 64; i++) say(name[i] >= 32 && name[i] < 127 ? (char)name[i] : '?');
    if (n > 64) say_text("...", 3);
}

_Noreturn void refuse(const u8 *where, const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    sentence_length = 0;
    for (const char *f = format; *f; f++) {
        if (*f != '%') {
            say(*f);
            continue;
        }
        switch (*++f) {
        case 's': {
            const char *text = va_arg(rest, const char *);
            say_text(text, text_length(text));
            break;
        }
        case 'n': {
            const u8 *name = va_arg(rest, const u8 *);
            say_name(name, va_arg(rest, u32));
            break;
        }
        case 'x': say_number(va_arg(rest, u32), 16); break;
        default: say_number(va_arg(rest, u32), 10);
        }
    }
    va_end(rest);
    u32 offset;
    const Source *source = source_of(where, &offset);
    if (source) {
        say_text(" at byte ", 9);
        say_number(offset, 10);
        if (source == &wasi) say_text(" of the WASI", 12);
    }
    __asm__ volatile("" ::: "memory"); /* the host reads the sentence after the trap */
    __builtin_trap();
}
