/*
** timers.c - a heap of deadlines, four children to a node.
**
** A parent is never later than its children; a timer knows its own place.
*/
#include <assert.h>

#include "timers.h"

enum { ARITY = 4 }; /* half the levels of a binary heap; siblings share a line */

void coop__timers_init(coop_timers *ts, coop_alloc_fn alloc, void *ud) {
  *ts = (coop_timers){.alloc = alloc, .alloc_ud = ud};
}

void coop__timers_close(coop_timers *ts) {
  while (ts->count) ts->heap[ts->count--]->place = 0;
  ts->alloc(ts->alloc_ud, ts->heap, ts->size * sizeof *ts->heap, 0);
  ts->heap = NULL;
  ts->size = 0;
}

static bool before(const coop_timer *a, const coop_timer *b) {
  return a->due < b->due || (a->due == b->due && a->seq < b->seq);
}

static size_t parent(size_t i) { return (i - 2) / ARITY + 1; }

static size_t first_child(size_t i) { return (i - 1) * ARITY + 2; }

static void put(coop_timers *ts, size_t i, coop_timer *t) {
  ts->heap[i] = t;
  t->place = i;
}

static void sift_up(coop_timers *ts, size_t i, coop_timer *t) {
  for (; i > 1 && before(t, ts->heap[parent(i)]); i = parent(i))
    put(ts, i, ts->heap[parent(i)]);
  put(ts, i, t);
}

/* The earliest child of 'i', or 0. */
static size_t next_child(const coop_timers *ts, size_t i) {
  size_t first = first_child(i), best = first;
  if (first > ts->count) return 0;
  for (size_t c = first + 1; c < first + ARITY && c <= ts->count; c++)
    if (before(ts->heap[c], ts->heap[best])) best = c;
  return best;
}

static void sift_down(coop_timers *ts, size_t i, coop_timer *t) {
  for (size_t c; (c = next_child(ts, i)) && before(ts->heap[c], t); i = c)
    put(ts, i, ts->heap[c]);
  put(ts, i, t);
}

/* Puts 't' where it belongs, starting from the free place 'i'. */
static void settle(coop_timers *ts, size_t i, coop_timer *t) {
  if (i > 1 && before(t, ts->heap[parent(i)]))
    sift_up(ts, i, t);
  else
    sift_down(ts, i, t);
}

static bool grow(coop_timers *ts) {
  size_t size = ts->size ? ts->size * 2 : 16;
  coop_timer **heap = ts->alloc(ts->alloc_ud, ts->heap,
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
  sift_up(ts, ++ts->count, t);
  return true;
}

void coop__timers_remove(coop_timers *ts, coop_timer *t) {
  size_t i = t->place;
  if (!i) return;
  assert(ts->heap[i] == t);
  t->place = 0;
  coop_timer *last = ts->heap[ts->count--];
  if (last != t) settle(ts, i, last);
}

void coop__timers_move(coop_timers *ts, coop_timer *t, double due) {
  assert(t->place && ts->heap[t->place] == t);
  t->due = due;
  settle(ts, t->place, t);
}

coop_timer *coop__timers_expire(coop_timers *ts, double now, uint64_t limit) {
  coop_timer *t = coop__timers_first(ts);
  if (!t || t->due > now || t->seq >= limit) return NULL;
  coop__timers_remove(ts, t);
  return t;
}
