-- You will learn: how requests of several steps take turns, by callbacks and by coroutines.

local coop = require 'coop'

-- One step of a request takes its time, then tells.
local function step(name, done, pace)
  return coop.sleep(pace):add_callback(function() print(name .. ': ' .. done) end)
end

-- With callbacks, each step is a function that the one before leads to.
local function by_callbacks(name, pace)
  return step(name, 'connected', pace)
    :add_callback(function() return step(name, 'asked', pace) end)
    :add_callback(function() return step(name, 'answered', pace) end)
end

-- With a coroutine, the steps stand below one another, and a loop is a loop.
local by_coroutine = coop.coroutine(function(name, pace)
  for _, done in ipairs { 'connected', 'asked', 'answered' } do
    coop.await(step(name, done, pace))
  end
end)

for _, way in ipairs { 'by callbacks', 'by coroutines' } do
  local request = way == 'by callbacks' and by_callbacks or by_coroutine
  print(way)
  -- No timer says when to stop: it is over when all are done.
  coop.await(coop.gather_results {
    request('apple', 0.03),
    request('banana', 0.04),
    request('cherry', 0.07),
  })
end
print 'all done'
