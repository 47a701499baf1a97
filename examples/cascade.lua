-- You will learn: how pausing and cancelling the outermost coroutine reaches the innermost.

local coop = require 'coop'

-- Nine real seconds, or none at all on a clock that is moved by hand.
local virtual = os.getenv 'COOP_EXAMPLE_CLOCK' == 'virtual'
local clock = virtual and coop.Clock() or coop.reactor
local start = clock:seconds()

local function cleanup_of(name)
  return setmetatable({}, { __close = function() print(name .. ' cleans up') end })
end

local level3 = coop.coroutine(function()
  local cleanup <close> = cleanup_of 'level 3'
  while true do
    print(('%.0f s'):format(clock:seconds() - start))
    coop.await(coop.defer_later(clock, 1))
  end
end)

local level2 = coop.coroutine(function()
  local cleanup <close> = cleanup_of 'level 2'
  coop.await(level3())
end)

local level1 = coop.coroutine(function()
  local cleanup <close> = cleanup_of 'level 1'
  coop.await(level2())
end)

local outermost

local function at(seconds, method)
  clock:call_later(seconds, function()
    print(('%s at %d s'):format(method, seconds))
    outermost[method](outermost)
  end)
end

at(3, 'pause')
at(6, 'unpause')
at(9, 'cancel')
outermost = level1()

if virtual then clock:advance(9) end
