/*
** assert.h - in the place of the standard one, for the core under test: what an
** assertion refuses is cmocka's to catch, in release builds too.
*/
#undef assert
#define assert(e) mock_assert((e) != 0, #e, __FILE__, __LINE__)

#ifndef COOP_TEST_ASSERT_H
#define COOP_TEST_ASSERT_H

void mock_assert(const int result, const char *const expression,
                 const char *const file, const int line);

#endif
