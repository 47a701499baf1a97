-- Functions of coop.inline_callbacks: what a body gets from its waits, how it ends, what cancelling
-- its Deferred does.

local coop = require 'coop'
local helper = require 'tests.spec.helper'

local cap, pending = helper.cap, helper.pending
local value_of, error_of = helper.value_of, helper.error_of
local inline, await = coop.inline_callbacks, coop.await
local CancelledError = coop.errors.CancelledError

-- Runs `f` as a body at once.
local function begin(f, ...)
  return inline(f)(...)
end

local function on_close(f)
  return setmetatable({}, { __close = f })
end

-- How many levels the stack of the running coroutine has.
local function levels()
  local n = 1
  while debug.getinfo(n, 'l') do n = n + 1 end
  return n
end

describe('the body of an inline_callbacks function', function()
  it('INL-01 gets the value of one wait, catches the error of another and returns', function()
    local good, bad = coop.Deferred(), coop.Deferred()
    local got, ok, err
    local result = begin(function()
      got = await(good)
      ok, err = pcall(await, bad)
      return 'WOOSH'
    end)
    pending(result)
    good:callback 'hi'
    assert.equal('hi', got)
    pending(result)
    bad:errback 'TERM'
    assert.is_false(ok)
    assert.equal('TERM', err)
    assert.equal('WOOSH', value_of(result))
  end)

  it('INL-03 waits for a coroutine that it yields and can catch its error', function()
    local gate, ok, err = coop.Deferred(), nil, nil
    local result = begin(function()
      local value = coroutine.yield(coop.spawn(function() return await(gate) + 1 end))
      ok, err = pcall(coroutine.yield, coop.spawn(function() error('inner', 0) end))
      return value
    end)
    pending(result)
    gate:callback(1)
    assert.is_false(ok)
    assert.equal('inner', err)
    assert.equal(2, value_of(result))
  end)

  it('INL-04 fails its Deferred with an error that it does not catch after a wait', function()
    local gate = coop.Deferred()
    local result = begin(function()
      await(gate)
      error('after', 0)
    end)
    pending(result)
    gate:callback()
    assert.equal('after', error_of(result))
  end)

  it('INL-05 fires its Deferred with nil at once when it never waits', function()
    local ran = false
    local result = begin(function() ran = true end)
    assert.is_true(ran)
    assert.is_true(result.called)
    assert.same({ n = 1 }, cap(result))
  end)

  it('INL-06 succeeds after catching the error of a failed Deferred', function()
    local ok, err
    local result = begin(function() ok, err = pcall(await, coop.fail 'early') end)
    assert.is_false(ok)
    assert.equal('early', err)
    assert.is_nil(value_of(result))
  end)

  it('INL-07 succeeds after catching the error of a Deferred that fails later', function()
    local gate, ok, err = coop.Deferred(), nil, nil
    local result = begin(function() ok, err = pcall(await, gate) end)
    pending(result)
    gate:errback 'late'
    assert.is_false(ok)
    assert.equal('late', err)
    assert.is_nil(value_of(result))
  end)

  it('INL-08 waits for 5,000 fired Deferreds on a stack that stays as it is', function()
    local sum, first, last = 0, nil, nil
    local result = begin(function()
      first = levels()
      for i = 1, 5000 do sum = sum + await(coop.succeed(i)) end
      last = levels()
    end)
    assert.is_nil(value_of(result))
    assert.equal(5000 * 5001 // 2, sum)
    assert.equal(first, last)
  end)

  it('INL-09 yields 5,000 plain values on a stack that stays as it is', function()
    local sum, first, last = 0, nil, nil
    local result = begin(function()
      first = levels()
      for i = 1, 5000 do sum = sum + coroutine.yield(i) end
      last = levels()
    end)
    assert.is_nil(value_of(result))
    assert.equal(5000 * 5001 // 2, sum)
    assert.equal(first, last)
  end)

  it('INL-10 gets a plain value that it yields straight back', function()
    assert.equal(5, value_of(begin(function() return coroutine.yield(5) end)))
  end)

  it('INL-11 fires with nil when it returns nothing after a wait', function()
    local gate = coop.Deferred()
    local result = begin(function() await(gate) end)
    gate:callback 'ignored'
    assert.same({ n = 1 }, cap(result))
  end)

  it('INL-12 fires with what it returns after a wait', function()
    local gate = coop.Deferred()
    local result = begin(function()
      await(gate)
      return 14
    end)
    pending(result)
    gate:callback()
    assert.equal(14, value_of(result))
  end)

  it('INL-15 passes one value out through three nested functions', function()
    local gate, log = coop.Deferred(), {}
    local function logging(name, add, inner)
      return inline(function()
        log[#log + 1] = name .. ' enters'
        local value = await(inner())
        log[#log + 1] = name .. ' exits'
        return value + add
      end)
    end
    local f1 = logging('f1', 1, function() return gate end)
    local f2 = logging('f2', 2, f1)
    local f3 = logging('f3', 4, f2)
    local result = f3()
    pending(result)
    gate:callback(1)
    assert.equal(8, value_of(result))
    assert.same({
      'f3 enters', 'f2 enters', 'f1 enters', 'f1 exits', 'f2 exits', 'f3 exits',
    }, log)
  end)

  it('INL-16 goes depth first through three levels of three calls each', function()
    local waits, log, expected = {}, {}, {}
    local third = inline(function(name)
      log[#log + 1] = '<' .. name
      waits[#waits + 1] = coop.Deferred()
      local value = await(waits[#waits])
      log[#log + 1] = name .. '>'
      return value + 1
    end)
    local function three(inner, sum)
      return inline(function(name)
        log[#log + 1] = '<' .. name
        for i = 1, 3 do sum = sum + await(inner(name .. i)) end
        log[#log + 1] = name .. '>'
        return sum
      end)
    end
    local function second(name) return three(third, 0)(name) end
    local result = three(second, 2) 'a'
    for i = 1, 9 do
      assert.equal(i, #waits)
      pending(result)
      waits[i]:callback(1)
    end
    assert.equal(20, value_of(result))
    expected[1] = '<a'
    for i = 1, 3 do
      expected[#expected + 1] = '<a' .. i
      for j = 1, 3 do
        expected[#expected + 1] = '<a' .. i .. j
        expected[#expected + 1] = 'a' .. i .. j .. '>'
      end
      expected[#expected + 1] = 'a' .. i .. '>'
    end
    expected[#expected + 1] = 'a>'
    assert.same(expected, log)
  end)

  it('INL-17 gets what the handlers of an awaited result have made of it', function()
    local order = {}
    local result = begin(function()
      local d = begin(function() return await(coop.succeed(5)) end)
      d:add_callback(function(value)
        order[#order + 1] = 'handler'
        return value + 2
      end)
      local value = await(d)
      order[#order + 1] = 'body'
      return value + 1
    end)
    assert.equal(8, value_of(result))
    assert.same({ 'handler', 'body' }, order)
  end)

  it('INL-20 goes on after catching the later failure of a nested one', function()
    local gate, err = coop.Deferred(), nil
    local inner = inline(function()
      await(gate)
      error('not reached', 0)
    end)
    local result = begin(function()
      local ok
      ok, err = pcall(await, inner())
      return ok and 0 or await(coop.succeed(5))
    end)
    pending(result)
    gate:errback 'gate'
    assert.equal('gate', err)
    assert.equal(5, value_of(result))
  end)

  it('INL-23 shows nothing of return_value in the traceback of an error after it', function()
    local gate = coop.Deferred()
    local line
    local inner = inline(function() pcall(coop.return_value, await(gate)) end)
    local result = begin(function()
      local value = await(inner())
      local ok, err = pcall(error, 'caught ' .. value, 0)
      line = debug.getinfo(1, 'l').currentline + 1
      if not ok then error(err, 0) end
    end)
    gate:callback 'once'
    local value, failure = error_of(result)
    assert.equal('caught once', value)
    local text = failure:traceback()
    assert.truthy(text:find('inline_spec.lua:' .. line, 1, true), text)
    assert.is_nil(text:find('return_value', 1, true), text)
  end)

  it('INL-24 keeps the frames of a failure that passes through two of them', function()
    local raised, inner_line, outer_line
    local source = coop.Deferred()
    source:add_callback(function()
      raised = debug.getinfo(1, 'l').currentline + 1
      error('deep', 0)
    end)
    local inner = inline(function()
      inner_line = debug.getinfo(1, 'l').currentline + 1
      local value = await(source)
      return value
    end)
    local result = begin(function()
      outer_line = debug.getinfo(1, 'l').currentline + 1
      local value = await(inner())
      return value
    end)
    source:callback()
    local value, failure = error_of(result)
    assert.equal('deep', value)
    local text, from = failure:traceback(), 1
    for _, line in ipairs { raised, inner_line, outer_line } do
      local at = text:find('inline_spec.lua:' .. line .. ':', from, true)
      assert.truthy(at, ('no line %d in its place in %s'):format(line, text))
      from = at + 1
    end
  end)

  it('gets its arguments, nils among them', function()
    local got
    begin(function(...) got = table.pack(...) end, 1, nil, 3, nil)
    assert.same({ 1, nil, 3, nil, n = 4 }, got)
  end)

  it('has run to its first wait when the call returns', function()
    local log = {}
    begin(function()
      log[#log + 1] = 'body'
      await(helper.forever())
      log[#log + 1] = 'never'
    end)
    log[#log + 1] = 'caller'
    assert.same({ 'body', 'caller' }, log)
  end)

  it('fails its Deferred, and not the call, with an error before any wait', function()
    local ok, result = pcall(begin, function() error('first', 0) end)
    assert.is_true(ok)
    assert.equal('first', error_of(result))
  end)

  it('has closed its variables when its Deferred fails', function()
    local log = {}
    local function body(gate)
      return inline(function()
        local _ <close> = on_close(function(_, err) log[#log + 1] = err end)
        await(gate)
        error('E', 0)
      end)()
    end
    local gate = coop.Deferred()
    body(gate):add_errback(function(failure) log[#log + 1] = 'failed with ' .. failure.value end)
    gate:callback()
    body(coop.succeed()):add_errback(function(failure)
      log[#log + 1] = 'failed with ' .. failure.value
    end)
    assert.same({ 'E', 'failed with E', 'E', 'failed with E' }, log)
  end)

  it('hands every error value on unchanged, from where it is raised and through a wait', function()
    for name, value in helper.values() do
      local inner = begin(function() error(value, 0) end)
      local caught
      local outer = begin(function()
        caught = table.pack(pcall(await, inner))
        await(inner)
      end)
      assert.same(false, caught[1], name)
      assert.is_true(rawequal(value, caught[2]), name)
      assert.is_true(rawequal(value, (error_of(outer))), name)
      assert.is_true(rawequal(value, (error_of(inner))), name)
    end
  end)

  it('makes a Deferred each call, one that is no Coroutine', function()
    local f = inline(function(value) return value end)
    local first, second = f(1), f(2)
    assert.equal('Deferred', coop.type(first))
    assert.is_true(coop.is_deferred(first))
    assert.equal(1, value_of(first))
    assert.equal(2, value_of(second))
  end)

  it('must be something that can be called', function()
    helper.misuse(function() inline(42) end, "bad argument #1 to 'inline_callbacks'", 'number')
    helper.misuse(function() inline() end, "bad argument #1 to 'inline_callbacks'")
  end)
end)

describe('a wait', function()
  it('leaves the value to those who wait next', function()
    local d = coop.Deferred()
    local result = begin(function() return { await(d), await(d) } end)
    local other = begin(function() return await(d) end)
    d:callback 'shared'
    assert.same({ 'shared', 'shared' }, value_of(result))
    assert.equal('shared', value_of(other))
    assert.equal('shared', d.result)
  end)

  it('leaves the error to those who wait next, and counts as its handling', function()
    local d, caught = coop.Deferred(), {}
    local function catcher()
      return begin(function()
        for _ = 1, 2 do
          local _, err = pcall(await, d)
          caught[#caught + 1] = err
        end
      end)
    end
    catcher()
    catcher()
    d:errback 'E'
    assert.same({ 'E', 'E', 'E', 'E' }, caught)
    assert.equal('Failure', coop.type(d.result))
  end)

  it('takes its place among the handlers of the Deferred', function()
    local d, log = coop.Deferred(), {}
    local function note(value)
      log[#log + 1] = 'handler ' .. value
      return value + 1
    end
    local function waiter()
      local value = await(d)
      log[#log + 1] = 'body ' .. value
    end
    d:add_callback(note)
    begin(waiter)
    d:add_callback(note)
    begin(waiter)
    d:callback(1)
    assert.same({ 'handler 1', 'body 2', 'handler 2', 'body 3' }, log)
  end)

  it('lets what it resumes run to its next wait before the handlers behind it', function()
    local d, gate, log = coop.Deferred(), coop.Deferred(), {}
    begin(function()
      await(d)
      await(coop.succeed())
      log[#log + 1] = 'body'
      await(gate)
      log[#log + 1] = 'gate'
    end)
    d:add_callback(function() log[#log + 1] = 'handler' end)
    d:callback()
    assert.same({ 'body', 'handler' }, log)
    gate:callback()
    assert.same({ 'body', 'handler', 'gate' }, log)
  end)

  it('for what is no Deferred gives it back', function()
    for name, value in helper.values() do
      local got
      begin(function() got = table.pack(await(value)) end)
      assert.is_true(rawequal(value, got[1]), name)
    end
  end)

  it('for a fired Deferred that is paused lasts until it is unpaused', function()
    local d = coop.succeed 'held'
    d:pause()
    local result = begin(function() return await(d) end)
    pending(result)
    d:unpause()
    assert.equal('held', value_of(result))
  end)
end)

describe('coroutine.yield in a body', function()
  it('waits for a Deferred', function()
    local d = coop.Deferred()
    local result = begin(function() return coroutine.yield(d) end)
    pending(result)
    d:callback(7)
    assert.equal(7, value_of(result))
    assert.equal('E', error_of(begin(function() coroutine.yield(coop.fail 'E') end)))
  end)

  it('raises the value of a Failure', function()
    for name, value in helper.values() do
      local caught
      begin(function() caught = table.pack(pcall(coroutine.yield, coop.Failure(value))) end)
      assert.is_false(caught[1], name)
      assert.is_true(rawequal(value, caught[2]), name)
    end
  end)

  it('hands every other value straight back', function()
    for name, value in helper.values() do
      local got
      begin(function() got = table.pack(coroutine.yield(value)) end)
      assert.is_true(rawequal(value, got[1]), name)
    end
    local bare = 'nothing'
    begin(function() bare = coroutine.yield() end)
    assert.is_nil(bare)
  end)
end)

describe('a Deferred that a body returns', function()
  it('is waited for', function()
    local d = coop.Deferred()
    local result = begin(function() return d end)
    pending(result)
    d:callback(7)
    assert.equal(7, value_of(result))
    assert.equal(7, d.result)
  end)

  it('fails the body when it fails', function()
    assert.equal('E', error_of(begin(function() return coop.fail 'E' end)))
  end)

  it('is cancelled with the body', function()
    local d = coop.Deferred()
    local result = begin(function() return d end)
    result:cancel()
    assert.is_true(CancelledError:is(error_of(d)))
    assert.is_true(CancelledError:is(error_of(result)))
  end)

  it('fails the body when it is the body\'s own', function()
    local gate, result = coop.Deferred(), nil
    result = begin(function()
      await(gate)
      return result
    end)
    gate:callback()
    assert.truthy(tostring((error_of(result))):find 'itself')
  end)
end)

-- The shapes that cancelling is tried on. What they wait for in the end is up to `step`, and each
-- adds 1 to what that returns: a body by itself; one that waits for another; one that does so
-- after a wait that is over.
local function plain(step)
  return begin(function() return step() + 1 end)
end

local function nested(step)
  return begin(function() return await(plain(step)) end)
end

local function second(step)
  return begin(function()
    await(plain(function() return await(coop.succeed(0)) end))
    return await(plain(step))
  end)
end

local function waiting_for(d)
  return function() return await(d) end
end

describe('cancelling', function()
  local function source_sees_it(shape)
    return function()
      local d, seen = coop.Deferred(), nil
      d:add_errback(function(failure)
        seen = failure.value
        return failure
      end)
      local result = shape(waiting_for(d))
      pending(result)
      result:cancel()
      assert.is_true(CancelledError:is(seen))
      assert.is_true(d.called)
      assert.is_true(CancelledError:is(error_of(result)))
    end
  end
  it('INL-25a reaches what a body waits on at once', source_sees_it(plain))
  it('INL-25b reaches what a nested body waits on at once', source_sees_it(nested))
  it('INL-25c reaches what a later nested body waits on at once', source_sees_it(second))

  local function fails_with_it(shape)
    return function()
      local result = shape(waiting_for(coop.Deferred()))
      local seen = cap(result)
      assert.equal(0, seen.n)
      result:cancel()
      assert.equal(1, seen.n)
      assert.equal('Failure', coop.type(seen[1]))
      assert.is_true(CancelledError:is(seen[1].value))
    end
  end
  it('INL-26a fails a body that does not catch it with CancelledError', fails_with_it(plain))
  it('INL-26b fails a nested body and its caller with CancelledError', fails_with_it(nested))
  it('INL-26c fails a later nested body and its caller with it', fails_with_it(second))

  local function converted(shape)
    return function()
      local d = coop.Deferred(function(d) d:errback { number = 4321 } end)
      local result = shape(function()
        local ok, err = pcall(await, d)
        return ok and 0 or err.number - 2
      end)
      result:cancel()
      assert.equal(4320, value_of(result))
    end
  end
  it('INL-28a raises the error of a canceller, which the body may convert', converted(plain))
  it('INL-28b raises the error of a canceller in the nested body', converted(nested))
  it('INL-28c raises the error of a canceller in the later nested body', converted(second))

  local function delayed(shape)
    return function()
      local d, later = coop.Deferred(), coop.Deferred()
      d:add_errback(function() return later end)
      local result = shape(waiting_for(d))
      result:cancel()
      pending(result)
      assert.is_false(result.called)
      later:callback(6543)
      assert.equal(6544, value_of(result))
    end
  end
  it('INL-29a waits for what the handlers of the source put in its place', delayed(plain))
  it('INL-29b does so for a nested body', delayed(nested))
  it('INL-29c does so for a later nested body', delayed(second))

  it('INL-30 again reaches what a body waits on after catching it', function()
    local calls = 0
    local d1 = coop.Deferred(function() calls = calls + 1 end)
    local d2 = coop.Deferred()
    local caught
    local result = begin(function()
      local _
      _, caught = pcall(await, d1)
      return await(d2)
    end)
    result:cancel()
    assert.is_true(CancelledError:is(caught))
    pending(result)
    assert.is_false(d2.called)
    result:cancel()
    assert.is_true(CancelledError:is(error_of(d2)))
    assert.is_true(CancelledError:is(error_of(result)))
    assert.equal(1, calls)
  end)

  it('INL-33 a body that has ended changes nothing', function()
    local d = coop.Deferred(function() error 'the canceller was called' end)
    local result = begin(function() return await(d) end)
    d:callback 'kept'
    result:cancel()
    assert.equal('kept', value_of(result))
    assert.equal('kept', d.result)
  end)

  it('raises CancelledError at the wait, where it may be caught', function()
    local caught, closed
    local result = begin(function()
      local ok
      ok, caught = pcall(function()
        local _ <close> = on_close(function(_, err) closed = err end)
        await(coop.Deferred())
      end)
      return ok
    end)
    result:cancel()
    assert.is_true(CancelledError:is(caught))
    assert.equal(caught, closed)
    assert.is_false(value_of(result))
  end)

  it('goes on with the value that a canceller fires', function()
    local d = coop.Deferred(function(d) d:callback 'instead' end)
    local result = begin(function() return await(d) end)
    result:cancel()
    assert.equal('instead', value_of(result))
  end)

  it('leaves `called` false until the body ends', function()
    local d, later = coop.Deferred(), coop.Deferred()
    local result = begin(function()
      pcall(await, d)
      return await(later)
    end)
    result:cancel()
    assert.is_true(d.called)
    assert.is_false(result.called)
    later:callback 'end'
    assert.is_true(result.called)
    assert.equal('end', value_of(result))
  end)

  it('reaches what the body waits on also when its Deferred is paused', function()
    local d, later = coop.Deferred(), coop.Deferred()
    local result = begin(function()
      pcall(await, d)
      return await(later)
    end)
    local seen = cap(result)
    result:pause()
    result:cancel()
    assert.is_true(CancelledError:is(error_of(d)))
    assert.is_false(result.called)
    later:callback 'end'
    assert.is_true(result.called)
    assert.same({ n = 0 }, seen)
    result:unpause()
    assert.same({ n = 1, 'end' }, seen)
  end)

  it('takes one of several that wait on a Deferred away, the last one with it', function()
    local cancelled = 0
    local d = coop.Deferred(function() cancelled = cancelled + 1 end)
    local function waiter() return begin(function() return await(d) end) end
    local first, middle, last = waiter(), waiter(), waiter()
    middle:cancel()
    assert.is_true(CancelledError:is(error_of(middle)))
    first:cancel()
    assert.is_true(CancelledError:is(error_of(first)))
    assert.equal(0, cancelled)
    assert.is_false(d.called)
    pending(last)
    last:cancel()
    assert.equal(1, cancelled)
    assert.is_true(CancelledError:is(error_of(last)))
    assert.is_true(CancelledError:is(error_of(d)))
  end)

  it('leaves the others that wait on a Deferred their value', function()
    local d = coop.Deferred()
    local function waiter() return begin(function() return await(d) end) end
    local first, last = waiter(), waiter()
    first:cancel()
    d:callback 'value'
    assert.is_true(CancelledError:is(error_of(first)))
    assert.equal('value', value_of(last))
  end)

  it('is silent', function()
    assert.same({}, helper.unhandled(function()
      begin(function() await(coop.Deferred()) end):cancel()
      nested(waiting_for(coop.Deferred())):cancel()
    end))
  end)
end)

describe('the Deferred of an inline_callbacks function', function()
  it('INL-38 does not hold the body when it is paused, only its own handlers', function()
    local d, ran = coop.Deferred(), false
    local result = begin(function()
      local value = await(d)
      ran = true
      return value
    end)
    local seen = cap(result)
    result:pause()
    assert.equal(0, d.paused)
    d:callback(1)
    assert.is_true(ran)
    assert.same({ n = 0 }, seen)
    result:unpause()
    assert.same({ n = 1, 1 }, seen)
  end)

  it('INL-39 that nobody can reach closes its body at collection, silently', function()
    local closed = 0
    local reported = helper.unhandled(function()
      begin(function()
        local _ <close> = on_close(function() closed = closed + 1 end)
        await(helper.forever())
        closed = closed + 10
      end)
      assert.equal(0, closed)
    end)
    assert.equal(1, closed)
    assert.same({}, reported)
  end)

  it('INL-41 comes after two sleeps, one in a nested function', function()
    local clock, sections = coop.Clock(), {}
    local function section(n) sections[#sections + 1] = n end
    local inner = inline(function()
      section(2)
      await(coop.defer_later(clock, 1))
      section(3)
    end)
    local result = begin(function()
      section(1)
      await(inner())
      section(4)
      await(coop.defer_later(clock, 1))
      section(5)
      return 'Yay!'
    end)
    clock:advance(0.9)
    assert.same({ 1, 2 }, sections)
    clock:advance(0.1)
    assert.same({ 1, 2, 3, 4 }, sections)
    pending(result)
    clock:advance(1)
    assert.same({ 1, 2, 3, 4, 5 }, sections)
    assert.equal('Yay!', value_of(result))
  end)
end)
