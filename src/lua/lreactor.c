/*
** lreactor.c - what happens in a turn of the loop.
**
** A turn makes the calls that other threads posted and those that are due, then
** gives each Cooperator its slice. It is called from libuv and lets no Lua error
** through.
*/
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lcoop.h"

static int turn(lua_State *L) {
  coop_context *ctx = getctx(L);
  ctx->turning = true;
  coop__run_posts(ctx);
  coop__due(L);
  coop__ticks(L);
  coop__run_later(L);
  ctx->turning = false;
  coop__rearm(L);
  return 0;
}

void coop__report_in(coop_context *ctx, lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &ctx->L); /* report(error) */
  lua_insert(L, -2);
  if (lua_pcall(L, 1, 0, 0) != LUA_OK) lua_pop(L, 1);
}

/* The function is found by an address: that takes no memory. */
bool coop__from_loop(coop_context *ctx, const void *key, void *arg) {
  if (key != &ctx->loop) ctx->stirred = true;
  lua_State *L = ctx->turn_L ? ctx->turn_L : ctx->L;
  if (ctx->draining) return true;
  bool inside = ctx->loop.inside;
  if (!lua_checkstack(L, 8)) return false;
  ctx->loop.inside = true; /* whoever runs it */
  lua_rawgetp(L, LUA_REGISTRYINDEX, key);
  lua_pushlightuserdata(L, arg);
  int status = lua_pcall(L, 1, 0, 0);
  ctx->turning = false;
  if (lua_gethook(L) && ctx->interrupt.raised && coop__interrupted(ctx))
    lua_sethook(L, NULL, 0, 0); /* an interrupt is for scripts, not for the loop */
  if (status != LUA_OK) {
    ctx->depth = 0;
    ctx->calling = false;
    coop__runs(ctx, NULL);
    coop__report_in(ctx, L);
  }
  coop__close_asked(ctx);
  ctx->loop.inside = inside;
  return status == LUA_OK;
}

/* libuv's callback. */
static void on_turn(void *ud) {
  coop_context *ctx = ud;
  ctx->turns++;
  coop__from_loop(ctx, &ctx->loop, NULL);
}

static int report(lua_State *L) {
  lua_settop(L, 1);
  coop__reporterror(L);
  coop__rearm(L);
  return 0;
}

/* --- posts ------------------------------------------------------------------------ */

static int call_posted(lua_State *L) {
  posted *p = lua_touserdata(L, 1);
  lua_settop(L, 0);
  p->fn(L, p->ud);
  return 0;
}

/* What is posted meanwhile waits for the next turn. */
void coop__run_posts(coop_context *ctx) {
  if (!ctx->posted) ctx->posted = coop__posts_take(ctx->posts);
  lua_State *L = ctx->turn_L ? ctx->turn_L : ctx->L;
  bool first = true;
  while (ctx->posted && lua_checkstack(L, 8)) {
    if (!first && coop__overdue(ctx)) break;
    first = false;
    posted *p = coop_container(ctx->posted, posted, item);
    int depth = ctx->depth;
    bool owned = p->owned; /* else it may be gone when the call returns */
    ctx->posted = p->item.next;
    lua_rawgetp(L, LUA_REGISTRYINDEX, &ctx->posted); /* call_posted */
    lua_pushlightuserdata(L, p);
    if (lua_pcall(L, 1, 0, 0) != LUA_OK) {
      ctx->depth = depth;
      coop__report_in(ctx, L);
    }
    if (owned) free(p);
  }
  if (ctx->posted) coop__loop_wake(&ctx->loop);
}

void coop__run_last_posts(coop_context *ctx) {
  coop__run_posts(ctx); /* what a poll had taken and no time for */
  coop__run_posts(ctx);
}

bool coop__posts_left(const coop_context *ctx) {
  return ctx->posted || coop__posts_pending(ctx->posts);
}

/* --- turning -------------------------------------------------------------------- */

bool coop__turn(lua_State *L, bool wait) {
  coop_context *ctx = getctx(L);
  if (ctx->looping) luaL_error(L, "the loop cannot be run from within itself");
  if (ctx->closed) luaL_error(L, "coop has been closed in this state");
  lua_State *outer = ctx->turn_L, *running = ctx->running;
  ctx->turn_L = L;
  coop__runs(ctx, NULL);
  ctx->looping = true;
  /* a loop without anything else to do does not look for posts */
  bool posts = coop__posts_left(ctx);
  if (posts) on_turn(ctx);
  bool left = !ctx->closed && coop__loop_once(&ctx->loop, wait && !posts);
  if (ctx->closed) coop__loop_finish(&ctx->loop);
  left = left || coop__posts_left(ctx);
  ctx->looping = false;
  coop__runs(ctx, running);
  ctx->turn_L = outer;
  return left;
}

int coop__turn_once(lua_State *L) {
  lua_pushboolean(L, coop__turn(L, lua_toboolean(L, 1)));
  return 1;
}

