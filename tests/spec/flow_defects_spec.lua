-- What was wrong with the flows that these ones are modelled on. Each case fails there.

local coop = require 'coop'
local flow = require 'coop.flow'
local helper = require 'tests.spec.helper'

local run, raises = helper.run, helper.raises
local spawn, await, yield = coop.spawn, coop.await, coroutine.yield
local wrap, Cooperate, LineBreak = flow.wrap, flow.Cooperate, flow.LineBreak
local errors = coop.errors

local function list(stage)
  local values = {}
  for v in stage do values[#values + 1] = v end
  return values
end

-- The values that came before the error, and the error.
local function ending(stage)
  local values = {}
  local ok, err = pcall(function()
    for v in stage do values[#values + 1] = v end
  end)
  assert.is_false(ok, 'the stage has not failed')
  return values, err
end

-- The error of a flow.Deferred, and the Failure.
local function failure_of(d)
  local failure
  d:add_errback(function(f) failure = f end)
  await(d)
  assert.is_not_nil(failure, 'the flow has not failed')
  return failure.value, failure
end

local function turns()
  for _ = 1, 5 do await(coop.sleep(0)) end
end

after_each(function()
  flow.clock = nil
end)

describe('W26', function()
  local clock

  local function times_of(stage, name)
    clock = coop.Clock()
    flow.clock = clock
    local seen = {}
    local c = spawn(function()
      for v in stage do
        if v:find(name, 1, true) == 1 then seen[#seen + 1] = v end
      end
    end)
    clock:advance(20)
    helper.value_of(c)
    return seen
  end

  -- A body that gives `name` and the time every `s` seconds.
  local function every(s, name)
    return function()
      for _ = 1, 3 do
        yield(Cooperate(s))
        yield(('%s %d'):format(name, clock:seconds() // 1))
      end
    end
  end

  it('a branch of Merge waits as long as it says, beside a faster one', run(function()
    local stage = flow.Merge(every(5, 'slow'), every(1, 'fast'))
    assert.same({ 'slow 5', 'slow 10', 'slow 15' }, times_of(stage, 'slow'))
  end))

  it('a branch of Concurrent does', run(function()
    local both = flow.Concurrent(every(5, 'slow'), every(1, 'fast'))
    local stage = flow.Map(function(ready) return ready:next() end, both)
    assert.same({ 'slow 5', 'slow 10', 'slow 15' }, times_of(stage, 'slow'))
  end))

  it('a branch is not stepped when another branch wakes', run(function()
    local steps = 0
    local later = flow.CallLater(function() steps = steps + 1 end)
    local stage = flow.Merge({ later, 'never' }, every(1, 'fast'))
    clock = coop.Clock()
    flow.clock = clock
    local c = spawn(function() list(stage) end)
    clock:advance(10)
    assert.equal(1, steps)
    c:cancel()
    helper.error_of(c)
  end))

  it('the same holds in a Block', function()
    local stage = flow.Merge({ Cooperate(0.06), 'slow' }, { Cooperate(0.02), 'fast' })
    local start, seen = coop.seconds(), {}
    for v in flow.Block(stage) do seen[#seen + 1] = { v, coop.seconds() - start } end
    assert.equal('fast', seen[1][1])
    assert.equal('slow', seen[2][1])
    assert.is_true(seen[2][2] >= 0.06, seen[2][2])
  end)
end)

describe('W27', function()
  it('max_length is kept to by finished lines, behind those that are short enough', run(function()
    local text = 'ab\nabc\nabcd\nab\n'
    local values, err = ending(LineBreak(text, { delimiter = '\n', max_length = 3 }))
    assert.same({ 'ab', 'abc' }, values)
    helper.is_error(errors.LineTooLong, err, '3')
  end))

  it('max_length is kept to by unfinished lines: the rest is not waited for', run(function()
    local pulled = 0
    local source = wrap(function()
      while true do
        pulled = pulled + 1
        yield(('x'):rep(10))
      end
    end)
    local _, err = ending(LineBreak(source, { max_length = 25 }))
    helper.is_error(errors.LineTooLong, err)
    assert.equal(3, pulled)
  end))

  it('max_length does not count what may be the beginning of the delimiter', run(function()
    assert.same({ 'abc' }, list(LineBreak({ 'abc', '\r', '\n' }, { max_length = 3 })))
    assert.same({ 'abc' }, list(LineBreak({ 'abc<', '-', '>' },
      { max_length = 3, delimiter = '<->' })))
    local _, err = ending(LineBreak({ 'abc<', 'd' }, { max_length = 3, delimiter = '<->' }))
    helper.is_error(errors.LineTooLong, err)
  end))

  it('a line of 16384 bytes is the longest unless something else is said', run(function()
    local line = ('x'):rep(16384)
    assert.same({ line }, list(LineBreak { line, '\r\n' }))
    local _, err = ending(LineBreak { line .. 'x', '\r\n' })
    helper.is_error(errors.LineTooLong, err, '16384')
  end))

  it('a delimiter that two blocks share is found', run(function()
    assert.same({ 'a', 'b', 'c' }, list(LineBreak { 'a\r', '\nb', '\r', '\n', 'c\r', '\n' }))
  end))

  it('data behind the last delimiter is an error of the stage', run(function()
    local stage = LineBreak({ 'a\r\nrest' }, { trap = 'without a delimiter' })
    assert.same({ 'a', 'without a delimiter' }, list(stage))
    local err, failure = failure_of(flow.Deferred(LineBreak { 'a\r\nrest' }))
    assert.truthy(err:find('4 bytes', 1, true))
    assert.same({ 'a' }, failure.partial)
  end))
end)

describe('W28', function()
  local function fails_at(n)
    return function(v)
      if v == n then error('oops', 0) end
      return true
    end
  end

  it('an error in the function of Filter fails the stage', run(function()
    local values, err = ending(flow.Filter(fails_at(3), { 1, 2, 3, 4 }))
    assert.same({ 1, 2 }, values)
    assert.equal('oops', err)
  end))

  it('it can be trapped, and caught by the consumer', run(function()
    assert.same({ 1, 'oops' }, list(flow.Filter(fails_at(2), { 1, 2, 3 }, 'oops')))
    assert.same({ 1, 'oops' }, list(wrap(flow.Filter(fails_at(2), { 1, 2, 3 }), 'oops')))
    assert.same({ 1, 'caught oops' }, list(wrap(function()
      local source = flow.Filter(fails_at(2), { 1, 2, 3 })
      local ok, err = pcall(function()
        for v in source do yield(v) end
      end)
      if not ok then yield('caught ' .. err) end
    end)))
  end))

  it('it does not escape into who makes the Deferred, nor into the loop', run(function()
    local seen = helper.unhandled(function()
      local d = flow.Deferred(flow.Filter(fails_at(1), { 1 }))
      assert.equal('oops', (failure_of(d)))
    end)
    assert.same({}, seen)
  end))

  it('an error in making a text of a block fails LineBreak', run(function()
    local block = setmetatable({}, { __tostring = function() error('no text', 0) end })
    local values, err = ending(LineBreak({ 'a\n', block }, { delimiter = '\n' }))
    assert.same({ 'a' }, values)
    assert.equal('no text', err)
  end))
end)

describe('W29', function()
  it('what was collected before a failure is kept with it', run(function()
    local _, failure = failure_of(flow.Deferred(function()
      yield(1)
      yield(2)
      error 'oops'
    end))
    assert.same({ 1, 2 }, failure.partial)
  end))

  it('a flow can be cancelled, and what it waits for goes with it', run(function()
    local cancelled, closed = false, false
    local d = flow.Deferred(function()
      local _ <close> = setmetatable({}, { __close = function() closed = true end })
      yield(1)
      yield(coop.Deferred(function() cancelled = true end))
    end)
    turns()
    d:cancel()
    assert.is_true(cancelled)
    assert.is_true(closed)
    local err, failure = failure_of(d)
    helper.is_error(errors.CancelledError, err)
    assert.same({ 1 }, failure.partial)
  end))

  it('a flow that is over is not entered again', run(function()
    local go_on
    local cb = flow.Callback()
    local d = flow.Deferred(flow.Merge(cb, function()
      yield(flow.CallLater(function(f) go_on = f end))
      yield 'late'
    end))
    turns()
    cb:errback 'oops'
    local _, failure = failure_of(d)
    go_on()
    pcall(cb.result, cb, 'later')
    turns()
    assert.same({}, failure.partial)
  end))

  it('a list that was delivered does not change any more', run(function()
    local cb = flow.Callback()
    local d = flow.Deferred(cb)
    cb:result(1)
    cb:finish()
    local values = await(d)
    pcall(cb.result, cb, 2)
    turns()
    assert.same({ 1 }, values)
  end))
end)

-- Threaded itself is tested with threads; here is what it shares with every source.
describe('W30', function()
  it('the trap items of a source match', run(function()
    local cb = flow.Callback(errors.TimeoutError)
    cb:result(1)
    cb:errback(errors.TimeoutError())
    assert.same({ 1, errors.TimeoutError }, list(cb))
  end))

  it('a failure does not overtake the results before it', run(function()
    local cb = flow.Callback()
    for i = 1, 100 do cb:result(i) end
    cb:errback 'oops'
    local values, err = ending(flow.Filter(nil, flow.Merge(cb)))
    assert.equal(100, #values)
    assert.equal('oops', err)
  end))

  it('an error in making the iterator fails the flow', run(function()
    assert.equal('oops', (failure_of(flow.Deferred(function() error('oops', 0) end))))
    local values, err = ending(flow.Merge({ 1 }, function() error('oops', 0) end))
    assert.same({ 1 }, values)
    assert.equal('oops', err)
  end))

  it('a source makes nothing that nobody asks for, and can be stopped', run(function()
    local made, closed = 0, false
    local stage = wrap(function()
      local _ <close> = setmetatable({}, { __close = function() closed = true end })
      while true do
        made = made + 1
        yield(made)
      end
    end)
    assert.equal(1, stage())
    turns()
    assert.equal(1, made)
    stage:close()
    assert.is_true(closed)
  end))
end)

describe('W31', function()
  it('a loop over a stage needs no yield of its own', run(function()
    local function consumer()
      local sum = 0
      for v in wrap { 1, Cooperate(), 2, 3 } do sum = sum + v end
      yield(sum)
    end
    assert.same({ 6 }, await(flow.Deferred(consumer)))
  end))

  it('the value of a Deferred that a body yields comes back from the yield', run(function()
    assert.same({ 'fired', 'later' }, await(flow.Deferred(function()
      yield(yield(coop.succeed 'fired'))
      yield(yield(coop.sleep(0):add_callback(function() return 'later' end)))
    end)))
  end))

  it('its failure is raised there, and not lost', run(function()
    assert.equal('oops', (failure_of(flow.Deferred(function()
      yield(coop.fail 'oops')
      yield 'too far'
    end))))
  end))

  it('Merge takes lists in turns', run(function()
    assert.same({ 1, 'a', 2, 'b' }, await(flow.Deferred(flow.Merge({ 1, 2 }, { 'a', 'b' }))))
  end))

  it('Unsupported is an error like any other', run(function()
    local err = raises(errors.Unsupported, function() list((flow.Block(coop.Deferred()))) end)
    assert.truthy(tostring(err):find('Block', 1, true))
    assert.equal('Unsupported: sockets', tostring(errors.Unsupported 'sockets'))
  end))
end)

describe('what is no clock', function()
  it('fails a stage that waits by it, in words', run(function()
    for _, bad in ipairs { true, 5, 'x', {}, io.stdout, print } do
      flow.clock = bad
      local d = flow.Deferred(function() yield(Cooperate(1)) end)
      local ok, err = pcall(await, d)
      assert.is_false(ok)
      assert.equal('Cooperate: flow.clock is not a clock', err)
    end
  end))
end)
