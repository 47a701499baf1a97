/*
** lthreads.c - functions that run in threads, each with a state of its own.
**
** A job goes from the loop to the queue of a pool, to a worker, and as a post
** back to the loop, which alone frees it. CTX_HOLDS has the Deferred of each job
** that somebody waits for, under the address of the job. Threads are detached:
** a pool is gone when its last holder is, and at the end the context waits until
** the workers have left, but not for long.
*/
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coop.h"
#include "lstate.h"
#include "lthreads.h"
#include "parts.h"

enum {
  COMMON_LEAST = 4,     /* threads of the common pool, if the cores are fewer */
  QUEUE_MOST = 1 << 20  /* jobs in a queue, unless told otherwise */
};
static const double patience = 5; /* seconds that a thread has to end */

/* --- the state of a worker ---------------------------------------------------- */

/* Raises at every instruction, until the job has been left. */
static void stop_hook(lua_State *L, lua_Debug *ar) {
  (void)ar;
  worker *w = coop__worker(L);
  uv_mutex_lock(&w->mutex);
  worker_end end = w->end;
  uv_mutex_unlock(&w->mutex);
  switch (end) {
    case GO_ON: lua_sethook(L, NULL, 0, 0); break; /* that was an earlier job */
    case EXIT: luaL_error(L, "the job has ended itself by os.exit"); break;
    case STOP: luaL_error(L, "the thread was stopped"); break;
  }
}

/* Says which coroutine runs, none between jobs. One that is to end is told so. */
static void set_running(worker *w, lua_State *L) {
  uv_mutex_lock(&w->mutex);
  w->running = L;
  if (!L && w->end == EXIT) w->end = GO_ON;
  if (L && w->end != GO_ON) lua_sethook(L, stop_hook, LUA_MASKCOUNT, 1);
  uv_mutex_unlock(&w->mutex);
}

/* With the mutex held. The first coroutine too: one that coop resumes, if the job
   has opened it there, is not known here. */
static void arm(worker *w) {
  if (!w->running) return;
  lua_sethook(w->running, stop_hook, LUA_MASKCOUNT, 1);
  if (w->running != w->L) lua_sethook(w->L, stop_hook, LUA_MASKCOUNT, 1);
}

/* From another thread: whatever the worker runs is to end. The thread that runs
   cannot go away meanwhile: it would first have to take the mutex. */
static void stop_worker(worker *w) {
  uv_mutex_lock(&w->mutex);
  w->end = STOP;
  arm(w);
  uv_mutex_unlock(&w->mutex);
}

static bool is_stopped(worker *w) {
  uv_mutex_lock(&w->mutex);
  bool is = w->end == STOP;
  uv_mutex_unlock(&w->mutex);
  return is;
}

/* Resumes 'co' for L with the 'n' values on top: the number of values that came
   back, pushed, or -1 and the error value. */
static int resume(lua_State *L, lua_State *co, int n) {
  if (!lua_checkstack(co, n)) {
    lua_pushliteral(L, "too many arguments to resume");
    return -1;
  }
  worker *w = coop__worker(L);
  lua_xmove(L, co, n);
  set_running(w, co);
  int nres, status = lua_resume(co, L, n, &nres);
  set_running(w, L);
  if (status != LUA_OK && status != LUA_YIELD) {
    lua_xmove(co, L, 1);
    return -1;
  }
  if (!lua_checkstack(L, nres + 1)) {
    lua_pop(co, nres);
    lua_pushliteral(L, "too many results to resume");
    return -1;
  }
  lua_xmove(co, L, nres);
  return nres;
}

/* coroutine.resume in a worker */
static int co_resume(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTHREAD);
  int n = resume(L, lua_tothread(L, 1), lua_gettop(L) - 1);
  lua_pushboolean(L, n >= 0);
  lua_insert(L, n >= 0 ? -(n + 1) : -2);
  return n >= 0 ? n + 1 : 2;
}

static int wrapped(lua_State *L) {
  lua_State *co = lua_tothread(L, lua_upvalueindex(1));
  int n = resume(L, co, lua_gettop(L));
  if (n >= 0) return n;
  int status = lua_status(co);
  if (status != LUA_OK && status != LUA_YIELD) { /* it died: close it */
    status = closethread(co, L);
    lua_xmove(co, L, 1);
  }
  if (status != LUA_ERRMEM && lua_type(L, -1) == LUA_TSTRING) {
    luaL_where(L, 1);
    lua_insert(L, -2);
    lua_concat(L, 2);
  }
  return lua_error(L);
}

