--- luv: coroutines stepped from an idle handle in slices of 10 ms, with a look at the clock every
--- 16 steps: the scheduler that one writes without a library.
---     lua5.4 bench/luv.lua WORKLOAD [ARGUMENT...]

local uv = require 'luv'

local yield = coroutine.yield

local function report_each(start, n, unit)
  print(('%.2f\t%s'):format((os.clock() - start) * 1e9 / n, unit))
end

local function now() return uv.hrtime() / 1e9 end

--- Runs the functions as coroutines, in turn, until all have ended.
local function run_all(bodies)
  local tasks = {}
  for i, body in ipairs(bodies) do tasks[i] = coroutine.create(body) end
  local idle, i = uv.new_idle(), 1
  idle:start(function()
    local over, n = now() + 0.01, 0
    while #tasks > 0 do
      if i > #tasks then i = 1 end
      local co = tasks[i]
      assert(coroutine.resume(co))
      if coroutine.status(co) == 'dead' then table.remove(tasks, i) else i = i + 1 end
      n = n + 1
      if n % 16 == 0 and now() >= over then break end
    end
    if #tasks == 0 then idle:close() end
  end)
  uv.run()
end

local workload = {}

function workload.steps(tasks, total)
  local each, bodies = total // tasks, {}
  for i = 1, tasks do
    bodies[i] = function()
      for _ = 1, each do yield() end
    end
  end
  local start = os.clock()
  run_all(bodies)
  report_each(start, each * tasks, 'ns/step')
end

function workload.accumulate(total, batch)
  local values = {}
  local start = os.clock()
  run_all { function()
    local count = coroutine.wrap(function()
      for i = 1, total do yield(i) end
    end)
    for v in count do
      values[#values + 1] = v
      if #values % batch == 0 then yield() end
    end
  end }
  report_each(start, total, 'ns/value')
end

function workload.spawn(total)
  local function body(v) return v end
  local start = os.clock()
  for i = 1, total do assert(coroutine.resume(coroutine.create(body), i)) end
  report_each(start, total, 'ns/coroutine')
end

function workload.timers(total)
  local random, timers, fired = 42, {}, 0
  local start = os.clock()
  for i = 1, total do
    random = (random * 1103515245 + 12345) & 0x7fffffff
    local timer = uv.new_timer()
    timers[i] = timer
    timer:start((random >> 8) % 1000, 0, function()
      fired = fired + 1
      timer:close()
    end)
  end
  for i = 2, total, 2 do
    timers[i]:stop()
    timers[i]:close()
  end
  uv.run()
  report_each(start, total, 'ns/timer')
  assert(fired == total - total // 2)
end

function workload.latency(duration)
  local late, steps_made, over = {}, 0, false
  local bodies = {}
  for n = 1, 4 do
    bodies[n] = function()
      local i = 0
      while not over do
        i = i + 1
        yield(n * i / 3.0)
      end
      steps_made = steps_made + i
    end
  end
  local timer, start = uv.new_timer(), now()
  local function arm()
    local due = now() + 0.005
    timer:start(5, 0, function()
      late[#late + 1] = now() - due
      over = now() - start >= duration
      if over then timer:close() else arm() end
    end)
  end
  arm()
  run_all(bodies)
  local took = now() - start
  table.sort(late)
  print(('%.3f\tms p50'):format(late[(#late + 1) // 2] * 1e3))
  print(('%.3f\tms p99'):format(late[(#late * 99 + 99) // 100] * 1e3))
  print(('%.2f\tMsteps/s'):format(steps_made / took / 1e6))
end

workload['memory-tasks'] = function(total)
  local kept = {}
  for i = 1, total do kept[i] = false end
  collectgarbage()
  local before = uv.resident_set_memory()
  for i = 1, total do
    kept[i] = coroutine.create(yield)
    coroutine.resume(kept[i], i)
  end
  collectgarbage()
  print(('%.1f\tbytes'):format((uv.resident_set_memory() - before) / total))
end

local arguments = {}
for i = 2, #arg do arguments[i - 1] = math.tointeger(tonumber(arg[i])) end
workload[arg[1]](table.unpack(arguments))
