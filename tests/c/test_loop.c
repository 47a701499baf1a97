/*
** test_loop.c - one libuv loop, with a clock and an owner but no Lua.
*/
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "unit.h"
#include "uv/loop.h"

/* How late the machine may be; how early an alarm may be, to be set again. */
static const double lateness = 1, earliness = 0.001;

/* Who says what the loop is armed for: work, and one deadline at a time. */
typedef struct owner {
  coop_uv loop;
  unsigned turns;
  unsigned work;    /* turns that there is work for */
  double deadline;  /* or HUGE_VAL */
  double met;       /* when it was found to have passed, or 0 */
  double turned;    /* when the last turn began */
  double first;     /* when the first one did */
  bool closes;      /* the loop, in its next turn */
} owner;

static void arm(owner *o) {
  coop__loop_arm(&o->loop, o->work > 0, o->deadline);
}

static void turn(void *ud) {
  owner *o = ud;
  o->turned = coop__now();
  if (o->turns++ == 0) o->first = o->turned;
  if (o->work > 0) o->work--;
  if (o->turned >= o->deadline) {
    o->met = o->turned;
    o->deadline = HUGE_VAL;
  }
  if (o->closes) coop__loop_close(&o->loop);
  else arm(o);
}

static void open_on(owner *o, uv_loop_t *uv) {
  *o = (owner){.deadline = HUGE_VAL};
  assert_int_equal(coop__loop_init(&o->loop, uv, turn, o), 0);
}

static int closed; /* what uv_loop_close answered last */

int __real_uv_loop_close(uv_loop_t *uv);
int __wrap_uv_loop_close(uv_loop_t *uv);

int __wrap_uv_loop_close(uv_loop_t *uv) {
  return closed = __real_uv_loop_close(uv);
}

static int setup(void **state) {
  static owner o;
  open_on(&o, NULL);
  closed = 1;
  *state = &o;
  return 0;
}

/* Its own loop has been closed with nothing left in it. */
static int teardown(void **state) {
  owner *o = *state;
  coop__loop_close(&o->loop);
  return closed;
}

static void nap(double seconds) {
  struct timespec t = {0, (long)(seconds * 1e9)};
  while (nanosleep(&t, &t) != 0 && errno == EINTR) continue;
}

/* Turns the loop until nothing is left; how often. */
static unsigned run(owner *o) {
  unsigned n = 1;
  while (coop__loop_once(&o->loop, true)) assert_true(++n < 1000);
  return n;
}

/* --- work ----------------------------------------------------------------- */

static void nothing_is_left_when_it_is_not_armed(void **state) {
  owner *o = *state;
  assert_false(coop__loop_once(&o->loop, true));
  assert_int_equal(o->turns, 0);
}

static void it_turns_while_there_is_work(void **state) {
  owner *o = *state;
  o->work = 5;
  arm(o);
  run(o);
  assert_int_equal(o->turns, 5);
  assert_false(uv_loop_alive(o->loop.uv));
}

static void work_has_one_turn_in_a_turn_of_the_loop(void **state) {
  owner *o = *state;
  o->work = 10;
  arm(o);
  for (unsigned i = 1; i <= 9; i++) {
    assert_true(coop__loop_once(&o->loop, i % 2));
    assert_int_equal(o->turns, i);
  }
  assert_false(coop__loop_once(&o->loop, true));
}

static void what_is_due_is_in_the_same_turn(void **state) {
  owner *o = *state;
  for (unsigned i = 1; i <= 20; i++) {
    o->work = 2;
    o->deadline = coop__now() - 1;
    arm(o);
    assert_true(coop__loop_once(&o->loop, true));
    assert_int_equal(o->turns, i);
    assert_true(o->deadline == HUGE_VAL);
  }
  o->work = 0;
  arm(o);
}

