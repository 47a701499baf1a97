/*
** load.c - round trips over connections on loopback, as many as there can be.
**     load PORT CONNECTIONS SECONDS echo [BYTES, 64]
**     load PORT CONNECTIONS SECONDS http [PATH, /]
** Each connection sends its message, waits for all of the answer, and sends again.
** Prints  round trips<TAB>a second<TAB>median<TAB>99th percentile  (microseconds),
** those of the first quarter of a second counted in the first figure only.
*/
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE_MAX = 65536, LONGEST = 1000000 /* microseconds that are told apart */ };

typedef struct peer {
  int fd;
  size_t got, expected; /* bytes of the answer; 0: its head is not all here */
  double sent;
  char head[1024];
} peer;

static char message[MESSAGE_MAX], block[MESSAGE_MAX];
static size_t size;
static bool http;
static unsigned counts[LONGEST + 1];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void ask(peer *p) {
  p->got = 0;
  p->expected = http ? 0 : size;
  p->sent = now();
  if (send(p->fd, message, size, MSG_NOSIGNAL) != (ssize_t)size) fail("send");
}

/* The servers may not be listening yet. */
static void open_peer(peer *p, int epoll, int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = p};
  int on = 1;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  for (int tries = 0;; tries++) {
    p->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (p->fd < 0) fail("socket");
    if (connect(p->fd, (struct sockaddr *)&a, sizeof a) == 0) break;
    if (tries == 500) fail("connect");
    close(p->fd);
    usleep(10000);
  }
  setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  epoll_ctl(epoll, EPOLL_CTL_ADD, p->fd, &e);
}

/* Looks for the end of the head, and in it for the length of the body. */
static void take_head(peer *p, size_t n) {
  if (p->got + n >= sizeof p->head) fail("the head is too long");
  memcpy(p->head + p->got, block, n);
  p->head[p->got + n] = '\0';
  char *end = strstr(p->head, "\r\n\r\n");
  if (!end) return;
  char *length = strcasestr(p->head, "content-length:");
  if (!length || strncmp(p->head, "HTTP/1.1 200", 12) != 0) fail(p->head);
  p->expected = (size_t)(end + 4 - p->head) + strtoul(length + 15, NULL, 10);
}

/* True when all of the answer is here. */
static bool take(peer *p) {
  ssize_t n = recv(p->fd, block, sizeof block, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (n <= 0) fail("recv");
  if (!p->expected) take_head(p, (size_t)n);
  p->got += (size_t)n;
  return p->expected && p->got >= p->expected;
}

static int percentile(unsigned long total, double part) {
  unsigned long seen = 0;
  for (int i = 0; i <= LONGEST; i++)
    if ((double)(seen += counts[i]) >= (double)total * part) return i;
  return -1;
}

static void measure(int epoll, double seconds) {
  unsigned long all = 0, counted = 0;
  double begin = now() + 0.25, end = begin + seconds, t;
  struct epoll_event events[512];
  while ((t = now()) < end) {
    int n = epoll_wait(epoll, events, 512, 1000);
    for (int i = 0; i < n; i++) {
      peer *p = events[i].data.ptr;
      if (!take(p)) continue;
      all++;
      if (t >= begin) {
        double us = (now() - p->sent) * 1e6;
        counts[us < LONGEST ? (int)us : LONGEST]++;
        counted++;
      }
      ask(p);
    }
  }
  printf("%lu\t%.0f\t%d\t%d\n", all, (double)counted / (t - begin),
         percentile(counted, 0.5), percentile(counted, 0.99));
}

int main(int argc, char **argv) {
  if (argc < 5) {
    fprintf(stderr, "usage: load PORT CONNECTIONS SECONDS echo|http [BYTES|PATH]\n");
    return 2;
  }
  int port = atoi(argv[1]), count = atoi(argv[2]), epoll = epoll_create1(0);
  peer *peers = calloc((size_t)count, sizeof *peers);
  http = strcmp(argv[4], "http") == 0;
  if (http) {
    size = (size_t)snprintf(message, sizeof message, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n",
                            argc > 5 ? argv[5] : "/");
  } else {
    size = argc > 5 ? strtoul(argv[5], NULL, 10) : 64;
    if (size == 0 || size > MESSAGE_MAX) return 2;
    memset(message, 'x', size);
  }
  for (int i = 0; i < count; i++) open_peer(&peers[i], epoll, port);
  for (int i = 0; i < count; i++) ask(&peers[i]);
  measure(epoll, atof(argv[3]));
  return 0;
}
