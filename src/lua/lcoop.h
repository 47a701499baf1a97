/*
** lcoop.h - what the files of the Lua layer share.
**
** Laws of the layer:
** - Every C function given to Lua is a closure whose first upvalue is the
**   context (a userdata), so that CTX is valid wherever one of them is running.
** - Edges between objects are user values, one named slot each; the C structs
**   hold numbers, flags and links. The roots are what is runnable, what is
**   armed, and what a host holds.
** - Every object begins with a pointer to its kind, by which it is recognised.
** Stack effects are in the notation of the Lua manual: [-popped, +pushed, raises].
*/
#ifndef LCOOP_H
#define LCOOP_H

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>

#include "core/sched.h"
#include "core/timers.h"
#include "lua/outside.h"
#include "uv/loop.h"
#include "uv/posts.h"

#define CTX lua_upvalueindex(1)

/* lua_closethread came with 5.4.6; until then lua_resetthread does its work. */
#if LUA_VERSION_RELEASE_NUM >= 50406
#define closethread(co, from) lua_closethread(co, from)
#else
#define closethread(co, from) ((void)(from), lua_resetthread(co))
#endif

/* What is looked at by every yield is to be found without a call, also in a library
   that is loaded late: glibc keeps room for that. */
#if defined(__GLIBC__) && defined(__GNUC__)
#define FAST_TLS __attribute__((tls_model("initial-exec")))
#else
#define FAST_TLS
#endif

/* For what a quick function does otherwise: inlined, it would make that one slow. */
#if defined(__GNUC__)
#define NEVER_INLINE __attribute__((noinline))
#else
#define NEVER_INLINE
#endif

/* How many runs of handlers and bodies may stand on one another on the C stack;
   what is started deeper waits its turn in a queue. Lua's own limit is 200 C
   levels, of which a run takes about four. */
enum { MAX_DEPTH = 16, MAX_ADD_DEPTH = 32 /* for handlers of what has fired */ };

/* --- kinds -------------------------------------------------------------- */

typedef enum kind {
  KIND_DEFERRED, /* the first three are Deferreds, see isdeferred */
  KIND_COROUTINE,
  KIND_INLINE,
  KIND_FAILURE,
  KIND_GENERATOR,
  KIND_TASK,
  KIND_COOPERATOR,
  KIND_CALL,
  KIND_CLOCK,
  KIND_REACTOR,
  KIND_POOL,
  KIND_STREAM,
  KIND_FIBER,
  KIND_GUARD,
  KIND_CONTEXT,
  KIND_CONNECTION,
  KIND_LISTENER,
  KIND_COUNT
} kind;

/* The address of an element tells that a userdata is coop's, its place which. */
typedef struct kind_tag {
  const char *name;
} kind_tag;
extern const kind_tag coop__kinds[KIND_COUNT];

typedef struct object {
  const kind_tag *tag;
} object;

/* --- the context -------------------------------------------------------- */

/* user values of the context */
enum {
  CTX_MODULE = 1, /* the public table */
  CTX_CORE,       /* the table that the parts in Lua share */
  CTX_ERRORS,     /* coop.errors */
  CTX_WORK,       /* Deferreds interrupted by what they woke, a stack */
  CTX_LATER,      /* Deferreds that were reached too deep, a queue */
  CTX_GUARDS,     /* weak: Deferred -> guard that reports its failure */
  CTX_UNHANDLED,  /* the function given to on_unhandled, or nil */
  CTX_FRAMES,     /* frames of the error just caught, or nil */
  CTX_RAISED,     /* the Failure whose value was raised last */
  CTX_MSGH,       /* coop__msgh as a function */
  CTX_FRESH,      /* the metatable of a Deferred that is neither fired nor paused */
  CTX_DEATHS,     /* weak: thread -> frames of the error that ends it */
  CTX_FIBER_MSGH, /* its message handler */
  CTX_FIBER_MAIN, /* the function at the base of each fiber */
  CTX_POOL,       /* place -> a fiber that is held there, or the next vacant place */
  CTX_THREADS,    /* weak: thread -> address of its fiber, or false while a wait
                     passes through it: threads that scripts may not resume */
  CTX_PASSING,    /* threads that a wait is passing through, innermost first */
  CTX_YIELD,      /* coroutine.yield; its second upvalue is the table that yields of
                     a task that accumulates are stored in */
  CTX_ACTIVE,     /* Cooperators with a tick to come: address -> Cooperator */
  CTX_REACTOR,    /* the reactor */
  CTX_COOPERATOR, /* the global Cooperator */
  CTX_COOPERATORS, /* weak: all Cooperators, as keys */
  CTX_CLASSES,    /* weak: metatable of a class made in Lua -> its name */
  CTX_HOLDS,      /* what a host or libuv holds: address -> value */
  CTX_STAGE,      /* the metatable of stages, once coop.flow is loaded */
  CTX_READY,      /* its function that waits until a stage is ready */
  CTX_TASK_NEXT,  /* its function that steps a stage for a task */
  CTX_LIBRARY,    /* what coop's functions replaced in the coroutine library */
  CTX_WANT,       /* a Deferred failed for want of memory, made before that */
  CTX_PLACES,     /* weak: object -> number of the place where it was made */
  CTX_NAMES,      /* number of a place -> "file:line", and back */
  CTX_LOST,       /* records of coroutines that were collected waiting */
  CTX_WATCH,      /* what the watchdog calls */
  CTX_META,       /* + kind: the metatables */
  CTX_NUV = CTX_META + KIND_COUNT
};

/* What a yield of a coroutine that coop runs means to whoever resumed it. */
typedef enum signal_kind {
  SIGNAL_NONE,     /* a plain yield: values */
  SIGNAL_AWAIT,    /* wait for the Deferred on top */
  SIGNAL_SPAWN,    /* run the new body on top to its first wait */
  SIGNAL_RUN,      /* run what was reached too deep, then hand the values back */
  SIGNAL_NORETURN, /* go on with the function and arguments given */
  SIGNAL_RETURN,   /* leave the body with the value on top */
  SIGNAL_EXIT,     /* close it: the process ends */
  SIGNAL_DIED      /* no yield: the fiber's function failed with the value on top */
} signal_kind;

