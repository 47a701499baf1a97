/*
** lparser.c - requests out of bytes, by llhttp.
**
** One parser belongs to one connection. It is given bytes as they come and asked
** for the next event; what is behind a request stays until it is asked again, so
** that pipelined requests come one at a time. llhttp's callbacks fill buffers
** and raise nothing; Lua values are made when it has returned.
**
** llhttp is strict about the framing of messages. What it leaves open is decided
** here: nothing is accepted that another server might read in another way. So the
** bytes of a head, and of the trailer behind a chunked body, are looked at before
** llhttp gets them, and a request line is given to it when it is complete.
*/
#include <ctype.h>
#include <llhttp.h>

#include "lhttp.h"

typedef struct span {
  size_t at, size; /* in parser->text */
} span;

enum { HEADERS_MAX = 256, HEADERS_FEW = 8 };

/* Where in a head the bytes are that are looked at. */
typedef enum part { IN_METHOD, IN_TARGET, IN_VERSION, IN_FIELDS } part;

typedef struct header {
  span name, value;
} header;

typedef struct parser {
  llhttp_t http;
  buffer input; /* bytes not parsed yet: from 'from' on */
  size_t from;
  buffer text; /* target, names and values of the head */
  buffer body;
  span target;
  header *headers;
  int count, room;    /* headers that have begun; those there is room for */
  int status;         /* of the error that ends the connection, or 0 */
  const char *reason;
  size_t max_line, max_head, max_body;
  size_t checked;     /* bytes behind 'from' that were looked at already */
  size_t head_seen;   /* bytes of the head or trailer that were looked at */
  part part;          /* of the next of them ... */
  size_t part_seen;   /* ... and how many of that part came before */
  char last[2];       /* those before, newest first */
  bool in_head;       /* between messages too */
  bool in_trailer;
  bool begun;         /* something of a message is here */
  bool expects;       /* 100-continue, not answered yet */
  bool complete;
  bool value_begun;
} parser;

static const char PARSER[] = "coop.http.parser";

/* --- refusing ------------------------------------------------------------------ */

static int refuse(parser *p, int status, const char *reason) {
  if (!p->status) {
    p->status = status;
    p->reason = reason;
  }
  return HPE_USER;
}

/* --- what llhttp brings -------------------------------------------------------- */

static parser *of(llhttp_t *http) { return http->data; }

static int add_text(parser *p, span *s, const char *at, size_t n) {
  if (s->size == 0) s->at = p->text.size;
  if (!buffer_add(&p->text, at, n)) return refuse(p, 503, "out of memory");
  s->size += n;
  return 0;
}

static int on_begin(llhttp_t *http) {
  parser *p = of(http);
  p->text.size = p->body.size = 0;
  p->target = (span){0};
  p->count = 0;
  p->value_begun = false;
  p->begun = true;
  p->expects = p->complete = false;
  return 0;
}

static int on_url(llhttp_t *http, const char *at, size_t n) {
  parser *p = of(http);
  return add_text(p, &p->target, at, n);
}

/* Room for one more header; false without memory. */
static bool make_room(parser *p) {
  if (p->count < p->room) return true;
  int room = p->room ? 2 * p->room : HEADERS_FEW;
  header *headers = realloc(p->headers, (size_t)room * sizeof *headers);
  if (!headers) return false;
  p->headers = headers;
  p->room = room;
  return true;
}

static int on_name(llhttp_t *http, const char *at, size_t n) {
  parser *p = of(http);
  if (!p->in_head) return 0; /* trailers are not kept */
  if (p->count == 0 || p->value_begun) {
    if (p->count == HEADERS_MAX) return refuse(p, 431, "too many headers");
    if (!make_room(p)) return refuse(p, 503, "out of memory");
    p->headers[p->count++] = (header){0};
    p->value_begun = false;
  }
  return add_text(p, &p->headers[p->count - 1].name, at, n);
}

static int on_value(llhttp_t *http, const char *at, size_t n) {
  parser *p = of(http);
  if (!p->in_head) return 0;
  p->value_begun = true;
  return add_text(p, &p->headers[p->count - 1].value, at, n);
}

static int on_value_complete(llhttp_t *http) {
  parser *p = of(http);
  p->value_begun = true; /* also of an empty one */
  return 0;
}

static bool named(const parser *p, int i, const char *name) {
  size_t n = p->headers[i].name.size;
  const char *s = p->text.data + p->headers[i].name.at;
  if (n != strlen(name)) return false;
  for (size_t k = 0; k < n; k++)
    if (tolower((unsigned char)s[k]) != name[k]) return false;
  return true;
}

