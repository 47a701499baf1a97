/*
** lhttp.c - the C module coop_http, which coop.http loads.
*/
#include "lhttp.h"

LUAMOD_API int luaopen_coop_http(lua_State *L);

__attribute__((visibility("default"))) int luaopen_coop_http(lua_State *L) {
  luaL_checkversion(L);
  lua_newtable(L);
  coop_http_open_client(L);
  coop_http_open_parser(L);
  coop_http_open_answer(L);
  return 1;
}
