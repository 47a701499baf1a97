local coop = require 'coop'
local db = require 'coop.db'
local child = require 'tests.spec.child'
local helper = require 'tests.spec.helper'
local postgres = require 'tests.spec.postgres'
local run, misuse, is_error = helper.run, helper.misuse, helper.is_error
local await, errors = coop.await, coop.errors

local function failure_of(d)
  local failure
  await(d:add_both(function(result) failure = result end))
  assert.equal('Failure', coop.type(failure))
  return failure
end

local function collect(rows)
  local list = {}
  while true do
    local row = await(rows:next())
    if not row then return list end
    list[#list + 1] = row
  end
end

local files = {}

local function new_file()
  local path = os.tmpname()
  files[#files + 1] = path
  return path
end

local function remove_files()
  for _, path in ipairs(files) do
    for _, suffix in ipairs { '', '-journal', '-wal', '-shm' } do os.remove(path .. suffix) end
  end
  files = {}
end

local server

local databases = {
  {
    name = 'SQLite',
    open = function(options)
      return db.ConnectionPool('sqlite3', files[1] or new_file(), options)
    end,
    numbers = [[with recursive n(i) as (select 1 union all select i + 1 from n where i < ?)
      select i from n]],
    shell = function() return 'sqlite3 -bail ' .. files[1] end,
    start = function() end,
    stop = function() end,
  },
  {
    name = 'PostgreSQL',
    open = function(options)
      return db.ConnectionPool('postgres', 'postgres', 'postgres', '', server.socket, options)
    end,
    numbers = 'select i from generate_series(1, ?) as n(i)',
    shell = function()
      return 'psql -qtA -v ON_ERROR_STOP=1 -U postgres -h ' .. server.socket .. ' postgres'
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
  },
}

for _, database in ipairs(databases) do
  describe(database.name .. ' in a pool', function()
    local missing

    local function it_with(name, f, options)
      it(name, function()
        if missing then return pending(missing) end
        return coop.run(function()
          local pool = database.open(options)
          await(pool:run_operation 'drop table if exists things')
          await(pool:run_operation 'create table things (id bigint, name text, size float)')
          f(pool)
          await(pool:close())
        end)
      end)
    end

    setup(function() missing = database.start() end)
    teardown(function() database.stop() end)
    after_each(function()
      remove_files()
    end)

    it_with("has its tables in common with the database's own shell", function(pool)
      local function shell(sql)
        local pipe <close> = assert(io.popen(("%s <<'END'\n%s\nEND"):format(database.shell(), sql)))
        return pipe:read 'a'
      end
      shell [[insert into things values (1, 'café "''$1?', 0.25), (9007199254740993, null, 3);]]
      local rows = await(pool:run_query 'select id, name, size from things order by id')
      assert.same({
        { 1, [[café "'$1?]], 0.25, id = 1, name = [[café "'$1?]], size = 0.25 },
        { 9007199254740993, nil, 3.0, id = 9007199254740993, size = 3.0 },
      }, rows)
      await(pool:run_operation('update things set name = ? where id > ?', "it's\n2", 1))
      assert.equal("it's\n2\n", shell 'select name from things where id > 1;')
    end)

    it_with('gives rows with their columns by number and by name', function(pool)
      assert.equal(1, await(pool:run_operation("insert into things values (1, 'one', 0.5)")))
      assert.equal(2, await(pool:run_operation(
        "insert into things values (2, 'two', null), (3, null, 3)")))
      local rows = await(pool:run_query 'select id, name, size as measure from things order by id')
      assert.same({
        { 1, 'one', 0.5, id = 1, name = 'one', measure = 0.5 },
        { 2, 'two', id = 2, name = 'two' },
        { 3, nil, 3.0, id = 3, measure = 3.0 },
      }, rows)
      assert.equal('integer', math.type(rows[1].id))
      assert.equal('float', math.type(rows[3].measure))
      assert.same({}, await(pool:run_query 'select * from things where id = 99'))
      assert.equal(2, await(pool:run_operation('delete from things where id > ?', 1)))
      assert.equal(0, await(pool:run_operation('delete from things where id > ?', 1)))
    end)

    it_with('takes every value as a parameter and gives it back', function(pool)
      local texts = {
        '', "O'Brien", "''", 'back\\slash\\', "\\'; drop table things; --", '"', '?', '??', '$1',
        '%s', '--', '/*', 'ü€😀', '\n\t\r', ('long'):rep(100000), "E'", '$$', "x' or '1'='1",
      }
      for i, text in ipairs(texts) do
        await(pool:run_operation('insert into things values (?, ?, ?)', i, text, i / 3))
      end
      local rows = await(pool:run_query 'select * from things order by id')
      assert.equal(#texts, #rows)
      for i, text in ipairs(texts) do
        assert.equal(text, rows[i].name)
        assert.equal(i / 3, rows[i].size)
        assert.equal(1, #await(pool:run_query('select 1 from things where name = ?', text)))
      end
      await(pool:run_operation 'delete from things')
      local integers = { 0, 1, -1, 2 ^ 53 | 0, math.maxinteger, math.mininteger }
      for _, n in ipairs(integers) do
        await(pool:run_operation('insert into things values (?, ?, ?)', n, nil, n + 0.0))
        local row = await(pool:run_query('select * from things where id = ?', n))[1]
        assert.equal(n, row.id)
        assert.equal('integer', math.type(row.id))
        assert.is_nil(row.name)
        assert.equal(n + 0.0, row.size)
      end
      local floats = { 0.1, -0.1, 1e300, 5e-324, 1e15, 123456789.12345, math.huge, -math.huge }
      for _, x in ipairs(floats) do
        local row = await(pool:run_query('select ? as x, 5 - ? as y', x, -3))[1]
        assert.equal(x, row.x)
        assert.equal(8, row.y)
      end
    end)

    it_with('sees parameters outside of quotes and comments only', function(pool)
      local row = await(pool:run_query([[
        select '?' as a, ? as "?", 'it''s ?' as c -- what is this?
        , /* and ? here */ ? as d ;  -- the end?
      ]], 'one', 'two'))[1]
      assert.same({ '?', 'one', "it's ?", 'two' }, { row.a, row['?'], row.c, row.d })
    end)

    it_with('refuses what is misuse, at the call', function(pool)
      local function bad(...)
        local args = table.pack(...)
        local n, text = args.n - 1, args[args.n]
        for _, method in ipairs { 'run_query', 'run_operation' } do
          misuse(function() pool[method](pool, table.unpack(args, 1, n)) end, method, text)
        end
        misuse(function() db.rows(pool, table.unpack(args, 1, n)) end, 'rows', text)
      end
      bad('select ?', '0 parameters for 1 question mark')
      bad('select ?', 1, 2, '2 parameters for 1 question mark')
      bad('select ?, ?', 1, {}, 'parameter 2 must be nil')
      bad('select ?', io.stdout, 'got userdata')
      bad('select ?', coop.Deferred(), 'got Deferred')
      bad('select 1; select 2', 'one statement at a time')
      bad("select ?; drop table things; --'", 1, 'one statement at a time')
      for _, word in ipairs { 'begin', ' Commit', '-- go\n/* on */ ROLLBACK', 'savepoint x' } do
        bad(word, 'run_interaction')
      end
      bad(nil, 'string expected, got nil')
      misuse(function() pool.run_query({}, 'select 1') end, "calling 'run_query' on bad self")
      misuse(function() pool:run_interaction(1) end, "bad argument #1 to 'run_interaction'")
      assert.same({}, await(pool:run_query 'select * from things'))
    end)

    it_with('fails with the words of the database', function(pool)
      assert.truthy(failure_of(pool:run_query 'select * from nothing'):check 'nothing')
      assert.truthy(failure_of(pool:run_operation 'selec'):check 'syntax error')
      assert.truthy(failure_of(db.rows(pool, 'select * from nothing'):next()):check 'nothing')
      assert.same({}, await(pool:run_query 'select * from things'))
    end)

    describe('an interaction', function()
      it_with('is committed when its function returns', function(pool)
        local result = await(pool:run_interaction(function(tx, a, b)
          assert.equal('Transaction', coop.type(tx))
          assert.equal(1, await(tx:operation('insert into things values (?, ?, 0)', a, b)))
          await(coop.sleep(0.001))
          return await(tx:query 'select name from things')[1].name
        end, 1, 'x'))
        assert.equal('x', result)
        assert.equal(1, #await(pool:run_query 'select * from things'))
      end)

      it_with('is rolled back when its function fails', function(pool)
        local failure = failure_of(pool:run_interaction(function(tx)
          await(tx:operation "insert into things values (1, 'x', 0)")
          error({ 'mine' })
        end))
        assert.same({ 'mine' }, failure.value)
        assert.same({}, await(pool:run_query 'select * from things'))
      end)

      it_with('is rolled back when it is cancelled', function(pool)
        local inside = coop.Deferred()
        local d = pool:run_interaction(function(tx)
          await(tx:operation "insert into things values (1, 'x', 0)")
          inside:callback()
          await(coop.Deferred())
        end)
        await(inside)
        await(coop.sleep(0))
        d:cancel()
        is_error(errors.CancelledError, (helper.error_of(d)))
        assert.same({}, await(pool:run_query 'select * from things'))
      end)

      it_with('is rolled back when a statement failed and nothing was done about it', function(pool)
        local outcome
        await(pool:run_interaction(function(tx)
          await(tx:operation "insert into things values (1, 'x', 0)")
          failure_of(tx:query 'select * from nothing')
        end):add_both(function(result) outcome = result end))
        local rows = await(pool:run_query 'select * from things')
        if coop.type(outcome) == 'Failure' then -- PostgreSQL ends such a transaction
          assert.truthy(outcome:check 'aborted')
          assert.equal(0, #rows)
        else
          assert.equal(1, #rows)
        end
      end)

      it_with('has its statements done in order on one connection', function(pool)
        await(pool:run_interaction(function(tx)
          local ds = {}
          for i = 1, 20 do
            ds[i] = tx:operation(
              'insert into things values (?, ?, (select count(*) from things))', i, 'x')
          end
          await(coop.gather_results(ds))
        end))
        local rows = await(pool:run_query 'select * from things order by id')
        for i = 1, 20 do assert.equal(i - 1, rows[i].size) end
      end)

      it_with('is over when it is', function(pool)
        local kept
        await(pool:run_interaction(function(tx) kept = tx end))
        misuse(function() kept:query 'select 1' end, 'query', 'the interaction is over')
        misuse(function() kept:operation 'select 1' end, 'operation', 'the interaction is over')
      end)

      it_with('does not see or lose what others do at the same time', function(pool)
        await(pool:run_operation "insert into things values (1, 'counter', 0)")
        local ds = {}
        for i = 1, 20 do
          ds[i] = pool:run_interaction(function(tx)
            local lock = database.name == 'PostgreSQL' and ' for update' or ''
            local n = await(tx:query('select size from things where id = 1' .. lock))[1].size
            await(tx:operation('update things set size = ? where id = 1', n + 1))
          end)
        end
        await(coop.gather_results(ds))
        assert.equal(20, await(pool:run_query 'select size from things')[1].size)
      end)
    end)

    describe('rows one by one', function()
      it_with('come in order, many of them', function(pool)
        local rows, n = db.rows(pool, database.numbers, 20000), 0
        while true do
          local batch = await(rows:batch())
          if not batch then break end
          for i = 1, batch.n do
            n = n + 1
            assert(batch[i].i == n and batch[i][1] == n)
          end
        end
        assert.equal(20000, n)
        assert.is_nil(await(rows:next()))
      end)

      it_with('mix with batches', function(pool)
        local rows = db.rows(pool, database.numbers, 10)
        assert.equal(1, await(rows:next()).i)
        assert.equal(2, await(rows:next()).i)
        local batch = await(rows:batch())
        assert.equal(3, batch[1].i)
        local n = 2 + batch.n
        n = n + #collect(rows)
        assert.equal(10, n)
        assert.same({}, collect(db.rows(pool, 'select * from things')))
      end)

      it_with('give the connection back at their end', function(pool)
        for _ = 1, 5 do assert.equal(3, #collect(db.rows(pool, database.numbers, 3))) end
        assert.same({}, await(pool:run_query 'select * from things'))
      end, { size = 1 })

      it_with('give the connection back when they are closed', function(pool)
        for _ = 1, 3 do
          local rows <close> = db.rows(pool, database.numbers, 1000000)
          assert.equal(1, await(rows:next()).i)
          rows:close()
          assert.is_nil(await(rows:next()))
        end
        local waiting = db.rows(pool, database.numbers, 1000000)
        local behind = db.rows(pool, database.numbers, 3)
        assert.equal(1, await(waiting:next()).i)
        local d = behind:next()
        behind:close()
        is_error(errors.CancelledError, failure_of(d).value)
        waiting:close()
        assert.same({}, await(pool:run_query 'select * from things'))
      end, { size = 1 })

      it_with('give the connection back when nothing holds them', function(pool)
        do
          local rows = db.rows(pool, database.numbers, 1000000)
          assert.equal(1, await(rows:next()).i)
        end
        local d = pool:run_query 'select 1 as x'
        for _ = 1, 200 do
          if d.called then break end
          collectgarbage()
          await(coop.sleep(0.005))
        end
        assert.is_true(d.called)
      end, { size = 1 })
    end)

    describe('shared by many', function()
      it_with('is taken in the order of asking, and no turn is lost by cancelling', function(pool)
        local log, ds = {}, {}
        for i = 1, 1000 do
          ds[i] = pool:run_query('select ? as i', i)
          ds[i]:add_both(function(result)
            if coop.type(result) ~= 'Failure' then log[#log + 1] = { i, result[1].i } end
          end)
        end
        for i = 2, 1000, 2 do ds[i]:cancel() end
        await(coop.DeferredList(ds))
        assert.equal(500, #log)
        local seen = {}
        for _, pair in ipairs(log) do
          assert.equal(pair[1], pair[2])
          seen[pair[1]] = true
        end
        for i = 1, 999, 2 do assert.is_true(seen[i]) end
        for i = 1, 10 do assert.equal(i, await(pool:run_query('select ? as i', i))[1].i) end
      end, { size = 2 })

      it_with('is not used again before a cancelled query has ended', function(pool)
        for i = 1, 30 do
          local d = pool:run_query(database.numbers, 20000)
          if i % 2 == 0 then await(coop.sleep(0.002)) end
          d:cancel()
          is_error(errors.CancelledError, (helper.error_of(d)))
          assert.same({ { i, x = i } }, await(pool:run_query('select ? as x', i)))
        end
      end, { size = 1 })

      it_with('that is closed cancels what waits, and waits for what runs', function(pool)
        local first = pool:run_query(database.numbers, 50000)
        local waits = helper.cap(pool:run_query 'select 1')
        local closed = pool:close()
        assert.equal(1, waits.n)
        is_error(errors.CancelledError, waits[1].value)
        misuse(function() pool:run_query 'select 1' end, 'run_query', 'the pool is closed')
        misuse(function() pool:run_operation 'select 1' end, 'run_operation', 'the pool is closed')
        misuse(function() pool:run_interaction(print) end, 'run_interaction', 'the pool is closed')
        misuse(function() db.rows(pool, 'select 1') end, 'rows', 'the pool is closed')
        assert.equal(50000, #await(first))
        await(closed)
        await(pool:close())
      end, { size = 1 })
    end)

    if database.name == 'PostgreSQL' then
      local function backend(tx) return await(tx:query 'select pg_backend_pid() as pid')[1].pid end

      local function terminate(pid)
        local other <close> = database.open { size = 1 }
        await(other:run_query('select pg_terminate_backend(?::int)', pid))
        for _ = 1, 100 do
          if #await(other:run_query('select 1 from pg_stat_activity where pid = ?', pid)) == 0 then
            return
          end
          await(coop.sleep(0.01))
        end
      end

      it_with('replaces a connection that was lost while it was idle', function(pool)
        local pid = backend { query = function(_, sql) return pool:run_query(sql) end }
        terminate(pid)
        failure_of(pool:run_query 'select 1')
        assert.equal(1, await(pool:run_query 'select 1 as x')[1].x)
      end, { size = 1 })

      it_with('replaces a connection that is lost in a query', function(pool)
        local pid = backend { query = function(_, sql) return pool:run_query(sql) end }
        local d = pool:run_query 'select pg_sleep(20)'
        local other <close> = database.open { size = 1 }
        repeat
          await(coop.sleep(0.005))
        until #await(other:run_query([[select 1 from pg_stat_activity
          where pid = ? and state = 'active' and query like '%pg_sleep%']], pid)) > 0
        terminate(pid)
        assert.truthy(failure_of(d):check 'terminat')
        assert.equal(1, await(pool:run_query 'select 1 as x')[1].x)
      end, { size = 1 })

      it_with('replaces a connection that is lost in an interaction', function(pool)
        local failure = failure_of(pool:run_interaction(function(tx)
          await(tx:operation "insert into things values (1, 'x', 0)")
          terminate(backend(tx))
          await(tx:query 'select 1')
        end))
        assert.truthy(failure:check 'terminat')
        assert.same({}, await(pool:run_query 'select * from things'))
      end, { size = 1 })

      it_with('tells that the connection was lost between rows', function(pool)
        local pid = backend { query = function(_, sql) return pool:run_query(sql) end }
        local rows = db.rows(pool, database.numbers, 1000000)
        assert.equal(1, await(rows:next()).i)
        terminate(pid)
        local n, failure = 1, nil
        while not failure do
          await(rows:next():add_callbacks(function(row)
            n = assert(row).i
          end, function(f) failure = f end))
        end
        assert.is_true(n < 1000000)
        assert.truthy(failure:check 'terminat' or failure:check 'connection', failure.value)
        assert.equal(1, await(pool:run_query 'select 1 as x')[1].x)
      end, { size = 1 })

      it_with('gives its own types as values of Lua', function(pool)
        local row = await(pool:run_query([[
          select 1::int2 as a, true as b, false as c, 1.50::numeric as d, ?::bytea as e,
            'NaN'::float8 as f, ? as g, E'a?\'?' as h, $q$ ? $q$ as i, array[1,2] as j
        ]], 'a\0b', db.Blob '\0\xff'))[1]
        assert.same({ 1, true, false, '1.50', 'a\0b' }, { row.a, row.b, row.c, row.d, row.e })
        assert.is_true(row.f ~= row.f)
        assert.same({ '\0\xff', "a?'?", ' ? ', '{1,2}' }, { row.g, row.h, row.i, row.j })
        assert.equal('yes', await(pool:run_query [[
          select case when '{"a": 1}'::jsonb ?? 'a' then 'yes' else 'no' end as x
        ]])[1].x)
      end)

      it_with('tells of text that it cannot have', function(pool)
        failure_of(pool:run_operation('insert into things values (1, ?, 0)', '\xff\xfe'))
        assert.same({}, await(pool:run_query 'select * from things'))
      end)
    else
      it_with('keeps NULs, blobs and text of any bytes; NaN is NULL', function(pool)
        local row = await(pool:run_query(
          'select ? as a, typeof(?) as b, ? as c, ? as d, typeof(?) as e',
          'a\0b\0', 'a\0b', '\xff\xfe', 0 / 0, db.Blob 'x'))[1]
        assert.same({ 'a\0b\0', 'text', '\xff\xfe' }, { row.a, row.b, row.c })
        assert.is_nil(row.d)
        assert.equal('blob', row.e)
      end)

      it_with('takes a megabyte more than once', function(pool)
        local big = ('\0\1\2'):rep(1 << 19)
        assert.equal(#big, await(pool:run_query('select length(?) as n', db.Blob(big)))[1].n)
        assert.is_true(await(pool:run_query('select ? as x', db.Blob(big)))[1].x == big)
      end)

      it_with('waits for a table that another process writes', function(pool)
        local path = files[1]
        local writer = assert(io.popen(([[sqlite3 %s "begin immediate;" \
          "insert into things values (7, 'other', 0);" ".shell sleep 0.3" "commit;"
        ]]):format(path)))
        await(coop.sleep(0.1))
        assert.equal(1, await(pool:run_operation "insert into things values (8, 'mine', 0)"))
        writer:close()
        assert.equal(2, #await(pool:run_query 'select * from things'))
      end)
    end
  end)
end

describe('a pool of connections', function()
  after_each(function()
    remove_files()
  end)

  it('is misuse without a driver, with unknown options, or with what cannot be copied', function()
    misuse(function() db.ConnectionPool() end, "bad argument #1 to 'ConnectionPool'")
    misuse(function() db.ConnectionPool 'a/b' end, "bad argument #1 to 'ConnectionPool'")
    misuse(function() db.ConnectionPool('sqlite3', 'x', { sise = 1 }) end, "no option 'sise'")
    misuse(function() db.ConnectionPool('sqlite3', 'x', { size = 0 }) end, 'size')
    misuse(function() db.ConnectionPool('sqlite3', io.stdout) end, 'got userdata')
    misuse(function() db.rows({}, 'select 1') end, "bad argument #1 to 'rows'", 'ConnectionPool')
    misuse(function() db.Blob(1) end, "bad argument #1 to 'Blob'", 'string expected')
  end)

  it('fails when there is no such driver, file or server', run(function()
    for _, pool in ipairs {
      db.ConnectionPool('nosuchdriver', 'x'),
      db.ConnectionPool('sqlite3', '/no/such/directory/file'),
    } do
      for _ = 1, 2 do failure_of(pool:run_query 'select 1') end
      failure_of(pool:run_interaction(print))
      failure_of(db.rows(pool, 'select 1'):next())
      await(pool:close())
    end
    assert.truthy(failure_of(db.ConnectionPool('nosuchdriver'):run_query 'select 1')
      :check "module 'luasql.nosuchdriver' not found")
  end))

  it('does not keep a script from ending that has left rows where they were', function()
    for _, take in ipairs {
      'for row in flow.QueryIterator(pool, sql) do if row.i == 5 then break end end',
      "rows = require 'coop.db'.rows(pool, sql); coop.await(rows:next())",
    } do
      local result = child.coop([[
        local coop, flow = require 'coop', require 'coop.flow'
        local pool = require 'coop.db'.ConnectionPool('sqlite3', ':memory:')
        local sql = 'with recursive n(i) as (select 1 union all select i+1 from n) select i from n'
      ]] .. take)
      assert.equal('', result.err)
      assert.equal(0, result.status)
    end
  end)

  it('fails when a file is no database', run(function()
    local path = new_file()
    local file <close> = assert(io.open(path, 'w'))
    file:write(('this is no database '):rep(100))
    file:flush()
    local pool <close> = db.ConnectionPool('sqlite3', path)
    assert.truthy(failure_of(pool:run_query 'select * from sqlite_master'):check 'not a database')
  end))

  it('of a database in memory has one connection', run(function()
    local pool <close> = db.ConnectionPool('sqlite3', ':memory:', { size = 3 })
    await(pool:run_operation 'create table t (a)')
    local ds = {}
    for i = 1, 20 do ds[i] = pool:run_operation('insert into t values (?)', i) end
    await(coop.gather_results(ds))
    assert.equal(20, await(pool:run_query 'select count(*) as n from t')[1].n)
  end))
end)
