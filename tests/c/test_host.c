/*
** test_host.c - coop as a C host sees it: include/coop.h and nothing else.
*/
#include <errno.h>
#include <lauxlib.h>
#include <lualib.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <uv.h>

#include "coop.h"
#include "unit.h"

/* A host: a state with coop in it. */
typedef struct host {
  lua_State *L;
  coop_context *ctx;
} host;

static void open_host(host *h, uv_loop_t *uv) {
  h->L = luaL_newstate();
  assert_non_null(h->L);
  luaL_openlibs(h->L);
  h->ctx = coop_open(h->L, uv);
  assert_non_null(h->ctx);
  assert_int_equal(lua_gettop(h->L), 0);
  luaL_requiref(h->L, "coop", luaopen_coop, 1);
  lua_pop(h->L, 1);
}

static int setup(void **state) {
  static host h;
  open_host(&h, NULL);
  *state = &h;
  return 0;
}

static int teardown(void **state) {
  host *h = *state;
  int left = lua_gettop(h->L);
  lua_close(h->L);
  return left;
}

/* Runs a script in the manner of a host. */
static void script(host *h, const char *text) {
  if (luaL_dostring(h->L, text) != LUA_OK)
    fail_msg("%s", luaL_tolstring(h->L, -1, NULL));
}

/* The same of one that fails with the string 'message'. */
static void failing_script(host *h, const char *text, const char *message) {
  assert_int_not_equal(luaL_dostring(h->L, text), LUA_OK);
  assert_string_equal(lua_tostring(h->L, -1), message);
  lua_pop(h->L, 1);
}

static void run(host *h) {
  assert_int_equal(coop_run(h->ctx), 0);
  assert_int_equal(lua_gettop(h->L), 0);
}

/* The global 'name' is this integer. */
static void assert_global(host *h, const char *name, lua_Integer value) {
  lua_getglobal(h->L, name);
  assert_int_equal(lua_tointeger(h->L, -1), value);
  lua_pop(h->L, 1);
}

static void nap(double seconds) {
  struct timespec t = {0, (long)(seconds * 1e9)};
  while (nanosleep(&t, &t) != 0 && errno == EINTR) continue;
}

/* --- opening -------------------------------------------------------------- */

static void opening_again_gives_the_same_context(void **state) {
  host *h = *state;
  assert_ptr_equal(coop_open(h->L, NULL), h->ctx);
  assert_int_equal(lua_gettop(h->L), 0);
}

static void a_context_is_found_from_any_thread_of_its_state(void **state) {
  host *h = *state;
  lua_State *co = lua_newthread(h->L);
  assert_ptr_equal(coop_of(h->L), h->ctx);
  assert_ptr_equal(coop_of(co), h->ctx);
  assert_ptr_equal(coop_open(co, NULL), h->ctx);
  lua_pop(h->L, 1);
}

static void no_context_is_found_where_none_was_opened(void **state) {
  lua_State *L = luaL_newstate();
  (void)state;
  assert_null(coop_of(L));
  assert_int_equal(lua_gettop(L), 0);
  lua_close(L);
}

static void scripts_need_no_path_to_require_it(void **state) {
  host *h = *state;
  script(h, "package.loaded.coop, package.path, package.cpath = nil, '', ''\n"
            "assert(rawequal(require 'coop', coop))");
}

static void opening_the_module_opens_a_context(void **state) {
  lua_State *L = luaL_newstate();
  (void)state;
  luaL_openlibs(L);
  luaL_requiref(L, "coop", luaopen_coop, 0);
  assert_int_equal(lua_type(L, -1), LUA_TTABLE);
  assert_non_null(coop_of(L));
  assert_ptr_equal(coop_open(L, NULL), coop_of(L));
  lua_close(L);
}