/* For whom stages are polled. */
typedef enum flow_mode {
  FLOW_PLAIN,
  FLOW_BLOCKING, /* a Block, which keeps the time itself */
  FLOW_SLICED,   /* a task, whose step is not to take long */
  FLOW_OVER      /* a task whose step has taken long: whoever pulls waits a turn */
} flow_mode;

typedef struct fiber fiber;

typedef struct coop_context {
  object object;
  struct coop_handle *handle; /* what hosts have of it (lhandle.h) */
  lua_State *L;       /* the main thread of the state */
  lua_State *running; /* the coroutine that runs, NULL outside coop's own; set by
                         coop__runs: other threads read it */
  signal_kind signal; /* what the yield under way means */
  bool raising;       /* the coroutine being resumed is to raise the value */
  bool calling;       /* callback, cancel or the like is under way: what is reached
                         too deep waits for its end */
  int depth;          /* runs of handlers and bodies on the C stack */
  lua_Integer work;   /* size of CTX_WORK */
  lua_Integer later_first, later_last; /* CTX_LATER, empty when first > last */
  struct {             /* of fibers (lpool.c) */
    coop_link idle;    /* to be used again, the last one first */
    int nidle;
    int32_t places;    /* in CTX_POOL */
    int32_t vacant;    /* the first that holds none, or 0 */
  } pool;
  lua_Integer passing; /* size of CTX_PASSING */
  coop_link fibers;    /* all that have a body which has not ended */
  coop_link active;    /* Cooperators with a tick to come */
  coop_link watches;   /* descriptors that are to be readable (lreactor.c) */
  struct {               /* of coop.flow (lflow.c) */
    lua_State *co;       /* the body of a stage that is stepped, the innermost */
    int depth;           /* how many of them are, in one another */
    uint8_t mode;        /* for whom: a flow_mode */
    uint64_t since;      /* cycles when the step of a task began */
    const void *stage;   /* the metatable of stages */
  } flow;
  unsigned closing;    /* bodies being closed, on the C stack */
  bool collecting;     /* a fiber's finaliser runs */
  bool asked;          /* it is to be closed when what runs has returned */
  bool shutting;       /* and is being closed (lclose.c) */
  bool closed;
  bool stirred;       /* something has come from outside since the last turn */
  bool census;        /* it is kept where things are made (lcensus.c) */
  bool turning;        /* in a turn of the loop: it is armed at its end */
  bool running_loop;   /* reactor.running */
  bool looping;        /* inside uv_run */
  bool luv;            /* luv is on the loop: closed handles must be done with at once */
  bool draining;       /* and so only for what libuv is closing (lluv.c) */
  unsigned unhandled;  /* failures reported so far */
  coop_timers *timers; /* the reactor's */
  lua_State *turn_L;   /* the thread that drives the loop */
  unsigned turns;      /* that the loop has made, round and round */
  struct coop_net *net; /* sockets (lnet.c), once there are any */
  coop_outside outside; /* for C modules beside coop */
  struct ticker *ticker; /* redraws (lscreen.c), once something was shown */
  struct {             /* what is to be raised in whatever runs (linterrupt.c) */
    atomic_uint word;  /* 0, or INTERRUPT_PENDING and who is at it */
    atomic_int slot;   /* who may touch the message: an interrupt_slot */
    unsigned raised;   /* how often it has been */
    double since;      /* when it was first */
    int catcher;       /* the frame, from the base, that will catch it; 0: none */
    bool again;        /* raise at the next instruction */
    bool exiting;      /* it is os.exit */
    lua_CFunction pcall, xpcall;
    char message[128];
  } interrupt;
  double until;        /* end of the budget of coop_poll; else HUGE_VAL */
  struct {          /* how fast the counter of coop__cycles goes */
    double seconds; /* when it was looked at, */
    uint64_t cycles; /* what it was then, */
    double rate;    /* and what it has gone on by in a second, or 0 */
  } pace;
  coop_uv loop;
  coop_posts *posts;       /* what other threads want to have called */
  coop_post_item *posted;  /* taken from it, to be called now */
  struct threads *threads; /* the pools, once there are any (lthreads.c) */
  uv_timer_t *watchdog;    /* once there is one (lcensus.c) */
  coop_closer watchdog_closer;
} coop_context;

enum { INTERRUPT_PENDING = 1, INTERRUPT_AT_IT = 2 /* for each thread that is */ };

/* Is an interrupt under way? */
static inline bool coop__interrupted(const coop_context *ctx) {
  return atomic_load_explicit(&ctx->interrupt.word, memory_order_acquire) &
         INTERRUPT_PENDING;
}
/* The one that is to be raised in whatever runs next is for 'co'; waits for those
   who might have a hand on the one that ran before. */
void coop__interrupt_next(coop_context *ctx, lua_State *co);

/* From now on it is 'co' that runs. A thread that interrupts may be looking at the
   one before, which may be collected after this. */
static inline void coop__runs(coop_context *ctx, lua_State *co) {
  __atomic_store_n(&ctx->running, co, __ATOMIC_RELAXED);
  atomic_signal_fence(memory_order_seq_cst); /* the rest is up to them */
  if (atomic_load_explicit(&ctx->interrupt.word, memory_order_relaxed))
    coop__interrupt_next(ctx, co);
}

static inline coop_context *getctx(lua_State *L) {
  return (coop_context *)lua_touserdata(L, CTX);
}

/* Pushes the context's table or value 'slot'. [-0, +1, -] */
static inline int pushctx(lua_State *L, int slot) {
  return lua_getiuservalue(L, CTX, slot);
}

/* A counter that costs next to nothing to read, and how far it goes in some ten to
   fifty microseconds. It only says when to look at the clock. */
