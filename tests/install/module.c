/*
** module.c - a C module that uses coop.h, as scripts load one.
**
** later(value) gives a Deferred that a step in C fires: it must be a Deferred of
** the coop that the script has, wherever the functions of coop.h come from.
*/
#include <coop.h>
#include <lauxlib.h>
#include <stdlib.h>

typedef struct {
  int deferred, value; /* references */
} answer;

static coop_step give(lua_State *L, void *ud) {
  answer *a = ud;
  lua_rawgeti(L, LUA_REGISTRYINDEX, a->deferred);
  lua_rawgeti(L, LUA_REGISTRYINDEX, a->value);
  luaL_unref(L, LUA_REGISTRYINDEX, a->deferred);
  luaL_unref(L, LUA_REGISTRYINDEX, a->value);
  coop_deferred_callback(L, -2);
  return COOP_DONE;
}

static int later(lua_State *L) {
  luaL_checkany(L, 1);
  if (!coop_of(L)) return luaL_error(L, "later: coop is not open");
  answer *a = malloc(sizeof *a);
  if (!a) return luaL_error(L, "not enough memory");
  lua_settop(L, 1);
  a->value = luaL_ref(L, LUA_REGISTRYINDEX);
  coop_deferred_new(L);
  lua_pushvalue(L, -1);
  a->deferred = luaL_ref(L, LUA_REGISTRYINDEX);
  if (coop_cooperate(L, give, a, free) != LUA_OK) {
    free(a);
    return lua_error(L);
  }
  lua_pop(L, 1);
  return 1;
}

int luaopen_later(lua_State *L);

int luaopen_later(lua_State *L) {
  lua_pushcfunction(L, later);
  return 1;
}