/* coroutine.wrap in a worker */
static int co_wrap(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_State *co = lua_newthread(L);
  lua_pushvalue(L, 1);
  lua_xmove(L, co, 1);
  lua_pushcclosure(L, wrapped, 1);
  return 1;
}

/* os.exit in a worker: ends the job, wherever it is caught. */
static int os_exit(lua_State *L) {
  worker *w = coop__worker(L);
  uv_mutex_lock(&w->mutex);
  if (w->end == GO_ON) w->end = EXIT;
  lua_sethook(L, stop_hook, LUA_MASKCOUNT, 1);
  arm(w);
  uv_mutex_unlock(&w->mutex);
  return luaL_error(L, "the job has ended itself by os.exit");
}

static const coop_part *find_part(const char *name) {
  const coop_part *p = coop__parts;
  while (p->name && strcmp(p->name, name) != 0) p++;
  return p->name ? p : NULL;
}

static int load_part(lua_State *L) {
  const coop_part *p = find_part(lua_tostring(L, lua_upvalueindex(1)));
  lua_pushfstring(L, "=[coop.%s]", p->name);
  if (luaL_loadbufferx(L, (const char *)p->source, p->size, lua_tostring(L, -1),
                       "t") != LUA_OK)
    lua_error(L);
  lua_call(L, 0, 1);
  return 1;
}

static void set_function(lua_State *L, const char *table, const char *name,
                         lua_CFunction f) {
  lua_getglobal(L, table);
  lua_pushcfunction(L, f);
  lua_setfield(L, -2, name);
  lua_pop(L, 1);
}

/* The search paths are those of the parent; require finds coop itself and its
   parts that are for workers. */
static int fill_state(lua_State *L) {
  worker *w = lua_touserdata(L, 1);
  luaL_openlibs(L);
  set_function(L, "coroutine", "resume", co_resume);
  set_function(L, "coroutine", "wrap", co_wrap);
  set_function(L, "os", "exit", os_exit);
  lua_getglobal(L, "package");
  lua_pushstring(L, w->path);
  lua_setfield(L, -2, "path");
  lua_pushstring(L, w->cpath);
  lua_setfield(L, -2, "cpath");
  lua_getfield(L, -1, "preload");
  lua_pushcfunction(L, luaopen_coop);
  lua_setfield(L, -2, "coop");
  for (const coop_part *p = coop__parts; p->name; p++) {
    if (strncmp(p->name, "worker", 6) != 0) continue;
    lua_pushstring(L, p->name);
    lua_pushcclosure(L, load_part, 1);
    lua_pushfstring(L, "coop._%s", p->name);
    lua_insert(L, -2);
    lua_settable(L, -3);
  }
  return 0;
}

static lua_State *new_state(worker *w) {
  lua_State *L = coop__state_new();
  if (!L) return NULL;
  *(worker **)lua_getextraspace(L) = w;
  lua_gc(L, LUA_GCGEN, 0, 0);
  lua_pushcfunction(L, fill_state);
  lua_pushlightuserdata(L, w);
  if (lua_pcall(L, 1, 0, 0) == LUA_OK) return L;
  coop__state_close(L);
  return NULL;
}

/* --- running a job ----------------------------------------------------------------- */

static char *copy_text(const char *s) {
  size_t n = strlen(s) + 1;
  char *copy = malloc(n);
  return copy ? memcpy(copy, s, n) : NULL;
}

/* Does the line name a place that is coop's own, or the bottom of the stack? */
static bool own_line(const char *line, size_t n) {
  static const char bottom[] = "\t[C]: in ?";
  if (n == sizeof bottom - 1 && memcmp(line, bottom, n) == 0) return true;
  for (size_t i = 0; i + 6 <= n; i++)
    if (memcmp(line + i, "[coop.", 6) == 0) return true;
  return false;
}

/* Keeps the frames of 'co', from 'level' on, as the traceback of the error. */
static void keep_trace(lua_State *L, lua_State *co, int level) {
  worker *w = coop__worker(L);
  luaL_traceback(L, co, NULL, level);
  const char *s = lua_tostring(L, -1);
  char *text = malloc(lua_rawlen(L, -1) + 2), *end = text;
  for (const char *line = strchr(s, '\n'); text && line; ) {
    size_t n = strcspn(++line, "\n");
    if (!own_line(line, n)) {
      *end++ = '\n';
      memcpy(end, line, n);
      end += n;
    }
    line = line[n] ? line + n : NULL;
  }
  if (text) *end = '\0';
  free(w->trace);
  w->trace = text;
  lua_pop(L, 1);
}

