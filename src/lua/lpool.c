/*
** lpool.c - fibers kept to be used again.
**
** The pool holds a fiber that is idle, and one that runs a body which has not been
** suspended yet: such a body takes it and gives it back for next to nothing. What is
** suspended is held by its owner alone, so that it can be collected with that. A
** place in CTX_POOL holds one fiber, or the number of the next vacant place.
*/
#include "lcoop.h"

enum { IDLE_MAX = 256 };

/* Puts the fiber on top into a place. [-1, +0, m] */
static void place(lua_State *L, coop_context *ctx, fiber *f) {
  int32_t at = ctx->pool.vacant;
  pushctx(L, CTX_POOL);
  lua_insert(L, -2);
  if (at) {
    lua_rawgeti(L, -2, at);
    ctx->pool.vacant = (int32_t)lua_tointeger(L, -1);
    lua_pop(L, 1);
  } else {
    at = ctx->pool.places + 1;
  }
  lua_rawseti(L, -2, at);
  if (at > ctx->pool.places) ctx->pool.places = at;
  f->place = at;
  lua_pop(L, 1);
}

fiber *coop__fiber_take(lua_State *L, coop_context *ctx) {
  fiber *f;
  if (!coop__link_alone(&ctx->pool.idle)) {
    f = coop_container(ctx->pool.idle.next, fiber, link);
    coop__link_remove(&f->link);
    ctx->pool.nidle--;
  } else {
    f = coop__fiber_make(L);
    place(L, ctx, f);
  }
  coop__link_insert(&ctx->fibers, &f->link);
  if (ctx->census) coop__note_started(L, f->co);
  return f;
}

void coop__fiber_hold(lua_State *L, coop_context *ctx, fiber *f) {
  pushctx(L, CTX_POOL);
  lua_rawgeti(L, -1, f->place);
  lua_pushinteger(L, ctx->pool.vacant);
  lua_rawseti(L, -3, f->place);
  ctx->pool.vacant = f->place;
  f->place = 0;
  lua_remove(L, -2);
}

/* Is it to be used again? Not when a script has seen its thread, which is dead now:
   nothing is left on it. */
static bool reusable(const coop_context *ctx, const fiber *f) {
  if (!f->spent && f->co && !ctx->closed && ctx->pool.nidle < IDLE_MAX) return true;
  if (f->co) lua_settop(f->co, 0);
  return false;
}

static void put_idle(coop_context *ctx, fiber *f) {
  if (lua_gethook(f->co)) lua_sethook(f->co, NULL, 0, 0);
  coop__link_insert(ctx->pool.idle.next, &f->link);
  ctx->pool.nidle++;
}

/* Is it a finaliser that runs? Then lua_gc refuses everything. (The versions
   before 5.4.4 do not; of coop's own finalisers the context knows.) */
static bool iscollecting(lua_State *L, const coop_context *ctx) {
  return ctx->collecting || lua_gc(L, LUA_GCISRUNNING) < 0;
}

void coop__fiber_give(lua_State *L, int idx) {
  coop_context *ctx = getctx(L);
  fiber *f = lua_touserdata(L, idx);
  coop__link_remove(&f->link);
  f->waits = false;
  if (!reusable(ctx, f)) return;
  if (iscollecting(L, ctx)) return; /* its own finaliser may be yet to come */
  lua_pushvalue(L, idx);
  place(L, ctx, f);
  put_idle(ctx, f);
}

void coop__fiber_back(lua_State *L, coop_context *ctx, fiber *f) {
  coop__link_remove(&f->link);
  if (reusable(ctx, f)) {
    put_idle(ctx, f);
  } else {
    coop__fiber_hold(L, ctx, f);
    lua_pop(L, 1);
  }
}
