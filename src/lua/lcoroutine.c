/*
** lcoroutine.c - bodies: functions that run in a coroutine for a Deferred.
**
** A body is its own Deferred. It is resumed only by coop__run, and has run to
** its first wait when the call that made it returns: directly, or, where that
** would nest too deep, by way of the run that the caller itself is in.
*/
#include "lcoop.h"

/* --- making ----------------------------------------------------------------------- */

/* Puts the function and its arguments on top onto a fiber for the body.
   [-(nargs+1), +0, m] */
static void load(lua_State *L, coop_context *ctx, body *b, int nargs) {
  fiber *f = coop__fiber_take(L, ctx);
  b->fiber = f;
  b->co = f->co;
  b->nargs = coop__fiber_load(L, f, nargs);
  b->state = BODY_START;
}

/* The body is suspended, or not run at once: from now on it holds its fiber. */
static void hold(lua_State *L, coop_context *ctx, int cur, body *b) {
  if (!b->fiber->place) return;
  coop__fiber_hold(L, ctx, b->fiber);
  lua_setiuservalue(L, cur, BODY_FIBER);
}

/* Makes a body of the function and 'nargs' arguments on top. [-(n+1), +1, m] */
static body *make_body(lua_State *L, coop_context *ctx, kind k, int nargs) {
  int first = lua_gettop(L) - nargs;
  body *b = coop__new(L, k, sizeof *b, BODY_NUV);
  b->state = BODY_ENDED; /* harmless until its function is in place */
  lua_insert(L, first);
  load(L, ctx, b, nargs);
  return b;
}

static int start_body(lua_State *L);

/* The kind of body that the C function at 'idx' makes, with its function pushed;
   KIND_COUNT when it makes none. */
static kind pushbody(lua_State *L, int idx) {
  if (lua_tocfunction(L, idx) != start_body) return KIND_COUNT;
  lua_getupvalue(L, idx, 2);
  lua_getupvalue(L, idx, 3);
  kind k = (kind)lua_tointeger(L, -1);
  lua_pop(L, 1);
  return k;
}

/* Runs the new body on top to its first wait. */
static int start(lua_State *L, coop_context *ctx, body *b) {
  if (ctx->depth >= MAX_DEPTH && ctx->running == L && lua_isyieldable(L)) {
    hold(L, ctx, lua_gettop(L), b);
    return coop__signal_in(ctx, L, SIGNAL_SPAWN, 1, 1);
  }
  coop__run_top(L, ctx, (deferred *)b);
  return 1;
}

/* What inline_callbacks and coroutine return: upvalues 2 and 3 are the function
   and the kind of body. */
static int start_body(lua_State *L) {
  coop_context *ctx = getctx(L);
  int nargs = lua_gettop(L);
  kind k = (kind)lua_tointeger(L, lua_upvalueindex(3));
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_insert(L, 1);
  return start(L, ctx, make_body(L, ctx, k, nargs));
}

static int make(lua_State *L, const char *fname, kind k) {
  coop__checkcallable(L, 1, fname, 1);
  lua_settop(L, 1);
  lua_pushvalue(L, CTX);
  lua_insert(L, 1);
  lua_pushinteger(L, k);
  lua_pushcclosure(L, start_body, 3);
  return 1;
}

static int inline_callbacks(lua_State *L) {
  return make(L, "inline_callbacks", KIND_INLINE);
}

static int coroutine(lua_State *L) {
  return make(L, "coroutine", KIND_COROUTINE);
}

int coop__spawn(lua_State *L) {
  coop__checkcallable(L, 1, "spawn", 1);
  coop_context *ctx = getctx(L);
  return start(L, ctx, make_body(L, ctx, KIND_COROUTINE, lua_gettop(L) - 1));
}

/* --- ending -------------------------------------------------------------------------- */

/* The body is over: its fiber goes back. */
static void give_back(lua_State *L, coop_context *ctx, int cur, body *b) {
  fiber *f = b->fiber;
  b->state = BODY_ENDED;
  b->co = NULL;
  b->fiber = NULL;
  if (f->place) {
    coop__fiber_back(L, ctx, f);
    return;
  }
  lua_getiuservalue(L, cur, BODY_FIBER);
  coop__fiber_give(L, lua_gettop(L));
  lua_pop(L, 1);
  lua_pushnil(L);
  lua_setiuservalue(L, cur, BODY_FIBER);
  lua_pushnil(L);
  lua_setiuservalue(L, cur, BODY_WAIT);
}

