-- No depth limits: the figures that coop promises, in full size. Each case also runs in a body
-- far down Lua's stack of calls, and must not cost more than linearly when it grows.

local coop = require 'coop'
local helper = require 'tests.spec.helper'

local value_of, error_of = helper.value_of, helper.error_of
local inline, spawn, await = coop.inline_callbacks, coop.spawn, coop.await
local CancelledError = coop.errors.CancelledError

-- What f(n) costs with the collector stopped: allocated kilobytes, and instructions / 100 of the
-- running coroutine.
local function cost(f, n)
  collectgarbage()
  collectgarbage()
  collectgarbage 'stop'
  local steps = 0
  debug.sethook(function() steps = steps + 1 end, '', 100)
  local before = collectgarbage 'count'
  local ok, err = pcall(f, n)
  local kilobytes = collectgarbage 'count' - before
  debug.sethook()
  collectgarbage 'restart'
  if not ok then error(err, 0) end
  return kilobytes, steps
end

local function in_pcalls(depth, f, ...)
  if depth == 0 then return f(...) end
  local ok, err = pcall(in_pcalls, depth - 1, f, ...)
  if not ok then error(err, 0) end
end

-- A case f(n) that must hold for `full`.
local function holds(name, full, f)
  describe(name, function()
    it(('hold %d times'):format(full), function() f(full) end)

    it('hold in a body below 50 calls of pcall', function()
      local c = spawn(in_pcalls, 50, f, 1000)
      assert.is_nil(value_of(c))
    end)

    it('cost no more than linearly', function()
      f(16)
      local once = cost(f, 4000) -- in which a table that was large before may shrink
      local kilobytes, steps = cost(f, 4000)
      kilobytes = math.max(once, kilobytes)
      local more_kilobytes, more_steps = cost(f, 32000)
      assert.is_true(more_kilobytes <= 12 * kilobytes,
        ('%g KB, then %g KB for 8 times as many'):format(kilobytes, more_kilobytes))
      assert.is_true(more_steps <= 9 * steps + 10,
        ('%d steps, then %d steps for 8 times as many'):format(steps, more_steps))
    end)
  end)
end

local MILLION, HUNDRED_THOUSAND = 1000000, 100000

local function add(value, n) return value + (n or 1) end

local function second(_, d) return d end

local function deferreds(n)
  local ds = {}
  for i = 1, n do ds[i] = coop.Deferred() end
  return ds
end

-- n Deferreds, each of which waits for the next when it has been fired.
local function chain(n)
  local ds = deferreds(n)
  for i = 1, n - 1 do ds[i]:add_callback(second, ds[i + 1]) end
  return ds
end

