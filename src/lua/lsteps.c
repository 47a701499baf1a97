/*
** lsteps.c - tasks whose steps are C functions of a host's.
**
** To the Cooperator such a task is one whose iterator is a function. That is a
** closure over a userdata which owns the host's pointer: whatever ends it, the
** pointer is released once, and never during a step.
*/
#include "lhandle.h"

typedef struct steps {
  coop_step_fn step; /* NULL once it has ended */
  void *ud;
  void (*release)(void *ud); /* NULL once it has been called */
  bool inside; /* a step */
  bool ended;  /* in its own step: to be released behind it */
} steps;

static void end(steps *s) {
  void (*release)(void *) = s->release;
  s->step = NULL;
  s->ended = true;
  if (s->inside) return;
  s->release = NULL;
  if (release) release(s->ud);
}

/* upvalue 2: the step, which may raise; its result is a number, or the error. */
static int step_once(lua_State *L) {
  steps *s = lua_touserdata(L, lua_upvalueindex(2));
  coop_step result = s->step(L, s->ud);
  if (result == COOP_FAIL && lua_gettop(L) == 0) lua_pushnil(L);
  lua_pushinteger(L, result);
  return result == COOP_FAIL ? 2 : 1;
}

/* The iterator: upvalue 2 is the steps, 3 step_once as a function. */
static int next(lua_State *L) {
  steps *s = lua_touserdata(L, lua_upvalueindex(2));
  lua_settop(L, 0);
  if (!s->step) return 0;
  if (s->inside) return luaL_error(L, "a step within itself");
  lua_pushvalue(L, lua_upvalueindex(3));
  s->inside = true;
  bool ok = coop__pcall(L, 0, LUA_MULTRET, 0);
  s->inside = false;
  coop_step result = ok ? (coop_step)lua_tointeger(L, -1) : COOP_FAIL;
  if (result != COOP_MORE || s->ended) end(s);
  if (ok) lua_pop(L, 1);
  if (result == COOP_FAIL) return lua_error(L);
  lua_pushboolean(L, 1);
  return result == COOP_MORE;
}

static int steps__gc(lua_State *L) {
  end(lua_touserdata(L, 1));
  return 0;
}

bool coop__steps_close(lua_State *L, int idx) {
  if (lua_tocfunction(L, idx) != next) return false;
  lua_getupvalue(L, idx, 2);
  end(lua_touserdata(L, -1));
  lua_pop(L, 1);
  return true;
}

/* Arguments: the steps as they are to be. Returns the task. */
static int add_steps(lua_State *L) {
  const steps *given = lua_touserdata(L, 1);
  lua_settop(L, 0);
  lua_pushvalue(L, CTX);
  steps *s = lua_newuserdatauv(L, sizeof *s, 0); /* 2 */
  *s = (steps){.ud = given->ud}; /* the rest is the caller's until all is done */
  lua_createtable(L, 0, 2);
  lua_pushcfunction(L, steps__gc);
  lua_setfield(L, 3, "__gc");
  lua_pushboolean(L, 0);
  lua_setfield(L, 3, "__metatable");
  lua_setmetatable(L, 2);
  lua_pushvalue(L, CTX);
  lua_pushvalue(L, 2);
  lua_pushcclosure(L, step_once, 2);
  lua_pushcclosure(L, next, 3); /* 1 */
  coop__cooperate(L);
  s->release = given->release;
  if (s->ended) end(s); /* the Cooperator is stopped */
  else s->step = given->step;
  return 1;
}

int coop_cooperate(lua_State *L, coop_step_fn step, void *ud,
                   void (*release)(void *ud)) {
  steps s = {.step = step, .ud = ud, .release = release};
  return coop__host_call(L, add_steps, &s, 0, 1);
}
