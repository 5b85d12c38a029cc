/* random_get: ChaCha20, the task's seed is the key, the block counter is the state. */
#include "random.h"
#include "clock.h"
#include "host.h"

#define BLOCK_BYTES 64u
static u32 key[8];
static u64 counter;

void random_boot(const u8 *seed) { memcpy(key, seed, SEED_BYTES); }

static inline u32 rotate(u32 word, u32 by) { return word << by | word >> (32 - by); }

#define QUARTER(a, b, c, d)          \
    a += b, d = rotate(d ^ a, 16);   \
    c += d, b = rotate(b ^ c, 12);   \
    a += b, d = rotate(d ^ a, 8);    \
    c += d, b = rotate(b ^ c, 7);

static void next_block(u32 *out) {
    u32 s[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
    memcpy(s + 4, key, sizeof key);
    s[12] = (u32)counter;
    s[13] = (u32)(counter >> 32);
    counter++;
    memcpy(out, s, BLOCK_BYTES);
    for (u32 round = 0; round < 10; round++) {
        QUARTER(out[0], out[4], out[8], out[12])
        QUARTER(out[1], out[5], out[9], out[13])
        QUARTER(out[2], out[6], out[10], out[14])
        QUARTER(out[3], out[7], out[11], out[15])
        QUARTER(out[0], out[5], out[10], out[15])
        QUARTER(out[1], out[6], out[11], out[12])
        QUARTER(out[2], out[7], out[8], out[13])
        QUARTER(out[3], out[4], out[9], out[14])
    }
    for (u32 i = 0; i < 16; i++) out[i] += s[i];
}

Errno EXPORT(random_get)(u32 buffer, u32 length) {
    call_completes();
    if (outside(buffer, length)) return E_FAULT;
    if (length > RANDOM_BYTES) return E_INVAL;
    u32 block[BLOCK_BYTES / 4];
    for (u32 at = 0; at < length; at += BLOCK_BYTES) {
        next_block(block);
        program_write(buffer + at, block, min32(BLOCK_BYTES, length - at));
    }
    return OK;
}