-- Asserts that test(d.result) is true for each of the Deferreds.
local function each_result(ds, test)
  local good = 0
  for i = 1, #ds do
    if test(ds[i].result) then good = good + 1 end
  end
  assert.equal(#ds, good)
end

local function is_v(result) return result == 'v' end

local function is_cancelled(result) return result and CancelledError:is(result.value) end

-- Every i of 1 to n once, out of order, for an n that 7919 does not divide.
local function shuffled(n)
  local i = 0
  return function()
    i = i + 1
    if i <= n then return i * 7919 % n + 1 end
  end
end

holds('handlers on one pending Deferred', MILLION, function(n)
  local d = coop.Deferred()
  for _ = 1, n do d:add_callback(add, 2) end
  d:callback(0)
  assert.equal(2 * n, value_of(d))
end)

holds('handlers on one fired Deferred', MILLION, function(n)
  local d = coop.succeed(0)
  for _ = 1, n do d:add_callback(add) end
  assert.equal(n, value_of(d))
end)

holds('handlers that fail and recover on one Deferred', MILLION, function(n)
  local d, failed = coop.Deferred(), 0
  local function fail(value) error(value, 0) end
  local function recover(failure)
    failed = failed + 1
    return failure.value
  end
  for _ = 1, n // 2 do
    d:add_callback(fail)
    d:add_errback(recover)
  end
  d:callback 'v'
  assert.equal('v', value_of(d))
  assert.equal(n // 2, failed)
end)

holds('Deferreds in a chain of handlers, fired first to last', MILLION, function(n)
  local ds = chain(n)
  for i = 1, n - 1 do ds[i]:callback() end
  assert.is_nil(ds[1].result)
  ds[n]:callback 'v'
  each_result(ds, is_v)
end)

holds('Deferreds in a chain of handlers, fired last to first', MILLION, function(n)
  local ds = chain(n)
  ds[n]:callback 'v'
  for i = n - 1, 1, -1 do ds[i]:callback() end
  each_result(ds, is_v)
end)

holds('Deferreds in a chain of handlers, fired out of order', MILLION, function(n)
  local ds = chain(n)
  for i in shuffled(n) do ds[i]:callback(i == n and 'v' or nil) end
  each_result(ds, is_v)
end)

-- Each link is made by a Deferred that is waited for itself, to a chain that is long already.
holds('Deferreds in a chain of handlers, fired in pairs from the end', MILLION, function(n)
  local ds = chain(n)
  for i = n - 1, 2, -2 do
    ds[i - 1]:callback()
    ds[i]:callback()
  end
  if not ds[1].called then ds[1]:callback() end
  ds[n]:callback 'v'
  each_result(ds, is_v)
end)

holds('Deferreds in a chain of handlers, the last one failing', MILLION, function(n)
  local ds = chain(n)
  for i = 1, n - 1 do ds[i]:callback() end
  ds[n]:errback 'E'
  each_result(ds, function(result) return result and result.value == 'E' end)
  assert.equal('E', error_of(ds[1]))
end)

holds('Deferreds in a chain of handlers, cancelled at the first', MILLION, function(n)
  local ds, cancelled = chain(n), 0
  local source = coop.Deferred(function() cancelled = cancelled + 1 end)
  ds[n]:add_callback(second, source)
  for i = n, 1, -1 do ds[i]:callback() end
  ds[1]:cancel()
  assert.equal(1, cancelled)
  each_result(ds, is_cancelled)
end)

holds('Deferreds linked by chain_deferred', MILLION, function(n)
  local ds = deferreds(n)
  for i = 1, n - 1 do ds[i]:chain_deferred(ds[i + 1]) end
  ds[1]:callback 'v'
  assert.equal('v', value_of(ds[n]))
  ds[n] = nil
  each_result(ds, function(result) return result == nil end)
end)

holds('Deferreds linked by chain_deferred from the far end, failing', MILLION, function(n)
  local ds = deferreds(n)
  for i = n - 1, 1, -1 do ds[i]:chain_deferred(ds[i + 1]) end
  ds[1]:errback 'E'
  assert.equal('E', error_of(ds[n]))
end)

holds('Deferreds each fired by a handler of the one before', MILLION, function(n)
  local ds, ran = deferreds(n), 0
  local function fire(value, d)
    ran = ran + 1
    d:callback(value)
  end
  for i = 1, n - 1 do ds[i]:add_callback(fire, ds[i + 1]) end
  ds[1]:callback 'v'
  assert.equal('v', value_of(ds[n]))
  assert.equal(n - 1, ran)
end)

holds('Deferreds each cancelled by the canceller of the one before', HUNDRED_THOUSAND, function(n)
  local cancelled, d = 0, nil
  local all = {}
  for i = 1, n do
    local inner = d
    d = coop.Deferred(function()
      cancelled = cancelled + 1
      if inner then inner:cancel() end
    end)
    all[i] = d
  end
  d:cancel()
  assert.equal(n, cancelled)
  each_result(all, is_cancelled)
end)

holds('coroutines each awaiting the next, fired at the far end', HUNDRED_THOUSAND, function(n)
  local source = coop.Deferred()
  local function body(d) return await(d) + 1 end
  local c = source
  for _ = 1, n do c = spawn(body, c) end
  source:callback(0)
  assert.equal(n, value_of(c))
end)

holds('inline functions each awaiting the next, fired at the far end', HUNDRED_THOUSAND, function(n)
  local source = coop.Deferred()
  local body = inline(function(d) return await(d) + 1 end)
  local d = source
  for _ = 1, n do d = body(d) end
  source:callback(0)
  assert.equal(n, value_of(d))
end)

holds('coroutines that come to await the next in pairs from the end', HUNDRED_THOUSAND, function(n)
  local gates, all = deferreds(n), {}
  all[n + 1] = coop.Deferred()
  for i = 1, n do
    all[i] = spawn(function()
      await(gates[i])
      return await(all[i + 1])
    end)
  end
  for i = n, 2, -2 do
    gates[i - 1]:callback()
    gates[i]:callback()
  end
  all[n + 1]:callback 'v'
  each_result(all, is_v)
end)

holds('coroutines each firing what the next awaits', HUNDRED_THOUSAND, function(n)
  local links, done = deferreds(n + 1), 0
  local function body(d, next_one)
    local value = await(d)
    next_one:callback(value + 1)
    done = done + 1
  end
  for i = 1, n do spawn(body, links[i], links[i + 1]) end
  links[1]:callback(0)
  assert.equal(n, value_of(links[n + 1]))
  assert.equal(n, done)
end)

holds('coroutines each awaiting the next, the last one failing', HUNDRED_THOUSAND, function(n)
  local source = coop.Deferred()
  local function body(d) return await(d) + 1 end
  local c = source
  for _ = 1, n do c = spawn(body, c) end
  source:errback 'E'
  local value, failure = error_of(c)
  assert.equal('E', value)
  assert.equal('string', type(failure:traceback()))
end)

-- n coroutines, each waiting for the one before, the first for `source`; when the i-th is closed,
-- on_close(i) is called. Returns them.
local function closing(n, source, on_close)
  local guard = { __close = function(self) on_close(self.i) end }
  local function body(i, d)
    local _ <close> = setmetatable({ i = i }, guard)
    return await(d)
  end
  local all = {}
  for i = 1, n do all[i] = spawn(body, i, all[i - 1] or source) end
  return all
end

holds('coroutines each awaiting the next, cancelled at the top', HUNDRED_THOUSAND, function(n)
  local closed, in_order = 0, true
  local source = coop.Deferred()
  local all = closing(n, source, function(i)
    closed = closed + 1
    in_order = in_order and i == closed
  end)
  all[n]:cancel()
  assert.equal(n, closed)
  assert.is_true(in_order)
  assert.is_true(CancelledError:is(error_of(source)))
  each_result(all, is_cancelled)
end)

holds('inline functions each awaiting the next, cancelled at the top', HUNDRED_THOUSAND, function(n)
  local caught = 0
  local source = coop.Deferred()
  local body = inline(function(d)
    local ok, err = pcall(await, d)
    if not ok then
      caught = caught + 1
      error(err, 0)
    end
  end)
  local d = source
  for _ = 1, n do d = body(d) end
  d:cancel()
  assert.equal(n, caught)
  assert.is_true(CancelledError:is(error_of(d)))
  assert.is_true(CancelledError:is(error_of(source)))
end)

holds('coroutines that each close the next in their cleanup', HUNDRED_THOUSAND, function(n)
  local closed, all = 0, {}
  local guard = { __close = function(self)
    closed = closed + 1
    if self.inner then self.inner:cancel() end
  end }
  local function body(inner)
    local _ <close> = setmetatable({ inner = inner }, guard)
    await(coop.Deferred())
  end
  for i = 1, n do all[i] = spawn(body, all[i - 1]) end
  all[n]:cancel()
  assert.equal(n, closed)
  each_result(all, is_cancelled)
end)

holds('coroutines each awaiting the next, paused and unpaused', HUNDRED_THOUSAND, function(n)
  local source = coop.Deferred()
  local all = closing(n, source, function() end)
  all[n]:pause()
  assert.equal(1, source.paused)
  assert.equal(1, all[1].paused)
  source:callback 'v'
  assert.is_false(all[n].called)
  all[n]:unpause()
  assert.equal(0, source.paused)
  each_result(all, is_v)
end)

holds('levels of a coroutine that awaits its own recursion', HUNDRED_THOUSAND, function(n)
  local gate = coop.Deferred()
  local function recurse(left)
    if left == 0 then return await(gate) end
    return await(spawn(recurse, left - 1)) + 1
  end
  local c = spawn(recurse, n)
  assert.is_false(c.called)
  gate:callback(0)
  assert.equal(n, value_of(c))
end)

holds('levels of an inline function that awaits its own recursion', HUNDRED_THOUSAND, function(n)
  local recurse
  recurse = inline(function(left)
    if left == 0 then return 0 end
    return await(recurse(left - 1)) + 1
  end)
  assert.equal(n, value_of(recurse(n)))
end)

holds('levels of an awaited recursion that fails', HUNDRED_THOUSAND, function(n)
  local caught = 0
  local recurse
  recurse = inline(function(left)
    if left == 0 then error('E', 0) end
    local ok, err = pcall(await, recurse(left - 1))
    caught = caught + 1
    assert(not ok)
    error(err, 0)
  end)
  assert.equal('E', error_of(recurse(n)))
  assert.equal(n, caught)
end)

holds('levels of an awaited recursion, cancelled at the top', HUNDRED_THOUSAND, function(n)
  local closed, in_order = 0, true
  local guard = { __close = function(self)
    in_order = in_order and self.left == closed
    closed = closed + 1
  end }
  local function recurse(left)
    local _ <close> = setmetatable({ left = left }, guard)
    if left == 0 then await(coop.Deferred()) end
    return await(spawn(recurse, left - 1))
  end
  local c = spawn(recurse, n)
  c:cancel()
  assert.equal(n + 1, closed)
  assert.is_true(in_order)
  assert.is_true(CancelledError:is(error_of(c)))
end)

holds('levels of calls that each begin the next and go on', HUNDRED_THOUSAND, function(n)
  local begun, gone_on = 0, 0
  local function recurse(left)
    begun = begun + 1
    if left > 0 then
      local before = begun
      local c = spawn(recurse, left - 1)
      if begun == before + left and c.called then gone_on = gone_on + 1 end
    end
  end
  assert.is_nil(value_of(spawn(recurse, n)))
  assert.equal(n + 1, begun)
  assert.equal(n, gone_on)
end)

holds('waits of one body for fired Deferreds', MILLION, function(n)
  local c = spawn(function()
    local sum = 0
    for _ = 1, n do sum = sum + await(coop.succeed(1)) end
    return sum
  end)
  assert.equal(n, value_of(c))
end)

holds('waits of one body for the same Deferred', MILLION, function(n)
  local d, failed = coop.succeed(1), coop.fail 'E'
  local c = spawn(function()
    local sum = 0
    for _ = 1, n // 2 do
      sum = sum + coroutine.yield(d)
      if not pcall(await, failed) then sum = sum + 1 end
    end
    return sum
  end)
  assert.equal(n, value_of(c))
end)

holds('functions that noreturn puts in the place of the one before', MILLION, function(n)
  local function step(left, sum)
    if left == 0 then return sum end
    return coop.noreturn(step, left - 1, sum + 1)
  end
  assert.equal(n, value_of(spawn(step, n, 0)))
end)

holds('functions that noreturn puts in the place of one that waits', HUNDRED_THOUSAND, function(n)
  local ds = deferreds(n)
  local function step(i)
    await(ds[i])
    if i == n then return 'v' end
    return coop.noreturn(step, i + 1)
  end
  local c = spawn(step, 1)
  for i = n, 1, -1 do ds[i]:callback() end
  assert.equal('v', value_of(c))
end)

holds('waiters of a lock that each release it at once', HUNDRED_THOUSAND, function(n)
  local lock, held = coop.DeferredLock(), 0
  lock:acquire()
  for _ = 1, n do
    lock:acquire():add_callback(function(l)
      held = held + 1
      l:release()
    end)
  end
  lock:release()
  assert.equal(n, held)
  assert.is_false(lock.locked)
end)

holds('coroutines that hold a lock for a block', HUNDRED_THOUSAND, function(n)
  local lock, held = coop.DeferredLock(), 0
  lock:acquire()
  for _ = 1, n do
    spawn(function()
      local _ <close> = await(lock:acquire())
      held = held + 1
    end)
  end
  lock:release()
  assert.equal(n, held)
  assert.is_false(lock.locked)
end)

holds('functions that a lock runs one after the other', HUNDRED_THOUSAND, function(n)
  local lock, ran = coop.DeferredLock(), 0
  lock:acquire()
  for _ = 1, n do lock:run(function() ran = ran + 1 end) end
  lock:release()
  assert.equal(n, ran)
  assert.is_false(lock.locked)
end)

holds('waiters of a semaphore that each release it at once', HUNDRED_THOUSAND, function(n)
  local semaphore, held = coop.DeferredSemaphore(2), 0
  semaphore:acquire()
  semaphore:acquire()
  for _ = 1, n do
    semaphore:acquire():add_callback(function(s)
      held = held + 1
      s:release()
    end)
  end
  semaphore:release()
  semaphore:release()
  assert.equal(n, held)
  assert.equal(2, semaphore.tokens)
end)

holds('getters of a queue that each put for the next', HUNDRED_THOUSAND, function(n)
  local queue = coop.DeferredQueue()
  local function put(value) queue:put(value + 1) end
  for _ = 1, n do queue:get():add_callback(put) end
  queue:put(0)
  assert.equal(1, #queue)
  assert.equal(n, value_of(queue:get()))
end)

holds('aggregates each of the one before', HUNDRED_THOUSAND, function(n)
  local source = coop.Deferred()
  local d = source
  for _ = 1, n do d = coop.gather_results { d } end
  source:callback 'v'
  local value = value_of(d)
  for _ = 1, n do value = value[1] end
  assert.equal('v', value)
end)

holds('aggregates each of the one before, cancelled at the top', HUNDRED_THOUSAND, function(n)
  local source = coop.Deferred()
  local d = source
  for _ = 1, n do d = coop.gather_results({ d }, true) end
  d:cancel()
  assert.is_true(source.called)
  assert.is_true(d.called)
  error_of(d)
end)

holds('coroutines that wait for one Deferred', HUNDRED_THOUSAND, function(n)
  local d, resumed = coop.Deferred(), 0
  local function body()
    await(d)
    resumed = resumed + 1
  end
  for _ = 1, n do spawn(body) end
  d:callback()
  assert.equal(n, resumed)
end)

for name, order in pairs {
  ['first to last'] = function(n, i) return i, n end,
  ['last to first'] = function(n, i) return n + 1 - i, 1 end,
} do
  holds('coroutines that wait for one Deferred, cancelled ' .. name, HUNDRED_THOUSAND, function(n)
    local cancelled, all = 0, {}
    local d = coop.Deferred(function() cancelled = cancelled + 1 end)
    for i = 1, n do all[i] = spawn(await, d) end
    for i = 1, n do
      assert(cancelled == 0)
      all[(order(n, i))]:cancel()
    end
    assert.equal(1, cancelled)
    each_result(all, is_cancelled)
  end)
end

describe('near the limit of nested calls', function()
  -- At the limit an error is in order, but none that goes unseen, and none that stays.
  local function seen_or_done(f, depth)
    local c
    local reported = helper.unhandled(function()
      c = spawn(in_pcalls, depth, f)
    end)
    assert.is_true(c.called)
    local outcome = helper.cap(c)[1]
    local errors = { outcome and outcome.value, reported[1] and reported[1].value }
    local failed = coop.type(outcome) == 'Failure' or #reported > 0
    if failed then
      assert.truthy(tostring(errors[1] or errors[2]):find 'overflow', tostring(errors[1]))
    end
  end

  for name, f in pairs {
    ['handlers that fire the next'] = function()
      local ds = deferreds(200)
      for i = 1, 199 do ds[i]:add_callback(function() ds[i + 1]:callback(i) end) end
      ds[1]:callback()
      if ds[200].result ~= 199 then error('lost: an overflow', 0) end
    end,
    ['bodies that begin the next'] = function()
      local begun = 0
      local function level(n)
        begun = begun + 1
        if n > 1 then await(spawn(level, n - 1)) end
      end
      spawn(level, 200)
      if begun ~= 200 then error('lost: an overflow', 0) end
    end,
    ['bodies that are cancelled'] = function()
      local closed = 0
      local all = closing(200, coop.Deferred(), function() closed = closed + 1 end)
      all[200]:cancel()
      if closed ~= 200 then error('lost: an overflow', 0) end
    end,
  } do
    it('an error is seen: ' .. name, function()
      for depth = 60, 230, 5 do seen_or_done(f, depth) end
      assert.is_nil(value_of(spawn(f)))
    end)
  end
end)

describe('memory', function()
  -- Asserts that `kilobytes` of live memory, sampled by `sample` on the way, stay as they were.
  local function sampler(every)
    local base, most, n = nil, 0, 0
    return function()
      n = n + 1
      if n % every == 0 then
        if base then most = math.max(most, collectgarbage 'count') end
        if not base or n % (every * 10) == 0 then
          collectgarbage()
          collectgarbage()
          local live = collectgarbage 'count'
          base = base or live
          assert.is_true(live - base < 64, ('%g KB, then %g KB'):format(base, live))
          assert.is_true(most < 3 * base + 8192, ('%g KB, at most %g KB'):format(base, most))
        end
      end
    end
  end

  it('stays as it is for 1,000,000 noreturn in a row', function()
    local sample = sampler(20000)
    local function step(left)
      sample()
      if left == 0 then return 'end' end
      return coop.noreturn(step, left - 1)
    end
    assert.equal('end', value_of(spawn(step, MILLION)))
  end)

  it('stays as it is for 1,000,000 waits in a row', function()
    local sample, d = sampler(20000), coop.succeed()
    local c = spawn(function()
      for _ = 1, MILLION // 2 do
        sample()
        await(d)
        await(coop.succeed())
      end
      return 'end'
    end)
    assert.equal('end', value_of(c))
  end)

  it('stays as it is for 100,000 coroutines that wait and end one after the other', function()
    local sample = sampler(2000)
    for _ = 1, HUNDRED_THOUSAND do
      local d = coop.Deferred()
      local c = spawn(await, d)
      d:callback 'v'
      assert(c.result == 'v')
      sample()
    end
  end)

  it('stays as it is for 100,000 waiters of one Deferred that come and go', function()
    local sample, d = sampler(2000), coop.Deferred()
    local stays = spawn(await, d)
    for _ = 1, HUNDRED_THOUSAND do
      spawn(await, d):cancel()
      sample()
    end
    d:callback 'v'
    assert.equal('v', value_of(stays))
  end)
end)
