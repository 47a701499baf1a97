/*
** lclose.c - the end of a context: what is in flight gets an outcome, and nothing
** of coop is left behind in the state or on the loop.
**
** A Deferred that is pending is held by nobody but those who wait for it and those
** who are to fire it. So closing looks through all that the state can reach, as the
** collector does: that costs nothing before. Cancelling may make scripts wait for
** something new: it is done again until nothing is pending, with force.
*/
#include <math.h>
#include <string.h>

#include "lhandle.h"

enum { ROUNDS = 8 }; /* then scripts that wait anew each time are left alone */

/* --- looking through the state -------------------------------------------------------- */

/* Stack of the walk: tables of what was seen, of what is to be visited, and of what
   was found. */
enum { SEEN = 1, QUEUE, FOUND, FIRST };

typedef struct search {
  lua_Integer queued, found;
  bool (*wanted)(lua_State *L, int idx); /* of the userdata */
} search;

/* Also of one that a run has left behind when it was broken off for want of memory:
   there is no run now that may have it. */
static bool is_pending(lua_State *L, int idx) {
  const deferred *d = todeferred(L, idx);
  if (!d) return false;
  return !(d->flags & D_FIRED) || d->pauses > 0 || d->flags & D_BUSY;
}

/* A handle of luv's: its types are called uv_timer_t and so on. */
static bool is_luv_handle(lua_State *L, int idx) {
  int top = lua_gettop(L);
  bool is = luaL_getmetafield(L, idx, "__name") == LUA_TSTRING &&
            !strncmp(lua_tostring(L, -1), "uv_", 3) &&
            luaL_getmetafield(L, idx, "__index") == LUA_TTABLE &&
            lua_getfield(L, -1, "is_closing") == LUA_TFUNCTION;
  lua_settop(L, top);
  return is;
}

