/*
** lcopy.c - copies of values, for a state that another thread runs.
**
** A table or function is numbered where it is met first, and its number stands
** for it from then on. Behind each value come the contents of the tables met in
** it, in the order of their numbers, so that neither depth nor cycles matter:
** nothing here calls itself.
*/
#include <lauxlib.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lcopy.h"

/* What a value, or the end of something, begins with. */
enum {
  T_NIL, T_FALSE, T_TRUE,
  T_INTEGER,   /* lua_Integer */
  T_FLOAT,     /* lua_Number */
  T_SHORT,     /* a byte: length; the string */
  T_LONG,      /* size_t: length; the string */
  T_TABLE,     /* uint32_t: elements to expect */
  T_FUNCTION,  /* size_t: length; what string.dump makes of it */
  T_CFUNCTION, /* its address */
  T_AGAIN,     /* uint32_t: number of a table or function met before */
  T_PAIRS,     /* in a table: from here on keys and values */
  T_END        /* of a table */
};

/* --- bytes ----------------------------------------------------------------- */

bool coop__bytes_reserve(bytes *b, size_t n) {
  if (b->size - b->n >= n) return true;
  size_t size = b->size ? b->size : 128;
  while (size - b->n < n) {
    if (size > SIZE_MAX / 2) return false;
    size *= 2;
  }
  char *data = realloc(b->data, size);
  if (!data) return false;
  b->data = data;
  b->size = size;
  return true;
}

bool coop__bytes_add(bytes *b, const void *data, size_t n) {
  if (!coop__bytes_reserve(b, n)) return false;
  if (n) memcpy(b->data + b->n, data, n);
  b->n += n;
  return true;
}

void coop__bytes_free(bytes *b) {
  free(b->data);
  *b = (bytes){0};
}

void coop__bytes_move(bytes *to, bytes *from) {
  *to = *from;
  *from = (bytes){0};
}

/* --- out --------------------------------------------------------------------- */

typedef struct writer {
  lua_State *L;
  bytes *b;
  int seen;       /* a table: object -> number, number -> object; 0: not yet made */
  int first;      /* where the object with number 1 stands */
  uint32_t count; /* objects met */
  uint32_t done;  /* of these, how many have their contents written */
} writer;

static void put(writer *w, const void *data, size_t n) {
  if (!coop__bytes_add(w->b, data, n)) luaL_error(w->L, "not enough memory");
}

static void put_tag(writer *w, int tag) {
  char c = (char)tag;
  put(w, &c, 1);
}

static void put_number(writer *w, int tag, const void *number, size_t n) {
  char text[1 + 16] = {(char)tag};
  memcpy(text + 1, number, n);
  put(w, text, 1 + n);
}

static void put_string(writer *w, int idx) {
  size_t n;
  const char *s = lua_tolstring(w->L, idx, &n);
  unsigned char length = (unsigned char)n;
  if (n == length) put_number(w, T_SHORT, &length, 1);
  else put_number(w, T_LONG, &n, sizeof n);
  put(w, s, n);
}

static void remember(writer *w, int idx, uint32_t number) {
  lua_State *L = w->L;
  lua_pushvalue(L, idx);
  lua_pushinteger(L, number);
  lua_rawset(L, w->seen);
  lua_pushvalue(L, idx);
  lua_rawseti(L, w->seen, number);
}

/* Writes a reference to the object at 'idx' if it was met before; else numbers
   it. The first one needs no table. */
static bool put_again(writer *w, int idx) {
  lua_State *L = w->L;
  uint32_t number = 0;
  if (w->count == 1 && lua_rawequal(L, idx, w->first)) {
    number = 1;
  } else if (w->count > 1) {
    lua_pushvalue(L, idx);
    lua_rawget(L, w->seen);
    number = (uint32_t)lua_tointeger(L, -1);
    lua_pop(L, 1);
  }
  if (number) {
    put_number(w, T_AGAIN, &number, sizeof number);
    return true;
  }
  if (w->count == UINT32_MAX) luaL_error(L, "too many tables to copy");
  if (++w->count == 1) {
    w->first = idx;
    return false;
  }
  if (w->count == 2) {
    lua_newtable(L);
    lua_replace(L, w->seen);
    remember(w, w->first, 1);
  }
  remember(w, idx, w->count);
  return false;
}

/* Says what is wrong, as a string on the stack. */
static bool refuse(writer *w, const char *what, const char *name) {
  lua_pushfstring(w->L, what, name);
  return false;
}

static bool put_table(writer *w, int idx) {
  if (lua_getmetatable(w->L, idx)) {
    lua_pop(w->L, 1);
    return refuse(w, "got table with a metatable", NULL);
  }
  if (put_again(w, idx)) return true;
  size_t n = lua_rawlen(w->L, idx);
  uint32_t hint = n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
  put_number(w, T_TABLE, &hint, sizeof hint);
  return true;
}

