#include "contents.h"
#include "costs.h"
#include "host.h"
#include "input.h"
#include "memory.h"

/* Three shapes, `levels`: 0 = a buffer of up to 64 KiB in `data` (files without an input file), 1 = a table of pages that grows to
   TABLE_SLOTS, 2 = a table of such tables, each of TABLE_SLOTS. Beyond `size` every byte in memory is zero and there is no page;
   input_size <= size always. */

#define FIRST_SLOTS 8u
#define SLOT ((u32)sizeof(void *))

/* ---- tables ---- */

void *contents_page(const Node *file, u64 block) {
    void **table = file->data;
    if (file->levels == 2) {
        if (block / TABLE_SLOTS >= file->slots) return NULL;
        table = table[block / TABLE_SLOTS];
        return table ? table[block % TABLE_SLOTS] : NULL;
    }
    return file->levels == 1 && block < file->slots ? table[block] : NULL;
}

static int table_grow(Node *file, u32 slots) {
    u32 wanted = file->slots ? file->slots : FIRST_SLOTS;
    while (wanted < slots) wanted *= 2;
    if (wanted == file->slots) return 1;
    void **table = block_alloc(wanted * SLOT);
    if (!table) return 0;
    if (file->data) memcpy(table, file->data, file->slots * SLOT);
    block_free(file->data, file->slots * SLOT);
    file->data = table;
    file->slots = wanted;
    return 1;
}

/* buffer -> table: the buffer's bytes become page 0 */
static int leave_buffer(Node *file) {
    void **table = block_alloc(FIRST_SLOTS * SLOT);
    if (!table) return 0;
    if (file->data) {
        u8 *page = file->data;
        if (file->slots < PAGE_BYTES) {
            page = page_alloc();
            if (!page) {
                block_free(table, FIRST_SLOTS * SLOT);
                return 0;
            }
            memcpy(page, file->data, file->slots);
            block_free(file->data, file->slots);
        }
        table[0] = page;
    }
    file->data = table;
    file->slots = FIRST_SLOTS;
    file->levels = 1;
    return 1;
}

static int reach(Node *file, u64 block) {
    if (file->levels == 0 && !leave_buffer(file)) return 0;
    if (file->levels == 1) {
        if (block < TABLE_SLOTS) return table_grow(file, (u32)block + 1);
        if (!table_grow(file, TABLE_SLOTS)) return 0;
        void **above = block_alloc(FIRST_SLOTS * SLOT);
        if (!above) return 0;
        above[0] = file->data;
        file->data = above;
        file->slots = FIRST_SLOTS;
        file->levels = 2;
    }
    u32 upper = (u32)(block / TABLE_SLOTS);
    if (!table_grow(file, upper + 1)) return 0;
    void **above = file->data;
    if (!above[upper]) above[upper] = block_alloc(TABLE_SLOTS * SLOT);
    return above[upper] != NULL;
}

/* ---- input ---- */

static u32 input_bytes_in(const Node *file, u64 block) {
    u64 start = block * PAGE_BYTES;
    return file->input && start < file->input_size ? (u32)min64(PAGE_BYTES, file->input_size - start) : 0;
}

/* The page of a block for writing, made if there is none; `whole`: every byte is about to be overwritten. */
static u8 *page_for(Node *file, u64 block, int whole) {
    if (!reach(file, block)) return NULL;
    void **table = file->data;
    if (file->levels == 2) table = table[block / TABLE_SLOTS];
    void **slot = &table[block % TABLE_SLOTS];
    if (!*slot) {
        u8 *page = page_alloc();
        if (!page) return NULL;
        u32 shown = whole ? 0 : input_bytes_in(file, block);
        if (shown) {
            charge(COST_INPUT_BLOCK);
            cache_read(page, input_block(file->input, (u32)block), shown);
        }
        *slot = page;
    }
    return *slot;
}

u32 contents_read_waits(const Node *file, u64 offset, u32 length) {
    if (!file->input || !length || offset >= file->input_size) return 0;
    /* ask for the range between the first and the last block that the program has not written itself */
    u64 end = min64(offset + length, file->input_size);
    u64 first = offset / PAGE_BYTES, last = (end - 1) / PAGE_BYTES;
    while (first <= last && contents_page(file, first)) first++;
    if (first > last) return 0;
    while (contents_page(file, last)) last--;
    u64 start = first * PAGE_BYTES;
    return input_waits(file->input, start, (u32)(min64((last + 1) * PAGE_BYTES, file->input_size) - start));
}

