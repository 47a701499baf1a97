/*
** loop.h - one libuv loop, as coop needs it.
**
** Armed exactly while there is work or a deadline; the only file that sees
** libuv's timers. Whoever owns it says when there is work and when the next
** deadline is; it answers by calling 'turn', once in each turn of the loop.
*/
#ifndef COOP_LOOP_H
#define COOP_LOOP_H

#include <stdbool.h>
#include <uv.h>

typedef struct coop_uv {
  uv_loop_t *uv;
  uv_loop_t *own;     /* when none was given */
  uv_timer_t *timer;  /* wakes the poll at the next deadline */
  uv_idle_t *idle;    /* keeps the poll from waiting while there is work */
  uv_check_t *check;  /* calls 'turn' behind the poll */
  uv_async_t *async;  /* wakes the poll from other threads */
  size_t holds;       /* what other threads do for it keeps it alive */
  double armed;       /* what 'timer' is set for, or HUGE_VAL */
  bool inside;        /* in coop__loop_once */
  bool lent;          /* others have the loop of its own, and may be running it */
  bool used;          /* they have handles on it, or have just closed some */
  bool finish;        /* closed, but the loop of its own is still to be */
  void (*turn)(void *ud);
  void *ud;
} coop_uv;

/* Sets 'loop' up on 'uv', or on a loop of its own when that is NULL. 0, or a
   libuv error; nothing is left behind then. */
int coop__loop_init(coop_uv *loop, uv_loop_t *uv, void (*turn)(void *ud),
                    void *ud);

/* The loop is about to be closed, and what is on it before. */
void coop__loop_leave(coop_uv *loop);

/* Closes the handles; a loop of its own is run until they are closed, and
   closed; not yet where a callback may be under way: one that is lent and has
   handles of others. A loop that was given is left to its owner, who runs it on. */
void coop__loop_close(coop_uv *loop);

/* Brings a closed loop of its own to its end, if that is yet to be done because it was
   closed in a callback: when uv_run has returned, or will not return any more. */
void coop__loop_finish(coop_uv *loop);
/* Leaves that to the caller, by coop__loop_end; NULL when there is nothing to do. */
uv_loop_t *coop__loop_take(coop_uv *loop);
void coop__loop_end(uv_loop_t *uv);

/* Says whether there is work, and when the next deadline is (seconds of
   coop__now; HUGE_VAL: none). */
void coop__loop_arm(coop_uv *loop, bool work, double deadline);

/* Seconds until the loop wants a turn though nothing happens; 0: now, negative: it does
   not. */
double coop__loop_timeout(const coop_uv *loop);

/* Is there anything that a turn of the loop would tell of, or be told? */
bool coop__loop_ready(const coop_uv *loop);

/* The loop lives on while something that other threads do is under way: each hold
   is released once. */
void coop__loop_hold(coop_uv *loop);
void coop__loop_release(coop_uv *loop);

/* Makes the loop turn soon; from any thread, and from signal handlers. */
void coop__loop_wake(coop_uv *loop);

/* Is nothing else active on the loop, no handle and no request? */
bool coop__loop_alone(const coop_uv *loop);

/* One turn; waits for the next event when 'wait'. False when nothing is left. */
bool coop__loop_once(coop_uv *loop, bool wait);

/* Seconds of a monotonic clock, read now. */
double coop__now(void);

#endif
