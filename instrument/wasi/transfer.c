/* Reading and writing. A call that must wait changes nothing and costs nothing: the exported functions are not metered, what they
   call is, and where that says E_AGAIN they give the work back. */
#include "clock.h"
#include "contents.h"
#include "descriptor.h"
#include "free.h"
#include "host.h"
#include "stdio.h"

typedef struct {
    u32 address, length;
} Vector;

static Vector vectors[VECTORS];

static Vector load_vector(u32 list, u32 index) {
    u64 word = program_load64(list + index * 8);
    return (Vector){(u32)word, (u32)(word >> 32)};
}

/* Bytes to move, at most TRANSFER_BYTES; negative: an error. Writes nothing. */
static i64 vectors_bytes(u32 list, u32 count) {
    if (count > VECTORS) return -E_INVAL;
    if (outside(list, (u64)count * 8)) return -E_FAULT;
    u64 total = 0;
    for (u32 i = 0; i < count; i++) {
        Vector vector = load_vector(list, i);
        if (outside(vector.address, vector.length)) return -E_FAULT;
        total += vector.length;
    }
    return (i64)min64(total, TRANSFER_BYTES);
}

/* Bytes that are read may fall onto the list itself, which was checked once: it is copied before anything moves. */
static void vectors_load(u32 list, u32 count) {
    for (u32 i = 0; i < count; i++) vectors[i] = load_vector(list, i);
}

/* All four: bytes moved, or an error as a negative number. */

static i64 file_read(const Node *file, u64 offset, u32 list, u32 count) {
    i64 total = vectors_bytes(list, count);
    if (total <= 0 || offset >= file->size) return total < 0 ? total : 0;
    u32 length = (u32)min64((u64)total, file->size - offset), done = 0;
    if (contents_read_waits(file, offset, length)) return -E_AGAIN;
    vectors_load(list, count);
    for (u32 i = 0; done < length; i++) {
        u32 part = min32(vectors[i].length, length - done);
        contents_read(file, offset + done, vectors[i].address, part);
        done += part;
    }
    return done;
}

static i64 file_write(Node *file, u64 offset, u32 list, u32 count) {
    i64 total = vectors_bytes(list, count);
    if (total <= 0) return total;
    if (offset >= FILE_BYTES) return -E_FBIG;
    u32 length = (u32)min64((u64)total, FILE_BYTES - offset), done = 0;
    if (contents_write_waits(file, offset, length)) return -E_AGAIN;
    vectors_load(list, count);
    for (u32 i = 0; done < length; i++) {
        u32 part = min32(vectors[i].length, length - done);
        if (!part) continue;
        u32 written = contents_write(file, offset + done, vectors[i].address, part);
        done += written;
        if (written < part) break;
    }
    if (!done) return -E_NOSPC;
    node_touch(file);
    return done;
}

static i64 input_read(u32 list, u32 count) {
    i64 total = vectors_bytes(list, count);
    if (total <= 0) return total;
    i32 got = stdin_read((u32)total);
    if (got < 0) return -E_AGAIN;
    u32 done = 0;
    vectors_load(list, count);
    for (u32 i = 0; done < (u32)got; i++) {
        u32 part = min32(vectors[i].length, (u32)got - done);
        program_write(vectors[i].address, stdin_bytes() + done, part);
        done += part;
    }
    stdin_done(done);
    return done;
}

static i64 output_write(u32 stream, u32 list, u32 count) {
    i64 total = vectors_bytes(list, count);
    if (total <= 0) return total;
    u32 length = (u32)min64((u64)total, output_room()), done = 0;
    if (!length) return -E_NOSPC;
    for (u32 i = 0; done < length; i++) {
        Vector vector = load_vector(list, i);
        u32 part = min32(vector.length, length - done);
        if (part) output_append(stream, vector.address, part);
        done += part;
    }
    return done;
}

/* ---- the calls ---- */

static Errno finish(i64 moved, u32 result) {
    if (moved < 0) return (Errno)-moved;
    program_store32(result, (u32)moved);
    return OK;
}

static NOINLINE Errno read_open(u32 number, u32 list, u32 count, u32 result) {
    Descriptor *open = descriptor(number);
    if (!open) return E_BADF;
    if (open->kind == OPEN_DIRECTORY) return E_ISDIR;
    if (!(open->rights & RIGHT_READ)) return E_BADF;
    if (outside(result, 4)) return E_FAULT;
    if (open->kind == OPEN_STDIN) return finish(input_read(list, count), result);
    if (open->kind != OPEN_FILE) {
        i64 total = vectors_bytes(list, count);
        return finish(total < 0 ? total : 0, result);
    }
    i64 moved = file_read(open->node, open->offset, list, count);
    if (moved > 0) open->offset += (u64)moved;
    return finish(moved, result);
}

