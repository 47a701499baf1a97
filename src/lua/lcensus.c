/*
** lcensus.c - what is under way, and where it was made.
**
** Nothing here is kept up to date while a program runs: the lists are drawn up when
** somebody asks, from what the context has anyway. Where a thing was made is known
** only when it was made while the census was on (CTX_PLACES); until then all that
** this costs is a look at one flag for each object.
*/
#include <stdlib.h>
#include <string.h>

#include "lcoop.h"

enum {
  LEVELS_MAX = 32,  /* of a stack, looked at for a place: each costs its depth */
  PASSED_MAX = 200, /* coroutines in one another */
  LOST_MAX = 32     /* records kept of those that were collected waiting */
};

/* --- places --------------------------------------------------------------------- */

/* Fills 'ar' with the source, line and name of the first function of a script in
   'co'; false when there is none near the top. What called the loop has not made what happens in
   it. [-0, +0, -] */
static bool find_script(lua_State *co, lua_Debug *ar, const char *what) {
  for (int level = 0; level < LEVELS_MAX && lua_getstack(co, level, ar); level++) {
    lua_getinfo(co, "S", ar);
    if (*ar->what == 'C') {
      lua_getinfo(co, "f", ar);
      lua_CFunction f = lua_tocfunction(co, -1);
      lua_pop(co, 1);
      if (f == coop__turn_once) return false;
    } else if (strncmp(ar->source, "=[coop", 6) != 0) {
      lua_getinfo(co, what, ar);
      return true;
    }
  }
  return false;
}

/* Pushes the number of the place where the script in L stands: in a coroutine of
   coop's own, of the place that started it; 0 when there is none. Numbers, since the collector goes again and again through a weak table that has
   strings. [-0, +1, m] */
static void pushnumber(lua_State *L) {
  lua_Debug ar;
  if (!find_script(L, &ar, "l")) {
    pushctx(L, CTX_PLACES);
    lua_pushthread(L);
    lua_rawget(L, -2);
    lua_replace(L, -2);
    return;
  }
  pushctx(L, CTX_NAMES);
  lua_pushfstring(L, "%s:%d", ar.short_src, ar.currentline);
  lua_pushvalue(L, -1);
  if (lua_rawget(L, -3) == LUA_TNIL) {
    lua_Integer n = (lua_Integer)lua_rawlen(L, -3) + 1;
    lua_pushvalue(L, -2);
    lua_rawseti(L, -4, n); /* number -> place */
    lua_pop(L, 1);
    lua_pushinteger(L, n);
    lua_insert(L, -2);
    lua_pushvalue(L, -2);
    lua_rawset(L, -4); /* place -> number */
  } else {
    lua_replace(L, -2);
  }
  lua_replace(L, -2);
}

void coop__note_made(lua_State *L, int idx) {
  object *o = lua_touserdata(L, idx);
  kind k = kindof(o);
  if (k == KIND_FAILURE || k == KIND_GUARD || k == KIND_FIBER) return;
  idx = lua_absindex(L, idx);
  luaL_checkstack(L, 8, "census");
  pushctx(L, CTX_PLACES);
  if (k == KIND_CONNECTION || k == KIND_LISTENER) /* libuv knows of no more */
    lua_pushlightuserdata(L, o);
  else
    lua_pushvalue(L, idx);
  pushnumber(L);
  lua_rawset(L, -3);
  lua_pop(L, 1);
}

void coop__note_started(lua_State *L, lua_State *co) {
  luaL_checkstack(L, 8, "census");
  pushctx(L, CTX_PLACES);
  lua_pushthread(co);
  lua_xmove(co, L, 1);
  pushnumber(L);
  lua_rawset(L, -3);
  lua_pop(L, 1);
}

void coop__note_as(lua_State *L, int from, int to) {
  from = lua_absindex(L, from);
  to = lua_absindex(L, to);
  luaL_checkstack(L, 4, "census");
  pushctx(L, CTX_PLACES);
  lua_pushvalue(L, to);
  lua_pushvalue(L, from);
  lua_rawget(L, -3);
  lua_rawset(L, -3);
  lua_pop(L, 1);
}