/* Closes the body's coroutines; an error of a closer is on top, as a Failure. */
static bool close_fiber(struct run *r, body *b) {
  lua_State *L = r->L;
  hold(L, r->ctx, r->cur, b);
  lua_getiuservalue(L, r->cur, BODY_FIBER);
  bool ok = coop__fiber_close(L, lua_gettop(L));
  if (!ok) coop__caught(L, false);
  lua_remove(L, ok ? -1 : -2);
  return ok;
}

/* Ends the body with the value, Failure or Deferred on top. [-1, +0, m] */
static void finish(struct run *r, body *b) {
  give_back(r->L, r->ctx, r->cur, b);
  coop__body_settle(r->L, r->cur, &b->d);
}

/* A body that was cancelled is closed; cancelled is its outcome, unless a closer
   failed. */
static void close_body(struct run *r, body *b) {
  b->state = BODY_RUNS;
  if (b->d.flags & D_FIRED) return;
  if (!b->co) { /* it had ended: for want of memory there was no outcome */
    b->state = BODY_ENDED;
    coop__pushcancelled(r->L);
    coop__body_settle(r->L, r->cur, &b->d);
    return;
  }
  if (close_fiber(r, b)) coop__pushcancelled(r->L);
  finish(r, b);
}

/* The body died, its cleanup has run: the error is its outcome. */
static void died(struct run *r, body *b) {
  b->state = BODY_ENDED;
  coop__fiber_error(r->L, b->co);
  coop__caught(r->L, true);
  finish(r, b);
}

/* --- yields ----------------------------------------------------------------------------- */

/* Moves the last of the values that the body yielded to L, drops the others. */
static void pushyielded(lua_State *L, body *b, int nres) {
  lua_xmove(b->co, L, 1);
  if (nres > 1) lua_settop(b->co, -nres);
}

static void will_raise(lua_State *L, int cur, body *b) {
  b->state = BODY_ERROR;
  lua_setiuservalue(L, cur, BODY_WAIT);
}

/* The body waits for the Deferred on top. [-1, +0, m] */
static void wait(lua_State *L, int cur, body *b) {
  deferred *d = lua_touserdata(L, -1);
  int at = lua_gettop(L);
  if (b->cancelled) { /* in its own step: here it ends */
    if (d->waiters == 0) coop__cancel(L, at);
    b->state = BODY_CLOSES;
  } else if (d == &b->d || (b->d.waiters && coop__waitson(L, at, cur))) {
    coop__pushcycle(L);
    will_raise(L, cur, b);
  } else if (settled(d)) {
    coop__body_wake(L, cur, b, at, d);
  } else {
    lua_pushvalue(L, cur);
    coop__append_to(L, at, d, H_WAITER);
    b->state = BODY_WAITS;
    if (!d->pauses && !(d->flags & D_FIRED)) {
      lua_setiuservalue(L, cur, BODY_WAIT);
      return;
    }
    lua_pushvalue(L, at);
    lua_setiuservalue(L, cur, BODY_WAIT);
    coop__waited(L, at);
  }
  lua_settop(L, at - 1);
}

/* A plain yield: a Deferred is awaited, a Failure raised, the rest handed back. */
static void yielded(lua_State *L, int cur, body *b, int nres) {
  if (nres > 0 && lua_type(b->co, -nres) == LUA_TUSERDATA) {
    lua_pushvalue(b->co, -nres);
    lua_xmove(b->co, L, 1);
    if (todeferred(L, -1)) {
      lua_settop(b->co, -nres - 1);
      wait(L, cur, b);
      return;
    }
    if (tofailure(L, -1)) {
      lua_settop(b->co, -nres - 1);
      will_raise(L, cur, b);
      return;
    }
    lua_pop(L, 1);
  }
  b->state = BODY_PLAIN;
  b->nargs = nres;
}

/* Another function takes the body's place: its arguments are yielded behind it.
   What is no function is the result. */
static void noreturn_to(struct run *r, body *b, int nres) {
  lua_State *L = r->L;
  if (!lua_checkstack(L, nres + 8)) {
    lua_settop(b->co, -nres - 1);
    lua_pushliteral(L, "noreturn: too many arguments");
    coop__tofailure(L);
    will_raise(L, r->cur, b);
    return;
  }
  lua_xmove(b->co, L, nres);
  int first = lua_gettop(L) - nres + 1;
  if (!close_fiber(r, b)) {
    lua_replace(L, first);
    lua_settop(L, first);
    finish(r, b);
    return;
  }
  if (!coop__callable(L, first)) {
    lua_settop(L, first);
    finish(r, b);
    return;
  }
  if (pushbody(L, first) != KIND_COUNT) lua_replace(L, first);
  give_back(L, r->ctx, r->cur, b);
  load(L, r->ctx, b, nres - 1);
}

