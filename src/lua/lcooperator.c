/*
** lcooperator.c - iterators stepped in turn, a slice at a time.
**
** The ring of core/sched.h says whose turn it is; this file says what a step
** of each kind of iterator is and what becomes of what it yields. A step that
** yields nothing of interest touches no more than the ring and lua_resume;
** whatever else comes of one is seen to by event(), in protected mode, so that
** no error passes through the core.
*/
#include <stdlib.h>
#include <string.h>

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
  COOPERATOR_EVENT,     /* event() as a function */
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
  uint64_t glanced;   /* the cycle counter when it was asked last whether it is over, */
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
  STEP_EVENT = 100, /* a step that event() has to make */
  STEP_WANT         /* one for which there was no memory */
};

enum { STRIDE_MAX = 16 };  /* steps between two questions whether a slice is over */
static const double POLL_EVERY = 0.001; /* seconds, for input during a slice */

_Thread_local coop_stepping coop__stepping;

static task *of(coop_task *base) { return coop_container(base, task, base); }

/* Pushes the task; index of the Cooperator's RUN table is known in a tick. */
static void pushtask(lua_State *L, int run, const task *t) {
  lua_rawgeti(L, run, t->slot);
}

static int event(lua_State *L);

/* --- steps -------------------------------------------------------------------------- */

/* Is the next step its own, too, as far as can be known before this one? */
static inline bool has_next(const coop_sched *s) {
  return s->left > 0 || s->count == 1;
}

/* Of so many tasks none is in the processor's caches when its turn comes. */
enum { CROWD = 256 };

/* Has what the next steps look at fetched meanwhile: of the next task, its coroutine;
   of the one behind it, the task. */
static void foresee(const task *t) {
#if defined(__GNUC__)
  const coop_link *next = t->base.link.next;
  if (next == &t->c->sched.ring) return;
  const task *n = of(coop_container(next, coop_task, link));
  __builtin_prefetch(next->next);
  __builtin_prefetch((const char *)next->next + 64);
  const char *co = n->g ? (const char *)n->g->co : NULL;
  if (!co) return;
  __builtin_prefetch(co);
  __builtin_prefetch(co + 64);
  __builtin_prefetch(co + 128);
#else
  (void)t;
#endif
}

/* The first three are tail calls of lua_resume: a further frame between the ring and
   a coroutine costs more than all the rest. What died says so by ctx->signal. */
static int step_generator(coop_task *base, void *host) {
  task *t = of(base);
  generator *g = t->g;
  lua_State *co = g->co;
  if (g->state != GENERATOR_READY || t->resumes || lua_status(co) != LUA_YIELD)
    return STEP_EVENT;
  const coop_sched *s = &t->c->sched;
  if (s->count > CROWD) foresee(t);
  coop__runs(g->ctx, co);
  coop__stepping.co = has_next(s) ? co : NULL;
  coop__stepping.n = NULL;
  return lua_resume(co, host, 0, &base->nout);
}

/* The table that yields were stored in is let go of. */
static void forget_yields(lua_State *L) {
  coop__stepping.co = NULL;
  if (!coop__stepping.owner) return;
  coop__stepping.owner = NULL;
  pushctx(L, CTX_YIELD);
  lua_pushnil(L);
  lua_setupvalue(L, -2, 2);
  lua_pop(L, 1);
}

/* Yields of the coroutine are stored in the table of the task, which the RUN table
   at 'run' holds. */
static void store_yields(lua_State *L, int run, task *t) {
  coop__stepping.n = &t->n;
  coop__stepping.left = 0;
  if (coop__stepping.owner == t) return;
  pushctx(L, CTX_YIELD);
  pushtask(L, run, t);
  lua_getiuservalue(L, -1, TASK_VALUES);
  lua_setupvalue(L, -3, 2);
  lua_pop(L, 2);
  coop__stepping.owner = t;
}

/* The same of one that accumulates. */
static int step_collector(coop_task *base, void *host) {
  task *t = of(base);
  generator *g = t->g;
  if (g->state != GENERATOR_READY || t->resumes || lua_status(g->co) != LUA_YIELD)
    return STEP_EVENT;
  coop__runs(g->ctx, g->co);
  coop__stepping.co = has_next(&t->c->sched) ? g->co : NULL;
  if (coop__stepping.co) store_yields(host, t->c->base + 1, t);
  return lua_resume(g->co, host, 0, &base->nout);
}

/* Does a wait of somebody else's stand in the coroutine that the task at 'idx'
   steps? */
static bool waits_elsewhere(lua_State *L, int idx) {
  lua_getiuservalue(L, idx, TASK_ITERATOR);
  bool is = lua_status(lua_tothread(L, -1)) == LUA_YIELD && !coop__isfree(L, -1);
  lua_pop(L, 1);
  return is;
}

static int step_thread(coop_task *base, void *host) {
  task *t = of(base);
  if (t->resumes || lua_status(t->co) != LUA_YIELD) return STEP_EVENT;
  pushtask(host, t->c->base + 1, t);
  bool waits = waits_elsewhere(host, -1);
  lua_pop((lua_State *)host, 1);
  if (waits) return STEP_EVENT;
  coop__runs(t->c->ctx, t->co);
  coop__stepping.co = has_next(&t->c->sched) ? t->co : NULL;
  coop__stepping.n = NULL;
  if (t->batch && coop__stepping.co) store_yields(host, t->c->base + 1, t);
  return lua_resume(t->co, host, 0, &base->nout);
}

static int step_event(coop_task *base, void *host) {
  (void)base, (void)host;
  return STEP_EVENT;
}

/* The thread that the task steps, or NULL. */
static lua_State *thread_of(const task *t) { return t->g ? t->g->co : t->co; }

/* A value that a task collects, the common way: no event, no allocation. Only a
   power of two makes the table grow. */
static bool collect_quickly(lua_State *L, task *t, lua_State *co) {
  if ((t->n & (t->n - 1)) == 0) return false;
  pushtask(L, t->c->base + 1, t);
  lua_getiuservalue(L, -1, TASK_VALUES);
  lua_xmove(co, L, 1);
  lua_rawseti(L, -2, ++t->n);
  lua_pop(L, 2);
  return true;
}

/* Fails the task for want of memory, as far as that takes none; the error on top tells
   of it where even that cannot be. [-1, +0, -] */
static void give_up(lua_State *L, task *t) {
  lua_pushvalue(L, t->c->base);
  lua_pushlightuserdata(L, t);
  lua_pushinteger(L, STEP_WANT);
  if (coop__pcall(L, 2, 0, 0)) {
    lua_pop(L, 1);
    return;
  }
  lua_pop(L, 1);
  coop__sched_remove(&t->c->sched, &t->base);
  coop__reporterror(L);
}

static bool settle(coop_task *base, int status, void *host) {
  lua_State *L = host;
  task *t = of(base);
  if (status == COOP_STEP_MORE && t->c->ctx->signal == SIGNAL_NONE) {
    lua_State *co = thread_of(t);
    int type = base->nout == 1 ? lua_type(co, -1) : LUA_TUSERDATA;
    if (type == LUA_TNIL || (type != LUA_TUSERDATA && !t->batch)) {
      lua_settop(co, -2);
      return true;
    }
    if (type != LUA_TUSERDATA && collect_quickly(L, t, co)) return true;
  }
  lua_pushvalue(L, t->c->base);
  lua_pushlightuserdata(L, t);
  lua_pushinteger(L, status);
  if (!coop__pcall(L, 2, 1, 0)) { /* no memory to see to it */
    t->c->ctx->signal = SIGNAL_NONE;
    give_up(L, t);
    return false;
  }
  bool on = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return on;
}

static const coop_task_ops ops_generator = {step_generator, settle};
static const coop_task_ops ops_collector = {step_collector, settle};
static const coop_task_ops ops_thread = {step_thread, settle};
static const coop_task_ops ops_event = {step_event, settle};

/* --- ticks ---------------------------------------------------------------------------- */

static int get_cancel(lua_State *L) {
  lua_getfield(L, 1, "cancel");
  return 1;
}

/* Has the value on top something to call as its 'cancel'? */
static bool cancellable(lua_State *L) {
  if (!lua_istable(L, -1) && !lua_isuserdata(L, -1)) return false;
  lua_pushcfunction(L, get_cancel);
  lua_pushvalue(L, -2);
  bool is = lua_pcall(L, 1, 1, 0) == LUA_OK && coop__callable(L, -1);
  lua_pop(L, 1);
  return is;
}

/* obj:cancel(), whatever obj is */
static int cancel_call(lua_State *L) {
  lua_getfield(L, 1, "cancel");
  lua_pushvalue(L, 1);
  lua_call(L, 1, 0);
  return 0;
}

