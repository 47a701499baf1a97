--- Turns taken in order: DeferredLock, DeferredSemaphore and DeferredQueue.
---
--- A hand-off made while another of the same object is under way is noted and happens when that
--- one's handlers have run: any number of waiters who each hand on at once take no stack.

local coop, core = ...

--- The integer that `v` is, or nil.
local function integer(v)
  return type(v) == 'number' and math.tointeger(v) or nil
end

-- A line of waiters: Deferreds by number, with gaps where some were cancelled.

local function new_line() return { first = 1, last = 0, count = 0 } end

--- Adds a waiter at the end. Cancelling it takes it out.
local function join(line)
  if line.count == 0 then line.first = line.last + 1 end
  local number = line.last + 1
  local waiter = coop.Deferred(function()
    line[number] = nil
    line.count = line.count - 1
  end)
  line[number] = waiter
  line.last, line.count = number, line.count + 1
  return waiter
end

--- Takes out the first who still waits, or nil.
local function leave(line)
  while line.count > 0 do
    local number = line.first
    local waiter = line[number]
    line.first = number + 1
    if waiter then
      line[number] = nil
      line.count = line.count - 1
      if not waiter.called then return waiter end
    end
  end
end

--- Hands on what is due until nothing is, unless that is already being done further up.
local function hand_on(self)
  if self._handing then return end
  self._handing = true
  local cleanup <close> = self._handed
  self._deliver(self)
end

-- Ends a `hand_on`; what an error left undone is done here.
local handed = {
  __close = function(guard)
    local self = guard.owner
    self._handing = false
    if self._due(self) then hand_on(self) end
  end,
}

local function set_up(self)
  self._handing = false
  self._handed = setmetatable({ owner = self }, handed)
  return self
end

--- Is a token promised to the line?
local function token_due(self) return self._owed > 0 end

local function deliver_tokens(self)
  while self._owed > 0 do
    self._owed = self._owed - 1
    local waiter = leave(self._line)
    if waiter then waiter:callback(self) else self._tokens = self._tokens + 1 end
  end
end

---@class coop.DeferredLock: coop.Holdable
---@field locked boolean is it held?

---@class coop.DeferredSemaphore: coop.Holdable
---@field tokens integer how many more may hold it now
---@field limit integer how many may hold it at once

--- Makes the methods of a class of things that are acquired and released.
local function holdable(name)
  ---@class coop.Holdable
  local methods = {}

  --- Fires with the object itself when it is the caller's turn. To be released, by hand or as a
  --- to-be-closed variable.
  ---@return coop.Deferred
  function methods:acquire()
    if coop.type(self) ~= name then core.check('acquire', 0, name, self) end
    if self._tokens > 0 then
      self._tokens = self._tokens - 1
      return coop.succeed(self)
    end
    return join(self._line)
  end

  --- Gives back what was acquired; the first who waits gets it.
  function methods:release()
    if coop.type(self) ~= name then core.check('release', 0, name, self) end
    if self._tokens + self._owed >= self._limit then
      core.misuse('release', 'the ' .. name .. ' is not held')
    end
    if self._line.count > self._owed then
      self._owed = self._owed + 1
      hand_on(self)
    else
      self._tokens = self._tokens + 1
    end
  end

  --- Acquires, calls `f(...)`, and releases when its outcome is there.
  ---@param f async fun(...): any may await, may return a Deferred
  ---@return coop.Deferred outcome of `f`
  function methods:run(f, ...)
    if coop.type(self) ~= name then core.check('run', 0, name, self) end
    if not core.callable(f) then core.check('run', 1, 'function', f) end
    local body = coop.inline_callbacks(f)
    local held = false
    local function start(_, ...)
      held = true
      return body(...)
    end
    local function finish(result)
      if held then self:release() end
      return result
    end
    return self:acquire():add_callback(start, ...):add_both(finish)
  end

  return methods
end

