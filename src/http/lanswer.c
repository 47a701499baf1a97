/*
** lanswer.c - the usual answer of a server, in one piece.
**
** Usual is: a body that is all there, and headers that are strings or numbers and
** say nothing of framing. Whatever else there is, is left to lua/coop/http.lua,
** which makes any answer; what is made here is the same, byte for byte.
*/
#include <ctype.h>
#include <stdio.h>

#include "lhttp.h"

enum { PIECE_MAX = 8 * 1024 }; /* bytes of a head, and of a body copied behind it */

typedef struct piece {
  char bytes[PIECE_MAX];
  size_t size;
} piece;

/* False when there is no room. */
static bool add(piece *p, const char *s, size_t n) {
  if (n > PIECE_MAX - p->size) return false;
  memcpy(p->bytes + p->size, s, n);
  p->size += n;
  return true;
}

static bool add_value(lua_State *L, piece *p, int idx) {
  size_t n;
  const char *s = luaL_checklstring(L, idx, &n);
  return add(p, s, n);
}

static bool equal(const char *s, size_t n, const char *name) {
  if (n != strlen(name)) return false;
  for (size_t i = 0; i < n; i++)
    if (tolower((unsigned char)s[i]) != name[i]) return false;
  return true;
}

/* Is it a header that says how the answer is framed, or that the server has? */
static bool is_framing(const char *s, size_t n) {
  switch (tolower((unsigned char)*s)) {
    case 'c': return equal(s, n, "content-length") || equal(s, n, "connection");
    case 't': return equal(s, n, "transfer-encoding");
    case 'd': return equal(s, n, "date");
    default: return false;
  }
}

/* Adds the header whose name and value are on top; false when it is not usual. */
static bool add_header(lua_State *L, piece *p) {
  size_t name_size, size;
  int type = lua_type(L, -1);
  if (lua_type(L, -2) != LUA_TSTRING) return false;
  if (type != LUA_TSTRING && type != LUA_TNUMBER) return false;
  const char *name = lua_tolstring(L, -2, &name_size);
  const char *value = lua_tolstring(L, -1, &size);
  return coop_http_istoken(name, name_size) && !is_framing(name, name_size) &&
         coop_http_istext(value, size) && add(p, name, name_size) &&
         add(p, ": ", 2) && add(p, value, size) && add(p, "\r\n", 2);
}

static bool add_headers(lua_State *L, piece *p, int idx) {
  if (!lua_istable(L, idx) || lua_getmetatable(L, idx)) return false;
  lua_pushnil(L);
  while (lua_next(L, idx)) {
    if (!add_header(L, p)) return false;
    lua_pop(L, 1);
  }
  return true;
}

/* answer(status line, date line, headers, connection line or "", body): the bytes,
   or nothing when the headers are not usual. */
static int answer(lua_State *L) {
  piece p;
  size_t n;
  char length[48];
  p.size = 0;
  lua_settop(L, 5);
  luaL_checklstring(L, 5, &n);
  int digits = snprintf(length, sizeof length, "Content-Length: %zu\r\n", n);
  bool usual = add_value(L, &p, 1) && add_value(L, &p, 2) && add_headers(L, &p, 3) &&
               add(&p, length, (size_t)digits) && add_value(L, &p, 4) &&
               add(&p, "\r\n", 2);
  if (!usual) return 0;
  bool whole = add_value(L, &p, 5);
  lua_pushlstring(L, p.bytes, p.size);
  if (whole) return 1;
  lua_pushvalue(L, 5);
  lua_concat(L, 2);
  return 1;
}

void coop_http_open_answer(lua_State *L) {
  lua_pushcfunction(L, answer);
  lua_setfield(L, -2, "answer");
}