/* Asks the user's scheduler for a tick; false and the error on top when it fails
   or returns what cannot be cancelled. */
static bool ask_scheduler(lua_State *L, int idx, cooperator *c) {
  lua_getiuservalue(L, idx, COOPERATOR_SCHEDULER);
  lua_getiuservalue(L, idx, COOPERATOR_TICK);
  c->scheduled = c->scheduling = true;
  bool ok = coop__pcall(L, 1, 1, 0);
  c->scheduling = false;
  if (ok && !c->scheduled && cancellable(L)) { /* it was stopped in there */
    lua_pushcfunction(L, cancel_call);
    lua_insert(L, -2);
    if (!coop__pcall(L, 1, 0, 0)) coop__reporterror(L);
    return true;
  }
  if (ok && cancellable(L)) {
    lua_setiuservalue(L, idx, COOPERATOR_CALL);
    return true;
  }
  c->scheduled = false;
  if (!ok) return false;
  luaL_where(L, 1);
  lua_pushfstring(L, "Cooperator: the scheduler must return an object with "
                     "cancel, got %s", luaL_typename(L, -2));
  lua_concat(L, 2);
  lua_remove(L, -2);
  return false;
}

/* Asks the scheduler, or the reactor, for a tick of the Cooperator at 'idx'. */
static bool schedule(lua_State *L, int idx, cooperator *c) {
  if (c->scheduled || !c->running || c->sched.count == 0 || c->sched.ticking)
    return true;
  if (c->custom) return ask_scheduler(L, idx, c);
  pushctx(L, CTX_ACTIVE);
  lua_pushvalue(L, idx);
  lua_rawsetp(L, -2, c);
  lua_pop(L, 1);
  c->scheduled = true;
  coop__link_insert(&c->ctx->active, &c->active);
  coop__rearm(L);
  return true;
}

static void unschedule(lua_State *L, int idx, cooperator *c) {
  if (!c->scheduled) return;
  c->scheduled = false;
  if (!c->custom) {
    coop__link_remove(&c->active);
    pushctx(L, CTX_ACTIVE);
    lua_pushnil(L);
    lua_rawsetp(L, -2, c);
    lua_pop(L, 1);
    coop__rearm(L);
    return;
  }
  lua_pushcfunction(L, cancel_call);
  if (lua_getiuservalue(L, idx, COOPERATOR_CALL) == LUA_TNIL) {
    lua_pop(L, 2); /* the scheduler is being asked at this moment */
    return;
  }
  lua_pushnil(L);
  lua_setiuservalue(L, idx, COOPERATOR_CALL);
  if (!coop__pcall(L, 1, 0, 0)) coop__reporterror(L);
}

/* The first look at the clock comes after this many cycles at the least. */
enum { LOOK_MIN = 300 };

/* How many cycles to let pass before the clock is read, when it shall be seen that
   so many seconds have passed. */
static uint64_t cycles_in(const coop_context *ctx, double seconds) {
  double n = seconds * ctx->pace.rate;
  return n > 0 && n < GLANCE ? n < LOOK_MIN ? LOOK_MIN : (uint64_t)n : GLANCE;
}

/* It is 'now', and the counter stands there. */
static void note_pace(coop_context *ctx, double now, uint64_t cycles) {
  double passed = now - ctx->pace.seconds;
  if (passed < 0.001) return;
  if (ctx->pace.seconds > 0)
    ctx->pace.rate = (double)(cycles - ctx->pace.cycles) / passed;
  ctx->pace.seconds = now;
  ctx->pace.cycles = cycles;
}

static void begin_slice(cooperator *c) {
  coop_context *ctx = c->ctx;
  double now = coop__now();
  c->until = now + c->slice;
  if (c->until > ctx->until) c->until = ctx->until;
  c->poll = now + POLL_EVERY;
  c->look = c->glanced = coop__cycles();
  c->over = false;
  note_pace(ctx, now, c->glanced);
}

/* A slice ends early when a call is due, or somebody has written to us: nobody waits
   for it to be used up. */
static void read_clock(cooperator *c, uint64_t cycles) {
  coop_timer *next = coop__timers_first(c->ctx->timers);
  double now = coop__now(), end = c->until;
  if (next && next->due < end) end = next->due;
  c->over = now >= end;
  if (!c->over && !c->custom && now >= c->poll) {
    c->over = coop__loop_ready(&c->ctx->loop);
    c->poll = now + POLL_EVERY;
  }
  c->look = cycles + cycles_in(c->ctx, end - now);
}

/* Steps are many, and quick: while that is so it is asked only now and then whether
   the slice is over. After one that was not quick it is asked each time, for long. */
static size_t stride(cooperator *c, uint64_t passed) {
  if (passed >= GLANCE) {
    c->stride = 1;
    c->calm = 0;
  } else if (passed >= GLANCE / 8) {
    c->stride = (c->stride + 1) / 2;
  } else if (c->stride < STRIDE_MAX && ++c->calm >= 64) {
    c->stride *= 2;
    c->calm = 0;
  }
  return c->stride;
}

static bool slice_over(cooperator *c) {
  uint64_t cycles = coop__cycles();
  c->sched.credit = stride(c, cycles - c->glanced) - 1;
  c->glanced = cycles;
  if (!c->over && (int64_t)(cycles - c->look) >= 0) read_clock(c, cycles);
  return c->over;
}

bool coop__must_switch(void) {
  cooperator *c = coop__stepping.cooperator;
  if (c->predicate) return coop__stepping.left == 0; /* it is asked after a batch only */
  if (c->stale || c->stopping || !c->running || c->ctx->interrupt.exiting) return true;
  return slice_over(c);
}

static bool predicate_over(cooperator *c) {
  lua_State *L = c->L;
  coop__runs(c->ctx, c->caller); /* an interrupt is for the predicate */
  lua_pushvalue(L, c->base + 2);
  if (!coop__pcall(L, 0, 1, 0)) {
    coop__reporterror(L);
    return true;
  }
  bool is = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return is;
}

/* Sees to a task that stopped or paused itself during the step just made. */
static void see_to_stale(cooperator *c) {
  lua_State *L = c->L;
  lua_pushvalue(L, c->base);
  lua_pushnil(L);
  if (!coop__pcall(L, 1, 0, 0)) coop__reporterror(L);
}

static bool over(void *ud) {
  cooperator *c = ud;
  if (c->stale || c->stopping) see_to_stale(c);
  if (!c->running || c->ctx->interrupt.exiting) return true;
  if (c->predicate) return predicate_over(c) || coop__overdue(c->ctx);
  return slice_over(c);
}

/* One tick of the Cooperator at 'idx'; errors of its predicate are reported. */
static void tick(lua_State *L, int idx, cooperator *c) {
  coop_context *ctx = c->ctx;
  lua_State *running = ctx->running;
  int depth = ctx->depth;
  if (c->sched.count == 0) return;
  luaL_checkstack(L, 24, "tick");
  lua_State *outer = c->L;
  coop_stepping stepping = coop__stepping;
  c->L = L;
  c->caller = running;
  c->base = lua_gettop(L) + 1;
  lua_getiuservalue(L, idx, COOPERATOR_EVENT);
  lua_getiuservalue(L, idx, COOPERATOR_RUN);
  c->predicate = lua_getiuservalue(L, idx, COOPERATOR_FACTORY) != LUA_TNIL;
  if (c->predicate) {
    bool ok = coop__pcall(L, 0, 1, 0);
    if (!ok || !coop__callable(L, -1)) {
      if (ok) {
        lua_pop(L, 1);
        lua_pushliteral(L, "termination_predicate_factory returned no function");
      }
      coop__reporterror(L);
      lua_pushnil(L);
      c->predicate = false;
    }
  }
  begin_slice(c);
  c->sched.credit = 0;
  coop__stepping = (coop_stepping){.sched = &c->sched, .cooperator = c};
  coop__sched_tick(&c->sched, L, over, c);
  forget_yields(L);
  coop__stepping = stepping;
  coop__stepping.owner = NULL;
  if (stepping.sched) coop__attend(stepping.sched); /* a tick within a step */
  coop__runs(ctx, running);
  ctx->depth = depth;
  c->L = outer;
  lua_settop(L, c->base - 1);
}

/* The function that a scheduler is given: upvalue 2 is the Cooperator. */
static int tick_called(lua_State *L) {
  cooperator *c = lua_touserdata(L, lua_upvalueindex(2));
  if (c->sched.ticking)
    return luaL_error(L, "Cooperator: a tick within a tick");
  if (c->scheduling)
    return luaL_error(L, "Cooperator: the scheduler must call later, not at once");
  if (!c->scheduled || !c->running) return 0;
  c->scheduled = false;
  lua_settop(L, 0);
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_pushnil(L);
  lua_setiuservalue(L, 1, COOPERATOR_CALL);
  tick(L, 1, c);
  return schedule(L, 1, c) ? 0 : lua_error(L);
}

