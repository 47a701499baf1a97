/*
** lprompt.c - the C module coop_prompt: a line being edited while the loop turns.
**
** Readline is fed by its callback interface, a key at a time, when the loop says
** that there is one. It has the terminal exactly while a line is being edited:
** what runs between two lines finds the terminal as it is used to. No Lua runs
** inside of readline but the completion, by way of coop_outside.call, which lets
** no error out.
**
** There is one terminal and one readline, so what is here is static.
*/
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

#include <readline/readline.h>
#include <readline/history.h>

#include "lua/outside.h"

LUAMOD_API int luaopen_coop_prompt(lua_State *L);

enum { HISTORY_MAX = 1000 }; /* entries of the file */

static struct {
  lua_State *L;          /* the main thread of the state */
  coop_outside *outside; /* NULL: not open */
  coop_closer closer;
  uv_poll_t *poll;       /* for keys, while a line is edited */
  uv_prepare_t *prepare; /* draws the line again */
  uv_signal_t *resumed;  /* SIGCONT: so does the shell's fg */
  int tty;               /* the terminal once more: polling makes a descriptor
                            non-blocking, which what runs must not notice */
  bool editing;          /* readline has the terminal */
  bool erased;           /* by output; to be drawn before the loop waits */
  bool told;             /* 'line' is to be given to on_line */
  char *line;            /* NULL: the end of the input */
  char **words;          /* that completion offers, NULL at their end */
  char *history;         /* its file, or NULL */
} editor;

static const char LINE, WORDS; /* their addresses: functions in the registry */

/* --- the loop ------------------------------------------------------------------- */

/* Called before something is printed. */
static void erase_line(void) {
  if (!editor.editing || editor.erased) return;
  editor.erased = true;
  rl_clear_visible_line();
  fflush(rl_outstream);
}

static void on_prepare(uv_prepare_t *h) {
  (void)h;
  if (!editor.editing || !editor.erased) return;
  editor.outside->end_line();
  editor.erased = false;
  rl_forced_update_display();
}

static void on_resumed(uv_signal_t *h, int number) {
  (void)h, (void)number;
  if (!editor.editing) return;
  rl_deprep_terminal(); /* or it would think that it has the terminal still */
  rl_prep_terminal(1);
  editor.erased = false;
  rl_forced_update_display();
}

static void end_edit(void) {
  if (!editor.editing) return;
  editor.editing = editor.erased = false;
  rl_callback_handler_remove();
  uv_poll_stop(editor.poll);
}

/* Readline has a line, or NULL at Ctrl-D. */
static void on_line(char *line) {
  end_edit();
  free(editor.line);
  editor.line = line;
  editor.told = true;
}

static void on_key(uv_poll_t *h, int status, int events) {
  (void)h, (void)events;
  on_prepare(editor.prepare); /* readline draws differences */
  if (status < 0) on_line(NULL); /* the terminal is gone */
  else rl_callback_read_char();
  if (!editor.told) return;
  editor.told = false;
  editor.outside->call(editor.outside, &LINE, NULL);
}

/* --- completion ------------------------------------------------------------------- */

static void free_words(void) {
  for (char **w = editor.words; w && *w; w++) free(*w);
  free(editor.words);
  editor.words = NULL;
}

/* Called with the light userdata of call; upvalue 1 is complete(text): a list. */
static int find_words(lua_State *L) {
  const char *text = lua_touserdata(L, 1);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_pushstring(L, text);
  lua_call(L, 1, 1);
  luaL_checktype(L, -1, LUA_TTABLE);
  size_t n = lua_rawlen(L, -1);
  free_words();
  editor.words = calloc(n + 1, sizeof *editor.words);
  for (size_t i = 0, found = 0; editor.words && i < n; i++) {
    lua_rawgeti(L, -1, (lua_Integer)i + 1);
    const char *word = lua_tostring(L, -1);
    char *copy = word ? malloc(strlen(word) + 1) : NULL;
    if (copy) editor.words[found++] = strcpy(copy, word);
    lua_pop(L, 1);
  }
  return 0;
}

