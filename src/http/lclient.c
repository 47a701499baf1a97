/*
** lclient.c - transfers of libcurl's, driven by coop's loop.
**
** libcurl says which sockets it watches (a uv_poll each) and when it wants to be
** called (one uv_timer). Its callbacks only fill buffers and mark the transfer
** as having news; when libcurl has returned, the news are told to Lua. So no Lua
** runs inside libcurl, and libcurl may be called by whatever Lua does.
**
** A transfer is a root, in the client's table, and work for the loop exactly while
** libcurl may have news of it: one that is paused because nobody reads it is its
** reader's.
*/
#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

#include "lhttp.h"

enum {
  BUFFER_HIGH = 256 * 1024, /* bytes unread at which a stream is paused ... */
  HEAD_MAX = 256 * 1024     /* bytes of all heads of a response */
};

typedef struct client {
  CURLM *multi; /* NULL once closed */
  uv_timer_t *timer;
  coop_outside *outside;
  coop_closer closer;
  coop_link transfers; /* all with an easy handle */
  coop_link news;      /* those to be told of */
  size_t held;         /* how many are roots; then the timer is work */
} client;

/* user values of the client */
enum { CLIENT_HELD = 1, CLIENT_TELL, CLIENT_NUV = CLIENT_TELL };

typedef struct transfer {
  client *client;
  CURL *easy; /* NULL once over */
  coop_link link, news;
  struct curl_slist *headers;
  buffer head, body;
  size_t max_body;
  bool stream;
  bool follows;   /* redirects */
  bool held;      /* a root */
  bool paused;    /* by the write callback: the body is full */
  bool has_head;  /* the final one */
  bool told_head;
  bool over;      /* the outcome is 'code' */
  bool too_large; /* the body, for max_body */
  CURLcode code;
  char error[CURL_ERROR_SIZE];
} transfer;

/* user values of a transfer */
enum { TRANSFER_STATE = 1, TRANSFER_BODY, TRANSFER_CLIENT,
       TRANSFER_NUV = TRANSFER_CLIENT };

static const char CLIENT[] = "coop.http.client", TRANSFER[] = "coop.http.transfer";

/* --- news ------------------------------------------------------------------ */

static void mark(transfer *t) {
  if (coop__link_alone(&t->news)) coop__link_insert(&t->client->news, &t->news);
}

/* Drops what libcurl has of the transfer. */
static void end(transfer *t) {
  if (!t->easy) return;
  if (t->client->multi) curl_multi_remove_handle(t->client->multi, t->easy);
  curl_easy_cleanup(t->easy);
  t->easy = NULL;
  curl_slist_free_all(t->headers);
  t->headers = NULL;
  coop__link_remove(&t->link);
  coop__link_remove(&t->news);
}

static void collect_ended(client *c) {
  CURLMsg *m;
  int left;
  while ((m = curl_multi_info_read(c->multi, &left))) {
    transfer *t = NULL;
    if (m->msg != CURLMSG_DONE) continue;
    curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&t);
    t->over = true;
    t->code = m->data.result;
    mark(t);
  }
}

/* Tells Lua of all that is new, outside of libcurl. */
static void tell(client *c) {
  collect_ended(c);
  while (c->multi && !coop__link_alone(&c->news)) {
    transfer *t = coop_container(c->news.next, transfer, news);
    coop__link_remove(&t->news);
    c->outside->call(c->outside, c, t);
    if (c->multi) collect_ended(c);
  }
}

/* --- sockets and time -------------------------------------------------------- */

static void on_poll(uv_poll_t *h, int status, int events) {
  client *c = h->data;
  uv_os_fd_t fd;
  int running, flags = status < 0 ? CURL_CSELECT_ERR : 0;
  if (events & UV_READABLE) flags |= CURL_CSELECT_IN;
  if (events & UV_WRITABLE) flags |= CURL_CSELECT_OUT;
  if (uv_fileno((uv_handle_t *)h, &fd) != 0) return;
  curl_multi_socket_action(c->multi, fd, flags, &running);
  tell(c);
}

static void on_timer(uv_timer_t *h) {
  client *c = h->data;
  int running;
  curl_multi_socket_action(c->multi, CURL_SOCKET_TIMEOUT, 0, &running);
  tell(c);
}

static void on_closed(uv_handle_t *h) { free(h); }

static int drop_socket(client *c, curl_socket_t fd, uv_poll_t *poll) {
  if (!poll) return 0;
  curl_multi_assign(c->multi, fd, NULL);
  uv_poll_stop(poll);
  uv_close((uv_handle_t *)poll, on_closed);
  return 0;
}