static void the_open_function_pushes_the_module_and_no_more(void **state) {
  lua_State *L = luaL_newstate();
  (void)state;
  luaL_openlibs(L);
  for (int i = 1; i <= 2; i++) {
    assert_int_equal(luaopen_coop(L), 1);
    assert_int_equal(lua_gettop(L), i);
    assert_int_equal(lua_type(L, -1), LUA_TTABLE);
  }
  assert_true(lua_rawequal(L, 1, 2));
  lua_close(L);
}

static void the_version_is_that_of_the_header(void **state) {
  (void)state;
  assert_string_equal(coop_version(), COOP_VERSION);
}

/* --- running -------------------------------------------------------------- */

static void a_run_ends_when_nothing_is_left(void **state) {
  host *h = *state;
  script(h, "n = 0\n"
            "coop.spawn(function()\n"
            "  for i = 1, 3 do coop.await(coop.sleep(0.002)); n = n + 1 end\n"
            "end)\n"
            "coop.call_later(0.001, function() n = n + 10 end)\n"
            "coop.coiterate(coop.generator(function()\n"
            "  for i = 1, 100 do n = n + 100; coop.yield() end\n"
            "end)())");
  run(h);
  assert_global(h, "n", 10013);
}

static void a_run_of_nothing_returns_at_once(void **state) {
  host *h = *state;
  run(h);
}

static void it_may_be_run_again(void **state) {
  host *h = *state;
  script(h, "n = 0");
  for (int i = 1; i <= 3; i++) {
    script(h, "coop.call_later(0, function() n = n + 1 end)");
    run(h);
    assert_global(h, "n", i);
  }
}

static void stop_ends_a_run_and_the_next_goes_on(void **state) {
  host *h = *state;
  script(h, "n = 0\n"
            "coop.call_later(0, function() coop.reactor:stop() end)\n"
            "coop.call_later(0.01, function() n = n + 1 end)");
  run(h);
  assert_global(h, "n", 0);
  run(h);
  assert_global(h, "n", 1);
}

static void an_error_in_a_call_does_not_end_the_run(void **state) {
  host *h = *state;
  script(h, "n, told = 0, nil\n"
            "coop.on_unhandled(function(failure) told = failure.value end)\n"
            "coop.call_later(0, error, 'oh')\n"
            "coop.call_later(0.001, function() n = n + 1 end)");
  run(h);
  assert_global(h, "n", 1);
  script(h, "assert(told == 'oh')");
}

/* run_nested(): runs the loop that runs it; what came of it. */
static int run_nested(lua_State *L) {
  lua_pushinteger(L, coop_run(coop_of(L)));
  lua_insert(L, -2);
  return 2;
}

static void a_run_within_a_run_fails(void **state) {
  host *h = *state;
  lua_register(h->L, "run_nested", run_nested);
  script(h, "coop.call_later(0, function() status, err = run_nested() end)");
  run(h);
  assert_global(h, "status", LUA_ERRRUN);
  script(h, "assert(coop.errors.ReactorAlreadyRunning:is(err))");
}

static void a_run_within_a_run_fails_on_the_stack_of_its_caller(void **state) {
  host *h = *state;
  lua_register(h->L, "run_nested", run_nested);
  script(h, "coop.spawn(function()\n"
            "  coop.await(coop.sleep(0))\n"
            "  status, err = run_nested()\n"
            "  own_status, own_err = coroutine.wrap(run_nested)()\n"
            "end)");
  run(h);
  assert_global(h, "status", LUA_ERRRUN);
  assert_global(h, "own_status", LUA_ERRRUN);
  script(h, "assert(coop.errors.ReactorAlreadyRunning:is(err))\n"
            "assert(coop.errors.ReactorAlreadyRunning:is(own_err))");
}

static void a_script_may_run_the_loop_itself(void **state) {
  host *h = *state;
  script(h, "n = coop.run(function(a)\n"
            "  coop.await(coop.sleep(0.001))\n"
            "  return a + 1\n"
            "end, 41)");
  assert_global(h, "n", 42);
  failing_script(h, "coop.run(function() error('oh', 0) end)", "oh");
}

