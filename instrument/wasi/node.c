#include "node.h"
#include "clock.h"
#include "contents.h"
#include "memory.h"

Node *root;

static u64 numbers;      /* of nodes made so far: inode numbers are never used again */
static u32 living, most_living = ~0u;

Node *node_make(u8 kind) {
    if (living >= most_living) return NULL;
    Node *node = block_alloc(sizeof(Node));
    if (!node) return NULL;
    living++;
    node->kind = kind;
    node->changed = 1;
    node->accessed_ns = node->modified_ns = node->changed_ns = now();
    return node;
}

/* Only what did get a name uses up a number. */
void node_enumerate(Node *node) {
    if (!node->number) node->number = ++numbers;
}

void node_touch(Node *node) {
    node->modified_ns = node->changed_ns = now();
    node->changed = 1;
}

void nodes_limit(u32 count) { most_living = count > ~0u - living ? ~0u : living + count; }
u32 nodes_living(void) { return living; }

void node_drop(Node *node) {
    if (node->names || node->opens) return;
    if (node->kind == TYPE_FILE) contents_free(node);
    if (node->kind == TYPE_SYMLINK) block_free(node->data, (u32)node->size);
    block_free(node, sizeof(Node));
    living--;
}

/* ---- directories ---- */

static u64 ranks_drawn;

/* Hash of a counter (splitmix64). Ranks must be independent of names; they need not be secret: whoever builds a deep tree on
   purpose pays for it with his own metered work. */
static u32 draw_rank(void) {
    u64 z = ++ranks_drawn * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return (u32)(z ^ z >> 31);
}

static u64 big_endian64(const u8 *bytes) {
    u64 word;
    memcpy(&word, bytes, 8);
    return __builtin_bswap64(word);
}

/* < 0, 0, > 0 as the entry's name is smaller, equal, greater in order of bytes */
static i32 compare(const Entry *entry, const u8 *name, u32 length) {
    u32 both = min32(entry->length, length), at = 0;
    for (; at + 8 <= both; at += 8) {
        u64 ours = big_endian64(entry->name + at), theirs = big_endian64(name + at);
        if (ours != theirs) return ours < theirs ? -1 : 1;
    }
    for (; at < both; at++)
        if (entry->name[at] != name[at]) return (i32)entry->name[at] - (i32)name[at];
    return (i32)entry->length - (i32)length;
}

Entry *entry_find(const Node *directory, const u8 *name, u32 length) {
    Entry *entry = directory->top;
    while (entry) {
        i32 order = compare(entry, name, length);
        if (!order) break;
        entry = order < 0 ? entry->right : entry->left;
    }
    return entry;
}

Entry *entry_behind(const Node *directory, const u8 *name, u32 length) {
    Entry *entry = directory->top, *best = NULL;
    while (entry) {
        if (compare(entry, name, length) > 0) {
            best = entry;
            entry = entry->left;
        } else {
            entry = entry->right;
        }
    }
    return best;
}

Entry *entry_at(const Node *directory, u64 position) {
    if (position >= directory->size) return NULL;
    Entry *entry = directory->first;
    while (position--) entry = entry->after;
    return entry;
}

static u32 entry_bytes(u32 length) { return (u32)__builtin_offsetof(Entry, name) + length; }

Errno entry_add(Node *directory, const u8 *name, u32 length, Node *node) {
    Entry *entry = block_alloc(entry_bytes(length));
    if (!entry) return E_NOSPC;
    entry->node = node;
    entry->rank = draw_rank();
    entry->length = (u16)length;
    memcpy(entry->name, name, length);

    Entry *before = NULL, *after = NULL; /* nearest neighbours seen on the way down, which at its end are the neighbours */
    Entry **place = &directory->top;
    while (*place && (*place)->rank >= entry->rank) {
        Entry *here = *place;
        if (compare(here, name, length) < 0) {
            before = here;
            place = &here->right;
        } else {
            after = here;
            place = &here->left;
        }
    }
    /* what hangs here is split by the name into the two sides of the new entry */
    Entry *rest = *place, **smaller = &entry->left, **greater = &entry->right;
    *place = entry;
    while (rest) {
        if (compare(rest, name, length) < 0) {
            before = rest;
            *smaller = rest;
            smaller = &rest->right;
            rest = rest->right;
        } else {
            after = rest;
            *greater = rest;
            greater = &rest->left;
            rest = rest->left;
        }
    }
    *smaller = *greater = NULL;

    entry->before = before;
    entry->after = after;
    if (before) before->after = entry;
    else directory->first = entry;
    if (after) after->before = entry;

    node_enumerate(node);
    node->names++;
    if (node->kind == TYPE_DIRECTORY) node->parent = directory;
    directory->size++;
    node_touch(directory);
    return OK;
}

static void unname(Node *node) {
    node->names--;
    node->changed_ns = now();
    if (node->kind == TYPE_DIRECTORY) node->parent = NULL;
    node_drop(node);
}

void entry_remove(Node *directory, Entry *entry) {
    Entry **place = &directory->top;
    while (*place != entry) place = compare(*place, entry->name, entry->length) < 0 ? &(*place)->right : &(*place)->left;
    Entry *left = entry->left, *right = entry->right;
    while (left && right) {
        if (left->rank >= right->rank) {
            *place = left;
            place = &left->right;
            left = left->right;
        } else {
            *place = right;
            place = &right->left;
            right = right->left;
        }
    }
    *place = left ? left : right;

    if (entry->before) entry->before->after = entry->after;
    else directory->first = entry->after;
    if (entry->after) entry->after->before = entry->before;
    directory->size--;
    node_touch(directory);

    Node *node = entry->node;
    block_free(entry, entry_bytes(entry->length));
    unname(node);
}

void entry_point(Entry *entry, Node *directory, Node *node) {
    Node *old = entry->node;
    entry->node = node;
    node->names++;
    unname(old);
    if (node->kind == TYPE_DIRECTORY) node->parent = directory;
    node_touch(directory);
}
