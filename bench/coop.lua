--- coop's programs, one for each workload.
---     coop bench/coop.lua WORKLOAD [ARGUMENT...]     prints  figure<TAB>unit  lines

local coop = require 'coop'

local yield, await = coroutine.yield, coop.await

--- Times are the processor's: what other processes take of the core does not count.
local function report_each(start, n, unit)
  print(('%.2f\t%s'):format((os.clock() - start) * 1e9 / n, unit))
end

--- Bytes of memory that the process has.
local function resident()
  local file <close> = assert(io.open '/proc/self/statm')
  return tonumber(file:read 'a':match '^%d+ (%d+)') * 4096
end

local workload = {}

local nothing = coop.generator(function(n)
  for _ = 1, n do yield() end
end)

local count = coop.generator(function(n)
  for i = 1, n do yield(i) end
end)

local function steps(cooperator, tasks, total)
  local each, waits = total // tasks, {}
  for i = 1, tasks do waits[i] = cooperator:coiterate(nothing(each)) end
  local start = os.clock()
  for i = 1, tasks do await(waits[i]) end
  report_each(start, each * tasks, 'ns/step')
end

function workload.steps(tasks, total) steps(coop.cooperator, tasks, total) end

workload['steps-quantum'] = function(tasks, total)
  steps(coop.Cooperator { quantum = 16 }, tasks, total)
end

