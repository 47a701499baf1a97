/*
** libuv.c - libuv with callbacks in C: what a program without Lua would pay.
**     libuv steps TASKS TOTAL | timers TOTAL | work TOTAL   prints  figure<TAB>unit
**
** A task is an idle handle, a step its callback: there is nothing to resume.
*/
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <uv.h>

static double cpu(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void step(uv_idle_t *task) {
  long *left = task->data;
  if (--*left == 0) uv_idle_stop(task);
}

static void steps(uv_loop_t *loop, long tasks, long total) {
  uv_idle_t *handles = calloc((size_t)tasks, sizeof *handles);
  long *left = calloc((size_t)tasks, sizeof *left), each = total / tasks;
  for (long i = 0; i < tasks; i++) {
    uv_idle_init(loop, &handles[i]);
    left[i] = each;
    handles[i].data = &left[i];
    uv_idle_start(&handles[i], step);
  }
  double start = cpu();
  uv_run(loop, UV_RUN_DEFAULT);
  printf("%.2f\tns/step\n", (cpu() - start) * 1e9 / (double)(each * tasks));
}

static long fired;

static void on_timer(uv_timer_t *timer) {
  (void)timer;
  fired++;
}

static void timers(uv_loop_t *loop, long total) {
  uv_timer_t *handles = calloc((size_t)total, sizeof *handles);
  unsigned long random = 42;
  double start = cpu();
  for (long i = 0; i < total; i++) {
    random = (random * 1103515245 + 12345) & 0x7fffffff;
    uv_timer_init(loop, &handles[i]);
    uv_timer_start(&handles[i], on_timer, (random >> 8) % 1000, 0);
  }
  for (long i = 1; i < total; i += 2) uv_timer_stop(&handles[i]);
  uv_run(loop, UV_RUN_DEFAULT);
  printf("%.2f\tns/timer\n", (cpu() - start) * 1e9 / (double)total);
  if (fired != total - total / 2) exit(1);
}

static long calls_left;

static void work(uv_work_t *request) { *(long *)request->data += 1; }

static void after_work(uv_work_t *request, int status) {
  (void)status;
  if (--calls_left > 0) uv_queue_work(request->loop, request, work, after_work);
}

/* Calls to another thread and back, one after the other. */
static void calls(uv_loop_t *loop, long total) {
  long sum = 0;
  uv_work_t request = {.data = &sum};
  calls_left = total;
  double start = cpu();
  uint64_t began = uv_hrtime();
  uv_queue_work(loop, &request, work, after_work);
  uv_run(loop, UV_RUN_DEFAULT);
  if (sum != total) exit(1);
  printf("%.3f\tus of the processor\n", (cpu() - start) * 1e6 / (double)total);
  printf("%.3f\tus/call\n", (double)(uv_hrtime() - began) / 1e3 / (double)total);
}

int main(int argc, char **argv) {
  long a = argc > 2 ? strtol(argv[2], NULL, 10) : 0;
  long b = argc > 3 ? strtol(argv[3], NULL, 10) : 0;
  if (argc == 4 && !strcmp(argv[1], "steps")) steps(uv_default_loop(), a, b);
  else if (argc == 3 && !strcmp(argv[1], "timers")) timers(uv_default_loop(), a);
  else if (argc == 3 && !strcmp(argv[1], "work")) calls(uv_default_loop(), a);
  else return fprintf(stderr, "usage: libuv steps TASKS TOTAL | timers TOTAL | work TOTAL\n"), 2;
  return 0;
}
