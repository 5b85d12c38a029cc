/* Blocks and branches while a function is rewritten. */
#ifndef IPOS_CONTROL_H
#define IPOS_CONTROL_H

#include "plan.h"

typedef struct {
    u32 op, code;
    u32 label;
    u32 base;       /* operands below the block */
    u32 outer_base; /* real_base outside */
    u32 arrivals;   /* of its results */
    bool splits;
} Control;
extern VEC(Control) controls;

extern u32 function_label; /* of a function that counts its depth: its end; else NONE */
extern bool alive;         /* what was written last can be left at its end */

void begin_control(u32 op);
void enter_control(void);
void else_control(void);
void end_control(void);
void write_branch(const Op *op, const Type *function_type);
void write_branch_table(const Op *op, const Type *function_type);

#endif
