-- You will learn: how flows run side by side, and how their values come together.

local coop = require 'coop'
local flow = require 'coop.flow'

-- Three words and three numbers. The words take a break before the last one.
local words = { 'one', 'two', flow.Cooperate(0.01), 'three' }
local numbers = { 1, 2, 3 }

print 'Zip: pairs, as soon as both are there'
for pair in flow.Zip(words, numbers) do print(pair[1], pair[2]) end

print 'Merge: each value as soon as it is there'
for value in flow.Merge(words, numbers) do print(value) end

-- Each branch keeps its own pace.
local function every(seconds, what)
  return function()
    for i = 1, 3 do
      coroutine.yield(flow.Cooperate(seconds))
      coroutine.yield(('%s %d'):format(what, i))
    end
  end
end
print 'Merge: a snail and a hare'
for step in flow.Merge(every(0.1, 'snail'), every(0.02, 'hare')) do print(step) end

-- A flow.Deferred is a flow that runs by itself, as a task: these two take turns.
local function request(name)
  return function()
    for _, step in ipairs { 'step one', 'step two' } do
      print(name .. ': ' .. step)
      coroutine.yield(flow.Cooperate())
    end
    coroutine.yield 'a page'
    coroutine.yield('for ' .. name)
  end
end
print 'two requests'
local james, wendy = flow.Deferred(request 'James'), flow.Deferred(request 'Wendy')
for _, values in ipairs(coop.await(coop.gather_results { james, wendy })) do
  print(table.concat(values, ' '))
end