void coop__ticks(lua_State *L) {
  coop_context *ctx = getctx(L);
  size_t n = 0;
  for (coop_link *l = ctx->active.next; l != &ctx->active; l = l->next) n++;
  for (; n > 0 && !coop__link_alone(&ctx->active); n--) {
    cooperator *c = coop_container(ctx->active.next, cooperator, active);
    pushctx(L, CTX_ACTIVE);
    lua_rawgetp(L, -1, c);
    lua_remove(L, -2);
    int at = lua_gettop(L);
    coop__link_remove(&c->active); /* to the end of the round */
    coop__link_insert(&ctx->active, &c->active);
    if (!c->sched.ticking) tick(L, at, c);
    if (c->scheduled && c->sched.count == 0) unschedule(L, at, c);
    lua_settop(L, at - 1);
    if (coop__overdue(ctx)) break;
  }
}

/* --- in and out of the ring ----------------------------------------------------------------- */

/* The task at 'idx' may run (again): to the end of the ring. False and the error
   on top when the scheduler failed. */
static bool enter_ring(lua_State *L, int idx, task *t) {
  if (t->state != TASK_LIVE || t->pauses || t->wait) return true;
  cooperator *c = t->c;
  lua_getiuservalue(L, idx, TASK_COOPERATOR);
  int at = lua_gettop(L);
  lua_getiuservalue(L, at, COOPERATOR_RUN);
  lua_pushvalue(L, idx);
  lua_rawseti(L, -2, t->slot);
  lua_pop(L, 1);
  if (c->stale == t->slot) c->stale = 0;
  coop__sched_add(&c->sched, &t->base);
  bool ok = schedule(L, at, c);
  lua_remove(L, at);
  return ok;
}

/* It may not. lua_resume does not hold the thread it runs: the task that is
   being stepped is let go of when its step is over. */
static void leave_ring(lua_State *L, int idx, task *t) {
  cooperator *c = t->c;
  if (!coop__task_runnable(&t->base)) return;
  coop__sched_remove(&c->sched, &t->base);
  lua_getiuservalue(L, idx, TASK_COOPERATOR);
  int at = lua_gettop(L);
  if (c->sched.current == &t->base) {
    c->stale = t->slot;
    coop__attend(&c->sched);
  } else {
    lua_getiuservalue(L, at, COOPERATOR_RUN);
    lua_pushboolean(L, 0);
    lua_rawseti(L, -2, t->slot);
    lua_pop(L, 1);
  }
  if (c->sched.count == 0 && !c->sched.ticking) unschedule(L, at, c);
  lua_pop(L, 1);
}

/* --- finishing ---------------------------------------------------------------------------------- */

/* Takes the task at 'idx' off the books of its Cooperator. */
static void give_slot(lua_State *L, int idx, task *t) {
  cooperator *c = t->c;
  lua_getiuservalue(L, idx, TASK_COOPERATOR);
  lua_getiuservalue(L, -1, COOPERATOR_ALL);
  lua_pushnil(L);
  lua_rawseti(L, -2, t->slot);
  lua_pop(L, 1);
  lua_getiuservalue(L, -1, COOPERATOR_RUN);
  lua_pushinteger(L, c->free);
  lua_rawseti(L, -2, t->slot);
  lua_pop(L, 2);
  c->free = t->slot;
}

/* Fires the Deferred at 'idx' with the iterator, or with the Failure on top. */
static void tell(lua_State *L, int idx, int it, int failure) {
  deferred *d = todeferred(L, idx);
  if (!d || d->flags & D_FIRED) return;
  lua_pushvalue(L, failure ? failure : it);
  coop__fire(L, idx);
}

/* Is the Failure that of a task for which there was no memory, which all share? */
static bool is_want(lua_State *L, int failure) {
  pushctx(L, CTX_WANT);
  lua_getiuservalue(L, -1, DEFERRED_RESULT);
  bool is = lua_rawequal(L, -1, failure);
  lua_pop(L, 2);
  return is;
}

/* The Deferred of an accumulating task gets the values or the Failure, which
   carries what came before. */
static void tell_target(lua_State *L, int idx, int failure) {
  lua_getiuservalue(L, idx, TASK_TARGET);
  int target = lua_gettop(L);
  deferred *d = todeferred(L, target);
  lua_pushnil(L);
  lua_setiuservalue(L, idx, TASK_TARGET);
  if (d && !(d->flags & D_FIRED)) {
    lua_getiuservalue(L, idx, TASK_VALUES);
    if (failure) {
      if (lua_getiuservalue(L, failure, FAILURE_FIELDS) == LUA_TNIL &&
          !is_want(L, failure)) {
        lua_newtable(L);
        lua_pushvalue(L, -3);
        lua_setfield(L, -2, "partial");
        lua_setiuservalue(L, failure, FAILURE_FIELDS);
      }
      lua_pushvalue(L, failure);
    }
    coop__fire(L, target);
  }
  lua_settop(L, target - 1);
}

/* A failure that nobody asked about yet is kept in a Deferred, which reports it
   like any other when nobody ever does. */
static void keep_outcome(lua_State *L, int idx, int failure, bool observed) {
  if (is_want(L, failure)) {
    pushctx(L, CTX_WANT);
    lua_setiuservalue(L, idx, TASK_DONE);
    return;
  }
  deferred *d = coop__deferred_new(L);
  int at = lua_gettop(L);
  if (observed) d->flags |= D_HANDLED;
  lua_pushvalue(L, failure);
  coop__settle(L, at);
  if (observed) d->flags |= D_HANDLED;
  coop__run(L, at);
  lua_setiuservalue(L, idx, TASK_DONE);
}

/* Tells everybody how the task at 'idx' ended: with its iterator, or with the
   Failure at 'failure' (0: none). Its step, if it is in one, is over. */
static void announce(lua_State *L, int idx, task *t, int failure) {
  luaL_checkstack(L, 16, "task");
  int top = lua_gettop(L);
  if (t->batch) tell_target(L, idx, failure);
  int list = lua_getiuservalue(L, idx, TASK_DONE) == LUA_TTABLE ? top + 1 : 0;
  lua_getiuservalue(L, idx, TASK_ITERATOR);
  int it = top + 2;
  bool observed = list || t->batch || t->state != TASK_FAILED;
  if (failure) {
    keep_outcome(L, idx, failure, observed);
  } else {
    lua_pushnil(L);
    lua_setiuservalue(L, idx, TASK_DONE);
  }
  lua_Integer n = list ? (lua_Integer)lua_rawlen(L, list) : 0;
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, list, i);
    tell(L, it + 1, it, failure);
    lua_settop(L, it);
  }
  lua_settop(L, top);
}

static int ignore(lua_State *L) {
  (void)L;
  return 0;
}

/* Detaches the task at 'idx' from what it waits on. What its generator alone
   awaits is cancelled with it; a Deferred that was yielded is not its own. */
static void stop_waiting(lua_State *L, int idx, task *t) {
  if (!t->wait) return;
  task_wait wait = t->wait;
  t->wait = WAIT_NONE;
  lua_pushvalue(L, idx);
  lua_getiuservalue(L, idx, TASK_WAIT);
  lua_pushnil(L);
  lua_setiuservalue(L, idx, TASK_WAIT);
  int at = lua_gettop(L);
  deferred *d = todeferred(L, at);
  if (d) {
    coop__detach(L, at, t);
    if (t->g && wait == WAIT_AWAITED) t->g->state = GENERATOR_READY;
    if (!t->g && wait == WAIT_AWAITED) coop__mark_passing(L, t->co, false);
    lua_pushvalue(L, CTX);
    lua_pushcclosure(L, ignore, 1);
    coop__append(L, at, H_OBSERVE); /* a late failure is nobody's */
    if (wait == WAIT_AWAITED && d->waiters == 0) coop__cancel(L, at);
  }
  lua_settop(L, at - 2);
}

/* The Generator at 'it', which waits, is being closed: all tasks that share it and
   wait with it go on, to find it at its end. */
static void wake_sharers(lua_State *L, int it, generator *g) {
  int top = lua_gettop(L);
  lua_getiuservalue(L, it, GENERATOR_BODY);
  if (lua_getiuservalue(L, top + 1, FIBER_WAIT) == LUA_TUSERDATA) {
    coop__pushwaiters(L, top + 2);
    lua_Integer n = (lua_Integer)lua_rawlen(L, top + 3);
    for (lua_Integer i = 1; i <= n; i++) {
      lua_rawgeti(L, top + 3, i);
      task *t = tokind(L, top + 4, KIND_TASK);
      if (t && t->g == g && t->state == TASK_LIVE) {
        stop_waiting(L, top + 4, t);
        if (!enter_ring(L, top + 4, t)) coop__reporterror(L);
      }
      lua_settop(L, top + 3);
    }
  }
  lua_settop(L, top);
}

