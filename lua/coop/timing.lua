--- What waits for a time: `defer_later`, `Deferred:add_timeout` and LoopingCall.
---
--- Clocks are ducks: any object with `seconds` and `call_later` will do.

local coop, core = ...

---@class coop.Clock
---@field seconds fun(self: coop.Clock): number
---@field call_later fun(self: coop.Clock, delay: number, f: function): coop.DelayedCall

local function is_seconds(v) return core.is_number(v) and v >= 0 end

local function has_both(v)
  return core.callable(v.seconds) and core.callable(v.call_later)
end

local function is_clock(v)
  if type(v) ~= 'table' and type(v) ~= 'userdata' then return false end
  local ok, has = pcall(has_both, v)
  return ok and has
end
core.is_clock = is_clock

--- Runs a body as a handler: without the result that it was called with.
local function start_body(_, body, ...) return body(...) end

--- Calls `f(...)` after `delay` seconds of `clock`. The Deferred fires with its outcome, or with
--- nil when there is no `f`; cancelling it cancels the call, or what `f` waits on.
---@param clock coop.Clock
---@param delay number seconds
---@param f? async fun(...): any may await, may return a Deferred
---@return coop.Deferred
function coop.defer_later(clock, delay, f, ...)
  if not is_clock(clock) then core.check('defer_later', 1, 'clock', clock) end
  if not is_seconds(delay) then core.check('defer_later', 2, 'non-negative number', delay) end
  if f ~= nil and not core.callable(f) then core.check('defer_later', 3, 'function', f) end
  local call
  local d = coop.Deferred(function() call:cancel() end)
  call = clock:call_later(delay, function()
    if not d.called then d:callback() end
  end)
  if f ~= nil then d:add_callback(start_body, coop.inline_callbacks(f), ...) end
  return d
end

local Deferred = core.methods.Deferred

--- Cancels this Deferred after `seconds` unless the handlers added so far have a result by then.
--- A CancelledError that comes of it becomes a TimeoutError; with `on_timeout_cancel` its return
--- value takes the place of whatever came.
---@param seconds number
---@param clock? coop.Clock default: `coop.reactor`
---@param on_timeout_cancel? fun(result: any, seconds: number): any
---@return coop.Deferred self
function Deferred:add_timeout(seconds, clock, on_timeout_cancel)
  if not coop.is_deferred(self) then core.check('add_timeout', 0, 'Deferred', self) end
  if not is_seconds(seconds) then core.check('add_timeout', 1, 'non-negative number', seconds) end
  if clock == nil then clock = coop.reactor end
  if not is_clock(clock) then core.check('add_timeout', 2, 'clock', clock) end
  if on_timeout_cancel ~= nil and not core.callable(on_timeout_cancel) then
    core.check('add_timeout', 3, 'function', on_timeout_cancel)
  end

  local timed_out = false
  local call
  call = clock:call_later(seconds, function()
    call, timed_out = nil, true
    self:cancel()
  end)

  local function translate(result)
    if not timed_out then return result end
    if on_timeout_cancel ~= nil then return on_timeout_cancel(result, seconds) end
    if coop.type(result) == 'Failure' and result:check(coop.errors.CancelledError) then
      return coop.Failure(coop.errors.TimeoutError { seconds = seconds })
    end
    return result
  end

  local function disarm(result)
    if call then call:cancel() end
    call = nil
    return result
  end

  return self:add_both(translate):add_both(disarm)
end

---@class coop.LoopingCall
---@field running boolean
---@field interval number seconds; may be assigned while it runs
---@field clock coop.Clock may be assigned before `start`
local LoopingCall = {}

-- A slot this near counts as now, in intervals: times are sums of rounded numbers.
local SLACK = 1e-6

--- The number of the last slot of the grid at `time` or before it.
local function slot(self, time)
  return math.floor((time - self._origin) / self.interval + SLACK)
end

--- The time that the present run counts as: a timer may come a trifle before its slot.
local function run_time(self) return math.max(self._clock:seconds(), self._due) end

--- The time of the first slot that is yet to come. From one slot to the next it is `now` plus the
--- interval, should that be a rounding error less: who adds up intervals arrives at the same.
local function next_slot(self, now)
  local interval = self.interval
  if interval <= 0 then return now end
  local due = self._origin + (slot(self, math.max(now, self._due)) + 1) * interval
  local sum = now + interval
  if sum < due and due - sum < SLACK / 2 * interval then return sum end
  return due
end

-- The interval may be assigned at any time, and so may be anything.
local BAD_INTERVAL = 'the field interval is not a non-negative number'

--- Arms the timer for the first slot that is yet to come.
local function schedule(self)
  if not is_seconds(self.interval) then error('LoopingCall: ' .. BAD_INTERVAL, 0) end
  local now = self._clock:seconds()
  local due = next_slot(self, now)
  self._due = due
  self._call = core.made_as(self._clock:call_later(math.max(due - now, 0), self._tick), self)
end

--- Takes the slots since the last count to account; returns how many there are to tell of.
local function count(self)
  local now = run_time(self)
  local n = 1
  if self.interval > 0 then n = self._missed + slot(self, now) - slot(self, self._counted) end
  if n > 0 then self._counted, self._missed = now, 0 end
  return n