static void work_does_not_wait_for_a_deadline(void **state) {
  owner *o = *state;
  double start = coop__now();
  o->work = 100;
  o->deadline = start + 60;
  arm(o);
  while (o->work > 0) assert_true(coop__loop_once(&o->loop, true));
  assert_true(coop__now() - start < 30);
}

/* --- deadlines ------------------------------------------------------------ */

static void a_deadline_wakes_it(void **state) {
  owner *o = *state;
  double due = o->deadline = coop__now() + 0.02;
  arm(o);
  run(o);
  assert_true(o->met >= due);
  assert_true(o->met < due + lateness);
  assert_false(uv_loop_alive(o->loop.uv));
}

static void on_bell(uv_timer_t *t) {
  nap((double)draw(t->data, 1000) / 1e6);
}

/* A bell of libuv's rings once on the way and takes a part of a millisecond:
   the alarm may then come at any part of one. */
static void an_alarm_that_is_early_by_rounding_is_set_again(void **state) {
  owner *o = *state;
  uint64_t seed = 7;
  uv_timer_t bell = {.data = &seed};
  uv_timer_init(o->loop.uv, &bell);
  for (int i = 0; i < 100; i++) {
    o->met = 0;
    double due = coop__now() + 2e-3 + (double)draw(&seed, 1000) / 1e6;
    o->deadline = due;
    arm(o);
    uv_timer_start(&bell, on_bell, 1, 0);
    run(o);
    assert_true(o->met >= due);
    assert_true(o->met < due + lateness);
  }
  uv_close((uv_handle_t *)&bell, NULL);
  run(o);
}

static void time_spent_since_the_last_turn_makes_no_alarm_early(void **state) {
  owner *o = *state;
  coop__loop_once(&o->loop, false);
  nap(0.03);
  double due = o->deadline = coop__now() + 0.02;
  arm(o);
  while (o->turns == 0) coop__loop_once(&o->loop, true);
  assert_true(o->first > due - earliness);
}

static void a_deadline_takes_few_turns(void **state) {
  owner *o = *state;
  enum { DEADLINES = 40, EACH = 4 };
  for (int i = 0; i < DEADLINES; i++) {
    o->deadline = coop__now() + 0.0021;
    arm(o);
    run(o);
  }
  assert_true(o->turns >= DEADLINES);
  assert_true(o->turns <= DEADLINES * EACH);
}

static void a_deadline_that_has_passed_is_now(void **state) {
  owner *o = *state;
  double start = o->deadline = coop__now();
  arm(o);
  run(o);
  assert_true(o->met > 0);
  assert_true(o->met < start + lateness);
  o->deadline = -1e9;
  arm(o);
  run(o);
  assert_true(o->deadline == HUGE_VAL);
}

static void an_earlier_deadline_takes_the_place_of_a_later(void **state) {
  owner *o = *state;
  double start = coop__now();
  o->deadline = start + 60;
  arm(o);
  o->deadline = start + 0.01;
  arm(o);
  run(o);
  assert_true(o->met >= start + 0.01);
  assert_true(o->met < start + 0.01 + lateness);
}

static void a_later_deadline_takes_the_place_of_an_earlier(void **state) {
  owner *o = *state;
  double start = coop__now();
  o->deadline = start + 0.001;
  arm(o);
  o->deadline = start + 0.03;
  arm(o);
  run(o);
  assert_true(o->met >= start + 0.03);
}

static void no_deadline_takes_the_place_of_one(void **state) {
  owner *o = *state;
  o->deadline = coop__now() + 60;
  arm(o);
  assert_true(uv_loop_alive(o->loop.uv));
  o->deadline = HUGE_VAL;
  arm(o);
  assert_false(coop__loop_once(&o->loop, true));
}

static void a_deadline_out_of_all_reach_is_no_trouble(void **state) {
  owner *o = *state;
  o->deadline = 1e300;
  arm(o);
  assert_true(coop__loop_once(&o->loop, false));
  assert_true(o->deadline == 1e300);
}

