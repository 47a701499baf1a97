/*
** test_sched.c - the ring of runnable tasks, with steps that only write down
** whose turn it was.
*/
#include <string.h>

#include "core/sched.h"
#include "unit.h"

enum { TASKS = 8, LOG = 256, ROUNDS = 20000 };

typedef struct fixture fixture;
typedef struct fake fake;

/* What a step does besides being logged. */
typedef void (*act_fn)(fixture *f, fake *t);

struct fake {
  coop_task base;
  char name;
  act_fn act;    /* or NULL */
  fake *other;   /* whom 'act' is about */
  int status;    /* what its steps report */
  int settled;   /* how often settle was called */
  int told;      /* the status it was called with last */
  bool refuses;  /* to go on with its quantum */
};

struct fixture {
  coop_sched sched;
  fake tasks[TASKS];
  fake *a, *b, *c; /* the first three */
  char log[LOG];   /* names in the order of their steps */
  size_t steps;    /* in 'log' */
  size_t left;     /* steps until 'over' ends the tick */
  size_t asked;    /* how often it was */
};

static int fake_step(coop_task *task, void *host) {
  fixture *f = host;
  fake *t = coop_container(task, fake, base);
  assert_ptr_equal(f->sched.current, task);
  assert_true(f->steps < LOG - 1);
  f->log[f->steps++] = t->name;
  if (t->act) t->act(f, t);
  return t->status;
}

static bool fake_settle(coop_task *task, int status, void *host) {
  fixture *f = host;
  fake *t = coop_container(task, fake, base);
  t->settled++;
  t->told = status;
  if (status != COOP_STEP_MORE) coop__sched_remove(&f->sched, task);
  return !t->refuses;
}

static const coop_task_ops ops = {fake_step, fake_settle};

static bool over(void *ud) {
  fixture *f = ud;
  f->asked++;
  return --f->left == 0;
}

static void init(fixture *f) {
  *f = (fixture){.left = 0};
  coop__sched_init(&f->sched, 1);
  for (int i = 0; i < TASKS; i++) {
    coop__task_init(&f->tasks[i].base, &ops);
    f->tasks[i].name = (char)('A' + i);
    f->tasks[i].status = COOP_STEP_MORE;
  }
  f->a = &f->tasks[0];
  f->b = &f->tasks[1];
  f->c = &f->tasks[2];
}

static int setup(void **state) {
  static fixture f;
  init(&f);
  *state = &f;
  return 0;
}

/* The ring is whole, its tasks are counted, and the cursor is in it. */
static void assert_whole(const coop_sched *s) {
  size_t n = 0;
  bool found = s->cursor == &s->ring;
  for (const coop_link *l = s->ring.next; l != &s->ring; l = l->next, n++) {
    assert_ptr_equal(l->next->prev, l);
    assert_true(n < TASKS);
    found = found || l == s->cursor;
  }
  assert_int_equal(s->count, n);
  assert_true(found);
}

static int teardown(void **state) {
  fixture *f = *state;
  assert_whole(&f->sched);
  assert_null(f->sched.current);
  assert_false(f->sched.ticking);
  return 0;
}

static void add(fixture *f, fake *t) { coop__sched_add(&f->sched, &t->base); }

static void leave(fixture *f, fake *t) {
  coop__sched_remove(&f->sched, &t->base);
}

static void add_first(fixture *f, int n) {
  for (int i = 0; i < n; i++) add(f, &f->tasks[i]);
}

/* A tick of at most 'n' steps takes these. */
static void assert_tick(fixture *f, size_t n, const char *names) {
  f->steps = f->asked = 0;
  f->left = n;
  size_t steps = coop__sched_tick(&f->sched, f, over, f);
  f->log[f->steps] = '\0';
  assert_string_equal(f->log, names);
  assert_int_equal(steps, f->steps);
  assert_int_equal(f->asked, f->steps);
  assert_whole(&f->sched);
}

/* --- whose turn it is ----------------------------------------------------- */

static void tasks_take_turns(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  assert_tick(f, 7, "ABCABCA");
}

static void an_empty_ring_takes_no_step(void **state) {
  fixture *f = *state;
  assert_tick(f, 5, "");
}

