/*
** lscreen.c - what a terminal shows below the output: a prompt, lines of progress.
**
** There is one terminal, so there is one of them at a time in the process. While
** it is there, what the thread that shows it prints goes through streams that have
** it erased first; whoever shows it draws it again when the loop is about to wait.
** Where the C library has no such streams (fopencookie) the output just mixes.
*/
#define _GNU_SOURCE /* fopencookie */

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "lcoop.h"

static struct {
  void (*erase)(void); /* NULL: nothing is shown */
  uv_thread_t owner;
  bool open_line;      /* the output does not end with a newline */
  FILE *real[3], *stream[3]; /* of descriptors 1 and 2; made once, for threads
                                may keep them */
  luaL_Stream *file[3];      /* io.stdout and io.stderr, held by the registry */
} screen;

/* Is it this thread that shows something? */
static bool is_owner(void) {
  uv_thread_t self = uv_thread_self();
  return screen.erase && uv_thread_equal(&self, &screen.owner);
}

/* --- streams ------------------------------------------------------------------ */

static void write_all(int fd, const char *s, size_t n) {
  while (n > 0) {
    ssize_t done = write(fd, s, n);
    if (done > 0) {
      s += done;
      n -= (size_t)done;
    } else if (errno == EAGAIN) { /* somebody polls the terminal */
      struct pollfd p = {fd, POLLOUT, 0};
      poll(&p, 1, -1);
    } else if (errno != EINTR) {
      return;
    }
  }
}

#ifdef __GLIBC__
static void print_above(int fd, const char *s, size_t n) {
  if (n == 0) return;
  if (is_owner()) {
    screen.erase();
    screen.open_line = s[n - 1] != '\n';
  }
  write_all(fd, s, n);
}

static ssize_t write_out(void *cookie, const char *s, size_t n) {
  (void)cookie;
  print_above(STDOUT_FILENO, s, n);
  return (ssize_t)n;
}

static ssize_t write_err(void *cookie, const char *s, size_t n) {
  (void)cookie;
  print_above(STDERR_FILENO, s, n);
  return (ssize_t)n;
}

static FILE *open_stream(int fd) {
  cookie_io_functions_t out = {NULL, write_out, NULL, NULL};
  cookie_io_functions_t err = {NULL, write_err, NULL, NULL};
  FILE *f = fopencookie(NULL, "w", fd == STDOUT_FILENO ? out : err);
  if (f) setvbuf(f, NULL, fd == STDOUT_FILENO ? _IOLBF : _IONBF, BUFSIZ);
  return f;
}

/* Has io's file of the descriptor, if it is the stream that there was, be the one
   that there is. */
static void change_file(lua_State *L, int fd) {
  int top = lua_gettop(L);
  if (lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE) == LUA_TTABLE &&
      lua_getfield(L, -1, LUA_IOLIBNAME) == LUA_TTABLE) {
    lua_getfield(L, -1, fd == STDOUT_FILENO ? "stdout" : "stderr");
    luaL_Stream *s = luaL_testudata(L, -1, LUA_FILEHANDLE);
    if (s && s->closef && s->f == screen.real[fd]) {
      lua_rawsetp(L, LUA_REGISTRYINDEX, &screen.file[fd]);
      screen.file[fd] = s;
      s->f = screen.stream[fd];
    }
  }
  lua_settop(L, top);
}

static void redirect(lua_State *L) {
  for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++) {
    FILE *now = fd == STDOUT_FILENO ? stdout : stderr;
    if (!isatty(fd)) continue;
    if (!screen.stream[fd]) screen.stream[fd] = open_stream(fd);
    if (!screen.stream[fd]) continue;
    fflush(now);
    screen.real[fd] = now;
    change_file(L, fd);
    if (fd == STDOUT_FILENO) stdout = screen.stream[fd];
    else stderr = screen.stream[fd];
  }
}

/* Takes no memory: it is done when coop is closed, too. */
static void restore(lua_State *L) {
  for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++) {
    FILE *stream = screen.stream[fd], *real = screen.real[fd];
    luaL_Stream *s = screen.file[fd];
    if (!stream || !real) continue;
    fflush(stream);
    if (fd == STDOUT_FILENO) stdout = real;
    else stderr = real;
    screen.real[fd] = NULL;
    screen.file[fd] = NULL;
    if (!s) continue;
    if (s->f == stream) s->f = real;
    lua_pushnil(L);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &screen.file[fd]);
  }
}
#else
static void redirect(lua_State *L) { (void)L; }
static void restore(lua_State *L) { (void)L; }
#endif

/* --- what is shown -------------------------------------------------------------- */

bool coop__show_below(lua_State *L, void (*erase)(void)) {
  if (screen.erase) return screen.erase == erase && is_owner();
  if (!lua_checkstack(L, 4)) return false;
  redirect(L);
  screen.owner = uv_thread_self();
  screen.erase = erase;
  screen.open_line = false;
  return true;
}

