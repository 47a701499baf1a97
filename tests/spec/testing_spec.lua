--- coop.testing: results, assertions and time. What it does with busted is told by
--- tests/command/testing_spec.lua.

local coop = require 'coop'
local testing = require 'coop.testing'
local h = require 'tests.spec.helper'

local TimeoutError = coop.errors.TimeoutError

-- Asserts that `f` fails with a message that has every one of the texts.
local function fails(f, ...)
  local ok, e = pcall(f)
  assert.is_false(ok, 'it did not fail')
  local message = type(e) == 'table' and e.message or e
  for _, text in ipairs { ... } do
    assert.truthy(message:find(text, 1, true), ('no %q in %q'):format(text, message))
  end
  assert.truthy(message:find '^[^\n]*testing_spec%.lua:%d+: ', 'no place in ' .. message)
end

local function failed(value)
  local d = coop.Deferred()
  d:errback(value)
  return d
end

local function waiting()
  testing.may_leave 'wait'
  local d = coop.Deferred()
  return d, coop.spawn(function() return coop.await(d) end)
end

describe('success_result_of', function()
  it('returns the value, and leaves it where it is', function()
    local d = coop.succeed 'x'
    assert.equal('x', testing.success_result_of(d))
    assert.equal('x', testing.success_result_of(d))
    assert.is_nil(testing.success_result_of(coop.succeed()))
    assert.is_false(testing.success_result_of(coop.succeed(false)))
  end)

  it('fails when there is none, telling where its coroutine waits', function()
    local d, body = waiting()
    fails(function() testing.success_result_of(d) end, 'to have fired with a value',
      'but it has no result yet')
    fails(function() testing.success_result_of(body) end,
      'its coroutine waits here, for a Deferred')
    d:callback(1)
    assert.equal(1, testing.success_result_of(body))
    fails(function() testing.success_result_of(coop.succeed():add_callback(coop.Deferred)) end,
      'no result yet')
  end)

  it('fails with the traceback of a failure, which is handled then', function()
    fails(function() testing.success_result_of(failed 'oops') end, 'but it failed:\n  oops\n',
      'testing_spec.lua', "in function 'failed'")
  end)

  it('fails while the Deferred is paused', function()
    local d = coop.succeed(1)
    d:pause()
    fails(function() testing.success_result_of(d) end, 'but it is paused')
    d:unpause()
    assert.equal(1, testing.success_result_of(d))
  end)

  it('takes nothing else', function()
    h.misuse(function() testing.success_result_of(3) end, 'success_result_of', 'Deferred expected')
  end)
end)

describe('failure_result_of', function()
  it('returns the Failure, which is handled then', function()
    local failure = testing.failure_result_of(failed 'oops')
    assert.equal('oops', failure.value)
    local e = TimeoutError 'late'
    assert.equal(e, testing.failure_result_of(failed(e), TimeoutError).value)
    assert.equal(e, testing.failure_result_of(failed(e), 'no such', TimeoutError).value)
    assert.equal(e, testing.failure_result_of(failed(e), 'late').value)
  end)

  it('fails when it matches nothing that was expected', function()
    fails(function() testing.failure_result_of(failed 'oops', TimeoutError, 'other') end,
      'to have failed with coop.errors.TimeoutError or other, but it failed:\n  oops')
  end)

  it('fails when there is a value, or nothing yet', function()
    fails(function() testing.failure_result_of(coop.succeed { 1 }) end,
      'to have failed, but it fired with:', '[1] = 1')
    fails(function() testing.failure_result_of(coop.Deferred()) end, 'but it has no result yet')
  end)
end)

describe('assert_no_result', function()
  it('passes while there is none', function()
    testing.assert_no_result(coop.Deferred())
    testing.assert_no_result((select(2, waiting())))
  end)

  it('fails when there is one', function()
    fails(function() testing.assert_no_result(coop.succeed 'x') end,
      "to have no result, but it fired with:\n  (string) 'x'")
    fails(function() testing.assert_no_result(failed 'oops') end, 'but it failed:\n  oops')
  end)
end)

