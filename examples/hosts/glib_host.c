/*
** glib_host.c - coop in a main loop of GLib's, which is not libuv.
**
** A GSource asks coop_backend_timeout before each wait of the main loop, has it
** watch coop_backend_fd, and calls coop_poll when there is something to do.
*/
#include <coop.h>
#include <glib-unix.h>
#include <lauxlib.h>
#include <lualib.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define BUDGET 0.005 /* seconds for coop before GLib's other sources have a turn */

static const char script[] =
    "local coop = require 'coop'\n"
    "local sums = coop.generator(function(n)\n"
    "  local sum = 0\n"
    "  for i = 1, n do\n"
    "    sum = sum + i\n"
    "    coroutine.yield(nil)\n"
    "  end\n"
    "  coroutine.yield(sum)\n"
    "end)\n"
    "print('the sum: ' .. coop.await(coop.accumulate(sums(100000)))[1])\n"
    "for i = 1, 3 do\n"
    "  coop.await(coop.sleep(0.05))\n"
    "  print('the script has slept ' .. i)\n"
    "end\n";

/* --- coop as a source of events ----------------------------------------------------- */

typedef struct {
  GSource source;
  coop_context *ctx;
  gpointer fd; /* GLib's name of the watched descriptor */
} coop_source;

static gboolean prepare(GSource *source, gint *timeout) {
  double seconds = coop_backend_timeout(((coop_source *)source)->ctx);
  *timeout = seconds < 0 ? -1 : (gint)fmin(ceil(seconds * 1000), G_MAXINT);
  return *timeout == 0;
}

static gboolean check(GSource *source) {
  coop_source *s = (coop_source *)source;
  return g_source_query_unix_fd(source, s->fd) != 0 ||
         coop_backend_timeout(s->ctx) == 0;
}

/* Calls back when coop has nothing left to do. */
static gboolean dispatch(GSource *source, GSourceFunc done, gpointer data) {
  return coop_poll(((coop_source *)source)->ctx, BUDGET) ? G_SOURCE_CONTINUE
                                                         : done(data);
}

static GSourceFuncs coop_source_funcs = {prepare, check, dispatch, NULL, NULL, NULL};

static GSource *coop_source_new(coop_context *ctx) {
  GSource *source = g_source_new(&coop_source_funcs, sizeof(coop_source));
  coop_source *s = (coop_source *)source;
  s->ctx = ctx;
  s->fd = g_source_add_unix_fd(source, coop_backend_fd(ctx), G_IO_IN);
  return source;
}

/* --- the program ------------------------------------------------------------------- */

static gboolean on_tick(gpointer ticks) {
  ++*(int *)ticks;
  return G_SOURCE_CONTINUE;
}

static gboolean on_done(gpointer loop) {
  g_main_loop_quit(loop);
  return G_SOURCE_REMOVE;
}

static void run_main_loop(coop_context *ctx) {
  int ticks = 0;
  GMainLoop *loop = g_main_loop_new(NULL, FALSE);
  guint timer = g_timeout_add(10, on_tick, &ticks);
  GSource *source = coop_source_new(ctx);
  g_source_set_callback(source, on_done, loop, NULL);
  g_source_attach(source, NULL);
  g_main_loop_run(loop);
  printf("GLib's timer has ticked: %s\n", ticks > 0 ? "yes" : "no");
  g_source_destroy(source);
  g_source_unref(source);
  g_source_remove(timer);
  g_main_loop_unref(loop);
}

int main(void) {
  lua_State *L = luaL_newstate();
  if (!L) return EXIT_FAILURE;
  luaL_openlibs(L);
  coop_context *ctx = coop_open(L, NULL);
  int opened = ctx && luaL_loadstring(L, script) == LUA_OK &&
               coop_spawn(L, 0) == LUA_OK;
  if (opened) {
    lua_pop(L, 1); /* the script's Deferred: a failure will be reported */
    run_main_loop(ctx);
  } else {
    fprintf(stderr, "glib_host: %s\n", lua_tostring(L, -1));
  }
  coop_close(ctx);
  lua_close(L);
  return opened ? EXIT_SUCCESS : EXIT_FAILURE;
}