#if defined(__x86_64__) || defined(__i386__)
enum { GLANCE = 50000 };
static inline uint64_t coop__cycles(void) { return __builtin_ia32_rdtsc(); }
#else
enum { GLANCE = 20000 };
static inline uint64_t coop__cycles(void) { return uv_hrtime(); }
#endif

/* --- objects ------------------------------------------------------------ */

/* The object at 'idx' when it is one of coop's, else NULL. [-0, +0, -] */
static inline object *toobject(lua_State *L, int idx) {
  object *o = lua_touserdata(L, idx);
  if (!o || lua_rawlen(L, idx) < sizeof *o) return NULL; /* light ones have none */
  uintptr_t at = (uintptr_t)o->tag - (uintptr_t)coop__kinds;
  return at < sizeof coop__kinds ? o : NULL;
}

static inline kind kindof(const object *o) {
  return (kind)(o->tag - coop__kinds);
}

static inline void *tokind(lua_State *L, int idx, kind k) {
  object *o = toobject(L, idx);
  return o && kindof(o) == k ? (void *)o : NULL;
}

/* A new userdata of this kind with its metatable, zeroed. [-0, +1, m] */
void *coop__new(lua_State *L, kind k, size_t size, int nuv);
/* The same with another metatable: slot 'slot' of the context. */
void *coop__newfrom(lua_State *L, int slot, kind k, size_t size, int nuv);

/* The name that coop.type gives to the value at 'idx', or NULL. [-0, +0, -] */
const char *coop__typename(lua_State *L, int idx);

/* --- misuse --------------------------------------------------------------- */

/* bad argument #arg to 'fname' (expected expected, got ...); arg 0 is the self
   of a method. [-0, +0, v] */
int coop__typeerror(lua_State *L, const char *fname, int arg, int idx,
                    const char *expected);
int coop__argerror(lua_State *L, const char *fname, int arg, const char *why);

/* Raises an instance of coop.errors[class] with "fname: why". [-0, +0, v] */
int coop__raise(lua_State *L, const char *class, const char *fname,
                const char *why);
/* Pushes such an instance; 'message' whole. [-0, +1, m] */
void coop__pusherror(lua_State *L, const char *class, const char *message);

void *coop__checkkind(lua_State *L, int idx, kind k, const char *fname, int arg);
/* Seconds: a number, finite and not negative. [-0, +0, v] */
double coop__checkseconds(lua_State *L, int idx, const char *fname, int arg);
bool coop__callable(lua_State *L, int idx);
static inline void coop__checkcallable(lua_State *L, int idx, const char *fname,
                                       int arg) {
  if (lua_type(L, idx) != LUA_TFUNCTION && !coop__callable(L, idx))
    coop__typeerror(L, fname, arg, idx, "function");
}
lua_Integer coop__checkcount(lua_State *L, int idx, const char *fname, int arg);

/* --- failures (lfailure.c) ------------------------------------------------ */

enum { FAILURE_VALUE = 1, FAILURE_FRAMES, FAILURE_ORIGIN, FAILURE_FIELDS,
       FAILURE_NUV = FAILURE_FIELDS };

static inline object *tofailure(lua_State *L, int idx) {
  return tokind(L, idx, KIND_FAILURE);
}

/* Makes the value on top into a Failure, unless it is one; the frames are those
   of CTX_FRAMES, which is emptied. [-1, +1, m] */
void coop__tofailure(lua_State *L);
/* The value on top was caught: makes a Failure of it. When it is the value of
   the Failure raised last, that one is it, or, awaited, its origin.
   [-1, +1, m] */
void coop__caught(lua_State *L, bool awaited);
/* Notes that the value of the Failure at 'idx' is about to be raised. */
void coop__raised(lua_State *L, int idx);
/* Is the Failure's value a CancelledError? [-0, +0, -] */
bool coop__iscancelled(lua_State *L, int idx);
/* Keeps the frames of 'co' from 'level' on in CTX_FRAMES. [-0, +0, m] */
void coop__capture(lua_State *L, lua_State *co, int level);
/* The message handler of protected calls: keeps the frames, not the value. */
int coop__msgh(lua_State *L);
/* Is the function at 'level' of 'co' one of coop's own? [-0, +0, -] */
bool coop__ownlevel(lua_State *L, lua_State *co, int level);
/* The error value on top of 'co' was raised at 'level': unless that was coop
   itself, a string equal to what was raised last is another error. [-0, +0, -] */
void coop__forget_raised(lua_State *L, lua_State *co, int level);
/* Tells on_unhandled, or standard error, of the Failure on top. [-1, +0, -] */
void coop__report(lua_State *L);
/* The same of any error value on top. [-1, +0, -] */
void coop__reporterror(lua_State *L);

/* Calls a script's function as lua_pcall does; an error leaves no run behind, nor
   the idea that a call is under way. [-(nargs+1), +nres|1, -] */
static inline bool coop__pcall_in(coop_context *ctx, lua_State *L, int nargs,
                                  int nres, int msgh) {
  int depth = ctx->depth;
  bool calling = ctx->calling;
  bool ok = lua_pcall(L, nargs, nres, msgh) == LUA_OK;
  ctx->depth = depth;
  ctx->calling = calling;
  return ok;
}

static inline bool coop__pcall(lua_State *L, int nargs, int nres, int msgh) {
  return coop__pcall_in(getctx(L), L, nargs, nres, msgh);
}

/* --- Deferreds (ldeferred.c) ---------------------------------------------- */

/* user values of a Deferred */
enum {
  DEFERRED_RESULT = 1, /* before it fires: the canceller; then the result, or
                          the Deferred that it waits on */
  DEFERRED_SLOT,       /* three handlers, the third may be a table of more */
  DEFERRED_NUV = DEFERRED_SLOT + 2,
  BODY_FIBER,          /* of a body: the fiber that runs it */
  BODY_WAIT,           /* what it waits on, or what it is to be resumed with */
  BODY_NUV = BODY_WAIT
};

