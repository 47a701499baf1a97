/*
** ltime.c - delayed calls, on a virtual clock or the reactor's.
**
** A call is held by its clock exactly while it is armed. The heap of
** core/timers.h orders both; the difference is who moves the time.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lcoop.h"

/* user values */
enum { CLOCK_CALLS = 1, CLOCK_FIELDS, CLOCK_NUV = CLOCK_FIELDS };
enum { CALL_CLOCK = 1, CALL_FUNCTION, CALL_NUV = CALL_FUNCTION };

enum { NARGS_MAX = 1000 };  /* a userdata has fewer than 2^16 user values */
enum { TURNS_MAX = 10000 }; /* of one advance, without time moving */
static const double QUIET = 0.01; /* seconds */

typedef struct clock_object {
  object object;
  coop_timers timers;
  double now;          /* of a virtual clock, and of the reactor while it jumps */
  double still;        /* while it jumps: since when nothing has happened */
  bool jumps;          /* the reactor: time passes only when everything waits */
  double advanced;     /* by all advances that have ended */
  lua_Integer slots;   /* of CLOCK_CALLS, in use or free */
  lua_Integer free;    /* the first free one, or 0 */
} clock_object;

typedef struct call_object {
  object object;
  coop_timer timer;
  lua_Integer slot;
  int nargs;
  bool called, cancelled;
} call_object;

static void *clock_alloc(void *ud, void *ptr, size_t osize, size_t nsize) {
  void *aud;
  lua_Alloc f = lua_getallocf(ud, &aud);
  return f(aud, ptr, osize, nsize);
}

static clock_object *toclock(lua_State *L, int idx) {
  clock_object *c = tokind(L, idx, KIND_CLOCK);
  return c ? c : tokind(L, idx, KIND_REACTOR);
}

static clock_object *checkclock(lua_State *L, const char *fname) {
  clock_object *c = toclock(L, 1);
  if (!c) coop__typeerror(L, fname, 0, 1, "Clock");
  return c;
}

static bool isreactor(const clock_object *c) {
  return kindof(&c->object) == KIND_REACTOR;
}

static double now(const clock_object *c) {
  return isreactor(c) && !c->jumps ? coop__now() : c->now;
}

static call_object *call_of(coop_timer *t) {
  return coop_container(t, call_object, timer);
}

/* --- arming ------------------------------------------------------------------------ */

/* When the first call is to be looked at, while the time jumps to it, in seconds of
   the real clock. What others do on the loop must have been quiet for a while. */
static double jump_at(const coop_context *ctx, const clock_object *c) {
  const coop_timer *first = coop__timers_first(&c->timers);
  if (first && first->due <= c->now) return c->still; /* now */
  return c->still + (coop__loop_alone(&ctx->loop) ? 0 : QUIET);
}

/* Jumps to the next call if everything waits for it: nothing has happened, no task
   has a turn to come, no other thread works for the loop. */
static void jump(coop_context *ctx, clock_object *c) {
  double real = coop__now();
  coop_timer *first = coop__timers_first(&c->timers);
  bool waits = coop__link_alone(&ctx->active) && ctx->loop.holds == 0 &&
               !ctx->posted && !ctx->stirred && real >= jump_at(ctx, c);
  c->still = real;
  ctx->stirred = false;
  if (waits && first && first->due > c->now) c->now = first->due;
}

void coop__rearm(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (ctx->turning) return; /* the turn does it at its end */
  coop_timer *first = coop__timers_first(ctx->timers);
  clock_object *c = coop_container(ctx->timers, clock_object, timers);
  coop__loop_arm(&ctx->loop, !coop__link_alone(&ctx->active),
                 !first ? HUGE_VAL : c->jumps ? jump_at(ctx, c) : first->due);
}

