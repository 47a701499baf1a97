local coop = require 'coop'
local helper = require 'tests.spec.helper'

local errors = coop.errors
local cap, pending, misuse, raises = helper.cap, helper.pending, helper.misuse, helper.raises
local value_of, error_of, is_error = helper.value_of, helper.error_of, helper.is_error
local run, unhandled = helper.run, helper.unhandled

describe('a Deferred with a timeout', function()
  local clock

  before_each(function()
    clock = coop.Clock()
  end)

  after_each(function()
    assert.equal(0, #clock:get_delayed_calls(), 'a timer is left')
  end)

  --- A translator that notes its calls and returns 'OVERRIDDEN'.
  local function translator()
    local calls = {}
    return function(...)
      calls[#calls + 1] = table.pack(...)
      return 'OVERRIDDEN'
    end, calls
  end

  --- An inner Deferred that notes when it is cancelled, returned by a handler added to `d`.
  local function inner_of(d)
    local inner = { cancelled = 0 }
    inner.d = coop.Deferred(function() inner.cancelled = inner.cancelled + 1 end)
    d:add_both(function() return inner.d end)
    return inner
  end

  local function timed_out(d, seconds)
    local e = error_of(d)
    is_error(errors.TimeoutError, e)
    if seconds then assert.equal(seconds, e.seconds) end
    return e
  end

  it('TMO-01 returns itself, and its value goes on to later callbacks', function()
    local d = coop.Deferred()
    assert.is_true(rawequal(d, d:add_timeout(10, clock)))
    local seen = cap(d)
    d:callback 'v'
    assert.same({ n = 1, 'v' }, seen)
  end)

  it('arms one timer for its delay and disarms it when it fires', function()
    local d = coop.Deferred():add_timeout(10, clock)
    local calls = clock:get_delayed_calls()
    assert.equal(1, #calls)
    assert.equal(10, calls[1]:get_time())
    assert.is_true(calls[1]:active())
    d:callback()
    assert.is_false(calls[1]:active())
    assert.equal(0, #clock:get_delayed_calls())
  end)

  it('TMO-02 that fired in time is not timed in what it waits on later', function()
    local d = coop.Deferred():add_timeout(10, clock)
    local inner = inner_of(d)
    d:callback 'v'
    clock:advance(15)
    assert.equal(0, inner.cancelled)
    pending(d)
    inner.d:callback 'later'
    assert.equal('later', value_of(d))
  end)

  it('TMO-03 that fired in time calls no translator', function()
    local f, calls = translator()
    local d = coop.Deferred():add_timeout(10, clock, f)
    local seen = {}
    d:add_callback(function(v) seen[1] = v end)
    local inner = inner_of(d)
    d:callback 'v'
    clock:advance(15)
    assert.equal('v', seen[1])
    assert.equal(0, inner.cancelled)
    assert.equal(0, #calls)
  end)

  it('TMO-04 that failed in time keeps its error and is not timed later', function()
    local d, got = coop.Deferred():add_timeout(10, clock), nil
    d:add_errback(function(f) got = f.value end)
    local inner = inner_of(d)
    local value = {}
    d:errback(value)
    clock:advance(15)
    assert.is_true(rawequal(value, got))
    assert.equal(0, inner.cancelled)
  end)

  it('TMO-05 that failed in time calls no translator', function()
    local f, calls = translator()
    local d, got = coop.Deferred():add_timeout(10, clock, f), nil
    d:add_errback(function(failure) got = failure.value end)
    local inner = inner_of(d)
    d:errback 'E'
    clock:advance(15)
    assert.equal('E', got)
    assert.equal(0, inner.cancelled)
    assert.equal(0, #calls)
  end)

  it('TMO-06 fails with TimeoutError when the time is over', function()
    local d = coop.Deferred():add_timeout(10, clock)
    local seen = cap(d)
    clock:advance(9.5)
    assert.equal(0, seen.n)
    clock:advance(5.5)
    assert.equal(1, seen.n)
    assert.equal('Failure', coop.type(seen[1]))
    is_error(errors.TimeoutError, seen[1].value)
  end)

  it('TMO-07 takes what a translator makes of it', function()
    local f, calls = translator()
    local d = coop.Deferred():add_timeout(10, clock, f)
    clock:advance(15)
    assert.equal('OVERRIDDEN', value_of(d))
    assert.equal(1, #calls)
  end)

  it('gives the translator the CancelledError and the seconds', function()
    local f, calls = translator()
    cap(coop.Deferred():add_timeout(2.5, clock, f))
    clock:advance(3)
    assert.equal(2, calls[1].n)
    assert.equal('Failure', coop.type(calls[1][1]))
    is_error(errors.CancelledError, calls[1][1].value)
    assert.equal(2.5, calls[1][2])
  end)

  it('TMO-08 succeeds with what its canceller gives to callback', function()
    local d = coop.Deferred(function(self) self:callback 'I was cancelled!' end)
    d:add_timeout(10, clock)
    clock:advance(15)
    assert.equal('I was cancelled!', value_of(d))
  end)

  it('gives the translator the value that the canceller made', function()
    local f, calls = translator()
    local d = coop.Deferred(function(self) self:callback 'value' end):add_timeout(10, clock, f)
    clock:advance(15)
    assert.equal('OVERRIDDEN', value_of(d))
    assert.equal('value', calls[1][1])
    assert.equal(10, calls[1][2])
  end)

  it('keeps an error of its canceller that is no CancelledError', function()
    local d = coop.Deferred(function(self) self:errback 'E' end):add_timeout(10, clock)
    clock:advance(15)
    assert.equal('E', (error_of(d)))
  end)

  it('fails with what its canceller raises', function()
    local d = coop.Deferred(function() error('E', 0) end):add_timeout(10, clock)
    clock:advance(15)
    assert.equal('E', (error_of(d)))
  end)

  it('TMO-10 that is cancelled in time stays cancelled and is not timed later', function()
    local d, got = coop.Deferred():add_timeout(10, clock), nil
    d:add_errback(function(f) got = f.value end)
    local inner = inner_of(d)
    d:cancel()
    is_error(errors.CancelledError, got)
    assert.equal(0, #clock:get_delayed_calls())
    clock:advance(15)
    assert.equal(0, inner.cancelled)
  end)

  it('that is cancelled in time calls no translator', function()
    local f, calls = translator()
    local d = coop.Deferred():add_timeout(10, clock, f)
    d:cancel()
    is_error(errors.CancelledError, (error_of(d)))
    assert.equal(0, #calls)
  end)

  it('TMO-13 shows an errback before it the CancelledError, those behind TimeoutError', function()
    local d, got = coop.Deferred(), nil
    d:add_errback(function(f) got = f return f end)
    d:add_timeout(10, clock)
    clock:advance(15)
    is_error(errors.CancelledError, got.value)
    timed_out(d, 10)
  end)

  it('TMO-14 succeeds when an errback before it swallows the CancelledError', function()
    local d, got = coop.Deferred(), nil
    d:add_errback(function(f) got = f.value return 'swallowed' end)
    d:add_timeout(10, clock)
    clock:advance(15)
    is_error(errors.CancelledError, got)
    assert.equal('swallowed', value_of(d))
  end)

  it('TMO-15 calls its translator when an errback before it passes the error on', function()
    local f, calls = translator()
    local d, got = coop.Deferred(), nil
    d:add_errback(function(failure) got = failure return failure end)
    d:add_timeout(10, clock, f)
    clock:advance(15)
    assert.equal('OVERRIDDEN', value_of(d))
    assert.is_true(rawequal(got, calls[1][1]))
  end)

  it('TMO-16 calls its translator also when an errback before it swallows the error', function()
    local f, calls = translator()
    local d = coop.Deferred():add_errback(function() return 'swallowed' end)
    d:add_timeout(10, clock, f)
    clock:advance(15)
    assert.equal('OVERRIDDEN', value_of(d))
    assert.same({ { n = 2, 'swallowed', 10 } }, calls)
  end)

  it('TMO-17 shows a callback before it what the canceller made', function()
    local d, got = coop.Deferred(function(self) self:callback 'success' end), nil
    d:add_callback(function(v) got = v return v end)
    d:add_timeout(10, clock)
    clock:advance(15)
    assert.equal('success', got)
    assert.equal('success', value_of(d))
  end)

  it('TMO-19 tells the seconds in the TimeoutError, and in its text', function()
    local d = coop.Deferred():add_timeout(7.25, clock)
    clock:advance(8)
    local e = timed_out(d)
    assert.equal(7.25, e.seconds)
    assert.truthy(e.message:find('7.25', 1, true))
    assert.truthy(tostring(e):find('7.25', 1, true))
    assert.is_false(errors.CancelledError:is(e))
  end)

  it('TMO-21 of zero seconds is timed out by the next turn', function()
    local d = coop.Deferred():add_timeout(0, clock)
    local seen = cap(d)
    assert.equal(0, seen.n)
    clock:advance(0)
    assert.equal(1, seen.n)
    is_error(errors.TimeoutError, seen[1].value)
    assert.equal(0, seen[1].value.seconds)
  end)

  it('TMO-25 swallows one late callback', function()
    local d = coop.Deferred():add_timeout(10, clock)
    clock:advance(15)
    d:callback 'late'
    raises(errors.AlreadyCalledError, function() d:callback 'later' end, 'callback')
    timed_out(d)
  end)

  it('that has fired already leaves no timer', function()
    local d = coop.succeed 'v'
    d:add_timeout(10, clock)
    assert.equal(0, #clock:get_delayed_calls())
    assert.equal('v', value_of(d))
    local failed = coop.fail 'E'
    failed:add_timeout(10, clock)
    assert.equal(0, #clock:get_delayed_calls())
    assert.equal('E', (error_of(failed)))
  end)

  it('cancels what it waits on', function()
    local count = 0
    local inner = coop.Deferred(function() count = count + 1 end)
    local d = coop.succeed():add_callback(function() return inner end)
    d:add_timeout(10, clock)
    clock:advance(10)
    assert.equal(1, count)
    timed_out(d, 10)
    is_error(errors.CancelledError, (error_of(inner)))
  end)

  it('leaves to the others what it waits on with them', function()
    local inner = coop.Deferred()
    local d = coop.succeed():add_callback(function() return inner end)
    local other = coop.succeed():add_callback(function() return inner end)
    d:add_timeout(10, clock)
    clock:advance(10)
    timed_out(d, 10)
    inner:callback 'v'
    assert.equal('v', value_of(other))
  end)

  it('and a second one fails by the earlier', function()
    for _, pair in ipairs { { 5, 10 }, { 10, 5 } } do
      local d = coop.Deferred():add_timeout(pair[1], clock):add_timeout(pair[2], clock)
      assert.equal(2, #clock:get_delayed_calls())
      clock:advance(5)
      timed_out(d, 5)
      assert.equal(0, #clock:get_delayed_calls())
    end
  end)

  it('fails with what its translator raises', function()
    local value = {}
    local d = coop.Deferred():add_timeout(1, clock, function() error(value, 0) end)
    clock:advance(1)
    assert.is_true(rawequal(value, (error_of(d))))
  end)

  it('waits for a Deferred that its translator returns', function()
    local later = coop.Deferred()
    local d = coop.Deferred():add_timeout(1, clock, function() return later end)
    clock:advance(1)
    pending(d)
    later:callback 'later'
    assert.equal('later', value_of(d))
  end)

  it('takes nil from its translator', function()
    local d = coop.Deferred():add_timeout(1, clock, function() end)
    local seen = cap(d)
    clock:advance(1)
    assert.same({ n = 1 }, seen)
  end)

  it('while it is paused keeps the TimeoutError until it is unpaused', function()
    local d = coop.Deferred():add_timeout(1, clock)
    d:pause()
    local seen = cap(d)
    clock:advance(1)
    assert.is_true(d.called)
    assert.equal(0, seen.n)
    d:unpause()
    assert.equal(1, seen.n)
    is_error(errors.TimeoutError, seen[1].value)
  end)

  it('is reported when nobody handles it', function()
    local reported = unhandled(function()
      coop.Deferred():add_timeout(1, clock)
      clock:advance(1)
    end)
    assert.equal(1, #reported)
    is_error(errors.TimeoutError, reported[1].value)
  end)

  it('times a coroutine, which is cancelled and then TimeoutError its outcome', function()
    local closed = false
    local d = coop.spawn(function()
      local _ <close> = setmetatable({}, { __close = function() closed = true end })
      coop.await(coop.Deferred())
    end)
    d:add_timeout(1, clock)
    clock:advance(1)
    assert.is_true(closed)
    timed_out(d, 1)
  end)

  it('takes any clock that has seconds and call_later', function()
    local duck = {}
    function duck.seconds() return clock:seconds() end
    function duck.call_later(_, delay, f, ...) return clock:call_later(delay, f, ...) end
    local d = coop.Deferred():add_timeout(3, duck)
    local fired = coop.Deferred():add_timeout(3, duck)
    fired:callback()
    assert.equal(1, #clock:get_delayed_calls())
    clock:advance(3)
    timed_out(d, 3)
  end)

  it('runs on the reactor when no clock is given', run(function()
    local d = coop.Deferred():add_timeout(0.001)
    local ok, e = pcall(coop.await, d)
    assert.is_false(ok)
    is_error(errors.TimeoutError, e)
    assert.equal(0.001, e.seconds)
  end))

  it('runs on the reactor when the clock is nil, with a translator', run(function()
    local f, calls = translator()
    assert.equal('OVERRIDDEN', coop.await(coop.Deferred():add_timeout(0.001, nil, f)))
    assert.equal(1, #calls)
  end))

  it('refuses a bad delay, and adds neither timer nor handler', function()
    local d = coop.Deferred()
    for _, delay in ipairs { -1, 0 / 0, math.huge, -math.huge, 'soon', {}, false } do
      misuse(function() d:add_timeout(delay, clock) end, 'add_timeout')
    end
    misuse(function() d:add_timeout('soon', clock) end, 'number', 'string')
    misuse(function() d:add_timeout(nil, clock) end, 'add_timeout', 'number')
    misuse(function() d:add_timeout() end, 'add_timeout', 'number')
    assert.equal(0, #clock:get_delayed_calls())
    d:callback 'v'
    assert.equal('v', value_of(d))
  end)

  it('refuses a bad clock and a bad translator, and adds neither timer nor handler', function()
    local d = coop.Deferred()
    for _, bad in ipairs { 5, {}, 'clock', { seconds = function() return 0 end }, false } do
      misuse(function() d:add_timeout(1, bad) end, 'add_timeout')
    end
    for _, bad in ipairs { 5, {}, 'f', false } do
      misuse(function() d:add_timeout(1, clock, bad) end, 'add_timeout', 'function', type(bad))
    end
    assert.equal(0, #clock:get_delayed_calls())
    d:callback 'v'
    assert.equal('v', value_of(d))
  end)
end)
