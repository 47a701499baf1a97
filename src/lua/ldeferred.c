/*
** ldeferred.c - a result to come: what a script sees of it.
**
** It fires once; its handlers are run by lrun.c, in the order they were added. One
** that has not fired and was never paused is fresh: nothing of it depends on it
** alone, so that its metatable has a table for __index, and its methods are found
** without a call.
*/
#include <string.h>

#include "lcoop.h"

/* --- making, settling ------------------------------------------------------- */

deferred *coop__deferred_new(lua_State *L) {
  return coop__newfrom(L, CTX_FRESH, KIND_DEFERRED, sizeof(deferred), DEFERRED_NUV);
}

void coop__unfresh(lua_State *L, int idx) {
  pushctx(L, CTX_META + KIND_DEFERRED);
  lua_setmetatable(L, idx);
}

static void settle(lua_State *L, int idx, deferred *d, bool failed) {
  d->flags |= D_FIRED;
  coop__take_result(L, idx, d, failed);
  coop__unfresh(L, idx);
}

void coop__settle(lua_State *L, int idx) {
  settle(L, idx, lua_touserdata(L, idx), tofailure(L, -1) != NULL);
}

void coop__fire(lua_State *L, int idx) {
  idx = lua_absindex(L, idx);
  coop__settle(L, idx);
  coop__run(L, idx);
}

/* --- failures that nobody has seen -------------------------------------------- */

/* Cancelling is no failure to be told of. */
void coop__guard(lua_State *L, int idx, deferred *d) {
  lua_getiuservalue(L, idx, DEFERRED_RESULT);
  bool silent = coop__iscancelled(L, lua_gettop(L));
  lua_pop(L, 1);
  if (silent) {
    d->flags |= D_HANDLED;
    return;
  }
  pushctx(L, CTX_GUARDS);
  lua_pushvalue(L, idx);
  coop__new(L, KIND_GUARD, sizeof(object), 1);
  lua_getiuservalue(L, idx, DEFERRED_RESULT);
  if (coop__counted(L)) coop__note_as(L, idx, -1);
  lua_setiuservalue(L, -2, 1);
  lua_rawset(L, -3);
  lua_pop(L, 1);
  d->flags |= D_GUARDED;
}

void coop__unguard(lua_State *L, int idx, deferred *d) {
  pushctx(L, CTX_GUARDS);
  lua_pushvalue(L, idx);
  if (lua_rawget(L, -2) == LUA_TUSERDATA) {
    lua_pushnil(L);
    lua_setiuservalue(L, -2, 1);
    lua_pushvalue(L, idx);
    lua_pushnil(L);
    lua_rawset(L, -4);
  }
  lua_pop(L, 2);
  d->flags &= (uint16_t)~D_GUARDED;
}

void coop__handled(lua_State *L, int idx) {
  deferred *d = lua_touserdata(L, idx);
  if (!(d->flags & D_FAILED)) return;
  d->flags |= D_HANDLED;
  if (d->flags & D_GUARDED) coop__unguard(L, lua_absindex(L, idx), d);
}

/* --- failures of its own ------------------------------------------------------------ */

void coop__pushcycle(lua_State *L) {
  lua_pushliteral(L, "a Deferred would wait on itself");
  coop__tofailure(L);
}

void coop__pushcancelled(lua_State *L) {
  if (getctx(L)->shutting) coop__pusherror(L, "ContextClosed", "coop was closed");
  else coop__pusherror(L, "CancelledError", "cancelled");
  coop__tofailure(L);
}

/* --- firing ------------------------------------------------------------------------ */

/* May the Deferred still be fired? Raises, or says no to one late fire of a
   cancelled one. */
static inline bool may_fire(lua_State *L, deferred *d, const char *fname) {
  if (!(d->flags & D_FIRED)) {
    if (!isbody(d)) return true;
    luaL_error(L, "%s: a coroutine fires its Deferred itself", fname);
  }
  if (!(d->flags & D_SWALLOW))
    coop__raise(L, "AlreadyCalledError", fname, "the Deferred has fired already");
  d->flags &= (uint16_t)~D_SWALLOW;
  return false;
}

int coop__callback(lua_State *L) {
  deferred *d = coop__checkdeferred(L, 1, "callback", 0);
  const object *o = toobject(L, 2);
  if (o && kindof(o) <= KIND_INLINE)
    return coop__argerror(L, "callback", 1, "a value expected, got a Deferred");
  if (lua_gettop(L) != 2) lua_settop(L, 2);
  if (!may_fire(L, d, "callback")) return 0;
  coop_context *ctx = getctx(L);
  bool outer = coop__begin(ctx);
  settle(L, 1, d, o && kindof(o) == KIND_FAILURE);
  coop__run_in(L, ctx, 1, d);
  return coop__end_in(L, ctx, outer, 0);
}

