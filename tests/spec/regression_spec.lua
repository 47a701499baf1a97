-- Behaviours that once were otherwise, each in the smallest scene that shows it.

local coop = require 'coop'
local child = require 'tests.spec.child'
local helper = require 'tests.spec.helper'

local run, cap, value_of, error_of = helper.run, helper.cap, helper.value_of, helper.error_of
local spawn, await = coop.spawn, coop.await
local errors = coop.errors

-- A Deferred that has its value while the one Coroutine that waits for it is paused, and that.
local function paused_with(value)
  local d = coop.Deferred()
  local waiter = spawn(function() return await(d) end)
  waiter:pause()
  d:callback(value)
  return d, waiter
end

-- Calls `f` in a coroutine below `depth` others, each waiting for the next.
local function below(depth, f)
  local function level(n)
    if n == 0 then return f() end
    return await(spawn(level, n - 1))
  end
  return spawn(level, depth)
end

-- Calls `f` in a plain coroutine that no wait can leave: a sort comparator runs it.
local function walled(f)
  local result
  table.sort({ 1, 2 }, function()
    result = table.pack(pcall(coroutine.wrap(f)))
    return false
  end)
  return table.unpack(result, 1, result.n)
end

-- A Cooperator whose steps are calls of a Clock, and the Clock.
local function clocked(options)
  local clock = coop.Clock()
  options = options or {}
  options.scheduler = function(f) return clock:call_later(0, f) end
  return coop.Cooperator(options), clock
end

-- A generator of 1 .. n.
local count = coop.generator(function(n)
  for i = 1, n do coroutine.yield(i) end
end)

-- Calls `f` again and again, whenever Lua collects garbage, until what this returns is closed.
local function at_collections(f)
  local over = false
  local function again()
    setmetatable({}, { __gc = function()
      if over then return end
      f()
      again()
    end })
  end
  collectgarbage('incremental', 1, 1000, 1)
  again()
  return setmetatable({}, { __close = function()
    over = true
    collectgarbage('incremental', 200, 100, 13)
  end })
end

before_each(function()
  helper.fresh()
end)

describe('a second waiter that comes while a pause ends', function()
  it('gets the value, a Coroutine', function()
    local d, first = paused_with(5)
    local second = spawn(function() return await(d) end)
    first:unpause()
    assert.equal(5, value_of(first))
    assert.equal(5, value_of(second))
  end)

  it('gets the value, a task', function()
    local d, first = paused_with(5)
    local c, clock = clocked()
    local got
    local task = c:cooperate(coop.generator(function() got = await(d) end)())
    clock:pump { 0, 0, 0 }
    first:unpause()
    clock:pump { 0, 0, 0 }
    assert.equal(5, got)
    assert.equal(5, value_of(first))
    assert.is_true(task:when_done().called)
  end)

  it('gets the value, a handler that returned the Deferred', function()
    local d, first = paused_with(5)
    local other = coop.succeed(1):add_callback(function() return d end)
    first:unpause()
    assert.equal(5, value_of(other))
    assert.equal(5, value_of(first))
  end)

  it('is not held up when the first one waits behind several callbacks', function()
    local d = coop.Deferred()
    for _ = 1, 3 do d:add_callback(function(v) return v end) end
    local first = spawn(function() return await(d) end)
    first:pause()
    assert.equal(1, d.paused)
    local second = spawn(function() return await(d) end)
    assert.equal(0, d.paused)
    d:callback(7)
    assert.equal(7, value_of(second))
    first:unpause()
    assert.equal(7, value_of(first))
  end)
end)

describe('below 16 coroutines or more', function()
  for _, depth in ipairs { 1, 15, 16, 17, 40 } do
    it(('cancel has its effect at once, depth %d'):format(depth), function()
      local cancelled, after
      below(depth, function()
        local d = coop.Deferred(function() cancelled = true end)
        d:add_errback(function() end)
        d:cancel()
        after = cancelled
      end)
      assert.is_true(after)
    end)
  end

  for _, depth in ipairs { 2, 30 } do
    it(('spawn runs where no wait can pass, depth %d'):format(depth), function()
      local ok, result
      below(depth, function()
        ok, result = walled(function() return spawn(function() return 1 end).result end)
      end)
      assert.is_true(ok, result)
      assert.equal(1, result)
    end)

    it(('callback runs handlers where no wait can pass, depth %d'):format(depth), function()
      local ok, result
      below(depth, function()
        ok, result = walled(function()
          local seen
          local d = coop.Deferred()
          d:add_callback(function(v) seen = v end)
          d:callback(3)
          return seen
        end)
      end)
      assert.is_true(ok, result)
      assert.equal(3, result)
    end)
  end
end)

