/*
** lmodule.c - the context, and the module made of all the parts.
**
** There is one context in a state, held by the registry; opening again gives the
** same module. The parts in Lua are embedded: a state needs no search path.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "command.h"
#include "lhandle.h"
#include "parts.h"

const kind_tag coop__kinds[KIND_COUNT] = {
  {"Deferred"}, {"Coroutine"}, {"Deferred"}, {"Failure"}, {"Generator"},
  {"CooperativeTask"}, {"Cooperator"}, {"DelayedCall"}, {"Clock"}, {"Reactor"},
  {"ThreadPool"}, {"ThreadStream"}, {"Fiber"}, {"Guard"}, {"Context"},
  {"Connection"}, {"Listener"}};

static const char registry_key; /* its address: the context */
/* the module, also for another copy of coop in the process, of whose context nothing
   can be said but that it is there */
static const char module_name[] = "coop.module";

/* --- objects -------------------------------------------------------------------- */

void *coop__newfrom(lua_State *L, int slot, kind k, size_t size, int nuv) {
  object *o = lua_newuserdatauv(L, size, nuv);
  memset(o, 0, size);
  o->tag = &coop__kinds[k];
  pushctx(L, slot);
  lua_setmetatable(L, -2);
  if (coop__counted(L)) coop__note_made(L, -1);
  return o;
}

void *coop__new(lua_State *L, kind k, size_t size, int nuv) {
  return coop__newfrom(L, CTX_META + (int)k, k, size, nuv);
}

const char *coop__typename(lua_State *L, int idx) {
  if (lua_type(L, idx) == LUA_TUSERDATA) {
    object *o = toobject(L, idx);
    return o ? o->tag->name : NULL;
  }
  if (lua_type(L, idx) != LUA_TTABLE || !lua_getmetatable(L, idx)) return NULL;
  pushctx(L, CTX_CLASSES);
  lua_insert(L, -2);
  lua_rawget(L, -2);
  const char *name = lua_tostring(L, -1); /* held by the table of classes */
  lua_pop(L, 2);
  return name;
}

void coop__setfuncs(lua_State *L, const luaL_Reg *l) {
  lua_pushvalue(L, CTX);
  luaL_setfuncs(L, l, 1);
}

void coop__newtype(lua_State *L, kind k, const luaL_Reg *methods,
                   const luaL_Reg *meta) {
  lua_newtable(L);
  if (meta) coop__setfuncs(L, meta);
  if (methods) {
    lua_newtable(L);
    coop__setfuncs(L, methods);
    lua_setfield(L, -2, "__index");
  }
  lua_pushfstring(L, "coop.%s", coop__kinds[k].name);
  lua_pushvalue(L, -1);
  lua_setfield(L, -3, "__name");
  lua_setfield(L, -2, "__metatable");
  lua_setiuservalue(L, CTX, CTX_META + (int)k);
}

/* --- misuse ---------------------------------------------------------------------- */

static const char *describe(lua_State *L, int idx) {
  const char *name = coop__typename(L, idx);
  if (name) return name;
  if (lua_type(L, idx) == LUA_TLIGHTUSERDATA) return "light userdata";
  return luaL_typename(L, idx); /* "no value" beyond the top */
}

/* Like luaL_where, of the first from 'level' up that is none of coop's own
   functions in Lua: whom a misuse is blamed on. [-0, +1, m] */
static void where(lua_State *L, int level) {
  lua_Debug ar;
  for (; lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "S", &ar);
    if (strncmp(ar.source, "=[coop.", 7) != 0) break;
  }
  luaL_where(L, level);
}

int coop__argerror(lua_State *L, const char *fname, int arg, const char *why) {
  luaL_checkstack(L, 4, fname);
  where(L, 1);
  if (arg == 0) lua_pushfstring(L, "calling '%s' on bad self (%s)", fname, why);
  else lua_pushfstring(L, "bad argument #%d to '%s' (%s)", arg, fname, why);
  lua_concat(L, 2);
  return lua_error(L);
}