static int on_error(lua_State *L) {
  if (!coop__worker(L)->trace) keep_trace(L, L, 1);
  return 1;
}

/* fail(co, value): raises what ended the coroutine, with its frames. */
static int fail(lua_State *L) {
  keep_trace(L, lua_tothread(L, 1), 0);
  lua_settop(L, 2);
  return lua_error(L);
}

/* Copies the function and the arguments in, calls it, and copies the result. */
static int run_job(lua_State *L) {
  job *j = lua_touserdata(L, 1);
  worker *w = coop__worker(L);
  lua_settop(L, 0);
  if (j->stream) {
    if (coop__stream_closed(j->stream)) return 0; /* nobody wants it any more */
    coop__push_producer(L, j->stream);
    lua_pushcfunction(L, fail);
  }
  coop__copy_in(L, j->in.data, j->nin);
  lua_call(L, lua_gettop(L) - 1, 1);
  int bad;
  w->scratch.n = 0;
  if (!coop__copy_out(L, 1, 1, &w->scratch, &bad))
    return luaL_error(L, "the result of a thread must be a value that can be copied"
                         " (%s)", lua_tostring(L, -1));
  return 0;
}

static int push_text(lua_State *L) {
  luaL_tolstring(L, 1, NULL);
  return 1;
}

/* Copies the error value at 1, or what it says. */
static int copy_error(lua_State *L) {
  worker *w = coop__worker(L);
  int bad;
  lua_settop(L, 1);
  w->scratch.n = 0;
  if (coop__copy_out(L, 1, 1, &w->scratch, &bad)) return 0;
  w->scratch.n = 0;
  lua_settop(L, 1);
  lua_pushcfunction(L, push_text);
  lua_pushvalue(L, 1);
  int status = lua_pcall(L, 1, 1, 0);
  if (status == LUA_ERRMEM) return lua_error(L);
  if (status != LUA_OK)
    lua_pushfstring(L, "the error value, a %s, can neither be copied nor made into"
                       " a text", luaL_typename(L, 1));
  lua_replace(L, 1);
  lua_settop(L, 1);
  coop__copy_out(L, 1, 1, &w->scratch, &bad);
  return 0;
}

static void do_job(worker *w, job *j) {
  if (!w->L) w->L = new_state(w);
  lua_State *L = w->L;
  j->failed = true;
  if (!L) return; /* without a value: there was no memory for it */
  lua_settop(L, 0);
  set_running(w, L);
  lua_pushcfunction(L, on_error);
  lua_pushcfunction(L, run_job);
  lua_pushlightuserdata(L, j);
  j->failed = lua_pcall(L, 1, 0, 1) != LUA_OK;
  set_running(w, NULL);
  lua_sethook(L, NULL, 0, 0);
  bool copied = true;
  j->stopped = j->failed && is_stopped(w);
  if (j->failed) {
    lua_pushcfunction(L, copy_error);
    lua_insert(L, -2);
    copied = lua_pcall(L, 1, 0, 0) == LUA_OK;
    j->trace = w->trace;
  } else {
    free(w->trace); /* of an error that was caught */
  }
  w->trace = NULL;
  if (copied) coop__bytes_move(&j->out, &w->scratch);
  lua_settop(L, 0);
}

/* --- workers --------------------------------------------------------------------------- */

static void free_worker(worker *w) {
  if (w->L) coop__state_close(w->L);
  coop__bytes_free(&w->scratch);
  uv_mutex_destroy(&w->mutex);
  free(w->path);
  free(w->cpath);
  free(w);
}

/* With the mutex held: takes the next job when there is one, else waits; NULL at
   the end. */
static job *next_job(pool *p) {
  while (coop__link_alone(&p->queue)) {
    if (p->ending || p->stopping) return NULL;
    p->idle++;
    uv_cond_wait(&p->work, &p->mutex);
    p->idle--;
  }
  if (p->stopping) return NULL;
  job *j = coop_container(p->queue.next, job, link);
  coop__link_remove(&j->link);
  p->queued--;
  j->state = JOB_RUNS;
  return j;
}

/* With the mutex held, which is let go: one holder less. */
static void unlock_and_release(pool *p) {
  bool last = --p->holders == 0;
  uv_mutex_unlock(&p->mutex);
  if (!last) return;
  coop__posts_release(p->posts);
  uv_cond_destroy(&p->work);
  uv_cond_destroy(&p->gone);
  uv_mutex_destroy(&p->mutex);
  free(p);
}

void coop__pool_release(pool *p) {
  uv_mutex_lock(&p->mutex);
  unlock_and_release(p);
}

