local coop = require 'coop'
local helper = require 'tests.spec.helper'

local errors = coop.errors
local misuse, error_of, is_error = helper.misuse, helper.error_of, helper.is_error
local values = helper.values

local function line() return debug.getinfo(2, 'l').currentline end

--- Where `text` has the place in this file, or nil.
local function place(text, number)
  return (text:find(('failure_spec.lua:%d:'):format(number), 1, true))
end

describe('a Failure', function()

  for name, value in values() do
    it('holds ' .. name .. ' untouched, and raises it', function()
      local failure = coop.Failure(value)
      assert.equal('Failure', coop.type(failure))
      assert.is_true(rawequal(value, failure.value))
      assert.equal(math.type(value), math.type(failure.value))
      local ok, e = pcall(function() failure:raise() end)
      assert.is_false(ok)
      assert.is_true(rawequal(value, e))
      assert.is_string(failure:traceback())
      assert.is_string(tostring(failure))
    end)
  end

  it('of a Failure is the same failure', function()
    local failure = coop.Failure {}
    assert.is_true(rawequal(failure, coop.Failure(failure)))
  end)

  it('FAIL-05 is not made without a value', function()
    misuse(function() coop.Failure() end, 'Failure')
    assert.is_nil(coop.Failure(nil).value)
  end)

  it('hides its metatable and its finaliser', function()
    local failure = coop.Failure 'E'
    assert.is_string(getmetatable(failure))
    assert.is_nil(failure.__gc)
    assert.is_false((pcall(setmetatable, failure, {})))
  end)

  it('refuses a foreign self', function()
    local failure = coop.Failure 'E'
    for _, name in ipairs { 'traceback', 'check', 'trap', 'raise' } do
      for _, self in ipairs { 5, 'text', {}, io.stderr, coop.Deferred(), false } do
        misuse(function() failure[name](self, 'x') end, name, 'Failure')
      end
      misuse(function() failure[name]() end, name, 'Failure')
      misuse(function() failure[name] {} end, 'table')
      local ok, e = pcall(failure[name], 5)
      assert.is_false(ok)
      assert.truthy(e:find(name, 1, true), e)
    end
  end)

  it('FAIL-13 shows its class and its message as text', function()
    assert.truthy(tostring(coop.Failure 'boom'):find('boom', 1, true))
    assert.truthy(tostring(coop.Failure 'boom'):find('Failure', 1, true))
    local text = tostring(coop.Failure(errors.TimeoutError 'too slow'))
    assert.truthy(text:find('too slow', 1, true), text)
    assert.truthy(text:find('TimeoutError', 1, true), text)
  end)
end)

