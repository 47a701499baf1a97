--- What the specs share.

local assert = require 'luassert'
local coop = require 'coop'
local testing = require 'coop.testing'

local M = {}

testing.timeout(120) -- for sanitized builds on busy machines

--- Wraps a test that waits: the loop runs until `f` is done.
M.run = testing.async

--- For `before_each`: what follows is not run by a callback of an earlier test, in which a test
--- waited: such calls within it may leave effects to that one.
M.fresh = M.run(function() coop.await(coop.sleep(0)) end)

--- The list of what a both-handler at the end of `d` sees, `n` set.
function M.cap(d)
  local seen = { n = 0 }
  d:add_both(function(result)
    seen.n = seen.n + 1
    seen[seen.n] = result
  end)
  return seen
end

--- A Deferred that never fires, for a test that leaves on purpose what waits for it.
function M.forever()
  testing.may_leave 'wait'
  return coop.Deferred()
end

--- The value of `d`, which has fired with one.
M.value_of = testing.success_result_of

--- The error value and the Failure of `d`, which has failed.
function M.error_of(d)
  local failure = testing.failure_result_of(d)
  return failure.value, failure
end

--- Asserts that `d` has no result.
M.pending = testing.assert_no_result

--- Asserts that `class` was meant: `e` is an instance whose message has every one of the texts.
function M.is_error(class, e, ...)
  if not class:is(e) then
    error(('expected a %s, got %s'):format(tostring(class), tostring(e)), 2)
  end
  for _, text in ipairs { ... } do
    assert.truthy(e.message:find(text, 1, true), ('no %q in %q'):format(text, e.message))
  end
  return e
end

--- Asserts that `f` raises an instance of `class` whose message has every one of the texts.
function M.raises(class, f, ...)
  local ok, e = pcall(f)
  assert.is_false(ok, 'no error was raised')
  return M.is_error(class, e, ...)
end

--- Asserts that `f` raises a string that has every one of the texts, plain.
function M.misuse(f, ...)
  local ok, e = pcall(f)
  assert.is_false(ok, 'no error was raised')
  assert.equal('string', type(e), tostring(e))
  for _, text in ipairs { ... } do
    assert.truthy(e:find(text, 1, true), ('no %q in %q'):format(text, e))
  end
  return e
end

local function collect()
  collectgarbage()
  collectgarbage()
end

--- The failures that are reported while `f` runs and when its garbage is collected.
function M.unhandled(f)
  local seen = {}
  collect()
  local previous = coop.on_unhandled(function(failure) seen[#seen + 1] = failure end)
  local ok, e = pcall(f)
  collect()
  coop.on_unhandled(previous)
  if not ok then error(e, 0) end
  return seen
end

--- For `before_each` and `after_each`: garbage of this test alone is looked at, and all of it.
M.watch, M.settled = collect, collect

--- One error value of every type, with its name.
function M.values()
  local list = {
    { 'nil', nil }, { 'false', false }, { 'true', true },
    { 'an integer', 42 }, { 'a float', 1.5 }, { 'a string', 'text' },
    { 'a table', {} }, { 'a table with a metatable', setmetatable({}, {}) },
    { 'a function', function() end }, { 'a coroutine', coroutine.create(print) },
    { 'a userdata', io.stderr }, { 'an error object', coop.errors.TimeoutError 'slow' },
  }
  local i = 0
  return function()
    i = i + 1
    if list[i] then return list[i][1], list[i][2] end
  end
end

return M