/* libcurl watches a socket for other things than before. */
static int on_socket(CURL *easy, curl_socket_t fd, int what, void *ud, void *sock) {
  (void)easy;
  client *c = ud;
  uv_poll_t *poll = sock;
  int events = 0;
  if (what == CURL_POLL_REMOVE) return drop_socket(c, fd, poll);
  if (what & CURL_POLL_IN) events |= UV_READABLE;
  if (what & CURL_POLL_OUT) events |= UV_WRITABLE;
  if (!poll) {
    if (!(poll = malloc(sizeof *poll))) return -1;
    if (uv_poll_init_socket(c->outside->loop, poll, fd) != 0) {
      free(poll);
      return -1;
    }
    poll->data = c;
    curl_multi_assign(c->multi, fd, poll);
  }
  return events ? uv_poll_start(poll, events, on_poll) : uv_poll_stop(poll);
}

static int on_timeout(CURLM *multi, long ms, void *ud) {
  (void)multi;
  client *c = ud;
  if (ms < 0) return uv_timer_stop(c->timer);
  uv_update_time(c->outside->loop);
  return uv_timer_start(c->timer, on_timer, (uint64_t)ms, 0);
}

/* --- what libcurl brings ------------------------------------------------------- */

static long status_of(transfer *t) {
  long status = 0;
  curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
  return status;
}

/* An empty one is none, and not followed. */
static bool has_location(const buffer *head) {
  static const char name[] = "\nlocation:";
  const size_t n = sizeof name - 1;
  for (size_t i = 0; i + n < head->size; i++) {
    if (!curl_strnequal(head->data + i, name, n)) continue;
    for (i += n; i < head->size && strchr(" \t", head->data[i]); i++) continue;
    return i < head->size && !strchr("\r\n", head->data[i]);
  }
  return false;
}

/* Is this head followed by another one: of a redirect, or of an interim response? */
static bool another_follows(transfer *t) {
  long status = status_of(t);
  if (status < 200) return true;
  return t->follows && status >= 300 && status < 400 && has_location(&t->head);
}

/* What 303 leads to is for GET or HEAD: a method that libcurl was told by name, it
   would keep. */
static void see_other(transfer *t) {
  if (status_of(t) == 303) curl_easy_setopt(t->easy, CURLOPT_CUSTOMREQUEST, NULL);
}

static size_t on_header(char *s, size_t one, size_t n, void *ud) {
  transfer *t = ud;
  (void)one;
  if (t->has_head) return n; /* trailers */
  if (n >= 5 && memcmp(s, "HTTP/", 5) == 0) t->head.size = 0;
  if (t->head.size + n > HEAD_MAX || !buffer_add(&t->head, s, n)) return 0;
  if ((n == 2 && s[0] == '\r') || n == 1) {
    if (another_follows(t)) {
      see_other(t);
      return n;
    }
    t->has_head = true;
    if (t->stream) mark(t);
  }
  return n;
}

static size_t on_body(char *s, size_t one, size_t n, void *ud) {
  transfer *t = ud;
  (void)one;
  if (t->stream && t->body.size >= BUFFER_HIGH) {
    t->paused = true;
    mark(t);
    return CURL_WRITEFUNC_PAUSE;
  }
  if (!t->stream && n > t->max_body - t->body.size) {
    t->too_large = true;
    return 0;
  }
  if (!buffer_add(&t->body, s, n)) return 0;
  if (t->stream) mark(t);
  return n;
}

/* --- Lua --------------------------------------------------------------------------- */

static transfer *checktransfer(lua_State *L) {
  return luaL_checkudata(L, 1, TRANSFER);
}

/* Makes the transfer at 'at' a root, or no more; the client is at 'owner'.
   [-0, +0, m] */
static void hold(lua_State *L, int owner, int at, bool held) {
  transfer *t = lua_touserdata(L, at);
  client *c = t->client;
  if (held == t->held) return;
  lua_getiuservalue(L, owner, CLIENT_HELD);
  if (held) lua_pushvalue(L, at);
  else lua_pushnil(L);
  lua_rawsetp(L, -2, t);
  lua_pop(L, 1);
  t->held = held;
  c->held += held ? 1 : (size_t)-1;
  if (c->timer && c->held > 0) uv_ref((uv_handle_t *)c->timer);
  else if (c->timer) uv_unref((uv_handle_t *)c->timer);
}

