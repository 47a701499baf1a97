/*
** ldeferred.c - a result to come, and the run of the handlers that it is for.
**
** Fires once; handlers run in the order they were added, each fed the last
** one's result. Whatever a handler wakes is run by the same loop (coop__run),
** before the handlers behind it: nothing here recurses, however long the chain.
*/
#include <string.h>

#include "lcoop.h"

/* --- making, settling ------------------------------------------------------- */

deferred *coop__deferred_new(lua_State *L) {
  return coop__new(L, KIND_DEFERRED, sizeof(deferred), DEFERRED_NUV);
}

deferred *coop__checkdeferred(lua_State *L, int idx, const char *fname, int arg) {
  deferred *d = todeferred(L, idx);
  if (!d) coop__typeerror(L, fname, arg, idx, "Deferred");
  return d;
}

/* Takes the result on top. [-1, +0, -] */
static void set_result(lua_State *L, int idx, deferred *d) {
  d->flags &= (uint16_t)~(D_FAILED | D_HANDLED);
  if (tofailure(L, -1)) d->flags |= D_FAILED;
  lua_setiuservalue(L, idx, DEFERRED_RESULT);
}

void coop__settle(lua_State *L, int idx) {
  deferred *d = lua_touserdata(L, idx);
  d->flags |= D_FIRED;
  set_result(L, idx, d);
}

void coop__fire(lua_State *L, int idx) {
  idx = lua_absindex(L, idx);
  coop__settle(L, idx);
  coop__run(L, idx);
}

/* --- failures that nobody has seen -------------------------------------------- */

/* The Deferred comes to rest with a failure that reached nobody: should it be
   collected so, its guard reports it. Cancelling is no failure to be told of. */
static void guard(lua_State *L, int idx, deferred *d) {
  lua_getiuservalue(L, idx, DEFERRED_RESULT);
  bool silent = coop__iscancelled(L, lua_gettop(L));
  lua_pop(L, 1);
  if (silent) {
    d->flags |= D_HANDLED;
    return;
  }
  pushctx(L, CTX_GUARDS);
  lua_pushvalue(L, idx);
  coop__new(L, KIND_GUARD, sizeof(object), 1);
  lua_getiuservalue(L, idx, DEFERRED_RESULT);
  lua_setiuservalue(L, -2, 1);
  lua_rawset(L, -3);
  lua_pop(L, 1);
  d->flags |= D_GUARDED;
}

static void unguard(lua_State *L, int idx, deferred *d) {
  pushctx(L, CTX_GUARDS);
  lua_pushvalue(L, idx);
  if (lua_rawget(L, -2) == LUA_TUSERDATA) {
    lua_pushnil(L);
    lua_setiuservalue(L, -2, 1);
    lua_pushvalue(L, idx);
    lua_pushnil(L);
    lua_rawset(L, -4);
  }
  lua_pop(L, 2);
  d->flags &= (uint16_t)~D_GUARDED;
}

void coop__handled(lua_State *L, int idx) {
  deferred *d = lua_touserdata(L, idx);
  if (!(d->flags & D_FAILED)) return;
  d->flags |= D_HANDLED;
  if (d->flags & D_GUARDED) unguard(L, lua_absindex(L, idx), d);
}

/* Leaves a Deferred that no run has any more. */
static void rest(lua_State *L, int idx, deferred *d) {
  d->flags &= (uint16_t)~D_BUSY;
  if ((d->flags & (D_FIRED | D_FAILED | D_HANDLED | D_GUARDED | D_WAITING)) ==
      (D_FIRED | D_FAILED))
    guard(L, idx, d);
}

/* --- waiting ------------------------------------------------------------------ */

/* Replaces the Deferred on top by what it waits on; false when it does not. */
static bool pushnext(lua_State *L) {
  deferred *d = lua_touserdata(L, -1);
  if (d->flags & D_WAITING)
    lua_getiuservalue(L, -1, DEFERRED_RESULT);
  else if (isbody(d) && ((body *)d)->state == BODY_WAITS)
    lua_getiuservalue(L, -1, BODY_WAIT);
  else
    return false;
  lua_replace(L, -2);
  return true;
}

/* Replaces the Deferred on top by the one that waits on it. 1; 0 when there is
   none; -1 when there are several, or it stands too far back to look for. */
static int pushabove(lua_State *L) {
  deferred *d = lua_touserdata(L, -1);
  if (d->waiters == 0) return 0;
  if (d->waiters > 1 || !coop__pushwaiter(L, lua_gettop(L), d, false)) return -1;
  if (!todeferred(L, -1)) { /* a task: nobody waits on that */
    lua_pop(L, 1);
    return 0;
  }
  lua_replace(L, -2);
  return 1;
}

/* Goes down from 'idx' and up from 'target' in turn, until one of them comes to an
   end: so the shorter way decides what a link costs, however long the chains that
   it joins. */
bool coop__waitson(lua_State *L, int idx, int target) {
  const void *bottom = lua_touserdata(L, target), *top = lua_touserdata(L, idx);
  int up = 1, at = lua_gettop(L) + 1;
  bool found = false, more = true;
  lua_pushvalue(L, target);
  lua_pushvalue(L, idx);
  while (more && !(found = lua_touserdata(L, at + 1) == bottom)) {
    more = pushnext(L);
    if (more && up > 0) {
      lua_pushvalue(L, at);
      up = pushabove(L);
      lua_replace(L, at);
      found = lua_touserdata(L, at) == top;
      more = up != 0 && !found;
    }
  }
  lua_settop(L, at - 1);
  return found;
}