static void free_job(job *j) {
  pool *p = j->pool;
  if (j->stream) coop__stream_release(j->stream);
  coop__bytes_free(&j->in);
  coop__bytes_free(&j->out);
  free(j->trace);
  free(j);
  coop__pool_release(p);
}

/* Where a thread begins and ends. */
static void *work(void *ud) {
  worker *w = ud;
  pool *p = w->pool;
  uv_mutex_lock(&p->mutex);
  while ((w->job = next_job(p)) != NULL) {
    job *j = w->job;
    uv_mutex_unlock(&p->mutex);
    do_job(w, j);
    uv_mutex_lock(&p->mutex);
    w->job = NULL;
    uv_mutex_unlock(&p->mutex);
    if (!coop__posts_push(p->posts, &j->post.item)) free_job(j);
    uv_mutex_lock(&p->mutex);
  }
  coop__link_remove(&w->link);
  uv_mutex_unlock(&p->mutex);
  free_worker(w);
  uv_mutex_lock(&p->mutex);
  p->count--;
  uv_cond_broadcast(&p->gone);
  unlock_and_release(p);
  return NULL;
}

/* Starts a detached thread in which no signal is handled: those are the host's. */
static int start_thread(worker *w) {
  pthread_t thread;
  pthread_attr_t attributes;
  sigset_t all, before;
  sigfillset(&all);
  if (pthread_attr_init(&attributes) != 0) return -1;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int e = pthread_create(&thread, &attributes, work, w);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return e;
}

/* Pushes where modules are looked for, package[name]. [-0, +1, e] */
static const char *push_path(lua_State *L, const char *name) {
  int top = lua_gettop(L);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_getfield(L, -1, "package");
  if (lua_istable(L, -1)) lua_getfield(L, -1, name);
  if (lua_type(L, -1) != LUA_TSTRING) lua_pushliteral(L, "");
  lua_replace(L, top + 1);
  lua_settop(L, top + 1);
  return lua_tostring(L, -1);
}

static worker *new_worker(pool *p, const char *path, const char *cpath) {
  worker *w = calloc(1, sizeof *w);
  if (!w) return NULL;
  coop__link_init(&w->link);
  w->pool = p;
  w->path = copy_text(path);
  w->cpath = copy_text(cpath);
  if (w->path && w->cpath && uv_mutex_init(&w->mutex) == 0) return w;
  free(w->path);
  free(w->cpath);
  free(w);
  return NULL;
}

/* One more worker; only the loop's thread adds any. */
static bool add_worker(pool *p, const char *path, const char *cpath) {
  worker *w = new_worker(p, path, cpath);
  if (!w) return false;
  uv_mutex_lock(&p->mutex);
  bool ok = start_thread(w) == 0;
  if (ok) {
    coop__link_insert(&p->workers, &w->link);
    p->count++;
    p->holders++;
  }
  uv_mutex_unlock(&p->mutex);
  if (!ok) free_worker(w);
  return ok;
}

/* --- pools -------------------------------------------------------------------------------- */

static threads *get_threads(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (ctx->closed || (ctx->threads && ctx->threads->closing))
    luaL_error(L, "coop has been closed in this state");
  if (!ctx->threads) {
    ctx->threads = calloc(1, sizeof *ctx->threads);
    if (!ctx->threads) luaL_error(L, "not enough memory");
    coop__link_init(&ctx->threads->pools);
  }
  return ctx->threads;
}

/* Takes the pools whose workers have all left off the list. */
static void sweep(threads *t) {
  for (coop_link *l = t->pools.next, *next; l != &t->pools; l = next) {
    pool *p = coop_container(l, pool, link);
    next = l->next;
    uv_mutex_lock(&p->mutex);
    bool over = p->ending && p->count == 0 && coop__link_alone(&p->flights);
    uv_mutex_unlock(&p->mutex);
    if (!over) continue;
    coop__link_remove(l);
    coop__pool_release(p);
  }
}

static bool init_locks(pool *p) {
  if (uv_mutex_init(&p->mutex) != 0) return false;
  if (uv_cond_init(&p->work) == 0) {
    if (uv_cond_init(&p->gone) == 0) return true;
    uv_cond_destroy(&p->work);
  }
  uv_mutex_destroy(&p->mutex);
  return false;
}

pool *coop__pool_new(lua_State *L, unsigned limit, size_t most) {
  threads *t = get_threads(L);
  sweep(t);
  pool *p = calloc(1, sizeof *p);
  if (!p || !init_locks(p)) {
    free(p);
    luaL_error(L, "not enough memory");
    return NULL;
  }
  coop__link_init(&p->queue);
  coop__link_init(&p->workers);
  coop__link_init(&p->flights);
  p->limit = limit;
  p->most = most;
  p->holders = 2;
  p->posts = getctx(L)->posts;
  coop__posts_hold(p->posts);
  coop__link_init(&p->link);
  coop__link_insert(&t->pools, &p->link);
  return p;
}

