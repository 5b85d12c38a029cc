#include "input.h"
#include "free.h"
#include "host.h"

/* C: page 0 holds a tag of 8 bytes for each of the 2^k pages behind it (at most 8192), each block has one place it can be in */

static u32 slot_of(u32 file, u32 block) { return (file * 0x9E3779B1u + block) & (cache_pages() - 2); }
static u64 tag_of(u32 file, u32 block) { return ((u64)file << 32 | block) + 1; }

NOINLINE u32 input_waits(u32 file, u64 offset, u32 length) {
    if (!length) return 0;
    u32 last = (u32)((offset + length - 1) / PAGE_BYTES);
    for (u32 block = (u32)(offset / PAGE_BYTES); block <= last; block++)
        /* one request names the whole range: asking for what is missing here only, two nodes that each lack another half would
           pass the program to and fro for ever */
        if (cache_load64(slot_of(file, block) * 8) != tag_of(file, block)) return host_need(file, offset, length);
    return 0;
}
FREE_OF_WORK(input_waits)

NOINLINE u32 input_block(u32 file, u32 block) {
    u32 slot = slot_of(file, block), address = (slot + 1) * PAGE_BYTES;
    if (cache_load64(slot * 8) != tag_of(file, block)) {
        host_fetch(file, block, address);
        cache_store64(slot * 8, tag_of(file, block));
    }
    return address;
}
FREE_OF_WORK(input_block)
