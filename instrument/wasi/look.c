/* For the runtime: what the program has done so far, what it left behind. Changes nothing, and is not metered: the runtime may ask
   whenever it likes. Nodes and entries are addresses in M, 0 = none. */
#include "clock.h"
#include "contents.h"
#include "descriptor.h"
#include "free.h"
#include "host.h"
#include "memory.h"
#include "node.h"
#include "stdio.h"

static u64 span(const void *start, u64 length) { return (u64)(uptr)start << 32 | length; }

Node *EXPORT(wasi_root)(void) { return root; }
Entry *EXPORT(wasi_first)(const Node *directory) { return directory->first; }
Entry *EXPORT(wasi_next)(const Entry *entry) { return entry->after; }
u64 EXPORT(wasi_name)(const Entry *entry) { return span(entry->name, entry->length); }
Node *EXPORT(wasi_node)(const Entry *entry) { return entry->node; }

/* kind | changed << 8 | names << 32 */
u64 EXPORT(wasi_kind)(const Node *node) { return node->kind | (u64)node->changed << 8 | (u64)node->names << 32; }
u64 EXPORT(wasi_size)(const Node *node) { return node->size; }
u64 EXPORT(wasi_modified)(const Node *node) { return node->modified_ns; }
u64 EXPORT(wasi_target)(const Node *symlink) { return span(symlink->data, symlink->size); }

u32 EXPORT(wasi_input)(const Node *file) { return file->input; }
u64 EXPORT(wasi_input_size)(const Node *file) { return file->input_size; }

/* Bytes of block `block` (64 KiB each) that the program wrote: address << 32 | length, the rest of the block is zero. 0: it wrote
   none, input bytes show, then zeros. */
u64 EXPORT(wasi_block)(const Node *file, u32 block) {
    if (file->levels == 0) return block == 0 && file->data ? span(file->data, min64(file->slots, file->size)) : 0;
    void *page = contents_page(file, block);
    return page ? span(page, PAGE_BYTES) : 0;
}

enum { METRIC_CALLS, METRIC_PAGES, METRIC_FREE_PAGES, METRIC_NODES, METRIC_OPEN, METRIC_STDOUT, METRIC_STDERR };

/* Numbers about the run so far, by the index above; part of the state, so equal on every node. */
NOINLINE u64 EXPORT(wasi_metric)(u32 which) {
    switch (which) {
    case METRIC_CALLS: return calls_completed();
    case METRIC_PAGES: return memory_pages_used();
    case METRIC_FREE_PAGES: return memory_pages_free();
    case METRIC_NODES: return nodes_living();
    case METRIC_OPEN: return descriptors_open();
    case METRIC_STDOUT: return output_written(0);
    case METRIC_STDERR: return output_written(1);
    default: return 0;
    }
}

/* Bytes that were read from standard input, wherever its descriptor is now. */
u64 EXPORT(wasi_stdin_read)(void) { return stdin_taken(); }

FREE_OF_WORK(wasi_root)
FREE_OF_WORK(wasi_first)
FREE_OF_WORK(wasi_next)
FREE_OF_WORK(wasi_name)
FREE_OF_WORK(wasi_node)
FREE_OF_WORK(wasi_kind)
FREE_OF_WORK(wasi_size)
FREE_OF_WORK(wasi_modified)
FREE_OF_WORK(wasi_target)
FREE_OF_WORK(wasi_input)
FREE_OF_WORK(wasi_input_size)
FREE_OF_WORK(wasi_block)
FREE_OF_WORK(wasi_metric)
FREE_OF_WORK(wasi_stdin_read)
