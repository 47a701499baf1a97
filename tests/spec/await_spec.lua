-- Where coop.await works, where it is misuse, and what coop makes of the script's own coroutines.

local coop = require 'coop'
local helper = require 'tests.spec.helper'

local pending, value_of, error_of = helper.pending, helper.value_of, helper.error_of
local inline, spawn, await = coop.inline_callbacks, coop.spawn, coop.await
local CancelledError = coop.errors.CancelledError

-- Runs `f(d)` as a coroutine that has to wait for `d`, fires d with `value`, gives f's result.
local function through(f, value)
  local d = coop.Deferred()
  local c = spawn(f, d)
  pending(c)
  d:callback(value)
  return value_of(c)
end

-- The same for a `d` that fails.
local function failing(f, value)
  local d = coop.Deferred()
  local c = spawn(f, d)
  pending(c)
  d:errback(value)
  return value_of(c)
end

-- Asserts that `f(d)`, run as a coroutine, raises misuse where it awaits `d`, that the error has
-- `text`, and that the body can still wait.
local function refused(text, f)
  local d, gate = coop.Deferred(), coop.Deferred()
  local caught
  local c = spawn(function()
    caught = table.pack(pcall(f, d))
    return await(gate)
  end)
  assert.is_false(caught[1])
  assert.equal('string', type(caught[2]))
  assert.truthy(caught[2]:find('await', 1, true), caught[2])
  assert.truthy(caught[2]:find(text, 1, true), caught[2])
  pending(c)
  gate:callback 'still waiting'
  assert.equal('still waiting', value_of(c))
  pending(d)
end

-- An object whose metamethod `event` waits for `d` and gives what `f` makes of the value.
local function object(event, d, f)
  return setmetatable({}, {
    [event] = function()
      local value = await(d)
      if f then return f(value) end
      return value
    end,
  })
end

local function on_close(f)
  return setmetatable({}, { __close = f })
end