/* Holds the call at 'call' for the clock at 'clock'. [-0, +0, m] */
static void hold(lua_State *L, int clock, clock_object *c, int call,
                 call_object *k) {
  lua_getiuservalue(L, clock, CLOCK_CALLS);
  if (c->free) {
    k->slot = c->free;
    lua_rawgeti(L, -1, k->slot);
    c->free = lua_tointeger(L, -1);
    lua_pop(L, 1);
  } else {
    k->slot = ++c->slots;
  }
  lua_pushvalue(L, call);
  lua_rawseti(L, -2, k->slot);
  lua_pop(L, 1);
}

static void let_go(lua_State *L, int clock, clock_object *c, call_object *k) {
  lua_getiuservalue(L, clock, CLOCK_CALLS);
  lua_pushinteger(L, c->free);
  lua_rawseti(L, -2, k->slot);
  lua_pop(L, 1);
  c->free = k->slot;
  k->slot = 0;
}

/* The call is over: nothing of it is kept alive. */
static void drop_function(lua_State *L, int idx, const call_object *k) {
  for (int i = 0; i <= k->nargs; i++) {
    lua_pushnil(L);
    lua_setiuservalue(L, idx, CALL_FUNCTION + i);
  }
}

/* Pushes a call of the clock at 'clock' in 'delay' seconds; function and 'nargs'
   arguments begin at 'f'. [-0, +1, m] */
static call_object *call_new(lua_State *L, int clock, double delay, int f,
                             int nargs) {
  clock_object *c = lua_touserdata(L, clock);
  if (getctx(L)->closed && isreactor(c))
    luaL_error(L, "call_later: coop has been closed in this state");
  call_object *k = coop__new(L, KIND_CALL, sizeof *k, CALL_NUV + nargs);
  int at = lua_gettop(L);
  k->nargs = nargs;
  lua_pushvalue(L, clock);
  lua_setiuservalue(L, at, CALL_CLOCK);
  for (int i = 0; i <= nargs; i++) {
    lua_pushvalue(L, f + i);
    lua_setiuservalue(L, at, CALL_FUNCTION + i);
  }
  hold(L, clock, c, at, k);
  if (!coop__timers_add(&c->timers, &k->timer, now(c) + delay)) {
    let_go(L, clock, c, k);
    luaL_error(L, "not enough memory");
  }
  if (isreactor(c) && coop__timers_first(&c->timers) == &k->timer) coop__rearm(L);
  return k;
}

/* Takes the armed call at 'idx' out of its clock. */
static void disarm(lua_State *L, int idx, call_object *k) {
  idx = lua_absindex(L, idx);
  lua_getiuservalue(L, idx, CALL_CLOCK);
  int at = lua_gettop(L);
  clock_object *c = lua_touserdata(L, at);
  coop__timers_remove(&c->timers, &k->timer);
  if (k->slot) let_go(L, at, c, k);
  if (isreactor(c) && c->timers.count == 0) coop__rearm(L);
  lua_pop(L, 1);
}

void coop__call_cancel(lua_State *L, int idx) {
  call_object *k = lua_touserdata(L, idx);
  if (k->called || k->cancelled) return;
  k->cancelled = true;
  idx = lua_absindex(L, idx);
  disarm(L, idx, k);
  drop_function(L, idx, k);
}

int coop__drop_calls(lua_State *L) {
  coop_timer *first;
  lua_settop(L, 0);
  pushctx(L, CTX_REACTOR);
  lua_getiuservalue(L, 1, CLOCK_CALLS);
  while ((first = coop__timers_first(getctx(L)->timers))) {
    lua_rawgeti(L, 2, call_of(first)->slot);
    coop__call_cancel(L, 3);
    lua_settop(L, 2);
  }
  return 0;
}

/* --- running ------------------------------------------------------------------------- */

/* Runs the call of 't', just taken out of the clock at 'clock'. False and the
   error value on top when it failed. */
