/*
** lstream.c - values that flow out of a thread, in order and bounded.
**
** The producer, in a worker, appends copies to 'filling' and waits while there
** is enough. The consumer, in the loop, swaps that with what it has used up: both
** sides take the mutex for a moment only, and the consumer once for many values.
** It is told, by a post, only when it has come to wait.
*/
#include <stdlib.h>

#include "lthreads.h"

enum {
  VALUES_MOST = 1024,     /* that the producer is ahead, and as many are taken */
  BYTES_MOST = 1 << 20
};

struct stream {
  uv_mutex_t mutex; /* over the next block */
  uv_cond_t room;
  bytes filling;
  size_t count;  /* values in it */
  bool waiting;  /* the consumer wants to be told */
  bool posted;   /* the post is on its way */
  bool closed;   /* the consumer wants no more */
  unsigned holders; /* the userdata, the job, the post */

  posted post;
  coop_posts *posts;

  /* the consumer's: */
  bytes taken;
  const char *at; /* the next value in it */
  size_t left;    /* values from there on */
  bool batch;     /* what it waits for */
  int names;      /* of what lists have: so many, in CTX_HOLDS */
  bool over;      /* close() came: what else there is is dropped */
  bool awaited;   /* somebody waits for that and holds the loop: */
  bool done;      /* the job is over, and left this: */
  bool failed;
  bytes value;
  char *trace;
};

typedef struct stream_object {
  object object;
  stream *s;
} stream_object;

enum { STREAM_WAITER = 1, STREAM_NUV = STREAM_WAITER };

void coop__stream_hold(stream *s) {
  uv_mutex_lock(&s->mutex);
  s->holders++;
  uv_mutex_unlock(&s->mutex);
}

void coop__stream_release(stream *s) {
  uv_mutex_lock(&s->mutex);
  bool last = --s->holders == 0;
  uv_mutex_unlock(&s->mutex);
  if (!last) return;
  coop__posts_release(s->posts);
  uv_cond_destroy(&s->room);
  uv_mutex_destroy(&s->mutex);
  coop__bytes_free(&s->filling);
  coop__bytes_free(&s->taken);
  coop__bytes_free(&s->value);
  free(s->trace);
  free(s);
}

void coop__stream_stop(stream *s) {
  uv_mutex_lock(&s->mutex);
  s->closed = true;
  s->waiting = false;
  uv_cond_broadcast(&s->room);
  uv_mutex_unlock(&s->mutex);
}

bool coop__stream_closed(stream *s) {
  uv_mutex_lock(&s->mutex);
  bool closed = s->closed;
  uv_mutex_unlock(&s->mutex);
  return closed;
}

/* --- the producer ------------------------------------------------------------- */

static bool full(const stream *s) {
  return s->count >= VALUES_MOST || (s->count > 0 && s->filling.n >= BYTES_MOST);
}

/* Appends the copy of a value when there is room; false when the stream is closed.
   '*ok' says whether there was memory. */
static bool append(stream *s, const bytes *value, bool *ok) {
  bool tell = false;
  uv_mutex_lock(&s->mutex);
  while (!s->closed && full(s)) uv_cond_wait(&s->room, &s->mutex);
  bool open = !s->closed;
  if (open && (*ok = coop__bytes_add(&s->filling, value->data, value->n))) {
    s->count++;
    tell = s->waiting && !s->posted;
    if (tell) {
      s->waiting = false;
      s->posted = true;
      s->holders++;
    }
  }
  uv_mutex_unlock(&s->mutex);
  if (tell && !coop__posts_push(s->posts, &s->post.item)) coop__stream_release(s);
  return open;
}

/* emit(value): false when nobody wants more. */
static int emit(lua_State *L) {
  stream *s = lua_touserdata(L, lua_upvalueindex(1));
  worker *w = coop__worker(L);
  int bad;
  lua_settop(L, 1);
  w->scratch.n = 0;
  if (!coop__copy_out(L, 1, 1, &w->scratch, &bad)) {
    lua_pushfstring(L, "what flows out of a thread must be a value that can be"
                       " copied (%s)", lua_tostring(L, -1));
    return lua_error(L); /* without a place: it would be one of coop's */
  }
  bool ok = true;
  lua_pushboolean(L, append(s, &w->scratch, &ok));
  return ok ? 1 : luaL_error(L, "not enough memory");
}