/* A second one waits on what the first, a paused Coroutine, had paused: that is
   held no longer. */
static void release_cascade(lua_State *L, int idx, deferred *d) {
  if (!coop__pushwaiter(L, idx, d, true)) return;
  deferred *w = todeferred(L, -1);
  body *b = w && kindof(&w->object) == KIND_COROUTINE ? (body *)w : NULL;
  while (b && b->cascaded) {
    b->cascaded--;
    coop__unpause(L, idx);
  }
  lua_pop(L, 1);
}

void coop__waited(lua_State *L, int idx) {
  deferred *d = lua_touserdata(L, idx);
  idx = lua_absindex(L, idx);
  if (d->waiters == 2 && d->pauses) release_cascade(L, idx, d);
  if (d->flags & D_FIRED) coop__run(L, idx); /* a pause may have ended */
}

void coop__pushcycle(lua_State *L) {
  lua_pushliteral(L, "a Deferred would wait on itself");
  coop__tofailure(L);
}

/* Hands the result of the Deferred at 'from' to the one at 'to'. Both keep it,
   and a failure counts as handled at the source. */
static void hand_over(lua_State *L, int from, int to) {
  lua_getiuservalue(L, from, DEFERRED_RESULT);
  set_result(L, to, lua_touserdata(L, to));
  coop__handled(L, from);
}

/* The Deferred at 'cur' goes on with the outcome of the one on top. Only whoever
   is waited on itself can close a ring, and only by waiting on one that waits:
   the walk is not made otherwise, which keeps long chains linear. [-1, +0, m] */
static void wait_for(lua_State *L, int cur, deferred *d) {
  deferred *inner = lua_touserdata(L, -1);
  int at = lua_gettop(L);
  if (inner == d || (d->waiters && coop__waitson(L, at, cur))) {
    coop__pushcycle(L);
    set_result(L, cur, d);
  } else if (settled(inner)) {
    hand_over(L, at, cur);
  } else {
    lua_pushvalue(L, at);
    lua_setiuservalue(L, cur, DEFERRED_RESULT);
    lua_pushvalue(L, cur);
    coop__append(L, at, H_WAITER);
    d->flags = (uint16_t)((d->flags & ~D_FAILED) | D_WAITING);
    coop__waited(L, at);
  }
  lua_settop(L, at - 1);
}

/* Takes what a handler or body left on top as the result. [-1, +0, m] */
static void take_outcome(lua_State *L, int cur, deferred *d) {
  if (todeferred(L, -1)) wait_for(L, cur, d);
  else set_result(L, cur, d);
}

void coop__body_settle(lua_State *L, int cur) {
  deferred *d = lua_touserdata(L, cur);
  d->flags |= D_FIRED;
  take_outcome(L, cur, d);
}

/* --- the run -------------------------------------------------------------------- */

/* May a run do something for it? */
static bool runnable(const deferred *d) {
  if (d->flags & D_CANCEL) return true;
  if (isbody(d) && body_ready((const body *)d)) return true;
  return (d->flags & (D_FIRED | D_WAITING)) == D_FIRED && d->pauses == 0 &&
         d->first < d->count;
}

static void push_work(lua_State *L, coop_context *ctx, int idx) {
  pushctx(L, CTX_WORK);
  lua_pushvalue(L, idx);
  lua_rawseti(L, -2, ctx->work + 1);
  ctx->work++;
  lua_pop(L, 1);
}

/* The one on top takes the place of the one at 'cur', which comes back to its
   handlers later: until then it is busy, so that what is added to it is queued.
   [-1, +0, m] */
void coop__enter(lua_State *L, int cur) {
  deferred *next = lua_touserdata(L, -1);
  if (next->flags & D_BUSY) {
    lua_pop(L, 1);
  } else if (!runnable(next)) {
    rest(L, lua_gettop(L), next);
    lua_pop(L, 1);
  } else {
    push_work(L, getctx(L), cur);
    next->flags |= D_BUSY;
    lua_replace(L, cur);
  }
}

/* Queues one that was reached too deep: the outermost run comes to it. */
static void put_later(lua_State *L, coop_context *ctx, int idx, deferred *d) {
  pushctx(L, CTX_LATER);
  lua_pushvalue(L, idx);
  lua_rawseti(L, -2, ctx->later_last + 1);
  ctx->later_last++;
  d->flags |= D_BUSY;
  lua_pop(L, 1);
}

/* Replaces the value at 'cur' by the next of table 'slot' at 'n'. */
static void fetch(lua_State *L, int cur, int slot, lua_Integer n) {
  pushctx(L, slot);
  lua_rawgeti(L, -1, n);
  lua_replace(L, cur);
  lua_pushnil(L);
  lua_rawseti(L, -2, n);
  lua_pop(L, 1);
}

/* Fetches the next to run; false when this run has no more. */
static bool next_work(lua_State *L, coop_context *ctx, int cur,
                      lua_Integer floor) {
  if (ctx->work <= floor) return false;
  fetch(L, cur, CTX_WORK, ctx->work--);
  return true;
}

