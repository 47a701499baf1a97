--- cqueues: a thread for each task, which give way by cqueues.sleep(0); a promise for a Deferred.
---     lua5.4 bench/cqueues.lua WORKLOAD [ARGUMENT...]

local cqueues = require 'cqueues'
local condition = require 'cqueues.condition'
local promise = require 'cqueues.promise'

local give_way, yield = cqueues.poll, coroutine.yield

local function report_each(start, n, unit)
  print(('%.2f\t%s'):format((os.clock() - start) * 1e9 / n, unit))
end

local workload = {}

function workload.steps(tasks, total)
  local queue, each = cqueues.new(), total // tasks
  for _ = 1, tasks do
    queue:wrap(function()
      for _ = 1, each do give_way() end
    end)
  end
  local start = os.clock()
  assert(queue:loop())
  report_each(start, each * tasks, 'ns/step')
end

function workload.accumulate(total, batch)
  local queue, values = cqueues.new(), {}
  queue:wrap(function()
    local count = coroutine.wrap(function()
      for i = 1, total do yield(i) end
    end)
    for v in count do
      values[#values + 1] = v
      if #values % batch == 0 then give_way() end
      if #values == total then return end -- its wrap tells nothing of the end
    end
  end)
  local start = os.clock()
  assert(queue:loop())
  report_each(start, total, 'ns/value')
end

workload['await-ready'] = function(total)
  local queue, sum = cqueues.new(), 0
  queue:wrap(function()
    for i = 1, total do
      local p = promise.new()
      p:set(true, i)
      sum = sum + p:get()
    end
  end)
  local start = os.clock()
  assert(queue:loop())
  report_each(start, total, 'ns/await')
  assert(sum == total * (total + 1) // 2)
end

workload['await-fired'] = function(total, coroutines)
  local queue, queued, left = cqueues.new(), {}, coroutines
  for _ = 1, coroutines do
    queue:wrap(function()
      for i = 1, total // coroutines do
        local p = promise.new()
        queued[#queued + 1] = { p, i }
        assert(p:get() == i)
      end
      left = left - 1
    end)
  end
  queue:wrap(function()
    while left > 0 do
      local mine = queued
      queued = {}
      for _, entry in ipairs(mine) do entry[1]:set(true, entry[2]) end
      give_way()
    end
  end)
  local start = os.clock()
  assert(queue:loop())
  report_each(start, total, 'ns/await')
end

function workload.spawn(total)
  local queue = cqueues.new()
  local function body(v) return v end
  local start = os.clock()
  for i = 1, total do
    queue:wrap(body, i)
    if i % 1000 == 0 then assert(queue:loop()) end
  end
  assert(queue:loop())
  report_each(start, total, 'ns/coroutine')
end

function workload.timers(total)
  local queue, random, fired = cqueues.new(), 42, 0
  local start = os.clock()
  local cancelled = condition.new()
  for i = 1, total do
    random = (random * 1103515245 + 12345) & 0x7fffffff
    local delay = (random >> 8) % 1000 / 1000
    queue:wrap(function()
      if i % 2 == 1 then
        cqueues.sleep(delay)
        fired = fired + 1
      else
        cqueues.poll(cancelled, delay)
      end
    end)
  end
  queue:step(0)
  cancelled:signal()
  assert(queue:loop())
  report_each(start, total, 'ns/timer')
  assert(fired == total - total // 2)
end

function workload.latency(duration)
  local queue, late, steps_made, over = cqueues.new(), {}, 0, false
  for n = 1, 4 do
    queue:wrap(function()
      local i, x = 0, 0.0
      while not over do
        i = i + 1
        x = n * i / 3.0
        give_way()
      end
      steps_made = steps_made + i
      return x
    end)
  end
  local start = cqueues.monotime()
  queue:wrap(function()
    while not over do
      local due = cqueues.monotime() + 0.005
      cqueues.sleep(0.005)
      late[#late + 1] = cqueues.monotime() - due
      over = cqueues.monotime() - start >= duration
    end
  end)
  assert(queue:loop())
  local took = cqueues.monotime() - start
  table.sort(late)
  print(('%.3f\tms p50'):format(late[(#late + 1) // 2] * 1e3))
  print(('%.3f\tms p99'):format(late[(#late * 99 + 99) // 100] * 1e3))
  print(('%.2f\tMsteps/s'):format(steps_made / took / 1e6))
end

workload['memory-tasks'] = function(total)
  local queue, never = cqueues.new(), condition.new()
  local function resident()
    local file <close> = assert(io.open '/proc/self/statm')
    return tonumber(file:read 'a':match '^%d+ (%d+)') * 4096
  end
  collectgarbage()
  local before = resident()
  for _ = 1, total do queue:wrap(function() never:wait() end) end
  queue:step(0)
  collectgarbage()
  print(('%.1f\tbytes'):format((resident() - before) / total))
  os.exit(0, false)
end

local arguments = {}
for i = 2, #arg do arguments[i - 1] = math.tointeger(tonumber(arg[i])) end
workload[arg[1]](table.unpack(arguments))
