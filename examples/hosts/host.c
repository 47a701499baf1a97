/*
** host.c - a C program gives its script coop, from main to exit.
**
**     cc host.c $(pkg-config --cflags --libs coop) -o host
**
** A task whose steps are in C takes turns with one in Lua; a Deferred is fired by
** C when a thread has posted what it measured; and everything is closed.
*/
#include <coop.h>
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <uv.h>

static const char script[] =
    "local coop = require 'coop'\n"
    "local count = coop.generator(function(n)\n"
    "  for i = 1, n do\n"
    "    print('Lua: ' .. i .. ' of ' .. n)\n"
    "    coroutine.yield(i)\n"
    "  end\n"
    "end)\n"
    "local degrees = measure()\n"
    "local in_lua, in_c = coop.cooperate(count(3)), countdown(3)\n"
    "coop.await(coop.gather_results { in_lua:when_done(), in_c:when_done() })\n"
    "print('measured: ' .. coop.await(degrees) .. ' degrees')\n"
    "return 'the script is done'\n";

/* --- countdown(n): a task of n steps --------------------------------------------- */

typedef struct {
  int left;
} countdown;

static coop_step countdown_step(lua_State *L, void *ud) {
  countdown *c = ud;
  (void)L;
  printf("C:   %d to go\n", --c->left);
  return c->left > 0 ? COOP_MORE : COOP_DONE;
}

static int start_countdown(lua_State *L) {
  int n = (int)luaL_checkinteger(L, 1);
  countdown *c = malloc(sizeof *c);
  if (!c) return luaL_error(L, "not enough memory");
  c->left = n;
  if (coop_cooperate(L, countdown_step, c, free) == LUA_OK) return 1;
  free(c); /* ours still */
  return lua_error(L);
}

/* --- measure(): a Deferred of what a thread finds out -------------------------------- */

typedef struct {
  coop_context *ctx;
  uv_thread_t thread;
  uv_async_t busy; /* while it is open, the loop has something to live for */
  int deferred;    /* a reference in the registry */
  double degrees;
} measurement;

static void free_measurement(uv_handle_t *busy) { free(busy->data); }

/* In the thread of the loop: L is at hand. */
static void measured(lua_State *L, void *ud) {
  measurement *m = ud;
  uv_thread_join(&m->thread);
  lua_rawgeti(L, LUA_REGISTRYINDEX, m->deferred);
  luaL_unref(L, LUA_REGISTRYINDEX, m->deferred);
  lua_pushnumber(L, m->degrees);
  coop_deferred_callback(L, -2);
  uv_close((uv_handle_t *)&m->busy, free_measurement);
}

/* In the thread of its own: no state is touched. */
static void measure(void *ud) {
  measurement *m = ud;
  m->degrees = 36.6;
  coop_post(m->ctx, measured, m);
}

static int start_measure(lua_State *L) {
  coop_context *ctx = coop_of(L);
  if (!ctx) return luaL_error(L, "measure: coop is not open");
  coop_deferred_new(L);
  lua_pushvalue(L, -1);
  int deferred = luaL_ref(L, LUA_REGISTRYINDEX);
  measurement *m = malloc(sizeof *m);
  if (!m) return luaL_error(L, "not enough memory");
  m->ctx = ctx;
  m->deferred = deferred;
  uv_async_init(coop_loop(ctx), &m->busy, NULL);
  m->busy.data = m;
  uv_thread_create(&m->thread, measure, m);
  return 1;
}

/* --- the program ------------------------------------------------------------------- */

static void script_ended(lua_State *L, int failed, void *status) {
  printf("%s\n", luaL_tolstring(L, 1, NULL));
  *(int *)status = failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int run(lua_State *L) {
  int status = EXIT_FAILURE;
  coop_context *ctx = coop_open(L, NULL);
  if (ctx && luaL_loadstring(L, script) == LUA_OK && coop_spawn(L, 0) == LUA_OK) {
    coop_deferred_watch(L, -1, script_ended, &status);
    lua_pop(L, 1);
    if (coop_run(ctx) == LUA_OK) {
      coop_close(ctx);
      return status;
    }
  }
  fprintf(stderr, "host: %s\n", lua_tostring(L, -1));
  return EXIT_FAILURE;
}

int main(void) {
  lua_State *L = luaL_newstate();
  if (!L) return EXIT_FAILURE;
  luaL_openlibs(L);
  lua_register(L, "countdown", start_countdown);
  lua_register(L, "measure", start_measure);
  int status = run(L);
  lua_close(L);
  return status;
}
