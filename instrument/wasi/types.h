/* Words that every file of the WASI uses: integers, errors of preview 1, limits. No header of a C library exists here. */
#ifndef IPOS_WASI_TYPES
#define IPOS_WASI_TYPES

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
typedef __UINTPTR_TYPE__ uptr;

#define NULL ((void *)0)
#define memcpy __builtin_memcpy
#define memset __builtin_memset
#define NOINLINE __attribute__((noinline))

/* Preview 1 `errno` values, those that this WASI answers. */
typedef u32 Errno;
enum {
    OK = 0,
    E_AGAIN = 6, /* inside only: this call has to wait; a program never sees it */
    E_BADF = 8,
    E_BUSY = 10,
    E_EXIST = 20,
    E_FAULT = 21,
    E_FBIG = 22,
    E_ILSEQ = 25,
    E_INVAL = 28,
    E_ISDIR = 31,
    E_LOOP = 32,
    E_MFILE = 33,
    E_NAMETOOLONG = 37,
    E_NOENT = 44,
    E_NOSPC = 51,
    E_NOTDIR = 54,
    E_NOTEMPTY = 55,
    E_NOTSOCK = 57,
    E_PERM = 63,
    E_SPIPE = 70,
    E_NOTCAPABLE = 76,
};

/* Preview 1 `filetype` values. */
enum { TYPE_UNKNOWN = 0, TYPE_CHARACTER = 2, TYPE_DIRECTORY = 3, TYPE_FILE = 4, TYPE_SYMLINK = 7 };

#define PAGE_BYTES 65536u
#define TRANSFER_BYTES (1u << 20) /* most that one read or write moves: a call is never long */
#define RANDOM_BYTES (1u << 20)
#define VECTORS 1024u
#define NAME_BYTES 255u
#define PATH_BYTES 4095u
#define SYMLINKS 32u      /* followed in one path */
#define PATH_STEPS 4096u  /* names looked up in one path, symlinks included */
#define SUBSCRIPTIONS 1024u
#define DESCRIPTORS 16384u

static inline u32 min32(u32 a, u32 b) { return a < b ? a : b; }
static inline u64 min64(u64 a, u64 b) { return a < b ? a : b; }

#endif
