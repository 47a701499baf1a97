/*
** test_stack.c - what a host does on the stack of a state: coroutines, Deferreds,
** tasks of C steps.
*/
#include "host.h"

/* Pushes the global of that name. */
static void push(host *h, const char *name) { lua_getglobal(h->L, name); }

/* --- coroutines ----------------------------------------------------------- */

static void spawn_runs_to_the_first_wait(void **state) {
  host *h = *state;
  script(h, "function f(a, b)\n"
            "  seen = a + b\n"
            "  coop.await(coop.sleep(0))\n"
            "  return a * b\n"
            "end");
  lua_pushliteral(h->L, "below");
  push(h, "f");
  lua_pushinteger(h->L, 6);
  lua_pushinteger(h->L, 7);
  assert_int_equal(coop_spawn(h->L, 2), LUA_OK);
  assert_int_equal(lua_gettop(h->L), 2);
  assert_global(h, "seen", 13);
  lua_setglobal(h->L, "d");
  assert_string_equal(lua_tostring(h->L, -1), "below");
  lua_pop(h->L, 1);
  script(h, "assert(coop.type(d) == 'Coroutine' and not d.called)");
  run(h);
  script(h, "assert(d.result == 42)");
}

static void an_error_in_what_is_spawned_is_its_outcome(void **state) {
  host *h = *state;
  script(h, "function f() error('oh', 0) end");
  push(h, "f");
  assert_int_equal(coop_spawn(h->L, 0), LUA_OK);
  lua_setglobal(h->L, "d");
  script(h, "d:add_errback(function(failure) assert(failure.value == 'oh') n = 1 end)");
  assert_global(h, "n", 1);
}

static void what_is_no_function_cannot_be_spawned(void **state) {
  host *h = *state;
  lua_pushinteger(h->L, 5);
  lua_pushinteger(h->L, 6);
  assert_int_equal(coop_spawn(h->L, 1), LUA_ERRRUN);
  assert_int_equal(lua_gettop(h->L), 1);
  assert_non_null(strstr(lua_tostring(h->L, 1), "function expected, got number"));
  lua_pop(h->L, 1);
}

/* spawn(f): by a C function, on the stack that it was given. */
static int spawn(lua_State *L) {
  lua_settop(L, 1);
  lua_pushinteger(L, 1);
  assert_int_equal(coop_spawn(L, 1), LUA_OK);
  assert_int_equal(lua_gettop(L), 1);
  return 1;
}

static void coroutines_may_call_what_spawns(void **state) {
  host *h = *state;
  lua_register(h->L, "spawn", spawn);
  script(h, "d = coop.Deferred()\n"
            "coop.spawn(function()\n"
            "  local inner = spawn(function(n) return n + coop.await(d) end)\n"
            "  assert(not inner.called)\n"
            "  n = coop.await(inner)\n"
            "end)\n"
            "coroutine.wrap(function()\n"
            "  spawn(function(n) m = n + coop.await(d) end)\n"
            "end)()\n"
            "d:callback(6)");
  assert_global(h, "n", 7);
  assert_global(h, "m", 7);
}

/* --- Deferreds ------------------------------------------------------------ */

static void callback_fires_a_deferred_from_c(void **state) {
  host *h = *state;
  coop_deferred_new(h->L);
  assert_int_equal(lua_gettop(h->L), 1);
  lua_pushvalue(h->L, 1);
  lua_setglobal(h->L, "d");
  script(h, "coop.spawn(function() n = coop.await(d) end)");
  lua_pushinteger(h->L, 42);
  assert_int_equal(coop_deferred_callback(h->L, 1), 0);
  assert_int_equal(lua_gettop(h->L), 1);
  assert_global(h, "n", 42);
  lua_pushinteger(h->L, 43);
  assert_int_not_equal(coop_deferred_callback(h->L, -2), 0);
  assert_int_equal(lua_gettop(h->L), 1);
  lua_pop(h->L, 1);
}

static void errback_fails_it(void **state) {
  host *h = *state;
  coop_deferred_new(h->L);
  lua_pushvalue(h->L, 1);
  lua_setglobal(h->L, "d");
  lua_newtable(h->L);
  lua_pushvalue(h->L, -1);
  lua_setglobal(h->L, "err");
  assert_int_equal(coop_deferred_errback(h->L, -2), 0);
  assert_int_equal(lua_gettop(h->L), 1);
  lua_pushnil(h->L);
  assert_int_not_equal(coop_deferred_errback(h->L, 1), 0);
  lua_pop(h->L, 1);
  script(h, "coop.spawn(function()\n"
            "  local ok, e = pcall(coop.await, d)\n"
            "  n = not ok and rawequal(e, err) and 1\n"
            "end)");
  assert_global(h, "n", 1);
}

