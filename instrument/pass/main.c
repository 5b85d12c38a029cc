/* The face of the pass: instrument(program, wasi) -> module, or a sentence. One instance serves one call. */
#include "module.h"

#define EXPORT(name) __attribute__((export_name(name)))

extern char sentence[];
extern u32 sentence_length;

static Buf output;

EXPORT("alloc") void *ipos_alloc(u32 bytes) { return keep(bytes); }

EXPORT("instrument")
u32 ipos_instrument(const u8 *module, u32 size, const u8 *wasi_bytes, u32 wasi_size, u32 wanted) {
    flags = wanted;
    sentence_length = 0;
    read_module(&program, module, size);
    if (wasi_size) merge_wasi(wasi_bytes, wasi_size);
    link_program();
    analyse_calls();
    number_functions();
    plan_runtime();
    write_module(&output);
    return 0;
}

EXPORT("result") const void *ipos_result(void) { return sentence_length ? (const void *)sentence : output.at; }
EXPORT("result_len") u32 ipos_result_len(void) { return sentence_length ? sentence_length : output.n; }
EXPORT("refused") u32 ipos_refused(void) { return sentence_length != 0; }