static void leave_with(struct run *r, body *b, int nres) {
  lua_State *L = r->L;
  pushyielded(L, b, nres);
  int at = lua_gettop(L);
  if (!close_fiber(r, b)) lua_replace(L, at);
  lua_settop(L, at);
  finish(r, b);
}

static void on_yield(struct run *r, body *b, int nres) {
  lua_State *L = r->L;
  coop_context *ctx = r->ctx;
  int cur = r->cur;
  signal_kind signal = ctx->signal;
  ctx->signal = SIGNAL_NONE;
  hold(L, ctx, cur, b);
  b->fiber->waits = true;
  if (ctx->passing) {
    lua_getiuservalue(L, cur, BODY_FIBER);
    coop__fiber_passed(L, lua_gettop(L));
    lua_pop(L, 1);
  }
  switch (signal) {
    case SIGNAL_NONE: yielded(L, cur, b, nres); break;
    case SIGNAL_AWAIT:
      pushyielded(L, b, nres);
      wait(L, cur, b);
      break;
    case SIGNAL_SPAWN:
      pushyielded(L, b, nres);
      lua_pushvalue(L, -1);
      lua_setiuservalue(L, cur, BODY_WAIT);
      b->state = BODY_VALUE;
      coop__enter(r, lua_touserdata(L, -1));
      break;
    case SIGNAL_RUN:
      b->state = BODY_PLAIN;
      b->nargs = nres;
      b->after = true;
      break;
    case SIGNAL_NORETURN: noreturn_to(r, b, nres); break;
    case SIGNAL_RETURN: leave_with(r, b, nres); break;
    case SIGNAL_EXIT:
      lua_settop(b->co, -nres - 1);
      b->state = BODY_CLOSES;
      break;
    case SIGNAL_DIED: break; /* it is no yield */
  }
}

/* --- resuming ------------------------------------------------------------------------------ */

/* Puts what the body is to be resumed with on its thread; how many values. */
static int pushinput(struct run *r, body *b) {
  lua_State *L = r->L;
  int cur = r->cur;
  if (b->state == BODY_START) return b->nargs;
  b->fiber->waits = false;
  if (b->fiber->inner) {
    lua_getiuservalue(L, cur, BODY_FIBER);
    coop__fiber_resumes(L, lua_gettop(L));
    lua_pop(L, 1);
  }
  if (b->state == BODY_PLAIN) return b->nargs;
  lua_getiuservalue(L, cur, BODY_WAIT);
  if (b->state == BODY_ERROR) {
    coop__raised(L, lua_gettop(L));
    lua_getiuservalue(L, -1, FAILURE_VALUE);
    lua_remove(L, -2);
    r->ctx->raising = true;
  }
  lua_xmove(L, b->co, 1);
  lua_pushnil(L);
  lua_setiuservalue(L, cur, BODY_WAIT);
  return 1;
}

/* Pushes the first of the values that the body returned, or nil. */
static void pushreturned(lua_State *L, body *b, int nres) {
  if (nres > 1) lua_settop(b->co, -nres);
  if (nres > 0) lua_xmove(b->co, L, 1);
  else lua_pushnil(L);
}

/* Is the collector closing it? Its closers may fire what it waits on, or cancel
   it. */
static bool isdying(const body *b) {
  lua_Debug ar;
  return b->state != BODY_START && lua_status(b->co) == LUA_OK &&
         lua_getstack(b->co, 0, &ar);
}

void coop__body_resume(struct run *r) {
  lua_State *L = r->L;
  body *b = (body *)r->d;
  int nres;
  if (b->co && isdying(b)) {
    b->state = BODY_ENDED;
    return;
  }
  if (b->state == BODY_CLOSES) {
    close_body(r, b);
    return;
  }
  coop_context *ctx = r->ctx;
  bool calling = ctx->calling;
  uint8_t mode = ctx->flow.mode;
  ctx->calling = false; /* what it calls shall have run when it returns */
  ctx->flow.mode = FLOW_PLAIN;
  int n = pushinput(r, b);
  b->state = BODY_RUNS;
  int status = coop__resume_in(ctx, L, b->co, n, &nres);
  ctx->calling = calling;
  ctx->flow.mode = mode;
  if (status == LUA_YIELD) {
    on_yield(r, b, nres);
  } else if (status == LUA_OK) {
    pushreturned(L, b, nres - FIBER_BASE);
    finish(r, b);
  } else {
    died(r, b);
  }
}