/* Pushes the place kept for the key on top, or nil. [-1, +1, -] */
static void place_of(lua_State *L) {
  pushctx(L, CTX_PLACES);
  lua_insert(L, -2);
  lua_rawget(L, -2);
  lua_Integer n = lua_tointeger(L, -1);
  lua_pop(L, 2);
  if (n == 0) {
    lua_pushnil(L);
    return;
  }
  pushctx(L, CTX_NAMES);
  lua_rawgeti(L, -1, n);
  lua_remove(L, -2);
}

void coop__pushmade(lua_State *L, int idx) {
  lua_pushvalue(L, idx);
  place_of(L);
}

/* core.made(object): "file:line", or nil. */
static int made(lua_State *L) {
  luaL_checkany(L, 1);
  lua_settop(L, 1);
  if (lua_isnil(L, 1)) return 1;
  place_of(L);
  return 1;
}

/* core.made_as(new, old): the one was made for the other; returns the new one. */
static int made_as(lua_State *L) {
  lua_settop(L, 2);
  if (getctx(L)->census && !lua_isnil(L, 1) && !lua_isnil(L, 2))
    coop__note_as(L, 2, 1);
  lua_settop(L, 1);
  return 1;
}

/* core.note(value): it was made where the caller of the public function stands, if
   the census is on; returns it. */
static int note(lua_State *L) {
  lua_settop(L, 1);
  if (!getctx(L)->census) return 1;
  pushctx(L, CTX_PLACES);
  lua_pushvalue(L, 1);
  pushnumber(L);
  lua_rawset(L, 2);
  lua_settop(L, 1);
  return 1;
}

atomic_bool coop__census_taken;

/* core.census(on): whether places are kept from now on; returns what was before. */
static int census(lua_State *L) {
  coop_context *ctx = getctx(L);
  lua_pushboolean(L, ctx->census);
  ctx->census = lua_toboolean(L, 1);
  if (ctx->census) atomic_store(&coop__census_taken, true);
  return 1;
}

/* --- coroutines that wait ----------------------------------------------------------- */

static void setfield(lua_State *L, const char *name) { lua_setfield(L, -2, name); }

/* Pushes what the C function that 'co' is suspended in has as its first argument:
   that of coroutine.resume the coroutine, of a Generator's next the Generator, of
   coop.await the Deferred. [-0, +(0|1), -] */
static bool pushfirst(lua_State *L, lua_State *co) {
  lua_Debug ar;
  if (!lua_checkstack(co, 4) || !lua_getstack(co, 0, &ar)) return false;
  lua_getinfo(co, "S", &ar);
  if (*ar.what != 'C' || !lua_getlocal(co, &ar, 1)) return false;
  lua_xmove(co, L, 1);
  return true;
}

/* The coroutine in which the wait of 'co' began: its own, or one that the wait has
   passed through. */
static lua_State *innermost(lua_State *L, lua_State *co) {
  for (int depth = 0; depth < PASSED_MAX && pushfirst(L, co); depth++) {
    generator *g = tokind(L, -1, KIND_GENERATOR);
    lua_State *inner = g ? g->co : lua_tothread(L, -1);
    lua_pop(L, 1);
    if (!inner || inner == co || lua_status(inner) != LUA_YIELD) break;
    co = inner;
  }
  return co;
}

/* Adds to the table on top where the thread stands: its place, the function's name
   if it is known, and what it waits for. [-0, +0, m] */
static void add_stand(lua_State *L, lua_State *co) {
  lua_Debug ar;
  if (!lua_checkstack(co, 4)) return;
  if (find_script(co, &ar, "nl")) {
    lua_pushfstring(L, "%s:%d", ar.short_src, ar.currentline);
    setfield(L, "place");
    if (ar.name) {
      lua_pushstring(L, ar.name);
      setfield(L, "name");
    }
  }
  if (!pushfirst(L, co)) return;
  if (todeferred(L, -1)) setfield(L, "on");
  else lua_pop(L, 1);
}

