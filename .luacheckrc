std = 'lua54'
max_line_length = 100
exclude_files = { 'build*', 'docs/meta' }

-- To-be-closed variables are used by being there.
ignore = { '211/cleanup', '211/held', '211/_.+' }

files['tests/spec'].std = 'lua54+busted'
files['tests/command'].std = 'lua54+busted'

-- Examples of specs as a user writes them; the assertions are those of coop.testing.
files['examples/testing'].std = 'lua54+busted'
files['examples/testing'].read_globals = {
  assert = { other_fields = true },
}
