/*
** ltask.c - tasks: how they begin, wait and end.
**
** A task is in the ring exactly when it may run. One that leaves in its own step is
** only noted as stale, and seen to when the step is over.
*/
#include "lcooperator.h"

/* --- making --------------------------------------------------------------------- */

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
task *coop__task_new(lua_State *L, int idx, int it, lua_Integer batch) {
  cooperator *c = lua_touserdata(L, idx);
  task *t = coop__new(L, KIND_TASK, sizeof *t,
                      batch ? TASK_COLLECT_NUV : TASK_NUV);
  int at = lua_gettop(L);
  t->c = c;
  t->g = tokind(L, it, KIND_GENERATOR);
  t->co = lua_tothread(L, it);
  t->index = !t->g && lua_istable(L, it) && !coop__callable(L, it) ? 1 : 0;
  t->batch = batch;
  coop__task_init(&t->base, coop__step_ops(t));
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
void coop__task_add(lua_State *L, cooperator *c, task *t) {
  int at = lua_gettop(L);
  if (c->stopped) { /* stopped */
    coop__task_end(L, at, t, TASK_SCHEDULER_STOPPED);
    return;
  }
  if (coop__task_enter(L, at, t)) return;
  coop__task_leave(L, at, t); /* as if it had never been added */
  t->state = TASK_STOPPED;
  coop__task_give_slot(L, at, t);
  lua_error(L);
}

/* --- in and out of the ring ----------------------------------------------------------------- */

/* The task at 'idx' may run (again): to the end of the ring. False and the error
   on top when the scheduler failed. */
bool coop__task_enter(lua_State *L, int idx, task *t) {
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
  bool ok = coop__schedule(L, at, c);
  lua_remove(L, at);
  return ok;
}

/* It may not. lua_resume does not hold the thread it runs: the task that is
   being stepped is let go of when its step is over. */
void coop__task_leave(lua_State *L, int idx, task *t) {
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
  if (c->sched.count == 0 && !c->sched.ticking) coop__unschedule(L, at, c);
  lua_pop(L, 1);
}

/* --- finishing ---------------------------------------------------------------------------------- */

/* Takes the task at 'idx' off the books of its Cooperator. */
void coop__task_give_slot(lua_State *L, int idx, task *t) {
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
void coop__task_announce(lua_State *L, int idx, task *t, int failure) {
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
        if (!coop__task_enter(L, top + 4, t)) coop__reporterror(L);
      }
      lua_settop(L, top + 3);
    }
  }
  lua_settop(L, top);
}

/* The iterator of the task at 'idx' is closed; its cleanup's Failure replaces
   the one at 'failure'. */
void coop__task_close(lua_State *L, int idx, int failure) {
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
void coop__task_finish(lua_State *L, int idx, task *t, task_state state,
                       int failure, bool close) {
  bool in_step = t->c->sched.current == &t->base && close;
  t->state = (uint8_t)state;
  stop_waiting(L, idx, t);
  coop__task_leave(L, idx, t);
  if (in_step) {
    t->c->stale = t->slot;
    coop__attend(&t->c->sched);
    lua_pushvalue(L, failure);
    lua_setiuservalue(L, idx, TASK_WAIT);
    return;
  }
  if (close) coop__task_close(L, idx, failure);
  if (t->c->stale == t->slot) t->c->stale = 0;
  lua_pushnil(L);
  lua_setiuservalue(L, idx, TASK_WAIT);
  coop__task_announce(L, idx, t, failure);
  coop__task_give_slot(L, idx, t); /* last: for want of memory it is told again */
}

void coop__task_fail(lua_State *L, int idx, task *t) {
  coop__task_finish(L, idx, t, TASK_FAILED, lua_gettop(L), false);
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

void coop__task_end(lua_State *L, int idx, task *t, task_state state) {
  pushstopped(L, state);
  coop__task_finish(L, idx, t, state, lua_gettop(L), true);
  lua_pop(L, 1);
}

/* Keeps the value on top at its place in what the task at 'idx' accumulates. */
void coop__task_collect(lua_State *L, int idx, task *t) {
  if (lua_isnil(L, -1)) {
    lua_pop(L, 1);
    return;
  }
  lua_getiuservalue(L, idx, TASK_VALUES);
  lua_insert(L, -2);
  lua_rawseti(L, -2, ++t->n);
  lua_pop(L, 1);
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
      coop__task_fail(L, idx, t);
      return;
    }
    if (t->batch) coop__task_collect(L, idx, t);
    else lua_pop(L, 1);
  }
  if (!coop__task_enter(L, idx, t)) coop__reporterror(L);
}

void coop__task_hold(lua_State *L, int idx, bool hold) {
  task *t = lua_touserdata(L, idx);
  if (hold) {
    t->pauses++;
    coop__task_leave(L, idx, t);
  } else if (t->pauses && --t->pauses == 0) {
    if (!coop__task_enter(L, idx, t)) coop__reporterror(L);
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
  coop__task_finish(L, idx, t, TASK_STOPPED, top + 1, true);
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
  coop__task_end(L, 1, t, TASK_STOPPED);
  return 0;
}

int coop__task_when_done(lua_State *L) {
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

static const luaL_Reg task_methods[] = {
  {"pause", task_pause},
  {"resume", task_resume},
  {"stop", task_stop},
  {"when_done", coop__task_when_done},
  {NULL, NULL}
};

static const luaL_Reg task_meta[] = {
  {"__tostring", task__tostring},
  {NULL, NULL}
};

static const luaL_Reg core_functions[] = {
  {"tasks", tasks},
  {NULL, NULL}
};

void coop__open_task(lua_State *L) {
  coop__newtype(L, KIND_TASK, task_methods, task_meta);
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_pop(L, 1);
}
