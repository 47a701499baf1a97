/*
** linterrupt.c - raising an error in whatever runs, from outside.
**
** A hook is armed only while an interrupt is under way: no loop pays for it. It
** raises at once. A script that catches this has a moment for itself; then it is
** raised again, and from then on wherever a pcall has caught it, so that no loop
** around a pcall holds it up. What closes during the unwinding is left alone.
** os.exit, where it cannot simply close the body, does the same without the
** moment.
**
** Whoever interrupts, from another thread or a signal handler, takes no lock: it
** claims the message, says that it is at it, and sets the hook of the main thread,
** which is never collected, and of the coroutine that runs. So that this one is not
** collected meanwhile, a change of it waits for those who are at it: a glance at a
** word, since it is they who pay for the order of the two (membarrier).
*/
#define _GNU_SOURCE /* syscall */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/membarrier.h>
#include <sys/syscall.h>
#endif

#include "lhandle.h"

enum { LOOK = 10000 };          /* instructions between looks at the clock */
static const double grace = 0.08; /* seconds of the processor that a script has
                                     which caught it */

typedef enum interrupt_slot { SLOT_FREE, SLOT_WRITTEN, SLOT_SET } interrupt_slot;

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

static void pushmessage(coop_context *ctx, lua_State *L) {
  bool set = atomic_load(&ctx->interrupt.slot) == SLOT_SET;
  lua_pushstring(L, set && !ctx->interrupt.exiting ? ctx->interrupt.message
                    : ctx->interrupt.exiting ? "exit" : "interrupted!");
}

/* The interrupt is over; another may come. */
static void clear(coop_context *ctx) {
  int set = SLOT_SET;
  atomic_fetch_and(&ctx->interrupt.word, ~(unsigned)INTERRUPT_PENDING);
  atomic_compare_exchange_strong(&ctx->interrupt.slot, &set, SLOT_FREE);
  ctx->interrupt.raised = 0;
}

/* Is it the host that runs the script, without coop? Nobody tells its end then. */
static bool is_host_s(const coop_context *ctx) {
  return !ctx->running && !ctx->looping && !ctx->turning && !ctx->interrupt.exiting;
}

void coop__interrupt_over(coop_context *ctx) {
  if (ctx->interrupt.raised == 0) return;
  clear(ctx);
  lua_sethook(ctx->L, NULL, 0, 0);
}

static void raise_in(coop_context *ctx, lua_State *L) {
  will_raise(ctx, L);
  pushmessage(ctx, L);
  if (is_host_s(ctx)) coop__interrupt_over(ctx); /* once is enough */
  lua_error(L);
}

/* Does L run a script's code at this moment? coop's own is left to end first. */
static bool in_script(coop_context *ctx, lua_State *L, lua_Debug *ar) {
  lua_State *outside = ctx->turn_L ? ctx->turn_L : ctx->L;
  if (L != (ctx->running ? ctx->running : outside)) return false;
  lua_getinfo(L, "S", ar);
  return *ar->what != 'C' && strncmp(ar->source, "=[coop", 6) != 0;
}

