#include "descriptor.h"
#include "clock.h"
#include "host.h"
#include "memory.h"

/* The table is cut into pieces that are made when first needed: no allocation is ever large. */
#define PIECE 64u
static Descriptor *pieces[DESCRIPTORS / PIECE];
static u32 lowest_free; /* no free number is lower */
static u32 open_count;

static Descriptor *slot_of(u32 number) {
    Descriptor *piece = number < DESCRIPTORS ? pieces[number / PIECE] : NULL;
    return piece ? &piece[number % PIECE] : NULL;
}

Descriptor *descriptor(u32 number) {
    Descriptor *slot = slot_of(number);
    return slot && slot->kind != OPEN_NOTHING ? slot : NULL;
}

Descriptor *descriptor_with(u32 number, u64 rights, Errno *error) {
    Descriptor *open = descriptor(number);
    *error = !open ? E_BADF : E_NOTCAPABLE;
    if (!open || rights & ~open->rights) return NULL;
    return open;
}

Errno descriptor_room(void) {
    while (descriptor(lowest_free)) lowest_free++;
    if (lowest_free >= DESCRIPTORS) return E_MFILE;
    Descriptor **piece = &pieces[lowest_free / PIECE];
    if (!*piece) *piece = block_alloc(PIECE * sizeof(Descriptor));
    return *piece ? OK : E_NOSPC;
}

Errno descriptor_open(u32 kind, Node *node, u64 rights, u64 inheriting, u32 flags, u32 *number) {
    Errno error = descriptor_room();
    if (error) return error;
    *number = lowest_free;
    Descriptor *slot = slot_of(lowest_free++);
    slot->kind = (u8)kind;
    slot->flags = (u16)flags;
    slot->node = node;
    slot->rights = rights;
    slot->inheriting = inheriting;
    if (node) node->opens++;
    open_count++;
    return OK;
}

void descriptor_close(u32 number) {
    Descriptor *slot = slot_of(number);
    if (slot->cursor) block_free(slot->cursor, (u32)sizeof(Cursor) + slot->cursor->length);
    Node *node = slot->node;
    memset(slot, 0, sizeof *slot);
    if (number < lowest_free) lowest_free = number;
    open_count--;
    if (node) {
        node->opens--;
        node_drop(node);
    }
}

u32 descriptors_open(void) { return open_count; }

/* ---- calls about descriptors themselves ---- */

Errno EXPORT(fd_close)(u32 number) {
    call_completes();
    if (!descriptor(number)) return E_BADF;
    descriptor_close(number);
    return OK;
}

Errno EXPORT(fd_renumber)(u32 from, u32 to) {
    call_completes();
    if (!descriptor(from) || !descriptor(to)) return E_BADF;
    if (from == to) return OK;
    descriptor_close(to);
    *slot_of(to) = *slot_of(from);
    memset(slot_of(from), 0, sizeof(Descriptor));
    if (from < lowest_free) lowest_free = from;
    return OK;
}

static u32 type_of(const Descriptor *open) {
    if (open->node) return open->node->kind;
    /* a terminal is what has neither of these rights: so says wasi-libc's isatty */
    return open->kind != OPEN_EMPTY && !(open->rights & (RIGHT_SEEK | RIGHT_TELL)) && open->preopened ? TYPE_CHARACTER : TYPE_UNKNOWN;
}

Errno EXPORT(fd_fdstat_get)(u32 number, u32 result) {
    call_completes();
    Descriptor *open = descriptor(number);
    if (!open) return E_BADF;
    if (outside(result, 24)) return E_FAULT;
    program_store64(result, type_of(open) | (u64)open->flags << 16);
    program_store64(result + 8, open->rights);
    program_store64(result + 16, open->inheriting);
    return OK;
}

Errno EXPORT(fd_fdstat_set_flags)(u32 number, u32 flags) {
    call_completes();
    Errno error;
    Descriptor *open = descriptor_with(number, RIGHT_SET_FLAGS, &error);
    if (!open) return error;
    if (flags & ~(u32)FLAGS_ALL) return E_INVAL;
    open->flags = (u16)flags;
    return OK;
}

Errno EXPORT(fd_fdstat_set_rights)(u32 number, u64 rights, u64 inheriting) {
    call_completes();
    Descriptor *open = descriptor(number);
    if (!open) return E_BADF;
    if (rights & ~open->rights || inheriting & ~open->inheriting) return E_NOTCAPABLE;
    open->rights = rights;
    open->inheriting = inheriting;
    return OK;
}