/* Adds the place where the function is written that the thread began with. */
static void add_function(lua_State *L, lua_State *co) {
  lua_Debug ar, first;
  bool found = false;
  for (int level = 0; lua_getstack(co, level, &ar); level++) {
    lua_getinfo(co, "S", &ar);
    if (*ar.what == 'C' || strncmp(ar.source, "=[coop", 6) == 0) continue;
    first = ar;
    found = true;
  }
  if (!found || *first.what == 'm') return;
  lua_pushfstring(L, "%s:%d", first.short_src, first.linedefined);
  setfield(L, "written");
}

/* Pushes the record of a coroutine that waits: { thread, place, name, on, made,
   written }, all but the first may be missing. [-0, +1, m] */
static void pushwait(lua_State *L, lua_State *co) {
  luaL_checkstack(L, 8, "census");
  lua_newtable(L);
  if (!lua_checkstack(co, 2)) return;
  lua_pushthread(co);
  lua_xmove(co, L, 1);
  place_of(L);
  setfield(L, "made");
  lua_pushlightuserdata(L, co); /* its address only: a record keeps nothing alive */
  setfield(L, "thread");
  add_stand(L, innermost(L, co));
  add_function(L, co);
}

/* Calls the C function with the collector stopped: its finalisers would change the
   lists that it walks. [-0, +1, v] */
static int undisturbed(lua_State *L, lua_CFunction f) {
  bool collects = lua_gc(L, LUA_GCISRUNNING) > 0;
  if (collects) lua_gc(L, LUA_GCSTOP);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, f, 1);
  int status = lua_pcall(L, 0, 1, 0);
  if (collects) lua_gc(L, LUA_GCRESTART);
  return status == LUA_OK ? 1 : lua_error(L);
}

static int waits_p(lua_State *L) {
  coop_context *ctx = getctx(L);
  lua_Integer n = 0;
  lua_newtable(L);
  for (coop_link *l = ctx->fibers.next; l != &ctx->fibers; l = l->next) {
    fiber *f = coop_container(l, fiber, link);
    if (!f->waits || !f->co) continue;
    pushwait(L, f->co);
    lua_rawseti(L, 1, ++n);
  }
  return 1;
}

/* core.waits(): the records of all coroutines that wait. */
static int waits(lua_State *L) { return undisturbed(L, waits_p); }

void coop__note_lost(lua_State *L, lua_State *co) {
  if (pushctx(L, CTX_LOST) == LUA_TTABLE && lua_rawlen(L, -1) < LOST_MAX) {
    pushwait(L, co);
    lua_pushnil(L);
    setfield(L, "on"); /* it is collected with the coroutine */
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
  }
  lua_pop(L, 1);
}

/* core.lost(): the records of those that were collected waiting since the last
   call, if the census was on. */
static int lost(lua_State *L) {
  if (pushctx(L, CTX_LOST) != LUA_TTABLE) {
    lua_pop(L, 1);
    lua_newtable(L);
  }
  lua_newtable(L);
  lua_setiuservalue(L, CTX, CTX_LOST);
  return 1;
}

/* core.standing(thread or body): the record of where it stands, or nil. */
static int standing(lua_State *L) {
  deferred *d = todeferred(L, 1);
  lua_State *co = lua_tothread(L, 1);
  if (d && tobody(d)) co = tobody(d)->co;
  if (!co || lua_status(co) != LUA_YIELD) return 0;
  pushwait(L, co);
  return 1;
}

/* core.behind(d): what an unfired Deferred has for a canceller, or the Deferred
   that it has for a result. */
static int behind(lua_State *L) {
  deferred *d = todeferred(L, 1);
  if (!d || (d->flags & D_FIRED && !(d->flags & D_WAITING))) return 0;
  lua_getiuservalue(L, 1, DEFERRED_RESULT);
  return 1;
}

