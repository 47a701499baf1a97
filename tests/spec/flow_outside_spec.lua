-- Flows whose ends are outside: connections, threads, databases, clients of the web.

local coop = require 'coop'
local db = require 'coop.db'
local flow = require 'coop.flow'
local http = require 'coop.http'
local net = require 'coop.net'
local threads = require 'coop.threads'
local helper = require 'tests.spec.helper'
local postgres = require 'tests.spec.postgres'

local misuse, is_error = helper.misuse, helper.is_error
local spawn, await, yield = coop.spawn, coop.await, coroutine.yield
local errors = coop.errors

--- Wraps a test that waits; one that waits for ever fails.
local function run(f)
  return helper.run(function() await(coop.inline_callbacks(f)():add_timeout(30)) end)
end

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

local function failure_of(d)
  local failure
  await(d:add_both(function(result) failure = result end))
  assert.equal('Failure', coop.type(failure))
  return failure
end

-- Waits until `f()` is true.
local function eventually(f)
  for _ = 1, 500 do
    if f() then return end
    await(coop.sleep(0.01))
  end
  error('it never came', 2)
end

-- A to-be-closed value that counts in `log.closed`.
local function closing(log)
  log.closed = log.closed or 0
  return setmetatable({}, { __close = function() log.closed = log.closed + 1 end })
end

--- A name for a file that is not there.
local function no_file()
  local path = os.tmpname()
  os.remove(path)
  return path
end

local function exists(path)
  local file = io.open(path)
  if file then file:close() end
  return file ~= nil
end

