/* Writing one function: instructions, labels, locals made on the way, slots of the saved frame. */
#ifndef IPOS_EMIT_H
#define IPOS_EMIT_H

#include "plan.h"

/* A function is walked several times before it is written: to learn the types of what is on the stack where it may stop, and which locals
   may hold a NaN of the machine's choice. On these walks nothing is written. */
extern bool quiet;
extern Buf out;

void e8(u8 byte);
void eu(u64 value);
void es(i64 value);
void op_u(u32 code, u32 a);
void const32(i32 value);
void const64(i64 value);
void local_get(u32 l);
void local_set(u32 l);
void local_tee(u32 l);
void meter_get(void);
void meter_set(void);
void runtime_get(u32 which);
void runtime_set(u32 which);
void charge(u32 cost);
void settle_pages(void); /* the memory integral up to now */
void copy_op(const Op *op);

/* Labels of open blocks. */
void open_label(u32 label);
void close_label(u32 label);
u32 depth_of(u32 label);
u32 outermost_depth(void); /* of the end of the function */
void begin_block(u32 label);
void end_block(u32 label);
void branch(u32 label);
void branch_if(u32 label);
u32 begin_if(void);
void end_if(u32 label);
void start_labels(void);

/* Locals: those of the function, then those made here. */
void start_locals(void);
u32 made_local(u8 type);
/* The local that holds the operand at `depth` when it is not on the stack. */
u32 temporary(u32 depth, u8 type);
/* One for a value between two instructions. */
u32 own_temporary(u32 which, u8 type);

/* The saved frame: slot 0 holds the number of the stop. */
extern u32 frame_bytes;
void frame_start(void);
u32 frame_slot(u32 local);
void frame_access(bool store, u8 type, u32 slot);
void save_local(u32 local, bool nan);
void load_local(u32 local);
void zero_of(u8 type);

/* nan.c */
extern bool canonical;       /* NaNs are made canonical where their bits could be seen */
extern bool nan_learned;     /* a local was found to be affected on this walk */
void nan_start(void);
void nan_all_locals(void);
bool nan_local(u32 local);
void nan_set_local(u32 local, bool nan);
void canonical_local(u32 local);
void canonical_top(void);
void canonical_top_n(u32 n);
void canonical_vector(u32 code);
bool bits_escape(const Op *op);

/* rewrite.c */
extern u32 real_base; /* operands below this depth are in their temporaries only */
void stack_to_temporaries(void);
void temporaries_to_stack(u32 from, u32 to);
/* resume.c */
void open_hoisted(u32 region);
void resume_in(u32 region, u32 after_entry);
void write_stub(u32 stop);
void finish_rewind(void);

#endif
