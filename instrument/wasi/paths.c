/* The calls that name a path. */
#include "clock.h"
#include "contents.h"
#include "descriptor.h"
#include "host.h"
#include "memory.h"
#include "path.h"

Errno node_stat(const Node *node, u32 result);
Errno node_set_times(Node *node, u64 accessed_ns, u64 modified_ns, u32 flags);

enum { LOOKUP_FOLLOW = 1 };
enum { OPEN_CREATE = 1, OPEN_IS_DIRECTORY = 2, OPEN_EXCLUSIVE = 4, OPEN_TRUNCATE = 8, OPEN_FLAGS = 15 };

static Last last_of(u32 lookup) { return lookup & LOOKUP_FOLLOW ? FOLLOW : STAY; }

/* A path that must exist. */
static Errno existing(u32 number, u64 rights, u32 lookup, u32 path, u32 length, Place *place) {
    Errno error = path_find(number, rights, 0, path, length, last_of(lookup), place);
    return error ? error : place->node ? OK : E_NOENT;
}

/* Makes a node and names it in `place`. */
static Errno create(Place *place, u8 kind, Node **made) {
    Node *node = node_make(kind);
    if (!node) return E_NOSPC;
    Errno error = entry_add(place->directory, place->name, place->length, node);
    if (error) node_drop(node);
    *made = node;
    return error;
}

Errno EXPORT(path_open)(u32 number, u32 lookup, u32 path, u32 length, u32 how, u64 rights, u64 inheriting, u32 flags, u32 result) {
    call_completes();
    if (how & ~(u32)OPEN_FLAGS || flags & ~(u32)FLAGS_ALL) return E_INVAL;
    if (how & OPEN_CREATE && how & OPEN_IS_DIRECTORY) return E_INVAL;
    u64 needed = RIGHT_OPEN | (how & OPEN_CREATE ? RIGHT_CREATE_FILE : 0) | (how & OPEN_TRUNCATE ? RIGHT_PATH_SET_SIZE : 0);
    int exclusive = how & OPEN_CREATE && how & OPEN_EXCLUSIVE;
    Place place;
    Errno error = path_find(number, needed, 0, path, length, exclusive ? NAME : last_of(lookup), &place);
    if (error) return error;
    rights &= RIGHTS_ALL;
    inheriting &= RIGHTS_ALL;
    if ((rights | inheriting) & ~descriptor(number)->inheriting) return E_NOTCAPABLE;
    if (outside(result, 4)) return E_FAULT;

    Node *node = place.node;
    if (node) {
        if (exclusive) return E_EXIST;
        if (node->kind == TYPE_SYMLINK) return E_LOOP;
        if (how & OPEN_IS_DIRECTORY && node->kind != TYPE_DIRECTORY) return E_NOTDIR;
        if (node->kind == TYPE_DIRECTORY && (rights & RIGHT_WRITE || how & (OPEN_TRUNCATE | OPEN_CREATE))) return E_ISDIR;
    } else {
        if (!(how & OPEN_CREATE)) return E_NOENT;
        if (place.slash) return E_ISDIR;
    }
    error = descriptor_room();
    if (error) return error;
    if (!node) {
        error = create(&place, TYPE_FILE, &node);
        if (error) return error;
    } else if (how & OPEN_TRUNCATE) {
        contents_resize(node, 0);
        node_touch(node);
    }
    int directory = node->kind == TYPE_DIRECTORY;
    u32 opened;
    descriptor_open(directory ? OPEN_DIRECTORY : OPEN_FILE, node, rights & (directory ? RIGHTS_DIRECTORY : RIGHTS_FILE), inheriting, flags,
                    &opened);
    program_store32(result, opened);
    return OK;
}

Errno EXPORT(path_filestat_get)(u32 number, u32 lookup, u32 path, u32 length, u32 result) {
    call_completes();
    Place place;
    Errno error = existing(number, RIGHT_PATH_STAT, lookup, path, length, &place);
    return error ? error : node_stat(place.node, result);
}

Errno EXPORT(path_filestat_set_times)(u32 number, u32 lookup, u32 path, u32 length, u64 accessed_ns, u64 modified_ns, u32 flags) {
    call_completes();
    Place place;
    Errno error = existing(number, RIGHT_PATH_SET_TIMES, lookup, path, length, &place);
    return error ? error : node_set_times(place.node, accessed_ns, modified_ns, flags);
}

Errno EXPORT(path_create_directory)(u32 number, u32 path, u32 length) {
    call_completes();
    Place place;
    Node *made;
    Errno error = path_find(number, RIGHT_CREATE_DIRECTORY, 0, path, length, NAME, &place);
    if (error) return error;
    return place.node ? E_EXIST : create(&place, TYPE_DIRECTORY, &made);
}

