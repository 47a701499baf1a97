/*
** lstepping.c - what a step of each kind of iterator is, and what becomes of what
** it yields.
**
** A step that yields nothing of interest touches no more than the ring and
** lua_resume; whatever else comes of one is seen to by coop__step_event, in protected
** mode, so that no error passes through the core.
*/
#include <stdlib.h>

#include "lcooperator.h"

_Thread_local coop_stepping coop__stepping;

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
  coop_sched *s = &t->c->sched;
  if (s->count > CROWD) foresee(t);
  coop__runs(g->ctx, co);
  coop__stepping.co = NULL;
  if (has_next(s)) {
    coop__stepping.co = co;
    coop__sched_lend(s);
  }
  coop__stepping.n = NULL;
  return lua_resume(co, host, 0, &base->nout);
}

/* The table that yields were stored in is let go of. */
void coop__forget_yields(lua_State *L) {
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

const coop_task_ops *coop__step_ops(const task *t) {
  if (t->batch > 1 || (!t->g && !t->co)) return &ops_event;
  if (!t->g) return &ops_thread;
  return t->batch ? &ops_collector : &ops_generator;
}

/* --- what a step yields ------------------------------------------------------------------------------ */

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
  coop__task_leave(L, idx, t);
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
    coop__task_fail(L, idx, t);
    return false;
  }
  if (t->batch) coop__task_collect(L, idx, t);
  else lua_pop(L, 1);
  return true;
}

/* The value on top was yielded or returned by the iterator. [-1, +0, m] */
static bool take_value(lua_State *L, int idx, task *t) {
  int at = lua_gettop(L);
  bool on = true;
  if (todeferred(L, at)) on = take_deferred(L, idx, t, at);
  else if (t->batch) coop__task_collect(L, idx, t);
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
  coop__task_finish(L, idx, t, TASK_DONE_STATE, 0, false);
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
    coop__task_fail(L, idx, t);
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
    if (t->state == TASK_LIVE) coop__task_end(L, idx, t, TASK_STOPPED);
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
   it is full or the slice is over. (The RUN table is at 2.) */
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
    if (t->n < end && !t->c->predicate && coop__slice_over(t->c)) break;
  }
  return on;
}

static bool step_resumed(lua_State *L, int idx, task *t) {
  int nres;
  if (t->g) {
    if (t->g->state == GENERATOR_ENDED) {
      coop__task_finish(L, idx, t, TASK_DONE_STATE, 0, false);
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
    coop__task_fail(L, idx, t);
    return false;
  }
  if (!t->resumes && lua_status(co) != LUA_YIELD) {
    bool running = lua_status(co) == LUA_OK && lua_getstack(co, 0, &ar);
    if (!running && (lua_status(co) != LUA_OK || lua_gettop(co) == 0)) {
      /* a coroutine at its end */
      coop__task_finish(L, idx, t, TASK_DONE_STATE, 0, false);
      return false;
    }
    if (running) {
      lua_pushliteral(L, "the iterator of a task is running already");
      coop__tofailure(L);
      coop__task_fail(L, idx, t);
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
      coop__task_fail(L, idx, t);
      return false;
    }
    if (lua_isnil(L, -1)) {
      lua_pop(L, 1);
      coop__task_finish(L, idx, t, TASK_DONE_STATE, 0, false);
      return false;
    }
    if (!take_value(L, idx, t)) return false;
    if (!t->c->predicate && coop__slice_over(t->c)) break;
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
      coop__task_close(L, at, at + 1);
      coop__task_give_slot(L, at, t);
      coop__task_announce(L, at, t, at + 1);
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
void coop__end_tasks(lua_State *L, int idx, cooperator *c) {
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
    if (t->state == TASK_LIVE) coop__task_end(L, at, t, TASK_SCHEDULER_STOPPED);
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
    coop__task_finish(L, idx, t, TASK_FAILED, at, false);
  } else if (t->c->sched.current != &t->base || t->c->stale != t->slot) {
    coop__task_announce(L, idx, t, at);
    coop__task_give_slot(L, idx, t);
  }
  lua_settop(L, at - 1);
  return false;
}

/* event(task, status) -> may it go on?   event(nil): sees to a stale task.
   Upvalue 2 is the Cooperator. */
int coop__step_event(lua_State *L) {
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
    if (c->stopping) coop__end_tasks(L, lua_upvalueindex(2), c);
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
