/*
** posts.c - the queue behind coop_post and the results of threads.
**
** uv_async_send is called under the mutex, so that the handle is never sent to
** once the queue is closed: several sends may become one wake-up, hence the
** queue.
*/
#include <stdlib.h>

#include "posts.h"

struct coop_posts {
  uv_mutex_t mutex; /* over all that follows */
  coop_post_item *first, *last;
  uv_async_t *async; /* NULL once closed */
  unsigned holders;
};

coop_posts *coop__posts_new(uv_async_t *async) {
  coop_posts *posts = calloc(1, sizeof *posts);
  if (!posts) return NULL;
  if (uv_mutex_init(&posts->mutex) != 0) {
    free(posts);
    return NULL;
  }
  posts->async = async;
  posts->holders = 1;
  return posts;
}

void coop__posts_hold(coop_posts *posts) {
  uv_mutex_lock(&posts->mutex);
  posts->holders++;
  uv_mutex_unlock(&posts->mutex);
}

void coop__posts_release(coop_posts *posts) {
  uv_mutex_lock(&posts->mutex);
  bool last = --posts->holders == 0;
  uv_mutex_unlock(&posts->mutex);
  if (!last) return;
  uv_mutex_destroy(&posts->mutex);
  free(posts);
}

bool coop__posts_push(coop_posts *posts, coop_post_item *item) {
  uv_mutex_lock(&posts->mutex);
  bool open = posts->async != NULL;
  if (open) {
    item->next = NULL;
    if (posts->first) posts->last->next = item;
    else posts->first = item;
    posts->last = item;
    uv_async_send(posts->async);
  }
  uv_mutex_unlock(&posts->mutex);
  return open;
}

coop_post_item *coop__posts_take(coop_posts *posts) {
  uv_mutex_lock(&posts->mutex);
  coop_post_item *first = posts->first;
  posts->first = posts->last = NULL;
  uv_mutex_unlock(&posts->mutex);
  return first;
}

bool coop__posts_pending(coop_posts *posts) {
  uv_mutex_lock(&posts->mutex);
  bool pending = posts->first != NULL;
  uv_mutex_unlock(&posts->mutex);
  return pending;
}

void coop__posts_close(coop_posts *posts) {
  uv_mutex_lock(&posts->mutex);
  posts->async = NULL;
  uv_mutex_unlock(&posts->mutex);
}
