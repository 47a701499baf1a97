-- Generators, what else is an iterator, and waits inside them.

local coop = require 'coop'
local helper = require 'tests.spec.helper'

local cap, pending = helper.cap, helper.pending
local value_of, error_of = helper.value_of, helper.error_of
local inline, spawn, await, yield = coop.inline_callbacks, coop.spawn, coop.await, coop.yield
local CancelledError = coop.errors.CancelledError

-- A to-be-closed value that puts `name` into `log`.
local function closer(log, name)
  return setmetatable({}, { __close = function() log[#log + 1] = name end })
end

local count = coop.generator(function(n)
  for i = 1, n do yield(i) end
end)

local function collect(iterator)
  local list = {}
  for v in iterator do list[#list + 1] = v end
  return list
end

describe('a generator', function()
  it('gives what its body yields to a generic for', function()
    local list = {}
    for v in count(4) do list[#list + 1] = v end
    assert.same({ 1, 2, 3, 4 }, list)
  end)

  it('gives one value for each next and each call', function()
    local g = count(3)
    assert.equal(1, g:next())
    assert.equal(2, g())
    assert.equal(3, g:next())
    assert.is_nil(g:next())
  end)

  it('is made anew by each call, of the type Generator', function()
    local one, two = count(2), count(2)
    assert.equal('Generator', coop.type(one))
    assert.equal('string', type(getmetatable(one)))
    assert.equal(1, one:next())
    assert.equal(1, two:next())
    assert.equal(2, one:next())
  end)

  it('yields with coroutine.yield, which coop.yield is', function()
    assert.equal(coroutine.yield, coop.yield)
    local letters = coop.generator(function()
      coroutine.yield 'a'
      coop.yield 'b'
    end)
    assert.same({ 'a', 'b' }, collect(letters()))
  end)

  it('begins its body with the first next, and gives it the arguments', function()
    local got
    local g = coop.generator(function(...)
      got = table.pack(...)
      yield(1)
    end)(1, nil, 3, nil)
    assert.is_nil(got)
    g:next()
    assert.same({ 1, nil, 3, nil, n = 4 }, got)
  end)

  it('runs its body no further than what is asked for', function()
    local log = {}
    local g = coop.generator(function()
      for i = 1, 3 do
        log[#log + 1] = i
        yield(i)
      end
    end)()
    assert.equal(2, (g:next() or 0) + 1)
    assert.same({ 1 }, log)
    assert.equal(2, g:next())
    assert.same({ 1, 2 }, log)
  end)

  it('passes over a nil that it yields, and not over false', function()
    local g = coop.generator(function()
      yield(nil)
      yield(false)
      yield()
      yield(nil)
      yield 'last'
      yield(nil)
    end)()
    assert.is_false(g:next())
    assert.equal('last', g())
    assert.is_nil(g())
  end)

  it('gives nil at its end again and again, whatever its body returns', function()
    local g = coop.generator(function()
      yield(1)
      return 'returned'
    end)()
    assert.equal(1, g:next())
    for _ = 1, 3 do
      assert.is_nil(g:next())
      assert.is_nil(g())
    end
  end)

  it('raises the error of its body once, unchanged, and has then ended', function()
    for name, value in helper.values() do
      local g = coop.generator(function()
        yield(1)
        error(value, 0)
      end)()
      assert.equal(1, g:next())
      local caught = table.pack(pcall(g.next, g))
      assert.is_false(caught[1], name)
      assert.is_true(rawequal(value, caught[2]), name)
      assert.is_nil(g:next())
      assert.is_nil(g())
    end
  end)

  it('closes its variables when its body fails', function()
    local log = {}
    local g = coop.generator(function()
      local _ <close> = closer(log, 'closed')
      yield(1)
      error 'E'
    end)()
    g:next()
    assert.is_false(pcall(g))
    assert.same({ 'closed' }, log)
  end)

  it('hands a Deferred out like any other value', function()
    local d = coop.Deferred()
    local make = coop.generator(function()
      yield(d)
      yield(coop.succeed(2))
    end)
    assert.equal(d, make():next())
    local got
    local c = spawn(function()
      local g = make()
      got = { g:next(), coop.is_deferred(g:next()), g:next() }
    end)
    assert.is_nil(value_of(c))
    assert.same({ d, true }, got)
  end)

  it('may be called within another, each with its own yields', function()
    local pairs_of = coop.generator(function(n)
      for i in count(n) do
        for j in count(i) do yield(i .. j) end
      end
    end)
    assert.same({ '11', '21', '22', '31', '32', '33' }, collect(pairs_of(3)))
  end)

  it('may yield from inside pcall, an iterator and a metamethod', function()
    local object = setmetatable({}, { __index = function(_, key)
      yield(key)
      return key
    end })
    local g = coop.generator(function()
      local ok, key = pcall(function() return object.one end)
      yield(ok)
      yield(key .. '!')
      for _ in function() yield 'iterator' end do end
    end)()
    assert.same({ 'one', true, 'one!', 'iterator' }, { g(), g(), g(), g() })
    assert.is_nil(g())
  end)

  it('refuses to be asked by its own body, and goes on', function()
    local g
    local refusals = {}
    g = coop.generator(function()
      refusals[1] = select(2, pcall(g.next, g))
      refusals[2] = select(2, pcall(g))
      refusals[3] = select(2, pcall(g.close, g))
      yield 'still here'
    end)()
    assert.equal('still here', g:next())
    for i = 1, 3 do
      assert.equal('string', type(refusals[i]))
      assert.truthy(refusals[i]:find('running', 1, true), refusals[i])
    end
    assert.is_nil(g:next())
  end)

  it('must be made of something that can be called', function()
    helper.misuse(function() coop.generator(42) end, "bad argument #1 to 'generator'", 'number')
    helper.misuse(function() coop.generator() end, "bad argument #1 to 'generator'")
    local g = count(1)
    helper.misuse(function() g.next(42) end, 'next')
    helper.misuse(function() g.close {} end, 'close')
  end)
end)

describe('closing a generator', function()
  local function closing(log)
    return coop.generator(function()
      local _ <close> = closer(log, 'closed')
      for i = 1, 10 do yield(i) end
      log[#log + 1] = 'ran to its end'
    end)()
  end

  it('runs its cleanup and ends it', function()
    local log = {}
    local g = closing(log)
    g:next()
    g:close()
    assert.same({ 'closed' }, log)
    assert.is_nil(g:next())
    assert.is_nil(g())
  end)

  it('before its first value never begins its body', function()
    local began = false
    local g = coop.generator(function() began = true end)()
    g:close()
    assert.is_nil(g:next())
    assert.is_false(began)
  end)

  it('again, or after its end or its error, does nothing', function()
    local log = {}
    local g = closing(log)
    g:next()
    g:close()
    g:close()
    assert.same({ 'closed' }, log)
    local ended = count(0)
    ended:next()
    ended:close()
    assert.is_nil(ended:next())
    local failed = coop.generator(error)('E')
    assert.is_false(pcall(failed))
    failed:close()
    assert.is_nil(failed())
  end)

  it('happens at the end of the block of a to-be-closed variable', function()
    local log = {}
    do
      local g <close> = closing(log)
      g:next()
      assert.same({}, log)
    end
    assert.same({ 'closed' }, log)
    pcall(function()
      local g <close> = closing(log)
      g:next()
      error 'out'
    end)
    assert.same({ 'closed', 'closed' }, log)
  end)

  it('does not lose an error of its cleanup', function()
    local raised
    local reported = helper.unhandled(function()
      local g = coop.generator(function()
        local _ <close> = setmetatable({}, { __close = function() error('cleanup', 0) end })
        yield(1)
      end)()
      g:next()
      raised = select(2, pcall(g.close, g))
      assert.is_nil(g:next())
    end)
    assert.equal('cleanup', raised or reported[1] and reported[1].value)
  end)
end)

describe('an iterator', function()
  local clock, cooperator

  before_each(function()
    clock = coop.Clock()
    cooperator = coop.Cooperator {
      scheduler = function(f) return clock:call_later(0.01, f) end,
    }
  end)

  local function accumulated(iterator)
    local d = coop.accumulate(iterator, cooperator)
    clock:advance(1)
    return d
  end

  it('may be a Generator, also one that has begun', function()
    assert.same({ 1, 2, 3 }, value_of(accumulated(count(3))))
    local g = count(3)
    g:next()
    assert.same({ 2, 3 }, value_of(accumulated(g)))
    assert.same({}, value_of(accumulated(count(0))))
  end)

  it('may be a coroutine, whose nil is a turn given up', function()
    local co = coroutine.create(function()
      yield(1)
      yield(nil)
      yield(false)
      yield()
      yield(2)
    end)
    assert.same({ 1, false, 2 }, value_of(accumulated(co)))
    assert.equal('dead', coroutine.status(co))
    assert.same({}, value_of(accumulated(co)))
  end)

  it('may be any callable, called until it returns nil', function()
    local calls = 0
    local function three()
      calls = calls + 1
      if calls <= 3 then return calls * 10 end
    end
    assert.same({ 10, 20, 30 }, value_of(accumulated(three)))
    assert.equal(4, calls)
    calls = 0
    local callable = setmetatable({}, { __call = three })
    assert.same({ 10, 20, 30 }, value_of(accumulated(callable)))
    assert.same({ 'a', 'b' }, value_of(accumulated(('a b'):gmatch '%a')))
  end)

  it('may be a table with a sequence part', function()
    assert.same({ 'a', 'b', false }, value_of(accumulated { 'a', 'b', false }))
    assert.same({}, value_of(accumulated {}))
  end)

  it('fails who asks it with its own error', function()
    local function fail() error('E', 0) end
    assert.equal('E', error_of(accumulated(fail)))
    assert.equal('E', error_of(accumulated(coop.generator(fail)())))
    assert.equal('E', error_of(accumulated(coroutine.create(fail))))
  end)

  it('is nothing else', function()
    for _, value in ipairs { 42, true, io.stdout, coop.Deferred() } do
      helper.misuse(function() coop.accumulate(value, cooperator) end, 'accumulate')
    end
    helper.misuse(function() coop.accumulate(nil, cooperator) end, 'accumulate')
  end)
end)

describe('a wait inside a generator', function()
  -- Yields the time after each of `n` sleeps of a second.
  local ticks = coop.generator(function(clock, n)
    for _ = 1, n do
      await(coop.defer_later(clock, 1))
      yield(clock:seconds())
    end
  end)

  it('suspends the body that asks it, for each value of a generic for', function()
    local clock, log = coop.Clock(), {}
    local c = spawn(function()
      for v in ticks(clock, 3) do log[#log + 1] = v end
      log[#log + 1] = 'end'
    end)
    clock:advance(0.5)
    assert.same({}, log)
    clock:advance(1)
    assert.same({ 1 }, log)
    clock:advance(1)
    assert.same({ 1, 2 }, log)
    pending(c)
    clock:advance(1)
    assert.same({ 1, 2, 3, 'end' }, log)
    assert.is_nil(value_of(c))
  end)

  it('leaves other bodies running', function()
    local clock, log = coop.Clock(), {}
    local function run(name)
      for v in ticks(clock, 2) do log[#log + 1] = name .. ('%g'):format(v) end
    end
    spawn(run, 'a')
    spawn(run, 'b')
    clock:advance(2)
    assert.same({ 'a1', 'b1', 'a2', 'b2' }, log)
  end)

  it('returns the value of a Deferred, pending or fired', function()
    local d = coop.Deferred()
    local g = coop.generator(function()
      yield(await(coop.succeed 'fired') .. 1)
      yield(await(d) .. 2)
      yield(await 'plain')
    end)()
    local c = spawn(function() return { g:next(), g(), g:next(), g:next() } end)
    pending(c)
    d:callback 'pending'
    assert.same({ 'fired1', 'pending2', 'plain' }, value_of(c))
  end)

  it('raises the error of a Deferred there, where it may be caught', function()
    local d, err = coop.Deferred(), nil
    local c = spawn(function()
      return coop.generator(function()
        local ok
        ok, err = pcall(await, d)
        yield(ok)
      end)():next()
    end)
    d:errback 'E'
    assert.equal('E', err)
    assert.is_false(value_of(c))
  end)

  it('fails the generator, then who asked, with an error that is not caught', function()
    local d, log = coop.Deferred(), {}
    local g = coop.generator(function()
      local _ <close> = closer(log, 'closed')
      await(d)
      yield 'never'
    end)()
    local c = spawn(function()
      local _ <close> = closer(log, 'body')
      return g:next()
    end)
    d:errback 'E'
    assert.same({ 'closed', 'body' }, log)
    assert.equal('E', error_of(c))
    assert.is_nil(g:next())
  end)

  it('passes through generators within generators and coroutines of the script', function()
    local clock = coop.Clock()
    local function through(inner)
      return coop.generator(function()
        for v in inner do yield(v) end
      end)()
    end
    local iterator = ticks(clock, 3)
    for _ = 1, 10 do
      local inner = through(iterator)
      iterator = coroutine.wrap(function()
        for v in inner do yield(v) end
      end)
    end
    local c = spawn(collect, iterator)
    clock:advance(2)
    pending(c)
    clock:advance(1)
    assert.same({ 1, 2, 3 }, value_of(c))
  end)

  it('belongs to the body that asks: two may take turns', function()
    local clock, log = coop.Clock(), {}
    local g = ticks(clock, 3)
    local turn = coop.Deferred()
    local first = spawn(function()
      log[#log + 1] = 'first ' .. ('%g'):format(g:next())
      turn:callback()
      return 'first'
    end)
    local last = spawn(function()
      await(turn)
      log[#log + 1] = 'last ' .. ('%g'):format(g:next())
      return 'last'
    end)
    clock:advance(1)
    assert.equal('first', value_of(first))
    pending(last)
    clock:advance(1)
    assert.equal('last', value_of(last))
    assert.same({ 'first 1', 'last 2' }, log)
  end)

  it('refuses the next of another body, and gives its value to the first', function()
    local clock = coop.Clock()
    local g = ticks(clock, 1)
    local first = spawn(function() return g:next() end)
    local last = spawn(function() return g:next() end)
    local err = error_of(last)
    assert.equal('string', type(err))
    assert.truthy(err:find('generator is', 1, true), err)
    clock:advance(1)
    assert.equal(1, value_of(first))
  end)

  it('is misuse when nothing that could wait asks', helper.run(function()
    local answer, log = coop.Deferred(), {}
    coop.call_later(0, function()
      local g = coop.generator(function()
        local _ <close> = closer(log, 'closed')
        await(coop.Deferred())
        yield 'never'
      end)()
      answer:callback { pcall(g.next, g) }
    end)
    local got = await(answer)
    assert.is_false(got[1])
    assert.equal('string', type(got[2]))
    assert.truthy(got[2]:find('await', 1, true), got[2])
    assert.same({ 'closed' }, log)
  end))

  it('is over when the body that asks is cancelled: the generator is closed first', function()
    local log = {}
    local c = spawn(function()
      local _ <close> = closer(log, 'body')
      local g <close> = coop.generator(function()
        local _ <close> = closer(log, 'generator')
        await(coop.Deferred(function() log[#log + 1] = 'canceller' end))
        log[#log + 1] = 'resumed'
      end)()
      g:next()
      log[#log + 1] = 'resumed'
    end)
    c:cancel()
    assert.same({ 'canceller', 'generator', 'body' }, log)
    assert.is_true(CancelledError:is(error_of(c)))
  end)

  it('raises CancelledError when an inline_callbacks body that asks is cancelled', function()
    local later, caught = coop.Deferred(), nil
    local result = inline(function()
      return coop.generator(function()
        local _
        _, caught = pcall(await, coop.Deferred())
        yield(await(later))
      end)():next()
    end)()
    result:cancel()
    assert.is_true(CancelledError:is(caught))
    pending(result)
    later:callback 'v'
    assert.equal('v', value_of(result))
  end)

  it('is held while the coroutine that asks is paused', function()
    local clock, log = coop.Clock(), {}
    local c = spawn(function()
      for v in ticks(clock, 2) do log[#log + 1] = v end
    end)
    clock:advance(1)
    c:pause()
    clock:advance(5)
    assert.same({ 1 }, log)
    c:unpause()
    assert.same({ 1, 6 }, log)
    assert.is_nil(value_of(c))
  end)

  it('suspends only that generator when a Cooperator asks', function()
    local clock, log = coop.Clock(), {}
    local cooperator = coop.Cooperator {
      scheduler = function(f) return clock:call_later(0.125, f) end,
      termination_predicate_factory = function()
        return function() return true end
      end,
    }
    local d = coop.Deferred()
    local function note(text)
      log[#log + 1] = text
      return text
    end
    local waiting = cooperator:cooperate(coop.generator(function()
      yield(note 'w1')
      note('w ' .. await(d))
      yield(note 'w2')
    end)())
    local going = cooperator:cooperate(coop.generator(function()
      for i = 1, 4 do yield(note('g' .. i)) end
    end)())
    local done = cap(waiting:when_done())
    clock:advance(2)
    assert.same({ 'w1', 'g1', 'g2', 'g3', 'g4' }, log)
    assert.equal(0, done.n)
    assert.equal(1, cap(going:when_done()).n)
    d:callback 'v'
    clock:advance(2)
    assert.same({ 'w1', 'g1', 'g2', 'g3', 'g4', 'w v', 'w2' }, log)
    assert.equal(1, done.n)
    assert.equal('Generator', coop.type(done[1]))
  end)

  it('raises the error of a Deferred also when a Cooperator asks', function()
    local clock = coop.Clock()
    local cooperator = coop.Cooperator {
      scheduler = function(f) return clock:call_later(0.125, f) end,
    }
    local d, caught = coop.Deferred(), nil
    local task = cooperator:cooperate(coop.generator(function()
      local _
      _, caught = pcall(await, d)
      await(coop.fail 'second')
    end)())
    local done = task:when_done()
    clock:advance(1)
    d:errback 'first'
    clock:advance(1)
    assert.equal('first', caught)
    assert.equal('second', error_of(done))
  end)

  it('in one that a body awaits through accumulate suspends only the values', function()
    local clock = coop.Clock()
    local cooperator = coop.Cooperator {
      scheduler = function(f) return clock:call_later(0.125, f) end,
    }
    local c = spawn(function() return await(coop.accumulate(ticks(clock, 3), cooperator)) end)
    clock:advance(2)
    pending(c)
    clock:advance(4)
    local list = value_of(c)
    assert.equal(3, #list)
    assert.is_true(list[1] < list[2] and list[2] < list[3])
  end)
end)