enum {
  D_FIRED = 1,      /* callback or errback came */
  D_FAILED = 2,     /* the result is a Failure */
  D_WAITING = 4,    /* fired, its result is a Deferred not yet done */
  D_BUSY = 8,       /* a run has it: handlers are queued, not run */
  D_SWALLOW = 16,   /* cancelled without a canceller: one late fire is ignored */
  D_CANCELLING = 32,/* its canceller runs */
  D_HANDLED = 64,   /* the failure reached somebody */
  D_GUARDED = 128,  /* a guard will report the failure */
  D_INDEXED = 512,  /* the table of more knows where each waiter stands */
  D_RELAY = 1024,   /* its canceller alone says what becomes of it */
  D_CANCEL = 256,   /* cancel it when its turn in the queue comes */
  D_DEPTH = 2048    /* times the depth of the run that has it, at most DEPTH_MOST;
                       0: the queue has it */
};

enum { DEPTH_MOST = 31 };

typedef enum handler_kind {
  H_NONE,
  H_CALLBACK, /* function */
  H_ERRBACK,
  H_BOTH,
  H_OBSERVE,  /* like BOTH; its result is dropped, the failure counts as handled */
  H_CALL,     /* table {callback or false, errback or false, extra arguments...} */
  H_WAITER,   /* a body, a task or a Deferred that waits for the result */
  H_CHAIN,    /* a Deferred that is fired with the result */
  H_GONE,     /* a waiter that was taken away */
  H_MORE      /* the third slot is a table: kind, value, kind, value, ... */
} handler_kind;

typedef struct deferred {
  object object;
  uint16_t flags;
  uint16_t pauses;      /* pause() not yet undone */
  uint8_t first, count; /* handlers in slots */
  uint16_t kinds;       /* of slots, four bits each */
  uint32_t waiters;     /* H_WAITER among the handlers */
  uint32_t more, end;   /* in the table of more: the next, one past the last */
  uint32_t gone;        /* H_GONE among those */
} deferred;

static inline deferred *todeferred(lua_State *L, int idx) {
  object *o = toobject(L, idx);
  return o && kindof(o) <= KIND_INLINE ? (deferred *)o : NULL;
}

static inline bool isbody(const deferred *d) {
  return kindof(&d->object) != KIND_DEFERRED;
}

static inline deferred *coop__checkdeferred(lua_State *L, int idx,
                                           const char *fname, int arg) {
  deferred *d = todeferred(L, idx);
  if (!d) coop__typeerror(L, fname, arg, idx, "Deferred");
  return d;
}

/* A new, unfired Deferred. [-0, +1, m] */
deferred *coop__deferred_new(lua_State *L);

/* Fires the Deferred at 'idx', which has not fired, with the value or Failure
   on top, and runs what that reaches. [-1, +0, m] */
void coop__fire(lua_State *L, int idx);
/* The same without running: for who runs it himself. */
void coop__settle(lua_State *L, int idx);
/* The plain Deferred at 'idx' has a state of its own from now on. [-0, +0, -] */
void coop__unfresh(lua_State *L, int idx);
/* Takes the value on top, a Failure or not, as the result. [-1, +0, -] */
static inline void coop__take_result(lua_State *L, int idx, deferred *d, bool failed) {
  d->flags = (uint16_t)((d->flags & ~(D_FAILED | D_HANDLED)) | (failed ? D_FAILED : 0));
  lua_setiuservalue(L, idx, DEFERRED_RESULT);
}
static inline void coop__set_result(lua_State *L, int idx, deferred *d) {
  coop__take_result(L, idx, d, tofailure(L, -1) != NULL);
}

/* How the Deferred at 'idx' stands for who would wait: fired and at rest? */
static inline bool settled(const deferred *d) {
  return (d->flags & (D_FIRED | D_WAITING | D_BUSY)) == D_FIRED &&
         d->pauses == 0 && d->first == d->count;
}

/* The failure that 'd' at 'idx' carries has reached somebody. [-0, +0, -] */
void coop__handled(lua_State *L, int idx);
/* The Deferred at 'idx' comes to rest with a failure that reached nobody: should it
   be collected so, its guard reports it. [-0, +0, m] */
void coop__guard(lua_State *L, int idx, deferred *d);
void coop__unguard(lua_State *L, int idx, deferred *d);

/* d:callback(v), d:errback(e), core.observe(d, f): as in Lua. */
int coop__callback(lua_State *L);
int coop__errback(lua_State *L);
int coop__observe(lua_State *L);

/* Pushes what is to fail a Deferred that would wait on itself. [-0, +1, m] */
void coop__pushcycle(lua_State *L);
/* Pushes the Failure of what was cancelled, or is pending when coop is closed.
   [-0, +1, m] */
void coop__pushcancelled(lua_State *L);

/* --- the run (lrun.c) ------------------------------------------------------------ */

enum { RUN_NEAR = 8 /* interrupted Deferreds that stay on the stack */ };

struct run {
  lua_State *L;
  coop_context *ctx;
  int base;          /* its part of the stack begins above */
  int cur;           /* where the Deferred under way stands: on top */
  deferred *d;       /* that one */
  lua_Integer floor; /* of CTX_WORK: what is above was interrupted by this run */
  deferred *below[RUN_NEAR]; /* what is interrupted, and still on the stack */
};

/* The run goes on with the Deferred 'next' on top, just above the one under way, and
   comes back to that when it has nothing more to do. [-1, +(0|1), m] */
void coop__enter(struct run *r, deferred *next);
/* Fires the body 'd' at 'cur' with what it left on top: a value, a Failure, or a
   Deferred to wait for. [-1, +0, m] */
void coop__body_settle(lua_State *L, int cur, deferred *d);
/* Runs the handlers of the Deferred at 'idx' if it may, and what they reach.
   [-0, +0, m] */