/* --- loops ---------------------------------------------------------------- */

static void on_bell(uv_timer_t *t) {
  ++*(int *)t->data;
  uv_close((uv_handle_t *)t, NULL);
}

static void its_loop_is_there_for_the_host_too(void **state) {
  host *h = *state;
  int rung = 0;
  uv_timer_t bell = {.data = &rung};
  uv_timer_init(coop_loop(h->ctx), &bell);
  uv_timer_start(&bell, on_bell, 5, 0);
  run(h);
  assert_int_equal(rung, 1);
}

static void a_given_loop_is_left_as_it_was_found(void **state) {
  uv_loop_t uv;
  host h;
  (void)state;
  uv_loop_init(&uv);
  open_host(&h, &uv);
  assert_ptr_equal(coop_loop(h.ctx), &uv);
  script(&h, "coop.call_later(0.001, function() n = 1 end)\n"
             "coop.call_later(60, function() n = 2 end)");
  while (uv_loop_alive(&uv)) {
    uv_run(&uv, UV_RUN_ONCE);
    lua_getglobal(h.L, "n");
    bool done = lua_tointeger(h.L, -1) == 1;
    lua_pop(h.L, 1);
    if (done) break;
  }
  coop_close(h.ctx);
  assert_int_equal(uv_run(&uv, UV_RUN_DEFAULT), 0);
  assert_int_equal(uv_loop_close(&uv), 0);
  assert_global(&h, "n", 1);
  lua_close(h.L);
}

static void a_host_may_run_its_own_loop(void **state) {
  uv_loop_t uv;
  host h;
  (void)state;
  uv_loop_init(&uv);
  open_host(&h, &uv);
  script(&h, "n = 0\n"
             "coop.spawn(function()\n"
             "  for i = 1, 5 do coop.await(coop.sleep(0.001)); n = n + 1 end\n"
             "end)");
  assert_int_equal(uv_run(&uv, UV_RUN_DEFAULT), 0);
  assert_global(&h, "n", 5);
  lua_close(h.L);
  assert_int_equal(uv_run(&uv, UV_RUN_DEFAULT), 0);
  assert_int_equal(uv_loop_close(&uv), 0);
}

/* --- several contexts ----------------------------------------------------- */

static const char counting[] =
    "n = 0\n"
    "coop.coiterate(function() n = n + 1; return n < 1000 or nil end)\n"
    "coop.call_later(0.002, function() late = n end)";

static void several_contexts_share_a_loop(void **state) {
  uv_loop_t uv;
  host h[3];
  (void)state;
  uv_loop_init(&uv);
  for (int i = 0; i < 3; i++) {
    open_host(&h[i], &uv);
    script(&h[i], counting);
  }
  assert_true(h[0].ctx != h[1].ctx);
  coop_close(h[1].ctx);
  assert_int_equal(coop_run(h[0].ctx), 0);
  assert_global(&h[0], "n", 1000);
  assert_global(&h[1], "n", 0);
  assert_global(&h[2], "n", 1000);
  for (int i = 0; i < 3; i++) lua_close(h[i].L);
  uv_run(&uv, UV_RUN_DEFAULT);
  assert_int_equal(uv_loop_close(&uv), 0);
}

static void *run_host(void *ud) {
  host *h = ud;
  return coop_run(h->ctx) == 0 ? h : NULL;
}

static void several_contexts_run_in_threads_of_their_own(void **state) {
  enum { N = 4 };
  host h[N];
  pthread_t threads[N];
  (void)state;
  for (int i = 0; i < N; i++) {
    open_host(&h[i], NULL);
    script(&h[i], counting);
  }
  for (int i = 0; i < N; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, run_host, &h[i]), 0);
  for (int i = 0; i < N; i++) {
    void *result;
    pthread_join(threads[i], &result);
    assert_ptr_equal(result, &h[i]);
    assert_global(&h[i], "n", 1000);
    lua_close(h[i].L);
  }
}

