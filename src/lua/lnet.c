/*
** lnet.c - connections and listeners: sockets of our own on libuv's polls.
**
** libuv says when a descriptor is ready; the reading, writing and accepting is
** done here, because libuv's streams write without MSG_NOSIGNAL, read what nobody
** has asked for, and drop whoever connects while descriptors are short.
**
** A channel is what libuv knows of a socket; it outlives the Connection or
** Listener that owns it until libuv has let go. Its descriptor is watched for
** reading only while somebody reads, for writing only while the peer is slow, and
** the owner is a root, and work for the loop, exactly while somebody waits for it
** or output is left. Nothing is read ahead: the bound of what a slow reader costs
** is the system's own.
*/
#define _GNU_SOURCE /* accept4 */

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "lcoop.h"

enum {
  BLOCK_MAX = 64 * 1024,  /* bytes of one read */
  HIGH_WATER = 64 * 1024, /* bytes of output beyond which a write waits ... */
  LOW_WATER = 16 * 1024,  /* ... until no more than these are left */
  IOV_COUNT = 64,         /* pieces of one write */
  ACCEPT_MAX = 64,        /* connections of one turn */
  LINE_MAX_DEFAULT = 64 * 1024
};

typedef struct coop_net {
  coop_link open;     /* every channel that is not closed */
  coop_link gathered; /* Connections with small writes to be sent together */
  coop_link lookups;  /* names that are being looked up */
  uv_idle_t *idle;    /* runs while something is gathered, at the next turn */
  char block[BLOCK_MAX]; /* what was read last, until it is handed over */
} coop_net;

typedef struct channel {
  uv_poll_t poll;
  coop_context *ctx;
  object *owner; /* NULL once closed */
  coop_link link;
  int fd;
  int events; /* what libuv watches for */
  bool held;  /* the owner is a root, and work for the loop */
} channel;

/* What a reader asks for; a count of bytes is not negative. */
enum { WISH_BLOCK = -1, WISH_LINE = -2, WISH_WHOLE_LINE = -3, WISH_ALL = -4 };

/* user values of a Connection */
enum {
  CONN_READER = 1, /* the Deferred of the first reader; of the connect before */
  CONN_READERS,    /* those behind it: Deferred (false: gone), wish, ... */
  CONN_OUTPUT,     /* the strings to be sent, from out_first to out_last */
  CONN_WRITERS,    /* Deferreds that wait until the peer keeps up */
  CONN_SHUT,       /* the Deferred of shutdown() while output is left */
  CONN_CLOSED,     /* the Deferred of close() while output is left */
  CONN_PEER,       /* text */
  CONN_NUV = CONN_PEER
};

/* A list in a user value, [first, last] of it in use. */
typedef struct span {
  lua_Integer first, last;
} span;

typedef struct connection {
  object object;
  channel *ch;        /* NULL once closed */
  coop_link link;     /* in net->gathered */
  bool connecting;
  bool reading;       /* there is a first reader */
  bool looped;        /* it is a loop over the Connection, which alone has its
                         Deferred */
  bool spare;         /* CONN_READER is the Deferred of such a one, unused */
  bool blocked;       /* the peer is slow: wait until it can be written to */
  bool ending;        /* shutdown() was called */
  bool closing;       /* close() was called, output is left */
  bool ended;         /* the peer has sent all it has to send */
  int read_error, write_error; /* libuv's, or 0 */
  lua_Integer wish;   /* of the first reader */
  span readers, output, writers;
  size_t skip;        /* bytes of the first string of output that were sent */
  size_t left;        /* bytes of output */
  unsigned wrote_in, read_in; /* the last turn that went to the system directly */
  lua_State *L;       /* whose allocator has the input */
  char *input;        /* what was read beyond what was asked for */
  size_t from, to, room; /* its bytes, and what it could hold */
  size_t seen;        /* of them: have no end of line */
  size_t line_max;
  double timeout;     /* seconds, of each wait; < 0: none */
} connection;

enum { LISTENER_ACCEPT = 1, LISTENER_FULL, LISTENER_NUV = LISTENER_FULL };

typedef struct listener {
  object object;
  channel *ch;
  int pending; /* a descriptor accepted but not yet handed on, or -1 */
  int port;    /* or -1 */
  char path[sizeof((struct sockaddr_un *)0)->sun_path]; /* to be removed, or "" */
} listener;

typedef union address {
  struct sockaddr any;
  struct sockaddr_in in4;
  struct sockaddr_in6 in6;
  struct sockaddr_un un;
  struct sockaddr_storage storage;
} address;

static const char event_key, linger_key, lookup_key; /* addresses: functions */

/* --- channels ---------------------------------------------------------------------- */

static void on_event(uv_poll_t *h, int status, int events);

/* The context's net, made when it is first needed; misuse once that is closed. */
static coop_net *need_net(lua_State *L) {
  coop_context *ctx = getctx(L);
  if (ctx->closed) luaL_error(L, "coop has been closed in this state");
  if (ctx->net) return ctx->net;
  coop_net *net = malloc(sizeof *net);
  uv_idle_t *idle = malloc(sizeof *idle);
  if (!net || !idle) {
    free(net);
    free(idle);
    luaL_error(L, "not enough memory");
    return NULL;
  }
  coop__link_init(&net->open);
  coop__link_init(&net->gathered);
  coop__link_init(&net->lookups);
  uv_idle_init(ctx->loop.uv, idle);
  idle->data = net;
  net->idle = idle;
  ctx->net = net;
  return net;
}

static void on_closed(uv_handle_t *h) {
  free(coop_container((uv_poll_t *)h, channel, poll));
}

/* Makes a channel of the descriptor, which it takes over; NULL and the error
   when that fails. */
static channel *channel_open(coop_context *ctx, int fd, object *owner, int *error) {
  channel *ch = malloc(sizeof *ch);
  *error = ch ? uv_poll_init(ctx->loop.uv, &ch->poll, fd) : UV_ENOMEM;
  if (*error) {
    free(ch);
    close(fd);
    return NULL;
  }
  ch->poll.data = NULL;
  ch->ctx = ctx;
  ch->owner = owner;
  ch->fd = fd;
  ch->events = 0;
  ch->held = false;
  uv_unref((uv_handle_t *)&ch->poll);
  coop__link_init(&ch->link);
  coop__link_insert(&ctx->net->open, &ch->link);
  return ch;
}

static void channel_close(channel *ch) {
  ch->owner = NULL;
  coop__link_remove(&ch->link);
  uv_close((uv_handle_t *)&ch->poll, on_closed);
  close(ch->fd);
}

static void watch(channel *ch, int events) {
  if (events == ch->events) return;
  ch->events = events;
  if (events) uv_poll_start(&ch->poll, events, on_event);
  else uv_poll_stop(&ch->poll);
}

/* Makes the owner, at 'at', a root and work for the loop, or no more. May raise
   only when it begins to. [-0, +0, m] */
static void hold(lua_State *L, int at, channel *ch, bool held) {
  if (held == ch->held) return;
  pushctx(L, CTX_HOLDS);
  if (held) lua_pushvalue(L, at);
  else lua_pushnil(L);
  lua_rawsetp(L, -2, ch);
  lua_pop(L, 1);
  ch->held = held;
  if (held) uv_ref((uv_handle_t *)&ch->poll);
  else uv_unref((uv_handle_t *)&ch->poll);
}

/* --- addresses ------------------------------------------------------------------------ */

static socklen_t address_size(const address *a) {
  if (a->any.sa_family == AF_INET) return sizeof a->in4;
  if (a->any.sa_family == AF_INET6) return sizeof a->in6;
  return sizeof a->un;
}

