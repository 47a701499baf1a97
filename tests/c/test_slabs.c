/*
** test_slabs.c - cells of all sizes, beside a model: what each block holds.
*/
#include <stdlib.h>
#include <string.h>

#include "core/slabs.h"
#include "unit.h"

enum { BLOCKS = 4000, OPERATIONS = 400000, MOST = 1500, SLAB = 1 << 16 };

static bool refuse; /* memory for slabs, and for what is larger than a cell */

void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_malloc(size_t n) { return refuse ? NULL : __real_malloc(n); }

void *__real_aligned_alloc(size_t alignment, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n) {
  return refuse ? NULL : __real_aligned_alloc(alignment, n);
}

typedef struct block {
  unsigned char *p;
  size_t size;
  unsigned char mark;
} block;

typedef struct fixture {
  coop_slabs *h;
  uint64_t seed;
  block blocks[BLOCKS];
} fixture;

static fixture f;

static int setup(void **state) {
  memset(&f, 0, sizeof f);
  f.seed = 88172645463325252u;
  f.h = coop__slabs_new();
  *state = &f;
  refuse = false;
  return f.h ? 0 : -1;
}

static int teardown(void **state) {
  (void)state;
  refuse = false;
  for (int i = 0; i < BLOCKS; i++)
    coop__slabs_alloc(f.h, f.blocks[i].p, f.blocks[i].size, 0);
  coop__slabs_free(f.h);
  return 0;
}

static void assert_whole(const block *b, size_t n) {
  for (size_t i = 0; i < n; i++) assert_int_equal(b->p[i], b->mark);
}

/* Makes the block as large as 'size', which may be 0. False when that is refused:
   then nothing of it has changed. */
static bool resize(block *b, size_t size) {
  unsigned char *p = coop__slabs_alloc(f.h, b->p, b->p ? b->size : 5, size);
  if (!p && size) {
    assert_whole(b, b->size);
    return false;
  }
  assert_int_equal((uintptr_t)p % sizeof(void *), 0);
  b->p = p;
  assert_whole(b, b->size < size ? b->size : size);
  b->mark = (unsigned char)draw(&f.seed, 256);
  b->size = size;
  if (p) memset(p, b->mark, size);
  return true;
}

static size_t any_size(void) {
  size_t most = draw(&f.seed, 4) ? 100 : MOST;
  return draw(&f.seed, 3) ? 1 + draw(&f.seed, most) : 0;
}

/* Blocks of all sizes come, change their size and go; none touches another. */
static void blocks_are_apart(void **state) {
  (void)state;
  for (int i = 0; i < OPERATIONS; i++)
    assert_true(resize(&f.blocks[draw(&f.seed, BLOCKS)], any_size()));
  for (int i = 0; i < BLOCKS; i++) assert_whole(&f.blocks[i], f.blocks[i].size);
}

/* What is given back is used again: so many bytes held, however often. */
static void cells_are_used_again(void **state) {
  (void)state;
  for (int round = 0; round < 50; round++) {
    for (int i = 0; i < BLOCKS; i++) assert_true(resize(&f.blocks[i], 136));
    for (int i = 0; i < BLOCKS; i++) assert_true(resize(&f.blocks[i], 0));
  }
  assert_true(coop__slabs_held(f.h) <= (size_t)16 * SLAB);
}

/* Memory goes back to the system: all but a slab for each size that was used. */
static void empty_regions_go_back(void **state) {
  (void)state;
  enum { MANY = 200000 };
  void **all = calloc(MANY, sizeof *all);
  assert_non_null(all);
  for (int i = 0; i < MANY; i++) {
    all[i] = coop__slabs_alloc(f.h, NULL, 0, 100);
    assert_non_null(all[i]);
  }
  size_t most = coop__slabs_held(f.h);
  assert_true(most >= (size_t)MANY * 104 && most <= (size_t)MANY * 104 * 11 / 10);
  for (int i = 0; i < MANY; i++) coop__slabs_alloc(f.h, all[(i * 7919) % MANY], 100, 0);
  free(all);
  assert_true(coop__slabs_held(f.h) <= (size_t)16 * SLAB);
}

/* Without memory a block stays as it is; a smaller one can be had all the same. */
static void refusal_changes_nothing(void **state) {
  (void)state;
  block *b = &f.blocks[0];
  assert_true(resize(b, 200));
  refuse = true;
  assert_false(resize(&f.blocks[1], 5000));
  assert_false(resize(b, 5000));
  while (resize(&f.blocks[2 + draw(&f.seed, BLOCKS - 2)], 300)) continue;
  assert_false(resize(b, 300));
  assert_true(resize(b, 20));
  assert_int_equal(b->size, 20);
  refuse = false;
  assert_true(resize(b, 300));
  assert_true(resize(b, 5000));
  refuse = true;
  assert_true(resize(b, 0));
}

static void nothing_without_memory(void **state) {
  (void)state;
  refuse = true;
  assert_null(coop__slabs_alloc(f.h, NULL, 0, 8));
  assert_null(coop__slabs_alloc(f.h, NULL, 0, 0));
  refuse = false;
  assert_true(resize(&f.blocks[0], 8));
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(blocks_are_apart, setup, teardown),
    cmocka_unit_test_setup_teardown(cells_are_used_again, setup, teardown),
    cmocka_unit_test_setup_teardown(empty_regions_go_back, setup, teardown),
    cmocka_unit_test_setup_teardown(refusal_changes_nothing, setup, teardown),
    cmocka_unit_test_setup_teardown(nothing_without_memory, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