void coop__run(lua_State *L, int idx);
void coop__run_in(lua_State *L, coop_context *ctx, int idx, deferred *d);
/* The same, however deep: a new body runs to its first wait. */
void coop__run_now(lua_State *L, int idx);
/* The same of the one on top, which stays there; some slots of the stack are free. */
void coop__run_top(lua_State *L, coop_context *ctx, deferred *d);
/* The Deferred at 'idx' has a new handler. [-0, +0, m] */
void coop__added(lua_State *L, int idx);
/* Has the Deferred at 'idx' cancelled when what is under way is over. [-0, +0, m] */
void coop__cancel_later(lua_State *L, int idx);
/* Runs what was reached too deep. [-0, +0, m] */
void coop__run_later(lua_State *L);

/* A function that promises that all it reaches has run when it returns begins and
   ends; what nests in it may leave its effects to it. */
static inline bool coop__begin(coop_context *ctx) {
  bool outer = !ctx->calling;
  ctx->calling = true;
  return outer;
}
int coop__end_later(lua_State *L, coop_context *ctx, int n);
/* Ends the C function, with the 'n' results on top. A body that is too deep for
   another run leaves it to the run that it is itself in. */
static inline int coop__end_in(lua_State *L, coop_context *ctx, bool outer, int n) {
  if (!outer) return n;
  ctx->calling = false;
  if (ctx->later_first > ctx->later_last) return n;
  return coop__end_later(L, ctx, n);
}
static inline int coop__end(lua_State *L, bool outer, int n) {
  return coop__end_in(L, getctx(L), outer, n);
}

/* --- who waits on whom (lwaits.c) ------------------------------------------------- */

/* True when the Deferred at 'idx' waits, directly or through others, on the one
   at 'target'. [-0, +0, -] */
bool coop__waitson(lua_State *L, int idx, int target);
void coop__cancel(lua_State *L, int idx);
/* The same, however deep. */
void coop__cancel_now(lua_State *L, int idx);
void coop__pause(lua_State *L, int idx);
void coop__unpause(lua_State *L, int idx);

/* --- the list of handlers (lhandlers.c) ----------------------------------------- */

/* Gives the value on top to the one body that waits on the Deferred at 'idx', which
   no script has: it has not fired then, and may be waited on again. False, and
   nothing is done, when that is not all there is to it. [-(0|1), +0, m] */
bool coop__hand(lua_State *L, int idx);

/* Puts a handler at the end. Pops its value. 'idx' is no relative index.
   [-1, +0, m] */
void coop__append_to(lua_State *L, int idx, deferred *d, handler_kind k);
static inline void coop__append(lua_State *L, int idx, handler_kind k) {
  coop__append_to(L, lua_absindex(L, idx), lua_touserdata(L, idx), k);
}
/* The kind of the handler in slot 'i'; H_MORE when it is the table of more. */
static inline handler_kind slotkind(const deferred *d, int i) {
  return (handler_kind)(d->kinds >> (4 * i) & 15);
}
/* Takes the handler in the first slot off the list and pushes its value.
   [-0, +1, -] */
static inline void coop__take_slot(lua_State *L, int idx, deferred *d) {
  int slot = DEFERRED_SLOT + d->first++;
  lua_getiuservalue(L, idx, slot);
  lua_pushnil(L);
  lua_setiuservalue(L, idx, slot);
}

/* A waiter was put at the end of the Deferred at 'idx', and may be woken from now
   on: what it shares is not held by the pause of another. [-0, +0, m] */
void coop__waited(lua_State *L, int idx);

/* Takes the waiter 'who', which must stand just below the Deferred at 'idx' =
   top, away from it. [-0, +0, m] */
void coop__detach(lua_State *L, int idx, const void *who);
/* Takes the next handler off the list and pushes its value. [-0, +(0|1), -] */
handler_kind coop__take(lua_State *L, int idx, deferred *d);
/* Pushes the first waiter, if it is one of the first three handlers, or wherever
   it stands ('far'). [-0, +(0|1), -] */
bool coop__pushwaiter(lua_State *L, int idx, const deferred *d, bool far);
/* Pushes a list of those that wait on the Deferred at 'idx'. [-0, +1, m] */
void coop__pushwaiters(lua_State *L, int idx);

/* --- fibers and bodies (lfiber.c, lpool.c, lcoroutine.c) ---------------------------- */

enum { FIBER_THREAD = 1, FIBER_INNER, FIBER_WAIT, FIBER_NUV = FIBER_WAIT };

/* A coroutine that coop runs: closed exactly once, then used again. */
struct fiber {
  object object;
  lua_State *co;
  coop_context *ctx; /* NULL once the context is gone */
  coop_link link;   /* in ctx->fibers while it has a body that has not ended, else in
                       the pool if that is idle */
  int32_t place;    /* in the pool that holds it, or 0 */
  bool spent;       /* a script has seen the thread: it is not used again */
  bool waits;       /* suspended in an await */
  bool inner;       /* FIBER_INNER is a list: a wait passed through others */
};

/* Moves the function and its 'nargs' arguments on top to a fiber, which is pushed;
   its thread is to be resumed with nargs + 2 values. [-(nargs+1), +1, m] */
fiber *coop__fiber_new(lua_State *L, int nargs);
/* A fiber to be used, idle or new: the pool holds it. [-0, +0, m] */
fiber *coop__fiber_take(lua_State *L, coop_context *ctx);
/* Has the pool hold it no longer: pushes it. Whoever owns what is suspended in it
   does so from now on. [-0, +1, m] */
void coop__fiber_hold(lua_State *L, coop_context *ctx, fiber *f);
/* Gives the fiber at 'idx' back, or one that the pool still holds; its thread must
   be empty or dead and closed. [-0, +0, m] */
void coop__fiber_give(lua_State *L, int idx);
void coop__fiber_back(lua_State *L, coop_context *ctx, fiber *f);
/* Pushes the error that 'co' died of; its frames, if it was a fiber, are in
   CTX_FRAMES. The thread is closed and empty. [-0, +1, m] */
void coop__fiber_error(lua_State *L, lua_State *co);
/* Makes a fiber. [-0, +1, m] */
fiber *coop__fiber_make(lua_State *L);
/* What stays at the bottom of the thread of a fiber that has run bodies, below what
   the next one returns. */
