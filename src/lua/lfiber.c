/*
** lfiber.c - the coroutines that coop runs, and those that scripts make.
**
** A fiber's coroutine is closed exactly once, and used again when it has ended.
** coroutine.resume and wrap are coop's own so that a wait passes through a
** script's coroutines to whoever runs the outermost: it is a yield marked by
** ctx->signal, which each of them hands on.
*/
#include <string.h>

#include "lcoop.h"

enum {
  CLOSE_DEPTH = 100  /* closers that may close others: Lua 5.4.4 does not count */
};

/* --- resuming ------------------------------------------------------------------ */

int coop__resume(lua_State *L, lua_State *co, int nargs, int *nres) {
  return coop__resume_in(getctx(L), L, co, nargs, nres);
}

/* Pushes the name of the C function at 'ar', as the loaded libraries have it. */
static const char *function_name(lua_State *L, lua_Debug *ar) {
  int top = lua_gettop(L);
  lua_getinfo(L, "nf", ar);
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_pushnil(L);
  while (lua_next(L, top + 2)) {
    if (lua_istable(L, -1) && lua_type(L, -2) == LUA_TSTRING) {
      lua_pushnil(L);
      while (lua_next(L, top + 4)) {
        if (lua_type(L, -2) == LUA_TSTRING && lua_rawequal(L, -1, top + 1)) {
          const char *lib = lua_tostring(L, top + 3);
          bool global = strcmp(lib, LUA_GNAME) == 0;
          return lua_pushfstring(L, "%s%s%s", global ? "" : lib, global ? "" : ".",
                                 lua_tostring(L, -2));
        }
        lua_pop(L, 1);
      }
    }
    lua_pop(L, 1);
  }
  return ar->name ? lua_pushstring(L, ar->name) : "?";
}

/* Pushes the name of the C function that keeps L from yielding. */
static const char *boundary(lua_State *L) {
  lua_Debug ar;
  luaL_checkstack(L, 12, "wait");
  for (int level = 1; lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "Sf", &ar);
    bool open = *ar.what != 'C' || lua_tocfunction(L, -1) == coop__flow_pull;
    lua_pop(L, 1);
    if (open) continue;
    const char *name = function_name(L, &ar);
    if (strcmp(name, "pcall") && strcmp(name, "xpcall")) return name;
  }
  return "?";
}

/* Pushes why L cannot wait, or yield as 'fname' wants to. */
static void push_refusal(lua_State *L, const char *fname) {
  coop_context *ctx = getctx(L);
  if (ctx->running == L)
    lua_pushfstring(L, "%s: cannot wait across the C function '%s'", fname,
                    boundary(L));
  else if (ctx->closing)
    lua_pushfstring(L, "%s: a body that is being closed cannot wait", fname);
  else if (lua_pushthread(L))
    lua_pushfstring(L, "%s: not in a coroutine that coop runs (see coop.run and "
                       "coop.spawn)", fname);
  else
    lua_pushfstring(L, "%s: this coroutine is not run by coop", fname);
}

void coop__checkwait(lua_State *L, const char *fname) {
  int level = 1;
  if (getctx(L)->running == L && lua_isyieldable(L)) return;
  luaL_checkstack(L, 16, fname);
  while (coop__ownlevel(L, L, level)) level++; /* blame the script */
  luaL_where(L, level);
  const char *where = lua_tostring(L, -1);
  push_refusal(L, fname);
  lua_pushfstring(L, "%s%s", where, lua_tostring(L, -1));
  lua_error(L);
}

/* Goes on behind a yield: with the values given, or raising the one. */
static int resumed(lua_State *L, int status, lua_KContext n) {
  (void)status;
  coop_context *ctx = getctx(L);
  if (ctx->raising) {
    ctx->raising = false;
    return lua_error(L);
  }
  return n < 0 ? lua_gettop(L) : (int)n;
}

int coop__signal_in(coop_context *ctx, lua_State *L, signal_kind signal, int n,
                    int results) {
  ctx->signal = signal;
  return lua_yieldk(L, n, results, resumed);
}

