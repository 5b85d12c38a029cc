#include "stdio.h"
#include "costs.h"
#include "free.h"
#include "host.h"

/* Output of both streams in one log, so that their order is kept: records of a word (stream << 31 | bytes) and the bytes, padded to
   words. The runtime empties it at every unwind and the WASI when it is full. When that happens depends on slices of time, so
   filling it is not metered, an empty log is all zero, and nothing of it is left in a save or a mark. */
#define LOG_BYTES PAGE_BYTES
#define HEADER 4u
static u8 records[LOG_BYTES] __attribute__((aligned(65536)));
static u32 log_used, log_last; /* log_last: where the newest record begins */

static u64 written[2], most_written = ~0ull;
static u64 taken;
static u8 input[STDIN_BYTES] __attribute__((aligned(65536)));

void output_limit(u64 bytes) { most_written = bytes; }
u64 output_written(u32 stream) { return written[stream]; }
u64 output_room(void) { return most_written - written[0] - written[1]; }

const u8 *EXPORT(wasi_log)(void) { return records; }
u32 EXPORT(wasi_log_bytes)(void) { return log_used; }

/* Exported with two names: by wasi_ for the runtime, by free_ because the runtime calls it as often as it likes. */
NOINLINE void EXPORT(wasi_log_drained)(void);
#ifdef __wasm__
#define log_drained wasi_log_drained
#else
#define log_drained ipos_wasi_log_drained
#endif

NOINLINE void log_drained(void) {
    memset(records, 0, log_used);
    log_used = log_last = 0;
}
FREE_OF_WORK(wasi_log_drained)
FREE_OF_WORK(wasi_log)
FREE_OF_WORK(wasi_log_bytes)

static void log_flush(void) {
    host_flush(records, log_used);
    log_drained();
}

static u32 load_header(u32 at) {
    u32 header;
    memcpy(&header, records + at, HEADER);
    return header;
}

static void store_header(u32 at, u32 header) { memcpy(records + at, &header, HEADER); }

static NOINLINE void log_append(u32 stream, u32 from, u32 length) {
    while (length) {
        u32 continues = log_used && load_header(log_last) >> 31 == stream;
        u32 start = continues ? log_used : (log_used + HEADER - 1) / HEADER * HEADER;
        u32 data = continues ? start : start + HEADER;
        if (data >= LOG_BYTES) {
            log_flush();
            continue;
        }
        u32 part = min32(LOG_BYTES - data, length);
        if (continues) {
            store_header(log_last, load_header(log_last) + part);
        } else {
            store_header(start, stream << 31 | part);
            log_last = start;
        }
        program_read(records + data, from, part);
        log_used = data + part;
        from += part;
        length -= part;
    }
}
FREE_OF_WORK(log_append)

void output_append(u32 stream, u32 from, u32 length) {
    charge(COST_OUTPUT_WRITE + length / COST_OUTPUT_BYTE_DIVISOR);
    written[stream] += length;
    log_append(stream, from, length);
}

i32 stdin_read(u32 length) {
    i32 got = host_stdin(input, min32(length, STDIN_BYTES));
    if (got > (i32)length || got > (i32)STDIN_BYTES) {
        host_fault(FAULT_STDIN);
        __builtin_trap();
    }
    return got < 0 ? -1 : got;
}

u64 stdin_taken(void) { return taken; }
const u8 *stdin_bytes(void) { return input; }

void stdin_done(u32 length) {
    charge(COST_STDIN_READ);
    taken += length;
    memset(input, 0, length);
}