/* Calls the handler on top with the result, extra arguments from 'from' on of
   the table at 'args' (0: none). The result of the call, or the Failure, is on
   top. */
static bool call_handler(lua_State *L, int cur, int args, lua_Integer from) {
  int nargs = 1;
  lua_getiuservalue(L, cur, DEFERRED_RESULT);
  if (args) {
    lua_rawgeti(L, args, 3);
    lua_Integer n = lua_tointeger(L, -1);
    lua_pop(L, 1);
    luaL_checkstack(L, (int)n + 4, "too many arguments");
    for (lua_Integer i = 0; i < n; i++) lua_rawgeti(L, args, from + i);
    nargs += (int)n;
  }
  if (coop__pcall(L, nargs, 1, cur - 1)) return true;
  coop__caught(L, false);
  return false;
}

/* Runs one handler: function, or table of functions and arguments, on top. */
static void handle(lua_State *L, int cur, deferred *d, handler_kind k) {
  bool failed = d->flags & D_FAILED;
  int at = lua_gettop(L), args = 0;
  if (k == H_CALL || (k == H_OBSERVE && lua_istable(L, at))) {
    args = at;
    lua_rawgeti(L, at, failed ? 2 : 1);
    if (!lua_toboolean(L, -1)) {
      lua_settop(L, at - 1);
      return;
    }
  } else if ((k == H_CALLBACK && failed) || (k == H_ERRBACK && !failed)) {
    lua_pop(L, 1);
    return;
  }
  if (d->flags & D_GUARDED) unguard(L, cur, d);
  bool ok = call_handler(L, cur, args, 4);
  if (k != H_OBSERVE) {
    take_outcome(L, cur, d);
  } else {
    coop__handled(L, cur);
    if (ok) lua_pop(L, 1);
    else coop__report(L);
  }
  lua_settop(L, at - 1);
}

/* Gives the result to the waiter on top and goes on with it. */
static void wake(lua_State *L, int cur, deferred *d) {
  int at = lua_gettop(L);
  d->waiters--;
  deferred *w = todeferred(L, at);
  if (!w) {
    coop__task_wake(L, at, cur);
    lua_settop(L, at - 1);
    return;
  }
  if (w->flags & D_WAITING) {
    w->flags &= (uint16_t)~D_WAITING;
    hand_over(L, cur, at);
  } else {
    coop__body_wake(L, at, cur);
  }
  coop__enter(L, cur);
}

/* Fires the Deferred on top, a target of chain_deferred. */
static void chain(lua_State *L, int cur, deferred *d) {
  int at = lua_gettop(L);
  deferred *t = lua_touserdata(L, at);
  if (d->flags & D_GUARDED) unguard(L, cur, d);
  if (t->flags & D_FIRED && !(t->flags & D_SWALLOW)) {
    coop__pusherror(L, "AlreadyCalledError",
                    "chain_deferred: the target has fired already");
    coop__tofailure(L);
    set_result(L, cur, d);
    lua_settop(L, at - 1);
    return;
  }
  if (t->flags & D_FIRED) {
    t->flags &= (uint16_t)~D_SWALLOW;
    lua_pop(L, 1);
  } else {
    lua_getiuservalue(L, cur, DEFERRED_RESULT);
    coop__settle(L, at);
  }
  lua_pushnil(L);
  set_result(L, cur, d);
  if (lua_gettop(L) == at) coop__enter(L, cur);
}

/* The run at 'cur' goes on with the next of what was reached too deep. */
static bool enter_later(lua_State *L, int cur) {
  coop_context *ctx = getctx(L);
  if (ctx->later_first > ctx->later_last) return false;
  lua_pushnil(L);
  int at = lua_gettop(L);
  fetch(L, at, CTX_LATER, ctx->later_first++);
  if (ctx->later_first > ctx->later_last)
    ctx->later_first = 1, ctx->later_last = 0;
  ((deferred *)lua_touserdata(L, at))->flags &= (uint16_t)~D_BUSY;
  coop__enter(L, cur);
  return true;
}

static void cancel_now(lua_State *L, int idx);

/* Does one thing for the one at 'cur'; false when there is none. */
static bool advance(lua_State *L, int cur) {
  deferred *d = lua_touserdata(L, cur);
  if (!runnable(d)) return false;
  if (d->flags & D_CANCEL) {
    d->flags &= (uint16_t)~D_CANCEL;
    cancel_now(L, cur); /* what becomes of it is for this run */
    return true;
  }
  if (isbody(d) && body_ready((body *)d)) {
    if (((body *)d)->after && enter_later(L, cur)) return true;
    ((body *)d)->after = false;
    coop__body_resume(L, cur);
    return true;
  }
  handler_kind k = coop__take(L, cur, d);
  switch (k) {
    case H_WAITER: wake(L, cur, d); break;
    case H_CHAIN: chain(L, cur, d); break;
    case H_GONE: lua_pop(L, 1); break;
    default: handle(L, cur, d, k); break;
  }
  return true;
}

