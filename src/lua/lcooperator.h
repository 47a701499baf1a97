/*
** lcooperator.h - what the files share that make up Cooperators and their tasks.
**
** lcooperator.c says when tasks are stepped, lstepping.c what a step is, ltask.c
** how a task begins, waits and ends.
*/
#ifndef LCOOPERATOR_H
#define LCOOPERATOR_H

#include "lcoop.h"

/* user values of a Cooperator */
enum {
  COOPERATOR_RUN = 1,   /* slot -> the task while it may run; else false, or the
                           next free slot */
  COOPERATOR_ALL,       /* weak: slot -> the task while it has not finished */
  COOPERATOR_FACTORY,   /* termination_predicate_factory, or nil */
  COOPERATOR_SCHEDULER, /* or nil: the reactor's turns */
  COOPERATOR_TICK,      /* the function that the scheduler is given */
  COOPERATOR_CALL,      /* what the scheduler returned for the tick to come */
  COOPERATOR_EVENT,     /* coop__step_event as a function */
  COOPERATOR_NUV = COOPERATOR_EVENT
};

/* user values of a task */
enum {
  TASK_COOPERATOR = 1,
  TASK_ITERATOR,
  TASK_DONE,   /* list of when_done Deferreds; once finished: a failed Deferred */
  TASK_WAIT,   /* what it waits on, or the outcome it is to be resumed with */
  TASK_NUV = TASK_WAIT,
  TASK_VALUES, /* of one that accumulates: what came so far */
  TASK_TARGET, /* the Deferred that is for */
  TASK_COLLECT_NUV = TASK_TARGET
};

typedef enum task_state {
  TASK_LIVE,
  TASK_DONE_STATE,
  TASK_STOPPED,
  TASK_FAILED,
  TASK_SCHEDULER_STOPPED
} task_state;

typedef enum task_wait {
  WAIT_NONE,
  WAIT_YIELDED, /* for a Deferred that the iterator yielded */
  WAIT_AWAITED, /* in a coop.await of its generator */
  WAIT_SHARED   /* until another task's generator, shared, has been resumed */
} task_wait;

typedef struct cooperator {
  object object;
  coop_sched sched;
  coop_link active;   /* in ctx->active while a native tick is to come */
  coop_context *ctx;
  lua_State *L;       /* of the tick under way */
  lua_State *caller;  /* what ctx->running was when it began */
  int base;           /* its stack: event function, COOPERATOR_RUN, predicate */
  lua_Integer slots;  /* in use or free */
  lua_Integer free;   /* the first free slot, or 0 */
  lua_Integer stale;  /* slot of a task that left during its own step, or 0 */
  uint64_t stopping;  /* stop() in a step: tasks before this one are to end */
  uint64_t seq;
  double slice;
  double until;       /* end of the slice under way */
  double poll;        /* when to ask for input */
  uint64_t glanced;   /* the cycle counter when it was last asked if it is over, */
  uint64_t look;      /* and when the clock is to be read */
  size_t stride;      /* steps from one such question to the next */
  unsigned calm;      /* how often nothing took long in between */
  bool running, scheduled, scheduling, custom, predicate, stopped;
  bool over;          /* the slice under way is used up */
} cooperator;

/* What every step looks at comes first. */
typedef struct task {
  object object;
  coop_task base;
  generator *g;       /* when that is its iterator */
  lua_State *co;      /* when its iterator is a thread */
  cooperator *c;
  uint16_t pauses;
  uint8_t state, wait;
  bool resumes;       /* TASK_WAIT is the outcome of what it awaited */
  uint64_t seq;       /* order of addition */
  lua_Integer slot;
  lua_Integer index;  /* the next element of a sequence */
  lua_Integer batch;  /* values a step; 0: it does not accumulate */
  lua_Integer n;      /* values so far */
} task;

enum {
  STEP_EVENT = 100, /* a step that coop__step_event has to make */
  STEP_WANT         /* one for which there was no memory */
};

static inline task *of(coop_task *base) { return coop_container(base, task, base); }

/* Pushes the task; index of the Cooperator's RUN table is known in a tick. */
static inline void pushtask(lua_State *L, int run, const task *t) {
  lua_rawgeti(L, run, t->slot);
}

/* The thread that the task steps, or NULL. */
static inline lua_State *thread_of(const task *t) { return t->g ? t->g->co : t->co; }

/* --- ticks (lcooperator.c) -------------------------------------------------------- */

/* Asks for a tick of the Cooperator at 'idx', when it has something to do. False and
   the error on top when the scheduler failed. [-0, +(0|1), m] */
bool coop__schedule(lua_State *L, int idx, cooperator *c);
/* No tick is to come. [-0, +0, m] */
void coop__unschedule(lua_State *L, int idx, cooperator *c);
/* Is the slice under way used up? */
bool coop__slice_over(cooperator *c);

/* --- steps (lstepping.c) ------------------------------------------------------------ */

/* How the task is stepped. */
const coop_task_ops *coop__step_ops(const task *t);
/* event(task, status) -> may it go on?   event(nil): sees to a stale task.
   Upvalue 2 is the Cooperator. */
int coop__step_event(lua_State *L);
/* The table that yields were stored in is let go of. [-0, +0, m] */
void coop__forget_yields(lua_State *L);
/* Ends the tasks that were there when stop() was called, in order of addition. */
void coop__end_tasks(lua_State *L, int idx, cooperator *c);

/* --- tasks (ltask.c) ------------------------------------------------------------------ */

/* Makes a task of the iterator at 'it' for the Cooperator at 'idx'; it is not in
   the ring yet. [-0, +1, m] */
task *coop__task_new(lua_State *L, int idx, int it, lua_Integer batch);
/* Puts the new task on top into the ring. [-0, +0, e] */
void coop__task_add(lua_State *L, cooperator *c, task *t);
/* The task at 'idx' may run (again), or may not. False and the error on top when the
   scheduler failed. [-0, +(0|1), m] */
bool coop__task_enter(lua_State *L, int idx, task *t);
void coop__task_leave(lua_State *L, int idx, task *t);
/* Keeps the value on top among those of the task at 'idx'. [-1, +0, m] */
void coop__task_collect(lua_State *L, int idx, task *t);
/* Ends the task at 'idx' in this state. The Failure at 'failure' is its outcome (0:
   none); 'close' says whether its iterator is closed first. [-0, +0, m] */
void coop__task_finish(lua_State *L, int idx, task *t, task_state state,
                       int failure, bool close);
/* Ends it with the Failure on top. [-1, +0, m] */
void coop__task_fail(lua_State *L, int idx, task *t);
/* Ends it with the error of that state; its iterator is closed. [-0, +0, m] */
void coop__task_end(lua_State *L, int idx, task *t, task_state state);
/* The parts of an end, for a task that was ended in its own step. [-0, +0, m] */
void coop__task_close(lua_State *L, int idx, int failure);
void coop__task_give_slot(lua_State *L, int idx, task *t);
void coop__task_announce(lua_State *L, int idx, task *t, int failure);
/* task:when_done() */
int coop__task_when_done(lua_State *L);
/* Makes the type. [-0, +0, m] */
void coop__open_task(lua_State *L);

#endif
