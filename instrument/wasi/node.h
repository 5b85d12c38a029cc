/* Files, directories and symlinks. A node lives while a directory names it or a descriptor has it open. */
#ifndef IPOS_WASI_NODE
#define IPOS_WASI_NODE

#include "types.h"

typedef struct Node Node;
typedef struct Entry Entry;

/* A name in a directory. The entries of a directory are a treap (ordered by name, heaped by a random rank, so balanced whatever
   the order of creation) and a list in order of names, so that reading on from any entry costs nothing. */
struct Entry {
    Entry *left, *right; /* names before, names behind; both of lower rank */
    Entry *before, *after;
    Node *node;
    u32 rank;
    u16 length;
    u8 name[];
};

struct Node {
    u8 kind;    /* TYPE_DIRECTORY, TYPE_FILE or TYPE_SYMLINK */
    u8 levels;  /* file: 0 = `data` is a buffer, 1 = a table of pages, 2 = a table of such tables */
    u8 changed; /* not as it was at boot: contents of a file, names in a directory */
    u32 names;  /* hard links; a directory has 1, a removed one 0 */
    u32 opens;
    u32 input; /* file: number of the input file whose bytes show where no page lies; 0 = none */
    u64 number;
    u64 accessed_ns, modified_ns, changed_ns;
    u64 size; /* file, symlink: bytes; directory: entries */
    union {
        struct {
            void *data; /* file: see `levels`; symlink: its target */
            u32 slots;  /* bytes of the buffer, slots of the table */
            u64 input_size; /* so many bytes of the input file still show */
        };
        struct {
            Entry *top, *first;
            Node *parent; /* of the root: itself; of a removed directory: NULL */
        };
    };
};

extern Node *root;

Node *node_make(u8 kind); /* NULL: no space, or the limit of files */
void node_enumerate(Node *node); /* gives it its inode number; entry_add does it */
void node_drop(Node *node); /* frees it if nothing names it and nobody has it open */
void node_touch(Node *node); /* modified now */
void nodes_limit(u32 count); /* so many more than now */
u32 nodes_living(void);

Entry *entry_find(const Node *directory, const u8 *name, u32 length);
Entry *entry_behind(const Node *directory, const u8 *name, u32 length); /* the first whose name is greater */
Entry *entry_at(const Node *directory, u64 position);
Errno entry_add(Node *directory, const u8 *name, u32 length, Node *node);
void entry_remove(Node *directory, Entry *entry); /* may free its node */
void entry_point(Entry *entry, Node *directory, Node *node); /* now names `node`; what it named before may be freed */

#endif