static void pusherror(lua_State *L, const transfer *t) {
  if (t->too_large) lua_pushliteral(L, "the body is larger than max_body");
  else if (*t->error) lua_pushstring(L, t->error);
  else lua_pushstring(L, curl_easy_strerror(t->code));
}

/* tell(state, transfer, head, url, over, code, error) of the transfer at 1. */
static void tell_of(lua_State *L, transfer *t) {
  char *url = NULL;
  bool head = t->has_head && !t->told_head;
  lua_getiuservalue(L, 1, TRANSFER_STATE);
  lua_pushvalue(L, 1);
  if (head) lua_pushlstring(L, t->head.data, t->head.size);
  else lua_pushnil(L);
  if (head) curl_easy_getinfo(t->easy, CURLINFO_EFFECTIVE_URL, &url);
  lua_pushstring(L, url);
  lua_pushboolean(L, t->over);
  if (t->over) lua_pushinteger(L, t->too_large ? -1 : (lua_Integer)t->code);
  else lua_pushnil(L);
  if (t->over && t->code != CURLE_OK) pusherror(L, t);
  else lua_pushnil(L);
  if (head) t->told_head = true;
}

/* Tells of the transfer, a light userdata.
   Its upvalue is the client. */
static int tell_p(lua_State *L) {
  transfer *t = lua_touserdata(L, 1);
  int owner = lua_upvalueindex(1);
  lua_getiuservalue(L, owner, CLIENT_HELD);
  if (lua_rawgetp(L, -1, t) != LUA_TUSERDATA) return 0;
  lua_replace(L, 1);
  lua_settop(L, 1);
  lua_getiuservalue(L, owner, CLIENT_TELL);
  tell_of(L, t);
  if (t->over) end(t);
  if (t->over || t->paused) hold(L, owner, 1, false);
  lua_call(L, 7, 0);
  return 0;
}

/* transfer:take(): the bytes that have come, "" when there are none; a stream that
   was paused goes on. */
static int transfer_take(lua_State *L) {
  transfer *t = checktransfer(L);
  lua_pushlstring(L, t->body.data ? t->body.data : "", t->body.size);
  buffer_free(&t->body);
  if (t->paused && t->easy && t->client->multi) {
    lua_getiuservalue(L, 1, TRANSFER_CLIENT);
    hold(L, lua_gettop(L), 1, true);
    lua_settop(L, 2);
    t->paused = false;
    curl_easy_pause(t->easy, CURLPAUSE_CONT); /* news come with the timer */
  }
  return 1;
}

/* transfer:cancel(): nothing is told of it any more. */
static int transfer_cancel(lua_State *L) {
  transfer *t = checktransfer(L);
  lua_settop(L, 1);
  end(t);
  buffer_free(&t->body);
  buffer_free(&t->head);
  lua_getiuservalue(L, 1, TRANSFER_CLIENT);
  if (!lua_isnil(L, -1)) hold(L, 2, 1, false);
  return 0;
}

static int transfer__gc(lua_State *L) {
  transfer *t = checktransfer(L);
  end(t);
  buffer_free(&t->body);
  buffer_free(&t->head);
  return 0;
}

/* --- starting a transfer ------------------------------------------------------------ */

static const char *field(lua_State *L, const char *name) {
  lua_getfield(L, 2, name); /* stays on the stack: libcurl copies what it needs */
  return lua_tostring(L, -1);
}

static bool flag(lua_State *L, const char *name) {
  lua_getfield(L, 2, name);
  bool v = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return v;
}

static long milliseconds(lua_State *L, const char *name) {
  lua_getfield(L, 2, name);
  double ms = lua_tonumber(L, -1) * 1e3;
  lua_pop(L, 1);
  return ms <= 0 ? 0 : ms < 1 ? 1 : ms > 2e9 ? 2000000000 : (long)ms;
}

#define SET(option, value) \
  if (code == CURLE_OK) code = curl_easy_setopt(t->easy, option, value)