describe('check of a Failure', function()

  local done = coop.Failure(errors.TaskDone 'done')

  it('FAIL-01 returns the first argument that is the class or an ancestor', function()
    assert.equal(errors.TaskFinished, done:check(errors.SchedulerStopped, errors.TaskFinished))
    assert.equal(errors.SchedulerError, done:check(errors.SchedulerError, errors.TaskDone))
    assert.equal(errors.TaskDone, done:check(errors.TaskDone, errors.SchedulerError))
    assert.equal(errors.TaskFinished,
      done:trap(errors.TimeoutError, errors.TaskFinished, errors.SchedulerError))
  end)

  it('FAIL-07 matches the text of the value, and nothing without arguments', function()
    assert.equal('done', done:check 'done')
    assert.is_nil(done:check 'undone')
    assert.is_nil(done:check())
    assert.is_nil(done:check(errors.TaskFailed, errors.TimeoutError))
  end)

  it('does not take a subclass for its class', function()
    local failure = coop.Failure(errors.TaskFinished 'finished')
    assert.is_nil(failure:check(errors.TaskDone))
    assert.is_nil(failure:check(errors.SchedulerStopped))
    assert.equal(errors.TaskFinished, failure:check(errors.TaskFinished))
  end)

  it('does not match a class with a value that is no instance', function()
    for name, value in values() do
      if name ~= 'an error object' then
        assert.is_nil(coop.Failure(value):check(errors.SchedulerError), name)
      end
    end
    assert.is_nil(coop.Failure(errors.TaskDone):check(errors.TaskDone))
  end)

  it('matches a table that is the metatable of the value', function()
    local Class, Other = {}, {}
    local failure = coop.Failure(setmetatable({}, Class))
    assert.equal(Class, failure:check(Class))
    assert.equal(Class, failure:check(Other, Class))
    assert.is_nil(failure:check(Other))
  end)

  it('matches along the inheritance of a metatable', function()
    local Base = {}
    Base.__index = Base
    local Middle = setmetatable({}, Base)
    Middle.__index = Middle
    local Derived = setmetatable({}, { __index = Middle })
    Derived.__index = Derived
    local failure = coop.Failure(setmetatable({}, Derived))
    assert.equal(Derived, failure:check(Derived))
    assert.equal(Middle, failure:check(Middle))
    assert.equal(Base, failure:check(Base))
    assert.is_nil(coop.Failure(setmetatable({}, Middle)):check(Derived))
    assert.is_nil(coop.Failure(setmetatable({}, Base)):check(Middle, Derived))
  end)

  it('ends also when metatables inherit in a circle', function()
    local Class = {}
    Class.__index = Class
    setmetatable(Class, Class)
    assert.equal(Class, coop.Failure(setmetatable({}, Class)):check(Class))
    assert.is_nil(coop.Failure(setmetatable({}, Class)):check {})
  end)

  it('does not match a table that is the value itself', function()
    local value = {}
    assert.is_nil(coop.Failure(value):check(value))
    assert.is_nil(coop.Failure(value):check {})
  end)

  it('matches a string that is equal or found by plain search', function()
    local failure = coop.Failure 'file.lua:1: cannot open (x)'
    assert.equal('file.lua:1: cannot open (x)', failure:check 'file.lua:1: cannot open (x)')
    assert.equal('open (x)', failure:check 'open (x)')
    assert.equal('file.lua', failure:check('nothing', 'file.lua'))
    assert.is_nil(failure:check 'file%.lua')
    assert.is_nil(failure:check 'c.nnot')
    assert.is_nil(failure:check '^file')
  end)

  it('finds a string in the text of a value that is none', function()
    local value = setmetatable({}, { __tostring = function() return 'my text' end })
    assert.equal('y te', coop.Failure(value):check 'y te')
    assert.equal('slow', coop.Failure(errors.TimeoutError 'too slow'):check 'slow')
    assert.is_nil(coop.Failure(value):check 'your text')
  end)

  it('asks a function with the value', function()
    local value, got = {}, nil
    local failure = coop.Failure(value)
    local function yes(...)
      got = table.pack(...)
      return 'truthy'
    end
    local function no() return false end
    assert.equal(yes, failure:check(no, yes))
    assert.equal(1, got.n)
    assert.is_true(rawequal(value, got[1]))
    assert.is_nil(failure:check(no))
    assert.is_nil(failure:check(function() end))
  end)

  it('asks no further than the first match', function()
    local asked = false
    local function ask() asked = true end
    assert.equal('E', coop.Failure 'E':check('E', ask))
    assert.is_false(asked)
  end)

  it('refuses nil and numbers, like trap', function()
    local failure = coop.Failure 'E'
    for _, name in ipairs { 'check', 'trap' } do
      misuse(function() failure[name](failure, nil) end, name, 'nil')
      misuse(function() failure[name](failure, 5) end, name, 'number')
      misuse(function() failure[name](failure, 'other', 1.5) end, name, 'number')
      misuse(function() failure[name](failure, 'other', nil) end, name, 'nil')
      misuse(function() failure[name](failure, true) end, name, 'boolean')
    end
  end)
end)

describe('trap of a Failure', function()

  it('returns what matches, like check', function()
    local function any() return true end
    assert.equal('oo', coop.Failure 'boom':trap('x', 'oo'))
    assert.equal(any, coop.Failure 'boom':trap(any))
    local failure = coop.Failure(errors.TimeoutError 'slow')
    assert.equal(errors.TimeoutError, failure:trap(errors.TimeoutError))
  end)

  for name, value in values() do
    it('raises ' .. name .. ' when nothing matches', function()
      local failure = coop.Failure(value)
      for _, arguments in ipairs { {}, { errors.SchedulerError }, { 'not in there' } } do
        local ok, e = pcall(function() failure:trap(table.unpack(arguments)) end)
        assert.is_false(ok)
        assert.is_true(rawequal(value, e))
      end
    end)
  end

  it('FAIL-04 in an errback passes the same value on', function()
    local value, first = {}, nil
    local d = coop.fail(value):add_errback(function(f)
      first = f
      f:trap 'something else'
    end)
    local got, failure = error_of(d)
    assert.is_true(rawequal(value, got))
    assert.equal('Failure', coop.type(failure))
    assert.is_true(rawequal(value, first.value))
  end)
end)