static int set_running(lua_State *L) {
  getctx(L)->running_loop = lua_toboolean(L, 1);
  return 0;
}

static int looping(lua_State *L) {
  lua_pushboolean(L, getctx(L)->looping);
  return 1;
}

/* core.wake(): the loop has a turn to make, soon. */
static int wake(lua_State *L) {
  coop__loop_wake(&getctx(L)->loop);
  return 0;
}

/* core.inside(): does the caller run in a coroutine that coop runs? */
static int inside(lua_State *L) {
  lua_pushboolean(L, getctx(L)->running == L && lua_isyieldable(L));
  return 1;
}

static int report_error(lua_State *L) {
  lua_settop(L, 1);
  coop__reporterror(L);
  return 0;
}

static int unhandled_count(lua_State *L) {
  lua_pushinteger(L, getctx(L)->unhandled);
  return 1;
}

/* --- readable descriptors --------------------------------------------------------- */

typedef struct watch {
  uv_poll_t poll;
  coop_context *ctx;
  coop_link link;
  int fd, flags; /* to be given back as it was: polling makes it non-blocking */
  int own;       /* polled in its place, or -1 */
} watch;

static const char watch_key; /* its address: fire_watch */

static void on_watch_closed(uv_handle_t *h) { free(h); }

static void close_watch(watch *w) {
  coop__link_remove(&w->link);
  uv_close((uv_handle_t *)&w->poll, on_watch_closed);
  if (w->own >= 0) close(w->own);
  else if (w->flags >= 0) fcntl(w->fd, F_SETFL, w->flags);
}

void coop__watches_shut(coop_context *ctx) {
  while (!coop__link_alone(&ctx->watches))
    close_watch(coop_container(ctx->watches.next, watch, link));
}

/* The Deferred of the watch is in CTX_HOLDS. */
static int fire_watch(lua_State *L) {
  coop_context *ctx = getctx(L);
  ctx->turning = true;
  pushctx(L, CTX_HOLDS);
  lua_rawgetp(L, -1, lua_touserdata(L, 1));
  lua_pushnil(L);
  lua_rawsetp(L, -3, lua_touserdata(L, 1));
  deferred *d = todeferred(L, -1);
  if (d && !(d->flags & D_FIRED)) {
    lua_pushboolean(L, 1);
    coop__fire(L, lua_gettop(L) - 1);
  }
  ctx->turning = false;
  coop__run_later(L);
  coop__rearm(L);
  return 0;
}

static void on_readable(uv_poll_t *h, int status, int events) {
  (void)status, (void)events;
  watch *w = (watch *)h;
  close_watch(w);
  coop__from_loop(w->ctx, &watch_key, w);
}

/* Who writes to the terminal shares its descriptor, and is not to find that
   non-blocking: polls it by another. */
static int open_watch(watch *w, uv_loop_t *loop, int fd) {
  const char *name = isatty(fd) ? ttyname(fd) : NULL;
  w->fd = fd;
  w->flags = fcntl(fd, F_GETFL);
  w->own = name ? open(name, O_RDONLY | O_NOCTTY | O_CLOEXEC) : -1;
  int e = uv_poll_init(loop, &w->poll, w->own >= 0 ? w->own : fd);
  if (e && w->own >= 0) close(w->own);
  return e;
}

/* core.wait_readable(fd): fires when there is something to read; at once for what
   cannot be polled, like a file. */
static int wait_readable(lua_State *L) {
  coop_context *ctx = getctx(L);
  int fd = (int)luaL_checkinteger(L, 1);
  coop__deferred_new(L);
  int at = lua_gettop(L);
  watch *w = malloc(sizeof *w);
  if (!w) return luaL_error(L, "not enough memory");
  if (open_watch(w, ctx->loop.uv, fd) != 0) {
    free(w);
    lua_pushboolean(L, 1);
    coop__fire(L, at);
    return 1;
  }
  w->ctx = ctx;
  coop__link_init(&w->link);
  coop__link_insert(&ctx->watches, &w->link);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, fire_watch, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &watch_key);
  pushctx(L, CTX_HOLDS);
  lua_pushvalue(L, at);
  lua_rawsetp(L, -2, w);
  lua_settop(L, at);
  uv_poll_start(&w->poll, UV_READABLE, on_readable);
  return 1;
}

static const luaL_Reg core_functions[] = {
  {"turn_once", coop__turn_once},
  {"set_running", set_running},
  {"looping", looping},
  {"inside", inside},
  {"wake", wake},
  {"report", report_error},
  {"unhandled_count", unhandled_count},
  {"wait_readable", wait_readable},
  {NULL, NULL}
};

void coop__open_reactor(lua_State *L) {
  coop_context *ctx = getctx(L);
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, turn, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &ctx->loop);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, report, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &ctx->L);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, call_posted, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &ctx->posted);
  ctx->loop.turn = on_turn;
  lua_settop(L, 2);
}