end

--- Ends the run: `start`'s Deferred fires with the outcome.
local function settle(self, outcome)
  local done = self._done
  self.running, self._done = false, nil
  if not done or done.called then return end
  if coop.type(outcome) == 'Failure' then done:errback(outcome) else done:callback(outcome) end
end

local function go_on(_, self)
  self._busy, self._current = false, nil
  if self.running then schedule(self) else settle(self, self) end
end

local function fail(failure, self)
  self._busy, self._current = false, nil
  settle(self, failure)
end

--- One turn of the loop: calls the function and goes on when its outcome is there.
local function turn(self)
  self._call = nil
  if not is_seconds(self.interval) then
    return fail(coop.Failure('LoopingCall: ' .. BAD_INTERVAL), self)
  end
  self._busy = true
  local n = self._counts and count(self)
  local current
  if not n then
    current = self._body(table.unpack(self._args, 1, self._args.n))
  elseif n > 0 then
    current = self._body(n)
  else
    current = coop.succeed()
  end
  self._current = current
  current:add_callback(go_on, self):add_errback(fail, self)
  if not self._done then current:cancel() end
end

local function disarm(self)
  local call = self._call
  self._call = nil
  if call then call:cancel() end
end

--- Cancelling `start`'s Deferred: the run ends, and so does what the function waits on.
local function abandon(self)
  self.running, self._done = false, nil
  disarm(self)
  if self._current then self._current:cancel() end
end

--- Calls the function every `interval` seconds, first at once unless `now` is false. Slots that
--- pass while it is held up are skipped. The Deferred fires with the LoopingCall when that is
--- stopped, and fails when the function does.
---@param interval number seconds; 0: once in each turn of the loop
---@param now? boolean default: true
---@return coop.Deferred
function LoopingCall:start(interval, now)
  if coop.type(self) ~= 'LoopingCall' then core.check('start', 0, 'LoopingCall', self) end
  if not is_seconds(interval) then core.check('start', 1, 'non-negative number', interval) end
  local clock = self.clock
  if clock == nil then clock = coop.reactor end
  if not is_clock(clock) then core.misuse('start', 'the field clock is not a clock') end
  if self._done or self._busy then
    core.misuse('start', 'the LoopingCall runs, or its last run has not settled')
  end

  self._clock, self.interval = clock, interval
  self._origin = clock:seconds()
  self._due, self._counted = self._origin, self._origin
  self._missed = now == false and 0 or 1
  if now == false then schedule(self) end
  local done = coop.Deferred(function() abandon(self) end)
  self.running, self._done = true, done
  if now ~= false then turn(self) end
  return done
end

--- Ends the loop. The Deferred of `start` fires at once, or when what the function waits on has
--- come to its end.
function LoopingCall:stop()
  if coop.type(self) ~= 'LoopingCall' then core.check('stop', 0, 'LoopingCall', self) end
  if not self.running then core.misuse('stop', 'the LoopingCall is not running') end
  self.running = false
  disarm(self)
  if not self._busy then settle(self, self) end
end

--- Begins the interval anew, from now. Without effect while the function waits.
function LoopingCall:reset()
  if coop.type(self) ~= 'LoopingCall' then core.check('reset', 0, 'LoopingCall', self) end
  if not self.running then core.misuse('reset', 'the LoopingCall is not running') end
  if not self._call then return end
  if not is_seconds(self.interval) then core.misuse('reset', BAD_INTERVAL) end
  disarm(self)
  local now = self._clock:seconds()
  if self.interval > 0 then
    self._missed = self._missed + slot(self, now) - slot(self, self._counted)
  end
  self._origin, self._due, self._counted = now, now, now
  schedule(self)
end

local function loop_text(self)
  local args = {}
  for i = 1, self._args.n do args[i] = core.text(self._args[i]) end
  local every = self.interval and core.text(self.interval) .. ' s' or 'no interval yet'
  return ('LoopingCall(%s): %s(%s)'):format(every, core.text(self._f), table.concat(args, ', '))
end

local new_loop = core.class('LoopingCall', LoopingCall, { __tostring = loop_text })

local function loop(f, counts, ...)
  local self = new_loop {
    running = false, clock = coop.reactor,
    _f = f, _body = coop.inline_callbacks(f), _args = table.pack(...), _counts = counts,
    _busy = false,
  }
  self._tick = function() turn(self) end
  return core.note(self)
end

coop.LoopingCall = setmetatable({}, {
  __metatable = 'coop.LoopingCall',
  __call = function(_, f, ...)
    if not core.callable(f) then core.check('LoopingCall', 1, 'function', f) end
    return loop(f, false, ...)
  end,
})

--- Makes a LoopingCall that calls `f(n)`: `n` is how many slots came since the last call, 1 for
--- the first.
---@param f async fun(n: integer)
---@return coop.LoopingCall
function coop.LoopingCall.with_count(f)
  if not core.callable(f) then core.check('with_count', 1, 'function', f) end
  return loop(f, true)
end
