/*
** command.h - what the command needs of the library beyond coop.h.
*/
#ifndef COOP_COMMAND_H
#define COOP_COMMAND_H

#include <lua.h>

/* Pushes the function of lua/coop/command.lua. coop must be open. [-0, +1, e] */
void coop__push_command(lua_State *L);

#endif
