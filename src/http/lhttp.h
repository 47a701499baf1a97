/*
** lhttp.h - what the files of the module coop_http share.
**
** The module knows Lua's API, libuv and outside.h, and nothing else of coop. Its
** public face is lua/coop/http.lua.
*/
#ifndef COOP_LHTTP_H
#define COOP_LHTTP_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "lua/outside.h"

/* Bytes that grow; all zero: none. */
typedef struct buffer {
  char *data;
  size_t size, room;
} buffer;

/* False without memory: nothing is added then. */
static inline bool buffer_add(buffer *b, const char *s, size_t n) {
  if (b->room - b->size < n) {
    size_t room = b->size + n > 2 * b->room ? b->size + n : 2 * b->room;
    char *data = realloc(b->data, room);
    if (!data) return false;
    b->data = data;
    b->room = room;
  }
  if (n) memcpy(b->data + b->size, s, n);
  b->size += n;
  return true;
}

static inline void buffer_free(buffer *b) {
  free(b->data);
  *b = (buffer){0};
}

/* Each adds its functions to the table on top. [-0, +0, m] */
void coop_http_open_client(lua_State *L);
void coop_http_open_parser(lua_State *L);
void coop_http_open_answer(lua_State *L);

/* May it be the name of a header (or a method), and the value of one? */
bool coop_http_istoken(const char *s, size_t n);
bool coop_http_istext(const char *s, size_t n);

#endif
