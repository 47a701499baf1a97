-- You will learn: how a function that blocks runs in a thread of its own, and flows
-- together with cooperative work.

local coop = require 'coop'
local flow = require 'coop.flow'
local threads = require 'coop.threads'

-- In the thread: its own Lua state, nothing of ours but what it was given. Here it may
-- block as long as it likes.
local function blocking(n)
  for i = n, 1, -1 do
    os.execute 'sleep 0.02'
    coroutine.yield('blocking: ' .. i)
  end
end

-- Here it must not: it waits.
local function cooperative()
  for i = 1, 5 do
    coroutine.yield(flow.Cooperate(0.02))
    coroutine.yield('cooperative: ' .. i)
  end
end

for line in flow.Merge(flow.Threaded(blocking, 5), cooperative) do print(line) end

-- An error of the thread comes behind the values before it.
local failing = flow.Deferred(flow.Threaded(function()
  coroutine.yield(1)
  error('no more', 0)
end))
coop.await(failing:add_errback(function(failure)
  print(('%s, after %d value'):format(failure.value, #failure.partial))
end))

-- A batch of work on every core, the results in order.
local pool <close> = threads.Pool(2)
local sums = coop.await(pool:map(function(n)
  local sum = 0
  for i = 1, n * 100000 do sum = sum + i % n end
  return sum
end, { 1, 2, 3, 4, 5 }))
print('sums are ' .. table.concat(sums, ' '))
