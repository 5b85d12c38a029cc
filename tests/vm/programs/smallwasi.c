/* A WASI of a few calls, to test the merge: output goes into its own memory, its argument is a number, the clock is the work. */
typedef unsigned u32;
typedef unsigned long long u64;
#define X(name) __attribute__((import_module("x"), import_name(#name)))
#define HOST(name) __attribute__((import_module("ipos"), import_name(#name)))
#define CALL(name) __attribute__((export_name(#name)))
X(l8) u32 p_l8(u32 at);
X(l32) u32 p_l32(u32 at);
X(s8) void p_s8(u32 at, u32 value);
X(s32) void p_s32(u32 at, u32 value);
X(s64) void p_s64(u32 at, u64 value);
X(in) void p_in(void *to, u32 from, u32 n);
X(out) void p_out(u32 to, const void *from, u32 n);
X(fill) void p_fill(u32 to, u32 byte, u32 n);
X(size) u32 p_size(void);
X(cl64) u64 c_l64(u32 at);
X(cs64) void c_s64(u32 at, u64 value);
X(cout) void c_out(u32 to, u32 from, u32 n);
X(csize) u32 c_size(void);
X(work) u64 work(void);
X(charge) void charge(u64 n);
X(stop) void stop(void);
HOST(stdin) int host_stdin(void *at, u32 n);
HOST(flush) void host_flush(const void *at, u32 n);

static unsigned char out[1 << 20];
static u32 out_n, calls;
static u64 exited;
static char number[12] = "1";
static const char *const args[] = {"program", number};
static unsigned char in[4096];

static u32 length(const char *s) {
    u32 n = 0;
    while (s[n]) n++;
    return n;
}

CALL(args_sizes_get) u32 args_sizes_get(u32 count, u32 bytes) {
    calls++;
    p_s32(count, 2);
    p_s32(bytes, length(args[0]) + length(args[1]) + 2);
    return 0;
}

CALL(args_get) u32 args_get(u32 vector, u32 at) {
    for (u32 i = 0; i < 2; i++) {
        u32 n = length(args[i]);
        p_s32(vector + 4 * i, at);
        p_out(at, args[i], n);
        p_s8(at + n, 0);
        at += n + 1;
    }
    return 0;
}

CALL(environ_sizes_get) u32 environ_sizes_get(u32 count, u32 bytes) {
    p_s32(count, 0);
    p_s32(bytes, 0);
    return 0;
}
CALL(environ_get) u32 environ_get(u32 vector, u32 at) { return (void)vector, (void)at, 0; }

CALL(clock_time_get) u32 clock_time_get(u32 clock, u64 precision, u32 at) {
    (void)clock, (void)precision;
    p_s64(at, work() + ++calls);
    return 0;
}

CALL(fd_write) u32 fd_write(u32 fd, u32 vector, u32 n, u32 written) {
    u32 sum = 0;
    if (fd > 2) return 8;
    for (u32 i = 0; i < n; i++) {
        u32 from = p_l32(vector + 8 * i), bytes = p_l32(vector + 8 * i + 4);
        if (bytes > sizeof out - out_n) bytes = sizeof out - out_n;
        p_in(out + out_n, from, bytes);
        out_n += bytes;
        sum += bytes;
    }
    p_s32(written, sum);
    return 0;
}

CALL(fd_read) u32 fd_read(u32 fd, u32 vector, u32 n, u32 read) {
    if (fd || !n) return 8;
    u32 at = p_l32(vector), room = p_l32(vector + 4);
    int got = host_stdin(in, room < sizeof in ? room : sizeof in);
    if (got < 0) {
        stop();
        return 0;
    }
    p_out(at, in, (u32)got);
    p_s32(read, (u32)got);
    return 0;
}

CALL(free_look) u32 free_look(u32 n) {
    u32 sum = 0;
    for (u32 i = 0; i < n; i++) sum += length(args[i & 1]) * i;
    return sum;
}

CALL(sched_yield) u32 sched_yield(void) { return charge(32 * 1000), free_look(calls) & 0; }
CALL(random_get) u32 random_get(u32 at, u32 n) { return p_fill(at, 7, n), 0; }
CALL(fd_close) u32 fd_close(u32 fd) { return fd > 2 ? 8 : 0; }
CALL(fd_seek) u32 fd_seek(u32 fd, u64 offset, u32 whence, u32 at) { return (void)fd, (void)offset, (void)whence, (void)at, 70; }
CALL(fd_fdstat_get) u32 fd_fdstat_get(u32 fd, u32 at) {
    if (fd > 2) return 8;
    p_fill(at, 0, 24);
    p_s8(at, 2);
    return 0;
}
CALL(fd_fdstat_set_flags) u32 fd_fdstat_set_flags(u32 fd, u32 flags) { return (void)fd, (void)flags, 0; }
CALL(fd_prestat_get) u32 fd_prestat_get(u32 fd, u32 at) { return (void)fd, (void)at, 8; }
CALL(fd_prestat_dir_name) u32 fd_prestat_dir_name(u32 fd, u32 at, u32 n) { return (void)fd, (void)at, (void)n, 8; }
CALL(proc_exit) void proc_exit(u32 code) {
    exited = 1ull << 32 | code;
    stop();
}

CALL(wasi_boot) void wasi_boot(u32 argument) {
    u32 n = 1;
    for (u32 rest = argument; rest >= 10; rest /= 10) n++;
    number[n] = 0;
    for (; n; argument /= 10) number[--n] = (char)('0' + argument % 10);
}
CALL(wasi_exited) u64 wasi_exited(void) { return exited; }
CALL(wasi_calls) u32 wasi_calls(void) { return calls + p_size() * 0 + p_l8(0) * 0; }
CALL(wasi_output) u64 wasi_output(void) { return (u64)(u32)out << 32 | out_n; }
CALL(wasi_flush) void wasi_flush(void) { host_flush(out, out_n); }
CALL(wasi_cache) u64 wasi_cache(u32 at, u64 value) {
    if (!c_size()) return ~0ull;
    c_s64(at, value);
    c_out(0, at, 8);
    return c_l64(at);
}
