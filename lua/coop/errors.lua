--- The classes of coop's errors.
---
--- The metatable of an instance is its class; `super` of a class is what it inherits from.

local coop, core = ...

---@class coop.Error
---@field message string what went wrong
---@overload fun(fields?: string|table): coop.Error
local Error = {}

---@class coop.errors
local errors = {}

-- How far a chain of inheritance is followed: one made by a script may be a ring.
local PARENTS_WALKED = 64

--- What a class inherits from: its `super`, or where a table used as a metatable looks next.
local function parent(class)
  local super = rawget(class, 'super')
  if super ~= nil then return super end
  super = rawget(class, '__index')
  if type(super) == 'table' and not rawequal(super, class) then return super end
  local meta = getmetatable(class)
  return type(meta) == 'table' and rawget(meta, '__index') or nil
end

--- Tells whether `v` is an instance of this class or of a subclass.
---@param v any
---@return boolean
function Error:is(v)
  if type(self) ~= 'table' then core.check('is', 0, 'class', self) end
  local class = getmetatable(v)
  for _ = 1, PARENTS_WALKED do
    if type(class) ~= 'table' then return false end
    if rawequal(class, self) then return true end
    class = parent(class)
  end
  return false
end

--- The text of any value, also of one whose `__tostring` fails.
local function text(v)
  local ok, s = pcall(tostring, v)
  return ok and s or ('(a %s without text)'):format(type(v))
end

core.text = text

local function instance_text(self)
  return (getmetatable(self).__name or 'error') .. ': ' .. text(self.message)
end

local function class_text(class) return 'coop.errors.' .. rawget(class, '__name') end

--- Makes an instance: of a message, of a table of fields, or with the message of the class.
local function construct(class, fields)
  local self = {}
  if type(fields) == 'table' and not coop.type(fields) then
    for key, value in next, fields do self[key] = value end
  elseif type(fields) == 'string' or type(fields) == 'number' then
    self.message = tostring(fields)
  elseif fields ~= nil then
    core.check(class.__name, 1, 'string or table', fields)
  end
  local said = class._said
  if self.message == nil and said then
    self.message = type(said) == 'function' and said(self) or said
  end
  return setmetatable(self, class)
end

--- Adds a class. `said` is the message of an instance that is given none, or makes it.
---@param name string
---@param super table? the class that it inherits from
---@param said string|fun(self: table): string
local function class(name, super, said)
  local new = { __name = name, __tostring = instance_text, super = super, _said = said }
  new.__index = new
  errors[name] = setmetatable(new, {
    __call = construct,
    __index = super or Error,
    __tostring = class_text,
  })
  return new
end

--- Adds a class whose message is made each time it is asked for: it may quote failures that
--- quote others in turn.
local function lazy_class(name, say)
  local new = class(name)
  function new.__index(self, key)
    if key == 'message' then return say(self) end
    return new[key]
  end
  return new
end

class('AlreadyCalledError', nil, 'the Deferred has been fired already')
class('ContextClosed', class('CancelledError', nil, 'cancelled'), 'coop was closed')
class('NotReadyError', nil, 'no value is ready yet')
class('Unsupported', nil, 'not supported')

---@class coop.TimeoutError: coop.Error
---@field seconds number? how long was waited
class('TimeoutError', nil, function(self)
  if type(self.seconds) ~= 'number' then return 'timed out' end
  return ('timed out after %.14g seconds'):format(self.seconds)
end)

local SchedulerError = class('SchedulerError', nil, 'the task cannot be scheduled')
local TaskFinished = class('TaskFinished', SchedulerError, 'the task has finished')
class('SchedulerStopped', SchedulerError, 'the Cooperator is stopped')
class('NotPaused', SchedulerError, 'the task is not paused')
class('TaskDone', TaskFinished, 'the task has come to its end')
class('TaskStopped', TaskFinished, 'the task was stopped')
class('TaskFailed', TaskFinished, 'the task has failed')

class('QueueOverflow', nil, 'the queue is full')
class('QueueUnderflow', nil, 'too many wait for the queue')
class('AlreadyCalled', nil, 'the call has been made already')
class('AlreadyCancelled', nil, 'the call was cancelled')
class('ReactorNotRunning', nil, 'the reactor is not running')
class('ReactorAlreadyRunning', nil, 'the reactor is running already')
class('ConnectionDone', nil, 'the connection was closed in good order')
class('ConnectionLost', nil, 'the connection was lost')
class('ConnectionRefused', nil, 'the connection was refused')
class('LineTooLong', nil, 'a line is too long')

---@class coop.FirstError: coop.Error
---@field sub_failure coop.Failure the failure that came first
---@field index integer where it stood in the list, from 1
local FirstError = lazy_class('FirstError', function(self)
  return ('#%s: %s'):format(text(self.index), text(self.sub_failure))
end)

--- Equal are those of the same failure at the same place.
function FirstError.__eq(a, b)
  return FirstError:is(a) and FirstError:is(b) and a.index == b.index
    and a.sub_failure == b.sub_failure
end

-- Of how many failures the text of a group tells.
local FAILURES_TOLD = 10

---@class coop.FailureGroup: coop.Error
---@field failures coop.Failure[] of everything that was tried, in order
lazy_class('FailureGroup', function(self)
  local failures = self.failures
  if type(failures) ~= 'table' then return 'everything failed' end
  local told = {}
  for i = 1, math.min(#failures, FAILURES_TOLD) do
    told[i] = ('#%d: %s'):format(i, text(failures[i]))
  end
  if #failures > FAILURES_TOLD then
    told[#told + 1] = ('and %d more'):format(#failures - FAILURES_TOLD)
  end
  return ('all of %d failed: %s'):format(#failures, table.concat(told, '; '))
end)

coop.errors = errors
core.errors = errors
core.error_class = class
