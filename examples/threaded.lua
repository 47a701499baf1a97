-- You will learn: how a function that blocks runs in a thread of its own, beside
-- cooperative work, and how its values come back one by one.

local coop = require 'coop'
local threads = require 'coop.threads'

-- In the thread: its own Lua state, nothing of ours but what it was given. Here
-- it may block as long as it likes.
local function count(name, n)
  for i = 1, n do
    os.execute 'sleep 0.02'
    coroutine.yield(('%s: %d'):format(name, i))
  end
end

local counting = threads.stream(count, 'blocking', 5)

-- Meanwhile the loop is free.
local cooperative = coop.spawn(function()
  for i = 1, 5 do
    coop.await(coop.sleep(0.02))
    print('cooperative: ' .. i)
  end
end)

for line in function() return coop.await(counting:next()) end do print(line) end
coop.await(cooperative)

-- A batch of work on every core, the results in order.
local pool <close> = threads.Pool(2)
local sums = coop.await(pool:map(function(n)
  local sum = 0
  for i = 1, n * 100000 do sum = sum + i % n end
  return sum
end, { 1, 2, 3, 4, 5 }))
print('sums: ' .. table.concat(sums, ' '))
