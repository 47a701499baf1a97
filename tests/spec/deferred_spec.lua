local coop = require 'coop'
local helper = require 'tests.spec.helper'

local errors = coop.errors
local cap, pending, misuse, raises = helper.cap, helper.pending, helper.misuse, helper.raises
local value_of, error_of, is_error = helper.value_of, helper.error_of, helper.is_error
local run, unhandled, values = helper.run, helper.unhandled, helper.values

--- A handler that writes `name` and the value it sees, and returns `...` if given, else the value.
local function note(log, name, ...)
  local replaces, replacement = select('#', ...) > 0, (...)
  return function(value)
    log[#log + 1] = name .. ' ' .. tostring(value)
    if replaces then return replacement end
    return value
  end
end

--- A coroutine that waits on `d` and then writes `name` and the value.
local function reader(log, name, d)
  return coop.spawn(function()
    local value = coop.await(d)
    log[#log + 1] = name .. ' ' .. tostring(value)
  end)
end

local function constant(...)
  local list = table.pack(...)
  return function() return table.unpack(list, 1, list.n) end
end

local function raiser(value)
  return function() error(value, 0) end
end

describe('a Deferred', function()

  describe('with handlers', function()
    it('DEF-04 hands what a callback returns to the next', function()
      local d = coop.Deferred()
      local first = {}
      d:add_callback(function(v) first[1] = v return v end)
      local seen = cap(d)
      d:callback 'hello'
      assert.same({ 'hello' }, first)
      assert.same({ n = 1, 'hello' }, seen)
    end)

    it('DEF-05 passes a failure through a pair without errback', function()
      local d, called = coop.Deferred(), false
      d:add_callbacks(function() called = true end, nil)
      d:errback 'E'
      assert.equal('E', (error_of(d)))
      assert.is_false(called)
    end)

    it('passes a value through a pair without callback', function()
      local d, called = coop.Deferred(), false
      d:add_callbacks(nil, function() called = true end)
      d:callback 'v'
      assert.equal('v', value_of(d))
      assert.is_false(called)
    end)

    it('DEF-06 calls a callback without extra arguments with the value alone', function()
      local d, got = coop.Deferred(), nil
      d:add_callback(function(...) got = table.pack(...) end)
      d:callback 'v'
      assert.same({ n = 1, 'v' }, got)
    end)

    it('DEF-07 calls an errback without extra arguments with the Failure alone', function()
      local d, got = coop.Deferred(), nil
      d:add_errback(function(...) got = table.pack(...) end)
      d:errback 'E'
      assert.equal(1, got.n)
      assert.equal('E', got[1].value)
    end)

    it('DEF-08 passes the extra arguments behind the result', function()
      local d, got = coop.Deferred(), {}
      d:add_callback(function(...) got[1] = table.pack(...) error('E', 0) end, 1, 2)
      d:add_errback(function(...) got[2] = table.pack(...) end, 9)
      d:callback 'r'
      assert.same({ n = 3, 'r', 1, 2 }, got[1])
      assert.equal(2, got[2].n)
      assert.equal('E', got[2][1].value)
      assert.equal(9, got[2][2])
    end)

    it('keeps nils among the extra arguments', function()
      local d, got = coop.Deferred(), nil
      d:add_callback(function(...) got = table.pack(...) end, nil, 2, nil)
      d:callback 'r'
      assert.same({ n = 4, 'r', nil, 2, nil }, got)
    end)

    it('DEF-09 gives a both-handler the failure and the extra arguments', function()
      local d, got = coop.Deferred(), nil
      d:add_both(function(...) got = table.pack(...) end, 'extra')
      d:errback 'E'
      assert.equal(2, got.n)
      assert.equal('Failure', coop.type(got[1]))
      assert.equal('E', got[1].value)
      assert.equal('extra', got[2])
    end)

    it('gives a both-handler the value and the extra arguments', function()
      local d, got = coop.Deferred(), nil
      d:add_both(function(...) got = table.pack(...) end, 'extra')
      d:callback 'v'
      assert.same({ n = 2, 'v', 'extra' }, got)
    end)

    it('DEF-10 returns itself from every add', function()
      local d, f = coop.Deferred(), function() end
      assert.is_true(rawequal(d, d:add_callback(f)))
      assert.is_true(rawequal(d, d:add_errback(f)))
      assert.is_true(rawequal(d, d:add_both(f)))
      assert.is_true(rawequal(d, d:add_callbacks(f, f)))
      assert.is_true(rawequal(d, d:add_callbacks(f)))
    end)

    it('DEF-11 runs a callback at once when it has fired', function()
      local seen = {}
      coop.succeed('success'):add_callback(function(v) seen[#seen + 1] = v end)
      assert.same({ 'success' }, seen)
    end)

    it('DEF-12 runs an errback at once when it has failed', function()
      local seen = {}
      coop.fail('E'):add_errback(function(f) seen[#seen + 1] = f end)
      assert.equal(1, #seen)
      assert.equal('Failure', coop.type(seen[1]))
      assert.equal('E', seen[1].value)
    end)

    it('runs nothing before it fires', function()
      local d = coop.Deferred()
      local seen = cap(d)
      assert.equal(0, seen.n)
      d:callback(1)
      assert.equal(1, seen.n)
    end)

    it('gives the errback of a pair nothing of what its callback raises', function()
      local d, called = coop.Deferred(), false
      d:add_callbacks(raiser 'E', function() called = true end)
      d:callback()
      assert.equal('E', (error_of(d)))
      assert.is_false(called)
    end)

    it('gives the callback of a pair nothing of what its errback returns', function()
      local d, called = coop.Deferred(), false
      d:add_callbacks(function() called = true end, constant 'saved')
      d:errback 'E'
      assert.equal('saved', value_of(d))
      assert.is_false(called)
    end)

    it('does not run an errback for a value nor a callback for a failure', function()
      local good, bad, log = coop.Deferred(), coop.Deferred(), {}
      good:add_errback(note(log, 'errback'))
      bad:add_callback(note(log, 'callback'))
      good:callback 'v'
      bad:errback 'E'
      assert.equal('v', value_of(good))
      assert.equal('E', (error_of(bad)))
      assert.same({}, log)
    end)

    it('runs the same function as often as it was added', function()
      local d, count = coop.Deferred(), 0
      local function f() count = count + 1 end
      d:add_callback(f):add_callback(f):add_both(f)
      d:callback()
      assert.equal(3, count)
    end)

    it('releases handlers that have run, and its canceller', function()
      local weak = setmetatable({}, { __mode = 'k' })
      local function thing()
        local t = {}
        local f = function() return t end
        weak[t], weak[f] = true, true
        return f
      end
      local d = coop.Deferred(thing())
      d:add_callback(thing()):add_errback(thing()):add_both(thing(), thing())
      d:add_callback(function() end)
      d:callback()
      collectgarbage()
      assert.is_nil(next(weak))
      assert.is_true(d.called)
    end)

    it('releases its canceller when it fires, also when it then waits', function()
      local weak, inner = setmetatable({}, { __mode = 'k' }), coop.Deferred()
      local function canceller()
        local t = {}
        weak[t] = true
        return function() return t end
      end
      local d = coop.Deferred(canceller())
      d:add_callback(function() return inner end)
      d:callback()
      collectgarbage()
      assert.is_nil(next(weak))
      pending(d)
    end)

    it('is collected together with handlers that refer to it', function()
      local weak = setmetatable({}, { __mode = 'k' })
      local function make()
        local d = coop.Deferred()
        local inner = coop.Deferred(function() return d end)
        d:add_callback(function() return inner end)
        d:callback()
        inner:add_callback(function() return d end)
        weak[d], weak[inner] = true, true
      end
      make()
      collectgarbage()
      collectgarbage()
      assert.is_nil(next(weak))
    end)
  end)

  describe('with a result', function()
    it('DEF-15 fails with what a callback raises', function()
      local d = coop.succeed():add_callback(raiser 'E')
      assert.equal('E', (error_of(d)))
    end)

    it('DEF-16 fails with the Failure that a callback returns', function()
      local failure = coop.Failure 'E'
      local d = coop.succeed():add_callback(constant(failure))
      local _, got = error_of(d)
      assert.is_true(rawequal(failure, got))
    end)

    it('fails with the Failure that an errback returns', function()
      local failure = coop.Failure 'E2'
      local _, got = error_of(coop.fail('E1'):add_errback(constant(failure)))
      assert.is_true(rawequal(failure, got))
    end)

    it('DEF-18 succeeds with nil after an errback that returns nothing', function()
      local d, log = coop.fail 'E', {}
      d:add_errback(function() end)
      d:add_callbacks(note(log, 'callback'), note(log, 'errback'))
      assert.same({ 'callback nil' }, log)
      assert.is_nil(d.result)
    end)

    it('DEF-19 fails with what an errback raises', function()
      assert.equal('E2', (error_of(coop.fail('E1'):add_errback(raiser 'E2'))))
    end)

    it('DEF-21 fails when it is fired with a Failure', function()
      local d, failure = coop.Deferred(), coop.Failure 'E'
      d:callback(failure)
      local _, got = error_of(d)
      assert.is_true(rawequal(failure, got))
    end)

    it('DEF-22 fails with a Failure made of the value given to errback', function()
      local d, value = coop.Deferred(), {}
      d:errback(value)
      assert.equal('Failure', coop.type(d.result))
      assert.is_true(rawequal(value, d.result.value))
      cap(d)
    end)

    it('fails with the very Failure given to errback', function()
      local d, failure = coop.Deferred(), coop.Failure 'E'
      d:errback(failure)
      assert.is_true(rawequal(failure, d.result))
      cap(d)
    end)

    it('DEF-23 refuses errback without an argument and stays unfired', function()
      local d = coop.Deferred()
      misuse(function() d:errback() end, 'errback')
      assert.is_false(d.called)
      d:callback 'v'
      assert.equal('v', value_of(d))
    end)

    it('DEF-24 refuses errback without an argument also inside an errback', function()
      local d, e = coop.Deferred(), nil
      coop.fail('E'):add_errback(function() e = misuse(function() d:errback() end, 'errback') end)
      assert.is_string(e)
      assert.is_false(d.called)
    end)

    it('DEF-25 fails with a stack overflow in a handler', function()
      local function deep() return 1 + deep() end
      local e = error_of(coop.succeed():add_callback(deep))
      assert.truthy(tostring(e):find('stack overflow', 1, true))
    end)

    it('takes the first of several values that a handler returns', function()
      local d, got = coop.succeed():add_callback(constant(1, 2)), nil
      d:add_callback(function(...) got = table.pack(...) end)
      assert.same({ n = 1, 1 }, got)
    end)

    it('fires with nil when callback has no argument', function()
      local d = coop.Deferred()
      d:callback()
      assert.is_true(d.called)
      assert.is_nil(d.result)
      assert.same({ n = 1 }, cap(d))
    end)

    it('keeps false a value', function()
      local d, log = coop.Deferred(), {}
      d:add_callbacks(note(log, 'callback'), note(log, 'errback'))
      d:callback(false)
      assert.same({ 'callback false' }, log)
      assert.is_false(d.result)
    end)

    for name, value in values() do
      it('hands ' .. name .. ' on unchanged from callback', function()
        local d, got, count = coop.Deferred(), nil, nil
        d:add_callback(function(...) got, count = ..., select('#', ...) end)
        d:callback(value)
        assert.equal(1, count)
        assert.is_true(rawequal(value, got))
        assert.equal(math.type(value), math.type(got))
      end)

      it('hands ' .. name .. ' on unchanged from errback', function()
        local d = coop.Deferred()
        d:errback(value)
        local got, failure = error_of(d)
        assert.is_true(rawequal(value, got))
        assert.equal(math.type(value), math.type(failure.value))
      end)

      it('hands ' .. name .. ' on unchanged when a handler raises it', function()
        assert.is_true(rawequal(value, (error_of(coop.succeed():add_callback(raiser(value))))))
        assert.is_true(rawequal(value, (error_of(coop.fail('E'):add_errback(raiser(value))))))
        assert.is_true(rawequal(value, (error_of(coop.succeed():add_both(raiser(value))))))
      end)

      it('raises ' .. name .. ' unchanged where a coroutine waits', function()
        local d, got = coop.Deferred(), {}
        coop.spawn(function() got.ok, got.e = pcall(coop.await, d) end)
        d:errback(value)
        assert.is_false(got.ok)
        assert.is_true(rawequal(value, got.e))
      end)
    end

    it('fails with the same failure when a handler raises a Failure', function()
      local value = {}
      local failure = coop.Failure(value)
      local got, result = error_of(coop.succeed():add_callback(raiser(failure)))
      assert.is_true(rawequal(value, got))
      assert.is_true(rawequal(failure, result))
    end)
  end)

  describe('fired twice', function()
    local function twice(first, second)
      local d = coop.Deferred()
      d[first](d, 'one')
      raises(errors.AlreadyCalledError, function() d[second](d, 'two') end, second)
      if first == 'callback' then
        assert.equal('one', value_of(d))
      else
        assert.equal('one', (error_of(d)))
      end
    end

    it('DEF-26 raises AlreadyCalledError for callback after callback', function()
      twice('callback', 'callback')
    end)

    it('DEF-27 raises AlreadyCalledError for errback after callback', function()
      twice('callback', 'errback')
    end)

    it('DEF-28 raises AlreadyCalledError for errback after errback', function()
      twice('errback', 'errback')
    end)

    it('DEF-29 raises AlreadyCalledError for callback after errback', function()
      twice('errback', 'callback')
    end)

    it('DEF-31 names the function in the text of the AlreadyCalledError', function()
      local d = coop.succeed()
      local e = raises(errors.AlreadyCalledError, function() d:callback() end, 'callback')
      assert.truthy(tostring(e):find('callback', 1, true))
      e = raises(errors.AlreadyCalledError, function() d:errback 'E' end, 'errback')
      assert.truthy(tostring(e):find('errback', 1, true))
    end)

    it('raises AlreadyCalledError also while it is paused or waits', function()
      local paused, waiting, inner = coop.Deferred(), coop.Deferred(), coop.Deferred()
      paused:pause()
      paused:callback(1)
      raises(errors.AlreadyCalledError, function() paused:callback(2) end)
      paused:unpause()
      assert.equal(1, value_of(paused))
      waiting:add_callback(constant(inner))
      waiting:callback(1)
      raises(errors.AlreadyCalledError, function() waiting:callback(2) end)
      inner:callback(3)
      assert.equal(3, value_of(waiting))
    end)

    it('raises AlreadyCalledError inside its own handler, which may catch it', function()
      local d, ok, e = coop.Deferred(), nil, nil
      d:add_callback(function(v)
        ok, e = pcall(d.callback, d, 'again')
        return v
      end)
      d:callback 'v'
      assert.is_false(ok)
      is_error(errors.AlreadyCalledError, e, 'callback')
      assert.equal('v', value_of(d))
    end)

    it('reports nothing about a failure that was refused', function()
      assert.same({}, unhandled(function()
        pcall(function() coop.succeed():errback 'refused' end)
      end))
    end)
  end)

  describe('whose handlers are running', function()
    it('DEF-34 runs a callback added by a callback when that has returned', function()
      local d, log = coop.Deferred(), {}
      d:add_callback(function(v)
        d:add_callback(note(log, 'added'))
        log[#log + 1] = 'end of first'
        return v + 1
      end)
      d:callback(1)
      assert.same({ 'end of first', 'added 2' }, log)
    end)

    it('queues a handler added meanwhile behind all others', function()
      local d, log = coop.Deferred(), {}
      d:add_callback(function() d:add_callback(note(log, 'added')) end)
      d:add_callback(note(log, 'second', 'two'))
      d:callback()
      assert.same({ 'second nil', 'added two' }, log)
    end)

    it('queues a handler added meanwhile also when it had fired before', function()
      local d, log = coop.succeed(1), {}
      d:add_callback(function()
        d:add_callback(note(log, 'added'))
        log[#log + 1] = 'end of first'
      end)
      assert.same({ 'end of first', 'added nil' }, log)
    end)

    it('queues a handler added meanwhile from a handler of another', function()
      local d, other, log = coop.Deferred(), coop.Deferred(), {}
      other:add_callback(function() d:add_callback(note(log, 'added')) end)
      d:add_callback(function()
        other:callback()
        log[#log + 1] = 'end of first'
        return 'one'
      end)
      d:add_callback(note(log, 'second'))
      d:callback()
      assert.same({ 'end of first', 'second one', 'added one' }, log)
    end)

    it('queues what a coroutine that it resumed adds', function()
      local d, log = coop.Deferred(), {}
      coop.spawn(function()
        coop.await(d)
        d:add_callback(note(log, 'added'))
        log[#log + 1] = 'end of body'
      end)
      d:add_callback(note(log, 'second', 'two'))
      d:callback 'one'
      assert.same({ 'end of body', 'second one', 'added two' }, log)
    end)

    it('queues what a coroutine adds that it resumed last', function()
      local d, log = coop.Deferred(), {}
      coop.spawn(function()
        coop.await(d)
        d:add_callback(note(log, 'added'))
        log[#log + 1] = 'end of body'
      end)
      d:callback 'v'
      assert.same({ 'end of body', 'added v' }, log)
    end)

    it('queues what a handler adds of the one that waits last', function()
      local d, log = coop.Deferred(), {}
      coop.succeed():add_callback(constant(d)):add_callback(function()
        d:add_callback(note(log, 'added'))
        log[#log + 1] = 'end of handler'
      end)
      d:callback 'v'
      assert.same({ 'end of handler', 'added v' }, log)
    end)

    it('queues what a handler adds of the target of a chain', function()
      local d, target, log = coop.Deferred(), coop.Deferred(), {}
      d:chain_deferred(target)
      target:add_callback(function()
        d:add_callback(note(log, 'added'))
        log[#log + 1] = 'end of handler'
      end)
      d:callback 'v'
      assert.same({ 'end of handler', 'added nil' }, log)
    end)

    it('lets a coroutine that it resumed wait for it again', function()
      local d, log = coop.Deferred(), {}
      coop.spawn(function()
        for i = 1, 3 do
          local v = coop.await(d)
          log[#log + 1] = i .. ' ' .. v
        end
      end)
      d:callback 'v'
      assert.same({ '1 v', '2 v', '3 v' }, log)
    end)

    it('queues a coroutine that begins to wait meanwhile', function()
      local d, log = coop.Deferred(), {}
      d:add_callback(function()
        reader(log, 'reader', d)
        log[#log + 1] = 'end of first'
        return 'one'
      end)
      d:add_callback(note(log, 'second', 'two'))
      d:callback()
      assert.same({ 'end of first', 'second one', 'reader two' }, log)
    end)

    it('DEF-37 is not cancelled from its own callback', function()
      local d, called = coop.Deferred(function() error 'called' end), 0
      d:add_callback(function(v)
        d:cancel()
        called = called + 1
        return v
      end)
      d:callback 'v'
      assert.equal('v', value_of(d))
      assert.equal(1, called)
    end)
  end)

  describe('with handlers and waiters in one list', function()
    it('shows each the value at its place, and finishes what it resumes first', function()
      local d, log = coop.Deferred(), {}
      d:add_callback(note(log, 'h1', 'one'))
      reader(log, 'r1', d):add_callback(function() log[#log + 1] = 'end of r1' end)
      d:add_callback(note(log, 'h2', 'two'))
      reader(log, 'r2', d)
      d:add_callback(note(log, 'h3', 'three'))
      d:callback 'zero'
      assert.same({ 'h1 zero', 'r1 one', 'end of r1', 'h2 one', 'r2 two', 'h3 two' }, log)
      assert.equal('three', d.result)
    end)

    it('finishes the handlers of one that waits by return before its own next', function()
      local inner, outer, log = coop.Deferred(), coop.Deferred(), {}
      inner:add_callback(note(log, 'i1', 'one'))
      outer:add_callback(constant(inner)):add_callback(note(log, 'o1', 'outer'))
      outer:callback()
      inner:add_callback(note(log, 'i2', 'two'))
      outer:add_callback(note(log, 'o2'))
      inner:callback 'zero'
      assert.same({ 'i1 zero', 'o1 one', 'o2 outer', 'i2 one' }, log)
    end)

    it('resumes a coroutine in a chain of waits before the handlers behind the first', function()
      local d, log = coop.Deferred(), {}
      local first = coop.spawn(function() return coop.await(d) .. '!' end)
      local second = coop.spawn(function() return coop.await(first) .. '?' end)
      reader(log, 'third', second)
      d:add_callback(note(log, 'handler'))
      d:callback 'v'
      assert.same({ 'third v!?', 'handler v' }, log)
    end)

    it('finishes the target of chain_deferred before its own next handler', function()
      local a, b, log = coop.Deferred(), coop.Deferred(), {}
      a:chain_deferred(b)
      a:add_callback(note(log, 'a'))
      b:add_callback(note(log, 'b'))
      a:callback 'v'
      assert.same({ 'b v', 'a nil' }, log)
    end)

    it('gives every waiter the failure at its place', function()
      local d, log = coop.Deferred(), {}
      local function catch(name)
        coop.spawn(function()
          local _, value = pcall(coop.await, d)
          log[#log + 1] = name .. ' ' .. tostring(value)
        end)
      end
      catch 'first'
      d:add_errback(function(f) log[#log + 1] = 'errback ' .. f.value return 'saved' end)
      catch 'second'
      d:errback 'E'
      assert.same({ 'first E', 'errback E', 'second saved' }, log)
    end)
  end)

  describe('when a call that fires it returns', function()
    -- each: makes a Deferred and the call that settles it
    local ways = {
      callback = function()
        local d = coop.Deferred()
        return d, function() d:callback 'v' end
      end,
      errback = function()
        local d = coop.Deferred()
        return d, function() d:errback 'E' end
      end,
      cancel = function()
        local d = coop.Deferred()
        return d, function() d:cancel() end
      end,
      unpause = function()
        local d = coop.Deferred()
        d:pause()
        d:callback 'v'
        return d, function() d:unpause() end
      end,
      chain_deferred = function()
        local source, d = coop.succeed 'v', coop.Deferred()
        return d, function() source:chain_deferred(d) end
      end,
    }

    local function reached(make)
      local log = {}
      local d, settle = make()
      local outer = coop.Deferred():add_both(constant(d)):add_both(function() return 'outer' end)
      outer:callback()
      outer:add_both(note(log, 'handler of one that waits'))
      local body = coop.spawn(function()
        pcall(coop.await, d)
        log[#log + 1] = 'body'
      end)
      coop.spawn(function()
        coop.await(body)
        log[#log + 1] = 'body behind'
      end)
      d:add_both(function() log[#log + 1] = 'handler' end)
      settle()
      return log
    end

    local all = { 'handler of one that waits outer', 'body', 'body behind', 'handler' }

    for name, make in pairs(ways) do
      it(name .. ' has run every handler and body', function()
        assert.same(all, reached(make))
      end)

      it(name .. ' has run every handler and body, called in a coroutine', function()
        local log
        coop.spawn(function() log = reached(make) end)
        assert.same(all, log)
      end)

      it(name .. ' has run every handler and body, called in the running loop', run(function()
        assert.same(all, reached(make))
      end))

      it(name .. ' inside a handler has had its effects when the outer call returns', function()
        local log, outer = {}, coop.Deferred()
        local d, settle = make()
        reader(log, 'body', d:add_both(function() return 'v' end))
        outer:add_callback(function() settle() end)
        outer:callback()
        assert.same({ 'body v' }, log)
      end)
    end
  end)

  describe('at the head of a cascade in handlers', function()
    before_each(helper.fresh)

    local cascades = {
      callback = function(d) return d, d.callback end,
      errback = function(d) return d, function() d:errback 'E' end end,
      cancel = function(d) return d, d.cancel end,
      unpause = function(d)
        d:pause()
        d:callback()
        return d, d.unpause
      end,
      chain_deferred = function(d) return d, function() coop.succeed():chain_deferred(d) end end,
    }

    --- Fires a hundred Deferreds, each in the handler of the one before it, the same way.
    local function last_of_cascade(prepare, state)
      local first, fire_first
      state = state or {}
      state.reached = false
      local fire_next = function() state.reached = true end
      for _ = 1, 100 do
        local d, fire = prepare(coop.Deferred())
        local behind = fire_next
        d:add_both(function() behind() end)
        fire_next = function() fire(d) end
        first, fire_first = d, fire
      end
      fire_first(first)
      return state.reached
    end

    for name, prepare in pairs(cascades) do
      it(name .. ' has had all effects when it returns', function()
        assert.is_true(last_of_cascade(prepare))
      end)

      it(name .. ' has had all effects when it returns in a coroutine', function()
        assert.is_true(value_of(coop.spawn(last_of_cascade, prepare)))
      end)

      it(name .. ' in a coroutine has had all effects when what resumed that returns', function()
        local gate, state = coop.Deferred(), {}
        coop.spawn(function()
          coop.await(gate)
          last_of_cascade(prepare, state)
        end)
        gate:callback()
        assert.is_true(state.reached)
      end)

      it(name .. ' has had all effects when it returns in the running loop', run(function()
        assert.is_true(last_of_cascade(prepare))
        coop.await(coop.sleep(0))
        assert.is_true(last_of_cascade(prepare))
      end))
    end

    it('runs handlers of fired ones, and new bodies, at once in handlers however deep', function()
      local ds, late = {}, {}
      for i = 1, 100 do ds[i] = coop.Deferred() end
      for i = 1, 100 do
        ds[i]:add_callback(function()
          local ran, started = false, false
          coop.succeed():add_callback(function() ran = true end)
          coop.spawn(function() started = true end)
          if not (ran and started) then late[#late + 1] = i end
          if i < 100 then ds[i + 1]:callback() end
        end)
      end
      ds[1]:callback()
      assert.is_true(ds[100].called)
      assert.same({}, late)
    end)
  end)

  describe('paused', function()
    it('DEF-38 runs an errback when it is unpaused, having failed before', function()
      local d = coop.fail 'E'
      d:pause()
      local seen = cap(d)
      assert.equal(0, seen.n)
      d:unpause()
      assert.equal(1, seen.n)
      assert.equal('E', seen[1].value)
    end)

    it('DEF-39 is unpaused before it fires without any call', function()
      local d = coop.Deferred()
      d:pause()
      local seen = cap(d)
      d:unpause()
      assert.equal(0, seen.n)
      d:callback(1)
      assert.same({ n = 1, 1 }, seen)
    end)

    it('DEF-40 records its result and runs nothing until it is unpaused', function()
      local d = coop.Deferred()
      d:pause()
      d:callback(1)
      local seen = cap(d)
      assert.is_true(d.called)
      assert.equal(0, seen.n)
      assert.equal(1, d.result)
      d:unpause()
      assert.same({ n = 1, 1 }, seen)
    end)

    it('counts its pauses', function()
      local d = coop.succeed(1)
      assert.equal(0, d.paused)
      d:pause()
      d:pause()
      assert.equal(2, d.paused)
      local seen = cap(d)
      d:unpause()
      assert.equal(1, d.paused)
      assert.equal(0, seen.n)
      d:unpause()
      assert.equal(0, d.paused)
      assert.equal(1, seen.n)
    end)

    it('DEF-43 refuses unpause without pause and works on', function()
      local d = coop.Deferred()
      local ok, e = pcall(function() d:unpause() end)
      assert.is_false(ok)
      assert.truthy(tostring(e):find('unpause', 1, true))
      assert.equal(0, d.paused)
      local seen = cap(d)
      d:callback(1)
      assert.same({ n = 1, 1 }, seen)
      d:pause()
      d:unpause()
      assert.is_false((pcall(d.unpause, d)))
    end)

    it('DEF-44 holds the one that waits on it', function()
      local d1, d2 = coop.Deferred(), coop.Deferred()
      d2:pause()
      d1:add_callback(constant(d2))
      d1:callback(1)
      local seen = cap(d1)
      assert.equal(0, seen.n)
      d2:callback(2)
      assert.equal(0, seen.n)
      d2:unpause()
      assert.same({ n = 1, 2 }, seen)
    end)

    it('DEF-45 is waited for also when it had fired before', function()
      local inner = coop.succeed 'v'
      inner:pause()
      local outer = coop.succeed():add_callback(constant(inner))
      local seen = cap(outer)
      assert.equal(0, seen.n)
      inner:unpause()
      assert.same({ n = 1, 'v' }, seen)
    end)

    it('DEF-46 while it waits does not hold what it waits on', function()
      local first, second = coop.Deferred(), coop.Deferred()
      first:add_callback(constant(second))
      first:callback()
      first:pause()
      local seen, behind = cap(second), cap(first)
      second:callback 'v'
      assert.same({ n = 1, 'v' }, seen)
      assert.equal(0, behind.n)
      first:unpause()
      assert.equal(1, behind.n)
    end)

    it('DEF-47 while it waits is held after what it waits on has fired', function()
      local outer, inner = coop.Deferred(), coop.Deferred()
      outer:add_callback(constant(inner))
      outer:callback()
      outer:pause()
      local seen = cap(outer)
      inner:callback 'v'
      assert.equal(0, seen.n)
      outer:unpause()
      assert.same({ n = 1, 'v' }, seen)
    end)

    it('goes on waiting when a pause of its own is undone', function()
      local outer, inner = coop.Deferred(), coop.Deferred()
      outer:add_callback(constant(inner))
      outer:callback()
      local seen = cap(outer)
      assert.equal(0, outer.paused)
      outer:pause()
      assert.equal(1, outer.paused)
      outer:unpause()
      assert.equal(0, outer.paused)
      assert.equal(0, seen.n)
      assert.is_nil(outer.result)
      inner:callback 'v'
      assert.same({ n = 1, 'v' }, seen)
    end)

    it('refuses unpause while it only waits', function()
      local outer, inner = coop.Deferred(), coop.Deferred()
      outer:add_callback(constant(inner))
      outer:callback()
      local ok, e = pcall(function() outer:unpause() end)
      assert.is_false(ok)
      assert.truthy(tostring(e):find('unpause', 1, true))
      pending(outer)
      inner:callback 'v'
      assert.equal('v', value_of(outer))
    end)

    it('inside its own handler runs the next one only when it is unpaused', function()
      local d, log = coop.Deferred(), {}
      d:add_callback(function()
        d:pause()
        log[#log + 1] = 'first'
        return 'one'
      end)
      d:add_callback(note(log, 'second'))
      d:callback()
      assert.same({ 'first' }, log)
      assert.equal(1, d.paused)
      assert.equal('one', d.result)
      d:unpause()
      assert.same({ 'first', 'second one' }, log)
    end)

    it('and unpaused inside its own handler goes on as if nothing had been', function()
      local d, log = coop.Deferred(), {}
      d:add_callback(function()
        d:pause()
        d:unpause()
        log[#log + 1] = 'end of first'
      end)
      d:add_callback(note(log, 'second'))
      d:callback()
      assert.same({ 'end of first', 'second nil' }, log)
    end)

    it('by a coroutine that it resumes runs the next handler only when unpaused', function()
      local d, log = coop.Deferred(), {}
      coop.spawn(function()
        coop.await(d)
        d:pause()
      end)
      d:add_callback(note(log, 'next'))
      d:callback 'v'
      assert.same({}, log)
      d:unpause()
      assert.same({ 'next v' }, log)
    end)

    it('inside a handler that returns a Deferred both waits and is held', function()
      local d, inner = coop.Deferred(), coop.Deferred()
      d:add_callback(function()
        d:pause()
        return inner
      end)
      local seen = cap(d)
      d:callback()
      d:unpause()
      assert.equal(0, seen.n)
      d:pause()
      inner:callback 'v'
      assert.equal(0, seen.n)
      d:unpause()
      assert.same({ n = 1, 'v' }, seen)
    end)

    it('holds a coroutine that waits on it', function()
      local d, log = coop.Deferred(), {}
      reader(log, 'reader', d)
      d:pause()
      d:callback 'v'
      assert.same({}, log)
      d:unpause()
      assert.same({ 'reader v' }, log)
    end)

    it('keeps a failure for the errback that comes after unpause', function()
      local d = coop.Deferred()
      d:pause()
      d:errback 'E'
      d:unpause()
      assert.equal('E', (error_of(d)))
    end)
  end)

  describe('returned from a handler', function()
    it('DEF-49 an errback that returns a pending Deferred waits for it', function()
      local outer, inner, log = coop.Deferred(), coop.Deferred(), {}
      outer:add_errback(constant(inner))
      outer:add_callbacks(note(log, 'callback'), note(log, 'errback'))
      outer:errback 'E'
      assert.same({}, log)
      inner:callback 'result'
      assert.same({ 'callback result' }, log)
    end)

    it('DEF-50 gives its value, and keeps it', function()
      local value = {}
      local first = coop.succeed(value)
      local second = coop.succeed():add_callback(constant(first))
      assert.is_true(rawequal(value, second.result))
      assert.is_true(rawequal(value, first.result))
      assert.is_true(rawequal(value, value_of(first)))
    end)

    it('DEF-51 gives its value also to its own later handlers', function()
      local first, second = coop.Deferred(), coop.Deferred()
      second:add_callback(constant(first))
      second:callback()
      local mine, theirs = cap(first), cap(second)
      first:callback 'x'
      assert.same({ n = 1, 'x' }, mine)
      assert.same({ n = 1, 'x' }, theirs)
    end)

    it('DEF-52 gives its failure, which counts as handled', function()
      local second
      local reported = unhandled(function()
        local first = coop.fail 'E'
        second = coop.succeed():add_callback(constant(first))
        assert.equal('E', first.result.value)
      end)
      assert.same({}, reported)
      assert.equal('E', (error_of(second)))
    end)

    it('gives a failure that comes later, which counts as handled', function()
      local second = coop.succeed()
      local reported = unhandled(function()
        local first = coop.Deferred()
        second:add_callback(constant(first))
        first:errback 'E'
      end)
      assert.same({}, reported)
      assert.equal('E', (error_of(second)))
    end)

    it('DEF-54 gives its value through others that wait', function()
      local first, second, third = coop.Deferred(), coop.Deferred(), coop.Deferred()
      second:add_callback(constant(first))
      second:callback()
      third:add_callback(constant(second))
      third:callback()
      local seen = cap(third)
      pending(third)
      first:callback 'x'
      assert.same({ n = 1, 'x' }, seen)
      assert.equal('x', second.result)
      assert.equal('x', first.result)
    end)

    it('gives its value through others in whatever order they fired', function()
      local first, second, third = coop.Deferred(), coop.Deferred(), coop.Deferred()
      third:add_callback(constant(second))
      second:add_callback(constant(first))
      local seen = cap(third)
      third:callback()
      first:callback 'x'
      assert.equal(0, seen.n)
      second:callback()
      assert.same({ n = 1, 'x' }, seen)
    end)

    it('gives every waiter the same outcome', function()
      local d, log = coop.Deferred(), {}
      local outers = {}
      for i = 1, 3 do
        outers[i] = coop.succeed():add_callback(constant(d))
        reader(log, 'reader', d)
      end
      local value = { 'v' }
      d:callback(value)
      for i = 1, 3 do assert.is_true(rawequal(value, value_of(outers[i]))) end
      assert.equal(3, #log)
      assert.is_true(rawequal(value, value_of(coop.succeed():add_callback(constant(d)))))
    end)

    it('gives every waiter the same failure', function()
      local d, value = coop.Deferred(), {}
      local one = coop.succeed():add_callback(constant(d))
      local two = coop.succeed():add_callback(constant(d))
      local body = coop.spawn(function() return coop.await(d) end)
      d:errback(value)
      assert.is_true(rawequal(value, (error_of(one))))
      assert.is_true(rawequal(value, (error_of(two))))
      assert.is_true(rawequal(value, (error_of(body))))
      assert.is_true(rawequal(value, (error_of(coop.succeed():add_callback(constant(d))))))
      assert.is_true(rawequal(value, (error_of(d))))
    end)

    local function nested(make_inner)
      local log, inner = {}, nil
      local outer = coop.succeed 'outer'
      outer:add_callback(function(v)
        log[#log + 1] = 'start of cb ' .. v
        local d = coop.succeed 'inner'
        d:add_callback(function(w)
          log[#log + 1] = 'first ' .. w
          local result
          inner, result = make_inner()
          return result
        end)
        d:add_callback(function(w)
          if type(w) == 'table' then w = table.concat(w, ',') end
          log[#log + 1] = 'second ' .. w
          return w .. w
        end)
        return d
      end)
      outer:add_callback(note(log, 'outer'))
      return log, inner
    end

    it('DEF-55 runs its own handlers before the outermost goes on', function()
      local log, inner = nested(function()
        local d = coop.Deferred()
        return d, d
      end)
      assert.same({ 'start of cb outer', 'first inner' }, log)
      inner:callback 'orange'
      assert.same({ 'start of cb outer', 'first inner', 'second orange',
        'outer orangeorange' }, log)
    end)

    it('DEF-57 hands on what the handlers added before its return make of it', function()
      local log, inner = nested(function()
        local d = coop.Deferred():add_callback(function(v) return v .. '!' end)
        return d, d
      end)
      inner:callback 'withers'
      assert.same({ 'start of cb outer', 'first inner', 'second withers!',
        'outer withers!withers!' }, log)
    end)

    it('DEF-58 may be an aggregate with handlers around the wait', function()
      local around = {}
      local log, inner = nested(function()
        local d = coop.Deferred()
        d:add_callback(note(around, 'before'))
        local gathered = coop.gather_results { d }
        gathered:add_callback(function(list) around[#around + 1] = #list return list end)
        d:add_callback(note(around, 'after'))
        return d, gathered
      end)
      inner:callback 'withers'
      assert.same({ 'start of cb outer', 'first inner', 'second withers',
        'outer witherswithers' }, log)
      assert.equal(3, #around)
      assert.equal('before withers', around[1])
    end)

    it('DEF-61 shows that it is waited for until it has fired', function()
      local outer, inner = coop.Deferred(), coop.Deferred()
      local before = tostring(outer)
      outer:add_callback(constant(inner))
      outer:callback 'v'
      assert.is_true(outer.called)
      assert.is_nil(outer.result)
      assert.truthy(tostring(outer):find 'wait')
      assert.falsy(before:find 'wait')
      inner:callback 'x'
      assert.equal('x', outer.result)
      assert.falsy(tostring(outer):find 'wait')
    end)

    it('DEF-62 is cleared from what waited when the source of a chain fires', function()
      local source, target = coop.Deferred(), coop.Deferred()
      source:chain_deferred(target)
      assert.is_false(target.called)
      source:callback 'v'
      assert.is_true(target.called)
      assert.equal('v', target.result)
      assert.falsy(tostring(target):find 'wait')
    end)

    it('DEF-63 fails at once when it is returned by its own callback', function()
      local d = coop.Deferred()
      d:add_callback(function() return d end)
      d:callback()
      local e = error_of(d)
      assert.truthy(tostring(e):find('itself', 1, true))
    end)

    it('fails at once when it is returned by its own errback', function()
      local d = coop.Deferred()
      d:add_errback(function() return d end)
      d:errback 'E'
      assert.truthy(tostring((error_of(d))):find('itself', 1, true))
    end)

    it('goes on after the failure of waiting on itself', function()
      local d, log = coop.Deferred(), {}
      d:add_callback(function() return d end)
      d:add_callbacks(note(log, 'callback'), function() return 'saved' end)
      d:add_callback(note(log, 'end'))
      d:callback()
      assert.same({ 'end saved' }, log)
    end)

    it('fails when it would wait on itself through another', function()
      local a, b = coop.Deferred(), coop.Deferred()
      a:add_callback(constant(b))
      b:add_callback(constant(a))
      a:callback()
      assert.is_nil(a.result)
      b:callback()
      assert.truthy(tostring((error_of(b))):find('itself', 1, true))
      assert.truthy(tostring((error_of(a))):find('itself', 1, true))
    end)

    it('fails when it would wait on itself through many others', function()
      local ds = {}
      for i = 1, 50 do ds[i] = coop.Deferred() end
      for i = 1, 50 do ds[i]:add_callback(function() return ds[i % 50 + 1] end) end
      for i = 1, 49 do ds[i]:callback() end
      assert.is_nil(ds[1].result)
      ds[50]:callback()
      for i = 1, 50 do
        assert.truthy(tostring((error_of(ds[i]))):find('itself', 1, true))
      end
    end)

    it('fails when it would wait on itself through a coroutine', function()
      local gate, d = coop.Deferred(), coop.Deferred()
      local caught
      local body = coop.spawn(function()
        coop.await(gate)
        local ok, e = pcall(coop.await, d)
        caught = not ok and e
        error(e, 0)
      end)
      d:add_callback(constant(body))
      d:callback()
      gate:callback()
      assert.truthy(tostring(caught):find('itself', 1, true))
      assert.truthy(tostring((error_of(d))):find('itself', 1, true))
      assert.equal(caught, (error_of(body)))
    end)

    it('fails when a coroutine awaits its own Deferred', function()
      local gate, d = coop.Deferred(), nil
      d = coop.spawn(function()
        coop.await(gate)
        coop.await(d)
      end)
      gate:callback()
      assert.truthy(tostring((error_of(d))):find('itself', 1, true))
    end)

    it('fails when a coroutine returns its own Deferred', function()
      local gate, d = coop.Deferred(), nil
      d = coop.spawn(function()
        coop.await(gate)
        return d
      end)
      gate:callback()
      assert.truthy(tostring((error_of(d))):find('itself', 1, true))
    end)

    it('is no wait on itself when two wait on the same third', function()
      local a, b, c = coop.Deferred(), coop.Deferred(), coop.Deferred()
      a:add_callback(constant(c)):add_callback(constant(b))
      b:add_callback(constant(c))
      b:callback()
      a:callback()
      c:callback 'v'
      assert.equal('v', value_of(a))
      assert.equal('v', value_of(b))
    end)

    it('may be a Coroutine', function()
      local gate = coop.Deferred()
      local d = coop.succeed():add_callback(function()
        return coop.spawn(function() return coop.await(gate) .. '!' end)
      end)
      pending(d)
      gate:callback 'v'
      assert.equal('v!', value_of(d))
    end)

    it('DEF-68 by a function that recurses through fired ones', function()
      local function recurse(n)
        if n == 0 then return 'bottom' end
        return coop.succeed(n - 1):add_callback(recurse)
      end
      helper.fresh()
      assert.equal('bottom', value_of(recurse(10000)))
    end)

    it('reports a failure that arises behind those who waited on it', function()
      local reported = unhandled(function()
        local d = coop.Deferred()
        local outer = coop.succeed():add_callback(constant(d))
        d:add_callback(raiser 'E')
        d:callback 'v'
        assert.equal('v', value_of(outer))
      end)
      assert.equal(1, #reported)
      assert.equal('E', reported[1].value)
    end)
  end)

  describe('as text', function()
    it('DEF-71 shows whether it has fired, its result, or what it waits on', function()
      local d, inner = coop.Deferred(), coop.Deferred()
      local unfired = tostring(d)
      assert.truthy(unfired:find('Deferred', 1, true))
      assert.falsy(unfired:find('orange', 1, true))
      d:callback 'orange'
      assert.truthy(tostring(d):find('orange', 1, true))
      d:add_callback(constant(inner))
      local waiting = tostring(d)
      assert.falsy(waiting:find('orange', 1, true))
      assert.truthy(waiting:find(tostring(inner):match '0x%x+', 1, true))
      inner:callback()
    end)
  end)

  describe('chained to another by chain_deferred', function()
    it('DEF-72 hands its value over', function()
      local a, b = coop.Deferred(), coop.Deferred()
      a:chain_deferred(b)
      a:callback(7)
      assert.equal(7, b.result)
      assert.is_nil(a.result)
      assert.is_true(a.called)
      assert.same({ n = 1, 7 }, cap(b))
      assert.same({ n = 1 }, cap(a))
    end)

    it('DEF-73 hands its failure over, which counts as handled', function()
      local b = coop.Deferred()
      local reported = unhandled(function()
        local a, failure = coop.Deferred(), coop.Failure 'E'
        a:chain_deferred(b)
        a:errback(failure)
        assert.is_nil(a.result)
        assert.is_true(rawequal(failure, b.result))
      end)
      assert.same({}, reported)
      assert.equal('E', (error_of(b)))
    end)

    it('DEF-74 is not touched by its cancel, and its value is swallowed', function()
      local a, b = coop.Deferred(function() error 'cancelled' end), coop.Deferred()
      a:chain_deferred(b)
      b:cancel()
      assert.is_false(a.called)
      a:callback 'late'
      assert.is_nil(a.result)
      is_error(errors.CancelledError, (error_of(b)))
    end)

    it('DEF-75 fails when the other has fired and swallows nothing', function()
      local a, b = coop.Deferred(), coop.Deferred(function() end)
      a:chain_deferred(b)
      b:cancel()
      a:callback 'late'
      is_error(errors.AlreadyCalledError, (error_of(a)))
      is_error(errors.CancelledError, (error_of(b)))
    end)

    it('fails when the other had fired already, which keeps its result', function()
      local a, b = coop.Deferred(), coop.succeed 'mine'
      a:chain_deferred(b)
      a:callback 'v'
      is_error(errors.AlreadyCalledError, (error_of(a)))
      assert.equal('mine', value_of(b))
    end)

    it('fails with AlreadyCalledError also when it failed itself', function()
      local a, b = coop.Deferred(), coop.succeed 'mine'
      a:chain_deferred(b)
      local reported = unhandled(function() a:errback 'E' end)
      assert.same({}, reported)
      is_error(errors.AlreadyCalledError, (error_of(a)))
      assert.equal('mine', value_of(b))
    end)

    it('is not chained to itself: refused, or failed', function()
      local a = coop.Deferred()
      local ok, e = pcall(function() a:chain_deferred(a) end)
      a:callback 'v'
      if ok then
        is_error(errors.AlreadyCalledError, (error_of(a)))
      else
        assert.truthy(e:find('chain_deferred', 1, true), e)
        assert.equal('v', value_of(a))
      end
    end)

    it('has the AlreadyCalledError reported, not what it had failed with', function()
      local reported = unhandled(function()
        local a = coop.fail 'E'
        a:chain_deferred(coop.succeed())
      end)
      assert.equal(1, #reported)
      is_error(errors.AlreadyCalledError, reported[1].value)
    end)

    it('hands over at once what it has', function()
      local a, b = coop.succeed 'v', coop.Deferred()
      a:chain_deferred(b)
      assert.equal('v', b.result)
      assert.is_nil(a.result)
    end)

    it('hands over the value at its place among the handlers', function()
      local a, b, log = coop.Deferred(), coop.Deferred(), {}
      a:add_callback(note(log, 'before', 'changed'))
      a:chain_deferred(b)
      a:add_callback(note(log, 'behind', 'new'))
      a:callback 'v'
      assert.same({ 'before v', 'behind nil' }, log)
      assert.equal('changed', b.result)
      assert.equal('new', a.result)
    end)

    it('gives a second target nil', function()
      local a, b, c = coop.Deferred(), coop.Deferred(), coop.Deferred()
      a:chain_deferred(b)
      a:chain_deferred(c)
      a:callback 'v'
      assert.equal('v', value_of(b))
      assert.same({ n = 1 }, cap(c))
    end)

    it('leaves a paused target with the result until it is unpaused', function()
      local a, b = coop.Deferred(), coop.Deferred()
      b:pause()
      local seen = cap(b)
      a:chain_deferred(b)
      a:callback 'v'
      assert.is_true(b.called)
      assert.equal(0, seen.n)
      b:unpause()
      assert.same({ n = 1, 'v' }, seen)
    end)

    it('does not cancel the other when it is cancelled, which fails with it', function()
      local cancelled = 0
      local a, b = coop.Deferred(), coop.Deferred(function() cancelled = cancelled + 1 end)
      a:chain_deferred(b)
      a:cancel()
      assert.equal(0, cancelled)
      is_error(errors.CancelledError, (error_of(b)))
      assert.is_nil(a.result)
    end)

    it('does not hold the other when it is paused after it has fired', function()
      local a, b = coop.Deferred(), coop.Deferred()
      a:chain_deferred(b)
      a:callback 'v'
      a:pause()
      assert.equal('v', value_of(b))
    end)
  end)

  describe('seen from outside', function()
    it('tells whether it was called', function()
      local d = coop.Deferred()
      assert.is_false(d.called)
      d:callback()
      assert.is_true(d.called)
      local e = coop.Deferred()
      e:errback 'E'
      assert.is_true(e.called)
      cap(e)
      local c = coop.Deferred()
      c:cancel()
      assert.is_true(c.called)
    end)

    it('has no result before it fires', function()
      assert.is_nil(coop.Deferred().result)
    end)

    it('shows the current result after each handler', function()
      local d = coop.succeed(1)
      assert.equal(1, d.result)
      d:add_callback(function(v) return v + 1 end)
      assert.equal(2, d.result)
      d:add_callback(raiser 'E')
      assert.equal('Failure', coop.type(d.result))
      assert.equal('E', d.result.value)
      d:add_errback(function() end)
      assert.is_nil(d.result)
    end)

    it('has no result while it waits', function()
      local d, inner = coop.succeed(1), coop.Deferred()
      d:add_callback(constant(inner))
      assert.is_true(d.called)
      assert.is_nil(d.result)
      inner:errback 'E'
      assert.equal('E', d.result.value)
      cap(d)
      cap(inner)
    end)

    it('hides its metatable and its finaliser', function()
      local d = coop.Deferred()
      assert.is_string(getmetatable(d))
      assert.is_nil(d.__gc)
      assert.is_false((pcall(setmetatable, d, {})))
    end)

    it('is named by coop.type and known to coop.is_deferred', function()
      assert.equal('Deferred', coop.type(coop.Deferred()))
      assert.is_true(coop.is_deferred(coop.Deferred()))
      assert.is_true(coop.is_deferred(coop.succeed()))
      assert.is_true(coop.is_deferred(coop.spawn(function() end)))
      assert.is_true(coop.is_deferred(coop.DeferredList {}))
      for name, value in values() do
        assert.is_false(coop.is_deferred(value), name)
      end
      assert.is_false(coop.is_deferred(coop.Failure 'x'))
      assert.is_false(coop.is_deferred(coop.DeferredLock()))
    end)
  end)

  describe('misused', function()
    local function nothing() end

    -- the methods, with arguments that would be right
    local methods = {
      add_callback = { nothing }, add_errback = { nothing }, add_both = { nothing },
      add_callbacks = { nothing, nothing }, callback = { 1 }, errback = { 1 }, pause = {},
      unpause = {}, cancel = {}, chain_deferred = { coop.Deferred() },
      add_timeout = { 1, coop.Clock() },
    }

    for name, arguments in pairs(methods) do
      it('refuses a foreign self of ' .. name, function()
        local method = coop.Deferred()[name]
        local foreign = { 5, 'text', {}, io.stderr, coop.Failure 'E', coop.DeferredLock() }
        for _, self in ipairs(foreign) do
          misuse(function() method(self, table.unpack(arguments)) end, name, 'Deferred')
        end
        misuse(function() method(nil, table.unpack(arguments)) end, name, 'Deferred')
        misuse(function() method() end, name, 'Deferred')
        misuse(function() method(5) end, 'number')
        misuse(function() method {} end, 'table')
      end)

      it('names ' .. name .. ' however it is called', function()
        local any_name = coop.Deferred()[name]
        local ok, e = pcall(any_name, 5)
        assert.is_false(ok)
        assert.truthy(e:find(name, 1, true), e)
        ok, e = pcall(function() return any_name(5) end)
        assert.is_false(ok)
        assert.truthy(e:find("'" .. name .. "'", 1, true), e)
      end)
    end

    for _, name in ipairs { 'add_callback', 'add_errback', 'add_both' } do
      it('refuses what is no function for ' .. name .. ', and adds nothing', function()
        local d = coop.Deferred()
        misuse(function() d[name](d, 5) end, name, 'function', 'number')
        misuse(function() d[name](d, 'f') end, name, 'function', 'string')
        misuse(function() d[name](d, {}) end, name, 'function', 'table')
        misuse(function() d[name](d, coop.Deferred()) end, name, 'function', 'Deferred')
        misuse(function() d[name](d, nil) end, name, 'function')
        misuse(function() d[name](d) end, name, 'function')
        d:callback 'v'
        assert.equal('v', value_of(d))
      end)
    end

    it('refuses what is no function for add_callbacks, and adds neither', function()
      local d, called = coop.Deferred(), false
      local function f() called = true end
      misuse(function() d:add_callbacks(5, f) end, 'add_callbacks', 'function', 'number')
      misuse(function() d:add_callbacks(f, 5) end, 'add_callbacks', 'function', 'number')
      d:callback 'v'
      assert.is_false(called)
      assert.equal('v', value_of(d))
    end)

    it('blames the caller', function()
      local d = coop.Deferred()
      local line = debug.getinfo(1, 'l').currentline + 1
      local e = misuse(function() d:add_callback(5) end)
      assert.truthy(e:find('deferred_spec.lua:' .. line .. ':', 1, true), e)
    end)

    it('refuses callback with another Deferred and stays unfired', function()
      local d, other = coop.Deferred(), coop.Deferred()
      misuse(function() d:callback(other) end, 'callback', 'Deferred')
      misuse(function() d:callback(coop.succeed(1)) end, 'callback', 'Deferred')
      misuse(function() d:callback(coop.spawn(function() end)) end, 'callback')
      misuse(function() d:callback(d) end, 'callback', 'Deferred')
      assert.is_false(d.called)
      assert.is_false(other.called)
      other:callback(1)
      assert.is_false(d.called)
      d:callback 'v'
      assert.equal('v', value_of(d))
    end)

    it('does not run a handler of a refused callback', function()
      local d = coop.Deferred()
      local seen = cap(d)
      pcall(d.callback, d, coop.succeed(1))
      pcall(d.errback, d)
      assert.equal(0, seen.n)
    end)

    it('refuses a canceller that is no function', function()
      misuse(function() coop.Deferred(5) end, 'Deferred', 'function', 'number')
      misuse(function() coop.Deferred 'f' end, 'Deferred', 'function', 'string')
      assert.is_false(coop.Deferred(nil).called)
    end)

    it('refuses chain_deferred to what is no Deferred, and chains nothing', function()
      local d = coop.Deferred()
      misuse(function() d:chain_deferred(5) end, 'chain_deferred', 'Deferred', 'number')
      misuse(function() d:chain_deferred() end, 'chain_deferred', 'Deferred')
      misuse(function() d:chain_deferred(coop.Failure 'E') end, 'chain_deferred', 'Failure')
      d:callback 'v'
      assert.equal('v', value_of(d))
    end)

    it('does not let a misuse inside a handler escape', function()
      local d = coop.succeed():add_callback(function() coop.Deferred():errback() end)
      assert.truthy(tostring((error_of(d))):find('errback', 1, true))
    end)
  end)
end)

describe('the makers of Deferreds', function()

  it('DEF-78 maybe_deferred fires with what the function returns', function()
    local value = {}
    local d = coop.maybe_deferred(constant(value))
    assert.equal('Deferred', coop.type(d))
    assert.is_true(rawequal(value, value_of(d)))
  end)

  it('DEF-80 maybe_deferred fails with what the function raises', function()
    for _, value in values() do
      assert.is_true(rawequal(value, (error_of(coop.maybe_deferred(raiser(value))))))
      assert.is_true(rawequal(value, (error_of(coop.execute(raiser(value))))))
    end
  end)

  it('DEF-81 maybe_deferred fails with the Failure that the function returns', function()
    local failure = coop.Failure 'E'
    local _, got = error_of(coop.maybe_deferred(constant(failure)))
    assert.is_true(rawequal(failure, got))
  end)

  it('DEF-82 maybe_deferred returns the Deferred that the function returns', function()
    local good, bad = coop.Deferred(), coop.Deferred()
    assert.is_true(rawequal(good, coop.maybe_deferred(constant(good))))
    assert.is_true(rawequal(bad, coop.maybe_deferred(constant(bad))))
    assert.is_false(good.called)
    good:callback 'v'
    bad:errback 'E'
    assert.equal('v', value_of(good))
    assert.equal('E', (error_of(bad)))
  end)

  it('DEF-83 maybe_deferred of a coroutine function fires with its outcome', function()
    local gate = coop.Deferred()
    local fetch = coop.inline_callbacks(function(fails)
      local v = coop.await(gate)
      if fails then error(v, 0) end
      return v
    end)
    local direct = coop.maybe_deferred(fetch, false)
    local through = coop.maybe_deferred(function() return coop.spawn(fetch, false) end)
    local failing = coop.maybe_deferred(fetch, true)
    pending(direct)
    gate:callback 'v'
    assert.equal('v', value_of(direct))
    assert.equal('v', value_of(through))
    assert.equal('v', (error_of(failing)))
  end)

  it('DEF-84 execute fails with what is raised and returns a returned Deferred', function()
    assert.equal('E', (error_of(coop.execute(raiser 'E'))))
    local d = coop.Deferred()
    assert.is_true(rawequal(d, coop.execute(constant(d))))
    assert.equal('v', value_of(coop.execute(constant 'v')))
  end)

  it('DEF-86 coroutine makers refuse what is no function', function()
    for _, name in ipairs { 'inline_callbacks', 'coroutine', 'spawn' } do
      for _, value in ipairs { 5, false, {}, 'text', coop } do
        misuse(function() coop[name](value) end, name, 'function', type(value))
      end
      misuse(function() coop[name](nil) end, name, 'function')
      misuse(function() coop[name]() end, name, 'function')
    end
  end)

  it('maybe_deferred and execute pass their arguments, nils too', function()
    for _, name in ipairs { 'maybe_deferred', 'execute' } do
      local got
      coop[name](function(...) got = table.pack(...) end, 1, nil, 3, nil)
      assert.same({ n = 4, 1, nil, 3, nil }, got)
    end
  end)

  it('maybe_deferred, execute, is_deferred and on_unhandled refuse what is no function', function()
    for _, name in ipairs { 'maybe_deferred', 'execute' } do
      misuse(function() coop[name](5) end, 'function', 'number')
      misuse(function() coop[name]() end, 'function')
    end
    misuse(function() coop.maybe_deferred 'f' end, 'maybe_deferred', 'function', 'string')
    misuse(function() coop.on_unhandled(5) end, 'on_unhandled', 'function', 'number')
  end)

  it('succeed makes one that has fired', function()
    local value = {}
    local d = coop.succeed(value)
    assert.is_true(d.called)
    assert.is_true(rawequal(value, d.result))
    assert.equal(0, d.paused)
    assert.is_true(coop.succeed().called)
    assert.is_nil(coop.succeed().result)
    raises(errors.AlreadyCalledError, function() d:callback() end, 'callback')
  end)

  it('succeed of a Failure is failed, like callback', function()
    assert.equal('E', (error_of(coop.succeed(coop.Failure 'E'))))
  end)

  it('succeed of a Deferred is misuse', function()
    misuse(function() coop.succeed(coop.Deferred()) end, 'succeed', 'Deferred')
    misuse(function() coop.succeed(coop.succeed()) end, 'succeed', 'Deferred')
  end)

  it('fail makes one that has failed', function()
    for _, value in values() do
      local d = coop.fail(value)
      assert.is_true(d.called)
      local got = error_of(d)
      assert.is_true(rawequal(value, got))
    end
    local failure = coop.Failure 'E'
    local _, got = error_of(coop.fail(failure))
    assert.is_true(rawequal(failure, got))
  end)

  it('fail without an argument is misuse, fail(nil) is not', function()
    misuse(function() coop.fail() end, 'fail')
    assert.is_nil((error_of(coop.fail(nil))))
  end)
end)

describe('a cancelled Deferred', function()

  local function cancelled(d) is_error(errors.CancelledError, (error_of(d))) end

  it('fails with CancelledError', function()
    local d = coop.Deferred()
    d:cancel()
    assert.is_true(d.called)
    assert.equal('Failure', coop.type(d.result))
    cancelled(d)
  end)

  it('CAN-02 swallows one late callback when it has no canceller', function()
    local d = coop.Deferred()
    d:cancel()
    d:callback 'late'
    raises(errors.AlreadyCalledError, function() d:callback() end, 'callback')
    raises(errors.AlreadyCalledError, function() d:errback 'E' end, 'errback')
    cancelled(d)
  end)

  it('CAN-03 swallows one late errback when it has no canceller', function()
    local d = coop.Deferred()
    d:cancel()
    assert.same({}, unhandled(function() d:errback 'late' end))
    raises(errors.AlreadyCalledError, function() d:callback() end, 'callback')
    raises(errors.AlreadyCalledError, function() d:errback 'E' end, 'errback')
    cancelled(d)
  end)

  it('CAN-05 stays cancelled after a late errback and another cancel', function()
    local d = coop.Deferred()
    local seen = cap(d)
    d:cancel()
    d:errback 'late'
    d:cancel()
    raises(errors.AlreadyCalledError, function() d:callback() end, 'callback')
    assert.equal(1, seen.n)
    is_error(errors.CancelledError, seen[1].value)
  end)

  it('CAN-06 may be cancelled again when it has no canceller', function()
    local d = coop.Deferred()
    local seen = cap(d)
    d:cancel()
    d:cancel()
    assert.equal(1, seen.n)
    d:callback 'late'
    raises(errors.AlreadyCalledError, function() d:callback() end)
  end)

  it('CAN-07 calls its canceller once however often it is cancelled', function()
    local count = 0
    local d = coop.Deferred(function() count = count + 1 end)
    d:cancel()
    d:cancel()
    assert.equal(1, count)
    cancelled(d)
  end)

  it('swallows nothing when it has a canceller', function()
    local d = coop.Deferred(function() end)
    d:cancel()
    raises(errors.AlreadyCalledError, function() d:callback 'late' end, 'callback')
    raises(errors.AlreadyCalledError, function() d:errback 'late' end, 'errback')
    cancelled(d)
  end)

  it('CAN-09 gives its canceller itself and nothing else', function()
    local got
    local d = coop.Deferred(function(...) got = table.pack(...) end)
    d:cancel()
    assert.equal(1, got.n)
    assert.is_true(rawequal(d, got[1]))
    cap(d)
  end)

  it('has not fired when its canceller is called', function()
    local called
    local d = coop.Deferred(function(self) called = self.called end)
    d:cancel()
    assert.is_false(called)
    cap(d)
  end)

  it('CAN-10 keeps its value when it had fired', function()
    local d = coop.Deferred(function() error 'called' end)
    d:callback 'v'
    d:cancel()
    assert.equal('v', value_of(d))
  end)

  it('CAN-11 keeps its failure when it had failed', function()
    local d = coop.Deferred(function() error 'called' end)
    d:errback 'E'
    d:cancel()
    assert.equal('E', (error_of(d)))
  end)

  it('CAN-12 fails with what its canceller gives to errback', function()
    local d = coop.Deferred(function(self) self:errback 'E' end)
    d:cancel()
    assert.equal('E', (error_of(d)))
  end)

  it('succeeds with what its canceller gives to callback', function()
    local d = coop.Deferred(function(self) self:callback 'v' end)
    local seen = cap(d)
    d:cancel()
    assert.same({ n = 1, 'v' }, seen)
    raises(errors.AlreadyCalledError, function() d:callback 'late' end)
  end)

  it('CAN-14 cancels what it waits on, and gets its CancelledError', function()
    local log = {}
    local a = coop.Deferred(function() log[#log + 1] = 'a' end)
    local b = coop.Deferred(function() log[#log + 1] = 'b' end)
    a:add_callback(constant(b))
    a:callback()
    a:cancel()
    assert.same({ 'b' }, log)
    cancelled(a)
    cancelled(b)
  end)

  it('gets what the canceller of the other makes of it', function()
    local a, b = coop.Deferred(), coop.Deferred(function(d) d:callback 'saved' end)
    a:add_callback(constant(b))
    a:callback()
    a:cancel()
    assert.equal('saved', value_of(a))
  end)

  it('cancels the last of a chain of waits', function()
    local log, ds = {}, {}
    for i = 1, 4 do
      ds[i] = coop.Deferred(function() log[#log + 1] = i end)
      ds[i]:add_callback(function() return ds[i + 1] end)
    end
    for i = 1, 3 do ds[i]:callback() end
    ds[1]:cancel()
    assert.same({ 4 }, log)
    for i = 1, 4 do cancelled(ds[i]) end
  end)

  it('leaves alone what others wait on, until the last of them is cancelled', function()
    local count = 0
    local inner = coop.Deferred(function() count = count + 1 end)
    local a = coop.succeed():add_callback(constant(inner))
    local b = coop.succeed():add_callback(constant(inner))
    local seen_a, seen_b = cap(a), cap(b)
    a:cancel()
    assert.equal(0, count)
    assert.equal(1, seen_a.n)
    is_error(errors.CancelledError, seen_a[1].value)
    assert.equal(0, seen_b.n)
    b:cancel()
    assert.equal(1, count)
    is_error(errors.CancelledError, seen_b[1].value)
    cancelled(inner)
  end)

  it('is taken away from among hundreds that wait', function()
    local count, waiting, seen = 0, {}, {}
    local inner = coop.Deferred(function() count = count + 1 end)
    for i = 1, 300 do
      local d = coop.succeed():add_callback(constant(inner))
      if i % 3 == 0 then inner:add_both(function(v) return v end) end
      waiting[i], seen[i] = d, cap(d)
    end
    for i = 300, 2, -1 do
      waiting[i]:cancel()
      assert.equal(1, seen[i].n)
      is_error(errors.CancelledError, seen[i][1].value)
    end
    assert.equal(0, count)
    assert.equal(0, seen[1].n)
    waiting[1]:cancel()
    assert.equal(1, count)
    is_error(errors.CancelledError, seen[1][1].value)
  end)

  it('is taken away from among hundreds, who get their value', function()
    local inner, waiting, bodies = coop.Deferred(), {}, {}
    for i = 1, 200 do
      waiting[i] = coop.succeed():add_callback(constant(inner))
      bodies[i] = coop.inline_callbacks(coop.await)(inner)
    end
    for i = 1, 200, 2 do
      waiting[i]:cancel()
      bodies[i]:cancel()
    end
    inner:callback 'v'
    for i = 2, 200, 2 do
      assert.equal('v', value_of(waiting[i]))
      assert.equal('v', value_of(bodies[i]))
      cancelled(waiting[i - 1])
      cancelled(bodies[i - 1])
    end
  end)

  it('is taken away as one that waits, and stays the target of a chain', function()
    for _, others in ipairs { 1, 100 } do
      local source, target, log = coop.Deferred(), coop.Deferred(), {}
      for _ = 1, 3 do source:add_callback(function(v) return v end) end
      source:chain_deferred(target)
      for _ = 1, others do reader({}, '', source) end
      target:cancel()
      target:add_errback(constant(source))
      source:add_callback(note(log, 'behind'))
      target:cancel()
      cancelled(target)
      source:callback 'v'
      assert.same({ 'behind nil' }, log)
    end
  end)

  it('leaves the others that wait their value', function()
    local inner = coop.Deferred()
    local a = coop.succeed():add_callback(constant(inner))
    local b = coop.succeed():add_callback(constant(inner))
    local body = coop.spawn(function() return coop.await(inner) end)
    a:cancel()
    inner:callback 'v'
    cancelled(a)
    assert.equal('v', value_of(b))
    assert.equal('v', value_of(body))
    assert.equal('v', value_of(inner))
  end)

  it('which a handler returns fails the one that would wait', function()
    local inner = coop.Deferred()
    inner:cancel()
    cancelled(coop.succeed():add_callback(constant(inner)))
    cancelled(inner)
  end)

  for name, value in values() do
    it('CAN-17 fails with ' .. name .. ' that its canceller raises', function()
      local d = coop.Deferred(raiser(value))
      local seen = cap(d)
      assert.same({}, unhandled(function() d:cancel() end))
      assert.equal(1, seen.n)
      assert.equal('Failure', coop.type(seen[1]))
      assert.is_true(rawequal(value, seen[1].value))
    end)
  end

  it('swallows nothing after its canceller has raised', function()
    local d = coop.Deferred(raiser 'E')
    d:cancel()
    raises(errors.AlreadyCalledError, function() d:callback 'late' end, 'callback')
    assert.equal('E', (error_of(d)))
  end)

  it('fails the one that waits when the canceller raises', function()
    local inner = coop.Deferred(raiser 'E')
    local outer = coop.succeed():add_callback(constant(inner))
    outer:cancel()
    assert.equal('E', (error_of(outer)))
    assert.equal('E', (error_of(inner)))
  end)

  it('has the error reported of a canceller that fires it and then raises', function()
    local seen, value = nil, {}
    local reported = unhandled(function()
      local d = coop.Deferred(function(self)
        self:callback 'v'
        error(value, 0)
      end)
      seen = cap(d)
      d:cancel()
    end)
    assert.same({ n = 1, 'v' }, seen)
    assert.equal(1, #reported)
    assert.equal('Failure', coop.type(reported[1]))
    assert.is_true(rawequal(value, reported[1].value))
  end)

  it('CAN-18 is cancelled once by a canceller that cancels it', function()
    local count = 0
    local d = coop.Deferred(function(self)
      count = count + 1
      self:cancel()
      self:cancel()
    end)
    local seen = cap(d)
    d:cancel()
    assert.equal(1, count)
    assert.equal(1, seen.n)
    is_error(errors.CancelledError, seen[1].value)
  end)

  it('may be fired by its canceller after that has cancelled it', function()
    local d = coop.Deferred(function(self)
      self:cancel()
      self:callback 'v'
    end)
    d:cancel()
    assert.equal('v', value_of(d))
  end)

  it('CAN-20 is not reported when nobody handles it', function()
    assert.same({}, unhandled(function()
      coop.Deferred():cancel()
      coop.Deferred(function() end):cancel()
      coop.Deferred():errback(errors.CancelledError 'by hand')
      coop.succeed():add_callback(raiser(errors.CancelledError 'raised'))
    end))
  end)

  it('CAN-21 ignores what its canceller returns', function()
    for _, value in ipairs { 'v', coop.Deferred(), coop.succeed(1), coop.Failure 'E' } do
      local d = coop.Deferred(constant(value))
      d:cancel()
      cancelled(d)
    end
  end)

  it('shows a paused one the CancelledError when it is unpaused', function()
    local d = coop.Deferred()
    d:pause()
    local seen = cap(d)
    d:cancel()
    assert.is_true(d.called)
    assert.equal(0, seen.n)
    assert.equal(1, d.paused)
    d:unpause()
    assert.equal(1, seen.n)
    is_error(errors.CancelledError, seen[1].value)
  end)

  it('is held by a canceller that pauses it', function()
    local d = coop.Deferred(function(self) self:pause() end)
    local seen = cap(d)
    d:cancel()
    assert.equal(0, seen.n)
    d:unpause()
    assert.equal(1, seen.n)
    is_error(errors.CancelledError, seen[1].value)
  end)

  it('keeps a handler that its canceller adds', function()
    local log = {}
    local d = coop.Deferred(function(self) self:add_errback(note(log, 'added', 'saved')) end)
    d:add_errback(function(f) log[#log + 1] = 'first' return f end)
    d:cancel()
    assert.equal('first', log[1])
    assert.equal(2, #log)
    assert.equal('saved', d.result)
  end)

  it('may be turned into a success by an errback', function()
    local d = coop.Deferred():add_errback(function(f)
      f:trap(errors.CancelledError)
      return 'saved'
    end)
    d:cancel()
    assert.equal('saved', value_of(d))
  end)

  it('cancels what an errback made it wait on when it is cancelled again', function()
    local log = {}
    local d = coop.Deferred():add_errback(function()
      return coop.Deferred(function() log[#log + 1] = 'inner' end)
    end)
    d:cancel()
    assert.same({}, log)
    pending(d)
    d:cancel()
    assert.same({ 'inner' }, log)
    cancelled(d)
  end)

  it('tells of itself in the text of its error', function()
    local d = coop.Deferred()
    d:cancel()
    local e = error_of(d)
    assert.is_string(e.message)
    assert.truthy(tostring(e):lower():find('cancel', 1, true))
  end)
end)

describe('Deferreds in great number', function()
  before_each(helper.fresh)

  local function make(n)
    local ds = {}
    for i = 1, n do ds[i] = coop.Deferred() end
    return ds
  end

  it('run a million handlers of one', function()
    local d, count = coop.Deferred(), 0
    local function f(v)
      count = count + 1
      return v + 1
    end
    for _ = 1, 1000000 do d:add_callback(f) end
    d:callback(0)
    assert.equal(1000000, count)
    assert.equal(1000000, value_of(d))
  end)

  it('wait in a line that fires from its far end', function()
    local n = 100000
    local ds = make(n)
    for i = 1, n - 1 do ds[i]:add_callback(function() return ds[i + 1] end) end
    for i = 1, n - 1 do ds[i]:callback() end
    pending(ds[1])
    ds[n]:callback 'v'
    for i = 1, n do assert(ds[i].result == 'v', i) end
  end)

  it('wait in a line that was linked from its far end', function()
    local n = 100000
    local ds = make(n)
    for i = 1, n - 1 do ds[i]:add_callback(function() return ds[i + 1] end) end
    for i = n - 1, 1, -1 do ds[i]:callback() end
    ds[n]:callback 'v'
    for i = 1, n do assert(ds[i].result == 'v', i) end
  end)

  it('wait in a line that fails, without a report of any but the first', function()
    local n, first = 100000, nil
    assert.same({}, unhandled(function()
      local ds = make(n)
      for i = 1, n - 1 do ds[i]:add_callback(function() return ds[i + 1] end) end
      for i = 1, n - 1 do ds[i]:callback() end
      ds[n]:errback 'E'
      first = ds[1]
    end))
    assert.equal('E', (error_of(first)))
  end)

  it('wait in a line that is cancelled at its near end', function()
    local n = 100000
    local ds, cancels = make(n - 1), 0
    ds[n] = coop.Deferred(function() cancels = cancels + 1 end)
    for i = 1, n - 1 do ds[i]:add_callback(function() return ds[i + 1] end) end
    for i = 1, n - 1 do ds[i]:callback() end
    ds[1]:cancel()
    assert.equal(1, cancels)
    for i = 1, n do assert(errors.CancelledError:is(ds[i].result.value), i) end
  end)

  it('hand a value over by chain_deferred', function()
    local n = 100000
    local ds = make(n)
    for i = 1, n - 1 do ds[i]:chain_deferred(ds[i + 1]) end
    ds[1]:callback 'v'
    assert.equal('v', value_of(ds[n]))
    for i = 1, n - 1 do assert(ds[i].called and ds[i].result == nil, i) end
  end)

  it('fire each other in their handlers', function()
    local n = 100000
    local ds = make(n)
    for i = 1, n - 1 do ds[i]:add_callback(function(v) ds[i + 1]:callback(v + 1) end) end
    ds[1]:callback(1)
    assert.equal(n, value_of(ds[n]))
  end)

  it('cancel each other in their cancellers', function()
    local n, ds = 10000, {}
    for i = 1, n do
      ds[i] = coop.Deferred(function() if ds[i + 1] then ds[i + 1]:cancel() end end)
    end
    ds[1]:cancel()
    for i = 1, n do assert(errors.CancelledError:is(ds[i].result.value), i) end
  end)

  it('unpause each other in their handlers', function()
    local n = 10000
    local ds = make(n)
    for i = 1, n do
      ds[i]:pause()
      ds[i]:callback(i)
      ds[i]:add_callback(function(v)
        if ds[i + 1] then ds[i + 1]:unpause() end
        return -v
      end)
    end
    ds[1]:unpause()
    for i = 1, n do assert(ds[i].result == -i, i) end
  end)

  it('resume coroutines that wait on each other', function()
    local n, gate = 10000, coop.Deferred()
    local last = gate
    for _ = 1, n do
      local before = last
      last = coop.spawn(function() return coop.await(before) + 1 end)
    end
    gate:callback(0)
    assert.equal(n, value_of(last))
  end)
end)
