/* Where the pages are. In wasm: the module's own memory behind its static variables. In a native build: an array that
   tests/vm/wasi_host.c reserves; there a sanitizer is told what is free, so that use after free is caught. */
#ifndef IPOS_WASI_ARENA
#define IPOS_WASI_ARENA

#include "types.h"

#ifdef __wasm__

extern u8 __heap_base;
static inline u32 arena_first_page(void) { return (u32)(((uptr)&__heap_base + PAGE_BYTES - 1) / PAGE_BYTES); }
static inline u32 arena_pages(void) { return (u32)__builtin_wasm_memory_size(0); }
static inline int arena_grow(u32 pages) { return __builtin_wasm_memory_grow(0, pages) != (uptr)-1; }
static inline u8 *arena_page(u32 number) { return (u8 *)((uptr)number * PAGE_BYTES); }
static inline u32 arena_number(const void *page) { return (u32)((uptr)page / PAGE_BYTES); }
static inline void arena_open(void *start, u32 length) { (void)start, (void)length; }
static inline void arena_close(void *start, u32 length) { (void)start, (void)length; }

#else

u32 arena_first_page(void);
u32 arena_pages(void);
int arena_grow(u32 pages);
u8 *arena_page(u32 number);
u32 arena_number(const void *page);
void arena_open(void *start, u32 length);
void arena_close(void *start, u32 length);

#endif
#endif
