/*
** test_list.c - the ring of links.
*/
#include <string.h>

#include "core/list.h"
#include "unit.h"

enum { ITEMS = 8, OPERATIONS = 100000 };

typedef struct item {
  char name;
  coop_link link;
} item;

/* A ring and links to put into it, each with a letter for a name. */
typedef struct fixture {
  coop_link ring;
  item items[ITEMS];
} fixture;

static int setup(void **state) {
  static fixture f;
  coop__link_init(&f.ring);
  for (int i = 0; i < ITEMS; i++) {
    f.items[i].name = (char)('A' + i);
    coop__link_init(&f.items[i].link);
  }
  *state = &f;
  return 0;
}

/* Every link is its neighbours' neighbour; the names, in order, are these. */
static void assert_ring(const coop_link *ring, const char *names) {
  char found[ITEMS + 1];
  size_t n = 0;
  const coop_link *l = ring;
  do {
    assert_ptr_equal(l->next->prev, l);
    assert_ptr_equal(l->prev->next, l);
    l = l->next;
    if (l != ring) {
      assert_true(n < ITEMS);
      found[n++] = coop_container(l, item, link)->name;
    }
  } while (l != ring);
  found[n] = '\0';
  assert_string_equal(found, names);
}

static void append(fixture *f, int n) {
  for (int i = 0; i < n; i++)
    coop__link_insert(&f->ring, &f->items[i].link);
}

static void a_link_alone_is_an_empty_list(void **state) {
  fixture *f = *state;
  assert_true(coop__link_alone(&f->ring));
  assert_ring(&f->ring, "");
}

static void before_the_head_is_the_end(void **state) {
  fixture *f = *state;
  append(f, 3);
  assert_ring(&f->ring, "ABC");
  assert_false(coop__link_alone(&f->ring));
  assert_false(coop__link_alone(&f->items[0].link));
}

static void a_link_is_put_before_any_other(void **state) {
  fixture *f = *state;
  append(f, 3);
  coop__link_insert(&f->items[0].link, &f->items[3].link);
  coop__link_insert(&f->items[2].link, &f->items[4].link);
  assert_ring(&f->ring, "DABEC");
}

static void removing_closes_the_gap(void **state) {
  fixture *f = *state;
  append(f, 5);
  coop__link_remove(&f->items[2].link);
  assert_ring(&f->ring, "ABDE");
  coop__link_remove(&f->items[0].link);
  coop__link_remove(&f->items[4].link);
  assert_ring(&f->ring, "BD");
  assert_true(coop__link_alone(&f->items[2].link));
}

static void removing_twice_is_harmless(void **state) {
  fixture *f = *state;
  append(f, 3);
  coop__link_remove(&f->items[1].link);
  coop__link_remove(&f->items[1].link);
  assert_ring(&f->ring, "AC");
}

static void removing_the_last_leaves_an_empty_list(void **state) {
  fixture *f = *state;
  append(f, 1);
  coop__link_remove(&f->items[0].link);
  assert_true(coop__link_alone(&f->ring));
}

static void what_was_removed_may_come_back(void **state) {
  fixture *f = *state;
  append(f, 3);
  coop__link_remove(&f->items[0].link);
  coop__link_insert(&f->ring, &f->items[0].link);
  assert_ring(&f->ring, "BCA");
}

static void removing_the_head_leaves_a_ring_without_one(void **state) {
  fixture *f = *state;
  append(f, 3);
  coop__link_remove(&f->ring);
  assert_true(coop__link_alone(&f->ring));
  assert_ring(&f->items[0].link, "BC");
}

/* The model is the string of names. */
static void random_operations_agree_with_a_string(void **state) {
  fixture *f = *state;
  char names[ITEMS + 1] = "";
  uint64_t seed = 1;
  for (int i = 0; i < OPERATIONS; i++) {
    item *it = &f->items[draw(&seed, ITEMS)];
    char *at = strchr(names, it->name);
    if (at) {
      coop__link_remove(&it->link);
      memmove(at, at + 1, strlen(at));
    } else {
      size_t n = strlen(names), place = draw(&seed, n + 1);
      coop_link *before = place == n ? &f->ring
                                     : &f->items[names[place] - 'A'].link;
      coop__link_insert(before, &it->link);
      memmove(names + place + 1, names + place, n - place + 1);
      names[place] = it->name;
    }
    assert_ring(&f->ring, names);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup(a_link_alone_is_an_empty_list, setup),
    cmocka_unit_test_setup(before_the_head_is_the_end, setup),
    cmocka_unit_test_setup(a_link_is_put_before_any_other, setup),
    cmocka_unit_test_setup(removing_closes_the_gap, setup),
    cmocka_unit_test_setup(removing_twice_is_harmless, setup),
    cmocka_unit_test_setup(removing_the_last_leaves_an_empty_list, setup),
    cmocka_unit_test_setup(what_was_removed_may_come_back, setup),
    cmocka_unit_test_setup(removing_the_head_leaves_a_ring_without_one, setup),
    cmocka_unit_test_setup(random_operations_agree_with_a_string, setup),
  };
  return cmocka_run_group_tests_name("list", tests, NULL, NULL);
}
