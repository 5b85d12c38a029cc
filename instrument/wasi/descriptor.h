/* Open files: the table of descriptors, rights. */
#ifndef IPOS_WASI_DESCRIPTOR
#define IPOS_WASI_DESCRIPTOR

#include "node.h"

enum { OPEN_NOTHING, OPEN_EMPTY, OPEN_STDIN, OPEN_STDOUT, OPEN_STDERR, OPEN_FILE, OPEN_DIRECTORY };

enum {
    RIGHT_DATASYNC = 1 << 0,
    RIGHT_READ = 1 << 1,
    RIGHT_SEEK = 1 << 2,
    RIGHT_SET_FLAGS = 1 << 3,
    RIGHT_SYNC = 1 << 4,
    RIGHT_TELL = 1 << 5,
    RIGHT_WRITE = 1 << 6,
    RIGHT_ADVISE = 1 << 7,
    RIGHT_ALLOCATE = 1 << 8,
    RIGHT_CREATE_DIRECTORY = 1 << 9,
    RIGHT_CREATE_FILE = 1 << 10,
    RIGHT_LINK_SOURCE = 1 << 11,
    RIGHT_LINK_TARGET = 1 << 12,
    RIGHT_OPEN = 1 << 13,
    RIGHT_READDIR = 1 << 14,
    RIGHT_READLINK = 1 << 15,
    RIGHT_RENAME_SOURCE = 1 << 16,
    RIGHT_RENAME_TARGET = 1 << 17,
    RIGHT_PATH_STAT = 1 << 18,
    RIGHT_PATH_SET_SIZE = 1 << 19,
    RIGHT_PATH_SET_TIMES = 1 << 20,
    RIGHT_STAT = 1 << 21,
    RIGHT_SET_SIZE = 1 << 22,
    RIGHT_SET_TIMES = 1 << 23,
    RIGHT_SYMLINK = 1 << 24,
    RIGHT_REMOVE_DIRECTORY = 1 << 25,
    RIGHT_UNLINK = 1 << 26,
    RIGHT_POLL = 1 << 27,
    RIGHTS_ALL = (1 << 30) - 1, /* with the two of sockets */
    RIGHTS_FILE = RIGHT_DATASYNC | RIGHT_READ | RIGHT_SEEK | RIGHT_SET_FLAGS | RIGHT_SYNC | RIGHT_TELL | RIGHT_WRITE | RIGHT_ADVISE |
                  RIGHT_ALLOCATE | RIGHT_STAT | RIGHT_SET_SIZE | RIGHT_SET_TIMES | RIGHT_POLL,
    RIGHTS_PATH = RIGHT_CREATE_DIRECTORY | RIGHT_CREATE_FILE | RIGHT_LINK_SOURCE | RIGHT_LINK_TARGET | RIGHT_OPEN | RIGHT_READLINK |
                  RIGHT_RENAME_SOURCE | RIGHT_RENAME_TARGET | RIGHT_PATH_STAT | RIGHT_PATH_SET_SIZE | RIGHT_PATH_SET_TIMES |
                  RIGHT_SYMLINK | RIGHT_REMOVE_DIRECTORY | RIGHT_UNLINK,
    RIGHTS_DIRECTORY = RIGHTS_PATH | RIGHT_READDIR | RIGHT_DATASYNC | RIGHT_SYNC | RIGHT_SET_FLAGS | RIGHT_ADVISE | RIGHT_STAT |
                       RIGHT_SET_TIMES | RIGHT_POLL,
};

enum { FLAG_APPEND = 1, FLAGS_ALL = 31 };

/* The last name that fd_readdir gave out: reading goes on behind it, whatever was created or removed since. */
typedef struct {
    u16 length;
    u8 name[];
} Cursor;

typedef struct {
    u8 kind;
    u8 preopened;
    u16 flags;
    Node *node; /* of files and directories */
    u64 offset; /* file: of the next byte */
    u64 rights, inheriting;
    u64 cookie; /* directory: the cookie that follows `cursor` */
    Cursor *cursor;
} Descriptor;

Descriptor *descriptor(u32 number); /* NULL if it is not open */
Errno descriptor_open(u32 kind, Node *node, u64 rights, u64 inheriting, u32 flags, u32 *number); /* the lowest that is free */
Errno descriptor_room(void); /* OK: the next descriptor_open succeeds */
void descriptor_close(u32 number);
u32 descriptors_open(void);

/* The descriptor if it is open and has these rights, else NULL and `error` is set. */
Descriptor *descriptor_with(u32 number, u64 rights, Errno *error);

#endif