static bool value_is(const parser *p, int i, const char *value) {
  size_t n = p->headers[i].value.size;
  const char *s = p->text.data + p->headers[i].value.at;
  while (n > 0 && (s[n - 1] == ' ' || s[n - 1] == '\t')) n--;
  if (n != strlen(value)) return false;
  for (size_t k = 0; k < n; k++)
    if (tolower((unsigned char)s[k]) != value[k]) return false;
  return true;
}

bool coop_http_istoken(const char *s, size_t n) {
  for (size_t i = 0; i < n; i++) {
    unsigned char c = (unsigned char)s[i];
    if (!isalnum(c) && (c == 0 || c > 126 || !strchr("!#$%&'*+-.^_`|~", c))) return false;
    if (c > 126) return false;
  }
  return n > 0;
}

bool coop_http_istext(const char *s, size_t n) {
  for (size_t i = 0; i < n; i++) {
    unsigned char c = (unsigned char)s[i];
    if ((c < 32 && c != '\t') || c == 127) return false;
  }
  return true;
}

/* A name or address, and perhaps a port; it may be empty. */
static bool is_host(const parser *p, int i) {
  span v = p->headers[i].value;
  for (size_t k = 0; k < v.size; k++) {
    unsigned char c = (unsigned char)p->text.data[v.at + k];
    bool blank = c == ' ' || c == '\t';
    while (blank && k < v.size && strchr(" \t", p->text.data[v.at + k])) k++;
    if (blank) return k == v.size;
    if (!isalnum(c) && (c == 0 || c > 126 || !strchr("-._~!$&'()*+,;=%:[]", c))) return false;
  }
  return true;
}

/* The head as a whole: what decides where the message ends must be beyond doubt. */
static int check_head(parser *p) {
  int hosts = 0, lengths = 0, codings = 0;
  const llhttp_t *h = &p->http;
  if (h->http_major != 1 || h->http_minor > 1)
    return refuse(p, 505, "HTTP version not supported");
  for (int i = 0; i < p->count; i++) {
    if (!coop_http_istoken(p->text.data + p->headers[i].name.at, p->headers[i].name.size) ||
        !coop_http_istext(p->text.data + p->headers[i].value.at, p->headers[i].value.size))
      return refuse(p, 400, "malformed header");
    if (named(p, i, "host") && (++hosts > 1 || !is_host(p, i)))
      return refuse(p, 400, "one Host header expected");
    if (named(p, i, "content-length")) lengths++;
    if (named(p, i, "expect")) {
      if (!value_is(p, i, "100-continue")) return refuse(p, 417, "expectation failed");
      p->expects = true;
    }
    if (!named(p, i, "transfer-encoding")) continue;
    codings++;
    if (!value_is(p, i, "chunked")) return refuse(p, 501, "coding not supported");
  }
  if (h->method == HTTP_CONNECT) return refuse(p, 501, "no proxy");
  if (hosts == 0 && h->http_minor == 1)
    return refuse(p, 400, "one Host header expected");
  if (lengths + codings > 1 || (codings && h->http_minor == 0))
    return refuse(p, 400, "ambiguous length");
  if (p->text.data[p->target.at] == '*' &&
      (p->target.size > 1 || h->method != HTTP_OPTIONS))
    return refuse(p, 400, "malformed target");
  return 0;
}

static int on_head(llhttp_t *http) {
  parser *p = of(http);
  int e = check_head(p);
  if (e) return e;
  p->in_head = false;
  http->upgrade = 0; /* asked for or not, none is made */
  p->expects = p->expects && http->http_minor == 1;
  if (http->flags & F_CONTENT_LENGTH && http->content_length > p->max_body)
    return refuse(p, 413, "body too large");
  return 0;
}

/* The size of the next chunk is known. Behind the last one the trailer begins. */
static int on_chunk(llhttp_t *http) {
  parser *p = of(http);
  if (http->content_length > p->max_body - p->body.size)
    return refuse(p, 413, "body too large");
  if (http->content_length > 0) return 0;
  p->in_trailer = true;
  p->last[0] = '\n';
  return HPE_PAUSED;
}

static int on_body(llhttp_t *http, const char *at, size_t n) {
  parser *p = of(http);
  if (n > p->max_body - p->body.size) return refuse(p, 413, "body too large");
  p->expects = false;
  if (!buffer_add(&p->body, at, n)) return refuse(p, 503, "out of memory");
  return 0;
}

static int on_complete(llhttp_t *http) {
  of(http)->complete = true;
  return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
  .on_message_begin = on_begin,
  .on_url = on_url,
  .on_header_field = on_name,
  .on_header_value = on_value,
  .on_header_value_complete = on_value_complete,
  .on_headers_complete = on_head,
  .on_chunk_header = on_chunk,
  .on_body = on_body,
  .on_message_complete = on_complete,
};

/* --- bytes ------------------------------------------------------------------------ */

static int next_part(parser *p, part next) {
  p->part = next;
  p->part_seen = 0;
  return 0;
}

