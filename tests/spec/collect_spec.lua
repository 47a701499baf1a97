-- What nothing holds is collected, its cleanup run, without a report; what is still to run is held.

local coop = require 'coop'
local helper = require 'tests.spec.helper'

require 'coop.testing'.may_leave 'wait' -- what is collected here waits for ever

local value_of, pending = helper.value_of, helper.pending
local inline, spawn, await = coop.inline_callbacks, coop.spawn, coop.await

local MANY = 10000

local function collect()
  collectgarbage()
  collectgarbage()
end

local function weak()
  return setmetatable({}, { __mode = 'v' })
end

local function size(t)
  local n = 0
  for _ in pairs(t) do n = n + 1 end
  return n
end

-- A to-be-closed value that calls `f`.
local function closer(f)
  return setmetatable({}, { __close = f })
end

-- Makes MANY things with make(i, closed), where closed() is to be called by the cleanup of each.
-- Asserts that all are collected and have had their cleanup (when there is any), that nothing is
-- reported, and that the memory comes back: a second time takes no more of it.
local function goes_away(make, has_cleanup)
  local function round()
    local seen, closed = weak(), 0
    local function on_close() closed = closed + 1 end
    collectgarbage 'stop'
    for i = 1, MANY do seen[i] = make(i, on_close) end
    local alive, early = size(seen), closed
    collectgarbage 'restart'
    collect()
    collect()
    return alive, early, size(seen), closed
  end
  local reported = helper.unhandled(function()
    round()
    local before = collectgarbage 'count'
    local alive, early, left, closed = round()
    local after = collectgarbage 'count'
    assert.equal(MANY, alive)
    assert.equal(0, early)
    assert.equal(0, left)
    assert.equal(has_cleanup and MANY or 0, closed)
    assert.is_true(after - before < 64, ('%g KB are left'):format(after - before))
  end)
  assert.same({}, reported)
end

describe('ten thousand of what nothing holds are collected:', function()
  it('Deferreds whose handlers and cancellers refer to them', function()
    goes_away(function()
      local d
      d = coop.Deferred(function() return d end)
      d:add_both(function() return d end)
      return d
    end)
  end)

  it('Deferreds that wait for one another\'s handlers', function()
    goes_away(function()
      local outer, inner = coop.succeed(), coop.Deferred()
      inner:add_callback(function() return outer end)
      outer:add_callback(function() return inner end)
      return outer
    end)
  end)

  it('Deferreds whose Failure refers to them, handled', function()
    goes_away(function()
      local d = coop.Deferred()
      d:errback { d }
      d:add_errback(function(failure) return { failure, d } end)
      return d
    end)
  end)

  it('Deferreds with values that refer to them', function()
    goes_away(function()
      local d = coop.Deferred()
      d:callback { d }
      return d
    end)
  end)

  it('coroutines that wait and refer to themselves', function()
    goes_away(function(_, closed)
      local c, d
      d = coop.Deferred(function() return c end)
      c = spawn(function()
        local _ <close> = closer(closed)
        await(d)
        return c
      end)
      return c
    end, true)
  end)

  it('coroutines that nobody ever referred to', function()
    goes_away(function(_, closed)
      local d = coop.Deferred()
      spawn(function()
        local _ <close> = closer(closed)
        await(d)
      end)
      return d
    end, true)
  end)

  it('coroutines that wait for coroutines', function()
    goes_away(function(i, closed)
      return spawn(function()
        local _ <close> = i % 2 == 0 and closer(closed) or nil
        await(spawn(function()
          local _ <close> = i % 2 == 1 and closer(closed) or nil
          await(coop.Deferred())
        end))
      end)
    end, true)
  end)

  it('paused coroutines', function()
    goes_away(function(_, closed)
      local d = coop.Deferred()
      local c = spawn(function()
        local _ <close> = closer(closed)
        await(d)
      end)
      c:pause()
      d:callback { c }
      return c
    end, true)
  end)

  it('bodies of inline_callbacks functions', function()
    goes_away(function(_, closed)
      local d
      d = inline(function()
        local _ <close> = closer(closed)
        await(coop.Deferred(function() return d end))
        return d
      end)()
      return d
    end, true)
  end)

  it('bodies that have left by noreturn', function()
    goes_away(function(_, closed)
      return spawn(function()
        coop.noreturn(function()
          local _ <close> = closer(closed)
          await(coop.Deferred())
        end)
      end)
    end, true)
  end)

  it('bodies that wait inside coroutines of the script', function()
    goes_away(function(_, closed)
      return spawn(function()
        coroutine.wrap(function()
          local _ <close> = closer(closed)
          await(coop.Deferred())
        end)()
      end)
    end, true)
  end)

  it('bodies that wait for a lock, a semaphore and a queue, and these', function()
    goes_away(function(i, closed)
      local lock, semaphore, queue =
        coop.DeferredLock(), coop.DeferredSemaphore(1), coop.DeferredQueue()
      lock:acquire()
      semaphore:acquire()
      local sources = {
        function() return lock:acquire() end,
        function() return semaphore:acquire() end,
        function() return queue:get() end,
      }
      return spawn(function()
        local _ <close> = closer(closed)
        await(sources[i % 3 + 1]())
      end)
    end, true)
  end)

  it('aggregates and their children', function()
    goes_away(function()
      local children = { coop.Deferred(), coop.Deferred() }
      local d = coop.gather_results(children)
      d:add_callback(function() return children, d end)
      return d
    end)
  end)

  it('generators that have begun', function()
    goes_away(function(_, closed)
      local g
      g = coop.generator(function()
        local _ <close> = closer(closed)
        coop.yield(1)
        return g
      end)()
      g:next()
      return g
    end, true)
  end)

  it('generators that have not begun, whose bodies never run', function()
    goes_away(function(_, closed)
      return coop.generator(function()
        closed()
        coop.yield(1)
      end)()
    end)
  end)

  it('generators left by a break', function()
    goes_away(function(_, closed)
      local g = coop.generator(function()
        local _ <close> = closer(closed)
        for v = 1, 3 do coop.yield(v) end
      end)()
      local last
      for v in g do
        last = function() return v end
        if v == 2 then break end
      end
      assert(last() == 2)
      return g
    end, true)
  end)

  it('generators that wait in a body that nothing holds', function()
    goes_away(function(_, closed)
      return spawn(function()
        coop.generator(function()
          local _ <close> = closer(closed)
          await(coop.Deferred())
        end)():next()
      end)
    end, true)
  end)

  for name, act in pairs {
    ['running'] = function() end,
    ['paused'] = function(task) task:pause() end,
    ['waiting'] = function(_, step) step() end,
  } do
    it(name .. ' tasks, with their Cooperators and generators', function()
      goes_away(function(_, closed)
        local step, task
        local cooperator = coop.Cooperator {
          termination_predicate_factory = function()
            return function() return true end
          end,
          scheduler = function(f)
            step = f
            return { cancel = function() end }
          end,
        }
        task = cooperator:cooperate(coop.generator(function()
          local _ <close> = closer(closed)
          coop.yield(1)
          coop.yield(coop.Deferred(function() return task end))
        end)())
        task:when_done():add_callback(function() return task, cooperator end)
        step()
        act(task, step)
        return task
      end, true)
    end)
  end

  it('looping calls that are not running', function()
    goes_away(function()
      local loop
      loop = coop.LoopingCall(function() return loop end)
      return loop
    end)
  end)

  it('virtual clocks with calls that refer to them, and bodies that sleep by them', function()
    goes_away(function(_, closed)
      local clock = coop.Clock()
      clock:call_later(1, function() return clock end)
      spawn(function()
        local _ <close> = closer(closed)
        await(coop.defer_later(clock, 1))
        return clock
      end)
      return clock
    end, true)
  end)
end)