/* --- resuming from Lua ------------------------------------------------------------ */

static int pump_k(lua_State *L, int status, lua_KContext mode);

void coop__mark_passing(lua_State *L, lua_State *co, bool passing) {
  pushctx(L, CTX_THREADS);
  lua_pushthread(co);
  lua_xmove(co, L, 1);
  if (passing) lua_pushboolean(L, 0);
  else lua_pushnil(L);
  lua_rawset(L, -3);
  lua_pop(L, 1);
}

/* Adds the thread or Generator at 1 to what the wait has passed through. */
static void note_passing(lua_State *L, coop_context *ctx) {
  if (pushctx(L, CTX_PASSING) != LUA_TTABLE) {
    lua_pop(L, 1);
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, CTX, CTX_PASSING);
  }
  lua_pushvalue(L, 1);
  lua_rawseti(L, -2, ctx->passing + 1);
  ctx->passing++;
  lua_pop(L, 1);
}

/* Hands a wait of 'co' on to whoever runs L. */
static int pass_on(lua_State *L, lua_State *co, int nres, resume_mode mode) {
  coop_context *ctx = getctx(L);
  signal_kind signal = ctx->signal;
  ctx->signal = SIGNAL_NONE; /* what follows may raise, or run finalisers */
  luaL_checkstack(L, nres + 4, "wait");
  if (mode >= RESUME_NEXT) ((generator *)lua_touserdata(L, 1))->state = GENERATOR_WAITS;
  else coop__mark_passing(L, co, true);
  note_passing(L, ctx);
  lua_xmove(co, L, nres);
  ctx->signal = signal;
  return lua_yieldk(L, nres, (lua_KContext)mode, pump_k);
}

/* The results of a coroutine that has ended or yielded, as the mode wants. */
static int pump_results(lua_State *L, lua_State *co, int nres, resume_mode mode) {
  if (!lua_checkstack(L, nres + 1)) {
    lua_settop(co, -nres - 1);
    return luaL_error(L, "too many results to resume");
  }
  if (mode == RESUME_PLAIN) lua_pushboolean(L, 1);
  lua_xmove(co, L, nres);
  return nres + (mode == RESUME_PLAIN);
}

/* The error of a coroutine that died, or was not to be resumed, as the mode
   wants it. Whoever resumes a dead one by wrap or next closes it. */
static int pump_error(lua_State *L, lua_State *co, resume_mode mode) {
  int status = lua_status(co);
  bool died = status != LUA_OK && status != LUA_YIELD;
  if (mode == RESUME_PLAIN) {
    lua_pushboolean(L, 0);
    lua_xmove(co, L, 1);
    return 2;
  }
  if (mode == RESUME_NEXT) {
    coop__fiber_error(L, co);
    coop__caught(L, true);
    coop__generator_finish(L, 1);
    coop__raised(L, lua_gettop(L));
    lua_getiuservalue(L, -1, FAILURE_VALUE);
    return lua_error(L);
  }
  coop__capture(L, co, 0);
  if (died) coop__forget_raised(L, co, 0);
  if (!died || coop__close_thread(L, co)) lua_xmove(co, L, 1);
  int at = lua_gettop(L);
  coop__caught(L, true);
  lua_getiuservalue(L, at, FAILURE_VALUE);
  if (status != LUA_ERRMEM && lua_type(L, -1) == LUA_TSTRING) {
    luaL_where(L, 1);
    lua_insert(L, -2);
    lua_concat(L, 2);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, at, FAILURE_VALUE);
  }
  coop__raised(L, at);
  return lua_error(L);
}

/* Ends a Generator's turn: nil is a turn given up, the end is nothing more. */
static bool next_again(lua_State *L, lua_State *co, int status, int nres) {
  generator *g = lua_touserdata(L, 1);
  if (status == LUA_OK) {
    lua_settop(co, 0);
    coop__generator_finish(L, 1);
    return false;
  }
  g->state = GENERATOR_READY;
  if (nres > 0 && !lua_isnil(co, -nres)) return false;
  lua_settop(co, -nres - 1);
  return true;
}