/* --- interrupts ----------------------------------------------------------- */

static void *interrupt_later(void *ud) {
  nap(0.03);
  coop_interrupt(ud, "enough!");
  return NULL;
}

static void an_endless_script_can_be_interrupted(void **state) {
  host *h = *state;
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, interrupt_later, h->ctx), 0);
  failing_script(h, "coop.run(function() while true do end end)", "enough!");
  pthread_join(thread, NULL);
}

static void an_interrupt_reaches_a_coroutine_of_the_script_s_own(void **state) {
  host *h = *state;
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, interrupt_later, h->ctx), 0);
  failing_script(h,
                 "coop.run(function()\n"
                 "  coroutine.wrap(function() while true do end end)()\n"
                 "end)",
                 "[string \"coop.run(function()...\"]:2: enough!"); /* wrap's */
  pthread_join(thread, NULL);
}

static void no_pcall_in_a_loop_holds_an_interrupt_up(void **state) {
  host *h = *state;
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, interrupt_later, h->ctx), 0);
  failing_script(h,
                 "coop.run(function()\n"
                 "  while true do pcall(function() while true do end end) end\n"
                 "end)",
                 "enough!");
  pthread_join(thread, NULL);
}

/* interrupt(message): of the script that calls it. */
static int interrupt(lua_State *L) {
  coop_interrupt(coop_of(L), luaL_checkstring(L, 1));
  return 0;
}

static void a_long_message_is_cut(void **state) {
  host *h = *state;
  char message[200], kept[128];
  memset(message, 'x', sizeof message - 1);
  message[sizeof message - 1] = '\0';
  memcpy(kept, message, sizeof kept);
  kept[127] = '\0';
  lua_register(h->L, "interrupt", interrupt);
  lua_pushstring(h->L, message);
  lua_setglobal(h->L, "message");
  failing_script(h,
                 "coop.run(function()\n"
                 "  interrupt(message)\n"
                 "  while true do end\n"
                 "end)",
                 kept);
}

/* --- posts ---------------------------------------------------------------- */

static void count_post(lua_State *L, void *ud) {
  assert_int_equal(lua_gettop(L), 0);
  ++*(int *)ud;
}

static void a_post_is_called_in_a_turn(void **state) {
  host *h = *state;
  int n = 0;
  script(h, "coop.call_later(0.01, print)");
  assert_int_equal(coop_post(h->ctx, count_post, &n), 0);
  assert_int_equal(n, 0);
  script(h, "coop.run(function() coop.await(coop.sleep(0)) end)");
  assert_int_equal(n, 1);
}

static void fail_post(lua_State *L, void *ud) {
  (void)ud;
  lua_pushstring(L, "oh");
  lua_error(L);
}

static void an_error_in_a_post_is_reported(void **state) {
  host *h = *state;
  script(h, "coop.on_unhandled(function(failure) told = failure.value end)\n"
            "coop.call_later(0.001, function() end)");
  assert_int_equal(coop_post(h->ctx, fail_post, NULL), 0);
  run(h);
  script(h, "assert(told == 'oh')");
}

enum { POSTERS = 4, POSTS = 2000 };

/* One of a thread's posts; 'came' is shared by them all. */
typedef struct post {
  int number;
  int *came;
} post;

/* A thread that posts its numbers in order. */
typedef struct poster {
  coop_context *ctx;
  pthread_t thread;
  post posts[POSTS];
  int came; /* how many have */
} poster;

static void take_post(lua_State *L, void *ud) {
  post *p = ud;
  (void)L;
  assert_int_equal(p->number, (*p->came)++);
}

static void *post_all(void *ud) {
  poster *p = ud;
  for (int i = 0; i < POSTS; i++)
    if (coop_post(p->ctx, take_post, &p->posts[i]) != 0) return NULL;
  return p;
}

