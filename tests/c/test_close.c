/*
** test_close.c - taking coop away: with everything in flight, from anywhere, again
** and again.
*/
#include <dirent.h>
#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#include "host.h"

/* Everything at once; what becomes of it is noted in the global 'log'. */
static const char in_flight[] =
    "log = {}\n"
    "local function note(what) log[what] = (log[what] or 0) + 1 end\n"
    "local function closing(what)\n"
    "  return setmetatable({}, {__close = function() note(what) end})\n"
    "end\n"
    "local function fails(what, d)\n"
    "  d:add_both(function(f)\n"
    "    local class = coop.type(f) == 'Failure' and getmetatable(f.value)\n"
    "    note(what .. ' ' .. (class and class.__name or 'went well'))\n"
    "  end)\n"
    "end\n"
    "pending = coop.Deferred(function() note 'canceller' end)\n"
    "fails('pending', pending)\n"
    "inline = coop.inline_callbacks(function()\n"
    "  local c <close> = closing 'inline closed'\n"
    "  local ok, e = pcall(coop.await, coop.sleep(60))\n"
    "  if not ok and coop.errors.ContextClosed:is(e) then note 'inline raised' end\n"
    "  coop.await(coop.Deferred())\n"
    "  note 'inline went on'\n"
    "end)()\n"
    "fails('inline', inline)\n"
    "local inner = coop.spawn(function()\n"
    "  local c <close> = closing 'coroutine closed'\n"
    "  coop.await(coop.sleep(60))\n"
    "end)\n"
    "outer = coop.spawn(function()\n"
    "  local c <close> = closing 'outer closed'\n"
    "  coop.await(inner)\n"
    "end)\n"
    "fails('coroutine', outer)\n"
    "local gen = coop.generator(function()\n"
    "  local c <close> = closing 'generator closed'\n"
    "  while true do coop.yield(1) end\n"
    "end)\n"
    "local task = coop.cooperate(gen())\n"
    "fails('task', task:when_done())\n"
    "fails('accumulated', coop.accumulate(gen()))\n"
    "local waiting = coop.cooperate(coop.generator(function()\n"
    "  local c <close> = closing 'waiting generator closed'\n"
    "  coop.await(coop.sleep(60))\n"
    "end)())\n"
    "fails('waiting', waiting:when_done())\n"
    "fails('paused', coop.coroutine(function() coop.await(coop.sleep(60)) end)())\n"
    "local paused = coop.succeed(1)\n"
    "paused:pause()\n"
    "paused:add_callback(function() note 'paused went on' end)\n"
    "keep_paused = paused\n"
    "call = coop.call_later(60, note, 'called')\n"
    "local lock = coop.DeferredLock()\n"
    "lock:acquire()\n"
    "fails('lock', lock:acquire())\n"
    "keep_lock = lock\n"
    "local net = require 'coop.net'\n"
    "server = net.listen('127.0.0.1', 0, function(conn)\n"
    "  local c <close> = closing 'handler closed'\n"
    "  conn:read(1)\n"
    "  coop.await(conn:read(1))\n"
    "end)\n"
    "client = coop.spawn(function()\n"
    "  conn = coop.await(net.connect('127.0.0.1', server.port))\n"
    "  local read = conn:read(1)\n"
    "  fails('read', read)\n"
    "  connected = true\n"
    "  coop.await(read)\n"
    "end)\n"
    "local threads = require 'coop.threads'\n"
    "fails('thread', threads.call(function()\n"
    "  while true do end\n"
    "end))\n";

/* What it comes to. */
static const char in_order[] =
    "local function once(what)\n"
    "  assert(log[what] == 1, what .. ': ' .. tostring(log[what]))\n"
    "  log[what] = nil\n"
    "end\n"
    "once 'canceller' once 'pending ContextClosed'\n"
    "once 'inline raised' once 'inline closed' once 'inline ContextClosed'\n"
    "once 'coroutine closed' once 'outer closed' once 'coroutine ContextClosed'\n"
    "assert(log['generator closed'] == 2) log['generator closed'] = nil\n"
    "once 'task SchedulerStopped' once 'accumulated SchedulerStopped'\n"
    "once 'waiting generator closed' once 'waiting SchedulerStopped'\n"
    "once 'paused ContextClosed' once 'paused went on' once 'lock ContextClosed'\n"
    "once 'handler closed' once 'read ContextClosed'\n"
    "assert(not call:active())\n"
    "for what, n in pairs(log) do\n"
    "  assert(what:find 'thread', what .. ': ' .. n)\n"
    "end\n"
    "assert(next(log))";

