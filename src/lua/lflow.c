/*
** lflow.c - the steps of the bodies of stages.
**
** Whoever pulls from a stage steps its body, in his own coroutine. A plain value
** is handed over at once; whatever else comes of a step, a wait above all, is
** told to lua/coop/stage.lua, which decides. So a wait stops one stage and those
** that pull from it, and no other.
*/
#include <errno.h>
#include <math.h>
#include <time.h>

#include "lcoop.h"

/* Bodies stepped inside one another, on the C stack. One that pulls at this depth
   is left, and what it pulls from is stepped in its place: twice the switches, but
   no end to the depth. */
enum { DEPTH_MAX = 12 };

/* How long a step of a task may take, in cycles: less than a millisecond. */
enum { STEP_MAX = 20 * GLANCE };

/* Elements of a stage: its Generator, as long as that can be stepped just so; a list
   of values that its body has given at once, and which of them is next. */
enum { STAGE_BODY = 1, STAGE_VALUES, STAGE_AT };

/* What a body yields before such a list. */
static const char many_mark;

/* upvalues of coop__flow_pull */
enum {
  PULL_SLOWLY = 2, /* the function in Lua for whatever is not plain */
  PULL_MARK        /* what a body yields before the stage it pulls from */
};

static inline int upvalue(int i) { return lua_upvalueindex(i); }

/* --- what a step comes to ------------------------------------------------------ */

static inline int resume(coop_context *ctx, lua_State *L, lua_State *co, int nargs,
                         int *nres) {
  lua_State *outer = ctx->flow.co;
  ctx->flow.co = co;
  ctx->flow.depth++;
  int status = coop__resume_in(ctx, L, co, nargs, nres);
  ctx->flow.depth--;
  ctx->flow.co = outer;
  return status;
}

int coop__flow_resume(lua_State *L, lua_State *co, int nargs, int *nres) {
  return resume(getctx(L), L, co, nargs, nres);
}

/* Is what was yielded, at 'idx', a value like any other? Stages, instructions and
   Deferreds are seen to in Lua, and so is nil. */
static bool isplain(lua_State *L, int idx) {
  switch (lua_type(L, idx)) {
    case LUA_TNIL: return false;
    case LUA_TTABLE:
    case LUA_TUSERDATA: return coop__typename(L, idx) == NULL;
    default: return true;
  }
}

/* Pushes "yield" and the two first of the values yielded. */
static void push_yield(lua_State *L, lua_State *co, int nres) {
  lua_pushliteral(L, "yield");
  for (int i = 0; i < 2; i++) {
    if (i < nres) lua_pushvalue(co, i - nres);
    else lua_pushnil(co);
    lua_xmove(co, L, 1);
  }
  lua_settop(co, -nres - 1);
}

/* Pushes "await" and the Deferred. The Generator is at 1. */
static void push_await(lua_State *L, lua_State *co, int nres) {
  ((generator *)lua_touserdata(L, 1))->state = GENERATOR_WAITS;
  lua_pushliteral(L, "await");
  lua_settop(co, -nres);
  lua_xmove(co, L, 1);
  lua_getiuservalue(L, 1, GENERATOR_BODY);
  lua_pushvalue(L, -2);
  lua_setiuservalue(L, -2, FIBER_WAIT); /* for tasks that share it */
  coop__fiber_passed(L, lua_gettop(L));
  ((fiber *)lua_touserdata(L, -1))->waits = false; /* who pulls from it waits */
  lua_settop(L, -2);
}

/* Pushes "end" and what was returned. */
static void push_end(lua_State *L, lua_State *co, int nres) {
  lua_pushliteral(L, "end");
  if (nres > 0) lua_pushvalue(co, -nres);
  else lua_pushnil(co);
  lua_xmove(co, L, 1);
  lua_settop(co, 0);
  coop__generator_finish(L, 1);
}

/* Pushes "error" and the Failure. */
static void push_error(lua_State *L, lua_State *co) {
  lua_pushliteral(L, "error");
  coop__fiber_error(L, co);
  coop__caught(L, true);
  coop__generator_finish(L, 1);
}

/* Pushes the next of the values that the body of the stage has given at once; false
   and nothing pushed when there are no more. */
static bool push_next(lua_State *L, int stage, generator *g) {
  lua_rawgeti(L, stage, STAGE_VALUES);
  lua_rawgeti(L, stage, STAGE_AT);
  lua_Integer at = lua_tointeger(L, -1);
  lua_pop(L, 1);
  if (lua_rawgeti(L, -1, at) == LUA_TNIL) {
    lua_pop(L, 2);
    lua_pushboolean(L, 0);
    lua_rawseti(L, stage, STAGE_VALUES);
    g->many = false;
    return false;
  }
  lua_pushinteger(L, at + 1);
  lua_rawseti(L, stage, STAGE_AT);
  return true;
}