static void posts_of_threads_keep_their_order(void **state) {
  host *h = *state;
  static poster posters[POSTERS];
  script(h, "stop = coop.call_later(60, print)");
  for (int i = 0; i < POSTERS; i++) {
    poster *p = &posters[i];
    *p = (poster){.ctx = h->ctx};
    for (int k = 0; k < POSTS; k++) p->posts[k] = (post){k, &p->came};
    assert_int_equal(pthread_create(&p->thread, NULL, post_all, p), 0);
  }
  script(h, "coop.run(function() coop.await(coop.sleep(0.02)) end)");
  for (int i = 0; i < POSTERS; i++) {
    void *result;
    pthread_join(posters[i].thread, &result);
    assert_ptr_equal(result, &posters[i]);
  }
  coop_close(h->ctx);
  for (int i = 0; i < POSTERS; i++)
    assert_int_equal(posters[i].came, POSTS);
}

static void no_post_keeps_a_run_from_ending(void **state) {
  host *h = *state;
  int n = 0;
  assert_int_equal(coop_post(h->ctx, count_post, &n), 0);
  run(h);
  coop_close(h->ctx);
  assert_int_equal(n, 1);
}

static void a_closed_context_takes_no_posts(void **state) {
  host *h = *state;
  int n = 0;
  coop_close(h->ctx);
  assert_int_not_equal(coop_post(h->ctx, count_post, &n), 0);
  assert_int_equal(n, 0);
}

/* --- closing -------------------------------------------------------------- */

static void nothing_runs_any_more_when_it_is_closed(void **state) {
  host *h = *state;
  script(h, "n = 0\n"
            "coop.call_later(0, function() n = n + 1 end)\n"
            "coop.cooperate(function() n = n + 1; return true end)\n"
            "d = coop.sleep(0.01)");
  coop_close(h->ctx);
  assert_global(h, "n", 0);
}

/* close_coop(): of the script that calls it. */
static int close_coop(lua_State *L) {
  coop_close(coop_of(L));
  return 0;
}

static void a_script_may_close_it_in_a_run(void **state) {
  host *h = *state;
  lua_register(h->L, "close_coop", close_coop);
  script(h, "n = 0\n"
            "coop.call_later(0, function() close_coop(); n = n + 1 end)\n"
            "coop.call_later(60, function() n = n + 10 end)");
  run(h);
  assert_global(h, "n", 1);
  lua_gc(h->L, LUA_GCCOLLECT);
}

static void closing_twice_and_closing_nothing_is_harmless(void **state) {
  host *h = *state;
  coop_close(h->ctx);
  coop_close(h->ctx);
  coop_close(NULL);
}

static void a_closed_context_cannot_be_run(void **state) {
  host *h = *state;
  coop_close(h->ctx);
  assert_int_equal(coop_run(h->ctx), LUA_ERRRUN);
  lua_pop(h->L, 1);
}

static void a_closed_context_is_interrupted_in_vain(void **state) {
  host *h = *state;
  coop_close(h->ctx);
  coop_interrupt(h->ctx, "enough!");
}

static void a_closed_context_leaves_what_needs_no_loop(void **state) {
  host *h = *state;
  coop_close(h->ctx);
  script(h, "local d = coop.Deferred()\n"
            "coop.spawn(function() n = coop.await(d) end)\n"
            "d:callback(7)");
  assert_global(h, "n", 7);
}

static void closing_the_state_closes_it_with_work_in_flight(void **state) {
  host *h = *state;
  script(h, "coop.call_later(60, print)\n"
            "coop.spawn(function() coop.await(coop.sleep(60)) end)\n"
            "coop.spawn(function() coop.await(coop.Deferred()) end)\n"
            "coop.cooperate(function() return true end)\n"
            "coop.accumulate(coop.generator(function()\n"
            "  while true do coop.yield(1) end\n"
            "end)())\n"
            "coop.DeferredLock():acquire()");
}

