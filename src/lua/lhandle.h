/*
** lhandle.h - coop.h for coop's own files.
**
** What hosts have of a context is a handle, which outlives it: a context that was
** closed is collected like anything else, while a thread may still post to it.
** coop.h calls the handle coop_context; here that is the context itself.
*/
#ifndef LHANDLE_H
#define LHANDLE_H

#include "lcoop.h"

#define coop_context coop_handle
#include "coop.h"
#undef coop_context

/* Valid until the state is closed. */
struct coop_handle {
  coop_context *ctx;   /* NULL once it was collected */
  lua_State *L;        /* the main thread of the state */
  coop_posts *posts;   /* held; for any thread */
  uv_loop_t *loop;     /* what is left of its own, which hosts may be running; or NULL */
  atomic_uint at_it;   /* threads that are interrupting */
  atomic_bool closed;  /* no more of them */
  atomic_bool refuses; /* the host's posts: those of coop's own threads still come */
  coop_handle *next;   /* of the state */
};

/* The context, unless it is closed. Of the state's thread. */
static inline coop_context *coop__held(const coop_handle *h) {
  return h && h->ctx && !h->ctx->closed ? h->ctx : NULL;
}

#endif