static void hook(lua_State *L, lua_Debug *ar) {
  coop_context *ctx = coop__find(L);
  if (!ctx || !coop__interrupted(ctx)) {
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
  if (!coop__interrupted(ctx)) return;
  if (is_host_s(ctx)) {
    coop__interrupt_over(ctx);
    return;
  }
  if (persistent(ctx)) {
    ctx->interrupt.again = true;
    lua_sethook(L, hook, LUA_MASKCOUNT, 1);
  } else {
    arm(ctx, L);
  }
}

/* Makes what other threads did before visible to this one, and what this one did
   to them: where they only kept the order of their instructions. */
static void barrier(coop_context *ctx) {
#ifdef __linux__
  if (syscall(__NR_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0) return;
#endif
  for (int i = 0; i < 2000; i++) atomic_fetch_add(&ctx->interrupt.word, 0);
}

static void await_interrupters(coop_context *ctx) {
  while (atomic_load(&ctx->interrupt.word) >= INTERRUPT_AT_IT) sched_yield();
}

void coop__interrupt_next(coop_context *ctx, lua_State *co) {
  await_interrupters(ctx);
  if (co && coop__interrupted(ctx) && ctx->interrupt.raised == 0)
    lua_sethook(co, hook, LUA_MASKCALL | LUA_MASKCOUNT, 1);
}

/* A signal handler on the thread of a writer must not wait for it: one message is
   as good as the other. */
static void set_message(coop_context *ctx, const char *message) {
  int expected = SLOT_FREE;
  size_t n = strlen(message);
  if (!atomic_compare_exchange_strong(&ctx->interrupt.slot, &expected, SLOT_WRITTEN))
    return;
  if (n >= sizeof ctx->interrupt.message) n = sizeof ctx->interrupt.message - 1;
  memcpy(ctx->interrupt.message, message, n);
  ctx->interrupt.message[n] = '\0';
  atomic_store(&ctx->interrupt.slot, SLOT_SET);
}

static void interrupt(coop_context *ctx, const char *message) {
  atomic_fetch_add(&ctx->interrupt.word, INTERRUPT_AT_IT);
  barrier(ctx);
  lua_State *co = __atomic_load_n(&ctx->running, __ATOMIC_RELAXED);
  set_message(ctx, message);
  atomic_fetch_or(&ctx->interrupt.word, INTERRUPT_PENDING);
  lua_sethook(ctx->L, hook, LUA_MASKCALL | LUA_MASKCOUNT, 1);
  if (co) lua_sethook(co, hook, LUA_MASKCALL | LUA_MASKCOUNT, 1);
  coop__loop_wake(&ctx->loop);
  atomic_fetch_sub(&ctx->interrupt.word, INTERRUPT_AT_IT);
}

void coop_interrupt(coop_handle *h, const char *message) {
  int error = errno; /* it may be a signal handler that calls */
  if (!h) return;
  atomic_fetch_add(&h->at_it, 1);
  if (!atomic_load(&h->closed)) interrupt(h->ctx, message ? message : "interrupted!");
  atomic_fetch_sub(&h->at_it, 1);
  errno = error;
}

void coop__interrupt_told(coop_context *ctx) {
  if (!coop__interrupted(ctx) || ctx->interrupt.raised > 0) return;
  ctx->interrupt.raised = 1;
  ctx->interrupt.since = processor_time();
}

void coop__interrupts_end(coop_context *ctx) {
  coop_handle *h = ctx->handle;
  if (h) {
    atomic_store(&h->closed, true);
    while (atomic_load(&h->at_it) > 0) sched_yield();
  }
  clear(ctx);
}

/* core.interrupted(): the message of the interrupt under way, or nil. */
static int interrupted(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (!coop__interrupted(ctx)) return 0;
  pushmessage(ctx, L);
  return 1;
}

/* core.clear_interrupt(): the script has been unwound. */
static int clear_interrupt(lua_State *L) {
  coop_context *ctx = getctx(L);
  clear(ctx);
  lua_sethook(L, NULL, 0, 0);
  if (L != ctx->L) lua_sethook(ctx->L, NULL, 0, 0);
  return 0;
}

static void begin_exit(coop_context *ctx) {
  ctx->interrupt.exiting = true;
  atomic_fetch_or(&ctx->interrupt.word, INTERRUPT_PENDING);
}

void coop__exit_in(lua_State *L, lua_State *co) {
  coop_context *ctx = getctx(L);
  begin_exit(ctx);
  will_raise(ctx, co);
  pushmessage(ctx, L);
}

/* core.leave(): ends what runs, from whatever depth, because the process is to
   exit: by a yield that closes the body, or, where that cannot be, by an error
   that is raised again wherever it is caught. */
static int leave(lua_State *L) {
  coop_context *ctx = getctx(L);
  ctx->interrupt.exiting = true;
  if (coop__stepping.sched) coop__attend(coop__stepping.sched);
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
#ifdef __linux__
  syscall(__NR_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
#endif
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
  lua_getfield(L, -1, "pcall");
  ctx->interrupt.pcall = lua_tocfunction(L, -1);
  lua_getfield(L, -2, "xpcall");
  ctx->interrupt.xpcall = lua_tocfunction(L, -1);
  lua_settop(L, 2);
}
