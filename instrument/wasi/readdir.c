/* fd_readdir: `.`, `..`, then names in order of bytes. A cookie is the number of entries given out before it. */
#include "clock.h"
#include "descriptor.h"
#include "host.h"
#include "memory.h"

enum { DIRENT_BYTES = 24, DOTS = 2 };

/* The entry that `cookie` (beyond the dots) stands for. The usual cookie is the one behind the last name that was given out: then
   reading goes on behind that name, so names made or removed meanwhile neither hide nor repeat others. Any other is a position. */
static Entry *entry_of(const Descriptor *open, u64 cookie) {
    if (open->cursor && cookie == open->cookie) return entry_behind(open->node, open->cursor->name, open->cursor->length);
    return entry_at(open->node, cookie - DOTS);
}

static void remember(Descriptor *open, const Entry *entry, u64 cookie) {
    if (open->cursor) block_free(open->cursor, (u32)sizeof(Cursor) + open->cursor->length);
    open->cursor = block_alloc((u32)sizeof(Cursor) + entry->length);
    if (!open->cursor) return; /* the overlay is full: the cookie is a position, then */
    open->cursor->length = entry->length;
    memcpy(open->cursor->name, entry->name, entry->length);
    open->cookie = cookie;
}

/* Writes what has room of one entry; returns its whole length. */
static u32 put_dirent(u32 to, u32 room, u64 next, const Node *node, const u8 *name, u32 length) {
    if (room >= DIRENT_BYTES) {
        program_store64(to, next);
        program_store64(to + 8, node->number);
        program_store32(to + 16, length);
        program_store32(to + 20, node->kind);
        program_write(to + DIRENT_BYTES, name, min32(length, room - DIRENT_BYTES));
    } else {
        u64 head[3] = {next, node->number, length | (u64)node->kind << 32};
        program_write(to, head, room);
    }
    return DIRENT_BYTES + length;
}

Errno EXPORT(fd_readdir)(u32 number, u32 buffer, u32 room, u64 cookie, u32 result) {
    call_completes();
    Descriptor *open = descriptor(number);
    if (!open) return E_BADF;
    if (open->kind != OPEN_DIRECTORY) return E_NOTDIR;
    if (!(open->rights & RIGHT_READDIR)) return E_NOTCAPABLE;
    if (outside(buffer, room) || outside(result, 4)) return E_FAULT;
    const Node *directory = open->node, *above = directory->parent ? directory->parent : directory;
    u64 used = 0;
    for (; cookie < DOTS && used < room; cookie++)
        used += put_dirent(buffer + (u32)used, room - (u32)used, cookie + 1, cookie ? above : directory, (const u8 *)"..", (u32)cookie + 1);
    if (used < room) {
        Entry *entry = entry_of(open, cookie), *whole = NULL;
        u64 given = cookie;
        for (; entry && used < room; entry = entry->after) {
            used += put_dirent(buffer + (u32)used, room - (u32)used, ++cookie, entry->node, entry->name, entry->length);
            if (used <= room) {
                whole = entry;
                given = cookie;
            }
        }
        if (whole) remember(open, whole, given);
    }
    program_store32(result, (u32)min64(used, room));
    return OK;
}