static Errno put_filestat(u32 result, u32 type, const Node *node) {
    if (outside(result, 64)) return E_FAULT;
    program_store64(result, node ? 1 : 0); /* device */
    program_store64(result + 8, node ? node->number : 0);
    program_store64(result + 16, type);
    program_store64(result + 24, node ? node->names : 1);
    program_store64(result + 32, node && node->kind != TYPE_DIRECTORY ? node->size : 0);
    program_store64(result + 40, node ? node->accessed_ns : 0);
    program_store64(result + 48, node ? node->modified_ns : 0);
    program_store64(result + 56, node ? node->changed_ns : 0);
    return OK;
}

Errno node_stat(const Node *node, u32 result) { return put_filestat(result, node->kind, node); }

Errno EXPORT(fd_filestat_get)(u32 number, u32 result) {
    call_completes();
    Errno error;
    Descriptor *open = descriptor_with(number, RIGHT_STAT, &error);
    return open ? put_filestat(result, type_of(open), open->node) : error;
}

enum { TIME_ACCESSED = 1, TIME_ACCESSED_NOW = 2, TIME_MODIFIED = 4, TIME_MODIFIED_NOW = 8, TIMES_ALL = 15 };

Errno node_set_times(Node *node, u64 accessed_ns, u64 modified_ns, u32 flags) {
    if (flags & ~(u32)TIMES_ALL) return E_INVAL;
    if ((flags & TIME_ACCESSED && flags & TIME_ACCESSED_NOW) || (flags & TIME_MODIFIED && flags & TIME_MODIFIED_NOW)) return E_INVAL;
    if (!node) return OK;
    u64 time = now();
    if (flags & TIME_ACCESSED) node->accessed_ns = accessed_ns;
    if (flags & TIME_ACCESSED_NOW) node->accessed_ns = time;
    if (flags & TIME_MODIFIED) node->modified_ns = modified_ns;
    if (flags & TIME_MODIFIED_NOW) node->modified_ns = time;
    node->changed_ns = time;
    return OK;
}

Errno EXPORT(fd_filestat_set_times)(u32 number, u64 accessed_ns, u64 modified_ns, u32 flags) {
    call_completes();
    Errno error;
    Descriptor *open = descriptor_with(number, RIGHT_SET_TIMES, &error);
    return open ? node_set_times(open->node, accessed_ns, modified_ns, flags) : error;
}

Errno EXPORT(fd_advise)(u32 number, u64 offset, u64 length, u32 advice) {
    (void)offset, (void)length;
    call_completes();
    Errno error;
    if (!descriptor_with(number, RIGHT_ADVISE, &error)) return error;
    return advice > 5 ? E_INVAL : OK;
}

Errno EXPORT(fd_sync)(u32 number) {
    call_completes();
    Errno error;
    return descriptor_with(number, RIGHT_SYNC, &error) ? OK : error;
}

Errno EXPORT(fd_datasync)(u32 number) {
    call_completes();
    Errno error;
    return descriptor_with(number, RIGHT_DATASYNC, &error) ? OK : error;
}

Errno EXPORT(fd_prestat_get)(u32 number, u32 result) {
    call_completes();
    Descriptor *open = descriptor(number);
    if (!open || !open->preopened || open->kind != OPEN_DIRECTORY) return E_BADF;
    if (outside(result, 8)) return E_FAULT;
    program_store64(result, 1ull << 32); /* a directory whose name, "/", has 1 byte */
    return OK;
}

Errno EXPORT(fd_prestat_dir_name)(u32 number, u32 name, u32 length) {
    call_completes();
    Descriptor *open = descriptor(number);
    if (!open || !open->preopened || open->kind != OPEN_DIRECTORY) return E_BADF;
    if (length < 1) return E_NAMETOOLONG;
    if (outside(name, 1)) return E_FAULT;
    program_store8(name, '/');
    return OK;
}

/* ---- there are no sockets ---- */

static Errno not_socket(u32 number) {
    call_completes();
    return descriptor(number) ? E_NOTSOCK : E_BADF;
}

Errno EXPORT(sock_accept)(u32 number, u32 flags, u32 result) {
    (void)flags, (void)result;
    return not_socket(number);
}

Errno EXPORT(sock_recv)(u32 number, u32 vectors, u32 count, u32 flags, u32 result, u32 result_flags) {
    (void)vectors, (void)count, (void)flags, (void)result, (void)result_flags;
    return not_socket(number);
}

Errno EXPORT(sock_send)(u32 number, u32 vectors, u32 count, u32 flags, u32 result) {
    (void)vectors, (void)count, (void)flags, (void)result;
    return not_socket(number);
}

Errno EXPORT(sock_shutdown)(u32 number, u32 how) {
    (void)how;
    return not_socket(number);
}
