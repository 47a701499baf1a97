/*
** test_memory.c - what a host lets a state have, and what it wants left alone.
*/
#include <fcntl.h>
#include <locale.h>
#include <signal.h>

#include "host.h"

/* An allocator that counts, and refuses what is too much. */
typedef struct purse {
  size_t used, cap;
  long left; /* allocations until all fail; negative: none does */
} purse;

static void *allocate(void *ud, void *ptr, size_t osize, size_t nsize) {
  purse *p = ud;
  size_t old = ptr ? osize : 0;
  if (nsize > old) {
    if (p->left == 0 || p->used - old + nsize > p->cap) return NULL;
    if (p->left > 0) p->left--;
  }
  p->used += nsize - old;
  if (nsize > 0) return realloc(ptr, nsize);
  free(ptr);
  return NULL;
}

static void open_capped(host *h, purse *p, size_t cap) {
  *p = (purse){.cap = cap, .left = -1};
  h->L = lua_newstate(allocate, p);
  luaL_openlibs(h->L);
  h->ctx = coop_open(h->L, NULL);
  assert_non_null(h->ctx);
  luaL_requiref(h->L, "coop", luaopen_coop, 1);
  lua_pop(h->L, 1);
}

static void all_that_a_state_took_is_given_back(void **state) {
  purse p;
  host h;
  (void)state;
  for (int closed = 0; closed < 2; closed++) {
    open_capped(&h, &p, 64 << 20);
    script(&h, "for i = 1, 100 do coop.spawn(function() coop.await(coop.sleep(60)) end) end\n"
               "coop.accumulate(coop.generator(function()\n"
               "  while true do coop.yield(1) end\n"
               "end)())");
    coop_poll(h.ctx, 0.001);
    if (closed) coop_close(h.ctx);
    lua_close(h.L);
    assert_int_equal(p.used, 0);
  }
}

static void what_a_connection_keeps_is_the_state_s(void **state) {
  purse p;
  host h;
  (void)state;
  open_capped(&h, &p, 64 << 20);
  script(&h, "local net = require 'coop.net'\n"
             "local server = net.listen('127.0.0.1', 0, function(conn)\n"
             "  conn:write(('x'):rep(1000000))\n"
             "  coop.await(conn:read('a'))\n"
             "end)\n"
             "coop.spawn(function()\n"
             "  conn = coop.await(net.connect('127.0.0.1', server.port))\n"
             "  conn:set_line_max(2000000)\n"
             "  read = conn:read('l')\n"
             "end)");
  size_t before = p.used, most = 0;
  for (int i = 0; i < 10000 && most < before + 1000000; i++) {
    coop_poll(h.ctx, 0);
    lua_gc(h.L, LUA_GCCOLLECT);
    if (p.used > most) most = p.used;
  }
  assert_true(most >= before + 1000000);
  lua_close(h.L);
  assert_int_equal(p.used, 0);
}

static void a_cap_holds_and_the_state_lives_on(void **state) {
  purse p;
  host h;
  (void)state;
  open_capped(&h, &p, 8 << 20);
  script(&h, "coop.on_unhandled(function() end)\n"
             "d = coop.spawn(function()\n"
             "  local all = {}\n"
             "  for i = 1, 1e9 do all[i] = coop.Deferred() end\n"
             "end)\n"
             "d:add_errback(function(f) told = f.value end)\n"
             "d = nil collectgarbage()\n"
             "assert(told == 'not enough memory', told)\n"
             "local all\n"
             "coop.cooperate(function()\n"
             "  all = all or {}\n"
             "  for i = 1, 100 do all[#all + 1] = coop.sleep(60) end\n"
             "  return 1\n"
             "end):when_done():add_errback(function(f) all = nil failed = f.value end)");
  for (int i = 0; i < 100000; i++) {
    coop_poll(h.ctx, 0.001);
    lua_getglobal(h.L, "failed");
    bool failed = !lua_isnil(h.L, -1);
    lua_pop(h.L, 1);
    if (failed) break;
  }
  script(&h, "assert(failed == 'not enough memory', failed)\n"
             "collectgarbage()\n"
             "assert(coop.run(function() coop.await(coop.sleep(0)) return 7 end) == 7)");
  coop_close(h.ctx);
  lua_close(h.L);
  assert_int_equal(p.used, 0);
}

static void count_result(lua_State *L, int failed, void *ud) {
  (void)L, (void)failed;
  ++*(int *)ud;
}