/* --- want of memory ------------------------------------------------------- */

static int allocations_left = -1; /* until one fails; negative: none does */

static void *allocate(void *ud, void *ptr, size_t osize, size_t nsize) {
  (void)ud;
  if (nsize == 0) {
    free(ptr);
    return NULL;
  }
  if (allocations_left >= 0 && (!ptr || nsize > osize)) {
    if (allocations_left == 0) return NULL;
    allocations_left--;
  }
  return realloc(ptr, nsize);
}

/* Opens coop with 'n' allocations to spare; then, if that was not enough, with
   memory for all. */
static bool open_with(int n) {
  lua_State *L = lua_newstate(allocate, NULL);
  luaL_openlibs(L);
  allocations_left = n;
  coop_context *ctx = coop_open(L, NULL);
  allocations_left = -1;
  if (!ctx) {
    assert_int_equal(lua_gettop(L), 1);
    assert_int_equal(lua_type(L, 1), LUA_TSTRING);
    lua_pop(L, 1);
    assert_non_null(coop_open(L, NULL));
  }
  assert_false(luaL_dostring(L, "require 'coop'.run(function() end)"));
  lua_close(L);
  return ctx;
}

/* Not at each of some thousand allocations: sanitized, that takes a minute. */
static void want_of_memory_is_told_and_leaves_nothing_behind(void **state) {
  (void)state;
  int n = 0;
  while (!open_with(n)) n += n < 50 ? 1 : 47;
  assert_true(n > 50);
}

#define test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
    test(opening_again_gives_the_same_context),
    test(a_context_is_found_from_any_thread_of_its_state),
    cmocka_unit_test(no_context_is_found_where_none_was_opened),
    test(scripts_need_no_path_to_require_it),
    cmocka_unit_test(opening_the_module_opens_a_context),
    cmocka_unit_test(the_open_function_pushes_the_module_and_no_more),
    cmocka_unit_test(the_version_is_that_of_the_header),
    test(a_run_ends_when_nothing_is_left),
    test(a_run_of_nothing_returns_at_once),
    test(it_may_be_run_again),
    test(stop_ends_a_run_and_the_next_goes_on),
    test(an_error_in_a_call_does_not_end_the_run),
    test(a_run_within_a_run_fails),
    test(a_run_within_a_run_fails_on_the_stack_of_its_caller),
    test(a_script_may_run_the_loop_itself),
    test(its_loop_is_there_for_the_host_too),
    cmocka_unit_test(a_given_loop_is_left_as_it_was_found),
    cmocka_unit_test(a_host_may_run_its_own_loop),
    cmocka_unit_test(several_contexts_share_a_loop),
    cmocka_unit_test(several_contexts_run_in_threads_of_their_own),
    test(an_endless_script_can_be_interrupted),
    test(an_interrupt_reaches_a_coroutine_of_the_script_s_own),
    test(no_pcall_in_a_loop_holds_an_interrupt_up),
    test(a_long_message_is_cut),
    test(a_post_is_called_in_a_turn),
    test(an_error_in_a_post_is_reported),
    test(posts_of_threads_keep_their_order),
    test(no_post_keeps_a_run_from_ending),
    test(a_closed_context_takes_no_posts),
    test(nothing_runs_any_more_when_it_is_closed),
    test(a_script_may_close_it_in_a_run),
    test(closing_twice_and_closing_nothing_is_harmless),
    test(a_closed_context_cannot_be_run),
    test(a_closed_context_is_interrupted_in_vain),
    test(a_closed_context_leaves_what_needs_no_loop),
    test(closing_the_state_closes_it_with_work_in_flight),
    cmocka_unit_test(want_of_memory_is_told_and_leaves_nothing_behind),
  };
  return cmocka_run_group_tests_name("host", tests, NULL, NULL);
}
