/* Stands in for the libc's, which needs exceptions: an error ends Lua. */
#include <stdlib.h>
#define LUAI_THROW(L, c) abort()
#define LUAI_TRY(L, c, a) a
#define luai_jmpbuf int
