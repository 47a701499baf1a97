-- You will learn: how rows of a database flow to who takes them, while the loop
-- goes on; how parameters and transactions are written. The same of two databases.
--     coop examples/query.lua [a file for SQLite]

local coop = require 'coop'
local db = require 'coop.db'
local flow = require 'coop.flow'

local moons = { Earth = 1, Mars = 2, Jupiter = 95, Saturn = 146, ["Kepler's"] = 0 }

local function show(pool, numbers)
  coop.await(pool:run_operation 'create table planets (name text, moons integer)')

  -- All or nothing. Each `?` stands for a parameter: text stays text.
  coop.await(pool:run_interaction(function(tx)
    for name, n in pairs(moons) do
      coop.await(tx:operation('insert into planets values (?, ?)', name, n))
    end
  end))

  -- Rows are a stage like any other.
  local many = flow.QueryIterator(pool, 'select * from planets where moons > ? order by moons', 50)
  for row in many do print(('%s has %d moons'):format(row.name, row.moons)) end

  -- What fails is undone.
  local failed = pool:run_interaction(function(tx)
    coop.await(tx:operation 'delete from planets')
    error('on second thoughts', 0)
  end)
  coop.await(failed:add_errback(function(failure) print('undone: ' .. failure.value) end))
  local left = coop.await(pool:run_query 'select count(*) as n from planets')
  print(('%d planets'):format(left[1].n))

  -- Many rows: only a few are in memory at any time, and a clock ticks between them.
  local ticks = 0
  local clock = coop.LoopingCall(function() ticks = ticks + 1 end)
  clock:start(0.001)
  local rows = flow.Threaded(flow.QueryIterator(pool, numbers, 100000))
  local sum = 0
  for n in flow.Map(function(row) return row.n end, rows) do sum = sum + n end
  clock:stop()
  print(('the numbers sum up to %d, %s'):format(sum, ticks > 1 and 'the clock ticked' or 'no tick'))
  coop.await(pool:close())
end

print 'SQLite, in a file'
local path = arg[1] or os.tmpname()
show(db.ConnectionPool('sqlite3', path), [[
  with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < ?)
  select n from numbers
]])
if not arg[1] then os.remove(path) end

-- A server of our own, where Debian's package has put it, on a socket of its own. It is no
-- server for root, who becomes the user `postgres`.
print 'PostgreSQL, a server'

local function run(command)
  local pipe <close> = assert(io.popen(command))
  return pipe:read 'l'
end

local bin = run 'ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1'
if not bin or not package.searchpath('luasql.postgres', package.cpath) then
  return print 'is not installed: packages postgresql and lua-sql-postgres'
end

local root = run 'id -u' == '0'
local directory = run 'mktemp -d'
if root then os.execute('chown postgres ' .. directory) end

local function as_postgres(command)
  command = ('cd %s && %s/%s >log 2>&1'):format(directory, bin, command)
  if root then command = ('su postgres -s /bin/sh -c "%s"'):format(command) end
  assert(os.execute(command), 'the server could not be run')
end

local _files <close> = setmetatable({}, { __close = function()
  os.execute('rm -r ' .. directory)
end })
as_postgres 'initdb -D data -A trust -U postgres -N'
as_postgres(("pg_ctl -D data -w -o '-k %s -c listen_addresses=' start"):format(directory))
local _server <close> = setmetatable({}, { __close = function()
  as_postgres 'pg_ctl -D data -m fast -w stop'
end })

show(db.ConnectionPool('postgres', 'postgres', 'postgres', '', directory),
  'select n from generate_series(1, ?) as numbers(n)')