/* Addresses are strings for Lua: the bytes of the system's. */
static void pushaddress(lua_State *L, const address *a) {
  lua_pushlstring(L, (const char *)a, address_size(a));
}

static void checkaddress(lua_State *L, int idx, address *a) {
  size_t n;
  const char *s = luaL_checklstring(L, idx, &n);
  memset(a, 0, sizeof *a);
  luaL_argcheck(L, n >= sizeof a->in4 && n <= sizeof *a, idx, "address expected");
  memcpy(a, s, n);
}

/* Pushes "1.2.3.4:80", "[::1]:80" or "unix:PATH". [-0, +1, m] */
static void pushtext(lua_State *L, const address *a) {
  char text[INET6_ADDRSTRLEN + 1] = "?";
  if (a->any.sa_family == AF_UNIX) {
    lua_pushfstring(L, "unix:%s", a->un.sun_path);
  } else if (a->any.sa_family == AF_INET6) {
    uv_ip6_name(&a->in6, text, sizeof text);
    lua_pushfstring(L, "[%s]:%d", text, (int)ntohs(a->in6.sin6_port));
  } else {
    uv_ip4_name(&a->in4, text, sizeof text);
    lua_pushfstring(L, "%s:%d", text, (int)ntohs(a->in4.sin_port));
  }
}

/* core.net.address(host, port): of a host that is a number; else nil. */
static int numeric_address(lua_State *L) {
  const char *host = luaL_checkstring(L, 1);
  int port = (int)luaL_checkinteger(L, 2);
  address a;
  memset(&a, 0, sizeof a);
  if (uv_ip4_addr(host, port, &a.in4) != 0 && uv_ip6_addr(host, port, &a.in6) != 0)
    return 0;
  pushaddress(L, &a);
  return 1;
}

/* core.net.unix_address(path): nil when it is too long for the system. */
static int unix_address(lua_State *L) {
  size_t n;
  const char *path = luaL_checklstring(L, 1, &n);
  address a;
  memset(&a, 0, sizeof a);
  if (n >= sizeof a.un.sun_path) return 0;
  a.un.sun_family = AF_UNIX;
  memcpy(a.un.sun_path, path, n);
  pushaddress(L, &a);
  return 1;
}

/* core.net.text(address) */
static int address_text(lua_State *L) {
  address a;
  checkaddress(L, 1, &a);
  pushtext(L, &a);
  return 1;
}

/* --- failures --------------------------------------------------------------------------- */

/* Pushes the Failure of what became of the connection with 'peer' (text at 'peer',
   0: none): libuv's text and name of the error. [-0, +1, m] */
static void pushfailure(lua_State *L, const char *class, int peer, int error) {
  char what[128] = "closed", name[32] = "";
  luaL_checkstack(L, 8, "failure");
  if (error) {
    uv_strerror_r(error, what, sizeof what);
    uv_err_name_r(error, name, sizeof name);
    lua_pushfstring(L, "%s (%s)", what, name);
  } else {
    lua_pushliteral(L, "the connection was closed");
  }
  if (peer && lua_type(L, peer) == LUA_TSTRING) {
    lua_pushfstring(L, "%s: %s", lua_tostring(L, peer), lua_tostring(L, -1));
    lua_remove(L, -2);
  }
  coop__pusherror(L, class, lua_tostring(L, -1));
  lua_remove(L, -2);
  if (error) {
    lua_pushstring(L, name);
    lua_setfield(L, -2, "code");
  }
  if (peer) {
    lua_pushvalue(L, peer);
    lua_setfield(L, -2, "peer");
  }
  coop__tofailure(L);
}

/* The class of an error on the way to a peer. */
static const char *refusal(int error) {
  return error == UV_ETIMEDOUT ? "TimeoutError" : "ConnectionRefused";
}

/* The same for the Connection at 'at': without an error, it was closed. */
static void pushlost(lua_State *L, int at, int error) {
  lua_getiuservalue(L, at, CONN_PEER);
  pushfailure(L, error ? "ConnectionLost" : "ConnectionDone", lua_gettop(L), error);
  lua_remove(L, -2);
}

/* Fires the Deferred below the value on top, unless a script has done so itself.
   [-2, +0, m] */
static void fire(lua_State *L) {
  int at = lua_gettop(L) - 1;
  deferred *d = lua_touserdata(L, at);
  if (!(d->flags & D_FIRED)) coop__fire(L, at);
  lua_settop(L, at - 1);
}

/* The same with the Failure of what the script itself has closed: whoever waits
   gets it, but it is nothing to be reported. [-2, +0, m] */
static void fire_quietly(lua_State *L) {
  int at = lua_gettop(L) - 1;
  deferred *d = lua_touserdata(L, at);
  if (!(d->flags & D_FIRED)) {
    coop__fire(L, at);
    coop__handled(L, at);
  }
  lua_settop(L, at - 1);
}

/* Pushes a Deferred that has fired with the value on top. [-1, +1, m] */
static void pushfired(lua_State *L) {
  coop__deferred_new(L);
  lua_insert(L, -2);
  coop__fire(L, lua_gettop(L) - 1);
}

/* --- spans: lists in user values ------------------------------------------------------------ */

/* Adds the 'n' values on top to the list in user value 'slot', all or none.
   [-n, +0, m] */
static void span_push(lua_State *L, int at, int slot, span *s, int n) {
  if (lua_getiuservalue(L, at, slot) != LUA_TTABLE) {
    lua_pop(L, 1);
    lua_createtable(L, 4, 0);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, at, slot);
  }
  if (s->first > s->last) *s = (span){1, 0};
  lua_insert(L, -1 - n);
  for (int i = n; i > 0; i--) lua_rawseti(L, -1 - i, s->last + i);
  s->last += n;
  lua_pop(L, 1);
}

/* Takes the first one off and pushes it; false when there is none. */
static bool span_take(lua_State *L, int at, int slot, span *s) {
  if (s->first > s->last) return false;
  lua_getiuservalue(L, at, slot);
  lua_rawgeti(L, -1, s->first);
  lua_pushnil(L);
  lua_rawseti(L, -3, s->first++);
  lua_remove(L, -2);
  return true;
}

static void span_clear(lua_State *L, int at, int slot, span *s) {
  *s = (span){1, 0};
  lua_pushnil(L);
  lua_setiuservalue(L, at, slot);
}

/* Puts false in the place of the value on top. [-0, +0, -] */
static bool span_forget(lua_State *L, int at, int slot, const span *s) {
  bool found = false;
  lua_getiuservalue(L, at, slot);
  for (lua_Integer i = s->first; i <= s->last && !found; i++) {
    lua_rawgeti(L, -1, i);
    found = lua_rawequal(L, -1, -3);
    lua_pop(L, 1);
    if (!found) continue;
    lua_pushboolean(L, 0);
    lua_rawseti(L, -2, i);
  }
  lua_pop(L, 1);
  return found;
}

/* --- connections: what they wait for --------------------------------------------------------- */

static connection *checkconnection(lua_State *L, const char *fname) {
  return coop__checkkind(L, 1, KIND_CONNECTION, fname, 0);
}

/* Still to be talked to by scripts. */
static bool isopen(const connection *c) { return c->ch && !c->closing; }

static bool has_writers(const connection *c) {
  return c->writers.first <= c->writers.last;
}

static bool waits(const connection *c) {
  return c->connecting || c->reading || c->blocked || c->closing ||
         has_writers(c) || !coop__link_alone(&c->link);
}

/* Watches for what is waited for; a watch for reading that nobody needs any more
   stays until it tells of something, because the next reader is likely near. */
static void settle(lua_State *L, int at, connection *c) {
  if (!c->ch) return;
  bool over = c->ended || c->read_error;
  int events = over ? 0 : c->ch->events & UV_READABLE;
  if (c->reading && !over) events |= UV_READABLE;
  if (c->blocked || c->connecting) events |= UV_WRITABLE;
  watch(c->ch, events);
  hold(L, at, c->ch, waits(c));
}