enum { FIBER_BASE = 2 };
/* Moves the function and its 'nargs' arguments on top to the fiber, for a body; how
   many values its thread is to be resumed with. [-(nargs+1), +0, v] */
int coop__fiber_load(lua_State *L, fiber *f, int nargs);
/* Closes what is suspended in the fiber at 'idx', innermost coroutine first.
   False and the error value on top when a closer failed. [-0, +(0|1), m] */
bool coop__fiber_close(lua_State *L, int idx);
/* Closes a thread: false and the error value on top of L when it, or a closer,
   failed. [-0, +(0|1), m] */
bool coop__close_thread(lua_State *L, lua_State *co);
/* Raises an error where closers have closed others too deep. [-0, +0, v] */
void coop__checkclosing(lua_State *L);
/* What was passed through was passed through for nothing. [-0, +0, -] */
void coop__forget_passed(lua_State *L);
/* Remembers in the fiber at 'idx' what the wait under way passed through. */
void coop__fiber_passed(lua_State *L, int idx);
/* The wait is over: what it passed through may be told apart again. */
void coop__fiber_resumes(lua_State *L, int idx);

/* How a coroutine that is resumed from Lua hands on what it yields. Beginning with
   RESUME_NEXT it is that of a Generator. */
typedef enum resume_mode {
  RESUME_PLAIN,
  RESUME_WRAP,
  RESUME_NEXT,
  RESUME_STEP, /* of a stage's body: waits are told, not passed on */
  RESUME_PULL  /* the same for who pulls from the stage */
} resume_mode;

/* Resumes 'co' with the 'nargs' values on top for a Lua function that does so in
   this mode; stack index 1 holds the thread, or the Generator, and for the last
   two modes index 2 the stage. Ends the C function: returns its number of
   results, or yields a wait onwards. */
int coop__pump(lua_State *L, lua_State *co, int nargs, resume_mode mode);
/* The same when the thread has been resumed, with this status and 'nres' results. */
int coop__pump_on(lua_State *L, lua_State *co, int status, int nres,
                  resume_mode mode);

/* Ends a C function by a yield of 'n' values that means 'signal' to whoever runs L;
   resumed, it returns 'results' values. [-n, +0, e] */
int coop__signal_in(coop_context *ctx, lua_State *L, signal_kind signal, int n,
                    int results);
static inline int coop__signal(lua_State *L, signal_kind signal, int n,
                               int results) {
  return coop__signal_in(getctx(L), L, signal, n, results);
}
/* Raises misuse unless L is a coroutine that coop runs and that may yield. */
void coop__checkwait(lua_State *L, const char *fname);

typedef enum body_state {
  BODY_START,  /* function and arguments are on its thread */
  BODY_RUNS,
  BODY_WAITS,  /* on BODY_WAIT */
  BODY_VALUE,  /* to be resumed with BODY_WAIT */
  BODY_ERROR,  /* to be resumed by raising the value of the Failure BODY_WAIT */
  BODY_PLAIN,  /* to be resumed with what is on its thread */
  BODY_CLOSES,
  BODY_ENDED
} body_state;

typedef struct body {
  deferred d;
  lua_State *co;
  fiber *fiber;      /* BODY_FIBER holds it once it has been suspended */
  uint8_t state;
  bool after;        /* to be resumed after all that was reached too deep */
  bool cancelled;    /* a Coroutine: to be closed as soon as it waits */
  uint16_t cascaded; /* pauses handed on to what it waits on */
  int nargs;         /* values on its thread for START and PLAIN */
} body;

static inline body *tobody(deferred *d) {
  return isbody(d) ? (body *)d : NULL;
}

/* True when the body may be resumed now. */
static inline bool body_ready(const body *b) {
  if (b->state == BODY_START || b->state == BODY_CLOSES) return true;
  return b->state >= BODY_VALUE && b->state <= BODY_PLAIN &&
         (b->d.pauses == 0 || kindof(&b->d.object) == KIND_INLINE);
}

int coop__spawn(lua_State *L); /* coop.spawn(f, ...) */
/* Resumes the body under way once. [-0, +0, m] */
void coop__body_resume(struct run *r);
/* The Deferred 'd' at 'from' has reached the body 'b' at 'cur'. [-0, +0, m] */
void coop__body_wake(lua_State *L, int cur, body *b, int from, deferred *d);

/* A coroutine resumed by L is back while an interrupt is under way, which may
   have been caught inside: arms it for L too. */
void coop__interrupt_again(lua_State *L);

/* Resumes the tracked thread 'co' with 'nargs' values on its top. */
static inline int coop__resume_in(coop_context *ctx, lua_State *L, lua_State *co,
                                  int nargs, int *nres) {
  lua_State *outer = ctx->running;
  int depth = ctx->depth;
  bool calling = ctx->calling;
  coop__runs(ctx, co);
  int status = lua_resume(co, L, nargs, nres);
  if (status == LUA_OK && ctx->signal == SIGNAL_DIED) {
    ctx->signal = SIGNAL_NONE;
    status = LUA_ERRRUN;
  }
  coop__runs(ctx, outer);
  ctx->depth = depth; /* an error may have left runs behind */
  ctx->calling = calling;
  ctx->raising = false;
  if (ctx->interrupt.raised) coop__interrupt_again(L);
  return status;
}
int coop__resume(lua_State *L, lua_State *co, int nargs, int *nres);

/* Puts the functions back that the coroutine library had. [-0, +0, m] */
void coop__restore_library(lua_State *L);

/* --- generators and iterators (lgenerator.c) ------------------------------- */

enum { GENERATOR_BODY = 1 }; /* the function, or its fiber; arguments follow */

typedef enum generator_state {
  GENERATOR_NEW,     /* GENERATOR_BODY is the function, its arguments follow */
  GENERATOR_READY,   /* suspended at a yield; GENERATOR_BODY is the fiber */
  GENERATOR_RUNS,
  GENERATOR_WAITS,   /* suspended in an await */
  GENERATOR_ENDED
} generator_state;

