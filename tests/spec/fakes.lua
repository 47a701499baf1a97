--- Stand-ins for what coop takes from outside: schedulers, predicates, clocks, iterators.

local M = {}

--- A scheduler that collects what it is given.
--- `s.schedule` goes into `coop.Cooperator`, `s.pump()` runs what was collected so far,
--- `s.outstanding()` counts what neither ran nor was cancelled.
function M.scheduler()
  local calls = {}
  local s = { asked = 0, cancelled = 0 }

  function s.schedule(thunk)
    local call = { thunk = thunk }
    function call:cancel()
      self.thunk = nil
      s.cancelled = s.cancelled + 1
    end
    s.asked = s.asked + 1
    s.last = thunk
    calls[#calls + 1] = call
    return call
  end

  function s.pump(times)
    for _ = 1, times or 1 do
      local due = calls
      calls = {}
      for _, call in ipairs(due) do
        if call.thunk then call.thunk() end
      end
    end
  end

  function s.outstanding()
    local n = 0
    for _, call in ipairs(calls) do
      if call.thunk then n = n + 1 end
    end
    return n
  end

  return s
end

--- A factory of predicates that allow `n` steps in each tick.
function M.steps(n)
  return function()
    local left = n
    return function()
      left = left - 1
      return left <= 0
    end
  end
end

--- A callable iterator of `n` plain values that logs `name` with 0, 1, ... as it is stepped.
--- `hooks[i]` runs within step `i`.
function M.logging(log, name, n, hooks)
  local i = -1
  return function()
    if i + 1 >= n then return nil end
    i = i + 1
    log[#log + 1] = name .. i
    if hooks and hooks[i] then hooks[i]() end
    return i
  end
end

--- A clock that knows only what every clock has to, and is always late:
--- `advance` jumps to its end and runs what came due on the way.
function M.late_clock()
  local now, made, calls = 0, 0, {}
  local clock = {}

  local function drop(call)
    for i, other in ipairs(calls) do
      if other == call then
        table.remove(calls, i)
        return true
      end
    end
    return false
  end

  local function first()
    local best
    for _, call in ipairs(calls) do
      if not best or call.due < best.due or call.due == best.due and call.number < best.number then
        best = call
      end
    end
    return best
  end

  function clock.seconds() return now end

  function clock.call_later(_, delay, f, ...)
    local args = table.pack(...)
    made = made + 1
    local call = { due = now + delay, number = made }
    function call.run() f(table.unpack(args, 1, args.n)) end
    function call:cancel() assert(drop(self), 'cancelled a call that is not pending') end
    function call:reset(s) self.due = now + s end
    function call:delay(s) self.due = self.due + s end
    function call:get_time() return self.due end
    function call:active()
      for _, other in ipairs(calls) do
        if other == self then return true end
      end
      return false
    end
    calls[#calls + 1] = call
    return call
  end

  function clock.advance(_, s)
    now = now + s
    local call = first()
    while call and call.due <= now do
      drop(call)
      call.run()
      call = first()
    end
  end

  function clock.pending() return #calls end

  return clock
end

--- Uses up processor time until `seconds()` has moved by more than `span`.
function M.spin(seconds, span)
  local start = seconds()
  repeat until seconds() - start > span
end

return M
