/*
** lgenerator.c - iterators: Generators, coroutines, callables, sequences.
**
** A Generator that has not been started is a function and its arguments, no
** more; the coroutine comes with the first step, and is closed at the end, at
** close(), or when nothing can reach it.
*/
#include "lcoop.h"

/* --- the life of a Generator ------------------------------------------------------ */

void coop__generator_start(lua_State *L, int idx) {
  generator *g = lua_touserdata(L, idx);
  idx = lua_absindex(L, idx);
  luaL_checkstack(L, g->nargs + 4, "generator");
  for (int i = 0; i <= g->nargs; i++)
    lua_getiuservalue(L, idx, GENERATOR_BODY + i);
  fiber *f = coop__fiber_new(L, g->nargs);
  lua_setiuservalue(L, idx, GENERATOR_BODY);
  for (int i = 1; i <= g->nargs; i++) {
    lua_pushnil(L);
    lua_setiuservalue(L, idx, GENERATOR_BODY + i);
  }
  g->co = f->co;
  g->state = GENERATOR_READY;
}

bool coop__generator_finish(lua_State *L, int idx) {
  generator *g = lua_touserdata(L, idx);
  bool ok = true;
  if (g->state == GENERATOR_ENDED) return true;
  idx = lua_absindex(L, idx);
  if (g->state != GENERATOR_NEW) {
    g->state = GENERATOR_RUNS; /* its closers may ask */
    lua_getiuservalue(L, idx, GENERATOR_BODY);
    int at = lua_gettop(L);
    ok = coop__fiber_close(L, at);
    coop__fiber_give(L, at);
    lua_remove(L, at);
  }
  g->state = GENERATOR_ENDED;
  g->co = NULL;
  lua_pushnil(L);
  lua_setiuservalue(L, idx, GENERATOR_BODY);
  return ok;
}

/* Not running: at a yield, or not yet begun. */
static bool suspended(const generator *g) {
  lua_Debug ar;
  if (g->state == GENERATOR_NEW) return true;
  return lua_status(g->co) == LUA_YIELD || !lua_getstack(g->co, 0, &ar);
}

static generator *checkgenerator(lua_State *L, const char *fname) {
  generator *g = coop__checkkind(L, 1, KIND_GENERATOR, fname, 0);
  if (g->state == GENERATOR_ENDED) return g;
  if (g->state == GENERATOR_WAITS)
    luaL_error(L, "%s: the generator is waiting", fname);
  if (g->state == GENERATOR_RUNS || !suspended(g))
    luaL_error(L, "%s: the generator is running", fname);
  return g;
}

static int generator_next(lua_State *L) {
  generator *g = checkgenerator(L, "next");
  int nargs = 0;
  lua_settop(L, 1);
  if (g->state == GENERATOR_ENDED) {
    lua_pushnil(L);
    return 1;
  }
  if (g->state == GENERATOR_NEW) {
    coop__generator_start(L, 1);
    nargs = g->nargs + 2;
    lua_xmove(g->co, L, nargs);
  }
  return coop__pump(L, g->co, nargs, RESUME_NEXT);
}

static int generator_close(lua_State *L) {
  checkgenerator(L, "close");
  coop__checkclosing(L);
  if (!coop__generator_finish(L, 1)) return lua_error(L);
  return 0;
}

static int generator__tostring(lua_State *L) {
  static const char *const states[] = {"not started", "suspended", "running",
                                       "waiting", "ended"};
  generator *g = coop__checkkind(L, 1, KIND_GENERATOR, "tostring", 0);
  lua_pushfstring(L, "Generator: %p (%s)", (void *)g, states[g->state]);
  return 1;
}

/* gen(...): upvalue 2 is the function. */
static int generator_new(lua_State *L) {
  int nargs = lua_gettop(L);
  luaL_argcheck(L, nargs < 1000, 1000, "too many arguments");
  generator *g = coop__new(L, KIND_GENERATOR, sizeof *g, GENERATOR_BODY + nargs);
  g->ctx = getctx(L);
  g->nargs = nargs;
  lua_insert(L, 1);
  for (int i = nargs; i > 0; i--) lua_setiuservalue(L, 1, GENERATOR_BODY + i);
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_setiuservalue(L, 1, GENERATOR_BODY);
  return 1;
}

