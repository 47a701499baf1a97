/*
** lstate.h - states of coop's own.
*/
#ifndef LSTATE_H
#define LSTATE_H

#include <lua.h>

/* A state as of luaL_newstate, without libraries. NULL when there is no memory. */
lua_State *coop__state_new(void);

/* Closes one of coop__state_new. */
void coop__state_close(lua_State *L);

#endif