void coop__push_producer(lua_State *L, stream *s) {
  lua_getglobal(L, "require");
  lua_pushliteral(L, "coop._worker");
  lua_call(L, 1, 1);
  lua_pushlightuserdata(L, s);
  lua_pushcclosure(L, emit, 1);
}

/* --- the consumer --------------------------------------------------------------- */

/* A body that is closed for collection may still have one that was collected
   before it. */
static stream *check(lua_State *L, const char *fname) {
  stream_object *o = coop__checkkind(L, 1, KIND_STREAM, fname, 0);
  if (!o->s) luaL_error(L, "%s: the stream has been closed", fname);
  return o->s;
}

/* Takes what the producer has left, if the last of it has been used. False when
   there is nothing; then, unless the job is over, the consumer will be told. */
static bool refill(stream *s) {
  if (s->left > 0) return true;
  uv_mutex_lock(&s->mutex);
  if (s->count > 0) {
    bytes empty = s->taken;
    empty.n = 0;
    s->taken = s->filling;
    s->filling = empty;
    s->at = s->taken.data;
    s->left = s->count;
    s->count = 0;
    uv_cond_signal(&s->room);
  } else if (!s->done) {
    s->waiting = true;
  }
  uv_mutex_unlock(&s->mutex);
  return s->left > 0;
}

/* A value that is a list gets its elements by name too, if there are names. */
static void push_value(lua_State *L, stream *s) {
  s->at = coop__copy_in_for(L, s->at, s->names);
  s->left--;
  if (s->names == 0 || !lua_istable(L, -1)) return;
  pushctx(L, CTX_HOLDS);
  lua_rawgetp(L, -1, &s->names);
  for (int i = 1; i <= s->names; i++) { /* stack: value, holds, names */
    lua_rawgeti(L, -1, i);
    lua_rawgeti(L, -4, i);
    lua_rawset(L, -5);
  }
  lua_pop(L, 2);
}

/* Pushes a list of all that has been taken. */
static void push_batch(lua_State *L, stream *s) {
  lua_Integer n = (lua_Integer)s->left;
  lua_createtable(L, (int)n, 1);
  for (lua_Integer i = 1; i <= n; i++) {
    push_value(L, s);
    lua_rawseti(L, -2, i);
  }
  lua_pushinteger(L, n);
  lua_setfield(L, -2, "n");
}

/* Pushes what the consumer gets now; false when it has to wait. */
static bool push_next(lua_State *L, stream *s, bool batch) {
  if (refill(s)) {
    if (batch) push_batch(L, s);
    else push_value(L, s);
    return true;
  }
  if (!s->done && !s->over) return false;
  if (s->failed) {
    s->failed = false; /* told once */
    coop__push_failure(L, &s->value, s->trace);
  } else {
    lua_pushnil(L);
  }
  return true;
}

/* Forgets who waits, if somebody does, and pushes it or nil. [-0, +1, -] */
static void take_waiter(lua_State *L, stream *s) {
  pushctx(L, CTX_HOLDS);
  if (lua_rawgetp(L, -1, s) == LUA_TNIL) {
    lua_remove(L, -2);
    return;
  }
  lua_pushnil(L);
  lua_rawsetp(L, -3, s);
  lua_getiuservalue(L, -1, STREAM_WAITER);
  lua_pushnil(L);
  lua_setiuservalue(L, -3, STREAM_WAITER);
  lua_replace(L, -3);
  lua_pop(L, 1);
  coop__loop_release(&getctx(L)->loop);
}

static void fire_waiter(lua_State *L) {
  deferred *d = todeferred(L, -2);
  if (!(d->flags & D_FIRED)) coop__fire(L, -2);
  else lua_pop(L, 1);
  lua_pop(L, 1);
}

/* There may be something for who waits. */
static void serve(lua_State *L, stream *s) {
  pushctx(L, CTX_HOLDS);
  bool waits = lua_rawgetp(L, -1, s) != LUA_TNIL;
  lua_pop(L, 2);
  if (!waits || !push_next(L, s, s->batch)) return;
  take_waiter(L, s);
  lua_insert(L, -2);
  fire_waiter(L);
}

/* The post: the producer has something. */
static void on_values(lua_State *L, void *ud) {
  stream *s = ud;
  uv_mutex_lock(&s->mutex);
  s->posted = false;
  uv_mutex_unlock(&s->mutex);
  coop__stream_release(s); /* the post's; who waits holds it too */
  pushctx(L, CTX_HOLDS);
  if (lua_rawgetp(L, -1, s) != LUA_TNIL) serve(L, s);
}

