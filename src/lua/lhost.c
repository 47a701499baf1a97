/*
** lhost.c - what a host does on the stack of a state: coroutines, Deferreds.
**
** A watch keeps the Deferred that it is for, under its own address in CTX_HOLDS,
** until the host has been told: once, whatever comes.
*/
#include "lhandle.h"

/* --- coroutines ------------------------------------------------------------------ */

static int spawn(lua_State *L) {
  lua_remove(L, 1);
  return coop__spawn(L);
}

int coop_spawn(lua_State *L, int nargs) {
  return coop__host_call(L, spawn, NULL, nargs + 1, 1);
}

/* --- Deferreds ------------------------------------------------------------------- */

static int new(lua_State *L) {
  coop__deferred_new(L);
  return 1;
}

void coop_deferred_new(lua_State *L) {
  if (coop__host_call(L, new, NULL, 0, 1) == LUA_OK) return;
  lua_pop(L, 1);
  lua_pushnil(L);
}

static int callback(lua_State *L) {
  lua_remove(L, 1);
  return coop__callback(L);
}

static int errback(lua_State *L) {
  lua_remove(L, 1);
  return coop__errback(L);
}

/* Fires the Deferred at 'index' with the value on top by 'f'. */
static int fire(lua_State *L, int index, lua_CFunction f) {
  if (!lua_checkstack(L, 2)) {
    lua_pop(L, 1);
    return LUA_ERRMEM;
  }
  lua_pushvalue(L, index);
  lua_insert(L, -2);
  int status = coop__host_call(L, f, NULL, 2, 0);
  if (status != LUA_OK) lua_pop(L, 1);
  return status;
}

int coop_deferred_callback(lua_State *L, int index) {
  return fire(L, index, callback);
}

int coop_deferred_errback(lua_State *L, int index) {
  return fire(L, index, errback);
}

/* --- watches --------------------------------------------------------------------- */

typedef struct watch {
  coop_result_fn fn; /* NULL once it has been called */
  void *ud;
} watch;

/* Tells the host of the result on top, which is all there is. */
static void tell(lua_State *L, watch *w, bool failed) {
  coop_result_fn fn = w->fn;
  w->fn = NULL;
  if (fn) fn(L, failed, w->ud);
}

/* The handler of the Deferred: upvalue 2 is the watch. */
static int told(lua_State *L) {
  watch *w = lua_touserdata(L, lua_upvalueindex(2));
  lua_settop(L, 1);
  pushctx(L, CTX_HOLDS);
  lua_pushnil(L);
  lua_rawsetp(L, -2, w);
  lua_settop(L, 1);
  tell(L, w, tofailure(L, 1) != NULL);
  return 0;
}

/* The state is being closed: upvalue 1 is the context. */
static int watch__gc(lua_State *L) {
  watch *w = lua_touserdata(L, 1);
  lua_settop(L, 0);
  if (!w->fn) return 0;
  coop__pusherror(L, "ContextClosed", "coop was closed");
  coop__tofailure(L);
  tell(L, w, true);
  return 0;
}

/* Arguments: the watch as it is to be, the Deferred. */
static int add_watch(lua_State *L) {
  watch *given = lua_touserdata(L, 1);
  coop__checkdeferred(L, 2, "watch", 1);
  lua_pushvalue(L, CTX);
  watch *w = lua_newuserdatauv(L, sizeof *w, 0); /* 4 */
  w->fn = NULL;
  lua_createtable(L, 0, 2);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, watch__gc, 1);
  lua_setfield(L, 5, "__gc");
  lua_pushboolean(L, 0);
  lua_setfield(L, 5, "__metatable");
  lua_setmetatable(L, 4);
  lua_pushcclosure(L, told, 2); /* 3 */
  pushctx(L, CTX_HOLDS);
  lua_pushvalue(L, 2);
  lua_rawsetp(L, -2, w);
  lua_pop(L, 1);
  lua_remove(L, 1);
  *w = *given; /* from here on it tells the host, when it is collected at the latest */
  given->fn = NULL;
  coop__observe(L);
  return 0;
}

/* tell_now(watch, error) */
static int tell_now(lua_State *L) {
  watch *w = lua_touserdata(L, 1);
  lua_remove(L, 1);
  tell(L, w, true);
  return 0;
}

void coop_deferred_watch(lua_State *L, int index, coop_result_fn fn, void *ud) {
  watch w = {fn, ud};
  if (!lua_checkstack(L, 4)) return;
  lua_pushvalue(L, index);
  if (coop__host_call(L, add_watch, &w, 1, 0) == LUA_OK) return;
  lua_pushcfunction(L, tell_now);
  lua_insert(L, -2);
  lua_pushlightuserdata(L, &w);
  lua_insert(L, -2);
  if (lua_pcall(L, 2, 0, 0) != LUA_OK) lua_pop(L, 1);
}