static void *allocate(lua_State *L, void *p, size_t old, size_t new) {
  void *ud;
  lua_Alloc f = lua_getallocf(L, &ud);
  return f(ud, p, old, new);
}

static void drop_input(connection *c) {
  if (c->input) allocate(c->L, c->input, c->room, 0);
  c->input = NULL;
  c->from = c->to = c->room = c->seen = 0;
}

static void drop_output(lua_State *L, int at, connection *c) {
  span_clear(L, at, CONN_OUTPUT, &c->output);
  c->left = c->skip = 0;
  c->blocked = false;
  coop__link_remove(&c->link);
}

/* The end of the socket. What waits is for the caller. [-0, +0, -] */
static void shut_socket(lua_State *L, int at, connection *c) {
  channel *ch = c->ch;
  drop_input(c);
  drop_output(L, at, c);
  hold(L, at, ch, false);
  c->ch = NULL;
  c->closing = false;
  channel_close(ch);
}

/* --- reading ------------------------------------------------------------------------------------ */

/* Makes the next reader the first one. [-0, +0, -] */
static void next_reader(lua_State *L, int at, connection *c) {
  c->reading = c->looped = c->spare = false;
  while (!c->reading && span_take(L, at, CONN_READERS, &c->readers)) {
    bool live = lua_toboolean(L, -1);
    span_take(L, at, CONN_READERS, &c->readers);
    if (live) {
      c->wish = lua_tointeger(L, -1);
      lua_pop(L, 1);
      lua_setiuservalue(L, at, CONN_READER);
      c->reading = true;
    } else {
      lua_pop(L, 2);
    }
  }
  if (c->reading) return;
  lua_pushnil(L);
  lua_setiuservalue(L, at, CONN_READER);
}

/* The first reader is a loop, and nobody is behind it: gives it the value on top.
   Its Deferred is free for its next wait. [-(0|1), +0, m] */
static bool feed_loop(lua_State *L, int at, connection *c) {
  if (!c->looped || c->readers.first <= c->readers.last) return false;
  lua_getiuservalue(L, at, CONN_READER);
  lua_insert(L, -2);
  c->reading = c->looped = false;
  c->spare = true;
  if (coop__hand(L, lua_gettop(L) - 1)) {
    lua_pop(L, 1);
    return true;
  }
  c->reading = c->looped = true;
  c->spare = false;
  lua_remove(L, -2);
  return false;
}

/* Fires the first reader with the value on top. [-1, +0, m] */
static void fire_reader(lua_State *L, int at, connection *c) {
  if (feed_loop(L, at, c)) return;
  lua_getiuservalue(L, at, CONN_READER);
  lua_insert(L, -2);
  next_reader(L, at, c);
  if (isopen(c)) fire(L);
  else fire_quietly(L);
}

/* Pushes the first 'n' bytes of the input. [-0, +1, m] */
static void take_bytes(lua_State *L, connection *c, size_t n, size_t drop) {
  lua_pushlstring(L, c->input ? c->input + c->from : "", n);
  c->from += n + drop;
  c->seen = 0;
  if (c->from == c->to) drop_input(c);
}

static void push_too_long(lua_State *L, int at) {
  lua_getiuservalue(L, at, CONN_PEER);
  lua_pushfstring(L, "%s: a line is too long", lua_tostring(L, -1));
  coop__pusherror(L, "LineTooLong", lua_tostring(L, -1));
  coop__tofailure(L);
  lua_replace(L, -3);
  lua_pop(L, 1);
}

/* Pushes the line that the input begins with, or the Failure of one too long. */
static bool take_line(lua_State *L, int at, connection *c, bool whole) {
  size_t n = c->to - c->from;
  char *line = c->input + c->from;
  char *end = n > c->seen ? memchr(line + c->seen, '\n', n - c->seen) : NULL;
  size_t length = end ? (size_t)(end - line) : n;
  c->seen = n;
  if (length > c->line_max) {
    c->seen = 0;
    push_too_long(L, at);
    return true;
  }
  if (!end) return false;
  take_bytes(L, c, length + (whole ? 1 : 0), whole ? 0 : 1);
  return true;
}

/* Pushes what there is for 'wish' at the end of all input. */
static void take_rest(lua_State *L, int at, connection *c, lua_Integer wish) {
  size_t n = c->to - c->from;
  if (!c->ended) pushlost(L, at, c->read_error);
  else if (n || wish == WISH_ALL) take_bytes(L, c, n, 0);
  else lua_pushnil(L);
}

/* Pushes what is wished, or the Failure in its place, if that is here. */
static bool take(lua_State *L, int at, connection *c, lua_Integer wish) {
  size_t n = c->to - c->from;
  if (wish == WISH_BLOCK && n > 0) {
    take_bytes(L, c, n, 0);
    return true;
  }
  if (wish >= 0 && n > 0 && n >= (lua_Unsigned)wish) {
    take_bytes(L, c, (size_t)wish, 0);
    return true;
  }
  if (wish == WISH_LINE || wish == WISH_WHOLE_LINE)
    if (n > 0 && take_line(L, at, c, wish == WISH_WHOLE_LINE)) return true;
  if (!c->ended && !c->read_error) return false;
  take_rest(L, at, c, wish);
  return true;
}

/* Makes room for 'n' more bytes of input; false without memory. */
static bool make_room(connection *c, size_t n) {
  if (c->room - c->to >= n) return true;
  if (c->from > 0) {
    memmove(c->input, c->input + c->from, c->to - c->from);
    c->to -= c->from;
    c->from = 0;
  }
  if (c->room - c->to >= n) return true;
  size_t room = c->to + n > 2 * c->room ? c->to + n : 2 * c->room;
  char *input = allocate(c->L, c->input, c->room, room);
  if (!input) return false;
  c->input = input;
  c->room = room;
  return true;
}

static void keep(connection *c, const char *block, size_t n) {
  if (!make_room(c, n)) {
    c->read_error = UV_ENOMEM;
    return;
  }
  memcpy(c->input + c->to, block, n);
  c->to += n;
}

/* Reads from the system what is there. The number of bytes, which are in the
   net's block; 0 when nothing came, also at the end and after an error. */