/* Turns the loop until the connection stands. */
static void connect_host(host *h) {
  bool connected = false;
  for (int i = 0; !connected && i < 10000; i++) {
    coop_poll(h->ctx, 0.001);
    lua_getglobal(h->L, "connected");
    connected = lua_toboolean(h->L, -1);
    lua_pop(h->L, 1);
  }
  for (int i = 0; i < 3; i++) coop_poll(h->ctx, 0); /* the other end, too */
  assert_true(connected);
}

static void everything_in_flight_gets_an_outcome(void **state) {
  host *h = *state;
  script(h, in_flight);
  connect_host(h);
  coop_close(h->ctx);
  assert_int_equal(lua_gettop(h->L), 0);
  script(h, in_order);
}

static void count_handle(uv_handle_t *handle, void *ud) {
  (void)handle;
  ++*(int *)ud;
}

static int count_handles(uv_loop_t *uv) {
  int n = 0;
  uv_walk(uv, count_handle, &n);
  return n;
}

static void a_loop_of_the_host_s_is_left_as_it_was(void **state) {
  uv_loop_t uv;
  uv_timer_t mine;
  host h;
  (void)state;
  uv_loop_init(&uv);
  uv_timer_init(&uv, &mine);
  open_host(&h, &uv);
  script(&h, in_flight);
  connect_host(&h);
  coop_close(h.ctx);
  script(&h, in_order);
  assert_null(coop_loop(h.ctx));
  assert_int_equal(uv_run(&uv, UV_RUN_DEFAULT), 0);
  assert_false(uv_loop_alive(&uv));
  assert_int_equal(count_handles(&uv), 1);
  lua_close(h.L);
  assert_int_equal(count_handles(&uv), 1);
  uv_close((uv_handle_t *)&mine, NULL);
  uv_run(&uv, UV_RUN_DEFAULT);
  assert_int_equal(uv_loop_close(&uv), 0);
}

static void the_end_of_the_state_closes_it_with_everything_in_flight(void **state) {
  uv_loop_t uv;
  host h;
  (void)state;
  for (int i = 0; i < 2; i++) {
    uv_loop_init(&uv);
    open_host(&h, i ? &uv : NULL);
    script(&h, in_flight);
    connect_host(&h);
    lua_close(h.L);
    uv_run(&uv, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&uv), 0);
  }
}

static void handles_of_luv_are_closed_too(void **state) {
  uv_loop_t uv;
  host h;
  (void)state;
  uv_loop_init(&uv);
  open_host(&h, &uv);
  script(&h, "local luv = require 'luv'\n"
             "local timer = luv.new_timer()\n"
             "timer:start(1000000, 1000000, print)\n"
             "other = luv.new_async(print)");
  assert_true(uv_loop_alive(&uv));
  coop_close(h.ctx);
  assert_int_equal(uv_run(&uv, UV_RUN_DEFAULT), 0);
  assert_int_equal(count_handles(&uv), 0);
  assert_non_null(coop_open(h.L, &uv)); /* and luv is coop's again */
  script(&h, "require 'luv'.new_timer():start(0, 0, function() n = 1 end)");
  assert_int_equal(uv_run(&uv, UV_RUN_DEFAULT), 0);
  assert_global(&h, "n", 1);
  coop_close(coop_of(h.L));
  uv_run(&uv, UV_RUN_DEFAULT);
  lua_close(h.L);
  assert_int_equal(uv_loop_close(&uv), 0);
}

/* --- what a host holds ------------------------------------------------------ */

static void note_result(lua_State *L, int failed, void *ud) {
  int *n = ud;
  *n += failed ? 10 : 1;
  lua_getfield(L, 1, "value");
  assert_string_equal(luaL_tolstring(L, -1, NULL), "ContextClosed: coop was closed");
}