/* Runs the one at 'idx', which is runnable and in no run, and all that it wakes. */
void coop__run_now(lua_State *L, int idx) {
  coop_context *ctx = getctx(L);
  luaL_checkstack(L, 16, "run");
  int base = lua_gettop(L), cur = base + 2;
  idx = lua_absindex(L, idx);
  pushctx(L, CTX_MSGH);
  lua_pushvalue(L, idx);
  lua_Integer floor = ctx->work;
  ctx->depth++;
  do {
    ((deferred *)lua_touserdata(L, cur))->flags |= D_BUSY;
    while (advance(L, cur)) continue;
    rest(L, cur, lua_touserdata(L, cur));
  } while (next_work(L, ctx, cur, floor));
  ctx->depth--;
  lua_settop(L, base);
  if (!ctx->calling) coop__run_later(L);
}

void coop__run_later(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (ctx->later_first > ctx->later_last) return;
  bool calling = ctx->calling;
  ctx->calling = true; /* what these reach too deep is run here, too */
  lua_pushnil(L);
  int at = lua_gettop(L);
  while (ctx->later_first <= ctx->later_last) {
    fetch(L, at, CTX_LATER, ctx->later_first++);
    if (ctx->later_first > ctx->later_last)
      ctx->later_first = 1, ctx->later_last = 0;
    ((deferred *)lua_touserdata(L, at))->flags &= (uint16_t)~D_BUSY;
    if (runnable(lua_touserdata(L, at))) coop__run_now(L, at);
    else rest(L, at, lua_touserdata(L, at));
  }
  lua_pop(L, 1);
  ctx->calling = calling;
}

int coop__end(lua_State *L, bool outer, int n) {
  coop_context *ctx = getctx(L);
  if (!outer) return n;
  ctx->calling = false;
  if (ctx->later_first > ctx->later_last) return n;
  if (ctx->depth >= MAX_DEPTH && ctx->running == L && lua_isyieldable(L))
    return coop__signal(L, SIGNAL_RUN, n, n);
  coop__run_later(L);
  return n;
}

void coop__run(lua_State *L, int idx) {
  coop_context *ctx = getctx(L);
  deferred *d = lua_touserdata(L, idx);
  if (d->flags & D_BUSY) return;
  if (!runnable(d)) rest(L, lua_absindex(L, idx), d);
  else if (ctx->depth >= MAX_DEPTH) put_later(L, ctx, idx, d);
  else coop__run_now(L, idx);
}

/* The body that waits on the Deferred at 'idx', which nobody else has to do with,
   and that can be resumed: pushes it. */
static body *pushready(lua_State *L, int idx, const deferred *d) {
  if (d->flags || d->pauses || d->waiters != 1 || d->count - d->first != 1 ||
      !coop__pushwaiter(L, idx, d, false))
    return NULL;
  deferred *w = todeferred(L, -1);
  body *b = w && !(w->flags & D_BUSY) && w->pauses == 0 ? tobody(w) : NULL;
  if (b && b->state == BODY_WAITS && !b->cancelled) return b;
  lua_pop(L, 1);
  return NULL;
}

bool coop__hand(lua_State *L, int idx) {
  deferred *d = lua_touserdata(L, idx);
  body *b = getctx(L)->depth < MAX_DEPTH ? pushready(L, idx, d) : NULL;
  if (!b) return false;
  coop__take(L, idx, d);
  lua_pop(L, 1);
  d->waiters = 0;
  b->cascaded = 0;
  b->state = tofailure(L, -2) ? BODY_ERROR : BODY_VALUE;
  lua_insert(L, -2);
  lua_setiuservalue(L, -2, BODY_WAIT);
  coop__run_now(L, lua_gettop(L));
  lua_pop(L, 1);
  return true;
}

/* --- firing ------------------------------------------------------------------------ */

/* May the Deferred still be fired? Raises, or says no to one late fire of a
   cancelled one. */
static bool may_fire(lua_State *L, deferred *d, const char *fname) {
  if (!(d->flags & D_FIRED)) {
    if (!isbody(d)) return true;
    luaL_error(L, "%s: a coroutine fires its Deferred itself", fname);
  }
  if (!(d->flags & D_SWALLOW))
    coop__raise(L, "AlreadyCalledError", fname, "the Deferred has fired already");
  d->flags &= (uint16_t)~D_SWALLOW;
  return false;
}

int coop__callback(lua_State *L) {
  deferred *d = coop__checkdeferred(L, 1, "callback", 0);
  if (todeferred(L, 2))
    return coop__argerror(L, "callback", 1, "a value expected, got a Deferred");
  lua_settop(L, 2);
  if (!may_fire(L, d, "callback")) return 0;
  bool outer = coop__begin(getctx(L));
  coop__fire(L, 1);
  return coop__end(L, outer, 0);
}

int coop__errback(lua_State *L) {
  deferred *d = coop__checkdeferred(L, 1, "errback", 0);
  if (lua_gettop(L) < 2)
    return coop__argerror(L, "errback", 1, "error value expected, got no value");
  if (todeferred(L, 2))
    return coop__argerror(L, "errback", 1, "error value expected, got Deferred");
  lua_settop(L, 2);
  if (!tofailure(L, 2)) coop__capture(L, L, 1);
  coop__tofailure(L); /* first: finalisers may run, and fire it */
  if (!may_fire(L, d, "errback")) return 0;
  bool outer = coop__begin(getctx(L));
  coop__fire(L, 1);
  return coop__end(L, outer, 0);
}

