/*
** sched.c - the ring of runnable tasks and the one loop that steps it.
**
** Steps may add, resume, pause or finish any task, themselves included: the
** loop holds no pointer into the ring but the cursor, which removal keeps right.
*/
#include <assert.h>

#include "sched.h"

void coop__sched_init(coop_sched *s, size_t quantum) {
  *s = (coop_sched){.cursor = &s->ring, .quantum = quantum};
  coop__link_init(&s->ring);
}

void coop__task_init(coop_task *t, const coop_task_ops *ops) {
  coop__link_init(&t->link);
  t->ops = ops;
  t->nout = 0;
}

void coop__sched_add(coop_sched *s, coop_task *t) {
  if (coop__task_runnable(t)) return;
  coop__sched_take_back(s);
  coop__link_insert(&s->ring, &t->link);
  s->count++;
}

void coop__sched_remove(coop_sched *s, coop_task *t) {
  if (!coop__task_runnable(t)) return;
  coop__sched_take_back(s);
  if (s->cursor == &t->link) {
    s->cursor = t->link.prev;
    s->left = 0;
  }
  coop__link_remove(&t->link);
  s->count--;
}

/* The task whose turn it is: the one at the cursor while it has steps left, then
   the next of the round, or of the next round. */
static coop_task *advance(coop_sched *s) {
  if (s->left == 0) {
    s->cursor = s->cursor->next;
    if (s->cursor == &s->ring) s->cursor = s->cursor->next;
    s->left = s->quantum;
  }
  if (s->cursor != &s->ring) return coop_container(s->cursor, coop_task, link);
  s->left = 0;
  return NULL;
}

bool coop__sched_again(coop_sched *s) {
  if (s->left == 0) {
    if (s->count != 1 || s->ring.next != &s->current->link) return false;
    s->cursor = s->ring.next;
    s->left = s->quantum;
  }
  s->left--;
  return true;
}

void coop__sched_lend(coop_sched *s) {
  s->lent = s->credit;
  if (s->quantum > 1) {
    if (s->lent > s->left) s->lent = s->left;
    s->left -= s->lent;
  }
  s->credit -= s->lent;
}

/* One step; true when the task may go on with its quantum. */
static bool step(coop_task *t, void *host) {
  int status = t->ops->step(t, host);
  if (status == COOP_STEP_MORE && t->nout == 0) return true;
  return t->ops->settle(t, status, host);
}

size_t coop__sched_tick(coop_sched *s, void *host, coop_over_fn over, void *ud) {
  assert(!s->ticking);
  size_t steps = 0;
  bool done = false;
  s->ticking = true;
  while (!done && (s->current = advance(s))) {
    s->left--;
    bool on = step(s->current, host);
    if (s->lent > 0) coop__sched_take_back(s);
    if (!on) s->left = 0;
    s->current = NULL; /* its step is over: 'over' may end it like any other */
    steps++;
    if (s->credit > 0) s->credit--;
    else done = over(ud);
  }
  s->ticking = false;
  return steps;
}
