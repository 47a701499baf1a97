/*
** coop.h - coop for C and C++ hosts.
**
** A host with a lua_State of its own opens coop in it, on a libuv loop of the
** host's or of coop's, and runs it: to its end (coop_run), frame by frame
** (coop_poll), from a loop of another kind (coop_backend_fd), or by uv_run on a
** loop that it passed in.
**
** Stack effects are in the notation of the Lua manual: [-popped, +pushed, raises];
** raises is '-' (never), 'm' (only for want of memory) or 'e' (any error). Nothing
** here raises but luaopen_coop: what can fail says so by its result.
**
** Threads: a context, and the lua_State that it is open in, are used by one thread
** at a time, which may change. Only coop_post, coop_interrupt and coop_version may
** be called from any thread at any time.
**
** Ownership: the context belongs to the state. It is valid until lua_close, also
** when it has been closed before, of which some hundred bytes are kept for that;
** functions that get a closed context, or NULL, do nothing and say so. Of a context
** that was closed, coop_of knows nothing any more.
*/
#ifndef COOP_H
#define COOP_H

#ifdef __cplusplus
extern "C" {
#endif

#include <lua.h> /* it does not say that it is C */

#if defined(_WIN32)
#define COOP_API __declspec(dllexport)
#elif defined(__GNUC__)
#define COOP_API __attribute__((visibility("default")))
#else
#define COOP_API
#endif

#define COOP_VERSION "0.1.0"

typedef struct uv_loop_s uv_loop_t; /* libuv's; hosts that use it include uv.h */

/* One coop in one lua_State. */
typedef struct coop_context coop_context;

/* --- opening and closing ------------------------------------------------------ */

/* Opens coop in the state, with a loop of its own unless coop_open came first,
   and pushes the module. The function that require "coop" calls. [-0, +1, e] */
COOP_API int luaopen_coop(lua_State *L);

/* Opens coop in the state of L. 'loop' is the host's, or NULL for one of coop's
   own; a loop that was passed in must outlive the context and is left as it was
   found. Where coop is open already, the context that is there is returned; where
   it was closed, a new one is opened, which what is left of the old has nothing to
   do with. All memory that belongs to the state comes from its allocator; what
   libuv, posts and other threads need does not. Signals, the locale and the standard
   streams are left alone. NULL on failure, as where another copy of coop is open in
   the state: the message is on the stack. [-0, +(0|1), -] */
COOP_API coop_context *coop_open(lua_State *L, uv_loop_t *loop);

/* Closes coop, and loses nothing silently:
   - posts that were accepted are called, no more are;
   - jobs of threads get an outcome; what does not end within five seconds is left
     behind, told of on standard error;
   - tasks are stopped (SchedulerStopped), their generators closed, C steps
     released;
   - delayed calls are cancelled;
   - each pending Deferred that can be reached is cancelled in the manner of
     d:cancel(), with coop.errors.ContextClosed, a CancelledError, as its error:
     cancellers and handlers run; inline bodies get it raised where they wait, and
     are closed when they wait again; the bodies of coroutines are closed;
   - sockets, listeners and all other handles are closed, those that scripts have of
     luv too; on a loop of the host's libuv lets go of them in the loop's next turn,
     which with luv is to be made before lua_close. A loop of coop's own is closed,
     with all that is on it; by lua_close when the host has handles there, since it
     may be in one of their callbacks.
   Takes time in proportion to what the state holds. Scripts run in it: an error of
   theirs is reported. Called from within coop (a post, step, handler or function
   that coop runs) it takes effect when that has returned to whoever called coop,
   in the next turn at the latest; posts are refused from now on. lua_close does the
   same without the Deferreds: coroutines and handles close, steps are released,
   watches are told. NULL and a closed context are ignored. [-0, +0, -] */
COOP_API void coop_close(coop_context *ctx);

/* The context of the state of L, or NULL when coop is not open in it.
   [-0, +0, -] */
COOP_API coop_context *coop_of(lua_State *L);

/* "major.minor.patch". Any thread. */
COOP_API const char *coop_version(void);

/* --- running ------------------------------------------------------------------- */

/* The loop that coop uses; NULL when closed. */
COOP_API uv_loop_t *coop_loop(coop_context *ctx);

/* Runs the loop until nothing is left: 0, or LUA_ERR* with the error on the stack
   of the main thread, or, called by what coop runs, of the thread that this runs in:
   misuse, like a run within a run or of a closed context, or an interrupt; nothing is
   pushed for NULL. Errors in what runs are reported, and end nothing.
   [-0, +(0|1), -] */
COOP_API int coop_run(coop_context *ctx);

/* Runs the loop for at most about 'budget' seconds, without waiting for anything:
   to the end of the step, call, post or handler during which the budget ends, and
   that of libuv's callbacks for what is on the loop beside coop. At least one turn
   is made, and further ones while something is due, or there is input. 1 while work remains, now or later; 0 when nothing does, when a script
   has stopped the reactor, or when the context is closed; -1 when it is called from
   within a turn, where nothing is done. Triggers of "startup" run in the first
   poll, those of "shutdown" when the reactor is stopped, or coop closed.
   [-0, +0, -] */
COOP_API int coop_poll(coop_context *ctx, double budget);

/* For hosts with a poll of their own: a descriptor that is readable when there is
   something to coop_poll for, also after coop_post from another thread. It is the
   host's to watch for reading, not to read or close. Ask coop_backend_timeout
   before each wait. -1 when the context is closed. [-0, +0, -] */
COOP_API int coop_backend_fd(const coop_context *ctx);

/* Seconds until coop_poll is wanted though the descriptor is not readable: 0 now,
   negative: never. [-0, +0, -] */
COOP_API double coop_backend_timeout(const coop_context *ctx);

/* --- on a stack ---------------------------------------------------------------- */
/* These act on the stack of L: of any thread of the state, the one that a C
   function was given included, also when it is called by a coroutine of coop's.
   Where coop is not open they fail. */

/* Starts a coroutine, as coop.spawn(f, ...) does: runs it to its first wait. The
   function and, above it, its 'nargs' arguments are popped. LUA_OK and the
   Coroutine, which is a Deferred; or LUA_ERR* and the error. An error in the
   function is the Deferred's. [-(nargs+1), +1, -] */
COOP_API int coop_spawn(lua_State *L, int nargs);

/* Pushes a new Deferred; nil for want of memory, or where coop is not open.
   [-0, +1, -] */
COOP_API void coop_deferred_new(lua_State *L);

/* Fires the Deferred at 'index' with the value on top, which is popped, and runs
   what waits for it. 0; nonzero, with nothing done, when it has fired already, when
   it is no Deferred or one that a coroutine fires itself, or when the value is a
   Deferred. One fire after a cancellation is ignored: 0. [-1, +0, -] */
COOP_API int coop_deferred_callback(lua_State *L, int index);

/* The same with an error: any value, of which a Failure is made, or a Failure.
   [-1, +0, -] */
COOP_API int coop_deferred_errback(lua_State *L, int index);

/* Told of an outcome: the value, or the Failure, is all there is on the stack. What
   is left on it is dropped; an error is reported. It may not wait.
   [-?, +?, e] */
typedef void (*coop_result_fn)(lua_State *L, int failed, void *ud);

/* Has fn(L, failed, ud) called with the result that the Deferred at 'index' has
   then, behind the handlers that were there before; at once when it has fired.
   Changes nothing of the result; a failure counts as handled. The Deferred is kept
   until then. fn is called exactly once, with a ContextClosed when coop is closed,
   and at once with a text instead of a Failure when the value is no Deferred, where
   coop is not open, or for want of memory. [-0, +0, -] */
COOP_API void coop_deferred_watch(lua_State *L, int index, coop_result_fn fn,
                                  void *ud);

/* What a step comes to. */
typedef enum { COOP_MORE, COOP_DONE, COOP_FAIL } coop_step;

/* One step of a task: some milliseconds of work at most. The stack is empty at
   first and what is left on it is dropped, but for COOP_FAIL: the value on top is
   the error. A Lua error in it fails the task as well. [-0, +?, e] */
typedef coop_step (*coop_step_fn)(lua_State *L, void *ud);

/* Adds a task to the global Cooperator, as coop.cooperate does: step(L, ud) is
   called in its turn until it gives COOP_DONE or COOP_FAIL. LUA_OK and the
   CooperativeTask, to be paused, resumed, stopped and waited for like any other; or
   LUA_ERR* and the error: ud is the caller's still. release(ud), unless NULL, is
   called exactly once: behind the last step, when the task is stopped, when coop or
   the state is closed, or when nothing can reach the task any more; never during a
   step. It gets no state, and must not use one. [-0, +1, -] */
COOP_API int coop_cooperate(lua_State *L, coop_step_fn step, void *ud,
                            void (*release)(void *ud));

/* --- from elsewhere -------------------------------------------------------------- */

/* What coop_post has called: in the thread that runs the loop, protected; an error
   is reported. The stack is empty, what is left on it is dropped. [-0, +?, e] */
typedef void (*coop_post_fn)(lua_State *L, void *ud);

/* Has fn(L, ud) called in the next turn of the loop. From any thread, but not from
   signal handlers: it takes a mutex and memory, not of the state. The calls posted
   by one thread are made in their order, each once; those accepted before
   coop_close at its beginning at the latest. A post does not keep the loop from
   ending. 0, or nonzero when the context is closing, or for want of memory: fn will
   not be called then. The context must not be used after lua_close. */
COOP_API int coop_post(coop_context *ctx, coop_post_fn fn, void *ud);

/* Raises 'message' (at most 127 bytes are kept) in the script that is running
   now, or that runs next. From any thread, and from signal handlers, also while
   coop is being closed; not after lua_close. Of several at the same time one is
   raised. It is done by lua_sethook, which Lua has for this: a hook that the host has
   set in the main thread, or in the coroutine that runs, is replaced. NULL for the
   message is "interrupted!". */
COOP_API void coop_interrupt(coop_context *ctx, const char *message);

#ifdef __cplusplus
}
#endif

#endif