/* --- adding handlers ------------------------------------------------------------------ */

/* Makes the table of a handler with arguments: callback, errback, how many,
   the arguments from stack index 'first' on. */
static void pushcall(lua_State *L, bool cb, bool eb, int first) {
  int n = lua_gettop(L) - first + 1;
  lua_createtable(L, 3 + n, 0);
  if (cb) lua_pushvalue(L, 2);
  else lua_pushboolean(L, 0);
  lua_rawseti(L, -2, 1);
  if (eb) lua_pushvalue(L, 2);
  else lua_pushboolean(L, 0);
  lua_rawseti(L, -2, 2);
  lua_pushinteger(L, n);
  lua_rawseti(L, -2, 3);
  for (int i = 0; i < n; i++) {
    lua_pushvalue(L, first + i);
    lua_rawseti(L, -2, 4 + i);
  }
}

/* Runs the handlers of the Deferred at 1, if it has fired. */
static int run_handlers(lua_State *L) {
  coop_context *ctx = getctx(L);
  deferred *d = lua_touserdata(L, 1);
  bool outer = coop__begin(ctx);
  if (!(d->flags & D_BUSY) && runnable(d) && ctx->depth < MAX_ADD_DEPTH)
    coop__run_now(L, 1);
  else
    coop__run(L, 1);
  return coop__end(L, outer, 1);
}

static int add(lua_State *L, const char *fname, handler_kind k) {
  coop__checkdeferred(L, 1, fname, 0);
  coop__checkcallable(L, 2, fname, 1);
  if (lua_gettop(L) > 2) {
    pushcall(L, k != H_ERRBACK, k != H_CALLBACK, 3);
    if (k != H_OBSERVE) k = H_CALL;
  }
  coop__append(L, 1, k);
  lua_settop(L, 1);
  return run_handlers(L);
}

static int deferred_add_callback(lua_State *L) {
  return add(L, "add_callback", H_CALLBACK);
}

static int deferred_add_errback(lua_State *L) {
  return add(L, "add_errback", H_ERRBACK);
}

static int deferred_add_both(lua_State *L) {
  return add(L, "add_both", H_BOTH);
}

static int deferred_add_callbacks(lua_State *L) {
  coop__checkdeferred(L, 1, "add_callbacks", 0);
  lua_settop(L, 3);
  if (lua_isnil(L, 2) && lua_isnil(L, 3))
    return coop__typeerror(L, "add_callbacks", 1, 2, "function");
  if (!lua_isnil(L, 2)) coop__checkcallable(L, 2, "add_callbacks", 1);
  if (!lua_isnil(L, 3)) coop__checkcallable(L, 3, "add_callbacks", 2);
  lua_createtable(L, 3, 0);
  for (int i = 1; i <= 2; i++) {
    if (lua_isnil(L, 1 + i)) lua_pushboolean(L, 0);
    else lua_pushvalue(L, 1 + i);
    lua_rawseti(L, -2, i);
  }
  lua_pushinteger(L, 0);
  lua_rawseti(L, -2, 3);
  coop__append(L, 1, H_CALL);
  lua_settop(L, 1);
  return run_handlers(L);
}

/* core.observe(d, f, ...): f sees the result and changes nothing of it; the
   failure counts as handled. */
int coop__observe(lua_State *L) {
  return add(L, "observe", H_OBSERVE);
}

static int deferred_chain(lua_State *L) {
  deferred *d = coop__checkdeferred(L, 1, "chain_deferred", 0);
  deferred *t = coop__checkdeferred(L, 2, "chain_deferred", 1);
  if (d == t)
    return coop__argerror(L, "chain_deferred", 1, "another Deferred expected, got itself");
  if (isbody(t) && !(t->flags & D_FIRED))
    return coop__argerror(L, "chain_deferred", 1,
                          "a coroutine fires its Deferred itself");
  lua_settop(L, 2);
  coop__append(L, 1, H_CHAIN);
  lua_settop(L, 1);
  return run_handlers(L);
}

/* --- pausing --------------------------------------------------------------------------- */

/* Pushes what the Coroutine at 'idx' alone waits on. */
static bool pushalone(lua_State *L, int idx, deferred *d) {
  if (kindof(&d->object) != KIND_COROUTINE) return false;
  lua_pushvalue(L, idx);
  if (pushnext(L) && ((deferred *)lua_touserdata(L, -1))->waiters == 1)
    return true;
  lua_pop(L, 1);
  return false;
}

/* Pauses the task that an unfired Deferred stands for, if it does. */
static void hold_source(lua_State *L, int idx, deferred *d, bool hold) {
  if (d->flags & D_FIRED) return;
  lua_getiuservalue(L, idx, DEFERRED_RESULT);
  if (tokind(L, -1, KIND_TASK)) coop__task_hold(L, lua_gettop(L), hold);
  lua_pop(L, 1);
}