Errno EXPORT(path_unlink_file)(u32 number, u32 path, u32 length) {
    call_completes();
    Place place;
    Errno error = path_find(number, RIGHT_UNLINK, 0, path, length, NAME, &place);
    if (error) return error;
    if (!place.node) return E_NOENT;
    if (place.node->kind == TYPE_DIRECTORY) return E_ISDIR;
    entry_remove(place.directory, place.entry);
    return OK;
}

Errno EXPORT(path_remove_directory)(u32 number, u32 path, u32 length) {
    call_completes();
    Place place;
    Errno error = path_find(number, RIGHT_REMOVE_DIRECTORY, 0, path, length, NAME, &place);
    if (error) return error;
    if (!place.node) return E_NOENT;
    if (place.node->kind != TYPE_DIRECTORY) return E_NOTDIR;
    if (!place.directory) return E_INVAL;
    if (place.node->size) return E_NOTEMPTY;
    entry_remove(place.directory, place.entry);
    return OK;
}

static int lies_below(const Node *directory, const Node *ancestor) {
    for (;; directory = directory->parent) {
        if (directory == ancestor) return 1;
        if (directory == root || !directory->parent) return 0;
    }
}

Errno EXPORT(path_rename)(u32 old_number, u32 old_path, u32 old_length, u32 new_number, u32 new_path, u32 new_length) {
    call_completes();
    Place from, to;
    Errno error = path_find(old_number, RIGHT_RENAME_SOURCE, 0, old_path, old_length, NAME, &from);
    if (error) return error;
    if (!from.node) return E_NOENT;
    error = path_find(new_number, RIGHT_RENAME_TARGET, 1, new_path, new_length, NAME, &to);
    if (error) return error;
    if (!from.directory || !to.directory) return E_BUSY; /* ends in `.` or `..` */
    int directory = from.node->kind == TYPE_DIRECTORY;
    if (to.slash && !directory) return E_NOTDIR;
    if (from.node == to.node) return OK; /* two names of one file: both stay */
    if (directory && lies_below(to.directory, from.node)) return E_INVAL;
    if (to.node) {
        if (directory && to.node->kind != TYPE_DIRECTORY) return E_NOTDIR;
        if (!directory && to.node->kind == TYPE_DIRECTORY) return E_ISDIR;
        if (directory && to.node->size) return E_NOTEMPTY;
        entry_point(to.entry, to.directory, from.node);
    } else {
        error = entry_add(to.directory, to.name, to.length, from.node);
        if (error) return error;
    }
    entry_remove(from.directory, from.entry);
    if (directory) from.node->parent = to.directory; /* taking the old name away made it an orphan */
    return OK;
}

Errno EXPORT(path_link)(u32 old_number, u32 lookup, u32 old_path, u32 old_length, u32 new_number, u32 new_path, u32 new_length) {
    call_completes();
    Place from, to;
    Errno error = existing(old_number, RIGHT_LINK_SOURCE, lookup, old_path, old_length, &from);
    if (error) return error;
    error = path_find(new_number, RIGHT_LINK_TARGET, 1, new_path, new_length, NAME, &to);
    if (error) return error;
    if (from.node->kind == TYPE_DIRECTORY) return E_PERM;
    if (to.node) return E_EXIST;
    if (to.slash) return E_NOENT;
    error = entry_add(to.directory, to.name, to.length, from.node);
    if (!error) from.node->changed_ns = now();
    return error;
}

Errno EXPORT(path_symlink)(u32 target, u32 target_length, u32 number, u32 path, u32 length) {
    call_completes();
    const u8 *text;
    Errno error = path_text(0, target, target_length, &text);
    if (error) return error;
    Place place;
    error = path_find(number, RIGHT_SYMLINK, 1, path, length, NAME, &place);
    if (error) return error;
    if (place.node) return E_EXIST;
    if (place.slash) return E_NOENT;
    void *bytes = block_alloc(target_length);
    if (!bytes) return E_NOSPC;
    Node *node;
    error = create(&place, TYPE_SYMLINK, &node);
    if (error) {
        block_free(bytes, target_length);
        return error;
    }
    memcpy(bytes, text, target_length);
    node->data = bytes;
    node->size = target_length;
    return OK;
}

Errno EXPORT(path_readlink)(u32 number, u32 path, u32 length, u32 buffer, u32 room, u32 result) {
    call_completes();
    Place place;
    Errno error = existing(number, RIGHT_READLINK, 0, path, length, &place);
    if (error) return error;
    if (place.node->kind != TYPE_SYMLINK) return E_INVAL;
    if (outside(buffer, room) || outside(result, 4)) return E_FAULT;
    u32 bytes = (u32)min64(place.node->size, room);
    program_write(buffer, place.node->data, bytes);
    program_store32(result, bytes);
    return OK;
}
