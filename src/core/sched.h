/*
** sched.h - who runs next, and for how long.
**
** A task is in the ring exactly when it may run: neither paused, nor waiting,
** nor finished. The cursor stands on the task that ran last; whoever leaves,
** the one behind it is next. New and resumed tasks go to the end, and are
** reached in the same round even when the cursor stands there.
*/
#ifndef COOP_SCHED_H
#define COOP_SCHED_H

#include "list.h"

/* What a step reports. The first two are lua_resume's own codes, so that a Lua
   step can be a tail call of it; whatever is greater is a failure. */
enum { COOP_STEP_DONE = 0, COOP_STEP_MORE = 1 };

typedef struct coop_task coop_task;
typedef struct coop_sched coop_sched;

typedef struct coop_task_ops {
  /* One step. */
  int (*step)(coop_task *task, void *host);
  /* Sees to what a step left: called after each step but a plain one (MORE
     without values). True: the task may go on with its quantum. */
  bool (*settle)(coop_task *task, int status, void *host);
} coop_task_ops;

/* Embed this in what is to be stepped. */
struct coop_task {
  coop_link link;           /* in the ring while it may run, else alone */
  const coop_task_ops *ops;
  int nout;                 /* how many values the last step left to settle */
};

struct coop_sched {
  coop_link ring;    /* the round's end and beginning */
  coop_link *cursor; /* in the ring: what ran last */
  size_t count;      /* tasks in the ring */
  size_t quantum;    /* steps that a task takes in a row, at least 1 */
  size_t left;        /* of the quantum of the task at the cursor */
  size_t credit;      /* steps to come that need not ask whether the tick is over */
  size_t lent;        /* steps that the task being stepped may make by itself */
  coop_task *current; /* being stepped now, or NULL */
  bool ticking;
};

/* Asked after each step that there is no credit for; may give credit. True ends the
   tick. */
typedef bool (*coop_over_fn)(void *ud);

void coop__sched_init(coop_sched *s, size_t quantum);

static inline bool coop__task_runnable(const coop_task *t) {
  return !coop__link_alone(&t->link);
}

void coop__task_init(coop_task *t, const coop_task_ops *ops);

/* Puts 't' at the end of the ring; harmless when it is there. */
void coop__sched_add(coop_sched *s, coop_task *t);

/* Takes 't' out of the ring; harmless when it is not there. */
void coop__sched_remove(coop_sched *s, coop_task *t);

/* The task that is being stepped has made its step, inside its step function: has it
   the next one, too? Then that has begun. */
bool coop__sched_again(coop_sched *s);

/* Lends it further ones, of which it has 's->lent' for itself as long as nobody joins
   or leaves the ring: as many as there is credit for. */
void coop__sched_lend(coop_sched *s);

/* Steps that were lent and not made are had back, so that all is as if the others
   had been made one by one. */
static inline void coop__sched_take_back(coop_sched *s) {
  if (s->quantum > 1) s->left += s->lent; /* else it was lent to one that is alone */
  s->lent = 0;
}

/* Steps tasks in turn until 'over' says so or none is left. A step is never cut
   short. Must not be called while the same scheduler ticks. Returns how often a
   task had its turn for a step, or for several by coop__sched_again. */
size_t coop__sched_tick(coop_sched *s, void *host, coop_over_fn over, void *ud);

#endif
