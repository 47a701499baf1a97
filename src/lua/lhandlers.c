/*
** lhandlers.c - the handlers of a Deferred, in the order they were added.
**
** Three stand in user values, further ones in a table; a waiter can be taken away
** from anywhere. Nothing here runs a handler.
*/
#include "lcoop.h"

enum { SLOTS = 3 };

static inline void setslotkind(deferred *d, int i, handler_kind k) {
  d->kinds = (uint16_t)((d->kinds & ~(15 << (4 * i))) | (int)k << (4 * i));
}

static bool has_more(const deferred *d) {
  return d->count == SLOTS && slotkind(d, SLOTS - 1) == H_MORE;
}

/* Moves the third handler into the table on top, which goes to slot three.
   [-1, +0, m] */
static void make_more(lua_State *L, int idx, deferred *d) {
  lua_pushinteger(L, slotkind(d, SLOTS - 1));
  lua_rawseti(L, -2, 1);
  lua_getiuservalue(L, idx, DEFERRED_SLOT + SLOTS - 1);
  lua_rawseti(L, -2, 2);
  lua_setiuservalue(L, idx, DEFERRED_SLOT + SLOTS - 1);
  setslotkind(d, SLOTS - 1, H_MORE);
  d->more = 1;
  d->end = 3;
  d->gone = 0;
}

/* Moves what is not gone from the table of more of the Deferred at 'idx' to the
   one on top, so that waiters may come and go for ever. [-1, +0, m] */
static void compact(lua_State *L, int idx, deferred *d) {
  uint32_t to = 1;
  lua_getiuservalue(L, idx, DEFERRED_SLOT + SLOTS - 1);
  lua_insert(L, -2);
  for (uint32_t i = d->more; i < d->end; i += 2) {
    bool gone = lua_rawgeti(L, -2, i) == LUA_TNUMBER && lua_tointeger(L, -1) == H_GONE;
    if (gone) {
      lua_pop(L, 1);
      continue;
    }
    lua_rawseti(L, -2, to);
    lua_rawgeti(L, -2, i + 1);
    lua_rawseti(L, -2, to + 1);
    to += 2;
  }
  lua_setiuservalue(L, idx, DEFERRED_SLOT + SLOTS - 1);
  lua_pop(L, 1);
  d->flags &= (uint16_t)~D_INDEXED;
  d->more = 1;
  d->end = to;
  d->gone = 0;
}

/* Is the handler at 'i' of the table of more on top a waiter? */
static bool waits_at(lua_State *L, uint32_t i) {
  lua_rawgeti(L, -1, i);
  bool is = lua_tointeger(L, -1) == H_WAITER;
  lua_pop(L, 1);
  return is;
}

bool coop__pushwaiter(lua_State *L, int idx, const deferred *d, bool far) {
  for (int i = d->first; i < d->count; i++) {
    if (slotkind(d, i) != H_WAITER) continue;
    lua_getiuservalue(L, idx, DEFERRED_SLOT + i);
    return true;
  }
  if (!far || !has_more(d)) return false;
  lua_getiuservalue(L, idx, DEFERRED_SLOT + SLOTS - 1);
  for (uint32_t i = d->more; i < d->end; i += 2) {
    if (!waits_at(L, i)) continue;
    lua_rawgeti(L, -1, i + 1);
    lua_remove(L, -2);
    return true;
  }
  lua_pop(L, 1);
  return false;
}

/* Is so much gone from the table of more that it is to be made anew? */
static bool thinned(const deferred *d) {
  return d->gone >= 32 && d->gone > (d->end - d->more) / 4;
}

/* Makes room in the table of more. A new one may run finalisers, which may do
   anything to the Deferred: what it is for is asked again. */
static void make_room(lua_State *L, int idx, deferred *d) {
  if (has_more(d) && !thinned(d)) return;
  lua_createtable(L, has_more(d) ? (int)(d->end - d->more) : 8, 0);
  if (d->first == d->count) d->first = d->count = 0;
  if (d->count < SLOTS) lua_pop(L, 1);
  else if (!has_more(d)) make_more(L, idx, d);
  else if (thinned(d)) compact(L, idx, d);
  else lua_pop(L, 1);
}

/* Puts a handler at the end of the table of more. Pops its value. */
static void append_more(lua_State *L, int idx, deferred *d, handler_kind k) {
  lua_getiuservalue(L, idx, DEFERRED_SLOT + SLOTS - 1);
  if (k == H_WAITER && d->flags & D_INDEXED) {
    lua_pushvalue(L, -2);
    lua_pushinteger(L, d->end);
    lua_rawset(L, -3);
  }
  lua_pushinteger(L, k);
  lua_rawseti(L, -2, d->end);
  lua_insert(L, -2);
  lua_rawseti(L, -2, d->end + 1);
  lua_pop(L, 1);
  d->end += 2;
}