static void what_cannot_be_fired_is_refused(void **state) {
  host *h = *state;
  lua_pushinteger(h->L, 1);
  lua_pushinteger(h->L, 2);
  assert_int_not_equal(coop_deferred_callback(h->L, 1), 0);
  assert_int_equal(lua_gettop(h->L), 1);
  lua_pushinteger(h->L, 2);
  assert_int_not_equal(coop_deferred_errback(h->L, 1), 0);
  lua_pop(h->L, 1);
  coop_deferred_new(h->L);
  coop_deferred_new(h->L);
  assert_int_not_equal(coop_deferred_callback(h->L, 1), 0); /* a Deferred as value */
  assert_int_equal(lua_gettop(h->L), 1);
  lua_pop(h->L, 1);
  script(h, "d = coop.spawn(function() coop.await(coop.Deferred()) end)");
  push(h, "d");
  lua_pushinteger(h->L, 2);
  assert_int_not_equal(coop_deferred_callback(h->L, 1), 0); /* a coroutine's own */
  assert_int_equal(lua_gettop(h->L), 1);
  lua_pop(h->L, 1);
}

static void one_late_fire_of_a_cancelled_one_is_ignored(void **state) {
  host *h = *state;
  coop_deferred_new(h->L);
  lua_pushvalue(h->L, 1);
  lua_setglobal(h->L, "d");
  script(h, "d:add_errback(function() end) d:cancel()");
  lua_pushinteger(h->L, 1);
  assert_int_equal(coop_deferred_callback(h->L, 1), 0);
  lua_pushinteger(h->L, 1);
  assert_int_not_equal(coop_deferred_callback(h->L, 1), 0);
  lua_pop(h->L, 1);
}

/* What a watch was told. */
typedef struct told {
  int times, failed;
  lua_Integer value;
  char text[64];
} told;

static void be_told(lua_State *L, int failed, void *ud) {
  told *t = ud;
  assert_int_equal(lua_gettop(L), 1);
  t->times++;
  t->failed = failed;
  t->value = lua_tointeger(L, 1);
  if (failed && lua_isuserdata(L, 1)) lua_getfield(L, 1, "value");
  snprintf(t->text, sizeof t->text, "%s", luaL_tolstring(L, -1, NULL));
}

static void a_watch_is_told_the_result(void **state) {
  host *h = *state;
  told t = {0}, late = {0};
  coop_deferred_new(h->L);
  coop_deferred_watch(h->L, -1, be_told, &t);
  assert_int_equal(lua_gettop(h->L), 1);
  assert_int_equal(t.times, 0);
  lua_pushinteger(h->L, 5);
  coop_deferred_callback(h->L, 1);
  assert_int_equal(t.times, 1);
  assert_int_equal(t.failed, 0);
  assert_int_equal(t.value, 5);
  coop_deferred_watch(h->L, 1, be_told, &late);
  assert_int_equal(late.value, 5);
  lua_setglobal(h->L, "d");
  script(h, "assert(d.result == 5)");
}

static void a_watch_is_told_a_failure_which_is_handled_then(void **state) {
  host *h = *state;
  told t = {0};
  script(h, "coop.on_unhandled(function() n = 1 end)");
  coop_deferred_new(h->L);
  coop_deferred_watch(h->L, -1, be_told, &t);
  lua_pushliteral(h->L, "oh");
  coop_deferred_errback(h->L, 1);
  assert_int_equal(t.times, 1);
  assert_int_equal(t.failed, 1);
  assert_string_equal(t.text, "oh");
  lua_pop(h->L, 1);
  lua_gc(h->L, LUA_GCCOLLECT);
  assert_global(h, "n", 0);
}

static void a_watched_deferred_is_kept(void **state) {
  host *h = *state;
  told t = {0};
  script(h, "function f() coop.await(coop.sleep(0.001)) return 9 end");
  push(h, "f");
  coop_spawn(h->L, 0);
  coop_deferred_watch(h->L, -1, be_told, &t);
  lua_pop(h->L, 1);
  lua_gc(h->L, LUA_GCCOLLECT);
  run(h);
  assert_int_equal(t.value, 9);
}

