/*
** floor.c - the least that C can do for each workload on the stock Lua library.
**
** lua_resume in a loop and nothing around it: no clock, no poll, no traceback, no
** cancelling, hardly a check. What the others cost is given as a ratio to this.
**     floor WORKLOAD [ARGUMENT...]     prints  figure<TAB>unit  lines
*/
#define _POSIX_C_SOURCE 200809L

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* --- measuring --------------------------------------------------------------- */

static double seconds_of(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* What other processes take of the core does not count. */
static double cpu(void) { return seconds_of(CLOCK_PROCESS_CPUTIME_ID); }

static double wall(void) { return seconds_of(CLOCK_MONOTONIC); }

static void report_each(double seconds, long n, const char *unit) {
  printf("%.2f\t%s\n", seconds * 1e9 / (double)n, unit);
}

/* Bytes of memory that the process has. */
static double resident(void) {
  long pages = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  if (f && fscanf(f, "%*d %ld", &pages) != 1) pages = 0;
  if (f) fclose(f);
  return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

/* --- Lua ------------------------------------------------------------------------ */

static void fail(lua_State *L) {
  fprintf(stderr, "floor: %s\n", lua_tostring(L, -1));
  exit(1);
}

static void expect(lua_State *L, int status, int expected) {
  if (status != expected) fail(L);
}

/* Pushes what the chunk returns. */
static void load(lua_State *L, const char *chunk) {
  expect(L, luaL_loadstring(L, chunk), LUA_OK);
  expect(L, lua_pcall(L, 0, 1, 0), LUA_OK);
}

/* Pushes a coroutine of the function at 'f', its argument on its stack. */
static lua_State *coroutine_of(lua_State *L, int f, lua_Integer argument) {
  lua_State *co = lua_newthread(L);
  lua_pushvalue(L, f);
  lua_xmove(L, co, 1);
  lua_pushinteger(co, argument);
  return co;
}

static int resume(lua_State *L, lua_State *co, int nargs) {
  int n;
  int status = lua_resume(co, L, nargs, &n);
  if (status == LUA_YIELD) lua_pop(co, n);
  return status;
}

/* --- steps: coroutines that yield nothing, in turn --------------------------------- */

static void steps(lua_State *L, long tasks, long total) {
  long each = total / tasks, left = tasks;
  lua_State **ring = malloc((size_t)tasks * sizeof *ring);
  load(L, "local yield = coroutine.yield\n"
          "return function(n) for _ = 1, n do yield() end end");
  lua_createtable(L, (int)tasks, 0);
  for (long i = 0; i < tasks; i++) {
    ring[i] = coroutine_of(L, 1, each);
    lua_rawseti(L, 2, i + 1);
  }
  double start = cpu();
  for (long i = 0; i < tasks; i++) expect(ring[i], resume(L, ring[i], 1), LUA_YIELD);
  while (left > 0)
    for (long i = 0; i < left;) {
      int n, status = lua_resume(ring[i], L, 0, &n);
      if (status == LUA_YIELD) {
        lua_pop(ring[i], n);
        i++;
      } else {
        expect(ring[i], status, LUA_OK);
        ring[i] = ring[--left];
      }
    }
  report_each(cpu() - start, each * tasks, "ns/step");
  free(ring);
}

/* --- accumulate: values of a coroutine into a sequence -------------------------------- */

static void accumulate(lua_State *L, long total) {
  int n, nargs = 1, status;
  lua_Integer count = 0;
  load(L, "local yield = coroutine.yield\n"
          "return function(n) for i = 1, n do yield(i) end end");
  lua_newtable(L);
  lua_State *co = coroutine_of(L, 1, total);
  double start = cpu();
  while ((status = lua_resume(co, L, nargs, &n)) == LUA_YIELD) {
    nargs = 0;
    lua_xmove(co, L, 1);
    lua_rawseti(L, 2, ++count);
  }
  expect(co, status, LUA_OK);
  report_each(cpu() - start, total, "ns/value");
}

/* --- Deferreds: as little as can be called one ------------------------------------------ */

enum { MOST = 3 }; /* callbacks */

/* user values: the value or who waits for it, then the callbacks */
typedef struct little {
  bool fired;
  int callbacks;
} little;

/* Upvalue 1 of all that follow is the metatable. */
static little *check(lua_State *L) {
  little *d = lua_touserdata(L, 1);
  if (!d || !lua_getmetatable(L, 1)) luaL_error(L, "Deferred expected");
  if (!lua_rawequal(L, -1, lua_upvalueindex(1))) luaL_error(L, "Deferred expected");
  lua_pop(L, 1);
  return d;
}

static int little_new(lua_State *L) {
  little *d = lua_newuserdatauv(L, sizeof *d, 1 + MOST);
  *d = (little){false, 0};
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_setmetatable(L, -2);
  return 1;
}

static int little_add(lua_State *L) {
  little *d = check(L);
  if (d->callbacks == MOST) return luaL_error(L, "too many callbacks");
  lua_settop(L, 2);
  lua_setiuservalue(L, 1, 2 + d->callbacks++);
  return 1;
}

static int little_fire(lua_State *L) {
  little *d = check(L);
  lua_settop(L, 2);
  d->fired = true;
  for (int i = 0; i < d->callbacks; i++) {
    lua_getiuservalue(L, 1, 2 + i);
    lua_insert(L, 2);
    if (lua_pcall(L, 1, 1, 0)) return lua_error(L);
  }
  d->callbacks = 0;
  if (lua_getiuservalue(L, 1, 1) == LUA_TTHREAD) {
    lua_State *co = lua_tothread(L, -1);
    lua_pushvalue(L, 2);
    lua_xmove(L, co, 1);
    if (resume(L, co, 1) > LUA_YIELD) fail(co);
  } else {
    lua_pushvalue(L, 2);
    lua_setiuservalue(L, 1, 1);
  }
  return 0;
}

static int awaited(lua_State *L, int status, lua_KContext k) {
  (void)L, (void)status, (void)k;
  return 1;
}

static int little_await(lua_State *L) {
  little *d = check(L);
  if (d->fired) {
    lua_getiuservalue(L, 1, 1);
    return 1;
  }
  lua_pushthread(L);
  lua_setiuservalue(L, 1, 1);
  return lua_yieldk(L, 0, 0, awaited);
}

/* What the loop is to fire in its next turn: upvalues 2 and 3 are a list of Deferreds
   and one of their values, 4 and 5 those of the turn after it, and so on. */
static lua_Integer queued;
static int side;

static int little_soon(lua_State *L) {
  lua_settop(L, 2);
  lua_rawseti(L, lua_upvalueindex(3 + side), ++queued);
  lua_rawseti(L, lua_upvalueindex(2 + side), queued);
  return 0;
}

/* Leaves metatable and the four lists at 1 to 5. */
static void open_little(lua_State *L) {
  static const luaL_Reg methods[] = {
    {"add", little_add}, {"callback", little_fire}, {NULL, NULL}};
  static const luaL_Reg globals[] = {
    {"new", little_new}, {"await", little_await}, {"soon", little_soon}, {NULL, NULL}};
  for (int i = 0; i < 5; i++) lua_newtable(L);
  lua_newtable(L);
  lua_pushvalue(L, 1);
  luaL_setfuncs(L, methods, 1);
  lua_setfield(L, 1, "__index");
  lua_pushglobaltable(L);
  for (int i = 1; i <= 5; i++) lua_pushvalue(L, i);
  luaL_setfuncs(L, globals, 5);
  lua_pop(L, 1);
}

static void call_with(lua_State *L, long n) {
  lua_pushinteger(L, n);
  expect(L, lua_pcall(L, 1, 0, 0), LUA_OK);
}

static void deferred(lua_State *L, long total) {
  open_little(L);
  load(L, "local new = new\n"
          "local function increment(v) return v + 1 end\n"
          "return function(n)\n"
          "  for i = 1, n do\n"
          "    local d = new()\n"
          "    d:add(increment) d:add(increment) d:add(increment)\n"
          "    d:callback(i)\n"
          "  end\n"
          "end");
  double start = cpu();
  call_with(L, total);
  report_each(cpu() - start, total, "ns/Deferred");
}

static void await_ready(lua_State *L, long total) {
  open_little(L);
  load(L, "local new, await = new, await\n"
          "return function(n)\n"
          "  local sum = 0\n"
          "  for i = 1, n do\n"
          "    local d = new()\n"
          "    d:callback(i)\n"
          "    sum = sum + await(d)\n"
          "  end\n"
          "  assert(sum == n * (n + 1) // 2)\n"
          "end");
  lua_State *co = coroutine_of(L, 6, total);
  double start = cpu();
  expect(co, resume(L, co, 1), LUA_OK);
  report_each(cpu() - start, total, "ns/await");
}

/* Fires all that was queued; what is queued meanwhile is left for the next turn. */
static void fire_queued(lua_State *L, int fire) {
  int list = 2 + side;
  lua_Integer n = queued;
  side = 2 - side;
  queued = 0;
  for (lua_Integer i = 1; i <= n; i++) {
    lua_pushvalue(L, fire);
    lua_rawgeti(L, list, i);
    lua_rawgeti(L, list + 1, i);
    expect(L, lua_pcall(L, 2, 0, 0), LUA_OK);
  }
}

static void await_fired(lua_State *L, long total, long coroutines) {
  open_little(L);
  load(L, "local new, await, soon = new, await, soon\n"
          "return function(n)\n"
          "  for i = 1, n do\n"
          "    local d = new()\n"
          "    soon(d, i)\n"
          "    assert(await(d) == i)\n"
          "  end\n"
          "end");
  lua_newtable(L);
  double start = cpu();
  for (long i = 0; i < coroutines; i++) {
    lua_State *co = coroutine_of(L, 6, total / coroutines);
    lua_rawseti(L, 7, i + 1);
    expect(co, resume(L, co, 1), LUA_YIELD);
  }
  lua_getfield(L, 1, "__index");
  lua_getfield(L, -1, "callback");
  while (queued) fire_queued(L, 9);
  report_each(cpu() - start, total, "ns/await");
}

/* --- spawn: a coroutine, run to its end ----------------------------------------------------- */

static void spawn(lua_State *L, long total) {
  load(L, "return function(v) return v end");
  double start = cpu();
  for (long i = 0; i < total; i++) {
    lua_State *co = coroutine_of(L, 1, i);
    expect(co, resume(L, co, 1), LUA_OK);
    lua_settop(L, 1);
  }
  report_each(cpu() - start, total, "ns/coroutine");
}

/* --- timers: a wheel, one slot for each millisecond ----------------------------------------- */

enum { SLOTS = 1024 };

/* The first SLOTS are the heads of the slots' rings; a timer is its index. */
typedef struct wheel_timer {
  int next, previous;
  bool armed;
} wheel_timer;

static wheel_timer *wheel;
static int spare; /* the first timer that is in no slot */
static long wheel_time, armed;

static void disarm(int i) {
  wheel_timer *t = &wheel[i];
  wheel[t->previous].next = t->next;
  wheel[t->next].previous = t->previous;
  t->armed = false;
  t->next = spare;
  spare = i;
  armed--;
}

/* later(milliseconds, f): the timer. Upvalue 1: timer -> function. */
static int wheel_later(lua_State *L) {
  int slot = (int)((wheel_time + luaL_checkinteger(L, 1)) % SLOTS), i = spare;
  wheel_timer *t = &wheel[i];
  spare = t->next;
  *t = (wheel_timer){slot, wheel[slot].previous, true};
  wheel[t->previous].next = i;
  wheel[slot].previous = i;
  armed++;
  lua_settop(L, 2);
  lua_rawseti(L, lua_upvalueindex(1), i);
  lua_pushinteger(L, i);
  return 1;
}

static int wheel_cancel(lua_State *L) {
  int i = (int)luaL_checkinteger(L, 1);
  if (!wheel[i].armed) return 0;
  disarm(i);
  lua_pushboolean(L, 0);
  lua_rawseti(L, lua_upvalueindex(1), i);
  return 0;
}

static void wait_until(double time) {
  double left = time - wall();
  if (left <= 0) return;
  struct timespec t = {0, (long)(left * 1e9)};
  nanosleep(&t, NULL);
}

static void run_slot(lua_State *L, int functions, int slot) {
  while (wheel[slot].next != slot) {
    int i = wheel[slot].next;
    disarm(i);
    lua_rawgeti(L, functions, i);
    lua_pushboolean(L, 0);
    lua_rawseti(L, functions, i);
    expect(L, lua_pcall(L, 0, 0, 0), LUA_OK);
  }
}

static void timers(lua_State *L, long total) {
  static const luaL_Reg globals[] = {
    {"later", wheel_later}, {"cancel", wheel_cancel}, {NULL, NULL}};
  long size = total + SLOTS + 1;
  wheel = calloc((size_t)size, sizeof *wheel);
  for (int i = 0; i < size; i++)
    wheel[i] = i < SLOTS ? (wheel_timer){i, i, false} : (wheel_timer){i + 1, 0, false};
  spare = SLOTS;
  lua_createtable(L, (int)size, 0);
  lua_pushglobaltable(L);
  lua_pushvalue(L, 1);
  luaL_setfuncs(L, globals, 1);
  lua_settop(L, 1);
  load(L, "local later, cancel = later, cancel\n"
          "return function(n)\n"
          "  local random, calls, fired = 42, {}, 0\n"
          "  for i = 1, n do\n"
          "    random = (random * 1103515245 + 12345) & 0x7fffffff\n"
          "    calls[i] = later((random >> 8) % 1000, function() fired = fired + 1 end)\n"
          "  end\n"
          "  for i = 2, n, 2 do cancel(calls[i]) end\n"
          "  return function() return fired end\n"
          "end");
  double start = cpu(), began = wall();
  lua_pushinteger(L, total);
  expect(L, lua_pcall(L, 1, 1, 0), LUA_OK);
  for (; armed; wheel_time++) {
    wait_until(began + (double)wheel_time / 1e3);
    run_slot(L, 1, (int)(wheel_time % SLOTS));
  }
  report_each(cpu() - start, total, "ns/timer");
  lua_call(L, 0, 1);
  if (lua_tointeger(L, -1) != total - total / 2) exit(1);
  free(wheel);
}

/* --- latency: a timer of 5 ms while four coroutines compute ---------------------------------- */

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void latency(lua_State *L, long duration) {
  enum { TASKS = 4 };
  lua_State *tasks[TASKS];
  long most = duration * 200 + 1, n = 0, count = 0;
  double *late = malloc((size_t)most * sizeof *late);
  load(L, "local yield = coroutine.yield\n"
          "return function(n)\n"
          "  local i = 0\n"
          "  while true do i = i + 1 yield(n * i / 3.0) end\n"
          "end");
  for (int i = 0; i < TASKS; i++) {
    tasks[i] = coroutine_of(L, 1, i);
    expect(tasks[i], resume(L, tasks[i], 1), LUA_YIELD);
  }
  double start = wall(), now = start, due = start + 0.005;
  while (now < start + (double)duration && n < most)
    for (int i = 0; i < TASKS && n < most; i++, count++) {
      expect(tasks[i], resume(L, tasks[i], 0), LUA_YIELD);
      now = wall();
      if (now < due) continue;
      late[n++] = now - due;
      due = now + 0.005;
    }
  qsort(late, (size_t)n, sizeof *late, by_size);
  printf("%.3f\tms p50\n", late[n / 2] * 1e3);
  printf("%.3f\tms p99\n", late[n * 99 / 100] * 1e3);
  printf("%.2f\tMsteps/s\n", (double)count / (now - start) / 1e6);
  free(late);
}

/* --- memory ------------------------------------------------------------------------------------- */

static void memory_of_tasks(lua_State *L, long total) {
  load(L, "local yield = coroutine.yield\n"
          "return function(v) yield(v) end");
  lua_createtable(L, (int)total, 0);
  lua_gc(L, LUA_GCCOLLECT);
  double before = resident();
  for (long i = 0; i < total; i++) {
    lua_State *co = coroutine_of(L, 1, i);
    lua_rawseti(L, 2, i + 1);
    expect(co, resume(L, co, 1), LUA_YIELD);
  }
  lua_gc(L, LUA_GCCOLLECT);
  printf("%.1f\tbytes\n", (resident() - before) / (double)total);
}

static void memory_of_deferreds(lua_State *L, long total) {
  open_little(L);
  load(L, "local new, kept = new, {}\n"
          "local function same(v) return v end\n"
          "return function(n)\n"
          "  if #kept == 0 then\n"
          "    for i = 1, n do kept[i] = false end\n"
          "  else\n"
          "    for i = 1, n do kept[i] = new() kept[i]:add(same) end\n"
          "  end\n"
          "end");
  for (int filled = 0; filled < 2; filled++) {
    double before = resident();
    lua_pushvalue(L, 6);
    call_with(L, total);
    lua_gc(L, LUA_GCCOLLECT);
    if (filled) printf("%.1f\tbytes\n", (resident() - before) / (double)total);
  }
}

int main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "";
  long a = argc > 2 ? strtol(argv[2], NULL, 10) : 0;
  long b = argc > 3 ? strtol(argv[3], NULL, 10) : 0;
  if (a < 1) {
    fprintf(stderr, "usage: floor WORKLOAD ARGUMENT...\n");
    return 2;
  }
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  if (!strcmp(name, "steps")) steps(L, a, b);
  else if (!strcmp(name, "accumulate")) accumulate(L, a);
  else if (!strcmp(name, "deferred")) deferred(L, a);
  else if (!strcmp(name, "await-ready")) await_ready(L, a);
  else if (!strcmp(name, "await-fired")) await_fired(L, a, b);
  else if (!strcmp(name, "spawn")) spawn(L, a);
  else if (!strcmp(name, "timers")) timers(L, a);
  else if (!strcmp(name, "latency")) latency(L, a);
  else if (!strcmp(name, "memory-tasks")) memory_of_tasks(L, a);
  else if (!strcmp(name, "memory-deferreds")) memory_of_deferreds(L, a);
  else return fprintf(stderr, "floor: no workload '%s'\n", name), 2;
  lua_close(L);
  return 0;
}
