/*
** posts.h - a queue that any thread may put into and one thread takes from.
**
** Items are the caller's own structs, linked in; none is lost and those of one
** thread keep their order. After closing nothing is accepted. The queue is
** counted: whoever may still put into it holds it.
*/
#ifndef COOP_POSTS_H
#define COOP_POSTS_H

#include <stdbool.h>
#include <uv.h>

typedef struct coop_posts coop_posts;

typedef struct coop_post_item {
  struct coop_post_item *next;
} coop_post_item;

/* A new queue, held once; NULL for want of memory. 'async' is sent to when
   something has been put in, until the queue is closed. */
coop_posts *coop__posts_new(uv_async_t *async);

void coop__posts_hold(coop_posts *posts);
/* The last one to let go frees it. */
void coop__posts_release(coop_posts *posts);

/* Puts an item at the end; from any thread. False when the queue is closed: the
   item is still the caller's then. */
bool coop__posts_push(coop_posts *posts, coop_post_item *item);

/* Takes all that is there, in order, linked by 'next'; NULL when empty. */
coop_post_item *coop__posts_take(coop_posts *posts);

/* Is there something to take? From any thread. */
bool coop__posts_pending(coop_posts *posts);

/* From now on nothing is accepted. What is inside can still be taken. */
void coop__posts_close(coop_posts *posts);

#endif