void coop__append_to(lua_State *L, int idx, deferred *d, handler_kind k) {
  if (d->first == d->count) d->first = d->count = 0;
  if (d->count == SLOTS) make_room(L, idx, d);
  if (d->count < SLOTS) {
    lua_setiuservalue(L, idx, DEFERRED_SLOT + d->count);
    setslotkind(d, d->count++, k);
  } else {
    append_more(L, idx, d, k);
  }
  if (k == H_WAITER) d->waiters++;
}

/* Empties slot 'first' and steps over it. */
static inline void drop_slot(lua_State *L, int idx, deferred *d) {
  lua_pushnil(L);
  lua_setiuservalue(L, idx, DEFERRED_SLOT + d->first++);
}

handler_kind coop__take(lua_State *L, int idx, deferred *d) {
  if (d->first == d->count) return H_NONE;
  handler_kind k = slotkind(d, d->first);
  if (k != H_MORE) {
    coop__take_slot(L, idx, d);
    return k;
  }
  lua_getiuservalue(L, idx, DEFERRED_SLOT + d->first);
  lua_rawgeti(L, -1, d->more);
  k = (handler_kind)lua_tointeger(L, -1);
  lua_pop(L, 1);
  lua_rawgeti(L, -1, d->more + 1);
  lua_insert(L, -2);
  lua_pushboolean(L, 0); /* let go of it; a list of a million is long-lived */
  lua_rawseti(L, -2, d->more + 1);
  lua_pop(L, 1);
  d->more += 2;
  if (d->more == d->end) {
    d->flags &= (uint16_t)~D_INDEXED;
    drop_slot(L, idx, d);
  }
  return k;
}

/* Notes in the table of more on top where each waiter stands. */
static void index_more(lua_State *L, deferred *d) {
  for (uint32_t i = d->more; i < d->end; i += 2) {
    if (!waits_at(L, i)) continue;
    lua_rawgeti(L, -1, i + 1);
    lua_pushinteger(L, i);
    lua_rawset(L, -3);
  }
  d->flags |= D_INDEXED;
}

/* Where the waiter stands in the table of more on top; 0: it does not; -1: the
   table knows. */
static lua_Integer place_of(lua_State *L, deferred *d, const void *who) {
  if (d->end - d->more < 64) {
    for (uint32_t i = d->more; i < d->end; i += 2) {
      lua_rawgeti(L, -1, i + 1);
      bool it = lua_touserdata(L, -1) == who;
      lua_pop(L, 1);
      if (it && waits_at(L, i)) return i;
    }
    return 0;
  }
  if (!(d->flags & D_INDEXED)) index_more(L, d);
  return -1;
}

void coop__detach(lua_State *L, int idx, const void *who) {
  deferred *d = lua_touserdata(L, idx);
  idx = lua_absindex(L, idx);
  for (int i = d->first; i < d->count; i++) {
    if (slotkind(d, i) != H_WAITER) continue;
    lua_getiuservalue(L, idx, DEFERRED_SLOT + i);
    bool it = lua_touserdata(L, -1) == who;
    lua_pop(L, 1);
    if (!it) continue;
    lua_pushnil(L);
    lua_setiuservalue(L, idx, DEFERRED_SLOT + i);
    setslotkind(d, i, H_GONE);
    d->waiters--;
    return;
  }
  if (!has_more(d)) return;
  lua_getiuservalue(L, idx, DEFERRED_SLOT + SLOTS - 1);
  lua_Integer at = place_of(L, d, who);
  if (at < 0) { /* stack: waiter, Deferred, table */
    lua_pushvalue(L, -3);
    lua_rawget(L, -2);
    at = lua_tointeger(L, -1);
    lua_pop(L, 1);
    if (at) {
      lua_pushvalue(L, -3);
      lua_pushnil(L);
      lua_rawset(L, -3);
    }
  }
  if (at) {
    lua_pushinteger(L, H_GONE);
    lua_rawseti(L, -2, at);
    lua_pushboolean(L, 0);
    lua_rawseti(L, -2, at + 1);
    d->waiters--;
    d->gone++;
  }
  lua_pop(L, 1);
}

void coop__pushwaiters(lua_State *L, int idx) {
  deferred *d = lua_touserdata(L, idx);
  lua_Integer n = 0;
  idx = lua_absindex(L, idx);
  lua_newtable(L);
  for (int i = d->first; i < d->count; i++) {
    if (slotkind(d, i) != H_WAITER) continue;
    lua_getiuservalue(L, idx, DEFERRED_SLOT + i);
    lua_rawseti(L, -2, ++n);
  }
  if (!has_more(d)) return;
  lua_getiuservalue(L, idx, DEFERRED_SLOT + SLOTS - 1);
  for (uint32_t i = d->more; i < d->end; i += 2) {
    if (!waits_at(L, i)) continue;
    lua_rawgeti(L, -1, i + 1);
    lua_rawseti(L, -3, ++n);
  }
  lua_pop(L, 1);
}
