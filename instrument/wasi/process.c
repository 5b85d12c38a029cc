#include "process.h"
#include "clock.h"
#include "free.h"
#include "host.h"

static Strings arguments, environment;
static u64 exited; /* 1 << 32 | status */

void process_boot(Strings args, Strings env) {
    arguments = args;
    environment = env;
}

static Errno put_strings(const Strings *strings, u32 pointers, u32 buffer) {
    call_completes();
    if (outside(pointers, (u64)strings->count * 4) || outside(buffer, strings->bytes)) return E_FAULT;
    u32 index = 0;
    for (u32 at = 0; at < strings->bytes; at++) {
        if (at == 0 || !strings->text[at - 1]) program_store32(pointers + 4 * index++, buffer + at);
    }
    if (strings->bytes) program_write(buffer, strings->text, strings->bytes);
    return OK;
}

static Errno put_sizes(const Strings *strings, u32 count, u32 bytes) {
    call_completes();
    if (outside(count, 4) || outside(bytes, 4)) return E_FAULT;
    program_store32(count, strings->count);
    program_store32(bytes, strings->bytes);
    return OK;
}

Errno EXPORT(args_get)(u32 pointers, u32 buffer) { return put_strings(&arguments, pointers, buffer); }
Errno EXPORT(args_sizes_get)(u32 count, u32 bytes) { return put_sizes(&arguments, count, bytes); }
Errno EXPORT(environ_get)(u32 pointers, u32 buffer) { return put_strings(&environment, pointers, buffer); }
Errno EXPORT(environ_sizes_get)(u32 count, u32 bytes) { return put_sizes(&environment, count, bytes); }

/* The program unwinds as if the call waited; the runtime asks wasi_exited and does not go on. */
static void end(u32 status) {
    call_completes();
    exited = 1ull << 32 | status;
    stop();
}

void EXPORT(proc_exit)(u32 status) { end(status); }

Errno EXPORT(proc_raise)(u32 signal) {
    if (signal) end(128 + signal);
    return OK;
}

u64 EXPORT(wasi_exited)(void) { return exited; }
FREE_OF_WORK(wasi_exited)
