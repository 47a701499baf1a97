/*
** loop.c - turns "there is work" and "the next deadline" into libuv's terms.
**
** libuv's own timers are used once only: as the poll's alarm. A zero-delay
** uv_timer that is armed anew starves the poll, and uv_timer_start counts from
** a cached time; coop's calls have neither fault because they are not libuv's.
*/
#include <math.h>
#include <poll.h>
#include <stdlib.h>

#include "loop.h"

double coop__now(void) { return (double)uv_hrtime() / 1e9; }

static void on_idle(uv_idle_t *h) { (void)h; }

/* Time for a turn, which is made behind the poll: libuv runs timers until none
   is due, so one that its own callback armed anew would keep it from polling. */
static void on_timer(uv_timer_t *t) {
  coop_uv *loop = t->data;
  loop->armed = HUGE_VAL;
  uv_idle_start(loop->idle, on_idle);
}

/* The turn that follows sees to what other threads have left. */
static void on_async(uv_async_t *h) { (void)h; }

static void on_check(uv_check_t *h) {
  coop_uv *loop = h->data;
  if (loop) loop->turn(loop->ud);
}

static void on_close(uv_handle_t *h) { free(h); }

/* Handles outlive the coop_uv until libuv has let go of them. */
#define NEW_HANDLE(loop, field, init)                          \
  do {                                                         \
    (loop)->field = malloc(sizeof *(loop)->field);             \
    if (!(loop)->field) return UV_ENOMEM;                      \
    int e_ = init;                                             \
    if (e_) {                                                  \
      free((loop)->field);                                     \
      (loop)->field = NULL;                                    \
      return e_;                                               \
    }                                                          \
    (loop)->field->data = (loop);                              \
  } while (0)

static int init_handles(coop_uv *loop) {
  NEW_HANDLE(loop, timer, uv_timer_init(loop->uv, loop->timer));
  NEW_HANDLE(loop, idle, uv_idle_init(loop->uv, loop->idle));
  NEW_HANDLE(loop, check, uv_check_init(loop->uv, loop->check));
  NEW_HANDLE(loop, async, uv_async_init(loop->uv, loop->async, on_async));
  uv_check_start(loop->check, on_check);
  uv_unref((uv_handle_t *)loop->check);
  uv_unref((uv_handle_t *)loop->async);
  return 0;
}

int coop__loop_init(coop_uv *loop, uv_loop_t *uv, void (*turn)(void *ud),
                    void *ud) {
  *loop = (coop_uv){.uv = uv, .turn = turn, .ud = ud, .armed = HUGE_VAL};
  if (!uv) {
    uv_loop_t *own = malloc(sizeof *own);
    int e = own ? uv_loop_init(own) : UV_ENOMEM;
    if (e) {
      free(own);
      return e;
    }
    loop->uv = loop->own = own;
  }
  int e = init_handles(loop);
  if (e) coop__loop_close(loop);
  return e;
}

static void close_handle(uv_handle_t *h) {
  if (!h) return;
  h->data = NULL;
  uv_close(h, on_close);
}

/* Scripts may have opened handles of their own on a loop that is coop's. */
static void close_walked(uv_handle_t *h, void *ud) {
  (void)ud;
  if (!uv_is_closing(h)) uv_close(h, NULL);
}

void coop__loop_end(uv_loop_t *uv) {
  uv_walk(uv, close_walked, NULL);
  while (uv_run(uv, UV_RUN_DEFAULT)) continue;
  uv_loop_close(uv);
  free(uv);
}

uv_loop_t *coop__loop_take(coop_uv *loop) {
  if (!loop->finish) return NULL;
  uv_loop_t *own = loop->own;
  loop->finish = false;
  loop->own = NULL;
  return own;
}

void coop__loop_finish(coop_uv *loop) {
  uv_loop_t *own = coop__loop_take(loop);
  if (own) coop__loop_end(own);
}

static void note_open(uv_handle_t *h, void *is) {
  if (!uv_is_closing(h)) *(bool *)is = true;
}