workload['accumulate-batch'] = function(total, batch)
  local start = os.clock()
  local values = await(coop.batch_accumulate(batch, count(total)))
  report_each(start, total, 'ns/value')
  assert(#values == total)
end

workload['accumulate-each'] = function(total)
  local start = os.clock()
  local values = await(coop.accumulate(count(total)))
  report_each(start, total, 'ns/value')
  assert(#values == total)
end

function workload.deferred(total)
  local Deferred = coop.Deferred
  local function increment(v) return v + 1 end
  local start = os.clock()
  for i = 1, total do
    local d = Deferred()
    d:add_callback(increment)
    d:add_callback(increment)
    d:add_callback(increment)
    d:callback(i)
  end
  report_each(start, total, 'ns/Deferred')
end

workload['await-ready'] = function(total)
  local succeed, sum = coop.succeed, 0
  local start = os.clock()
  for i = 1, total do sum = sum + await(succeed(i)) end
  report_each(start, total, 'ns/await')
  assert(sum == total * (total + 1) // 2)
end

--- What the loop is to fire in its next turn, and what in the one after that.
workload['await-fired'] = function(total, coroutines)
  local deferreds, values, queued = {}, {}, 0
  local fired, given = {}, {} -- those of the last turn, used again
  local body = coop.coroutine(function(n)
    local Deferred, sum = coop.Deferred, 0
    for i = 1, n do
      local d = Deferred()
      queued = queued + 1
      deferreds[queued], values[queued] = d, i
      sum = sum + await(d)
    end
    assert(sum == n * (n + 1) // 2)
  end)
  local start = os.clock()
  for _ = 1, coroutines do body(total // coroutines) end
  coop.cooperate(function()
    local n = queued
    deferreds, values, fired, given, queued = fired, given, deferreds, values, 0
    for i = 1, n do fired[i]:callback(given[i]) end
    return queued > 0 or nil
  end):when_done():add_callback(function() report_each(start, total, 'ns/await') end)
end

--- Deferreds that hand their result on to the next, from the first.
function workload.chain(total)
  local rounds = math.max(1, 1000000 // total)
  local start = os.clock()
  for _ = 1, rounds do
    local first = coop.Deferred()
    local last = first
    for _ = 2, total do
      local d = coop.Deferred()
      last:chain_deferred(d)
      last = d
    end
    first:callback(1)
    assert(last.called)
  end
  report_each(start, rounds * total, 'ns/Deferred')
end

--- Deferreds that each wait for the next, which a handler returned; the last has the result.
function workload.nest(total)
  local rounds = math.max(1, 1000000 // total)
  local start = os.clock()
  for _ = 1, rounds do
    local ds = {}
    for i = 1, total do
      ds[i] = coop.Deferred():add_callback(function() return ds[i + 1] or 1 end)
    end
    for i = 1, total do ds[i]:callback() end
    assert(ds[1].result == 1)
  end
  report_each(start, rounds * total, 'ns/Deferred')
end

function workload.handlers(total)
  local rounds = math.max(1, 1000000 // total)
  local function increment(v) return v + 1 end
  local start = os.clock()
  for _ = 1, rounds do
    local d = coop.Deferred()
    for _ = 1, total do d:add_callback(increment) end
    d:callback(0)
    assert(d.result == total)
  end
  report_each(start, rounds * total, 'ns/handler')
end

function workload.spawn(total)
  local spawn = coop.spawn
  local function body(v) return v end
  local start = os.clock()
  for i = 1, total do spawn(body, i) end
  report_each(start, total, 'ns/coroutine')
end

function workload.timers(total)
  local call_later = coop.call_later
  local random, calls, fired, left = 42, {}, 0, total - total // 2
  local done = coop.Deferred()
  local start = os.clock()
  for i = 1, total do
    random = (random * 1103515245 + 12345) & 0x7fffffff
    calls[i] = call_later((random >> 8) % 1000 / 1000, function()
      fired = fired + 1
      if fired == left then done:callback() end
    end)
  end
  for i = 2, total, 2 do calls[i]:cancel() end
  await(done)
  report_each(start, total, 'ns/timer')
end

function workload.latency(duration)
  local seconds = coop.seconds
  local late, steps_made, over = {}, 0, false
  local compute = coop.generator(function(n)
    local i = 0
    while not over do
      i = i + 1
      yield(n * i / 3.0)
    end
    steps_made = steps_made + i
  end)
  local start, tasks = seconds(), {}
  for i = 1, 4 do tasks[i] = coop.coiterate(compute(i)) end
  local function arm()
    local due = seconds() + 0.005
    coop.call_later(0.005, function()
      local now = seconds()
      late[#late + 1] = now - due
      over = now - start >= duration
      if not over then arm() end
    end)
  end
  arm()
  for i = 1, 4 do await(tasks[i]) end
  local took = seconds() - start
  table.sort(late)
  print(('%.3f\tms p50'):format(late[(#late + 1) // 2] * 1e3))
  print(('%.3f\tms p99'):format(late[(#late * 99 + 99) // 100] * 1e3))
  print(('%.2f\tMsteps/s'):format(steps_made / took / 1e6))
end

local function memory(total, make)
  local kept = {}
  for i = 1, total do kept[i] = false end
  collectgarbage()
  local before = resident()
  for i = 1, total do kept[i] = make(i) end
  collectgarbage()
  print(('%.1f\tbytes'):format((resident() - before) / total))
  return kept
end

--- A coroutine that waits.
workload['memory-tasks'] = function(total)
  local never = coop.generator(function(v)
    yield(v)
  end)
  local function make(i)
    local g = never(i)
    g:next()
    return g
  end
  memory(total, make)
  os.exit(0)
end

--- A task whose generator has not begun.
workload['memory-new-tasks'] = function(total)
  local c = coop.Cooperator { started = false }
  memory(total, function(i) return c:cooperate(count(i)) end)
  os.exit(0)
end

workload['memory-deferreds'] = function(total)
  local function same(v) return v end
  memory(total, function() return coop.Deferred():add_callback(same) end)
  os.exit(0)
end

--- Calls to another thread and back, one after the other.
workload['threads-call'] = function(total)
  local threads = require 'coop.threads'
  local function same(v) return v end
  await(threads.call(same, 0)) -- the thread is there
  local start, began = os.clock(), coop.seconds()
  for i = 1, total do assert(await(threads.call(same, i)) == i) end
  print(('%.3f\tus of the processor'):format((os.clock() - start) * 1e6 / total))
  print(('%.3f\tus/call'):format((coop.seconds() - began) * 1e6 / total))
end

local run = workload[arg[1]]
if not run then error('no workload ' .. tostring(arg[1]), 0) end
local arguments = {}
for i = 2, #arg do arguments[i - 1] = math.tointeger(tonumber(arg[i])) end
run(table.unpack(arguments))