void coop__pause(lua_State *L, int idx) {
  lua_pushvalue(L, idx);
  int cur = lua_gettop(L);
  for (bool deeper = true; deeper;) {
    deferred *d = lua_touserdata(L, cur);
    if (d->pauses == UINT16_MAX) luaL_error(L, "pause: too many pauses");
    d->pauses++;
    hold_source(L, cur, d, true);
    deeper = pushalone(L, cur, d);
    if (deeper) {
      ((body *)d)->cascaded++;
      lua_replace(L, cur);
    }
  }
  lua_pop(L, 1);
}

/* Undoes one pause all the way down. What was held goes on from the outside in:
   an outer one that is ready does not depend on the inner ones. */
void coop__unpause(lua_State *L, int idx) {
  lua_pushvalue(L, idx);
  int cur = lua_gettop(L);
  for (bool deeper = true; deeper;) {
    deferred *d = lua_touserdata(L, cur);
    if (d->pauses) d->pauses--;
    deeper = kindof(&d->object) == KIND_COROUTINE &&
             ((body *)d)->cascaded > d->pauses;
    if (deeper) {
      ((body *)d)->cascaded--;
      lua_pushvalue(L, cur);
      deeper = pushnext(L);
      if (!deeper) lua_pop(L, 1);
    }
    hold_source(L, cur, d, false);
    if (d->pauses == 0) coop__run(L, cur);
    if (deeper) lua_replace(L, cur);
  }
  lua_pop(L, 1);
}

static int deferred_pause(lua_State *L) {
  coop__checkdeferred(L, 1, "pause", 0);
  coop__pause(L, 1);
  return 0;
}

static int deferred_unpause(lua_State *L) {
  deferred *d = coop__checkdeferred(L, 1, "unpause", 0);
  if (d->pauses == 0)
    return luaL_error(L, "unpause: the Deferred is not paused");
  bool outer = coop__begin(getctx(L));
  coop__unpause(L, 1);
  return coop__end(L, outer, 0);
}

/* --- cancelling ---------------------------------------------------------------------------- */

static void pushcancelled(lua_State *L) {
  coop__pusherror(L, "CancelledError", "cancelled");
  coop__tofailure(L);
}

/* Calls the canceller of a plain Deferred, or does what it stands for. An error
   is its outcome, or, when it has fired in the meantime, reported. */
static void call_canceller(lua_State *L, int cur, deferred *d) {
  int top = lua_gettop(L);
  bool failed = false;
  if (d->flags & D_CANCELLING) return;
  lua_getiuservalue(L, cur, DEFERRED_RESULT);
  d->flags |= D_CANCELLING;
  if (lua_isnil(L, -1)) {
    d->flags |= D_SWALLOW;
  } else if (tokind(L, -1, KIND_CALL)) {
    coop__call_cancel(L, lua_gettop(L));
  } else if (tokind(L, -1, KIND_TASK)) {
    failed = !coop__task_cancel(L, lua_gettop(L));
  } else if (tokind(L, -1, KIND_CONNECTION)) {
    coop__connection_forget(L, lua_gettop(L), cur);
  } else {
    pushctx(L, CTX_MSGH);
    lua_insert(L, -2);
    lua_pushvalue(L, cur);
    failed = !coop__pcall(L, 1, 0, top + 1);
    if (failed) coop__caught(L, false);
  }
  d->flags &= (uint16_t)~D_CANCELLING;
  if (failed && d->flags & D_FIRED) {
    coop__report(L);
  } else if (!(d->flags & D_FIRED) && (failed || !(d->flags & D_RELAY))) {
    if (!failed) pushcancelled(L);
    if (!(d->flags & D_FIRED)) coop__fire(L, cur); /* no finaliser has */
  }
  lua_settop(L, top);
}

/* Takes the one at 'cur' away from the shared Deferred on top, which it waits
   on, and fails its wait. */
static void leave_shared(lua_State *L, int cur, deferred *d) {
  lua_pushvalue(L, cur);
  lua_insert(L, -2); /* stack: waiter, source: what coop__detach asks for */
  coop__detach(L, lua_gettop(L), d);
  lua_pop(L, 2);
  if (d->flags & D_WAITING) {
    d->flags &= (uint16_t)~D_WAITING;
    pushcancelled(L);
    set_result(L, cur, d);
  } else {
    pushcancelled(L);
    lua_setiuservalue(L, cur, BODY_WAIT);
    ((body *)d)->state = BODY_ERROR;
  }
  if (kindof(&d->object) == KIND_COROUTINE && !(d->flags & D_FIRED))
    ((body *)d)->state = BODY_CLOSES;
  coop__run(L, cur);
}

/* Cancelling ends a Coroutine's pause, and those that it handed on. */
static void end_pause(lua_State *L, int cur, body *b) {
  while (b->d.pauses) {
    b->d.pauses--;
    if (b->cascaded > b->d.pauses) {
      b->cascaded--;
      lua_pushvalue(L, cur);
      if (pushnext(L)) coop__unpause(L, lua_gettop(L));
      lua_pop(L, 1);
    }
  }
}

/* Cancels a body that does not wait. */
static void cancel_unwaiting(lua_State *L, int cur, body *b) {
  if (kindof(&b->d.object) == KIND_COROUTINE) {
    b->cancelled = true;
    if (b->state != BODY_RUNS) b->state = BODY_CLOSES;
    b->d.pauses = 0;
    coop__run(L, cur);
  } else if (b->state == BODY_START) {
    b->state = BODY_CLOSES;
    coop__run(L, cur);
  }
}

