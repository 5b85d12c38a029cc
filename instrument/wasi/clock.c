#include "clock.h"
#include "descriptor.h"
#include "host.h"
#include "memory.h"
#include "node.h"

#define CALL_NS 1000u
#define RESOLUTION_NS 1u
#define LONGEST_SLEEP_NS (1ull << 62)

enum { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS, CLOCK_THREAD, CLOCKS };

static u64 epoch_ns, calls, slept_ns;

void clock_boot(u64 epoch) { epoch_ns = epoch; }
u64 calls_completed(void) { return calls; }

void call_completes(void) {
    calls++;
    memory_tidy();
}

static u64 busy_ns(void) { return (u64)work_used() + calls * CALL_NS; }
u64 now(void) { return epoch_ns + busy_ns() + slept_ns; }

static u64 clock_ns(u32 clock) {
    if (clock == CLOCK_REALTIME) return now();
    return clock == CLOCK_MONOTONIC ? busy_ns() + slept_ns : busy_ns();
}

Errno EXPORT(clock_res_get)(u32 clock, u32 result) {
    call_completes();
    if (clock >= CLOCKS) return E_INVAL;
    if (outside(result, 8)) return E_FAULT;
    program_store64(result, RESOLUTION_NS);
    return OK;
}

Errno EXPORT(clock_time_get)(u32 clock, u64 precision_ns, u32 result) {
    (void)precision_ns;
    call_completes();
    if (clock >= CLOCKS) return E_INVAL;
    if (outside(result, 8)) return E_FAULT;
    program_store64(result, clock_ns(clock));
    return OK;
}

Errno EXPORT(sched_yield)(void) {
    call_completes();
    return OK;
}

/* ---- poll_oneoff: descriptors are always ready (a read may wait then); where nothing is ready, the clock jumps ---- */

enum { EVENT_CLOCK, EVENT_READ, EVENT_WRITE };
enum { SUBSCRIPTION_BYTES = 48, EVENT_BYTES = 32, FLAG_ABSOLUTE = 1, FLAG_HANGUP = 1 };

static u64 sleep_ns(u32 subscription) {
    u64 timeout = program_load64(subscription + 24);
    if (!(program_load16(subscription + 40) & FLAG_ABSOLUTE)) return timeout;
    u64 reached = clock_ns(program_load32(subscription + 16));
    return timeout > reached ? timeout - reached : 0;
}

static u32 event_type(u32 subscription) { return program_load8(subscription + 8); }

static int is_clock(u32 subscription) {
    return event_type(subscription) == EVENT_CLOCK && program_load32(subscription + 16) < CLOCKS;
}

static void put_event(u32 event, u64 user, Errno error, u32 type, u64 bytes, u32 flags) {
    program_store64(event, user);
    program_store64(event + 8, error | (u64)type << 16);
    program_store64(event + 16, bytes);
    program_store64(event + 24, flags);
}

/* The event of a subscription that is no clock. */
static void put_ready(u32 event, u32 subscription) {
    u64 user = program_load64(subscription);
    u32 type = event_type(subscription), flags = 0;
    u64 bytes = 0;
    Errno error = OK;
    if (type != EVENT_READ && type != EVENT_WRITE) {
        error = E_INVAL; /* an unknown type, or an unknown clock */
    } else {
        Descriptor *open = descriptor(program_load32(subscription + 16));
        if (!open) {
            error = E_BADF;
        } else if (!(open->rights & RIGHT_POLL)) {
            error = E_NOTCAPABLE;
        } else if (type == EVENT_WRITE) {
            bytes = PAGE_BYTES;
        } else if (open->kind == OPEN_FILE) {
            bytes = open->node->size > open->offset ? open->node->size - open->offset : 0;
        } else if (open->kind == OPEN_EMPTY) {
            flags = FLAG_HANGUP;
        } else {
            bytes = 1;
        }
    }
    put_event(event, user, error, type, bytes, flags);
}

Errno EXPORT(poll_oneoff)(u32 in, u32 out, u32 count, u32 result) {
    call_completes();
    if (!count || count > SUBSCRIPTIONS) return E_INVAL;
    if (outside(in, (u64)count * SUBSCRIPTION_BYTES) || outside(out, (u64)count * EVENT_BYTES) || outside(result, 4)) return E_FAULT;
    u64 shortest = ~0ull;
    int sleeps = 1;
    for (u32 i = 0; i < count; i++) {
        u32 subscription = in + i * SUBSCRIPTION_BYTES;
        if (!is_clock(subscription)) sleeps = 0;
        else shortest = min64(shortest, sleep_ns(subscription));
    }
    if (!sleeps) shortest = 0; /* something is ready at once; clocks join it if they are due */
    u32 events = 0;
    for (u32 i = 0; i < count; i++) {
        u32 subscription = in + i * SUBSCRIPTION_BYTES, event = out + events * EVENT_BYTES;
        if (!is_clock(subscription)) {
            put_ready(event, subscription);
        } else {
            if (sleep_ns(subscription) > shortest) continue;
            put_event(event, program_load64(subscription), OK, EVENT_CLOCK, 0, 0);
        }
        events++;
    }
    slept_ns += min64(shortest, LONGEST_SLEEP_NS);
    program_store32(result, events);
    return OK;
}