/* The iterator of the task at 'idx' is closed; its cleanup's Failure replaces
   the one at 'failure'. */
static void close_iterator(lua_State *L, int idx, int failure) {
  lua_getiuservalue(L, idx, TASK_ITERATOR);
  int at = lua_gettop(L);
  generator *g = tokind(L, at, KIND_GENERATOR);
  bool running = g && g->co && lua_status(g->co) != LUA_YIELD &&
                 g->state != GENERATOR_NEW;
  lua_Debug ar;
  if (running && !lua_getstack(g->co, 0, &ar)) running = false;
  if (g && g->co && !running) wake_sharers(L, at, g);
  if (!running && !coop__iterator_close(L, at)) {
    coop__caught(L, false);
    if (failure) lua_replace(L, failure);
    else coop__report(L);
  }
  lua_settop(L, at - 1);
}

/* Ends the task at 'idx' in this state. The Failure at 'failure' is its outcome;
   'close' says whether its iterator is closed first. A task that is in its own
   step is seen to when that is over. */
static void finish(lua_State *L, int idx, task *t, task_state state, int failure,
                   bool close) {
  bool in_step = t->c->sched.current == &t->base && close;
  t->state = (uint8_t)state;
  stop_waiting(L, idx, t);
  leave_ring(L, idx, t);
  if (in_step) {
    t->c->stale = t->slot;
    coop__attend(&t->c->sched);
    lua_pushvalue(L, failure);
    lua_setiuservalue(L, idx, TASK_WAIT);
    return;
  }
  if (close) close_iterator(L, idx, failure);
  if (t->c->stale == t->slot) t->c->stale = 0;
  lua_pushnil(L);
  lua_setiuservalue(L, idx, TASK_WAIT);
  announce(L, idx, t, failure);
  give_slot(L, idx, t); /* last: for want of memory it is told again */
}

static void fail(lua_State *L, int idx, task *t) {
  finish(L, idx, t, TASK_FAILED, lua_gettop(L), false);
  lua_pop(L, 1);
}

static const char *const state_class[] = {NULL, "TaskDone", "TaskStopped",
                                          "TaskFailed", "SchedulerStopped"};
static const char *const state_text[] = {
  NULL, "the task has finished", "the task was stopped", "the task has failed",
  "the Cooperator was stopped"};

static void pushstopped(lua_State *L, task_state state) {
  coop__pusherror(L, state_class[state], state_text[state]);
  coop__tofailure(L);
}

static void stop(lua_State *L, int idx, task *t, task_state state) {
  pushstopped(L, state);
  finish(L, idx, t, state, lua_gettop(L), true);
  lua_pop(L, 1);
}

/* --- what a step yields ------------------------------------------------------------------------------ */

/* Keeps the value on top at its place in what the task at 'idx' accumulates. */
static void collect(lua_State *L, int idx, task *t) {
  if (lua_isnil(L, -1)) {
    lua_pop(L, 1);
    return;
  }
  lua_getiuservalue(L, idx, TASK_VALUES);
  lua_insert(L, -2);
  lua_rawseti(L, -2, ++t->n);
  lua_pop(L, 1);
}

/* The task at 'idx' waits for the Deferred at 'd'. */
static void wait_for(lua_State *L, int idx, task *t, int d, task_wait wait) {
  lua_pushvalue(L, idx);
  coop__append(L, d, H_WAITER);
  lua_pushvalue(L, d);
  lua_setiuservalue(L, idx, TASK_WAIT);
  t->wait = wait;
  if (wait == WAIT_AWAITED && !t->g) coop__mark_passing(L, t->co, true);
  if (wait == WAIT_AWAITED && t->g) {
    t->g->state = GENERATOR_WAITS;
    lua_getiuservalue(L, idx, TASK_ITERATOR);
    lua_getiuservalue(L, -1, GENERATOR_BODY);
    lua_pushvalue(L, d);
    lua_setiuservalue(L, -2, FIBER_WAIT); /* for others that share it */
    coop__fiber_passed(L, lua_gettop(L));
    lua_pop(L, 2);
  }
  leave_ring(L, idx, t);
  coop__waited(L, d);
}

/* The Deferred at 'd' was yielded. True when the task keeps its turn: what has
   fired is a value like any other. */
static bool take_deferred(lua_State *L, int idx, task *t, int d) {
  deferred *w = lua_touserdata(L, d);
  if (!settled(w)) {
    wait_for(L, idx, t, d, WAIT_YIELDED);
    return false;
  }
  coop__handled(L, d);
  lua_getiuservalue(L, d, DEFERRED_RESULT);
  if (w->flags & D_FAILED) {
    fail(L, idx, t);
    return false;
  }
  if (t->batch) collect(L, idx, t);
  else lua_pop(L, 1);
  return true;
}

/* The value on top was yielded or returned by the iterator. [-1, +0, m] */
static bool take_value(lua_State *L, int idx, task *t) {
  int at = lua_gettop(L);
  bool on = true;
  if (todeferred(L, at)) on = take_deferred(L, idx, t, at);
  else if (t->batch) collect(L, idx, t);
  lua_settop(L, at - 1);
  return on;
}

/* --- events: what a step comes to, beside a plain yield ------------------------------------------------ */

/* Sees to a yield that wants no turn of the task: a new body is run, what a
   generator must not do is refused. True: the thread is to be resumed with the
   'nres' values that are on it now. */
static bool answer(lua_State *L, task *t, int *nres) {
  coop_context *ctx = getctx(L);
  lua_State *co = thread_of(t);
  signal_kind signal = ctx->signal;
  if (signal == SIGNAL_NONE || signal == SIGNAL_AWAIT || signal == SIGNAL_EXIT)
    return false;
  ctx->signal = SIGNAL_NONE;
  coop__forget_passed(L);
  if (signal == SIGNAL_RUN) {
    coop__run_later(L);
  } else if (signal == SIGNAL_SPAWN) {
    lua_xmove(co, L, 1);
    coop__run_now(L, lua_gettop(L));
    lua_xmove(L, co, 1);
  } else {
    lua_settop(co, -*nres - 1);
    *nres = 1;
    lua_pushfstring(co, "%s: not in a coroutine of coop.spawn",
                    signal == SIGNAL_NORETURN ? "noreturn" : "return_value");
    ctx->raising = true;
  }
  return true;
}

/* Resumes the task's thread with 'nargs' values on it. */
static int resume_on(lua_State *L, task *t, int nargs, int *nres) {
  int status = coop__resume(L, thread_of(t), nargs, nres);
  while (status == LUA_YIELD && answer(L, t, nres))
    status = coop__resume(L, thread_of(t), *nres, nres);
  return status;
}

/* The iterator is exhausted. */
static void ended(lua_State *L, int idx, task *t) {
  if (t->g) {
    lua_getiuservalue(L, idx, TASK_ITERATOR);
    coop__generator_finish(L, lua_gettop(L)); /* it has nothing left to close */
    lua_pop(L, 1);
  }
  finish(L, idx, t, TASK_DONE_STATE, 0, false);
}

/* The thread of the iterator died by an error. */
static void died(lua_State *L, int idx, task *t) {
  lua_State *co = thread_of(t);
  int top = lua_gettop(L);
  if (!t->g) coop__capture(L, co, 0);
  coop__fiber_error(L, co);
  coop__caught(L, true);
  if (t->g) {
    lua_getiuservalue(L, idx, TASK_ITERATOR);
    coop__generator_finish(L, top + 2);
    lua_pop(L, 1);
  }
  if (t->state == TASK_LIVE) {
    fail(L, idx, t);
  } else { /* it had stopped itself: the error is nobody's outcome */
    coop__report(L);
  }
  lua_settop(L, top);
}

/* What a resumption of the task's thread came to; true: it may go on. */
static bool resumed(lua_State *L, int idx, task *t, int status, int nres) {
  coop_context *ctx = getctx(L);
  lua_State *co = thread_of(t);
  if (status == LUA_OK) {
    lua_settop(co, 0);
    if (t->state == TASK_LIVE) ended(L, idx, t);
    return false;
  }
  if (status != LUA_YIELD) {
    died(L, idx, t);
    return false;
  }
  signal_kind signal = ctx->signal;
  ctx->signal = SIGNAL_NONE;
  if (signal == SIGNAL_EXIT) {
    if (t->state == TASK_LIVE) stop(L, idx, t, TASK_STOPPED);
    return false;
  }
  if (nres == 0) return true;
  lua_pushvalue(co, -nres);
  lua_xmove(co, L, 1);
  lua_settop(co, -nres - 1);
  int at = lua_gettop(L);
  if (t->state != TASK_LIVE) { /* stopped in its own step */
    lua_settop(L, at - 1);
    return false;
  }
  if (signal == SIGNAL_AWAIT) {
    wait_for(L, idx, t, at, WAIT_AWAITED);
    lua_settop(L, at - 1);
    return false;
  }
  return take_value(L, idx, t);
}

