/*
** lpoll.c - turns of the loop for hosts that have a loop, or frames, of their own.
**
** A poll is a number of turns that wait for nothing, with one end for all that
** they do (ctx->until). Between polls a host goes by the descriptor and the timeout
** of libuv's loop: what libuv has not told the system yet wants a turn first.
*/
#include <math.h>

#include "lhandle.h"

/* core[name](), the core at 1. [-0, +0, e] */
static bool ask(lua_State *L, const char *name) {
  lua_getfield(L, 1, name);
  lua_call(L, 0, 1);
  bool is = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return is;
}

/* Seconds until a turn is wanted though the descriptor is not readable, or -1. */
static double timeout(const coop_context *ctx) {
  if (ctx->closed) return -1;
  double next = coop__loop_timeout(&ctx->loop);
  coop_timer *first = coop__timers_first(ctx->timers);
  if (next == 0 || !coop__link_alone(&ctx->active) || coop__posts_left(ctx)) return 0;
  if (!first) return next;
  double due = first->due - coop__now();
  if (due < 0) due = 0;
  return next < 0 || due < next ? due : next;
}

/* poll(): true when the reactor has been stopped. */
static int poll(lua_State *L) {
  coop_context *ctx = getctx(L);
  lua_settop(L, 0);
  pushctx(L, CTX_CORE);
  ask(L, "begin_poll");
  do {
    coop__turn(L, false);
  } while (!ctx->closed && !coop__overdue(ctx) && !ask(L, "stop_asked") &&
           (timeout(ctx) == 0 || coop__loop_ready(&ctx->loop)));
  lua_pushboolean(L, ask(L, "end_poll"));
  return 1;
}

/* Is there, or will there be, anything to do? */
static bool work_remains(coop_context *ctx) {
  return !ctx->closed && (uv_loop_alive(ctx->loop.uv) || coop__posts_left(ctx));
}

int coop_poll(coop_handle *h, double budget) {
  coop_context *ctx = coop__held(h);
  if (!ctx) return 0;
  lua_State *L = ctx->L;
  if (ctx->looping || ctx->turning) return -1;
  ctx->until = coop__now() + (budget > 0 ? budget : 0);
  coop__loop_hold(&ctx->loop); /* or libuv would not look for posts */
  int status = coop__host_call(L, poll, NULL, 0, 1);
  bool stopped = status == LUA_OK && lua_toboolean(L, -1);
  ctx->until = HUGE_VAL;
  ctx->running_loop = false;
  coop__interrupt_over(ctx);
  coop__loop_release(&ctx->loop);
  if (status == LUA_OK) lua_pop(L, 1);
  else coop__report_in(ctx, L);
  return !stopped && work_remains(ctx);
}

int coop_backend_fd(const coop_handle *h) {
  coop_context *ctx = coop__held(h);
  return ctx ? uv_backend_fd(ctx->loop.uv) : -1;
}

double coop_backend_timeout(const coop_handle *h) {
  coop_context *ctx = coop__held(h);
  return ctx ? timeout(ctx) : -1;
}
