--- Tarantool: fibers that give way by fiber.yield, channels of one place for Deferreds.
---     tarantool bench/tarantool.lua WORKLOAD [ARGUMENT...]

local fiber = require 'fiber'
local clock = require 'clock'

local function report_each(start, n, unit)
  print(('%.2f\t%s'):format((clock.proc() - start) * 1e9 / n, unit))
end

--- Runs the functions as fibers until all have ended.
local function run_all(bodies)
  local fibers = {}
  for i, body in ipairs(bodies) do
    fibers[i] = fiber.new(body)
    fibers[i]:set_joinable(true)
  end
  for _, f in ipairs(fibers) do assert(f:join()) end
end

local workload = {}

function workload.steps(tasks, total)
  local bodies, each = {}, math.floor(total / tasks)
  for i = 1, tasks do
    bodies[i] = function()
      for _ = 1, each do fiber.yield() end
    end
  end
  local start = clock.proc()
  run_all(bodies)
  report_each(start, each * tasks, 'ns/step')
end

function workload.accumulate(total, batch)
  local channel, values = fiber.channel(batch), {}
  local start = clock.proc()
  run_all {
    function()
      for i = 1, total do channel:put(i) end
    end,
    function()
      for i = 1, total do values[i] = channel:get() end
    end,
  }
  assert(#values == total)
  report_each(start, total, 'ns/value')
end

workload['await-ready'] = function(total)
  local start = clock.proc()
  for i = 1, total do
    local channel = fiber.channel(1)
    channel:put(i)
    assert(channel:get() == i)
  end
  report_each(start, total, 'ns/await')
end

workload['await-fired'] = function(total, coroutines)
  local queued, left, bodies = {}, coroutines, {}
  for i = 1, coroutines do
    bodies[i] = function()
      for k = 1, math.floor(total / coroutines) do
        local channel = fiber.channel(1)
        queued[#queued + 1] = { channel, k }
        assert(channel:get() == k)
      end
      left = left - 1
    end
  end
  bodies[#bodies + 1] = function()
    while left > 0 do
      local mine = queued
      queued = {}
      for _, entry in ipairs(mine) do entry[1]:put(entry[2]) end
      fiber.yield()
    end
  end
  local start = clock.proc()
  run_all(bodies)
  report_each(start, total, 'ns/await')
end

function workload.spawn(total)
  local function body(v) return v end
  local start = clock.proc()
  for i = 1, total do fiber.create(body, i) end
  report_each(start, total, 'ns/coroutine')
end

function workload.timers(total)
  local random, fibers, fired = 42, {}, 0
  local start = clock.proc()
  for i = 1, total do
    random = tonumber((random * 1103515245ULL + 12345) % 0x80000000ULL)
    local delay = math.floor(random / 256) % 1000 / 1000
    fibers[i] = fiber.create(function()
      fiber.sleep(delay)
      fired = fired + 1
    end)
  end
  for i = 2, total, 2 do fibers[i]:cancel() end
  while fired < total - math.floor(total / 2) do fiber.sleep(0.01) end
  report_each(start, total, 'ns/timer')
end

function workload.latency(duration)
  local late, steps_made, over, bodies = {}, 0, false, {}
  for n = 1, 4 do
    bodies[n] = function()
      local i, x = 0, 0
      while not over do
        i = i + 1
        x = n * i / 3
        fiber.yield()
      end
      steps_made = steps_made + i
      return x
    end
  end
  local start = clock.monotonic()
  bodies[5] = function()
    while not over do
      local due = clock.monotonic() + 0.005
      fiber.sleep(0.005)
      late[#late + 1] = clock.monotonic() - due
      over = clock.monotonic() - start >= duration
    end
  end
  run_all(bodies)
  local took = clock.monotonic() - start
  table.sort(late)
  print(('%.3f\tms p50'):format(late[math.ceil(#late / 2)] * 1e3))
  print(('%.3f\tms p99'):format(late[math.ceil(#late * 0.99)] * 1e3))
  print(('%.2f\tMsteps/s'):format(steps_made / took / 1e6))
end

workload['memory-tasks'] = function(total)
  local function resident()
    local file = assert(io.open '/proc/self/statm')
    local pages = file:read '*a':match '^%d+ (%d+)'
    file:close()
    return tonumber(pages) * 4096
  end
  local never = fiber.cond()
  collectgarbage()
  local before = resident()
  for _ = 1, total do fiber.create(function() never:wait() end) end
  collectgarbage()
  print(('%.1f\tbytes'):format((resident() - before) / total))
end

workload[arg[1]](tonumber(arg[2]), tonumber(arg[3]))
os.exit(0)
