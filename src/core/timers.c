/*
** timers.c - a heap of deadlines, eight children to a node.
**
** A parent is never later than its children; a timer knows its own place.
*/
#include <assert.h>

#include "timers.h"

enum { ARITY = 8 }; /* a third of the levels of a binary heap; siblings are read in a row */

void coop__timers_init(coop_timers *ts, coop_alloc_fn alloc, void *ud) {
  *ts = (coop_timers){.alloc = alloc, .alloc_ud = ud};
}

void coop__timers_close(coop_timers *ts) {
  while (ts->count) ts->heap[ts->count--].timer->place = 0;
  ts->alloc(ts->alloc_ud, ts->heap, ts->size * sizeof *ts->heap, 0);
  ts->heap = NULL;
  ts->size = 0;
}

static inline bool before(coop_timer_place a, coop_timer_place b) {
  return a.due < b.due || (a.due == b.due && a.timer->seq < b.timer->seq);
}

static size_t parent(size_t i) { return (i - 2) / ARITY + 1; }

static size_t first_child(size_t i) { return (i - 1) * ARITY + 2; }

static void put(coop_timers *ts, size_t i, coop_timer_place p) {
  ts->heap[i] = p;
  p.timer->place = i;
}

static void sift_up(coop_timers *ts, size_t i, coop_timer_place p) {
  for (; i > 1 && before(p, ts->heap[parent(i)]); i = parent(i))
    put(ts, i, ts->heap[parent(i)]);
  put(ts, i, p);
}

/* The earliest child of 'i', or 0. */
static size_t next_child(const coop_timers *ts, size_t i) {
  size_t first = first_child(i), best = first, end = first + ARITY;
  if (first > ts->count) return 0;
  if (end > ts->count + 1) end = ts->count + 1;
  for (size_t c = first + 1; c < end; c++)
    if (before(ts->heap[c], ts->heap[best])) best = c;
  return best;
}

static void sift_down(coop_timers *ts, size_t i, coop_timer_place p) {
  for (size_t c; (c = next_child(ts, i)) && before(ts->heap[c], p); i = c)
    put(ts, i, ts->heap[c]);
  put(ts, i, p);
}

/* Puts it where it belongs, starting from the free place 'i'. */
static void settle(coop_timers *ts, size_t i, coop_timer_place p) {
  if (i > 1 && before(p, ts->heap[parent(i)]))
    sift_up(ts, i, p);
  else
    sift_down(ts, i, p);
}

static bool grow(coop_timers *ts) {
  size_t size = ts->size ? ts->size * 2 : 16;
  coop_timer_place *heap = ts->alloc(ts->alloc_ud, ts->heap,
                                     ts->size * sizeof *heap, size * sizeof *heap);
  if (!heap) return false;
  ts->heap = heap;
  ts->size = size;
  return true;
}

bool coop__timers_add(coop_timers *ts, coop_timer *t, double due) {
  assert(t->place == 0);
  if (ts->count + 1 >= ts->size && !grow(ts)) return false;
  t->due = due;
  t->seq = ts->seq++;
  sift_up(ts, ++ts->count, (coop_timer_place){due, t});
  return true;
}

void coop__timers_remove(coop_timers *ts, coop_timer *t) {
  size_t i = t->place;
  if (!i) return;
  assert(ts->heap[i].timer == t);
  t->place = 0;
  coop_timer_place last = ts->heap[ts->count--];
  if (last.timer != t) settle(ts, i, last);
}

void coop__timers_move(coop_timers *ts, coop_timer *t, double due) {
  assert(t->place && ts->heap[t->place].timer == t);
  t->due = due;
  settle(ts, t->place, (coop_timer_place){due, t});
}

void coop__timers_shift(coop_timers *ts, double by) {
  for (size_t i = 1; i <= ts->count; i++)
    ts->heap[i].due = ts->heap[i].timer->due += by;
}

coop_timer *coop__timers_expire(coop_timers *ts, double now, uint64_t limit) {
  coop_timer *t = coop__timers_first(ts);
  if (!t || t->due > now || t->seq >= limit) return NULL;
  coop__timers_remove(ts, t);
  return t;
}
