/*
** unit.h - cmocka with what it wants included first, and numbers drawn by lot.
*/
#ifndef COOP_TEST_UNIT_H
#define COOP_TEST_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* A number below 'n'. The same 'seed' (not 0) gives the same numbers. */
static inline size_t draw(uint64_t *seed, size_t n) {
  *seed ^= *seed << 13;
  *seed ^= *seed >> 7;
  *seed ^= *seed << 17;
  return (size_t)(*seed >> 11) % n;
}

#endif
