/*
** lrun.c - the run: all that happens because a Deferred has fired, or a body may go
** on.
**
** One loop does one thing after another for the Deferred under way. Whoever that
** wakes is dealt with first, and stands above it meanwhile: on the stack, or, when
** there are many, in CTX_WORK. So nothing recurses, however long the chain. A run
** that would stand too deep on the C stack is queued in CTX_LATER instead.
*/
#include "lcoop.h"

/* --- outcomes --------------------------------------------------------------------- */

/* Hands the result of the Deferred at 'from' to the one at 'to'. Both keep it,
   and a failure counts as handled at the source. */
static void hand_over(lua_State *L, int from, int to) {
  lua_getiuservalue(L, from, DEFERRED_RESULT);
  coop__set_result(L, to, lua_touserdata(L, to));
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
    coop__set_result(L, cur, d);
  } else if (settled(inner)) {
    hand_over(L, at, cur);
  } else {
    lua_pushvalue(L, at);
    lua_setiuservalue(L, cur, DEFERRED_RESULT);
    lua_pushvalue(L, cur);
    coop__append_to(L, at, inner, H_WAITER);
    d->flags = (uint16_t)((d->flags & ~D_FAILED) | D_WAITING);
    coop__waited(L, at);
  }
  lua_settop(L, at - 1);
}

/* Takes what a handler or body left on top as the result. [-1, +0, m] */
static void take_outcome(lua_State *L, int cur, deferred *d) {
  const object *o = toobject(L, -1);
  if (o && kindof(o) <= KIND_INLINE) wait_for(L, cur, d);
  else coop__take_result(L, cur, d, o && kindof(o) == KIND_FAILURE);
}

void coop__body_settle(lua_State *L, int cur, deferred *d) {
  d->flags |= D_FIRED;
  take_outcome(L, cur, d);
}

/* --- the stack of those interrupted, the queue of those too deep --------------------- */

/* Has it handlers that may run? */
static inline bool deliverable(const deferred *d) {
  return (d->flags & (D_FIRED | D_WAITING)) == D_FIRED && d->pauses == 0 &&
         d->first < d->count;
}

/* May a run do something for it? */
static inline bool runnable(const deferred *d) {
  return d->flags & D_CANCEL || deliverable(d) ||
         (isbody(d) && body_ready((const body *)d));
}

/* The run that is under way has the Deferred from now on. */
static inline void occupy(const coop_context *ctx, deferred *d) {
  int depth = ctx->depth < DEPTH_MOST ? ctx->depth : DEPTH_MOST;
  d->flags = (uint16_t)(d->flags | D_BUSY | depth * D_DEPTH);
}

static inline void vacate(deferred *d) {
  d->flags &= (uint16_t)~(D_BUSY | DEPTH_MOST * D_DEPTH);
}

/* Has a run the Deferred, or the queue? What a run had that an error has ended, for
   want of memory, is free again. */
static inline bool busy(const coop_context *ctx, deferred *d) {
  if (!(d->flags & D_BUSY)) return false;
  if (d->flags / D_DEPTH <= ctx->depth) return true;
  vacate(d);
  return false;
}

/* Leaves a Deferred that no run has any more. */
static inline void rest(lua_State *L, int idx, deferred *d) {
  vacate(d);
  if ((d->flags & (D_FIRED | D_FAILED | D_HANDLED | D_GUARDED | D_WAITING)) ==
      (D_FIRED | D_FAILED))
    coop__guard(L, idx, d);
}

/* Puts the value at 'idx' at place 'n' of table 'slot'. */
static void store(lua_State *L, int idx, int slot, lua_Integer n) {
  pushctx(L, slot);
  lua_pushvalue(L, idx);
  lua_rawseti(L, -2, n);
  lua_pop(L, 1);
}

/* Replaces the value at 'cur' by the one at place 'n' of table 'slot'. */
static void fetch(lua_State *L, int cur, int slot, lua_Integer n) {
  pushctx(L, slot);
  lua_rawgeti(L, -1, n);
  lua_replace(L, cur);
  lua_pushnil(L);
  lua_rawseti(L, -2, n);
  lua_pop(L, 1);
}

