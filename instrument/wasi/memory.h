/* The WASI's own memory: pages of 64 KiB (a page is a leaf of the state's Merkle tree, so contents of files lie in whole pages) and
   blocks of 32 bytes to 32 KiB cut from pages. All that is free is zero: it costs nothing in a save. */
#ifndef IPOS_WASI_MEMORY
#define IPOS_WASI_MEMORY

#include "types.h"

#define TABLE_SLOTS 4096u

void *page_alloc(void);           /* NULL: the overlay's limit is reached */
void *block_alloc(u32 size);      /* zeroed; at most PAGE_BYTES */
u32 block_capacity(u32 size);     /* what an allocation of `size` really holds */
void block_free(void *block, u32 size);

/* Large things are freed a little at each call (`memory_tidy`), so that no single call is long. */
void page_bury(void *page);
void table_bury(void **table); /* a table of TABLE_SLOTS pages, of which any may be NULL */
void memory_tidy(void);

void *memory_boot(u32 size); /* adjacent pages, outside of any limit; NULL if there cannot be so many */
void memory_boot_done(void *space, u32 size);
void memory_limit(u32 pages); /* from now on at most so many more pages may be in use */
u32 memory_pages_used(void);  /* since memory_limit, those to be freed included */
u32 memory_pages_free(void);

#endif