static coop_step one_step(lua_State *L, void *ud) {
  (void)L, (void)ud;
  return COOP_DONE;
}

static void count_release(void *ud) { ++*(int *)ud; }

/* Everything that a host does, with 'n' allocations to spare at each. */
static bool want(host *h, purse *p, long n) {
  lua_State *L = h->L;
  int told = 0, released = 0, short_of = 0;
  lua_getglobal(L, "f");
  lua_pushinteger(L, 1);
  p->left = n;
  int status = coop_spawn(L, 1);
  p->left = -1;
  assert_true(status == LUA_OK || status == LUA_ERRMEM);
  assert_int_equal(lua_gettop(L), 1);
  short_of += status != LUA_OK;
  p->left = n;
  coop_deferred_new(L);
  p->left = -1;
  assert_int_equal(lua_gettop(L), 2);
  short_of += lua_isnil(L, 2);
  if (lua_isnil(L, 2)) coop_deferred_new(L), lua_replace(L, 2);
  p->left = n;
  coop_deferred_watch(L, 2, count_result, &told);
  p->left = -1;
  short_of += told;
  lua_pushinteger(L, 5);
  p->left = n;
  status = coop_deferred_callback(L, 2);
  p->left = -1;
  assert_true(status == LUA_OK || status == LUA_ERRMEM);
  short_of += status != LUA_OK;
  assert_int_equal(lua_gettop(L), 2);
  p->left = n;
  status = coop_cooperate(L, one_step, &released, count_release);
  p->left = -1;
  assert_true(status == LUA_OK || status == LUA_ERRMEM);
  short_of += status != LUA_OK;
  assert_int_equal(lua_gettop(L), 3);
  p->left = n;
  coop_poll(h->ctx, 0);
  p->left = -1;
  coop_poll(h->ctx, 0);
  p->left = n;
  coop_close(h->ctx);
  p->left = -1;
  assert_null(coop_of(L));
  lua_settop(L, 0);
  lua_gc(L, LUA_GCCOLLECT);
  lua_gc(L, LUA_GCCOLLECT);
  lua_close(L);
  assert_int_equal(told, 1);
  assert_int_equal(released, status == LUA_OK);
  assert_int_equal(p->used, 0);
  return short_of > 0;
}

static void want_of_memory_is_told_by_every_function(void **state) {
  purse p;
  host h;
  (void)state;
  long n = 0;
  for (bool wanting = true; wanting || n < 60; n += n < 60 ? 1 : 7) {
    open_capped(&h, &p, 64 << 20);
    script(&h, "coop.on_unhandled(function() end)\n"
               "function f(n) local c <close> = setmetatable({}, {__close = print})\n"
               "  n = {n} coop.await(coop.Deferred()) end\n"
               "print = function() end");
    wanting = want(&h, &p, n);
  }
}

/* A Deferred with all that can hang on one, and 'go', which fires it. 'check' looks at
   what that has left: who has fired and waits for nothing runs a handler at once. */
static const char crowd[] =
    "coop.on_unhandled(function() end)\n"
    "local all, d = {}, coop.Deferred()\n"
    "local function add(x) all[#all + 1] = x return x end\n"
    "add(d)\n"
    "local function wait(n)\n"
    "  local v = coop.await(d)\n"
    "  if n > 0 then add(coop.spawn(function() error {v} end)):add_errback(type) end\n"
    "  if n > 1 then return coop.await(add(coop.spawn(wait, n - 2))) end\n"
    "  return {v}\n"
    "end\n"
    "for n = 0, 3 do\n"
    "  add(coop.spawn(wait, n)):add_callback(function(v) return {v} end)\n"
    "  d:add_callback(function(v) return coop.succeed(v) end)\n"
    "  d:add_both(function(v) d:add_callback(function(w) return w end, {}) error {v} end)\n"
    "  d:add_errback(function(f) return f.value end)\n"
    "  add(coop.Deferred()):add_callback(tostring)\n"
    "  d:add_callback(function(v) all[#all]:callback(v) return v end)\n"
    "end\n"
    "d:chain_deferred(add(coop.Deferred()):add_callback(function() return coop.fail {} end))\n"
    "function go() coop.maybe_deferred(d.callback, d, 1) end\n"
    "function check()\n"
    "  if not d.called then d:callback(1) end\n"
    "  for i, x in ipairs(all) do\n"
    "    local ran = false\n"
    "    x:add_both(function() ran = true end)\n"
    "    assert(ran or not x.called or tostring(x):find 'waiting', i)\n"
    "  end\n"
    "end";

