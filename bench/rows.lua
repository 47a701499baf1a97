-- A million rows of a SQLite file, through flow.Threaded(QueryIterator), beside the same loop over
-- LuaSQL without coop. The rounds take turns; what is printed are medians.
--     LUA_PATH='build/lua/?.lua;;' LUA_CPATH='build/?.so;;' lua5.4 bench/rows.lua [rows] [rounds]

local coop = require 'coop'
local db = require 'coop.db'
local flow = require 'coop.flow'
local driver = require 'luasql.sqlite3'

local rows = tonumber(arg[1]) or 1000000
local rounds = tonumber(arg[2]) or 5
local path = os.tmpname()
local SELECT = 'select id, name, size from things'

local function fill(connection)
  connection:execute 'create table things (id integer, name text, size real)'
  connection:execute(([[insert into things
    with recursive n(i) as (select 1 union all select i + 1 from n where i < %d)
    select i, 'thing ' || i, i * 0.5 from n]]):format(rows))
end

local sum -- of a round

local function add(row) sum = sum + row.id + row.size + #row.name end

-- LuaSQL's own loop, one table for all rows.
local function alone_reusing(connection)
  local cursor = connection:execute(SELECT)
  local row = cursor:fetch({}, 'a')
  while row do
    add(row)
    row = cursor:fetch(row, 'a')
  end
end

-- The same with a table for each row: they may be kept.
local function alone(connection)
  local cursor = connection:execute(SELECT)
  local row = cursor:fetch({}, 'a')
  while row do
    add(row)
    row = cursor:fetch({}, 'a')
  end
end

local function flows()
  coop.run(function()
    local pool <close> = db.ConnectionPool('sqlite3', path)
    for row in flow.Threaded(flow.QueryIterator(pool, SELECT)) do add(row) end
  end)
end

local connection = driver.sqlite3():connect(path)
fill(connection)

local contenders = {
  { 'LuaSQL, a table for each row', alone },
  { 'LuaSQL, one table for all', alone_reusing },
  { 'flow.Threaded(QueryIterator)', flows },
}

local expected
for _ = 1, rounds do
  for _, contender in ipairs(contenders) do
    collectgarbage()
    sum = 0
    local start = coop.seconds()
    contender[2](connection)
    table.insert(contender, coop.seconds() - start)
    expected = expected or sum
    assert(sum == expected)
  end
end
connection:close()
os.remove(path)

local base
for _, contender in ipairs(contenders) do
  local times = { table.unpack(contender, 3) }
  table.sort(times)
  local speed = rows / times[#times // 2 + 1]
  base = base or speed
  print(('%-30s %9.0f rows/s  %5.2f'):format(contender[1], speed, speed / base))
end