static void a_watch_of_what_is_no_deferred_is_told_so_at_once(void **state) {
  host *h = *state;
  told t = {0};
  lua_pushinteger(h->L, 5);
  coop_deferred_watch(h->L, 1, be_told, &t);
  assert_int_equal(lua_gettop(h->L), 1);
  lua_pop(h->L, 1);
  assert_int_equal(t.times, 1);
  assert_int_equal(t.failed, 1);
  assert_non_null(strstr(t.text, "Deferred expected, got number"));
}

static void fail_told(lua_State *L, int failed, void *ud) {
  (void)failed, (void)ud;
  luaL_error(L, "told too much");
}

static void an_error_in_a_watch_is_reported(void **state) {
  host *h = *state;
  script(h, "coop.on_unhandled(function(f) told = f.value end)");
  coop_deferred_new(h->L);
  coop_deferred_watch(h->L, 1, fail_told, NULL);
  lua_pushinteger(h->L, 5);
  assert_int_equal(coop_deferred_callback(h->L, 1), 0);
  lua_pop(h->L, 1);
  script(h, "assert(told == 'told too much')");
}

static void the_end_of_the_state_tells_a_watch(void **state) {
  host h;
  told t = {0};
  (void)state;
  open_host(&h, NULL);
  coop_deferred_new(h.L);
  coop_deferred_watch(h.L, -1, be_told, &t);
  lua_close(h.L);
  assert_int_equal(t.times, 1);
  assert_int_equal(t.failed, 1);
  assert_string_equal(t.text, "ContextClosed: coop was closed");
}

/* --- tasks of C steps ----------------------------------------------------- */

typedef struct counter {
  int steps, limit, released;
  coop_step end;
} counter;

static coop_step count_step(lua_State *L, void *ud) {
  counter *c = ud;
  assert_int_equal(lua_gettop(L), 0);
  assert_int_equal(c->released, 0);
  lua_pushliteral(L, "oh");
  return ++c->steps < c->limit ? COOP_MORE : c->end;
}

static void release(void *ud) { ++((counter *)ud)->released; }

/* Adds the task; it is the global 'task'. */
static void add(host *h, counter *c) {
  assert_int_equal(coop_cooperate(h->L, count_step, c, release), LUA_OK);
  assert_int_equal(lua_gettop(h->L), 1);
  lua_setglobal(h->L, "task");
}

static void a_task_of_steps_is_stepped_to_its_end(void **state) {
  host *h = *state;
  counter c = {.limit = 1000, .end = COOP_DONE};
  add(h, &c);
  script(h, "assert(coop.type(task) == 'CooperativeTask')\n"
            "n = 0\n"
            "coop.cooperate(function() n = n + 1 return n < 1000 or nil end)\n"
            "task:when_done():add_callback(function() done = n end)");
  assert_int_equal(c.steps, 0);
  run(h);
  assert_int_equal(c.steps, 1000);
  assert_int_equal(c.released, 1);
  lua_getglobal(h->L, "done"); /* turn and turn about with the one in Lua */
  assert_in_range(lua_tointeger(h->L, -1), 998, 1000);
  lua_pop(h->L, 1);
}

static void a_step_may_fail_its_task(void **state) {
  host *h = *state;
  counter c = {.limit = 3, .end = COOP_FAIL};
  add(h, &c);
  script(h, "task:when_done():add_errback(function(f) assert(f.value == 'oh') n = 1 end)");
  run(h);
  assert_int_equal(c.steps, 3);
  assert_int_equal(c.released, 1);
  assert_global(h, "n", 1);
}

static coop_step raise_step(lua_State *L, void *ud) {
  (void)ud;
  return (coop_step)luaL_error(L, "oh");
}

static void an_error_raised_in_a_step_fails_it_too(void **state) {
  host *h = *state;
  counter c = {0};
  assert_int_equal(coop_cooperate(h->L, raise_step, &c, release), LUA_OK);
  lua_setglobal(h->L, "task");
  script(h, "task:when_done():add_errback(function(f) assert(f.value == 'oh') n = 1 end)");
  run(h);
  assert_int_equal(c.released, 1);
  assert_global(h, "n", 1);
}

static void a_task_of_steps_is_paused_resumed_and_stopped(void **state) {
  host *h = *state;
  counter c = {.limit = 1000000000};
  add(h, &c);
  script(h, "task:pause()");
  run(h);
  assert_int_equal(c.steps, 0);
  script(h, "task:resume()\n"
            "task:when_done():add_errback(function(f)\n"
            "  n = f:check(coop.errors.TaskStopped) and 1\n"
            "end)\n"
            "coop.call_later(0.002, function() task:stop() end)");
  run(h);
  assert_true(c.steps > 0);
  assert_int_equal(c.released, 1);
  assert_global(h, "n", 1);
}