u32 contents_write_waits(const Node *file, u64 offset, u32 length) {
    u64 start = offset / PAGE_BYTES * PAGE_BYTES, end = offset + length;
    end = (end + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    return length ? contents_read_waits(file, start, (u32)(end - start)) : 0;
}

/* ---- bytes ---- */

void contents_read(const Node *file, u64 offset, u32 to, u32 length) {
    if (file->levels == 0 && !file->input) {
        u32 held = offset < file->slots ? min32(file->slots - (u32)offset, length) : 0;
        if (held) program_write(to, (u8 *)file->data + (u32)offset, held);
        if (held < length) program_fill(to + held, 0, length - held);
        return;
    }
    while (length) {
        u64 block = offset / PAGE_BYTES;
        u32 within = (u32)(offset % PAGE_BYTES), part = min32(PAGE_BYTES - within, length);
        u8 *page = contents_page(file, block);
        if (page) {
            program_write(to, page + within, part);
        } else {
            u32 shown = input_bytes_in(file, block);
            u32 copied = within < shown ? min32(shown - within, part) : 0;
            if (copied) {
                charge(COST_INPUT_BLOCK);
                cache_to_program(to, input_block(file->input, (u32)block) + within, copied);
            }
            if (copied < part) program_fill(to + copied, 0, part - copied);
        }
        offset += part;
        to += part;
        length -= part;
    }
}

/* A file that fits keeps to one buffer, one with an input file too: its bytes are copied into the buffer first. */
static int buffer_for(Node *file, u32 end) {
    u32 wanted = file->input && file->input_size > end ? (u32)file->input_size : end;
    if (wanted > file->slots) {
        u32 slots = block_capacity(wanted > 2 * file->slots ? wanted : min32(2 * file->slots, PAGE_BYTES));
        u8 *buffer = block_alloc(slots);
        if (!buffer) return 0;
        if (file->data) memcpy(buffer, file->data, file->slots);
        block_free(file->data, file->slots);
        file->data = buffer;
        file->slots = slots;
    }
    if (file->input) {
        charge(COST_INPUT_BLOCK);
        if (file->input_size) cache_read(file->data, input_block(file->input, 0), (u32)file->input_size);
        file->input = 0;
        file->input_size = 0;
    }
    return 1;
}

u32 contents_write(Node *file, u64 offset, u32 from, u32 length) {
    u64 end = offset + length;
    if (file->levels == 0 && end <= PAGE_BYTES && (!file->input || file->input_size <= PAGE_BYTES)) {
        if (!buffer_for(file, (u32)end)) return 0;
        program_read((u8 *)file->data + (u32)offset, from, length);
        if (end > file->size) file->size = end;
        return length;
    }
    u32 done = 0;
    while (done < length) {
        u32 within = (u32)(offset % PAGE_BYTES), part = min32(PAGE_BYTES - within, length - done);
        u8 *page = page_for(file, offset / PAGE_BYTES, part == PAGE_BYTES);
        if (!page) break;
        program_read(page + within, from + done, part);
        done += part;
        offset += part;
        if (offset > file->size) file->size = offset;
    }
    return done;
}

/* ---- cutting ---- */

/* Takes slots `first`.. out of a table of pages; the pages are freed by and by. */
static void bury_slots(void **table, u32 first, u32 slots) {
    for (u32 slot = first; slot < slots; slot++)
        if (table[slot]) {
            page_bury(table[slot]);
            table[slot] = NULL;
        }
}

static void cut_pages(Node *file, u64 first) {
    void **table = file->data;
    if (file->levels == 1) {
        if (first < file->slots) bury_slots(table, (u32)first, file->slots);
        return;
    }
    u64 upper = first / TABLE_SLOTS;
    if (upper < file->slots && table[upper] && first % TABLE_SLOTS) {
        bury_slots(table[upper], (u32)(first % TABLE_SLOTS), TABLE_SLOTS);
        upper++;
    }
    for (; upper < file->slots; upper++)
        if (table[upper]) {
            table_bury(table[upper]);
            table[upper] = NULL;
        }
}

void contents_free(Node *file) {
    if (file->levels) {
        cut_pages(file, 0);
        block_free(file->data, file->slots * SLOT);
    } else {
        block_free(file->data, file->slots);
    }
    file->data = NULL;
    file->slots = 0;
    file->levels = 0;
    file->input = 0;
    file->input_size = 0;
}

Errno contents_resize(Node *file, u64 size) {
    if (size > FILE_BYTES) return E_FBIG;
    if (size == 0) {
        contents_free(file);
    } else if (size < file->size) {
        u32 within = (u32)(size % PAGE_BYTES);
        if (file->levels) {
            u8 *page = within ? contents_page(file, size / PAGE_BYTES) : NULL;
            if (page) memset(page + within, 0, PAGE_BYTES - within);
            cut_pages(file, (size + PAGE_BYTES - 1) / PAGE_BYTES);
        } else if (size < file->slots) {
            memset((u8 *)file->data + (u32)size, 0, file->slots - (u32)size);
        }
        if (size < file->input_size) file->input_size = size;
    }
    file->size = size;
    return OK;
}
