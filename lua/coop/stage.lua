--- What a stage is: values that are pulled, one at a time, out of a body.
---
--- Every stage is a generator body, and gives its values as it is stepped. A step may come to a
--- wait instead. Then whoever pulls is told what for and is left to wait himself: the body of
--- another stage is left where it pulls, a coroutine of coop awaits, a Block sleeps. Nobody else is
--- held up.
---
--- Nothing is made before it is wanted. All that a stage ever stores is the one value that it was
--- asked to have ready.

local coop, core = ...

if core.stage then return core.stage end

local flow = core.flow
local step, inside, mode, over = flow.step, flow.inside, flow.mode, flow.over
local observe, close_iterator = core.observe, core.close_iterator
local yield = coroutine.yield

---@class coop.Stage
---@overload fun(): any the next value, waited for; nil at the end
---@field [1] any its Generator while it can be stepped just so, see lflow.c
---@field [2] any a list of values that its body has given at once, see there
---@field _name string what it is
---@field _body any the Generator that gives its values
---@field _function boolean? its body is a function, which may return what goes on in its place
---@field _passes boolean? stages that it yields are values
---@field _threaded boolean? its values are made in a thread
---@field _key any the body's thread, once it has begun
---@field _traps any[]? items that errors are checked for
---@field _sources coop.Stage[] what it pulls from
---@field _users integer how many stages pull from it
---@field _waiters integer how many others wait for it
---@field _wait coop.Deferred? what its body waits for
---@field _asked coop.Stage? what its body pulls from, and has to wait for
---@field _readies boolean? its body wants that one ready, not its value
---@field _input any what the body goes on with
---@field _failed boolean? that is a Failure, to be raised in it
---@field _waited boolean? it is in an await
---@field _value any the value that is ready
---@field _over boolean? no more are made
---@field _failure coop.Failure? the error that ended it, until somebody is told
---@field _turn coop.Deferred? to be fired when the task that it is the iterator of goes on
local Stage = {}

-- What a body yields before the stage that it pulls from, when it has to wait for that.
local PULL = {}

-- The stage of each body, by its thread's address.
local owners = setmetatable({}, { __mode = 'v' })

-- For whom stages are polled, see lflow.c.
local BLOCKING, SLICED = 1, 2

-- The clock of the Block that polls, when one does.
local block_clock

-- What the stages of a task wait for that is to give a turn up. It fires when the next one comes.
local turn

local M = { owners = owners }

-- Ends --------------------------------------------------------------------------------------------

local close

--- Lets go of what the stage pulls from: what nobody else wants is closed. The first Failure of
--- their cleanup.
local function release_sources(self)
  local sources, first = self._sources, nil
  self._sources = {}
  for _, source in ipairs(sources) do
    source._users = source._users - 1
    if source._body then flow.release(source._body) end
    if source._users == 0 and source._waiters == 0 then
      local failure = close(source)
      if failure and first then core.report(failure) end
      first = first or failure
    end
  end
  return first
end

--- No more values: the body has ended. The Failure of its sources' cleanup, if any.
local function finish(self)
  self._over, self[1] = true, false
  if self[2] then self[2] = false end
  if self._key then owners[self._key] = nil end
  return release_sources(self)
end

--- Ends the stage wherever it is: what it waits for is cancelled, its sources are closed, then its
--- body. The Failure of the cleanup, if any.
function close(self)
  local untold = self._failure
  self._value, self._failure = nil, nil
  if untold then core.report(untold) end
  if self._over then return nil end
  self._over, self[1] = true, false
  local wait = self._wait
  self._wait, self._asked = nil, nil
  if wait then wait:cancel() end
  local first = finish(self)
  local failure = self._body and close_iterator(self._body)
  if failure and first then core.report(first) end
  return failure or first
end

