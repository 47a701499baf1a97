-- You will learn: how functions that wait share one thread.

local coop = require 'coop'

local count = coop.coroutine(function(name, pause)
  for i = 1, 3 do
    coop.await(coop.sleep(pause))
    print(name .. ': ' .. i)
  end
end)

coop.await(coop.gather_results { count('slow', 0.05), count('fast', 0.02) })
print 'both are done'
