/*
** libuv.c - an echo server in C on libuv's streams: libuv PORT
** A block is read into a buffer that is written as it is and then used again.
*/
#define _POSIX_C_SOURCE 200809L

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <uv.h>

enum { BLOCK = 65536, SPARE = 64 };

typedef struct answer {
  uv_write_t request;
  uv_buf_t buf;
  char block[BLOCK];
} answer;

static answer *spare[SPARE];
static int spares;

static answer *take_answer(void) {
  return spares > 0 ? spare[--spares] : malloc(sizeof(answer));
}

static void give_back(answer *a) {
  if (spares < SPARE) spare[spares++] = a;
  else free(a);
}

static answer *of(const uv_buf_t *buf) {
  return (answer *)(void *)(buf->base - offsetof(answer, block));
}

static void on_closed(uv_handle_t *h) { free(h); }

static void on_alloc(uv_handle_t *h, size_t wanted, uv_buf_t *buf) {
  (void)h, (void)wanted;
  answer *a = take_answer();
  *buf = a ? uv_buf_init(a->block, BLOCK) : uv_buf_init(NULL, 0);
}

static void on_written(uv_write_t *request, int status) {
  (void)status;
  give_back((answer *)(void *)request);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
  if (n > 0) {
    answer *a = of(buf);
    a->buf = uv_buf_init(a->block, (unsigned)n);
    if (uv_write(&a->request, stream, &a->buf, 1, on_written) == 0) return;
  }
  if (buf->base) give_back(of(buf));
  if (n < 0) uv_close((uv_handle_t *)stream, on_closed);
}

static void on_connection(uv_stream_t *server, int status) {
  uv_tcp_t *peer = malloc(sizeof *peer);
  if (status < 0 || !peer) return;
  uv_tcp_init(server->loop, peer);
  if (uv_accept(server, (uv_stream_t *)peer) != 0) {
    uv_close((uv_handle_t *)peer, on_closed);
    return;
  }
  uv_tcp_nodelay(peer, 1);
  uv_read_start((uv_stream_t *)peer, on_alloc, on_read);
}

int main(int argc, char **argv) {
  struct sockaddr_in address;
  uv_tcp_t server;
  uv_ip4_addr("127.0.0.1", argc > 1 ? atoi(argv[1]) : 7000, &address);
  uv_tcp_init(uv_default_loop(), &server);
  uv_tcp_bind(&server, (const struct sockaddr *)&address, 0);
  int e = uv_listen((uv_stream_t *)&server, 511, on_connection);
  if (e) {
    fprintf(stderr, "listen: %s\n", uv_strerror(e));
    return 1;
  }
  return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
