/*
** main.c - the command `coop`: a state, its signals, and an end in good order.
**
** What the command does with options, script and exit status is in
** lua/coop/command.lua. Here is what Lua cannot: signals. The first Ctrl-C raises
** in whatever runs; the second one ends the process.
*/
#include <lauxlib.h>
#include <lualib.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "coop.h"
#include "lstate.h"

static coop_context *volatile context;
static volatile sig_atomic_t caught; /* the first signal that came */

static void on_signal(int number) {
  signal(number, SIG_DFL);
  if (!caught) caught = number;
  if (context)
    coop_interrupt(context, number == SIGINT ? "interrupted!" : "terminated!");
}

static void handle(int number, void (*handler)(int)) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  sigaction(number, &action, NULL);
}

/* host.signal(): the number of the signal that came, or nil */
static int host_signal(lua_State *L) {
  if (!caught) return 0;
  lua_pushinteger(L, caught);
  return 1;
}

/* host.rearm(): the signal has been dealt with, the next one is a first one */
static int host_rearm(lua_State *L) {
  (void)L;
  caught = 0;
  handle(SIGINT, on_signal);
  return 0;
}

static void push_host(lua_State *L) {
  lua_newtable(L);
  lua_pushcfunction(L, host_signal);
  lua_setfield(L, -2, "signal");
  lua_pushcfunction(L, host_rearm);
  lua_setfield(L, -2, "rearm");
  lua_pushfstring(L, "coop %s  (%s)", coop_version(), LUA_COPYRIGHT);
  lua_setfield(L, -2, "version");
  lua_pushboolean(L, isatty(STDIN_FILENO));
  lua_setfield(L, -2, "terminal");
}

/* Is -E among the options? */
static bool no_environment(int argc, char **argv) {
  for (int i = 1; i < argc && argv[i][0] == '-'; i++) {
    if (strcmp(argv[i], "-") == 0 || strcmp(argv[i], "--") == 0) return false;
    if (strcmp(argv[i], "-E") == 0) return true;
    if (strcmp(argv[i], "-e") == 0 || strcmp(argv[i], "-l") == 0) i++;
  }
  return false;
}

/* The program proper; its status is the result. */
static int pmain(lua_State *L) {
  int argc = (int)lua_tointeger(L, 1);
  char **argv = lua_touserdata(L, 2);
  luaL_checkversion(L);
  if (no_environment(argc, argv)) { /* the libraries must know before they open */
    lua_pushboolean(L, 1);
    lua_setfield(L, LUA_REGISTRYINDEX, "LUA_NOENV");
  }
  luaL_openlibs(L);
  lua_gc(L, LUA_GCGEN, 0, 0); /* as lua does */
  context = coop_open(L, NULL);
  if (!context) return lua_error(L);
  luaL_requiref(L, "coop", luaopen_coop, 0);
  handle(SIGINT, on_signal);
  handle(SIGTERM, on_signal);
  handle(SIGPIPE, SIG_IGN);
  coop__push_command(L);
  lua_createtable(L, argc, 1);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i);
  }
  push_host(L);
  lua_call(L, 2, 1);
  return 1;
}

static int say_error(lua_State *L) {
  const char *message = luaL_tolstring(L, -1, NULL);
  fflush(stdout);
  fprintf(stderr, "coop: %s\n", message);
  return EXIT_FAILURE;
}

int main(int argc, char **argv) {
  lua_State *L = coop__state_new();
  if (!L) {
    fprintf(stderr, "coop: not enough memory\n");
    return EXIT_FAILURE;
  }
  lua_pushcfunction(L, pmain);
  lua_pushinteger(L, argc);
  lua_pushlightuserdata(L, argv);
  int status = lua_pcall(L, 2, 1, 0) == LUA_OK ? (int)lua_tointeger(L, -1)
                                               : say_error(L);
  context = NULL; /* what comes now ends the process the second time */
  coop__state_close(L);
  return fflush(stdout) == 0 ? status : EXIT_FAILURE;
}