/* The next byte of a request line: "METHOD TARGET HTTP/N.N", CR and LF. */
static int check_line(parser *p, char c) {
  static const char version[] = "HTTP/0.0\r\n";
  size_t i = p->part_seen++;
  if (p->part == IN_METHOD) {
    if (c == ' ' && i > 0) return next_part(p, IN_TARGET);
    if (coop_http_istoken(&c, 1)) return 0;
  } else if (p->part == IN_TARGET) {
    if (c == ' ' && i > 0) return next_part(p, IN_VERSION);
    if ((unsigned char)c > ' ' && c != 127 && c != '#')
      return i < p->max_line ? 0 : refuse(p, 414, "target too long");
  } else {
    if (c == '\n' && version[i] == c) return next_part(p, IN_FIELDS);
    if (version[i] == '0' ? isdigit((unsigned char)c) : version[i] == c) return 0;
  }
  return refuse(p, 400, "malformed request line");
}

/* The next byte of the lines behind it, or of a trailer: ends of line are CR LF,
   no line goes on in the next. */
static int check_field(parser *p, char c) {
  if (c == '\n' && p->last[0] != '\r') return refuse(p, 400, "line without CR");
  if ((c == ' ' || c == '\t') && p->last[0] == '\n') return refuse(p, 400, "folded line");
  return 0;
}

/* Looks at the bytes of a head or trailer before llhttp does. Returns how many may
   be given to it: no more than to the end of the head, which the body follows. */
static size_t check_bytes(parser *p, const char *s, size_t n) {
  for (size_t i = 0; i < n; i++) {
    char c = s[i];
    if (!p->begun && p->head_seen == 0 && (c == '\r' || c == '\n')) continue;
    if (++p->head_seen > p->max_head) {
      refuse(p, p->count ? 431 : 414, "head too large");
      return i;
    }
    if (p->part == IN_FIELDS ? check_field(p, c) : check_line(p, c)) return i;
    if (c == '\n' && p->last[1] == '\n') {
      p->head_seen = 0;
      p->in_trailer = false;
      memset(p->last, 0, sizeof p->last);
      return i + 1;
    }
    p->last[1] = p->last[0];
    p->last[0] = c;
  }
  return n;
}

static void advance(parser *p, size_t n) {
  p->from += n;
  if (p->from < p->input.size) return;
  p->from = p->input.size = 0;
  if (p->input.room > 16 * 1024) buffer_free(&p->input);
}

/* llhttp has stopped for an error. */
static void failed(parser *p, llhttp_errno_t e) {
  switch (e) {
    case HPE_PAUSED_H2_UPGRADE:
    case HPE_INVALID_VERSION: refuse(p, 505, "HTTP version not supported"); break;
    case HPE_INVALID_METHOD: refuse(p, 501, "method not supported"); break;
    default: refuse(p, 400, llhttp_errno_name(e));
  }
}

/* Parses until a message is complete, or nothing is left. */
static void run(parser *p) {
  while (p->from < p->input.size && !p->complete && !p->status) {
    const char *s = p->input.data + p->from;
    size_t n = p->input.size - p->from;
    if (p->in_head || p->in_trailer) {
      n = p->checked + check_bytes(p, s + p->checked, n - p->checked);
      p->checked = n;
      if (p->status || (p->part != IN_FIELDS && p->head_seen > 0)) return;
      p->checked = 0;
    }
    llhttp_errno_t e = llhttp_execute(&p->http, s, n);
    if (e == HPE_PAUSED) {
      n = (size_t)(llhttp_get_error_pos(&p->http) - s);
      llhttp_resume(&p->http);
    } else if (e != HPE_OK) {
      failed(p, e);
      return;
    }
    advance(p, n);
  }
}

/* --- Lua --------------------------------------------------------------------------- */

static parser *checkparser(lua_State *L) { return luaL_checkudata(L, 1, PARSER); }

static void pushspan(lua_State *L, const parser *p, span s) {
  lua_pushlstring(L, p->text.data + s.at, s.size);
}

static void pushvalue(lua_State *L, const parser *p, int i) {
  span v = p->headers[i].value;
  while (v.size > 0 && strchr(" \t", p->text.data[v.at + v.size - 1])) v.size--;
  pushspan(L, p, v);
}

static void pushname(lua_State *L, const parser *p, int i) {
  char name[64];
  span n = p->headers[i].name;
  if (n.size > sizeof name) {
    pushspan(L, p, n); /* nobody knows it anyway */
    return;
  }
  for (size_t k = 0; k < n.size; k++)
    name[k] = (char)tolower((unsigned char)p->text.data[n.at + k]);
  lua_pushlstring(L, name, n.size);
}

/* The headers: names in lower case; those given several times are one, as the
   standard has it. */
