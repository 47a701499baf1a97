/*
** outside.h - what coop offers to a C module beside it, like coop_http.
**
** Such a module links nothing of coop: it finds this struct by core.outside(), a
** light userdata, and puts its handles on the loop. It lives as long as the
** context; each module is told before the loop is closed.
*/
#ifndef COOP_OUTSIDE_H
#define COOP_OUTSIDE_H

#include <lua.h>
#include <stdbool.h>
#include <uv.h>

#include "core/list.h"

/* To be embedded; 'close' closes all handles, and runs no Lua. */
typedef struct coop_closer {
  coop_link link; /* in outside->closers until it was called or taken out */
  void (*close)(struct coop_closer *closer);
} coop_closer;

typedef struct coop_outside {
  uv_loop_t *loop; /* NULL once coop is closed */
  coop_link closers;
  /* Calls the function in the registry at 'key' with the pointer, from a callback
     of libuv's: no error gets out, it is reported. False when there was one. */
  bool (*call)(struct coop_outside *outside, const void *key, void *arg);
  /* What stands below the output of a terminal: see lcoop.h. */
  bool (*show_below)(lua_State *L, void (*erase)(void));
  void (*show_no_more)(lua_State *L, void (*erase)(void));
  void (*end_line)(void);
} coop_outside;

#endif
