/*
** lapi.c - include/coop.h for C hosts: opening, closing, running, posting.
**
** What hosts call goes by coop__host_call, which lets no Lua error out.
*/
#include <stdlib.h>

#include "coop.h"
#include "lcoop.h"

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

int coop__host_call(lua_State *L, lua_CFunction f, const void *arg, int nargs,
                    int nres) {
  if (!lua_checkstack(L, 8)) return refuse(L, no_room, nargs, nres);
  coop_context *ctx = coop_of(L);
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

/* --- opening, closing ----------------------------------------------------------- */

static int open_p(lua_State *L) {
  coop__open(L, lua_touserdata(L, 1));
  return 0;
}

coop_context *coop_open(lua_State *L, uv_loop_t *loop) {
  if (!lua_checkstack(L, 4)) return NULL;
  lua_pushcfunction(L, open_p);
  lua_pushlightuserdata(L, loop);
  return lua_pcall(L, 1, 0, 0) == LUA_OK ? coop__find(L) : NULL;
}

coop_context *coop_of(lua_State *L) {
  coop_context *ctx = lua_checkstack(L, 2) ? coop__find(L) : NULL;
  return ctx && !ctx->closed ? ctx : NULL;
}

const char *coop_version(void) { return COOP_VERSION; }

/* --- running --------------------------------------------------------------------- */

uv_loop_t *coop_loop(coop_context *ctx) { return ctx->loop.uv; }

static int run(lua_State *L) {
  pushctx(L, CTX_REACTOR);
  lua_getfield(L, -1, "run");
  lua_insert(L, -2);
  lua_call(L, 1, 0);
  return 0;
}

int coop_run(coop_context *ctx) {
  if (ctx->closed) return refuse(ctx->L, not_open, 0, 0);
  return coop__host_call(ctx->L, run, NULL, 0, 0);
}

int coop_post(coop_context *ctx, coop_post_fn fn, void *ud) {
  posted *p = malloc(sizeof *p);
  if (!p) return -1;
  *p = (posted){.fn = fn, .ud = ud, .owned = true};
  if (coop__posts_push(ctx->posts, &p->item)) return 0;
  free(p);
  return -1;
}
