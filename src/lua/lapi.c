/*
** lapi.c - include/coop.h for C hosts: opening, closing, running, posting.
**
** What hosts call goes by coop__host_call, which lets no Lua error out. Handles are
** held by the registry: in a list, whose finaliser is the last of coop's.
*/
#include <stdlib.h>

#include "lhandle.h"

/* --- calls for hosts ---------------------------------------------------------- */

typedef struct host_call {
  lua_CFunction f;
  const void *arg;
} host_call;

/* dispatch(host_call, ...): f(arg, ...) */
static int dispatch(lua_State *L) {
  const host_call *h = lua_touserdata(L, 1);
  lua_pushlightuserdata(L, (void *)(uintptr_t)h->arg);
  lua_replace(L, 1);
  return h->f(L);
}

static int not_open(lua_State *L) {
  return luaL_error(L, "coop is not open in this state, or has been closed");
}

static int no_room(lua_State *L) { return luaL_error(L, "stack overflow"); }

/* Takes the place of a call that cannot be made. */
static int refuse(lua_State *L, lua_CFunction why, int nargs, int nres) {
  lua_settop(L, -nargs - 1);
  lua_pushcfunction(L, why);
  return lua_pcall(L, 0, nres, 0);
}

static coop_context *find_open(lua_State *L) {
  coop_context *ctx = lua_checkstack(L, 2) ? coop__find(L) : NULL;
  return ctx && !ctx->closed ? ctx : NULL;
}

int coop__host_call(lua_State *L, lua_CFunction f, const void *arg, int nargs,
                    int nres) {
  if (!lua_checkstack(L, 8)) return refuse(L, no_room, nargs, nres);
  coop_context *ctx = find_open(L);
  if (!ctx) return refuse(L, not_open, nargs, nres);
  host_call h = {f, arg};
  int depth = ctx->depth;
  bool calling = ctx->calling;
  lua_State *running = ctx->running;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &ctx->running); /* dispatch */
  lua_insert(L, -nargs - 1);
  lua_pushlightuserdata(L, &h);
  lua_insert(L, -nargs - 1);
  int status = lua_pcall(L, nargs + 1, nres, 0);
  if (status != LUA_OK) {
    ctx->depth = depth;
    ctx->calling = calling;
    coop__runs(ctx, running);
  }
  coop__close_asked(ctx);
  return status;
}

void coop__open_api(lua_State *L) {
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, dispatch, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &getctx(L)->running);
}

/* --- handles -------------------------------------------------------------------- */

static const char handles_key; /* its address: the list of the state's */

static int handles__gc(lua_State *L) {
  coop_handle **all = lua_touserdata(L, 1);
  void *ud;
  lua_Alloc alloc = lua_getallocf(L, &ud);
  while (*all) {
    coop_handle *h = *all;
    *all = h->next;
    coop__posts_release(h->posts);
    if (h->loop) coop__loop_end(h->loop);
    alloc(ud, h, sizeof *h, 0);
  }
  return 0;
}

void coop__open_handles(lua_State *L) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &handles_key) == LUA_TNIL) {
    coop_handle **all = lua_newuserdatauv(L, sizeof *all, 0);
    *all = NULL;
    lua_createtable(L, 0, 2);
    lua_pushcfunction(L, handles__gc);
    lua_setfield(L, -2, "__gc");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_setmetatable(L, -2);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &handles_key);
  }
  lua_pop(L, 1);
}

void coop__open_handle(lua_State *L) {
  coop_context *ctx = getctx(L);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &handles_key);
  coop_handle **all = lua_touserdata(L, -1);
  void *ud;
  lua_Alloc alloc = lua_getallocf(L, &ud);
  coop_handle *h = alloc(ud, NULL, 0, sizeof *h);
  if (!h) luaL_error(L, "not enough memory");
  *h = (coop_handle){.ctx = ctx, .L = ctx->L, .posts = ctx->posts, .next = *all};
  coop__posts_hold(h->posts);
  *all = h;
  ctx->handle = h;
  lua_pop(L, 1);
}

/* --- opening, closing ----------------------------------------------------------- */

static int open_p(lua_State *L) {
  coop__open(L, lua_touserdata(L, 1));
  return 0;
}

coop_handle *coop_open(lua_State *L, uv_loop_t *loop) {
  if (!lua_checkstack(L, 4)) return NULL;
  lua_pushcfunction(L, open_p);
  lua_pushlightuserdata(L, loop);
  return lua_pcall(L, 1, 0, 0) == LUA_OK ? coop__find(L)->handle : NULL;
}

coop_handle *coop_of(lua_State *L) {
  coop_context *ctx = find_open(L);
  return ctx ? ctx->handle : NULL;
}

const char *coop_version(void) { return COOP_VERSION; }

/* --- running --------------------------------------------------------------------- */

uv_loop_t *coop_loop(coop_handle *h) {
  coop_context *ctx = coop__held(h);
  if (!ctx) return NULL;
  ctx->loop.lent = ctx->loop.own && !ctx->luv;
  return ctx->loop.uv;
}

static int run(lua_State *L) {
  pushctx(L, CTX_REACTOR);
  lua_getfield(L, -1, "run");
  lua_insert(L, -2);
  lua_call(L, 1, 0);
  return 0;
}

int coop_run(coop_handle *h) {
  if (!h) return LUA_ERRRUN;
  coop_context *ctx = coop__held(h);
  if (!ctx) return refuse(h->L, not_open, 0, 0);
  lua_State *outside = ctx->turn_L ? ctx->turn_L : ctx->L;
  return coop__host_call(ctx->running ? ctx->running : outside, run, NULL, 0, 0);
}

int coop_post(coop_handle *h, coop_post_fn fn, void *ud) {
  if (!h || !fn || atomic_load(&h->refuses)) return -1;
  posted *p = malloc(sizeof *p);
  if (!p) return -1;
  *p = (posted){.fn = fn, .ud = ud, .owned = true};
  if (coop__posts_push(h->posts, &p->item)) return 0;
  free(p);
  return -1;
}