/* Does here what 'co' asks of whoever runs it, where that cannot be passed on:
   runs what it wants run, and raises where it wants to wait. How many values,
   now on top, it is to be resumed with. */
static int serve(lua_State *L, lua_State *co, int nres) {
  coop_context *ctx = getctx(L);
  signal_kind signal = ctx->signal;
  ctx->signal = SIGNAL_NONE;
  coop__forget_passed(L);
  if (signal == SIGNAL_SPAWN || signal == SIGNAL_RUN) {
    luaL_checkstack(L, nres + 4, "resume");
    lua_xmove(co, L, nres);
    if (signal == SIGNAL_RUN) coop__run_later(L);
    else coop__run_now(L, lua_gettop(L));
    return nres;
  }
  lua_settop(co, -nres - 1);
  if (signal == SIGNAL_EXIT) coop__exit_in(L, co);
  else push_refusal(L, signal == SIGNAL_NORETURN ? "noreturn"
                  : signal == SIGNAL_RETURN ? "return_value" : "await");
  ctx->raising = true;
  return 1;
}

/* Resumes 'co' with the 'nargs' values on top, for which it has room. */
static int resume_for(lua_State *L, lua_State *co, int nargs, int *nres,
                      resume_mode mode) {
  lua_xmove(L, co, nargs);
  if (mode >= RESUME_NEXT) ((generator *)lua_touserdata(L, 1))->state = GENERATOR_RUNS;
  if (mode >= RESUME_STEP) return coop__flow_resume(L, co, nargs, nres);
  return coop__resume(L, co, nargs, nres);
}

int coop__pump_on(lua_State *L, lua_State *co, int status, int nres,
                  resume_mode mode) {
  coop_context *ctx = getctx(L);
  for (;;) {
    signal_kind signal = status == LUA_YIELD ? ctx->signal : SIGNAL_NONE;
    if (mode >= RESUME_STEP && (signal == SIGNAL_NONE || signal == SIGNAL_AWAIT))
      return coop__flow_outcome(L, co, status, nres, mode);
    if (signal != SIGNAL_NONE) {
      if (ctx->running == L && lua_isyieldable(L))
        return pass_on(L, co, nres, mode);
      status = resume_for(L, co, serve(L, co, nres), &nres, mode);
      continue;
    }
    if (status != LUA_OK && status != LUA_YIELD) return pump_error(L, co, mode);
    if (mode == RESUME_NEXT) {
      if (next_again(L, co, status, nres)) {
        status = resume_for(L, co, 0, &nres, mode);
        continue;
      }
      if (status == LUA_OK) {
        lua_pushnil(L);
        return 1;
      }
    }
    return pump_results(L, co, nres, mode);
  }
}

int coop__pump(lua_State *L, lua_State *co, int nargs, resume_mode mode) {
  int nres;
  if (!lua_checkstack(co, nargs)) {
    lua_pushliteral(L, "too many arguments to resume");
    if (mode != RESUME_PLAIN) return lua_error(L);
    lua_pushboolean(L, 0);
    lua_insert(L, -2);
    return 2;
  }
  int status = resume_for(L, co, nargs, &nres, mode);
  return coop__pump_on(L, co, status, nres, mode);
}

/* The wait is over: its outcome goes to where it began. */
static int pump_k(lua_State *L, int status, lua_KContext k) {
  (void)status;
  resume_mode mode = (resume_mode)k;
  lua_State *co;
  if (mode >= RESUME_NEXT) {
    generator *g = lua_touserdata(L, 1);
    g->state = GENERATOR_READY;
    co = g->co;
  } else {
    co = lua_tothread(L, 1);
    coop__mark_passing(L, co, false);
  }
  return coop__pump(L, co, lua_gettop(L) - (mode >= RESUME_STEP ? 2 : 1), mode);
}

/* --- the coroutine library ---------------------------------------------------------- */

