/*
** test_poll.c - coop in the frames, or beside the poll, of a host.
*/
#include <poll.h>
#include <pthread.h>

#include "host.h"

static double now(void) { return (double)uv_hrtime() / 1e9; }

/* A busy host: polls without waiting, until nothing is left. */
static void poll_to_the_end(host *h) {
  while (coop_poll(h->ctx, 0.001) == 1) continue;
  assert_int_equal(lua_gettop(h->L), 0);
}

/* A host with a poll of its own: the descriptor and the timeout, no more. False when
   it would sleep for ever. */
static bool wait_for_work(host *h) {
  double timeout = coop_backend_timeout(h->ctx);
  struct pollfd fd = {.fd = coop_backend_fd(h->ctx), .events = POLLIN};
  assert_true(fd.fd >= 0);
  if (timeout < 0) return poll(&fd, 1, 5000) == 1;
  poll(&fd, 1, (int)(timeout * 1e3) + (timeout > 0));
  return true;
}

static void polls_do_what_a_run_does(void **state) {
  host *h = *state;
  script(h, "n = 0\n"
            "coop.spawn(function()\n"
            "  for i = 1, 3 do coop.await(coop.sleep(0.002)); n = n + 1 end\n"
            "end)\n"
            "coop.coiterate(coop.generator(function()\n"
            "  for i = 1, 100 do n = n + 100; coop.yield() end\n"
            "end)())");
  assert_int_equal(coop_poll(h->ctx, 0), 1);
  poll_to_the_end(h);
  assert_global(h, "n", 10003);
}

static void a_poll_of_nothing_says_so(void **state) {
  host *h = *state;
  assert_int_equal(coop_poll(h->ctx, 10), 0);
  assert_int_equal(coop_poll(h->ctx, 0), 0);
  assert_true(coop_backend_timeout(h->ctx) < 0);
}

/* What must not depend on the machine is counted, not timed: a step here is long
   beside the budget, so that one is all that fits. */
static void a_poll_ends_with_its_budget(void **state) {
  host *h = *state;
  script(h, "n = 0\n"
            "local function step()\n"
            "  local over = coop.seconds() + 0.003\n"
            "  while coop.seconds() < over do end\n"
            "  n = n + 1\n"
            "  return true\n"
            "end\n"
            "for i = 1, 4 do coop.cooperate(step) end\n"
            "for i = 1, 4 do coop.Cooperator():cooperate(step) end\n"
            "for i = 1, 4 do coop.call_later(0, step) end");
  for (int i = 1; i <= 6; i++) {
    assert_int_equal(coop_poll(h->ctx, 0.002), 1);
    lua_getglobal(h->L, "n");
    assert_in_range(lua_tointeger(h->L, -1), i, 2 * i); /* a call, a step */
    lua_pop(h->L, 1);
  }
}

static void a_long_budget_is_used_while_there_is_work(void **state) {
  host *h = *state;
  script(h, "n = 0\n"
            "coop.cooperate(function() n = n + 1 return true end)\n"
            "coop.call_later(0.05, function() coop.reactor:stop() end)");
  double start = now();
  assert_int_equal(coop_poll(h->ctx, 60), 0); /* stopped */
  assert_true(now() - start < 30);
  lua_getglobal(h->L, "n");
  assert_true(lua_tointeger(h->L, -1) > 1);
  lua_pop(h->L, 1);
}

static void the_reactor_runs_in_polls_only(void **state) {
  host *h = *state;
  script(h, "local r, log = coop.reactor, {}\n"
            "local function note(what) return function()\n"
            "  log[#log + 1] = what .. tostring(r.running)\n"
            "end end\n"
            "r:add_system_event_trigger('before', 'startup', note 'startup ')\n"
            "r:add_system_event_trigger('after', 'shutdown', note 'shutdown ')\n"
            "r:call_when_running(note 'first ')\n"
            "r:call_later(0, note 'call ')\n"
            "function check() return r.running, table.concat(log, ', ') end");
  assert_int_equal(coop_poll(h->ctx, 0), 0);
  script(h, "local running, log = check()\n"
            "assert(not running)\n"
            "assert(log == 'startup false, first true, call true', log)\n"
            "coop.reactor:call_when_running(coop.reactor.stop, coop.reactor)\n"
            "coop.call_later(60, print)");
  assert_int_equal(coop_poll(h->ctx, 0), 0);
  script(h, "local _, log = check()\n"
            "assert(log:find('shutdown false', 1, true), log)");
}

/* poll_within(): a poll by a script that is in one. */
static int poll_within(lua_State *L) {
  lua_pushinteger(L, coop_poll(coop_of(L), 0));
  return 1;
}

static void a_poll_within_a_turn_does_nothing(void **state) {
  host *h = *state;
  lua_register(h->L, "poll_within", poll_within);
  script(h, "coop.call_later(0, function() n = poll_within() end)");
  poll_to_the_end(h);
  assert_global(h, "n", -1);
}

static void an_error_is_reported_and_polls_go_on(void **state) {
  host *h = *state;
  script(h, "coop.on_unhandled(function(f) told = f.value end)\n"
            "coop.call_later(0, error, 'oh')\n"
            "coop.call_later(0.001, function() n = 1 end)");
  poll_to_the_end(h);
  assert_global(h, "n", 1);
  script(h, "assert(told == 'oh')");
}

static void note_post(lua_State *L, void *ud) {
  (void)L;
  ++*(int *)ud;
}

