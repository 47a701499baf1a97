/*
** own_loop.c - coop on a libuv loop of the host's, beside the host's own handles.
**
** The loop serves a timer and a listening socket of the host's; the script, on the
** same loop, is the socket's client. When coop is closed, the loop has what it had
** before.
*/
#include <coop.h>
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <uv.h>

static const char script[] =
    "local coop = require 'coop'\n"
    "local net = require 'coop.net'\n"
    "local port = ...\n"
    "local ask = coop.coroutine(function(name)\n"
    "  local conn = coop.await(net.connect('127.0.0.1', port))\n"
    "  return name .. ' hears: ' .. coop.await(conn:read('a'))\n"
    "end)\n"
    "coop.await(coop.sleep(0.05))\n"
    "local answers = coop.gather_results { ask('Anna'), ask('Bert') }\n"
    "for _, answer in ipairs(coop.await(answers)) do print(answer) end\n";

/* --- the host's own: a timer, and a server that greets --------------------------------- */

static int ticks;

static void on_tick(uv_timer_t *timer) {
  (void)timer;
  ticks++;
}

static void on_closed(uv_handle_t *client) { free(client); }

static void on_greeted(uv_write_t *write, int status) {
  (void)status;
  uv_close((uv_handle_t *)write->handle, on_closed);
  free(write);
}

static void on_client(uv_stream_t *server, int status) {
  uv_tcp_t *client = malloc(sizeof *client);
  uv_write_t *write = malloc(sizeof *write);
  if (status != 0 || !client || !write) abort();
  uv_buf_t greeting = uv_buf_init("welcome", 7);
  uv_tcp_init(server->loop, client);
  uv_accept(server, (uv_stream_t *)client);
  uv_write(write, (uv_stream_t *)client, &greeting, 1, on_greeted);
}

/* Listens at a free port: its number. */
static int listen_locally(uv_loop_t *loop, uv_tcp_t *server) {
  struct sockaddr_in address;
  int size = sizeof address;
  uv_ip4_addr("127.0.0.1", 0, &address);
  uv_tcp_init(loop, server);
  uv_tcp_bind(server, (struct sockaddr *)&address, 0);
  uv_listen((uv_stream_t *)server, 16, on_client);
  uv_tcp_getsockname(server, (struct sockaddr *)&address, &size);
  return ntohs(address.sin_port);
}

/* --- coop beside them ----------------------------------------------------------------- */

static void on_script_end(lua_State *L, int failed, void *loop) {
  if (failed) printf("the script failed: %s\n", luaL_tolstring(L, 1, NULL));
  uv_stop(loop); /* the host's handles would keep it */
}

static int run_script(lua_State *L, uv_loop_t *loop, int port) {
  coop_context *ctx = coop_open(L, loop);
  if (!ctx || luaL_loadstring(L, script) != LUA_OK) return 1;
  lua_pushinteger(L, port);
  if (coop_spawn(L, 1) != LUA_OK) return 1;
  coop_deferred_watch(L, -1, on_script_end, loop);
  lua_pop(L, 1);
  uv_run(loop, UV_RUN_DEFAULT); /* all that coop does, it does in here */
  coop_close(ctx);
  uv_run(loop, UV_RUN_NOWAIT); /* libuv lets go of what coop has closed */
  return 0;
}

static void count_handle(uv_handle_t *handle, void *count) {
  (void)handle;
  ++*(int *)count;
}

static int handles_of(uv_loop_t *loop) {
  int count = 0;
  uv_walk(loop, count_handle, &count);
  return count;
}

int main(void) {
  uv_loop_t loop;
  uv_timer_t timer;
  uv_tcp_t server;
  uv_loop_init(&loop);
  uv_timer_init(&loop, &timer);
  uv_timer_start(&timer, on_tick, 10, 10);
  int port = listen_locally(&loop, &server);
  printf("handles of the loop before: %d\n", handles_of(&loop));

  lua_State *L = luaL_newstate();
  if (!L) return EXIT_FAILURE;
  luaL_openlibs(L);
  if (run_script(L, &loop, port) != 0)
    fprintf(stderr, "own_loop: %s\n", lua_tostring(L, -1));
  printf("the host's timer has ticked: %s\n", ticks > 0 ? "yes" : "no");
  printf("handles of the loop after: %d\n", handles_of(&loop));
  lua_close(L);

  uv_close((uv_handle_t *)&timer, NULL);
  uv_close((uv_handle_t *)&server, NULL);
  uv_run(&loop, UV_RUN_DEFAULT);
  printf("the loop is closed: %s\n", uv_loop_close(&loop) == 0 ? "yes" : "no");
  return EXIT_SUCCESS;
}
