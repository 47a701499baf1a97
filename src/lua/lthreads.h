/*
** lthreads.h - pools of threads, their jobs and streams.
**
** Who may touch what: a pool's queue, workers and counts under its mutex; a job
** by the thread that has it (the loop's before it is queued and after it is
** done, its worker's in between) but for 'link' and 'state', which are under the
** mutex of the pool, and 'flight' and 'dropped', which are the loop's.
*/
#ifndef LTHREADS_H
#define LTHREADS_H

#include "core/list.h"
#include "lcoop.h"
#include "lcopy.h"

typedef struct stream stream;

typedef struct pool {
  coop_link link;      /* in the context's pools; the loop's */
  uv_mutex_t mutex;
  uv_cond_t work;      /* there is a job, or the end */
  uv_cond_t gone;      /* a worker has ended */
  coop_link queue;     /* of jobs */
  coop_link workers;
  size_t queued, most; /* jobs in the queue, and how many there may be */
  unsigned idle, count, limit; /* workers */
  unsigned holders;    /* the context, the userdata, the workers, the jobs */
  bool ending;         /* workers end when the queue is empty */
  bool stopping;       /* and now */
  coop_posts *posts;
  /* the loop's: */
  coop_link flights;   /* jobs that have not come back */
  bool closed;         /* takes no more jobs */
  bool awaited;        /* close() waits, and holds the loop */
} pool;

typedef enum job_state {
  JOB_QUEUED,
  JOB_RUNS,
  JOB_REFUSED /* the pool was closed before */
} job_state;

typedef struct job {
  coop_link link;   /* in the queue of its pool */
  coop_link flight; /* in the flights of its pool */
  posted post;      /* says that it is done */
  pool *pool;
  stream *stream;   /* what it fills, or NULL */
  bytes in;         /* function and arguments */
  int nin;
  bytes out;        /* the result, or the error value */
  char *trace;      /* of the error, or NULL */
  bool failed;
  bool stopped;     /* that is because the context ends */
  bool dropped;     /* nobody waits for it any more */
  job_state state;
} job;

/* What the context has of threads. */
typedef struct threads {
  coop_link pools;
  bool closing;   /* no more jobs are taken */
  pool *common;   /* that of threads.call, or NULL */
  bytes scratch;  /* being filled with the values of a job */
} threads;

typedef enum worker_end {
  GO_ON,
  EXIT, /* it has called os.exit */
  STOP  /* the context ends */
} worker_end;

/* What a thread is: a state of its own, and one job after the other. */
typedef struct worker {
  coop_link link;
  pool *pool;
  job *job;           /* what it does, under the pool's mutex */
  lua_State *L;       /* made with the first job */
  uv_mutex_t mutex;   /* over the next two */
  lua_State *running; /* the coroutine that runs now, NULL between jobs */
  worker_end end;     /* is the job to end? */
  bytes scratch;      /* being filled with a result */
  char *trace;        /* of the error under way */
  char *path, *cpath; /* where its state looks for modules */
} worker;

/* The worker that runs the state of L. */
static inline worker *coop__worker(lua_State *L) {
  return *(worker **)lua_getextraspace(L);
}

/* In the worker's state, for a job that fills a stream: pushes the function that
   does so and its first argument. [-0, +2, e] */
void coop__push_producer(lua_State *L, stream *s);

/* Makes a job of the function and arguments at 'first'..top, and queues it; what
   stands at index i is argument i - self of 'fname'. A stream becomes the job's.
   NULL when no thread can be started. [-0, +0, v] */
job *coop__job_start(lua_State *L, pool *p, int first, int self, stream *s,
                     const char *fname);
/* The Failure of a job that has failed. [-0, +1, m] */
void coop__push_failure(lua_State *L, const bytes *value, const char *trace);

/* A pool of up to 'limit' threads, held by the context and once more. */
pool *coop__pool_new(lua_State *L, unsigned limit, size_t most);
pool *coop__checkpool(lua_State *L, int idx, const char *fname, int arg);
/* The workers end when the queue is empty. */
void coop__pool_end(pool *p);
void coop__pool_release(pool *p);

/* The job is done: its stream takes what it left. Any error is the caller's. */
void coop__stream_done(lua_State *L, stream *s, job *j);
bool coop__stream_closed(stream *s);
/* From now on the stream's producer finds it closed. */
void coop__stream_stop(stream *s);
/* Nothing more will come of it: who waits gets the Failure on top. [-1, +0, m] */
void coop__stream_fail(lua_State *L, stream *s);
void coop__stream_hold(stream *s);
void coop__stream_release(stream *s);
void coop__open_streams(lua_State *L);

#endif