static void one_task_alone_has_every_turn(void **state) {
  fixture *f = *state;
  add_first(f, 1);
  assert_tick(f, 4, "AAAA");
}

static void over_ends_the_tick_after_a_step(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  assert_tick(f, 1, "A");
}

static void a_tick_goes_on_where_the_last_one_ended(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  assert_tick(f, 1, "A");
  assert_tick(f, 1, "B");
  assert_tick(f, 3, "CAB");
  assert_tick(f, 3, "CAB");
}

static void adding_twice_is_adding_once(void **state) {
  fixture *f = *state;
  add_first(f, 2);
  add(f, f->a);
  assert_int_equal(f->sched.count, 2);
  assert_tick(f, 4, "ABAB");
}

static void removing_twice_is_removing_once(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  leave(f, f->b);
  leave(f, f->b);
  assert_int_equal(f->sched.count, 2);
  assert_tick(f, 4, "ACAC");
}

static void a_task_is_runnable_while_it_is_in_the_ring(void **state) {
  fixture *f = *state;
  assert_false(coop__task_runnable(&f->a->base));
  add(f, f->a);
  assert_true(coop__task_runnable(&f->a->base));
  leave(f, f->a);
  assert_false(coop__task_runnable(&f->a->base));
}

/* Writes 'n' names of the rotation of tasks 0 .. 4 from number 'first' on,
   'gone' left out. */
static void write_turns(char *names, size_t n, size_t first, size_t gone) {
  for (size_t i = first; n > 0; i = (i + 1) % 5)
    if (i != gone) *names++ = (char)('A' + i), n--;
  *names = '\0';
}

static void whoever_leaves_the_one_behind_is_next(void **state) {
  char names[LOG];
  for (size_t ran = 1; ran <= 10; ran++)
    for (size_t gone = 0; gone < 5; gone++) {
      fixture *f = *state;
      init(f);
      add_first(f, 5);
      write_turns(names, ran, 0, TASKS);
      assert_tick(f, ran, names);
      leave(f, &f->tasks[gone]);
      write_turns(names, 8, ran % 5, gone);
      assert_tick(f, 8, names);
    }
}

static void all_may_leave(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  assert_tick(f, 2, "AB");
  for (int i = 0; i < 3; i++) leave(f, &f->tasks[i]);
  assert_tick(f, 3, "");
  add_first(f, 2);
  assert_tick(f, 3, "ABA");
}

static void who_is_new_goes_to_the_end(void **state) {
  fixture *f = *state;
  add_first(f, 2);
  assert_tick(f, 1, "A");
  add(f, f->c);
  assert_tick(f, 5, "BCABC");
}

static void who_is_new_is_reached_though_the_round_has_ended(void **state) {
  fixture *f = *state;
  add_first(f, 2);
  assert_tick(f, 2, "AB");
  add(f, f->c);
  assert_tick(f, 4, "CABC");
}

static void who_comes_back_goes_to_the_end(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  assert_tick(f, 1, "A");
  leave(f, f->b);
  add(f, f->b);
  assert_tick(f, 5, "CBACB");
}

static void who_comes_back_is_reached_in_the_same_round(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  assert_tick(f, 3, "ABC");
  leave(f, f->a);
  add(f, f->a);
  assert_tick(f, 4, "ABCA");
}

/* --- from within a step --------------------------------------------------- */

static void add_other(fixture *f, fake *t) { add(f, t->other); }

static void remove_other(fixture *f, fake *t) { leave(f, t->other); }

static void remove_all(fixture *f, fake *t) {
  (void)t;
  for (int i = 0; i < TASKS; i++) leave(f, &f->tasks[i]);
}

static void send_itself_to_the_end(fixture *f, fake *t) {
  leave(f, t);
  add(f, t);
  t->act = NULL;
}

static void do_to(fake *t, act_fn act, fake *other) {
  t->act = act;
  t->other = other;
}

static void a_step_may_add_another(void **state) {
  fixture *f = *state;
  add_first(f, 2);
  do_to(f->a, add_other, f->c);
  assert_tick(f, 6, "ABCABC");
}

static void what_the_last_step_of_a_round_adds_is_next(void **state) {
  fixture *f = *state;
  add_first(f, 2);
  do_to(f->b, add_other, f->c);
  assert_tick(f, 6, "ABCABC");
}

