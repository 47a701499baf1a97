local coop = require 'coop'
local helper = require 'tests.spec.helper'
local fakes = require 'tests.spec.fakes'
local run, misuse = helper.run, helper.misuse
local value_of, error_of, pending = helper.value_of, helper.error_of, helper.pending

local CancelledError = coop.errors.CancelledError

local s, c, log

local function setup()
  s, log = fakes.scheduler(), {}
  c = coop.Cooperator {
    scheduler = s.schedule,
    termination_predicate_factory = fakes.steps(1),
    slice = 3600,
  }
end

local function finish()
  for _ = 1, 100000 do
    if s.outstanding() == 0 then return end
    s.pump()
  end
  error('this never ends', 2)
end

-- A Generator of `from` to `to` that logs what it yields.
local count = coop.generator(function(from, to)
  for i = from, to do
    log[#log + 1] = i
    coroutine.yield(i)
  end
end)

-- A Generator that yields each of its arguments, and logs when it is closed.
local items = coop.generator(function(...)
  local _ <close> = setmetatable({}, { __close = function() log[#log + 1] = 'closed' end })
  for i = 1, select('#', ...) do coroutine.yield((select(i, ...))) end
end)

-- Items `from` to `to` (from 0) of 110, 111, ... 149.
local function slice(from, to) return count(110 + from, 110 + to) end

describe('a ValueBucket', function()
  before_each(setup)

  it('keeps every value but nil, in order', function()
    local b = coop.ValueBucket()
    assert.equal('ValueBucket', coop.type(b))
    local list = {}
    for _, v in ipairs { 1, false, '', 0, list, 1 } do b(v) end
    b(nil)
    b()
    assert.equal(6, #b)
    assert.same({ 1, false, '', 0, {}, 1 }, b:contents())
    assert.equal(list, b:contents()[5])
  end)

  it('ACC-10 shows its contents while it collects, and is empty once drained', function()
    local b = coop.ValueBucket()
    assert.same({}, b:contents())
    b 'x'
    assert.same({ 'x' }, b:contents())
    b 'y'
    assert.same({ 'x', 'y' }, b:contents())
    assert.same({ 'x', 'y' }, b:contents())
    local drained = b:drain_contents()
    assert.same({ 'x', 'y' }, drained)
    assert.equal(0, #b)
    assert.same({}, b:contents())
    b 'z'
    assert.same({ 'x', 'y' }, drained)
    assert.same({ 'z' }, b:drain_contents())
    assert.same({}, b:drain_contents())
  end)

  it('ACC-10a may stand beside another at a tap', function()
    local even, odd = coop.ValueBucket(), coop.ValueBucket()
    local tapped = coop.generator(function(source)
      for v in source do
        even(v % 2 == 0 and v or nil)
        odd(v % 2 == 1 and v * 10 or nil)
        coroutine.yield(v)
      end
    end)
    local d = coop.accumulate(tapped(count(1, 5)), c)
    finish()
    assert.same({ 1, 2, 3, 4, 5 }, value_of(d))
    assert.same({ 2, 4 }, even:contents())
    assert.same({ 10, 30, 50 }, odd:contents())
  end)

  it('ACC-01 is drained by accumulation_handler', function()
    local b = coop.ValueBucket()
    for i = 1, 2 do b(tostring(i)) end
    assert.same({ '1', '2' }, coop.accumulation_handler(nil, b))
    assert.equal(0, #b)
    local spigot = {}
    function spigot:drain_contents() return self == spigot and 'drained' end
    assert.equal('drained', coop.accumulation_handler({}, spigot))
  end)
end)

describe('an accumulation', function()
  before_each(setup)

  it('ACC-02 collects the values of a generator', function()
    local d = coop.accumulate(slice(10, 11), c)
    assert.equal('Deferred', coop.type(d))
    finish()
    assert.same({ 120, 121 }, value_of(d))
  end)

  it('takes one value in a step', function()
    local d = coop.accumulate(count(1, 3), c)
    assert.same({}, log)
    for i = 1, 3 do
      s.pump()
      assert.equal(i, #log)
    end
    pending(d)
    s.pump()
    assert.same({ 1, 2, 3 }, value_of(d))
  end)

  it('is made by the global Cooperator when there is no other', run(function()
    assert.same({ 120, 121 }, coop.await(coop.accumulate(slice(10, 11))))
    assert.same({ 1, 2, 3 }, coop.await(coop.batch_accumulate(2, count(1, 3))))
  end))

  it('ACC-03 that fails leaves the results of those before it', run(function()
    local list = { 10, 11 }
    local element = coop.generator(function()
      local i = 0
      while true do
        i = i + 1
        if not list[i] then error 'index out of range' end
        coroutine.yield(list[i])
      end
    end)
    local logged = {}
    local message = coop.await(coop.inline_callbacks(function()
      local first = coop.await(coop.accumulate(list))
      local ok, e = pcall(coop.await, coop.accumulate(element()))
      if not ok then logged[#logged + 1] = e end
      return ('only %s'):format(table.concat(first, ','))
    end)())
    assert.equal('only 10,11', message)
    assert.equal(1, #logged)
    assert.truthy(logged[1]:find('index out of range', 1, true))
  end))

  it('ACC-04 is awaited by two functions at once', run(function()
    local two = coop.inline_callbacks(function(from)
      return coop.accumulate(count(from, from + 1))
    end)
    local results = coop.await(coop.gather_results { two(10), two(25) })
    assert.same({ n = 2, { 10, 11 }, { 25, 26 } }, results)
  end))

  it('ACC-05 is gathered with what functions await', run(function()
    local two = coop.inline_callbacks(function(from)
      local values = coop.await(coop.accumulate(count(from, from + 1)))
      return values
    end)
    local results = coop.await(coop.gather_results {
      two(10), two(25), coop.accumulate(count(14, 15)),
    })
    assert.same({ n = 3, { 10, 11 }, { 25, 26 }, { 14, 15 } }, results)
  end))

  it('ACC-06 takes turns with others', function()
    local ds = {}
    for i, from in ipairs { 10, 25, 108, 155 } do
      ds[i] = coop.accumulate(count(from, from + 1), c)
    end
    local all = coop.gather_results(ds)
    finish()
    assert.same({ 10, 25, 108, 155, 11, 26, 109, 156 }, log)
    assert.same({ n = 4, { 10, 11 }, { 25, 26 }, { 108, 109 }, { 155, 156 } }, value_of(all))
  end)

  it('ACC-07 takes turns with shorter ones', function()
    local four = coop.generator(function()
      for _, i in ipairs { 1108, 1109, 1108, 1109 } do
        log[#log + 1] = i
        coroutine.yield(i)
      end
    end)
    local all = coop.gather_results {
      coop.accumulate(count(10, 11), c), coop.accumulate(count(25, 26), c),
      coop.accumulate(four(), c), coop.accumulate(count(155, 156), c),
    }
    finish()
    assert.same({ 10, 25, 1108, 155, 11, 26, 1109, 156, 1108, 1109 }, log)
    assert.same({ 1108, 1109, 1108, 1109 }, value_of(all)[3])
  end)

  it('ACC-09 is stepped by whoever ticks its Cooperator', function()
    local clk = coop.Clock()
    local seen = {}
    local l = coop.LoopingCall.with_count(function()
      s.pump()
      seen[#seen + 1] = #log
    end)
    l.clock = clk
    local d = coop.accumulate(count(1, 3), c)
    l:start(1, false)
    clk:pump { 1, 1, 1 }
    assert.same({ 1, 2, 3 }, seen)
    pending(d)
    clk:advance(1)
    l:stop()
    assert.same({ 1, 2, 3 }, value_of(d))
  end)

  it('collects every value but nil', function()
    local d = coop.accumulate(items(1, nil, false, '', nil, 0), c)
    finish()
    assert.same({ 1, false, '', 0 }, value_of(d))
  end)

  it('of nothing is empty', function()
    local d = coop.accumulate(function() end, c)
    finish()
    assert.same({}, value_of(d))
  end)

  it('ACC-14 fails with the error of its iterator, as it is', function()
    local e = {}
    local d = coop.accumulate(coop.generator(function()
      coroutine.yield(1)
      error(e)
    end)(), c)
    finish()
    assert.equal(e, (error_of(d)))
  end)

  it('ACC-15 puts the value of a Deferred in its place', function()
    local d = coop.Deferred()
    local done = coop.accumulate(items(1, d, 3), c)
    finish()
    pending(done)
    d:callback(2)
    finish()
    assert.same({ 1, 2, 3 }, value_of(done))
  end)

  it('puts the values of Deferreds that have fired in their places, but nil', function()
    local done = coop.accumulate(
      items(coop.succeed(1), 2, coop.succeed(), coop.succeed(false), 4), c)
    finish()
    assert.same({ 1, 2, false, 4 }, value_of(done))
  end)

  it('leaves a Deferred its value', function()
    local d = coop.succeed 'both'
    local done = coop.accumulate(items(d), c)
    finish()
    assert.same({ 'both' }, value_of(done))
    assert.equal('both', value_of(d))
  end)

  it('fails with a Deferred that its iterator yields', function()
    local d = coop.Deferred()
    local done = coop.accumulate(items(1, d, 3), c)
    finish()
    d:errback 'oops'
    finish()
    assert.equal('oops', (error_of(done)))
    done = coop.accumulate(items(1, coop.fail 'before', 3), c)
    finish()
    assert.equal('before', (error_of(done)))
  end)

  it('ACC-19 takes lists, callables and coroutines, and refuses what is no iterator', function()
    local list = { 'a', 'b' }
    local d = coop.accumulate(list, c)
    finish()
    assert.same({ 'a', 'b' }, value_of(d))
    assert.same({ 'a', 'b' }, list)
    d = coop.accumulate(fakes.logging(log, 'x', 2), c)
    finish()
    assert.same({ 0, 1 }, value_of(d))
    d = coop.accumulate(coroutine.create(function()
      coroutine.yield(1)
      coroutine.yield(nil)
      coroutine.yield(2)
    end), c)
    finish()
    assert.same({ 1, 2 }, value_of(d))
    misuse(function() coop.accumulate(5, c) end, 'accumulate', 'number')
    misuse(function() coop.accumulate(nil, c) end, 'accumulate')
    misuse(function() coop.accumulate('abc', c) end, 'accumulate', 'string')
    misuse(function() coop.accumulate({ 1 }, 5) end, 'accumulate', 'number')
    assert.equal(0, s.outstanding())
  end)

  it('is cancelled: its generator is closed, and no step follows', function()
    local d = coop.accumulate(items(1, 2, 3), c)
    s.pump()
    d:cancel()
    assert.same({ 'closed' }, log)
    assert.is_true(CancelledError:is((error_of(d))))
    assert.equal(0, s.outstanding())
  end)

  it('is cancelled while it waits', function()
    local inner = coop.Deferred()
    local d = coop.accumulate(items(1, inner, 3), c)
    finish()
    d:cancel()
    assert.same({ 'closed' }, log)
    assert.is_true(CancelledError:is((error_of(d))))
    if not inner.called then inner:callback() end
    assert.equal(0, s.outstanding())
  end)

  it('is not changed by cancel when it is over', function()
    local d = coop.accumulate(items(1), c)
    finish()
    d:cancel()
    assert.same({ 1 }, value_of(d))
  end)

  it('is paused, and goes on where it was', function()
    local d = coop.accumulate(count(1, 3), c)
    s.pump()
    d:pause()
    s.pump(3)
    assert.same({ 1 }, log)
    assert.equal(0, s.outstanding())
    d:unpause()
    finish()
    assert.same({ 1, 2, 3 }, value_of(d))
  end)

  it('is paused while it waits', function()
    local inner = coop.Deferred()
    local d = coop.accumulate(coop.generator(function()
      coroutine.yield(inner)
      log[#log + 1] = 'on'
      coroutine.yield 'last'
    end)(), c)
    finish()
    d:pause()
    inner:callback 'first'
    s.pump(3)
    assert.same({}, log)
    d:unpause()
    finish()
    assert.same({ 'first', 'last' }, value_of(d))
  end)

  it('fails when its Cooperator is stopped', function()
    local d = coop.accumulate(count(1, 3), c)
    s.pump()
    c:stop()
    helper.is_error(coop.errors.SchedulerStopped, (error_of(d)))
  end)

  it('is reported when it fails unobserved, once', function()
    local reported = helper.unhandled(function()
      coop.accumulate(function() error('oops', 0) end, c)
      finish()
    end)
    assert.equal(1, #reported)
    assert.equal('oops', reported[1].value)
  end)
end)

describe('an accumulation by batches', function()
  before_each(setup)

  it('takes a batch in a step', function()
    local d = coop.batch_accumulate(3, count(1, 8), c)
    assert.same({}, log)
    s.pump()
    assert.same({ 1, 2, 3 }, log)
    s.pump()
    assert.equal(6, #log)
    pending(d)
    finish()
    assert.same({ 1, 2, 3, 4, 5, 6, 7, 8 }, value_of(d))
  end)

  it('takes turns with others, batch by batch', function()
    local all = coop.gather_results {
      coop.batch_accumulate(2, count(1, 4), c), coop.batch_accumulate(3, count(11, 16), c),
    }
    finish()
    assert.same({ 1, 2, 11, 12, 13, 3, 4, 14, 15, 16 }, log)
    assert.same({ n = 2, { 1, 2, 3, 4 }, { 11, 12, 13, 14, 15, 16 } }, value_of(all))
  end)

  it('asks the predicate after the batch, not within', function()
    local asked = {}
    c = coop.Cooperator {
      scheduler = s.schedule,
      slice = 3600,
      termination_predicate_factory = function()
        return function()
          asked[#asked + 1] = #log
          return true
        end
      end,
    }
    local d = coop.batch_accumulate(5, count(1, 12), c)
    s.pump()
    assert.same({ 5 }, asked)
    s.pump()
    assert.same({ 5, 10 }, asked)
    finish()
    assert.equal(12, #value_of(d))
  end)

  it('ends a batch when the slice is over', function()
    c = coop.Cooperator { scheduler = s.schedule, slice = 0.0001 }
    local n = 0
    local d = coop.batch_accumulate(100, function()
      n = n + 1
      if n > 3 then return nil end
      fakes.spin(coop.seconds, 0.00011)
      return n
    end, c)
    for i = 1, 3 do
      s.pump()
      assert.equal(i, n)
    end
    finish()
    assert.same({ 1, 2, 3 }, value_of(d))
  end)

  it('ACC-16 ends a batch at a pending Deferred, and begins another when that has fired', function()
    local inner = coop.Deferred()
    local d = coop.batch_accumulate(3, coop.generator(function()
      for i = 1, 6 do
        log[#log + 1] = i
        coroutine.yield(i == 2 and inner or i)
      end
    end)(), c)
    s.pump()
    assert.same({ 1, 2 }, log)
    s.pump(3)
    assert.same({ 1, 2 }, log)
    assert.equal(0, s.outstanding())
    inner:callback 'two'
    assert.same({ 1, 2 }, log)
    s.pump()
    assert.same({ 1, 2, 3, 4, 5 }, log)
    finish()
    assert.same({ 1, 'two', 3, 4, 5, 6 }, value_of(d))
  end)

  it('does not end a batch at a Deferred that has fired', function()
    local n = 0
    local d = coop.batch_accumulate(4, function()
      n = n + 1
      if n <= 6 then return coop.succeed(n) end
    end, c)
    s.pump()
    assert.equal(4, n)
    finish()
    assert.same({ 1, 2, 3, 4, 5, 6 }, value_of(d))
  end)

  it('waits for coop.await in its generator', function()
    local inner = coop.Deferred()
    local d = coop.batch_accumulate(4, coop.generator(function()
      coroutine.yield(1)
      coroutine.yield(coop.await(inner))
      coroutine.yield(3)
    end)(), c)
    finish()
    pending(d)
    inner:callback(2)
    finish()
    assert.same({ 1, 2, 3 }, value_of(d))
  end)

  it('ACC-13 is refused with a size that is no integer of at least 1', function()
    for _, size in ipairs { 0, -1, 1.5, 0 / 0, math.huge, 'x', {} } do
      misuse(function() coop.batch_accumulate(size, count(1, 3), c) end, 'batch_accumulate')
    end
    misuse(function() coop.batch_accumulate(nil, count(1, 3), c) end, 'batch_accumulate')
    misuse(function() coop.batch_accumulate(2, 5, c) end, 'batch_accumulate', 'number')
    misuse(function() coop.batch_accumulate(2, count(1, 3), 5) end, 'batch_accumulate', 'number')
    assert.equal(0, s.outstanding())
    assert.same({}, log)
  end)

  it('leaves out nil', function()
    local d = coop.batch_accumulate(3, items(1, nil, 2, nil, nil, nil, 3), c)
    finish()
    assert.same({ 1, 2, 3 }, value_of(d))
  end)

  it('ACC-14a fails with the error of its iterator, or of a Deferred', function()
    local e = {}
    local d = coop.batch_accumulate(10, coop.generator(function()
      coroutine.yield(1)
      error(e)
    end)(), c)
    finish()
    assert.equal(e, (error_of(d)))
    d = coop.batch_accumulate(10, items(1, coop.fail 'oops', 3), c)
    finish()
    assert.equal('oops', (error_of(d)))
  end)

  it('is cancelled from inside: its generator is closed at its next yield', function()
    local d
    local function body()
      local _ <close> = setmetatable({}, { __close = function() log[#log + 1] = 'closed' end })
      coroutine.yield(1)
      d:cancel()
      log[#log + 1] = 'cancelled'
      coroutine.yield(2)
      log[#log + 1] = 'never'
    end
    local kinds = {
      function(iterator) return coop.accumulate(iterator, c) end,
      function(iterator) return coop.batch_accumulate(10, iterator, c) end,
    }
    for _, kind in ipairs(kinds) do
      log = {}
      d = kind(coop.generator(body)())
      finish()
      assert.same({ 'cancelled', 'closed' }, log)
      assert.is_true(CancelledError:is((error_of(d))))
    end
  end)

  it('is cancelled and paused like any accumulation', function()
    local d = coop.batch_accumulate(2, items(1, 2, 3, 4, 5), c)
    s.pump()
    d:cancel()
    assert.same({ 'closed' }, log)
    assert.is_true(CancelledError:is((error_of(d))))
    log = {}
    d = coop.batch_accumulate(2, count(1, 3), c)
    s.pump()
    d:pause()
    s.pump(3)
    assert.same({ 1, 2 }, log)
    d:unpause()
    finish()
    assert.same({ 1, 2, 3 }, value_of(d))
  end)
end)

describe('work in parallel', function()
  before_each(setup)

  -- Lets the loop turn until `condition` holds.
  local function settle(condition)
    local patience = coop.seconds() + 30
    while not condition() do
      if coop.seconds() > patience then error('nothing comes of waiting', 2) end
      coop.await(coop.sleep(0))
    end
  end

  -- Lets the loop turn for so long that whatever would happen has happened.
  local function idle()
    for _ = 1, 20 do coop.await(coop.sleep(0)) end
  end

  it('fires with the results in the order of the values', run(function()
    local ds = {}
    local all = coop.parallel(3, { 'a', 'b', 'c' }, function(v, ...)
      log[#log + 1] = { v, ... }
      ds[v] = coop.Deferred()
      return ds[v]
    end, 'x', 2)
    assert.equal('Deferred', coop.type(all))
    settle(function() return #log == 3 end)
    assert.same({ { 'a', 'x', 2 }, { 'b', 'x', 2 }, { 'c', 'x', 2 } }, log)
    ds.c:callback 'third'
    ds.a:callback 'first'
    idle()
    pending(all)
    ds.b:callback 'second'
    assert.same({ n = 3, 'first', 'second', 'third' }, coop.await(all))
  end))

  it('has at most so many values in flight, and takes none ahead of them', run(function()
    local ds, taken = {}, 0
    local all = coop.parallel(3, function()
      if taken < 8 then
        taken = taken + 1
        return taken
      end
    end, function(v)
      ds[v] = coop.Deferred()
      return ds[v]
    end)
    settle(function() return #ds == 3 end)
    idle()
    assert.equal(3, #ds)
    assert.equal(3, taken)
    ds[2]:callback(2)
    settle(function() return #ds == 4 end)
    idle()
    assert.equal(4, #ds)
    assert.equal(4, taken)
    for i, d in ipairs { ds[1], ds[3], ds[4] } do d:callback(i) end
    settle(function() return #ds == 7 end)
    idle()
    assert.equal(7, taken)
    for i = 5, 7 do ds[i]:callback(i) end
    settle(function() return #ds == 8 end)
    ds[8]:callback(8)
    assert.same({ n = 8, 1, 2, 2, 3, 5, 6, 7, 8 }, coop.await(all))
  end))

  it('runs one at a time with a limit of 1', run(function()
    local inside, most = 0, 0
    local results = coop.await(coop.parallel(1, { 1, 2, 3 }, coop.coroutine(function(v)
      inside = inside + 1
      most = math.max(most, inside)
      coop.await(coop.sleep(0))
      inside = inside - 1
      return v * 2
    end)))
    assert.same({ n = 3, 2, 4, 6 }, results)
    assert.equal(1, most)
  end))

  it('keeps the place of nil and false', run(function()
    local results = coop.await(coop.parallel(2, { 1, 2, 3, 4 }, function(v)
      if v == 2 then return false end
      if v % 2 == 1 then return v end
    end))
    assert.same({ n = 4, 1, false, 3, nil }, results)
    assert.equal(4, results.n)
    assert.is_nil(results[4])
  end))

  it('gives its function the values of Deferreds, which fail it when they fail', run(function()
    local values = { 1, coop.sleep(0), coop.succeed(3) }
    values[2]:add_callback(function() return 2 end)
    local results = coop.await(coop.parallel(2, values, function(v) return v * 10 end))
    assert.same({ n = 3, 10, 20, 30 }, results)
    local ok, e = pcall(coop.await, coop.parallel(2, { 1, coop.fail 'oops' }, function() end))
    assert.is_false(ok)
    assert.equal('oops', e)
  end))

  it('of nothing is an empty list', run(function()
    local results = coop.await(coop.parallel(2, function() end, error))
    assert.same({ n = 0 }, results)
  end))

  it('takes Generators that wait', run(function()
    local results = coop.await(coop.parallel(2, coop.generator(function()
      for i = 1, 5 do
        coop.await(coop.sleep(0))
        coroutine.yield(i)
      end
    end)(), function(v) return v + 1 end))
    assert.same({ n = 5, 2, 3, 4, 5, 6 }, results)
  end))

  it('fails with the first failure, cancels what is in flight, takes no more', run(function()
    local ds, cancelled, taken = {}, {}, 0
    local all = coop.parallel(3, function()
      taken = taken + 1
      return taken
    end, function(v)
      ds[v] = coop.Deferred(function() cancelled[#cancelled + 1] = v end)
      return ds[v]
    end)
    settle(function() return #ds == 3 end)
    ds[2]:errback 'oops'
    local ok, e = pcall(coop.await, all)
    assert.is_false(ok)
    assert.equal('oops', e)
    table.sort(cancelled)
    assert.same({ 1, 3 }, cancelled)
    idle()
    assert.equal(3, taken)
    assert.equal(3, #ds)
  end))

  it('fails with what its function raises', run(function()
    local raised, cancelled = {}, 0
    local all = coop.parallel(2, { 1, 2, 3, 4 }, function(v)
      log[#log + 1] = v
      if v == 2 then error(raised) end
      return coop.Deferred(function() cancelled = cancelled + 1 end)
    end)
    local ok, e = pcall(coop.await, all)
    assert.is_false(ok)
    assert.equal(raised, e)
    assert.equal(1, cancelled)
    idle()
    assert.same({ 1, 2 }, log)
  end))

  it('fails with what its iterator raises, and cancels what is in flight', run(function()
    local raised, cancelled = {}, {}
    local all = coop.parallel(5, coop.generator(function()
      coroutine.yield 'a'
      coroutine.yield 'b'
      error(raised)
    end)(), function(v)
      return coop.Deferred(function() cancelled[#cancelled + 1] = v end)
    end)
    local ok, e = pcall(coop.await, all)
    assert.is_false(ok)
    assert.equal(raised, e)
    table.sort(cancelled)
    assert.same({ 'a', 'b' }, cancelled)
  end))

  it('takes no notice of failures after the first', run(function()
    local ds = {}
    local all = coop.parallel(2, { 1, 2 }, function(v)
      ds[v] = coop.Deferred(function(d) d:errback 'second' end)
      return ds[v]
    end)
    settle(function() return #ds == 2 end)
    ds[1]:errback 'first'
    local ok, e = pcall(coop.await, all)
    assert.is_false(ok)
    assert.equal('first', e)
  end))

  it('is cancelled with what is in flight', run(function()
    local ds, cancelled, taken = {}, {}, 0
    local all = coop.parallel(2, function()
      taken = taken + 1
      return taken
    end, function(v)
      ds[v] = coop.Deferred(function() cancelled[#cancelled + 1] = v end)
      return ds[v]
    end)
    settle(function() return #ds == 2 end)
    all:cancel()
    table.sort(cancelled)
    assert.same({ 1, 2 }, cancelled)
    assert.is_true(CancelledError:is((error_of(all))))
    idle()
    assert.equal(2, taken)
  end))

  it('is refused with a wrong limit, iterator or function', function()
    for _, limit in ipairs { 0, -1, 1.5, 0 / 0, 'x', {} } do
      misuse(function() coop.parallel(limit, { 1 }, error) end, 'parallel')
    end
    misuse(function() coop.parallel(nil, { 1 }, error) end, 'parallel')
    misuse(function() coop.parallel(2, 5, error) end, 'parallel', 'number')
    misuse(function() coop.parallel(2, { 1 }) end, 'parallel')
    misuse(function() coop.parallel(2, { 1 }, 5) end, 'parallel', 'number')
  end)

  it('has no limit to the number of values', run(function()
    local n = 0
    local results = coop.await(coop.parallel(10, function()
      n = n + 1
      if n <= 20000 then return n end
    end, function(v) return coop.succeed(v) end))
    assert.equal(20000, results.n)
    for i = 1, 20000 do assert(results[i] == i) end
  end))
end)