static lua_State *checkthread(lua_State *L, int idx, const char *fname) {
  lua_State *co = lua_tothread(L, idx);
  if (!co) coop__typeerror(L, fname, 1, idx, "coroutine");
  return co;
}

bool coop__isfree(lua_State *L, int idx) {
  idx = lua_absindex(L, idx);
  pushctx(L, CTX_THREADS);
  lua_pushvalue(L, idx);
  bool is = lua_rawget(L, -2) == LUA_TNIL;
  lua_pop(L, 2);
  return is;
}

static const char not_yours[] = "cannot resume a coroutine that coop runs";

static int co_resume(lua_State *L) {
  lua_State *co = checkthread(L, 1, "resume");
  if (!coop__isfree(L, 1)) {
    lua_pushboolean(L, 0);
    lua_pushstring(L, not_yours);
    return 2;
  }
  return coop__pump(L, co, lua_gettop(L) - 1, RESUME_PLAIN);
}

static int co_wrapped(lua_State *L) {
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_insert(L, 1);
  if (!coop__isfree(L, 1)) return luaL_error(L, not_yours);
  return coop__pump(L, lua_tothread(L, 1), lua_gettop(L) - 1, RESUME_WRAP);
}

static int co_wrap(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_State *co = lua_newthread(L);
  lua_pushvalue(L, 1);
  lua_xmove(L, co, 1);
  lua_pushvalue(L, CTX);
  lua_insert(L, -2);
  lua_pushcclosure(L, co_wrapped, 2);
  return 1;
}

/* Is L one of the coroutines that coop runs? */
static bool isfiber(lua_State *L) {
  pushctx(L, CTX_THREADS);
  lua_pushthread(L);
  bool is = lua_rawget(L, -2) == LUA_TLIGHTUSERDATA;
  lua_pop(L, 2);
  return is;
}

/* Can whoever resumes a coroutine that yielded a value of this type have reason to
   raise an error there? */
static bool israisable(int type) {
  return type > LUA_TSTRING;
}

/* A plain yield of the coroutine that a tick steps. When its next step comes next,
   nothing can have happened in between, and nothing is switched. */
static int stay(lua_State *L) {
  coop_stepping *stepping = &coop__stepping;
  coop_sched *s = stepping->sched;
  if (s->lent > 0) {
    s->lent--;
    return 0;
  }
  if (s->credit > 0) s->credit--;
  else if (coop__must_switch()) return lua_yield(L, 0);
  bool stays = stepping->left > 0 ? --stepping->left > 0 : coop__sched_again(s);
  if (stays && !stepping->n) coop__sched_lend(s);
  return stays ? 0 : lua_yield(L, 0);
}

/* The same of a task that accumulates: the value is stored, and a switch carries
   none. */
static NEVER_INLINE int store(lua_State *L) {
  lua_Integer *count = coop__stepping.n;
  if (lua_gettop(L) > 1) lua_settop(L, 1);
  /* only a power of two makes the table grow: that is done outside */
  if ((*count & (*count - 1)) == 0) return lua_yield(L, 1);
  lua_rawseti(L, lua_upvalueindex(2), ++*count);
  return stay(L);
}

static NEVER_INLINE int yield_any(lua_State *L, int type) {
  bool stage = type == LUA_TTABLE && coop__isstage(L, 1);
  if (L == coop__stepping.co && type != LUA_TUSERDATA && !stage &&
      lua_isyieldable(L)) {
    if (!coop__stepping.n) return stay(L);
    if (type > LUA_TNIL) return store(L);
  }
  if (stage && L != getctx(L)->flow.co && isfiber(L)) return coop__flow_yield(L);
  int n = lua_gettop(L);
  if (!israisable(type)) return lua_yield(L, n);
  return lua_yieldk(L, n, -1, resumed);
}

/* Upvalue 2: see CTX_YIELD. */
static int co_yield(lua_State *L) {
  int type = lua_type(L, 1);
  if (L == coop__stepping.co && type < LUA_TTABLE && lua_isyieldable(L)) {
    coop_sched *s = coop__stepping.sched;
    if (s->lent > 0) {
      s->lent--;
      return 0;
    }
    if (coop__stepping.n && type > LUA_TNIL) return store(L);
  }
  return yield_any(L, type);
}