static void a_task_may_remove_itself(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  do_to(f->b, remove_other, f->b);
  assert_tick(f, 6, "ABCACA");
}

static void a_task_may_remove_the_next(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  do_to(f->a, remove_other, f->b);
  assert_tick(f, 5, "ACACA");
}

static void a_task_may_remove_the_one_before(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  do_to(f->b, remove_other, f->a);
  assert_tick(f, 6, "ABCBCB");
}

static void a_task_may_send_itself_to_the_end(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  do_to(f->b, send_itself_to_the_end, NULL);
  assert_tick(f, 7, "ABCBACB");
}

static void a_task_may_remove_all(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  do_to(f->b, remove_all, NULL);
  assert_tick(f, 9, "AB");
}

static void a_task_that_finishes_leaves(void **state) {
  fixture *f = *state;
  add_first(f, 3);
  f->b->status = COOP_STEP_DONE;
  assert_tick(f, 6, "ABCACA");
}

static void tick_again(fixture *f, fake *t) {
  (void)t;
  expect_assert_failure(coop__sched_tick(&f->sched, f, over, f));
}

static void a_tick_within_a_tick_is_refused(void **state) {
  fixture *f = *state;
  add_first(f, 2);
  do_to(f->a, tick_again, NULL);
  assert_tick(f, 3, "ABA");
}

static void tick_another(fixture *f, fake *t) {
  static fixture other;
  (void)f, (void)t;
  init(&other);
  add_first(&other, 2);
  assert_tick(&other, 3, "ABA");
}

static void a_tick_of_another_scheduler_is_not(void **state) {
  fixture *f = *state;
  add_first(f, 2);
  do_to(f->a, tick_another, NULL);
  assert_tick(f, 3, "ABA");
}

/* --- the quantum ---------------------------------------------------------- */

static void a_task_takes_its_quantum_in_a_row(void **state) {
  fixture *f = *state;
  f->sched.quantum = 3;
  add_first(f, 3);
  assert_tick(f, 12, "AAABBBCCCAAA");
}

static void the_rest_of_a_quantum_is_left_to_the_next_tick(void **state) {
  fixture *f = *state;
  f->sched.quantum = 3;
  add_first(f, 2);
  assert_tick(f, 1, "A");
  assert_tick(f, 1, "A");
  assert_tick(f, 3, "ABB");
  assert_tick(f, 4, "BAAA");
}

static void who_leaves_between_ticks_leaves_no_rest(void **state) {
  fixture *f = *state;
  f->sched.quantum = 3;
  add_first(f, 3);
  assert_tick(f, 4, "AAAB");
  leave(f, f->b);
  assert_tick(f, 5, "CCCAA");
  leave(f, f->a);
  add(f, f->a);
  assert_tick(f, 6, "CCCAAA");
}

static void who_leaves_in_its_step_leaves_no_rest(void **state) {
  fixture *f = *state;
  f->sched.quantum = 3;
  add_first(f, 3);
  do_to(f->a, send_itself_to_the_end, NULL);
  assert_tick(f, 10, "ABBBCCCAAA");
}

static void who_else_leaves_takes_no_rest_away(void **state) {
  fixture *f = *state;
  f->sched.quantum = 3;
  add_first(f, 3);
  do_to(f->b, remove_other, f->a);
  assert_tick(f, 12, "AAABBBCCCBBB");
}

static void a_new_quantum_holds_from_the_next_turn_on(void **state) {
  fixture *f = *state;
  f->sched.quantum = 2;
  add_first(f, 2);
  assert_tick(f, 1, "A");
  f->sched.quantum = 1;
  assert_tick(f, 4, "ABAB");
}

/* --- what a step leaves to settle ----------------------------------------- */

static int greedy_step(coop_task *task, void *host) {
  fixture *f = host;
  do fake_step(task, host);
  while (f->sched.credit > 0 && f->sched.credit-- && coop__sched_again(&f->sched));
  return COOP_STEP_MORE;
}