/* Puts what the task's thread is to be resumed with on it; how many values. */
static int pushinput(lua_State *L, int idx, task *t) {
  lua_State *co = thread_of(t);
  if (!t->resumes) {
    lua_Debug ar;
    if (lua_status(co) == LUA_OK && !lua_getstack(co, 0, &ar))
      return lua_gettop(co) - 1; /* its first step: all is there */
    return 0;
  }
  t->resumes = false;
  if (!t->g) coop__mark_passing(L, co, false);
  lua_getiuservalue(L, idx, TASK_WAIT);
  lua_pushnil(L);
  lua_setiuservalue(L, idx, TASK_WAIT);
  if (t->g) {
    t->g->state = GENERATOR_READY;
    lua_getiuservalue(L, idx, TASK_ITERATOR);
    lua_getiuservalue(L, -1, GENERATOR_BODY);
    coop__fiber_resumes(L, lua_gettop(L));
    lua_pop(L, 2);
  }
  lua_getiuservalue(L, -1, DEFERRED_RESULT);
  if (tofailure(L, -1)) {
    coop__raised(L, lua_gettop(L));
    lua_getiuservalue(L, -1, FAILURE_VALUE);
    lua_remove(L, -2);
    getctx(L)->raising = true;
  }
  lua_xmove(L, co, 1);
  lua_pop(L, 1);
  return 1;
}

/* Another task's generator waits: so does this one, for its turn with it. */
static bool wait_shared(lua_State *L, int idx, task *t) {
  lua_getiuservalue(L, idx, TASK_ITERATOR);
  lua_getiuservalue(L, -1, GENERATOR_BODY);
  lua_getiuservalue(L, -1, FIBER_WAIT);
  int d = lua_gettop(L);
  if (todeferred(L, d) && !settled(lua_touserdata(L, d)))
    wait_for(L, idx, t, d, WAIT_SHARED);
  lua_settop(L, d - 3);
  return false;
}

/* The values of a batch are stored as they are yielded, without a switch, until
   it is full or the slice is over. (event() has the RUN table at 2.) */
static bool step_batch(lua_State *L, int idx, task *t) {
  lua_Integer end = t->n + t->batch;
  int nres;
  bool on = true;
  while (on && t->n < end) {
    int nargs = pushinput(L, idx, t);
    store_yields(L, 2, t);
    coop__stepping.left = end - t->n;
    coop__stepping.co = thread_of(t);
    int status = resume_on(L, t, nargs, &nres);
    coop__stepping.co = NULL;
    on = resumed(L, idx, t, status, nres);
    if (t->n < end && !t->c->predicate && slice_over(t->c)) break;
  }
  return on;
}

static bool step_resumed(lua_State *L, int idx, task *t) {
  int nres;
  if (t->g) {
    if (t->g->state == GENERATOR_ENDED) {
      finish(L, idx, t, TASK_DONE_STATE, 0, false);
      return false;
    }
    if (t->g->state == GENERATOR_WAITS && !t->resumes) return wait_shared(L, idx, t);
    if (t->g->state == GENERATOR_NEW) {
      lua_getiuservalue(L, idx, TASK_ITERATOR);
      coop__generator_start(L, lua_gettop(L));
      lua_pop(L, 1);
    }
  }
  lua_State *co = thread_of(t);
  lua_Debug ar;
  if (!t->g && !t->resumes && waits_elsewhere(L, idx)) {
    lua_pushliteral(L, "the coroutine that the task steps waits in another one");
    coop__tofailure(L);
    fail(L, idx, t);
    return false;
  }
  if (!t->resumes && lua_status(co) != LUA_YIELD) {
    bool running = lua_status(co) == LUA_OK && lua_getstack(co, 0, &ar);
    if (!running && (lua_status(co) != LUA_OK || lua_gettop(co) == 0)) {
      finish(L, idx, t, TASK_DONE_STATE, 0, false); /* a coroutine at its end */
      return false;
    }
    if (running) {
      lua_pushliteral(L, "the iterator of a task is running already");
      coop__tofailure(L);
      fail(L, idx, t);
      return false;
    }
  }
  if (t->batch > 1) return step_batch(L, idx, t);
  int status = resume_on(L, t, pushinput(L, idx, t), &nres);
  return resumed(L, idx, t, status, nres);
}

/* Gets the next value of a callable, a stage or a sequence; false: an error, on
   top as a Failure. */
static bool pushnext(lua_State *L, int idx, task *t) {
  lua_getiuservalue(L, idx, TASK_ITERATOR);
  if (t->index > 0) {
    lua_rawgeti(L, -1, t->index++);
    lua_remove(L, -2);
    return true;
  }
  int at = lua_gettop(L);
  bool stage = coop__isstage(L, at);
  pushctx(L, CTX_MSGH);
  lua_insert(L, at);
  if (stage) {
    pushctx(L, CTX_TASK_NEXT);
    lua_insert(L, at + 1);
  }
  bool ok = coop__pcall(L, stage, 1, at);
  if (!ok) coop__caught(L, false);
  lua_remove(L, at);
  return ok;
}

static bool step_called(lua_State *L, int idx, task *t) {
  for (lua_Integer left = t->batch ? t->batch : 1; left > 0; left--) {
    bool ok = pushnext(L, idx, t);
    if (t->state != TASK_LIVE) {
      lua_pop(L, 1);
      return false;
    }
    if (!ok) {
      fail(L, idx, t);
      return false;
    }
    if (lua_isnil(L, -1)) {
      lua_pop(L, 1);
      finish(L, idx, t, TASK_DONE_STATE, 0, false);
      return false;
    }
    if (!take_value(L, idx, t)) return false;
    if (!t->c->predicate && slice_over(t->c)) break;
  }
  return true;
}

/* The task whose slot is stale stopped itself or paused, and its step is over. */
static void stale(lua_State *L, cooperator *c, int run) {
  lua_Integer slot = c->stale;
  c->stale = 0;
  lua_rawgeti(L, run, slot);
  int at = lua_gettop(L);
  task *t = tokind(L, at, KIND_TASK);
  if (t && t->slot == slot) {
    if (t->state == TASK_LIVE) {
      if (!coop__task_runnable(&t->base)) {
        lua_pushboolean(L, 0);
        lua_rawseti(L, run, slot);
      }
    } else {
      lua_getiuservalue(L, at, TASK_WAIT); /* its outcome */
      lua_pushnil(L);
      lua_setiuservalue(L, at, TASK_WAIT);
      close_iterator(L, at, at + 1);
      give_slot(L, at, t);
      announce(L, at, t, at + 1);
    }
  }
  lua_settop(L, at - 1);
}

typedef struct numbered {
  uint64_t seq;
  lua_Integer slot;
} numbered;

static int by_seq(const void *a, const void *b) {
  const numbered *x = a, *y = b;
  return (x->seq > y->seq) - (x->seq < y->seq);
}

/* Ends the tasks that were there when stop() was called, in order of addition. */
static void stop_all(lua_State *L, int idx, cooperator *c) {
  int top = lua_gettop(L), all = top + 1, held = top + 3, at = top + 4;
  luaL_checkstack(L, 12, "stop");
  lua_getiuservalue(L, idx, COOPERATOR_ALL);
  numbered *list = lua_newuserdatauv(L, (size_t)c->slots * sizeof *list + 1, 0);
  size_t n = 0;
  lua_newtable(L);
  for (lua_Integer i = 1; i <= c->slots; i++) {
    lua_rawgeti(L, all, i);
    task *t = tokind(L, -1, KIND_TASK);
    if (t && t->state == TASK_LIVE && t->seq < c->stopping) {
      list[n++] = (numbered){t->seq, i};
      lua_rawseti(L, held, i);
    } else {
      lua_pop(L, 1);
    }
  }
  c->stopping = 0;
  qsort(list, n, sizeof *list, by_seq);
  for (size_t i = 0; i < n; i++) {
    lua_rawgeti(L, held, list[i].slot);
    task *t = lua_touserdata(L, at);
    if (t->state == TASK_LIVE) stop(L, at, t, TASK_SCHEDULER_STOPPED);
    lua_settop(L, held);
  }
  lua_settop(L, top);
}

