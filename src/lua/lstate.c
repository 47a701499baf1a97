/*
** lstate.c - states of coop's own, for the command and for worker threads: like those
** of luaL_newstate, but their small objects come from slabs.
*/
#include "lstate.h"

#include <lauxlib.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/slabs.h"

/* Sanitizers are to see each block for itself. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SLABS = 0 };
#else
enum { SLABS = 1 };
#endif

static int panic(lua_State *L) {
  const char *message = lua_tostring(L, -1);
  fprintf(stderr, "PANIC: unprotected error in call to Lua API (%s)\n",
          message ? message : "error object is not a string");
  return 0;
}

enum { WARN_ON = 1, WARN_WITHIN = 2 /* a message that is not over */ };

/* What the flags are when "@on" or "@off" have come. */
static unsigned char controlled(unsigned char flags, const char *word) {
  if (!strcmp(word, "on")) return WARN_ON;
  if (!strcmp(word, "off")) return 0;
  return flags;
}

/* Writes warnings as lua does: "@on" and "@off" turn that on and off. */
static void warn(void *ud, const char *message, int more) {
  unsigned char *flags = ud;
  bool within = *flags & WARN_WITHIN;
  if (!within && !more && *message == '@') {
    *flags = controlled(*flags, message + 1);
    return;
  }
  if (*flags & WARN_ON) {
    if (!within) fputs("Lua warning: ", stderr);
    fputs(message, stderr);
    if (!more) fputc('\n', stderr);
    fflush(stderr);
  }
  *flags = (unsigned char)((*flags & WARN_ON) | (more ? WARN_WITHIN : 0));
}

lua_State *coop__state_new(void) {
  if (!SLABS) return luaL_newstate();
  coop_slabs *slabs = coop__slabs_new();
  lua_State *L = slabs ? lua_newstate(coop__slabs_alloc, slabs) : NULL;
  if (!L) {
    if (slabs) coop__slabs_free(slabs);
    return NULL;
  }
  lua_atpanic(L, panic);
  lua_setwarnf(L, warn, coop__slabs_spare(slabs));
  return L;
}

void coop__state_close(lua_State *L) {
  void *slabs;
  bool own = lua_getallocf(L, &slabs) == coop__slabs_alloc;
  lua_close(L);
  if (own) coop__slabs_free(slabs);
}