describe('assert.fired', function()
  it('and its negation', function()
    assert.fired(coop.succeed(nil))
    local d = failed 'x'
    assert.fired(d)
    assert.failed_with('x', d)
    assert.not_fired(coop.Deferred())
    assert.is_not.fired((select(2, waiting())))
  end)

  it('tells why not', function()
    fails(function() assert.fired(coop.Deferred()) end, 'to have fired, but it has no result yet')
    fails(function() assert.not_fired(coop.succeed(3)) end,
      'not to have fired, but it fired with:\n  (number) 3')
  end)

  it('takes nothing else', function()
    fails(function() assert.fired(3) end,
      "bad argument #1 to 'fired' (Deferred expected, got number)")
  end)
end)

describe('assert.pending', function()
  it('and its negation', function()
    assert.pending(coop.Deferred())
    assert.not_pending(coop.succeed())
    local d = coop.succeed()
    d:pause()
    assert.pending(d)
  end)

  it('tells why not', function()
    fails(function() assert.pending(coop.succeed(3)) end, 'to be pending, but it fired with')
    fails(function() assert.not_pending(coop.Deferred()) end,
      'not to be pending, but it has no result yet')
    fails(function() assert.pending {} end, "bad argument #1 to 'pending'")
  end)
end)

describe('an assertion that fails', function()
  it('has handled the failure that it shows', function()
    fails(function() assert.failed_with(TimeoutError, coop.fail 'oops') end, 'oops')
    fails(function() assert.not_failed_with('oops', coop.fail 'oops') end, 'oops')
    fails(function() assert.resolves_to(1, coop.fail 'oops') end, 'oops')
    fails(function() assert.pending(coop.fail 'oops') end, 'oops')
    fails(function() assert.not_fired(coop.fail 'oops') end, 'oops')
  end)

  it('shows what the test says of it', function()
    local d = coop.Deferred()
    fails(function() assert.fired(d, 'why not?') end, 'why not?\nExpected the Deferred')
    fails(function() assert.resolves_to(1, d, 'why not?') end, 'why not?\nExpected')
    fails(function() assert.not_pending(d, 'why not?') end, 'why not?\nExpected')
    fails(function() assert.failed_with('x', d, 'why not?') end, 'why not?\nExpected')
  end)

  it('names what it is given instead of a class', function()
    fails(function() assert.failed_with(coop.Deferred()) end, 'expected, got Deferred')
  end)
end)

describe('assert.failed_with', function()
  it('and its negation', function()
    assert.failed_with(TimeoutError, failed(TimeoutError()))
    assert.failed_with('part', failed 'a part of it')
    assert.failed_with(function(e) return e == 7 end, failed(7))
    assert.not_failed_with(TimeoutError, coop.succeed())
    assert.not_failed_with(TimeoutError, coop.Deferred())
    local d = failed 'x'
    assert.not_failed_with(TimeoutError, d)
    assert.failed_with('x', d)
  end)

  it('tells why not', function()
    local d = failed 'oops'
    fails(function() assert.failed_with(TimeoutError, d) end,
      'to have failed with coop.errors.TimeoutError, but it failed:\n  oops')
    fails(function() assert.not_failed_with('oops', d) end, 'not to have failed with oops, but')
    fails(function() assert.failed_with(TimeoutError, coop.succeed(1)) end, 'but it fired with')
    fails(function() assert.failed_with(7, d) end, "bad argument #1 to 'failed_with'")
    fails(function() assert.failed_with('x', 1) end, "bad argument #2 to 'failed_with'")
  end)
end)

describe('assert.resolves_to', function()
  it('and its negation', function()
    assert.resolves_to(3, coop.succeed(3))
    assert.resolves_to(nil, coop.succeed())
    assert.resolves_to({ 1, { 2 } }, coop.succeed { 1, { 2 } })
    assert.not_resolves_to({ 1 }, coop.succeed { 2 })
    assert.not_resolves_to(3, coop.Deferred())
  end)

  it('tells why not', function()
    fails(function() assert.resolves_to({ 1 }, coop.succeed { 2 }) end,
      'to resolve to:\n  (table: ', '[1] = 1', '\nbut it fired with:\n  (table: ', '[1] = 2')
    fails(function() assert.not_resolves_to(3, coop.succeed(3)) end,
      'not to resolve to:\n  (number) 3\nbut it fired with:\n  (number) 3')
    fails(function() assert.resolves_to(3, coop.Deferred()) end, 'but it has no result yet')
    local d = failed 'oops'
    fails(function() assert.resolves_to(3, d) end, 'but it failed:\n  oops')
    assert.failed_with('oops', d)
  end)
end)

