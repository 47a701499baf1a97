/*
** test_timers.c - deadlines in order.
*/
#include <stdlib.h>
#include <string.h>

#include "core/timers.h"
#include "unit.h"

enum { TIMERS = 200, OPERATIONS = 100000 };

/* An allocator that knows what it gave, and fails when it is told to. */
typedef struct memory {
  size_t bytes;   /* given and not yet freed */
  unsigned calls; /* that asked for more */
  bool failing;
} memory;

static void *allocate(void *ud, void *ptr, size_t osize, size_t nsize) {
  memory *m = ud;
  assert_int_equal(osize, ptr ? m->bytes : 0);
  if (nsize == 0) {
    m->bytes = 0;
    free(ptr);
    return NULL;
  }
  m->calls++;
  if (m->failing) return NULL;
  m->bytes = nsize;
  return realloc(ptr, nsize);
}

typedef struct fixture {
  memory memory;
  coop_timers ts;
  coop_timer timers[TIMERS];
} fixture;

static int setup(void **state) {
  static fixture f;
  memset(&f, 0, sizeof f);
  coop__timers_init(&f.ts, allocate, &f.memory);
  *state = &f;
  return 0;
}

static int teardown(void **state) {
  fixture *f = *state;
  coop__timers_close(&f->ts);
  return f->memory.bytes == 0 ? 0 : -1;
}

static bool before(const coop_timer *a, const coop_timer *b) {
  return a->due != b->due ? a->due < b->due : a->seq < b->seq;
}

/* No parent is later than its eight children, and all know their places. */
static void assert_heap(const coop_timers *ts) {
  assert_true(ts->count == 0 || ts->count < ts->size); /* none is at 0 */
  for (size_t i = 1; i <= ts->count; i++) {
    coop_timer *t = ts->heap[i].timer;
    assert_int_equal(t->place, i);
    assert_true(t->due == ts->heap[i].due);
    if (i > 1) assert_false(before(t, ts->heap[(i - 2) / 8 + 1].timer));
  }
}

/* Adds the timers 0 .. n-1, due in a scattered order at 0 .. n-1 seconds. */
static void add_scattered(fixture *f, size_t n) {
  for (size_t i = 0; i < n; i++)
    assert_true(coop__timers_add(&f->ts, &f->timers[i], (double)(i * 7 % n)));
  assert_heap(&f->ts);
}

/* What expires next, whatever the time, is timer 'i'. */
static void assert_next(fixture *f, size_t i) {
  coop_timer *t = coop__timers_expire(&f->ts, 1e9, UINT64_MAX);
  assert_ptr_equal(t, &f->timers[i]);
  assert_int_equal(t->place, 0);
  assert_heap(&f->ts);
}

static void nothing_is_first_among_none(void **state) {
  fixture *f = *state;
  assert_null(coop__timers_first(&f->ts));
  assert_null(coop__timers_expire(&f->ts, 1e9, UINT64_MAX));
}

static void the_first_is_the_earliest(void **state) {
  fixture *f = *state;
  add_scattered(f, 100);
  for (int i = 0; i < 100; i++) {
    coop_timer *first = coop__timers_first(&f->ts);
    assert_true(first->due == i);
    assert_ptr_equal(coop__timers_expire(&f->ts, i, UINT64_MAX), first);
  }
  assert_null(coop__timers_first(&f->ts));
}

static void equals_come_in_the_order_in_which_they_were_made(void **state) {
  fixture *f = *state;
  for (size_t i = 0; i < TIMERS; i++)
    coop__timers_add(&f->ts, &f->timers[i], (double)(i % 2));
  for (size_t i = 0; i < TIMERS; i += 2) assert_next(f, i);
  for (size_t i = 1; i < TIMERS; i += 2) assert_next(f, i);
}

static void what_is_added_again_is_made_anew(void **state) {
  fixture *f = *state;
  for (size_t i = 0; i < 3; i++) coop__timers_add(&f->ts, &f->timers[i], 1);
  coop__timers_remove(&f->ts, &f->timers[0]);
  coop__timers_add(&f->ts, &f->timers[0], 1);
  assert_next(f, 1);
  assert_next(f, 2);
  assert_next(f, 0);
}

static void a_moved_timer_keeps_its_number(void **state) {
  fixture *f = *state;
  for (size_t i = 0; i < 20; i++) coop__timers_add(&f->ts, &f->timers[i], 5);
  coop__timers_move(&f->ts, &f->timers[0], 9);
  coop__timers_move(&f->ts, &f->timers[19], 1);
  coop__timers_move(&f->ts, &f->timers[7], 2);
  coop__timers_move(&f->ts, &f->timers[7], 5);
  assert_heap(&f->ts);
  assert_next(f, 19);
  for (size_t i = 1; i < 19; i++) assert_next(f, i);
  assert_next(f, 0);
}