static int dump(lua_State *L, const void *data, size_t n, void *ud) {
  (void)L;
  return !coop__bytes_add(ud, data, n);
}

/* The name of an upvalue of the function at 'idx' other than _ENV, or NULL. The
   value of _ENV becomes the table of globals there. */
static const char *upvalue(lua_State *L, int idx) {
  const char *name = lua_getupvalue(L, idx, 1);
  if (!name) return NULL;
  lua_pushglobaltable(L);
  bool env = strcmp(name, "_ENV") == 0 || lua_rawequal(L, -1, -2);
  lua_pop(L, 2);
  if (!env) return name;
  name = lua_getupvalue(L, idx, 2);
  if (name) lua_pop(L, 1);
  return name;
}

static bool put_function(writer *w, int idx) {
  lua_State *L = w->L;
  if (lua_iscfunction(L, idx)) {
    if (lua_getupvalue(L, idx, 1)) {
      lua_pop(L, 1);
      return refuse(w, "got C function with upvalues", NULL);
    }
    lua_CFunction f = lua_tocfunction(L, idx);
    put_number(w, T_CFUNCTION, &f, sizeof f);
    return true;
  }
  const char *name = upvalue(L, idx);
  if (name) return refuse(w, "got function with the upvalue '%s'", name);
  if (put_again(w, idx)) return true;
  size_t n = 0;
  put_number(w, T_FUNCTION, &n, sizeof n);
  size_t at = w->b->n;
  lua_pushvalue(L, idx);
  if (lua_dump(L, dump, w->b, 0) != 0) luaL_error(L, "not enough memory");
  lua_pop(L, 1);
  n = w->b->n - at;
  memcpy(w->b->data + at - sizeof n, &n, sizeof n);
  return true;
}

/* Writes the value at 'idx', but not the contents of a table. False and a string
   on the stack when it cannot be copied. */
static bool put_value(writer *w, int idx) {
  lua_State *L = w->L;
  switch (lua_type(L, idx)) {
    case LUA_TNIL: put_tag(w, T_NIL); return true;
    case LUA_TBOOLEAN:
      put_tag(w, lua_toboolean(L, idx) ? T_TRUE : T_FALSE);
      return true;
    case LUA_TNUMBER:
      if (lua_isinteger(L, idx)) {
        lua_Integer i = lua_tointeger(L, idx);
        put_number(w, T_INTEGER, &i, sizeof i);
      } else {
        lua_Number f = lua_tonumber(L, idx);
        put_number(w, T_FLOAT, &f, sizeof f);
      }
      return true;
    case LUA_TSTRING: put_string(w, idx); return true;
    case LUA_TTABLE: return put_table(w, idx);
    case LUA_TFUNCTION: return put_function(w, idx);
    case LUA_TTHREAD: return refuse(w, "got coroutine", NULL);
    default: return refuse(w, "got %s", luaL_typename(L, idx));
  }
}

/* Adds to what is wrong, on top, the key at 'key' under which it was met. */
static bool refuse_in(writer *w, int key) {
  lua_State *L = w->L;
  if (lua_type(L, key) == LUA_TSTRING)
    lua_pushfstring(L, "%s in field '%s'", lua_tostring(L, -1),
                    lua_tostring(L, key));
  else if (lua_isinteger(L, key))
    lua_pushfstring(L, "%s at index %I", lua_tostring(L, -1),
                    (LUAI_UACINT)lua_tointeger(L, key));
  else
    lua_pushfstring(L, "%s in a table", lua_tostring(L, -1));
  return false;
}

/* Writes what the table at 'idx' holds: as long as the keys are 1, 2, 3... the
   values alone. */
static bool put_contents(writer *w, int idx) {
  lua_State *L = w->L;
  bool pairs = false;
  lua_Integer n = 0;
  lua_pushnil(L);
  int key = lua_gettop(L);
  while (lua_next(L, idx)) {
    if (!pairs && !(lua_isinteger(L, key) && lua_tointeger(L, key) == ++n)) {
      pairs = true;
      put_tag(w, T_PAIRS);
    }
    if (pairs && !put_value(w, key)) return refuse(w, "%s as a key",
                                                   lua_tostring(L, -1));
    if (!put_value(w, key + 1)) return refuse_in(w, key);
    lua_settop(L, key);
  }
  put_tag(w, T_END);
  return true;
}

static bool put_objects(writer *w) {
  lua_State *L = w->L;
  int top = lua_gettop(L);
  while (w->done < w->count) {
    if (++w->done == 1) lua_pushvalue(L, w->first);
    else lua_rawgeti(L, w->seen, w->done);
    if (lua_istable(L, top + 1) && !put_contents(w, top + 1)) return false;
    lua_settop(L, top);
  }
  return true;
}