static size_t receive(connection *c) {
  ssize_t n;
  if (c->ended || c->read_error) return 0;
  do {
    n = recv(c->ch->fd, c->ch->ctx->net->block, BLOCK_MAX, MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  if (n > 0) return (size_t)n;
  if (n == 0 && c->write_error && c->write_error != UV_EPIPE)
    c->read_error = c->write_error; /* the system tells of a reset only once */
  else if (n == 0) c->ended = true;
  else if (errno != EAGAIN && errno != EWOULDBLOCK) c->read_error = -errno;
  return 0;
}

/* Gives the first reader what is wished, as far as it is here: pushes it. The
   usual reader takes a block as it comes. */
static bool take_received(lua_State *L, int at, connection *c, size_t n,
                          lua_Integer wish) {
  const char *block = c->ch->ctx->net->block;
  if (n > 0 && wish == WISH_BLOCK && c->from == c->to) {
    lua_pushlstring(L, block, n);
    return true;
  }
  if (n > 0) keep(c, block, n);
  return take(L, at, c, wish);
}

/* The socket can be read. */
static void readable(lua_State *L, int at, connection *c) {
  if (!c->reading) {
    watch(c->ch, c->ch->events & ~UV_READABLE);
    return;
  }
  bool more = take_received(L, at, c, receive(c), c->wish);
  while (more) {
    fire_reader(L, at, c);
    more = isopen(c) && c->reading && take(L, at, c, c->wish);
  }
}

/* Adds a timeout to the Deferred on top, if the Connection has one. */
static void add_timeout(lua_State *L, const connection *c) {
  if (c->timeout < 0) return;
  lua_getfield(L, -1, "add_timeout");
  lua_pushvalue(L, -2);
  lua_pushnumber(L, c->timeout);
  lua_call(L, 2, 0);
}

/* Pushes a Deferred whose canceller is the Connection. [-0, +1, m] */
static void pushwait(lua_State *L, int at) {
  coop__deferred_new(L);
  lua_pushvalue(L, at);
  lua_setiuservalue(L, -2, DEFERRED_RESULT);
}

/* Pushes a Deferred that waits for what is wished, behind other readers. */
static void wait_for(lua_State *L, int at, connection *c, lua_Integer wish) {
  pushwait(L, at);
  hold(L, at, c->ch, true);
  lua_pushvalue(L, -1);
  if (c->reading) {
    lua_pushinteger(L, wish);
    span_push(L, at, CONN_READERS, &c->readers, 2);
  } else {
    lua_setiuservalue(L, at, CONN_READER);
    c->wish = wish;
    c->reading = true;
    c->spare = false;
  }
  settle(L, at, c);
  add_timeout(L, c);
}

/* Pushes a Deferred for a loop to wait for. [-0, +1, m] */
static void wait_looped(lua_State *L, int at, connection *c) {
  if (!c->spare) {
    bool first = !c->reading;
    wait_for(L, at, c, WISH_BLOCK);
    c->looped = c->looped || (first && c->timeout < 0);
    return;
  }
  hold(L, at, c->ch, true);
  lua_getiuservalue(L, at, CONN_READER);
  c->spare = false;
  c->wish = WISH_BLOCK;
  c->reading = true;
  c->looped = c->timeout < 0;
  settle(L, at, c);
  add_timeout(L, c);
}

/* Pushes what is wished if it is here already, or has come since the last watch
   ended: the system is asked once a turn, so that nobody reads on and on. */
static bool take_now(lua_State *L, int at, connection *c, lua_Integer wish) {
  if (!isopen(c)) {
    pushlost(L, at, 0);
    return true;
  }
  if (c->reading) return false;
  if (take(L, at, c, wish)) return true;
  unsigned turn = c->ch->ctx->turns;
  if (c->ch->events & UV_READABLE || c->read_in == turn) return false;
  c->read_in = turn;
  return take_received(L, at, c, receive(c), wish);
}

static lua_Integer checkwish(lua_State *L) {
  static const char expected[] = "count, \"l\", \"L\" or \"a\"";
  if (lua_isnoneornil(L, 2)) return WISH_BLOCK;
  if (lua_type(L, 2) == LUA_TNUMBER) {
    int exact;
    lua_Integer n = lua_tointegerx(L, 2, &exact);
    if (!exact || n < 0)
      coop__argerror(L, "read", 1,
                     lua_pushfstring(L, "count of bytes expected, got %s",
                                     luaL_tolstring(L, 2, NULL)));
    return n;
  }
  if (lua_type(L, 2) != LUA_TSTRING) coop__typeerror(L, "read", 1, 2, expected);
  size_t length;
  const char *s = lua_tolstring(L, 2, &length);
  if (length == 1 && *s == 'l') return WISH_LINE;
  if (length == 1 && *s == 'L') return WISH_WHOLE_LINE;
  if (length == 1 && *s == 'a') return WISH_ALL;
  return coop__argerror(L, "read", 1,
                        lua_pushfstring(L, "%s expected, got \"%s\"", expected, s));
}

/* conn:read([n | "l" | "L" | "a"]) */
static int connection_read(lua_State *L) {
  connection *c = checkconnection(L, "read");
  lua_Integer wish = checkwish(L);
  lua_settop(L, 1);
  if (take_now(L, 1, c, wish)) pushfired(L);
  else wait_for(L, 1, c, wish);
  return 1;
}

/* for block in conn do, conn:next(): waits by itself. */
static int connection_next(lua_State *L) {
  connection *c = checkconnection(L, "next");
  coop__checkwait(L, "next");
  lua_settop(L, 1);
  if (!take_now(L, 1, c, WISH_BLOCK)) {
    wait_looped(L, 1, c);
    return coop__signal(L, SIGNAL_AWAIT, 1, 1);
  }
  if (!tofailure(L, -1)) return 1;
  coop__raised(L, lua_gettop(L));
  lua_getiuservalue(L, -1, FAILURE_VALUE);
  return lua_error(L);
}

/* --- writing ---------------------------------------------------------------------------------------- */

/* Sends at once what the system takes; the number of bytes, or libuv's error. One
   piece, as it is most often, costs the system less than several. */
static ssize_t send_now(int fd, struct iovec *iov, size_t count) {
  int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
  struct msghdr m;
  ssize_t n;
  memset(&m, 0, sizeof m);
  m.msg_iov = iov;
  m.msg_iovlen = count;
  do {
    n = count == 1 ? send(fd, iov->iov_base, iov->iov_len, flags)
                   : sendmsg(fd, &m, flags);
  } while (n < 0 && errno == EINTR);
  if (n >= 0) return n;
  return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
}

/* Fills 'iov' with the first strings of the output, which stay where they are. */
static size_t pieces(lua_State *L, int at, const connection *c, struct iovec *iov) {
  size_t count = 0, skip = c->skip;
  lua_getiuservalue(L, at, CONN_OUTPUT);
  for (lua_Integer i = c->output.first; i <= c->output.last && count < IOV_COUNT;
       i++, count++) {
    size_t n;
    lua_rawgeti(L, -1, i);
    const char *s = lua_tolstring(L, -1, &n);
    iov[count].iov_base = (char *)s + skip;
    iov[count].iov_len = n - skip;
    skip = 0;
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  return count;
}

/* 'n' bytes, those of 'iov' from its beginning on, were sent. */
static void sent(lua_State *L, int at, connection *c, const struct iovec *iov,
                 size_t n) {
  c->left -= n;
  for (; n > 0; iov++) {
    if (n < iov->iov_len) {
      c->skip += n;
      return;
    }
    n -= iov->iov_len;
    c->skip = 0;
    span_take(L, at, CONN_OUTPUT, &c->output);
    lua_pop(L, 1);
  }
}

/* Sends of the output what the system takes: 0, or libuv's error. */
static int send_output(lua_State *L, int at, connection *c) {
  struct iovec iov[IOV_COUNT];
  while (c->left > 0) {
    size_t count = pieces(L, at, c, iov), total = 0;
    for (size_t i = 0; i < count; i++) total += iov[i].iov_len;
    ssize_t n = send_now(c->ch->fd, iov, count);
    if (n < 0) return (int)n;
    sent(L, at, c, iov, (size_t)n);
    if ((size_t)n < total) break;
  }
  return 0;
}

/* Fires the Deferred in user value 'slot', if there is one, with the value on
   top. [-1, +0, m] */
static void fire_slot(lua_State *L, int at, int slot) {
  if (lua_getiuservalue(L, at, slot) == LUA_TNIL) {
    lua_pop(L, 2);
    return;
  }
  lua_pushnil(L);
  lua_setiuservalue(L, at, slot);
  lua_insert(L, -2);
  if (((connection *)lua_touserdata(L, at))->write_error) fire(L);
  else fire_quietly(L);
}

/* Everybody who waits for the peer to keep up gets nil, or the error; without
   one and 'lost', that it was closed. */
static void fire_writers(lua_State *L, int at, connection *c, bool lost, int error) {
  while ((lost || c->left <= LOW_WATER) && /* one may write again at once */
         span_take(L, at, CONN_WRITERS, &c->writers)) {
    if (!lua_toboolean(L, -1)) {
      lua_pop(L, 1);
      continue;
    }
    if (lost) pushlost(L, at, error);
    else lua_pushnil(L);
    if (lost && !error) fire_quietly(L);
    else fire(L);
  }
}

/* Nothing can be sent any more. */
static void write_failed(lua_State *L, int at, connection *c, int error) {
  bool closing = c->closing;
  c->write_error = error;
  drop_output(L, at, c);
  if (closing) shut_socket(L, at, c);
  fire_writers(L, at, c, true, error);
  pushlost(L, at, error);
  fire_slot(L, at, CONN_SHUT);
  lua_pushboolean(L, 0);
  fire_slot(L, at, CONN_CLOSED);
}

/* All output is sent: what waited for that comes. */
static void output_done(lua_State *L, int at, connection *c) {
  if (c->ending) shutdown(c->ch->fd, SHUT_WR);
  if (c->closing) shut_socket(L, at, c);
  lua_pushnil(L);
  fire_slot(L, at, CONN_SHUT);
  lua_pushboolean(L, 1);
  fire_slot(L, at, CONN_CLOSED);
}

/* Sends the output, as far as the peer takes it. */
static void flush(lua_State *L, int at, connection *c) {
  coop__link_remove(&c->link);
  int error = send_output(L, at, c);
  if (error) {
    write_failed(L, at, c, error);
    return;
  }
  c->blocked = c->left > 0;
  if (c->left <= LOW_WATER) fire_writers(L, at, c, false, 0);
  if (c->ch && c->left == 0) output_done(L, at, c);
}

static void on_idle(uv_idle_t *h);

/* Small writes of a turn that follow a first one go together, at the next turn. */
static void gather(connection *c) {
  coop_net *net = c->ch->ctx->net;
  if (!coop__link_alone(&c->link)) return;
  if (coop__link_alone(&net->gathered)) uv_idle_start(net->idle, on_idle);
  coop__link_insert(&net->gathered, &c->link);
}

static void append(lua_State *L, connection *c, size_t length, size_t skip) {
  bool first = c->left == 0;
  lua_pushvalue(L, 2);
  span_push(L, 1, CONN_OUTPUT, &c->output, 1);
  if (first) c->skip = skip;
  c->left += length - skip;
}

/* Sends the string at 2 directly, if nothing is before it and it is the first of
   this turn: how much of it, or libuv's error. */
static ssize_t send_first(lua_State *L, connection *c) {
  struct iovec iov;
  const char *s = lua_tolstring(L, 2, &iov.iov_len);
  unsigned turn = c->ch->ctx->turns;
  if (c->left > 0 || c->wrote_in == turn) return 0;
  c->wrote_in = turn;
  iov.iov_base = (char *)s;
  ssize_t n = send_now(c->ch->fd, &iov, 1);
  c->blocked = n >= 0 && (size_t)n < iov.iov_len;
  return n;
}

static bool cannot_write(lua_State *L, const connection *c) {
  if (isopen(c) && !c->ending && !c->write_error) return false;
  pushlost(L, 1, isopen(c) ? c->write_error : 0);
  pushfired(L);
  return true;
}

/* Pushes what a write waits for: nothing, or that the peer keeps up. */
static void push_written(lua_State *L, connection *c) {
  if (c->left <= HIGH_WATER) {
    if (c->write_error) pushlost(L, 1, c->write_error);
    else lua_pushnil(L);
    pushfired(L);
  } else {
    pushwait(L, 1);
    lua_pushvalue(L, -1);
    span_push(L, 1, CONN_WRITERS, &c->writers, 1);
    add_timeout(L, c);
  }
}

/* The string at 2 is output but for its first 'n' bytes, or after libuv's error. */
static void put_output(lua_State *L, connection *c, size_t length, ssize_t n) {
  if (n < 0) {
    write_failed(L, 1, c, (int)n);
    return;
  }
  hold(L, 1, c->ch, true);
  append(L, c, length, (size_t)n);
  if (!c->blocked) gather(c);
  if (!c->blocked && c->left > HIGH_WATER) flush(L, 1, c);
}

/* Pushes a Deferred that has fired with nil. [-0, +1, m] */
static void push_written_now(lua_State *L) {
  deferred *d = coop__newfrom(L, CTX_META + KIND_DEFERRED, KIND_DEFERRED, sizeof *d,
                              DEFERRED_NUV);
  d->flags |= D_FIRED;
}

/* conn:write(s): fires when no more than a bounded amount is left to be sent. */
static int connection_write(lua_State *L) {
  connection *c = checkconnection(L, "write");
  size_t length;
  if (lua_type(L, 2) != LUA_TSTRING && lua_type(L, 2) != LUA_TNUMBER)
    return coop__typeerror(L, "write", 1, 2, "string");
  lua_settop(L, 2);
  lua_tolstring(L, 2, &length);
  if (cannot_write(L, c)) return 1;
  ssize_t n = send_first(L, c);
  if (n >= 0 && (size_t)n == length) { /* nearly always */
    push_written_now(L);
    return 1;
  }
  bool outer = coop__begin(getctx(L));
  put_output(L, c, length, n);
  push_written(L, c);
  settle(L, 1, c);
  return coop__end(L, outer, 1);
}

/* conn:shutdown(): no more output; fires when the peer has been told so. */
static int connection_shutdown(lua_State *L) {
  connection *c = checkconnection(L, "shutdown");
  lua_settop(L, 1);
  if (!isopen(c) || c->write_error) {
    cannot_write(L, c);
    return 1;
  }
  if (lua_getiuservalue(L, 1, CONN_SHUT) != LUA_TNIL) return 1;
  bool first = !c->ending;
  c->ending = true;
  coop__deferred_new(L);
  if (c->left == 0) {
    if (first) shutdown(c->ch->fd, SHUT_WR);
    lua_pushnil(L);
    coop__fire(L, lua_gettop(L) - 1);
  } else {
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, CONN_SHUT);
  }
  return 1;
}

/* --- closing ------------------------------------------------------------------------------------------- */

/* Everybody who waits is told that it is over. */
static void dismiss(lua_State *L, int at, connection *c, int error) {
  while (c->reading) {
    pushlost(L, at, error);
    fire_reader(L, at, c);
  }
  fire_writers(L, at, c, true, error);
  pushlost(L, at, error);
  fire_slot(L, at, CONN_SHUT);
}

/* Output is left at the close: it is still sent, for as long as the function of
   set_linger allows; 'fires' then with the Deferred on top. */
static void linger(lua_State *L, int at) {
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, at, CONN_CLOSED);
  pushctx(L, CTX_HOLDS);
  lua_rawgetp(L, -1, &linger_key);
  lua_remove(L, -2);
  lua_pushvalue(L, at);
  lua_pushvalue(L, -3);
  lua_call(L, 2, 0);
}

static void close_connection(lua_State *L, int at, connection *c) {
  if (c->left > 0 && !c->blocked) {
    int error = send_output(L, at, c);
    if (error) drop_output(L, at, c);
    c->blocked = c->left > 0;
  }
  coop__link_remove(&c->link);
  coop__deferred_new(L);
  if (c->left > 0) {
    c->closing = true;
    drop_input(c);
    settle(L, at, c);
    linger(L, at);
  } else {
    shut_socket(L, at, c);
    lua_pushboolean(L, 1);
    coop__fire(L, lua_gettop(L) - 1);
  }
}

/* conn:close(): what was written is still sent, nothing else happens any more.
   Fires with true when all was sent, with false when it could not be. */
static int connection_close(lua_State *L) {
  connection *c = checkconnection(L, "close");
  lua_settop(L, 1);
  if (c->closing) {
    lua_getiuservalue(L, 1, CONN_CLOSED);
    return 1;
  }
  if (!c->ch) {
    lua_pushboolean(L, 1);
    pushfired(L);
    return 1;
  }
  bool outer = coop__begin(getctx(L));
  close_connection(L, 1, c);
  dismiss(L, 1, c, 0);
  settle(L, 1, c);
  lua_settop(L, 2);
  return coop__end(L, outer, 1);
}

/* conn:abort(): at once, without regard to what is under way; the peer is told. */
static int connection_abort(lua_State *L) {
  connection *c = checkconnection(L, "abort");
  struct linger now = {.l_onoff = 1, .l_linger = 0};
  lua_settop(L, 1);
  if (!c->ch) return 0;
  setsockopt(c->ch->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  bool outer = coop__begin(getctx(L));
  shut_socket(L, 1, c);
  dismiss(L, 1, c, 0);
  lua_pushboolean(L, 0);
  fire_slot(L, 1, CONN_CLOSED);
  return coop__end(L, outer, 0);
}

/* Collected, or the state is closed: what can be sent at once still is. */
static int connection__gc(lua_State *L) {
  connection *c = tokind(L, 1, KIND_CONNECTION);
  if (!c) return 0;
  coop__link_remove(&c->link);
  if (c->ch) {
    if (c->left > 0) send_output(L, 1, c);
    channel_close(c->ch);
    c->ch = NULL;
  }
  drop_input(c);
  return 0;
}

/* A wait for the Connection at 'at' was cancelled: the Deferred at 'd'. */
void coop__connection_forget(lua_State *L, int at, int d) {
  connection *c = lua_touserdata(L, at);
  at = lua_absindex(L, at);
  lua_pushvalue(L, d);
  lua_getiuservalue(L, at, CONN_READER);
  bool first = lua_rawequal(L, -1, -2);
  lua_pop(L, 1);
  if (first && c->connecting) {
    c->connecting = false;
    shut_socket(L, at, c);
  } else if (first) {
    next_reader(L, at, c);
  } else if (!span_forget(L, at, CONN_READERS, &c->readers)) {
    span_forget(L, at, CONN_WRITERS, &c->writers);
  }
  lua_pop(L, 1);
  settle(L, at, c);
}

/* --- connecting -------------------------------------------------------------------------------------------- */

/* Pushes a new Connection without a socket; its peer is the text on top.
   [-1, +1, m] */
static connection *connection_new(lua_State *L) {
  coop_context *ctx = getctx(L);
  connection *c = coop__new(L, KIND_CONNECTION, sizeof *c, CONN_NUV);
  coop__link_init(&c->link);
  c->L = getctx(L)->L;
  c->readers = c->output = c->writers = (span){1, 0};
  c->wrote_in = c->read_in = ctx->turns - 1;
  c->line_max = LINE_MAX_DEFAULT;
  c->timeout = -1;
  lua_insert(L, -2);
  lua_setiuservalue(L, -2, CONN_PEER);
  return c;
}

static void no_delay(int fd, int family) {
  int on = 1;
  if (family != AF_UNIX) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static int open_socket(int family) {
  int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  return fd < 0 ? -errno : fd;
}

/* 0 when connected, 1 when that is under way, or libuv's error. */
static int begin_connect(connection *c, const address *a) {
  if (connect(c->ch->fd, &a->any, address_size(a)) == 0) return 0;
  return errno == EINPROGRESS || errno == EINTR ? 1 : -errno;
}

/* core.net.connect(address): fires with the Connection. */
static int start_connect(lua_State *L) {
  coop_context *ctx = getctx(L);
  address a;
  int status;
  checkaddress(L, 1, &a);
  lua_settop(L, 1);
  pushtext(L, &a);
  lua_pushvalue(L, -1);
  need_net(L);
  connection *c = connection_new(L); /* at 3, behind the text of the peer */
  pushwait(L, 3);
  int fd = open_socket(a.any.sa_family);
  status = fd < 0 ? fd : 0;
  if (fd >= 0) c->ch = channel_open(ctx, fd, &c->object, &status);
  if (c->ch) {
    no_delay(fd, a.any.sa_family);
    status = begin_connect(c, &a);
  }
  if (status > 0) {
    hold(L, 3, c->ch, true);
    lua_pushvalue(L, 4);
    lua_setiuservalue(L, 3, CONN_READER);
    c->connecting = true;
    settle(L, 3, c);
    return 1;
  }
  if (status < 0) {
    if (c->ch) shut_socket(L, 3, c);
    pushfailure(L, refusal(status), 2, status);
  } else {
    lua_pushvalue(L, 3);
  }
  coop__fire(L, 4);
  return 1;
}

/* The connect has come to its end. */
static void connected(lua_State *L, int at, connection *c) {
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(c->ch->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
  c->connecting = false;
  lua_getiuservalue(L, at, CONN_READER);
  lua_pushnil(L);
  lua_setiuservalue(L, at, CONN_READER);
  if (error) {
    shut_socket(L, at, c);
    lua_getiuservalue(L, at, CONN_PEER);
    pushfailure(L, refusal(-error), lua_gettop(L), -error);
    lua_remove(L, -2);
  } else {
    lua_pushvalue(L, at);
  }
  coop__fire(L, lua_gettop(L) - 1);
}

/* --- listeners ------------------------------------------------------------------------------------------------ */

static listener *checklistener(lua_State *L) {
  return coop__checkkind(L, 1, KIND_LISTENER, "close", 0);
}

static void listener_free(listener *l) {
  if (l->pending >= 0) close(l->pending);
  l->pending = -1;
  if (l->path[0]) unlink(l->path);
  l->path[0] = '\0';
  if (l->ch) channel_close(l->ch);
  l->ch = NULL;
}

/* Binds the descriptor and listens on it; 0, or libuv's error. */
static int bind_and_listen(int fd, const address *a, int backlog) {
  int on = 1;
  if (a->any.sa_family != AF_UNIX)
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, &a->any, address_size(a)) != 0) return -errno;
  return listen(fd, backlog) == 0 ? 0 : -errno;
}

static int port_of(int fd) {
  address a;
  socklen_t size = sizeof a;
  if (getsockname(fd, &a.any, &size) != 0) return -1;
  if (a.any.sa_family == AF_INET) return ntohs(a.in4.sin_port);
  if (a.any.sa_family == AF_INET6) return ntohs(a.in6.sin6_port);
  return -1;
}

/* core.net.listen(address, backlog, accept, full): a Listener, which calls accept
   with each Connection, and full(listener) when there is no descriptor for one;
   it then rests until resume(). Or nil and what is wrong. */
static int start_listen(lua_State *L) {
  coop_context *ctx = getctx(L);
  address a;
  int error;
  checkaddress(L, 1, &a);
  int backlog = (int)luaL_checkinteger(L, 2);
  lua_settop(L, 4);
  need_net(L);
  listener *l = coop__new(L, KIND_LISTENER, sizeof *l, LISTENER_NUV);
  l->pending = -1;
  lua_pushvalue(L, 3);
  lua_setiuservalue(L, 5, LISTENER_ACCEPT);
  lua_pushvalue(L, 4);
  lua_setiuservalue(L, 5, LISTENER_FULL);
  int fd = open_socket(a.any.sa_family);
  error = fd < 0 ? fd : bind_and_listen(fd, &a, backlog);
  if (fd >= 0 && error) close(fd);
  if (!error && a.any.sa_family == AF_UNIX) strcpy(l->path, a.un.sun_path);
  if (!error) l->port = port_of(fd);
  if (!error) l->ch = channel_open(ctx, fd, &l->object, &error);
  if (error) {
    listener_free(l);
    char what[128], name[32];
    lua_pushnil(L);
    lua_pushfstring(L, "%s (%s)", uv_strerror_r(error, what, sizeof what),
                    uv_err_name_r(error, name, sizeof name));
    return 2;
  }
  hold(L, 5, l->ch, true);
  watch(l->ch, UV_READABLE);
  return 1;
}

static int listener_close(lua_State *L) {
  listener *l = checklistener(L);
  if (l->ch) hold(L, 1, l->ch, false);
  listener_free(l);
  return 0;
}

static int listener_resume(lua_State *L) {
  listener *l = coop__checkkind(L, 1, KIND_LISTENER, "resume", 0);
  if (l->ch) watch(l->ch, UV_READABLE);
  return 0;
}

static int listener__gc(lua_State *L) {
  listener *l = tokind(L, 1, KIND_LISTENER);
  if (l) listener_free(l);
  return 0;
}

/* A descriptor of the next connection in l->pending; false when there is none. */
static bool accept_one(listener *l, bool *full) {
  while (l->pending < 0) {
    l->pending = accept4(l->ch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (l->pending >= 0) break;
    if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO) continue;
    *full = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
    return false;
  }
  return true;
}

/* Pushes where the peer of the descriptor is; a client at a path has no name of
   its own, so the path stands for it. [-0, +1, m] */
static int pushpeer(lua_State *L, const listener *l) {
  address a;
  socklen_t size = sizeof a;
  memset(&a, 0, sizeof a);
  if (l->path[0]) {
    lua_pushfstring(L, "unix:%s", l->path);
    return AF_UNIX;
  }
  if (getpeername(l->pending, &a.any, &size) == 0) pushtext(L, &a);
  else lua_pushliteral(L, "?");
  return a.any.sa_family;
}

/* Pushes the Connection of l->pending; false when that fails. */
static bool pushaccepted(lua_State *L, listener *l) {
  int error, family = pushpeer(L, l);
  connection *c = connection_new(L);
  int fd = l->pending;
  l->pending = -1;
  no_delay(fd, family == AF_UNIX ? AF_UNIX : AF_INET);
  c->ch = channel_open(l->ch->ctx, fd, &c->object, &error);
  return c->ch != NULL;
}

/* There are connections to be accepted. */
static void accept_some(lua_State *L, int at, listener *l) {
  bool full = false;
  int top = lua_gettop(L);
  for (int i = 0; i < ACCEPT_MAX && l->ch && accept_one(l, &full); i++) {
    lua_getiuservalue(L, at, LISTENER_ACCEPT);
    if (pushaccepted(L, l)) lua_call(L, 1, 0);
    lua_settop(L, top);
  }
  if (!full) return;
  watch(l->ch, 0);
  lua_getiuservalue(L, at, LISTENER_FULL);
  lua_pushvalue(L, at);
  lua_call(L, 1, 0);
}

/* --- events ------------------------------------------------------------------------------------------------------ */

typedef struct event {
  channel *ch;
  int events;
} event;

/* 'events' as libuv tells them; 0: what was gathered is to be sent. */
static void connection_event(lua_State *L, int at, connection *c, int events) {
  if (c->connecting) {
    connected(L, at, c);
  } else if (events == 0) {
    flush(L, at, c);
  } else {
    if (events & UV_WRITABLE && c->blocked) flush(L, at, c);
    if (events & UV_READABLE && c->ch) readable(L, at, c);
  }
  settle(L, at, c);
}

/* Something has happened to the channel of the light userdata's event. */
static int handle_event(lua_State *L) {
  coop_context *ctx = getctx(L);
  event *e = lua_touserdata(L, 1);
  ctx->turning = true;
  pushctx(L, CTX_HOLDS);
  lua_rawgetp(L, 2, e->ch); /* 3: the owner */
  object *o = lua_touserdata(L, 3);
  if (o && kindof(o) == KIND_LISTENER) accept_some(L, 3, (listener *)o);
  else if (o) connection_event(L, 3, (connection *)o, e->events);
  ctx->turning = false;
  coop__run_later(L);
  coop__rearm(L);
  return 0;
}

/* Handles an event of the owner. Should memory fail it, the connection is lost:
   who waits is told so, with what memory there may be now. */
static void enter(channel *ch, int events) {
  coop_context *ctx = ch->ctx;
  object *owner = ch->owner;
  event e = {ch, events};
  if (coop__from_loop(ctx, &event_key, &e)) return;
  if (ch->owner != owner || kindof(owner) != KIND_CONNECTION) return;
  ((connection *)owner)->read_error = UV_ENOMEM;
  e.events = UV_READABLE;
  coop__from_loop(ctx, &event_key, &e);
}

/* With an error libuv watches no more: reading or writing will tell which. */
static void on_event(uv_poll_t *h, int status, int events) {
  channel *ch = coop_container(h, channel, poll);
  if (!ch->owner) return;
  if (status < 0) {
    ch->events = 0;
    events = UV_READABLE | UV_WRITABLE;
  }
  if (ch->held) enter(ch, events);
  else watch(ch, 0);
}

static void on_idle(uv_idle_t *h) {
  coop_net *net = h->data;
  coop_link now = {&now, &now}; /* what comes meanwhile is for the next turn */
  while (net && !coop__link_alone(&net->gathered)) {
    coop_link *l = net->gathered.next;
    coop__link_remove(l);
    coop__link_insert(&now, l);
  }
  uv_idle_stop(h);
  while (!coop__link_alone(&now)) {
    connection *c = coop_container(now.next, connection, link);
    coop__link_remove(&c->link);
    if (c->ch) enter(c->ch, 0);
  }
}

/* --- names ---------------------------------------------------------------------------------------------------------- */

typedef struct lookup {
  uv_getaddrinfo_t request;
  coop_context *ctx; /* NULL once closed */
  coop_link link;
} lookup;

typedef struct found {
  lookup *l;
  int status;
  struct addrinfo *list;
} found;

static void pushaddresses(lua_State *L, const struct addrinfo *list) {
  lua_Integer n = 0;
  lua_newtable(L);
  for (; list; list = list->ai_next) {
    if (list->ai_addrlen > sizeof(address)) continue;
    lua_pushlstring(L, (const char *)list->ai_addr, list->ai_addrlen);
    lua_rawseti(L, -2, ++n);
  }
}

/* The name has been looked up: the Deferred fires with a list of addresses. */
static int handle_found(lua_State *L) {
  coop_context *ctx = getctx(L);
  found *f = lua_touserdata(L, 1);
  ctx->turning = true;
  pushctx(L, CTX_HOLDS);
  if (lua_rawgetp(L, 2, f->l) != LUA_TTABLE) return 0; /* 3: { Deferred, name } */
  lua_pushnil(L);
  lua_rawsetp(L, 2, f->l);
  lua_rawgeti(L, 3, 1);
  lua_rawgeti(L, 3, 2);
  deferred *d = lua_touserdata(L, 4);
  if (!(d->flags & D_FIRED)) {
    if (f->status) pushfailure(L, refusal(f->status), 5, f->status);
    else pushaddresses(L, f->list);
    coop__fire(L, 4);
  }
  ctx->turning = false;
  coop__run_later(L);
  coop__rearm(L);
  return 0;
}

static void on_found(uv_getaddrinfo_t *request, int status, struct addrinfo *list) {
  lookup *l = coop_container(request, lookup, request);
  found f = {l, status, list};
  if (l->ctx) {
    coop__link_remove(&l->link);
    coop__from_loop(l->ctx, &lookup_key, &f);
  }
  uv_freeaddrinfo(list);
  free(l);
}

static const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};

/* Begins to look up; libuv's error when it cannot. */
static int begin_lookup(lua_State *L, const char *host, const char *port) {
  coop_context *ctx = getctx(L);
  pushctx(L, CTX_HOLDS);
  lookup *l = malloc(sizeof *l);
  if (!l) return UV_ENOMEM;
  int error = uv_getaddrinfo(ctx->loop.uv, &l->request, on_found, host, port, &hints);
  if (error) {
    free(l);
    return error;
  }
  l->ctx = ctx;
  coop__link_init(&l->link);
  coop__link_insert(&ctx->net->lookups, &l->link);
  lua_pushvalue(L, -2);
  lua_rawsetp(L, -2, l);
  return 0;
}

/* core.net.lookup(host, port, now): fires with a list of addresses; 'now': waits
   for it right here. */
static int start_lookup(lua_State *L) {
  const char *host = luaL_checkstring(L, 1);
  char port[8];
  snprintf(port, sizeof port, "%d", (int)luaL_checkinteger(L, 2));
  bool now = lua_toboolean(L, 3);
  lua_settop(L, 2);
  lua_pushfstring(L, "%s:%s", host, port); /* 3 */
  coop__deferred_new(L);                   /* 4 */
  uv_getaddrinfo_t request;
  int error;
  need_net(L);
  if (now) {
    error = uv_getaddrinfo(getctx(L)->loop.uv, &request, NULL, host, port, &hints);
  } else {
    lua_createtable(L, 2, 0);
    lua_pushvalue(L, 4);
    lua_rawseti(L, 5, 1);
    lua_pushvalue(L, 3);
    lua_rawseti(L, 5, 2);
    error = begin_lookup(L, host, port);
    lua_settop(L, 4);
    if (!error) return 1;
  }
  if (error) {
    pushfailure(L, refusal(error), 3, error);
  } else {
    pushaddresses(L, request.addrinfo);
    uv_freeaddrinfo(request.addrinfo);
  }
  coop__fire(L, 4);
  return 1;
}

/* --- the rest of a Connection's face ------------------------------------------------------------------------------------ */

/* conn:set_timeout([seconds]): of every wait that begins from now on. */
static int connection_set_timeout(lua_State *L) {
  connection *c = checkconnection(L, "set_timeout");
  double seconds = -1;
  if (!lua_isnoneornil(L, 2)) seconds = coop__checkseconds(L, 2, "set_timeout", 1);
  c->timeout = seconds;
  lua_settop(L, 1);
  return 1;
}

/* conn:set_line_max(bytes) */
static int connection_set_line_max(lua_State *L) {
  connection *c = checkconnection(L, "set_line_max");
  c->line_max = (size_t)coop__checkcount(L, 2, "set_line_max", 1);
  lua_settop(L, 1);
  return 1;
}

/* conn.key: a method, peer, or closed. */
static int connection__index(lua_State *L) {
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL) return 1;
  connection *c = checkconnection(L, "index");
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  if (!strcmp(key, "peer")) lua_getiuservalue(L, 1, CONN_PEER);
  else if (!strcmp(key, "closed")) lua_pushboolean(L, !isopen(c));
  else lua_pushnil(L);
  return 1;
}

