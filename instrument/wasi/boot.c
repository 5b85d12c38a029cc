/* The boot blob: everything a task starts with. docs/protocols/wasi.md has the format, src/ipos/vm/wasi/boot.py writes it. Numbers are
   little-endian and not aligned. */
#include "clock.h"
#include "contents.h"
#include "descriptor.h"
#include "host.h"
#include "memory.h"
#include "process.h"
#include "random.h"
#include "stdio.h"

#define MAGIC 0x00015742534f5049ull /* "IPOSBW", version 1 */
#define STRINGS_BYTES PAGE_BYTES
#define MOST_PAGES (3u << 14) /* 3 GiB of the 4 that a memory can have */

enum { BOOT_DONE, BOOT_MALFORMED, BOOT_TOO_LARGE };

static const u8 *at, *end; /* while booting */
static int malformed, too_large;

static const u8 *take(u64 length) {
    if ((u64)(end - at) < length) {
        malformed = 1;
        return NULL;
    }
    const u8 *bytes = at;
    at += length;
    return bytes;
}

static u64 take_number(u32 bytes) {
    u64 number = 0;
    const u8 *from = take(bytes);
    if (from) memcpy(&number, from, bytes);
    return number;
}

static u32 take32(void) { return (u32)take_number(4); }
static u64 take64(void) { return take_number(8); }

static Strings take_strings(void) {
    Strings strings = {NULL, 0, 0};
    strings.count = take32();
    strings.bytes = take32();
    if (strings.bytes > STRINGS_BYTES) malformed = 1;
    const u8 *text = malformed ? NULL : take(strings.bytes);
    u32 ends = 0;
    for (u32 i = 0; text && i < strings.bytes; i++) ends += !text[i];
    if (ends != strings.count || (strings.bytes && (!text || text[strings.bytes - 1]))) malformed = 1;
    if (malformed || !strings.bytes) return (Strings){NULL, 0, 0};
    strings.text = block_alloc(strings.bytes);
    if (strings.text) memcpy(strings.text, text, strings.bytes);
    else too_large = 1;
    return strings;
}

/* As it was before the program began, whatever booting cost. */
static void untouch(Node *node, u64 epoch_ns) {
    node->changed = 0;
    node->accessed_ns = node->modified_ns = node->changed_ns = epoch_ns;
}

static void show_input(Node *file, u32 input, u64 size) {
    if (size > FILE_BYTES || (size && !input)) malformed = 1;
    file->input = size ? input : 0;
    file->size = file->input_size = size;
}

/* Entries come parents first; each names its directory by that one's place in the list (0 = the root). */
static void take_tree(u64 epoch_ns) {
    u32 count = take32();
    if (count > (u64)(end - at)) malformed = 1; /* the list of nodes must not be larger than the blob allows */
    if (malformed) return;
    Node **nodes = memory_boot((count + 1) * (u32)sizeof(Node *));
    if (!nodes) {
        too_large = 1;
        return;
    }
    nodes[0] = root;
    for (u32 i = 1; i <= count && !malformed; i++) {
        u8 kind = (u8)take_number(1);
        u32 parent = take32(), input = take32();
        u64 size = take64();
        u32 length = (u32)take_number(2), target_length = (u32)take_number(2);
        const u8 *name = take(length), *target = take(target_length);
        if (malformed || parent >= i || nodes[parent]->kind != TYPE_DIRECTORY || !length || length > NAME_BYTES ||
            entry_find(nodes[parent], name, length) || (kind == TYPE_SYMLINK) != (target_length > 0) ||
            (kind != TYPE_DIRECTORY && kind != TYPE_FILE && kind != TYPE_SYMLINK)) {
            malformed = 1;
            break;
        }
        Node *node = nodes[i] = node_make(kind);
        void *bytes = kind == TYPE_SYMLINK ? block_alloc(target_length) : NULL;
        if (!node || (kind == TYPE_SYMLINK && !bytes) || entry_add(nodes[parent], name, length, node)) {
            too_large = 1;
            return;
        }
        if (kind == TYPE_FILE) show_input(node, input, size);
        if (kind == TYPE_SYMLINK) {
            node->data = memcpy(bytes, target, target_length);
            node->size = target_length;
        }
    }
    /* naming an entry touched its directory */
    for (u32 i = 0; i <= count && !malformed; i++) untouch(nodes[i], epoch_ns);
    memory_boot_done(nodes, (count + 1) * (u32)sizeof(Node *));
}