describe('the traceback of a Failure', function()

  it('FAIL-09 keeps the place of the error when it is raised again', function()
    local where
    local function broken()
      where = line() + 1
      error { 'E' }
    end
    local d = coop.succeed():add_callback(broken)
    d:add_errback(function(f) f:raise() end)
    d:add_errback(function(f) f:trap 'something else' end)
    local _, failure = error_of(d)
    assert.truthy(place(failure:traceback(), where), failure:traceback())
  end)

  it('names the place where a handler raised', function()
    local where
    local function broken()
      where = line() + 1
      error 'E'
    end
    local d = coop.Deferred():add_callback(broken)
    d:callback()
    local _, failure = error_of(d)
    assert.truthy(place(failure:traceback(), where), failure:traceback())
  end)

  it('has every frame down to the error', function()
    local places = {}
    local function third()
      places[3] = line() + 1
      error {}
    end
    local function second()
      places[2] = line() + 1
      third()
      return nil
    end
    local function first()
      places[1] = line() + 1
      second()
      return nil
    end
    local _, failure = error_of(coop.maybe_deferred(first))
    local text = failure:traceback()
    local at = {}
    for i = 1, 3 do at[i] = assert(place(text, places[i]), text) end
    assert.is_true(at[3] < at[2] and at[2] < at[1], text)
  end)

  it('names the place where errback was given a plain value', function()
    local d = coop.Deferred()
    local function give_up()
      d:errback 'E'
      return line() - 1
    end
    local where = give_up()
    local _, failure = error_of(d)
    assert.truthy(place(failure:traceback(), where), failure:traceback())
  end)

  it('has the frames of the error, then those of each coroutine that awaited it', function()
    local gate, places = coop.Deferred(), {}
    local inner = coop.inline_callbacks(function()
      coop.await(gate)
      places[1] = line() + 1
      error {}
    end)
    local middle = coop.inline_callbacks(function()
      local d = inner()
      places[2] = line() + 1
      local v = coop.await(d)
      return v
    end)
    local function wait_for(d)
      places[3] = line() + 1
      local v = coop.await(d)
      return v
    end
    local outer = coop.spawn(function()
      local d = middle()
      places[4] = line() + 1
      local v = wait_for(d)
      return v
    end)
    gate:callback()
    local _, failure = error_of(outer)
    local text, last = failure:traceback(), 0
    for i = 1, 4 do
      local at = place(text, places[i])
      assert.truthy(at, i .. ' is missing in ' .. text)
      assert.is_true(at > last, text)
      last = at
    end
  end)

  it('has none of the frames of coop', function()
    local lock, gate = coop.DeferredLock(), coop.Deferred()
    local d = lock:run(function()
      return coop.spawn(function()
        return coop.await(coop.gather_results { coop.spawn(function()
          coop.await(gate)
          error {}
        end) })
      end)
    end)
    gate:callback()
    local e = error_of(d)
    is_error(errors.FirstError, e)
    local text = e.sub_failure:traceback()
    for _, name in ipairs { 'sync.lua', 'aggregate.lua', 'lua/coop', 'coop.await', "'await'",
      "'callback'", "'coop.spawn'", "'run'", 'libcoop' } do
      assert.falsy(text:find(name, 1, true), name .. ' in ' .. text)
    end
  end)

  it('has no frames of another error', function()
    local where
    local function unrelated()
      where = line() + 1
      error(coop.Failure 'E')
    end
    error_of(coop.succeed():add_callback(unrelated))
    local d = coop.Deferred()
    d:cancel()
    local _, failure = error_of(d)
    assert.falsy(place(failure:traceback(), where), failure:traceback())
  end)

  it('is the same text whenever it is asked for', function()
    local _, failure = error_of(coop.succeed():add_callback(function() error 'E' end))
    local text = failure:traceback()
    collectgarbage()
    assert.equal(text, failure:traceback())
  end)

  it('FAIL-16 is text also when the value cannot be turned into text', function()
    local function broken() error 'no text' end
    local bad = {
      setmetatable({}, { __tostring = broken }),
      setmetatable({}, { __tostring = function() return 5 end }),
      setmetatable({}, { __name = 5, __index = broken }),
      setmetatable({}, { __tostring = 'not callable' }),
    }
    for _, value in ipairs(bad) do
      local failure = coop.Failure(value)
      assert.is_string(failure:traceback())
      assert.is_string(tostring(failure))
      assert.is_nil(failure:check 'some text')
    end
  end)

  it('FAIL-17 is text also when the failure was never raised', function()
    assert.is_string(coop.Failure 'E':traceback())
    assert.is_string(coop.Failure(nil):traceback())
  end)

  it('FAIL-20 is that of the error that replaced another', function()
    local where
    local inner = coop.inline_callbacks(function()
      local ok = pcall(coop.await, coop.fail 'E1')
      where = not ok and line() + 1
      error { 'E2' }
    end)
    local above = coop.inline_callbacks(function()
      local ok, e = pcall(coop.await, inner())
      assert.is_false(ok)
      assert.equal('E2', e[1])
      error('E3', 0)
    end)
    local value, failure = error_of(inner())
    assert.equal('E2', value[1])
    assert.truthy(place(failure:traceback(), where), failure:traceback())
    assert.equal('E3', (error_of(above())))
  end)
end)