/* core.outcome(d): "value" or "failure" and it, "pending", or "paused". */
static int outcome(lua_State *L) {
  const deferred *d = coop__checkdeferred(L, 1, "outcome", 1);
  if (!(d->flags & D_FIRED) || d->flags & D_WAITING) {
    lua_pushliteral(L, "pending");
    return 1;
  }
  lua_pushstring(L, d->pauses ? "paused" : d->flags & D_FAILED ? "failure" : "value");
  lua_getiuservalue(L, 1, DEFERRED_RESULT);
  return 2;
}

/* --- failures that nobody has seen ------------------------------------------------------ */

/* core.unseen(): the Failures that would be reported when their Deferreds are
   collected; they are not any more. */
static int unseen_p(lua_State *L) {
  lua_Integer n = 0;
  lua_newtable(L);
  pushctx(L, CTX_GUARDS);
  lua_pushnil(L);
  while (lua_next(L, 2)) {
    lua_getiuservalue(L, -1, 1);
    lua_pushnil(L);
    lua_setiuservalue(L, -3, 1);
    if (tofailure(L, -1)) lua_rawseti(L, 1, ++n);
    else lua_pop(L, 1);
    lua_pop(L, 1);
  }
  lua_settop(L, 1);
  return 1;
}

static int unseen(lua_State *L) { return undisturbed(L, unseen_p); }

/* --- handles ------------------------------------------------------------------------------ */

typedef struct handle_walk {
  lua_State *L;
  coop_context *ctx;
  lua_Integer n;
} handle_walk;

/* Is it one that coop always has? */
static bool isinner(const coop_context *ctx, const uv_handle_t *h) {
  const coop_uv *loop = &ctx->loop;
  return h == (uv_handle_t *)loop->timer || h == (uv_handle_t *)loop->idle ||
         h == (uv_handle_t *)loop->check || h == (uv_handle_t *)loop->async ||
         h == (uv_handle_t *)ctx->watchdog;
}

/* Those without a descriptor are there only while they do something. */
static bool isopen(const uv_handle_t *h) {
  switch (h->type) {
    case UV_TIMER: case UV_IDLE: case UV_CHECK: case UV_PREPARE: case UV_ASYNC:
    case UV_SIGNAL: case UV_FS_POLL:
      return uv_is_active(h) && uv_has_ref(h);
    default: return true;
  }
}

static void add_handle(uv_handle_t *h, void *ud) {
  handle_walk *w = ud;
  lua_State *L = w->L;
  if (uv_is_closing(h) || isinner(w->ctx, h) || !isopen(h)) return;
  const object *owner = coop__net_owner(w->ctx, h);
  lua_newtable(L);
  lua_pushlightuserdata(L, h);
  setfield(L, "handle");
  if (owner) {
    lua_pushlightuserdata(L, (void *)(uintptr_t)owner);
    place_of(L);
    setfield(L, "made");
    lua_pushstring(L, owner->tag->name);
  } else {
    const char *name = uv_handle_type_name(h->type);
    lua_pushstring(L, name ? name : "handle");
  }
  setfield(L, "type");
  uv_os_fd_t fd;
  if (uv_fileno(h, &fd) == 0) {
    lua_pushinteger(L, fd);
    setfield(L, "fd");
  }
  lua_rawseti(L, 1, ++w->n);
}

