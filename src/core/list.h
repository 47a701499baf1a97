/*
** list.h - a ring of links.
**
** A link alone is an empty list, so removing twice is harmless.
*/
#ifndef COOP_LIST_H
#define COOP_LIST_H

#include <stdbool.h>
#include <stddef.h>

typedef struct coop_link {
  struct coop_link *prev, *next;
} coop_link;

/* The struct that 'member' at 'link' is embedded in. */
#define coop_container(link, type, member) \
  ((type *)(void *)((char *)(link)-offsetof(type, member)))

static inline void coop__link_init(coop_link *l) { l->prev = l->next = l; }

static inline bool coop__link_alone(const coop_link *l) { return l->next == l; }

/* Puts 'l', which must be alone, before 'at'; before a ring's head is its end. */
static inline void coop__link_insert(coop_link *at, coop_link *l) {
  l->prev = at->prev;
  l->next = at;
  at->prev->next = l;
  at->prev = l;
}

static inline void coop__link_remove(coop_link *l) {
  l->prev->next = l->next;
  l->next->prev = l->prev;
  coop__link_init(l);
}

#endif