/* As in Lua; but a thread of coop's that a script has seen is not used again. */
static int co_running(lua_State *L) {
  int main = lua_pushthread(L);
  pushctx(L, CTX_THREADS);
  lua_pushvalue(L, -2);
  if (lua_rawget(L, -2) == LUA_TLIGHTUSERDATA)
    ((fiber *)lua_touserdata(L, -1))->spent = true;
  lua_pop(L, 2);
  lua_pushboolean(L, main);
  return 2;
}

void coop__checkclosing(lua_State *L) {
  if (getctx(L)->closing >= CLOSE_DEPTH) luaL_error(L, "C stack overflow");
}

static int co_close(lua_State *L) {
  lua_State *co = checkthread(L, 1, "close");
  lua_Debug ar;
  int status = lua_status(co);
  bool normal = status == LUA_OK && lua_getstack(co, 0, &ar);
  if (co == L) return luaL_error(L, "cannot close a running coroutine");
  if (normal) return luaL_error(L, "cannot close a normal coroutine");
  if (!coop__isfree(L, 1)) return luaL_error(L, "cannot close a coroutine that coop runs");
  coop__checkclosing(L);
  lua_settop(L, 1);
  if (coop__close_thread(L, co)) {
    lua_pushboolean(L, 1);
    return 1;
  }
  lua_pushboolean(L, 0);
  lua_insert(L, -2);
  return 2;
}

/* --- fibers ------------------------------------------------------------------------------ */

bool coop__close_thread(lua_State *L, lua_State *co) {
  coop_context *ctx = getctx(L);
  lua_State *running = ctx->running;
  int depth = ctx->depth;
  ctx->closing++;
  coop__runs(ctx, NULL); /* what a closer calls cannot wait */
  int status = closethread(co, L);
  coop__runs(ctx, running);
  ctx->depth = depth;
  ctx->closing--;
  if (status == LUA_OK) {
    lua_settop(co, 0);
    return true;
  }
  luaL_checkstack(L, 4, "close");
  lua_xmove(co, L, 1);
  lua_settop(co, 0);
  return false;
}

/* Its function runs in a protected call that can yield: so cleanup may wait while
   an error unwinds it, the frames are kept before they are gone, and the thread is
   as good as new afterwards. (A thread that is closed in mid-flight keeps the
   message handler it had, in 5.4.4: no error may leave this call.) */
static int fiber_k(lua_State *L, int status, lua_KContext k) {
  (void)k;
  if (status == LUA_OK || status == LUA_YIELD) return lua_gettop(L) - 1;
  getctx(L)->signal = SIGNAL_DIED;
  return 1;
}

static int fiber_main(lua_State *L) {
  int status = lua_pcallk(L, lua_gettop(L) - 2, LUA_MULTRET, 1, 0, fiber_k);
  return fiber_k(L, status, 0);
}

/* The frames of an error that nothing in the fiber catches are kept for it: they
   are asked for when its cleanup has run. */
static int fiber_msgh(lua_State *L) {
  coop__msgh(L);
  pushctx(L, CTX_DEATHS);
  lua_pushthread(L);
  pushctx(L, CTX_FRAMES);
  lua_rawset(L, -3);
  lua_settop(L, 1);
  return 1;
}

/* Puts the frames that fiber_msgh kept for 'co' into CTX_FRAMES. */
static void recall_frames(lua_State *L, lua_State *co) {
  pushctx(L, CTX_DEATHS);
  lua_pushthread(co);
  lua_xmove(co, L, 1);
  lua_pushvalue(L, -1);
  lua_rawget(L, -3);
  lua_setiuservalue(L, CTX, CTX_FRAMES);
  lua_pushnil(L);
  lua_rawset(L, -3);
  lua_pop(L, 1);
}

