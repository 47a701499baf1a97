/*
** parts.h - the parts in Lua, embedded; the build writes parts.c from lua/coop.
*/
#ifndef COOP_PARTS_H
#define COOP_PARTS_H

#include <stddef.h>

typedef struct coop_part {
  const char *name; /* NULL ends the list */
  const unsigned char *source;
  size_t size;
} coop_part;

extern const coop_part coop__parts[];

#endif