/* Notes the value on top, if it is an object that may lead to others. [-1, +0, m] */
static void note(lua_State *L, search *s) {
  int type = lua_type(L, -1);
  if (type == LUA_TTABLE || type == LUA_TFUNCTION || type == LUA_TUSERDATA ||
      type == LUA_TTHREAD) {
    lua_pushvalue(L, -1);
    if (lua_rawget(L, SEEN) == LUA_TNIL) {
      lua_pushvalue(L, -2);
      lua_pushboolean(L, 1);
      lua_rawset(L, SEEN);
      lua_pushvalue(L, -2);
      lua_rawseti(L, QUEUE, ++s->queued);
    }
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
}

static void visit_table(lua_State *L, int at, search *s) {
  lua_pushnil(L);
  while (lua_next(L, at)) {
    note(L, s);
    lua_pushvalue(L, -1);
    note(L, s);
  }
}

static void visit_userdata(lua_State *L, int at, search *s) {
  if (s->wanted(L, at)) {
    lua_pushvalue(L, at);
    lua_rawseti(L, FOUND, ++s->found);
  }
  for (int i = 1; lua_getiuservalue(L, at, i) != LUA_TNONE; i++) note(L, s);
  lua_pop(L, 1);
}

/* All values in the frames of the thread; of one that has none, its stack. */
static void visit_thread(lua_State *L, lua_State *co, search *s) {
  lua_Debug ar;
  int level = 0;
  if (!lua_checkstack(co, 2)) return;
  for (; lua_getstack(co, level, &ar); level++) {
    lua_getinfo(co, "f", &ar);
    lua_xmove(co, L, 1);
    note(L, s);
    for (int i = 1; lua_getlocal(co, &ar, i); i++) lua_xmove(co, L, 1), note(L, s);
    for (int i = -1; lua_getlocal(co, &ar, i); i--) lua_xmove(co, L, 1), note(L, s);
  }
  for (int i = 1; level == 0 && co != L && i <= lua_gettop(co); i++) {
    lua_pushvalue(co, i);
    lua_xmove(co, L, 1);
    note(L, s);
  }
}

static void visit(lua_State *L, search *s) {
  int at = lua_gettop(L);
  int type = lua_type(L, at);
  if (type != LUA_TTHREAD && type != LUA_TFUNCTION && lua_getmetatable(L, at))
    note(L, s);
  if (type == LUA_TTABLE) visit_table(L, at, s);
  else if (type == LUA_TUSERDATA) visit_userdata(L, at, s);
  else if (type == LUA_TTHREAD) visit_thread(L, lua_tothread(L, at), s);
  else for (int i = 1; lua_getupvalue(L, at, i); i++) note(L, s);
  lua_settop(L, at - 1);
}

/* Makes FOUND a list of all userdata that are wanted; what was on the stack from FIRST
   on counts as reached. How many. [-0, +0, m] */
static lua_Integer find(lua_State *L, bool (*wanted)(lua_State *L, int idx)) {
  search s = {.wanted = wanted};
  int top = lua_gettop(L);
  luaL_checkstack(L, 12, "close");
  for (int i = SEEN; i <= FOUND; i++) {
    lua_newtable(L);
    lua_replace(L, i);
  }
  for (int i = FIRST; i <= top; i++) {
    lua_pushvalue(L, i);
    note(L, &s);
  }
  lua_pushvalue(L, LUA_REGISTRYINDEX);
  note(L, &s);
  while (s.queued > 0) {
    lua_rawgeti(L, QUEUE, s.queued);
    lua_pushnil(L);
    lua_rawseti(L, QUEUE, s.queued--);
    visit(L, &s);
  }
  return s.found;
}

/* --- outcomes --------------------------------------------------------------------------- */

/* Ends what a round of cancelling has not ended: a body that waits again is closed,
   a Deferred whose canceller does not fire it is failed. */
static void force(lua_State *L, int idx) {
  deferred *d = lua_touserdata(L, idx);
  body *b = tobody(d);
  if (d->flags & (D_FIRED | D_BUSY)) return;
  if (b && b->state == BODY_WAITS) {
    lua_pushvalue(L, idx);
    lua_getiuservalue(L, idx, BODY_WAIT);
    coop__detach(L, lua_gettop(L), b);
    lua_pop(L, 2);
    b->state = BODY_CLOSES;
    coop__run(L, idx);
  } else if (!b) {
    coop__pushcancelled(L);
    coop__fire(L, idx);
  }
}

static void end_pending(lua_State *L, int idx, bool forced) {
  deferred *d = lua_touserdata(L, idx);
  d->flags &= (uint16_t)~D_BUSY;
  while (d->pauses > 0) coop__unpause(L, idx);
  if (d->flags & D_FIRED) {
    coop__run(L, idx);
    return;
  }
  if (forced) force(L, idx);
  else coop__cancel(L, idx);
}

/* fail_pending(nil, nil, nil, ...): all pending Deferreds come to an end. */
static int fail_pending(lua_State *L) {
  coop_context *ctx = getctx(L);
  int top = lua_gettop(L);
  lua_Integer n;
  ctx->work = 0;
  for (int round = 0; round < ROUNDS && (n = find(L, is_pending)) > 0; round++) {
    for (lua_Integer i = 1; i <= n; i++) {
      bool outer = coop__begin(ctx);
      lua_rawgeti(L, FOUND, i);
      end_pending(L, top + 1, round > 0);
      lua_settop(L, top);
      coop__end(L, outer, 0);
    }
  }
  return 0;
}

/* close_luv(nil, nil, nil): what scripts have opened by luv on a loop of the host's. */
static int close_luv(lua_State *L) {
  for (lua_Integer n = find(L, is_luv_handle); n > 0; n--) {
    int top = lua_gettop(L), at = top + 1;
    lua_rawgeti(L, FOUND, n);
    lua_getfield(L, at, "is_closing");
    lua_pushvalue(L, at);
    lua_call(L, 1, 1);
    if (!lua_toboolean(L, -1)) {
      lua_getfield(L, at, "close");
      lua_pushvalue(L, at);
      if (!coop__pcall(L, 1, 0, 0)) coop__reporterror(L);
    }
    lua_settop(L, top);
  }
  return 0;
}

/* --- leaving no trace ----------------------------------------------------------------------- */

/* Takes what is the context's out of the table at 'at': functions and tables that
   belong to it. */
static void clear_own(lua_State *L, int at, bool (*own)(lua_State *L)) {
  lua_pushnil(L);
  while (lua_next(L, at)) {
    if (own(L)) {
      lua_pop(L, 1);
      lua_pushvalue(L, -1);
      lua_pushnil(L);
      lua_rawset(L, at);
    } else {
      lua_pop(L, 1);
    }
  }
}

static bool is_own_function(lua_State *L) {
  if (!lua_iscfunction(L, -1) || !lua_getupvalue(L, -1, 1)) return false;
  bool is = lua_touserdata(L, -1) == getctx(L);
  lua_pop(L, 1);
  return is;
}

/* In the registry: under addresses, among it the context itself; the module. */
static bool is_own_entry(lua_State *L) {
  if (lua_type(L, -2) == LUA_TSTRING) return !strcmp(lua_tostring(L, -2), "coop.module");
  if (lua_type(L, -2) != LUA_TLIGHTUSERDATA) return false;
  return lua_touserdata(L, -1) == getctx(L) || is_own_function(L);
}

/* In package.loaded: coop and its parts; luv, when it was on coop's loop. */
static bool is_own_module(lua_State *L) {
  const char *name = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
  if (!strcmp(name, "luv") && lua_istable(L, -1)) {
    lua_getfield(L, -1, "run");
    bool is = is_own_function(L);
    lua_pop(L, 1);
    return is;
  }
  return !strcmp(name, "coop") || !strncmp(name, "coop.", 5);
}

/* forget(): nothing of the state leads to the context but what scripts hold. */
static int forget(lua_State *L) {
  lua_settop(L, 0);
  coop__restore_library(L);
  if (lua_getfield(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE) == LUA_TTABLE)
    clear_own(L, 1, is_own_function);
  if (lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE) == LUA_TTABLE)
    clear_own(L, 2, is_own_module);
  lua_pushvalue(L, LUA_REGISTRYINDEX);
  clear_own(L, 3, is_own_entry);
  return 0;
}