int coop__typeerror(lua_State *L, const char *fname, int arg, int idx,
                    const char *expected) {
  const char *why =
      lua_pushfstring(L, "%s expected, got %s", expected, describe(L, idx));
  return coop__argerror(L, fname, arg, why);
}

void coop__pusherror(lua_State *L, const char *class, const char *message) {
  pushctx(L, CTX_ERRORS);
  lua_getfield(L, -1, class);
  lua_remove(L, -2);
  lua_pushstring(L, message);
  lua_call(L, 1, 1);
}

int coop__raise(lua_State *L, const char *class, const char *fname,
                const char *why) {
  luaL_checkstack(L, 8, fname);
  where(L, 1);
  const char *text = lua_pushfstring(L, "%s%s: %s", lua_tostring(L, -1), fname, why);
  coop__pusherror(L, class, text);
  return lua_error(L);
}

void *coop__checkkind(lua_State *L, int idx, kind k, const char *fname, int arg) {
  void *o = tokind(L, idx, k);
  if (!o) coop__typeerror(L, fname, arg, idx, coop__kinds[k].name);
  return o;
}

double coop__checkseconds(lua_State *L, int idx, const char *fname, int arg) {
  if (lua_type(L, idx) != LUA_TNUMBER)
    coop__typeerror(L, fname, arg, idx, "number of seconds");
  double s = lua_tonumber(L, idx);
  if (!isfinite(s) || s < 0) {
    char text[64];
    snprintf(text, sizeof text, "seconds expected, got %.14g", s);
    coop__argerror(L, fname, arg, text);
  }
  return s;
}

bool coop__callable(lua_State *L, int idx) {
  if (lua_isfunction(L, idx)) return true;
  if (luaL_getmetafield(L, idx, "__call") == LUA_TNIL) return false;
  lua_pop(L, 1);
  return true;
}

lua_Integer coop__checkcount(lua_State *L, int idx, const char *fname, int arg) {
  int exact;
  lua_Integer n = lua_tointegerx(L, idx, &exact);
  if (lua_type(L, idx) != LUA_TNUMBER)
    coop__typeerror(L, fname, arg, idx, "integer of at least 1");
  if (!exact || n < 1)
    coop__argerror(L, fname, arg,
                   lua_pushfstring(L, "integer of at least 1 expected, got %s",
                                   luaL_tolstring(L, idx, NULL)));
  return n;
}

/* --- what the parts in Lua share ------------------------------------------------------ */

static int type_of(lua_State *L) {
  luaL_checkany(L, 1);
  lua_pushstring(L, coop__typename(L, 1));
  return 1;
}

/* core.class(name, methods [, meta]) -> new(fields) */
static int class_new(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_setmetatable(L, 1);
  return 1;
}

static int class(lua_State *L) {
  luaL_checkstring(L, 1);
  lua_settop(L, 3);
  lua_newtable(L); /* the metatable */
  if (lua_istable(L, 3)) {
    lua_pushnil(L);
    while (lua_next(L, 3)) {
      lua_pushvalue(L, -2);
      lua_insert(L, -2);
      lua_rawset(L, 4);
    }
  }
  lua_pushvalue(L, 2);
  lua_setfield(L, 4, "__index");
  lua_pushfstring(L, "coop.%s", lua_tostring(L, 1));
  lua_pushvalue(L, -1);
  lua_setfield(L, 4, "__name");
  lua_setfield(L, 4, "__metatable");
  pushctx(L, CTX_CLASSES);
  lua_pushvalue(L, 4);
  lua_pushvalue(L, 1);
  lua_rawset(L, -3);
  lua_pop(L, 1);
  lua_pushvalue(L, CTX);
  lua_insert(L, -2);
  lua_pushcclosure(L, class_new, 2);
  return 1;
}

/* Raises the string on top, blaming whoever called the public function that
   called the check, by however many functions of coop's own. */