static bool run_call(lua_State *L, int clock, clock_object *c, coop_timer *t) {
  call_object *k = call_of(t);
  luaL_checkstack(L, k->nargs + 8, "call");
  lua_getiuservalue(L, clock, CLOCK_CALLS);
  lua_rawgeti(L, -1, k->slot);
  lua_remove(L, -2);
  int at = lua_gettop(L);
  k->called = true;
  let_go(L, clock, c, k);
  pushctx(L, CTX_MSGH);
  for (int i = 0; i <= k->nargs; i++)
    lua_getiuservalue(L, at, CALL_FUNCTION + i);
  drop_function(L, at, k);
  bool ok = true;
  if (todeferred(L, at + 2)) { /* a sleep: the Deferred fires */
    deferred *d = lua_touserdata(L, at + 2);
    lua_pushnil(L);
    if (!(d->flags & D_FIRED)) coop__fire(L, at + 2);
  } else {
    ok = coop__pcall(L, k->nargs, 0, at + 1);
  }
  if (ok) {
    lua_settop(L, at - 1);
    return true;
  }
  lua_replace(L, at);
  lua_settop(L, at);
  return false;
}

void coop__due(lua_State *L) {
  pushctx(L, CTX_REACTOR);
  int at = lua_gettop(L);
  clock_object *c = lua_touserdata(L, at);
  uint64_t limit = c->timers.seq;
  if (c->jumps) jump(getctx(L), c);
  double t = now(c);
  coop_timer *timer;
  while (!getctx(L)->interrupt.exiting &&
         (timer = coop__timers_expire(&c->timers, t, limit))) {
    if (!run_call(L, at, c, timer)) coop__reporterror(L);
    if (coop__overdue(getctx(L))) break;
  }
  lua_settop(L, at - 1);
}

/* --- the virtual clock ------------------------------------------------------------------ */

static int clock_new(lua_State *L) {
  clock_object *c = coop__new(L, KIND_CLOCK, sizeof *c, CLOCK_NUV);
  coop__timers_init(&c->timers, clock_alloc, getctx(L)->L);
  lua_newtable(L);
  lua_setiuservalue(L, -2, CLOCK_CALLS);
  return 1;
}

/* The error value on top: the first is kept at 'error', others are reported.
   [-1, +0, -] */
static void keep_error(lua_State *L, int error) {
  if (lua_toboolean(L, error)) {
    coop__reporterror(L);
    return;
  }
  lua_replace(L, error + 1);
  lua_pushboolean(L, 1);
  lua_replace(L, error);
}

/* One turn: what is due and was made before it. */
static void turn(lua_State *L, clock_object *c, int error) {
  uint64_t limit = c->timers.seq;
  double t = c->now;
  coop_timer *timer;
  while ((timer = coop__timers_expire(&c->timers, t, limit)))
    if (!run_call(L, 1, c, timer)) keep_error(L, error);
}

/* Moves time on, from one due call to the next. What an advance made by a call
   adds comes on top. */
static void advance(lua_State *L, clock_object *c, double amount, int error) {
  double end = c->now + amount, seen = c->advanced;
  int turns = 0;
  for (;;) {
    coop_timer *first = coop__timers_first(&c->timers);
    if (!first || first->due > end) break;
    if (first->due > c->now) {
      c->now = first->due;
      turns = 0;
    } else if (++turns > TURNS_MAX) {
      luaL_where(L, 1);
      lua_pushfstring(L, "advance: %d turns passed without time moving", TURNS_MAX);
      lua_concat(L, 2);
      keep_error(L, error);
      end = c->now;
      break;
    }
    bool last = c->now >= end;
    turn(L, c, error);
    if (c->advanced != seen) {
      end += c->advanced - seen;
      seen = c->advanced;
      last = false;
    }
    if (last) break;
  }
  if (end > c->now) c->now = end;
  c->advanced += amount;
}

static int raise_first(lua_State *L, int error) {
  if (!lua_toboolean(L, error)) return 0;
  lua_settop(L, error + 1);
  return lua_error(L);
}

