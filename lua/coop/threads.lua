--- Functions that run in other threads, each thread with a Lua state of its own.
---
--- Arguments and results are copied: nil, booleans, numbers, strings, tables without metatables
--- (cycles and shared parts stay what they are) and functions without upvalues other than _ENV,
--- which is the other state's own there. Anything else is misuse.

local coop, core = ...

local threads = core.threads

---@class coop.threads
local M = {}

--- Calls `f(...)` in one of the threads that all such calls share.
---
--- The Deferred fires with the first result. An error comes back as a failure with a copy of the
--- error value (its text, when that cannot be copied), whose traceback has the thread's frames.
--- Cancelling takes a job out of the queue; one that runs goes on, and its result is dropped.
---@param f function without upvalues
---@return coop.Deferred
M.call = threads.call

--- Makes a pool of up to `n` threads, which are started as they are needed. At most `queue` jobs
--- wait, then `call` raises QueueOverflow.
---@param n integer at least 1
---@param queue? integer at least 1; default 2^20
---@return coop.ThreadPool
M.Pool = threads.Pool

--- Runs `f(...)`, which yields values or returns an iterator, in a thread of its own, a bounded
--- number of values ahead of who takes them.
---@param f function without upvalues
---@return coop.ThreadStream
M.stream = threads.stream

---@class coop.ThreadPool
---@field call fun(self, f: function, ...): coop.Deferred
---@field close fun(self): coop.Deferred what waits is cancelled; fires when what runs has ended

---@class coop.ThreadStream
---@field next fun(self): coop.Deferred the next value; nil at the end
---@field batch fun(self): coop.Deferred a list of values, `n` set, that are there; nil at the end
---@field when_done fun(self): coop.Deferred fires when the function has ended in its thread
---@field close fun(self) the function is closed at its next value

local Pool = core.methods.ThreadPool

local function work_on(value, pool, f)
  local ok, result = pcall(pool.call, pool, f, value)
  if ok then return result end
  local fault = threads.fault(value)
  if fault then
    result = 'map: a value of the iterator must be one that can be copied, ' .. fault
  end
  error(result, 0)
end

--- Calls `f(value)` in the pool's threads for each value of the iterator, and fires with the
--- results in their order, `n` set. It takes at most two values for each thread ahead. The first
--- failure, of `f` or of the iterator, fails it; what has not been started is cancelled.
---@param f function without upvalues
---@param iterator any Generator, coroutine, callable or table
---@return coop.Deferred
function Pool:map(f, iterator)
  if coop.type(self) ~= 'ThreadPool' then core.check('map', 0, 'ThreadPool', self) end
  if type(f) ~= 'function' then core.check('map', 1, 'function', f) end
  local limit = threads.limit(self)
  if not limit then core.misuse('map', 'the pool is closed') end
  local fault = threads.fault(f)
  if fault then
    core.misuse('map', 'the function must be one that can be copied, ' .. fault)
  end
  core.iterator('map', 2, iterator)
  return coop.parallel(2 * limit, iterator, work_on, self, f)
end

return M