/* Whoever is left below stays busy, so that what is added to it is queued. */
void coop__enter(struct run *r, deferred *next) {
  if (busy(r->ctx, next)) {
    lua_pop(r->L, 1);
  } else if (!runnable(next)) {
    rest(r->L, r->cur + 1, next);
    lua_pop(r->L, 1);
  } else {
    occupy(r->ctx, next);
    if (r->cur < r->base + RUN_NEAR) {
      r->below[r->cur++ - r->base - 1] = r->d;
      r->d = next;
    } else {
      r->d = next;
      store(r->L, r->cur, CTX_WORK, r->ctx->work + 1);
      r->ctx->work++;
      lua_replace(r->L, r->cur);
    }
  }
}

/* Goes back to the one that was interrupted last; false when there is none. */
static inline bool leave(struct run *r) {
  if (r->ctx->work > r->floor) {
    fetch(r->L, r->cur, CTX_WORK, r->ctx->work--);
    r->d = lua_touserdata(r->L, r->cur);
    return true;
  }
  if (r->cur == r->base + 1) return false;
  lua_settop(r->L, --r->cur);
  r->d = r->below[r->cur - r->base - 1];
  return true;
}

/* Queues one that was reached too deep: the outermost run comes to it. */
static void put_later(lua_State *L, coop_context *ctx, int idx, deferred *d) {
  store(L, idx, CTX_LATER, ctx->later_last + 1);
  ctx->later_last++;
  d->flags |= D_BUSY;
}

void coop__cancel_later(lua_State *L, int idx) {
  deferred *d = lua_touserdata(L, idx);
  coop_context *ctx = getctx(L);
  if (!busy(ctx, d)) put_later(L, ctx, lua_absindex(L, idx), d);
  d->flags |= D_CANCEL;
}

/* Replaces the value at 'at' by the next of the queue. */
static deferred *take_later(lua_State *L, coop_context *ctx, int at) {
  fetch(L, at, CTX_LATER, ctx->later_first++);
  if (ctx->later_first > ctx->later_last)
    ctx->later_first = 1, ctx->later_last = 0;
  deferred *d = lua_touserdata(L, at);
  vacate(d);
  return d;
}

/* The run goes on with the next of the queue. */
static bool enter_later(struct run *r) {
  if (r->ctx->later_first > r->ctx->later_last) return false;
  lua_pushnil(r->L);
  coop__enter(r, take_later(r->L, r->ctx, r->cur + 1));
  return true;
}

/* --- handlers ------------------------------------------------------------------------ */

/* Calls the handler on top with the result, extra arguments from 'from' on of
   the table at 'args' (0: none). The result of the call, or the Failure, is on
   top. */
static bool call_handler(struct run *r, int args, lua_Integer from) {
  lua_State *L = r->L;
  int nargs = 1, at = lua_gettop(L);
  pushctx(L, CTX_MSGH);
  lua_insert(L, at);
  lua_getiuservalue(L, r->cur, DEFERRED_RESULT);
  if (args) {
    lua_rawgeti(L, args, 3);
    lua_Integer n = lua_tointeger(L, -1);
    lua_pop(L, 1);
    luaL_checkstack(L, (int)n + 4, "too many arguments");
    for (lua_Integer i = 0; i < n; i++) lua_rawgeti(L, args, from + i);
    nargs += (int)n;
  }
  if (coop__pcall_in(r->ctx, L, nargs, 1, at)) return true;
  coop__caught(L, false);
  return false;
}

