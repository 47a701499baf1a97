/*
** coop.h - coop for C hosts.
**
** A host with a lua_State of its own opens coop in it, on a libuv loop of the
** host's or of coop's, and runs it. Stack effects are in the notation of the Lua
** manual: [-popped, +pushed, raises]; raises is '-' (never), 'm' (only for want
** of memory) or 'e' (any error).
*/
#ifndef COOP_H
#define COOP_H

#include <lua.h>

#if defined(_WIN32)
#define COOP_API __declspec(dllexport)
#elif defined(__GNUC__)
#define COOP_API __attribute__((visibility("default")))
#else
#define COOP_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define COOP_VERSION "0.1.0"

typedef struct uv_loop_s uv_loop_t; /* libuv's; hosts that use it include uv.h */

/* One coop in one lua_State. Used by one thread at a time. */
typedef struct coop_context coop_context;

/* Opens coop in the state, with a loop of its own unless coop_open came first,
   and pushes the module. The function that require "coop" calls. [-0, +1, e] */
COOP_API int luaopen_coop(lua_State *L);

/* Opens coop in the state of L. 'loop' is the host's, or NULL for one of coop's
   own; a loop that was passed in must outlive the context and is left as it was
   found. Where coop is open already, the context that is there is returned.
   NULL on failure: the message is on the stack. [-0, +(0|1), -] */
COOP_API coop_context *coop_open(lua_State *L, uv_loop_t *loop);

/* Closes coop: its handles are closed, nothing of it runs any more. Also done by
   lua_close. NULL and a closed context are ignored. */
COOP_API void coop_close(coop_context *ctx);

/* The loop that coop uses. */
COOP_API uv_loop_t *coop_loop(coop_context *ctx);

/* Runs the loop until nothing is left: 0, or LUA_ERR* with the error on the stack
   of the main thread. [-0, +(0|1), -] */
COOP_API int coop_run(coop_context *ctx);

/* The context of the state of L, or NULL when coop is not open in it.
   [-0, +0, -] */
COOP_API coop_context *coop_of(lua_State *L);

/* What coop_post has called: in the thread that runs the loop, protected; an error
   is reported. The stack is empty, what is left on it is dropped. [-0, +?, e] */
typedef void (*coop_post_fn)(lua_State *L, void *ud);

/* Has fn(L, ud) called in the next turn of the loop. From any thread, but not from
   signal handlers: it takes a mutex and memory. The calls posted by one thread are
   made in their order, each once; those accepted before coop_close at its beginning
   at the latest. A post does not keep the loop from ending. 0, or nonzero when the
   context is closing, or for want of memory: fn will not be called then. The
   context must not be used after lua_close. */
COOP_API int coop_post(coop_context *ctx, coop_post_fn fn, void *ud);

/* Raises 'message' (at most 127 bytes are kept) in the script that is running
   now, or that runs next. From any thread, and from signal handlers. */
COOP_API void coop_interrupt(coop_context *ctx, const char *message);

/* "major.minor.patch" */
COOP_API const char *coop_version(void);

#ifdef __cplusplus
}
#endif

#endif