describe('coroutines of the script', function()
  it('stay alive when a body is cancelled that they do not wait for', function()
    local thread, body
    below(30, function()
      body = spawn(function()
        thread = coroutine.create(function()
          local d = coop.Deferred()
          d:add_callback(function() coop.Deferred():callback() end)
          d:callback(1)
          coroutine.yield 'mine'
          return 'end'
        end)
        assert.same({ true, 'mine' }, { coroutine.resume(thread) })
        await(coop.Deferred())
      end)
    end)
    body:add_errback(function() end)
    body:cancel()
    assert.equal('suspended', coroutine.status(thread))
    assert.same({ true, 'end' }, { coroutine.resume(thread) })
  end)

  it('stay alive when their refused wait comes before a wait of the body', function()
    local thread
    local body = spawn(function()
      walled(function()
        thread = coroutine.create(function()
          pcall(await, coop.Deferred())
          coroutine.yield 'alive'
          return 'end'
        end)
        coroutine.resume(thread)
      end)
      await(coop.Deferred())
    end)
    body:add_errback(function() end)
    body:cancel()
    assert.equal('suspended', coroutine.status(thread))
    assert.same({ true, 'end' }, { coroutine.resume(thread) })
  end)

  it('can be closed again when the cancelled body has closed them', function()
    local thread
    local body = spawn(function()
      thread = coroutine.create(function() await(coop.Deferred()) end)
      coroutine.resume(thread)
    end)
    body:add_errback(function() end)
    body:cancel()
    assert.equal('dead', coroutine.status(thread))
    assert.is_true(coroutine.close(thread))
    assert.same({ false, 'cannot resume dead coroutine' }, { coroutine.resume(thread) })
  end)
end)

describe('an error while a wait is handed on', function()
  -- So many that a call that has them as its arguments has no room for them again.
  local list = {}
  for i = 1, 600000 do list[i] = i end

  local function never() error('noreturn has passed on its call', 0) end

  it('leaves yield and the rest of the body as they were', function()
    local function leave(...)
      local first = ...
      return coroutine.wrap(function() coop.noreturn(never, table.unpack(list, first)) end)()
    end
    local ok, e, yielded
    local body = spawn(function()
      ok, e = pcall(function() return (leave(table.unpack(list))) end)
      yielded = coroutine.yield(5)
      return 'the end'
    end)
    assert.is_false(ok)
    assert.matches('stack overflow', e, 1, true)
    assert.equal(5, yielded)
    assert.equal('the end', value_of(body))
  end)

  it('is the failure of a body that cannot take so many values', function()
    local function leave(...)
      local first = ...
      return spawn(function() coop.noreturn(never, table.unpack(list, first)) end)
    end
    for _ = 1, 20 do
      local body = (function() return (leave(table.unpack(list))) end)()
      assert.matches('noreturn: too many arguments', error_of(body), 1, true)
    end
    local ran = false
    local d = coop.Deferred()
    d:add_callback(function() ran = true end)
    d:callback()
    assert.is_true(ran)
  end)
end)

describe('a finaliser', function()
  it('may add handlers to the Deferred that is being added to', function()
    local target, added, ran
    local function handler(v)
      ran = ran + 1
      return v
    end
    local _ <close> = at_collections(function()
      if not target then return end
      added = added + 1
      target:add_callback(handler)
    end)
    local total = 0
    for round = 1, 1000 do
      local d = coop.Deferred()
      added, ran = 0, 0
      target = d
      for _ = 1, round % 7 + 1 do
        added = added + 1
        d:add_both(handler)
        total = total + #{ {} }
      end
      local body = round % 3 == 0 and spawn(function() return await(d) end)
      target = nil
      d:callback(round)
      assert.equal(added, ran)
      if body then assert.equal(round, value_of(body)) end
    end
    assert.is_true(total > 0)
  end)

  for _, how in ipairs { 'callback', 'errback', 'cancel' } do
    it(('may call %s of the Deferred that is being added to'):format(how), function()
      local target
      local _ <close> = at_collections(function()
        if target then pcall(target[how], target, 1) end
      end)
      for round = 1, 1000 do
        local d = coop.Deferred()
        local ran = 0
        target = d
        for _ = 1, round % 7 + 1 do
          d:add_both(function() ran = ran + 1 end)
        end
        local body = round % 3 == 0 and spawn(function() pcall(await, d) end)
        target = nil
        if not d.called then d:callback(1) end
        assert.equal(round % 7 + 1, ran)
        if body then assert.is_true(body.called) end
      end
    end)
  end

  it('that fires a Deferred makes an errback under way an error', function()
    local target, fired
    local _ <close> = at_collections(function()
      if target then fired = pcall(target.callback, target, 'first') or fired end
    end)
    for _ = 1, 1000 do
      local d = coop.Deferred()
      local seen = cap(d)
      fired = false
      target = d
      local ok = pcall(d.errback, d, 'second')
      target = nil
      assert.equal(1, seen.n)
      assert.equal(fired, not ok)
    end
  end)
end)