/* The stage at 2 gets the list that its body has yielded, if it has. */
static bool take_many(lua_State *L, lua_State *co, int nres, generator *g) {
  if (nres != 2 || lua_touserdata(co, -2) != &many_mark) return false;
  lua_xmove(co, L, 1);
  lua_pop(co, 1);
  lua_rawseti(L, 2, STAGE_VALUES);
  lua_pushinteger(L, 1);
  lua_rawseti(L, 2, STAGE_AT);
  g->many = true;
  return true;
}

static int pulled(lua_State *L, int status, lua_KContext k) {
  (void)L, (void)status, (void)k;
  return 1;
}

/* Steps give the value, or nil and what came instead; pulls go on in Lua then. */
int coop__flow_outcome(lua_State *L, lua_State *co, int status, int nres,
                       resume_mode mode) {
  coop_context *ctx = getctx(L);
  generator *g = lua_touserdata(L, 1);
  bool yields = status == LUA_YIELD, waits = yields && ctx->signal != SIGNAL_NONE;
  ctx->signal = SIGNAL_NONE; /* what follows may raise, or run finalisers */
  if (yields) g->state = GENERATOR_READY;
  luaL_checkstack(L, 12, "stage");
  if (!lua_checkstack(co, 2)) return luaL_error(L, "stack overflow");
  lua_settop(L, 2);
  if (yields && !waits && nres == 1) {
    lua_pushvalue(co, -1);
    lua_xmove(co, L, 1);
    if (isplain(L, 3)) {
      lua_settop(co, -2);
      return 1;
    }
    lua_settop(L, 2);
  } else if (yields && !waits && take_many(L, co, nres, g)) {
    if (push_next(L, 2, g)) return 1;
    nres = 0;
  }
  if (mode == RESUME_PULL) {
    lua_pushvalue(L, upvalue(PULL_SLOWLY));
    lua_pushvalue(L, 2);
  }
  lua_pushnil(L);
  if (!yields && status != LUA_OK) push_error(L, co);
  else if (!yields) push_end(L, co, nres);
  else if (waits) push_await(L, co, nres);
  else push_yield(L, co, nres);
  if (mode == RESUME_STEP) return lua_gettop(L) - 2;
  lua_remove(L, 5); /* the nil: the stage's function wants what came */
  lua_callk(L, lua_gettop(L) - 3, 1, 0, pulled);
  return 1;
}

/* --- pulling --------------------------------------------------------------------- */

/* Can the body be stepped just so by L? Whoever pulls for the first time is noted
   first, if it is the body of a stage. */
static inline bool issimple(lua_State *L, const generator *g) {
  return g && kindof(&g->object) == KIND_GENERATOR && g->state == GENERATOR_READY &&
         (L != g->ctx->flow.co || g->user == L) && lua_status(g->co) == LUA_YIELD;
}

/* Has the step of a task taken long enough? */
static bool isover(coop_context *ctx) {
  if (ctx->flow.mode == FLOW_SLICED &&
      coop__cycles() - ctx->flow.since > STEP_MAX) ctx->flow.mode = FLOW_OVER;
  return ctx->flow.mode == FLOW_OVER;
}

/* Is the body that pulls to be left, and go on later? */
static inline bool isleft(lua_State *L, coop_context *ctx) {
  return L == ctx->flow.co &&
         (ctx->flow.depth >= DEPTH_MAX ||
          (ctx->flow.mode >= FLOW_SLICED && isover(ctx))) &&
         lua_isyieldable(L);
}

/* Pulls from the stage at 1 where that is more than a plain step. */
static int pull_otherwise(lua_State *L) {
  lua_settop(L, 1);
  if (isleft(L, getctx(L))) {
    lua_pushvalue(L, upvalue(PULL_MARK));
    lua_insert(L, 1);
    return coop__signal(L, SIGNAL_NONE, 2, 1);
  }
  lua_pushvalue(L, upvalue(PULL_SLOWLY));
  lua_insert(L, 1);
  lua_callk(L, 1, 1, 0, pulled);
  return 1;
}

/* Is what was yielded a plain value at first sight? */
static inline bool isobvious(lua_State *co, int idx) {
  switch (lua_type(co, idx)) {
    case LUA_TNUMBER:
    case LUA_TSTRING:
    case LUA_TBOOLEAN: return true;
    case LUA_TTABLE:
      if (!lua_getmetatable(co, idx)) return true;
      lua_pop(co, 1);
      return false;
    default: return false;
  }
}

