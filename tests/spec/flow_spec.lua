-- Flows: stages that pull from stages.

local coop = require 'coop'
local flow = require 'coop.flow'
local helper = require 'tests.spec.helper'

local run, misuse, raises = helper.run, helper.misuse, helper.raises
local value_of, error_of, pending = helper.value_of, helper.error_of, helper.pending
local inline, spawn, await, yield = coop.inline_callbacks, coop.spawn, coop.await, coroutine.yield
local wrap, Cooperate, Block = flow.wrap, flow.Cooperate, flow.Block
local errors = coop.errors

-- The values of a stage or iterator.
local function list(stage)
  local values = {}
  for v in stage do values[#values + 1] = v end
  return values
end

-- The values of a stage by way of a Block.
local function blocked(stage, ...) return list((Block(stage, ...))) end

-- The values of a stage by way of a Deferred, awaited.
local function flowed(stage, ...) return await(flow.Deferred(stage, ...)) end

-- A body that yields its arguments, one by one.
local function giving(...)
  local values = table.pack(...)
  return function()
    for i = 1, values.n do yield(values[i]) end
  end
end

-- A body that yields its arguments and then raises `err`.
local function failing(err, ...)
  local give = giving(...)
  return function()
    give()
    error(err, 0)
  end
end

-- A to-be-closed value that puts `name` into `log`.
local function closer(log, name)
  return setmetatable({}, { __close = function() log[#log + 1] = name end })
end

-- A body that yields 1, 2, 3, ... and notes in `log` when it is closed.
local function numbers(log, name)
  return function()
    local _ <close> = closer(log, name)
    for i = 1, math.huge do yield(i) end
  end
end

-- Text of what tuples hold.
local function tuples(stage)
  local texts = {}
  for t in stage do
    local parts = {}
    for i = 1, t.n do parts[i] = tostring(t[i]) end
    texts[#texts + 1] = table.concat(parts, ' ')
  end
  return texts
end

-- Waits until `f()` is true.
local function eventually(f)
  local give_up = coop.seconds() + 30
  while not f() do
    assert(coop.seconds() < give_up, 'it never came')
    await(coop.sleep(0.001))
  end
end

-- Lets the tasks that can run do so.
local function turns()
  for _ = 1, 5 do await(coop.sleep(0)) end
end

local clock

-- The virtual clock of the test, which Cooperate is to take its time from.
local function virtual()
  clock = coop.Clock()
  flow.clock = clock
  return clock
end

after_each(function()
  flow.clock = nil
  clock = nil
end)

-- Kilobytes that the weak tables of the check for leaks may have room for, now more, now less.
local ROOM = 1024

describe('a stage in the explicit form', function()
  it('FLOW-01 raises NotReadyError when no value is ready', function()
    local stage = wrap { 1, 2, 3 }
    raises(errors.NotReadyError, function() stage:next() end, 'next')
  end)

  it('FLOW-01 is as it was after that', run(function()
    local stage = wrap { 1, 2, 3 }
    pcall(stage.next, stage)
    assert.same({ 1, 2, 3 }, list(stage))
  end))

  it('FLOW-02 of a string is ready by itself, and ends behind it', function()
    local stage = wrap 'hello'
    assert.equal('hello', stage:next())
    assert.is_nil(stage:next())
    assert.is_nil(stage:next())
  end)

  it('FLOW-04 of a list with an instruction in it waits in its place', run(function()
    virtual()
    local stage, seen = wrap { 1, Cooperate(1), 2 }, {}
    spawn(function()
      while true do
        yield(stage)
        local v = stage:next()
        if v == nil then break end
        seen[#seen + 1] = v
      end
      seen[#seen + 1] = 'end'
    end)
    assert.same({ 1 }, seen)
    clock:advance(1)
    assert.same({ 1, 2, 'end' }, seen)
  end))

  it('FLOW-06 tells its end when it has been yielded once more', run(function()
    local stage = wrap(giving(1))
    yield(stage)
    assert.equal(1, stage:next())
    raises(errors.NotReadyError, function() stage:next() end)
    yield(stage)
    assert.is_nil(stage:next())
    assert.is_nil(stage:next())
  end))

  it('FLOW-07 gives a list that its body yields as one value', run(function()
    local chunk = { 1, 2 }
    local stage = wrap(giving(chunk))
    yield(stage)
    assert.equal(chunk, stage:next())
  end))

  it('has one value ready, however often it is yielded', run(function()
    local made = 0
    local stage = wrap(function()
      for i = 1, 5 do
        made = i
        yield(i)
      end
    end)
    for _ = 1, 3 do yield(stage) end
    assert.equal(1, made)
    assert.equal(1, stage:next())
    assert.equal(1, made)
  end))

  it('gives false like any other value', run(function()
    local stage = wrap { false, 1 }
    yield(stage)
    assert.is_false(stage:next())
    yield(stage)
    assert.equal(1, stage:next())
  end))

  it('may be mixed with the natural form', run(function()
    local stage = wrap { 1, 2, 3 }
    yield(stage)
    assert.equal(1, stage())
    assert.equal(2, stage())
    yield(stage)
    assert.equal(3, stage:next())
    assert.is_nil(stage())
  end))

  it('raises the error that ended it, once', run(function()
    local stage = wrap(failing('oops'))
    yield(stage)
    local ok, err = pcall(stage.next, stage)
    assert.is_false(ok)
    assert.equal('oops', err)
    assert.is_nil(stage:next())
  end))
end)

describe('consumers', function()
  -- The howto's states and the consumer that drops what is even.
  local function states() return giving(3, 2, 1) end

  it('FLOW-11 read in the explicit form', run(function()
    local function consumer()
      local producer = wrap(states())
      yield(producer)
      local v = producer:next()
      while v ~= nil do
        if v ~= 2 then yield(v) end
        yield(producer)
        v = producer:next()
      end
    end
    assert.same({ 3, 1 }, blocked(consumer))
    assert.same({ 3, 1 }, flowed(consumer))
  end))

  it('FLOW-11 read in the natural form', run(function()
    local function consumer()
      for v in wrap(states()) do
        if v ~= 2 then yield(v) end
      end
    end
    assert.same({ 3, 1 }, blocked(consumer))
    assert.same({ 3, 1 }, flowed(consumer))
  end))

  it('FLOW-12 end with what they read in an endless loop', run(function()
    local ended = false
    local function consumer()
      local producer = wrap(states())
      while true do
        yield(producer)
        local v = producer:next()
        if v == nil then
          ended = true
          return
        end
        if v ~= 2 then yield(v) end
      end
    end
    assert.same({ 3, 1 }, blocked(consumer))
    assert.is_true(ended)
  end))

  it('FLOW-18 may collect all that they read', run(function()
    local function build_list(source)
      return function()
        local result = {}
        for v in wrap(source) do result[#result + 1] = v end
        yield(result)
      end
    end
    for _, source in ipairs { { 1, 2, 3 }, { 1, Cooperate(0.001), 2, 3 } } do
      assert.same({ { 1, 2, 3 } }, blocked(build_list(source)))
      assert.same({ { 1, 2, 3 } }, flowed(build_list(source)))
    end
  end))

  it('are coroutines of coop', run(function()
    virtual()
    local seen = {}
    local c = spawn(function()
      for v in wrap { 1, Cooperate(1), 2 } do seen[#seen + 1] = v end
      return 'done'
    end)
    assert.same({ 1 }, seen)
    clock:advance(1)
    assert.same({ 1, 2 }, seen)
    assert.equal('done', value_of(c))
  end))

  it('are bodies of inline_callbacks in the explicit form', run(function()
    virtual()
    local d = inline(function()
      local stage, sum = wrap { 1, Cooperate(1), 2 }, 0
      yield(stage)
      for v in function() return stage:next() end do
        sum = sum + v
        yield(stage)
      end
      return sum
    end)()
    pending(d)
    clock:advance(1)
    assert.equal(3, value_of(d))
  end))

  it('are tasks of a Cooperator, each value a step', run(function()
    local seen = {}
    local function reader(name)
      return coop.generator(function()
        for v in wrap { 1, Cooperate(), 2 } do
          seen[#seen + 1] = name .. v
          yield(v)
        end
      end)()
    end
    await(coop.gather_results { coop.coiterate(reader 'a'), coop.coiterate(reader 'b') })
    assert.same({ 'a1', 'b1', 'a2', 'b2' }, seen)
  end))

  it('are tasks of a Cooperator in the explicit form', run(function()
    local seen = {}
    local function reader(name)
      return coop.generator(function()
        local stage = wrap { 1, 2, Cooperate(), 3 }
        while true do
          yield(stage)
          local v = stage:next()
          if v == nil then return end
          seen[#seen + 1] = name .. v
        end
      end)()
    end
    await(coop.gather_results { coop.coiterate(reader 'a'), coop.coiterate(reader 'b') })
    assert.same({ 'a1', 'b1', 'a2', 'b2', 'a3', 'b3' }, seen)
  end))

  it('are tasks that iterate over a stage itself', run(function()
    assert.same({ 1, 2, 3 }, await(coop.accumulate(wrap { 1, Cooperate(), 2, 3 })))
    assert.same({ 1, 2, 3 }, await(coop.batch_accumulate(2, wrap { 1, Cooperate(), 2, 3 })))
    assert.same({ 2, 4, n = 2 }, await(coop.parallel(1, wrap { 1, Cooperate(), 2 },
      function(v) return 2 * v end)))
  end))

  it('are tasks that close the stage when they are stopped', run(function()
    local log = {}
    local task = coop.cooperate(wrap(numbers(log, 'closed')))
    local done = task:when_done()
    turns()
    task:stop()
    assert.same({ 'closed' }, log)
    helper.is_error(errors.TaskStopped, (error_of(done)))
  end))

  it('are generators of a script, inside a body', run(function()
    local twice = coop.generator(function(stage)
      for v in stage do
        yield(v)
        yield(v)
      end
    end)
    local stage = wrap(function()
      for v in twice(wrap { 1, Cooperate(0.001), 2 }) do yield(v) end
    end)
    assert.same({ 1, 1, 2, 2 }, flowed(stage))
  end))

  it('are coroutines of the script’s own, inside a body', run(function()
    local stage = wrap(function()
      local source = wrap { 1, Cooperate(), 2 }
      local inner = coroutine.wrap(function()
        for v in source do yield(v * 10) end
      end)
      for v in inner do yield(v) end
    end)
    assert.same({ 10, 20 }, flowed(stage))
  end))

  it('may wait in a pcall', run(function()
    local stage = wrap(function()
      local source = wrap { 1, Cooperate(), 2 }
      for _ = 1, 2 do
        local _, v = pcall(source)
        yield(v)
      end
    end)
    assert.same({ 1, 2 }, flowed(stage))
  end))

  it('are refused where nothing can wait, and the stage stays as it is', run(function()
    local stage = wrap { 1, Cooperate(), 2 }
    assert.equal(1, stage())
    misuse(function()
      table.sort({ 1, 2 }, function() return stage() end)
    end, 'flow_spec.lua', 'next', "'table.sort'")
    assert.equal(2, stage())
  end))
end)

describe('wrap', function()
  it('FLOW-13 makes one value of a string', function()
    assert.same({ 'string' }, blocked 'string')
  end)

  it('FLOW-13 makes the elements of a list values, with waits between them', function()
    assert.same({ 1, 2, 3 }, blocked { 1, 2, Cooperate(), 3 })
  end)

  it('FLOW-13 takes what a generator yields', function()
    local gen = coop.generator(giving(1, 2, Cooperate(), 3))
    assert.same({ 1, 2, 3 }, blocked(gen))
    assert.same({ 1, 2, 3 }, blocked(gen()))
  end)

  it('FLOW-15 refuses numbers, booleans, nil, and what has no values', function()
    for _, v in ipairs { 1, 1.5, true, io.stdout, coop.Failure 'x', coop.Clock() } do
      misuse(function() wrap(v) end, "bad argument #1 to 'wrap'", 'expected, got')
    end
    misuse(function() wrap(nil) end, 'got nil')
    misuse(function() wrap(7) end, 'flow_spec.lua', 'got number')
    misuse(function() wrap(coop.Clock()) end, 'got Clock')
  end)

  it('FLOW-15 gives the keys of a table without elements', function()
    local keys = blocked { x = 1, y = 2 }
    table.sort(keys)
    assert.same({ 'x', 'y' }, keys)
    assert.same({}, blocked {})
  end)

  it('FLOW-16 returns a stage as it is, with the new trap items first', run(function()
    local stage = wrap(failing('a b c', 1), 'b')
    assert.equal(stage, wrap(stage))
    assert.equal(stage, wrap(stage, 'c', 'b'))
    assert.same({ 1, 'c' }, list(stage))
  end))

  it('FLOW-16 has no use for traps of what cannot fail', run(function()
    assert.same({ 1, 2 }, list(wrap({ 1, 2 }, 'x')))
    assert.same({ 'text' }, list(wrap('text', 'x')))
  end))

  it('calls a function once, when its first value is wanted', run(function()
    local calls = 0
    local stage = wrap(function(...)
      calls = calls + 1
      assert.equal(0, select('#', ...))
      yield 'v'
    end)
    assert.equal(0, calls)
    assert.same({ 'v' }, list(stage))
    assert.is_nil(stage())
    assert.equal(1, calls)
  end))

  it('goes on with a generator or stage that a function returns', run(function()
    assert.same({ 'a', 1, 2 }, list(wrap(function()
      yield 'a'
      return coop.generator(giving(1, 2))()
    end)))
    assert.same({ 1, 2 }, list(wrap(function() return wrap { 1, Cooperate(), 2 } end)))
    assert.same({ 'a' }, list(wrap(function()
      yield 'a'
      return { 1, 2 }
    end)))
  end))

  it('takes callable objects, and coroutines', run(function()
    local object = setmetatable({}, { __call = function() yield 'called' end })
    assert.same({ 'called' }, list(wrap(object)))
    assert.same({ 1, 2 }, list(wrap(coroutine.create(giving(1, 2)))))
  end))

  it('takes a list as far as its n says', run(function()
    assert.same({ 1, 3 }, list(wrap { 1, nil, 3, n = 3 }))
    assert.same({ 1 }, list(wrap { 1, 2, n = 1 }))
    assert.same({}, list(wrap { n = 0 }))
  end))

  it('lets a Deferred in a list stand for its value', run(function()
    local d = coop.Deferred()
    coop.call_later(0, function() d:callback 'late' end)
    assert.same({ 1, 'late', 3 }, list(wrap { 1, d, coop.succeed(nil), 3 }))
  end))

  it('takes a Deferred for its value, and nil for none', run(function()
    assert.same({ 'v' }, list(wrap(coop.succeed 'v')))
    assert.same({}, list(wrap(coop.succeed(nil))))
    assert.same({ 'slept' }, list(wrap(spawn(function()
      await(coop.sleep(0))
      return 'slept'
    end))))
  end))

  it('leaves the value of a Deferred to others', run(function()
    local d = coop.succeed 'v'
    assert.same({ 'v' }, list(wrap(d)))
    assert.equal('v', value_of(d))
  end))

  it('refuses trap items that could not match', function()
    misuse(function() wrap({}, 'x', nil) end, "bad argument #3 to 'wrap'", 'got nil')
    misuse(function() wrap({}, 5) end, "bad argument #2 to 'wrap'", 'class', 'got number')
  end)
end)

describe('errors', function()
  it('FLOW-19 come behind the values that came before', function()
    local stage, seen = Block(failing('oops', 'x')), {}
    local ok, err = pcall(function()
      for v in stage do seen[#seen + 1] = v end
    end)
    assert.is_false(ok)
    assert.equal('oops', err)
    assert.same({ 'x' }, seen)
    assert.is_nil(stage())
  end)

  it('FLOW-19 that are trapped are the last value', run(function()
    local TimeoutError = errors.TimeoutError
    local bad = failing(TimeoutError 'slow', 'x')
    assert.same({ 'x', TimeoutError }, blocked(bad, TimeoutError))
    assert.same({ 'x', TimeoutError }, blocked(wrap(bad, TimeoutError)))
    assert.same({ 'x', TimeoutError }, blocked(function()
      for v in wrap(bad, errors.CancelledError, TimeoutError) do yield(v) end
    end))
    assert.same({ 'x', TimeoutError }, flowed(bad, TimeoutError))
  end))

  it('FLOW-20 are trapped, or caught around the loop', run(function()
    local IOError, AssertionError = {}, {}
    IOError.__index, AssertionError.__index = IOError, AssertionError
    local function producer(class) return failing(setmetatable({}, class), 1, 2) end
    local function consumer(class)
      return function()
        local source = wrap(producer(class), IOError)
        local ok, err = pcall(function()
          for v in source do yield(v == IOError and 'trapped' or v) end
        end)
        if ok then return end
        assert.equal(AssertionError, getmetatable(err))
        yield 'notrap'
      end
    end
    assert.same({ 1, 2, 'trapped' }, blocked(consumer(IOError)))
    assert.same({ 1, 2, 'notrap' }, blocked(consumer(AssertionError)))
    assert.same({ 1, 2, 'trapped' }, flowed(consumer(IOError)))
    assert.same({ 1, 2, 'notrap' }, flowed(consumer(AssertionError)))
  end))

  it('FLOW-20 are caught in the explicit form too', run(function()
    assert.same({ 1, 'notrap' }, flowed(function()
      local source = wrap(failing('oops', 1))
      local ok = pcall(function()
        while true do
          yield(source)
          yield(source:next())
        end
      end)
      if not ok then yield 'notrap' end
    end))
  end))

  it('FLOW-21 go through consumers to who drives the flow', run(function()
    local err = {}
    local function through(source)
      return function()
        for v in wrap(source) do yield(v) end
      end
    end
    local ok, got = pcall(blocked, through(through(failing(err, 1))))
    assert.is_false(ok)
    assert.equal(err, got)
    ok, got = pcall(flowed, through(through(failing(err, 1))))
    assert.is_false(ok)
    assert.equal(err, got)
  end))

  it('of every kind arrive unchanged', run(function()
    for name, err in helper.values() do
      local ok, got = pcall(list, flow.Map(function(v) return v end, failing(err, 1)))
      assert.is_false(ok, name)
      assert.equal(err, got, name)
    end
  end))

  it('FLOW-23 are not Failures that a body yields as values', run(function()
    local failure = coop.Failure 'x'
    assert.same({ failure }, list(wrap(giving(failure))))
    assert.same({ failure }, list(flow.Filter(nil, giving(failure))))
    assert.same({ failure }, flowed(wrap { failure }))
  end))

  it('end a stage', run(function()
    local stage = wrap(failing 'oops')
    assert.is_false(pcall(stage))
    assert.is_nil(stage())
    assert.is_nil(stage:next())
  end))

  it('are traced to the line that raised them, and to who pulled', run(function()
    local function source() error 'here' end
    local d = spawn(function()
      for _ in flow.Map(function(v) return v end, source) do yield() end
    end)
    local _, failure = error_of(d)
    local text = failure:traceback()
    local line = debug.getinfo(source, 'S').linedefined
    assert.truthy(text:find(('flow_spec.lua:%d:'):format(line), 1, true), text)
    assert.truthy(text:find(('flow_spec.lua:%d:'):format(line + 2), 1, true), text)
    assert.is_nil(text:find('coop.', 1, true), text)
  end))

  it('of a trap function are the error of the stage', run(function()
    local stage = wrap(failing('oops'), function() error('trapping', 0) end)
    local _, err = pcall(stage)
    assert.equal('trapping', err)
  end))
end)

describe('Zip', function()
  it('FLOW-24 pairs values, with waits between them', function()
    assert.same({ '1 a', '2 b', '3 nil' },
      tuples((Block(flow.Zip({ 1, 2, Cooperate(), 3 }, { 'a', 'b' })))))
  end)

  it('FLOW-25 pads what is shorter, on either side', run(function()
    assert.same({ '1 a x', '2 nil y', 'nil nil z' },
      tuples(flow.Zip({ 1, 2 }, { 'a' }, { 'x', 'y', 'z' })))
    assert.same({ '1 a', 'nil b' }, tuples(flow.Zip({ 1 }, { 'a', 'b' })))
    assert.same({ 'nil' }, { tostring(flow.Zip({}, {})()) })
  end))

  it('FLOW-25 of one makes tables of one, and of none is refused', run(function()
    assert.same({ { 1, n = 1 }, { 2, n = 1 } }, list(flow.Zip { 1, 2 }))
    misuse(flow.Zip, "bad argument #1 to 'Zip'", 'got nil')
  end))

  it('FLOW-26 fails with the first of its sources', run(function()
    local ok, err = pcall(flowed, flow.Zip({ 1, 2, 3 }, failing('oops', 1)))
    assert.is_false(ok)
    assert.equal('oops', err)
  end))

  it('waits for its sources side by side', run(function()
    virtual()
    local function slow(v)
      return function()
        yield(Cooperate(1))
        yield(Cooperate(1))
        yield(v)
      end
    end
    local c = spawn(function() return tuples(flow.Zip(slow 'a', slow 'b')) end)
    clock:advance(2)
    assert.same({ 'a b' }, value_of(c))
  end))

  it('takes a stage that it is given twice in turns', run(function()
    local stage = wrap { 1, 2, 3 }
    assert.same({ '1 2', '3 nil' }, tuples(flow.Zip(stage, stage)))
  end))

  it('keeps false', run(function()
    assert.same({ 'false 1' }, tuples(flow.Zip({ false }, { 1 })))
  end))
end)

describe('Map', function()
  it('FLOW-27 calls its function with each value', run(function()
    assert.same({ 10, 11, 12, 13 }, list(flow.Map(function(v) return v + 10 end, { 0, 1, 2, 3 })))
  end))

  it('FLOW-27 calls its function with one value of each stage', run(function()
    local calls = {}
    local sums = list(flow.Map(function(...)
      calls[#calls + 1] = table.pack(...)
      return (...) and ... + select(2, ...) or -1
    end, { 1, 2 }, { 10, 20, 30 }))
    assert.same({ 11, 22, -1 }, sums)
    assert.same({ 1, 10, n = 2 }, calls[1])
    assert.same({ nil, 30, n = 2 }, calls[3])
  end))

  it('FLOW-27 makes tables without a function, as Zip does', run(function()
    assert.same({ '1 a', '2 nil' }, tuples(flow.Map(nil, { 1, 2 }, { 'a' })))
    assert.same({ '1', '2' }, tuples(flow.Map(nil, { 1, 2 })))
  end))

  it('FLOW-27 fails when its function does, and closes its source', run(function()
    local log = {}
    local stage = flow.Map(function(v)
      if v == 3 then error('oops', 0) end
      return v
    end, numbers(log, 'closed'))
    local seen = {}
    local ok, err = pcall(function()
      for v in stage do seen[#seen + 1] = v end
    end)
    assert.is_false(ok)
    assert.equal('oops', err)
    assert.same({ 1, 2 }, seen)
    assert.same({ 'closed' }, log)
    assert.is_nil(stage())
  end))

  it('waits in its function, and for the Deferred that it returns', run(function()
    assert.same({ 2, 4 }, list(flow.Map(function(v)
      await(coop.sleep(0))
      return 2 * v
    end, { 1, 2 })))
    assert.same({ 3, 6 }, list(flow.Map(function(v)
      return coop.sleep(0):add_callback(function() return 3 * v end)
    end, { 1, 2 })))
    assert.same({ 11, 22 }, list(flow.Map(function(a, b)
      return coop.sleep(0):add_callback(function() return a + b end)
    end, { 1, 2 }, { 10, 20 })))
  end))

  it('leaves out what its function makes nil of, not false', run(function()
    assert.same({ false, 2 }, list(flow.Map(function(v)
      if v == 1 then return nil end
      return v == 2 and v
    end, { 1, 3, 2 })))
  end))

  it('is refused without a stage or with something else than a function', function()
    misuse(function() flow.Map(print) end, "bad argument #2 to 'Map'")
    misuse(function() flow.Map(5, {}) end, "bad argument #1 to 'Map'", 'function', 'got number')
    misuse(function() flow.Map(nil, {}, 5) end, "bad argument #3 to 'Map'", 'got number')
  end)
end)

describe('Merge', function()
  it('FLOW-29 takes lists in turns, like any other source', run(function()
    assert.same({ 1, 'a', 2, 'b' }, list(flow.Merge({ 1, 2 }, { 'a', 'b' })))
    assert.same({ 1, 'a', 2, 'b' }, list(flow.Merge(giving(1, 2), { 'a', 'b' })))
  end))

  it('FLOW-30 goes on with what is left when others end', run(function()
    assert.same({ 1, 'a', 'b', 'c' }, list(flow.Merge({ 1 }, { 'a', 'b', 'c' })))
    assert.same({ 1, 'a', 'x', 2, 'y', 3 },
      list(flow.Merge({ 1, 2, 3 }, { 'a' }, { 'x', 'y' })))
  end))

  it('FLOW-30 of nothing is empty', run(function()
    assert.same({}, list(flow.Merge()))
    assert.same({}, flowed(flow.Merge()))
  end))

  it('FLOW-30 fails with the first that fails, behind what came before', run(function()
    local log = {}
    local d = flow.Deferred(flow.Merge(failing('oops', 'a'), numbers(log, 'closed')))
    local _, failure = pcall(await, d)
    assert.equal('oops', failure)
    assert.same({ 'closed' }, log)
  end))

  it('leaves out of its turns who waits', run(function()
    virtual()
    local seen = {}
    local c = spawn(function()
      for v in flow.Merge({ 1, Cooperate(1), 2 }, { 'a', 'b', 'c' }) do seen[#seen + 1] = v end
    end)
    assert.same({ 1, 'a', 'b', 'c' }, seen)
    clock:advance(1)
    assert.same({ 1, 'a', 'b', 'c', 2 }, seen)
    value_of(c)
  end))

  it('prints the words of the howto in their order', function()
    local words, counter = { 'one', 'two', Cooperate(), 'three' }, giving(1, 2, 3)
    assert.same({ 'one', 1, 'two', 2, 3, 'three' }, blocked(flow.Merge(words, counter)))
  end)

  it('takes one value at a time, from a thousand branches', run(function()
    local branches = {}
    for i = 1, 1000 do
      branches[i] = i % 2 == 0 and { i, i } or { i, Cooperate(), i }
    end
    local sum, count = 0, 0
    for v in flow.Merge(table.unpack(branches)) do
      sum, count = sum + v, count + 1
    end
    assert.equal(2000, count)
    assert.equal(1001000, sum)
  end))

  it('is refused what cannot be wrapped', function()
    misuse(function() flow.Merge({}, 5) end, "bad argument #2 to 'Merge'", 'got number')
    misuse(function() flow.Concurrent(5) end, "bad argument #1 to 'Concurrent'", 'got number')
    misuse(function() flow.Chain({}, nil) end, "bad argument #2 to 'Chain'", 'got nil')
  end)
end)

describe('Concurrent', function()
  it('FLOW-32 gives the stages that have a value, in their turns', run(function()
    local a, b = wrap { 'a1', 'a2' }, wrap { 'b1', 'b2' }
    local both = flow.Concurrent(a, b)
    assert.equal(a, both())
    assert.equal('a1', a:next())
    raises(errors.NotReadyError, function() a:next() end)
    assert.equal(b, both())
    assert.equal('b1', b:next())
    assert.equal(a, both())
    assert.equal('a2', a:next())
  end))

  it('FLOW-32 waits while none is ready', run(function()
    virtual()
    local a, b = wrap { Cooperate(2), 'a1', 'a2' }, wrap { Cooperate(1), 'b1', Cooperate(2), 'b2' }
    local seen = {}
    local c = spawn(function()
      for stage in flow.Concurrent(a, b) do seen[#seen + 1] = stage:next() end
    end)
    assert.same({}, seen)
    clock:advance(1)
    assert.same({ 'b1' }, seen)
    clock:advance(1)
    assert.same({ 'b1', 'a1', 'a2' }, seen)
    clock:advance(1)
    assert.same({ 'b1', 'a1', 'a2', 'b2' }, seen)
    value_of(c)
  end))

  it('lets the natural form take the value too', run(function()
    local seen = {}
    for stage in flow.Concurrent({ 1, 2 }, { 'a' }) do seen[#seen + 1] = stage() end
    assert.same({ 1, 'a', 2 }, seen)
  end))

  it('gives a stage again whose value was not taken', run(function()
    local seen, skipped = {}, false
    for stage in flow.Concurrent({ 1 }, { 'a' }) do
      if skipped then seen[#seen + 1] = stage:next() end
      skipped = true
    end
    assert.same({ 'a', 1 }, seen)
  end))

  it('is empty without stages, and fails with the first that does', run(function()
    assert.same({}, list(flow.Concurrent()))
    local seen = {}
    local ok, err = pcall(function()
      for stage in flow.Concurrent(failing('oops', 1), { 'a', 'b' }) do
        seen[#seen + 1] = stage:next()
      end
    end)
    assert.is_false(ok)
    assert.equal('oops', err)
    assert.same({ 1, 'a' }, seen)
  end))
end)

describe('Chain', function()
  it('gives the values of one stage after those of the other', run(function()
    assert.same({ 1, 2, 'a', 'b' }, list(flow.Chain({ 1, Cooperate(), 2 }, giving('a', 'b'))))
    assert.same({ 'x', 'y' }, list(flow.Chain('x', {}, 'y')))
    assert.same({}, list(flow.Chain()))
  end))

  it('begins with one when the one before has ended', run(function()
    local begun = false
    local stage = flow.Chain({ 1 }, function()
      begun = true
      yield(2)
    end)
    assert.equal(1, stage())
    assert.is_false(begun)
    assert.equal(2, stage())
  end))

  it('closes those that it has not come to', run(function()
    local log = {}
    local later = wrap(numbers(log, 'later'))
    later()
    local stage = flow.Chain(failing('oops', 1), later)
    assert.is_false(pcall(list, stage))
    assert.same({ 'later' }, log)
  end))
end)

describe('Filter', function()
  local function odd(v) return v % 2 == 1 end

  it('FLOW-35 keeps what its function says', function()
    assert.same({ 1, 3 }, blocked(flow.Filter(odd, { 1, 2, Cooperate(), 3 })))
  end)

  it('FLOW-35 keeps what is true without a function', run(function()
    assert.same({ 1, 0, '' }, list(flow.Filter(nil, { 1, false, 0, '', false })))
  end))

  it('keeps false when its function says so', run(function()
    assert.same({ false }, list(flow.Filter(function(v) return v == false end, { 1, false })))
  end))

  it('waits in its function, and for the Deferred that it returns', run(function()
    assert.same({ 1, 3 }, list(flow.Filter(function(v)
      await(coop.sleep(0))
      return odd(v)
    end, { 1, 2, 3 })))
    assert.same({ 1, 3 }, list(flow.Filter(function(v)
      return coop.sleep(0):add_callback(function() return odd(v) end)
    end, { 1, 2, 3 })))
  end))

  it('traps errors', run(function()
    assert.same({ 1, 'oops' }, list(flow.Filter(odd, failing('oops', 1, 2), 'oops')))
  end))

  it('is refused what is no function, stage or trap', function()
    misuse(function() flow.Filter(5, {}) end, "bad argument #1 to 'Filter'", 'got number')
    misuse(function() flow.Filter(nil) end, "bad argument #2 to 'Filter'", 'got nil')
    misuse(function() flow.Filter(nil, {}, 5) end, "bad argument #3 to 'Filter'", 'got number')
  end)
end)

describe('Pipe', function()
  -- A function for Pipe that gives running totals in pairs.
  local function in_pairs()
    local first
    return function(emit, v)
      if v == nil then
        if first then emit { first } end
      elseif first then
        emit { first, v }
        first = nil
      else
        first = v
      end
    end
  end

  it('calls its function with each value and at the end', run(function()
    assert.same({ { 1, 2 }, { 3 } }, list(flow.Pipe(in_pairs(), { 1, Cooperate(), 2, 3 })))
    assert.same({ { 1, 2 } }, list(flow.Pipe(in_pairs(), { 1, 2 })))
    assert.same({}, list(flow.Pipe(in_pairs(), {})))
  end))

  it('hands each value over before emit returns', run(function()
    local log = {}
    local stage = flow.Pipe(function(emit, v)
      if v == nil then return end
      for i = 1, 3 do
        log[#log + 1] = 'emit ' .. i
        emit(i)
      end
    end, { 1 })
    assert.equal(1, stage())
    assert.same({ 'emit 1' }, log)
    assert.equal(2, stage())
    assert.same({ 'emit 1', 'emit 2' }, log)
  end))

  it('emits false and the values of Deferreds, and leaves nil out', run(function()
    assert.same({ false, 'v', 3 }, list(flow.Pipe(function(emit, v)
      if v == nil then return end
      emit(false)
      emit(nil)
      emit(coop.sleep(0):add_callback(function() return 'v' end))
      emit(v)
    end, { 3 })))
  end))

  it('fails when its function does, or its source', run(function()
    local function f(emit, v)
      emit(v)
      if v == 2 then error('oops', 0) end
    end
    assert.same({ 1, 2, 'oops' }, list(flow.Pipe(f, { 1, 2, 3 }, 'oops')))
    assert.same({ 1, 'other' }, list(flow.Pipe(f, failing('other', 1), 'other')))
  end))

  it('refuses values at any other time', run(function()
    local kept
    local stage = flow.Pipe(function(emit, v)
      kept = emit
      emit(v)
    end, { 1, 2 })
    assert.equal(1, stage())
    misuse(function() kept(5) end, 'emit')
    assert.equal(2, stage())
    misuse(function() flow.Pipe(nil, {}) end, "bad argument #1 to 'Pipe'", 'got nil')
    misuse(function() flow.Pipe(print, 5) end, "bad argument #2 to 'Pipe'", 'got number')
    misuse(function() flow.Pipe(print, {}, true) end, "bad argument #3 to 'Pipe'", 'got boolean')
  end))
end)

describe('LineBreak', function()
  local LineBreak = flow.LineBreak

  it('FLOW-37 joins blocks to lines', function()
    assert.same({ 'Hello World', 'Happy Days Are Here' }, blocked(LineBreak(
      { 'Hello ', 'World\nHappy', Cooperate(), ' Days', ' Are Here\n' }, { delimiter = '\n' })))
  end)

  it('FLOW-38 breaks at CR LF, and keeps empty lines', run(function()
    assert.same({ 'a', '', 'b\nc', '' }, list(LineBreak { 'a\r\n\r', '\nb\nc\r\n\r\n' }))
    assert.same({}, list(LineBreak {}))
    assert.same({}, list(LineBreak { '', '' }))
  end))

  it('FLOW-38 fails when there is something behind the last delimiter', run(function()
    local stage = LineBreak { 'a\r\nrest' }
    assert.equal('a', stage())
    local ok, err = pcall(stage)
    assert.is_false(ok)
    assert.truthy(err:find('LineBreak: 4 bytes', 1, true), err)
  end))

  it('FLOW-38 gives it as a line with trailer', run(function()
    assert.same({ 'a', 'rest' }, list(LineBreak({ 'a\r\nre', 'st' }, { trailer = true })))
    assert.same({ 'a' }, list(LineBreak({ 'a\r\n' }, { trailer = true })))
    assert.same({ 'a\r' }, list(LineBreak({ 'a\r' }, { trailer = true })))
  end))

  it('FLOW-40 makes texts of other blocks', run(function()
    assert.same({ '12', 'true' }, list(LineBreak({ 1, 2, '\n', true, '\n' }, { delimiter = '\n' })))
  end))

  it('gives the same lines however the text is cut', run(function()
    local text = 'one<>two<<>>three<><>four<'
    local expected = { 'one', 'two<', '>three', '', 'four<' }
    for size = 1, #text do
      local blocks = {}
      for i = 1, #text, size do blocks[#blocks + 1] = text:sub(i, i + size - 1) end
      assert.same(expected, list(LineBreak(blocks, { delimiter = '<>', trailer = true })), size)
    end
    local long = { 'a', 'bb-', 'c--', 'd' }
    for size = 1, 20 do
      local blocks, whole = {}, 'a--->bb---->c----->d--->'
      for i = 1, #whole, size do blocks[#blocks + 1] = whole:sub(i, i + size - 1) end
      assert.same(long, list(LineBreak(blocks, { delimiter = '--->' })), size)
    end
  end))

  it('traps errors, given one by one or in a list', run(function()
    local function bad() return failing('oops', 'a\n') end
    assert.same({ 'a', 'oops' }, list(LineBreak(bad(), { delimiter = '\n', trap = 'oops' })))
    assert.same({ 'a', 'oops' },
      list(LineBreak(bad(), { delimiter = '\n', trap = { 'x', 'oops' } })))
    assert.same({ errors.LineTooLong },
      list(LineBreak('abc', { max_length = 2, trap = errors.LineTooLong })))
  end))

  it('is refused options that it does not know or cannot use', function()
    misuse(function() LineBreak({}, { delimeter = '\n' }) end, 'LineBreak', "'delimeter'")
    misuse(function() LineBreak({}, { delimiter = '' }) end, 'LineBreak', 'delimiter')
    misuse(function() LineBreak({}, { delimiter = 10 }) end, 'LineBreak', 'delimiter')
    misuse(function() LineBreak({}, { max_length = 0 }) end, 'LineBreak', 'max_length')
    misuse(function() LineBreak({}, { trap = 5 }) end, 'LineBreak', 'trap')
    misuse(function() LineBreak({}, 5) end, "bad argument #2 to 'LineBreak'", 'got number')
    misuse(function() LineBreak(5) end, "bad argument #1 to 'LineBreak'", 'got number')
  end)
end)

describe('flow.Deferred', function()
  it('FLOW-41 fires with the list of all values', run(function()
    assert.same({ 1, 2, 3 }, flowed { 1, Cooperate(), 2, 3 })
    assert.same({ 1, false, 2 }, flowed(giving(1, false, 2)))
    assert.same({}, flowed {})
  end))

  it('FLOW-41 fails when the stage does', run(function()
    local err = {}
    local ok, got = pcall(flowed, failing(err, 'x'))
    assert.is_false(ok)
    assert.equal(err, got)
  end))

  it('FLOW-41 has the trap item that matched as its last value', run(function()
    assert.same({ 'x', 'oops' }, flowed(failing('oops', 'x'), 'oops'))
    assert.same({ 'x', errors.TimeoutError },
      flowed(wrap(failing(errors.TimeoutError(), 'x')), errors.TimeoutError))
  end))

  it('FLOW-53 keeps what was collected in the failure', run(function()
    local d = flow.Deferred(failing('oops', 1, 2))
    local partial
    d:add_errback(function(failure) partial = failure.partial end)
    await(d)
    assert.same({ 1, 2 }, partial)
  end))

  it('FLOW-54 sets one timer for each Cooperate', run(function()
    local made, real = 0, virtual()
    flow.clock = {
      seconds = function() return real:seconds() end,
      call_later = function(_, ...)
        made = made + 1
        return real:call_later(...)
      end,
    }
    local times = {}
    local d = flow.Deferred(flow.Map(function(v)
      times[#times + 1] = v .. '@' .. real:seconds()
      return v
    end, { Cooperate(1), 'a', Cooperate(1), 'b', Cooperate(1), 'c' }))
    for _ = 1, 4 do
      turns()
      real:advance(1)
    end
    assert.same({ 'a@1.0', 'b@2.0', 'c@3.0' }, times)
    assert.equal(3, made)
    assert.same({ 'a', 'b', 'c' }, await(d))
  end))

  it('FLOW-55 takes turns with others', run(function()
    local log = {}
    local function request(name)
      return function()
        for _, step in ipairs { 'one', 'two' } do
          log[#log + 1] = name .. ' ' .. step
          yield(Cooperate())
        end
      end
    end
    virtual()
    local both =
      coop.gather_results { flow.Deferred(request 'James'), flow.Deferred(request 'Wendy') }
    for i = 2, 4, 2 do
      eventually(function() return #log == i end)
      turns()
      clock:advance(0)
    end
    eventually(function()
      clock:advance(0)
      return both.called
    end)
    assert.same({ 'James one', 'Wendy one', 'James two', 'Wendy two' }, log)
  end))

  it('FLOW-55 takes turns value by value, also when nobody waits', run(function()
    local log = {}
    local function request(name)
      return flow.Map(function(v)
        log[#log + 1] = name .. v
        return v
      end, { 1, 2, 3 })
    end
    await(coop.gather_results { flow.Deferred(request 'a'), flow.Deferred(request 'b') })
    assert.same({ 'a1', 'b1', 'a2', 'b2', 'a3', 'b3' }, log)
  end))

  it('does not hold up the loop', run(function()
    local ticks = 0
    local ticker = coop.LoopingCall(function() ticks = ticks + 1 end)
    ticker:start(0.001)
    local stop = false
    coop.call_later(0.05, function() stop = true end)
    local values = flowed(function()
      local i = 0
      while not stop do
        i = i + 1
        yield(i)
      end
    end)
    ticker:stop()
    assert.is_true(#values > 100)
    assert.is_true(ticks > 2)
  end))

  -- Flows that use a value up without an end, and give none.
  local function endless()
    local function naturals()
      for i = 1, math.huge do yield(i) end
    end
    local function none() return false end
    local deep = wrap(naturals)
    for _ = 1, 100 do deep = flow.Filter(nil, deep) end
    return {
      Filter = flow.Filter(none, naturals),
      reduction = function()
        local sum = 0
        for v in wrap(naturals) do sum = sum + v end
        yield(sum)
      end,
      ['explicit form'] = function()
        local source = wrap(naturals)
        while true do
          yield(source)
          source:next()
        end
      end,
      Merge = flow.Merge(flow.Filter(none, naturals), flow.Filter(none, naturals)),
      Zip = flow.Zip(flow.Filter(none, naturals), naturals),
      Concurrent = flow.Filter(none, flow.Concurrent(naturals, naturals)),
      ['a hundred stages'] = flow.Filter(none, deep),
      ['inner coroutine'] = function()
        local source = flow.Filter(none, naturals)
        coroutine.wrap(function() source() end)()
      end,
    }
  end

  for name, stage in pairs(endless()) do
    it('does not hold up the loop by what gives no values: ' .. name, run(function()
      local ticks = 0
      local ticker = coop.LoopingCall(function() ticks = ticks + 1 end)
      ticker:start(0.002)
      local d = flow.Deferred(stage)
      eventually(function() return ticks > 5 end)
      d:cancel()
      ticker:stop()
      helper.is_error(errors.CancelledError, (error_of(d)))
    end))
  end

  it('goes on with branches that had no turn because another took long', run(function()
    local function spin_and_wait()
      yield 'a1'
      local from = os.clock()
      while os.clock() - from < 0.01 do end
      yield(coop.Deferred())
    end
    for _, drive in ipairs { flow.Deferred, coop.accumulate } do
      local seen = {}
      local d = drive(flow.Map(function(v)
        seen[#seen + 1] = v
        return v
      end, flow.Merge(spin_and_wait, { 'b1', 'b2', 'b3' })))
      eventually(function() return #seen == 4 end)
      assert.same({ 'a1', 'b1', 'b2', 'b3' }, seen)
      d:cancel()
      helper.is_error(errors.CancelledError, (error_of(d)))
    end
  end))

  it('takes turns with others also when it gives no values', run(function()
    local log, last = {}, nil
    local function spin(name)
      return flow.Filter(function()
        if last ~= name then log[#log + 1] = name end
        last = name
        return false
      end, function()
        for i = 1, math.huge do yield(i) end
      end)
    end
    local a, b = flow.Deferred(spin 'a'), flow.Deferred(spin 'b')
    local c = coop.accumulate(spin 'c')
    eventually(function() return #log >= 6 end)
    for _, d in ipairs { a, b, c } do
      d:cancel()
      error_of(d)
    end
    assert.same({ 'a', 'b', 'c', 'a', 'b', 'c' }, { table.unpack(log, 1, 6) })
  end))

  it('is not begun before the loop turns', run(function()
    local begun = false
    local d = flow.Deferred(function()
      begun = true
      yield(1)
    end)
    assert.is_false(begun)
    await(d)
    assert.is_true(begun)
  end))

  it('closes the whole flow when it is cancelled, and tells what came', run(function()
    virtual()
    local log = {}
    local function source(name)
      return function()
        local _ <close> = closer(log, name)
        yield(name)
        yield(Cooperate(1))
      end
    end
    local d = flow.Deferred(flow.Map(function(v) return v end,
      flow.Merge(source 'a', flow.Chain(source 'b', source 'c'))))
    turns()
    d:cancel()
    assert.same({ 'a', 'b' }, log)
    assert.same({}, clock:get_delayed_calls())
    local err, failure = error_of(d)
    helper.is_error(errors.CancelledError, err)
    assert.same({ 'a', 'b' }, failure.partial)
  end))

  it('leaves a stage that others take from to them when it is cancelled', run(function()
    virtual()
    local log = {}
    local stage = wrap(function()
      local _ <close> = closer(log, 'closed')
      for i = 1, 4 do
        yield(Cooperate(1))
        yield(i)
      end
    end)
    local a, b = flow.Deferred(stage), flow.Deferred(stage)
    turns()
    a:cancel()
    helper.is_error(errors.CancelledError, (error_of(a)))
    assert.same({}, log)
    for _ = 1, 4 do
      clock:advance(1)
      turns()
    end
    assert.same({ 1, 2, 3, 4 }, value_of(b))
    assert.same({ 'closed' }, log)
  end))

  it('closes a stage that nobody else takes from any more', run(function()
    virtual()
    local log = {}
    local stage = wrap(function()
      local _ <close> = closer(log, 'closed')
      yield(Cooperate(1))
    end)
    local ds = { flow.Deferred(stage), flow.Deferred(stage), flow.Deferred(stage) }
    turns()
    for _, d in ipairs(ds) do
      assert.same({}, log)
      d:cancel()
      error_of(d)
    end
    assert.same({ 'closed' }, log)
    assert.same({}, clock:get_delayed_calls())
  end))

  it('has the error of a cleanup as its outcome when it is cancelled', run(function()
    local d = flow.Deferred(function()
      local _ <close> = setmetatable({}, { __close = function() error('cleanup', 0) end })
      yield(coop.Deferred())
    end)
    turns()
    d:cancel()
    assert.equal('cleanup', (error_of(d)))
  end))

  it('fails when its Cooperator is stopped, and closes the flow', run(function()
    local log = {}
    local d = flow.Deferred(numbers(log, 'closed'))
    turns()
    coop.cooperator:stop()
    coop.cooperator:start()
    local err, failure = error_of(d)
    helper.is_error(errors.SchedulerStopped, err)
    assert.equal(1, failure.partial[1])
    assert.same({ 'closed' }, log)
  end))

  it('is refused what is no stage or trap', function()
    misuse(function() flow.Deferred(5) end, "bad argument #1 to 'Deferred'", 'got number')
    misuse(function() flow.Deferred({}, 5) end, "bad argument #2 to 'Deferred'", 'got number')
  end)
end)

describe('Block', function()
  it('FLOW-43 gives the value of a Deferred that has fired', function()
    assert.same({ 'v' }, blocked(coop.succeed 'v'))
  end)

  it('FLOW-43 raises the error of one that has failed, or gives the trap', function()
    local ok, err = pcall(blocked, coop.fail 'oops')
    assert.is_false(ok)
    assert.equal('oops', err)
    assert.same({ 'oops' }, blocked(coop.fail 'oops', 'oops'))
  end)

  it('FLOW-47 raises Unsupported when the stage waits for a Deferred', run(function()
    local d = coop.Deferred()
    for _, stage in ipairs {
      wrap(d), wrap(giving(d, 1)), wrap { d }, wrap(function() await(d) end),
      flow.Map(nil, d, {}), flow.Merge(d), wrap(function() for _ in wrap(d) do yield(1) end end),
    } do
      raises(errors.Unsupported, Block(stage), 'Block')
    end
    d:callback(1)
  end))

  it('goes on when what it could not wait for is there', function()
    local d = coop.Deferred()
    local block = Block(giving(1, d, 2))
    assert.equal(1, block())
    raises(errors.Unsupported, block)
    d:callback()
    assert.equal(2, block())
    assert.is_nil(block())
  end)

  it('FLOW-56 sleeps the process', function()
    local before = coop.seconds()
    assert.same({ 1, 2 }, blocked { 1, Cooperate(0.2), 2 })
    local took = coop.seconds() - before
    assert.is_true(took >= 0.2, took)
    assert.is_true(took < 0.5, took)
  end)

  it('FLOW-56 supports no other instruction', function()
    raises(errors.Unsupported, Block { flow.CallLater(function() end), 1 }, 'Block')
    assert.same({ 1 }, blocked { flow.CallLater(function(go_on) go_on() end), 1 })
  end)

  it('FLOW-57 gives nil after the end, again and again', function()
    local block = Block { 1 }
    assert.equal(1, block:next())
    for _ = 1, 3 do assert.is_nil(block:next()) end
  end)

  it('lets each branch keep its pace', function()
    local before, seen = coop.seconds(), {}
    local function branch(name, s)
      return function()
        for _ = 1, 2 do
          yield(Cooperate(s))
          yield(name)
        end
      end
    end
    for v in Block(flow.Merge(branch('slow', 0.08), branch('fast', 0.02))) do
      seen[#seen + 1] = v
    end
    assert.same({ 'fast', 'fast', 'slow', 'slow' }, seen)
    local took = coop.seconds() - before
    assert.is_true(took >= 0.16 and took < 0.24, took)
  end)

  it('takes no part in the loop', run(function()
    local called = false
    coop.call_later(0, function() called = true end)
    assert.same({ 1, 2 }, blocked { 1, Cooperate(0.01), 2 })
    assert.is_false(called)
    await(coop.sleep(0))
    assert.is_true(called)
  end))

  it('leaves alone what others wait for, whom its stage wakes', run(function()
    virtual()
    local d, seen = coop.Deferred(), {}
    spawn(function()
      await(d)
      for v in wrap { 1, Cooperate(1), 2 } do seen[#seen + 1] = v end
    end)
    assert.same({ 'woken', 'end' }, blocked(function()
      d:callback()
      yield 'woken'
      yield(Cooperate(0.001))
      yield 'end'
    end))
    assert.same({ 1 }, seen)
    clock:advance(1)
    assert.same({ 1, 2 }, seen)
  end))

  it('closes the stage when a generic for is left, and as a to-be-closed variable', function()
    local log = {}
    for v in Block(numbers(log, 'left')) do
      if v == 2 then break end
    end
    assert.same({ 'left' }, log)
    do
      local block <close> = Block(numbers(log, 'closed'))
      block()
    end
    assert.same({ 'left', 'closed' }, log)
  end)

  it('works where nothing else can wait', run(function()
    local values = {}
    table.sort({ 1, 2 }, function(a, b)
      values = blocked { 1, Cooperate(0.001), 2 }
      return a < b
    end)
    assert.same({ 1, 2 }, values)
  end))

  it('is refused what is no stage or trap', function()
    misuse(function() Block(5) end, "bad argument #1 to 'Block'", 'got number')
    misuse(function() Block({}, nil) end, "bad argument #2 to 'Block'", 'got nil')
    misuse(function() Block({}).next({}) end, 'next', 'Block expected, got table')
  end)
end)

describe('Callback', function()
  it('FLOW-48 gives what is pushed', run(function()
    local cb = flow.Callback()
    local d = flow.Deferred(function()
      local result = {}
      for v in cb do result[#result + 1] = v end
      yield(result)
    end)
    for i = 1, 9 do cb:result(i) end
    cb:finish()
    assert.same({ { 1, 2, 3, 4, 5, 6, 7, 8, 9 } }, await(d))
  end))

  it('FLOW-48 waits while there is nothing', run(function()
    local cb, seen = flow.Callback(), {}
    local c = spawn(function()
      for v in cb do seen[#seen + 1] = v end
    end)
    for i = 1, 3 do
      cb:result(i)
      assert.equal(i, #seen)
    end
    pending(c)
    cb:finish()
    value_of(c)
    assert.same({ 1, 2, 3 }, await(flow.Deferred(seen)))
  end))

  it('FLOW-49 fails behind what was pushed before', run(function()
    local cb = flow.Callback()
    for i = 1, 3 do cb:result(i) end
    cb:errback 'oops'
    local d = flow.Deferred(cb)
    local partial
    d:add_errback(function(failure)
      partial = failure.partial
      return failure
    end)
    local ok, err = pcall(await, d)
    assert.is_false(ok)
    assert.equal('oops', err)
    assert.same({ 1, 2, 3 }, partial)
  end))

  it('FLOW-49 traps the error', run(function()
    local cb = flow.Callback 'oops'
    cb:result(1)
    cb:errback 'oops'
    assert.same({ 1, 'oops' }, list(cb))
  end))

  it('FLOW-51 is refused values behind its end', run(function()
    local cb = flow.Callback()
    local d = flow.Deferred(cb)
    cb:result(1)
    cb:finish()
    misuse(function() cb:result(2) end, 'result', 'finished')
    local values = await(d)
    assert.is_false(pcall(cb.result, cb, 3))
    assert.same({ 1 }, values)
    misuse(function() cb:finish() end, 'finish')
    misuse(function() cb:errback 'x' end, 'errback')
  end))

  it('FLOW-51 drops what is pushed when nobody wants it any more', run(function()
    local cb = flow.Callback()
    cb:result(1)
    local stage = flow.Filter(nil, cb)
    assert.equal(1, stage())
    stage:close()
    cb:result(2)
    cb:finish()
    assert.is_nil(cb())
  end))

  it('FLOW-52 takes any error value, or a Failure', run(function()
    for name, err in helper.values() do
      local cb = flow.Callback()
      cb:errback(err)
      local ok, got = pcall(cb)
      assert.is_false(ok, name)
      assert.equal(err, got, name)
    end
    local cb = flow.Callback()
    cb:errback(coop.Failure 'oops')
    assert.equal('oops', select(2, pcall(cb)))
  end))

  it('says its bound and keeps to it', run(function()
    local cb = flow.Callback()
    assert.equal('integer', math.type(cb.limit))
    cb.limit = 2
    cb:result(1)
    cb:result(2)
    raises(errors.QueueOverflow, function() cb:result(3) end, 'result', '2')
    assert.equal(1, cb())
    cb:result(3)
    for _, bad in ipairs { false, '9', {}, io.stdout } do
      cb.limit = bad
      misuse(function() cb:result(4) end, 'result', 'limit')
    end
    cb.limit = 0.5
    raises(errors.QueueOverflow, function() cb:result(4) end, 'result', '2')
    cb:finish()
    assert.same({ 2, 3 }, list(cb))
  end))

  it('lets a Deferred stand for its value', run(function()
    local cb, d = flow.Callback(), coop.Deferred()
    cb:result(d)
    cb:result(2)
    cb:finish()
    d:callback(1)
    assert.same({ 1, 2 }, list(cb))
  end))

  it('is refused nil, and no error', function()
    local cb = flow.Callback()
    misuse(function() cb:result(nil) end, "bad argument #1 to 'result'", 'got nil')
    misuse(function() cb:errback() end, 'errback')
    misuse(function() cb.result({}, 1) end, 'result', 'Callback expected, got table')
    misuse(function() flow.Callback(5) end, "bad argument #1 to 'Callback'", 'got number')
  end)
end)

describe('in a body', function()
  it('FLOW-46 the yield of a Deferred returns its value, fired or not', run(function()
    local later = coop.Deferred()
    coop.call_later(0, function() later:callback 'later' end)
    local stage = wrap(function()
      yield(yield(coop.succeed 'now'))
      yield(yield(later))
      yield(tostring((yield(coop.succeed(nil)))))
    end)
    assert.same({ 'now', 'later', 'nil' }, flowed(stage))
  end))

  it('the yield of a Deferred that fails raises its error', run(function()
    local stage = wrap(function()
      local _, err = pcall(yield, coop.fail 'oops')
      yield(err)
      yield(coop.fail 'again')
    end)
    assert.equal('oops', stage())
    assert.equal('again', select(2, pcall(stage)))
  end))

  it('await does the same, in coroutines of its own too', run(function()
    local stage = wrap(function()
      local inner = coroutine.wrap(function()
        yield(await(coop.sleep(0):add_callback(tostring)))
      end)
      yield(inner())
      yield(select(2, pcall(await, coop.fail 'oops')))
    end)
    assert.same({ 'nil', 'oops' }, flowed(stage))
  end))

  it('CallLater goes on when somebody says so', run(function()
    local go_on
    local stage, seen = wrap { 1, flow.CallLater(function(f) go_on = f end), 2 }, {}
    local c = spawn(function()
      for v in stage do seen[#seen + 1] = v end
    end)
    assert.same({ 1 }, seen)
    go_on()
    assert.same({ 1, 2 }, seen)
    go_on()
    value_of(c)
  end))

  it('CallLater whose function fails raises there', run(function()
    local stage = wrap(function()
      local _, err = pcall(yield, flow.CallLater(function() error('oops', 0) end))
      yield(err)
    end)
    assert.equal('oops', stage())
    misuse(function() flow.CallLater() end, "bad argument #1 to 'CallLater'", 'got nil')
  end))

  it('Cooperate takes the time of flow.clock', run(function()
    virtual()
    local stage = wrap { Cooperate(2.5), 'v' }
    local c = spawn(function() return stage() end)
    clock:advance(2)
    pending(c)
    clock:advance(0.5)
    assert.equal('v', value_of(c))
    for _, s in ipairs { -1, 0 / 0, math.huge, '1', true } do
      misuse(function() Cooperate(s) end, "bad argument #1 to 'Cooperate'")
    end
  end))

  it('a yield of nothing gives a turn up', run(function()
    local log = {}
    local function busy(name)
      return wrap(function()
        for i = 1, 2 do
          log[#log + 1] = name .. i
          yield()
        end
        yield(name)
      end)
    end
    local both = coop.gather_results { flow.Deferred(busy 'a'), flow.Deferred(busy 'b') }
    assert.same({ { 'a' }, { 'b' }, n = 2 }, await(both))
    assert.same({ 'a1', 'b1', 'a2', 'b2' }, log)
  end))

  it('the stage itself cannot be pulled from', run(function()
    local stage
    stage = wrap(function()
      yield(1)
      yield((select(2, pcall(stage))))
    end)
    assert.equal(1, stage())
    assert.truthy(stage():find('runs already', 1, true))
  end))
end)

describe('a consumer that stops early', function()
  it('closes its sources when it returns', run(function()
    local log = {}
    local function first(n)
      return function()
        local source = wrap(numbers(log, 'closed'))
        for v in source do
          if v > n then return end
          yield(v)
        end
      end
    end
    assert.same({ 1, 2 }, flowed(first(2)))
    assert.same({ 'closed' }, log)
    assert.same({ 1, 2, 3 }, blocked(first(3)))
    assert.same({ 'closed', 'closed' }, log)
  end))

  it('closes them in the explicit form too', run(function()
    local log = {}
    assert.same({ 1 }, flowed(function()
      local source = wrap(numbers(log, 'closed'))
      yield(source)
      yield(source:next())
    end))
    assert.same({ 'closed' }, log)
  end))

  it('closes them when it fails', run(function()
    local log = {}
    local ok, err = pcall(flowed, function()
      for v in wrap(numbers(log, 'closed')) do
        if v == 3 then error('oops', 0) end
        yield(v)
      end
    end)
    assert.is_false(ok)
    assert.equal('oops', err)
    assert.same({ 'closed' }, log)
  end))

  it('closes them all the way down', run(function()
    local log = {}
    local stage = wrap(numbers(log, 'source'))
    for i = 1, 3 do
      local source = stage
      stage = wrap(function()
        local _ <close> = closer(log, 'stage ' .. i)
        for v in flow.Map(function(v) return v end, source) do yield(v) end
      end)
    end
    assert.equal(1, stage())
    stage:close()
    assert.same({ 'source', 'stage 1', 'stage 2', 'stage 3' }, log)
    assert.is_nil(stage())
  end))

  it('closes sources that wait, and what they wait for', run(function()
    virtual()
    local log = {}
    local d = coop.Deferred(function() log[#log + 1] = 'cancelled' end)
    local function waiting(on, name)
      return function()
        local _ <close> = closer(log, name)
        yield(on)
      end
    end
    local stage = flow.Merge({ 1 }, waiting(d, 'a'), waiting(Cooperate(5), 'b'))
    local c = spawn(function() return stage(), stage() end)
    pending(c)
    assert.equal(1, #clock:get_delayed_calls())
    stage:close()
    assert.same({ 'cancelled', 'a', 'b' }, log)
    assert.same({}, clock:get_delayed_calls())
    value_of(c)
    helper.is_error(errors.CancelledError, (error_of(d)))
  end))

  it('leaves alone what others wait for', run(function()
    local d = coop.Deferred()
    local other = spawn(await, d)
    local stage = wrap(d)
    local c = spawn(stage)
    stage:close()
    assert.is_nil(value_of(c))
    d:callback 'v'
    assert.equal('v', value_of(other))
  end))

  it('closes them when it is closed by collection, however it was left', run(function()
    local log = {}
    for v in flow.Map(function(v) return v end, flow.Merge(numbers(log, 'a'), numbers(log, 'b'))) do
      if v == 3 then break end
    end
    collectgarbage()
    collectgarbage()
    table.sort(log)
    assert.same({ 'a', 'b' }, log)
  end))

  it('closes them when it is a to-be-closed variable', run(function()
    local log = {}
    do
      local stage <close> = flow.Filter(nil, numbers(log, 'closed'))
      assert.equal(1, stage())
    end
    assert.same({ 'closed' }, log)
  end))

  it('closes them when it is a coroutine that is cancelled', run(function()
    local log = {}
    local function consumer()
      local _ <close> = closer(log, 'consumer')
      for _ in flow.Zip(numbers(log, 'a'), function()
        local _ <close> = closer(log, 'b')
        yield(1)
        yield(coop.sleep(100))
      end) do yield() end
    end
    local c = spawn(consumer)
    c:cancel()
    assert.same({ 'a', 'b', 'consumer' }, log)
    helper.is_error(errors.CancelledError, (error_of(c)))
    log = {}
    local d = inline(consumer)()
    d:cancel()
    assert.same({ 'a', 'b', 'consumer' }, log)
    helper.is_error(errors.CancelledError, (error_of(d)))
  end))

  it('may catch the error of its cancelling, and finds the stage at its end', run(function()
    local after = {}
    local d = inline(function()
      local stage = wrap { Cooperate(100), 1 }
      local ok, err = pcall(stage)
      after = { ok, errors.CancelledError:is(err), stage() }
    end)()
    d:cancel()
    assert.same({ false, true }, after)
    value_of(d)
  end))

  it('tells the errors of their cleanup', run(function()
    local function bad()
      local _ <close> = setmetatable({}, { __close = function() error('cleanup', 0) end })
      while true do yield(1) end
    end
    local stage = wrap(bad)
    stage()
    assert.equal('cleanup', select(2, pcall(stage.close, stage)))
    assert.is_nil(stage())
    local ok, err = pcall(flowed, function() yield(wrap(bad)()) end)
    assert.is_false(ok)
    assert.equal('cleanup', err)
    local seen = helper.unhandled(function()
      ok, err = pcall(flowed, function()
        wrap(bad)()
        error('oops', 0)
      end)
    end)
    assert.is_false(ok)
    assert.equal('oops', err)
    assert.equal('cleanup', seen[1].value)
  end))

  it('does not end what others pull from as well', run(function()
    local source = wrap { 1, 2, 3, 4, 5 }
    local function take(n)
      return function()
        for _ = 1, n do yield(source()) end
      end
    end
    assert.same({ 1, 2, 3, 4, 5 }, list(flow.Merge(take(1), take(4))))
  end))

  it('closes a source that two stages pull from when both have', run(function()
    local log = {}
    local source = wrap(numbers(log, 'closed'))
    local function pull() return wrap(function() yield(source()) yield(source()) end) end
    local a, b = pull(), pull()
    assert.equal(1, a())
    assert.equal(2, b())
    a:close()
    assert.same({}, log)
    assert.equal(3, b())
    assert.is_nil(b())
    assert.same({ 'closed' }, log)
  end))
end)

describe('the pace of each branch', function()
  -- A body that yields name1, name2, ... every s seconds, n times.
  local function every(s, name, n)
    return function()
      for i = 1, n do
        yield(Cooperate(s))
        yield(name .. i)
      end
    end
  end

  -- What comes out of the stage, with its time.
  local function timed(stage)
    local seen = {}
    local c = spawn(function()
      for v in stage do seen[#seen + 1] = ('%s@%d'):format(v, clock:seconds() // 1) end
    end)
    return seen, c
  end

  it('is its own in Merge: 5 s beside 1 s', run(function()
    virtual()
    local seen, c = timed(flow.Merge(every(5, 'a', 2), every(1, 'b', 12)))
    clock:advance(12)
    assert.same({
      'b1@1', 'b2@2', 'b3@3', 'b4@4', 'a1@5', 'b5@5', 'b6@6', 'b7@7', 'b8@8', 'b9@9', 'a2@10',
      'b10@10', 'b11@11', 'b12@12',
    }, seen)
    value_of(c)
  end))

  it('is its own in Concurrent', run(function()
    virtual()
    local both = flow.Concurrent(every(5, 'a', 1), every(2, 'b', 3))
    local seen = timed(flow.Map(function(stage) return stage:next() end, both))
    clock:advance(6)
    assert.same({ 'b1@2', 'b2@4', 'a1@5', 'b3@6' }, seen)
  end))

  it('is its own in branches of branches, through other stages', run(function()
    virtual()
    local function id(v) return v end
    local seen = timed(flow.Merge(
      flow.Map(id, flow.Merge(every(3, 'a', 2), every(2, 'b', 3))),
      flow.Chain(every(1, 'c', 2), every(4, 'd', 1))))
    clock:advance(6)
    table.sort(seen)
    assert.same({ 'a1@3', 'a2@6', 'b1@2', 'b2@4', 'b3@6', 'c1@1', 'c2@2', 'd1@6' }, seen)
  end))

  it('is not that of a branch that waits for ever', run(function()
    virtual()
    local seen = timed(flow.Merge(helper.forever(), every(1, 'b', 2)))
    clock:advance(2)
    assert.same({ 'b1@1', 'b2@2' }, seen)
  end))

  it('waits for who pulls: nothing is made ahead', run(function()
    virtual()
    local made = 0
    local stage = flow.Merge(function()
      for i = 1, 3 do
        made = i
        yield(i)
        yield(Cooperate(1))
      end
    end, {})
    assert.equal(1, stage())
    clock:advance(10)
    assert.equal(1, made)
    local c = spawn(stage)
    pending(c)
    clock:advance(1)
    assert.equal(2, value_of(c))
  end))
end)

describe('a stage pulled from by several', function()
  it('gives each value to one of them', run(function()
    local source = wrap { 1, Cooperate(), 2, Cooperate(), 3, 4 }
    local function worker(name)
      return function()
        for v in source do yield(name .. v) end
      end
    end
    local seen = list(flow.Merge(worker 'a', worker 'b'))
    local numbers_seen = {}
    for i, v in ipairs(seen) do numbers_seen[i] = v:sub(2) end
    assert.same({ '1', '2', '3', '4' }, numbers_seen)
  end))

  it('serves coroutines that wait for it', run(function()
    virtual()
    local source, seen = wrap { Cooperate(1), 1, Cooperate(1), 2, Cooperate(1), 3 }, {}
    local function worker()
      for v in source do seen[#seen + 1] = v end
    end
    local a, b = spawn(worker), spawn(worker)
    clock:advance(1)
    assert.same({ 1 }, seen)
    a:cancel()
    error_of(a)
    clock:advance(1)
    clock:advance(1)
    assert.same({ 1, 2, 3 }, seen)
    value_of(b)
  end))
end)

describe('a flow', function()
  it('may be a thousand stages deep, waits and all', run(function()
    for _, source in ipairs { { 1, 2, 3 }, { 1, Cooperate(), 2, coop.sleep(0), 3 } } do
      local stage = wrap(source)
      for _ = 1, 1000 do stage = flow.Map(function(v) return v + 1 end, stage) end
      assert.same({ 1001, 1002, 1003 }, flowed(stage))
    end
  end))

  it('may be a thousand stages deep and be closed', run(function()
    local log = {}
    local stage = wrap(numbers(log, 'closed'))
    for _ = 1, 1000 do stage = flow.Filter(nil, stage) end
    assert.equal(1, stage())
    stage:close()
    assert.same({ 'closed' }, log)
  end))

  it('fails as deep as it is', run(function()
    local stage = wrap(failing('oops', 1))
    for _ = 1, 500 do stage = flow.Chain(stage) end
    assert.equal(1, stage())
    assert.equal('oops', select(2, pcall(stage)))
  end))

  it('takes a million values through five stages in constant memory', run(function()
    local function plus(source)
      return function()
        for v in wrap(source) do yield(v + 1) end
      end
    end
    local function id(v) return v end
    local stage = flow.Filter(id, flow.Map(id, wrap(plus(plus(function()
      for i = 1, 1000000 do yield(i) end
    end)))))
    local n, sum, memory = 0, 0, nil
    for v in stage do
      n, sum = n + 1, sum + v
      if n % 250000 == 0 then
        collectgarbage()
        local now = collectgarbage 'count'
        memory = memory or now
        assert.is_true(now - memory < ROOM, now - memory)
      end
    end
    assert.equal(1000000, n)
    assert.equal(500002500000, sum)
  end))

  it('takes a hundred thousand waits in constant memory', run(function()
    local stage = flow.Merge(function()
      for i = 1, 50000 do
        yield(coop.succeed(i))
        yield(i)
        yield(flow.CallLater(function(go_on) go_on() end))
      end
    end, coop.Deferred())
    local n, memory = 0, nil
    for _ in stage do
      n = n + 1
      if n % 10000 == 0 then
        collectgarbage()
        local now = collectgarbage 'count'
        memory = memory or now
        assert.is_true(now - memory < ROOM, now - memory)
      end
      if n == 50000 then break end
    end
    stage:close()
  end))

  it('keeps nothing of stages that its bodies have used', run(function()
    local stage = wrap(function()
      for i = 1, 100000 do
        local inner = wrap { i }
        yield(inner() + (inner() or 0))
      end
    end)
    local n, memory = 0, nil
    for _ in stage do
      n = n + 1
      if n % 20000 == 0 then
        collectgarbage()
        local now = collectgarbage 'count'
        memory = memory or now
        assert.is_true(now - memory < ROOM, now - memory)
      end
    end
    assert.equal(100000, n)
  end))

  it('that is abandoned is collected, its sources closed', run(function()
    local waiting, closed, seen = 0, 0, setmetatable({}, { __mode = 'k' })
    local function source()
      local _ <close> = setmetatable({}, { __close = function() closed = closed + 1 end })
      yield(1)
      waiting = waiting + 1
      yield(coop.Deferred())
    end
    local function make()
      local stage = flow.Filter(nil, flow.Merge(source, source))
      local d = flow.Deferred(stage)
      seen[stage], seen[d] = true, true
    end
    collectgarbage 'stop'
    for _ = 1, 100 do make() end
    eventually(function() return waiting == 200 end)
    turns()
    assert.equal(0, closed)
    collectgarbage 'restart'
    for _ = 1, 3 do collectgarbage() end
    assert.equal(200, closed)
    assert.is_nil(next(seen))
  end))

  it('that is abandoned by a loop which it has woken is collected at once', run(function()
    local seen = setmetatable({}, { __mode = 'k' })
    local function make()
      local stage = wrap { Cooperate(), 1, 2 }
      seen[stage] = true
      return stage
    end
    for v in make() do
      if v == 1 then break end
    end
    for _ = 1, 2 do collectgarbage() end
    assert.is_nil(next(seen))
  end))

  it('that somebody can still wake is not collected', run(function()
    local d, seen = coop.Deferred(), {}
    spawn(function()
      for v in flow.Map(function(v) return v end, wrap(function() yield(yield(d)) end)) do
        seen[#seen + 1] = v
      end
    end)
    for _ = 1, 3 do collectgarbage() end
    d:callback 'v'
    assert.same({ 'v' }, seen)
  end))

  it('may be made anew from its own body', run(function()
    local function countdown(n)
      return function()
        yield(n)
        if n > 0 then
          for v in wrap(countdown(n - 1)) do yield(v) end
        end
      end
    end
    assert.same({ 5, 4, 3, 2, 1, 0 }, list(wrap(countdown(5))))
    assert.equal(201, #list(wrap(countdown(200))))
  end))
end)

describe('the module', function()
  it('is the same when it is required again', function()
    local loaded = package.loaded
    local module, stage = loaded['coop.flow'], loaded['coop.stage']
    loaded['coop.flow'], loaded['coop.stage'] = nil, nil
    local again = require 'coop.flow'
    loaded['coop.flow'], loaded['coop.stage'] = module, stage
    assert.equal(flow, again)
  end)

  it('names its objects', function()
    assert.equal('Stage', coop.type(wrap {}))
    assert.equal('Stage', coop.type(flow.Callback()))
    assert.equal('Block', coop.type((Block {})))
    assert.equal('Cooperate', coop.type(Cooperate()))
    assert.equal('string', type(getmetatable(wrap {})))
    assert.equal('Stage: Zip (open)', tostring(flow.Zip {}))
    assert.equal('Cooperate(1.5)', tostring(Cooperate(1.5)))
    misuse(function() wrap({}).next({}) end, 'next', 'Stage expected, got table')
    misuse(function() wrap({}).close(5) end, 'close', 'Stage expected, got number')
  end)
end)
