/* What is outside of the WASI. Functions of module "x" are no functions: the pass puts one instruction in the place of each call
   (P = the program's memory, M = this WASI's own, C = the cache of clean blocks, which is not state). Functions of module "ipos"
   are the runtime's. In a native build for tests all of them are C functions (tests/vm/wasi_host.c). */
#ifndef IPOS_WASI_HOST
#define IPOS_WASI_HOST

#include "types.h"

#ifdef __wasm__
#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))
#define EXPORT(name) name /* build.py finds the names by this word */
#else
#define IMPORT(module, name)
#define EXPORT(name) ipos_##name /* `sched_yield` and others are names of libc, too */
#endif

IMPORT("x", "l8") u32 program_load8(u32 address);
IMPORT("x", "l16") u32 program_load16(u32 address);
IMPORT("x", "l32") u32 program_load32(u32 address);
IMPORT("x", "l64") u64 program_load64(u32 address);
IMPORT("x", "s8") void program_store8(u32 address, u32 value);
IMPORT("x", "s16") void program_store16(u32 address, u32 value);
IMPORT("x", "s32") void program_store32(u32 address, u32 value);
IMPORT("x", "s64") void program_store64(u32 address, u64 value);
IMPORT("x", "in") void program_read(void *to, u32 from, u32 length);        /* M <- P */
IMPORT("x", "out") void program_write(u32 to, const void *from, u32 length); /* P <- M */
IMPORT("x", "fill") void program_fill(u32 to, u32 byte, u32 length);
IMPORT("x", "size") u32 program_pages(void);
IMPORT("x", "cin") void cache_read(void *to, u32 from, u32 length);     /* M <- C */
IMPORT("x", "cout") void cache_to_program(u32 to, u32 from, u32 length); /* P <- C */
IMPORT("x", "cl64") u64 cache_load64(u32 address);
IMPORT("x", "cs64") void cache_store64(u32 address, u64 value);
IMPORT("x", "csize") u32 cache_pages(void);
IMPORT("x", "work") i64 ticks_used(void);
IMPORT("x", "charge") void charge_ticks(i64 ticks);
IMPORT("x", "stop") void stop(void); /* the program unwinds when this call returns, and the call is issued again */

IMPORT("ipos", "need") u32 host_need(u32 file, u64 offset, u32 length); /* 0: at hand; else this call must wait */
IMPORT("ipos", "fetch") void host_fetch(u32 file, u32 block, u32 cache_address);
IMPORT("ipos", "flush") void host_flush(const void *records, u32 length);
IMPORT("ipos", "stdin") i32 host_stdin(void *to, u32 length); /* > 0 bytes, 0 the end, -1 wait */
IMPORT("ipos", "fault") void host_fault(u32 code);            /* this node fails; the program never learns of it */

enum { FAULT_MEMORY = 1, FAULT_STDIN = 2 };

#define TICKS_PER_WORK 32 /* as in ../pass/weights.h */
/* In whole units, rounded up as everywhere. */
static inline i64 work_used(void) { return (ticks_used() + TICKS_PER_WORK - 1) / TICKS_PER_WORK; }
static inline void charge(u32 work) { charge_ticks((i64)work * TICKS_PER_WORK); }

/* True if the program has no such bytes. Also for length 0: an instruction that copies nothing still checks its address. */
static inline int outside(u32 address, u64 length) { return address + length > (u64)program_pages() * PAGE_BYTES; }

#endif
