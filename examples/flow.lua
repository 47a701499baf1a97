-- You will learn: how stages pull values from stages, and where their errors go.

local flow = require 'coop.flow'

-- The body of a stage yields values, one at a time, as somebody asks for them.
local function counter()
  for i = 1, 3 do coroutine.yield(i) end
end

print 'a consumer drops what it does not like'
local function consumer()
  for number in flow.wrap(counter) do
    if number ~= 2 then coroutine.yield(number) end
  end
end
for number in flow.wrap(consumer) do print(number) end

-- A loop waits for each value by itself. By hand: who yields a stage has its next value ready.
print 'the same, step by step'
local function stepwise()
  local source = flow.wrap(counter)
  while true do
    coroutine.yield(source)
    local number = source:next()
    if number == nil then return end
    if number ~= 2 then coroutine.yield(number) end
  end
end
for number in flow.wrap(stepwise) do print(number) end

print 'an iterator keeps its state, a body stands in it'
local function iterator()
  local state
  local function second()
    state = function() end
    return 'state two'
  end
  local function first()
    state = second
    return 'state one'
  end
  state = first
  return function() return state() end
end
local function body()
  coroutine.yield 'state one'
  coroutine.yield 'state two'
end
for state in iterator() do print(state) end
for state in flow.wrap(body) do print(state) end

-- An error comes behind the values before it. One that a stage traps is its last value; any other
-- is raised where the stage is pulled from.
print 'errors'
local IOError, AssertionError = { name = 'IOError' }, { name = 'AssertionError' }
local function failing(class)
  return function()
    coroutine.yield(1)
    coroutine.yield(2)
    error(setmetatable({}, class))
  end
end
for _, class in ipairs { IOError, AssertionError } do
  local source = flow.wrap(failing(class), IOError)
  local ok = pcall(function()
    for value in source do print(value == IOError and 'trapped' or value) end
  end)
  if not ok then print 'notrap' end
end

-- A Block serves programs that have no loop: where a stage wants to wait, the process sleeps.
print 'at once, and a little later'
local function delayed()
  coroutine.yield 'at once'
  coroutine.yield(flow.Cooperate(0.1))
  coroutine.yield 'a little later'
end
for value in flow.Block(counter) do print(value) end
for value in flow.Block(delayed) do print(value) end