/* One step down: replaces the one at 'cur' by what it alone waits on. False
   when cancelling has come to its end here. 'path' counts the Coroutines left
   behind, kept in the table at cur + 1. */
static bool cancel_step(lua_State *L, int cur, lua_Integer *path) {
  deferred *d = lua_touserdata(L, cur);
  body *b = d->flags & D_FIRED ? NULL : tobody(d);
  if (b && b->state != BODY_WAITS) {
    cancel_unwaiting(L, cur, b);
    return false;
  }
  if (b && kindof(&d->object) == KIND_COROUTINE) {
    b->cancelled = true;
    end_pause(L, cur, b);
    if (b->state != BODY_WAITS) return false; /* the pause held its end back */
  }
  if (!b && !(d->flags & D_WAITING)) {
    if (!(d->flags & D_FIRED)) call_canceller(L, cur, d);
    return false;
  }
  lua_pushvalue(L, cur);
  pushnext(L);
  if (((deferred *)lua_touserdata(L, -1))->waiters > 1) {
    leave_shared(L, cur, d);
    return false;
  }
  if (b && b->cancelled) {
    if (!lua_istable(L, cur + 1)) {
      lua_newtable(L);
      lua_replace(L, cur + 1);
    }
    lua_pushvalue(L, cur);
    lua_rawseti(L, cur + 1, ++*path);
  }
  lua_replace(L, cur);
  return true;
}

/* Walks down to what is waited on in the end and cancels that; then closes, from
   the inside out, each Coroutine on the way that this has not ended. */
static void cancel_now(lua_State *L, int idx) {
  coop_context *ctx = getctx(L);
  luaL_checkstack(L, 12, "cancel");
  int top = lua_gettop(L), cur = top + 1;
  lua_Integer path = 0;
  lua_pushvalue(L, idx);
  lua_pushnil(L); /* place of the table that cancel_step makes */
  ctx->depth++;
  while (cancel_step(L, cur, &path)) continue;
  for (; path > 0; path--) {
    lua_rawgeti(L, cur + 1, path);
    lua_replace(L, cur);
    body *b = lua_touserdata(L, cur);
    if (b->state != BODY_WAITS) continue;
    lua_pushvalue(L, cur);
    lua_getiuservalue(L, cur, BODY_WAIT);
    coop__detach(L, lua_gettop(L), b);
    lua_pop(L, 2);
    b->state = BODY_CLOSES;
    coop__run(L, cur);
  }
  ctx->depth--;
  lua_settop(L, top);
}

/* Where that would nest too deep, the one at 'idx' is queued for it. */
void coop__cancel(lua_State *L, int idx) {
  coop_context *ctx = getctx(L);
  deferred *d = lua_touserdata(L, idx);
  if (ctx->depth < MAX_DEPTH) {
    cancel_now(L, idx);
    return;
  }
  if (!(d->flags & D_BUSY)) put_later(L, ctx, lua_absindex(L, idx), d);
  d->flags |= D_CANCEL;
}

static int deferred_cancel(lua_State *L) {
  coop__checkdeferred(L, 1, "cancel", 0);
  bool outer = coop__begin(getctx(L));
  coop__cancel(L, 1);
  return coop__end(L, outer, 0);
}

/* --- fields, text ------------------------------------------------------------------------------ */

static bool pushresult(lua_State *L, int idx, const deferred *d) {
  if ((d->flags & (D_FIRED | D_WAITING)) != D_FIRED) return false;
  lua_getiuservalue(L, idx, DEFERRED_RESULT);
  return true;
}

/* Deferred.key: a method, or one of the three fields. */
static int deferred_get(lua_State *L) {
  deferred *d = todeferred(L, 1);
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL) return 1;
  if (!d || lua_type(L, 2) != LUA_TSTRING) return 1;
  const char *key = lua_tostring(L, 2);
  if (!strcmp(key, "called")) lua_pushboolean(L, d->flags & D_FIRED);
  else if (!strcmp(key, "paused")) lua_pushinteger(L, d->pauses);
  else if (strcmp(key, "result") || !pushresult(L, 1, d)) lua_pushnil(L);
  return 1;
}

static int deferred__newindex(lua_State *L) {
  return luaL_error(L, "a %s's fields cannot be set (%s)",
                    coop__typename(L, 1), luaL_tolstring(L, 2, NULL));
}

static int deferred__tostring(lua_State *L) {
  deferred *d = coop__checkdeferred(L, 1, "tostring", 0);
  const char *name = coop__typename(L, 1);
  lua_pushfstring(L, "%s: %p", name, (void *)d);
  if (d->flags & D_WAITING) {
    lua_getiuservalue(L, 1, DEFERRED_RESULT);
    lua_pushfstring(L, " waiting on %s: %p", coop__typename(L, -1),
                    lua_touserdata(L, -1));
    lua_remove(L, -2);
  } else if (isbody(d) && ((body *)d)->state == BODY_WAITS) {
    lua_getiuservalue(L, 1, BODY_WAIT);
    lua_pushfstring(L, " waiting on %s: %p", coop__typename(L, -1),
                    lua_touserdata(L, -1));
    lua_remove(L, -2);
  } else if (pushresult(L, 1, d)) {
    luaL_tolstring(L, -1, NULL);
    lua_pushfstring(L, " result: %s", lua_tostring(L, -1));
    lua_replace(L, -3);
    lua_pop(L, 1);
  } else {
    lua_pushliteral(L, " not fired");
  }
  if (d->pauses) lua_pushfstring(L, " paused %d", d->pauses);
  else lua_pushliteral(L, "");
  lua_concat(L, 3);
  return 1;
}