/* --- the steps ---------------------------------------------------------------------------------- */

static int end_polls(lua_State *L) {
  pushctx(L, CTX_CORE);
  lua_getfield(L, -1, "end_polls");
  lua_call(L, 0, 0);
  return 0;
}

/* Does one of them; an error is reported. */
static void perform(coop_context *ctx, lua_State *L, lua_CFunction f, int nargs) {
  if (coop__host_call(L, f, NULL, nargs, 0) != LUA_OK) coop__report_in(ctx, L);
}

/* Pushes copies of what is on the stack of whoever closes: it may hold Deferreds. */
static int push_held(lua_State *L) {
  int n = lua_gettop(L);
  if (!lua_checkstack(L, n + 8)) n = 0;
  lua_pushnil(L);
  lua_pushnil(L);
  for (int i = 1; i <= n; i++) lua_pushvalue(L, i);
  return n + 2;
}

static void close_now(coop_context *ctx) {
  lua_State *L = ctx->turn_L ? ctx->turn_L : ctx->L;
  if (!lua_checkstack(L, 16)) return;
  ctx->shutting = true;
  ctx->until = HUGE_VAL; /* of a poll: that has all the time it needs */
  perform(ctx, L, end_polls, 0);
  coop__threads_stop(ctx);
  coop__posts_close(ctx->posts);
  coop__run_last_posts(ctx);
  perform(ctx, L, coop__stop_all, 0);
  perform(ctx, L, fail_pending, push_held(L));
  perform(ctx, L, coop__stop_all, 0);
  perform(ctx, L, coop__drop_calls, 0);
  if (!ctx->loop.own) perform(ctx, L, close_luv, push_held(L));
  perform(ctx, L, forget, 0);
  coop__shut(ctx);
}

bool coop__inside(const coop_context *ctx) {
  return ctx->turning || ctx->looping || ctx->depth > 0 || ctx->running ||
         ctx->closing || ctx->collecting;
}

/* Within a run of the loop it is the callback that ends. */
void coop__close_asked(coop_context *ctx) {
  if (!ctx->asked || ctx->closed || ctx->shutting || ctx->turning || ctx->depth > 0 ||
      ctx->running || ctx->closing || ctx->collecting)
    return;
  coop__loop_release(&ctx->loop);
  close_now(ctx);
}

void coop_close(coop_handle *h) {
  coop_context *ctx = coop__held(h);
  if (!ctx || ctx->asked || ctx->shutting) return;
  coop__loop_leave(&ctx->loop);
  if (!coop__inside(ctx)) {
    close_now(ctx);
    return;
  }
  ctx->asked = true;
  atomic_store(&h->refuses, true);
  coop__loop_hold(&ctx->loop);
  coop__loop_wake(&ctx->loop);
}
