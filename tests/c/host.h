/*
** host.h - a host in a test: a state with coop in it.
*/
#ifndef HOST_H
#define HOST_H

#include <lauxlib.h>
#include <lualib.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "coop.h"
#include "unit.h"

typedef struct host {
  lua_State *L;
  coop_context *ctx;
} host;

static inline void open_host(host *h, uv_loop_t *uv) {
  h->L = luaL_newstate();
  assert_non_null(h->L);
  luaL_openlibs(h->L);
  h->ctx = coop_open(h->L, uv);
  assert_non_null(h->ctx);
  assert_int_equal(lua_gettop(h->L), 0);
  luaL_requiref(h->L, "coop", luaopen_coop, 1);
  lua_pop(h->L, 1);
}

static inline int setup(void **state) {
  static host h;
  open_host(&h, NULL);
  *state = &h;
  return 0;
}

static inline int teardown(void **state) {
  host *h = *state;
  int left = lua_gettop(h->L);
  lua_close(h->L);
  return left;
}

/* Runs a script in the manner of a host. */
static inline void script(host *h, const char *text) {
  if (luaL_dostring(h->L, text) != LUA_OK)
    fail_msg("%s", luaL_tolstring(h->L, -1, NULL));
}

static inline void run(host *h) {
  if (coop_run(h->ctx) != 0) fail_msg("%s", luaL_tolstring(h->L, -1, NULL));
  assert_int_equal(lua_gettop(h->L), 0);
}

/* The global 'name' is this integer. */
static inline void assert_global(host *h, const char *name, lua_Integer value) {
  lua_getglobal(h->L, name);
  assert_int_equal(lua_tointeger(h->L, -1), value);
  lua_pop(h->L, 1);
}

#define test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif
