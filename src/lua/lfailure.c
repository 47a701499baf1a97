/*
** lfailure.c - an error value with the frames it came from.
**
** The value is never touched. Frames are kept as places and names, which costs
** little, and become a text when somebody asks.
*/
#include <stdio.h>
#include <string.h>

#include "lcoop.h"

enum {
  FRAMES_KEPT = 24,   /* of one stack */
  STACKS_SHOWN = 32,  /* of a failure that many coroutines awaited */
  PARENTS_WALKED = 64 /* of a class: inheritance may be a ring */
};

/* --- frames --------------------------------------------------------------- */

/* Is the function on top one of coop's own, in C or in Lua? */
static bool own(lua_State *L, const lua_Debug *ar) {
  if (*ar->what != 'C') return strncmp(ar->source, "=[coop", 6) == 0;
  if (!lua_getupvalue(L, -1, 1)) return false;
  bool is = lua_touserdata(L, -1) == getctx(L);
  lua_pop(L, 1);
  return is;
}

/* Adds one frame of 'co' to the table on top of L as its n-th: where (false in C),
   line, and a name, or the line of the definition, or true for a main chunk.
   Texts only: a failure keeps nothing of the script alive but its value. */
static int keep_frame(lua_State *L, lua_State *co, lua_Debug *ar, int n) {
  lua_getinfo(co, "nSlf", ar);
  lua_xmove(co, L, 1);
  bool skip = own(L, ar);
  lua_pop(L, 1);
  if (skip) return n;
  if (*ar->what == 'C') lua_pushboolean(L, 0);
  else lua_pushstring(L, ar->short_src);
  lua_rawseti(L, -2, 3 * n + 1);
  lua_pushinteger(L, ar->currentline);
  lua_rawseti(L, -2, 3 * n + 2);
  if (*ar->what == 'm') lua_pushboolean(L, 1);
  else if (ar->name) lua_pushstring(L, ar->name);
  else lua_pushinteger(L, ar->linedefined);
  lua_rawseti(L, -2, 3 * n + 3);
  return n + 1;
}

void coop__capture(lua_State *L, lua_State *co, int level) {
  lua_Debug ar;
  luaL_checkstack(L, 6, "frames");
  if (!lua_checkstack(co, 2) || !lua_getstack(co, level, &ar)) {
    lua_pushnil(L);
  } else {
    lua_createtable(L, 3 * 4, 0);
    for (int n = 0; n < FRAMES_KEPT && lua_getstack(co, level, &ar); level++)
      n = keep_frame(L, co, &ar, n);
  }
  lua_setiuservalue(L, CTX, CTX_FRAMES);
}

bool coop__ownlevel(lua_State *L, lua_State *co, int level) {
  lua_Debug ar;
  if (!lua_checkstack(co, 1) || !lua_getstack(co, level, &ar)) return false;
  lua_getinfo(co, "Sf", &ar);
  lua_xmove(co, L, 1);
  bool is = own(L, &ar);
  lua_pop(L, 1);
  return is;
}

/* Adds a line for the frame 'i' of the table at 'frames' to the buffer. */
static void add_frame(lua_State *L, luaL_Buffer *b, int frames, int i) {
  lua_rawgeti(L, frames, 3 * i + 1);
  lua_rawgeti(L, frames, 3 * i + 2);
  lua_rawgeti(L, frames, 3 * i + 3);
  const char *src = lua_tostring(L, -3);
  int line = (int)lua_tointeger(L, -2);
  if (!src)
    lua_pushfstring(L, "\n\t[C]: in function '%s'",
                    lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "?");
  else if (lua_isboolean(L, -1))
    lua_pushfstring(L, "\n\t%s:%d: in main chunk", src, line);
  else if (lua_type(L, -1) == LUA_TSTRING)
    lua_pushfstring(L, "\n\t%s:%d: in function '%s'", src, line,
                    lua_tostring(L, -1));
  else
    lua_pushfstring(L, "\n\t%s:%d: in function <%s:%d>", src, line, src,
                    (int)lua_tointeger(L, -1));
  lua_replace(L, -4);
  lua_pop(L, 2); /* only the text is left: the buffer is below it */
  luaL_addvalue(b);
}

static void add_frames(lua_State *L, luaL_Buffer *b, int frames) {
  if (lua_isstring(L, frames)) { /* text already: from another thread */
    lua_pushvalue(L, frames);
    luaL_addvalue(b);
    return;
  }
  lua_Integer n = (lua_Integer)lua_rawlen(L, frames) / 3;
  for (int i = 0; i < n; i++) add_frame(L, b, frames, i);
}

/* --- making --------------------------------------------------------------- */

void coop__tofailure(lua_State *L) {
  if (tofailure(L, -1)) return;
  coop__new(L, KIND_FAILURE, sizeof(object), FAILURE_NUV);
  lua_insert(L, -2);
  lua_setiuservalue(L, -2, FAILURE_VALUE);
  pushctx(L, CTX_FRAMES);
  lua_setiuservalue(L, -2, FAILURE_FRAMES);
  lua_pushnil(L);
  lua_setiuservalue(L, CTX, CTX_FRAMES);
}

void coop__raised(lua_State *L, int idx) {
  lua_pushvalue(L, idx);
  lua_setiuservalue(L, CTX, CTX_RAISED);
}

void coop__forget_raised(lua_State *L, lua_State *co, int level) {
  int type = lua_type(co, -1);
  if (type != LUA_TSTRING && type != LUA_TNUMBER && type != LUA_TBOOLEAN &&
      type != LUA_TNIL) return;
  if (coop__ownlevel(L, co, level)) return;
  lua_pushnil(L);
  lua_setiuservalue(L, CTX, CTX_RAISED);
}

/* Pushes the Failure that was raised last if its value is the one on top, else
   nil; it is forgotten. [-0, +1, -] */
static bool pushraised(lua_State *L) {
  int value = lua_gettop(L);
  pushctx(L, CTX_RAISED);
  lua_pushnil(L);
  lua_setiuservalue(L, CTX, CTX_RAISED);
  if (!tofailure(L, -1)) return false;
  lua_getiuservalue(L, -1, FAILURE_VALUE);
  bool same = lua_rawequal(L, -1, value);
  lua_pop(L, 1);
  return same;
}

void coop__caught(lua_State *L, bool awaited) {
  if (tofailure(L, -1)) { /* it has frames of its own */
    lua_pushnil(L);
    lua_setiuservalue(L, CTX, CTX_FRAMES);
    return;
  }
  bool again = pushraised(L);
  if (again && !awaited) { /* raised as it was: the same failure */
    lua_remove(L, -2);
    lua_pushnil(L);
    lua_setiuservalue(L, CTX, CTX_FRAMES);
    return;
  }
  lua_insert(L, -2);
  coop__tofailure(L);
  if (again) {
    lua_pushvalue(L, -2);
    lua_setiuservalue(L, -2, FAILURE_ORIGIN);
  }
  lua_remove(L, -2);
}

int coop__msgh(lua_State *L) {
  coop__capture(L, L, 1);
  coop__forget_raised(L, L, 1);
  lua_settop(L, 1);
  return 1;
}

/* --- text ----------------------------------------------------------------- */

static int tolstring(lua_State *L) {
  luaL_tolstring(L, 1, NULL);
  return 1;
}

/* Pushes the text of the value at 'idx', whatever its __tostring does. */
static void pushtext(lua_State *L, int idx) {
  idx = lua_absindex(L, idx);
  lua_pushcfunction(L, tolstring);
  lua_pushvalue(L, idx);
  if (lua_pcall(L, 1, 1, 0) == LUA_OK) return;
  lua_pop(L, 1);
  lua_pushfstring(L, "(%s: its __tostring failed)", luaL_typename(L, idx));
}

/* Pushes what went wrong in words: the text of a string or of what has a
   __tostring, else the type. */
static void pushmessage(lua_State *L, int idx) {
  int t = lua_type(L, idx);
  pushtext(L, idx);
  if (t == LUA_TSTRING || t == LUA_TNUMBER) return;
  if (luaL_getmetafield(L, idx, "__tostring") != LUA_TNIL) {
    lua_pop(L, 1);
    return;
  }
  lua_pushfstring(L, "(error object is a %s value: %s)", luaL_typename(L, idx),
                  lua_tostring(L, -1));
  lua_remove(L, -2);
}

/* Pushes the text: message, frames of the oldest origin, then those of each
   coroutine that awaited it. Of many, the first and the last are shown. */
static void pushtraceback(lua_State *L, int idx) {
  idx = lua_absindex(L, idx);
  lua_Integer n = 0;
  lua_createtable(L, 4, 0); /* the frames, newest first */
  int list = lua_gettop(L);
  lua_pushvalue(L, idx);
  while (tofailure(L, -1)) {
    if (lua_getiuservalue(L, -1, FAILURE_FRAMES) != LUA_TNIL)
      lua_rawseti(L, list, ++n);
    else
      lua_pop(L, 1);
    lua_getiuservalue(L, -1, FAILURE_ORIGIN);
    lua_remove(L, -2);
  }
  lua_pop(L, 1);
  lua_getiuservalue(L, idx, FAILURE_VALUE);
  pushmessage(L, lua_gettop(L));
  lua_remove(L, -2);
  int message = lua_gettop(L);
  lua_pushnil(L); /* the place of the frames being added */
  luaL_Buffer b;
  luaL_buffinit(L, &b);
  lua_pushvalue(L, message);
  luaL_addvalue(&b);
  luaL_addstring(&b, "\nstack traceback:");
  for (lua_Integer i = n; i >= 1; i--) {
    if (i > STACKS_SHOWN && i < n - STACKS_SHOWN) continue;
    if (i == STACKS_SHOWN && n > 2 * STACKS_SHOWN + 1)
      luaL_addstring(&b, "\n\t...");
    lua_rawgeti(L, list, i);
    lua_replace(L, message + 1);
    if (i < n && lua_rawlen(L, message + 1) == 0) continue; /* all coop's own */
    if (i < n) luaL_addstring(&b, "\n\t(awaited by)");
    add_frames(L, &b, message + 1);
  }
  if (n == 0) luaL_addstring(&b, "\n\t(no frames)");
  luaL_pushresult(&b);
  lua_replace(L, list);
  lua_settop(L, list);
}

static int traceback_p(lua_State *L) {
  pushtraceback(L, 1);
  return 1;
}

/* --- reporting -------------------------------------------------------------- */

/* Calls the reporter at -2 with the Failure on top; pops both. */
static bool report_to(lua_State *L) { return coop__pcall(L, 1, 0, 0); }

static void report_default(lua_State *L) {
  int at = lua_gettop(L);
  coop__pushmade(L, at);
  pushctx(L, CTX_CORE);
  lua_getfield(L, -1, "traceback");
  lua_remove(L, -2);
  lua_pushvalue(L, at);
  if (lua_pcall(L, 1, 1, 0) != LUA_OK) {
    lua_pop(L, 1);
    lua_pushliteral(L, "(no memory for its text)");
  }
  fflush(stdout);
  fputs(coop__colours(2) ? "\033[1;31mcoop: unhandled failure:\033[0m "
                         : "coop: unhandled failure: ",
        stderr);
  fwrite(lua_tostring(L, -1), 1, lua_rawlen(L, -1), stderr);
  if (lua_isstring(L, at + 1))
    fprintf(stderr, "\n\t(of what was made at %s)", lua_tostring(L, at + 1));
  fputc('\n', stderr);
  fflush(stderr);
  lua_settop(L, at - 1);
}

void coop__report(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (!lua_checkstack(L, 8) || ctx->interrupt.exiting) {
    lua_pop(L, 1); /* what os.exit ends has not failed */
    return;
  }
  if (ctx->shutting && coop__iscancelled(L, lua_gettop(L))) {
    lua_pop(L, 1); /* nor has what was ended with coop */
    return;
  }
  if (pushctx(L, CTX_UNHANDLED) != LUA_TNIL) {
    lua_pushvalue(L, -2);
    if (report_to(L)) {
      lua_pop(L, 1);
      return;
    }
  }
  lua_pop(L, 1); /* nil, or the reporter's own error */
  ctx->unhandled++; /* what a script's own function took is not left unhandled */
  report_default(L);
}

static int tofailure_p(lua_State *L) {
  coop__tofailure(L);
  return 1;
}

void coop__reporterror(lua_State *L) {
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, tofailure_p, 1);
  lua_insert(L, -2);
  if (lua_pcall(L, 1, 1, 0) == LUA_OK) coop__report(L);
  else lua_pop(L, 1);
}

/* --- methods ---------------------------------------------------------------- */

static int failure_new(lua_State *L) {
  if (lua_gettop(L) == 0)
    return coop__typeerror(L, "Failure", 1, 1, "value");
  lua_settop(L, 1);
  if (!tofailure(L, 1)) coop__capture(L, L, 1);
  coop__tofailure(L);
  return 1;
}

static int failure_traceback(lua_State *L) {
  coop__checkkind(L, 1, KIND_FAILURE, "traceback", 0);
  pushtraceback(L, 1);
  return 1;
}

static int failure_raise(lua_State *L) {
  coop__checkkind(L, 1, KIND_FAILURE, "raise", 0);
  coop__raised(L, 1);
  lua_getiuservalue(L, 1, FAILURE_VALUE);
  return lua_error(L);
}

/* Replaces the table on top by what it inherits from; false at the end. */
static bool inherit(lua_State *L) {
  if (!lua_istable(L, -1)) return false;
  int mt = lua_gettop(L);
  lua_pushliteral(L, "super");
  if (lua_rawget(L, mt) == LUA_TTABLE) goto found;
  lua_settop(L, mt);
  lua_pushliteral(L, "__index");
  if (lua_rawget(L, mt) == LUA_TTABLE && !lua_rawequal(L, -1, mt)) goto found;
  lua_settop(L, mt);
  if (!lua_getmetatable(L, mt)) return false;
  lua_pushliteral(L, "__index");
  if (lua_rawget(L, -2) != LUA_TTABLE || lua_rawequal(L, -1, mt)) {
    lua_settop(L, mt);
    return false;
  }
found:
  lua_replace(L, mt);
  lua_settop(L, mt);
  return true;
}

/* Is the table at 'class' the metatable of the value at 'v', or inherited? */
static bool instance_of(lua_State *L, int v, int class) {
  int top = lua_gettop(L);
  bool is = false;
  if (lua_getmetatable(L, v)) {
    int left = PARENTS_WALKED;
    do is = lua_rawequal(L, -1, class);
    while (!is && left-- > 0 && inherit(L));
  }
  lua_settop(L, top);
  return is;
}

bool coop__iscancelled(lua_State *L, int idx) {
  int top = lua_gettop(L);
  lua_getiuservalue(L, idx, FAILURE_VALUE);
  pushctx(L, CTX_ERRORS);
  lua_getfield(L, -1, "CancelledError");
  bool is = instance_of(L, top + 1, top + 3);
  lua_settop(L, top);
  return is;
}

static bool has_text(lua_State *L, int v, int s) {
  if (lua_rawequal(L, v, s)) return true;
  pushtext(L, v);
  size_t n, m;
  const char *text = lua_tolstring(L, -1, &n), *part = lua_tolstring(L, s, &m);
  bool found = m == 0;
  for (size_t i = 0; !found && i + m <= n; i++)
    found = memcmp(text + i, part, m) == 0;
  lua_pop(L, 1);
  return found;
}

/* Does the error value at 'v' match what is asked for at 'what'? */
static bool matches(lua_State *L, int v, int what) {
  switch (lua_type(L, what)) {
    case LUA_TTABLE: return instance_of(L, v, what);
    case LUA_TSTRING: return has_text(L, v, what);
    default: {
      lua_pushvalue(L, what);
      lua_pushvalue(L, v);
      lua_call(L, 1, 1);
      bool is = lua_toboolean(L, -1);
      lua_pop(L, 1);
      return is;
    }
  }
}

/* The index of the first argument that matches, or 0. The value is pushed. */
static int match(lua_State *L, const char *fname) {
  coop__checkkind(L, 1, KIND_FAILURE, fname, 0);
  int n = lua_gettop(L);
  for (int i = 2; i <= n; i++)
    if (!lua_istable(L, i) && lua_type(L, i) != LUA_TSTRING &&
        !lua_isfunction(L, i))
      coop__typeerror(L, fname, i - 1, i, "class, string or function");
  luaL_checkstack(L, 8, fname);
  lua_getiuservalue(L, 1, FAILURE_VALUE);
  for (int i = 2; i <= n; i++)
    if (matches(L, n + 1, i)) return i;
  return 0;
}

static int failure_check(lua_State *L) {
  int i = match(L, "check");
  if (i) lua_pushvalue(L, i);
  else lua_pushnil(L);
  return 1;
}

static int failure_trap(lua_State *L) {
  int i = match(L, "trap");
  if (!i) {
    lua_settop(L, 1);
    return failure_raise(L);
  }
  lua_pushvalue(L, i);
  return 1;
}

static int failure__index(lua_State *L) {
  coop__checkkind(L, 1, KIND_FAILURE, "Failure", 0);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL) return 1;
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  if (strcmp(key, "value") == 0) {
    lua_getiuservalue(L, 1, FAILURE_VALUE);
  } else if (lua_getiuservalue(L, 1, FAILURE_FIELDS) == LUA_TTABLE) {
    lua_pushvalue(L, 2);
    lua_rawget(L, -2);
  }
  return 1;
}

/* Further fields may be kept with a failure (as coop.flow does with 'partial');
   what a Failure has of itself stays as it is. */
static int failure__newindex(lua_State *L) {
  coop__checkkind(L, 1, KIND_FAILURE, "Failure", 0);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL ||
      (lua_type(L, 2) == LUA_TSTRING && !strcmp(lua_tostring(L, 2), "value")))
    return luaL_error(L, "a Failure's '%s' cannot be changed",
                      lua_tostring(L, 2));
  luaL_argexpected(L, !lua_isnil(L, 2), 2, "key");
  if (lua_getiuservalue(L, 1, FAILURE_FIELDS) != LUA_TTABLE) {
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, FAILURE_FIELDS);
  }
  lua_pushvalue(L, 2);
  lua_pushvalue(L, 3);
  lua_rawset(L, -3);
  return 0;
}

static int failure__tostring(lua_State *L) {
  coop__checkkind(L, 1, KIND_FAILURE, "tostring", 0);
  lua_getiuservalue(L, 1, FAILURE_VALUE);
  pushmessage(L, lua_gettop(L));
  lua_pushfstring(L, "Failure: %s", lua_tostring(L, -1));
  return 1;
}

static int on_unhandled(lua_State *L) {
  lua_settop(L, 1);
  if (!lua_isnil(L, 1)) coop__checkcallable(L, 1, "on_unhandled", 1);
  if (pushctx(L, CTX_UNHANDLED) == LUA_TNIL) {
    pushctx(L, CTX_CORE);
    lua_getfield(L, -1, "report_default");
  }
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, CTX, CTX_UNHANDLED);
  return 1;
}

static int report_default_l(lua_State *L) {
  lua_settop(L, 1);
  coop__tofailure(L);
  report_default(L);
  return 0;
}

/* --- guards ------------------------------------------------------------------ */

/* A guard is held by nothing but its Deferred (an ephemeron): it is collected
   with it, and then reports the failure that nobody has seen. */

static int guard__gc(lua_State *L) {
  if (!tokind(L, 1, KIND_GUARD)) return 0;
  if (lua_getiuservalue(L, 1, 1) == LUA_TNIL) return 0;
  lua_pushnil(L);
  lua_setiuservalue(L, 1, 1); /* once */
  if (tofailure(L, -1)) coop__report(L);
  return 0;
}

static const luaL_Reg failure_methods[] = {
  {"traceback", failure_traceback},
  {"check", failure_check},
  {"trap", failure_trap},
  {"raise", failure_raise},
  {NULL, NULL}
};

static const luaL_Reg failure_meta[] = {
  {"__tostring", failure__tostring},
  {NULL, NULL}
};

static const luaL_Reg guard_meta[] = {
  {"__gc", guard__gc},
  {NULL, NULL}
};

static const luaL_Reg functions[] = {
  {"Failure", failure_new},
  {"on_unhandled", on_unhandled},
  {NULL, NULL}
};

static const luaL_Reg core_functions[] = {
  {"traceback", traceback_p},
  {"report_default", report_default_l},
  {NULL, NULL}
};

void coop__open_failure(lua_State *L) {
  lua_pushvalue(L, 1);
  coop__setfuncs(L, functions);
  lua_pop(L, 1);
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_pop(L, 1);
  coop__newtype(L, KIND_FAILURE, NULL, failure_meta);
  pushctx(L, CTX_META + KIND_FAILURE);
  lua_newtable(L); /* the methods, for __index and __newindex */
  coop__setfuncs(L, failure_methods);
  lua_pushvalue(L, CTX);
  lua_pushvalue(L, -2);
  lua_pushcclosure(L, failure__index, 2);
  lua_setfield(L, -3, "__index");
  lua_pushvalue(L, CTX);
  lua_insert(L, -2);
  lua_pushcclosure(L, failure__newindex, 2);
  lua_setfield(L, -2, "__newindex");
  lua_pop(L, 1);
  coop__newtype(L, KIND_GUARD, NULL, guard_meta);
}