/* There was no memory for the step, or for telling of its failure: the task fails by
   what is there already. */
static bool want(lua_State *L, int idx, task *t) {
  int at = lua_gettop(L) + 1;
  if (tokind(L, idx, KIND_TASK) != t) return false; /* all was told */
  pushctx(L, CTX_WANT);
  lua_getiuservalue(L, at, DEFERRED_RESULT);
  lua_replace(L, at);
  if (t->state == TASK_LIVE) {
    finish(L, idx, t, TASK_FAILED, at, false);
  } else if (t->c->sched.current != &t->base || t->c->stale != t->slot) {
    announce(L, idx, t, at);
    give_slot(L, idx, t);
  }
  lua_settop(L, at - 1);
  return false;
}

/* event(task, status) -> may it go on?   event(nil): sees to a stale task.
   Upvalue 2 is the Cooperator. */
static int event(lua_State *L) {
  cooperator *c = lua_touserdata(L, lua_upvalueindex(2));
  task *t = lua_touserdata(L, 1);
  int status = (int)lua_tointeger(L, 2);
  lua_settop(L, 1);
  luaL_checkstack(L, 24, "step");
  lua_getiuservalue(L, lua_upvalueindex(2), COOPERATOR_RUN);
  coop__stepping.co = NULL;
  if (!t) {
    c->sched.current = NULL; /* its step is over */
    if (c->stale) stale(L, c, 2);
    if (c->stopping) stop_all(L, lua_upvalueindex(2), c);
    return 0;
  }
  coop__runs(c->ctx, c->caller);
  if (c->ctx->signal == SIGNAL_DIED) {
    c->ctx->signal = SIGNAL_NONE;
    status = LUA_ERRRUN;
  }
  pushtask(L, 2, t);
  if (status == STEP_WANT)
    lua_pushboolean(L, want(L, 3, t));
  else if (status == STEP_EVENT && !t->g && !t->co)
    lua_pushboolean(L, step_called(L, 3, t));
  else if (status == STEP_EVENT)
    lua_pushboolean(L, step_resumed(L, 3, t));
  else {
    int nres = t->base.nout;
    if (status == LUA_YIELD && answer(L, t, &nres))
      status = resume_on(L, t, nres, &nres);
    lua_pushboolean(L, resumed(L, 3, t, status, nres));
  }
  t->base.nout = 0;
  return 1;
}

/* --- waking ----------------------------------------------------------------------------------------- */

void coop__task_wake(lua_State *L, int idx, int from) {
  task *t = lua_touserdata(L, idx);
  deferred *d = lua_touserdata(L, from);
  task_wait wait = t->wait;
  luaL_checkstack(L, 16, "task");
  coop__handled(L, from);
  t->wait = WAIT_NONE;
  lua_pushnil(L);
  lua_setiuservalue(L, idx, TASK_WAIT);
  if (t->state != TASK_LIVE) return;
  if (wait == WAIT_AWAITED) {
    lua_pushvalue(L, from);
    lua_setiuservalue(L, idx, TASK_WAIT);
    t->resumes = true;
  } else if (wait == WAIT_YIELDED) {
    lua_getiuservalue(L, from, DEFERRED_RESULT);
    if (d->flags & D_FAILED) {
      fail(L, idx, t);
      return;
    }
    if (t->batch) collect(L, idx, t);
    else lua_pop(L, 1);
  }
  if (!enter_ring(L, idx, t)) coop__reporterror(L);
}

void coop__task_hold(lua_State *L, int idx, bool hold) {
  task *t = lua_touserdata(L, idx);
  if (hold) {
    t->pauses++;
    leave_ring(L, idx, t);
  } else if (t->pauses && --t->pauses == 0) {
    if (!enter_ring(L, idx, t)) coop__reporterror(L);
  }
}

/* Adds to the table on top what is known of the task: { task, state, custom, thread,
   on }. [-0, +0, m] */
static void add_facts(lua_State *L, int idx, const task *t) {
  lua_pushvalue(L, idx);
  lua_setfield(L, -2, "task");
  lua_pushstring(L, t->wait == WAIT_SHARED ? "shares" : t->wait ? "waits"
                    : t->pauses ? "paused" : "runnable");
  lua_setfield(L, -2, "state");
  lua_pushboolean(L, t->c->custom);
  lua_setfield(L, -2, "custom");
  if (thread_of(t)) {
    lua_pushthread(thread_of(t));
    lua_xmove(thread_of(t), L, 1);
    lua_setfield(L, -2, "thread");
  }
  lua_pushboolean(L, t->wait == WAIT_AWAITED && t->g); /* its fiber waits, too */
  lua_setfield(L, -2, "fiber");
  if (t->wait == WAIT_NONE) return;
  lua_getiuservalue(L, idx, TASK_WAIT);
  lua_setfield(L, -2, "on");
}

/* core.tasks(): a list of such tables, of all tasks that have not ended. */
static int tasks(lua_State *L) {
  lua_settop(L, 0);
  lua_newtable(L);
  pushctx(L, CTX_COOPERATORS);
  for (lua_pushnil(L); lua_next(L, 2); lua_settop(L, 3)) {
    cooperator *c = lua_touserdata(L, 3);
    lua_getiuservalue(L, 3, COOPERATOR_ALL); /* 5 */
    for (lua_Integer i = 1; i <= c->slots; i++) {
      lua_rawgeti(L, 5, i);
      task *t = tokind(L, 6, KIND_TASK);
      if (t && t->state == TASK_LIVE) {
        lua_newtable(L);
        add_facts(L, 6, t);
        lua_rawseti(L, 1, (lua_Integer)lua_rawlen(L, 1) + 1);
      }
      lua_settop(L, 5);
    }
  }
  lua_settop(L, 1);
  return 1;
}

bool coop__task_cancel(lua_State *L, int idx) {
  task *t = lua_touserdata(L, idx);
  int top = lua_gettop(L);
  if (t->state != TASK_LIVE) return true;
  lua_pushnil(L);
  lua_setiuservalue(L, idx, TASK_TARGET);
  pushstopped(L, TASK_STOPPED);
  lua_pushvalue(L, -1);
  finish(L, idx, t, TASK_STOPPED, top + 1, true);
  bool ok = lua_rawequal(L, top + 1, top + 2);
  lua_settop(L, ok ? top : top + 1);
  return ok;
}

/* --- methods of a task -------------------------------------------------------------------------------- */

static task *checktask(lua_State *L, const char *fname) {
  return coop__checkkind(L, 1, KIND_TASK, fname, 0);
}

static task *checklive(lua_State *L, const char *fname) {
  task *t = checktask(L, fname);
  if (t->state != TASK_LIVE)
    coop__raise(L, state_class[t->state], fname, state_text[t->state]);
  return t;
}

static int task_pause(lua_State *L) {
  task *t = checklive(L, "pause");
  if (t->pauses == UINT16_MAX) return luaL_error(L, "pause: too many pauses");
  coop__task_hold(L, 1, true);
  return 0;
}

static int task_resume(lua_State *L) {
  task *t = checktask(L, "resume");
  if (t->pauses == 0)
    return coop__raise(L, "NotPaused", "resume", "the task is not paused");
  coop__task_hold(L, 1, false);
  return 0;
}

static int task_stop(lua_State *L) {
  task *t = checklive(L, "stop");
  stop(L, 1, t, TASK_STOPPED);
  return 0;
}

static int task_when_done(lua_State *L) {
  task *t = checktask(L, "when_done");
  lua_settop(L, 1);
  coop__deferred_new(L); /* 2 */
  lua_getiuservalue(L, 1, TASK_DONE);
  if (t->state == TASK_LIVE || t->c->stale == t->slot) {
    if (!lua_istable(L, 3)) {
      lua_settop(L, 2);
      lua_newtable(L);
      lua_pushvalue(L, 3);
      lua_setiuservalue(L, 1, TASK_DONE);
    }
    lua_pushvalue(L, 2);
    lua_rawseti(L, 3, (lua_Integer)lua_rawlen(L, 3) + 1);
  } else if (todeferred(L, 3)) {
    coop__handled(L, 3);
    lua_getiuservalue(L, 3, DEFERRED_RESULT);
    coop__fire(L, 2);
  } else {
    lua_getiuservalue(L, 1, TASK_ITERATOR);
    coop__fire(L, 2);
  }
  lua_settop(L, 2);
  return 1;
}

static int task__tostring(lua_State *L) {
  static const char *const words[] = {"", "done", "stopped", "failed",
                                      "scheduler stopped"};
  task *t = checktask(L, "tostring");
  lua_pushfstring(L, "CooperativeTask: %p (%s)", (void *)t,
                  t->state ? words[t->state]
                  : t->wait ? "waiting"
                  : t->pauses ? "paused" : "runnable");
  return 1;
}