static int connection__tostring(lua_State *L) {
  connection *c = checkconnection(L, "tostring");
  lua_getiuservalue(L, 1, CONN_PEER);
  lua_pushfstring(L, "Connection: %p (%s%s)", (void *)c, lua_tostring(L, -1),
                  isopen(c) ? "" : ", closed");
  return 1;
}

static int connection__close(lua_State *L) {
  lua_settop(L, 1);
  return connection_close(L);
}

/* listener.port */
static int listener__index(lua_State *L) {
  listener *l = coop__checkkind(L, 1, KIND_LISTENER, "index", 0);
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL) return 1;
  if (lua_type(L, 2) != LUA_TSTRING || strcmp(lua_tostring(L, 2), "port") != 0 ||
      l->port < 0)
    return 0;
  lua_pushinteger(L, l->port);
  return 1;
}

/* core.net.set_linger(f): f(conn, closed) is called when a Connection is closed
   while output is left. */
static int set_linger(lua_State *L) {
  lua_settop(L, 1);
  pushctx(L, CTX_HOLDS);
  lua_pushvalue(L, 1);
  lua_rawsetp(L, -2, &linger_key);
  return 0;
}

/* --- opening, closing ------------------------------------------------------------------------------------------------------ */

static void on_idle_closed(uv_handle_t *h) { free(h); }