--- The body has failed. The trap item that matches, which is the last value then.
local function fail(self, failure)
  local item
  if self._traps then
    local ok, found = pcall(failure.check, failure, table.unpack(self._traps))
    if ok then item = found else failure = coop.Failure(found) end
  end
  local cleanup = finish(self)
  if cleanup then core.report(cleanup) end
  if item == nil then self._failure = failure end
  return item
end

-- Waits -------------------------------------------------------------------------------------------

local function arrive(result, self, wait)
  if self._wait ~= wait then return end -- it was closed
  self._wait = nil
  self._input, self._failed = result, coop.type(result) == 'Failure'
end

--- The body goes on with the result of `wait`, a Deferred of the stage's own.
local function wait_for(self, wait)
  self._wait = wait
  observe(wait, arrive, self, wait)
end

local function follow(_, d) return d end

local function clock()
  if mode() == BLOCKING then return block_clock end
  return M.clock()
end

--- The body goes on after so many seconds.
local function delay(self, seconds)
  local call
  local wait = coop.Deferred(function() call:cancel() end)
  call = clock():call_later(seconds, function()
    if not wait.called then wait:callback() end
  end)
  wait_for(self, wait)
end

--- The body goes on when `f` calls what it is given.
local function call_later(self, f)
  local wait = coop.Deferred()
  local function go_on()
    if not wait.called then wait:callback() end
  end
  local ok, err = pcall(f, go_on)
  if ok then return wait_for(self, wait) end
  self._input, self._failed = coop.Failure(err), true
end

-- Steps -------------------------------------------------------------------------------------------

