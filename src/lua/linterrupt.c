/*
** linterrupt.c - raising an error in whatever runs, from outside.
**
** A hook is armed only while an interrupt is under way: no loop pays for it.
** It raises at once; a second time when the script has gone on for a while, so
** that cleanup gets its time; from then on at every instruction, so that no loop
** around a pcall holds it up.
*/
#include <stdio.h>
#include <string.h>

#include "coop.h"
#include "lcoop.h"

enum { GRACE = 1000000 }; /* instructions between the first raise and the second */

static void hook(lua_State *L, lua_Debug *ar);

static void arm(lua_State *L, unsigned raised) {
  if (raised == 1) lua_sethook(L, hook, LUA_MASKCOUNT, GRACE);
  else lua_sethook(L, hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

static void hook(lua_State *L, lua_Debug *ar) {
  (void)ar;
  coop_context *ctx = coop__find(L);
  if (!ctx || !atomic_load(&ctx->interrupt.pending)) {
    lua_sethook(L, NULL, 0, 0);
    return;
  }
  ctx->interrupt.raised++;
  arm(L, ctx->interrupt.raised);
  lua_pushstring(L, ctx->interrupt.message);
  lua_error(L);
}

void coop__interrupt_arm(coop_context *ctx, lua_State *L) {
  arm(L, ctx->interrupt.raised);
}

void coop__interrupt_again(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (atomic_load(&ctx->interrupt.pending)) arm(L, ctx->interrupt.raised);
}

void coop__interrupt_clear(coop_context *ctx) {
  atomic_store(&ctx->interrupt.pending, false);
  ctx->interrupt.raised = 0;
}

void coop_interrupt(coop_context *ctx, const char *message) {
  lua_State *L = ctx->running ? ctx->running : ctx->turn_L;
  size_t n = strlen(message);
  if (n >= sizeof ctx->interrupt.message) n = sizeof ctx->interrupt.message - 1;
  memcpy(ctx->interrupt.message, message, n);
  ctx->interrupt.message[n] = '\0';
  atomic_store(&ctx->interrupt.pending, true);
  if (L) lua_sethook(L, hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
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
  coop__interrupt_clear(ctx);
  lua_sethook(L, NULL, 0, 0);
  return 0;
}

/* core.leave(): ends what runs, from whatever depth, because the process is to
   exit: by a yield that closes the body, or, where that cannot be, by an
   interrupt. */
static int leave(lua_State *L) {
  coop_context *ctx = getctx(L);
  ctx->interrupt.exiting = true;
  if (ctx->running == L && lua_isyieldable(L))
    return coop__signal(L, SIGNAL_EXIT, 0);
  coop_interrupt(ctx, "exit");
  ctx->interrupt.raised = 1;
  arm(L, 1);
  lua_pushstring(L, "exit");
  return lua_error(L);
}

static int exiting(lua_State *L) {
  lua_pushboolean(L, getctx(L)->interrupt.exiting);
  return 1;
}

static const luaL_Reg core_functions[] = {
  {"interrupted", interrupted},
  {"clear_interrupt", clear_interrupt},
  {"leave", leave},
  {"exiting", exiting},
  {NULL, NULL}
};

void coop__open_interrupt(lua_State *L) {
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_settop(L, 2);
}