bool coop__copy_out(lua_State *L, int first, int last, bytes *b, int *bad) {
  luaL_checkstack(L, 12, "copy");
  writer w = {.L = L, .b = b};
  lua_pushnil(L);
  w.seen = lua_gettop(L);
  for (int i = first; i <= last; i++) {
    if (put_value(&w, i) && put_objects(&w)) continue;
    *bad = i;
    lua_replace(L, w.seen);
    lua_settop(L, w.seen);
    return false;
  }
  lua_settop(L, w.seen - 1);
  return true;
}

/* --- in ------------------------------------------------------------------------ */

typedef struct reader {
  lua_State *L;
  const char *at;
  int objects;    /* a table: number -> object; nil as long as there is one only */
  int first;      /* where the object with number 1 stands */
  uint32_t count; /* objects made */
  uint32_t done;  /* of these, how many have been filled */
  int fields;     /* that will be added to the first */
} reader;

static void get(reader *r, void *to, size_t n) {
  memcpy(to, r->at, n);
  r->at += n;
}

/* The object on top has just been made: numbers it. */
static void number_object(reader *r) {
  lua_State *L = r->L;
  if (++r->count == 1) {
    r->first = lua_gettop(L);
    return;
  }
  int object = lua_gettop(L);
  if (r->count == 2) {
    lua_newtable(L);
    lua_replace(L, r->objects);
    lua_pushvalue(L, r->first);
    lua_rawseti(L, r->objects, 1);
  }
  lua_pushvalue(L, object);
  lua_rawseti(L, r->objects, r->count);
}

static void push_object(reader *r, uint32_t number) {
  if (number == 1) lua_pushvalue(r->L, r->first);
  else lua_rawgeti(r->L, r->objects, number);
}

static void get_function(reader *r) {
  size_t n;
  get(r, &n, sizeof n);
  /* binary, and nothing but what lua_dump has just made of a function */
  if (luaL_loadbufferx(r->L, r->at, n, "=(job)", "b") != LUA_OK) lua_error(r->L);
  r->at += n;
  number_object(r);
}

static void get_string(reader *r, size_t n) {
  lua_pushlstring(r->L, r->at, n);
  r->at += n;
}

/* Pushes the next value. False, and nothing pushed, at T_PAIRS and T_END. */
static bool get_value(reader *r, int *tag) {
  lua_State *L = r->L;
  switch (*tag = *r->at++) {
    case T_NIL: lua_pushnil(L); return true;
    case T_FALSE: lua_pushboolean(L, 0); return true;
    case T_TRUE: lua_pushboolean(L, 1); return true;
    case T_INTEGER: {
      lua_Integer i;
      get(r, &i, sizeof i);
      lua_pushinteger(L, i);
      return true;
    }
    case T_FLOAT: {
      lua_Number f;
      get(r, &f, sizeof f);
      lua_pushnumber(L, f);
      return true;
    }
    case T_SHORT: get_string(r, (unsigned char)*r->at++); return true;
    case T_LONG: {
      size_t n;
      get(r, &n, sizeof n);
      get_string(r, n);
      return true;
    }
    case T_TABLE: {
      uint32_t n;
      get(r, &n, sizeof n);
      lua_createtable(L, n < INT32_MAX ? (int)n : 0, r->count ? 0 : r->fields);
      number_object(r);
      return true;
    }
    case T_FUNCTION: get_function(r); return true;
    case T_CFUNCTION: {
      lua_CFunction f;
      get(r, &f, sizeof f);
      lua_pushcfunction(L, f);
      return true;
    }
    case T_AGAIN: {
      uint32_t number;
      get(r, &number, sizeof number);
      push_object(r, number);
      return true;
    }
    default: return false;
  }
}

/* Fills the table on top. */
static void get_contents(reader *r) {
  lua_State *L = r->L;
  int tag, table = lua_gettop(L);
  for (lua_Integer i = 1; get_value(r, &tag); i++) lua_rawseti(L, table, i);
  if (tag == T_END) return;
  while (get_value(r, &tag)) {
    get_value(r, &tag);
    lua_rawset(L, table);
  }
}

static const char *copy_in(lua_State *L, const char *data, int n, int fields) {
  luaL_checkstack(L, n + 8, "copy");
  reader r = {.L = L, .at = data, .fields = fields};
  lua_pushnil(L);
  r.objects = lua_gettop(L);
  int tag;
  for (int i = 0; i < n; i++) {
    get_value(&r, &tag);
    while (r.done < r.count) {
      push_object(&r, ++r.done);
      if (lua_istable(L, -1)) get_contents(&r);
      lua_pop(L, 1);
    }
  }
  lua_remove(L, r.objects);
  return r.at;
}

const char *coop__copy_in(lua_State *L, const char *data, int n) {
  return copy_in(L, data, n, 0);
}

const char *coop__copy_in_for(lua_State *L, const char *data, int fields) {
  return copy_in(L, data, 1, fields);
}