static void open_stdio(u32 kind, u32 input, u64 size, u64 epoch_ns) {
    static const u8 kinds[STDIN_KINDS] = {OPEN_EMPTY, OPEN_STDIN, OPEN_FILE, OPEN_STDIN};
    /* what is no terminal has a right to tell that it cannot use: that is how wasi-libc's isatty knows */
    u64 common = RIGHT_SET_FLAGS | RIGHT_STAT | RIGHT_POLL | (kind == STDIN_TERMINAL ? 0 : RIGHT_TELL);
    u32 number;
    if (kind == STDIN_FILE) {
        Node *file = node_make(TYPE_FILE); /* in no directory; descriptor 0 alone holds it */
        untouch(file, epoch_ns);
        node_enumerate(file);
        show_input(file, input, size);
        descriptor_open(OPEN_FILE, file, RIGHTS_FILE & ~(u64)(RIGHT_WRITE | RIGHT_ALLOCATE | RIGHT_SET_SIZE), 0, 0, &number);
    } else {
        descriptor_open(kinds[kind], NULL, common | RIGHT_READ, 0, 0, &number);
    }
    descriptor_open(OPEN_STDOUT, NULL, common | RIGHT_WRITE, 0, FLAG_APPEND, &number);
    descriptor_open(OPEN_STDERR, NULL, common | RIGHT_WRITE, 0, FLAG_APPEND, &number);
    for (u32 i = 0; i < 3; i++) descriptor(i)->preopened = 1;
    descriptor_open(OPEN_DIRECTORY, root, RIGHTS_DIRECTORY, RIGHTS_ALL, 0, &number);
    descriptor(number)->preopened = 1;
}

/* Where the runtime puts a blob of so many bytes; NULL if there is no room. */
void *EXPORT(wasi_boot_space)(u32 length) { return memory_boot(length ? length : 1); }

u32 EXPORT(wasi_boot)(u8 *blob, u32 length) {
    at = blob;
    end = blob + length;
    if (take64() != MAGIC) return BOOT_MALFORMED;
    u64 epoch = take64(), overlay_bytes = take64(), output_bytes = take64();
    u32 files = take32(), stdin_kind = take32(), stdin_input = take32();
    u64 stdin_size = take64();
    const u8 *seed = take(SEED_BYTES);
    if (malformed || stdin_kind >= STDIN_KINDS) return BOOT_MALFORMED;
    clock_boot(epoch);
    random_boot(seed);
    Strings arguments = take_strings(), environment = take_strings();
    process_boot(arguments, environment);
    root = node_make(TYPE_DIRECTORY);
    root->parent = root;
    root->names = 1;
    node_enumerate(root);
    open_stdio(stdin_kind, stdin_input, stdin_size, epoch);
    take_tree(epoch);
    if (too_large) return BOOT_TOO_LARGE;
    if (malformed || at != end) return BOOT_MALFORMED;
    at = end = NULL;
    memory_boot_done(blob, length ? length : 1);
    u64 pages = overlay_bytes / PAGE_BYTES + (overlay_bytes % PAGE_BYTES != 0);
    if (pages > MOST_PAGES) return BOOT_TOO_LARGE;
    memory_limit((u32)pages);
    nodes_limit(files);
    output_limit(output_bytes);
    return BOOT_DONE;
}
