---@meta coop.threads

-- # Threads
--
-- Each thread has a Lua state of its own. Arguments and results are copied: nil, booleans, numbers,
-- strings, tables without metatables, and functions without upvalues but `_ENV`, which is the other
-- state's there. Anything else is misuse.

---@class coop.threads
local threads = {}

---Calls `f(...)` in one of the threads that all such calls share, and fires with its first result. An
---error comes back with the thread's frames. Cancelling takes a job out of the queue; what one that runs
---comes to is dropped.
---
---```lua
---local coop = require 'coop'
---local threads = require 'coop.threads'
---local function sum(n)
---  local total = 0
---  for i = 1, n do total = total + i end
---  return total
---end
---print(coop.await(threads.call(sum, 1000000)))
---```
---```
---500000500000
---```
---@generic R
---@param f fun(...): R? without upvalues
---@param ... any
---@return coop.Deferred<R>
function threads.call(f, ...) end

---@class coop.ThreadPool
local ThreadPool = {}

---A pool of up to `n` threads, started as they are needed. To be closed, too.
---@param n integer at least 1
---@param queue? integer how many jobs may wait before QueueOverflow is raised; default 2^20
---@return coop.ThreadPool
function threads.Pool(n, queue) end

---Calls `f(...)` in one of its threads.
---@generic R
---@param f fun(...): R? without upvalues
---@param ... any
---@return coop.Deferred<R>
function ThreadPool:call(f, ...) end

---Calls `f(value)` for each value of the iterator, and fires with the results in their order, `n` set. The
---first failure fails it.
---@generic T, R
---@param f fun(value: T): R? without upvalues
---@param iterator coop.Iterator<T>
---@return coop.Deferred<R[]>
function ThreadPool:map(f, iterator) end

---What waits is cancelled. Fires when what runs has ended.
---@return coop.Deferred<any>
function ThreadPool:close() end

---Values that come out of a thread, a bounded number ahead. To be closed, too.
---@class coop.ThreadStream
local ThreadStream = {}

---Runs `f(...)`, which yields values or returns an iterator, in a thread of its own.
---@param f fun(...) without upvalues
---@param ... any
---@return coop.ThreadStream
function threads.stream(f, ...) end

---@return coop.Deferred<any> # fires with the next value; nil at the end
function ThreadStream:next() end

---@return coop.Deferred<any[]?> # fires with the values that are there, `n` set; nil at the end
function ThreadStream:batch() end

---@return coop.Deferred<any> # fires when the function has ended in its thread
function ThreadStream:when_done() end

---Closes the function at its next value.
function ThreadStream:close() end

return threads
