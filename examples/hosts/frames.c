/*
** frames.c - a game-like loop of 60 frames a second gives scripts 4 ms of each.
**
** While one script crunches numbers and another waits, every frame begins on time.
** It prints by how much the worst poll overran its budget: by no more than a step.
*/
#include <coop.h>
#include <lauxlib.h>
#include <lualib.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define FRAME (1.0 / 60) /* seconds */
#define BUDGET 0.004     /* seconds of each frame that are the scripts' */

static const char script[] =
    "local coop = require 'coop'\n"
    "local slowest = 0\n"
    "local primes = coop.generator(function(n)\n"
    "  local count, begun = 0, coop.seconds()\n"
    "  for i = 2, n do\n"
    "    local prime = true\n"
    "    for k = 2, i^0.5 // 1 do\n"
    "      if i % k == 0 then prime = false break end\n"
    "    end\n"
    "    if prime then count = count + 1 end\n"
    "    if i % 100 == 0 then\n" /* a step */
    "      slowest = math.max(slowest, coop.seconds() - begun)\n"
    "      coroutine.yield(nil)\n"
    "      begun = coop.seconds()\n"
    "    end\n"
    "  end\n"
    "  coroutine.yield(count)\n"
    "end)\n"
    "local guard = coop.coroutine(function()\n"
    "  for _ = 1, 5 do coop.await(coop.sleep(0.1)) end\n"
    "  return 'the guard has looked around 5 times'\n"
    "end)\n"
    "local below, looked = coop.accumulate(primes(100000)), guard()\n"
    "print(coop.await(below)[1] .. ' primes below 100000')\n"
    "print(coop.await(looked))\n"
    "print(('slowest step: %.3f ms'):format(slowest * 1000))\n";

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void sleep_until(double time) {
  struct timespec t;
  t.tv_sec = (time_t)time;
  t.tv_nsec = (long)((time - floor(time)) * 1e9);
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) != 0) continue;
}

/* What the game itself does in a frame: some 2 ms. */
static void update_and_draw(void) {
  for (double end = now() + 0.002; now() < end;) continue;
}

/* Frames until no script has anything left to do. */
static void play(coop_context *ctx) {
  double first = now(), worst_frame = 0, worst_overrun = 0;
  int frames = 0, left = 1;
  while (left == 1) {
    double begun = now();
    update_and_draw();
    double polled = now();
    left = coop_poll(ctx, BUDGET);
    double ended = now();
    worst_overrun = fmax(worst_overrun, ended - polled - BUDGET);
    worst_frame = fmax(worst_frame, ended - begun);
    sleep_until(first + FRAME * ++frames);
  }
  printf("frames: %d\n", frames);
  printf("worst frame: %.3f ms\n", worst_frame * 1000);
  printf("worst overrun of the budget: %.3f ms\n", worst_overrun * 1000);
}

int main(void) {
  lua_State *L = luaL_newstate();
  if (!L) return EXIT_FAILURE;
  luaL_openlibs(L);
  coop_context *ctx = coop_open(L, NULL);
  int opened = ctx && luaL_loadstring(L, script) == LUA_OK &&
               coop_spawn(L, 0) == LUA_OK;
  if (opened) {
    lua_pop(L, 1); /* the script's Deferred: a failure will be reported */
    play(ctx);
  } else {
    fprintf(stderr, "frames: %s\n", lua_tostring(L, -1));
  }
  coop_close(ctx);
  lua_close(L);
  return opened ? EXIT_SUCCESS : EXIT_FAILURE;
}
