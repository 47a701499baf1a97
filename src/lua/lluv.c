/*
** lluv.c - luv on coop's loop.
**
** When a script requires luv, it is found by the searchers as ever, but told of
** the loop before it opens: by luv_set_loop, looked for in the module that was
** loaded, since coop is not linked to luv. Its callbacks then run between coop's
** own, and an error in one is reported like any other instead of ending the
** process. A luv that was loaded before coop keeps the loop that it has.
*/
#include <dlfcn.h>

#include "lcoop.h"

typedef int (*luv_pcall)(lua_State *L, int nargs, int nresults, int flags);

static const char msgh_key; /* its address: the message handler of callbacks */

/* Replaces luv's way to call its callbacks; no error gets out. */
static int call_back(lua_State *L, int nargs, int nresults, int flags) {
  (void)flags;
  coop_context *ctx = coop__find(L);
  int base = lua_gettop(L) - nargs;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &msgh_key);
  lua_insert(L, base);
  int status = lua_pcall(L, nargs, nresults, base);
  lua_remove(L, base);
  if (status == LUA_OK) return 0;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &ctx->L); /* report(error) */
  lua_insert(L, -2);
  if (lua_pcall(L, 1, 0, 0) != LUA_OK) lua_pop(L, 1);
  return -status;
}

/* luv.run(...): not within a run of the loop, where libuv forbids it. The
   original is upvalue 2. */
static int run(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (ctx->looping)
    return luaL_error(L, "luv.run: the loop is coop's, and runs already");
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_insert(L, 1);
  ctx->looping = true;
  int status = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
  ctx->looping = false;
  return status == LUA_OK ? lua_gettop(L) : lua_error(L);
}

/* luv.walk: it takes every handle of the loop for one of luv's own. */
static int walk(lua_State *L) {
  return coop__raise(L, "Unsupported", "luv.walk",
                     "the loop is coop's, and has handles that are not luv's");
}

/* Puts the functions that must know of coop into the module on top. */
static void adapt(lua_State *L) {
  if (!lua_istable(L, -1)) return;
  lua_pushvalue(L, CTX);
  lua_getfield(L, -2, "run");
  lua_pushcclosure(L, run, 2);
  lua_setfield(L, -2, "run");
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, walk, 1);
  lua_setfield(L, -2, "walk");
}

/* Tells the module in the file at 'path' of the loop; false when it has no ear. */
static bool set_loop(coop_context *ctx, const char *path) {
  void (*set)(lua_State *L, uv_loop_t *loop);
  void (*set_callback)(lua_State *L, luv_pcall pcall);
  void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
  if (!library) return false;
  *(void **)&set = dlsym(library, "luv_set_loop");
  *(void **)&set_callback = dlsym(library, "luv_set_callback");
  if (set) set(ctx->L, ctx->loop.uv);
  if (set && set_callback) set_callback(ctx->L, call_back);
  dlclose(library); /* the searcher holds it */
  return set != NULL;
}

/* Asks the searchers behind the first, which is preload's: pushes the loader of
   luv and what goes with it. Raises what they say when there is none. */
static void search(lua_State *L) {
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_getfield(L, -1, "package");
  lua_getfield(L, -1, "searchers");
  int searchers = lua_gettop(L);
  lua_pushliteral(L, "module 'luv' not found:");
  for (lua_Integer i = 2; lua_rawgeti(L, searchers, i) != LUA_TNIL; i++) {
    lua_pushliteral(L, "luv");
    lua_call(L, 1, 2);
    if (lua_isfunction(L, -2)) return;
    lua_pop(L, 1);
    if (lua_isstring(L, -1)) lua_concat(L, 2);
    else lua_pop(L, 1);
  }
  lua_pop(L, 1);
  lua_error(L);
}

/* The loader of luv in package.preload. */
static int load(lua_State *L) {
  coop_context *ctx = getctx(L);
  lua_settop(L, 0);
  search(L);
  if (!ctx->closed && lua_iscfunction(L, -2) && lua_isstring(L, -1) &&
      !set_loop(ctx, lua_tostring(L, -1)))
    lua_warning(L, "luv cannot be told of coop's loop, and has one of its own", 0);
  pushctx(L, CTX_MSGH);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &msgh_key);
  lua_pushliteral(L, "luv");
  lua_insert(L, -2);
  lua_call(L, 2, 1);
  adapt(L);
  return 1;
}

void coop__open_luv(lua_State *L) {
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  if (lua_istable(L, -1) && lua_getfield(L, -1, "luv") == LUA_TNIL) {
    lua_pushvalue(L, CTX);
    lua_pushcclosure(L, load, 1);
    lua_setfield(L, -3, "luv");
  }
  lua_settop(L, 2);
}