describe('make_protocol', function()
  local servers

  before_each(function() servers = {} end)
  after_each(function()
    for _, server in ipairs(servers) do server:close() end
  end)

  local function listen(protocol)
    local server = net.listen('127.0.0.1', 0, protocol)
    servers[#servers + 1] = server
    return server
  end

  local function connect(server, protocol)
    return await(net.connect('127.0.0.1', server.port, protocol))
  end

  local function echo(conn)
    for block in conn do yield(block) end
  end

  -- One end of a pair in memory: what is written to it comes out of the other.
  local function loopback_end()
    local incoming = flow.Callback()
    return setmetatable({
      write = function(self, s) self.other.incoming:result(s) end,
      close = function(self)
        if self.closed then return end
        self.closed = true
        self.other.incoming:finish()
      end,
      incoming = incoming,
    }, { __call = function() return incoming() end })
  end

  local function loopback()
    local a, b = loopback_end(), loopback_end()
    a.other, b.other = b, a
    return a, b
  end

  it('FLOW-58 echoes over a loopback in memory', run(function()
    local near, far = loopback()
    local got
    local client = flow.make_protocol(function(conn)
      yield 'testing'
      got = conn()
    end)
    await(coop.gather_results { flow.make_protocol(echo)(far), client(near) })
    assert.equal('testing', got)
    assert.is_true(near.closed)
    assert.is_true(far.closed)
  end))

  it('FLOW-59 echoes over TCP, and the end of a body closes the connection', run(function()
    local server = listen(flow.make_protocol(echo))
    local got = {}
    local conn = connect(server, flow.make_protocol(function(conn)
      yield 'testing'
      got[1] = conn()
      yield(12)
      got[2] = conn()
    end))
    eventually(function() return conn.closed end)
    assert.same({ 'testing', '12' }, got)
  end))

  it('FLOW-59 lets the server end the conversation', run(function()
    local server = listen(flow.make_protocol(function()
      yield 'good'
      yield 'bye'
    end))
    local conn <close> = connect(server)
    assert.equal('goodbye', await(conn:read 'a'))
  end))

  it('takes the explicit form too', run(function()
    local server = listen(flow.make_protocol(function(conn)
      while true do
        yield(conn)
        local block = conn:next()
        if not block then return end
        yield('<' .. block .. '>')
      end
    end))
    local conn <close> = connect(server)
    for _, word in ipairs { 'one', 'two' } do
      await(conn:write(word))
      assert.equal('<' .. word .. '>', conn:next())
    end
    await(conn:shutdown())
    assert.is_nil(conn:next())
  end))

  it('FLOW-60 keeps what comes while its body is busy', run(function()
    local go_on, all
    local server = listen(flow.make_protocol(function(conn)
      local first = conn:next()
      yield(flow.CallLater(function(f) go_on = f end))
      all = first
      repeat
        yield(conn)
        local block = conn:next()
        all = all .. (block or '')
      until not block
      yield 'done'
    end))
    local conn <close> = connect(server)
    await(conn:write 'a')
    eventually(function() return go_on end)
    for _, s in ipairs { 'b', 'c', ('d'):rep(100000) } do await(conn:write(s)) end
    await(conn:shutdown())
    go_on()
    assert.equal('done', await(conn:read 'a'))
    assert.equal('abc' .. ('d'):rep(100000), all)
  end))

  it('has stages of the connection', run(function()
    local server = listen(flow.make_protocol(function(conn)
      local lines = flow.LineBreak(conn, { delimiter = '\n' })
      return flow.Map(function(line) return line:upper() .. '\n' end,
        flow.Filter(function(line) return line ~= '' end, lines))
    end))
    local conn <close> = connect(server)
    conn:write 'a\n\nb'
    conn:write 'c\n'
    conn:shutdown()
    assert.equal('A\nBC\n', await(conn:read 'a'))
  end))

  it('takes generator functions', run(function()
    local server = listen(flow.make_protocol(coop.generator(echo)))
    local conn <close> = connect(server)
    conn:write 'x'
    conn:shutdown()
    assert.equal('x', await(conn:read 'a'))
  end))

  it('serves many at once, each with a body of its own', run(function()
    local most, now = 0, 0
    local server = listen(flow.make_protocol(function(conn)
      now = now + 1
      most = math.max(most, now)
      echo(conn)
      now = now - 1
    end))
    local function talk(i)
      local conn <close> = connect(server)
      for j = 1, 3 do
        local text = ('%d/%d'):format(i, j)
        await(conn:write(text))
        assert.equal(text, await(conn:read(#text)))
      end
    end
    local talks = {}
    for i = 1, 20 do talks[i] = spawn(talk, i) end
    await(coop.gather_results(talks))
    assert.is_true(most > 1)
  end))

  it('makes nothing that the peer does not take', run(function()
    local made = 0
    local server = listen(flow.make_protocol(function()
      while true do
        made = made + 1
        yield(('x'):rep(65536))
      end
    end))
    local conn = connect(server)
    await(conn:read(65536))
    local before
    eventually(function()
      local still = before == made
      before = made
      return still
    end)
    assert.is_true(made < 1000, made)
    conn:abort()
  end))

  it('closes its body when the connection is lost, and tells nobody', run(function()
    local log = { closed = 0 }
    local server = listen(flow.make_protocol(function(conn)
      local _ <close> = closing(log)
      conn:next()
      while true do yield(('x'):rep(65536)) end
    end))
    local conn = connect(server)
    await(conn:write 'go')
    await(conn:read(10))
    conn:abort()
    eventually(function() return log.closed == 1 end)
  end))

  it('tells of it when it is asked to', run(function()
    local ended
    local seen = helper.unhandled(function()
      local server = listen(flow.make_protocol(function(conn)
        local _ <close> = setmetatable({}, { __close = function() ended = true end })
        conn:next()
        while true do yield(('x'):rep(65536)) end
      end, { finish_on_connection_lost = false }))
      local conn = connect(server)
      await(conn:write 'go')
      await(conn:read(10))
      conn:abort()
      eventually(function() return ended end)
      await(coop.sleep(0))
    end)
    assert.equal(1, #seen)
    is_error(errors.ConnectionLost, seen[1].value)
  end))

  it('reports an error, and closes the connection', run(function()
    local seen = helper.unhandled(function()
      local server = listen(flow.make_protocol(function(conn)
        yield(conn:next())
        error('oops', 0)
      end))
      local conn <close> = connect(server)
      await(conn:write 'x')
      assert.equal('x', await(conn:read 'a'))
    end)
    assert.equal(1, #seen)
    assert.equal('oops', seen[1].value)
  end))

  it('takes an error that is trapped for the end', run(function()
    for _, trap in ipairs { 'oops', { errors.TimeoutError, 'oops' } } do
      local server = listen(flow.make_protocol(function(conn)
        yield(conn:next())
        error('oops', 0)
      end, { trap = trap }))
      local conn <close> = connect(server)
      await(conn:write 'x')
      assert.equal('x', await(conn:read 'a'))
    end
  end))

  it('cannot write what is no string', run(function()
    local protocol = flow.make_protocol(function() yield { 'x' } end)
    local near = loopback()
    assert.equal('make_protocol: what is yielded must be a string, got table',
      failure_of(protocol(near)).value)
    assert.is_true(near.closed)
  end))

  it('closes its body when it is cancelled', run(function()
    local log = {}
    local near = loopback()
    local d = flow.make_protocol(function(conn)
      local _ <close> = closing(log)
      conn()
    end)(near)
    d:cancel()
    is_error(errors.CancelledError, failure_of(d).value)
    assert.equal(1, log.closed)
    assert.is_true(near.closed)
  end))

  it('is refused what is no function, and options it does not know', function()
    misuse(function() flow.make_protocol() end, "bad argument #1 to 'make_protocol'",
      'function expected', 'flow_outside_spec.lua')
    misuse(function() flow.make_protocol(print, 5) end, "bad argument #2 to 'make_protocol'")
    misuse(function() flow.make_protocol(print, { tarp = 1 }) end, "unknown option 'tarp'")
    misuse(function() flow.make_protocol(print, { trap = 5 }) end, 'option trap')
  end)
end)

describe('Threaded', function()
  local Threaded = flow.Threaded

  -- For functions in threads: blocks until the file is there.
  local function block(path)
    while true do
      local file = io.open(path)
      if file then return file:close() end
      os.execute 'sleep 0.005'
    end
  end

  local function touch(path) assert(io.open(path, 'w')):close() end

  it('FLOW-63 counts down in its thread, which may block: the loop goes on', run(function()
    local path = no_file()
    local ticks, loop = 0, nil
    loop = coop.LoopingCall(function()
      ticks = ticks + 1
      if ticks < 5 then return end
      touch(path)
      loop:stop()
    end)
    loop:start(0.001)
    assert.same({ 5, 4, 3, 2, 1 }, list(Threaded(function(n, wait, name)
      for i = n, 1, -1 do
        wait(name)
        coroutine.yield(i)
      end
    end, 5, block, path)))
    assert.equal(5, ticks)
    os.remove(path)
  end))

  it('takes iterators that its function returns', run(function()
    assert.same({ 1, 2, 3 }, list(Threaded(function(n)
      local i = 0
      return function()
        i = i + 1
        return i <= n and i or nil
      end
    end, 3)))
    assert.same({ 'a', 'b' }, list(Threaded(string.gmatch, 'a b', '%a')))
  end))

  it('FLOW-65 fails its flow with the error of its function', run(function()
    local failure = failure_of(flow.Deferred(Threaded(function()
      local function deep() error('broke', 0) end
      coroutine.yield(1)
      deep()
    end)))
    assert.equal('broke', failure.value)
    assert.same({ 1 }, failure.partial)
    assert.truthy(failure:traceback():find("in .*'deep'"), failure:traceback())
    assert.equal('no iterator', failure_of(flow.Deferred(Threaded(function()
      error('no iterator', 0)
    end))).value)
    assert.truthy(failure_of(flow.Deferred(Threaded(function() return 5 end)))
      :check 'must yield, or return an iterator')
  end))

  it('FLOW-65 keeps all that came before the error, however late it is taken', run(function()
    local stage = Threaded(function()
      for i = 1, 3000 do coroutine.yield(i) end
      error('broke', 0)
    end)
    assert.equal(1, stage())
    await(coop.sleep(0.05))
    local values, err = ending(stage)
    assert.equal(2999, #values)
    assert.equal(3000, values[2999])
    assert.equal('broke', err)
  end))

  it('has traps, by wrap and by who drives the flow', run(function()
    local function fail()
      coroutine.yield(1)
      error 'broke'
    end
    assert.same({ 1, 'broke' }, list(flow.wrap(Threaded(fail), 'broke')))
    assert.same({ 1, 'broke' }, await(flow.Deferred(Threaded(fail), 'broke')))
  end))

  it('FLOW-66 makes values before they are wanted, and keeps them after its end', run(function()
    local path = no_file()
    local stage = Threaded(function(name)
      for i = 1, 100 do coroutine.yield(i) end
      assert(io.open(name, 'w')):close()
    end, path)
    assert.equal(1, stage())
    eventually(function() return exists(path) end)
    os.remove(path)
    local rest = list(stage)
    assert.equal(99, #rest)
    assert.equal(100, rest[99])
  end))

  it('FLOW-66 makes a bounded number of them', run(function()
    local path = no_file()
    local stage <close> = Threaded(function(name)
      local file <close> = assert(io.open(name, 'w'))
      file:setvbuf 'no'
      for i = 1, math.huge do
        file:write '.'
        coroutine.yield(i)
      end
    end, path)
    assert.equal(1, stage())
    local function ahead()
      local file <close> = assert(io.open(path))
      return file:seek 'end'
    end
    local before
    eventually(function()
      local still = before == ahead()
      before = ahead()
      return still
    end)
    assert.is_true(before <= 2 * 1024 + 1, before)
    for i = 2, 5000 do assert.equal(i, stage()) end
    os.remove(path)
  end))

  it('FLOW-67 gives the elements of a list, one by one, and nothing of an empty one', run(function()
    local function get(values) return values end
    assert.same({ 1, 2, 3 }, list(Threaded(get, { 1, 2, 3 })))
    assert.same({ { 1, 2 }, { 3 } }, list(Threaded(get, { { 1, 2 }, { 3 } })))
    assert.same({}, list(Threaded(get, {})))
    assert.same({}, list(Threaded(function() end)))
  end))

  it('begins when the first value is wanted', run(function()
    local path = no_file()
    local stage = Threaded(function(name)
      assert(io.open(name, 'w')):close()
      coroutine.yield(1)
    end, path)
    await(coop.sleep(0.02))
    assert.is_false(exists(path))
    assert.same({ 1 }, list(stage))
    assert.is_true(os.remove(path))
  end))

  it('gives false and tables, copied', run(function()
    local values = list(Threaded(function(t)
      coroutine.yield(false)
      t.n = t.n + 1
      coroutine.yield(t)
      coroutine.yield(t)
    end, { n = 1 }))
    assert.same({ false, { n = 2 }, { n = 2 } }, values)
  end))

  it('is one of the branches of a Merge, and keeps nobody waiting', run(function()
    local path = no_file()
    assert.same({ 'cooperative 1', 'cooperative 2', 'blocking 1', 'blocking 2' }, list(flow.Merge(
      Threaded(function(wait, name)
        wait(name)
        coroutine.yield 'blocking 1'
        coroutine.yield 'blocking 2'
      end, block, path),
      function()
        for i = 1, 2 do
          yield(flow.Cooperate(0.001))
          yield('cooperative ' .. i)
        end
        touch(path)
      end)))
    os.remove(path)
  end))

  it('closes its function when it is closed, or its consumer leaves or is cancelled', run(function()
    local function endless(name)
      local cleanup <close> = setmetatable({}, { __close = function()
        assert(io.open(name, 'w')):close()
      end })
      for i = 1, math.huge do coroutine.yield(i) end
    end
    local ends = {
      closed = function(stage)
        stage()
        stage:close()
      end,
      cancelled = function(stage)
        local seen
        local d = flow.Deferred(flow.Map(function(v) seen = v end, stage))
        eventually(function() return seen end)
        d:cancel()
        is_error(errors.CancelledError, failure_of(d).value)
      end,
      ['consumed by one that ends'] = function(stage)
        assert.same({ 1 }, list(flow.wrap(function() yield(stage()) end)))
      end,
      collected = function(stage)
        stage()
        stage = nil -- luacheck: ignore
        await(coop.sleep(0))
        collectgarbage()
      end,
    }
    for how, finish in pairs(ends) do
      local path = no_file()
      do
        finish(Threaded(endless, path))
      end
      eventually(function()
        collectgarbage()
        return exists(path)
      end)
      os.remove(path)
      assert.truthy(how)
    end
  end))

  it('is refused what cannot be copied', function()
    local upvalue = {}
    misuse(function() Threaded() end, "bad argument #1 to 'Threaded'", 'function', 'got nil')
    misuse(function() Threaded { 1 } end, "bad argument #1 to 'Threaded'", 'got table')
    misuse(function() Threaded(function() return upvalue end) end, 'Threaded', "upvalue 'upvalue'")
    misuse(function() Threaded(function() end, 1, io.stdout) end, 'argument 3', 'got userdata')
    misuse(function() Threaded(flow.wrap { 1 }) end, "bad argument #1 to 'Threaded'", 'got Stage')
  end)

  it('fails when a value cannot be copied, after those before it', run(function()
    local values, err = ending(Threaded(function()
      coroutine.yield(1)
      coroutine.yield(io.stdout)
    end))
    assert.same({ 1 }, values)
    assert.truthy(err:find('can be copied (got userdata)', 1, true), err)
  end))
end)

local server -- of PostgreSQL
local file -- of SQLite

local databases = {
  {
    name = 'SQLite',
    open = function(options) return db.ConnectionPool('sqlite3', file, options) end,
    start = function() file = os.tmpname() end,
    stop = function() os.remove(file) end,
    numbers = [[with recursive n(i) as (select 1 union all select i + 1 from n where i < ?)
      select i from n]],
  },
  {
    name = 'PostgreSQL',
    open = function(options)
      return db.ConnectionPool('postgres', 'postgres', 'postgres', '', server.socket, options)
    end,
    start = function()
      local missing
      server, missing = postgres.start()
      return missing
    end,
    stop = function()
      if server then server.stop() end
      server = nil
    end,
    numbers = 'select i from generate_series(1, ?) as n(i)',
  },
}

for _, database in ipairs(databases) do
  describe('QueryIterator of ' .. database.name, function()
    local QueryIterator, Threaded = flow.QueryIterator, flow.Threaded
    local missing

    setup(function() missing = database.start() end)
    teardown(database.stop)

    local function it_with(name, f, options)
      it(name, function()
        if missing then return pending(missing) end
        run(function()
          local pool = database.open(options)
          local ok, err = pcall(f, pool)
          await(pool:close())
          if not ok then error(err, 0) end
        end)()
      end)
    end

    it_with('FLOW-70 gives row by row, with names, through Threaded', function(pool)
      local rows = list(Threaded(QueryIterator(pool, database.numbers, 3)))
      assert.same({ { 1, i = 1 }, { 2, i = 2 }, { 3, i = 3 } }, rows)
    end)

    it_with('FLOW-70 gives the same without Threaded', function(pool)
      assert.same({ { 1, i = 1 }, { 2, i = 2 } }, list(QueryIterator(pool, database.numbers, 2)))
      assert.same({}, list(QueryIterator(pool, 'select 1 where 1 = ?', 2)))
    end)

    it_with('FLOW-70 fetches in chunks that nobody sees, in order', function(pool)
      local n = 0
      for row in Threaded(QueryIterator(pool, database.numbers, 20000)) do
        n = n + 1
        assert(row.i == n and row[1] == n)
      end
      assert.equal(20000, n)
    end)

    it_with('flows through stages', function(pool)
      local even = flow.Filter(function(row) return row.i % 2 == 0 end,
        QueryIterator(pool, database.numbers, 10))
      local squares = flow.Map(function(row) return row.i * row.i end, even)
      assert.same({ 4, 16, 36, 64, 100 }, await(flow.Deferred(squares)))
    end)

    it_with('is begun when the first row is wanted', function(pool)
      local rows = QueryIterator(pool, 'select 1 as one')
      assert.equal(1, await(pool:run_query 'select 1 as one')[1].one)
      assert.same({ { 1, one = 1 } }, list(rows))
    end, { size = 1 })

    it_with('gives the connection back when it is left', function(pool)
      for _ = 1, 3 do
        local stage = QueryIterator(pool, database.numbers, 1000000)
        assert.equal(1, stage().i)
        stage:close()
        assert.is_nil(stage())
      end
      local d = flow.Deferred(QueryIterator(pool, database.numbers, 1000000))
      await(coop.sleep(0.02))
      d:cancel()
      is_error(errors.CancelledError, failure_of(d).value)
      assert.equal(1, await(pool:run_query 'select 1 as one')[1].one)
    end, { size = 1 })

    it_with('gives the connection back when it is abandoned', function(pool)
      do
        local stage = QueryIterator(pool, database.numbers, 1000000)
        assert.equal(1, stage().i)
      end
      local d = pool:run_query 'select 1 as one'
      eventually(function()
        collectgarbage()
        return d.called
      end)
    end, { size = 1 })

    it_with('does not keep the pool from closing when a loop was left', function(pool)
      for row in QueryIterator(pool, database.numbers, 1000000) do
        if row.i == 2 then break end
      end
      await(pool:close())
    end)

    it_with('is taken to its end while the pool closes', function(pool)
      local stage = QueryIterator(pool, database.numbers, 5000)
      assert.equal(1, stage().i)
      local closed = pool:close()
      assert.equal(4999, #list(stage))
      await(closed)
    end)

    it_with('fails with the error of the database', function(pool)
      local failure = failure_of(flow.Deferred(QueryIterator(pool, 'select * from nowhere')))
      assert.truthy(failure:check 'nowhere')
      assert.same({}, failure.partial)
    end)

    it_with('quotes what it is given', function(pool)
      local evil = "'; drop table things; --"
      assert.equal(evil, list(QueryIterator(pool, 'select ? as x', evil))[1].x)
      misuse(function() QueryIterator(pool, 'select 1; select ?', 2) end, 'QueryIterator',
        'one statement at a time')
    end)

    it_with('takes turns with others when there are more than connections', function(pool)
      local flows = {}
      for i = 1, 6 do flows[i] = flow.Deferred(QueryIterator(pool, database.numbers, 100 * i)) end
      for i, rows in ipairs(await(coop.gather_results(flows))) do assert.equal(100 * i, #rows) end
    end, { size = 2 })

    it_with('is refused what it cannot ask', function(pool)
      misuse(function() QueryIterator({}, 'select 1') end, "bad argument #1 to 'QueryIterator'")
      misuse(function() QueryIterator(pool, 5) end, "bad argument #2 to 'QueryIterator'")
      misuse(function() QueryIterator(pool, 'select ?') end, 'QueryIterator', '1 question mark')
      misuse(function() Threaded(QueryIterator(pool, 'select 1'), 5) end, 'Threaded')
      local late = QueryIterator(pool, 'select 1')
      await(pool:close())
      misuse(function() QueryIterator(pool, 'select 1') end, 'the pool is closed')
      local _, err = ending(late)
      assert.truthy(err:find('the pool is closed', 1, true), err)
    end)

    if database.name == 'PostgreSQL' then
      it_with('fails when its backend is killed between rows, behind those before', function(pool)
        local pid = await(pool:run_query 'select pg_backend_pid() as pid')[1].pid
        local stage = QueryIterator(pool, database.numbers, 1000000)
        assert.equal(1, stage().i)
        local other <close> = database.open { size = 1 }
        await(other:run_query('select pg_terminate_backend(?::int)', pid))
        local values, err = ending(stage)
        assert.is_true(#values < 999999)
        for i, row in ipairs(values) do assert(row.i == i + 1) end
        assert.truthy(err:find 'terminat' or err:find 'connection', err)
        assert.equal(1, await(pool:run_query 'select 1 as one')[1].one)
      end, { size = 1 })
    end
  end)
end

describe('Resource', function()
  local servers

  before_each(function() servers = {} end)
  after_each(run(function()
    for _, one in ipairs(servers) do await(one:close(0)) end
  end))

  local function serve(handler)
    local one = http.serve { handler = handler }
    servers[#servers + 1] = one
    return ('http://127.0.0.1:%d/'):format(one.port)
  end

  it('FLOW-71 writes what its body yields, and ends with it', run(function()
    local url = serve(flow.Resource(function(request)
      yield('path ' .. request.path .. '\n')
      yield(flow.Cooperate(0.001))
      yield(12)
      yield(coop.sleep(0))
      yield '\nend'
    end))
    local response = await(http.get(url .. 'x'))
    assert.equal(200, response.status)
    assert.equal('path /x\n12\nend', response.body)
  end))

  it('FLOW-71 sends what there is while its body waits', run(function()
    local go_on
    local url = serve(flow.Resource(function()
      yield 'first'
      yield(flow.CallLater(function(f) go_on = f end))
      yield 'second'
    end))
    local response = await(http.get(url, { stream = true }))
    assert.equal('first', await(response:read()))
    go_on()
    assert.same({ 'second' }, list(flow.wrap(response)))
  end))

  it('FLOW-71 serves several clients at the same time, each with a body of its own', run(function()
    local gates = {}
    local url = serve(flow.Resource(function(request)
      local name = request.query.name
      for i = 1, 3 do
        yield(('%s%d'):format(name, i))
        yield(flow.CallLater(function(f) gates[name] = f end))
      end
    end))
    local read = {}
    for _, name in ipairs { 'a', 'b' } do
      read[name] = await(http.get(url .. '?name=' .. name, { stream = true }))
    end
    for i = 1, 3 do -- neither could go on without the other
      for _, name in ipairs { 'a', 'b' } do
        assert.equal(name .. i, await(read[name]:read()))
      end
      for _, name in ipairs { 'a', 'b' } do gates[name]() end
    end
    for _, name in ipairs { 'a', 'b' } do assert.is_nil(await(read[name]:read())) end
  end))

  it('FLOW-71 reports an error, and finishes the response', run(function()
    local url
    local seen = helper.unhandled(function()
      url = serve(flow.Resource(function() error('oops', 0) end))
      assert.equal(500, await(http.get(url)).status)
      url = serve(flow.Resource(function()
        yield 'some'
        yield(coop.sleep(0.01))
        error('oops again', 0)
      end))
      local response = await(http.get(url, { stream = true }))
      assert.equal('some', await(response:read()))
      failure_of(response:read()) -- it is seen that something is missing
    end)
    assert.equal(2, #seen)
    assert.equal('oops', seen[1].value)
    assert.equal('oops again', seen[2].value)
  end))

  it('sets status and headers before the first value', run(function()
    local url = serve(flow.Resource(function(_, response)
      response.status = 404
      response.headers['Content-Type'] = 'text/plain'
      yield 'nothing here'
    end))
    local response = await(http.get(url))
    assert.equal(404, response.status)
    assert.equal('text/plain', response.headers['content-type'])
    assert.equal('nothing here', response.body)
  end))

  it('takes stages and generator functions', run(function()
    local function plus_newline(v) return v .. '\n' end
    local url = serve(flow.Resource(function(request)
      return flow.Map(plus_newline, { request.method, 'ok' })
    end))
    assert.equal('GET\nok\n', await(http.get(url)).body)
    url = serve(flow.Resource(coop.generator(function() yield 'x' end)))
    assert.equal('x', await(http.get(url)).body)
  end))

  it('is called by handlers that look at the path', run(function()
    local page = flow.Resource(function(request) yield('page ' .. request.path) end)
    local url = serve(function(request, response)
      if request.path == '/page' then return page(request, response) end
      response.status = 404
    end)
    assert.equal('page /page', await(http.get(url .. 'page')).body)
    assert.equal(404, await(http.get(url .. 'x')).status)
  end))

  it('closes its body when the client leaves', run(function()
    local log = { closed = 0 }
    local url = serve(flow.Resource(function()
      local _ <close> = closing(log)
      yield 'first'
      yield(coop.Deferred())
    end))
    local response = await(http.get(url, { stream = true }))
    assert.equal('first', await(response:read()))
    response:close()
    eventually(function() return log.closed == 1 end)
  end))

  it('makes nothing that the client does not take', run(function()
    local made = 0
    local url = serve(flow.Resource(function()
      while true do
        made = made + 1
        yield(('x'):rep(65536))
      end
    end))
    local response = await(http.get(url, { stream = true }))
    await(response:read())
    local before
    eventually(function()
      local still = before == made
      before = made
      return still
    end)
    assert.is_true(made < 1000, made)
    response:close()
  end))

  it('cannot write what is no string', run(function()
    local seen = helper.unhandled(function()
      local url = serve(flow.Resource(function() yield {} end))
      assert.equal(500, await(http.get(url)).status)
    end)
    assert.equal('Resource: what is yielded must be a string, got table', seen[1].value)
  end))

  it('is refused what is no function', function()
    misuse(function() flow.Resource() end, "bad argument #1 to 'Resource'", 'function expected')
    assert.equal('Resource', coop.type(flow.Resource(print)))
  end)
end)

describe('what is outside is a source for every stage:', function()
  it('a connection', run(function()
    local one = net.listen('127.0.0.1', 0, function(conn) await(conn:write 'a\r\nb\r\n') end)
    local conn = await(net.connect('127.0.0.1', one.port))
    assert.same({ 'a', 'b' }, await(flow.Deferred(flow.LineBreak(conn))))
    one:close()
    conn:close()
  end))

  it('the response to a request', run(function()
    local one = http.serve { handler = function(_, response) response:write 'a\nb\n' end }
    local url = ('http://127.0.0.1:%d/'):format(one.port)
    local response = await(http.get(url, { stream = true }))
    assert.same({ 'a', 'b' }, list(flow.LineBreak(response, { delimiter = '\n' })))
    one:close()
  end))

  it('not what only looks like one', function()
    misuse(function() flow.wrap(threads.Pool(1)) end, "bad argument #1 to 'wrap'", 'ThreadPool')
    misuse(function() flow.wrap(coop.ValueBucket()) end, "bad argument #1 to 'wrap'")
  end)
end)