static char *next_word(const char *text, int again) {
  static size_t next;
  (void)text;
  if (!again) next = 0;
  if (!editor.words || !editor.words[next]) return NULL;
  return strdup(editor.words[next++]); /* readline frees it */
}

static char **complete(const char *text, int start, int end) {
  (void)start, (void)end;
  rl_attempted_completion_over = 1; /* no names of files */
  rl_completion_append_character = '\0';
  free_words();
  char *copy = strdup(text);
  if (!copy) return NULL;
  editor.outside->call(editor.outside, &WORDS, copy);
  free(copy);
  return editor.words && *editor.words ? rl_completion_matches(text, next_word)
                                       : NULL;
}

/* --- opening and closing ----------------------------------------------------------- */

static void free_handle(uv_handle_t *h) { free(h); }

static void close_handle(void *h) {
  if (h) uv_close(h, free_handle);
}

/* Gives the terminal back. Runs no Lua. */
static void close_editor(coop_closer *closer) {
  if (!editor.outside) return;
  end_edit();
  coop__link_remove(&closer->link);
  editor.outside->show_no_more(editor.L, erase_line);
  close_handle(editor.poll);
  close_handle(editor.prepare);
  close_handle(editor.resumed);
  close(editor.tty);
  fclose(rl_outstream);
  rl_outstream = NULL;
  free_words();
  free(editor.line);
  free(editor.history);
  memset(&editor, 0, sizeof editor);
}

static int line_got(lua_State *L) {
  lua_pushvalue(L, lua_upvalueindex(1));
  if (editor.line) lua_pushstring(L, editor.line);
  else lua_pushboolean(L, 0);
  lua_call(L, 1, 0);
  return 0;
}

static void set_up_readline(FILE *out) {
  setlocale(LC_CTYPE, ""); /* readline's idea of a character */
  rl_readline_name = "coop";
  rl_instream = stdin;
  rl_outstream = out;
  rl_catch_signals = 0; /* Ctrl-C is the command's */
  rl_basic_word_break_characters = " \t\n\"\\'><=;+-*/%^~#{}()[],&|";
  rl_completer_word_break_characters = " \t\n\"\\'><=;+-*/%^~#{}()[],&|";
  rl_attempted_completion_function = complete;
  history_comment_char = '#'; /* entries of several lines stay whole */
  history_write_timestamps = 1;
  rl_initialize();
}

/* The handles, on the loop; false, and nothing is left, when that cannot be. */
static bool open_handles(uv_loop_t *loop, int tty) {
  editor.poll = malloc(sizeof *editor.poll);
  editor.prepare = malloc(sizeof *editor.prepare);
  editor.resumed = malloc(sizeof *editor.resumed);
  if (!editor.poll || !editor.prepare || !editor.resumed ||
      uv_poll_init(loop, editor.poll, tty) != 0) {
    free(editor.poll);
    free(editor.prepare);
    free(editor.resumed);
    return false;
  }
  uv_prepare_init(loop, editor.prepare);
  uv_prepare_start(editor.prepare, on_prepare);
  uv_unref((uv_handle_t *)editor.prepare);
  uv_signal_init(loop, editor.resumed);
  uv_signal_start(editor.resumed, on_resumed, SIGCONT);
  uv_unref((uv_handle_t *)editor.resumed);
  return true;
}

/* open(outside, on_line, complete): true when the terminal can be edited on.
   on_line(line) is called with a line that was read, false at the end;
   complete(word) gives a list of what the word may become. */
