/*
** linterrupt.c - raising an error in whatever runs, from outside.
**
** A hook is armed only while an interrupt is under way: no loop pays for it. It
** raises at once. A script that catches this has a moment for itself; then it is
** raised again, and from then on wherever a pcall has caught it, so that no loop
** around a pcall holds it up. What closes during the unwinding is left alone.
** os.exit, where it cannot simply close the body, does the same without the
** moment.
*/
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "coop.h"
#include "lcoop.h"

enum { LOOK = 10000 };          /* instructions between looks at the clock */
static const double grace = 0.08; /* seconds of the processor that a script has
                                     which caught it */

static void hook(lua_State *L, lua_Debug *ar);

static double processor_time(void) {
  return (double)clock() / CLOCKS_PER_SEC;
}

static bool persistent(const coop_context *ctx) {
  return ctx->interrupt.exiting || ctx->interrupt.raised > 1;
}

static void arm(coop_context *ctx, lua_State *L) {
  lua_sethook(L, hook, LUA_MASKCOUNT | (persistent(ctx) ? LUA_MASKRET : 0), LOOK);
}

/* How many frames L has, and which of them, from the base, is the innermost pcall
   or xpcall; 0: none. */
static int find_catcher(coop_context *ctx, lua_State *L, int *depth) {
  lua_Debug ar;
  int n = 0, catcher = -1;
  for (; lua_getstack(L, n, &ar); n++) {
    if (catcher >= 0 || !lua_checkstack(L, 1)) continue;
    lua_getinfo(L, "f", &ar);
    lua_CFunction f = lua_tocfunction(L, -1);
    lua_pop(L, 1);
    if (f && (f == ctx->interrupt.pcall || f == ctx->interrupt.xpcall)) catcher = n;
  }
  *depth = n;
  return catcher < 0 ? 0 : n - catcher;
}

/* The message is about to be raised in 'co'. */
static void will_raise(coop_context *ctx, lua_State *co) {
  int depth;
  ctx->interrupt.catcher = find_catcher(ctx, co, &depth);
  if (ctx->interrupt.raised++ == 0) ctx->interrupt.since = processor_time();
  arm(ctx, co);
}

static void raise_in(coop_context *ctx, lua_State *L) {
  will_raise(ctx, L);
  lua_pushstring(L, ctx->interrupt.message);
  lua_error(L);
}

/* Does L run a script's code at this moment? coop's own is left to end first. */
static bool in_script(coop_context *ctx, lua_State *L, lua_Debug *ar) {
  if (ctx->running != L && !(ctx->turning && ctx->turn_L == L)) return false;
  lua_getinfo(L, "S", ar);
  return strncmp(ar->source, "=[coop", 6) != 0;
}

static void hook(lua_State *L, lua_Debug *ar) {
  coop_context *ctx = coop__find(L);
  if (!ctx || !atomic_load(&ctx->interrupt.pending)) {
    lua_sethook(L, NULL, 0, 0);
  } else if (ar->event == LUA_HOOKRET && persistent(ctx)) {
    int depth;
    find_catcher(ctx, L, &depth);
    if (depth == ctx->interrupt.catcher) raise_in(ctx, L);
  } else if (!in_script(ctx, L, ar)) {
    lua_sethook(L, hook, LUA_MASKCOUNT, 1);
  } else if (ctx->interrupt.raised == 0 || ctx->interrupt.again ||
             (!ctx->interrupt.exiting &&
              processor_time() - ctx->interrupt.since > grace)) {
    ctx->interrupt.again = false;
    raise_in(ctx, L);
  } else {
    arm(ctx, L);
  }
}

/* A coroutine inside has caught it by dying: the one outside is next. */
void coop__interrupt_again(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (!atomic_load(&ctx->interrupt.pending)) return;
  if (persistent(ctx)) {
    ctx->interrupt.again = true;
    lua_sethook(L, hook, LUA_MASKCOUNT, 1);
  } else {
    arm(ctx, L);
  }
}

void coop_interrupt(coop_context *ctx, const char *message) {
  lua_State *L = ctx->running ? ctx->running : ctx->turning ? ctx->turn_L : NULL;
  size_t n = strlen(message);
  if (n >= sizeof ctx->interrupt.message) n = sizeof ctx->interrupt.message - 1;
  memcpy(ctx->interrupt.message, message, n);
  ctx->interrupt.message[n] = '\0';
  atomic_store(&ctx->interrupt.pending, true);
  if (L) lua_sethook(L, hook, LUA_MASKCALL | LUA_MASKCOUNT, 1);
  coop__loop_wake(&ctx->loop);
}

/* core.interrupted(): the message of the interrupt under way, or nil. */
static int interrupted(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (!atomic_load(&ctx->interrupt.pending)) return 0;
  lua_pushstring(L, ctx->interrupt.message);
  return 1;
}

/* core.clear_interrupt(): the script has been unwound. */
static int clear_interrupt(lua_State *L) {
  coop_context *ctx = getctx(L);
  atomic_store(&ctx->interrupt.pending, false);
  ctx->interrupt.raised = 0;
  lua_sethook(L, NULL, 0, 0);
  return 0;
}

static void begin_exit(coop_context *ctx) {
  strcpy(ctx->interrupt.message, "exit");
  atomic_store(&ctx->interrupt.pending, true);
}

void coop__exit_in(lua_State *L, lua_State *co) {
  coop_context *ctx = getctx(L);
  begin_exit(ctx);
  will_raise(ctx, co);
  lua_pushstring(L, ctx->interrupt.message);
}

/* core.leave(): ends what runs, from whatever depth, because the process is to
   exit: by a yield that closes the body, or, where that cannot be, by an error
   that is raised again wherever it is caught. */
static int leave(lua_State *L) {
  coop_context *ctx = getctx(L);
  ctx->interrupt.exiting = true;
  if (ctx->running == L && lua_isyieldable(L))
    return coop__signal(L, SIGNAL_EXIT, 0, 0);
  begin_exit(ctx);
  raise_in(ctx, L);
  return 0;
}

static const luaL_Reg core_functions[] = {
  {"interrupted", interrupted},
  {"clear_interrupt", clear_interrupt},
  {"leave", leave},
  {NULL, NULL}
};

void coop__open_interrupt(lua_State *L) {
  coop_context *ctx = getctx(L);
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
  lua_getfield(L, -1, "pcall");
  ctx->interrupt.pcall = lua_tocfunction(L, -1);
  lua_getfield(L, -2, "xpcall");
  ctx->interrupt.xpcall = lua_tocfunction(L, -1);
  lua_settop(L, 2);
}