/* Fires what when_done has returned. */
static void tell_done(lua_State *L, stream *s) {
  if (s->awaited) {
    s->awaited = false;
    coop__loop_release(&getctx(L)->loop);
  }
  pushctx(L, CTX_HOLDS);
  if (lua_rawgetp(L, -1, &s->done) == LUA_TNIL) {
    lua_pop(L, 2);
    return;
  }
  lua_pushnil(L);
  lua_rawsetp(L, -3, &s->done);
  lua_remove(L, -2);
  lua_pushnil(L);
  fire_waiter(L);
}

void coop__stream_done(lua_State *L, stream *s, job *j) {
  s->done = true;
  s->failed = j->failed && !s->over;
  coop__bytes_move(&s->value, &j->out);
  s->trace = j->trace;
  j->trace = NULL;
  serve(L, s);
  tell_done(L, s);
}

void coop__stream_fail(lua_State *L, stream *s) {
  s->done = true;
  take_waiter(L, s);
  lua_insert(L, -2);
  if (lua_isnil(L, -2)) lua_pop(L, 2);
  else fire_waiter(L);
  tell_done(L, s);
}

/* The canceller of who waits for the stream that is upvalue 2. */
static int cancel_wait(lua_State *L) {
  stream_object *o = lua_touserdata(L, lua_upvalueindex(2));
  lua_settop(L, 1);
  lua_getiuservalue(L, lua_upvalueindex(2), STREAM_WAITER);
  if (!lua_rawequal(L, -1, 1)) return 0;
  uv_mutex_lock(&o->s->mutex);
  o->s->waiting = false;
  uv_mutex_unlock(&o->s->mutex);
  take_waiter(L, o->s);
  return 0;
}

/* A Deferred for the next value or batch. */
static int ask(lua_State *L, const char *fname, bool batch) {
  stream *s = check(L, fname);
  luaL_checkstack(L, 12, fname);
  lua_settop(L, 1);
  if (lua_getiuservalue(L, 1, STREAM_WAITER) != LUA_TNIL)
    return luaL_error(L, "%s: the stream is being waited for already", fname);
  lua_settop(L, 1);
  coop__deferred_new(L); /* 2 */
  if (push_next(L, s, batch)) {
    coop__fire(L, 2);
    lua_settop(L, 2);
    return 1;
  }
  lua_pushvalue(L, CTX);
  lua_pushvalue(L, 1);
  lua_pushcclosure(L, cancel_wait, 2);
  lua_setiuservalue(L, 2, DEFERRED_RESULT); /* the canceller */
  pushctx(L, CTX_HOLDS);
  lua_pushvalue(L, 1);
  lua_rawsetp(L, -2, s);
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  lua_setiuservalue(L, 1, STREAM_WAITER);
  s->batch = batch;
  coop__loop_hold(&getctx(L)->loop);
  return 1;
}

/* stream:next() */
static int stream_next(lua_State *L) { return ask(L, "next", false); }

/* stream:batch() */
static int stream_batch(lua_State *L) { return ask(L, "batch", true); }

/* Pushes a Deferred that fires when the function has ended in its thread. */
static int when_done(lua_State *L, stream *s) {
  lua_settop(L, 1);
  if (s->done) {
    coop__deferred_new(L);
    lua_pushnil(L);
    coop__fire(L, 2);
    return 1;
  }
  pushctx(L, CTX_HOLDS);
  if (lua_rawgetp(L, 2, &s->done) == LUA_TNIL) {
    coop__deferred_new(L);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, 2, &s->done);
  }
  return 1;
}

/* stream:when_done(): the loop lives on until then. */
static int stream_when_done(lua_State *L) {
  stream *s = check(L, "when_done");
  when_done(L, s);
  if (!s->done && !s->awaited) {
    s->awaited = true;
    coop__loop_hold(&getctx(L)->loop);
  }
  return 1;
}

/* core.threads.name(stream, names): lists that come from now on have their elements
   by these names too. */
static int threads_name(lua_State *L) {
  stream *s = check(L, "name");
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  pushctx(L, CTX_HOLDS);
  lua_pushvalue(L, 2);
  lua_rawsetp(L, -2, &s->names);
  s->names = (int)lua_rawlen(L, 2);
  return 0;
}