static int blame(lua_State *L) {
  where(L, 1);
  lua_insert(L, -2);
  lua_concat(L, 2);
  return lua_error(L);
}

/* Pushes what came, as check tells it: of a number that had to be of some kind
   of number its value. [-0, +1, m] */
static void pushgot(lua_State *L, int idx, const char *expected) {
  bool value = lua_type(L, idx) == LUA_TNUMBER &&
               (strstr(expected, "number") || strstr(expected, "integer"));
  if (value) luaL_tolstring(L, idx, NULL);
  else lua_pushstring(L, describe(L, idx));
}

/* core.check(fname, n, expected, v) */
static int check(lua_State *L) {
  const char *fname = luaL_checkstring(L, 1), *expected = luaL_checkstring(L, 3);
  int n = (int)luaL_checkinteger(L, 2);
  lua_settop(L, 4);
  pushgot(L, 4, expected);
  const char *got = lua_tostring(L, -1);
  if (n == 0)
    lua_pushfstring(L, "calling '%s' on bad self (%s expected, got %s)", fname,
                    expected, got);
  else
    lua_pushfstring(L, "bad argument #%d to '%s' (%s expected, got %s)", n, fname,
                    expected, got);
  return blame(L);
}

/* core.misuse(fname, message) */
static int misuse(lua_State *L) {
  lua_pushfstring(L, "%s: %s", luaL_checkstring(L, 1), luaL_checkstring(L, 2));
  return blame(L);
}

/* core.raise(class, fname, message) */
static int raise_class(lua_State *L) {
  where(L, 1);
  const char *text = lua_pushfstring(L, "%s%s: %s", lua_tostring(L, -1),
                                     luaL_checkstring(L, 2), luaL_checkstring(L, 3));
  coop__pusherror(L, luaL_checkstring(L, 1), text);
  return lua_error(L);
}

static int is_number(lua_State *L) {
  lua_pushboolean(L, lua_type(L, 1) == LUA_TNUMBER && isfinite(lua_tonumber(L, 1)));
  return 1;
}

static int callable(lua_State *L) {
  lua_pushboolean(L, coop__callable(L, 1));
  return 1;
}

static const luaL_Reg core_functions[] = {
  {"class", class},
  {"check", check},
  {"misuse", misuse},
  {"raise", raise_class},
  {"is_number", is_number},
  {"callable", callable},
  {NULL, NULL}
};

/* --- the parts in Lua -------------------------------------------------------------------- */

static const coop_part *find_part(const char *name) {
  for (const coop_part *p = coop__parts; p->name; p++)
    if (strcmp(p->name, name) == 0) return p;
  return NULL;
}

static void loadpart(lua_State *L, const char *name) {
  const coop_part *p = find_part(name);
  if (!p) luaL_error(L, "coop has no part '%s'", name);
  lua_pushfstring(L, "=[coop.%s]", name);
  if (luaL_loadbufferx(L, (const char *)p->source, p->size, lua_tostring(L, -1),
                       "t") != LUA_OK)
    lua_error(L);
  lua_remove(L, -2);
}

/* Runs an internal part with the module and core tables, at 1 and 2. */
static void runpart(lua_State *L, const char *name) {
  loadpart(L, name);
  lua_pushvalue(L, 1);
  lua_pushvalue(L, 2);
  lua_call(L, 2, 0);
}

/* core.load_part(name): runs an internal part that few programs want. */
static int load_part(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  lua_settop(L, 1);
  pushctx(L, CTX_MODULE);
  pushctx(L, CTX_CORE);
  lua_rotate(L, 1, -1); /* the name stays, behind them */
  runpart(L, name);
  return 0;
}

/* The loader of a public part ("coop.flow") for require: it gets the core too. */
static int public_loader(lua_State *L) {
  loadpart(L, lua_tostring(L, lua_upvalueindex(2)));
  pushctx(L, CTX_MODULE);
  pushctx(L, CTX_CORE);
  lua_call(L, 2, 1);
  return 1;
}

