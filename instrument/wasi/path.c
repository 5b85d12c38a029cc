#include "path.h"
#include "descriptor.h"
#include "host.h"
#include "memory.h"

static u8 texts[2][PATH_BYTES + 1];
/* Where a symlink is in the way, its target and the rest of the path are put together in one of these two, in turn. Each path of a
   call has its own: the last name of both points into them. */
static u8 joined[2][2][2 * (PATH_BYTES + 1)];

static u32 sequence_length(u8 first) {
    if (first < 0xC2) return 0;
    return first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
}

static int valid_text(const u8 *text, u32 length) {
    for (u32 at = 0; at < length;) {
        u8 first = text[at];
        if (first < 0x80) {
            if (!first) return 0;
            at++;
            continue;
        }
        u32 bytes = sequence_length(first);
        if (!bytes || at + bytes > length) return 0;
        for (u32 i = 1; i < bytes; i++)
            if (text[at + i] >> 6 != 2) return 0;
        u8 second = text[at + 1];
        if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F)) return 0; /* overlong; surrogates */
        if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) return 0; /* overlong; above U+10FFFF */
        at += bytes;
    }
    return 1;
}

Errno path_text(u32 which, u32 path, u32 length, const u8 **text) {
    if (outside(path, length)) return E_FAULT;
    if (!length) return E_NOENT;
    if (length > PATH_BYTES) return E_NAMETOOLONG;
    program_read(texts[which], path, length);
    if (!valid_text(texts[which], length)) return E_ILSEQ;
    *text = texts[which];
    return OK;
}

static u32 skip_slashes(const u8 *text, u32 at, u32 length) {
    while (at < length && text[at] == '/') at++;
    return at;
}

static Errno walk(Node *start, const u8 *text, u32 length, Last last, u32 which, Place *place) {
    Node *here = start;
    u32 symlinks = 0, steps = 0, at = 0, turn = 0;
    place->directory = NULL;
    if (text[0] == '/') return E_PERM;
    for (;;) {
        at = skip_slashes(text, at, length);
        if (at >= length) break;
        u32 end = at;
        while (end < length && text[end] != '/') end++;
        u32 bytes = end - at, rest = skip_slashes(text, end, length);
        if (++steps > PATH_STEPS) return E_LOOP;
        if (bytes > NAME_BYTES) return E_NAMETOOLONG;
        if (here->kind != TYPE_DIRECTORY) return E_NOTDIR;
        const u8 *name = text + at;
        at = end;
        if (bytes == 1 && name[0] == '.') {
            place->directory = NULL;
            continue;
        }
        if (bytes == 2 && name[0] == '.' && name[1] == '.') {
            if (here == start) return E_PERM;
            here = here->parent;
            if (!here) return E_NOENT; /* the directory was removed while a path below it stayed open */
            place->directory = NULL;
            continue;
        }
        Entry *entry = entry_find(here, name, bytes);
        Node *node = entry ? entry->node : NULL;
        int ends = rest >= length;
        if (node && node->kind == TYPE_SYMLINK && (!ends || last == FOLLOW || (last == STAY && rest > end))) {
            u32 target = (u32)node->size, tail = length - end;
            if (++symlinks > SYMLINKS) return E_LOOP;
            if (target + tail > sizeof joined[0][0]) return E_NAMETOOLONG;
            u8 *into = joined[which][turn ^= 1];
            memcpy(into, node->data, target);
            memcpy(into + target, text + end, tail);
            text = into;
            length = target + tail;
            at = 0;
            /* the one preopened directory is "/", so an absolute target has a meaning there; below it, it leads out */
            if (text[0] == '/') {
                if (start != root) return E_PERM;
                here = root;
            }
            place->directory = NULL;
            continue;
        }
        if (!node && !ends) return E_NOENT;
        place->directory = here;
        place->entry = entry;
        place->name = name;
        place->length = bytes;
        if (!node) {
            place->node = NULL;
            place->slash = rest > end;
            /* nothing can be made in a directory that was removed */
            return here->names ? OK : E_NOENT;
        }
        here = node;
    }
    place->node = here;
    place->slash = length && text[length - 1] == '/';
    return place->slash && here->kind != TYPE_DIRECTORY ? E_NOTDIR : OK;
}

Errno path_find(u32 number, u64 rights, u32 which, u32 path, u32 length, Last last, Place *place) {
    Descriptor *open = descriptor(number);
    if (!open) return E_BADF;
    if (open->kind != OPEN_DIRECTORY) return E_NOTDIR;
    if (rights & ~open->rights) return E_NOTCAPABLE;
    const u8 *text;
    Errno error = path_text(which, path, length, &text);
    if (error) return error;
    return walk(open->node, text, length, last, which, place);
}