/* What the transfer has in common with all others. */
static CURLcode set_fixed(transfer *t) {
  CURLcode code = CURLE_OK;
  SET(CURLOPT_PRIVATE, t);
  SET(CURLOPT_NOSIGNAL, 1L);
  SET(CURLOPT_ERRORBUFFER, t->error);
  SET(CURLOPT_HEADERFUNCTION, on_header);
  SET(CURLOPT_HEADERDATA, t);
  SET(CURLOPT_WRITEFUNCTION, on_body);
  SET(CURLOPT_WRITEDATA, t);
  SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
#if LIBCURL_VERSION_NUM >= 0x075500
  SET(CURLOPT_PROTOCOLS_STR, "http,https");
  SET(CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
#else
  SET(CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
  SET(CURLOPT_REDIR_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
  SET(CURLOPT_PROXY, ""); /* none, whatever the environment says */
  return code;
}

/* The method; a body of the request is in the user value. */
static CURLcode set_method(lua_State *L, transfer *t) {
  CURLcode code = CURLE_OK;
  size_t size;
  const char *method = field(L, "method");
  bool has_body = lua_getfield(L, 2, "body") == LUA_TSTRING;
  if (strcmp(method, "HEAD") == 0) SET(CURLOPT_NOBODY, 1L);
  if (has_body || strcmp(method, "POST") == 0) {
    const char *body = has_body ? lua_tolstring(L, -1, &size) : "";
    if (!has_body) size = 0;
    SET(CURLOPT_POST, 1L);
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)size);
    SET(CURLOPT_POSTFIELDS, body);
  }
  if (strcmp(method, has_body ? "POST" : "GET") == 0 ||
      strcmp(method, "POST") == 0 || strcmp(method, "HEAD") == 0)
    return code;
  SET(CURLOPT_CUSTOMREQUEST, method);
  /* Only a POST becomes a GET by 301 and 302: others keep their bodies. */
  SET(CURLOPT_POSTREDIR, (long)(CURL_REDIR_POST_301 | CURL_REDIR_POST_302));
  return code;
}

static CURLcode set_headers(lua_State *L, transfer *t) {
  CURLcode code = CURLE_OK;
  lua_getfield(L, 2, "lines");
  for (lua_Integer i = 1; lua_rawgeti(L, -1, i) == LUA_TSTRING; i++) {
    struct curl_slist *more = curl_slist_append(t->headers, lua_tostring(L, -1));
    if (!more) return CURLE_OUT_OF_MEMORY;
    t->headers = more;
    lua_pop(L, 1);
  }
  lua_pop(L, 2);
  SET(CURLOPT_HTTPHEADER, t->headers);
  return code;
}

static CURLcode set_options(lua_State *L, transfer *t) {
  CURLcode code = set_fixed(t);
  const char *s;
  const char *url = field(L, "url");
  SET(CURLOPT_URL, url);
  /* Who may share a connection of HTTP/2 waits to see what the server speaks. */
  if (curl_strnequal(url, "https:", 6)) SET(CURLOPT_PIPEWAIT, 1L);
  if ((s = field(L, "proxy"))) SET(CURLOPT_PROXY, s);
  if ((s = field(L, "unix_socket"))) SET(CURLOPT_UNIX_SOCKET_PATH, s);
  if ((s = field(L, "ca_file"))) SET(CURLOPT_CAINFO, s);
  if (!flag(L, "verify")) {
    SET(CURLOPT_SSL_VERIFYPEER, 0L);
    SET(CURLOPT_SSL_VERIFYHOST, 0L);
  }
  if (flag(L, "compression")) SET(CURLOPT_ACCEPT_ENCODING, "");
  lua_getfield(L, 2, "redirects");
  long redirects = (long)lua_tointeger(L, -1);
  t->follows = redirects > 0;
  SET(CURLOPT_FOLLOWLOCATION, (long)t->follows);
  SET(CURLOPT_MAXREDIRS, redirects);
  SET(CURLOPT_TIMEOUT_MS, milliseconds(L, "timeout"));
  SET(CURLOPT_CONNECTTIMEOUT_MS, milliseconds(L, "connect_timeout"));
  if (code == CURLE_OK) code = set_method(L, t);
  if (code == CURLE_OK) code = set_headers(L, t);
  return code;
}

static transfer *new_transfer(lua_State *L, client *c) {
  transfer *t = lua_newuserdatauv(L, sizeof *t, TRANSFER_NUV);
  memset(t, 0, sizeof *t);
  t->client = c;
  coop__link_init(&t->link);
  coop__link_init(&t->news);
  luaL_setmetatable(L, TRANSFER);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, TRANSFER_CLIENT);
  lua_pushvalue(L, 3);
  lua_setiuservalue(L, -2, TRANSFER_STATE);
  lua_getfield(L, 2, "body");
  lua_setiuservalue(L, -2, TRANSFER_BODY);
  lua_getfield(L, 2, "max_body");
  t->max_body = (size_t)lua_tointeger(L, -1);
  lua_pop(L, 1);
  t->stream = flag(L, "stream");
  return t;
}