static void a_step_may_go_on_while_the_next_is_its_own_and_there_is_credit(void **state) {
  static const coop_task_ops greedy = {greedy_step, fake_settle};
  fixture *f = *state;
  f->a->base.ops = &greedy;
  f->sched.credit = 3;
  add(f, f->a);
  f->left = 1;
  coop__sched_tick(&f->sched, f, over, f);
  f->log[f->steps] = '\0';
  assert_string_equal(f->log, "AAAA");
  add(f, f->b);
  f->sched.credit = 3;
  f->steps = 0;
  f->left = 1;
  coop__sched_tick(&f->sched, f, over, f);
  f->log[f->steps] = '\0';
  assert_string_equal(f->log, "BAB");
}

static void a_plain_step_leaves_nothing_to_settle(void **state) {
  fixture *f = *state;
  add_first(f, 1);
  assert_tick(f, 5, "AAAAA");
  assert_int_equal(f->a->settled, 0);
}

static void values_are_settled(void **state) {
  fixture *f = *state;
  add_first(f, 1);
  f->a->base.nout = 2;
  assert_tick(f, 5, "AAAAA");
  assert_int_equal(f->a->settled, 5);
  assert_int_equal(f->a->told, COOP_STEP_MORE);
}

static void the_end_and_a_failure_are_settled(void **state) {
  fixture *f = *state;
  add_first(f, 2);
  f->a->status = COOP_STEP_DONE;
  f->b->status = 5;
  assert_tick(f, 9, "AB");
  assert_int_equal(f->a->settled, 1);
  assert_int_equal(f->a->told, COOP_STEP_DONE);
  assert_int_equal(f->b->settled, 1);
  assert_int_equal(f->b->told, 5);
}

static void values_do_not_end_a_quantum(void **state) {
  fixture *f = *state;
  f->sched.quantum = 3;
  add_first(f, 2);
  f->a->base.nout = 1;
  assert_tick(f, 6, "AAABBB");
}

static void settle_may_end_a_quantum(void **state) {
  fixture *f = *state;
  f->sched.quantum = 3;
  add_first(f, 2);
  f->a->base.nout = 1;
  f->a->refuses = true;
  assert_tick(f, 8, "ABBBABBB");
  assert_int_equal(f->a->settled, 2);
}

static void who_finishes_takes_no_quantum_along(void **state) {
  fixture *f = *state;
  f->sched.quantum = 3;
  add_first(f, 2);
  f->a->status = COOP_STEP_DONE;
  assert_tick(f, 7, "ABBBBBB");
}

/* --- against a model ------------------------------------------------------ */

/* A list in order of addition; how many of it are at the cursor or before. */
typedef struct model {
  size_t order[TASKS];
  size_t n, passed;
  size_t left, quantum;
} model;

static size_t model_find(const model *m, size_t who) {
  size_t i = 0;
  while (i < m->n && m->order[i] != who) i++;
  return i;
}

static void model_add(model *m, size_t who) {
  if (model_find(m, who) == m->n) m->order[m->n++] = who;
}

static void model_remove(model *m, size_t who) {
  size_t i = model_find(m, who);
  if (i == m->n) return;
  if (i + 1 == m->passed) m->left = 0;
  if (i < m->passed) m->passed--;
  m->n--;
  for (; i < m->n; i++) m->order[i] = m->order[i + 1];
}

/* Whose step is next; there must be one. */
static size_t model_next(model *m) {
  assert_true(m->n > 0);
  if (m->left == 0) {
    if (m->passed == m->n) m->passed = 0;
    m->passed++;
    m->left = m->quantum;
  }
  m->left--;
  return m->order[m->passed - 1];
}

typedef struct lottery {
  fixture f;
  model m;
  uint64_t seed;
  bool ended; /* 'over' has said so */
} lottery;

/* Adds or removes up to two tasks, in the ring and in the model. */
static void draw_changes(lottery *l) {
  for (size_t n = draw(&l->seed, 3); n > 0; n--) {
    size_t who = draw(&l->seed, TASKS);
    if (draw(&l->seed, 2)) {
      add(&l->f, &l->f.tasks[who]);
      model_add(&l->m, who);
    } else {
      leave(&l->f, &l->f.tasks[who]);
      model_remove(&l->m, who);
    }
    assert_whole(&l->f.sched);
  }
}

/* Does the task make its next step, too, without having left this one? */
static bool goes_on(lottery *l) {
  coop_sched *s = &l->f.sched;
  if (s->lent > 0) {
    s->lent--;
    return true;
  }
  if (s->credit == 0) return false;
  s->credit--;
  if (!coop__sched_again(s)) return false;
  if (draw(&l->seed, 2)) coop__sched_lend(s);
  return true;
}