static int clock_advance(lua_State *L) {
  clock_object *c = coop__checkkind(L, 1, KIND_CLOCK, "advance", 0);
  double amount = coop__checkseconds(L, 2, "advance", 1);
  lua_settop(L, 2);
  lua_pushboolean(L, 0);
  lua_pushnil(L);
  advance(L, c, amount, 3);
  return raise_first(L, 3);
}

static int clock_pump(lua_State *L) {
  clock_object *c = coop__checkkind(L, 1, KIND_CLOCK, "pump", 0);
  if (!lua_istable(L, 2) || coop__typename(L, 2))
    return coop__typeerror(L, "pump", 1, 2, "table");
  lua_settop(L, 2);
  lua_pushboolean(L, 0); /* 3, 4: an error and which */
  lua_pushnil(L);
  lua_Integer n = (lua_Integer)lua_rawlen(L, 2);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, 2, i);
    coop__checkseconds(L, 5, "pump", 1);
    lua_pop(L, 1);
  }
  for (lua_Integer i = 1; i <= n && !lua_toboolean(L, 3); i++) {
    lua_rawgeti(L, 2, i);
    double amount = lua_tonumber(L, 5);
    lua_pop(L, 1);
    advance(L, c, amount, 3);
  }
  return raise_first(L, 3);
}

/* --- methods of any clock --------------------------------------------------------------------- */

static int clock_seconds(lua_State *L) {
  lua_pushnumber(L, now(checkclock(L, "seconds")));
  return 1;
}

static int call_later_on(lua_State *L, int arg, const char *fname) {
  double delay = coop__checkseconds(L, 2, fname, arg);
  coop__checkcallable(L, 3, fname, arg + 1);
  if (lua_gettop(L) - 3 >= NARGS_MAX) return luaL_error(L, "%s: too many arguments", fname);
  luaL_checkstack(L, 8, fname);
  call_new(L, 1, delay, 3, lua_gettop(L) - 3);
  return 1;
}

static int clock_call_later(lua_State *L) {
  checkclock(L, "call_later");
  return call_later_on(L, 1, "call_later");
}

static int by_time(const void *a, const void *b) {
  const coop_timer *x = *(coop_timer *const *)a, *y = *(coop_timer *const *)b;
  if (x->due != y->due) return x->due < y->due ? -1 : 1;
  return x->seq < y->seq ? -1 : x->seq > y->seq;
}

