/*
** timers.h - deadlines in order.
**
** The first is the earliest; among equals, the one made first. One structure
** serves the loop and every virtual clock: it knows neither what time it is
** nor what a timer is for.
*/
#ifndef COOP_TIMERS_H
#define COOP_TIMERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Memory comes from a function of this kind (it is lua_Alloc's signature):
   nsize 0 frees; NULL for a failed request, 'ptr' is then as it was. */
typedef void *(*coop_alloc_fn)(void *ud, void *ptr, size_t osize, size_t nsize);

/* Embed this in what is to be due; the heap only points at it. */
typedef struct coop_timer {
  double due;   /* seconds of whatever clock the owner reads */
  uint64_t seq; /* its number among all ever added; each add gives one */
  size_t place; /* in the heap, from 1; 0 while it is in none */
} coop_timer;

/* A place of the heap: to compare two there is no need to look at the timers. */
typedef struct coop_timer_place {
  double due; /* the timer's */
  coop_timer *timer;
} coop_timer_place;

typedef struct coop_timers {
  coop_timer_place *heap; /* heap[1] is the first */
  size_t count;
  size_t size;  /* slots that 'heap' has */
  uint64_t seq; /* the number that the next timer made gets */
  coop_alloc_fn alloc;
  void *alloc_ud;
} coop_timers;

void coop__timers_init(coop_timers *ts, coop_alloc_fn alloc, void *ud);

/* Forgets all timers and frees the heap. */
void coop__timers_close(coop_timers *ts);

/* Adds 't' (in no heap) at 'due' and numbers it. False: out of memory, nothing
   has changed. */
bool coop__timers_add(coop_timers *ts, coop_timer *t, double due);

/* Takes 't' out; harmless when it is in no heap. */
void coop__timers_remove(coop_timers *ts, coop_timer *t);

/* Gives 't' (in the heap) another time; its number stays, so that calls due at
   the same time keep the order in which they were made. */
void coop__timers_move(coop_timers *ts, coop_timer *t, double due);

/* All are due so much later; they keep their order. */
void coop__timers_shift(coop_timers *ts, double by);

/* The next one, or NULL. */
static inline coop_timer *coop__timers_first(const coop_timers *ts) {
  return ts->count ? ts->heap[1].timer : NULL;
}

/* Takes out and returns the next timer due at 'now' that was made before number
   'limit'; NULL when there is none. A turn takes 'limit' from 'seq' when it
   begins: what its calls add is left to the next. */
coop_timer *coop__timers_expire(coop_timers *ts, double now, uint64_t limit);

#endif