static int generator_of(lua_State *L) {
  coop__checkcallable(L, 1, "generator", 1);
  lua_settop(L, 1);
  lua_pushvalue(L, CTX);
  lua_insert(L, 1);
  lua_pushcclosure(L, generator_new, 2);
  return 1;
}

/* --- iterators of any kind ------------------------------------------------------------ */

/* May the thread be stepped: is it suspended, or at its end? */
static bool issteppable(lua_State *L, int idx) {
  lua_State *co = lua_tothread(L, idx);
  lua_Debug ar;
  if (co == L || !coop__isfree(L, idx)) return false;
  return lua_status(co) != LUA_OK || !lua_getstack(co, 0, &ar);
}

static bool issequence(lua_State *L, int idx) {
  lua_rawgeti(L, idx, 1);
  bool is = !lua_isnil(L, -1);
  lua_pop(L, 1);
  if (is) return true;
  lua_pushnil(L);
  if (!lua_next(L, idx)) return true; /* empty */
  lua_pop(L, 2);
  return false;
}

void coop__checkiterator(lua_State *L, int idx, const char *fname, int arg) {
  static const char expected[] = "iterator";
  if (tokind(L, idx, KIND_GENERATOR)) return;
  if (lua_type(L, idx) == LUA_TTHREAD) {
    if (!issteppable(L, idx))
      coop__argerror(L, fname, arg, "iterator expected, got a coroutine that runs");
    return;
  }
  if (coop__callable(L, idx)) return;
  if (lua_istable(L, idx) && !coop__typename(L, idx) && issequence(L, idx)) return;
  coop__typeerror(L, fname, arg, idx, expected);
}

bool coop__iterator_close(lua_State *L, int idx) {
  if (tokind(L, idx, KIND_GENERATOR)) return coop__generator_finish(L, idx);
  if (coop__steps_close(L, idx)) return true;
  if (coop__isstage(L, idx)) {
    idx = lua_absindex(L, idx);
    luaL_checkstack(L, 4, "close");
    luaL_getmetafield(L, idx, "__close");
    lua_pushvalue(L, idx);
    return lua_pcall(L, 1, 0, 0) == LUA_OK;
  }
  lua_State *co = lua_tothread(L, idx);
  if (!co || lua_status(co) > LUA_YIELD || !issteppable(L, idx)) return true;
  return coop__close_thread(L, co);
}

/* core.check_iterator(fname, n, v) */
static int check_iterator(lua_State *L) {
  coop__checkiterator(L, 3, luaL_checkstring(L, 1), (int)luaL_checkinteger(L, 2));
  return 0;
}

/* core.close_iterator(v): closes what can be closed; nothing, or the Failure of
   its cleanup. One that runs at this moment is left alone. */
static int close_iterator(lua_State *L) {
  generator *g = tokind(L, 1, KIND_GENERATOR);
  if (g && (g->state == GENERATOR_ENDED ||
            (g->state != GENERATOR_WAITS && !suspended(g)))) return 0;
  if (coop__iterator_close(L, 1)) return 0;
  coop__caught(L, false);
  return 1;
}

static const luaL_Reg methods[] = {
  {"next", generator_next},
  {"close", generator_close},
  {NULL, NULL}
};

static const luaL_Reg meta[] = {
  {"__call", generator_next},
  {"__close", generator_close},
  {"__tostring", generator__tostring},
  {NULL, NULL}
};

static const luaL_Reg core_functions[] = {
  {"check_iterator", check_iterator},
  {"close_iterator", close_iterator},
  {NULL, NULL}
};

void coop__open_generator(lua_State *L) {
  coop__newtype(L, KIND_GENERATOR, methods, meta);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, generator_of, 1);
  lua_setfield(L, 1, "generator");
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_settop(L, 2);
}
