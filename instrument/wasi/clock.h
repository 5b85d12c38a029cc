/* Virtual time: one nanosecond for each unit of work, one microsecond for each completed call, and sleeps that take no time. */
#ifndef IPOS_WASI_CLOCK
#define IPOS_WASI_CLOCK

#include "types.h"

u64 now(void); /* realtime, ns since 1970 */
void clock_boot(u64 epoch_ns);

/* Every call of preview 1 begins with this, unless it may wait: that one says it when it is sure to complete. */
void call_completes(void);
u64 calls_completed(void);

#endif