static coop_step step(lua_State *L, void *ud) {
  (void)L, (void)ud;
  return COOP_MORE;
}

static void note_release(void *ud) { ++*(int *)ud; }

static void note_post(lua_State *L, void *ud) {
  (void)L;
  ++*(int *)ud;
}

static void watches_steps_and_posts_of_the_host_come_to_an_end(void **state) {
  host *h = *state;
  int watched = 0, released = 0, posted = 0;
  coop_deferred_new(h->L);
  coop_deferred_watch(h->L, -1, note_result, &watched);
  lua_pop(h->L, 1);
  coop_deferred_new(h->L); /* on the stack only */
  coop_deferred_watch(h->L, -1, note_result, &watched);
  assert_int_equal(coop_cooperate(h->L, step, &released, note_release), LUA_OK);
  coop_poll(h->ctx, 0);
  assert_int_equal(coop_post(h->ctx, note_post, &posted), 0);
  coop_close(h->ctx);
  assert_int_equal(posted, 1);
  assert_int_equal(watched, 20);
  assert_int_equal(released, 1);
  assert_int_not_equal(coop_post(h->ctx, note_post, &posted), 0);
  lua_settop(h->L, 0);
}

/* --- closing from within ---------------------------------------------------- */

/* close_coop(): what takes effect when coop's own has returned. */
static int close_coop(lua_State *L) {
  coop_context *ctx = coop_of(L);
  assert_non_null(ctx);
  coop_close(ctx);
  coop_close(ctx);
  assert_int_not_equal(coop_post(ctx, note_post, NULL), 0);
  return 0;
}

static coop_step close_step(lua_State *L, void *ud) {
  (void)ud;
  close_coop(L);
  return COOP_MORE;
}

static void close_result(lua_State *L, int failed, void *ud) {
  (void)failed, (void)ud;
  close_coop(L);
}

static void close_post(lua_State *L, void *ud) {
  (void)ud;
  close_coop(L);
}

static void assert_closed(host *h) {
  assert_null(coop_of(h->L));
  assert_null(coop_loop(h->ctx));
  assert_global(h, "n", 1);
  assert_int_equal(coop_poll(h->ctx, 0), 0);
}

static void it_may_be_closed_from_within(void **state) {
  static const char *const scripts[] = {
    "coop.call_later(0, function() close_coop() n = 1 end)",
    "coop.cooperate(function() close_coop() n = 1 return 1 end)",
    "coop.cooperate(coop.generator(function()\n"
    "  coop.yield() close_coop() n = 1 coop.yield()\n"
    "end)())",
    "coop.spawn(function()\n"
    "  coop.await(coop.sleep(0)) close_coop() n = 1 coop.await(coop.sleep(60))\n"
    "end)",
    "coop.batch_accumulate(100, coop.generator(function()\n"
    "  for i = 1, 50 do\n"
    "    if i == 7 then close_coop() n = 1 end\n"
    "    coroutine.yield(i)\n"
    "  end\n"
    "end)())",
    "coop.spawn(function()\n" /* within no turn: closed by the next */
    "  close_coop() n = 1 coop.await(coop.sleep(60))\n"
    "end)",
    "coop.sleep(0):add_callback(function() close_coop() n = 1 end)",
    "local net = require 'coop.net'\n"
    "local s = net.listen('127.0.0.1', 0, function(conn)\n"
    "  close_coop() n = 1 conn:write('x')\n"
    "end)\n"
    "coop.spawn(function()\n"
    "  coop.await(coop.await(net.connect('127.0.0.1', s.port)):read('a'))\n"
    "end)",
    "local threads = require 'coop.threads'\n"
    "threads.call(function() end):add_callback(function() close_coop() n = 1 end)",
    "coop.reactor:add_system_event_trigger('after', 'startup', function()\n"
    "  close_coop() n = 1\n"
    "end)\n"
    "coop.call_later(60, print)"};
  (void)state;
  for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
    for (int way = 0; way < 3; way++) {
      uv_loop_t uv;
      host h;
      uv_loop_init(&uv);
      open_host(&h, way == 2 ? &uv : NULL);
      lua_register(h.L, "close_coop", close_coop);
      script(&h, "coop.on_unhandled(function() end)");
      script(&h, scripts[i]);
      if (way == 0)
        for (int k = 0; k < 10000 && coop_of(h.L); k++) coop_poll(h.ctx, 0.001);
      else if (coop_run(h.ctx) != LUA_OK)
        lua_pop(h.L, 1);
      assert_int_equal(lua_gettop(h.L), 0);
      assert_closed(&h);
      lua_close(h.L);
      uv_run(&uv, UV_RUN_DEFAULT);
      assert_int_equal(uv_loop_close(&uv), 0);
    }
  }
}