const object *coop__net_owner(const coop_context *ctx, const uv_handle_t *h) {
  const coop_net *net = ctx->net;
  if (!net) return NULL;
  for (const coop_link *l = net->open.next; l != &net->open; l = l->next) {
    const channel *ch = coop_container(l, channel, link);
    if ((const uv_handle_t *)&ch->poll == h) return ch->owner;
  }
  return NULL;
}

/* All sockets are closed, lookups forgotten; no Lua is run for it. */
void coop__net_shut(coop_context *ctx) {
  coop_net *net = ctx->net;
  if (!net) return;
  while (!coop__link_alone(&net->open)) {
    channel *ch = coop_container(net->open.next, channel, link);
    if (kindof(ch->owner) == KIND_LISTENER) {
      listener_free((listener *)ch->owner);
    } else {
      connection *c = (connection *)ch->owner;
      coop__link_remove(&c->link);
      c->ch = NULL;
      channel_close(ch);
    }
  }
  while (!coop__link_alone(&net->lookups)) {
    lookup *l = coop_container(net->lookups.next, lookup, link);
    l->ctx = NULL;
    coop__link_remove(&l->link);
    uv_cancel((uv_req_t *)&l->request);
  }
  net->idle->data = NULL;
  uv_close((uv_handle_t *)net->idle, on_idle_closed);
  ctx->net = NULL;
  free(net);
}