static void a_run_that_wants_memory_leaves_nothing_busy(void **state) {
  purse p;
  host h;
  (void)state;
  bool wanting = true;
  for (long n = 0; wanting; n++) {
    open_capped(&h, &p, 64 << 20);
    script(&h, crowd);
    lua_gc(h.L, LUA_GCSTOP);
    lua_getglobal(h.L, "go");
    p.left = n;
    lua_pcall(h.L, 0, 0, 0);
    wanting = p.left == 0;
    p.left = -1;
    lua_gc(h.L, LUA_GCRESTART);
    lua_settop(h.L, 0);
    script(&h, "check()");
    coop_close(h.ctx);
    lua_close(h.L);
    assert_int_equal(p.used, 0);
  }
}

/* --- what is the host's ------------------------------------------------------ */

static const char busy[] =
    "local threads, net = require 'coop.threads', require 'coop.net'\n"
    "coop.run(function()\n"
    "  coop.await(threads.call(function() return 1 end))\n"
    "  local server = net.listen('127.0.0.1', 0, function(conn) conn:close() end)\n"
    "  local conn = coop.await(net.connect('127.0.0.1', server.port))\n"
    "  coop.await(conn:read())\n"
    "  pcall(function() for i = 1, 100 do coop.await(conn:write('x')) end end)\n"
    "  server:close()\n"
    "end)";

enum { SIGNALS = 65 }; /* Linux's */

static void signals_locale_and_streams_are_left_alone(void **state) {
  struct sigaction before[SIGNALS], after;
  char locale[64];
  int flags[3];
  host h;
  (void)state;
  memset(before, 0, sizeof before);
  for (int i = 1; i < SIGNALS; i++) sigaction(i, NULL, &before[i]);
  snprintf(locale, sizeof locale, "%s", setlocale(LC_ALL, NULL));
  for (int i = 0; i < 3; i++) flags[i] = fcntl(i, F_GETFL);
  open_host(&h, NULL);
  script(&h, busy);
  coop_close(h.ctx);
  lua_close(h.L);
  for (int i = 1; i < SIGNALS; i++) {
    if (sigaction(i, NULL, &after) != 0) continue;
    assert_true(before[i].sa_handler == after.sa_handler);
    assert_int_equal(before[i].sa_flags, after.sa_flags);
  }
  assert_string_equal(setlocale(LC_ALL, NULL), locale);
  for (int i = 0; i < 3; i++) assert_int_equal(fcntl(i, F_GETFL), flags[i]);
}

/* The module beside this program is another copy of coop. */
static void a_second_copy_leaves_the_first_alone(void **state) {
  host h;
  (void)state;
  open_host(&h, NULL);
  lua_pushliteral(h.L, COOP_MODULE);
  lua_setglobal(h.L, "path");
  script(&h, "local again = assert(package.loadlib(path, 'luaopen_coop'))()\n"
             "assert(rawequal(again, coop))\n"
             "coop.run(function() coop.await(coop.sleep(0)) n = 1 end)");
  assert_global(&h, "n", 1);
  lua_close(h.L);
  lua_State *L = luaL_newstate(); /* the other way round */
  luaL_openlibs(L);
  lua_pushliteral(L, COOP_MODULE);
  lua_setglobal(L, "path");
  assert_false(luaL_dostring(L, "coop = assert(package.loadlib(path, 'luaopen_coop'))()"));
  assert_null(coop_of(L));
  assert_null(coop_open(L, NULL));
  assert_non_null(strstr(lua_tostring(L, -1), "another copy of coop"));
  lua_settop(L, 0);
  assert_int_equal(luaopen_coop(L), 1);
  lua_getglobal(L, "coop");
  assert_true(lua_rawequal(L, -1, -2));
  lua_close(L);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(all_that_a_state_took_is_given_back),
    cmocka_unit_test(what_a_connection_keeps_is_the_state_s),
    cmocka_unit_test(a_cap_holds_and_the_state_lives_on),
    cmocka_unit_test(want_of_memory_is_told_by_every_function),
    test(a_run_that_wants_memory_leaves_nothing_busy),
    cmocka_unit_test(signals_locale_and_streams_are_left_alone),
    cmocka_unit_test(a_second_copy_leaves_the_first_alone),
  };
  return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