void coop__fiber_error(lua_State *L, lua_State *co) {
  int status = lua_status(co);
  luaL_checkstack(L, 6, "error");
  if (status == LUA_OK || status == LUA_YIELD) { /* it died in good order, or was
                                                    not resumed at all */
    lua_xmove(co, L, 1);
    recall_frames(L, co);
    if (status == LUA_OK) lua_settop(co, 0);
    else if (!coop__close_thread(L, co)) lua_pop(L, 1);
  } else if (coop__close_thread(L, co)) {
    lua_pushnil(L); /* it cannot be */
  }
}

fiber *coop__fiber_make(lua_State *L) {
  fiber *f = coop__new(L, KIND_FIBER, sizeof *f, FIBER_NUV);
  coop__link_init(&f->link);
  f->ctx = getctx(L);
  lua_State *co = lua_newthread(L);
  pushctx(L, CTX_THREADS);
  lua_pushvalue(L, -2);
  lua_pushlightuserdata(L, f);
  lua_rawset(L, -3);
  lua_pop(L, 1);
  lua_setiuservalue(L, -2, FIBER_THREAD);
  f->co = co;
  return f;
}

/* Puts fiber_main and its message handler on the thread. */
static void push_base(lua_State *L, lua_State *co) {
  pushctx(L, CTX_FIBER_MAIN);
  pushctx(L, CTX_FIBER_MSGH);
  lua_xmove(L, co, 2);
}

static void move_call(lua_State *L, lua_State *co, int nargs) {
  if (nargs > LUA_MINSTACK / 2 && !lua_checkstack(co, nargs + 4))
    luaL_error(L, "too many arguments");
  lua_xmove(L, co, nargs + 1);
}

int coop__fiber_load(lua_State *L, fiber *f, int nargs) {
  lua_State *co = f->co;
  if (lua_gettop(co) != FIBER_BASE) {
    lua_settop(co, 0);
    push_base(L, co);
  }
  lua_pushvalue(co, 1);
  lua_pushvalue(co, 2);
  move_call(L, co, nargs);
  return nargs + 2;
}

fiber *coop__fiber_new(lua_State *L, int nargs) {
  coop_context *ctx = getctx(L);
  fiber *f = coop__fiber_take(L, ctx);
  lua_settop(f->co, 0);
  push_base(L, f->co);
  move_call(L, f->co, nargs);
  coop__fiber_hold(L, ctx, f);
  return f;
}

void coop__forget_passed(lua_State *L) {
  getctx(L)->passing = 0;
  lua_pushnil(L);
  lua_setiuservalue(L, CTX, CTX_PASSING);
}

void coop__fiber_passed(lua_State *L, int idx) {
  coop_context *ctx = getctx(L);
  fiber *f = lua_touserdata(L, idx);
  f->waits = true;
  if (ctx->passing == 0) return;
  f->inner = true;
  idx = lua_absindex(L, idx);
  pushctx(L, CTX_PASSING);
  lua_setiuservalue(L, idx, FIBER_INNER);
  coop__forget_passed(L);
}

void coop__fiber_resumes(lua_State *L, int idx) {
  fiber *f = lua_touserdata(L, idx);
  f->waits = false;
  if (!f->inner) return;
  f->inner = false;
  idx = lua_absindex(L, idx);
  lua_pushnil(L);
  lua_setiuservalue(L, idx, FIBER_INNER);
}

/* Closes one that a wait passed through: a thread of the script's, or a
   Generator. The error of a closer replaces that of an earlier one. */
static void close_inner(lua_State *L, int error) {
  lua_State *co = lua_tothread(L, -1);
  bool ok = co ? coop__close_thread(L, co)
               : coop__generator_finish(L, lua_gettop(L));
  if (!ok) lua_replace(L, error);
  if (co) coop__mark_passing(L, co, false); /* nothing passes through the dead */
  lua_pop(L, 1);
}