/* core.threads.done(stream): it does not. */
static int threads_done(lua_State *L) { return when_done(L, check(L, "done")); }

/* The producer is about to end: who waits for that may count on it. */
static void await_end(lua_State *L, stream *s) {
  if (s->done || s->awaited || getctx(L)->closed) return;
  pushctx(L, CTX_HOLDS);
  if (lua_rawgetp(L, -1, &s->done) != LUA_TNIL) {
    s->awaited = true;
    coop__loop_hold(&getctx(L)->loop);
  }
  lua_pop(L, 2);
}

/* stream:close() */
static int stream_close(lua_State *L) {
  stream_object *o = coop__checkkind(L, 1, KIND_STREAM, "close", 0);
  stream *s = o->s;
  if (!s) return 0; /* collected before the body that has it */
  lua_settop(L, 1);
  coop__stream_stop(s);
  await_end(L, s);
  s->over = true;
  s->left = 0;
  s->failed = false;
  uv_mutex_lock(&s->mutex);
  s->count = 0;
  s->filling.n = 0;
  uv_mutex_unlock(&s->mutex);
  take_waiter(L, s);
  if (lua_isnil(L, -1)) return 0;
  lua_pushnil(L);
  fire_waiter(L);
  return 0;
}

static int stream__gc(lua_State *L) {
  stream_object *o = tokind(L, 1, KIND_STREAM);
  if (!o || !o->s) return 0;
  coop__stream_stop(o->s);
  await_end(L, o->s);
  if (o->s->names > 0) {
    pushctx(L, CTX_HOLDS);
    lua_pushnil(L);
    lua_rawsetp(L, -2, &o->s->names);
  }
  coop__stream_release(o->s);
  o->s = NULL;
  return 0;
}

static bool init_stream(stream *s) {
  if (uv_mutex_init(&s->mutex) != 0) return false;
  if (uv_cond_init(&s->room) == 0) return true;
  uv_mutex_destroy(&s->mutex);
  return false;
}

static stream *new_stream(lua_State *L) {
  stream *s = calloc(1, sizeof *s);
  if (!s || !init_stream(s)) {
    free(s);
    luaL_error(L, "not enough memory");
    return NULL;
  }
  s->holders = 1;
  s->post = (posted){.fn = on_values, .ud = s};
  s->posts = getctx(L)->posts;
  coop__posts_hold(s->posts);
  return s;
}

/* Starts the function and arguments at first..top as a stream's producer in the
   pool; the stream is pushed. */
static int start(lua_State *L, pool *p, int first, int self) {
  stream_object *o = coop__new(L, KIND_STREAM, sizeof *o, STREAM_NUV);
  lua_insert(L, 1);
  stream *s = o->s = new_stream(L);
  if (!coop__job_start(L, p, first + 1, self + 1, s, "stream")) {
    s->done = s->failed = true;
    lua_pushliteral(L, "a thread cannot be started");
    int bad, top = lua_gettop(L);
    coop__copy_out(L, top, top, &s->value, &bad);
  }
  lua_settop(L, 1);
  return 1;
}

/* core.threads.stream(f, ...): in a thread of its own, which ends with it */
static int threads_stream(lua_State *L) {
  pool *p = coop__pool_new(L, 1, 1); /* held by the context */
  coop__pool_end(p);
  coop__pool_release(p);
  return start(L, p, 1, 0);
}

/* core.threads.stream_in(pool, f, ...) */
static int threads_stream_in(lua_State *L) {
  return start(L, coop__checkpool(L, 1, "stream", 1), 2, 1);
}

static const luaL_Reg stream_methods[] = {
  {"next", stream_next},
  {"batch", stream_batch},
  {"when_done", stream_when_done},
  {"close", stream_close},
  {NULL, NULL}
};

static const luaL_Reg stream_meta[] = {
  {"__close", stream_close},
  {"__gc", stream__gc},
  {NULL, NULL}
};

static const luaL_Reg core_functions[] = {
  {"stream", threads_stream},
  {"stream_in", threads_stream_in},
  {"done", threads_done},
  {"name", threads_name},
  {NULL, NULL}
};

void coop__open_streams(lua_State *L) {
  coop__newtype(L, KIND_STREAM, stream_methods, stream_meta);
  lua_getfield(L, 2, "threads");
  coop__setfuncs(L, core_functions);
  lua_settop(L, 2);
}