describe('near the limit of C levels', function()
  it('an error leaves every Deferred usable', function()
    local function nest(n, f)
      if n == 0 then return f() end
      local ok, e = pcall(nest, n - 1, f)
      if not ok then error(e, 0) end
    end
    -- What is raised there may end in a failure that nobody sees.
    helper.unhandled(function()
      for n = 150, 200 do
        local d, body
        pcall(nest, n, function()
          d = coop.Deferred()
          body = spawn(function() return await(d) end)
          body:add_errback(function() end)
          body:cancel()
        end)
        if d and not d.called then pcall(d.callback, d, 1) end
        if d then assert.equal(1, cap(d).n) end
        if body then assert.equal(1, cap(body).n) end

        local ends
        pcall(nest, n, function()
          ends = { coop.Deferred(), coop.Deferred() }
          ends[1]:chain_deferred(ends[2])
          ends[1]:callback(1)
        end)
        if ends and not ends[1].called then ends[1]:callback(1) end
        if ends then assert.equal(1, cap(ends[1]).n) end
        assert.equal(1, cap(coop.succeed(n)).n)
      end
    end)
  end)
end)

describe('a predicate of a Cooperator', function()
  -- A Cooperator whose predicate calls `act` once, the task of which has an iterator to close.
  local function scene(act)
    local c, clock, task, closed
    local acted = false
    c, clock = clocked {
      termination_predicate_factory = function()
        return function()
          if task and not acted then
            acted = true
            act(task, c)
          end
          return true
        end
      end,
    }
    task = c:cooperate(coop.generator(function()
      local held <close> = setmetatable({}, { __close = function() closed = true end })
      while true do coroutine.yield(1) end
    end)())
    local done = task:when_done()
    clock:pump { 0, 0, 0 }
    assert.is_true(acted)
    assert.is_true(closed)
    return error_of(done), c, clock
  end

  it('may stop the task that was stepped', function()
    local e, c, clock = scene(function(task) task:stop() end)
    helper.is_error(errors.TaskStopped, e)
    assert.is_true(c.running)
    assert.same({}, clock:get_delayed_calls())
  end)

  it('may stop the Cooperator', function()
    local e, c, clock = scene(function(_, cooperator) cooperator:stop() end)
    helper.is_error(errors.SchedulerStopped, e)
    assert.is_false(c.running)
    assert.same({}, clock:get_delayed_calls())
  end)
end)

describe('a Cooperator', function()
  it('has not started when its scheduler gives no call', function()
    local c = coop.Cooperator { started = false, scheduler = function() end }
    local done = c:cooperate({ 1 }):when_done()
    assert.is_false(c.running)
    helper.misuse(function() c:start() end, 'the scheduler must return an object with cancel')
    assert.is_false(c.running)
    helper.pending(done)
  end)

  it('may be stopped by its scheduler, and leaves no call behind', function()
    local clock, c = coop.Clock(), nil
    c = coop.Cooperator { scheduler = function(f)
      c:stop()
      return clock:call_later(0, f)
    end }
    local done = c:cooperate({ 1, 2, 3 }):when_done()
    helper.is_error(errors.SchedulerStopped, (error_of(done)))
    assert.is_false(c.running)
    assert.same({}, clock:get_delayed_calls())
  end)
end)

