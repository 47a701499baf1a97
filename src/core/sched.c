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
  coop__link_insert(&s->ring, &t->link);
  s->count++;
}

void coop__sched_remove(coop_sched *s, coop_task *t) {
  if (!coop__task_runnable(t)) return;
  if (s->cursor == &t->link) s->cursor = t->link.prev;
  coop__link_remove(&t->link);
  s->count--;
}

/* Moves the cursor to the next task of the round, or of the next round. */
static coop_task *advance(coop_sched *s) {
  coop_link *next = s->cursor->next;
  if (next == &s->ring) next = next->next;
  s->cursor = next;
  return next == &s->ring ? NULL : coop_container(next, coop_task, link);
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
    coop_task *t = s->current;
    for (size_t left = s->quantum; left > 0 && !done; left--, steps++) {
      if (!step(t, host)) left = 1;
      else if (!coop__task_runnable(t)) left = 1;
      done = over(ud);
    }
  }
  s->current = NULL;
  s->ticking = false;
  return steps;
}