static const luaL_Reg connection_methods[] = {
  {"read", connection_read},
  {"next", connection_next},
  {"write", connection_write},
  {"shutdown", connection_shutdown},
  {"close", connection_close},
  {"abort", connection_abort},
  {"set_timeout", connection_set_timeout},
  {"set_line_max", connection_set_line_max},
  {NULL, NULL}
};

static const luaL_Reg connection_meta[] = {
  {"__call", connection_next},
  {"__close", connection__close},
  {"__gc", connection__gc},
  {"__tostring", connection__tostring},
  {NULL, NULL}
};

static const luaL_Reg listener_methods[] = {
  {"close", listener_close},
  {"resume", listener_resume},
  {NULL, NULL}
};

static const luaL_Reg listener_meta[] = {
  {"__gc", listener__gc},
  {NULL, NULL}
};

static const luaL_Reg functions[] = {
  {"address", numeric_address},
  {"unix_address", unix_address},
  {"text", address_text},
  {"lookup", start_lookup},
  {"connect", start_connect},
  {"listen", start_listen},
  {"set_linger", set_linger},
  {NULL, NULL}
};

/* The type's methods, found by 'index' with their table as second upvalue. */
static void new_type(lua_State *L, kind k, const luaL_Reg *methods,
                     const luaL_Reg *meta, lua_CFunction index) {
  coop__newtype(L, k, NULL, meta);
  pushctx(L, CTX_META + (int)k);
  lua_pushvalue(L, CTX);
  lua_newtable(L);
  coop__setfuncs(L, methods);
  lua_pushcclosure(L, index, 2);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
}

static void set_handler(lua_State *L, const char *key, lua_CFunction f) {
  lua_pushvalue(L, CTX);
  lua_pushcclosure(L, f, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, key);
}

void coop__open_net(lua_State *L) {
  new_type(L, KIND_CONNECTION, connection_methods, connection_meta,
           connection__index);
  new_type(L, KIND_LISTENER, listener_methods, listener_meta, listener__index);
  set_handler(L, &event_key, handle_event);
  set_handler(L, &lookup_key, handle_found);
  lua_newtable(L);
  coop__setfuncs(L, functions);
  lua_setfield(L, 2, "net");
}
