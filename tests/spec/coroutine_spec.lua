-- Coroutines: pause, unpause and cancel, which cascade, and leaving a body by noreturn and
-- return_value.

local coop = require 'coop'
local helper = require 'tests.spec.helper'

local cap, pending = helper.cap, helper.pending
local value_of, error_of = helper.value_of, helper.error_of
local inline, spawn, await = coop.inline_callbacks, coop.spawn, coop.await
local CancelledError = coop.errors.CancelledError

-- A to-be-closed value that puts `name` into `log`.
local function closer(log, name)
  return setmetatable({}, { __close = function() log[#log + 1] = name end })
end

local function assert_cancelled(d)
  assert.is_true(d.called)
  local err = error_of(d)
  assert.is_true(CancelledError:is(err), tostring(err))
end

-- A coroutine that waits for `d` and gives its value.
local function waiter(d)
  return spawn(function() return await(d) end)
end

-- `depth` coroutines, each waiting for the next and the last one for `d`; their cleanups put their
-- depth into `log`. Returns them all, outermost first.
local function nest(depth, d, log)
  local all = {}
  local function level(n)
    local _ <close> = closer(log, n)
    if n == depth then return await(d) end
    all[n + 1] = spawn(level, n + 1)
    return await(all[n + 1])
  end
  all[1] = spawn(level, 1)
  return all
end

describe('a coroutine', function()
  it('is a Deferred of the type Coroutine', function()
    local proc = coop.coroutine(function(value) return value end)
    for _, c in ipairs { proc(1), spawn(proc, 1), spawn(function() return 1 end) } do
      assert.equal('Coroutine', coop.type(c))
      assert.is_true(coop.is_deferred(c))
      assert.equal(1, value_of(c))
    end
    assert.are_not.equal(proc(), proc())
  end)

  it('has run to its first wait when the call returns', function()
    local log = {}
    spawn(function()
      log[#log + 1] = 'body'
      await(helper.forever())
      log[#log + 1] = 'never'
    end)
    log[#log + 1] = 'caller'
    assert.same({ 'body', 'caller' }, log)
  end)

  it('has run to its first wait when the call returns to another body, however deep', function()
    local log, expected = {}, {}
    local gate = helper.forever()
    local function level(n)
      log[#log + 1] = n
      if n < 500 then
        spawn(level, n + 1)
        log[#log + 1] = -n
      end
      await(gate)
    end
    spawn(level, 1)
    for n = 1, 500 do expected[n] = n end
    for n = 499, 1, -1 do expected[#expected + 1] = -n end
    assert.same(expected, log)
  end)

  it('has run to its first wait also when handlers are in between', function()
    local begun, expected = {}, {}
    local function level(n)
      begun[n] = true
      if n < 12 then
        coop.succeed():add_callback(function()
          spawn(level, n + 1)
          expected[n + 1] = begun[n + 1] or false
        end)
      end
      await(helper.forever())
    end
    spawn(level, 1)
    for n = 2, 12 do assert.is_true(expected[n], 'level ' .. n) end
  end)

  it('gets its arguments, nils among them', function()
    local got
    local function f(...) got = table.pack(...) end
    spawn(f, 1, nil, 3, nil)
    assert.same({ 1, nil, 3, nil, n = 4 }, got)
    coop.coroutine(f)(nil, 2, nil)
    assert.same({ nil, 2, nil, n = 3 }, got)
  end)

  it('TXC-27 may be made of any function, one that never waits included', function()
    assert.equal(3, value_of(spawn(function() return 3 end)))
    assert.equal(4, value_of(spawn(function() coop.noreturn(function() return 4 end) end)))
    assert.equal(5, value_of(spawn(math.max, 5, 2)))
  end)

  it('must be made of something that can be called', function()
    helper.misuse(function() coop.coroutine(42) end, "bad argument #1 to 'coroutine'", 'number')
    helper.misuse(function() spawn 'name' end, "bad argument #1 to 'spawn'", 'string')
    helper.misuse(function() spawn() end, "bad argument #1 to 'spawn'")
  end)

  it('fails with what its body raises, with any value', function()
    for name, value in helper.values() do
      local gate = coop.Deferred()
      local early = spawn(error, value, 0)
      local late = spawn(function()
        await(gate)
        error(value, 0)
      end)
      gate:callback()
      assert.is_true(rawequal(value, (error_of(early))), name)
      assert.is_true(rawequal(value, (error_of(late))), name)
    end
  end)

  it('has closed its variables when it fails', function()
    local log, gate = {}, coop.Deferred()
    local c = spawn(function()
      local _ <close> = closer(log, 'closed')
      await(gate)
      error 'E'
    end)
    c:add_errback(function() log[#log + 1] = 'failed' end)
    gate:callback()
    assert.same({ 'closed', 'failed' }, log)
  end)

  it('waits for a Deferred that it returns, and is cancelled with it', function()
    local d, canceller = coop.Deferred(), 0
    local c = spawn(function() return d end)
    pending(c)
    d:callback(1)
    assert.equal(1, value_of(c))
    d = coop.Deferred(function() canceller = canceller + 1 end)
    c = spawn(function() return d end)
    c:cancel()
    assert.equal(1, canceller)
    assert_cancelled(c)
    assert_cancelled(d)
  end)

  it('hides its metatable and keeps its methods to its own kind', function()
    local c = spawn(function() end)
    assert.equal('string', type(getmetatable(c)))
    helper.misuse(function() c.pause(42) end, 'pause')
    helper.misuse(function() c.unpause(io.stderr) end, 'unpause')
  end)
end)

describe('what a body does to a Deferred', function()
  -- Runs `act` in a body that another one, which waits for `d`, has to see the effect of.
  local function effect(d, act)
    local log = {}
    spawn(function()
      log[#log + 1] = select(2, pcall(await, d))
      await(coop.succeed())
      log[#log + 1] = 'next wait'
      await(helper.forever())
    end)
    local c = spawn(function()
      act()
      log[#log + 1] = 'done'
    end)
    assert.is_nil(value_of(c))
    return log
  end

  it('has had its effect when callback returns', function()
    local d = coop.Deferred()
    assert.same({ 'v', 'next wait', 'done' }, effect(d, function() d:callback 'v' end))
  end)

  it('has had its effect when errback returns', function()
    local d = coop.Deferred()
    assert.same({ 'e', 'next wait', 'done' }, effect(d, function() d:errback 'e' end))
  end)

  it('has had its effect when unpause returns', function()
    local d = coop.Deferred()
    d:pause()
    d:callback 'p'
    assert.same({ 'p', 'next wait', 'done' }, effect(d, function() d:unpause() end))
  end)

  it('has had its effect when cancel returns', function()
    local d = coop.Deferred(function(d) d:callback 'c' end)
    assert.same({ 'c', 'next wait', 'done' }, effect(d, function() d:cancel() end))
  end)

  it('has had its effect also from inside pcall and a coroutine of the script', function()
    local d = coop.Deferred()
    assert.same({ 'w', 'next wait', 'done' }, effect(d, function()
      coroutine.wrap(function() assert(pcall(d.callback, d, 'w')) end)()
    end))
  end)

  it('has had its effect also from inside a comparator', function()
    local d = coop.Deferred()
    assert.same({ 's', 'next wait', 'done' }, effect(d, function()
      table.sort({ 1, 2 }, function(a, b)
        if not d.called then d:callback 's' end
        return a < b
      end)
    end))
  end)
end)

describe('pausing a coroutine', function()
  it('TXC-01 holds its resumption until it is unpaused', function()
    local d, got = coop.Deferred(), nil
    local c = spawn(function() got = await(d) end)
    c:pause()
    assert.equal(1, c.paused)
    d:callback(1)
    assert.is_nil(got)
    c:unpause()
    assert.equal(1, got)
    assert.equal(0, c.paused)
    assert.is_nil(value_of(c))
  end)

  it('TXC-16 counts: a nested one goes on after the last unpause', function()
    local d = coop.Deferred()
    local all = nest(2, d, {})
    local seen = cap(all[1])
    all[1]:pause()
    all[1]:pause()
    assert.equal(2, all[1].paused)
    d:callback(3)
    all[1]:unpause()
    assert.same({ n = 0 }, seen)
    all[1]:unpause()
    assert.same({ n = 1, 3 }, seen)
  end)

  it('TXC-22 that has finished pauses nothing', function()
    local d, d2, seen = coop.Deferred(), coop.Deferred(), {}
    local c = waiter(d)
    d:callback(1)
    assert.equal(1, value_of(c))
    c:pause()
    assert.equal(1, c.paused)
    assert.equal(0, d.paused)
    d:add_callback(function() return d2 end)
    d:add_callback(function(value) seen[1] = value end)
    d2:callback(2)
    assert.same({ 2 }, seen)
    c:unpause()
  end)

  it('TXC-29 whose source is shared leaves the other waiters alone', function()
    local d = coop.Deferred()
    local first, last = waiter(d), waiter(d)
    local seen = cap(first)
    first:pause()
    assert.equal(0, d.paused)
    d:callback(5)
    assert.equal(5, value_of(last))
    assert.same({ n = 0 }, seen)
    first:unpause()
    assert.same({ n = 1, 5 }, seen)
  end)

  it('pauses the plain Deferred that it alone waits on', function()
    local d, log = coop.Deferred(), {}
    d:add_callback(function(value)
      log[#log + 1] = 'handler'
      return value
    end)
    local c = waiter(d)
    c:pause()
    assert.equal(1, d.paused)
    d:callback(1)
    assert.same({}, log)
    c:unpause()
    assert.same({ 'handler' }, log)
    assert.equal(0, d.paused)
    assert.equal(1, value_of(c))
  end)

  it('pauses each coroutine below it, and what the last one waits on', function()
    local d = coop.Deferred()
    local all = nest(4, d, {})
    all[2]:pause()
    assert.same({ 0, 1, 1, 1 },
      { all[1].paused, all[2].paused, all[3].paused, all[4].paused })
    assert.equal(1, d.paused)
    d:callback 'v'
    pending(all[1])
    all[2]:unpause()
    for i = 1, 4 do assert.equal(0, all[i].paused) end
    assert.equal(0, d.paused)
    assert.equal('v', value_of(all[1]))
  end)

  it('ends where another waits as well, and goes no deeper', function()
    local d = coop.Deferred()
    local all = nest(3, d, {})
    local other = waiter(all[2])
    all[1]:pause()
    assert.equal(0, all[2].paused)
    assert.equal(0, all[3].paused)
    assert.equal(0, d.paused)
    d:callback 'v'
    assert.equal('v', value_of(other))
    pending(all[1])
    all[1]:unpause()
    assert.equal('v', value_of(all[1]))
  end)

  it('lets go of what another begins to wait on', function()
    local d = coop.Deferred()
    local first = waiter(d)
    first:pause()
    assert.equal(1, d.paused)
    local last = waiter(d)
    d:callback 'v'
    assert.equal('v', value_of(last))
    assert.equal(0, d.paused)
    local seen = cap(first)
    assert.same({ n = 0 }, seen)
    first:unpause()
    assert.same({ n = 1, 'v' }, seen)
    assert.equal(0, d.paused)
  end)

  it('holds it also when the other waiter has gone away', function()
    local d = coop.Deferred()
    local first, other = waiter(d), waiter(d)
    first:pause()
    other:cancel()
    local seen = cap(first)
    d:callback 'v'
    assert.same({ n = 0 }, seen)
    first:unpause()
    assert.same({ n = 1, 'v' }, seen)
    assert.equal(0, d.paused)
    assert_cancelled(other)
  end)

  it('holds one that pauses itself at its next wait', function()
    local gate, d, got, c = coop.Deferred(), coop.Deferred(), nil, nil
    c = spawn(function()
      await(gate)
      c:pause()
      got = await(d)
    end)
    gate:callback()
    d:callback(1)
    assert.is_nil(got)
    c:unpause()
    assert.equal(1, got)
    assert.is_nil(value_of(c))
    assert.equal(0, d.paused)
  end)

  it('keeps apart from the pauses of its source by others', function()
    local d = coop.Deferred()
    local c = waiter(d)
    d:pause()
    c:pause()
    assert.equal(2, d.paused)
    c:unpause()
    assert.equal(1, d.paused)
    d:callback(1)
    pending(c)
    d:unpause()
    assert.equal(1, value_of(c))
  end)

  it('holds the value of a Deferred that it has returned', function()
    local d = coop.Deferred()
    local c = spawn(function() return d end)
    c:pause()
    local seen = cap(c)
    d:callback(1)
    assert.same({ n = 0 }, seen)
    c:unpause()
    assert.same({ n = 1, 1 }, seen)
  end)

  it('is undone once a pause: another unpause is misuse', function()
    local c = waiter(helper.forever())
    helper.misuse(function() c:unpause() end, 'unpause')
    c:pause()
    c:unpause()
    helper.misuse(function() c:unpause() end, 'unpause')
    pending(c)
  end)

  it('leaves timers going: a sleep that is over ends at once when it is unpaused', function()
    local clock = coop.Clock()
    local c = spawn(function()
      await(coop.defer_later(clock, 1))
      return clock:seconds()
    end)
    c:pause()
    clock:advance(5)
    pending(c)
    c:unpause()
    assert.equal(5, value_of(c))
  end)

  it('TXC-12 and unpausing and cancelling reach three that tick below one another', function()
    local clock, log = coop.Clock(), {}
    local function ticking()
      local _ <close> = closer(log, 'level3')
      while true do
        log[#log + 1] = clock:seconds()
        await(coop.defer_later(clock, 1))
      end
    end
    local function level2()
      local _ <close> = closer(log, 'level2')
      await(spawn(ticking))
    end
    local root = spawn(function()
      local _ <close> = closer(log, 'root')
      await(spawn(level2))
    end)
    clock:call_later(3, root.pause, root)
    clock:call_later(6, root.unpause, root)
    clock:call_later(9, root.cancel, root)
    clock:advance(12)
    assert.same({ 0, 1, 2, 6, 7, 8, 'level3', 'level2', 'root' }, log)
    assert_cancelled(root)
  end)
end)

describe('cancelling a coroutine', function()
  it('TXC-02 that waits keeps its body from ever going on', function()
    local d, log = coop.Deferred(), {}
    local c = spawn(function()
      log[#log + 1] = 'begun'
      await(d)
      log[#log + 1] = 'resumed'
    end)
    c:cancel()
    d:callback 'late'
    assert.same({ 'begun' }, log)
    assert_cancelled(c)
  end)

  it('TXC-03 closes its body, which sees no error at its wait', function()
    local log = {}
    local c = spawn(function()
      local _ <close> = closer(log, 'closed')
      pcall(await, coop.Deferred())
      log[#log + 1] = 'caught'
    end)
    c:cancel()
    assert.same({ 'closed' }, log)
    assert_cancelled(c)
  end)

  it('TXC-09 that never waited, pausing and unpausing it too, is harmless', function()
    local c = spawn(function() return 'kept' end)
    c:pause()
    c:unpause()
    c:cancel()
    assert.equal('kept', value_of(c))
  end)

  it('TXC-10 lets go of what it waited on', function()
    local weak = setmetatable({}, { __mode = 'v' })
    local c = spawn(function()
      weak[1] = coop.Deferred(function() end)
      await(weak[1])
    end)
    collectgarbage()
    collectgarbage()
    assert.is_not_nil(weak[1])
    c:cancel()
    collectgarbage()
    collectgarbage()
    assert.is_nil(weak[1])
    assert_cancelled(c)
  end)

  it('TXC-11 ends a loop of messages: the inner canceller first, then the cleanup', function()
    local clock, log = coop.Clock(), {}
    local function get_message()
      local call
      local d = coop.Deferred(function()
        call:cancel()
        log[#log + 1] = 'message cancelled'
      end)
      call = clock:call_later(1, function()
        d:callback(('message at %g'):format(clock:seconds()))
      end)
      return d
    end
    local c
    clock:call_later(3, function() c:cancel() end)
    c = spawn(function()
      local _ <close> = closer(log, 'cleanup')
      while true do log[#log + 1] = await(get_message()) end
    end)
    clock:advance(5)
    assert.same({ 'message at 1', 'message at 2', 'message cancelled', 'cleanup' }, log)
    assert.same({}, clock:get_delayed_calls())
    assert_cancelled(c)
  end)

  it('TXC-15 that has ended keeps its value, and a second time is harmless', function()
    local d, log = coop.Deferred(), {}
    local done = waiter(d)
    d:callback 'kept'
    done:cancel()
    assert.equal('kept', value_of(done))
    local c = spawn(function()
      local _ <close> = closer(log, 'closed')
      await(coop.Deferred(function() log[#log + 1] = 'canceller' end))
    end)
    c:cancel()
    c:cancel()
    assert.same({ 'canceller', 'closed' }, log)
    assert_cancelled(c)
    c:cancel()
  end)

  it('TXC-19 makes a wait in the cleanup of its body misuse, and that its outcome', function()
    local never, resumed = coop.Deferred(), false
    local c = spawn(function()
      local _ <close> = setmetatable({}, { __close = function()
        await(never)
        resumed = true
      end })
      await(coop.Deferred())
    end)
    assert.is_true(pcall(c.cancel, c))
    assert.is_true(c.called)
    local err = error_of(c)
    assert.equal('string', type(err))
    assert.truthy(err:find('await', 1, true), err)
    never:callback()
    assert.is_false(resumed)
  end)

  it('TXC-20 makes an error in the cleanup of its body its outcome', function()
    local c = spawn(function()
      local _ <close> = setmetatable({}, { __close = function() error('cleanup', 0) end })
      await(coop.Deferred())
    end)
    assert.is_true(pcall(c.cancel, c))
    assert.equal('cleanup', error_of(c))
  end)

  it('does not hide an error in the cleanup of its body from who handles unhandled ones', function()
    local reported = helper.unhandled(function()
      spawn(function()
        local _ <close> = setmetatable({}, { __close = function() error('cleanup', 0) end })
        await(coop.Deferred())
      end):cancel()
    end)
    assert.equal(1, #reported)
    assert.equal('cleanup', reported[1].value)
  end)

  it('TXC-21 reaches what it waits on next, when its source swallows the cancelling', function()
    local d1, d2, resumed = coop.Deferred(), nil, false
    d1:add_errback(function() return 'swallowed' end)
    local c = spawn(function()
      await(d1)
      d2 = coop.Deferred()
      await(d2)
      resumed = true
    end)
    c:cancel()
    assert.is_true(d1.called)
    assert_cancelled(c)
    if d2 then
      assert.is_true(d2.called)
      d2:callback 'late'
    end
    assert.is_false(resumed)
  end)

  it('does not wait for a source that puts off its own cancelling', function()
    local d, later, log = coop.Deferred(), coop.Deferred(), {}
    d:add_errback(function() return later end)
    local c = spawn(function()
      local _ <close> = closer(log, 'closed')
      await(d)
      log[#log + 1] = 'resumed'
    end)
    c:cancel()
    assert.same({ 'closed' }, log)
    assert_cancelled(c)
    later:callback()
    assert.same({ 'closed' }, log)
  end)

  it('closes the innermost body first, after the canceller of its source', function()
    local log = {}
    local all = nest(20, coop.Deferred(function() log[#log + 1] = 'canceller' end), log)
    all[1]:cancel()
    local expected = { 'canceller' }
    for n = 20, 1, -1 do expected[#expected + 1] = n end
    assert.same(expected, log)
    for _, c in ipairs(all) do assert_cancelled(c) end
  end)

  it('closes the variables of one body last to first', function()
    local log = {}
    local c = spawn(function()
      local _ <close> = closer(log, 'outer')
      local function inner()
        local _ <close> = closer(log, 'inner')
        await(coop.Deferred())
      end
      pcall(inner)
    end)
    c:cancel()
    assert.same({ 'inner', 'outer' }, log)
    assert_cancelled(c)
  end)

  it('in the middle raises CancelledError in an inline_callbacks body above it', function()
    local caught
    local middle
    local top = inline(function()
      middle = waiter(coop.Deferred())
      local ok
      ok, caught = pcall(await, middle)
      return ok
    end)()
    middle:cancel()
    assert.is_true(CancelledError:is(caught))
    assert.is_false(value_of(top))
  end)

  it('raises CancelledError in an inline_callbacks body below it', function()
    local log = {}
    local c = spawn(function()
      local _ <close> = closer(log, 'closed')
      await(inline(function()
        local _, err = pcall(await, coop.Deferred())
        log[#log + 1] = CancelledError:is(err)
        return 'caught'
      end)())
      log[#log + 1] = 'resumed'
    end)
    c:cancel()
    assert.same({ true, 'closed' }, log)
    assert_cancelled(c)
  end)

  it('leaves an inline_callbacks body below it to what it makes of it', function()
    local later, log = coop.Deferred(), {}
    local below = inline(function()
      pcall(await, coop.Deferred())
      log[#log + 1] = await(later)
      return 'end'
    end)()
    local c = waiter(below)
    c:cancel()
    assert_cancelled(c)
    assert.is_false(below.called)
    later:callback 'later'
    assert.same({ 'later' }, log)
    assert.equal('end', value_of(below))
  end)

  it('takes only that one away from those who wait on its source', function()
    local cancelled, log = 0, {}
    local d = coop.Deferred(function() cancelled = cancelled + 1 end)
    local first = spawn(function()
      local _ <close> = closer(log, 'first')
      await(d)
    end)
    local body = inline(function() return await(d) end)()
    local outer = coop.succeed()
    outer:add_callback(function() return d end)
    local last = waiter(d)
    first:cancel()
    assert.same({ 'first' }, log)
    assert_cancelled(first)
    outer:cancel()
    assert_cancelled(outer)
    body:cancel()
    assert_cancelled(body)
    assert.equal(0, cancelled)
    assert.is_false(d.called)
    pending(last)
    last:cancel()
    assert.equal(1, cancelled)
    assert_cancelled(last)
    assert_cancelled(d)
  end)

  it('leaves the others who wait on its source their value, in their order', function()
    local d, log = coop.Deferred(), {}
    local all = {}
    for i = 1, 4 do
      all[i] = spawn(function()
        local value = await(d)
        log[#log + 1] = i .. value
      end)
    end
    all[1]:cancel()
    all[3]:cancel()
    d:callback 'v'
    assert.same({ '2v', '4v' }, log)
    assert_cancelled(all[1])
    assert_cancelled(all[3])
  end)

  it('reaches one that is paused and ends the pause', function()
    local log = {}
    local d = coop.Deferred(function() log[#log + 1] = 'canceller' end)
    local all = nest(3, d, log)
    local seen = cap(all[1])
    all[1]:pause()
    all[1]:cancel()
    assert.same({ 'canceller', 3, 2, 1 }, log)
    assert.equal(1, seen.n)
    assert.is_true(CancelledError:is(seen[1].value))
    for _, c in ipairs(all) do assert.equal(0, c.paused) end
    assert.equal(0, d.paused)
    assert_cancelled(all[3])
  end)

  it('reaches one below it that was paused by itself', function()
    local log = {}
    local all = nest(3, coop.Deferred(), log)
    all[2]:pause()
    all[2]:pause()
    all[1]:cancel()
    assert.same({ 3, 2, 1 }, log)
    for _, c in ipairs(all) do
      assert.equal(0, c.paused)
      assert_cancelled(c)
    end
  end)

  it('that holds a value while paused closes it', function()
    local d, log = coop.Deferred(), {}
    local other = waiter(d)
    local c = spawn(function()
      local _ <close> = closer(log, 'closed')
      await(d)
      log[#log + 1] = 'resumed'
    end)
    c:pause()
    d:callback 'v'
    c:cancel()
    assert.same({ 'closed' }, log)
    assert_cancelled(c)
    assert.equal('v', value_of(other))
  end)

  it('by its own body takes hold at its next wait', function()
    local gate, log, c = coop.Deferred(), {}, nil
    c = spawn(function()
      local _ <close> = closer(log, 'closed')
      await(gate)
      c:cancel()
      log[#log + 1] = 'still running'
      await(coop.Deferred())
      log[#log + 1] = 'resumed'
    end)
    gate:callback()
    assert.same({ 'still running', 'closed' }, log)
    assert_cancelled(c)
  end)

  it('by what it waits on as it fires gives one outcome', function()
    local d, log, c = coop.Deferred(), {}, nil
    d:add_callback(function(value)
      c:cancel()
      return value
    end)
    c = spawn(function()
      local _ <close> = closer(log, 'closed')
      await(d)
      log[#log + 1] = 'resumed'
    end)
    local seen = cap(c)
    d:callback 'v'
    assert.same({ 'closed' }, log)
    assert.equal(1, seen.n)
    assert.is_true(CancelledError:is(seen[1].value))
  end)

  it('shows CancelledError to handlers of before and after it', function()
    local c = waiter(coop.Deferred())
    local before = {}
    c:add_both(function(result)
      before[1] = result.value
      return result
    end)
    c:cancel()
    assert.is_true(CancelledError:is(before[1]))
    assert_cancelled(c)
  end)

  it('is silent, also when nobody looks at the outcome', function()
    assert.same({}, helper.unhandled(function()
      nest(3, coop.Deferred(), {})[1]:cancel()
      local all = nest(3, coop.Deferred(), {})
      all[3]:cancel()
    end))
  end)
end)

describe('noreturn', function()
  it('TXC-04 leaves the body for good, and lets go of it while the other one runs', function()
    local weak = setmetatable({}, { __mode = 'v' })
    local gate, log = coop.Deferred(), {}
    local c = spawn(function()
      local big = {}
      weak[1] = big
      coop.noreturn(function()
        log[#log + 1] = 'tail'
        return await(gate)
      end)
      log[#log + 1] = 'after'
      return big
    end)
    assert.same({ 'tail' }, log)
    collectgarbage()
    collectgarbage()
    assert.is_nil(weak[1])
    pending(c)
    gate:callback 'end'
    assert.same({ 'tail' }, log)
    assert.equal('end', value_of(c))
  end)

  it('TXC-05 computes factorials on a stack that stays as it is', function()
    local depths = {}
    local function fact(n, product)
      local levels = 1
      while debug.getinfo(levels, 'l') do levels = levels + 1 end
      depths[levels] = true
      if n == 0 then return product end
      return coop.noreturn(fact, n - 1, product * n)
    end
    for _, n in ipairs { 1, 10, 110, 1000 } do
      local expected = 1.0
      for i = n, 1, -1 do expected = expected * i end
      assert.equal(expected, value_of(spawn(fact, n, 1.0)))
    end
    assert.is_nil(next(depths, next(depths)))
  end)

  it('TXC-07 gives the value of another coroutine', function()
    local gate, log = coop.Deferred(), {}
    local other = coop.coroutine(function(add) return await(gate) + add end)
    local c = spawn(function()
      coop.noreturn(other, 2)
      log[#log + 1] = 'after'
    end)
    pending(c)
    gate:callback(3)
    assert.equal(5, value_of(c))
    assert.same({}, log)
  end)

  it('TXC-08 gives a plain value that the other function returns', function()
    local log = {}
    local c = spawn(function()
      coop.noreturn(function() return 8 end)
      log[#log + 1] = 'after'
    end)
    assert.equal(8, value_of(c))
    assert.same({}, log)
  end)

  it('TXC-28 is misuse outside any coroutine', helper.run(function()
    local answer = coop.Deferred()
    coop.call_later(0, function()
      local called = false
      local ok, err = pcall(coop.noreturn, function() called = true end)
      answer:callback { ok, err, called }
    end)
    local got = await(answer)
    assert.is_false(got[1])
    assert.equal('string', type(got[2]))
    assert.truthy(got[2]:find('noreturn', 1, true), got[2])
    assert.is_false(got[3])
  end))

  it('passes its arguments on, nils among them', function()
    local got
    spawn(function() coop.noreturn(function(...) got = table.pack(...) end, 1, nil, 3, nil) end)
    assert.same({ 1, nil, 3, nil, n = 4 }, got)
  end)

  it('leaves an inline_callbacks body likewise', function()
    local gate, after = coop.Deferred(), false
    local result = inline(function()
      await(gate)
      coop.noreturn(function(value) return value end, 'tail')
      after = true
    end)()
    gate:callback()
    assert.equal('tail', value_of(result))
    assert.is_false(after)
  end)

  it('leaves from any depth of calls, and past pcall', function()
    local log = {}
    local function deep(n)
      if n > 0 then
        pcall(deep, n - 1)
        log[#log + 1] = 'returned'
      else
        coop.noreturn(function() return 'tail' end)
      end
    end
    assert.equal('tail', value_of(spawn(deep, 50)))
    assert.same({}, log)
  end)

  it('leaves from inside a coroutine of the script\'s own', function()
    local log = {}
    local function leave()
      coroutine.wrap(function()
        coroutine.wrap(function() coop.noreturn(function() return 'tail' end) end)()
        log[#log + 1] = 'middle'
      end)()
      log[#log + 1] = 'outer'
    end
    assert.equal('tail', value_of(spawn(leave)))
    assert.equal('tail', value_of(inline(leave)()))
    assert.same({}, log)
  end)

  it('closes the variables of the body that it leaves, then begins the other', function()
    local log = {}
    local c = spawn(function()
      local _ <close> = closer(log, 'outer')
      local _ <close> = closer(log, 'inner')
      coop.noreturn(function()
        log[#log + 1] = 'tail'
        return 'end'
      end)
    end)
    assert.same({ 'inner', 'outer', 'tail' }, log)
    assert.equal('end', value_of(c))
  end)

  it('has an error in the cleanup of the body as the outcome', function()
    local c = spawn(function()
      local _ <close> = setmetatable({}, { __close = function() error('cleanup', 0) end })
      coop.noreturn(function() end)
    end)
    assert.equal('cleanup', error_of(c))
  end)

  it('fails with the error of the other function', function()
    local gate = coop.Deferred()
    local c = spawn(function()
      pcall(coop.noreturn, function()
        await(gate)
        error('tail', 0)
      end)
    end)
    gate:callback()
    assert.equal('tail', error_of(c))
  end)

  it('may be used again by the function that took the place', function()
    local gate, log = coop.Deferred(), {}
    local function step(n)
      log[#log + 1] = n
      await(gate)
      if n == 3 then return 'end' end
      return coop.noreturn(step, n + 1)
    end
    local c = spawn(step, 1)
    gate:callback()
    assert.same({ 1, 2, 3 }, log)
    assert.equal('end', value_of(c))
  end)

  it('keeps cancelling and pausing the coroutine what they are', function()
    local log = {}
    local d = coop.Deferred(function() log[#log + 1] = 'canceller' end)
    local function tail(inner)
      local _ <close> = closer(log, 'tail')
      return await(inner)
    end
    local inner
    local c = spawn(function()
      local _ <close> = closer(log, 'left')
      inner = nest(2, d, log)
      coop.noreturn(tail, inner[1])
    end)
    c:pause()
    assert.equal(1, inner[2].paused)
    assert.equal(1, d.paused)
    c:unpause()
    assert.equal(0, d.paused)
    c:cancel()
    assert.same({ 'left', 'canceller', 2, 1, 'tail' }, log)
    assert_cancelled(c)
  end)

  it('is cancelled with the Deferred that the other function returns', function()
    local d = coop.Deferred()
    local c = spawn(function() coop.noreturn(function() return d end) end)
    pending(c)
    c:cancel()
    assert_cancelled(d)
    assert_cancelled(c)
    local after = {}
    assert.same({}, helper.unhandled(function() d:callback(after) end))
  end)

  it('raises CancelledError in what took the place of an inline_callbacks body', function()
    local result = inline(function()
      coop.noreturn(function()
        local _, err = pcall(await, coop.Deferred())
        return CancelledError:is(err)
      end)
    end)()
    result:cancel()
    assert.is_true(value_of(result))
  end)
end)

describe('return_value', function()
  it('leaves the body with its value', function()
    for name, value in helper.values() do
      local seen = cap(spawn(function()
        coop.return_value(value)
        error 'not reached'
      end))
      assert.equal(1, seen.n, name)
      assert.is_true(rawequal(value, seen[1]), name)
    end
    assert.same({ n = 1 }, cap(spawn(function() coop.return_value() end)))
  end)

  it('leaves from any depth of calls, past pcall, and closes what is open', function()
    local log, gate = {}, coop.Deferred()
    local function deep(n)
      local _ <close> = closer(log, n)
      if n == 0 then coop.return_value(await(gate)) end
      pcall(deep, n - 1)
      log[#log + 1] = 'returned'
    end
    local c = spawn(deep, 3)
    c:add_callback(function(value)
      log[#log + 1] = value
      return value
    end)
    gate:callback 'v'
    assert.same({ 0, 1, 2, 3, 'v' }, log)
    assert.equal('v', value_of(c))
  end)

  it('leaves an inline_callbacks body likewise', function()
    local result = inline(function()
      pcall(coop.return_value, 'v')
      error 'not reached'
    end)()
    assert.equal('v', value_of(result))
  end)

  it('leaves from inside a coroutine of the script\'s own', function()
    local log = {}
    local function leave()
      local co = coroutine.create(function()
        coroutine.wrap(coop.return_value) 'v'
        log[#log + 1] = 'middle'
      end)
      coroutine.resume(co)
      log[#log + 1] = 'outer'
    end
    assert.equal('v', value_of(spawn(leave)))
    assert.equal('v', value_of(inline(leave)()))
    assert.same({}, log)
  end)

  it('waits for a Deferred, as return does', function()
    local d = coop.Deferred()
    local c = spawn(function() coop.return_value(d) end)
    pending(c)
    d:callback(1)
    assert.equal(1, value_of(c))
  end)

  it('leaves only the body that calls it', function()
    local c = spawn(function()
      local inner = spawn(function() coop.return_value 'inner' end)
      return await(inner) .. ' and outer'
    end)
    assert.equal('inner and outer', value_of(c))
  end)

  it('has an error in the cleanup of the body as the outcome', function()
    local c = spawn(function()
      local _ <close> = setmetatable({}, { __close = function() error('cleanup', 0) end })
      coop.return_value 'v'
    end)
    assert.equal('cleanup', error_of(c))
  end)

  it('is misuse outside any coroutine', helper.run(function()
    local answer = coop.Deferred()
    coop.call_later(0, function() answer:callback { pcall(coop.return_value, 1) } end)
    local got = await(answer)
    assert.is_false(got[1])
    assert.equal('string', type(got[2]))
    assert.truthy(got[2]:find('return_value', 1, true), got[2])
  end))
end)