void coop__pool_end(pool *p) {
  uv_mutex_lock(&p->mutex);
  p->ending = true;
  uv_cond_broadcast(&p->work);
  uv_mutex_unlock(&p->mutex);
}

typedef struct pool_object {
  object object;
  pool *pool;
} pool_object;

enum { POOL_CLOSED = 1, POOL_NUV = POOL_CLOSED }; /* what close() has returned */

pool *coop__checkpool(lua_State *L, int idx, const char *fname, int arg) {
  pool_object *o = coop__checkkind(L, idx, KIND_POOL, fname, arg);
  if (!o->pool) luaL_error(L, "%s: the pool is closed", fname);
  return o->pool;
}

/* --- jobs in flight -------------------------------------------------------------------------- */

/* Pushes what waits for 'key' and forgets it. [-0, +1, m] */
static void take_held(lua_State *L, const void *key) {
  pushctx(L, CTX_HOLDS);
  lua_rawgetp(L, -1, key);
  lua_pushnil(L);
  lua_rawsetp(L, -3, key); /* the key is there: takes no memory */
  lua_remove(L, -2);
}

static void hold_for(lua_State *L, const void *key, int idx) {
  idx = lua_absindex(L, idx);
  pushctx(L, CTX_HOLDS);
  lua_pushvalue(L, idx);
  lua_rawsetp(L, -2, key);
  lua_pop(L, 1);
}

/* Fires the Deferred just below the top with what is on top, unless it has fired.
   [-2, +0, m] */
static void fire(lua_State *L) {
  deferred *d = todeferred(L, -2);
  if (d && !(d->flags & D_FIRED)) coop__fire(L, -2);
  else lua_pop(L, 1);
  lua_pop(L, 1);
}

void coop__push_failure(lua_State *L, const bytes *value, const char *trace) {
  if (value->data) coop__copy_in(L, value->data, 1);
  else lua_pushliteral(L, "not enough memory");
  lua_pushnil(L);
  lua_setiuservalue(L, CTX, CTX_FRAMES);
  if (tofailure(L, -1)) return;
  coop__tofailure(L);
  lua_pushfstring(L, "%s\n\t(in another thread)", trace ? trace : "");
  lua_setiuservalue(L, -2, FAILURE_FRAMES);
}

/* The pool of a job that is no longer in flight: is that what close() waits for? */
static void landed(lua_State *L, pool *p) {
  if (!p->awaited || !coop__link_alone(&p->flights)) return;
  p->awaited = false;
  coop__loop_release(&getctx(L)->loop);
  take_held(L, p);
  lua_pushnil(L);
  fire(L);
}

/* fail_job(job, why): who waits for it gets a CancelledError. */
static int fail_job(lua_State *L) {
  job *j = lua_touserdata(L, 1);
  if (!j->stream) take_held(L, j);
  coop__pusherror(L, "CancelledError", lua_tostring(L, 2));
  coop__tofailure(L);
  if (j->stream) coop__stream_fail(L, j->stream);
  else fire(L);
  return 0;
}

/* deliver(job): fires its Deferred. */
static int deliver(lua_State *L) {
  job *j = lua_touserdata(L, 1);
  if (j->stopped) {
    lua_pushliteral(L, "the thread was stopped");
    return fail_job(L);
  }
  if (j->stream) {
    coop__stream_done(L, j->stream, j);
    return 0;
  }
  take_held(L, j);
  if (j->failed) coop__push_failure(L, &j->out, j->trace);
  else coop__copy_in(L, j->out.data, 1);
  fire(L);
  return 0;
}

/* Nobody waits for the job any more: the loop need not live on for it. */
static void drop(lua_State *L, job *j) {
  if (j->dropped) return;
  j->dropped = true;
  if (!j->stream) coop__loop_release(&getctx(L)->loop);
}

static void on_done(lua_State *L, void *ud) {
  job *j = ud;
  pool *p = j->pool;
  coop__link_remove(&j->flight);
  bool dropped = j->dropped;
  drop(L, j);
  int status = LUA_OK;
  if (!dropped || j->stream) {
    lua_pushvalue(L, CTX);
    lua_pushcclosure(L, deliver, 1);
    lua_pushlightuserdata(L, j);
    status = lua_pcall(L, 1, 0, 0);
  }
  landed(L, p);
  free_job(j); /* and lets go of the pool: what is called may sweep */
  if (status != LUA_OK) lua_error(L);
}