bool coop__fiber_close(lua_State *L, int idx) {
  fiber *f = lua_touserdata(L, idx);
  bool ok = true;
  if (!f->co) return true; /* collected before: its closers have run */
  idx = lua_absindex(L, idx);
  luaL_checkstack(L, 8, "close");
  lua_pushnil(L); /* the error of a closer */
  int error = lua_gettop(L);
  if (f->inner) {
    lua_getiuservalue(L, idx, FIBER_INNER);
    coop__fiber_resumes(L, idx);
    lua_Integer n = (lua_Integer)lua_rawlen(L, -1);
    for (lua_Integer i = 1; i <= n; i++) {
      lua_rawgeti(L, -1, i);
      close_inner(L, error);
    }
    ok = lua_isnil(L, error);
    lua_settop(L, error);
  }
  if (!coop__close_thread(L, f->co)) {
    lua_replace(L, error);
    ok = false;
  }
  if (ok) lua_pop(L, 1);
  return ok;
}

/* Nothing can reach what was suspended in it any more: its closers run now. */
static int fiber__gc(lua_State *L) {
  fiber *f = tokind(L, 1, KIND_FIBER);
  if (!f || !f->co) return 0;
  lua_State *co = f->co;
  coop__link_remove(&f->link);
  if (!f->ctx) return 0;
  f->co = NULL;
  lua_getiuservalue(L, 1, FIBER_THREAD);
  lua_settop(L, 2);
  f->co = co;
  if (f->ctx->census && f->waits) coop__note_lost(L, co);
  bool outer = f->ctx->collecting;
  f->ctx->collecting = true;
  bool ok = coop__fiber_close(L, 1);
  f->ctx->collecting = outer;
  f->co = NULL;
  if (!ok) coop__reporterror(L);
  return 0;
}

static const luaL_Reg library[] = {
  {"resume", co_resume},
  {"wrap", co_wrap},
  {"yield", co_yield},
  {"running", co_running},
  {"close", co_close},
  {NULL, NULL}
};

static const luaL_Reg fiber_meta[] = {
  {"__gc", fiber__gc},
  {NULL, NULL}
};

/* Puts coop's functions into the coroutine library, where there is one, and
   coop.yield, which is the same as coroutine.yield. */
void coop__open_fiber(lua_State *L) {
  coop__newtype(L, KIND_FIBER, NULL, fiber_meta);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, fiber_main, 1);
  lua_setiuservalue(L, CTX, CTX_FIBER_MAIN);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, fiber_msgh, 1);
  lua_setiuservalue(L, CTX, CTX_FIBER_MSGH);
  lua_newtable(L);
  coop__setfuncs(L, library);
  lua_pushvalue(L, CTX);
  lua_pushnil(L);
  lua_pushcclosure(L, co_yield, 2); /* the same with its second upvalue */
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, CTX, CTX_YIELD);
  lua_pushvalue(L, -1);
  lua_setfield(L, 1, "yield");
  lua_setfield(L, 3, "yield");
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  if (lua_getfield(L, -1, LUA_COLIBNAME) == LUA_TTABLE) {
    lua_newtable(L); /* what was there before: 6 */
    for (const luaL_Reg *l = library; l->name; l++) {
      lua_getfield(L, 5, l->name);
      lua_setfield(L, 6, l->name);
      lua_getfield(L, 3, l->name);
      lua_setfield(L, 5, l->name);
    }
    lua_setiuservalue(L, CTX, CTX_LIBRARY);
  }
  lua_settop(L, 2);
}

void coop__restore_library(lua_State *L) {
  int top = lua_gettop(L);
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  if (pushctx(L, CTX_LIBRARY) == LUA_TTABLE &&
      lua_getfield(L, top + 1, LUA_COLIBNAME) == LUA_TTABLE) {
    for (const luaL_Reg *l = library; l->name; l++) {
      lua_getfield(L, top + 3, l->name);
      bool own = lua_tocfunction(L, -1) == l->func;
      lua_getfield(L, top + 2, l->name);
      if (own) lua_setfield(L, top + 3, l->name);
      lua_settop(L, top + 3);
    }
  }
  lua_settop(L, top);
}
