#include "memory.h"
#include "arena.h"
#include "costs.h"
#include "host.h"

#define CLASSES 21u          /* 32, 48, 64, 96, ... 32768 bytes */
#define SMALLEST_BITS 5u
#define LARGEST_BLOCK 32768u
#define GROWTH_PAGES 16u     /* the memory grows by an eighth, at least by this: steps must be the same on every node */
#define ALL_PAGES 65536u
#define PAGES_TIDIED 16u     /* freed at each call */
#define PAGES_TIDIED_IN_NEED 64u

static u32 next_page; /* pages from here on were never used */
static u32 pages_taken, pages_limit = ALL_PAGES, pages_base;
static u16 free_pages[ALL_PAGES];
static u32 free_count;

static void *free_blocks[CLASSES]; /* each free block begins with the address of the next */
static u8 *uncut[CLASSES];         /* the rest of a page that is being cut into blocks of this class */
static u32 uncut_bytes[CLASSES];

static void *dead_pages;   /* each begins with the address of the next */
static void **dead_tables; /* slot 0 is the address of the next */
static u32 dead_slot = 1;  /* of the first dead table: slots before it were freed */

/* ---- pages ---- */

static u8 *fresh_pages(u32 count) {
    if (!next_page) next_page = arena_first_page();
    u32 have = arena_pages();
    if (count > ALL_PAGES || next_page > ALL_PAGES - count) return NULL;
    if (next_page + count > have) {
        u32 step = next_page + count - have;
        u32 least = have / 8 > GROWTH_PAGES ? have / 8 : GROWTH_PAGES;
        if (step < least) step = least;
        if (step > ALL_PAGES - have) step = ALL_PAGES - have;
        if (!arena_grow(step)) {
            host_fault(FAULT_MEMORY);
            __builtin_trap();
        }
    }
    u8 *pages = arena_page(next_page);
    next_page += count;
    pages_taken += count;
    arena_open(pages, count * PAGE_BYTES);
    return pages;
}

static void page_free(void *page) {
    memset(page, 0, PAGE_BYTES);
    arena_close(page, PAGE_BYTES);
    free_pages[free_count++] = (u16)arena_number(page);
    pages_taken--;
}

static void tidy(u32 pages) {
    for (; pages; pages--) {
        if (dead_pages) {
            void *page = dead_pages;
            dead_pages = *(void **)page;
            page_free(page);
        } else if (dead_tables) {
            while (dead_slot < TABLE_SLOTS && !dead_tables[dead_slot]) dead_slot++;
            if (dead_slot < TABLE_SLOTS) {
                page_free(dead_tables[dead_slot]);
                dead_tables[dead_slot++] = NULL;
            } else {
                void **table = dead_tables;
                dead_tables = table[0];
                dead_slot = 1;
                block_free(table, TABLE_SLOTS * sizeof(void *));
            }
        } else {
            return;
        }
    }
}

void memory_tidy(void) {
    if (dead_pages || dead_tables) tidy(PAGES_TIDIED);
}

void *page_alloc(void) {
    charge(COST_PAGE);
    if (!free_count || pages_taken >= pages_limit) tidy(PAGES_TIDIED_IN_NEED);
    if (pages_taken >= pages_limit) return NULL;
    if (!free_count) return fresh_pages(1);
    u8 *page = arena_page(free_pages[--free_count]);
    pages_taken++;
    arena_open(page, PAGE_BYTES);
    return page;
}

void page_bury(void *page) {
    *(void **)page = dead_pages;
    dead_pages = page;
}

void table_bury(void **table) {
    if (table[0]) page_bury(table[0]);
    table[0] = dead_tables;
    /* the first table may be half freed, `dead_slot` is about it: the new one goes behind it */
    if (dead_tables) {
        table[0] = dead_tables[0];
        dead_tables[0] = table;
    } else {
        dead_tables = table;
    }
}

/* ---- blocks ---- */

static u32 class_of(u32 size) {
    if (size <= 1u << SMALLEST_BITS) return 0;
    u32 bits = 31u - (u32)__builtin_clz(size - 1);
    return 2 * (bits - SMALLEST_BITS) + (size <= 3u << (bits - 1) ? 1 : 2);
}

static u32 class_size(u32 class) { return (class & 1 ? 48u : 32u) << class / 2; }

u32 block_capacity(u32 size) { return size > LARGEST_BLOCK ? PAGE_BYTES : class_size(class_of(size)); }

void *block_alloc(u32 size) {
    if (size > PAGE_BYTES) return NULL;
    if (size > LARGEST_BLOCK) return page_alloc();
    u32 class = class_of(size), bytes = class_size(class);
    u8 *block = free_blocks[class];
    if (block) {
        arena_open(block, bytes);
        free_blocks[class] = *(void **)block;
        *(void **)block = NULL;
        return block;
    }
    if (uncut_bytes[class] < bytes) {
        u8 *page = page_alloc();
        if (!page) return NULL;
        arena_close(page, PAGE_BYTES);
        uncut[class] = page;
        uncut_bytes[class] = PAGE_BYTES;
    }
    block = uncut[class];
    uncut[class] += bytes;
    uncut_bytes[class] -= bytes;
    arena_open(block, bytes);
    return block;
}

void block_free(void *block, u32 size) {
    if (!block) return;
    if (size > LARGEST_BLOCK) {
        page_free(block);
        return;
    }
    u32 class = class_of(size);
    memset(block, 0, class_size(class));
    *(void **)block = free_blocks[class];
    free_blocks[class] = block;
    arena_close(block, class_size(class));
}

/* ---- boot ---- */

static u32 pages_of(u32 size) { return (u32)(((u64)size + PAGE_BYTES - 1) / PAGE_BYTES); }

void *memory_boot(u32 size) { return fresh_pages(pages_of(size)); }

void memory_boot_done(void *space, u32 size) {
    /* backwards: the page with the lowest number is used again first, and the memory stays dense */
    for (u32 page = pages_of(size); page--;) page_free((u8 *)space + (uptr)page * PAGE_BYTES);
}

void memory_limit(u32 pages) {
    pages_base = pages_taken;
    pages_limit = pages_taken + min32(pages, ALL_PAGES - pages_taken);
}

u32 memory_pages_used(void) { return pages_taken - pages_base; }
u32 memory_pages_free(void) { return free_count; }