static void a_timer_moves_from_and_to_anywhere(void **state) {
  fixture *f = *state;
  add_scattered(f, 40);
  for (size_t i = 0; i < 40; i++)
    for (int due = -1; due <= 41; due++) {
      double old = f->timers[i].due;
      coop__timers_move(&f->ts, &f->timers[i], due);
      assert_heap(&f->ts);
      coop__timers_move(&f->ts, &f->timers[i], old);
      assert_heap(&f->ts);
    }
}

static void any_timer_may_be_removed(void **state) {
  fixture *f = *state;
  for (size_t place = 1; place <= 60; place++) {
    add_scattered(f, 60);
    coop_timer *removed = f->ts.heap[place].timer;
    coop__timers_remove(&f->ts, removed);
    assert_int_equal(removed->place, 0);
    assert_heap(&f->ts);
    for (int due = 0; due < 60; due++)
      if (due != removed->due)
        assert_true(coop__timers_expire(&f->ts, due, UINT64_MAX)->due == due);
    assert_int_equal(f->ts.count, 0);
  }
}

static void removing_twice_is_harmless(void **state) {
  fixture *f = *state;
  add_scattered(f, 3);
  coop__timers_remove(&f->ts, &f->timers[1]);
  coop__timers_remove(&f->ts, &f->timers[1]);
  coop__timers_remove(&f->ts, &f->timers[5]);
  assert_int_equal(f->ts.count, 2);
}

static void only_what_is_due_expires(void **state) {
  fixture *f = *state;
  add_scattered(f, 10);
  for (int i = 0; i <= 4; i++)
    assert_true(coop__timers_expire(&f->ts, 4, UINT64_MAX)->due == i);
  assert_null(coop__timers_expire(&f->ts, 4, UINT64_MAX));
  assert_null(coop__timers_expire(&f->ts, 4.999999, UINT64_MAX));
  assert_non_null(coop__timers_expire(&f->ts, 5, UINT64_MAX));
}

static void what_a_turn_adds_is_left_to_the_next(void **state) {
  fixture *f = *state;
  coop__timers_add(&f->ts, &f->timers[0], 1);
  coop__timers_add(&f->ts, &f->timers[1], 1);
  for (size_t turn = 0; turn < 10; turn++) {
    uint64_t limit = f->ts.seq;
    coop_timer *t;
    size_t expired = 0;
    while ((t = coop__timers_expire(&f->ts, 1, limit))) {
      coop__timers_add(&f->ts, t, 1);
      expired++;
    }
    assert_int_equal(expired, 2);
  }
}

static void what_a_turn_moves_to_now_is_not(void **state) {
  fixture *f = *state;
  coop__timers_add(&f->ts, &f->timers[0], 1);
  coop__timers_add(&f->ts, &f->timers[1], 9);
  uint64_t limit = f->ts.seq;
  assert_ptr_equal(coop__timers_expire(&f->ts, 1, limit), &f->timers[0]);
  coop__timers_move(&f->ts, &f->timers[1], 1);
  assert_ptr_equal(coop__timers_expire(&f->ts, 1, limit), &f->timers[1]);
}

static void what_fails_to_be_added_changes_nothing(void **state) {
  fixture *f = *state;
  size_t n = 0;
  while (coop__timers_add(&f->ts, &f->timers[n], (double)(TIMERS - n))) {
    n++;
    f->memory.failing = true;
  }
  uint64_t seq = f->ts.seq;
  assert_false(coop__timers_add(&f->ts, &f->timers[n], 0));
  assert_int_equal(f->timers[n].place, 0);
  assert_int_equal(f->ts.count, n);
  assert_int_equal(f->ts.seq, seq);
  assert_heap(&f->ts);
  f->memory.failing = false;
  assert_true(coop__timers_add(&f->ts, &f->timers[n], 0));
  assert_next(f, n);
  while (n--) assert_next(f, n);
}

static void the_very_first_may_fail_to_be_added(void **state) {
  fixture *f = *state;
  f->memory.failing = true;
  assert_false(coop__timers_add(&f->ts, &f->timers[0], 1));
  assert_null(coop__timers_first(&f->ts));
}

static void memory_grows_with_the_logarithm_of_what_is_added(void **state) {
  fixture *f = *state;
  for (int round = 0; round < 100; round++) {
    add_scattered(f, TIMERS);
    for (size_t i = 0; i < TIMERS; i++)
      coop__timers_remove(&f->ts, &f->timers[i]);
  }
  assert_true(f->memory.calls <= 5);
}