/* --- methods of a Cooperator -------------------------------------------------------------------------------- */

static cooperator *checkcooperator(lua_State *L, int idx, const char *fname, int arg) {
  return coop__checkkind(L, idx, KIND_COOPERATOR, fname, arg);
}

/* Slots whose tasks were collected unfinished are free again. */
static void reclaim(lua_State *L, cooperator *c, int run, int all) {
  for (lua_Integer i = 1; i <= c->slots; i++) {
    bool gone = lua_rawgeti(L, all, i) == LUA_TNIL;
    gone = lua_rawgeti(L, run, i) == LUA_TBOOLEAN && gone;
    lua_pop(L, 2);
    if (!gone) continue;
    lua_pushinteger(L, c->free);
    lua_rawseti(L, run, i);
    c->free = i;
  }
}

static lua_Integer take_slot(lua_State *L, cooperator *c, int run, int all) {
  if (!c->free && c->slots >= 64 && (c->slots & (c->slots - 1)) == 0)
    reclaim(L, c, run, all);
  if (!c->free) return ++c->slots;
  lua_Integer slot = c->free;
  lua_rawgeti(L, run, slot);
  c->free = lua_tointeger(L, -1);
  lua_pop(L, 1);
  return slot;
}

/* Makes a task of the iterator at 'it' for the Cooperator at 'idx'; it is not in
   the ring yet. [-0, +1, m] */
static task *task_new(lua_State *L, int idx, int it, lua_Integer batch) {
  cooperator *c = lua_touserdata(L, idx);
  task *t = coop__new(L, KIND_TASK, sizeof *t,
                      batch ? TASK_COLLECT_NUV : TASK_NUV);
  int at = lua_gettop(L);
  t->c = c;
  t->g = tokind(L, it, KIND_GENERATOR);
  t->co = lua_tothread(L, it);
  t->index = !t->g && lua_istable(L, it) && !coop__callable(L, it) ? 1 : 0;
  t->batch = batch;
  coop__task_init(&t->base, batch > 1 || (!t->g && !t->co) ? &ops_event
                            : !t->g ? &ops_thread
                            : batch ? &ops_collector : &ops_generator);
  lua_pushvalue(L, idx);
  lua_setiuservalue(L, at, TASK_COOPERATOR);
  lua_pushvalue(L, it);
  lua_setiuservalue(L, at, TASK_ITERATOR);
  lua_getiuservalue(L, idx, COOPERATOR_RUN);
  lua_getiuservalue(L, idx, COOPERATOR_ALL);
  t->slot = take_slot(L, c, at + 1, at + 2);
  lua_pushboolean(L, 0);
  lua_rawseti(L, at + 1, t->slot);
  lua_pushvalue(L, at);
  lua_rawseti(L, at + 2, t->slot);
  lua_settop(L, at);
  t->seq = c->seq++;
  return t;
}

/* Puts the new task on top into the ring; of a stopped Cooperator it is over at
   once. One that is not started yet only keeps it. */
static void add(lua_State *L, cooperator *c, task *t) {
  int at = lua_gettop(L);
  if (c->stopped) { /* stopped */
    stop(L, at, t, TASK_SCHEDULER_STOPPED);
    return;
  }
  if (enter_ring(L, at, t)) return;
  leave_ring(L, at, t); /* as if it had never been added */
  t->state = TASK_STOPPED;
  give_slot(L, at, t);
  lua_error(L);
}

/* c:cooperate(iterator) */
static int cooperate_with(lua_State *L, int idx, int it) {
  cooperator *c = lua_touserdata(L, idx);
  task *t = task_new(L, idx, it, 0);
  add(L, c, t);
  return 1;
}

static int cooperator_cooperate(lua_State *L) {
  checkcooperator(L, 1, "cooperate", 0);
  coop__checkiterator(L, 2, "cooperate", 1);
  lua_settop(L, 2);
  return cooperate_with(L, 1, 2);
}

/* The Deferred of a new task: 'done' at index 'd' if given. Its errors reach it
   only; that of the task counts as seen. */
static int coiterate_with(lua_State *L, int idx, int it, int d) {
  cooperate_with(L, idx, it);
  int at = lua_gettop(L);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, task_when_done, 1);
  lua_pushvalue(L, at);
  lua_call(L, 1, 1);
  if (!d) return 1;
  lua_pushvalue(L, d);
  coop__append(L, at + 1, H_CHAIN);
  coop__run(L, at + 1);
  lua_pushvalue(L, d);
  return 1;
}

/* A done_deferred must be one that can still be fired. */
static int check_done(lua_State *L, int idx, const char *fname) {
  if (lua_isnoneornil(L, idx)) return 0;
  deferred *d = coop__checkdeferred(L, idx, fname, 2);
  if (d->flags & D_FIRED)
    coop__argerror(L, fname, 2, "a Deferred that has not fired expected");
  return idx;
}

static int cooperator_coiterate(lua_State *L) {
  checkcooperator(L, 1, "coiterate", 0);
  coop__checkiterator(L, 2, "coiterate", 1);
  int d = check_done(L, 3, "coiterate");
  lua_settop(L, 3);
  return coiterate_with(L, 1, 2, d);
}

static int cooperator_start(lua_State *L) {
  cooperator *c = checkcooperator(L, 1, "start", 0);
  bool running = c->running, stopped = c->stopped;
  c->running = true;
  c->stopped = false;
  if (schedule(L, 1, c)) return 0;
  c->running = running; /* refused: nothing has changed */
  c->stopped = stopped;
  return lua_error(L);
}

static int cooperator_stop(lua_State *L) {
  cooperator *c = checkcooperator(L, 1, "stop", 0);
  lua_settop(L, 1);
  c->running = false;
  c->stopped = true;
  c->stopping = c->seq;
  coop__attend(&c->sched);
  unschedule(L, 1, c);
  if (!c->sched.current) stop_all(L, 1, c);
  return 0;
}

int coop__stop_all(lua_State *L) {
  lua_Integer n = 0;
  lua_settop(L, 0);
  lua_newtable(L); /* stopping runs scripts, which may make others */
  pushctx(L, CTX_COOPERATORS);
  lua_pushnil(L);
  while (lua_next(L, 2)) {
    lua_pop(L, 1);
    lua_pushvalue(L, 3);
    lua_rawseti(L, 1, ++n);
  }
  for (lua_Integer i = 1; i <= n; i++) {
    lua_pushvalue(L, CTX);
    lua_pushcclosure(L, cooperator_stop, 1);
    lua_rawgeti(L, 1, i);
    if (!coop__pcall(L, 1, 0, 0)) coop__reporterror(L);
  }
  return 0;
}

static int cooperator__index(lua_State *L) {
  cooperator *c = checkcooperator(L, 1, "Cooperator", 0);
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL) return 1;
  if (lua_type(L, 2) != LUA_TSTRING) return 1;
  const char *key = lua_tostring(L, 2);
  if (!strcmp(key, "running")) lua_pushboolean(L, c->running);
  else if (!strcmp(key, "slice")) lua_pushnumber(L, c->slice);
  else if (!strcmp(key, "quantum")) lua_pushinteger(L, (lua_Integer)c->sched.quantum);
  return 1;
}

static int cooperator__tostring(lua_State *L) {
  cooperator *c = checkcooperator(L, 1, "tostring", 0);
  lua_pushfstring(L, "Cooperator: %p (%s, %I runnable)", (void *)c,
                  c->running ? "running" : "not running",
                  (lua_Integer)c->sched.count);
  return 1;
}

/* A Cooperator that is collected has no tick to come; its tasks are gone too. */
static int cooperator__gc(lua_State *L) {
  cooperator *c = tokind(L, 1, KIND_COOPERATOR);
  if (c && c->scheduled && !c->custom) {
    coop__link_remove(&c->active);
    c->scheduled = false;
  }
  return 0;
}

/* --- making -------------------------------------------------------------------------------------------------- */

static cooperator *cooperator_make(lua_State *L) {
  cooperator *c = coop__new(L, KIND_COOPERATOR, sizeof *c, COOPERATOR_NUV);
  int at = lua_gettop(L);
  coop__sched_init(&c->sched, 1);
  coop__link_init(&c->active);
  c->ctx = getctx(L);
  c->slice = 0.01;
  c->stride = 1;
  c->running = true;
  lua_pushvalue(L, CTX);
  lua_pushvalue(L, at);
  lua_pushcclosure(L, event, 2);
  lua_setiuservalue(L, at, COOPERATOR_EVENT);
  pushctx(L, CTX_COOPERATORS);
  lua_pushvalue(L, at);
  lua_pushboolean(L, 1);
  lua_rawset(L, -3);
  lua_pop(L, 1);
  lua_newtable(L);
  lua_setiuservalue(L, at, COOPERATOR_RUN);
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushliteral(L, "v");
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  lua_setiuservalue(L, at, COOPERATOR_ALL);
  return c;
}

