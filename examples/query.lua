-- You will learn: how rows of a database flow to who takes them, while the loop
-- goes on; how parameters and transactions are written.

local coop = require 'coop'
local db = require 'coop.db'

local path = os.tmpname()
local pool = db.ConnectionPool('sqlite3', path)
coop.await(pool:run_operation 'create table planets (name text, moons integer)')

-- All or nothing. Each `?` stands for a parameter.
coop.await(pool:run_interaction(function(tx)
  for name, moons in pairs { Earth = 1, Mars = 2, Jupiter = 95, Saturn = 146, ["Kepler's"] = 0 } do
    coop.await(tx:operation('insert into planets values (?, ?)', name, moons))
  end
end))

local rows = coop.await(pool:run_query('select * from planets where moons > ? order by moons', 50))
for _, row in ipairs(rows) do print(('%s has %d moons'):format(row.name, row.moons)) end

-- What fails is undone.
local failed = pool:run_interaction(function(tx)
  coop.await(tx:operation 'delete from planets')
  error('on second thoughts', 0)
end)
coop.await(failed:add_errback(function(failure) print('undone: ' .. failure.value) end))

-- Many rows, one after the other: only a few are in memory at any time.
local numbers = db.rows(pool, [[
  with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < ?)
  select n, (select count(*) from planets) as planets from numbers
]], 100000)
local sum, planets = 0, nil
for row in function() return coop.await(numbers:next()) end do
  sum, planets = sum + row.n, row.planets
end
print(('%d planets, and the numbers sum up to %d'):format(planets, sum))

coop.await(pool:close())
os.remove(path)