/* The canceller of the job that is upvalue 2. */
static int cancel_job(lua_State *L) {
  job *j = lua_touserdata(L, lua_upvalueindex(2));
  lua_settop(L, 1);
  pushctx(L, CTX_HOLDS);
  lua_rawgetp(L, -1, j);
  if (!lua_rawequal(L, -1, 1)) return 0; /* it is not there any more */
  take_held(L, j);
  pool *p = j->pool;
  uv_mutex_lock(&p->mutex);
  bool queued = j->state == JOB_QUEUED;
  if (queued) {
    coop__link_remove(&j->link);
    p->queued--;
  }
  uv_mutex_unlock(&p->mutex);
  drop(L, j);
  if (!queued) return 0; /* it runs, for nothing */
  coop__link_remove(&j->flight);
  landed(L, p);
  free_job(j);
  return 0;
}

static job *new_job(lua_State *L, pool *p, stream *s, int nin) {
  job *j = calloc(1, sizeof *j);
  if (!j) {
    luaL_error(L, "not enough memory");
    return NULL;
  }
  coop__link_init(&j->link);
  coop__link_init(&j->flight);
  j->post = (posted){.fn = on_done, .ud = j};
  j->pool = p;
  j->stream = s;
  if (s) coop__stream_hold(s);
  j->nin = nin;
  j->state = JOB_QUEUED;
  coop__bytes_move(&j->in, &getctx(L)->threads->scratch);
  return j;
}

/* Puts the job into the queue; true when another worker should see to it. */
static bool enqueue(pool *p, job *j) {
  uv_mutex_lock(&p->mutex);
  coop__link_insert(&p->queue, &j->link);
  p->holders++; /* the job */
  p->queued++;
  bool more = p->queued > p->idle && p->count < p->limit;
  uv_cond_signal(&p->work);
  uv_mutex_unlock(&p->mutex);
  return more;
}

/* Takes the job out of the queue if there is nobody to do it. */
static bool strand(pool *p, job *j) {
  uv_mutex_lock(&p->mutex);
  bool stranded = p->count == 0;
  if (stranded) {
    coop__link_remove(&j->link);
    p->queued--;
  }
  uv_mutex_unlock(&p->mutex);
  return stranded;
}

/* Raises unless the pool takes the function and arguments at 'first'..top, which
   are copied to the scratch. */
static void check_job(lua_State *L, pool *p, int first, int self,
                      const char *fname) {
  threads *t = get_threads(L);
  int bad, top = lua_gettop(L);
  if (!lua_isfunction(L, first))
    coop__typeerror(L, fname, first - self, first, "function");
  t->scratch.n = 0;
  if (!coop__copy_out(L, first, top, &t->scratch, &bad))
    coop__argerror(L, fname, bad - self,
                   lua_pushfstring(L, "value that can be copied expected, %s",
                                   lua_tostring(L, -1)));
  uv_mutex_lock(&p->mutex);
  bool full = p->queued >= p->most;
  uv_mutex_unlock(&p->mutex);
  if (full)
    coop__raise(L, "QueueOverflow", fname,
                lua_pushfstring(L, "%I jobs wait already", (LUAI_UACINT)p->most));
}

job *coop__job_start(lua_State *L, pool *p, int first, int self, stream *s,
                     const char *fname) {
  int top = lua_gettop(L);
  check_job(L, p, first, self, fname);
  const char *path = push_path(L, "path"), *cpath = push_path(L, "cpath");
  job *j = new_job(L, p, s, top - first + 1);
  coop__link_insert(&p->flights, &j->flight);
  if (enqueue(p, j) && !add_worker(p, path, cpath) && strand(p, j)) {
    coop__link_remove(&j->flight);
    free_job(j);
    j = NULL;
  }
  lua_settop(L, top);
  return j;
}

/* Pushes a Deferred for the outcome of the function and arguments at 'first'..top:
   what pool:call returns. */
static int call(lua_State *L, pool *p, int first, int self) {
  coop_context *ctx = getctx(L);
  coop__deferred_new(L);
  lua_insert(L, 1);
  job *j = coop__job_start(L, p, first + 1, self + 1, NULL, "call");
  if (!j) {
    lua_settop(L, 1);
    lua_pushliteral(L, "a thread cannot be started");
    coop__tofailure(L);
    coop__fire(L, 1);
    return 1;
  }
  coop__loop_hold(&ctx->loop);
  lua_settop(L, 1);
  lua_pushvalue(L, CTX);
  lua_pushlightuserdata(L, j);
  lua_pushcclosure(L, cancel_job, 2);
  lua_setiuservalue(L, 1, DEFERRED_RESULT); /* the canceller */
  hold_for(L, j, 1);
  return 1;
}