/* Runs one handler: function, or table of functions and arguments, on top. */
static void handle(struct run *r, handler_kind k) {
  lua_State *L = r->L;
  deferred *d = r->d;
  bool failed = d->flags & D_FAILED;
  int at = lua_gettop(L), args = 0;
  if (k == H_CALL || (k == H_OBSERVE && lua_istable(L, at))) {
    args = at;
    lua_rawgeti(L, at, failed ? 2 : 1);
    if (!lua_toboolean(L, -1)) return;
  } else if ((k == H_CALLBACK && failed) || (k == H_ERRBACK && !failed)) {
    return;
  }
  if (d->flags & D_GUARDED) coop__unguard(L, r->cur, d);
  bool ok = call_handler(r, args, 4);
  if (k != H_OBSERVE) {
    take_outcome(L, r->cur, d);
  } else {
    coop__handled(L, r->cur);
    if (!ok) coop__report(L);
  }
}

/* Is the next handler a function that is to have the result, which is a value? */
static inline bool plain(const deferred *d) {
  if (!deliverable(d) || d->flags & (D_FAILED | D_CANCEL)) return false;
  handler_kind k = slotkind(d, d->first);
  return k == H_CALLBACK || k == H_BOTH;
}

/* Runs the plain handlers at the front of the list. */
static void run_plain(struct run *r) {
  lua_State *L = r->L;
  deferred *d = r->d;
  int cur = r->cur;
  pushctx(L, CTX_MSGH);
  do {
    coop__take_slot(L, cur, d);
    lua_getiuservalue(L, cur, DEFERRED_RESULT);
    if (!coop__pcall_in(r->ctx, L, 1, 1, cur + 1)) {
      coop__caught(L, false);
    } else if (lua_type(L, -1) != LUA_TUSERDATA) {
      lua_setiuservalue(L, cur, DEFERRED_RESULT);
      continue;
    }
    take_outcome(L, cur, d);
    return;
  } while (plain(d));
}

/* --- who waits ------------------------------------------------------------------------- */

/* Gives the result to the waiter on top and goes on with it. */
static void wake(struct run *r) {
  lua_State *L = r->L;
  int at = r->cur + 1;
  object *o = lua_touserdata(L, at);
  r->d->waiters--;
  if (kindof(o) == KIND_TASK) {
    coop__task_wake(L, at, r->cur);
    return;
  }
  deferred *w = (deferred *)o;
  if (w->flags & D_WAITING) {
    w->flags &= (uint16_t)~D_WAITING;
    hand_over(L, r->cur, at);
  } else {
    coop__body_wake(L, at, (body *)w, r->cur, r->d);
  }
  coop__enter(r, w);
}

/* Fires the Deferred on top, a target of chain_deferred. */
static void chain(struct run *r) {
  lua_State *L = r->L;
  deferred *d = r->d, *t = lua_touserdata(L, -1);
  int at = r->cur + 1;
  bool fires = !(t->flags & D_FIRED), late = t->flags & D_SWALLOW;
  if (d->flags & D_GUARDED) coop__unguard(L, r->cur, d);
  if (!fires && !late) {
    coop__pusherror(L, "AlreadyCalledError",
                    "chain_deferred: the target has fired already");
    coop__tofailure(L);
    coop__set_result(L, r->cur, d);
    return;
  }
  t->flags &= (uint16_t)~D_SWALLOW;
  if (fires) {
    lua_getiuservalue(L, r->cur, DEFERRED_RESULT);
    coop__settle(L, at);
  }
  lua_pushnil(L);
  coop__set_result(L, r->cur, d);
  if (fires) coop__enter(r, t);
}

/* --- the loop ---------------------------------------------------------------------------- */

static void deliver(struct run *r) {
  if (plain(r->d)) {
    run_plain(r);
    return;
  }
  handler_kind k = coop__take(r->L, r->cur, r->d);
  switch (k) {
    case H_WAITER: wake(r); break;
    case H_CHAIN: chain(r); break;
    case H_GONE: break;
    default: handle(r, k); break;
  }
}

static void step_body(struct run *r) {
  body *b = (body *)r->d;
  if (b->after && enter_later(r)) return;
  b->after = false;
  coop__body_resume(r);
}