int coop__errback(lua_State *L) {
  deferred *d = coop__checkdeferred(L, 1, "errback", 0);
  if (lua_gettop(L) < 2)
    return coop__argerror(L, "errback", 1, "error value expected, got no value");
  if (todeferred(L, 2))
    return coop__argerror(L, "errback", 1, "error value expected, got Deferred");
  lua_settop(L, 2);
  if (!tofailure(L, 2)) coop__capture(L, L, 1);
  coop__tofailure(L); /* first: finalisers may run, and fire it */
  if (!may_fire(L, d, "errback")) return 0;
  bool outer = coop__begin(getctx(L));
  coop__fire(L, 1);
  return coop__end(L, outer, 0);
}

/* --- adding handlers ------------------------------------------------------------------ */

/* Makes the table of a handler with arguments: callback, errback, how many,
   the arguments from stack index 'first' on. */
static void pushcall(lua_State *L, bool cb, bool eb, int first) {
  int n = lua_gettop(L) - first + 1;
  lua_createtable(L, 3 + n, 0);
  if (cb) lua_pushvalue(L, 2);
  else lua_pushboolean(L, 0);
  lua_rawseti(L, -2, 1);
  if (eb) lua_pushvalue(L, 2);
  else lua_pushboolean(L, 0);
  lua_rawseti(L, -2, 2);
  lua_pushinteger(L, n);
  lua_rawseti(L, -2, 3);
  for (int i = 0; i < n; i++) {
    lua_pushvalue(L, first + i);
    lua_rawseti(L, -2, 4 + i);
  }
}

/* Runs the handlers of the Deferred at 1 and on top, if it has fired. */
static inline int run_handlers(lua_State *L, const deferred *d) {
  if (!(d->flags & D_FIRED) && !isbody(d)) return 1;
  bool outer = coop__begin(getctx(L));
  coop__added(L, 1);
  return coop__end(L, outer, 1);
}

static inline int add(lua_State *L, const char *fname, handler_kind k) {
  deferred *d = coop__checkdeferred(L, 1, fname, 0);
  coop__checkcallable(L, 2, fname, 1);
  if (lua_gettop(L) > 2) {
    pushcall(L, k != H_ERRBACK, k != H_CALLBACK, 3);
    if (k != H_OBSERVE) k = H_CALL;
    lua_replace(L, 2);
    lua_settop(L, 2);
  }
  coop__append_to(L, 1, d, k);
  return run_handlers(L, d);
}

static int deferred_add_callback(lua_State *L) {
  return add(L, "add_callback", H_CALLBACK);
}

static int deferred_add_errback(lua_State *L) {
  return add(L, "add_errback", H_ERRBACK);
}

static int deferred_add_both(lua_State *L) {
  return add(L, "add_both", H_BOTH);
}

static int deferred_add_callbacks(lua_State *L) {
  deferred *d = coop__checkdeferred(L, 1, "add_callbacks", 0);
  lua_settop(L, 3);
  if (lua_isnil(L, 2) && lua_isnil(L, 3))
    return coop__typeerror(L, "add_callbacks", 1, 2, "function");
  if (!lua_isnil(L, 2)) coop__checkcallable(L, 2, "add_callbacks", 1);
  if (!lua_isnil(L, 3)) coop__checkcallable(L, 3, "add_callbacks", 2);
  lua_createtable(L, 3, 0);
  for (int i = 1; i <= 2; i++) {
    if (lua_isnil(L, 1 + i)) lua_pushboolean(L, 0);
    else lua_pushvalue(L, 1 + i);
    lua_rawseti(L, -2, i);
  }
  lua_pushinteger(L, 0);
  lua_rawseti(L, -2, 3);
  coop__append(L, 1, H_CALL);
  lua_settop(L, 1);
  return run_handlers(L, d);
}

/* core.observe(d, f, ...): f sees the result and changes nothing of it; the
   failure counts as handled. */
int coop__observe(lua_State *L) {
  return add(L, "observe", H_OBSERVE);
}

static int deferred_chain(lua_State *L) {
  deferred *d = coop__checkdeferred(L, 1, "chain_deferred", 0);
  deferred *t = coop__checkdeferred(L, 2, "chain_deferred", 1);
  if (d == t)
    return coop__argerror(L, "chain_deferred", 1, "another Deferred expected, got itself");
  if (isbody(t) && !(t->flags & D_FIRED))
    return coop__argerror(L, "chain_deferred", 1,
                          "a coroutine fires its Deferred itself");
  lua_settop(L, 2);
  coop__append(L, 1, H_CHAIN);
  lua_settop(L, 1);
  return run_handlers(L, d);
}

/* --- fields, text ------------------------------------------------------------------------------ */

static bool pushresult(lua_State *L, int idx, const deferred *d) {
  if ((d->flags & (D_FIRED | D_WAITING)) != D_FIRED) return false;
  lua_getiuservalue(L, idx, DEFERRED_RESULT);
  return true;
}

/* Deferred.key: a method, or one of the three fields. */
static int deferred_get(lua_State *L) {
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL) return 1;
  deferred *d = todeferred(L, 1);
  if (!d || lua_type(L, 2) != LUA_TSTRING) return 1;
  const char *key = lua_tostring(L, 2);
  if (!strcmp(key, "called")) lua_pushboolean(L, d->flags & D_FIRED);
  else if (!strcmp(key, "paused")) lua_pushinteger(L, d->pauses);
  else if (strcmp(key, "result") || !pushresult(L, 1, d)) lua_pushnil(L);
  return 1;
}

static int deferred__newindex(lua_State *L) {
  return luaL_error(L, "a %s's fields cannot be set (%s)",
                    coop__typename(L, 1), luaL_tolstring(L, 2, NULL));
}

static int deferred__tostring(lua_State *L) {
  deferred *d = coop__checkdeferred(L, 1, "tostring", 0);
  const char *name = coop__typename(L, 1);
  lua_pushfstring(L, "%s: %p", name, (void *)d);
  if (d->flags & D_WAITING) {
    lua_getiuservalue(L, 1, DEFERRED_RESULT);
    lua_pushfstring(L, " waiting on %s: %p", coop__typename(L, -1),
                    lua_touserdata(L, -1));
    lua_remove(L, -2);
  } else if (isbody(d) && ((body *)d)->state == BODY_WAITS) {
    lua_getiuservalue(L, 1, BODY_WAIT);
    lua_pushfstring(L, " waiting on %s: %p", coop__typename(L, -1),
                    lua_touserdata(L, -1));
    lua_remove(L, -2);
  } else if (pushresult(L, 1, d)) {
    luaL_tolstring(L, -1, NULL);
    lua_pushfstring(L, " result: %s", lua_tostring(L, -1));
    lua_replace(L, -3);
    lua_pop(L, 1);
  } else {
    lua_pushliteral(L, " not fired");
  }
  if (d->pauses) lua_pushfstring(L, " paused %d", d->pauses);
  else lua_pushliteral(L, "");
  lua_concat(L, 3);
  return 1;
}

/* --- module functions ------------------------------------------------------------------------------ */

static int deferred_new(lua_State *L) {
  if (lua_isnoneornil(L, 1)) {
    coop__deferred_new(L);
    return 1;
  }
  coop__checkcallable(L, 1, "Deferred", 1);
  coop__deferred_new(L);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, DEFERRED_RESULT);
  return 1;
}

static int succeed(lua_State *L) {
  if (todeferred(L, 1))
    return coop__argerror(L, "succeed", 1, "a value expected, got a Deferred");
  lua_settop(L, 1);
  coop__deferred_new(L);
  lua_insert(L, 1);
  coop__fire(L, 1);
  return 1;
}

static int fail(lua_State *L) {
  if (lua_gettop(L) < 1)
    return coop__argerror(L, "fail", 1, "error value expected, got no value");
  if (todeferred(L, 1))
    return coop__argerror(L, "fail", 1, "error value expected, got Deferred");
  lua_settop(L, 1);
  if (!tofailure(L, 1)) coop__capture(L, L, 1);
  coop__tofailure(L);
  coop__deferred_new(L);
  lua_insert(L, 1);
  coop__fire(L, 1);
  return 1;
}

static int maybe(lua_State *L, const char *fname) {
  coop__checkcallable(L, 1, fname, 1);
  int nargs = lua_gettop(L) - 1;
  pushctx(L, CTX_MSGH);
  lua_insert(L, 1);
  if (!coop__pcall(L, nargs, 1, 1)) coop__caught(L, false);
  else if (todeferred(L, -1)) return 1;
  coop__deferred_new(L);
  lua_insert(L, -2);
  coop__fire(L, lua_gettop(L) - 1);
  return 1;
}