static const char *const internal_parts[] = {"iterator", "timing", "aggregate",
                                             "sync", "accumulate", "census",
                                             "runtime", NULL};

static bool is_internal(const char *name) {
  for (int i = 0; internal_parts[i]; i++)
    if (!strcmp(internal_parts[i], name)) return true;
  return !strcmp(name, "errors") || !strcmp(name, "command") ||
         !strcmp(name, "prompt") || !strcmp(name, "progress") ||
         !strncmp(name, "worker", 6);
}

/* The loader of "coop" itself: the same module again. */
static int module_loader(lua_State *L) {
  pushctx(L, CTX_MODULE);
  return 1;
}

static void preload_public(lua_State *L) {
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  if (!lua_istable(L, -1)) {
    lua_pop(L, 1);
    return;
  }
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, module_loader, 1);
  lua_setfield(L, -2, "coop");
  for (const coop_part *p = coop__parts; p->name; p++) {
    if (is_internal(p->name)) continue;
    lua_pushfstring(L, "coop.%s", p->name);
    lua_pushvalue(L, CTX);
    lua_pushstring(L, p->name);
    lua_pushcclosure(L, public_loader, 2);
    lua_settable(L, -3);
  }
  lua_pop(L, 1);
}

/* --- the context ------------------------------------------------------------------------------ */

coop_context *coop__find(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &registry_key);
  coop_context *ctx = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return ctx;
}

void coop__shut(coop_context *ctx) {
  if (ctx->closed) return;
  coop__threads_stop(ctx);
  coop__posts_close(ctx->posts);
  coop__run_posts(ctx);
  ctx->closed = true;
  coop__interrupts_end(ctx);
  coop__watches_shut(ctx);
  coop__net_shut(ctx);
  coop__outside_shut(ctx);
  coop__screen_shut(ctx->L);
  coop__loop_close(&ctx->loop);
}

static int context__gc(lua_State *L) {
  coop_context *ctx = tokind(L, 1, KIND_CONTEXT);
  if (!ctx) return 0;
  coop__shut(ctx);
  if (ctx->handle) {
    ctx->handle->ctx = NULL;
    if (ctx->loop.lent) ctx->handle->loop = coop__loop_take(&ctx->loop);
  }
  coop__loop_finish(&ctx->loop);
  if (ctx->posts) coop__posts_release(ctx->posts);
  ctx->posts = NULL;
  return 0;
}

static void set_table(lua_State *L, int slot, const char *mode) {
  lua_newtable(L);
  if (mode) {
    lua_createtable(L, 0, 1);
    lua_pushstring(L, mode);
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
  }
  lua_setiuservalue(L, CTX, slot);
}

/* Fills the context: upvalue 1. Leaves module and core at 1 and 2. */
static int fill(lua_State *L) {
  lua_settop(L, 0);
  set_table(L, CTX_MODULE, NULL);
  set_table(L, CTX_CORE, NULL);
  set_table(L, CTX_WORK, NULL);
  set_table(L, CTX_LATER, NULL);
  set_table(L, CTX_GUARDS, "k");
  set_table(L, CTX_DEATHS, "k");
  set_table(L, CTX_POOL, NULL);
  set_table(L, CTX_THREADS, "k");
  set_table(L, CTX_ACTIVE, NULL);
  set_table(L, CTX_COOPERATORS, "k");
  set_table(L, CTX_CLASSES, "k");
  set_table(L, CTX_HOLDS, NULL);
  set_table(L, CTX_PLACES, "k");
  set_table(L, CTX_NAMES, NULL);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, coop__msgh, 1);
  lua_setiuservalue(L, CTX, CTX_MSGH);
  pushctx(L, CTX_MODULE); /* 1 */
  pushctx(L, CTX_CORE);   /* 2 */
  coop__setfuncs(L, core_functions);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, load_part, 1);
  lua_setfield(L, 2, "load_part");
  lua_newtable(L);
  lua_setfield(L, 2, "methods");
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, type_of, 1);
  lua_setfield(L, 1, "type");
  runpart(L, "errors");
  lua_getfield(L, 1, "errors");
  lua_setiuservalue(L, CTX, CTX_ERRORS);
  coop__open_failure(L);
  coop__open_deferred(L);
  coop__open_waits(L);
  coop__open_fiber(L);
  coop__open_coroutine(L);
  coop__open_generator(L);
  coop__open_time(L);
  coop__open_reactor(L);
  coop__open_cooperator(L);
  coop__open_interrupt(L);
  coop__open_net(L);
  coop__open_luv(L);
  coop__open_outside(L);
  coop__open_threads(L);
  coop__open_flow(L);
  coop__open_api(L);
  coop__open_screen(L);
  coop__open_census(L);
  for (int i = 0; internal_parts[i]; i++) runpart(L, internal_parts[i]);
  coop__seal_deferred(L);
  preload_public(L);
  coop__open_handle(L);
  return 0;
}

