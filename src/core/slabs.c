/*
** slabs.c - cells of some eighty sizes.
**
** The slabs of a size that have room form a ring; cells are taken from the first,
** used ones before fresh ones. A full slab is in no ring until a cell of it comes
** back; an empty one is given back to its region, unless it is the last with room.
*/
#include "core/slabs.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/list.h"

enum {
  SLAB = 1 << 16,
  REGION = 16, /* slabs */
  FINE = 256,  /* up to here cells differ by 8 bytes, from here on by 16 */
  LARGEST = 1024,
  SIZES = FINE / 8 + (LARGEST - FINE) / 16
};

typedef struct cell {
  struct cell *next;
} cell;

typedef struct region {
  coop_link link;    /* of the heap's regions that have a free slab, or alone */
  struct region *next, **prev; /* of all */
  unsigned free;     /* a bit for each slab that is */
  void *memory;      /* of the slabs */
} region;

typedef struct slab {
  coop_link link;    /* of those of its size that have room, or alone */
  region *region;
  cell *returned;    /* cells that have been used */
  char *fresh, *end; /* those that never were */
  uint32_t used;     /* cells out */
  uint16_t size;     /* of a cell, in bytes */
  bool full;
} slab;

struct coop_slabs {
  slab *first[SIZES];       /* of each size, or &none */
  coop_link rooms[SIZES];
  coop_link regions;        /* with a free slab */
  region *all;
  size_t held;
  slab none;                /* a slab that has no room */
  unsigned char spare;
};

static const unsigned ALL_FREE = (1u << REGION) - 1;

/* The place of the size that holds 'n' bytes, 1 to LARGEST. */
static inline unsigned place_of(size_t n) {
  return (unsigned)(n <= FINE ? (n - 1) >> 3 : FINE / 8 + ((n - FINE - 1) >> 4));
}

static inline size_t size_at(unsigned place) {
  return place < FINE / 8 ? 8 * (place + 1u)
                          : FINE + 16 * (place - FINE / 8 + 1u);
}

static inline slab *slab_of(void *p) {
  return (slab *)((uintptr_t)p & ~(uintptr_t)(SLAB - 1));
}

/* --- regions ---------------------------------------------------------------- */

static region *region_new(coop_slabs *h) {
  region *r = malloc(sizeof *r);
  if (!r) return NULL;
  r->memory = aligned_alloc(SLAB, (size_t)SLAB * REGION);
  if (!r->memory) {
    free(r);
    return NULL;
  }
  r->free = ALL_FREE;
  r->next = h->all;
  r->prev = &h->all;
  if (h->all) h->all->prev = &r->next;
  h->all = r;
  coop__link_init(&r->link);
  coop__link_insert(&h->regions, &r->link);
  h->held += (size_t)SLAB * REGION;
  return r;
}

static void region_free(coop_slabs *h, region *r) {
  coop__link_remove(&r->link);
  *r->prev = r->next;
  if (r->next) r->next->prev = r->prev;
  h->held -= (size_t)SLAB * REGION;
  free(r->memory);
  free(r);
}

/* A slab from the first region that has one. */
static slab *slab_new(coop_slabs *h, unsigned place) {
  region *r = coop__link_alone(&h->regions)
                  ? region_new(h)
                  : coop_container(h->regions.next, region, link);
  if (!r) return NULL;
  unsigned n = 0;
  while (!(r->free & 1u << n)) n++;
  r->free &= ~(1u << n);
  if (!r->free) coop__link_remove(&r->link);
  slab *s = (slab *)(void *)((char *)r->memory + (size_t)n * SLAB);
  *s = (slab){.region = r, .size = (uint16_t)size_at(place)};
  s->fresh = (char *)(s + 1);
  s->end = (char *)s + SLAB - s->size;
  coop__link_init(&s->link);
  coop__link_insert(&h->rooms[place], &s->link);
  return s;
}