--- Notes that `self` pulls from `source`. Those that have ended are forgotten now and then.
local function use(self, source)
  local sources = self._sources
  for _, other in ipairs(sources) do
    if other == source then return end
  end
  if #sources >= 8 and #sources & (#sources - 1) == 0 then
    local live = {}
    for _, other in ipairs(sources) do
      if not other._over then live[#live + 1] = other end
    end
    sources = live
    self._sources = live
  end
  sources[#sources + 1] = source
  source._users = source._users + 1
end

--- The body that runs pulls from `source`: a source of its stage.
local function note_user(source)
  local body = source._body
  local key = body and flow.adopt(body)
  local user = key and owners[key]
  if user and user ~= source then use(user, source) end
end

local function ask(self, source, readies)
  self._asked, self._readies = source, readies
  if source ~= self then use(self, source) end
end

--- Sees to what the body has yielded: a value is returned, anything else noted.
local function on_yield(self, v, source)
  if v == PULL then return ask(self, source) end
  if v == nil then return delay(self, 0) end
  local kind = coop.type(v)
  if kind == 'Cooperate' then return delay(self, v.seconds) end
  if kind == 'CallLater' then return call_later(self, v._f) end
  if kind == 'Stage' and not self._passes then return ask(self, v, true) end
  if kind == 'Connection' then return nil end -- whose `next` waits by itself
  if not coop.is_deferred(v) then return v end
  wait_for(self, coop.succeed():add_callback(follow, v))
end

-- What becomes of a step that gave no value: a value after all, or nothing yet.
local outcomes = { yield = on_yield, error = fail }

function outcomes.await(self, d)
  self._waited = true
  wait_for(self, coop.succeed():add_callback(follow, d))
end

outcomes['end'] = function(self, result)
  local kind = self._function and coop.type(result)
  if kind == 'Generator' or kind == 'Stage' then
    owners[self._key] = nil
    self._body, self._key = kind == 'Stage' and M.relay(result) or result, nil
    return
  end
  self._failure = finish(self)
end

function outcomes.busy()
  error('next: the stage runs already, or its generator waits for somebody else', 0)
end

local poll

--- Gets what the body goes on with, when that was not there at once; or what is waited for.
local function get_input(self)
  local source = self._asked
  if not source then return self._wait end
  if not self._readies then
    local value, wait = poll(source)
    if wait then return wait end
    self._input = value
    if value == nil and source._failure then
      self._input, self._failed, source._failure = source._failure, true, nil
    end
  elseif source._value == nil then
    local value, wait = poll(source)
    if wait then return wait end
    if value ~= nil then source._value, source[1] = value, false end
  end
  self._asked = nil
end

local function begin(self)
  local key = flow.start(self._body)
  self._key = key
  if key then owners[key] = self end
end

--- Steps the body until there is a value: that; or nil and what it has to wait for; or nil, when it
--- is over. `what` tells what a step that has been made came to, with what goes with it.
function poll(self, what, a, b)
  local value = self._value
  if value ~= nil then
    self._value, self[1] = nil, not self._over and self._body
    return value
  end
  if self._over then return nil end
  self[1] = false
  repeat
    if not what then
      if over() then
        turn = turn or coop.Deferred()
        return nil, turn
      end
      local wait = get_input(self)
      if wait then return nil, wait end
      if not self._key then begin(self) end
      local failed, input, waited = self._failed, self._input, self._waited
      self._failed, self._input, self._waited = nil, nil, nil
      value, what, a, b = step(self._body, self, waited, failed, input)
    end
    if what then
      value = outcomes[what](self, a, b)
      what = nil
    end
  until value ~= nil or self._over
  if not self._over then self[1] = self._body end
  return value
end

-- Pulls -------------------------------------------------------------------------------------------

-- Who is woken runs on inside of this, which must not hold the stage.
local function ring(_, rope)
  local bell = rope.bell
  if bell and not bell.called then bell:callback() end
end

-- Who waits in a coroutine may be cancelled: what nobody else wants is closed with him.
local leave = {
  __close = function(waiter)
    local self = waiter.stage
    self._waiters = self._waiters - 1
    waiter.rope.bell = nil
    if waiter.done or self._users > 0 or self._waiters > 0 then return end
    local failure = close(self)
    if failure then failure:raise() end
  end,
}

--- Awaits what the stage waits for.
local function await(self, wait)
  self._waiters = self._waiters + 1
  local rope = { bell = coop.Deferred() }
  local waiter <close> = setmetatable({ stage = self, rope = rope }, leave)
  observe(wait, ring, rope)
  coop.await(rope.bell)
  waiter.done = true
end

--- The next value, awaited in the coroutine that runs; nil when the stage is over.
local function get(self, wait)
  local value
  repeat
    flow.check_wait 'next'
    await(self, wait)
    value, wait = poll(self)
  until not wait
  return value
end

local function raise_failure(self)
  local failure = self._failure
  self._failure = nil
  failure:raise()
end

--- What a pull is that is more than one plain step.
local function pull(self, what, a, b)
  note_user(self)
  local value, wait = poll(self, what, a, b)
  if wait then
    if inside() then
      flow.check_wait 'next'
      return yield(PULL, self)
    end
    value = get(self, wait)
  end
  if value == nil and self._failure then raise_failure(self) end
  return value
end

--- Has the next value ready, for `next`: `coroutine.yield(stage)` outside of the bodies of stages.
local function ready(self)
  if self._value ~= nil or self._over then return end
  local value, wait = poll(self)
  if wait then value = get(self, wait) end
  if value ~= nil then self._value, self[1] = value, false end
end

--- Polls for a task, for no longer than a step should take. A value; what it has to wait for if
--- there is none; and a Deferred to be fired when the task goes on, if any of its stages has given
--- a turn up. None of them: it is over.
local function poll_sliced(self)
  local outer, ok, wait = turn, true, nil
  turn = nil
  local value, what, a, b = flow.try(self)
  if value == nil then
    local was = mode(SLICED)
    ok, value, wait = pcall(poll, self, what, a, b)
    mode(was)
  end
  local next_turn = turn
  turn = outer
  if not ok then error(value, 0) end
  if value == nil and not wait and not next_turn and self._failure then raise_failure(self) end
  return value, wait, next_turn
end

--- For one who takes values until it lets go: the stage is not closed meanwhile because others do.
function M.hold(self) self._waiters = self._waiters + 1 end

--- Lets go: what nobody else wants is closed. The Failure of the cleanup, if any.
function M.let_go(self)
  self._waiters = self._waiters - 1
  if self._users == 0 and self._waiters == 0 then return close(self) end
end

--- The values of the stage for a task, which holds it: a generator that puts them into `results`,
--- each a step.
M.gather = coop.generator(function(self, results)
  local n = 0
  repeat
    local value, wait, next_turn = poll_sliced(self)
    if value ~= nil then
      n = n + 1
      results[n] = value
      yield()
    elseif next_turn then
      yield()
    elseif wait then
      local bell = coop.Deferred()
      observe(wait, ring, { bell = bell })
      coop.await(bell)
    end
    if next_turn then next_turn:callback() end
  until value == nil and not wait and not next_turn
end)

--- For a task whose iterator is the stage: a value, or a Deferred to wait for first.
local function task_next(self)
  local next_turn = self._turn
  if next_turn then
    self._turn = nil
    next_turn:callback()
  end
  local value, wait
  value, wait, self._turn = poll_sliced(self)
  if value ~= nil then return value end
  if self._turn then return coop.succeed() end
  if not wait then return nil end
  local bell = coop.Deferred()
  observe(wait, ring, { bell = bell })
  return bell
end

-- The class ---------------------------------------------------------------------------------------

local function check_stage(fname, self)
  if coop.type(self) ~= 'Stage' then core.check(fname, 0, 'Stage', self) end
end

--- The value that is ready; nil at the end. Raises the error that ended the stage, once, and
--- NotReadyError unless the stage was yielded before.
---@return any
function Stage:next()
  if coop.type(self) ~= 'Stage' then core.check('next', 0, 'Stage', self) end
  if self._value ~= nil or self._over then
    local value = poll(self)
    if value == nil and self._failure then raise_failure(self) end
    return value
  end
  core.raise('NotReadyError', 'next', 'no value is ready: yield the stage first, or loop over it')
end

--- Ends the stage: its sources are closed with it, unless others pull from them too.
function Stage:close()
  if coop.type(self) ~= 'Stage' then core.check('close', 0, 'Stage', self) end
  local failure = close(self)
  if failure then failure:raise() end
end

local function text(self)
  local state = self._over and 'ended'
    or self._value ~= nil and 'ready'
    or (self._wait or self._asked) and 'waiting'
    or 'open'
  return ('Stage: %s (%s)'):format(self._name, state)
end

local class = core.class('Stage', Stage, {
  __call = flow.puller(pull, PULL),
  __close = Stage.close,
  __tostring = text,
})

--- Makes a stage of the Generator `body`; with none, of the one value given.
function M.new(name, body, sources, value)
  local self = class {
    false, _name = name, _body = body, _sources = {}, _users = 0, _waiters = 0,
    _value = value, _over = not body,
  }
  for _, source in ipairs(sources or {}) do use(self, source) end
  return self
end

--- Adds trap items: they come first, and none twice.
function M.trap(self, items)
  local traps, known = {}, {}
  for _, list in ipairs { items, self._traps or {} } do
    for _, item in ipairs(list) do
      if not known[item] then traps[#traps + 1] = item end
      known[item] = true
    end
  end
  if #traps > 0 then self._traps = traps end
end

--- The values of another stage.
M.relay = coop.generator(function(source)
  for value in source do yield(value) end
end)

--- Polls for a Block, whose clock this is.
function M.poll_blocking(self, block)
  local outer, was = block_clock, mode(BLOCKING)
  block_clock = block
  local ok, value, wait = pcall(poll, self)
  block_clock = outer
  mode(was)
  if not ok then error(value, 0) end
  return value, wait
end

M.poll, M.close, M.raise_failure, M.check_stage = poll, close, raise_failure, check_stage
flow.know(M.new('string', nil, nil, ''), ready, task_next)

-- What closes iterators closes stages too.
function core.close_iterator(v)
  if coop.type(v) == 'Stage' then return close(v) end
  return close_iterator(v)
end

core.stage = M
return M