static void a_post_alone_is_work(void **state) {
  host *h = *state;
  int n = 0;
  assert_int_equal(coop_poll(h->ctx, 0), 0);
  assert_int_equal(coop_post(h->ctx, note_post, &n), 0);
  assert_true(coop_backend_timeout(h->ctx) == 0);
  assert_int_equal(coop_poll(h->ctx, 0), 0);
  assert_int_equal(n, 1);
}

static void the_timeout_is_that_of_the_next_call(void **state) {
  host *h = *state;
  coop_poll(h->ctx, 0);
  assert_true(coop_backend_timeout(h->ctx) < 0);
  script(h, "call = coop.call_later(1000, print)");
  coop_poll(h->ctx, 0);
  double timeout = coop_backend_timeout(h->ctx);
  assert_true(timeout > 900 && timeout <= 1000);
  script(h, "call:cancel() task = coop.cooperate(function() return true end)");
  coop_poll(h->ctx, 0);
  assert_true(coop_backend_timeout(h->ctx) == 0);
  script(h, "task:stop()");
  coop_poll(h->ctx, 0);
  assert_true(coop_backend_timeout(h->ctx) < 0);
}

static void a_host_sleeps_between_polls(void **state) {
  host *h = *state;
  script(h, "n = 0\n"
            "coop.spawn(function()\n"
            "  for i = 1, 5 do coop.await(coop.sleep(0.01)); n = n + 1 end\n"
            "end)");
  int polls = 0;
  while (coop_poll(h->ctx, 0) == 1 && polls++ < 1000) assert_true(wait_for_work(h));
  assert_global(h, "n", 5);
  assert_true(polls < 100);
}

static void sockets_make_the_descriptor_readable(void **state) {
  host *h = *state;
  script(h, "local net = require 'coop.net'\n"
            "local server\n"
            "server = net.listen('127.0.0.1', 0, function(conn)\n"
            "  conn:write(coop.await(conn:read('l')) .. '\\n')\n"
            "  conn:close()\n"
            "  server:close()\n"
            "end)\n"
            "coop.spawn(function()\n"
            "  local conn = coop.await(net.connect('127.0.0.1', server.port))\n"
            "  conn:write('hello\\n')\n"
            "  got = coop.await(conn:read('l'))\n"
            "  conn:close()\n"
            "end)");
  while (coop_poll(h->ctx, 0) == 1) assert_true(wait_for_work(h));
  script(h, "assert(got == 'hello')");
}

/* Who answers is heard in the same poll. */
static void a_poll_goes_on_while_there_is_input(void **state) {
  host *h = *state;
  script(h, "local net = require 'coop.net'\n"
            "local server\n"
            "server = net.listen('127.0.0.1', 0, function(conn)\n"
            "  for i = 1, 50 do conn:write(coop.await(conn:read('l')) .. '\\n') end\n"
            "  conn:close()\n"
            "  server:close()\n"
            "end)\n"
            "n = 0\n"
            "coop.spawn(function()\n"
            "  local conn = coop.await(net.connect('127.0.0.1', server.port))\n"
            "  for i = 1, 50 do\n"
            "    conn:write(i .. '\\n')\n"
            "    n = n + coop.await(conn:read('l'))\n"
            "  end\n"
            "  conn:close()\n"
            "end)");
  int polls = 1;
  for (; coop_poll(h->ctx, 10) == 1; polls++) assert_true(wait_for_work(h));
  assert_global(h, "n", 1275);
  assert_in_range(polls, 1, 50);
}

static void *post_later(void *ud) {
  host *h = ud;
  static int n;
  struct timespec t = {0, 20000000};
  nanosleep(&t, NULL);
  return coop_post(h->ctx, note_post, &n) == 0 ? &n : NULL;
}

static void a_post_makes_the_descriptor_readable(void **state) {
  host *h = *state;
  pthread_t thread;
  void *result;
  for (int i = 0; i < 2; i++) {
    coop_poll(h->ctx, 0);
    assert_true(coop_backend_timeout(h->ctx) < 0);
    assert_int_equal(pthread_create(&thread, NULL, post_later, h), 0);
    assert_true(wait_for_work(h));
    coop_poll(h->ctx, 0);
    pthread_join(thread, &result);
    assert_non_null(result);
    assert_int_equal(*(int *)result, i + 1);
    struct pollfd fd = {.fd = coop_backend_fd(h->ctx), .events = POLLIN};
    assert_int_equal(poll(&fd, 1, 0), 0); /* nothing is left that keeps it so */
  }
}

static void a_closed_context_is_polled_in_vain(void **state) {
  host *h = *state;
  coop_close(h->ctx);
  assert_int_equal(coop_poll(h->ctx, 1), 0);
  assert_int_equal(coop_backend_fd(h->ctx), -1);
  assert_true(coop_backend_timeout(h->ctx) < 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    test(polls_do_what_a_run_does),
    test(a_poll_of_nothing_says_so),
    test(a_poll_ends_with_its_budget),
    test(a_long_budget_is_used_while_there_is_work),
    test(the_reactor_runs_in_polls_only),
    test(a_poll_within_a_turn_does_nothing),
    test(an_error_is_reported_and_polls_go_on),
    test(a_post_alone_is_work),
    test(the_timeout_is_that_of_the_next_call),
    test(a_host_sleeps_between_polls),
    test(sockets_make_the_descriptor_readable),
    test(a_poll_goes_on_while_there_is_input),
    test(a_post_makes_the_descriptor_readable),
    test(a_closed_context_is_polled_in_vain),
  };
  return cmocka_run_group_tests_name("poll", tests, NULL, NULL);
}
