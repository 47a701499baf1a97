local coop = require 'coop'
local helper = require 'tests.spec.helper'
local fakes = require 'tests.spec.fakes'
local run, misuse = helper.run, helper.misuse
local value_of, error_of, pending = helper.value_of, helper.error_of, helper.pending

local CancelledError = coop.errors.CancelledError
local huge, nan = math.huge, 0 / 0

local function nothing() end

describe('a looping call', function()
  local clk, times
  local function note() times[#times + 1] = clk:seconds() end
  local function looping(f, ...)
    local l = coop.LoopingCall(f, ...)
    l.clock = clk
    return l
  end
  local function counting(f)
    local l = coop.LoopingCall.with_count(f)
    l.clock = clk
    return l
  end

  before_each(function()
    clk, times = coop.Clock(), {}
  end)

  it('is not lost when its interval is made something else than seconds', function()
    for _, bad in ipairs { false, nan, huge, -1, '1', {}, nothing } do
      for _, make in ipairs { looping, counting } do
        local l = make(note)
        local d = l:start(1)
        l.interval = bad
        misuse(function() l:reset() end, 'reset', 'interval')
        assert.equal(1, #clk:get_delayed_calls())
        pending(d)
        clk:advance(1)
        assert.matches('interval', (error_of(d)))
        assert.is_false(l.running)
        assert.same({}, clk:get_delayed_calls())

        local again = make(function() l.interval = bad end)
        l = again
        assert.matches('interval', (error_of(l:start(1))))
      end
    end
  end)

  it('LOOP-01 runs now and then in every interval, with its arguments', function()
    local log = {}
    local l = looping(function(...) log[#log + 1] = table.pack(...) end, 'a', nil, 3)
    local d = l:start(0.1)
    assert.equal('Deferred', coop.type(d))
    clk:pump { 0.05, 0.1, 0.1 }
    local one = { n = 3, 'a', nil, 3 }
    assert.same({ one, one, one }, log)
    pending(d)
    l:stop()
    assert.equal(l, value_of(d))
    assert.same({}, clk:get_delayed_calls())
  end)

  it('tells whether it is running, and its interval', function()
    local l = looping(nothing)
    assert.is_false(l.running)
    l:start(0.5)
    assert.is_true(l.running)
    assert.equal(0.5, l.interval)
    l:stop()
    assert.is_false(l.running)
  end)

  it('runs inside start, before start returns', function()
    local l
    l = looping(function()
      note()
      assert.is_true(l.running)
    end)
    l:start(1)
    assert.same({ 0 }, times)
    l:stop()
  end)

  it('LOOP-03 is not started with an interval that is negative, NaN or infinite', function()
    local l = looping(note)
    for _, interval in ipairs { -1, nan, huge, -huge } do
      misuse(function() l:start(interval) end, 'start')
    end
    misuse(function() l:start() end, 'start')
    misuse(function() l:start 'often' end, 'start', 'string')
    assert.same({}, times)
    assert.is_false(l.running)
  end)

  it('LOOP-04 never runs when stopped before its first interval is over', function()
    for _, interval in ipairs { 0, 10 } do
      local l = looping(note)
      local d = l:start(interval, false)
      l:stop()
      assert.equal(l, value_of(d))
      assert.same({}, clk:get_delayed_calls())
    end
    clk:advance(20)
    assert.same({}, times)
  end)

  it('LOOP-05 begins its interval anew on reset', function()
    local l = looping(note)
    l:start(2, false)
    clk:advance(1)
    l:reset()
    clk:advance(1)
    assert.same({}, times)
    clk:advance(1)
    assert.same({ 3 }, times)
    clk:advance(2)
    assert.same({ 3, 5 }, times)
    assert.equal(1, #clk:get_delayed_calls())
    l:stop()
  end)

  it('LOOP-06 skips the slots that its function takes, the one that is now too', function()
    local spent = { 2, 1, 0 }
    local l = looping(function()
      note()
      clk:advance(table.remove(spent, 1))
    end)
    l:start(0.5)
    assert.equal(2, clk:seconds())
    clk:advance(0.5)
    assert.equal(3.5, clk:seconds())
    clk:advance(0.5)
    assert.same({ 0, 2.5, 4 }, times)
    l:stop()
  end)

  it('LOOP-07 runs once for the slots that a late clock has missed', function()
    clk = fakes.late_clock()
    local l = looping(note)
    l:start(0.5)
    clk:advance(2)
    assert.same({ 0, 2 }, times)
    clk:advance(1)
    assert.same({ 0, 2, 3 }, times)
    clk:advance(0)
    assert.same({ 0, 2, 3 }, times)
    l:stop()
    assert.equal(0, clk:pending())
  end)

  it('LOOP-07a runs in each slot of an advance', function()
    local l = looping(note)
    l:start(0.5)
    clk:advance(2)
    assert.same({ 0, 0.5, 1, 1.5, 2 }, times)
    clk:advance(0)
    assert.equal(5, #times)
    l:stop()
  end)

  it('LOOP-14 fails when its function raises, within start', function()
    local e = {}
    local l = looping(function() error(e) end)
    local d = l:start(1)
    assert.equal(e, (error_of(d)))
    assert.is_false(l.running)
    assert.same({}, clk:get_delayed_calls())
  end)

  it('LOOP-14a fails when its function raises later', function()
    local l = looping(error, 'oops', 0)
    local d = l:start(1, false)
    pending(d)
    clk:advance(1)
    assert.equal('oops', (error_of(d)))
    assert.is_false(l.running)
    assert.same({}, clk:get_delayed_calls())
  end)

  it('LOOP-16 runs once in a turn with an interval of 0', function()
    local l
    l = looping(function()
      note()
      if #times == 6 then l:stop() end
    end)
    local d = l:start(0)
    assert.equal(1, #times)
    for i = 2, 6 do
      clk:advance(0)
      assert.equal(i, #times)
    end
    clk:advance(0)
    clk:advance(1)
    assert.equal(6, #times)
    assert.equal(l, value_of(d))
  end)

  it('LOOP-17 never runs when another stops it in time', function()
    local l = looping(note)
    local other
    other = looping(function()
      l:stop()
      other:stop()
    end)
    local second = other:start(0.8, false)
    local first = l:start(1, false)
    clk:pump { 0.2, 0.3, 0.5, 1 }
    assert.same({}, times)
    assert.equal(l, value_of(first))
    assert.equal(other, value_of(second))
  end)

  it('LOOP-18 waits for the Deferred of its function, whose handler may stop it', function()
    local l
    l = looping(function()
      note()
      local d = coop.defer_later(clk, 1)
      d:add_callback(function() l:stop() end)
      return d
    end)
    local done = l:start(0.2)
    clk:pump { 0.2, 0.8 }
    assert.same({ 0 }, times)
    assert.equal(l, value_of(done))
    assert.same({}, clk:get_delayed_calls())
  end)

  it('runs next in the first slot after that Deferred has fired', function()
    local ds = {}
    local l = looping(function()
      note()
      ds[#ds + 1] = coop.Deferred()
      return ds[#ds]
    end)
    l:start(1)
    clk:advance(2.5)
    assert.same({}, clk:get_delayed_calls())
    ds[1]:callback()
    clk:advance(0.25)
    assert.same({ 0 }, times)
    clk:advance(0.25)
    assert.same({ 0, 3 }, times)
    clk:advance(2)
    ds[2]:callback()
    clk:advance(0)
    assert.same({ 0, 3 }, times)
    clk:advance(1)
    assert.same({ 0, 3, 6 }, times)
    l:stop()
    ds[3]:callback()
  end)

  it('goes on at once after a Deferred that has fired', function()
    local l = looping(function()
      note()
      return coop.succeed(1)
    end)
    l:start(1)
    clk:advance(2)
    assert.same({ 0, 1, 2 }, times)
    l:stop()
  end)

  it('waits for a coroutine as for any Deferred', function()
    local l = looping(coop.coroutine(function()
      note()
      coop.await(coop.defer_later(clk, 1.5))
    end))
    l:start(1)
    clk:advance(4)
    assert.same({ 0, 2, 4 }, times)
    l:stop()
    clk:advance(2)
    assert.same({ 0, 2, 4 }, times)
  end)

  it('fails with its function\'s Deferred', function()
    local d = coop.Deferred()
    local l = looping(function() return d end)
    local done = l:start(1)
    d:errback 'oops'
    assert.equal('oops', (error_of(done)))
    assert.is_false(l.running)
    assert.same({}, clk:get_delayed_calls())
  end)

  it('LOOP-22 that is stopped waits for its function\'s Deferred', function()
    local d = coop.Deferred()
    local l = looping(function() return d end)
    local done = l:start(1)
    l:stop()
    assert.is_false(l.running)
    assert.is_false(d.called)
    pending(done)
    d:callback()
    assert.equal(l, value_of(done))
    assert.same({}, clk:get_delayed_calls())
  end)

  it('LOOP-22a that is stopped fails when its function\'s Deferred does', function()
    local d = coop.Deferred()
    local l = looping(function() return d end)
    local done = l:start(1)
    l:stop()
    pending(done)
    d:errback 'late'
    assert.equal('late', (error_of(done)))
  end)

  it('LOOP-23 that stops itself in its first run has fired when start returns', function()
    local l
    l = looping(function()
      note()
      l:stop()
    end)
    local d = l:start(1)
    assert.equal(l, value_of(d))
    assert.is_false(l.running)
    assert.same({}, clk:get_delayed_calls())
    clk:advance(3)
    assert.same({ 0 }, times)
  end)

  it('that stops itself and then raises fails', function()
    local l
    l = looping(function()
      l:stop()
      error('after all', 0)
    end)
    assert.equal('after all', (error_of(l:start(1))))
    assert.is_false(l.running)
  end)

  it('LOOP-24 does not drift, however late it runs', function()
    clk = fakes.late_clock()
    local l = looping(note)
    l:start(1)
    for _, step in ipairs { 1.3, 0.7, 1, 2.5, 0.5 } do clk:advance(step) end
    assert.same({ 0, 1.3, 2, 3, 5.5, 6 }, times)
    l:stop()
  end)

  it('LOOP-24a runs once in each of a thousand slots that no float meets exactly', function()
    clk:advance(0.7)
    local l = looping(note)
    l:start(0.1)
    clk:advance(100.05)
    assert.equal(1001, #times)
    for i, time in ipairs(times) do
      assert.is_true(math.abs(time - (0.7 + (i - 1) * 0.1)) < 1e-6, i)
    end
    l:stop()
  end)

  it('LOOP-26 has the reactor for its clock, and a string form', function()
    local l = coop.LoopingCall(nothing, setmetatable({}, { __tostring = error }))
    assert.equal(coop.reactor, l.clock)
    assert.equal('string', type(tostring(l)))
    assert.equal('string', type(coop.type(l)))
    l.clock = clk
    l:start(1)
    assert.equal('string', type(tostring(l)))
    l:stop()
    assert.equal('string', type(tostring(l)))
  end)

  it('LOOP-27 is not started again until a stopped run has settled', function()
    local ds = {}
    local l = looping(function()
      ds[#ds + 1] = coop.Deferred()
      return ds[#ds]
    end)
    local first = l:start(1)
    l:stop()
    misuse(function() l:start(1) end, 'start')
    assert.equal(1, #ds)
    ds[1]:callback()
    assert.equal(l, value_of(first))
    local second = l:start(1)
    assert.not_equal(first, second)
    assert.equal(2, #ds)
    ds[2]:callback()
    assert.equal(1, #clk:get_delayed_calls())
    l:stop()
    assert.equal(l, value_of(second))
  end)

  it('is not started while it runs', function()
    local l = looping(note)
    local d = l:start(1)
    misuse(function() l:start(2) end, 'start')
    assert.equal(1, l.interval)
    clk:advance(1)
    assert.same({ 0, 1 }, times)
    l:stop()
    assert.equal(l, value_of(d))
  end)

  it('may be started again when stopped, with a grid of its own', function()
    local l = looping(note)
    l:start(1)
    clk:advance(1.5)
    l:stop()
    l:start(2)
    clk:advance(4)
    assert.same({ 0, 1, 1.5, 3.5, 5.5 }, times)
    l:stop()
  end)

  it('may be started again after it has failed', function()
    local bad = true
    local l = looping(function()
      if bad then error('bad', 0) end
      note()
    end)
    assert.equal('bad', (error_of(l:start(1))))
    bad = false
    l:start(1)
    assert.same({ 0 }, times)
    l:stop()
  end)

  it('is neither stopped nor reset when it does not run', function()
    local l = looping(note)
    misuse(function() l:stop() end, 'stop')
    misuse(function() l:reset() end, 'reset')
    l:start(1)
    l:stop()
    misuse(function() l:stop() end, 'stop')
    misuse(function() l:reset() end, 'reset')
  end)

  it('is not changed by a reset while its function is not done', function()
    local d = coop.Deferred()
    local l = looping(function()
      note()
      return d
    end)
    l:start(1)
    clk:advance(0.5)
    l:reset()
    assert.same({}, clk:get_delayed_calls())
    d:callback()
    clk:advance(0.5)
    assert.same({ 0, 1 }, times)
    l:stop()
  end)

  it('LOOP-29 ends as cancelled with its Deferred, and cancels its function\'s', function()
    local cancelled = 0
    local d = coop.Deferred(function() cancelled = cancelled + 1 end)
    local inner = helper.cap(d)
    local l = looping(function() return d end)
    local done = l:start(1)
    done:cancel()
    assert.equal(1, cancelled)
    assert.equal('Failure', coop.type(inner[1]))
    assert.is_true(CancelledError:is((error_of(done))))
    assert.is_false(l.running)
    assert.same({}, clk:get_delayed_calls())
  end)

  it('LOOP-29a ends as cancelled when its function\'s Deferred takes cancel for success', function()
    local d = coop.Deferred(function(self) self:callback 'saved' end)
    local l = looping(function() return d end)
    local done = l:start(1)
    done:cancel()
    assert.is_true(CancelledError:is((error_of(done))))
    assert.is_false(l.running)
    clk:advance(2)
    assert.same({}, clk:get_delayed_calls())
  end)

  it('LOOP-29b ends as cancelled between two runs', function()
    local l = looping(note)
    local done = l:start(1)
    done:cancel()
    assert.is_true(CancelledError:is((error_of(done))))
    assert.is_false(l.running)
    assert.same({}, clk:get_delayed_calls())
    clk:advance(2)
    assert.same({ 0 }, times)
    l:start(1)
    assert.same({ 0, 2 }, times)
    l:stop()
  end)

  it('LOOP-29c that is stopped and waits may still be cancelled', function()
    local d = coop.Deferred()
    local l = looping(function() return d end)
    local done = l:start(1)
    l:stop()
    done:cancel()
    assert.is_true(d.called)
    assert.is_true(CancelledError:is((error_of(done))))
  end)

  it('LOOP-29d is not started again until a cancelled run has settled', function()
    local d = coop.Deferred()
    local l = looping(coop.inline_callbacks(function()
      note()
      if #times == 1 then
        pcall(coop.await, coop.Deferred())
        coop.await(d)
      end
    end))
    local done = l:start(1)
    done:cancel()
    assert.is_true(CancelledError:is((error_of(done))))
    misuse(function() l:start(1) end, 'start')
    d:callback()
    local again = l:start(1)
    assert.same({ 0, 0 }, times)
    l:stop()
    assert.equal(l, value_of(again))
  end)

  it('may be cancelled from its own function', function()
    local done
    local l = looping(function()
      note()
      if done then done:cancel() end
    end)
    done = l:start(1)
    clk:advance(3)
    assert.same({ 0, 1 }, times)
    assert.is_true(CancelledError:is((error_of(done))))
    assert.is_false(l.running)
    assert.same({}, clk:get_delayed_calls())
  end)

  it('is misuse without a function', function()
    misuse(function() coop.LoopingCall() end, 'LoopingCall')
    misuse(function() coop.LoopingCall(42) end, 'LoopingCall', 'number')
    misuse(function() coop.LoopingCall.with_count() end, 'with_count')
    misuse(function() coop.LoopingCall.with_count 'f' end, 'with_count', 'string')
  end)

  it('LOOP-11 counts 1 for each run with an interval of 0', function()
    local counts = {}
    local l
    l = counting(function(n)
      counts[#counts + 1] = n
      if #counts == 5 then l:stop() end
    end)
    local d = l:start(0, false)
    clk:pump { 0, 0, 0, 0, 0 }
    assert.same({ 1, 1, 1, 1, 1 }, counts)
    assert.equal(l, value_of(d))
  end)

  it('LOOP-13 counts by an interval that was changed from 0', function()
    local counts, d = {}, coop.Deferred()
    local l = counting(function(n)
      counts[#counts + 1] = n
      if #counts == 2 then return d end
    end)
    l:start(0, false)
    clk:advance(0)
    clk:advance(1)
    assert.same({ 1, 1 }, counts)
    l.interval = 2
    clk:advance(14)
    assert.same({ 1, 1 }, counts)
    d:callback()
    clk:advance(1)
    assert.same({ 1, 1, 8 }, counts)
    clk:advance(2)
    assert.same({ 1, 1, 8, 1 }, counts)
    l:stop()
  end)

  it('LOOP-20 counts the slots that passed while its function was not done', function()
    local counts, d = {}, coop.Deferred()
    local l = counting(function(n)
      counts[#counts + 1] = n
      if #counts == 1 then return d end
    end)
    l:start(0.25, false)
    clk:advance(0.25)
    assert.same({ 1 }, counts)
    clk:advance(0.5)
    d:callback()
    assert.same({ 1 }, counts)
    clk:advance(0.25)
    assert.same({ 1, 3 }, counts)
    clk:advance(0.25)
    assert.same({ 1, 3, 1 }, counts)
    l:stop()
  end)

  it('LOOP-20a counts slots, not the time between runs', function()
    clk = fakes.late_clock()
    local counts = {}
    local l = counting(function(n) counts[#counts + 1] = n end)
    l:start(1, false)
    clk:advance(1)
    clk:advance(1.75)
    clk:advance(0.25)
    assert.same({ 1, 1, 1 }, counts)
    clk:advance(2.5)
    assert.same({ 1, 1, 1, 2 }, counts)
    clk:advance(100)
    assert.same({ 1, 1, 1, 2, 100 }, counts)
    l:stop()
  end)

  it('counts 1 in the run that start makes', function()
    local counts = {}
    clk:advance(17)
    local l = counting(function(n) counts[#counts + 1] = n end)
    l:start(5)
    assert.same({ 1 }, counts)
    clk:advance(10)
    assert.same({ 1, 1, 1 }, counts)
    l:stop()
  end)

  it('counts 1 in each of a thousand slots that no float meets exactly', function()
    local total, runs = 0, 0
    local l = counting(function(n)
      total = total + n
      runs = runs + 1
    end)
    l:start(0.1)
    clk:advance(100.05)
    assert.equal(1001, runs)
    assert.equal(1001, total)
    l:stop()
  end)

  it('LOOP-28 counts anew with each start', function()
    local counts = {}
    local l = counting(function(n) counts[#counts + 1] = n end)
    l:start(1)
    clk:advance(1)
    l:stop()
    clk:advance(100)
    l:start(1)
    assert.same({ 1, 1, 1 }, counts)
    l:stop()
    clk:advance(100)
    l:start(1, false)
    clk:advance(1)
    assert.same({ 1, 1, 1, 1 }, counts)
    l:stop()
  end)
end)

describe('a looping call of the reactor', function()

  it('runs until it is stopped', run(function()
    local n = 0
    local l
    l = coop.LoopingCall(function()
      n = n + 1
      if n == 3 then l:stop() end
    end)
    assert.equal(l, coop.await(l:start(0.001)))
    assert.equal(3, n)
    assert.is_false(l.running)
  end))

  it('LOOP-16a with an interval of 0 lets others have their turn', run(function()
    local n, other = 0, nil
    coop.call_later(0, function() other = n end)
    local l
    l = coop.LoopingCall(function()
      n = n + 1
      if n == 100 then l:stop() end
    end)
    coop.await(l:start(0))
    assert.equal(100, n)
    assert.is_true(other == 1 or other == 2, other)
  end))
end)

describe('a call deferred', function()
  local clk
  before_each(function()
    clk = coop.Clock()
  end)

  it('LATER-01 is made in time, with its arguments, and gives its value', function()
    local seen
    local d = coop.defer_later(clk, 3, function(...)
      seen = table.pack(...)
      return 'value'
    end, 1, nil, 'x')
    clk:advance(2)
    assert.is_nil(seen)
    pending(d)
    clk:advance(1)
    assert.same({ n = 3, 1, nil, 'x' }, seen)
    assert.equal('value', value_of(d))
  end)

  it('LATER-02 fails when it raises', function()
    local e = {}
    local d = coop.defer_later(clk, 1, error, e)
    clk:advance(1)
    assert.equal(e, (error_of(d)))
  end)

  it('LATER-04 fires with nil when there is nothing to call', function()
    local d = coop.defer_later(clk, 1)
    clk:advance(0.5)
    pending(d)
    clk:advance(0.5)
    local seen = helper.cap(d)
    assert.same({ n = 1 }, seen)
  end)

  it('LATER-04a is never made at once, also with a delay of 0', function()
    local d = coop.defer_later(clk, 0)
    pending(d)
    clk:advance(0)
    assert.is_true(d.called)
  end)

  it('LATER-05 waits for a Deferred that it returns', function()
    local inner = coop.Deferred()
    local d = coop.defer_later(clk, 1, function() return inner end)
    clk:advance(1)
    pending(d)
    inner:callback(7)
    assert.equal(7, value_of(d))
  end)

  it('LATER-05a hands cancel on to what it returned', function()
    local cancelled = 0
    local inner = coop.Deferred(function() cancelled = cancelled + 1 end)
    local d = coop.defer_later(clk, 1, function() return inner end)
    clk:advance(1)
    d:cancel()
    assert.equal(1, cancelled)
    assert.is_true(CancelledError:is((error_of(d))))
  end)

  it('is never made when cancelled in time', function()
    local ran = false
    local d = coop.defer_later(clk, 1, function() ran = true end)
    d:cancel()
    assert.is_true(CancelledError:is((error_of(d))))
    assert.same({}, clk:get_delayed_calls())
    clk:advance(2)
    assert.is_false(ran)
  end)

  it('takes any clock that knows the time and later calls', function()
    clk = fakes.late_clock()
    local d = coop.defer_later(clk, 1, function() return clk:seconds() end)
    local cancelled = coop.defer_later(clk, 2, error)
    cancelled:cancel()
    assert.is_true(CancelledError:is((error_of(cancelled))))
    clk:advance(3)
    assert.equal(3, value_of(d))
  end)

  it('takes the reactor', run(function()
    assert.equal('x', coop.await(coop.defer_later(coop.reactor, 0, function(v) return v end, 'x')))
  end))

  it('is refused with a wrong clock, delay or function', function()
    misuse(function() coop.defer_later() end, 'defer_later')
    misuse(function() coop.defer_later(5, 1) end, 'defer_later', 'number')
    misuse(function() coop.defer_later({}, 1) end, 'defer_later')
    misuse(function() coop.defer_later(clk) end, 'defer_later')
    for _, delay in ipairs { -1, nan, huge } do
      misuse(function() coop.defer_later(clk, delay) end, 'defer_later')
    end
    misuse(function() coop.defer_later(clk, 1, 'f') end, 'defer_later', 'string')
    assert.same({}, clk:get_delayed_calls())
  end)
end)