--- Makes the class: `properties` are functions of the object, by name.
local function holdable_class(name, properties)
  local methods = holdable(name)
  local new = core.class(name, function(self, key)
    local property = properties[key]
    if property then return property(self) end
    return methods[key]
  end, { __close = methods.release })
  return function(limit)
    return set_up(new {
      _tokens = limit, _limit = limit,
      _owed = 0, -- tokens released that wait to be handed to the line
      _line = new_line(),
      _due = token_due, _deliver = deliver_tokens,
    })
  end
end

local new_lock = holdable_class('DeferredLock', {
  locked = function(self) return self._tokens == 0 end,
})

local new_semaphore = holdable_class('DeferredSemaphore', {
  tokens = function(self) return self._tokens end,
  limit = function(self) return self._limit end,
})

--- Makes a lock, held by one at a time in the order of asking.
---@return coop.DeferredLock
function coop.DeferredLock() return new_lock(1) end

--- Makes a semaphore, held by up to `n` at a time in the order of asking.
---@param n integer at least 1
---@return coop.DeferredSemaphore
function coop.DeferredSemaphore(n)
  local limit = integer(n)
  if not limit or limit < 1 then
    core.check('DeferredSemaphore', 1, 'integer of at least 1', n)
  end
  return new_semaphore(limit)
end

---@class coop.DeferredQueue
local DeferredQueue = {}

--- How many values are stored beyond those that waiters are about to get; negative: how many
--- waiters there are beyond those.
local function surplus(self) return self._last - self._first + 1 - self._line.count end

--- Takes the oldest value out.
local function take(self)
  local first = self._first
  local value = self._values[first]
  self._values[first] = nil
  self._first = first + 1
  return value
end

local function value_due(self) return self._last >= self._first and self._line.count > 0 end

local function deliver_values(self)
  while value_due(self) do
    local waiter = leave(self._line)
    if waiter then waiter:callback(take(self)) end
  end
end

--- Hands `v` to the first who waits, or stores it. A value beyond `size` raises QueueOverflow.
---@param v any nil is a value; a Deferred is not
function DeferredQueue:put(v)
  if coop.type(self) ~= 'DeferredQueue' then core.check('put', 0, 'DeferredQueue', self) end
  if coop.is_deferred(v) then core.check('put', 1, 'value other than a Deferred', v) end
  if self._size and surplus(self) >= self._size then
    core.raise('QueueOverflow', 'put', ('the queue is full (size %d)'):format(self._size))
  end
  self._last = self._last + 1
  self._values[self._last] = v
  hand_on(self)
end

--- Fires with the oldest value, at once or when there is one. More to wait than `backlog` raise
--- QueueUnderflow.
---@return coop.Deferred
function DeferredQueue:get()
  if coop.type(self) ~= 'DeferredQueue' then core.check('get', 0, 'DeferredQueue', self) end
  if self._line.count == 0 and self._last >= self._first then return coop.succeed(take(self)) end
  if self._backlog and -surplus(self) >= self._backlog then
    core.raise('QueueUnderflow', 'get', ('too many wait (backlog %d)'):format(self._backlog))
  end
  return join(self._line)
end

local new_queue = core.class('DeferredQueue', DeferredQueue, {
  __len = function(self) return math.max(surplus(self), 0) end,
})

--- Makes a queue of values for those who wait for them, both in order.
---@param size? integer how many values it stores; nil: no limit
---@param backlog? integer how many may wait; nil: no limit
---@return coop.DeferredQueue
function coop.DeferredQueue(size, backlog)
  local most, most_waiting = integer(size), integer(backlog)
  if size ~= nil and not (most and most >= 0) then
    core.check('DeferredQueue', 1, 'non-negative integer', size)
  end
  if backlog ~= nil and not (most_waiting and most_waiting >= 0) then
    core.check('DeferredQueue', 2, 'non-negative integer', backlog)
  end
  return set_up(new_queue {
    _size = most, _backlog = most_waiting,
    _values = {}, _first = 1, _last = 0,
    _line = new_line(),
    _due = value_due, _deliver = deliver_values,
  })
end