void coop__show_no_more(lua_State *L, void (*erase)(void)) {
  if (screen.erase != erase || !lua_checkstack(L, 4)) return;
  restore(L);
  screen.erase = NULL;
}

void coop__end_line(void) {
  fflush(stdout);
  if (screen.open_line) write_all(STDOUT_FILENO, "\n", 1);
  screen.open_line = false;
}

/* --- a block of lines ------------------------------------------------------------ */

static int block; /* lines that stand below the output now */

static void erase_block(void) {
  char text[32];
  if (block == 0) return;
  int n = block > 1 ? snprintf(text, sizeof text, "\r\033[%dA\033[J", block - 1)
                    : snprintf(text, sizeof text, "\r\033[J");
  block = 0;
  write_all(STDERR_FILENO, text, (size_t)n);
}

static int count_lines(const char *s) {
  int n = 1;
  while ((s = strchr(s, '\n'))) n++, s++;
  return n;
}

/* core.paint(text): shows the lines of the text below all output, in place of those
   before; core.paint(nil) erases them. False when something else is shown there. */
static int paint(lua_State *L) {
  size_t n;
  const char *text = luaL_optlstring(L, 1, NULL, &n);
  bool mine = text ? coop__show_below(L, erase_block)
                   : screen.erase == erase_block && is_owner();
  if (mine) {
    erase_block();
    if (text) {
      coop__end_line();
      write_all(STDERR_FILENO, text, n);
      block = count_lines(text);
    } else {
      coop__show_no_more(L, erase_block);
    }
  }
  lua_pushboolean(L, mine);
  return 1;
}

void coop__screen_shut(lua_State *L) {
  if (screen.erase != erase_block || !is_owner()) return;
  if (block > 0) write_all(STDERR_FILENO, "\n", 1);
  block = 0;
  coop__show_no_more(L, erase_block);
}

/* --- the timer that redraws ---------------------------------------------------------- */

typedef struct ticker {
  coop_closer closer;
  uv_timer_t timer;
  coop_context *ctx;
} ticker;

static void free_ticker(uv_handle_t *h) {
  free(coop_container((uv_timer_t *)h, ticker, timer));
}

static void close_ticker(coop_closer *closer) {
  ticker *t = coop_container(closer, ticker, closer);
  t->ctx->ticker = NULL;
  uv_close((uv_handle_t *)&t->timer, free_ticker);
}

static void on_tick(uv_timer_t *h) {
  ticker *t = coop_container(h, ticker, timer);
  coop__from_loop(t->ctx, &t->ctx->ticker, NULL);
}

/* core.every(seconds, f): calls f so often, unless the loop has nothing else to do;
   without arguments: no more. */
static int every(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (ctx->closed) return 0;
  if (ctx->ticker && lua_isnoneornil(L, 1)) {
    uv_timer_stop(&ctx->ticker->timer);
  } else if (!lua_isnoneornil(L, 1)) {
    uint64_t ms = (uint64_t)(luaL_checknumber(L, 1) * 1000);
    lua_settop(L, 2);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &ctx->ticker);
    if (!ctx->ticker) {
      ticker *t = malloc(sizeof *t);
      if (!t) return luaL_error(L, "not enough memory");
      t->ctx = ctx;
      t->closer.close = close_ticker;
      coop__link_init(&t->closer.link);
      coop__link_insert(&ctx->outside.closers, &t->closer.link);
      uv_timer_init(ctx->loop.uv, &t->timer);
      uv_unref((uv_handle_t *)&t->timer);
      ctx->ticker = t;
    }
    uv_update_time(ctx->loop.uv);
    uv_timer_start(&ctx->ticker->timer, on_tick, ms, ms);
  }
  return 0;
}

/* core.terminal(fd): how many columns it has when it is a terminal, else nil. */
static int terminal(lua_State *L) {
  int fd = (int)luaL_checkinteger(L, 1);
  struct winsize size;
  if (!isatty(fd)) return 0;
  bool known = ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  lua_pushinteger(L, known ? size.ws_col : 80);
  return 1;
}

bool coop__colours(int fd) {
  const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
  return !(no && *no) && term && strcmp(term, "dumb") != 0 && isatty(fd);
}

/* core.colours(fd): may what is written to it have colours? */
static int colours(lua_State *L) {
  lua_pushboolean(L, coop__colours((int)luaL_checkinteger(L, 1)));
  return 1;
}

/* core.end_line(): ends the line that the output above has left open. */
static int end_line(lua_State *L) {
  (void)L;
  if (is_owner()) coop__end_line();
  return 0;
}

static const luaL_Reg core_functions[] = {
  {"paint", paint},
  {"terminal", terminal},
  {"end_line", end_line},
  {"every", every},
  {"colours", colours},
  {NULL, NULL}
};

void coop__open_screen(lua_State *L) {
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_settop(L, 2);
}