static void steps_posts_and_watches_may_close_it(void **state) {
  (void)state;
  for (int way = 0; way < 3; way++) {
    host h;
    int released = 0;
    open_host(&h, NULL);
    script(&h, "n = 1 coop.on_unhandled(function() end) coop.call_later(60, print)");
    if (way == 0) {
      coop_cooperate(h.L, close_step, &released, note_release);
    } else if (way == 1) {
      coop_post(h.ctx, close_post, NULL);
    } else {
      coop_deferred_new(h.L);
      coop_deferred_watch(h.L, -1, close_result, NULL);
      lua_pushnil(h.L);
      assert_int_equal(coop_deferred_callback(h.L, 1), 0);
    }
    lua_settop(h.L, 0);
    coop_poll(h.ctx, 0);
    assert_closed(&h);
    assert_int_equal(released, way == 0);
    lua_close(h.L);
  }
}

/* In a callback of libuv's that is the host's own. */
static void on_bell(uv_timer_t *t) {
  coop_close(t->data);
  uv_close((uv_handle_t *)t, NULL);
}

static void a_callback_of_the_host_s_may_close_it(void **state) {
  uv_loop_t uv;
  uv_timer_t bell;
  host h;
  (void)state;
  uv_loop_init(&uv);
  open_host(&h, &uv);
  bell.data = h.ctx;
  uv_timer_init(&uv, &bell);
  uv_timer_start(&bell, on_bell, 2, 0);
  script(&h, "n = 1 coop.on_unhandled(function() end)\n"
             "coop.coiterate(function() return true end)");
  assert_int_equal(uv_run(&uv, UV_RUN_DEFAULT), 0);
  assert_closed(&h);
  lua_close(h.L);
  assert_int_equal(uv_loop_close(&uv), 0);
}

/* The same on a loop of coop's, which the host runs by itself; the bell's handle is
   closed before coop is. */
static void on_last_bell(uv_timer_t *t) {
  uv_close((uv_handle_t *)t, NULL);
  coop_close(t->data);
}

static void a_callback_of_the_host_s_may_close_it_on_coop_s_loop(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) {
    host h;
    uv_timer_t bell;
    open_host(&h, NULL);
    uv_loop_t *uv = coop_loop(h.ctx);
    bell.data = h.ctx;
    uv_timer_init(uv, &bell);
    uv_timer_start(&bell, i ? on_last_bell : on_bell, 2, 0);
    script(&h, "n = 1 coop.on_unhandled(function() end)\n"
               "coop.coiterate(function() return true end)");
    assert_int_equal(uv_run(uv, UV_RUN_DEFAULT), 0);
    assert_closed(&h);
    lua_gc(h.L, LUA_GCCOLLECT);
    lua_close(h.L);
  }
}

static void a_script_may_close_it_while_the_host_runs_coop_s_loop(void **state) {
  host h;
  (void)state;
  open_host(&h, NULL);
  lua_register(h.L, "close_coop", close_coop);
  script(&h, "coop.call_later(0.002, function() close_coop() n = 1 end)");
  assert_int_equal(uv_run(coop_loop(h.ctx), UV_RUN_DEFAULT), 0);
  assert_closed(&h);
  lua_close(h.L);
}

