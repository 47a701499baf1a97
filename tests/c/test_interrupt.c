/*
** test_interrupt.c - scripts that are interrupted: from other threads, from signal
** handlers, run by coop or by the host, and while coop is being closed.
*/
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "host.h"

static atomic_bool on; /* the interrupters go on */

static void nap(long microseconds) {
  struct timespec t = {0, microseconds * 1000};
  nanosleep(&t, NULL);
}

/* Interrupts until the script has had enough. */
static void *interrupt_on(void *ud) {
  while (atomic_load(&on)) {
    nap(200);
    coop_interrupt(ud, "enough!");
  }
  return NULL;
}

enum { THREADS = 8 };

static void begin(pthread_t *threads, int n, coop_context *ctx) {
  atomic_store(&on, true);
  for (int i = 0; i < n; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, interrupt_on, ctx), 0);
}

static void end(pthread_t *threads, int n) {
  atomic_store(&on, false);
  for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
}

static void fails(host *h, const char *text) {
  assert_int_not_equal(luaL_dostring(h->L, text), LUA_OK);
  assert_non_null(strstr(lua_tostring(h->L, -1), "enough!"));
  lua_settop(h->L, 0);
}

static void a_script_that_the_host_runs_is_interrupted(void **state) {
  host *h = *state;
  pthread_t thread;
  begin(&thread, 1, h->ctx);
  fails(h, "while true do end");
  fails(h, "coroutine.wrap(function() while true do end end)()");
  end(&thread, 1);
}

static void once(host *h) {
  coop_interrupt(h->ctx, "enough!");
  fails(h, "for i = 1, 10 do end");
  script(h, "for i = 1, 1000000 do end");
}

static void an_interrupt_is_for_what_runs_next(void **state) {
  host *h = *state;
  once(h);
  script(h, "coop.on_unhandled(function(f) told = f.value end)\n"
            "n = 0\n"
            "coop.call_later(0, function() for i = 1, 10 do n = n + 1 end end)");
  coop_interrupt(h->ctx, "enough!");
  while (coop_poll(h->ctx, 0.01) == 1) continue;
  script(h, "assert(told == 'enough!' and n < 10)");
  script(h, "task = coop.cooperate(coop.generator(function()\n"
            "  for i = 1, 10 do coop.yield(i) end\n"
            "end)())\n"
            "task:when_done():add_errback(function(f) failed = f.value end)\n"
            "for i = 1, 1000 do end");
  coop_interrupt(h->ctx, "enough!");
  while (coop_poll(h->ctx, 0.01) == 1) continue;
  script(h, "assert(failed == 'enough!')");
  once(h);
}

static void many_threads_interrupt_at_once(void **state) {
  host *h = *state;
  pthread_t threads[THREADS];
  script(h, "coop.on_unhandled(function() end)");
  begin(threads, THREADS, h->ctx);
  for (int i = 0; i < 20; i++) {
    fails(h, "coop.run(function()\n"
             "  while true do\n"
             "    local wrapped = coroutine.wrap(function() coop.await(coop.sleep(0)) end)\n"
             "    wrapped()\n"
             "    coop.spawn(function() end)\n"
             "  end\n"
             "end)");
  }
  end(threads, THREADS);
}

static void interrupts_race_the_close(void **state) {
  (void)state;
  for (int i = 0; i < 20; i++) {
    host h;
    pthread_t threads[THREADS];
    open_host(&h, NULL);
    begin(threads, THREADS, h.ctx);
    if (luaL_dostring(h.L, "coop.on_unhandled(function() end)\n"
                           "for i = 1, 10 do coop.spawn(function()\n"
                           "  coop.await(coop.sleep(60))\n"
                           "end) end"))
      lua_settop(h.L, 0);
    coop_poll(h.ctx, 0);
    coop_close(h.ctx);
    coop_interrupt(h.ctx, "enough!");
    end(threads, THREADS);
    script(&h, "for i = 1, 100000 do end");
    lua_close(h.L);
  }
}

static coop_context *signalled;

static void on_alarm(int number) {
  (void)number;
  coop_interrupt(signalled, "enough!");
}

static void *alarm_on(void *ud) {
  while (atomic_load(&on)) {
    nap(500);
    pthread_kill(*(pthread_t *)ud, SIGUSR1);
  }
  return NULL;
}

static void signal_handlers_may_interrupt(void **state) {
  host *h = *state;
  struct sigaction action = {.sa_handler = on_alarm}, before;
  pthread_t self = pthread_self(), thread;
  signalled = h->ctx;
  script(h, "coop.on_unhandled(function() end)");
  sigaction(SIGUSR1, &action, &before);
  atomic_store(&on, true);
  assert_int_equal(pthread_create(&thread, NULL, alarm_on, &self), 0);
  for (int i = 0; i < 20; i++)
    fails(h, "coop.run(function()\n"
             "  while true do coop.spawn(function() coop.await(coop.succeed(1)) end) end\n"
             "end)");
  atomic_store(&on, false);
  pthread_join(thread, NULL);
  sigaction(SIGUSR1, &before, NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    test(a_script_that_the_host_runs_is_interrupted),
    test(an_interrupt_is_for_what_runs_next),
    test(many_threads_interrupt_at_once),
    cmocka_unit_test(interrupts_race_the_close),
    test(signal_handlers_may_interrupt),
  };
  return cmocka_run_group_tests_name("interrupt", tests, NULL, NULL);
}