describe('the error classes', function()
  local parents = {
    AlreadyCalledError = false, CancelledError = false, TimeoutError = false, FirstError = false,
    FailureGroup = false, NotReadyError = false, Unsupported = false, SchedulerError = false,
    SchedulerStopped = 'SchedulerError', NotPaused = 'SchedulerError',
    TaskFinished = 'SchedulerError', TaskDone = 'TaskFinished', TaskStopped = 'TaskFinished',
    TaskFailed = 'TaskFinished', QueueOverflow = false, QueueUnderflow = false,
    AlreadyCalled = false, AlreadyCancelled = false, ReactorNotRunning = false,
    ReactorAlreadyRunning = false, ConnectionDone = false, ConnectionLost = false,
    ConnectionRefused = false, LineTooLong = false,
  }

  for name in pairs(parents) do
    it(name .. ' makes instances from a message', function()
      local Class = errors[name]
      local e = Class 'what happened'
      assert.equal('what happened', e.message)
      assert.truthy(tostring(e):find('what happened', 1, true))
      assert.is_true(Class:is(e))
    end)

    it(name .. ' makes instances from a table of fields', function()
      local Class, value = errors[name], {}
      local e = Class { message = 'what happened', extra = value }
      assert.equal('what happened', e.message)
      assert.is_true(rawequal(value, e.extra))
      assert.truthy(tostring(e):find('what happened', 1, true))
      assert.is_true(Class:is(e))
    end)

    it(name .. ' knows its instances and those of its subclasses only', function()
      for other in pairs(parents) do
        local is, class = false, other
        while class do
          if class == name then is = true end
          class = parents[class]
        end
        assert.equal(is, errors[name]:is(errors[other] 'text'), other)
      end
      for what, value in values() do
        if what ~= 'an error object' then assert.is_false(errors[name]:is(value), what) end
      end
      assert.is_false(errors[name]:is(errors[name]))
      assert.is_false(errors[name]:is(coop.Failure(errors[name] 'text')))
    end)
  end

  it('have a text that says more than an address when no message is given', function()
    for name in pairs(parents) do
      local fields = { index = 1, sub_failure = coop.Failure 'E', failures = { coop.Failure 'E' } }
      local e = errors[name](fields)
      assert.is_string(tostring(e), name)
      assert.falsy(tostring(e):find '^table: ', name)
      assert.truthy(tostring(e):find(name, 1, true), name)
    end
  end)

  it('may be raised, caught and raised again', function()
    local e = errors.TimeoutError 'slow'
    local ok, caught = pcall(error, e)
    assert.is_false(ok)
    assert.is_true(rawequal(e, caught))
  end)
end)

describe('the objects of coop', function()
  local generator = coop.generator(function() end)

  local objects = {
    Deferred = coop.Deferred(), Failure = coop.Failure 'E', Generator = generator(),
    Coroutine = coop.coroutine(function() end)(), Cooperator = coop.Cooperator { started = false },
    DeferredLock = coop.DeferredLock(), DeferredSemaphore = coop.DeferredSemaphore(1),
    DeferredQueue = coop.DeferredQueue(),
  }

  for name, object in pairs(objects) do
    it('have a type: ' .. name, function()
      assert.equal(name, coop.type(object))
    end)

    it('hide metatable and finaliser: ' .. name, function()
      assert.is_string(getmetatable(object))
      assert.is_false((pcall(setmetatable, object, {})))
      assert.is_nil(object.__gc)
    end)
  end

  it('have a type: CooperativeTask', function()
    local c = coop.Cooperator { started = false }
    local task = c:cooperate { 1 }
    assert.equal('CooperativeTask', coop.type(task))
    assert.is_string(getmetatable(task))
    assert.is_nil(task.__gc)
    task:stop()
  end)

  it('are the only ones that have one', function()
    for name, value in values() do
      if name ~= 'an error object' then assert.is_nil(coop.type(value), name) end
    end
    assert.is_nil(coop.type(setmetatable({}, { __name = 'Deferred' })))
    assert.is_nil(coop.type(setmetatable({}, { __metatable = getmetatable(coop.Deferred()) })))
  end)
end)
