/* What every stage uses: integers, memory, growing buffers, refusals. */
#ifndef IPOS_BASE_H
#define IPOS_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;

#define NONE 0xffffffffu

/* The sentence of the refusal, then a trap: C has no other way back from deep inside a parser, and nothing after a
   refusal may run on half-read data. `where` is inside one of the two modules, or NULL. Understands %s, %u, %x, %n (name: pointer, length). */
_Noreturn void refuse(const u8 *where, const char *format, ...);

/* Memory that stays until the instance is dropped; zeroed. Out of memory is a refusal. */
void *keep(u64 bytes);
/* Memory of the function at hand; zeroed; gone at scratch_reset. */
void *scratch(u64 bytes);
void scratch_reset(void);

void copy_bytes(void *to, const void *from, size_t n);
void zero_bytes(void *at, size_t n);
bool same_bytes(const void *a, const void *b, size_t n);
u32 text_length(const char *text);

/* A vector of T: `at[0..n)`. It lives in kept memory and is reused from function to function. */
#define VEC(T) struct { T *at; u32 n, room; }
void *vec_grow(void *old, u32 used, u32 *room, u64 wanted, u32 item_bytes);
#define vec_room(v, extra)                                                                                             \
    ((u64)(v).n + (extra) > (v).room                                                                                   \
         ? (void)((v).at = vec_grow((v).at, (v).n, &(v).room, (u64)(v).n + (extra), sizeof *(v).at))                   \
         : (void)0)
#define vec_push(v, ...) (vec_room(v, 1), (v).at[(v).n++] = (__VA_ARGS__))

typedef VEC(u8) Buf;
typedef VEC(u32) U32s;

void put8(Buf *b, u8 value);
void put_bytes(Buf *b, const void *bytes, u32 n);
void put_u(Buf *b, u64 value);
void put_s(Buf *b, i64 value);
void put_name(Buf *b, const char *name);

#endif