static void on_ring(uv_timer_t *t) { ++*(int *)t->data; }

/* Deadlines that are always now leave libuv time for everything else. */
static void what_is_always_due_starves_nobody(void **state) {
  owner *o = *state;
  int rung = 0;
  uv_timer_t bell = {.data = &rung};
  uv_timer_init(o->loop.uv, &bell);
  uv_timer_start(&bell, on_ring, 1, 1);
  double start = coop__now();
  while (rung < 5 && coop__now() < start + 5) {
    o->deadline = coop__now();
    arm(o);
    coop__loop_once(&o->loop, true);
  }
  assert_int_equal(rung, 5);
  uv_close((uv_handle_t *)&bell, NULL);
  run(o);
}

/* --- waking --------------------------------------------------------------- */

static void *wake_later(void *ud) {
  nap(0.02);
  coop__loop_wake(ud);
  return NULL;
}

static void another_thread_wakes_it(void **state) {
  owner *o = *state;
  pthread_t thread;
  double start = coop__now();
  o->deadline = start + 60;
  arm(o);
  assert_int_equal(pthread_create(&thread, NULL, wake_later, &o->loop), 0);
  coop__loop_once(&o->loop, true);
  pthread_join(thread, NULL);
  assert_int_equal(o->turns, 1);
  assert_true(o->turned - start > 0.015);
  assert_true(o->turned - start < 0.02 + lateness);
}

static void many_wakes_are_one(void **state) {
  owner *o = *state;
  o->deadline = coop__now() + 60;
  arm(o);
  for (int i = 0; i < 1000; i++) coop__loop_wake(&o->loop);
  coop__loop_once(&o->loop, true);
  assert_int_equal(o->turns, 1);
}

static coop_uv *signalled;

static void on_signal(int number) {
  (void)number;
  coop__loop_wake(signalled);
}

static void a_signal_handler_wakes_it(void **state) {
  owner *o = *state;
  struct sigaction action = {.sa_handler = on_signal}, old;
  signalled = &o->loop;
  sigaction(SIGUSR1, &action, &old);
  o->deadline = coop__now() + 60;
  arm(o);
  raise(SIGUSR1);
  coop__loop_once(&o->loop, true);
  sigaction(SIGUSR1, &old, NULL);
  assert_int_equal(o->turns, 1);
}

static void being_woken_is_no_reason_to_live(void **state) {
  owner *o = *state;
  coop__loop_wake(&o->loop);
  assert_false(uv_loop_alive(o->loop.uv));
  run(o);
  assert_false(uv_loop_alive(o->loop.uv));
}

static void it_lives_while_it_is_held(void **state) {
  owner *o = *state;
  pthread_t thread;
  coop__loop_hold(&o->loop);
  coop__loop_hold(&o->loop);
  coop__loop_release(&o->loop);
  assert_true(uv_loop_alive(o->loop.uv));
  double start = coop__now();
  assert_int_equal(pthread_create(&thread, NULL, wake_later, &o->loop), 0);
  assert_true(coop__loop_once(&o->loop, true));
  pthread_join(thread, NULL);
  assert_true(coop__now() - start > 0.015);
  coop__loop_release(&o->loop);
  assert_false(coop__loop_once(&o->loop, true));
}

/* --- a loop that was given ------------------------------------------------ */

static void count_handle(uv_handle_t *h, void *ud) {
  (void)h;
  ++*(int *)ud;
}

static int handles(uv_loop_t *uv) {
  int n = 0;
  uv_walk(uv, count_handle, &n);
  return n;
}

