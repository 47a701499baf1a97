--- Deferreds as plainly as they can be written: recursive, slow, in Lua alone.
--- They have coop's names, so that the same program runs on both and is compared.

local M = {}

local Failure = {}
Failure.__index = Failure

local Deferred = {}

local function is_failure(v) return getmetatable(v) == Failure end

function M.type(v)
  local meta = getmetatable(v)
  return meta == Failure and 'Failure' or meta == Deferred and 'Deferred' or nil
end

function M.Failure(value)
  return is_failure(value) and value or setmetatable({ value = value }, Failure)
end

function Deferred.__index(d, key)
  if key == 'called' then return d.fired end
  if key == 'paused' then return d.pauses end
  if key == 'result' and d.fired and not d.waits then return d.outcome end
  return rawget(Deferred, key)
end

function M.Deferred(canceller)
  return setmetatable({
    fired = false, busy = false, handled = false, pauses = 0, waiters = 0,
    handlers = {}, canceller = canceller,
  }, Deferred)
end

local function set(d, outcome) d.outcome, d.handled = outcome, false end

local function settled(d)
  return d.fired and not d.waits and not d.busy and d.pauses == 0 and #d.handlers == 0
end

local function leads_to(d, target)
  while d and d ~= target do d = d.waits end
  return d == target
end

local step

--- Gives `d`, which waited, its outcome.
local function go_on(d, outcome)
  if d.thread then step(d, outcome) else set(d, outcome) end
end

local function wait(d, source)
  if leads_to(source, d) then
    go_on(d, M.Failure 'itself')
  elseif settled(source) then
    source.handled = true
    go_on(d, source.outcome)
  else
    d.waits = source
    source.waiters = source.waiters + 1
    table.insert(source.handlers, { waiter = d })
  end
end

local function take(d, value)
  if M.type(value) == 'Deferred' then wait(d, value) else set(d, value) end
end

local run

local function wake(d, waiter)
  d.waiters = d.waiters - 1
  d.handled = true
  waiter.waits = nil
  go_on(waiter, d.outcome)
  run(waiter)
end

local function hand_over(d, target)
  if target.fired and not target.swallows then
    set(d, M.Failure 'already')
    return
  end
  local outcome = d.outcome
  set(d, nil)
  if target.fired then
    target.swallows = false
  else
    target.fired = true
    set(target, outcome)
    run(target)
  end
end

local function handle(d, handler)
  local f = is_failure(d.outcome) and handler.eb or not is_failure(d.outcome) and handler.cb
  if not f then return end
  local ok, value = pcall(f, d.outcome)
  take(d, ok and value or not ok and M.Failure(value) or nil)
end

function run(d)
  if d.busy then return end
  d.busy = true
  while d.fired and not d.waits and d.pauses == 0 and #d.handlers > 0 do
    local handler = table.remove(d.handlers, 1)
    if handler.waiter then wake(d, handler.waiter)
    elseif handler.target then hand_over(d, handler.target)
    else handle(d, handler) end
  end
  d.busy = false
end

local function add(d, handler)
  table.insert(d.handlers, handler)
  run(d)
end

function Deferred:add_callback(f) add(self, { cb = f }) end
function Deferred:add_errback(f) add(self, { eb = f }) end
function Deferred:add_both(f) add(self, { cb = f, eb = f }) end
function Deferred:chain_deferred(target) add(self, { target = target }) end

local function settle(d, outcome)
  d.fired = true
  set(d, outcome)
  run(d)
end

local function fire(d, outcome)
  if d.fired and not d.swallows then error 'already' end
  if d.fired then d.swallows = false else settle(d, outcome) end
end

function Deferred:callback(value) fire(self, value) end
function Deferred:errback(value) fire(self, M.Failure(value)) end
function Deferred:pause() self.pauses = self.pauses + 1 end

function Deferred:unpause()
  if self.pauses == 0 then error 'not paused' end
  self.pauses = self.pauses - 1
  run(self)
end

--- Takes `d` away from what others wait on, too.
local function leave(d)
  local source = d.waits
  for i, handler in ipairs(source.handlers) do
    if handler.waiter == d then
      table.remove(source.handlers, i)
      break
    end
  end
  source.waiters = source.waiters - 1
  d.waits = nil
  go_on(d, M.Failure 'cancelled')
  run(d)
end

function Deferred:cancel()
  if self.waits then
    if self.waits.waiters > 1 then leave(self) else self.waits:cancel() end
  elseif not self.fired and not self.thread then
    local ok, e = true, nil
    if self.canceller then ok, e = pcall(self.canceller, self) end
    if self.fired then return end
    self.swallows = not self.canceller
    settle(self, M.Failure(ok and 'cancelled' or e))
  end
end

function M.await(d)
  local outcome = settled(d) and d.outcome
  if settled(d) then d.handled = true else outcome = coroutine.yield(d) end
  if is_failure(outcome) then error(outcome.value, 0) end
  return outcome
end

function step(body, outcome)
  local ok, value = coroutine.resume(body.thread, outcome)
  if coroutine.status(body.thread) == 'suspended' then
    wait(body, value)
    return
  end
  body.thread = nil
  body.fired = true
  set(body, ok and value or not ok and M.Failure(value) or nil)
  run(body)
end

function M.inline_callbacks(f)
  return function(...)
    local body = M.Deferred()
    body.thread = coroutine.create(f)
    step(body, ...)
    return body
  end
end

--- Is the failure of `d` one that on_unhandled is told of?
function M.unhandled(d)
  return d.fired and not d.waits and is_failure(d.outcome) and not d.handled
    and d.outcome.value ~= 'cancelled'
end

return M