/* --- Lua: threads and pools -------------------------------------------------------------------- */

/* threads.call(f, ...) */
static int threads_call(lua_State *L) {
  threads *t = get_threads(L);
  if (!t->common) {
    unsigned cores = uv_available_parallelism();
    t->common = coop__pool_new(L, cores > COMMON_LEAST ? cores : COMMON_LEAST,
                               QUEUE_MOST);
  }
  return call(L, t->common, 1, 0);
}

/* pool:call(f, ...) */
static int pool_call(lua_State *L) {
  pool *p = coop__checkpool(L, 1, "call", 0);
  return call(L, p, 2, 1);
}

static unsigned check_limit(lua_State *L, int idx, const char *fname) {
  lua_Integer n = coop__checkcount(L, idx, fname, idx);
  if (n > 10000)
    coop__argerror(L, fname, idx,
                   lua_pushfstring(L, "at most 10000 threads expected, got %I",
                                   (LUAI_UACINT)n));
  return (unsigned)n;
}

/* threads.Pool(n [, most]) */
static int pool_open(lua_State *L) {
  unsigned limit = check_limit(L, 1, "Pool");
  lua_Integer most = lua_isnoneornil(L, 2) ? QUEUE_MOST
                                           : coop__checkcount(L, 2, "Pool", 2);
  pool_object *o = coop__new(L, KIND_POOL, sizeof *o, POOL_NUV);
  o->pool = coop__pool_new(L, limit, (size_t)most);
  return 1;
}

/* The queued jobs of the pool, to be failed. */
static void take_queue(pool *p, coop_link *to) {
  coop__link_init(to);
  uv_mutex_lock(&p->mutex);
  while (!coop__link_alone(&p->queue)) {
    coop_link *l = p->queue.next;
    coop__link_remove(l);
    coop__link_insert(to, l);
    coop_container(l, job, link)->state = JOB_REFUSED;
  }
  p->queued = 0;
  uv_mutex_unlock(&p->mutex);
}

/* Fails what waits for the job; no error comes out. */
static void fail_quietly(lua_State *L, job *j, const char *why) {
  if (j->dropped) return;
  drop(L, j);
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, fail_job, 1);
  lua_pushlightuserdata(L, j);
  lua_pushstring(L, why);
  if (lua_pcall(L, 2, 0, 0) != LUA_OK) coop__reporterror(L);
}

static void fail_queue(lua_State *L, coop_link *queue, const char *why) {
  while (!coop__link_alone(queue)) {
    job *j = coop_container(queue->next, job, link);
    coop__link_remove(&j->link);
    coop__link_remove(&j->flight);
    fail_quietly(L, j, why);
    free_job(j);
  }
}

/* pool:close() */
static int pool_close(lua_State *L) {
  pool_object *o = coop__checkkind(L, 1, KIND_POOL, "close", 0);
  pool *p = o->pool;
  lua_settop(L, 1);
  if (!p) {
    lua_getiuservalue(L, 1, POOL_CLOSED);
    return 1;
  }
  luaL_checkstack(L, 12, "close");
  coop__deferred_new(L); /* 2 */
  lua_pushvalue(L, 2);
  lua_setiuservalue(L, 1, POOL_CLOSED);
  hold_for(L, p, 2);
  o->pool = NULL;
  p->awaited = true;
  coop__loop_hold(&getctx(L)->loop);
  coop__pool_end(p);
  coop_link queue;
  take_queue(p, &queue);
  fail_queue(L, &queue, "the pool was closed");
  landed(L, p);
  coop__pool_release(p);
  lua_settop(L, 2);
  return 1;
}

static int pool__close(lua_State *L) {
  lua_settop(L, 1);
  pool_close(L);
  return 0;
}

/* Nobody can give it more jobs; those that it has are done. */
static int pool__gc(lua_State *L) {
  pool_object *o = tokind(L, 1, KIND_POOL);
  if (!o || !o->pool) return 0;
  coop__pool_end(o->pool);
  coop__pool_release(o->pool);
  o->pool = NULL;
  return 0;
}

/* core.threads.limit(pool): how many threads it may have; nil when it is closed */
static int pool_limit(lua_State *L) {
  pool_object *o = coop__checkkind(L, 1, KIND_POOL, "map", 0);
  if (!o->pool) return 0;
  lua_pushinteger(L, o->pool->limit);
  return 1;
}