coop_context *coop__open(lua_State *L, uv_loop_t *uv) {
  coop_context *ctx = coop__find(L);
  if (ctx) return ctx;
  luaL_checkstack(L, 32, "coop");
  if (lua_getfield(L, LUA_REGISTRYINDEX, module_name) != LUA_TNIL)
    luaL_error(L, "another copy of coop is open in this state");
  lua_pop(L, 1);
  coop__open_handles(L);
  int top = lua_gettop(L);
  ctx = lua_newuserdatauv(L, sizeof *ctx, CTX_NUV);
  memset(ctx, 0, sizeof *ctx);
  ctx->object.tag = &coop__kinds[KIND_CONTEXT];
  ctx->closed = true; /* until its loop is open */
  ctx->later_first = 1;
  ctx->until = HUGE_VAL;
  coop__link_init(&ctx->fibers);
  coop__link_init(&ctx->pool.idle);
  coop__link_init(&ctx->active);
  coop__link_init(&ctx->watches);
  coop__link_init(&ctx->outside.closers);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  ctx->L = lua_tothread(L, -1);
  lua_pop(L, 1);
  lua_newtable(L);
  lua_pushcfunction(L, context__gc);
  lua_setfield(L, -2, "__gc");
  lua_pushliteral(L, "coop.Context");
  lua_setfield(L, -2, "__metatable");
  lua_setmetatable(L, -2);
  int e = coop__loop_init(&ctx->loop, uv, NULL, ctx);
  if (e) luaL_error(L, "coop cannot open a loop: %s", uv_strerror(e));
  ctx->posts = coop__posts_new(ctx->loop.async);
  if (!ctx->posts) {
    coop__loop_close(&ctx->loop);
    luaL_error(L, "not enough memory");
  }
  ctx->closed = false;
  lua_pushvalue(L, -1);
  lua_pushcclosure(L, fill, 1);
  if (lua_pcall(L, 0, 0, 0) != LUA_OK) {
    coop__shut(ctx); /* the host's loop is as it was, whenever this is collected */
    lua_pushnil(L);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &ctx->loop);
    lua_pushnil(L);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &ctx->L);
    lua_error(L);
  }
  lua_getiuservalue(L, -1, CTX_MODULE);
  lua_setfield(L, LUA_REGISTRYINDEX, module_name);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &registry_key);
  lua_settop(L, top);
  return ctx;
}

static int push_command(lua_State *L) {
  loadpart(L, "command");
  pushctx(L, CTX_MODULE);
  pushctx(L, CTX_CORE);
  lua_call(L, 2, 1);
  return 1;
}

void coop__push_command(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &registry_key);
  lua_pushcclosure(L, push_command, 1);
  lua_call(L, 0, 1);
}

int luaopen_coop(lua_State *L) {
  luaL_checkversion(L);
  if (lua_getfield(L, LUA_REGISTRYINDEX, module_name) != LUA_TNIL) return 1;
  lua_pop(L, 1);
  coop__open(L, NULL);
  lua_getfield(L, LUA_REGISTRYINDEX, module_name);
  return 1;
}