describe('await works', function()
  it('in a call of any depth', function()
    local function deep(d, n)
      if n == 0 then return await(d) end
      return (deep(d, n - 1))
    end
    assert.equal('v', through(function(d) return deep(d, 1000) end, 'v'))
  end)

  it('inside pcall, with a value', function()
    assert.same({ true, 'v' }, through(function(d) return { pcall(await, d) } end, 'v'))
    assert.same({ true, 'v', 2 }, through(function(d)
      return { pcall(function() return await(d), 2 end) }
    end, 'v'))
  end)

  it('inside pcall, with an error', function()
    local err = {}
    local got = failing(function(d) return { pcall(await, d) } end, err)
    assert.is_false(got[1])
    assert.equal(err, got[2])
  end)

  it('inside 100 nested pcalls', function()
    local function nested(d, n)
      if n == 0 then return await(d) end
      return select(2, pcall(nested, d, n - 1))
    end
    assert.equal('v', through(function(d) return nested(d, 100) end, 'v'))
  end)

  it('inside xpcall, whose handler gets the error where the wait is', function()
    assert.same({ true, 'v' }, through(function(d)
      return { xpcall(await, debug.traceback, d) }
    end, 'v'))
    local line
    local got = failing(function(d)
      return { xpcall(function()
        line = debug.getinfo(1, 'l').currentline + 1
        local value = await(d)
        return value
      end, function(err) return { err, debug.traceback() } end) }
    end, 'E')
    assert.is_false(got[1])
    assert.equal('E', got[2][1])
    assert.truthy(got[2][2]:find('await_spec.lua:' .. line .. ':', 1, true), got[2][2])
  end)

  it('inside luassert and other code that protects its calls', function()
    assert.equal('E', failing(function(d)
      assert.has_error(function() await(d) end, 'E')
      return 'E'
    end, 'E'))
  end)

  local metamethods = {
    __index = function(o) return o.key end,
    __newindex = function(o)
      o.key = 1
      return 'v'
    end,
    __call = function(o) return o() end,
    __add = function(o) return o + 1 end,
    __sub = function(o) return 1 - o end,
    __unm = function(o) return -o end,
    __bor = function(o) return o | 1 end,
    __concat = function(o) return ('a' .. 'b' .. o):sub(2) end,
    __len = function(o) return #o end,
    __pairs = function(o) return (pairs(o)) end,
  }
  for event, use in pairs(metamethods) do
    it('inside ' .. event, function()
      assert.equal('v', through(function(d) return use(object(event, d)) end, 'v'))
      local got = failing(function(d) return { pcall(use, object(event, d)) } end, 'E')
      assert.same({ false, 'E' }, got)
    end)
  end

  for event, use in pairs {
    __eq = function(a, b) return a == b end,
    __lt = function(a, b) return a < b end,
    __le = function(a, b) return a <= b end,
  } do
    it('inside ' .. event, function()
      for _, value in ipairs { true, false } do
        assert.equal(value, through(function(d)
          return use(object(event, d), object(event, d))
        end, value))
      end
    end)
  end

  it('inside __close, at the end of a block, at a break and at a return', function()
    local function block(d, log)
      do
        local _ <close> = on_close(function() log[1] = await(d) end)
      end
      return log
    end
    local function broken(d, log)
      for _ = 1, 2 do
        local _ <close> = on_close(function() log[1] = await(d) end)
        if d then break end
      end
      return log
    end
    local function returning(d, log)
      local _ <close> = on_close(function() log[1] = await(d) end)
      return log
    end
    for _, f in ipairs { block, broken, returning } do
      assert.same({ 'v' }, through(function(d) return f(d, {}) end, 'v'))
    end
  end)

  it('inside __close, after an error that pcall catches', function()
    assert.same({ false, 'E', 'E', 'v' }, through(function(d)
      local seen, value
      local ok, err = pcall(function()
        local _ <close> = on_close(function(_, e)
          seen = e
          value = await(d)
        end)
        error('E', 0)
      end)
      return { ok, err, seen, value }
    end, 'v'))
  end)

  it('inside __close, after an error that ends the body', function()
    local d, value = coop.Deferred(), nil
    local c = spawn(function()
      local _ <close> = on_close(function() value = await(d) end)
      error('E', 0)
    end)
    pending(c)
    d:callback 'v'
    assert.equal('v', value)
    assert.equal('E', error_of(c))
  end)

  it('inside __close, when an inline_callbacks body is cancelled', function()
    local d, value = coop.Deferred(), nil
    local result = inline(function()
      local _ <close> = on_close(function() value = await(d) end)
      await(coop.Deferred())
    end)()
    result:cancel()
    pending(result)
    d:callback 'v'
    assert.equal('v', value)
    assert.is_true(CancelledError:is(error_of(result)))
  end)

  it('inside the iterator and the closing value of a generic for', function()
    local d1, d2, d3 = coop.Deferred(), coop.Deferred(), coop.Deferred()
    local log = {}
    local c = spawn(function()
      local left = { d1, d2 }
      local function step() return left[1] and await(table.remove(left, 1)) end
      for v in step, nil, nil, on_close(function() log[#log + 1] = await(d3) end) do
        log[#log + 1] = v
      end
      return 'end'
    end)
    d1:callback 'a'
    assert.same({ 'a' }, log)
    d2:callback 'b'
    assert.same({ 'a', 'b' }, log)
    pending(c)
    d3:callback 'closed'
    assert.same({ 'a', 'b', 'closed' }, log)
    assert.equal('end', value_of(c))
  end)

  it('inside a chunk that dofile runs', function()
    local name = os.tmpname()
    local file <close> = assert(io.open(name, 'w'))
    file:write 'return require "coop".await(WAITED)'
    file:close()
    local value = through(function(d)
      _G.WAITED = d
      return dofile(name)
    end, 'v')
    _G.WAITED = nil
    os.remove(name)
    assert.equal('v', value)
  end)

  it('also when d is a coroutine or an inline function that is under way', function()
    local gate = coop.Deferred()
    local c = spawn(function()
      local one = spawn(function() return await(gate) .. 1 end)
      local two = inline(function() return await(gate) .. 2 end)()
      return await(one) .. await(two)
    end)
    gate:callback 'v'
    assert.equal('v1v2', value_of(c))
  end)
end)

describe('await is misuse, with an error that says so,', function()
  it('in a comparator of table.sort', function()
    refused('sort', function(d)
      table.sort({ 2, 1 }, function() return await(d) end)
    end)
  end)

  it('in a comparator of a table.sort that pcall calls', function()
    refused('sort', function(d)
      local _, err = pcall(table.sort, { 2, 1 }, function() return await(d) end)
      error(err, 0)
    end)
  end)

  it('in a replacement function of string.gsub', function()
    refused('gsub', function(d) string.gsub('abc', '.', function() return await(d) end) end)
  end)

  it('in a __tostring that tostring calls', function()
    refused('tostring', function(d) return tostring(object('__tostring', d)) end)
  end)

  it('in an __index that table.concat meets', function()
    refused('concat', function(d) return table.concat(object('__index', d), ',', 1, 1) end)
  end)

  it('in the reader of load', function()
    refused('load', function(d)
      local _, err = load(function() return await(d) end)
      error(err, 0)
    end)
  end)

  it('in a coroutine of the script below a comparator', function()
    refused('sort', function(d)
      table.sort({ 2, 1 }, coroutine.wrap(function() return await(d) end))
    end)
  end)

  it('in a comparator in a coroutine of the script', function()
    refused('sort', function(d)
      coroutine.wrap(function() table.sort({ 2, 1 }, function() return await(d) end) end)()
    end)
  end)

  it('in a __close that coroutine.close calls', function()
    local d, co = coop.Deferred(), nil
    local c = spawn(function()
      co = coroutine.create(function()
        local _ <close> = on_close(function() await(d) end)
        coroutine.yield()
      end)
      coroutine.resume(co)
      return { coroutine.close(co) }
    end)
    local got = value_of(c)
    assert.is_false(got[1])
    assert.truthy(got[2]:find('await', 1, true), got[2])
    assert.equal('dead', coroutine.status(co))
    pending(d)
  end)

  it('in a handler of a Deferred', function()
    local d, source = coop.Deferred(), coop.Deferred()
    source:add_callback(function() return await(d) end)
    source:callback()
    local err = error_of(source)
    assert.equal('string', type(err))
    assert.truthy(err:find('await', 1, true), err)
    pending(d)
  end)

  it('in a handler of a Deferred that a body fires', function()
    local d, source = coop.Deferred(), coop.Deferred()
    source:add_callback(function() return await(d) end)
    local c = spawn(function()
      source:callback()
      return 'went on'
    end)
    assert.equal('went on', value_of(c))
    local err = error_of(source)
    assert.equal('string', type(err))
    assert.truthy(err:find('await', 1, true), err)
    pending(d)
  end)

  it('in a canceller', function()
    local d, caught = coop.Deferred(), nil
    local source = coop.Deferred(function() caught = table.pack(pcall(await, d)) end)
    local c = spawn(function() source:cancel() end)
    assert.is_nil(value_of(c))
    assert.is_false(caught[1])
    assert.truthy(caught[2]:find('await', 1, true), caught[2])
    assert.is_true(CancelledError:is(error_of(source)))
    pending(d)
  end)

  it('in a delayed call', helper.run(function()
    local answer, d = coop.Deferred(), coop.Deferred()
    coop.call_later(0, function() answer:callback { pcall(await, d) } end)
    local got = await(answer)
    assert.is_false(got[1])
    assert.truthy(got[2]:find('await', 1, true), got[2])
    assert.truthy(got[2]:find('coroutine', 1, true), got[2])
    pending(d)
  end))

  it('in a coroutine of the script that no coop coroutine runs', helper.run(function()
    local answer, d = coop.Deferred(), coop.Deferred()
    coop.call_later(0, function()
      local co = coroutine.create(function() await(d) end)
      local got = { coroutine.resume(co) }
      got[3] = coroutine.status(co)
      answer:callback(got)
    end)
    local got = await(answer)
    assert.is_false(got[1])
    assert.truthy(got[2]:find('await', 1, true), got[2])
    assert.equal('dead', got[3])
    pending(d)
  end))

  it('in a finaliser', function()
    local d, caught = coop.Deferred(), nil
    local c = spawn(function()
      setmetatable({}, { __gc = function() caught = table.pack(pcall(await, d)) end })
      collectgarbage()
      collectgarbage()
      return 'went on'
    end)
    assert.equal('went on', value_of(c))
    assert.is_false(caught[1])
    assert.truthy(caught[2]:find('await', 1, true), caught[2])
    pending(d)
  end)

  it('in the main chunk of lua5.4', function()
    if coop.reactor.running then return end -- here the main chunk is a coroutine
    for _, d in ipairs { coop.Deferred(), coop.succeed 'fired' } do
      local err = helper.misuse(function() await(d) end, 'await')
      assert.truthy(err:find('coroutine', 1, true), err)
    end
    local err = helper.misuse(coroutine.wrap(function() await(coop.Deferred()) end), 'await')
    assert.truthy(err:find('coroutine', 1, true), err)
  end)
end)

describe('where a body cannot wait', function()
  it('it can still begin another body, which waits', function()
    local gate, inner = coop.Deferred(), nil
    local c = spawn(function()
      table.sort({ 2, 1 }, function(a, b)
        inner = inner or spawn(function() return await(gate) .. '!' end)
        return a < b
      end)
      return await(inner)
    end)
    pending(c)
    gate:callback 'v'
    assert.equal('v!', value_of(c))
  end)

  it('it can begin another body in a handler, also of a Deferred that a body fires', function()
    local gate, source = coop.Deferred(), coop.Deferred()
    source:add_callback(function(value)
      return spawn(function() return value .. await(gate) end)
    end)
    local c = spawn(function()
      source:callback 'a'
      return await(source)
    end)
    pending(c)
    gate:callback 'b'
    assert.equal('ab', value_of(c))
  end)

  it('beginning one inside the other too deep is an error in the last one only', function()
    local deepest, errors = 0, 0
    local function nested(n)
      deepest = math.max(deepest, n)
      if n == 1000 then return n end
      local d
      local ok = pcall(table.sort, { 2, 1 }, function(a, b)
        d = d or spawn(nested, n + 1)
        return a < b
      end)
      if not ok or d == nil then
        errors = errors + 1
        return n
      end
      local went, result = pcall(await, d)
      if not went then errors = errors + 1 end
      return went and result or n
    end
    local c = spawn(nested, 1)
    assert.equal(deepest, value_of(c))
    assert.is_true(deepest > 20)
    if deepest < 1000 then assert.equal(1, errors) end
  end)
end)

describe('a coroutine of the script', function()
  it('made by coroutine.wrap lets a wait pass through to the scheduler', function()
    assert.equal('v', through(function(d)
      return coroutine.wrap(function() return await(d) end)()
    end, 'v'))
  end)

  it('made by coroutine.create lets a wait pass through to the scheduler', function()
    local co
    assert.same({ true, 'v', 2 }, through(function(d)
      co = coroutine.create(function() return await(d), 2 end)
      return { coroutine.resume(co) }
    end, 'v'))
    assert.equal('dead', coroutine.status(co))
  end)

  it('lets waits pass through 100 of its kind', function()
    local function nested(d, n)
      if n == 0 then return await(d) end
      if n % 2 == 0 then return coroutine.wrap(nested)(d, n - 1) end
      local ok, value = coroutine.resume(coroutine.create(nested), d, n - 1)
      if not ok then error(value, 0) end
      return value
    end
    assert.equal('v', through(function(d) return nested(d, 100) end, 'v'))
    local err = {}
    local got = failing(function(d) return { pcall(nested, d, 99) } end, err)
    assert.is_false(got[1])
    assert.equal(err, got[2])
  end)

  it('gives what it yields itself to who resumed it', function()
    local d1, d2 = coop.Deferred(), coop.Deferred()
    local log = {}
    local c = spawn(function()
      local co = coroutine.create(function(a, b)
        log[#log + 1] = a .. b
        local x = coroutine.yield('first', await(d1))
        log[#log + 1] = x
        local y, z = coroutine.yield(await(d2), 'second')
        log[#log + 1] = y .. z
        return 'end', nil
      end)
      local results = {}
      results[1] = table.pack(coroutine.resume(co, 'a', 'b'))
      results[2] = table.pack(coroutine.resume(co, 'x'))
      results[3] = table.pack(coroutine.resume(co, 'y', 'z'))
      results[4] = table.pack(coroutine.resume(co))
      return results
    end)
    d1:callback 'one'
    d2:callback 'two'
    assert.same({ 'ab', 'x', 'yz' }, log)
    local results = value_of(c)
    assert.same({ true, 'first', 'one', n = 3 }, results[1])
    assert.same({ true, 'two', 'second', n = 3 }, results[2])
    assert.same({ true, 'end', nil, n = 3 }, results[3])
    assert.same({ false, 'cannot resume dead coroutine', n = 2 }, results[4])
  end)

  it('gives a Deferred that it yields to who resumed it', function()
    local d = coop.Deferred()
    local c = spawn(function() return { coroutine.wrap(function() coroutine.yield(d) end)() } end)
    assert.same({ d }, value_of(c))
  end)

  it('gives a Failure that it yields to who resumed it', function()
    local failure = coop.Failure 'E'
    local c = spawn(function()
      return { coroutine.wrap(function() coroutine.yield(failure) end)() }
    end)
    assert.equal(failure, value_of(c)[1])
  end)

  it('hands an awaited error to who resumed it, unless it catches it', function()
    local err = {}
    local got = failing(function(d)
      local ok, caught = coroutine.resume(coroutine.create(function() await(d) end))
      return { ok, caught, pcall(coroutine.wrap(function() await(d) end)) }
    end, err)
    assert.equal(false, got[1])
    assert.equal(err, got[2])
    assert.equal(false, got[3])
    assert.equal(err, got[4])
    assert.equal('caught', failing(function(d)
      return coroutine.wrap(function() return pcall(await, d) and 'not' or 'caught' end)()
    end, err))
  end)

  it('waits for the body that resumes it, also when that is another one than before', function()
    local d1, d2, log = coop.Deferred(), coop.Deferred(), {}
    local step = coroutine.wrap(function()
      coroutine.yield(await(d1))
      return await(d2)
    end)
    local first = spawn(function()
      log[#log + 1] = step()
      return 'first'
    end)
    d1:callback 'one'
    assert.equal('first', value_of(first))
    local last = spawn(function()
      log[#log + 1] = step()
      return 'last'
    end)
    pending(last)
    d2:callback 'two'
    assert.equal('last', value_of(last))
    assert.same({ 'one', 'two' }, log)
  end)

  it('cannot be resumed by another body while it waits', function()
    local d = coop.Deferred()
    local co = coroutine.create(function() return await(d) end)
    local first = spawn(function() return select(2, coroutine.resume(co)) end)
    local last = spawn(function() return { coroutine.resume(co, 'stolen') } end)
    local got = value_of(last)
    assert.is_false(got[1])
    assert.equal('string', type(got[2]))
    pending(first)
    d:callback 'v'
    assert.equal('v', value_of(first))
    assert.equal('dead', coroutine.status(co))
  end)

  it('is where it was when the wait is over', function()
    local d, statuses, threads = coop.Deferred(), {}, {}
    local body
    local c = spawn(function()
      body = coroutine.running()
      local co
      co = coroutine.create(function()
        threads[1] = coroutine.running()
        statuses[1] = coroutine.status(co)
        statuses[2] = coroutine.status(body)
        await(d)
        threads[2] = coroutine.running()
        statuses[3] = coroutine.status(co)
        statuses[4] = coroutine.status(body)
        statuses[5] = tostring(coroutine.isyieldable())
        coroutine.yield()
      end)
      assert.equal('suspended', coroutine.status(co))
      coroutine.resume(co)
      statuses[6] = coroutine.status(co)
      statuses[7] = coroutine.status(body)
      assert.equal(co, threads[1])
      assert.equal(co, threads[2])
      coroutine.resume(co)
      statuses[8] = coroutine.status(co)
      return coroutine.running() == body
    end)
    d:callback()
    assert.is_true(value_of(c))
    assert.same({
      'running', 'normal', 'running', 'normal', 'true', 'suspended', 'running', 'dead',
    }, statuses)
  end)

  it('can be closed when it has yielded after a wait', function()
    local log = {}
    assert.equal('v', through(function(d)
      local co = coroutine.create(function()
        local _ <close> = on_close(function() log[#log + 1] = 'closed' end)
        coroutine.yield(await(d))
        log[#log + 1] = 'resumed'
      end)
      local _, value = coroutine.resume(co)
      assert.is_true(coroutine.close(co))
      assert.equal('dead', coroutine.status(co))
      return value
    end, 'v'))
    assert.same({ 'closed' }, log)
  end)

  it('closes its variables when it fails after a wait in coroutine.wrap', function()
    local log = {}
    assert.is_false(failing(function(d)
      return (pcall(coroutine.wrap(function()
        local _ <close> = on_close(function() log[#log + 1] = 'closed' end)
        await(d)
      end)))
    end, 'E'))
    assert.same({ 'closed' }, log)
  end)

  it('is closed with the body when that is cancelled, the innermost first', function()
    local log = {}
    local function closing(name, f)
      return function()
        local _ <close> = on_close(function() log[#log + 1] = name end)
        f()
        log[#log + 1] = 'resumed'
      end
    end
    local c = spawn(closing('body', function()
      coroutine.wrap(closing('outer', function()
        coroutine.wrap(closing('inner', function()
          await(coop.Deferred(function() log[#log + 1] = 'canceller' end))
        end))()
      end))()
    end))
    c:cancel()
    assert.same({ 'canceller', 'inner', 'outer', 'body' }, log)
    assert.is_true(CancelledError:is(error_of(c)))
  end)

  it('gets CancelledError at its wait when an inline_callbacks body is cancelled', function()
    local caught
    local result = inline(function()
      return coroutine.wrap(function()
        local ok
        ok, caught = pcall(await, coop.Deferred())
        return ok
      end)()
    end)()
    result:cancel()
    assert.is_true(CancelledError:is(caught))
    assert.is_false(value_of(result))
  end)

  it('may be of a number where Lua\'s own limit ends that body, and nothing else', function()
    local gate, caught = coop.Deferred(), nil
    local function nested(n)
      if n == 0 then return await(gate) end
      return coroutine.wrap(nested)(n - 1)
    end
    local other = spawn(function() return await(gate) end)
    local c = spawn(function()
      local ok
      ok, caught = pcall(nested, 300)
      return ok and caught or await(gate)
    end)
    pending(c)
    local limited = caught ~= nil
    if limited then assert.truthy(tostring(caught):find 'overflow', tostring(caught)) end
    local uncaught = spawn(nested, 300)
    local deep = spawn(nested, 50)
    gate:callback 'v'
    assert.equal('v', value_of(other))
    assert.equal('v', value_of(c))
    assert.equal('v', value_of(deep))
    if limited then
      assert.truthy(tostring((error_of(uncaught))):find 'overflow')
    else
      assert.equal('v', value_of(uncaught))
    end
  end)

  it('is what it is in Lua outside any coop coroutine', helper.run(function()
    local answer = coop.Deferred()
    coop.call_later(0, function()
      local co = coroutine.create(function(a)
        local b = coroutine.yield(a + 1)
        error { b }
      end)
      local got = { select(2, coroutine.resume(co, 1)), coroutine.status(co) }
      local ok, err = coroutine.resume(co, 'b')
      got[3], got[4], got[5] = ok, err[1], coroutine.status(co)
      got[6] = select('#', coroutine.wrap(function(...) coroutine.yield(...) end)(nil, nil))
      answer:callback(got)
    end)
    assert.same({ 2, 'suspended', false, 'b', 'dead', 2 }, await(answer))
  end))
end)

describe('the thread of a coop coroutine', function()
  it('is the same before and after a wait, and may yield', function()
    local threads = {}
    assert.equal('v', through(function(d)
      threads[1] = table.pack(coroutine.running())
      local value = await(d)
      threads[2] = table.pack(coroutine.running())
      assert.is_true(coroutine.isyieldable())
      return value
    end, 'v'))
    assert.same(threads[1], threads[2])
    assert.is_false(threads[1][2])
    assert.equal('dead', coroutine.status(threads[1][1]))
  end)

  it('is not to be resumed by the script while it waits', helper.run(function()
    local d, thread, got = coop.Deferred(), nil, {}
    local c = spawn(function()
      thread = coroutine.running()
      got[#got + 1] = await(d)
      return 'once'
    end)
    local refusals = { table.pack(coroutine.resume(thread, 'stolen')) }
    refusals[2] = value_of(spawn(function() return table.pack(coroutine.resume(thread)) end))
    local answer = coop.Deferred()
    coop.call_later(0, function() answer:callback(table.pack(coroutine.resume(thread, 1))) end)
    refusals[3] = await(answer)
    for _, refusal in ipairs(refusals) do
      assert.is_false(refusal[1])
      assert.equal('string', type(refusal[2]))
    end
    assert.same({}, got)
    d:callback 'v'
    assert.same({ 'v' }, got)
    assert.equal('once', value_of(c))
    assert.equal('dead', coroutine.status(thread))
    assert.is_false((coroutine.resume(thread)))
  end))

  it('closed by the script while it waits has one outcome all the same', function()
    local d, thread, log = coop.Deferred(), nil, {}
    local c = spawn(function()
      thread = coroutine.running()
      local _ <close> = on_close(function() log[#log + 1] = 'closed' end)
      local value = await(d)
      log[#log + 1] = 'resumed'
      return value
    end)
    local closed = select(2, pcall(coroutine.close, thread)) == true
    assert.is_false(not closed and c.called)
    d:callback 'v'
    local outcomes = helper.cap(c)
    assert.equal(1, outcomes.n)
    if closed then
      assert.same({ 'closed' }, log)
      assert.equal('Failure', coop.type(outcomes[1]))
    else
      assert.same({ 'resumed', 'closed' }, log)
      assert.equal('v', outcomes[1])
    end
  end)

  it('can be looked at with debug while it waits and when it has ended', function()
    local d, thread, line = coop.Deferred(), nil, nil
    local c = spawn(function()
      thread = coroutine.running()
      line = debug.getinfo(1, 'l').currentline + 1
      local value = await(d)
      return value
    end)
    local text = debug.traceback(thread)
    assert.truthy(text:find('await_spec.lua:' .. line .. ':', 1, true), text)
    d:callback 'v'
    assert.equal('v', value_of(c))
    assert.equal('string', type(debug.traceback(thread)))
  end)

  it('keeps a hook that the script sets', function()
    local lines = 0
    assert.equal('v', through(function(d)
      debug.sethook(function() lines = lines + 1 end, 'l')
      local value = await(d)
      lines = 0
      value = value or 'no value'
      debug.sethook()
      return value
    end, 'v'))
    assert.is_true(lines > 0)
  end)
end)

describe('a body that would wait for itself', function()
  local function says_so(err)
    assert.truthy(tostring(err):find 'itself', tostring(err))
  end

  it('fails with an error that says so', function()
    local gate, c = coop.Deferred(), nil
    c = spawn(function()
      await(gate)
      await(c)
    end)
    gate:callback()
    says_so((error_of(c)))
  end)

  it('through another one fails, and the other one with it', function()
    local gate = coop.Deferred()
    local one, two
    one = spawn(function()
      await(gate)
      return await(two)
    end)
    two = inline(function() return await(one) end)()
    gate:callback()
    says_so((error_of(one)))
    says_so((error_of(two)))
  end)

  it('through a ring of 1,000 fails, and all of the ring with it', function()
    local gate, ring = coop.Deferred(), {}
    for i = 1, 1000 do
      ring[i] = spawn(function()
        if i == 1 then await(gate) end
        return await(ring[i == 1 and 1000 or i - 1])
      end)
    end
    gate:callback()
    for i = 1, 1000 do says_so((error_of(ring[i]))) end
  end)

  it('through a Deferred that waits for it fails', function()
    local gate, outer = coop.Deferred(), coop.succeed()
    local c = spawn(function()
      await(gate)
      return await(outer)
    end)
    outer:add_callback(function() return c end)
    gate:callback()
    says_so((error_of(c)))
    says_so((error_of(outer)))
  end)

  it('and catches the error goes on', function()
    local gate, c = coop.Deferred(), nil
    c = spawn(function()
      await(gate)
      local ok, err = pcall(await, c)
      says_so(err)
      return ok
    end)
    gate:callback()
    assert.is_false(value_of(c))
  end)
end)
