/* The outside of the WASI for a native build: the functions of modules "x" and "ipos" over plain arrays, and its pages. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 65536u
#define ARENA_PAGES 3072u
#define PROGRAM_PAGES 64u
#define CACHE_PAGES 257u

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, length) ((void)(start), (void)(length))
#define ASAN_UNPOISON_MEMORY_REGION(start, length) ((void)(start), (void)(length))
#endif

/* ---- pages: below 4 GiB, because the runtime is given addresses of 32 bits ---- */

static uint8_t *arena;
static uint32_t pages = 1;

uint32_t arena_first_page(void) { return 1; }
uint32_t arena_pages(void) { return pages; }
uint8_t *arena_page(uint32_t number) { return arena + (size_t)number * PAGE; }
uint32_t arena_number(const void *page) { return (uint32_t)(((const uint8_t *)page - arena) / PAGE); }
void arena_open(void *start, uint32_t length) { ASAN_UNPOISON_MEMORY_REGION(start, length); }
void arena_close(void *start, uint32_t length) { ASAN_POISON_MEMORY_REGION(start, length); }

int arena_grow(uint32_t more) {
    if (pages + more > ARENA_PAGES) return 0;
    if (!arena) arena = mmap(NULL, (size_t)ARENA_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, -1, 0);
    if (arena == MAP_FAILED) abort();
    ASAN_POISON_MEMORY_REGION(arena_page(pages), (size_t)more * PAGE);
    pages += more;
    return 1;
}

/* ---- P and C ---- */

uint8_t *host_program, *host_cache;
uint32_t host_program_pages, host_cache_pages = 5;
int64_t host_work;        /* what work_used says */
int64_t host_charged;     /* sum of charges; not part of host_work, so that a model can know the time */
uint32_t host_stopped;
uint32_t (*host_on_need)(uint32_t, uint64_t, uint32_t);
void (*host_on_fetch)(uint32_t, uint32_t, uint8_t *);
void (*host_on_flush)(const uint8_t *, uint32_t);
int32_t (*host_on_stdin)(uint8_t *, uint32_t);
uint32_t host_faulted;

void host_start(uint32_t program_pages) {
    if (!host_program) host_program = calloc(PROGRAM_PAGES, PAGE);
    if (!host_cache) host_cache = calloc(CACHE_PAGES, PAGE);
    host_program_pages = program_pages;
}

void host_end(void) {
    free(host_program);
    free(host_cache);
    if (arena) munmap(arena, (size_t)ARENA_PAGES * PAGE);
}

static uint8_t *program(uint32_t address, uint64_t length) {
    if (address + length > (uint64_t)host_program_pages * PAGE) abort(); /* in wasm: a trap inside the WASI */
    return host_program + address;
}

static uint8_t *cache(uint32_t address, uint64_t length) {
    if (address + length > (uint64_t)host_cache_pages * PAGE) abort();
    return host_cache + address;
}

#define LOAD(name, type, result)                                \
    result name(uint32_t address) {                             \
        type value;                                             \
        memcpy(&value, program(address, sizeof value), sizeof value); \
        return value;                                           \
    }
#define STORE(name, type, argument)                                                                          \
    void name(uint32_t address, argument value) {                                                            \
        type narrow = (type)value;                                                                           \
        memcpy(program(address, sizeof narrow), &narrow, sizeof narrow);                                     \
    }
LOAD(program_load8, uint8_t, uint32_t)
LOAD(program_load16, uint16_t, uint32_t)
LOAD(program_load32, uint32_t, uint32_t)
LOAD(program_load64, uint64_t, uint64_t)
STORE(program_store8, uint8_t, uint32_t)
STORE(program_store16, uint16_t, uint32_t)
STORE(program_store32, uint32_t, uint32_t)
STORE(program_store64, uint64_t, uint64_t)

void program_read(void *to, uint32_t from, uint32_t length) {
    if (program(from, length), length) memcpy(to, program(from, length), length);
}
void program_write(uint32_t to, const void *from, uint32_t length) {
    if (program(to, length), length) memcpy(program(to, length), from, length);
}
void program_fill(uint32_t to, uint32_t byte, uint32_t length) { memset(program(to, length), (int)byte, length); }
uint32_t program_pages(void) { return host_program_pages; }
void cache_read(void *to, uint32_t from, uint32_t length) { memcpy(to, cache(from, length), length); }
void cache_to_program(uint32_t to, uint32_t from, uint32_t length) { memcpy(program(to, length), cache(from, length), length); }
uint64_t cache_load64(uint32_t address) {
    uint64_t value;
    memcpy(&value, cache(address, 8), 8);
    return value;
}
void cache_store64(uint32_t address, uint64_t value) { memcpy(cache(address, 8), &value, 8); }
uint32_t cache_pages(void) { return host_cache_pages; }
int64_t ticks_used(void) { return 32 * host_work; }
void charge_ticks(int64_t ticks) { host_charged += ticks; }
void stop(void) { host_stopped = 1; }

uint32_t host_need(uint32_t file, uint64_t offset, uint32_t length) { return host_on_need ? host_on_need(file, offset, length) : 0; }
void host_fetch(uint32_t file, uint32_t block, uint32_t address) { host_on_fetch(file, block, cache(address, PAGE)); }
void host_flush(const void *records, uint32_t length) { host_on_flush(records, length); }
int32_t host_stdin(void *to, uint32_t length) { return host_on_stdin(to, length); }
void host_fault(uint32_t code) { host_faulted = code; }