static void slab_free(coop_slabs *h, slab *s) {
  region *r = s->region;
  coop__link_remove(&s->link);
  if (!r->free) coop__link_insert(&h->regions, &r->link);
  r->free |= 1u << (((char *)s - (char *)r->memory) / SLAB);
  if (r->free == ALL_FREE) region_free(h, r);
}

/* --- cells -------------------------------------------------------------------- */

/* The first slab of a size is the one that its ring begins with. */
static void set_first(coop_slabs *h, unsigned place) {
  coop_link *l = h->rooms[place].next;
  h->first[place] = l == &h->rooms[place] ? &h->none : coop_container(l, slab, link);
}

/* A cell where the first slab has none that has been used. */
static void *take_fresh(coop_slabs *h, unsigned place) {
  slab *s = h->first[place];
  while (s != &h->none && !s->returned && s->fresh > s->end) {
    s->full = true;
    coop__link_remove(&s->link);
    set_first(h, place);
    s = h->first[place];
  }
  if (s == &h->none) {
    s = slab_new(h, place);
    if (!s) return NULL;
    h->first[place] = s;
  }
  void *p = s->returned;
  if (p) {
    s->returned = s->returned->next;
  } else {
    p = s->fresh;
    s->fresh += s->size;
  }
  s->used++;
  return p;
}

static inline void *take(coop_slabs *h, size_t n) {
  unsigned place = place_of(n);
  slab *s = h->first[place];
  cell *c = s->returned;
  if (!c) return take_fresh(h, place);
  s->returned = c->next;
  s->used++;
  return c;
}

/* A slab was full, or is empty. */
static void settle(coop_slabs *h, slab *s) {
  unsigned place = place_of(s->size);
  if (s->full) {
    s->full = false;
    coop__link_insert(&h->rooms[place], &s->link);
  }
  bool only = s->link.next == s->link.prev; /* the head of the ring on both sides */
  if (s->used == 0 && !only) slab_free(h, s);
  set_first(h, place);
}

static inline void give(coop_slabs *h, void *p) {
  slab *s = slab_of(p);
  cell *c = p;
  c->next = s->returned;
  s->returned = c;
  if (--s->used == 0 || s->full) settle(h, s);
}

/* --- blocks ----------------------------------------------------------------------- */

/* To another cell, or from a cell to a block of malloc's, or back. */
static void *move(coop_slabs *h, void *p, size_t from, size_t to) {
  void *q = to <= LARGEST ? take(h, to) : malloc(to);
  if (!q) return from <= LARGEST && to <= from ? p : NULL; /* a cell may be too large */
  memcpy(q, p, from < to ? from : to);
  if (from <= LARGEST) give(h, p);
  else free(p);
  return q;
}

void *coop__slabs_alloc(void *ud, void *p, size_t from, size_t to) {
  coop_slabs *h = ud;
  if (!p) return to == 0 ? NULL : to <= LARGEST ? take(h, to) : malloc(to);
  if (to == 0) {
    if (from > LARGEST) free(p);
    else give(h, p);
    return NULL;
  }
  if (from > LARGEST && to > LARGEST) return realloc(p, to);
  if (from <= LARGEST && to <= LARGEST && slab_of(p)->size == size_at(place_of(to)))
    return p;
  return move(h, p, from, to);
}

coop_slabs *coop__slabs_new(void) {
  coop_slabs *h = calloc(1, sizeof *h);
  if (!h) return NULL;
  coop__link_init(&h->regions);
  for (unsigned i = 0; i < SIZES; i++) {
    coop__link_init(&h->rooms[i]);
    h->first[i] = &h->none;
  }
  return h;
}

void coop__slabs_free(coop_slabs *h) {
  while (h->all) region_free(h, h->all);
  free(h);
}

unsigned char *coop__slabs_spare(coop_slabs *h) { return &h->spare; }

size_t coop__slabs_held(const coop_slabs *h) { return h->held; }
