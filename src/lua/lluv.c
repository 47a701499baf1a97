/*
** lluv.c - luv on coop's loop.
**
** When a script requires luv, it is found by the searchers as ever, but told of
** the loop before it opens: by luv_set_loop, looked for in the module that was
** loaded, since coop is not linked to luv. Its callbacks then run between coop's
** own, and an error in one is reported like any other instead of ending the
** process. A luv that was loaded before coop keeps the loop that it has.
**
** luv frees a handle when it is collected, and takes for granted that one being
** closed has been closed by then. At the end of the state that is not so: hence a
** guard, newer than whatever is being closed and thus collected before it, which
** lets libuv come to the end of that.
*/
#include <dlfcn.h>
#include <string.h>

#include "lcoop.h"

typedef int (*luv_pcall)(lua_State *L, int nargs, int nresults, int flags);

/* their addresses: the message handler of callbacks, the newest guard, its type */
static const char msgh_key, guard_key, guard_meta;

/* Replaces luv's way to call its callbacks; no error gets out. */
static int call_back(lua_State *L, int nargs, int nresults, int flags) {
  (void)flags;
  coop_context *ctx = coop__find(L);
  ctx->stirred = true;
  int base = lua_gettop(L) - nargs;
  if (!ctx || ctx->draining) { /* coop was closed, or libuv alone runs */
    lua_settop(L, base - 1);
    return 0;
  }
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
  lua_State *outer = ctx->turn_L, *running = ctx->running;
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_insert(L, 1);
  ctx->turn_L = L;
  coop__runs(ctx, NULL); /* what the loop calls is not the caller's */
  ctx->looping = true;
  int status = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
  ctx->looping = false;
  coop__runs(ctx, running);
  ctx->turn_L = outer;
  return status == LUA_OK ? lua_gettop(L) : lua_error(L);
}

/* luv.walk: it takes every handle of the loop for one of luv's own. */
static int walk(lua_State *L) {
  return coop__raise(L, "Unsupported", "luv.walk",
                     "the loop is coop's, and has handles that are not luv's");
}

/* The newest guard is collected at the end of the state only. */
static int guard__gc(lua_State *L) {
  coop_context *ctx = getctx(L);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &guard_key);
  if (!lua_rawequal(L, 1, -1) || ctx->closed || ctx->loop.inside) return 0;
  ctx->draining = true; /* libuv alone: nothing is called */
  uv_run(ctx->loop.uv, UV_RUN_NOWAIT);
  ctx->draining = false;
  return 0;
}

static void renew_guard(lua_State *L) {
  lua_newuserdatauv(L, 0, 0);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &guard_meta);
  lua_setmetatable(L, -2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &guard_key);
}

/* luv.close, handle:close. The original is upvalue 2. */
static int close_handle(lua_State *L) {
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_insert(L, 1);
  renew_guard(L);
  lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
  return lua_gettop(L);
}

/* Puts close_handle in the place of luv.close, at 'close', in the methods of the
   value on top, if it is the metatable of handles. */
static void adapt_type(lua_State *L, int close) {
  if (!lua_istable(L, -1) || lua_getfield(L, -1, "__index") == LUA_TNIL) return;
  if (lua_istable(L, -1)) {
    lua_getfield(L, -1, "close");
    bool same = lua_rawequal(L, -1, close);
    lua_pop(L, 1);
    if (same) lua_pushvalue(L, close + 1);
    if (same) lua_setfield(L, -2, "close");
  }
}

/* Has all handles of the module on top closed under a guard: their types are in the
   registry by names. */
static void adapt_close(lua_State *L) {
  int module = lua_gettop(L), close = module + 1;
  lua_newtable(L);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, guard__gc, 1);
  lua_setfield(L, -2, "__gc");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &guard_meta);
  lua_getfield(L, module, "close");
  lua_pushvalue(L, CTX);
  lua_pushvalue(L, close);
  lua_pushcclosure(L, close_handle, 2);
  lua_pushnil(L);
  while (lua_next(L, LUA_REGISTRYINDEX)) {
    int top = lua_gettop(L);
    if (lua_type(L, -2) == LUA_TSTRING && !strncmp(lua_tostring(L, -2), "uv_", 3))
      adapt_type(L, close);
    lua_settop(L, top - 1);
  }
  lua_setfield(L, module, "close");
  lua_settop(L, module);
}

/* Puts the functions that must know of coop into the module on top. */
static void adapt(lua_State *L) {
  if (!lua_istable(L, -1)) return;
  adapt_close(L);
  lua_pushvalue(L, CTX);
  lua_getfield(L, -2, "run");
  lua_pushcclosure(L, run, 2);
  lua_setfield(L, -2, "run");
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, walk, 1);
  lua_setfield(L, -2, "walk");
}

/* Tells the module in the file at 'path' of the loop; false when it has no ear, or
   a loop already: it was loaded before. */
static bool set_loop(coop_context *ctx, const char *path) {
  uv_loop_t *(*get)(lua_State *L);
  void (*set)(lua_State *L, uv_loop_t *loop);
  void (*set_callback)(lua_State *L, luv_pcall pcall);
  void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
  if (!library) return false;
  *(void **)&get = dlsym(library, "luv_loop");
  *(void **)&set = dlsym(library, "luv_set_loop");
  *(void **)&set_callback = dlsym(library, "luv_set_callback");
  uv_loop_t *before = get ? get(ctx->L) : NULL;
  bool free = set && (!before || before == ctx->loop.uv);
  if (free) set(ctx->L, ctx->loop.uv);
  if (free) ctx->luv = true, ctx->loop.lent = false;
  if (free && set_callback) set_callback(ctx->L, call_back);
  dlclose(library); /* the searcher holds it */
  return free;
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
  bool shared = !ctx->closed && lua_iscfunction(L, -2) && lua_isstring(L, -1) &&
                set_loop(ctx, lua_tostring(L, -1));
  if (!shared)
    lua_warning(L, "luv cannot be told of coop's loop, and has one of its own", 0);
  pushctx(L, CTX_MSGH);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &msgh_key);
  lua_pushliteral(L, "luv");
  lua_insert(L, -2);
  lua_call(L, 2, 1);
  if (shared) adapt(L);
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