/* Threads go on until it is closed in earnest. */
static void what_threads_do_meanwhile_is_not_lost(void **state) {
  (void)state;
  for (int i = 0; i < 20; i++) {
    host h;
    open_host(&h, NULL);
    lua_register(h.L, "close_coop", close_coop);
    script(&h, "n = 0\n"
               "local pool = require 'coop.threads'.Pool(4)\n"
               "for i = 1, 200 do\n"
               "  pool:call(function() return 1 end):add_both(function() n = n + 1 end)\n"
               "end\n"
               "local function busy(s)\n"
               "  local over = coop.seconds() + s\n"
               "  while coop.seconds() < over do end\n"
               "end\n"
               "coop.call_later(0, function() close_coop() busy(0.002) end)");
    assert_int_equal(coop_run(h.ctx), LUA_OK);
    assert_null(coop_of(h.L));
    assert_global(&h, "n", 200);
    lua_close(h.L);
  }
}

/* --- afterwards ------------------------------------------------------------- */

static void a_script_that_waits_again_and_again_does_not_hold_it_up(void **state) {
  host *h = *state;
  script(h, "coop.inline_callbacks(function()\n"
            "  local c <close> = setmetatable({}, {__close = function() n = 1 end})\n"
            "  while true do pcall(function() coop.await(coop.sleep(1)) end) end\n"
            "end)()");
  coop_close(h->ctx);
  assert_global(h, "n", 1);
}

static void an_error_while_it_is_closed_is_reported(void **state) {
  host *h = *state;
  script(h, "coop.on_unhandled(function(f) n = f.value == 'oh' and 1 end)\n"
            "d = coop.Deferred(function() error('oh', 0) end)");
  coop_close(h->ctx);
  script(h, "d = nil collectgarbage()");
  assert_global(h, "n", 1);
}

static void a_run_within_a_run_by_no_coroutine_is_refused(void **state) {
  host *h = *state;
  script(h, "coop.call_later(0, function()\n"
            "  local ok, e = pcall(coop.run, function() end)\n"
            "  n = not ok and e:find('run: the loop runs already', 1, true) and 1\n"
            "end)");
  run(h);
  assert_global(h, "n", 1);
}

/* But for the handles that hosts may still have. */
static void nothing_is_left_in_the_state(void **state) {
  lua_State *L = luaL_newstate();
  (void)state;
  luaL_openlibs(L);
  coop_close(coop_open(L, NULL));
  assert_false(luaL_dostring(L, "yield, wrap = coroutine.yield, coroutine.wrap\n"
                                "count = 0\n"
                                "for k in pairs(debug.getregistry()) do\n"
                                "  count = count + 1\n"
                                "end"));
  coop_context *ctx = coop_open(L, NULL);
  assert_non_null(ctx);
  assert_false(luaL_dostring(L, "require 'coop' require 'coop.net'\n"
                                "assert(yield ~= coroutine.yield)"));
  coop_close(ctx);
  if (luaL_dostring(L, "collectgarbage() collectgarbage()\n"
                       "assert(yield == coroutine.yield and wrap == coroutine.wrap)\n"
                       "for _, t in ipairs{package.loaded, package.preload} do\n"
                       "  for k in pairs(t) do assert(not k:find 'coop', k) end\n"
                       "end\n"
                       "for k in pairs(debug.getregistry()) do\n"
                       "  count = count - 1\n"
                       "end\n"
                       "assert(count == 0, count)"))
    fail_msg("%s", lua_tostring(L, -1));
  lua_close(L);
}

static void *post_in_vain(void *ud) {
  int n = 0;
  for (int i = 0; i < 1000; i++) {
    if (coop_post(ud, note_post, &n) == 0) return NULL;
    coop_interrupt(ud, "enough!");
  }
  return ud;
}

static void it_is_valid_when_it_was_closed_and_collected(void **state) {
  lua_State *L = luaL_newstate();
  pthread_t thread;
  void *refused;
  (void)state;
  luaL_openlibs(L);
  coop_context *ctx = coop_open(L, NULL);
  coop_close(ctx);
  lua_gc(L, LUA_GCCOLLECT);
  lua_gc(L, LUA_GCCOLLECT);
  assert_int_equal(pthread_create(&thread, NULL, post_in_vain, ctx), 0);
  assert_null(coop_loop(ctx));
  assert_int_equal(coop_poll(ctx, 1), 0);
  assert_int_equal(coop_backend_fd(ctx), -1);
  assert_true(coop_backend_timeout(ctx) < 0);
  assert_int_equal(coop_run(ctx), LUA_ERRRUN);
  assert_int_equal(lua_gettop(L), 1);
  coop_close(ctx);
  assert_true(coop_open(L, NULL) != ctx);
  coop_close(ctx);
  assert_non_null(coop_of(L));
  assert_false(luaL_dostring(L, "for i = 1, 100000 do end")); /* not interrupted */
  pthread_join(thread, &refused);
  assert_ptr_equal(refused, ctx);
  lua_close(L);
}

