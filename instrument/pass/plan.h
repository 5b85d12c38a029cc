/* The plan of one function: where it may stop, and how it is entered again.

   A *stop* is a place where frames are saved: the entry, the head of a loop, a call of something that may stop. A *region* is a loop (region 0:
   the function) without the loops inside it. A block can begin earlier than it did, so all blocks with a stop inside ("split" blocks) begin
   at the head of their region; then one forward branch from there leads to any stop of the region. Going into an inner loop is a branch to
   its *gate*, just before it, and its own head decides again. So resuming costs the fast path nothing. */
#ifndef IPOS_PLAN_H
#define IPOS_PLAN_H

#include "decode.h"

typedef enum {
    STOPPING, /* safepoints, unwinding and rewinding */
    BOUNDED,  /* keeps its code; its caller is charged, or it charges itself */
    METERED,  /* charges, but does not stop: the WASI */
    FREE,     /* nothing */
} Mode;
extern Mode mode;

typedef enum { AT_ENTRY, AT_CALL, AT_LOOP } Place;

typedef struct {
    Place place;
    u32 op;      /* of the call or the loop */
    u32 region;  /* that it lies in; of a loop head: the region around the loop */
    u32 inner;   /* AT_LOOP: the region of the loop */
    u32 next;    /* in the same region, or NONE */
    u32 label;   /* where a resume branches to */
    u32 stub;    /* label of the code that saves the frame */
    u64 *live;   /* locals whose value is needed afterwards */
    u32 depth;   /* operands below (the call's arguments; the loop's all) that are to be saved ... */
    Value *kept; /* ... and what they are; AT_CALL: the arguments too */
    bool save_args; /* what is called is not the program's: it is called again with the same arguments */
} Stop;

typedef struct {
    u32 parent, op;
    u32 first, end;            /* stops inside, those of inner regions too */
    u32 items, last_item;      /* stops of its own, in order */
    u32 hoisted;               /* labels of split blocks, the last to end first */
    u32 header, gate;          /* its stop; the label before it */
    u64 *assigned;             /* locals that it sets */
    u64 *live_header, *live_inside;
    u32 base;                  /* operands below the loop and its parameters: they stay as they are inside */
    bool leaf;                 /* no stop inside but its head */
} Region;

extern VEC(Region) regions;
extern VEC(Stop) stops;

/* Per operation. */
extern U32s region_of, stop_of, label_of, else_label_of, charge_before, charge_inside;
extern U32s label_next; /* the list of hoisted labels */
extern u32 label_count, fixed_labels, entry_charge;
extern u32 words; /* of a set of locals */

#define IN_SET(set, i) ((set)[(i) >> 6] >> ((i) & 63) & 1)
#define ADD_TO_SET(set, i) ((set)[(i) >> 6] |= (u64)1 << ((i) & 63))
#define TAKE_FROM_SET(set, i) ((set)[(i) >> 6] &= ~((u64)1 << ((i) & 63)))

u32 new_label(void);
/* Parameters of a call, and the index of an indirect one. */
u32 argument_count(const Op *op);
bool outside_call(const Op *op);
void plan_stops(void);
void find_live(void);
void plan_charges(void);

#endif