static void pushheaders(lua_State *L, const parser *p) {
  lua_createtable(L, 0, p->count);
  for (int i = 0; i < p->count; i++) {
    pushname(L, p, i);
    lua_pushvalue(L, -1);
    bool again = lua_rawget(L, -3) == LUA_TSTRING;
    if (again) {
      lua_pushstring(L, named(p, i, "cookie") ? "; " : ", ");
      pushvalue(L, p, i);
      lua_concat(L, 3);
    } else {
      lua_pop(L, 1);
      pushvalue(L, p, i);
    }
    lua_rawset(L, -3);
  }
}

/* parser:feed(s) */
static int parser_feed(lua_State *L) {
  parser *p = checkparser(L);
  size_t n;
  const char *s = luaL_checklstring(L, 2, &n);
  if (p->from > 0) {
    memmove(p->input.data, p->input.data + p->from, p->input.size - p->from);
    p->input.size -= p->from;
    p->from = 0;
  }
  if (!buffer_add(&p->input, s, n)) return luaL_error(L, "not enough memory");
  return 0;
}

static int push_request(lua_State *L, parser *p) {
  p->begun = p->complete = false;
  p->in_head = true;
  next_part(p, IN_METHOD);
  lua_pushliteral(L, "request");
  lua_pushstring(L, llhttp_method_name((llhttp_method_t)p->http.method));
  pushspan(L, p, p->target);
  lua_pushinteger(L, p->http.http_minor);
  pushheaders(L, p);
  lua_pushlstring(L, p->body.data ? p->body.data : "", p->body.size);
  lua_pushboolean(L, llhttp_should_keep_alive(&p->http));
  if (p->body.room > 16 * 1024) buffer_free(&p->body);
  return 7;
}

/* parser:next(): nil when more bytes are needed, or an event and what is to be said
   of it: "request", method, target, minor version, headers, body, keep-alive;
   "continue"; "error", status, reason. */
static int parser_next(lua_State *L) {
  parser *p = checkparser(L);
  lua_settop(L, 1);
  run(p);
  if (p->status) {
    lua_pushliteral(L, "error");
    lua_pushinteger(L, p->status);
    lua_pushstring(L, p->reason);
    return 3;
  }
  if (p->complete) return push_request(L, p);
  if (!p->in_head && p->expects) {
    p->expects = false;
    lua_pushliteral(L, "continue");
    return 1;
  }
  return 0;
}

/* parser:begun(): is a request under way? */
static int parser_begun(lua_State *L) {
  parser *p = checkparser(L);
  lua_pushboolean(L, p->begun || p->from < p->input.size);
  return 1;
}

static int parser__gc(lua_State *L) {
  parser *p = checkparser(L);
  buffer_free(&p->input);
  buffer_free(&p->text);
  free(p->headers);
  p->headers = NULL;
  p->count = p->room = 0;
  buffer_free(&p->body);
  return 0;
}

/* parser(max_line, max_head, max_body) */
static int new_parser(lua_State *L) {
  size_t limits[3];
  for (int i = 0; i < 3; i++) limits[i] = (size_t)luaL_checkinteger(L, i + 1);
  parser *p = lua_newuserdatauv(L, sizeof *p, 0);
  memset(p, 0, sizeof *p);
  p->max_line = limits[0];
  p->max_head = limits[1];
  p->max_body = limits[2];
  p->in_head = true;
  llhttp_init(&p->http, HTTP_REQUEST, &settings);
  p->http.data = p;
  luaL_setmetatable(L, PARSER);
  return 1;
}

/* istoken(s), istext(s): of a header's name, and of its value. */
static int istoken(lua_State *L) {
  size_t n;
  const char *s = luaL_checklstring(L, 1, &n);
  lua_pushboolean(L, coop_http_istoken(s, n));
  return 1;
}

static int istext(lua_State *L) {
  size_t n;
  const char *s = luaL_checklstring(L, 1, &n);
  lua_pushboolean(L, coop_http_istext(s, n));
  return 1;
}

static const luaL_Reg methods[] = {
  {"feed", parser_feed},
  {"next", parser_next},
  {"begun", parser_begun},
  {NULL, NULL}
};

void coop_http_open_parser(lua_State *L) {
  luaL_newmetatable(L, PARSER);
  luaL_newlib(L, methods);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, parser__gc);
  lua_setfield(L, -2, "__gc");
  lua_pushstring(L, PARSER);
  lua_setfield(L, -2, "__metatable");
  lua_pop(L, 1);
  lua_pushcfunction(L, new_parser);
  lua_setfield(L, -2, "parser");
  lua_pushcfunction(L, istoken);
  lua_setfield(L, -2, "istoken");
  lua_pushcfunction(L, istext);
  lua_setfield(L, -2, "istext");
}