static coop_step stop_self(lua_State *L, void *ud) {
  counter *c = ud;
  lua_getglobal(L, "task");
  lua_getfield(L, -1, "stop");
  lua_insert(L, -2);
  lua_call(L, 1, 0);
  assert_int_equal(c->released, 0); /* not during the step */
  c->steps++;
  return COOP_MORE;
}

static void a_step_may_stop_its_task(void **state) {
  host *h = *state;
  counter c = {0};
  assert_int_equal(coop_cooperate(h->L, stop_self, &c, release), LUA_OK);
  lua_setglobal(h->L, "task");
  run(h);
  assert_int_equal(c.steps, 1);
  assert_int_equal(c.released, 1);
}

static void steps_of_a_stopped_cooperator_are_released_at_once(void **state) {
  host *h = *state;
  counter c = {.limit = 5};
  script(h, "coop.cooperator:stop()");
  add(h, &c);
  assert_int_equal(c.steps, 0);
  assert_int_equal(c.released, 1);
  script(h, "coop.cooperator:start()");
}

static void collection_and_the_end_of_the_state_release_steps(void **state) {
  host h;
  counter kept = {.limit = 5}, lost = {.limit = 5};
  (void)state;
  open_host(&h, NULL);
  add(&h, &lost);
  script(&h, "task:pause() task = nil collectgarbage()");
  assert_int_equal(lost.released, 1);
  add(&h, &kept);
  lua_close(h.L);
  assert_int_equal(kept.released, 1);
  assert_int_equal(kept.steps, 0);
}

/* --- where coop is not open ----------------------------------------------- */

static void nothing_is_done_where_coop_is_not_open(void **state) {
  lua_State *L = luaL_newstate();
  counter c = {.limit = 5};
  told t = {0};
  (void)state;
  lua_pushnil(L);
  lua_pushnil(L);
  assert_int_equal(coop_spawn(L, 1), LUA_ERRRUN);
  assert_int_equal(lua_gettop(L), 1);
  assert_non_null(strstr(lua_tostring(L, 1), "coop is not open"));
  coop_deferred_new(L);
  assert_true(lua_isnil(L, 2));
  lua_pushinteger(L, 1);
  assert_int_not_equal(coop_deferred_callback(L, 2), 0);
  lua_pushinteger(L, 1);
  assert_int_not_equal(coop_deferred_errback(L, 2), 0);
  assert_int_equal(lua_gettop(L), 2);
  coop_deferred_watch(L, 2, be_told, &t);
  assert_int_equal(t.failed, 1);
  assert_int_equal(coop_cooperate(L, count_step, &c, release), LUA_ERRRUN);
  assert_int_equal(lua_gettop(L), 3);
  assert_int_equal(c.released, 0);
  lua_close(L);
}

int main(void) {
  const struct CMUnitTest tests[] = {
    test(spawn_runs_to_the_first_wait),
    test(an_error_in_what_is_spawned_is_its_outcome),
    test(what_is_no_function_cannot_be_spawned),
    test(coroutines_may_call_what_spawns),
    test(callback_fires_a_deferred_from_c),
    test(errback_fails_it),
    test(what_cannot_be_fired_is_refused),
    test(one_late_fire_of_a_cancelled_one_is_ignored),
    test(a_watch_is_told_the_result),
    test(a_watch_is_told_a_failure_which_is_handled_then),
    test(a_watched_deferred_is_kept),
    test(a_watch_of_what_is_no_deferred_is_told_so_at_once),
    test(an_error_in_a_watch_is_reported),
    cmocka_unit_test(the_end_of_the_state_tells_a_watch),
    test(a_task_of_steps_is_stepped_to_its_end),
    test(a_step_may_fail_its_task),
    test(an_error_raised_in_a_step_fails_it_too),
    test(a_task_of_steps_is_paused_resumed_and_stopped),
    test(a_step_may_stop_its_task),
    test(steps_of_a_stopped_cooperator_are_released_at_once),
    cmocka_unit_test(collection_and_the_end_of_the_state_release_steps),
    cmocka_unit_test(nothing_is_done_where_coop_is_not_open),
  };
  return cmocka_run_group_tests_name("stack", tests, NULL, NULL);
}