describe('testing.Clock', function()
  it('is moved by the test', function()
    local clock, seen = testing.Clock(), {}
    for i = 1, 3 do clock:call_later(i, function() seen[#seen + 1] = i end) end
    clock:advance(1)
    assert.same({ 1 }, seen)
    clock:pump { 1, 1 }
    assert.same({ 1, 2, 3 }, seen)
    local d = coop.Deferred():add_timeout(5, clock)
    assert.pending(d)
    clock:advance(5)
    assert.failed_with(TimeoutError, d)
  end)
end)

describe('testing.autojump', function()
  it('lets long waits take no time', testing.async(function()
    local clock = testing.autojump()
    local before = coop.seconds()
    coop.await(coop.sleep(3600))
    assert.equal(3600, coop.seconds() - before)
    assert.equal(coop.seconds(), clock:seconds())
  end))

  it('keeps the order, from one call to the next', testing.async(function()
    local clock, seen = testing.autojump(), {}
    local before = clock:seconds()
    local function note(name) seen[#seen + 1] = name .. ' ' .. clock:seconds() - before end
    coop.spawn(function()
      for _ = 1, 3 do
        coop.await(coop.sleep(100))
        note 'ticks'
      end
    end)
    clock:call_later(250, note, 'called')
    assert.equal(1, #clock:get_delayed_calls() - 1)
    local timed = coop.Deferred():add_timeout(150)
    coop.await(coop.DeferredList { timed })
    assert.failed_with(TimeoutError, timed)
    note 'times out'
    coop.await(coop.sleep(200))
    assert.same({ 'ticks 100.0', 'times out 150.0', 'ticks 200.0', 'called 250.0', 'ticks 300.0' },
      seen)
  end))

  it('stands still while a task has more to do', testing.async(function()
    testing.autojump()
    local before, steps = coop.seconds(), 0
    coop.call_later(1000, function() end)
    coop.await(coop.coiterate(coop.generator(function()
      for _ = 1, 1000 do
        steps = steps + 1
        coroutine.yield(1)
        assert.equal(before, coop.seconds())
      end
    end)()))
    assert.equal(1000, steps)
    coop.await(coop.sleep(1000))
  end))

  it('waits for what comes from outside', testing.async(function()
    local net = require 'coop.net'
    local server <close> = net.listen('127.0.0.1', 0, function(conn)
      conn:write(coop.await(conn:read 'l') .. '\n')
      coop.await(coop.sleep(1000))
      conn:write 'later\n'
    end)
    testing.autojump()
    local before = coop.seconds()
    local conn <close> = coop.await(net.connect('127.0.0.1', server.port))
    conn:write 'x\n'
    assert.equal('x', coop.await(conn:read 'l':add_timeout(500)))
    assert.equal(before, coop.seconds())
    assert.equal('later', coop.await(conn:read 'l'))
    assert.equal(1000, coop.seconds() - before)
  end))

  it('ends with stop, or its block; calls are as far off as they were', testing.async(function()
    local call
    do
      local jump <close> = testing.autojump()
      assert.equal(jump, testing.autojump())
      coop.await(coop.sleep(1000))
      call = coop.call_later(50, print)
    end
    local left = call:get_time() - coop.seconds()
    assert.is_true(left > 40 and left <= 50, left)
    call:cancel()
    local jump = testing.autojump()
    jump:stop()
    jump:stop()
    h.misuse(function() jump.stop {} end, 'stop', 'Autojump expected')
  end))

  it('has ended with the test before', function()
    local before = coop.seconds()
    repeat until coop.seconds() > before
  end)
end)

describe('settings', function()
  it('are checked', function()
    h.misuse(function() testing.timeout(0) end, 'timeout', 'positive number of seconds')
    h.misuse(function() testing.timeout '1' end, 'timeout', 'got string')
    h.misuse(function() testing.may_leave 'toys' end, 'may_leave', '"timer"')
    h.misuse(function() testing.async(3) end, 'async', 'function expected')
    h.misuse(function() testing.async(print, -1) end, 'async', '#2')
  end)
end)
