/*
** lwaits.c - who waits on whom, walked: to find rings, to pause and to cancel.
**
** Each waits on one, and may be waited on by many. A walk goes by way of the stack
** or takes turns, never by recursion; what one waits on is held in the user value
** of its state: DEFERRED_RESULT of a Deferred, BODY_WAIT of a body.
*/
#include "lcoop.h"

/* --- walking -------------------------------------------------------------------- */

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
    if (!isbody(d)) coop__unfresh(L, cur);
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
    if (!failed) coop__pushcancelled(L);
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
    coop__pushcancelled(L);
    coop__set_result(L, cur, d);
  } else {
    coop__pushcancelled(L);
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
void coop__cancel_now(lua_State *L, int idx) {
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
  if (getctx(L)->depth < MAX_DEPTH) coop__cancel_now(L, idx);
  else coop__cancel_later(L, idx);
}

static int deferred_cancel(lua_State *L) {
  coop__checkdeferred(L, 1, "cancel", 0);
  bool outer = coop__begin(getctx(L));
  coop__cancel(L, 1);
  return coop__end(L, outer, 0);
}

static const luaL_Reg methods[] = {
  {"pause", deferred_pause},
  {"unpause", deferred_unpause},
  {"cancel", deferred_cancel},
  {NULL, NULL}
};

/* Adds to the methods of Deferreds. */
void coop__open_waits(lua_State *L) {
  lua_getfield(L, 2, "methods");
  lua_getfield(L, -1, "Deferred");
  coop__setfuncs(L, methods);
  lua_settop(L, 2);
}