/* Does one thing for the Deferred under way; false when there is none. */
static bool advance(struct run *r) {
  deferred *d = r->d;
  if (d->flags & D_CANCEL) {
    d->flags &= (uint16_t)~D_CANCEL;
    coop__cancel_now(r->L, r->cur); /* what becomes of it is for this run */
  } else if (isbody(d) && body_ready((body *)d)) {
    step_body(r);
  } else if (deliverable(d)) {
    deliver(r);
  } else {
    return false;
  }
  if (lua_gettop(r->L) != r->cur) lua_settop(r->L, r->cur);
  return true;
}

/* It is runnable, and in no run. */
void coop__run_top(lua_State *L, coop_context *ctx, deferred *d) {
  if (!lua_checkstack(L, RUN_NEAR + 16)) luaL_error(L, "stack overflow (run)");
  int cur = lua_gettop(L);
  struct run r; /* 'below' needs no value yet */
  r.L = L;
  r.ctx = ctx;
  r.base = cur - 1;
  r.cur = cur;
  r.d = d;
  r.floor = ctx->work;
  ctx->depth++;
  occupy(ctx, d);
  do {
    while (advance(&r)) continue;
    rest(L, r.cur, r.d);
  } while (leave(&r));
  ctx->depth--;
  if (!ctx->calling && ctx->later_first <= ctx->later_last) coop__run_later(L);
}

static void run_all(lua_State *L, coop_context *ctx, int idx, deferred *d) {
  luaL_checkstack(L, 1, "run");
  lua_pushvalue(L, idx);
  coop__run_top(L, ctx, d);
  lua_pop(L, 1);
}

void coop__run_now(lua_State *L, int idx) {
  run_all(L, getctx(L), idx, lua_touserdata(L, idx));
}

void coop__run_in(lua_State *L, coop_context *ctx, int idx, deferred *d) {
  if (busy(ctx, d)) return;
  if (!runnable(d)) rest(L, idx, d);
  else if (ctx->depth >= MAX_DEPTH) put_later(L, ctx, idx, d);
  else if (idx == lua_gettop(L)) coop__run_top(L, ctx, d);
  else run_all(L, ctx, idx, d);
}

void coop__run(lua_State *L, int idx) {
  coop__run_in(L, getctx(L), lua_absindex(L, idx), lua_touserdata(L, idx));
}

void coop__added(lua_State *L, int idx) {
  coop_context *ctx = getctx(L);
  deferred *d = lua_touserdata(L, idx);
  if (!busy(ctx, d) && runnable(d) && ctx->depth < MAX_ADD_DEPTH)
    coop__run_now(L, idx);
  else
    coop__run_in(L, ctx, idx, d);
}

void coop__run_later(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (ctx->later_first > ctx->later_last) return;
  bool calling = ctx->calling;
  ctx->calling = true; /* what these reach too deep is run here, too */
  lua_pushnil(L);
  int at = lua_gettop(L);
  while (ctx->later_first <= ctx->later_last) {
    deferred *d = take_later(L, ctx, at);
    if (runnable(d)) run_all(L, ctx, at, d);
    else rest(L, at, d);
  }
  lua_pop(L, 1);
  ctx->calling = calling;
}

int coop__end_later(lua_State *L, coop_context *ctx, int n) {
  if (ctx->depth >= MAX_DEPTH && ctx->running == L && lua_isyieldable(L))
    return coop__signal(L, SIGNAL_RUN, n, n);
  coop__run_later(L);
  return n;
}

/* --- handing on without firing --------------------------------------------------------------- */

/* The body that waits on the Deferred at 'idx', which nobody else has to do with,
   and that can be resumed: pushes it. */
static body *pushready(lua_State *L, int idx, const deferred *d) {
  if (d->flags || d->pauses || d->waiters != 1 || d->count - d->first != 1 ||
      !coop__pushwaiter(L, idx, d, false))
    return NULL;
  deferred *w = todeferred(L, -1);
  body *b = w && !busy(getctx(L), w) && w->pauses == 0 ? tobody(w) : NULL;
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