static NOINLINE Errno write_open(u32 number, u32 list, u32 count, u32 result) {
    Descriptor *open = descriptor(number);
    if (!open) return E_BADF;
    if (open->kind == OPEN_DIRECTORY) return E_ISDIR;
    if (!(open->rights & RIGHT_WRITE)) return E_BADF;
    if (outside(result, 4)) return E_FAULT;
    if (open->kind != OPEN_FILE) return finish(output_write(open->kind == OPEN_STDERR, list, count), result);
    u64 offset = open->flags & FLAG_APPEND ? open->node->size : open->offset;
    i64 moved = file_write(open->node, offset, list, count);
    if (moved > 0) open->offset = offset + (u64)moved;
    return finish(moved, result);
}

static Errno positioned(u32 number, u64 right, u32 result) {
    Descriptor *open = descriptor(number);
    if (!open) return E_BADF;
    if (open->kind == OPEN_DIRECTORY) return E_ISDIR;
    if (open->kind != OPEN_FILE) return E_SPIPE;
    if (!(open->rights & right)) return E_BADF;
    if (!(open->rights & RIGHT_SEEK)) return E_NOTCAPABLE;
    return outside(result, 4) ? E_FAULT : OK;
}

static NOINLINE Errno pread_open(u32 number, u32 list, u32 count, u64 offset, u32 result) {
    Errno error = positioned(number, RIGHT_READ, result);
    return error ? error : finish(file_read(descriptor(number)->node, offset, list, count), result);
}

static NOINLINE Errno pwrite_open(u32 number, u32 list, u32 count, u64 offset, u32 result) {
    Errno error = positioned(number, RIGHT_WRITE, result);
    return error ? error : finish(file_write(descriptor(number)->node, offset, list, count), result);
}

static NOINLINE void completes(void) { call_completes(); }

/* Not metered. */
static Errno settle(Errno error, i64 ticks_before) {
    if (error == E_AGAIN) {
        charge_ticks(ticks_before - ticks_used());
        stop();
    } else {
        completes();
    }
    return error;
}

#define MAY_WAIT(name, parameters, inner)     \
    Errno EXPORT(name) parameters;            \
    Errno EXPORT(name) parameters {           \
        i64 before = ticks_used();            \
        return settle(inner, before);         \
    }

MAY_WAIT(fd_read, (u32 number, u32 list, u32 count, u32 result), read_open(number, list, count, result))
FREE_OF_WORK(fd_read)
MAY_WAIT(fd_write, (u32 number, u32 list, u32 count, u32 result), write_open(number, list, count, result))
FREE_OF_WORK(fd_write)
MAY_WAIT(fd_pread, (u32 number, u32 list, u32 count, u64 offset, u32 result), pread_open(number, list, count, offset, result))
FREE_OF_WORK(fd_pread)
MAY_WAIT(fd_pwrite, (u32 number, u32 list, u32 count, u64 offset, u32 result), pwrite_open(number, list, count, offset, result))
FREE_OF_WORK(fd_pwrite)

/* ---- position and size ---- */

Errno EXPORT(fd_seek)(u32 number, i64 delta, u32 whence, u32 result) {
    call_completes();
    Descriptor *open = descriptor(number);
    if (!open) return E_BADF;
    if (open->kind == OPEN_DIRECTORY) return E_ISDIR;
    if (open->kind != OPEN_FILE) return E_SPIPE;
    u32 asks = whence == 1 && delta == 0; /* asking where one is needs the lesser right */
    if (!(open->rights & RIGHT_SEEK) && !(asks && open->rights & RIGHT_TELL)) return E_NOTCAPABLE;
    if (whence > 2) return E_INVAL;
    if (outside(result, 8)) return E_FAULT;
    i64 base = whence == 0 ? 0 : whence == 1 ? (i64)open->offset : (i64)open->node->size, to;
    if (__builtin_add_overflow(base, delta, &to) || to < 0) return E_INVAL;
    open->offset = (u64)to;
    program_store64(result, (u64)to);
    return OK;
}

Errno EXPORT(fd_tell)(u32 number, u32 result) {
    call_completes();
    Descriptor *open = descriptor(number);
    if (!open) return E_BADF;
    if (open->kind == OPEN_DIRECTORY) return E_ISDIR;
    if (open->kind != OPEN_FILE) return E_SPIPE;
    if (!(open->rights & RIGHT_TELL)) return E_NOTCAPABLE;
    if (outside(result, 8)) return E_FAULT;
    program_store64(result, open->offset);
    return OK;
}

static Errno resize(Node *file, u64 size) {
    Errno error = contents_resize(file, size);
    if (!error) node_touch(file);
    return error;
}

Errno EXPORT(fd_filestat_set_size)(u32 number, u64 size) {
    call_completes();
    Descriptor *open = descriptor(number);
    if (!open) return E_BADF;
    if (open->kind != OPEN_FILE) return E_INVAL;
    return open->rights & RIGHT_SET_SIZE ? resize(open->node, size) : E_NOTCAPABLE;
}

/* Space is not put aside: the file becomes longer, and a later write may still find the overlay full. */
Errno EXPORT(fd_allocate)(u32 number, u64 offset, u64 length) {
    call_completes();
    Errno error;
    Descriptor *open = descriptor_with(number, RIGHT_ALLOCATE, &error);
    if (!open) return error;
    if (!length || offset + length < offset) return E_INVAL;
    if (offset + length <= open->node->size) return OK;
    return resize(open->node, offset + length);
}