static int prompt_open(lua_State *L) {
  coop_outside *outside = lua_touserdata(L, 1);
  const char *term = getenv("TERM");
  luaL_argexpected(L, outside, 1, "outside");
  luaL_checktype(L, 2, LUA_TFUNCTION);
  luaL_checktype(L, 3, LUA_TFUNCTION);
  if (editor.outside || !isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO) ||
      !term || !*term || strcmp(term, "dumb") == 0)
    return 0;
  lua_pushvalue(L, 2);
  lua_pushcclosure(L, line_got, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &LINE);
  lua_pushvalue(L, 3);
  lua_pushcclosure(L, find_words, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &WORDS);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  lua_State *main = lua_tothread(L, -1);

  const char *name = ttyname(STDIN_FILENO);
  int tty = open(name ? name : "/dev/tty", O_RDONLY | O_NOCTTY | O_CLOEXEC);
  if (tty < 0) return 0;
  int copy = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0);
  FILE *out = copy < 0 ? NULL : fdopen(copy, "w");
  if (!out || !open_handles(outside->loop, tty)) {
    if (out) fclose(out);
    else if (copy >= 0) close(copy);
    close(tty);
    return 0;
  }
  editor.L = main;
  editor.outside = outside;
  editor.tty = tty;
  editor.closer.close = close_editor;
  coop__link_insert(&outside->closers, &editor.closer.link);
  set_up_readline(out);
  outside->show_below(L, erase_line);
  lua_pushboolean(L, 1);
  return 1;
}

/* close() */
static int prompt_close(lua_State *L) {
  (void)L;
  close_editor(&editor.closer);
  return 0;
}

/* --- lines ------------------------------------------------------------------------- */

static void check_open(lua_State *L) {
  if (!editor.outside) luaL_error(L, "the prompt is closed");
}

/* read(prompt): begins to edit a line, which on_line will be given. */
static int prompt_read(lua_State *L) {
  const char *text = luaL_checkstring(L, 1);
  check_open(L);
  if (editor.editing) return luaL_error(L, "a line is being edited already");
  fflush(stderr);
  editor.outside->end_line();
  editor.editing = true;
  rl_callback_handler_install(text, on_line);
  uv_poll_start(editor.poll, UV_READABLE, on_key);
  return 0;
}

/* drop(): the line that is being edited is not wanted. */
static int prompt_drop(lua_State *L) {
  check_open(L);
  if (!editor.editing) return 0;
  on_prepare(editor.prepare);
  rl_point = rl_end;
  rl_redisplay();
  fputs("^C\n", rl_outstream);
  rl_free_line_state(); /* of a search, an argument, a macro */
  rl_callback_sigcleanup();
  rl_replace_line("", 1);
  end_edit();
  fflush(rl_outstream);
  return 0;
}

/* Makes the directories above the file, for the user alone. */
static void make_directories(char *path) {
  for (char *p = path + 1; (p = strchr(p, '/')); p++) {
    *p = '\0';
    mkdir(path, 0700);
    *p = '/';
  }
}

/* load(path): the history is in this file from now on. False when it cannot be. */
static int prompt_load(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  check_open(L);
  clear_history();
  free(editor.history);
  editor.history = strdup(path);
  if (!editor.history) return 0;
  make_directories(editor.history);
  int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) {
    free(editor.history);
    editor.history = NULL;
    return 0;
  }
  close(fd);
  if (read_history(path) == 0 && history_length > HISTORY_MAX) {
    stifle_history(HISTORY_MAX);
    write_history(path);
    unstifle_history();
  }
  lua_pushboolean(L, 1);
  return 1;
}

/* remember(text): unless it is what came last. */
static int prompt_remember(lua_State *L) {
  const char *text = luaL_checkstring(L, 1);
  check_open(L);
  using_history();
  HIST_ENTRY *last = history_length > 0 ? history_get(history_base + history_length - 1)
                                        : NULL;
  if (last && strcmp(last->line, text) == 0) return 0;
  add_history(text);
  if (editor.history) append_history(1, editor.history);
  return 0;
}

static const luaL_Reg functions[] = {
  {"open", prompt_open},
  {"close", prompt_close},
  {"read", prompt_read},
  {"drop", prompt_drop},
  {"load", prompt_load},
  {"remember", prompt_remember},
  {NULL, NULL}
};

__attribute__((visibility("default"))) int luaopen_coop_prompt(lua_State *L) {
  luaL_checkversion(L);
  luaL_newlib(L, functions);
  return 1;
}