void coop__body_wake(lua_State *L, int cur, body *b, int from, deferred *d) {
  b->cascaded = 0;
  if (d->flags & D_FAILED) coop__handled(L, from);
  if (b->cancelled) {
    b->state = BODY_CLOSES;
  } else if (lua_status(b->co) != LUA_YIELD) {
    b->state = BODY_ENDED; /* the collector is closing it: see isdying */
  } else if (d->flags & D_FAILED) {
    lua_getiuservalue(L, from, DEFERRED_RESULT);
    will_raise(L, cur, b);
  } else {
    lua_getiuservalue(L, from, DEFERRED_RESULT);
    lua_xmove(L, b->co, 1);
    lua_pushnil(L);
    lua_setiuservalue(L, cur, BODY_WAIT);
    b->state = BODY_PLAIN;
    b->nargs = 1;
  }
}

/* --- module functions ------------------------------------------------------------------------- */

/* Goes on behind an await: with the value given, or raising it. */
static int awaited(lua_State *L, int status, lua_KContext k) {
  coop_context *ctx = (coop_context *)k;
  (void)status;
  if (!ctx->raising) return 1;
  ctx->raising = false;
  return lua_error(L);
}

static int await(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (ctx->running != L || !lua_isyieldable(L)) coop__checkwait(L, "await");
  if (lua_gettop(L) != 1) lua_settop(L, 1);
  deferred *d = todeferred(L, 1);
  if (!d) return 1;
  if (!settled(d)) {
    lua_pushvalue(L, 1); /* the one below tells the census what it waits for */
    ctx->signal = SIGNAL_AWAIT;
    return lua_yieldk(L, 1, (lua_KContext)ctx, awaited);
  }
  lua_getiuservalue(L, 1, DEFERRED_RESULT);
  if (!(d->flags & D_FAILED)) return 1;
  coop__handled(L, 1);
  coop__raised(L, 2);
  lua_getiuservalue(L, 2, FAILURE_VALUE);
  return lua_error(L);
}

static int noreturn(lua_State *L) {
  luaL_argcheck(L, lua_gettop(L) > 0, 1, "function expected, got no value");
  coop__checkwait(L, "noreturn");
  return coop__signal(L, SIGNAL_NORETURN, lua_gettop(L), 0);
}

static int return_value(lua_State *L) {
  coop__checkwait(L, "return_value");
  lua_settop(L, 1);
  return coop__signal(L, SIGNAL_RETURN, 1, 0);
}

static const luaL_Reg functions[] = {
  {"inline_callbacks", inline_callbacks},
  {"coroutine", coroutine},
  {"spawn", coop__spawn},
  {"await", await},
  {"noreturn", noreturn},
  {"return_value", return_value},
  {NULL, NULL}
};

/* core.main(f, ...): a body as of inline_callbacks, but not started: it runs when
   core.start is called with it. */
static int main_body(lua_State *L) {
  coop_context *ctx = getctx(L);
  body *b = make_body(L, ctx, KIND_INLINE, lua_gettop(L) - 1);
  hold(L, ctx, lua_gettop(L), b);
  b->state = BODY_ENDED; /* nothing runs it yet */
  return 1;
}

static int start_main(lua_State *L) {
  body *b = tobody(coop__checkdeferred(L, 1, "start", 1));
  b->state = BODY_START;
  coop__run_now(L, 1);
  return 0;
}

/* core.interrupt(body, message): raises the message where the body waits. What
   it alone waited on is cancelled. */
static int interrupt_body(lua_State *L) {
  body *b = tobody(coop__checkdeferred(L, 1, "interrupt", 1));
  lua_settop(L, 2);
  if (!b || b->state != BODY_WAITS) return 0;
  coop__interrupt_told(getctx(L));
  lua_pushvalue(L, 1);
  lua_getiuservalue(L, 1, BODY_WAIT); /* stack: body, message, body, source */
  coop__detach(L, 4, b);
  lua_pushvalue(L, 2);
  coop__tofailure(L);
  will_raise(L, 1, b);
  if (((deferred *)lua_touserdata(L, 4))->waiters == 0) coop__cancel(L, 4);
  coop__run(L, 1);
  return 0;
}

static const luaL_Reg core_functions[] = {
  {"interrupt", interrupt_body},
  {"main", main_body},
  {"start", start_main},
  {NULL, NULL}
};

void coop__open_coroutine(lua_State *L) {
  lua_pushvalue(L, 1);
  coop__setfuncs(L, functions);
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_settop(L, 2);
}