/* What other threads and lookups have yet to fire: the roots that are Deferreds. */
static void add_held(handle_walk *w) {
  lua_State *L = w->L;
  pushctx(L, CTX_HOLDS);
  lua_pushnil(L);
  while (lua_next(L, 2)) {
    const deferred *d = todeferred(L, -1);
    if (d && !(d->flags & D_FIRED) && lua_islightuserdata(L, -2)) {
      lua_newtable(L);
      lua_pushvalue(L, -3);
      setfield(L, "handle");
      lua_pushvalue(L, -2);
      place_of(L);
      setfield(L, "made");
      lua_pushliteral(L, "work");
      setfield(L, "type");
      lua_rawseti(L, 1, ++w->n);
    }
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
}

static int handles_p(lua_State *L) {
  handle_walk w = {.L = L, .ctx = getctx(L)};
  luaL_checkstack(L, 16, "census");
  lua_newtable(L);
  if (w.ctx->closed) return 1;
  uv_walk(w.ctx->loop.uv, add_handle, &w);
  add_held(&w);
  return 1;
}

/* core.handles(): { handle, type, made, fd } of all that is open on the loop. */
static int handles(lua_State *L) { return undisturbed(L, handles_p); }

static void unref_if(uv_handle_t *h, void *which) {
  if (h == which) uv_unref(h);
}

/* core.let_go(handle): if it is there still, it keeps the loop alive no more. */
static int let_go(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (!ctx->closed && lua_islightuserdata(L, 1))
    uv_walk(ctx->loop.uv, unref_if, lua_touserdata(L, 1));
  return 0;
}

/* --- the watchdog -------------------------------------------------------------------------- */

/* A timer that is none of the script's: it keeps no loop alive. */

static void on_watchdog_closed(uv_handle_t *h) { free(h); }

static void close_watchdog(coop_closer *closer) {
  coop_context *ctx = coop_container(closer, coop_context, watchdog_closer);
  uv_close((uv_handle_t *)ctx->watchdog, on_watchdog_closed);
  ctx->watchdog = NULL;
}

static int bark(lua_State *L) {
  coop_context *ctx = getctx(L);
  lua_settop(L, 0);
  ctx->turning = true;
  if (pushctx(L, CTX_WATCH) != LUA_TNIL) lua_call(L, 0, 0);
  coop__run_later(L);
  ctx->turning = false;
  coop__rearm(L);
  return 0;
}

static void on_watchdog(uv_timer_t *t) {
  coop_context *ctx = t->data;
  coop__from_loop(ctx, &ctx->watchdog, NULL);
}

/* core.watch(seconds, f): f is called once when so much time has passed while the
   loop turned; without arguments, nothing is watched any more. */
static int watch(lua_State *L) {
  coop_context *ctx = getctx(L);
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  lua_setiuservalue(L, CTX, CTX_WATCH);
  if (ctx->closed) return 0;
  if (lua_isnil(L, 1)) {
    if (ctx->watchdog) uv_timer_stop(ctx->watchdog);
    return 0;
  }
  double s = coop__checkseconds(L, 1, "watch", 1);
  if (!ctx->watchdog) {
    uv_timer_t *t = malloc(sizeof *t);
    if (!t) return luaL_error(L, "not enough memory");
    lua_pushvalue(L, CTX);
    lua_pushcclosure(L, bark, 1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &ctx->watchdog);
    uv_timer_init(ctx->loop.uv, t);
    uv_unref((uv_handle_t *)t);
    t->data = ctx;
    ctx->watchdog = t;
    ctx->watchdog_closer.close = close_watchdog;
    coop__link_insert(&ctx->outside.closers, &ctx->watchdog_closer.link);
  }
  uv_update_time(ctx->loop.uv);
  uv_timer_start(ctx->watchdog, on_watchdog, s < 1e9 ? (uint64_t)(s * 1e3) : (uint64_t)1e12, 0);
  return 0;
}

/* --- opening -------------------------------------------------------------------------------- */

static const luaL_Reg core_functions[] = {
  {"made", made},
  {"made_as", made_as},
  {"note", note},
  {"census", census},
  {"waits", waits},
  {"lost", lost},
  {"standing", standing},
  {"behind", behind},
  {"outcome", outcome},
  {"unseen", unseen},
  {"handles", handles},
  {"let_go", let_go},
  {"watch", watch},
  {NULL, NULL}
};

void coop__open_census(lua_State *L) {
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_settop(L, 2);
}