describe('what is collected', function()
  it('is closed once, as is what it waited for', function()
    local log = {}
    local function body(name, f)
      return spawn(function()
        local _ <close> = closer(function() log[#log + 1] = name end)
        await(f())
      end)
    end
    assert.same({}, helper.unhandled(function()
      body('outer', function() return body('inner', coop.Deferred) end)
    end))
    collect()
    table.sort(log)
    assert.same({ 'inner', 'outer' }, log)
  end)

  it('can be the Generator of a loop that a break has left', function()
    local closed, last = 0, nil
    local make = coop.generator(function()
      local _ <close> = closer(function() closed = closed + 1 end)
      for v = 1, 3 do coop.yield(v) end
    end)
    local function loop()
      for v in make() do
        last = function() return v end
        if v == 2 then break end
      end
    end
    for _ = 1, 100 do loop() end
    assert.equal(2, last())
    collect()
    assert.equal(100, closed)
  end)

  it('may call coop in its cleanup', function()
    local log = {}
    local kept = coop.Deferred()
    kept:add_callback(function(value) log[#log + 1] = value end)
    assert.same({}, helper.unhandled(function()
      spawn(function()
        local _ <close> = closer(function()
          kept:callback 'fired'
          local c = spawn(function() return await(coop.succeed 'spawned') end)
          log[#log + 1] = c.result
        end)
        await(coop.Deferred())
      end)
    end))
    assert.same({ 'fired', 'spawned' }, log)
  end)

  it('may fire what it waits on in its cleanup, and cancel itself', function()
    local closed = 0
    for _, act in ipairs {
      function(_, d) d:callback() end,
      function(_, d) d:errback 'oops' end,
      function(c) c:cancel() end,
    } do
      assert.same({}, helper.unhandled(function()
        local d = coop.Deferred()
        local c
        c = spawn(function()
          local _ <close> = closer(function()
            closed = closed + 1
            act(c, d)
          end)
          await(d)
        end)
      end))
    end
    assert.equal(3, closed)
  end)

  it('may close in its cleanup what is collected with it', function()
    local closed = 0
    local function abandon()
      local generator = coop.generator(function()
        local _ <close> = closer(function() closed = closed + 1 end)
        coop.yield(1)
      end)()
      generator:next()
      spawn(function()
        local _ <close> = generator
        await(coop.Deferred())
      end)
    end
    for _ = 1, 100 do abandon() end
    collect()
    assert.equal(100, closed)
    for i = 1, 300 do assert.equal(i, value_of(spawn(function() return i end))) end
  end)

  it('may be collected while bodies run', function()
    local closed = 0
    local function abandoned()
      spawn(function()
        local _ <close> = closer(function() closed = closed + 1 end)
        await(coop.Deferred())
      end)
    end
    local c = spawn(function()
      for _ = 1, 100 do
        abandoned()
        collectgarbage 'step'
        await(coop.succeed())
      end
      return 'end'
    end)
    assert.equal('end', value_of(c))
    collect()
    assert.equal(100, closed)
  end)
end)

describe('what is still to run is not collected:', function()
  it('a body that sleeps, which nobody holds', helper.run(function()
    local done = false
    spawn(function()
      await(coop.sleep(0.001))
      done = true
    end)
    collect()
    await(coop.sleep(0.02))
    assert.is_true(done)
  end))

  it('a body that sleeps by a virtual clock', function()
    local clock, log = coop.Clock(), {}
    for i = 1, 100 do
      spawn(function()
        local _ <close> = closer(function() log[#log + 1] = 'closed' end)
        await(coop.defer_later(clock, i))
        log[#log + 1] = i
      end)
    end
    for _ = 1, 50 do
      collect()
      clock:advance(1)
    end
    assert.equal(100, #log)
    assert.same({ 49, 'closed', 50, 'closed' }, { table.unpack(log, 97) })
    clock:advance(50)
    assert.equal(200, #log)
  end)

  it('a delayed call that nobody holds', helper.run(function()
    local done = coop.Deferred()
    coop.call_later(0.001, function() done:callback 'called' end)
    collect()
    assert.equal('called', await(done))
  end))

  it('a body whose Deferred is held', function()
    local log, d = {}, coop.Deferred()
    local held = weak()
    held[1] = spawn(function()
      local _ <close> = closer(function() log[#log + 1] = 'closed' end)
      log[#log + 1] = await(d)
    end)
    collect()
    assert.same({}, log)
    d:callback 'v'
    assert.same({ 'v', 'closed' }, log)
  end)

  it('a body that waits at the end of a chain whose source is held', function()
    local log, source = {}, coop.Deferred()
    do
      local outer = coop.succeed()
      outer:add_callback(function() return source end)
      local inner = inline(function() return await(outer) end)()
      spawn(function() log[#log + 1] = await(inner) end)
    end
    collect()
    source:callback 'v'
    assert.same({ 'v' }, log)
  end)

  it('a body that waits for a lock which is held', function()
    local lock, log = coop.DeferredLock(), {}
    lock:acquire()
    spawn(function()
      local _ <close> = await(lock:acquire())
      log[#log + 1] = 'held'
    end)
    collect()
    assert.same({}, log)
    lock:release()
    assert.same({ 'held' }, log)
  end)

  it('a paused body that somebody can unpause', function()
    local d, log = coop.Deferred(), {}
    local c = spawn(function() log[#log + 1] = await(d) end)
    c:pause()
    d:callback 'v'
    d = nil
    collect()
    assert.same({}, log)
    c:unpause()
    assert.same({ 'v' }, log)
    assert.is_nil(d)
  end)

  it('what a held body waits on', function()
    local seen = weak()
    local c = spawn(function()
      seen[1] = coop.Deferred(function(d) d:callback 'cancelled' end)
      return await(seen[1])
    end)
    collect()
    pending(c)
    assert.is_not_nil(seen[1])
    seen[1]:callback 'v'
    assert.equal('v', value_of(c))
  end)

  it('a task of the global Cooperator that nobody holds', helper.run(function()
    local done = coop.Deferred()
    coop.cooperate(coop.generator(function()
      for i = 1, 3 do
        collect()
        coop.yield(i)
      end
      done:callback 'end'
    end)())
    collect()
    assert.equal('end', await(done))
    await(coop.sleep(0)) -- the generator returns
  end))

  it('a running LoopingCall that nobody holds', helper.run(function()
    local done, count = coop.Deferred(), 0
    do
      local loop
      loop = coop.LoopingCall(function()
        collect()
        count = count + 1
        if count == 3 then
          loop:stop()
          done:callback 'end'
        end
      end)
      loop:start(0.001)
    end
    collect()
    assert.equal('end', await(done))
  end))

  it('a generator that a running body asks', helper.run(function()
    local list = {}
    for v in coop.generator(function()
      for i = 1, 3 do
        await(coop.sleep(0.001))
        collect()
        coop.yield(i)
      end
    end)() do
      list[#list + 1] = v
      collect()
    end
    assert.same({ 1, 2, 3 }, list)
  end))
end)
