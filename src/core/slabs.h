/*
** slabs.h - memory in small cells, for a state that makes many objects and drops
** them soon.
**
** Cells of one size share a slab, 64 KB that begin at a multiple of their size: so
** a cell knows its slab by its address, and has no header. Slabs are cut from
** regions of a megabyte, which go back to the system when nothing is left in them.
** What is larger than a cell can be comes from malloc. For one thread at a time.
*/
#ifndef COOP_SLABS_H
#define COOP_SLABS_H

#include <stddef.h>

typedef struct coop_slabs coop_slabs;

/* NULL when there is no memory. */
coop_slabs *coop__slabs_new(void);

/* Gives all slabs back, with what is in them. */
void coop__slabs_free(coop_slabs *h);

/* As lua_Alloc: 'ud' is the coop_slabs, 'from' the size of the block 'p'. */
void *coop__slabs_alloc(void *ud, void *p, size_t from, size_t to);

/* A byte for the owner's use, 0 at first. */
unsigned char *coop__slabs_spare(coop_slabs *h);

/* Bytes of the regions held. */
size_t coop__slabs_held(const coop_slabs *h);

#endif