typedef struct generator {
  object object;
  lua_State *co;    /* once started */
  coop_context *ctx;
  const void *user; /* of a stage: the body that pulled from it last */
  int nargs;
  uint8_t state;
  bool many;        /* of a stage: it has given several values, see lflow.c */
} generator;

/* Starts the Generator at 'idx': its thread holds function and arguments.
   [-0, +0, m] */
void coop__generator_start(lua_State *L, int idx);
/* It has ended, in good order or not: closes it. False and the error on top
   when that failed. [-0, +(0|1), m] */
bool coop__generator_finish(lua_State *L, int idx);
/* Closes the iterator at 'idx', if it is of a kind that can be. False and the
   error on top when its cleanup failed. [-0, +(0|1), m] */
bool coop__iterator_close(lua_State *L, int idx);
/* Raises misuse unless the value at 'idx' is an iterator. */
void coop__checkiterator(lua_State *L, int idx, const char *fname, int arg);
/* Marks the thread 'co' as one that a wait stands in, or unmarks it: scripts may not
   resume it meanwhile. [-0, +0, m] */
void coop__mark_passing(lua_State *L, lua_State *co, bool passing);
/* Is the thread at 'idx' one that a script may resume? [-0, +0, -] */
bool coop__isfree(lua_State *L, int idx);

/* --- stages (lflow.c) ------------------------------------------------------- */

/* Resumes the body of a stage. */
int coop__flow_resume(lua_State *L, lua_State *co, int nargs, int *nres);
/* Ends a C function that stepped the body of a stage: its results. */
int coop__flow_outcome(lua_State *L, lua_State *co, int status, int nres,
                       resume_mode mode);
/* Is the value at 'idx' a stage? [-0, +0, -] */
static inline bool coop__isstage(lua_State *L, int idx) {
  if (lua_type(L, idx) != LUA_TTABLE || !lua_getmetatable(L, idx)) return false;
  bool is = lua_topointer(L, -1) == getctx(L)->flow.stage;
  lua_pop(L, 1);
  return is;
}
/* stage(), which can be waited in. */
int coop__flow_pull(lua_State *L);
/* Ends coroutine.yield(stage), outside of the body of a stage: when that is ready
   the turn is given up. */
int coop__flow_yield(lua_State *L);

/* --- tasks (ltask.c, lstepping.c, lcooperator.c) ------------------------------ */

int coop__cooperate(lua_State *L); /* coop.cooperate(iterator) */
int coop__stop_all(lua_State *L);  /* stops all Cooperators */
/* Releases the steps of a host's (lsteps.c) that are the iterator at 'idx'; false
   when that is another. [-0, +0, -] */
bool coop__steps_close(lua_State *L, int idx);

/* The Deferred at 'from' has reached the task at 'idx'. [-0, +0, m] */
void coop__task_wake(lua_State *L, int idx, int from);
void coop__task_stop(lua_State *L, int idx);
/* Stops the task for the Deferred that stands for it, which is not told. False
   and the Failure on top when its cleanup failed. [-0, +(0|1), m] */
bool coop__task_cancel(lua_State *L, int idx);
void coop__task_hold(lua_State *L, int idx, bool hold);
/* The step that a tick of this thread makes, as far as yields must know. */
typedef struct coop_stepping {
  lua_State *co;     /* whose plain yields may return at once, or NULL */
  coop_sched *sched; /* of the Cooperator that ticks, or NULL */
  void *cooperator;
  lua_Integer *n;    /* how many values are in the table that they are stored in, or
                        NULL: they are not */
  lua_Integer left;  /* of a batch: how many more it may have; else 0 */
  const void *owner; /* the task whose table that is */
} coop_stepping;
extern _Thread_local coop_stepping coop__stepping FAST_TLS;
/* Asked by a yield when there is no credit: must the coroutine that is being stepped
   switch? [-0, +0, -] */
bool coop__must_switch(void);
/* The scheduler has something to see to when the step is over: no yield stays. */
static inline void coop__attend(coop_sched *s) {
  coop__stepping.co = NULL;
  coop__sched_take_back(s);
  s->credit = 0;
}
/* One tick of each Cooperator that has one to come. [-0, +0, m] */
void coop__ticks(lua_State *L);

/* --- time (ltime.c) ---------------------------------------------------------- */

void coop__call_cancel(lua_State *L, int idx);
int coop__drop_calls(lua_State *L); /* cancels all of the reactor's */
/* Runs the reactor's due calls. [-0, +0, m] */
void coop__due(lua_State *L);
/* What libuv is to be armed for has changed. [-0, +0, -] */
void coop__rearm(lua_State *L);

/* --- the loop (lreactor.c) ----------------------------------------------------- */

/* Calls the function in the registry at 'key' with the pointer, from a callback of
   libuv's: no error gets out, it is reported. False when there was one. It is to
   set ctx->turning, and when done coop__rearm. [-0, +0, -] */
bool coop__from_loop(coop_context *ctx, const void *key, void *arg);
/* Closes what waits for a descriptor to be readable. [-0, +0, -] */
void coop__watches_shut(coop_context *ctx);

/* One turn of the loop; waits for something to happen when 'wait'. False when nothing
   is left. [-0, +0, v] */
bool coop__turn(lua_State *L, bool wait);
/* Tells of the error value on top of L, which has no closure of coop's. [-1, +0, -] */
void coop__report_in(coop_context *ctx, lua_State *L);
/* Is the budget of coop_poll used up? */
static inline bool coop__overdue(const coop_context *ctx) {
  return ctx->until < HUGE_VAL && coop__now() >= ctx->until;
}
/* core.turn_once(wait): one turn of libuv's loop; false when nothing is left. */
int coop__turn_once(lua_State *L);

/* --- sockets (lnet.c) ----------------------------------------------------------- */

/* Who waits for the Connection at 'at' with the Deferred at 'd' does so no more. */
void coop__connection_forget(lua_State *L, int at, int d);
/* Closes all sockets of a context that is being closed. */
void coop__net_shut(coop_context *ctx);