static int maybe_deferred(lua_State *L) { return maybe(L, "maybe_deferred"); }

static int execute(lua_State *L) { return maybe(L, "execute"); }

static int is_deferred(lua_State *L) {
  lua_pushboolean(L, todeferred(L, 1) != NULL);
  return 1;
}

/* core.relay(canceller): a Deferred that cancelling does not fail by itself. */
static int relay(lua_State *L) {
  lua_settop(L, 1);
  coop__deferred_new(L)->flags = D_RELAY;
  lua_insert(L, 1);
  lua_setiuservalue(L, 1, DEFERRED_RESULT);
  return 1;
}

/* core.report_guarded(): what has failed unseen is reported now, once. */
static int report_guarded(lua_State *L) {
  pushctx(L, CTX_GUARDS);
  lua_pushnil(L);
  lua_newtable(L); /* the table changes while it is walked: take a list */
  lua_insert(L, -2);
  lua_Integer n = 0;
  while (lua_next(L, -3)) lua_rawseti(L, -3, ++n);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, -1, i);
    lua_getiuservalue(L, -1, 1);
    lua_pushnil(L);
    lua_setiuservalue(L, -3, 1);
    if (tofailure(L, -1)) coop__report(L);
    else lua_pop(L, 1);
    lua_pop(L, 1);
  }
  return 0;
}

static const luaL_Reg methods[] = {
  {"add_callback", deferred_add_callback},
  {"add_errback", deferred_add_errback},
  {"add_both", deferred_add_both},
  {"add_callbacks", deferred_add_callbacks},
  {"callback", coop__callback},
  {"errback", coop__errback},
  {"chain_deferred", deferred_chain},
  {NULL, NULL}
};

static const luaL_Reg meta[] = {
  {"__newindex", deferred__newindex},
  {"__tostring", deferred__tostring},
  {NULL, NULL}
};

static const luaL_Reg functions[] = {
  {"Deferred", deferred_new},
  {"succeed", succeed},
  {"fail", fail},
  {"maybe_deferred", maybe_deferred},
  {"execute", execute},
  {"is_deferred", is_deferred},
  {NULL, NULL}
};

static const luaL_Reg core_functions[] = {
  {"observe", coop__observe},
  {"relay", relay},
  {"report_guarded", report_guarded},
  {NULL, NULL}
};

/* Gives the metatable of kind 'k' the __index that knows of the state; the methods
   are on top. [-0, +0, m] */
static void set_index(lua_State *L, kind k) {
  pushctx(L, CTX_META + (int)k);
  lua_pushvalue(L, CTX);
  lua_pushvalue(L, -3);
  lua_pushcclosure(L, deferred_get, 2);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
}

/* Copies what is in the table at 'from' to the one on top. [-0, +0, m] */
static void copy_into(lua_State *L, int from) {
  lua_pushnil(L);
  while (lua_next(L, from)) {
    lua_pushvalue(L, -2);
    lua_insert(L, -2);
    lua_rawset(L, -4);
  }
}

void coop__seal_deferred(lua_State *L) {
  lua_newtable(L); /* what all fresh ones have: the methods and two fields */
  lua_getfield(L, 2, "methods");
  lua_getfield(L, -1, "Deferred");
  lua_pushvalue(L, -3);
  copy_into(L, lua_gettop(L) - 1);
  lua_pushboolean(L, 0);
  lua_setfield(L, -2, "called");
  lua_pushinteger(L, 0);
  lua_setfield(L, -2, "paused");
  pushctx(L, CTX_FRESH);
  lua_insert(L, -2);
  lua_setfield(L, -2, "__index");
  lua_settop(L, 2);
}

void coop__open_deferred(lua_State *L) {
  lua_pushvalue(L, 1);
  coop__setfuncs(L, functions);
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_getfield(L, 2, "methods");
  lua_newtable(L); /* core.methods.Deferred, shared by the three kinds */
  coop__setfuncs(L, methods);
  for (int k = KIND_DEFERRED; k <= KIND_INLINE; k++) {
    coop__newtype(L, (kind)k, NULL, meta);
    set_index(L, (kind)k);
  }
  lua_newtable(L); /* the metatable of the fresh: the same until it is sealed */
  pushctx(L, CTX_META + KIND_DEFERRED);
  lua_pushvalue(L, -2);
  copy_into(L, lua_gettop(L) - 1);
  lua_pop(L, 2);
  lua_setiuservalue(L, CTX, CTX_FRESH);
  lua_setfield(L, -2, "Deferred");
  lua_settop(L, 2);
}