/* The calls to come, in order: a list of the caller's own. */
static int clock_get_delayed_calls(lua_State *L) {
  clock_object *c = checkclock(L, "get_delayed_calls");
  size_t n = c->timers.count;
  coop_timer **list = lua_newuserdatauv(L, n * sizeof *list + 1, 0);
  for (size_t i = 0; i < n; i++) list[i] = c->timers.heap[i + 1].timer;
  qsort(list, n, sizeof *list, by_time);
  lua_getiuservalue(L, 1, CLOCK_CALLS);
  lua_createtable(L, (int)n, 0);
  for (size_t i = 0; i < n; i++) {
    lua_rawgeti(L, -2, call_of(list[i])->slot);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

static int clock__gc(lua_State *L) {
  clock_object *c = toclock(L, 1);
  if (c && c->timers.alloc) coop__timers_close(&c->timers);
  return 0;
}

static int clock__tostring(lua_State *L) {
  clock_object *c = checkclock(L, "tostring");
  lua_pushfstring(L, "%s: %p (%f s, %I calls)", coop__typename(L, 1), (void *)c,
                  now(c), (lua_Integer)c->timers.count);
  return 1;
}

/* --- methods of a call ---------------------------------------------------------------------------- */

static call_object *checkcall(lua_State *L, const char *fname) {
  return coop__checkkind(L, 1, KIND_CALL, fname, 0);
}

static call_object *checkarmed(lua_State *L, const char *fname) {
  call_object *k = checkcall(L, fname);
  if (k->called)
    coop__raise(L, "AlreadyCalled", fname, "the call has been made");
  if (k->cancelled)
    coop__raise(L, "AlreadyCancelled", fname, "the call was cancelled");
  return k;
}

static int call_cancel(lua_State *L) {
  checkarmed(L, "cancel");
  coop__call_cancel(L, 1);
  return 0;
}

static void move_to(lua_State *L, call_object *k, bool relative, double s) {
  lua_getiuservalue(L, 1, CALL_CLOCK);
  clock_object *c = lua_touserdata(L, -1);
  double due = relative ? k->timer.due + s : now(c) + s;
  if (!isfinite(due)) 
    luaL_error(L, "%s: the call would never be due", relative ? "delay" : "reset");
  if (k->timer.place) coop__timers_move(&c->timers, &k->timer, due);
  if (isreactor(c)) coop__rearm(L);
}

static int call_reset(lua_State *L) {
  call_object *k = checkarmed(L, "reset");
  move_to(L, k, false, coop__checkseconds(L, 2, "reset", 1));
  return 0;
}

/* Relative to the time it was due at; may be negative, but not NaN or infinite. */
static int call_delay(lua_State *L) {
  call_object *k = checkarmed(L, "delay");
  if (lua_type(L, 2) != LUA_TNUMBER || !isfinite(lua_tonumber(L, 2)))
    return coop__typeerror(L, "delay", 1, 2, "finite number of seconds");
  move_to(L, k, true, lua_tonumber(L, 2));
  return 0;
}

static int call_active(lua_State *L) {
  call_object *k = checkcall(L, "active");
  lua_pushboolean(L, !k->called && !k->cancelled);
  return 1;
}

static int call_get_time(lua_State *L) {
  lua_pushnumber(L, checkcall(L, "get_time")->timer.due);
  return 1;
}

static int call__tostring(lua_State *L) {
  call_object *k = checkcall(L, "tostring");
  lua_getiuservalue(L, 1, CALL_CLOCK);
  clock_object *c = lua_touserdata(L, -1);
  lua_getiuservalue(L, 1, CALL_FUNCTION);
  if (k->called) lua_pushfstring(L, "DelayedCall: %p called", (void *)k);
  else if (k->cancelled)
    lua_pushfstring(L, "DelayedCall: %p cancelled", (void *)k);
  else
    lua_pushfstring(L, "DelayedCall: %p in %f s: %s %p, %d arguments", (void *)k,
                    k->timer.due - now(c), luaL_typename(L, -1),
                    lua_topointer(L, -1), k->nargs);
  return 1;
}

static int call__lt(lua_State *L) {
  call_object *a = checkcall(L, "<"), *b = coop__checkkind(L, 2, KIND_CALL, "<", 2);
  lua_pushboolean(L, a->timer.due < b->timer.due);
  return 1;
}

static int call__le(lua_State *L) {
  call_object *a = checkcall(L, "<="), *b = coop__checkkind(L, 2, KIND_CALL, "<=", 2);
  lua_pushboolean(L, a->timer.due <= b->timer.due);
  return 1;
}

/* --- module functions -------------------------------------------------------------------------------- */

static int call_later(lua_State *L) {
  pushctx(L, CTX_REACTOR);
  lua_insert(L, 1);
  return call_later_on(L, 1, "call_later");
}

static int seconds(lua_State *L) {
  lua_pushnumber(L, now(coop_container(getctx(L)->timers, clock_object, timers)));
  return 1;
}

/* A sleep is a Deferred whose canceller is its call, and a call whose function
   is the Deferred. */
static int sleep_for(lua_State *L) {
  double delay = coop__checkseconds(L, 1, "sleep", 1);
  pushctx(L, CTX_REACTOR);
  lua_replace(L, 1);
  lua_settop(L, 1);
  coop__deferred_new(L);
  call_new(L, 1, delay, 2, 0);
  lua_setiuservalue(L, 2, DEFERRED_RESULT);
  return 1;
}

static int reactor__index(lua_State *L) {
  coop__checkkind(L, 1, KIND_REACTOR, "Reactor", 0);
  lua_settop(L, 2);
  if (lua_type(L, 2) == LUA_TSTRING && !strcmp(lua_tostring(L, 2), "running"))
    lua_pushboolean(L, getctx(L)->running_loop);
  else
    lua_rawget(L, lua_upvalueindex(2));
  return 1;
}

static const luaL_Reg clock_methods[] = {
  {"seconds", clock_seconds},
  {"call_later", clock_call_later},
  {"get_delayed_calls", clock_get_delayed_calls},
  {"advance", clock_advance},
  {"pump", clock_pump},
  {NULL, NULL}
};

static const luaL_Reg reactor_methods[] = {
  {"seconds", clock_seconds},
  {"call_later", clock_call_later},
  {"get_delayed_calls", clock_get_delayed_calls},
  {NULL, NULL}
};

static const luaL_Reg clock_meta[] = {
  {"__gc", clock__gc},
  {"__tostring", clock__tostring},
  {NULL, NULL}
};

static const luaL_Reg call_methods[] = {
  {"cancel", call_cancel},
  {"reset", call_reset},
  {"delay", call_delay},
  {"active", call_active},
  {"get_time", call_get_time},
  {NULL, NULL}
};

static const luaL_Reg call_meta[] = {
  {"__tostring", call__tostring},
  {"__lt", call__lt},
  {"__le", call__le},
  {NULL, NULL}
};

/* core.jump(on): the reactor's time passes only when everything waits, to the next
   call that is due; or as ever again, with the calls as far off as they are. */
static int set_jump(lua_State *L) {
  coop_context *ctx = getctx(L);
  clock_object *c = coop_container(ctx->timers, clock_object, timers);
  bool jumps = lua_toboolean(L, 1);
  if (jumps == c->jumps) return 0;
  double before = now(c), real = coop__now();
  c->jumps = jumps;
  c->now = ceil(real); /* sums of whole seconds are exact */
  c->still = real;
  coop__timers_shift(&c->timers, now(c) - before);
  coop__rearm(L);
  return 0;
}

static const luaL_Reg core_functions[] = {
  {"jump", set_jump},
  {NULL, NULL}
};

static const luaL_Reg functions[] = {
  {"Clock", clock_new},
  {"call_later", call_later},
  {"seconds", seconds},
  {"sleep", sleep_for},
  {NULL, NULL}
};

void coop__open_time(lua_State *L) {
  coop__newtype(L, KIND_CALL, call_methods, call_meta);
  coop__newtype(L, KIND_CLOCK, clock_methods, clock_meta);
  coop__newtype(L, KIND_REACTOR, NULL, clock_meta);
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_pop(L, 1);
  lua_getfield(L, 2, "methods");
  lua_newtable(L); /* core.methods.Reactor: more come from runtime.lua */
  coop__setfuncs(L, reactor_methods);
  pushctx(L, CTX_META + KIND_REACTOR);
  lua_pushvalue(L, CTX);
  lua_pushvalue(L, -3);
  lua_pushcclosure(L, reactor__index, 2);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  lua_setfield(L, -2, "Reactor");
  lua_pop(L, 1);
  lua_pushvalue(L, 1);
  coop__setfuncs(L, functions);
  clock_object *c = coop__new(L, KIND_REACTOR, sizeof *c, CLOCK_NUV);
  coop__timers_init(&c->timers, clock_alloc, getctx(L)->L);
  lua_newtable(L);
  lua_setiuservalue(L, -2, CLOCK_CALLS);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, CTX, CTX_REACTOR);
  getctx(L)->timers = &c->timers;
  lua_setfield(L, 1, "reactor");
  lua_settop(L, 2);
}
