/*
** lcooperator.c - Cooperators: when their tasks are stepped, and for how long.
**
** The ring of core/sched.h says whose turn it is. A slice ends when it is used up,
** when a call is due or when there is input; the clock is read only as often as the
** pace of the steps asks for. No error passes through the core.
*/
#include <stdlib.h>
#include <string.h>

#include "lcooperator.h"

enum { STRIDE_MAX = 32 };  /* steps between two questions whether a slice is over */
static const double POLL_EVERY = 0.001; /* seconds, for input during a slice */

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
bool coop__schedule(lua_State *L, int idx, cooperator *c) {
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

void coop__unschedule(lua_State *L, int idx, cooperator *c) {
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

bool coop__slice_over(cooperator *c) {
  uint64_t cycles = coop__cycles();
  c->sched.credit = stride(c, cycles - c->glanced) - 1;
  c->glanced = cycles;
  if (!c->over && (int64_t)(cycles - c->look) >= 0) read_clock(c, cycles);
  return c->over;
}

bool coop__must_switch(void) {
  cooperator *c = coop__stepping.cooperator;
  if (c->predicate) return coop__stepping.left == 0; /* asked after a batch only */
  if (c->stale || c->stopping || !c->running) return true;
  if (c->ctx->interrupt.exiting) return true;
  return coop__slice_over(c);
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
  return coop__slice_over(c);
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
  coop__forget_yields(L);
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
  return coop__schedule(L, 1, c) ? 0 : lua_error(L);
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
    if (c->scheduled && c->sched.count == 0) coop__unschedule(L, at, c);
    lua_settop(L, at - 1);
    if (coop__overdue(ctx)) break;
  }
}

/* --- methods of a Cooperator -------------------------------------------------------------------------------- */

static cooperator *checkcooperator(lua_State *L, int idx, const char *fname, int arg) {
  return coop__checkkind(L, idx, KIND_COOPERATOR, fname, arg);
}

/* c:cooperate(iterator) */
static int cooperate_with(lua_State *L, int idx, int it) {
  cooperator *c = lua_touserdata(L, idx);
  task *t = coop__task_new(L, idx, it, 0);
  coop__task_add(L, c, t);
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
  lua_pushcclosure(L, coop__task_when_done, 1);
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
    coop__argerror(L, fname, 2, 
                   "Deferred that has not fired expected, got one that has");
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
  if (coop__schedule(L, 1, c)) return 0;
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
  coop__unschedule(L, 1, c);
  if (!c->sched.current) coop__end_tasks(L, 1, c);
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
  lua_pushcclosure(L, coop__step_event, 2);
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
  if (!lua_istable(L, 1) || coop__typename(L, 1))
    return coop__typeerror(L, "Cooperator", 1, 1, "table");
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
  if (!lua_istable(L, idx) || coop__typename(L, idx))
    coop__typeerror(L, fname, arg, idx, "table");
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
  task *t = coop__task_new(L, c, it, batch);
  lua_newtable(L);
  lua_setiuservalue(L, d + 1, TASK_VALUES);
  lua_pushvalue(L, d);
  lua_setiuservalue(L, d + 1, TASK_TARGET);
  lua_pushvalue(L, d + 1);
  lua_setiuservalue(L, d, DEFERRED_RESULT); /* cancel and pause reach it */
  if (!lua_isnil(L, options)) follow(L, options, d);
  coop__task_add(L, lua_touserdata(L, c), t);
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

void coop__open_cooperator(lua_State *L) {
  coop__open_task(L);
  coop__newtype(L, KIND_COOPERATOR, NULL, cooperator_meta);
  pushctx(L, CTX_META + KIND_COOPERATOR);
  lua_pushvalue(L, CTX);
  lua_newtable(L);
  coop__setfuncs(L, cooperator_methods);
  lua_pushcclosure(L, cooperator__index, 2);
  lua_setfield(L, -2, "__index");
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