/* --- module functions ------------------------------------------------------------------------------ */

static int deferred_new(lua_State *L) {
  lua_settop(L, 1);
  if (!lua_isnil(L, 1)) coop__checkcallable(L, 1, "Deferred", 1);
  coop__deferred_new(L);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, 2, DEFERRED_RESULT);
  return 1;
}

static int succeed(lua_State *L) {
  if (todeferred(L, 1))
    return coop__argerror(L, "succeed", 1, "a value expected, got a Deferred");
  lua_settop(L, 1);
  coop__deferred_new(L);
  lua_insert(L, 1);
  coop__fire(L, 1);
  return 1;
}

static int fail(lua_State *L) {
  if (lua_gettop(L) < 1)
    return coop__argerror(L, "fail", 1, "error value expected, got no value");
  if (todeferred(L, 1))
    return coop__argerror(L, "fail", 1, "error value expected, got Deferred");
  lua_settop(L, 1);
  if (!tofailure(L, 1)) coop__capture(L, L, 1);
  coop__tofailure(L);
  coop__deferred_new(L);
  lua_insert(L, 1);
  coop__fire(L, 1);
  return 1;
}

static int maybe(lua_State *L, const char *fname) {
  coop__checkcallable(L, 1, fname, 1);
  int nargs = lua_gettop(L) - 1;
  pushctx(L, CTX_MSGH);
  lua_insert(L, 1);
  if (!coop__pcall(L, nargs, 1, 1)) coop__caught(L, false);
  else if (todeferred(L, -1)) return 1;
  coop__deferred_new(L);
  lua_insert(L, -2);
  coop__fire(L, lua_gettop(L) - 1);
  return 1;
}

static int maybe_deferred(lua_State *L) { return maybe(L, "maybe_deferred"); }

static int execute(lua_State *L) { return maybe(L, "execute"); }

static int is_deferred(lua_State *L) {
  lua_pushboolean(L, todeferred(L, 1) != NULL);
  return 1;
}

/* core.relay(canceller): a Deferred that cancelling does not fail by itself. */
static int relay(lua_State *L) {
  lua_settop(L, 1);
  coop__deferred_new(L)->flags = D_RELAY;
  lua_insert(L, 1);
  lua_setiuservalue(L, 1, DEFERRED_RESULT);
  return 1;
}

/* core.report_guarded(): what has failed unseen is reported now, once. */
static int report_guarded(lua_State *L) {
  pushctx(L, CTX_GUARDS);
  lua_pushnil(L);
  lua_newtable(L); /* the table changes while it is walked: take a list */
  lua_insert(L, -2);
  lua_Integer n = 0;
  while (lua_next(L, -3)) lua_rawseti(L, -3, ++n);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, -1, i);
    lua_getiuservalue(L, -1, 1);
    lua_pushnil(L);
    lua_setiuservalue(L, -3, 1);
    if (tofailure(L, -1)) coop__report(L);
    else lua_pop(L, 1);
    lua_pop(L, 1);
  }
  return 0;
}

static const luaL_Reg methods[] = {
  {"add_callback", deferred_add_callback},
  {"add_errback", deferred_add_errback},
  {"add_both", deferred_add_both},
  {"add_callbacks", deferred_add_callbacks},
  {"callback", coop__callback},
  {"errback", coop__errback},
  {"pause", deferred_pause},
  {"unpause", deferred_unpause},
  {"cancel", deferred_cancel},
  {"chain_deferred", deferred_chain},
  {NULL, NULL}
};

static const luaL_Reg meta[] = {
  {"__newindex", deferred__newindex},
  {"__tostring", deferred__tostring},
  {NULL, NULL}
};

static const luaL_Reg functions[] = {
  {"Deferred", deferred_new},
  {"succeed", succeed},
  {"fail", fail},
  {"maybe_deferred", maybe_deferred},
  {"execute", execute},
  {"is_deferred", is_deferred},
  {NULL, NULL}
};

static const luaL_Reg core_functions[] = {
  {"observe", coop__observe},
  {"relay", relay},
  {"report_guarded", report_guarded},
  {NULL, NULL}
};

void coop__open_deferred(lua_State *L) {
  lua_pushvalue(L, 1);
  coop__setfuncs(L, functions);
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_getfield(L, 2, "methods");
  lua_newtable(L); /* core.methods.Deferred, shared by the three kinds */
  coop__setfuncs(L, methods);
  for (int k = KIND_DEFERRED; k <= KIND_INLINE; k++) {
    coop__newtype(L, (kind)k, NULL, meta);
    pushctx(L, CTX_META + k);
    lua_pushvalue(L, CTX);
    lua_pushvalue(L, -3);
    lua_pushcclosure(L, deferred_get, 2);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
  }
  lua_setfield(L, -2, "Deferred");
  lua_settop(L, 2);
}