/* Checks the fields of the options table at 1. */
static void checkfields(lua_State *L) {
  static const char *const known[] = {"termination_predicate_factory", "scheduler",
                                      "started", "slice", "quantum", NULL};
  lua_pushnil(L);
  while (lua_next(L, 1)) {
    int i = 0;
    const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "?";
    while (known[i] && strcmp(known[i], key)) i++;
    if (!known[i])
      luaL_error(L, "bad argument #1 to 'Cooperator' (unknown field '%s')", key);
    lua_pop(L, 1);
  }
}

static void checkfunction(lua_State *L, const char *field) {
  lua_getfield(L, 1, field);
  if (!lua_isnil(L, -1) && !coop__callable(L, -1))
    luaL_error(L, "bad argument #1 to 'Cooperator' (field '%s': function "
                  "expected, got %s)", field, luaL_typename(L, -1));
}

static int cooperator_new(lua_State *L) {
  double slice = 0.01;
  lua_Integer quantum = 1;
  lua_settop(L, 1);
  if (lua_isnil(L, 1)) {
    lua_newtable(L);
    lua_replace(L, 1);
  }
  if (!lua_istable(L, 1)) return coop__typeerror(L, "Cooperator", 1, 1, "table");
  checkfields(L);
  if (lua_getfield(L, 1, "slice") != LUA_TNIL)
    slice = coop__checkseconds(L, 2, "Cooperator", 1);
  if (lua_getfield(L, 1, "quantum") != LUA_TNIL)
    quantum = coop__checkcount(L, 3, "Cooperator", 1);
  lua_getfield(L, 1, "started");
  bool started = lua_isnil(L, 4) || lua_toboolean(L, 4);
  checkfunction(L, "termination_predicate_factory"); /* 5 */
  checkfunction(L, "scheduler");                     /* 6 */
  cooperator *c = cooperator_make(L);                /* 7 */
  c->slice = slice;
  c->sched.quantum = (size_t)quantum;
  c->running = started;
  c->custom = !lua_isnil(L, 6);
  lua_pushvalue(L, 5);
  lua_setiuservalue(L, 7, COOPERATOR_FACTORY);
  lua_pushvalue(L, 6);
  lua_setiuservalue(L, 7, COOPERATOR_SCHEDULER);
  if (c->custom) {
    lua_pushvalue(L, CTX);
    lua_pushvalue(L, 7);
    lua_pushcclosure(L, tick_called, 2);
    lua_setiuservalue(L, 7, COOPERATOR_TICK);
  }
  return 1;
}

/* --- on the global Cooperator ------------------------------------------------------------------------------------ */

int coop__cooperate(lua_State *L) {
  coop__checkiterator(L, 1, "cooperate", 1);
  lua_settop(L, 1);
  pushctx(L, CTX_COOPERATOR);
  return cooperate_with(L, 2, 1);
}

static int coiterate(lua_State *L) {
  coop__checkiterator(L, 1, "coiterate", 1);
  int d = check_done(L, 2, "coiterate");
  lua_settop(L, 2);
  pushctx(L, CTX_COOPERATOR);
  return coiterate_with(L, 3, 1, d);
}

/* Is it a table of options rather than a Cooperator? [-0, +0, m] */
static bool has_progress(lua_State *L, int idx) {
  if (!lua_istable(L, idx)) return false;
  lua_pushliteral(L, "progress");
  bool has = lua_rawget(L, idx) != LUA_TNIL;
  lua_pop(L, 1);
  return has;
}

/* Pushes the Progress that the options at 'idx' name, or nil. [-0, +1, v] */
static void push_progress(lua_State *L, const char *fname, int idx, int arg) {
  if (lua_isnil(L, idx)) {
    lua_pushnil(L);
    return;
  }
  if (!lua_istable(L, idx)) coop__typeerror(L, fname, arg, idx, "table");
  lua_pushliteral(L, "progress");
  if (lua_rawget(L, idx) == LUA_TNIL) return;
  const char *name = coop__typename(L, -1);
  if (!name || strcmp(name, "Progress") != 0)
    coop__typeerror(L, fname, arg, -1, "table with a Progress as progress");
}

/* The Progress at 'p' counts the values of the task behind its Deferred at 'd'. */
static void follow(lua_State *L, int p, int d) {
  pushctx(L, CTX_CORE);
  lua_getfield(L, -1, "follow");
  lua_remove(L, -2);
  lua_pushvalue(L, p);
  lua_getiuservalue(L, d + 1, TASK_VALUES);
  lua_pushvalue(L, d);
  lua_call(L, 3, 0);
}

/* Starts a task that accumulates: iterator at 'it', behind it a Cooperator and a
   table of options, either of which may be missing. */
static int accumulate_with(lua_State *L, const char *fname, int it, int arg,
                           lua_Integer batch) {
  coop__checkiterator(L, it, fname, arg);
  int c = it + 1, options = it + 2;
  lua_settop(L, options);
  if (lua_isnil(L, options) && has_progress(L, c)) { /* they stand in its place */
    lua_rotate(L, c, 1);
    arg--;
  }
  push_progress(L, fname, options, arg + 2);
  lua_replace(L, options);
  if (lua_isnil(L, c)) {
    pushctx(L, CTX_COOPERATOR);
    lua_replace(L, c);
  }
  checkcooperator(L, c, fname, arg + 1);
  int d = options + 1; /* the task is behind it */
  coop__deferred_new(L);
  task *t = task_new(L, c, it, batch);
  lua_newtable(L);
  lua_setiuservalue(L, d + 1, TASK_VALUES);
  lua_pushvalue(L, d);
  lua_setiuservalue(L, d + 1, TASK_TARGET);
  lua_pushvalue(L, d + 1);
  lua_setiuservalue(L, d, DEFERRED_RESULT); /* cancel and pause reach it */
  if (!lua_isnil(L, options)) follow(L, options, d);
  add(L, lua_touserdata(L, c), t);
  lua_settop(L, d);
  return 1;
}

static int accumulate(lua_State *L) {
  return accumulate_with(L, "accumulate", 1, 1, 1);
}

static int batch_accumulate(lua_State *L) {
  lua_Integer batch = coop__checkcount(L, 1, "batch_accumulate", 1);
  return accumulate_with(L, "batch_accumulate", 2, 2, batch);
}

static const luaL_Reg task_methods[] = {
  {"pause", task_pause},
  {"resume", task_resume},
  {"stop", task_stop},
  {"when_done", task_when_done},
  {NULL, NULL}
};

static const luaL_Reg task_meta[] = {
  {"__tostring", task__tostring},
  {NULL, NULL}
};

static const luaL_Reg cooperator_methods[] = {
  {"cooperate", cooperator_cooperate},
  {"coiterate", cooperator_coiterate},
  {"start", cooperator_start},
  {"stop", cooperator_stop},
  {NULL, NULL}
};

static const luaL_Reg cooperator_meta[] = {
  {"__tostring", cooperator__tostring},
  {"__gc", cooperator__gc},
  {NULL, NULL}
};

static const luaL_Reg functions[] = {
  {"Cooperator", cooperator_new},
  {"cooperate", coop__cooperate},
  {"coiterate", coiterate},
  {"accumulate", accumulate},
  {"batch_accumulate", batch_accumulate},
  {NULL, NULL}
};

static const luaL_Reg core_functions[] = {
  {"tasks", tasks},
  {NULL, NULL}
};

void coop__open_cooperator(lua_State *L) {
  coop__newtype(L, KIND_TASK, task_methods, task_meta);
  coop__newtype(L, KIND_COOPERATOR, NULL, cooperator_meta);
  pushctx(L, CTX_META + KIND_COOPERATOR);
  lua_pushvalue(L, CTX);
  lua_newtable(L);
  coop__setfuncs(L, cooperator_methods);
  lua_pushcclosure(L, cooperator__index, 2);
  lua_setfield(L, -2, "__index");
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_pushvalue(L, 1);
  coop__setfuncs(L, functions);
  deferred *d = coop__deferred_new(L);
  lua_pushliteral(L, "not enough memory");
  coop__tofailure(L);
  coop__settle(L, lua_gettop(L) - 1);
  d->flags |= D_HANDLED;
  lua_setiuservalue(L, CTX, CTX_WANT);
  cooperator_make(L);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, CTX, CTX_COOPERATOR);
  lua_setfield(L, 1, "cooperator");
  lua_settop(L, 2);
}