static void no_context_is_a_closed_one(void **state) {
  int n = 0;
  (void)state;
  coop_close(NULL);
  assert_null(coop_loop(NULL));
  assert_int_equal(coop_run(NULL), LUA_ERRRUN);
  assert_int_equal(coop_poll(NULL, 1), 0);
  assert_int_equal(coop_backend_fd(NULL), -1);
  assert_true(coop_backend_timeout(NULL) < 0);
  assert_int_not_equal(coop_post(NULL, note_post, &n), 0);
  coop_interrupt(NULL, "enough!");
}

static void it_may_be_opened_anew(void **state) {
  host *h = *state;
  script(h, "old = coop d = coop.Deferred()");
  coop_close(h->ctx);
  assert_int_equal(coop_run(h->ctx), LUA_ERRRUN);
  assert_non_null(strstr(lua_tostring(h->L, -1), "closed"));
  lua_pop(h->L, 1);
  coop_context *ctx = coop_open(h->L, NULL);
  assert_non_null(ctx);
  assert_ptr_equal(coop_of(h->L), ctx);
  script(h, "coop = require 'coop'\n"
            "assert(coop ~= old and d.called)\n"
            "assert(not pcall(old.call_later, 0, print))\n"
            "coop.run(function() coop.await(coop.sleep(0.001)) n = 1 end)");
  assert_global(h, "n", 1);
  assert_int_equal(coop_run(ctx), LUA_OK);
  coop_close(h->ctx);
  assert_ptr_equal(coop_of(h->L), ctx);
  coop_close(ctx);
}

static int count_descriptors(void) {
  int n = 0;
  DIR *d = opendir("/proc/self/fd");
  while (d && readdir(d)) n++;
  if (d) closedir(d);
  return n;
}

static const char some_work[] =
    "local coop = require 'coop'\n"
    "coop.on_unhandled(function() end)\n"
    "coop.spawn(function() coop.await(coop.sleep(60)) end)\n"
    "coop.inline_callbacks(function() coop.await(coop.sleep(60)) end)()\n"
    "coop.cooperate(coop.generator(function() while true do coop.yield() end end)())\n"
    "local net = require 'coop.net'\n"
    "local server = net.listen('127.0.0.1', 0, function(conn) conn:read(1) end)\n"
    "coop.spawn(function() coop.await(net.connect('127.0.0.1', server.port)) end)";

static void work_and_close(lua_State *L) {
  coop_context *ctx = coop_open(L, NULL);
  assert_non_null(ctx);
  if (luaL_dostring(L, some_work)) fail_msg("%s", lua_tostring(L, -1));
  coop_poll(ctx, 0);
  coop_close(ctx);
  assert_int_equal(lua_gettop(L), 0);
}

