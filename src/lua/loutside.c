/*
** loutside.c - C modules beside coop: where they are, and what they are given.
**
** They are built as files of their own, so that coop itself needs none of the
** libraries that they are for.
*/
#define _GNU_SOURCE /* dladdr */

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "lcoop.h"

static bool call(coop_outside *outside, const void *key, void *arg) {
  return coop__from_loop(coop_container(outside, coop_context, outside), key, arg);
}

void coop__outside_shut(coop_context *ctx) {
  coop_link *closers = &ctx->outside.closers;
  while (!coop__link_alone(closers)) {
    coop_closer *c = coop_container(closers->next, coop_closer, link);
    coop__link_remove(&c->link);
    c->close(c);
  }
  ctx->outside.loop = NULL;
}

/* core.outside(): the coop_outside of outside.h, a light userdata. */
static int outside(lua_State *L) {
  lua_pushlightuserdata(L, &getctx(L)->outside);
  return 1;
}

/* The file that coop itself is in; false when the system does not tell. The name
   of a program is what it was called by, perhaps along a search path. */
static bool own_file(char *path, size_t size) {
  Dl_info info;
  if (!dladdr((const void *)coop__kinds, &info) || !info.dli_fname) return false;
  if (!strchr(info.dli_fname, '/')) return uv_exepath(path, &size) == 0;
  char *real = realpath(info.dli_fname, NULL);
  bool fits = real && strlen(real) < size;
  if (fits) strcpy(path, real);
  free(real);
  return fits;
}

/* core.libdirs(): the directories where C modules beside coop may be, found from
   the file that coop itself is in, wherever the whole was moved: a build's, those
   of an installed command and of an installed library. */
static int libdirs(lua_State *L) {
  static const char *const from_file[] = {".", COOP_MODULES_FROM_BIN,
                                          COOP_MODULES_FROM_LIB};
  char path[4096];
  lua_newtable(L);
  if (!own_file(path, sizeof path)) return 1;
  *strrchr(path, '/') = '\0';
  for (int i = 0; i < 3; i++) {
    lua_pushfstring(L, "%s/%s", path, from_file[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static const luaL_Reg core_functions[] = {
  {"outside", outside},
  {"libdirs", libdirs},
  {NULL, NULL}
};

void coop__open_outside(lua_State *L) {
  coop_context *ctx = getctx(L);
  ctx->outside.loop = ctx->loop.uv;
  ctx->outside.call = call;
  ctx->outside.show_below = coop__show_below;
  ctx->outside.show_no_more = coop__show_no_more;
  ctx->outside.end_line = coop__end_line;
  lua_pushvalue(L, 2);
  coop__setfuncs(L, core_functions);
  lua_settop(L, 2);
}