static void a_given_loop_is_left_as_it_was_found(void **state) {
  uv_loop_t uv;
  uv_timer_t bell;
  owner o;
  (void)state;
  uv_loop_init(&uv);
  uv_timer_init(&uv, &bell);
  int before = handles(&uv);
  open_on(&o, &uv);
  assert_ptr_equal(o.loop.uv, &uv);
  assert_false(uv_loop_alive(&uv));
  o.work = 3;
  o.deadline = coop__now() + 60;
  arm(&o);
  coop__loop_once(&o.loop, true);
  coop__loop_close(&o.loop);
  assert_int_equal(uv_run(&uv, UV_RUN_DEFAULT), 0);
  assert_int_equal(o.turns, 1);
  assert_int_equal(handles(&uv), before);
  uv_close((uv_handle_t *)&bell, NULL);
  uv_run(&uv, UV_RUN_DEFAULT);
  assert_int_equal(uv_loop_close(&uv), 0);
}

static void its_owner_may_run_it(void **state) {
  uv_loop_t uv;
  owner o;
  (void)state;
  uv_loop_init(&uv);
  open_on(&o, &uv);
  o.work = 5;
  double due = o.deadline = coop__now() + 0.01;
  arm(&o);
  assert_int_equal(uv_run(&uv, UV_RUN_DEFAULT), 0);
  assert_true(o.turns >= 6);
  assert_true(o.met >= due);
  coop__loop_close(&o.loop);
  uv_run(&uv, UV_RUN_DEFAULT);
  assert_int_equal(uv_loop_close(&uv), 0);
}

static void several_share_one(void **state) {
  uv_loop_t uv;
  owner o[3];
  (void)state;
  uv_loop_init(&uv);
  for (unsigned i = 0; i < 3; i++) {
    open_on(&o[i], &uv);
    o[i].work = 10 * (i + 1);
    arm(&o[i]);
  }
  for (int i = 0; i < 5; i++) coop__loop_once(&o[0].loop, true);
  for (int i = 0; i < 3; i++) assert_int_equal(o[i].turns, 5);
  coop__loop_close(&o[1].loop);
  uv_run(&uv, UV_RUN_DEFAULT);
  assert_int_equal(o[0].work, 0);
  assert_int_equal(o[1].turns, 5);
  assert_int_equal(o[2].work, 0);
  coop__loop_close(&o[0].loop);
  coop__loop_close(&o[2].loop);
  uv_run(&uv, UV_RUN_DEFAULT);
  assert_int_equal(uv_loop_close(&uv), 0);
}

static void it_may_be_closed_in_its_turn(void **state) {
  uv_loop_t uv;
  owner o;
  (void)state;
  for (int timed = 0; timed <= 1; timed++) {
    uv_loop_init(&uv);
    open_on(&o, &uv);
    o.closes = true;
    if (timed) o.deadline = coop__now();
    else o.work = 5;
    arm(&o);
    assert_int_equal(uv_run(&uv, UV_RUN_DEFAULT), 0);
    assert_int_equal(o.turns, 1);
    assert_int_equal(uv_loop_close(&uv), 0);
  }
}

/* --- a loop of its own ---------------------------------------------------- */

static void its_own_loop_closes_while_armed(void **state) {
  owner *o = *state;
  o->work = 5;
  o->deadline = coop__now() + 60;
  arm(o);
  coop__loop_close(&o->loop);
  assert_null(o->loop.uv);
  assert_int_equal(o->turns, 0);
}

static void its_own_loop_closes_what_others_left_open(void **state) {
  static uv_timer_t bell;
  static uv_async_t door;
  owner *o = *state;
  uv_timer_init(o->loop.uv, &bell);
  uv_timer_start(&bell, on_ring, 60000, 0);
  uv_async_init(o->loop.uv, &door, NULL);
  coop__loop_close(&o->loop);
  assert_true(uv_is_closing((uv_handle_t *)&bell));
  assert_true(uv_is_closing((uv_handle_t *)&door));
}

static void its_own_loop_may_be_closed_in_its_turn(void **state) {
  owner *o = *state;
  o->closes = true;
  o->work = 5;
  o->deadline = coop__now() + 60;
  arm(o);
  coop__loop_once(&o->loop, true);
  assert_null(o->loop.uv);
  assert_int_equal(closed, 0);
  assert_int_equal(o->turns, 1);
}

