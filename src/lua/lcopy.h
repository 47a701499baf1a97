/*
** lcopy.h - values as bytes, to be made again in another state.
*/
#ifndef LCOPY_H
#define LCOPY_H

#include <lua.h>
#include <stdbool.h>
#include <stddef.h>

/* Memory that grows; zeroed it is empty. */
typedef struct bytes {
  char *data;
  size_t n, size;
} bytes;

/* Makes room for n more; false for want of memory. */
bool coop__bytes_reserve(bytes *b, size_t n);
bool coop__bytes_add(bytes *b, const void *data, size_t n);
void coop__bytes_free(bytes *b);
/* Moves what 'from' holds to 'to', which must be empty. */
void coop__bytes_move(bytes *to, bytes *from);

/* Appends a copy of the values at first..last. When one of them cannot be copied,
   0 < *bad says which and what is wrong is pushed ("got userdata in field 'x'").
   What was appended to 'b' by a call that failed or raised is to be dropped.
   [-0, +(0|1), m] */
bool coop__copy_out(lua_State *L, int first, int last, bytes *b, int *bad);

/* Pushes the 'n' values of one coop__copy_out, of which 'data' is the beginning;
   returns where the next one begins. [-0, +n, m] */
const char *coop__copy_in(lua_State *L, const char *data, int n);
/* Pushes one value; a table gets room for 'fields' that are to be added to it.
   [-0, +1, m] */
const char *coop__copy_in_for(lua_State *L, const char *data, int fields);

#endif