static size_t in_use(lua_State *L) {
  lua_gc(L, LUA_GCCOLLECT);
  lua_gc(L, LUA_GCCOLLECT);
  return (size_t)lua_gc(L, LUA_GCCOUNT) * 1024 + (size_t)lua_gc(L, LUA_GCCOUNTB);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { ROUNDS = 100, FIRST = 20 }; /* a leak would be seen anyway */
#else
enum { ROUNDS = 1000, FIRST = 20 };
#endif

static void a_thousand_rounds_in_one_state_leave_no_growth(void **state) {
  lua_State *L = luaL_newstate();
  size_t memory = 0;
  int descriptors = 0;
  (void)state;
  luaL_openlibs(L);
  for (int i = 1; i <= ROUNDS; i++) {
    work_and_close(L);
    if (i == FIRST) memory = in_use(L), descriptors = count_descriptors();
  }
  assert_int_equal(count_descriptors(), descriptors);
  assert_in_range(in_use(L), 0, memory + 4096);
  lua_close(L);
}

static void a_thousand_states_leave_no_growth(void **state) {
  size_t memory = 0;
  int descriptors = 0;
  (void)state;
  for (int i = 1; i <= ROUNDS; i++) {
    lua_State *L = luaL_newstate();
    luaL_openlibs(L);
    work_and_close(L);
    lua_close(L);
    if (i == FIRST) memory = mallinfo2().uordblks, descriptors = count_descriptors();
  }
  assert_int_equal(count_descriptors(), descriptors);
  assert_in_range(mallinfo2().uordblks, 0, memory + 16384);
}

static void nop(lua_State *L, void *ud) { (void)L, (void)ud; }

/* What a poll has taken from the queue and left for the next stands before what the
   threads bring while they are stopped. */
static void jobs_come_back_behind_what_a_poll_has_left(void **state) {
  (void)state;
  host h;
  open_host(&h, NULL);
  script(&h,
         "coop.on_unhandled(function() end)\n"
         "path = os.tmpname()\n"
         "require 'coop.threads'.call(function(path)\n"
         "  os.remove(path)\n"
         "  while true do end\n"
         "end, path):add_both(function(f) outcome = coop.type(f) end)");
  lua_getglobal(h.L, "path");
  while (access(lua_tostring(h.L, -1), F_OK) == 0) uv_sleep(1);
  lua_pop(h.L, 1);
  for (int i = 0; i < 20; i++) assert_int_equal(coop_post(h.ctx, nop, NULL), 0);
  assert_int_equal(coop_poll(h.ctx, 0), 1);
  coop_close(h.ctx);
  lua_getglobal(h.L, "outcome");
  assert_string_equal(lua_tostring(h.L, -1), "Failure");
  lua_close(h.L);
}

static void count_post(lua_State *L, void *ud) { (void)L, ++*(int *)ud; }
static void close_in_post(lua_State *L, void *ud) { (void)L, coop_close(ud); }

/* Also those for which that poll had no time. */
static void posts_run_though_a_poll_is_closed_from_within(void **state) {
  host h;
  int n = 0;
  (void)state;
  open_host(&h, NULL);
  assert_int_equal(coop_post(h.ctx, close_in_post, h.ctx), 0);
  for (int i = 0; i < 20; i++)
    assert_int_equal(coop_post(h.ctx, count_post, &n), 0);
  coop_poll(h.ctx, 0);
  assert_null(coop_of(h.L));
  assert_int_equal(n, 20);
  lua_close(h.L);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    test(everything_in_flight_gets_an_outcome),
    cmocka_unit_test(a_loop_of_the_host_s_is_left_as_it_was),
    cmocka_unit_test(handles_of_luv_are_closed_too),
    cmocka_unit_test(the_end_of_the_state_closes_it_with_everything_in_flight),
    test(watches_steps_and_posts_of_the_host_come_to_an_end),
    cmocka_unit_test(jobs_come_back_behind_what_a_poll_has_left),
    cmocka_unit_test(posts_run_though_a_poll_is_closed_from_within),
    cmocka_unit_test(it_may_be_closed_from_within),
    cmocka_unit_test(steps_posts_and_watches_may_close_it),
    cmocka_unit_test(a_callback_of_the_host_s_may_close_it),
    cmocka_unit_test(a_callback_of_the_host_s_may_close_it_on_coop_s_loop),
    cmocka_unit_test(a_script_may_close_it_while_the_host_runs_coop_s_loop),
    cmocka_unit_test(what_threads_do_meanwhile_is_not_lost),
    test(a_script_that_waits_again_and_again_does_not_hold_it_up),
    test(an_error_while_it_is_closed_is_reported),
    test(a_run_within_a_run_by_no_coroutine_is_refused),
    cmocka_unit_test(nothing_is_left_in_the_state),
    cmocka_unit_test(it_is_valid_when_it_was_closed_and_collected),
    cmocka_unit_test(no_context_is_a_closed_one),
    test(it_may_be_opened_anew),
    cmocka_unit_test(a_thousand_rounds_in_one_state_leave_no_growth),
    cmocka_unit_test(a_thousand_states_leave_no_growth),
  };
  return cmocka_run_group_tests_name("close", tests, NULL, NULL);
}