describe('a batch', function()
  it('may step the batch of another Cooperator', run(function()
    local c, clock = clocked()
    local inner
    local outer = coop.generator(function()
      for i = 1, 10 do
        if i == 4 then
          inner = coop.batch_accumulate(50, count(20), c)
          clock:pump { 0, 0, 0 }
        end
        coroutine.yield(i)
      end
    end)
    assert.same({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, await(coop.batch_accumulate(10, outer())))
    assert.equal(20, #await(inner))
  end))

  it('of a slow generator leaves delayed calls their turn', run(function()
    local turn = false
    local slow = coop.generator(function()
      for i = 1, 2000 do
        if turn then return end
        local from = coop.seconds()
        while coop.seconds() - from < 0.001 do end
        coroutine.yield(i)
      end
    end)
    coop.call_later(0.001, function() turn = true end)
    assert.is_true(#await(coop.batch_accumulate(1000000, slow())) < 50)
  end))
end)

describe('a wait in a plain coroutine that a task iterates', function()
  -- A coroutine that waits for `d`, puts what it gets into `got`, and yields once more.
  local function waiting(d, got)
    return coroutine.create(function()
      got[#got + 1] = await(d)
      coroutine.yield 'more'
    end)
  end

  it('is kept when another task steps the coroutine, which fails', function()
    local c, clock = clocked()
    local d, got = coop.Deferred(), {}
    local thread = waiting(d, got)
    local one, two = c:cooperate(thread):when_done(), c:cooperate(thread):when_done()
    clock:pump { 0, 0, 0 }
    assert.matches('waits in another one', error_of(two), 1, true)
    d:callback 'value'
    clock:pump { 0, 0, 0 }
    assert.same({ 'value' }, got)
    assert.equal(thread, value_of(one))
  end)

  it('is kept when the script resumes the coroutine, which is refused', function()
    local c, clock = clocked()
    local d, got = coop.Deferred(), {}
    local thread = waiting(d, got)
    local done = c:cooperate(thread):when_done()
    clock:pump { 0, 0, 0 }
    assert.same({ false, 'cannot resume a coroutine that coop runs' },
      { coroutine.resume(thread, 'bogus') })
    d:callback 'value'
    clock:pump { 0, 0, 0 }
    assert.same({ 'value' }, got)
    assert.equal(thread, value_of(done))
  end)

  it("is kept when it is the wait of a body, and the task's failure", function()
    local c, clock = clocked()
    local d, got = coop.Deferred(), {}
    local thread = waiting(d, got)
    local done = c:cooperate(thread):when_done()
    local body = spawn(function() return select(2, coroutine.resume(thread)) end)
    clock:pump { 0, 0, 0 }
    assert.matches('waits in another one', error_of(done), 1, true)
    d:callback 'value'
    assert.same({ 'value' }, got)
    assert.equal('more', value_of(body))
  end)
end)

describe('a Clock', function()
  it('raises the first error of an advance and reports that time did not move', function()
    local clock, n = coop.Clock(), 0
    local function again()
      clock:call_later(0, again)
      n = n + 1
      if n == 1 then error('first', 0) end
    end
    clock:call_later(1, again)
    local ok, e
    local reports = helper.unhandled(function() ok, e = pcall(clock.advance, clock, 2) end)
    assert.same({ false, 'first' }, { ok, e })
    assert.equal(1, #reports)
    assert.matches('turns passed without time moving', reports[1].value, 1, true)
    assert.equal(1, clock:seconds())
  end)

  it('runs what is due when its time has become infinite', function()
    local clock, ran = coop.Clock(), false
    clock:advance(1.7e308)
    clock:advance(1.7e308)
    assert.equal(math.huge, clock:seconds())
    clock:call_later(0, function() ran = true end)
    clock:advance(0)
    assert.is_true(ran)
  end)
end)

describe('a delayed call', function()
  it('refuses more arguments than it can keep', function()
    local list = {}
    for i = 1, 100000 do list[i] = i end
    for _, clock in ipairs { coop.reactor, coop.Clock() } do
      local before = #clock:get_delayed_calls()
      helper.misuse(function() clock:call_later(0, print, table.unpack(list)) end,
        'call_later: too many arguments')
      assert.equal(before, #clock:get_delayed_calls())
    end
  end)

  it('refuses a delay to infinity and stays where it was', function()
    local call = coop.Clock():call_later(1e308, print)
    helper.misuse(function() call:delay(1e308) end, 'delay: the call would never be due')
    assert.equal(1e308, call:get_time())
    assert.is_true(call:active())
  end)

  -- Runs delayed calls of 0 seconds, each of which makes the next, until `ended()` or for too long.
  local function busy(ended)
    local from = coop.seconds()
    local late = false
    local function again()
      late = coop.seconds() - from > 20
      if not late and not ended() then coop.call_later(0, again) end
    end
    coop.call_later(0, again)
    return function() return late end
  end

  it('that makes itself again leaves later calls their turn', run(function()
    local over = coop.Deferred()
    local late = busy(function() return over.called end)
    coop.call_later(0.005, function() over:callback() end)
    await(over)
    assert.is_false(late())
    await(coop.sleep(0)) -- the last of them is called
  end))

  it('that makes itself again leaves what comes from outside its turn', run(function()
    local job = require 'coop.threads'.call(function() return 5 end)
    local late = busy(function() return job.called end)
    assert.equal(5, await(job))
    assert.is_false(late())
    await(coop.sleep(0)) -- the last of them is called
  end))

  it('that makes itself again leaves reactor:stop its turn', function()
    local result = child.coop [[
      local coop = require 'coop'
      local n = 0
      local function again()
        n = n + 1
        if n < 10000000 then coop.call_later(0, again) end
      end
      coop.call_later(0, again)
      coop.call_later(0.005, function() coop.reactor:stop() end)
      coop.reactor:add_system_event_trigger('during', 'shutdown', function()
        print(n < 10000000)
      end)
    ]]
    assert.equal('true\n', result.out)
    assert.equal('', result.err)
    assert.equal(0, result.status)
  end)
end)

child.each(function(name, execute)
  describe('in ' .. name, function()
    it('generators whose closers close the next are a clean error', function()
      local result = execute [[
        local coop = require 'coop'
        local reports = 0
        coop.on_unhandled(function() reports = reports + 1 end)
        local make = coop.generator(function(inner)
          local held <close> = setmetatable({}, { __close = function()
            if inner then inner:close() end
          end })
          coroutine.yield(1)
        end)
        local outermost
        for _ = 1, 100000 do
          outermost = make(outermost)
          outermost:next()
        end
        local ok, e = pcall(outermost.close, outermost)
        print(ok, (tostring(e):match 'C stack overflow'))
        io.stdout:flush()
      ]]
      assert.equal('false\tC stack overflow\n', result.out)
      assert.is_true(result.status == 0 or result.status == 1, result.err)
    end)

    it('os.exit in a comparator within a coroutine ends the process', function()
      local result = execute [[
        local coop = require 'coop'
        coop.spawn(function()
          table.sort({ 1, 2 }, function()
            coroutine.wrap(function() print(pcall(os.exit, 7)) end)()
            return false
          end)
        end)
        print 'went on'
      ]]
      assert.equal('', result.out)
      assert.equal(7, result.status)
    end)

    for _, place in ipairs {
      { 'delayed call', 'coop.call_later(0, os.exit, 3)' },
      { 'handler of a delayed call', 'coop.sleep(0):add_callback(function() os.exit(3) end)' },
    } do
      it(('os.exit in a %s ends the process'):format(place[1]), function()
        local result = execute([[
          local coop = require 'coop'
          coop.run(function()
            ]] .. place[2] .. [[ coop.await(coop.sleep(1000))
            print 'went on'
          end)
        ]])
        assert.equal('', result.out)
        assert.equal(3, result.status, result.err)
      end)
    end
  end)
end)

describe('os.exit that closes the state', function()
  for _, place in ipairs {
    { 'a delayed call', 'coop.call_later(0, leave)' },
    { 'a handler of a delayed call', 'coop.sleep(0):add_callback(leave)' },
  } do
    it('closes the script and ends the process, in ' .. place[1], function()
      local result = child.coop([[
        local coop = require 'coop'
        local function closing(text)
          return setmetatable({}, { __close = function() print('closed ' .. text) end })
        end
        local function leave()
          local held <close> = closing 'call'
          os.exit(3, true)
        end
        local held <close> = closing 'script'
        coop.run(function()
          ]] .. place[2] .. [[ coop.await(coop.sleep(1000))
          print 'went on'
        end)
      ]])
      assert.equal('closed call\nclosed script\n', result.out)
      assert.equal(3, result.status, result.err)
    end)
  end
end)

describe('Ctrl-C ends a loop that never ends', function()
  local loop = [[
    local coop = require 'coop'
    local n = 0
    local function loop()
      n = n + 1
      if n < 3 then return n end
      print 'looping'
      io.stdout:flush()
      io.popen 'kill -INT $PPID':close()
      while true do end
    end
  ]]

  local function assert_interrupted(text)
    local result = child.coop(loop .. text)
    assert.equal('looping\n', result.out)
    assert.equal(130, result.status, result.err)
  end

  it('in a predicate of a Cooperator', function()
    assert_interrupted [[
      local function factory()
        return function() loop() end
      end
      local endless = coop.generator(function() while true do coroutine.yield(1) end end)
      coop.Cooperator { termination_predicate_factory = factory }:cooperate(endless())
    ]]
  end)

  it('in an iterator that Clock:advance steps', function()
    assert_interrupted [[
      local clock = coop.Clock()
      local c = coop.Cooperator { scheduler = function(f) return clock:call_later(0, f) end }
      c:cooperate(loop)
      clock:advance(0)
    ]]
  end)
end)