static void closing_twice_is_harmless(void **state) {
  owner *o = *state;
  coop__loop_close(&o->loop);
  coop__loop_close(&o->loop);
}

static void what_is_closed_is_armed_and_woken_in_vain(void **state) {
  owner *o = *state;
  coop__loop_close(&o->loop);
  coop__loop_arm(&o->loop, true, 0);
  coop__loop_wake(&o->loop);
  assert_int_equal(o->turns, 0);
}

/* --- want of memory ------------------------------------------------------- */

static int allocations_left = -1; /* until one fails; negative: none does */

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

void *__wrap_malloc(size_t size) {
  if (allocations_left == 0) return NULL;
  if (allocations_left > 0) allocations_left--;
  return __real_malloc(size);
}

static void want_of_memory_leaves_nothing_behind(void **state) {
  (void)state;
  int failures = 0, e;
  uv_loop_t uv;
  uv_loop_init(&uv);
  do {
    owner o = {.turns = 0};
    allocations_left = failures;
    e = coop__loop_init(&o.loop, &uv, turn, &o);
    allocations_left = -1;
    if (e == 0) coop__loop_close(&o.loop);
    else assert_int_equal(e, UV_ENOMEM);
    uv_run(&uv, UV_RUN_DEFAULT);
    assert_int_equal(handles(&uv), 0);
  } while (e != 0 && ++failures < 100);
  assert_int_equal(failures, 4);
  assert_int_equal(uv_loop_close(&uv), 0);
}

static void want_of_memory_closes_its_own_loop(void **state) {
  (void)state;
  owner o = {.turns = 0};
  for (int n = 0; n < 5; n++) { /* the first is the loop */
    closed = 1;
    allocations_left = n;
    assert_int_equal(coop__loop_init(&o.loop, NULL, turn, &o), UV_ENOMEM);
    allocations_left = -1;
    assert_int_equal(closed, n == 0);
  }
}

#define test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
    test(nothing_is_left_when_it_is_not_armed),
    test(it_turns_while_there_is_work),
    test(work_has_one_turn_in_a_turn_of_the_loop),
    test(what_is_due_is_in_the_same_turn),
    test(work_does_not_wait_for_a_deadline),
    test(a_deadline_wakes_it),
    test(an_alarm_that_is_early_by_rounding_is_set_again),
    test(time_spent_since_the_last_turn_makes_no_alarm_early),
    test(a_deadline_takes_few_turns),
    test(a_deadline_that_has_passed_is_now),
    test(an_earlier_deadline_takes_the_place_of_a_later),
    test(a_later_deadline_takes_the_place_of_an_earlier),
    test(no_deadline_takes_the_place_of_one),
    test(a_deadline_out_of_all_reach_is_no_trouble),
    test(what_is_always_due_starves_nobody),
    test(another_thread_wakes_it),
    test(many_wakes_are_one),
    test(a_signal_handler_wakes_it),
    test(being_woken_is_no_reason_to_live),
    test(it_lives_while_it_is_held),
    cmocka_unit_test(a_given_loop_is_left_as_it_was_found),
    cmocka_unit_test(its_owner_may_run_it),
    cmocka_unit_test(several_share_one),
    cmocka_unit_test(it_may_be_closed_in_its_turn),
    test(its_own_loop_closes_while_armed),
    test(its_own_loop_closes_what_others_left_open),
    test(its_own_loop_may_be_closed_in_its_turn),
    test(closing_twice_is_harmless),
    test(what_is_closed_is_armed_and_woken_in_vain),
    cmocka_unit_test(want_of_memory_leaves_nothing_behind),
    cmocka_unit_test(want_of_memory_closes_its_own_loop),
  };
  return cmocka_run_group_tests_name("loop", tests, NULL, NULL);
}
