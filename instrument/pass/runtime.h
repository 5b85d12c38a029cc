/* What the pass adds for the runtime (docs/protocols/engine.md). */
#ifndef IPOS_RUNTIME_H
#define IPOS_RUNTIME_H

#include "module.h"

enum { RUNTIME_FUNCTIONS = 13, USED = 11, PAGES_WORK = 12 };

u32 stack_pages(void); /* of the memory ipos_stack */
u32 write_runtime_globals(Buf *section);
u32 runtime_type(u32 i);
const char *runtime_name(u32 i);
void write_runtime_body(u32 i, Buf *code);

#endif