/* The Connection or Listener that the handle is of, or NULL. */
const object *coop__net_owner(const coop_context *ctx, const uv_handle_t *h);

/* --- the census (lcensus.c) ------------------------------------------------------- */

/* Has any context ever had its census on? That costs less to ask than a context. */
extern atomic_bool coop__census_taken;
static inline bool coop__counted(lua_State *L) {
  return atomic_load_explicit(&coop__census_taken, memory_order_relaxed) &&
         getctx(L)->census;
}

/* Keeps where the script stands as the place where the object at 'idx' was made, or
   where the coroutine was started. [-0, +0, m] */
void coop__note_made(lua_State *L, int idx);
void coop__note_started(lua_State *L, lua_State *co);
/* Pushes where the object at 'idx' was made, or nil: the census was off. [-0, +1, -] */
void coop__pushmade(lua_State *L, int idx);
/* What is at 'to' counts as made where the object at 'from' was. [-0, +0, m] */
void coop__note_as(lua_State *L, int from, int to);
/* The coroutine is being collected while it waits. [-0, +0, m] */
void coop__note_lost(lua_State *L, lua_State *co);

/* --- C modules beside coop (loutside.c) --------------------------------------- */

/* Has them close what they have on the loop. */
void coop__outside_shut(coop_context *ctx);

/* --- the terminal (lscreen.c) --------------------------------------------------- */

/* Something is shown below the output from now on: 'erase' is called before
   anything is printed, also when it is not there at that moment. False, and nothing
   is done, when something else is. [-0, +0, m] */
bool coop__show_below(lua_State *L, void (*erase)(void));
void coop__show_no_more(lua_State *L, void (*erase)(void));
/* Ends the line that the output since coop__show_below has left open. */
void coop__end_line(void);
/* May what is written to the descriptor have colours? (NO_COLOR) */
bool coop__colours(int fd);
/* Leaves what a closing context shows. */
void coop__screen_shut(lua_State *L);

/* --- open functions, called by lmodule.c with the module and core tables at
       1 and 2; each leaves the stack as found. [-0, +0, m] */
void coop__open_failure(lua_State *L);
void coop__open_deferred(lua_State *L);
void coop__open_waits(lua_State *L);
/* The methods of Deferreds are all there, those made in Lua too. */
void coop__seal_deferred(lua_State *L);
void coop__open_fiber(lua_State *L);
void coop__open_coroutine(lua_State *L);
void coop__open_generator(lua_State *L);
void coop__open_cooperator(lua_State *L);
void coop__open_time(lua_State *L);
void coop__open_reactor(lua_State *L);
void coop__open_net(lua_State *L);
void coop__open_luv(lua_State *L);
void coop__open_outside(lua_State *L);
void coop__open_flow(lua_State *L);
void coop__open_screen(lua_State *L);
void coop__open_census(lua_State *L);

/* Registers functions in the table on top, the context as their upvalue. */
void coop__setfuncs(lua_State *L, const luaL_Reg *l);
/* Fills the metatable of kind 'k': methods are its __index. [-0, +0, m] */
void coop__newtype(lua_State *L, kind k, const luaL_Reg *methods,
                   const luaL_Reg *meta);
/* --- interrupts (linterrupt.c) ------------------------------------------------ */

/* os.exit was called in 'co', which waits to be resumed: pushes the error to be
   raised there. [-0, +1, m] */
void coop__exit_in(lua_State *L, lua_State *co);
void coop__open_interrupt(lua_State *L);
/* A body that waits has it raised by other means. */
void coop__interrupt_told(coop_context *ctx);
/* What it was raised in has been unwound: no more of it. */
void coop__interrupt_over(coop_context *ctx);
/* None is accepted any more, and nobody is at it. */
void coop__interrupts_end(coop_context *ctx);

/* --- posts (lreactor.c) and threads (lthreads.c) ------------------------------ */

/* A call from another thread: fn(L, ud) in the thread of the loop. */
typedef struct posted {
  coop_post_item item;
  void (*fn)(lua_State *L, void *ud);
  void *ud;
  bool owned; /* freed when it is over */
} posted;

/* Have calls been posted that are yet to be made? */
bool coop__posts_left(const coop_context *ctx);
/* Makes the calls that have been posted, each protected. [-0, +0, -] */
void coop__run_posts(coop_context *ctx);
/* All of them, when the queue is closed. */
void coop__run_last_posts(coop_context *ctx);
/* Stops all threads and waits for them, but not for long; every job gets an
   outcome. [-0, +0, -] */
void coop__threads_stop(coop_context *ctx);
void coop__open_threads(lua_State *L);

/* --- for hosts (lapi.c) ----------------------------------------------------- */

/* Calls f with the pointer and the 'nargs' arguments on top for a host: it may use
   CTX, and no error gets out. [-nargs, +nres|1, -] */
int coop__host_call(lua_State *L, lua_CFunction f, const void *arg, int nargs,
                    int nres);
void coop__open_api(lua_State *L);
/* The handles of a state are older than any context, and so finalised after them.
   [-0, +0, m] */
void coop__open_handles(lua_State *L);
/* Makes the handle of the context. [-0, +0, m] */
void coop__open_handle(lua_State *L);

/* --- the end (lclose.c) ------------------------------------------------------- */

/* Does something of coop's run at this moment, so that it cannot be closed? */
bool coop__inside(const coop_context *ctx);
/* Something has returned: closes the context if that was asked for. */
void coop__close_asked(coop_context *ctx);

/* --- the context (lmodule.c) ---------------------------------------------------- */

/* The context of the state, or NULL. [-0, +0, -] */
coop_context *coop__find(lua_State *L);
/* Opens coop in the state: the context stays in the registry. [-0, +0, e] */
coop_context *coop__open(lua_State *L, uv_loop_t *uv);
/* Closes the loop; what is left of the context does nothing any more. */
void coop__shut(coop_context *ctx);

#endif
