/*
** lapi.c - include/coop.h for C hosts: each function a thin one over the layer,
** with no Lua error let out of it.
*/
#include <stdlib.h>

#include "coop.h"
#include "lcoop.h"

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

void coop_close(coop_context *ctx) {
  if (ctx) coop__shut(ctx);
}

uv_loop_t *coop_loop(coop_context *ctx) { return ctx->loop.uv; }

coop_context *coop_of(lua_State *L) {
  return lua_checkstack(L, 2) ? coop__find(L) : NULL;
}

static int run_p(lua_State *L) {
  luaopen_coop(L);
  lua_getfield(L, -1, "reactor");
  lua_getfield(L, -1, "run");
  lua_insert(L, -2);
  lua_call(L, 1, 0);
  return 0;
}

int coop_run(coop_context *ctx) {
  lua_State *L = ctx->L;
  if (!lua_checkstack(L, 4)) return LUA_ERRMEM;
  lua_pushcfunction(L, run_p);
  return lua_pcall(L, 0, 0, 0);
}

int coop_post(coop_context *ctx, coop_post_fn fn, void *ud) {
  posted *p = malloc(sizeof *p);
  if (!p) return -1;
  *p = (posted){.fn = fn, .ud = ud, .owned = true};
  if (coop__posts_push(ctx->posts, &p->item)) return 0;
  free(p);
  return -1;
}

const char *coop_version(void) { return COOP_VERSION; }