static int lottery_step(coop_task *task, void *host) {
  lottery *l = host;
  size_t who = (size_t)(coop_container(task, fake, base) - l->f.tasks);
  do {
    assert_int_equal(who, model_next(&l->m));
    if (draw(&l->seed, 2)) draw_changes(l);
  } while (draw(&l->seed, 5) > 0 && goes_on(l));
  task->nout = (int)draw(&l->seed, 2);
  return (int)draw(&l->seed, 8) == 0 ? COOP_STEP_DONE : COOP_STEP_MORE;
}

static bool lottery_settle(coop_task *task, int status, void *host) {
  lottery *l = host;
  size_t who = (size_t)(coop_container(task, fake, base) - l->f.tasks);
  if (status == COOP_STEP_DONE) {
    leave(&l->f, &l->f.tasks[who]);
    model_remove(&l->m, who);
  }
  draw_changes(l);
  if (draw(&l->seed, 3) > 0) return true;
  l->m.left = 0;
  return false;
}

static bool lottery_over(void *ud) {
  lottery *l = ud;
  l->f.sched.credit = draw(&l->seed, 8);
  return l->ended = draw(&l->seed, 10) == 0;
}

static void random_operations_agree_with_a_model(void **state) {
  static const coop_task_ops lottery_ops = {lottery_step, lottery_settle};
  static lottery l;
  (void)state;
  for (size_t quantum = 1; quantum <= 4; quantum++) {
    l = (lottery){.m.quantum = quantum, .seed = quantum};
    init(&l.f);
    l.f.sched.quantum = quantum;
    for (int i = 0; i < TASKS; i++) l.f.tasks[i].base.ops = &lottery_ops;
    for (int i = 0; i < ROUNDS; i++) {
      draw_changes(&l);
      l.ended = false;
      coop__sched_tick(&l.f.sched, &l, lottery_over, &l);
      assert_true(l.ended || l.m.n == 0);
      assert_whole(&l.f.sched);
    }
  }
}

#define test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
    test(tasks_take_turns),
    test(an_empty_ring_takes_no_step),
    test(one_task_alone_has_every_turn),
    test(over_ends_the_tick_after_a_step),
    test(a_tick_goes_on_where_the_last_one_ended),
    test(adding_twice_is_adding_once),
    test(removing_twice_is_removing_once),
    test(a_task_is_runnable_while_it_is_in_the_ring),
    test(whoever_leaves_the_one_behind_is_next),
    test(all_may_leave),
    test(who_is_new_goes_to_the_end),
    test(who_is_new_is_reached_though_the_round_has_ended),
    test(who_comes_back_goes_to_the_end),
    test(who_comes_back_is_reached_in_the_same_round),
    test(a_step_may_add_another),
    test(what_the_last_step_of_a_round_adds_is_next),
    test(a_task_may_remove_itself),
    test(a_task_may_remove_the_next),
    test(a_task_may_remove_the_one_before),
    test(a_task_may_send_itself_to_the_end),
    test(a_task_may_remove_all),
    test(a_task_that_finishes_leaves),
    test(a_tick_within_a_tick_is_refused),
    test(a_tick_of_another_scheduler_is_not),
    test(a_task_takes_its_quantum_in_a_row),
    test(the_rest_of_a_quantum_is_left_to_the_next_tick),
    test(who_leaves_between_ticks_leaves_no_rest),
    test(who_leaves_in_its_step_leaves_no_rest),
    test(who_else_leaves_takes_no_rest_away),
    test(a_new_quantum_holds_from_the_next_turn_on),
    test(a_step_may_go_on_while_the_next_is_its_own_and_there_is_credit),
    test(a_plain_step_leaves_nothing_to_settle),
    test(values_are_settled),
    test(the_end_and_a_failure_are_settled),
    test(values_do_not_end_a_quantum),
    test(settle_may_end_a_quantum),
    test(who_finishes_takes_no_quantum_along),
    test(random_operations_agree_with_a_model),
  };
  return cmocka_run_group_tests_name("sched", tests, NULL, NULL);
}