/* client:start(options, state): the transfer; or nil, code and text. */
static int client_start(lua_State *L) {
  client *c = luaL_checkudata(L, 1, CLIENT);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 3);
  if (!c->multi) return luaL_error(L, "coop has been closed in this state");
  transfer *t = new_transfer(L, c);
  t->easy = curl_easy_init();
  if (!t->easy) return luaL_error(L, "not enough memory");
  coop__link_insert(&c->transfers, &t->link);
  CURLcode code = set_options(L, t);
  lua_settop(L, 4);
  hold(L, 1, 4, true);
  if (code == CURLE_OK && curl_multi_add_handle(c->multi, t->easy) == CURLM_OK)
    return 1;
  hold(L, 1, 4, false);
  end(t);
  t->code = code ? code : CURLE_FAILED_INIT;
  lua_pushnil(L);
  lua_pushinteger(L, (lua_Integer)t->code);
  pusherror(L, t);
  return 3;
}

/* --- the client ------------------------------------------------------------------------ */

static void shut(client *c) {
  if (!c->multi) return;
  while (!coop__link_alone(&c->transfers))
    end(coop_container(c->transfers.next, transfer, link));
  curl_multi_cleanup(c->multi); /* takes its sockets off the loop */
  c->multi = NULL;
  if (c->timer) uv_close((uv_handle_t *)c->timer, on_closed);
  c->timer = NULL;
  coop__link_remove(&c->closer.link);
}

static void close_client(coop_closer *closer) {
  shut(coop_container(closer, client, closer));
}

static int client__gc(lua_State *L) {
  shut(luaL_checkudata(L, 1, CLIENT));
  return 0;
}

static bool open_timer(client *c) {
  uv_timer_t *timer = malloc(sizeof *timer);
  if (!timer) return false;
  uv_timer_init(c->outside->loop, timer);
  timer->data = c;
  uv_unref((uv_handle_t *)timer);
  c->timer = timer;
  return true;
}

/* client(outside, tell): tell(state, transfer, head, url, over, code, error) */
static int new_client(lua_State *L) {
  luaL_checktype(L, 1, LUA_TLIGHTUSERDATA);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  client *c = lua_newuserdatauv(L, sizeof *c, CLIENT_NUV);
  memset(c, 0, sizeof *c);
  c->outside = lua_touserdata(L, 1);
  c->closer.close = close_client;
  coop__link_init(&c->transfers);
  coop__link_init(&c->news);
  coop__link_init(&c->closer.link);
  luaL_setmetatable(L, CLIENT);
  lua_newtable(L);
  lua_setiuservalue(L, 3, CLIENT_HELD);
  lua_pushvalue(L, 2);
  lua_setiuservalue(L, 3, CLIENT_TELL);
  lua_pushvalue(L, 3);
  lua_pushcclosure(L, tell_p, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, c);
  if (!c->outside->loop) return luaL_error(L, "coop has been closed in this state");
  if (curl_global_init(CURL_GLOBAL_DEFAULT) != 0 || !(c->multi = curl_multi_init()) ||
      !open_timer(c))
    return luaL_error(L, "libcurl cannot be started");
  coop__link_insert(&c->outside->closers, &c->closer.link);
  curl_multi_setopt(c->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
  curl_multi_setopt(c->multi, CURLMOPT_SOCKETDATA, c);
  curl_multi_setopt(c->multi, CURLMOPT_TIMERFUNCTION, on_timeout);
  curl_multi_setopt(c->multi, CURLMOPT_TIMERDATA, c);
  return 1;
}

static const luaL_Reg client_methods[] = {
  {"start", client_start},
  {NULL, NULL}
};

static const luaL_Reg transfer_methods[] = {
  {"take", transfer_take},
  {"cancel", transfer_cancel},
  {NULL, NULL}
};

static void newtype(lua_State *L, const char *name, const luaL_Reg *methods,
                    lua_CFunction gc) {
  luaL_newmetatable(L, name);
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, gc);
  lua_setfield(L, -2, "__gc");
  lua_pushstring(L, name);
  lua_setfield(L, -2, "__metatable");
  lua_pop(L, 1);
}

void coop_http_open_client(lua_State *L) {
  newtype(L, CLIENT, client_methods, client__gc);
  newtype(L, TRANSFER, transfer_methods, transfer__gc);
  lua_pushcfunction(L, new_client);
  lua_setfield(L, -2, "client");
  lua_pushstring(L, curl_version());
  lua_setfield(L, -2, "curl");
}
