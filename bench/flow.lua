-- What a value costs in each stage of a chain of five: stages of coop.flow beside plain coroutines
-- and Node's async generators. The rounds are interleaved; what is printed are medians.
--     LUA_PATH='build/lua/?.lua;;' LUA_CPATH='build/?.so;;' lua5.4 bench/flow.lua [values] [rounds]

local wrap, yield = coroutine.wrap, coroutine.yield -- Lua's own: coop replaces them

local coop = require 'coop'
local flow = require 'coop.flow'

local values = tonumber(arg[1]) or 200000
local rounds = tonumber(arg[2]) or 15
local STAGES = 5

local function count()
  for i = 1, values do yield(i) end
end

-- A chain of plain coroutines: what anything like it has to pay.
local function plain()
  local function plus_one(source)
    return wrap(function()
      for v in source do yield(v + 1) end
    end)
  end
  local chain = wrap(count)
  for _ = 2, STAGES do chain = plus_one(chain) end
  return chain
end

-- The same bodies as stages.
local function stages()
  local put = coroutine.yield
  local function plus_one(source)
    return flow.wrap(function()
      for v in source do put(v + 1) end
    end)
  end
  local chain = flow.wrap(function()
    for i = 1, values do put(i) end
  end)
  for _ = 2, STAGES do chain = plus_one(chain) end
  return chain
end

local function maps()
  local put = coroutine.yield
  local function increment(v) return v + 1 end
  local chain = flow.wrap(function()
    for i = 1, values do put(i) end
  end)
  for _ = 2, STAGES do chain = flow.Map(increment, chain) end
  return chain
end

-- Nanoseconds for a value and a stage.
local function cost(seconds) return seconds / values / STAGES * 1e9 end

local function read(chain)
  local start, sum = coop.seconds(), 0
  for v in chain do sum = sum + v end
  assert(sum == values * (values + 1) // 2 + (STAGES - 1) * values)
  return cost(coop.seconds() - start)
end

local function in_coroutine(make)
  return function() return coop.run(function() return read(make()) end) end
end

local function as_task()
  return coop.run(function()
    local start = coop.seconds()
    assert(#coop.await(flow.Deferred(stages())) == values)
    return cost(coop.seconds() - start)
  end)
end

local function node()
  local script = arg[0]:gsub('%.lua$', '_node.js')
  local pipe = io.popen(('node %s %d 2>/dev/null'):format(script, values))
  local ns = pipe:read 'n'
  pipe:close()
  return ns
end

local contenders = {
  { 'plain coroutines', function() return read(plain()) end },
  { 'stages, in a coroutine', in_coroutine(stages) },
  { 'Map, in a coroutine', in_coroutine(maps) },
  { 'stages, as flow.Deferred', as_task },
  { "Node's async generators", node },
}

for _ = 1, rounds do
  for _, contender in ipairs(contenders) do
    collectgarbage()
    table.insert(contender, contender[2]())
  end
end

local base
for _, contender in ipairs(contenders) do
  local name = contender[1]
  local times = { table.unpack(contender, 3) }
  table.sort(times)
  local median = times[#times // 2 + 1]
  if median then
    base = base or median
    print(('%-26s %6.1f ns  %5.2f'):format(name, median, median / base))
  else
    print(('%-26s not there'):format(name))
  end
end