static void note_closing(uv_handle_t *h, void *is) {
  if (uv_is_closing(h)) *(bool *)is = true;
}

void coop__loop_leave(coop_uv *loop) {
  if (loop->lent) uv_walk(loop->own, note_closing, &loop->used);
}

void coop__loop_close(coop_uv *loop) {
  if (!loop->uv) return;
  close_handle((uv_handle_t *)loop->timer);
  close_handle((uv_handle_t *)loop->idle);
  close_handle((uv_handle_t *)loop->check);
  close_handle((uv_handle_t *)loop->async);
  loop->timer = NULL;
  loop->idle = NULL;
  loop->check = NULL;
  loop->async = NULL;
  loop->finish = loop->own != NULL;
  loop->uv = NULL;
  if (loop->lent) uv_walk(loop->own, note_open, &loop->used);
  if (!loop->inside && !loop->used) coop__loop_finish(loop); /* else afterwards */
}

static uint64_t milliseconds_until(double deadline) {
  double ms = (deadline - coop__now()) * 1e3;
  return ms <= 0 ? 0 : ms < 1e12 ? (uint64_t)ms + 1 : (uint64_t)1e12;
}

void coop__loop_arm(coop_uv *loop, bool work, double deadline) {
  if (!loop->uv) return;
  if (work != (bool)uv_is_active((uv_handle_t *)loop->idle)) {
    if (work) uv_idle_start(loop->idle, on_idle);
    else uv_idle_stop(loop->idle);
  }
  if (deadline == loop->armed) return;
  loop->armed = deadline;
  if (deadline == HUGE_VAL) {
    uv_timer_stop(loop->timer);
  } else {
    uv_update_time(loop->uv);
    uv_timer_start(loop->timer, on_timer, milliseconds_until(deadline), 0);
  }
}

/* Handles that libuv is yet to tell the system of: its queue of them is a ring, whose
   first word leads to the next. Later versions see to this themselves. */
static bool untold(const uv_loop_t *uv) {
  const void *queue = &uv->watcher_queue;
  return *(void *const *)queue != queue;
}

bool coop__loop_ready(const coop_uv *loop) {
  if (!loop->uv) return false;
  struct pollfd p = {.fd = uv_backend_fd(loop->uv), .events = POLLIN};
  return untold(loop->uv) || poll(&p, 1, 0) > 0;
}

double coop__loop_timeout(const coop_uv *loop) {
  const uv_loop_t *uv = loop->uv;
  if (untold(uv)) return 0;
  if (!uv_loop_alive(uv)) return -1;
  int ms = uv_backend_timeout(uv);
  if (ms <= 0) return ms;
  double passed = coop__now() - (double)uv_now(uv) / 1e3; /* libuv's time stands */
  return (double)ms / 1e3 > passed ? (double)ms / 1e3 - passed : 0;
}

void coop__loop_hold(coop_uv *loop) {
  if (loop->holds++ == 0 && loop->async) uv_ref((uv_handle_t *)loop->async);
}

void coop__loop_release(coop_uv *loop) {
  if (--loop->holds == 0 && loop->async) uv_unref((uv_handle_t *)loop->async);
}

void coop__loop_wake(coop_uv *loop) {
  if (loop->async) uv_async_send(loop->async);
}

static void count_active(uv_handle_t *h, void *n) {
  if (uv_is_active(h) && uv_has_ref(h)) ++*(unsigned *)n;
}

bool coop__loop_alone(const coop_uv *loop) {
  if (!loop->uv || loop->uv->active_reqs.count) return !loop->uv;
  unsigned n = 0;
  uv_walk(loop->uv, count_active, &n);
  return n == (unsigned)uv_is_active((uv_handle_t *)loop->timer) +
                  (unsigned)uv_is_active((uv_handle_t *)loop->idle) +
                  (loop->holds > 0);
}

bool coop__loop_once(coop_uv *loop, bool wait) {
  loop->inside = true;
  bool left = uv_run(loop->uv, wait ? UV_RUN_ONCE : UV_RUN_NOWAIT) != 0;
  loop->inside = false;
  coop__loop_finish(loop);
  return left;
}