/* core.threads.fault(v): why v cannot be copied, or nil */
static int fault(lua_State *L) {
  threads *t = get_threads(L);
  int bad;
  luaL_checkany(L, 1);
  t->scratch.n = 0;
  return coop__copy_out(L, 1, 1, &t->scratch, &bad) ? 0 : 1;
}

/* --- the end --------------------------------------------------------------------------------------- */

static void stop_pool(pool *p) {
  uv_mutex_lock(&p->mutex);
  p->ending = p->stopping = true;
  uv_cond_broadcast(&p->work);
  for (coop_link *l = p->workers.next; l != &p->workers; l = l->next) {
    worker *w = coop_container(l, worker, link);
    stop_worker(w); /* first: what waits in a stream then raises */
    if (w->job && w->job->stream) coop__stream_stop(w->job->stream);
  }
  uv_mutex_unlock(&p->mutex);
}

/* Waits for the workers until 'deadline': how many are left then. */
static unsigned await_pool(pool *p, double deadline) {
  uv_mutex_lock(&p->mutex);
  while (p->count > 0) {
    double left = deadline - coop__now();
    if (left <= 0) break;
    uv_cond_timedwait(&p->gone, &p->mutex, (uint64_t)(left * 1e9));
  }
  unsigned count = p->count;
  uv_mutex_unlock(&p->mutex);
  return count;
}

/* settle(): what the workers have left behind reaches those who wait for it; so
   does that there will be nothing more. */
static int settle(lua_State *L) {
  threads *t = getctx(L)->threads;
  coop__run_last_posts(getctx(L));
  for (coop_link *l = t->pools.next; l != &t->pools; l = l->next) {
    pool *p = coop_container(l, pool, link);
    coop_link queue;
    take_queue(p, &queue);
    fail_queue(L, &queue, "coop was closed");
    for (coop_link *f = p->flights.next; f != &p->flights; f = f->next)
      fail_quietly(L, coop_container(f, job, flight), "coop was closed");
  }
  return 0;
}

void coop__threads_stop(coop_context *ctx) {
  threads *t = ctx->threads;
  if (!t) return;
  t->closing = true;
  for (coop_link *l = t->pools.next; l != &t->pools; l = l->next)
    stop_pool(coop_container(l, pool, link));
  double deadline = coop__now() + patience;
  unsigned left = 0;
  for (coop_link *l = t->pools.next; l != &t->pools; l = l->next)
    left += await_pool(coop_container(l, pool, link), deadline);
  if (left > 0)
    fprintf(stderr, "coop: left behind: %u thread%s that did not end within %.0f"
            " seconds\n", left, left == 1 ? "" : "s", patience);
  coop__posts_close(ctx->posts); /* those left behind post no more */
  lua_State *L = ctx->turn_L ? ctx->turn_L : ctx->L;
  if (lua_checkstack(L, 8)) {
    lua_rawgetp(L, LUA_REGISTRYINDEX, &ctx->threads); /* settle */
    if (lua_pcall(L, 0, 0, 0) != LUA_OK) lua_pop(L, 1);
  }
  while (!coop__link_alone(&t->pools)) {
    pool *p = coop_container(t->pools.next, pool, link);
    coop__link_remove(&p->link);
    if (p == t->common) coop__pool_release(p);
    coop__pool_release(p);
  }
  coop__bytes_free(&t->scratch);
  free(t);
  ctx->threads = NULL;
}

/* --- registration -------------------------------------------------------------------------------------- */

static const luaL_Reg pool_methods[] = {
  {"call", pool_call},
  {"close", pool_close},
  {NULL, NULL}
};

static const luaL_Reg pool_meta[] = {
  {"__close", pool__close},
  {"__gc", pool__gc},
  {NULL, NULL}
};

static const luaL_Reg core_functions[] = {
  {"call", threads_call},
  {"Pool", pool_open},
  {"limit", pool_limit},
  {"fault", fault},
  {NULL, NULL}
};

void coop__open_threads(lua_State *L) {
  coop__newtype(L, KIND_POOL, pool_methods, pool_meta);
  pushctx(L, CTX_META + KIND_POOL);
  lua_getfield(L, 2, "methods");
  lua_getfield(L, -2, "__index");
  lua_setfield(L, -2, "ThreadPool"); /* threads.lua adds to them */
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, settle, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &getctx(L)->threads);
  lua_newtable(L);
  coop__setfuncs(L, core_functions);
  lua_setfield(L, 2, "threads");
  lua_settop(L, 2);
  coop__open_streams(L);
}