/* stage(): its next value; nil at the end. */
int coop__flow_pull(lua_State *L) {
  lua_rawgeti(L, 1, STAGE_BODY);
  generator *g = (generator *)(void *)toobject(L, -1);
  if (!issimple(L, g) || isleft(L, g->ctx)) return pull_otherwise(L);
  if (g->many && push_next(L, 1, g)) return 1;
  coop_context *ctx = g->ctx;
  lua_State *co = g->co;
  int nres;
  g->state = GENERATOR_RUNS;
  int status = resume(ctx, L, co, 0, &nres);
  if (status == LUA_YIELD && nres == 1 && ctx->signal == SIGNAL_NONE) {
    if (isobvious(co, -1)) {
      g->state = GENERATOR_READY;
      lua_xmove(co, L, 1);
      return 1;
    }
  }
  lua_insert(L, 1); /* the Generator; the stage is at 2 */
  lua_settop(L, 2);
  return coop__pump_on(L, co, status, nres, RESUME_PULL);
}

/* flow.puller(slowly, mark): that, as the metamethod of a class. */
static int puller(lua_State *L) {
  lua_settop(L, 2);
  lua_pushvalue(L, CTX);
  lua_insert(L, 1);
  lua_pushcclosure(L, coop__flow_pull, 3);
  return 1;
}

/* --- stepping ---------------------------------------------------------------------- */

static generator *checkgenerator(lua_State *L, const char *fname) {
  return coop__checkkind(L, 1, KIND_GENERATOR, fname, 1);
}

/* Puts what the Generator, which waited in an await, is resumed with in order. */
static void end_wait(lua_State *L, generator *g) {
  g->state = GENERATOR_READY;
  lua_getiuservalue(L, 1, GENERATOR_BODY);
  lua_pushnil(L);
  lua_setiuservalue(L, -2, FIBER_WAIT);
  coop__fiber_resumes(L, lua_gettop(L));
  lua_pop(L, 1);
}

/* Neither running nor waiting for somebody else. */
static bool isfree(const generator *g) {
  lua_Debug ar;
  if (g->state != GENERATOR_READY) return false;
  return lua_status(g->co) == LUA_YIELD || !lua_getstack(g->co, 0, &ar);
}

/* flow.step(generator, stage, waited, failed, input): resumes the body with the
   input, or raises the value of that Failure in it. 'waited' says whether it was
   left in an await. The value that it yields; or nil, "yield" and two values;
   nil, "await" and a Deferred; nil, "end" and the value returned; nil, "error" and
   a Failure; nil, "busy" when it runs already, or waits for somebody else. */
static int step(lua_State *L) {
  generator *g = checkgenerator(L, "step");
  bool failed = lua_toboolean(L, 4);
  int nargs = 1;
  lua_settop(L, 5);
  if (g->state == GENERATOR_ENDED) {
    lua_pushnil(L);
    lua_pushliteral(L, "end");
    return 2;
  }
  if (lua_toboolean(L, 3) && g->state == GENERATOR_WAITS) end_wait(L, g);
  if (!isfree(g)) {
    lua_pushnil(L);
    lua_pushliteral(L, "busy");
    return 2;
  }
  if (g->many && push_next(L, 2, g)) return 1;
  lua_State *co = g->co;
  if (lua_status(co) != LUA_YIELD) { /* its first step: all is on its thread */
    lua_settop(L, 2);
    nargs = lua_gettop(co) - 1;
    luaL_checkstack(L, nargs, "stage");
    lua_xmove(co, L, nargs);
  } else if (failed) {
    coop__raised(L, 5);
    lua_getiuservalue(L, 5, FAILURE_VALUE);
    lua_replace(L, 3);
    lua_settop(L, 3);
    getctx(L)->raising = true;
  } else {
    lua_replace(L, 3);
    lua_settop(L, 3);
  }
  return coop__pump(L, co, nargs, RESUME_STEP);
}

/* flow.try(stage): a plain step of its body for a task; the results are those of
   step, or none when there is more to it. */
static int try_step(lua_State *L) {
  coop_context *ctx = getctx(L);
  int nres;
  lua_settop(L, 1);
  lua_rawgeti(L, 1, STAGE_BODY);
  generator *g = (generator *)(void *)toobject(L, 2);
  if (!issimple(L, g)) return 0;
  if (g->many && push_next(L, 1, g)) return 1;
  lua_insert(L, 1);
  g->state = GENERATOR_RUNS;
  uint8_t was = ctx->flow.mode;
  ctx->flow.mode = FLOW_SLICED;
  ctx->flow.since = coop__cycles();
  int status = resume(ctx, L, g->co, 0, &nres);
  ctx->flow.mode = was;
  return coop__pump_on(L, g->co, status, nres, RESUME_STEP);
}