static void closing_forgets_all(void **state) {
  fixture *f = *state;
  add_scattered(f, 50);
  coop__timers_close(&f->ts);
  assert_int_equal(f->memory.bytes, 0);
  for (size_t i = 0; i < 50; i++) assert_int_equal(f->timers[i].place, 0);
  assert_null(coop__timers_first(&f->ts));
  coop__timers_remove(&f->ts, &f->timers[0]);
}

static void adding_what_is_there_is_refused(void **state) {
  fixture *f = *state;
  add_scattered(f, 2);
  expect_assert_failure(coop__timers_add(&f->ts, &f->timers[0], 1));
}

static void moving_what_is_not_there_is_refused(void **state) {
  fixture *f = *state;
  add_scattered(f, 2);
  expect_assert_failure(coop__timers_move(&f->ts, &f->timers[2], 1));
}

/* --- against a model ------------------------------------------------------ */

/* The model: for each timer, its time and number, looked through one by one. */
typedef struct entry {
  bool in;
  double due;
  uint64_t seq;
} entry;

typedef struct model {
  entry entries[TIMERS];
  size_t count;
  uint64_t seq;
} model;

/* The number of the earliest, or TIMERS. */
static size_t model_first(const model *m) {
  size_t best = TIMERS;
  for (size_t i = 0; i < TIMERS; i++) {
    const entry *e = &m->entries[i], *b = &m->entries[best % TIMERS];
    if (!e->in) continue;
    if (best == TIMERS || e->due < b->due ||
        (e->due == b->due && e->seq < b->seq))
      best = i;
  }
  return best;
}

static void model_remove(model *m, size_t i) {
  if (m->entries[i].in) m->count--;
  m->entries[i].in = false;
}

/* One turn of a loop at time 'now', in which each call may make another. */
static void turn(fixture *f, model *m, double now, uint64_t *seed) {
  uint64_t limit = f->ts.seq;
  assert_int_equal(limit, m->seq);
  for (;;) {
    size_t i = model_first(m);
    bool due = i < TIMERS && m->entries[i].due <= now &&
               m->entries[i].seq < limit;
    coop_timer *t = coop__timers_expire(&f->ts, now, limit);
    assert_ptr_equal(t, due ? &f->timers[i] : NULL);
    if (!due) return;
    model_remove(m, i);
    if (draw(seed, 4) > 0) continue;
    double again = now + (double)draw(seed, 3);
    assert_true(coop__timers_add(&f->ts, t, again));
    m->entries[i] = (entry){true, again, m->seq++};
    m->count++;
  }
}

static void operate(fixture *f, model *m, double *now, uint64_t *seed) {
  size_t i = draw(seed, TIMERS);
  coop_timer *t = &f->timers[i];
  entry *e = &m->entries[i];
  double due = *now + (double)draw(seed, 30);
  size_t what = draw(seed, 10);
  if (what == 0) {
    *now += (double)draw(seed, 3);
    turn(f, m, *now, seed);
  } else if (what == 1) {
    coop__timers_remove(&f->ts, t);
    model_remove(m, i);
  } else if (e->in) {
    coop__timers_move(&f->ts, t, due);
    e->due = due;
  } else {
    f->memory.failing = draw(seed, 4) == 0;
    if (coop__timers_add(&f->ts, t, due)) {
      *e = (entry){true, due, m->seq++};
      m->count++;
    }
    f->memory.failing = false;
  }
}

static void random_operations_agree_with_a_model(void **state) {
  fixture *f = *state;
  model m = {.count = 0};
  double now = 0;
  uint64_t seed = 20240601;
  for (int i = 0; i < OPERATIONS; i++) {
    operate(f, &m, &now, &seed);
    assert_int_equal(f->ts.count, m.count);
    assert_heap(&f->ts);
    size_t first = model_first(&m);
    assert_ptr_equal(coop__timers_first(&f->ts),
                     first < TIMERS ? &f->timers[first] : NULL);
  }
}

#define test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
    test(nothing_is_first_among_none),
    test(the_first_is_the_earliest),
    test(equals_come_in_the_order_in_which_they_were_made),
    test(what_is_added_again_is_made_anew),
    test(a_moved_timer_keeps_its_number),
    test(a_timer_moves_from_and_to_anywhere),
    test(any_timer_may_be_removed),
    test(removing_twice_is_harmless),
    test(only_what_is_due_expires),
    test(what_a_turn_adds_is_left_to_the_next),
    test(what_a_turn_moves_to_now_is_not),
    test(what_fails_to_be_added_changes_nothing),
    test(the_very_first_may_fail_to_be_added),
    test(memory_grows_with_the_logarithm_of_what_is_added),
    test(closing_forgets_all),
    test(adding_what_is_there_is_refused),
    test(moving_what_is_not_there_is_refused),
    test(random_operations_agree_with_a_model),
  };
  return cmocka_run_group_tests_name("timers", tests, NULL, NULL);
}
