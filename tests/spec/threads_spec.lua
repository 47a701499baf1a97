local coop = require 'coop'
local threads = require 'coop.threads'
local helper = require 'tests.spec.helper'
local child = require 'tests.spec.child'
local run, misuse, is_error = helper.run, helper.misuse, helper.is_error
local await, errors = coop.await, coop.errors

-- Functions for threads have no upvalues: what they need they get or require.

local function echo(...) return ... end

--- Until the file is there.
local function wait_for_file(path)
  while true do
    local file = io.open(path)
    if file then
      file:close()
      return path
    end
    os.execute 'sleep 0.005'
  end
end

local function touch(path) assert(io.open(path, 'w')):close() end

--- A name for a file that is not there.
local function no_file()
  local path = os.tmpname()
  os.remove(path)
  return path
end

local function turns(seconds) await(coop.sleep(seconds)) end

local function failure_of(d)
  local failure
  await(d:add_both(function(result) failure = result end))
  assert.equal('Failure', coop.type(failure))
  return failure
end

local function collect(stream)
  local list = {}
  while true do
    local value = await(stream:next())
    if value == nil then return list end
    list[#list + 1] = value
  end
end

describe('a job in a thread', function()

  it('fires with the first result of its function', run(function()
    assert.equal(5, await(threads.call(function(a, b) return a + b, 'more' end, 2, 3)))
    assert.is_nil(await(threads.call(function() end)))
    assert.equal('ababab', await(threads.call(string.rep, 'ab', 3)))
  end))

  it('has a state of its own, with all libraries and the paths of its maker', run(function()
    local seen = await(threads.call(function()
      left_over = 1 -- luacheck: ignore
      local libraries = {}
      for _, name in ipairs { 'string', 'table', 'math', 'io', 'os', 'debug', 'utf8' } do
        libraries[name] = type(_G[name]) == 'table'
      end
      return { libraries = libraries, path = package.path, cpath = package.cpath }
    end))
    for name, there in pairs(seen.libraries) do assert.is_true(there, name) end
    assert.equal(package.path, seen.path)
    assert.equal(package.cpath, seen.cpath)
    assert.is_nil(rawget(_G, 'left_over'))
  end))

  it('may use coop there', run(function()
    assert.equal(7, await(threads.call(function()
      local inner = require 'coop'
      return inner.run(function()
        inner.await(inner.sleep(0.001))
        return inner.await(inner.succeed(7))
      end)
    end)))
  end))

  it('leaves the loop free while it works', run(function()
    local path, ticks, loop = no_file(), 0, nil
    local d = threads.call(wait_for_file, path)
    loop = coop.LoopingCall(function()
      ticks = ticks + 1
      if ticks < 5 then return end
      assert.is_false(d.called)
      touch(path)
      loop:stop()
    end)
    loop:start(0.001)
    assert.equal(path, await(d))
    assert.equal(5, ticks)
    os.remove(path)
  end))

  it('is not in the way of names being resolved and files being read', run(function()
    local path, busy = no_file(), {}
    for i = 1, 4 do busy[i] = threads.call(wait_for_file, path) end
    local done = false
    local ok, luv = pcall(require, 'luv')
    if ok then
      luv.fs_stat('/', function() done = true end)
      while not done do turns(0.001) end
    end
    touch(path)
    await(coop.gather_results(busy))
    os.remove(path)
  end))

  describe('copies', function()
    it('every plain value exactly', run(function()
      local values = {
        0, -1, math.maxinteger, math.mininteger, 0.5, -0.0, 1e308, math.huge, -math.huge,
        '', 'text', 'a\0b\0', ('x'):rep(255), ('x'):rep(256), ('\xff\0'):rep(500000), true, false,
      }
      for i, value in ipairs(values) do
        local back = await(threads.call(echo, value))
        assert.equal(math.type(value), math.type(back))
        assert.is_true(rawequal(value, back), 'value ' .. i)
      end
      local nan = await(threads.call(echo, 0 / 0))
      assert.is_true(nan ~= nan)
      assert.equal('-0.0', tostring(await(threads.call(echo, -0.0))))
      assert.equal(3, await(threads.call(select, '#', nil, false, nil)))
    end))

    it('tables with cycles and shared parts', run(function()
      local shared = { 'shared' }
      local t = { 1, 2, nil, 4, x = shared, [shared] = true, [1.5] = { shared }, [-3] = 'y' }
      t.self, t[t] = t, 'me'
      local back = await(threads.call(function(v, again)
        assert(v.x == again and v.self == v and v[v] == 'me' and v[v.x])
        v.size = select('#', v, again)
        return v
      end, t, shared))
      assert.is_true(back ~= t and back.self == back and back[back] == 'me')
      assert.equal('shared', back.x[1])
      assert.is_true(back[back.x] and rawequal(back[1.5][1], back.x))
      assert.same({ 1, 2, nil, 4 }, { back[1], back[2], back[3], back[4] })
      assert.equal('y', back[-3])
      assert.equal(2, back.size)
    end))

    it('tables of any depth', run(function()
      local deep = {}
      for _ = 1, 100000 do deep = { deep } end
      local depth = await(threads.call(function(t)
        local n = 0
        while t[1] do t, n = t[1], n + 1 end
        return n
      end, deep))
      assert.equal(100000, depth)
    end))

    it('functions without upvalues, both ways', run(function()
      local back = await(threads.call(function(f, t)
        assert(t.f == f and f(2) == 4)
        return function(x) return tostring(x) .. '!' end
      end, function(x) return x * 2 end, { f = nil }):add_errback(function() return 'refused' end))
      assert.equal('refused', back) -- t.f is nil there: the assertion came back
      local double = function(x) return x * 2 end
      back = await(threads.call(function(f, t)
        assert(t.f == f and f(2) == 4)
        return function(x) return tostring(x) .. '!' end
      end, double, { f = double }))
      assert.equal('3!', back(3))
    end))

    it('nothing else: that is misuse at the call', run(function()
      local up = {}
      local cases = {
        { 'userdata', io.stdout }, { 'coroutine', coroutine.create(print) },
        { "upvalue 'up'", function() return up end }, { 'metatable', setmetatable({}, {}) },
        { 'metatable', coop.DeferredLock() }, { 'userdata', coop.Deferred() },
        { 'upvalues', string.gmatch('a', 'a') },
        { "userdata in field 'sock'", { 1, { sock = io.stdout } } },
        { 'as a key', { [io.stdout] = 1 } },
      }
      for _, case in ipairs(cases) do
        misuse(function() threads.call(echo, 1, case[2]) end, "bad argument #3 to 'call'",
          'can be copied', case[1])
      end
      misuse(function() threads.call(function() return up end) end, "bad argument #1 to 'call'",
        "upvalue 'up'")
      for _, what in ipairs { 1, 'print', {}, coop } do
        misuse(function() threads.call(what) end, "bad argument #1 to 'call'", 'function expected')
      end
      misuse(function() threads.call() end, "bad argument #1 to 'call'", 'function expected')
    end))

    it('nothing else: a result that cannot be copied is a failure', run(function()
      for _, f in ipairs {
        function() return io.stdout end,
        function() return { { print, io.stdin } } end,
        function() return coroutine.create(print) end,
        function()
          local up = 1
          return function() return up end
        end,
        function() return setmetatable({}, {}) end,
      } do
        local failure = failure_of(threads.call(f))
        assert.truthy(failure:check 'must be a value that can be copied')
      end
      assert.equal(1, await(threads.call(echo, 1)))
    end))
  end)

  it('brings an error back as a failure with the frames of its thread', run(function()
    local failure = failure_of(threads.call(function(n)
      local function innermost() error { code = n } end
      innermost()
      return 1
    end, 42))
    assert.same({ code = 42 }, failure.value)
    local text = failure:traceback()
    assert.truthy(text:find("threads_spec.lua:%d+: in .*'innermost'"), text)
    assert.truthy(text:find('in another thread', 1, true), text)
    assert.is_nil(text:find('[coop.', 1, true), text)

    failure = failure_of(threads.call(function() error 'plain' end))
    assert.truthy(failure.value:find 'threads_spec.lua:%d+: plain$')
    assert.is_nil(failure_of(threads.call(function() error() end)).value)
    failure = failure_of(threads.call(function()
      error(setmetatable({}, { __tostring = function() return 'its text' end }))
    end))
    assert.equal('its text', failure.value)
    failure = failure_of(threads.call(function() error(io.stdout) end))
    assert.truthy(failure.value:find '^file')
    failure = failure_of(threads.call(function()
      error(setmetatable({}, { __tostring = function() error 'no text' end }))
    end))
    assert.equal('the error value, a table, can neither be copied nor made into a text',
      failure.value)
  end))

  it('leaves its thread in order when it fails', run(function()
    for _ = 1, 3 do
      failure_of(threads.call(function()
        return ('x'):rep(1 << 50)
      end))
      failure_of(threads.call(function() local function f() return 1 + f() end f() end))
    end
    assert.equal(1, await(threads.call(echo, 1)))
  end))

  it('ends alone by os.exit, wherever that is called', run(function()
    for _, f in ipairs {
      function() os.exit(3) end,
      function() os.exit() end,
      function() while true do pcall(os.exit, 3) end end,
      function() coroutine.wrap(function() while true do pcall(os.exit) end end)() end,
      function()
        local co = coroutine.create(function() os.exit(1, true) end)
        while true do coroutine.resume(co) end
      end,
    } do
      assert.truthy(failure_of(threads.call(f)):check 'os.exit')
      assert.equal(1, await(threads.call(echo, 1)))
    end
  end))

  it('may require modules, and fails alone when there is none', run(function()
    local failure = failure_of(threads.call(function() return require 'no.such.module' end))
    assert.truthy(failure:check "module 'no.such.module' not found")
  end))

  it('never lets an error of a finaliser out', run(function()
    assert.equal(1, await(threads.call(function()
      for _ = 1, 100 do setmetatable({}, { __gc = function() error 'finaliser' end }) end
      collectgarbage()
      return 1
    end)))
  end))
end)

describe('a pool of threads', function()

  it('refuses what is no count', function()
    for _, n in ipairs { 0, -1, 1.5, 'x', {}, 1e9, math.huge } do
      misuse(function() threads.Pool(n) end, "bad argument #1 to 'Pool'")
    end
    misuse(function() threads.Pool() end, "bad argument #1 to 'Pool'")
    misuse(function() threads.Pool(1, 0) end, "bad argument #2 to 'Pool'")
    local pool <close> = threads.Pool(1)
    assert.equal('ThreadPool', coop.type(pool))
    misuse(function() pool.call({}, print) end, "calling 'call' on bad self", 'ThreadPool expected')
    misuse(function() pool:call(1) end, "bad argument #1 to 'call'", 'got number')
    misuse(function() pool:call(echo, 1, io.stdout) end, "bad argument #3 to 'call'")
  end)

  it('has at most so many threads, and does the rest in order', run(function()
    local pool <close> = threads.Pool(1)
    local log = {}
    local ds = {}
    for i = 1, 50 do
      ds[i] = pool:call(function(n)
        seen = (seen or 0) + 1 -- luacheck: ignore
        return { n, seen } -- luacheck: ignore
      end, i):add_callback(function(pair) log[#log + 1] = pair end)
    end
    await(coop.gather_results(ds))
    for i = 1, 50 do assert.same({ i, i }, log[i]) end -- one state, one after the other
  end))

  it('works in several threads at once', run(function()
    local pool <close> = threads.Pool(3)
    local gates, ds = {}, {}
    for i = 1, 3 do
      gates[i] = no_file()
      ds[i] = pool:call(wait_for_file, gates[i])
    end
    for i = 3, 1, -1 do -- the last first: so all three run
      touch(gates[i])
      assert.equal(gates[i], await(ds[i]))
      os.remove(gates[i])
    end
  end))

  it('takes a job back that has not started, when that is cancelled', run(function()
    local pool <close> = threads.Pool(1)
    local gate, trace = no_file(), no_file()
    local first = pool:call(wait_for_file, gate)
    local second = pool:call(function(path) assert(io.open(path, 'w')):close() end, trace)
    second:cancel()
    is_error(errors.CancelledError, (helper.error_of(second)))
    touch(gate)
    await(first)
    assert.equal(1, await(pool:call(echo, 1)))
    assert.is_nil(io.open(trace))
    os.remove(gate)
  end))

  it('drops the result of a job that is cancelled while it runs', run(function()
    local pool <close> = threads.Pool(1)
    local gate, started = no_file(), no_file()
    local d = pool:call(function(f, path, mine)
      assert(io.open(mine, 'w')):close()
      return f(path)
    end, wait_for_file, gate, started)
    wait_for_file(started)
    local outcomes = helper.cap(d)
    d:cancel()
    assert.equal(1, outcomes.n)
    is_error(errors.CancelledError, outcomes[1].value)
    local behind = pool:call(echo, 'behind')
    turns(0.02)
    assert.is_false(behind.called) -- it runs to its end
    touch(gate)
    assert.equal('behind', await(behind))
    assert.equal(1, outcomes.n)
    os.remove(gate)
    os.remove(started)
  end))

  it('has a queue with an end', run(function()
    local pool <close> = threads.Pool(1, 3)
    local gate, ds = no_file(), {}
    ds[1] = pool:call(wait_for_file, gate)
    local overflow
    for _ = 1, 5 do
      local ok, result = pcall(pool.call, pool, echo, 1)
      if ok then ds[#ds + 1] = result else overflow = result end
    end
    is_error(errors.QueueOverflow, overflow, 'call', '3 jobs')
    touch(gate)
    await(coop.gather_results(ds))
    os.remove(gate)
    assert.equal(1, await(pool:call(echo, 1)))
  end))

  it('settles each of 100,000 jobs that are queued and cancelled once', run(function()
    local pool <close> = threads.Pool(1)
    local gate, fired, cancelled = no_file(), 0, 0
    local first = pool:call(wait_for_file, gate)
    local ds = {}
    for i = 1, 100000 do
      ds[i] = pool:call(echo, i):add_both(function(result)
        fired = fired + 1
        if coop.type(result) == 'Failure' and result:check(errors.CancelledError) then
          cancelled = cancelled + 1
        end
      end)
    end
    for i = #ds, 1, -2 do ds[i]:cancel() end
    for i = 1, #ds, 2 do ds[i]:cancel() end
    assert.equal(100000, fired)
    assert.equal(100000, cancelled)
    touch(gate)
    await(first)
    os.remove(gate)
  end))

  describe('that is closed', function()
    it('fails what waits, and fires when what runs has ended', run(function()
      local pool = threads.Pool(1)
      local gate, started = no_file(), no_file()
      local runs = pool:call(function(f, path, mine)
        assert(io.open(mine, 'w')):close()
        return f(path)
      end, wait_for_file, gate, started)
      wait_for_file(started)
      local waits = { helper.cap(pool:call(echo, 1)), helper.cap(pool:call(echo, 2)) }
      local closed = pool:close()
      for _, outcome in ipairs(waits) do
        assert.equal(1, outcome.n)
        is_error(errors.CancelledError, outcome[1].value, 'closed')
      end
      assert.is_false(closed.called)
      assert.is_false(runs.called)
      misuse(function() pool:call(echo) end, 'call', 'closed')
      misuse(function() pool:map(echo, {}) end, 'map', 'closed')
      assert.equal(closed, pool:close())
      touch(gate)
      assert.equal(gate, await(runs))
      await(closed)
      await(pool:close())
      os.remove(gate)
      os.remove(started)
    end))

    it('fires at once when it was idle', run(function()
      local pool = threads.Pool(2)
      assert.is_true(pool:close().called)
      pool = threads.Pool(2)
      await(pool:call(echo))
      assert.is_true(pool:close().called)
      do
        local held <close> = pool -- twice is once
      end
    end))
  end)

  it('does what it has when nothing holds it any more', run(function()
    local ds = {}
    for i = 1, 20 do ds[i] = threads.Pool(1):call(echo, i) end
    collectgarbage()
    collectgarbage()
    local list = await(coop.gather_results(ds))
    for i = 1, 20 do assert.equal(i, list[i]) end
  end))

  describe('maps', function()
    it('keep the order and nil results', run(function()
      local pool <close> = threads.Pool(3)
      local list = await(pool:map(function(x)
        local n = 0
        for i = 1, (10 - x) * 10000 do n = n + i end -- the first take longest
        if x ~= 3 then return x * x end
      end, { 1, 2, 3, 4, 5, 6, 7, 8, 9 }))
      assert.same({ 1, 4, nil, 16, 25, 36, 49, 64, 81, n = 9 }, list)
      assert.same({ n = 0 }, await(pool:map(echo, {})))
    end))

    it('take iterators of every kind', run(function()
      local pool <close> = threads.Pool(2)
      local function numbers() for i = 1, 3 do coop.yield(i) end end
      local n = 0
      for _, iterator in ipairs {
        coop.generator(numbers)(), coroutine.create(function() numbers() end),
        function() n = n + 1; return n <= 3 and n or nil end, { 1, 2, 3 },
      } do
        assert.same({ 1, 2, 3, n = 3 }, await(pool:map(echo, iterator)))
      end
    end))

    it('take a bounded number of values ahead', run(function()
      local pool <close> = threads.Pool(2)
      local gate, taken = no_file(), 0
      local d = pool:map(wait_for_file, function()
        taken = taken + 1
        if taken <= 100 then return gate end
      end)
      turns(0.05)
      assert.is_true(taken <= 5, taken .. ' taken')
      touch(gate)
      assert.equal(100, await(d).n)
      os.remove(gate)
    end))

    it('fail with the first failure of the function or the iterator', run(function()
      local pool <close> = threads.Pool(2)
      local taken = 0
      local failure = failure_of(pool:map(function(x)
        if x == 5 then error('at five', 0) end
      end, function() taken = taken + 1; return taken end))
      assert.equal('at five', failure.value)
      assert.is_true(taken < 20)
      failure = failure_of(pool:map(echo, function() error('no values', 0) end))
      assert.equal('no values', failure.value)
      failure = failure_of(pool:map(echo, { 1, io.stdout }))
      assert.equal('map: a value of the iterator must be one that can be copied, got userdata',
        failure.value)
    end))

    it('are misuse without a function or an iterator', function()
      local pool <close> = threads.Pool(1)
      local up = 1
      misuse(function() pool:map(1, {}) end, "bad argument #1 to 'map'", 'function expected')
      misuse(function() pool:map(function() return up end, {}) end, 'map', "upvalue 'up'")
      misuse(function() pool:map(echo, 1) end, "bad argument #2 to 'map'")
      misuse(function() pool.map({}, echo, {}) end, "calling 'map' on bad self")
      pool:close()
      misuse(function() pool:map(echo, {}) end, 'threads_spec.lua:', 'map: the pool is closed')
    end)

    it('can be cancelled', run(function()
      local pool <close> = threads.Pool(2)
      local d = pool:map(echo, function() return 1 end) -- without end
      turns(0.01)
      d:cancel()
      is_error(errors.CancelledError, (helper.error_of(d)))
      assert.equal(1, await(pool:call(echo, 1)))
    end))
  end)
end)

describe('a stream out of a thread', function()

  it('gives what a body yields, then what the iterator gives that it returns', run(function()
    assert.same({ 3, false, 'x' }, collect(threads.stream(function(a)
      coroutine.yield(a)
      coroutine.yield(nil) -- a turn given up
      coroutine.yield(false)
      coroutine.yield 'x'
    end, 3)))
    assert.same({ 1, 2 }, collect(threads.stream(function() return ipairs { 'a', 'b' } end)))
    assert.same({ 'a', 'b' }, collect(threads.stream(function() return { 'a', 'b' } end)))
    assert.same({ 1, 2 }, collect(threads.stream(function()
      return coroutine.create(function() coroutine.yield(1); coroutine.yield(2) end)
    end)))
    assert.same({ 1, 2 }, collect(threads.stream(function()
      return coroutine.wrap(function() coroutine.yield(1); coroutine.yield(2) end)
    end)))
    assert.same({}, collect(threads.stream(function() end)))
  end))

  it('gives what Generators give, and what is called with its metatable hidden', run(function()
    assert.same({ 1, 2 }, collect(threads.stream(function()
      return require 'coop'.generator(function()
        coroutine.yield(1)
        coroutine.yield()
        coroutine.yield(2)
      end)()
    end)))
    assert.same({ 2, 1 }, collect(threads.stream(function()
      local n = 3
      return setmetatable({}, { __metatable = 'hidden', __call = function()
        n = n - 1
        if n > 0 then return n end
      end })
    end)))
  end))

  it('gives nil again and again at the end', run(function()
    local stream = threads.stream(function() coroutine.yield(1) end)
    assert.equal(1, await(stream:next()))
    for _ = 1, 3 do assert.is_nil(await(stream:next())) end
  end))

  it('keeps many values in order', run(function()
    local stream = threads.stream(function()
      for i = 1, 50000 do coroutine.yield { i, tostring(i) } end
    end)
    local n = 0
    while true do
      local batch = await(stream:batch())
      if not batch then break end
      assert.equal(#batch, batch.n)
      for i = 1, batch.n do
        n = n + 1
        if batch[i][1] ~= n or batch[i][2] ~= tostring(n) then error('at ' .. n) end
      end
    end
    assert.equal(50000, n)
  end))

  it('gives a value as soon as there is one', run(function()
    local gate = no_file()
    local stream = threads.stream(function(f, path)
      coroutine.yield(1)
      f(path)
      coroutine.yield(2)
    end, wait_for_file, gate)
    assert.equal(1, await(stream:next()))
    local second = stream:next()
    turns(0.01)
    assert.is_false(second.called)
    touch(gate)
    assert.equal(2, await(second))
    os.remove(gate)
  end))

  it('gives the values that came before a failure, and the failure once', run(function()
    local stream = threads.stream(function()
      local function deep() error('broke', 0) end
      for i = 1, 10 do coroutine.yield(i) end
      deep()
    end)
    for i = 1, 10 do assert.equal(i, await(stream:next())) end
    local failure = failure_of(stream:next())
    assert.equal('broke', failure.value)
    assert.truthy(failure:traceback():find("in .*'deep'"), failure:traceback())
    assert.is_nil(await(stream:next()))
  end))

  it('tells that there is no iterator', run(function()
    assert.equal('none', failure_of(threads.stream(function() error('none', 0) end):next()).value)
    local failure = failure_of(threads.stream(function() return 5 end):next())
    assert.truthy(failure:check 'must yield, or return an iterator; it returned a number')
  end))

  it('fails when a value cannot be copied, after those before it', run(function()
    local stream = threads.stream(function()
      coroutine.yield(1)
      coroutine.yield(io.stdout)
    end)
    assert.equal(1, await(stream:next()))
    assert.equal('what flows out of a thread must be a value that can be copied (got userdata)',
      failure_of(stream:next()).value)
  end))

  it('holds a producer without end back', run(function()
    local path = no_file()
    local stream = threads.stream(function(name)
      for i = 1, math.huge do
        if i % 1000 == 0 then
          local file <close> = assert(io.open(name, 'w'))
          file:write(i)
        end
        coroutine.yield(i)
      end
    end, path)
    assert.equal(1, await(stream:next()))
    turns(0.1)
    local file = assert(io.open(path))
    local ahead = file:read 'n'
    file:close()
    assert.is_true(ahead <= 4000, ahead .. ' ahead')
    for i = 2, 5000 do assert.equal(i, await(stream:next())) end
    stream:close()
    await(stream:when_done())
    os.remove(path)
  end))

  it('closes the producer, whose closing variables run', run(function()
    local path = no_file()
    local stream = threads.stream(function(name)
      local cleanup <close> = setmetatable({}, { __close = function()
        assert(io.open(name, 'w')):close()
      end })
      for i = 1, math.huge do coroutine.yield(i) end
    end, path)
    assert.equal(1, await(stream:next()))
    stream:close()
    stream:close()
    assert.is_nil(await(stream:next()))
    await(stream:when_done())
    assert(io.open(path)):close()
    os.remove(path)
  end))

  it('that is closed gives nil to who waits', run(function()
    local gate = no_file()
    local stream = threads.stream(function(f, path) f(path) end, wait_for_file, gate)
    local d = stream:next()
    stream:close()
    assert.is_true(d.called)
    assert.is_nil(helper.value_of(d))
    touch(gate)
    await(stream:when_done())
    os.remove(gate)
  end))

  it('loses no value when a wait is cancelled', run(function()
    local gate = no_file()
    local stream = threads.stream(function(f, path)
      f(path)
      coroutine.yield(1)
      coroutine.yield(2)
    end, wait_for_file, gate)
    local d = stream:next()
    misuse(function() stream:next() end, 'next', 'waited for already')
    d:cancel()
    is_error(errors.CancelledError, (helper.error_of(d)))
    touch(gate)
    assert.same({ 1, 2 }, collect(stream))
    os.remove(gate)
  end))

  it('is closed by a body that is collected with it', run(function()
    local said
    local function abandon()
      local co = coop.generator(function()
        local stream = threads.stream(function() coroutine.yield(1) end)
        local cleanup <close> = setmetatable({}, { __close = function()
          stream:close()
          said = select(2, pcall(stream.next, stream))
        end })
        local held <close> = stream
        coroutine.yield(await(stream:next()))
      end)()
      assert.equal(1, co())
    end
    abandon()
    for _ = 1, 200 do
      if said then break end
      collectgarbage()
      turns(0.005)
    end
    assert.truthy(said)
  end))

  it('ends when nothing holds it', run(function()
    local path = no_file()
    do
      local stream = threads.stream(function(name)
        local cleanup <close> = setmetatable({}, { __close = function()
          assert(io.open(name, 'w')):close()
        end })
        while true do coroutine.yield(1) end
      end, path)
      assert.equal(1, await(stream:next()))
    end
    for _ = 1, 200 do
      collectgarbage()
      local file = io.open(path)
      if file then
        file:close()
        os.remove(path)
        return
      end
      turns(0.01)
    end
    error 'the producer goes on'
  end))
end)

child.each(function(name, execute)
  describe('a process of ' .. name .. ' with threads', function()
    local head = "local coop, threads = require 'coop', require 'coop.threads'\n"

    -- What the script does, inside coop.run, and then outside.
    local function written(text, behind)
      local inside = 'coop.run(function()\n' .. text .. '\nend)\n'
      return execute(head .. inside .. (behind or ''))
    end

    -- For scripts: waits until a job has made the file.
    local wait_for_job = [[
      local function wait_for(path)
        local file = io.open(path)
        while not file do
          coop.await(coop.sleep(0.01))
          file = io.open(path)
        end
        file:close()
        os.remove(path)
      end
    ]]

    it('ends with an idle pool', function()
      local result = written [[
        pool = threads.Pool(2)
        print(coop.await(pool:call(string.rep, 'x', 3)))
        print(coop.await(threads.call(string.rep, 'y', 3)))
      ]]
      assert.same({ out = 'xxx\nyyy\n', err = '', status = 0 }, result)
    end)

    it('waits for the jobs that somebody waits for', function()
      local result = written [[
        coop.await(threads.call(os.execute, 'sleep 0.1'))
        print 'slept'
      ]]
      assert.same({ out = 'slept\n', err = '', status = 0 }, result)
    end)

    it('stops what still runs at the end', function()
      local result = written([[
        for _, f in ipairs {
          function() while true do end end,
          function() while true do pcall(error) end end,
          function() local co = coroutine.wrap(function() while true do end end) co() end,
          function()
            local function stubborn() while true do pcall(error) end end
            while true do pcall(coroutine.wrap(stubborn)) end
          end,
        } do
          threads.call(f)
          threads.stream(f):next()
        end
        threads.stream(function() while true do coroutine.yield(1) end end)
        coop.await(coop.sleep(0.05))
      ]], 'os.exit(3, true)')
      assert.same({ out = '', err = '', status = 3 }, result) -- none is left behind
    end)

    it('leaves one behind that is stuck outside Lua, and says so', function()
      local fifo, started = no_file(), no_file()
      assert(os.execute('mkfifo ' .. fifo))
      local result = written((wait_for_job .. [[
        threads.call(function(fifo, started)
          io.open(started, 'w'):close()
          io.open(fifo) -- nobody writes to it
        end, '%s', '%s')
        wait_for '%s'
        coop.await(coop.sleep(0.2))
      ]]):format(fifo, started, started), 'os.exit(0, true)')
      os.remove(fifo)
      assert.equal(0, result.status)
      assert.truthy(result.err:find('left behind: 1 thread', 1, true), result.err)
    end)

    it('gives every waiter an outcome when it ends', function()
      local started = no_file()
      local result = written((wait_for_job .. [[
        local pool = threads.Pool(1)
        local function tell(outcome) print(coop.type(outcome), tostring(outcome.value)) end
        pool:call(function(started)
          io.open(started, 'w'):close()
          while true do end
        end, '%s'):add_both(tell)
        pool:call(print):add_both(tell)
        wait_for '%s'
      ]]):format(started, started), 'os.exit(0, true)')
      assert.equal(0, result.status)
      local list = {}
      for line in result.out:gmatch '[^\n]+' do list[#list + 1] = line end
      table.sort(list)
      assert.equal(2, #list, result.out)
      assert.truthy(list[1]:find('CancelledError: coop was closed', 1, true), list[1])
      assert.truthy(list[2]:find('CancelledError: the thread was stopped', 1, true), list[2])
    end)
  end)
end)