/* flow.start(generator): makes its coroutine, if that is yet to be made; the
   address of the thread, nil when it has ended. */
static int start(lua_State *L) {
  generator *g = checkgenerator(L, "start");
  if (g->state == GENERATOR_NEW) coop__generator_start(L, 1);
  if (!g->co) return 0;
  lua_pushlightuserdata(L, g->co);
  return 1;
}

/* flow.inside(): the address of the thread when that of a stage's body calls. */
static int inside(lua_State *L) {
  if (L != getctx(L)->flow.co) return 0;
  lua_pushlightuserdata(L, L);
  return 1;
}

/* flow.adopt(generator): notes that the stage's body which runs, if one does, pulls
   from this one. The address of its thread, unless that was known. */
static int adopt(lua_State *L) {
  generator *g = checkgenerator(L, "adopt");
  if (L != getctx(L)->flow.co || g->user == L) return 0;
  g->user = L;
  lua_pushlightuserdata(L, L);
  return 1;
}

/* flow.release(generator): nobody pulls from it any more. */
static int release(lua_State *L) {
  checkgenerator(L, "release")->user = NULL;
  return 0;
}

/* flow.check_wait(fname): raises misuse unless the caller may wait. */
static int check_wait(lua_State *L) {
  coop__checkwait(L, luaL_checkstring(L, 1));
  return 0;
}

/* --- coroutine.yield(stage), elsewhere ------------------------------------------------ */

static int give_turn(lua_State *L, int status, lua_KContext k) {
  (void)status, (void)k;
  lua_settop(L, 0);
  return coop__signal(L, SIGNAL_NONE, 0, 0);
}

int coop__flow_yield(lua_State *L) {
  coop__checkwait(L, "yield");
  lua_settop(L, 1);
  pushctx(L, CTX_READY);
  lua_insert(L, 1);
  lua_callk(L, 1, 0, 0, give_turn);
  return give_turn(L, LUA_OK, 0);
}

/* flow.know(stage, ready, task_next): stages have this one's metatable. */
static int know(lua_State *L) {
  lua_settop(L, 3);
  lua_setiuservalue(L, CTX, CTX_TASK_NEXT);
  lua_setiuservalue(L, CTX, CTX_READY);
  if (!lua_getmetatable(L, 1)) return luaL_argerror(L, 1, "stage expected");
  getctx(L)->flow.stage = lua_topointer(L, -1);
  lua_setiuservalue(L, CTX, CTX_STAGE);
  return 0;
}

/* --- who polls ----------------------------------------------------------------- */

/* flow.mode([mode]): for whom stages are polled; sets it. */
static int mode(lua_State *L) {
  coop_context *ctx = getctx(L);
  flow_mode was = (flow_mode)ctx->flow.mode;
  if (!lua_isnone(L, 1)) {
    ctx->flow.mode = (uint8_t)luaL_checkinteger(L, 1);
    if (ctx->flow.mode == FLOW_SLICED) ctx->flow.since = coop__cycles();
  }
  lua_pushinteger(L, was);
  return 1;
}

/* flow.over(): must whoever is polled give a turn up? */
static int over(lua_State *L) {
  lua_pushboolean(L, isover(getctx(L)));
  return 1;
}

/* flow.sleep(seconds): the whole process; less when a signal comes. */
static int sleep_process(lua_State *L) {
  double s = luaL_checknumber(L, 1), whole = floor(s);
  if (!(s > 0)) return 0;
  if (whole > 1e6) whole = 1e6; /* whoever wants more sleeps again */
  struct timespec t = {.tv_sec = (time_t)whole,
                       .tv_nsec = (long)((s - floor(s)) * 1e9)};
  nanosleep(&t, NULL);
  return 0;
}

static const luaL_Reg functions[] = {
  {"puller", puller},
  {"know", know},
  {"start", start},
  {"step", step},
  {"inside", inside},
  {"adopt", adopt},
  {"release", release},
  {"check_wait", check_wait},
  {"mode", mode},
  {"over", over},
  {"try", try_step},
  {"sleep", sleep_process},
  {NULL, NULL}
};

/* core.flow: what lua/coop/stage.lua is made with; 'many' is what a body yields
   before a list, whose elements are its next values. */
void coop__open_flow(lua_State *L) {
  lua_newtable(L);
  coop__setfuncs(L, functions);
  lua_pushlightuserdata(L, (void *)&many_mark);
  lua_setfield(L, -2, "many");
  lua_setfield(L, 2, "flow");
}
