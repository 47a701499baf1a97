/*
** test_post.c - coop_post: none lost, order kept for each thread, refused at the end.
*/
#include <lauxlib.h>
#include <lualib.h>
#include <pthread.h>
#include <stdlib.h>
#include <uv.h>

#include "coop.h"
#include "unit.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { THREADS = 8, POSTS = 20000 };
#else
enum { THREADS = 8, POSTS = 125000 }; /* a million in all */
#endif

typedef struct host {
  lua_State *L;
  coop_context *ctx;
} host;

static int setup(void **state) {
  static host h;
  h.L = luaL_newstate();
  luaL_openlibs(h.L);
  h.ctx = coop_open(h.L, NULL);
  assert_non_null(h.ctx);
  *state = &h;
  return 0;
}

static int teardown(void **state) {
  host *h = *state;
  int left = lua_gettop(h->L);
  lua_close(h->L);
  return left;
}

/* One who posts from a thread of its own. */
typedef struct poster {
  coop_context *ctx;
  pthread_t thread;
  int accepted;     /* posts; its own thread's */
  int seen;         /* calls; the loop's */
  bool out_of_order;
} poster;

typedef struct note {
  poster *from;
  int number;
} note;

static void take_note(lua_State *L, void *ud) {
  note *n = ud;
  assert_int_equal(lua_gettop(L), 0);
  if (n->number != n->from->seen++) n->from->out_of_order = true;
  free(n);
}

static bool post(poster *p, int number) {
  note *n = malloc(sizeof *n);
  if (!n) return false;
  *n = (note){p, number};
  if (coop_post(p->ctx, take_note, n) == 0) return true;
  free(n);
  return false;
}

static void *post_many(void *ud) {
  poster *p = ud;
  while (p->accepted < POSTS && post(p, p->accepted)) p->accepted++;
  return NULL;
}

static void start(poster *p, coop_context *ctx, void *(*f)(void *ud)) {
  *p = (poster){.ctx = ctx};
  assert_int_equal(pthread_create(&p->thread, NULL, f, p), 0);
}

static void none_is_lost_and_each_thread_keeps_its_order(void **state) {
  host *h = *state;
  poster posters[THREADS];
  for (int i = 0; i < THREADS; i++) start(&posters[i], h->ctx, post_many);
  int seen = 0;
  while (seen < THREADS * POSTS) {
    assert_int_equal(coop_run(h->ctx), 0);
    seen = 0;
    for (int i = 0; i < THREADS; i++) seen += posters[i].seen;
  }
  for (int i = 0; i < THREADS; i++) {
    pthread_join(posters[i].thread, NULL);
    assert_int_equal(posters[i].accepted, POSTS);
    assert_int_equal(posters[i].seen, POSTS);
    assert_false(posters[i].out_of_order);
  }
}

static void *post_until_refused(void *ud) {
  poster *p = ud;
  while (post(p, p->accepted)) p->accepted++;
  return NULL;
}

static void what_was_accepted_before_the_close_is_called_the_rest_refused(void **state) {
  host *h = *state;
  poster posters[THREADS];
  for (int i = 0; i < THREADS; i++)
    start(&posters[i], h->ctx, post_until_refused);
  for (int i = 0; i < 100; i++) uv_run(coop_loop(h->ctx), UV_RUN_NOWAIT);
  coop_close(h->ctx);
  for (int i = 0; i < THREADS; i++) {
    pthread_join(posters[i].thread, NULL);
    assert_int_equal(posters[i].seen, posters[i].accepted);
    assert_false(posters[i].out_of_order);
  }
  assert_int_not_equal(coop_post(h->ctx, take_note, NULL), 0);
}

static void count(lua_State *L, void *ud) {
  (void)L;
  ++*(int *)ud;
}

static void post_again(lua_State *L, void *ud) {
  count(L, ud);
  if (*(int *)ud < 1000) coop_post(coop_of(L), post_again, ud);
}

static void a_call_may_post_the_next(void **state) {
  host *h = *state;
  int calls = 0;
  assert_int_equal(coop_post(h->ctx, post_again, &calls), 0);
  assert_int_equal(coop_run(h->ctx), 0);
  assert_int_equal(calls, 1000);
}

static void fail_in_lua(lua_State *L, void *ud) {
  (void)ud;
  lua_settop(L, 10);
  luaL_error(L, "posted in vain");
}

static int keep_message(lua_State *L) {
  lua_getfield(L, 1, "value");
  lua_setfield(L, LUA_REGISTRYINDEX, "told");
  return 0;
}

static void an_error_is_reported_and_those_behind_it_are_called(void **state) {
  host *h = *state;
  int calls = 0;
  luaopen_coop(h->L);
  lua_getfield(h->L, -1, "on_unhandled");
  lua_pushcfunction(h->L, keep_message);
  lua_call(h->L, 1, 0);
  lua_settop(h->L, 0);
  coop_post(h->ctx, fail_in_lua, NULL);
  coop_post(h->ctx, count, &calls);
  assert_int_equal(coop_run(h->ctx), 0);
  assert_int_equal(calls, 1);
  lua_getfield(h->L, LUA_REGISTRYINDEX, "told");
  assert_string_equal(lua_tostring(h->L, -1), "posted in vain");
  lua_pop(h->L, 1);
}

static void two_contexts_do_not_mix(void **state) {
  host *h = *state, other;
  int calls[2] = {0, 0};
  other.L = luaL_newstate();
  luaL_openlibs(other.L);
  other.ctx = coop_open(other.L, NULL);
  coop_post(h->ctx, count, &calls[0]);
  coop_post(other.ctx, count, &calls[1]);
  assert_int_equal(coop_run(h->ctx), 0);
  assert_int_equal(calls[0], 1);
  assert_int_equal(calls[1], 0);
  lua_close(other.L); /* makes it at last */
  assert_int_equal(calls[1], 1);
}

static void stop_loop(uv_timer_t *t) { uv_close((uv_handle_t *)t, NULL); }

static void a_post_reaches_a_loop_that_its_host_runs(void **state) {
  host *h = *state;
  int calls = 0;
  uv_timer_t timer;
  uv_timer_init(coop_loop(h->ctx), &timer);
  uv_timer_start(&timer, stop_loop, 50, 0);
  coop_post(h->ctx, count, &calls);
  uv_run(coop_loop(h->ctx), UV_RUN_DEFAULT);
  assert_int_equal(calls, 1);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
    TEST(none_is_lost_and_each_thread_keeps_its_order),
    TEST(what_was_accepted_before_the_close_is_called_the_rest_refused),
    TEST(a_call_may_post_the_next),
    TEST(an_error_is_reported_and_those_behind_it_are_called),
    TEST(two_contexts_do_not_mix),
    TEST(a_post_reaches_a_loop_that_its_host_runs),
  };
  return cmocka_run_group_tests_name("post", tests, NULL, NULL);
}
