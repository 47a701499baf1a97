---@meta coop.flow

-- # Stages
--
-- Stages pull their values from stages. A stage makes no value before it is asked for one; in a body
-- that coop runs `for v in stage do` waits for each by itself. Wherever a stage is asked for, what
-- `flow.wrap` takes will do. A failure that matches a *trap item* (see `Failure:check`) ends the stage
-- with that item as its last value. nil is no value of a stage, false is.

---What a stage can be made of.
---@alias coop.Flowable<T> coop.Stage<T>|coop.Iterator<T>|coop.Deferred<T>|string|coop.net.Connection|coop.http.Response

---@class coop.flow
---@field clock coop.Clock? what `Cooperate` takes its time from; the reactor when nil
local flow = {}

---Calling it waits for the next value, and gives nil at the end; so does a generic for, which closes it
---when it is left early. To be closed, too.
---@class coop.Stage<T>
---@overload fun(): T?
local Stage = {}

---The value that is ready: `coroutine.yield(stage)` comes before. Without that NotReadyError is raised.
---@return T? # nil at the end
function Stage:next() end

---Ends it: what it waits for is cancelled, and its sources are closed, unless others pull from them too.
function Stage:close() end

---Makes a stage of anything that has values: a function is called once, as a generator's body; a list
---gives its elements, another table its keys; a string is one value; a Deferred, also among the
---elements, stands for its value; a connection or response gives the blocks that come.
---
---```lua
---local flow = require 'coop.flow'
---local stage = flow.wrap(function()
---  coroutine.yield 'one'
---  error 'no more'
---end, 'no more')
---for v in stage do print(v) end
---```
---```
---one
---no more
---```
---@generic T
---@param obj coop.Flowable<T>
---@param ... coop.Trap
---@return coop.Stage<T>
function flow.wrap(obj, ...) end

---What a body yields to go on later.
---@class coop.Instruction

---What a body yields to go on after so many seconds.
---@param seconds? number default 0: in the next turn
---@return coop.Instruction
function flow.Cooperate(seconds) end

---What a body yields to go on when somebody says so: `f(go_on)` is called, and `go_on()` lets it.
---@param f fun(go_on: fun())
---@return coop.Instruction
function flow.CallLater(f) end

---The results of `f` for a value of each stage, nil for those that have ended before the others. A
---result that is nil is left out, a Deferred stands for its value. Without `f`: tables, `n` set.
---
---```lua
---local flow = require 'coop.flow'
---local words = flow.LineBreak({ 'so\r', '\nit ', 'goes\r\n' })
---for word, n in flow.Map(function(word) return word:upper() end, words) do print(word) end
---```
---```
---SO
---IT GOES
---```
---@generic R
---@param f? async fun(...): R?
---@param ... coop.Flowable
---@return coop.Stage<R>
function flow.Map(f, ...) end

---The values for which `f(value)` is true, or that are true themselves.
---@generic T
---@param f? async fun(value: T): any
---@param stage coop.Flowable<T>
---@param ... coop.Trap
---@return coop.Stage<T>
function flow.Filter(f, stage, ...) end

---Tables of one value of each stage, `n` set.
---@param ... coop.Flowable
---@return coop.Stage<table>
function flow.Zip(...) end

---The values of all stages, as they come, each stage in its turn.
---@param ... coop.Flowable
---@return coop.Stage<any>
function flow.Merge(...) end

---The stages themselves, each when it has a value, for `stage:next()`.
---@param ... coop.Flowable
---@return coop.Stage<coop.Stage>
function flow.Concurrent(...) end

---The values of one stage after those of the other.
---@param ... coop.Flowable
---@return coop.Stage<any>
function flow.Chain(...) end

---What `f(emit, value)` emits for each value, and `f(emit, nil)` at the end.
---@generic T
---@param f async fun(emit: async fun(v: any), value: T?)
---@param stage coop.Flowable<T>
---@param ... coop.Trap
---@return coop.Stage<any>
function flow.Pipe(f, stage, ...) end

---@class coop.LineBreakOptions
---@field delimiter? string default "\r\n"
---@field max_length? integer bytes of a line; default 16384
---@field trailer? boolean a last line without a delimiter is a line, not an error
---@field trap? coop.Trap|coop.Trap[]

---Lines of blocks of text. One that is too long, finished or not, fails the stage with LineTooLong.
---@param stage coop.Flowable<string>
---@param options? coop.LineBreakOptions
---@return coop.Stage<string>
function flow.LineBreak(stage, options) end

---A stage of what is pushed into it.
---@class coop.Callback<T>: coop.Stage<T>
---@field limit integer how many values it stores; may be assigned
local Callback = {}

---@param ... coop.Trap
---@return coop.Callback<any>
function flow.Callback(...) end

---Adds a value. Beyond `limit` QueueOverflow is raised; what a closed stage gets is dropped.
---@param v T
function Callback:result(v) end

---No more values will come.
function Callback:finish() end

---The stage fails behind the values that it stores.
---@param err any a Failure, or any value
function Callback:errback(err) end

---Calling it sleeps until the next value is there.
---@class coop.Block<T>
---@overload fun(): T?
local Block = {}

---An iterator over a stage for programs without a loop: the process sleeps for each `Cooperate`. Where
---the stage waits for anything else, Unsupported is raised.
---@generic T
---@param stage coop.Flowable<T>
---@param ... coop.Trap
---@return coop.Block<T>
function flow.Block(stage, ...) end

---The next value; nil at the end.
---@return T?
function Block:next() end

---Ends the stage.
function Block:close() end

---Runs a stage to its end, as a task of the global Cooperator, and fires with the list of its values.
---The Failure of one that fails has those that came before as `partial`. Cancelling it closes the stage, unless others take from it too.
---A table `{progress = p}` may follow the trap items.
---@param stage coop.Flowable
---@param ... coop.Trap|coop.AccumulateOptions
---@return coop.Deferred<any[]>
function flow.Deferred(stage, ...) end

-- # Flows and the world

---@class coop.ProtocolOptions
---@field trap? coop.Trap|coop.Trap[] errors that are as good as the controller's end
---@field finish_on_connection_lost? boolean so is the loss of the connection; default true

---Makes a protocol for `net.listen` and `net.connect` of a generator's body: it pulls blocks from the
---connection, and what it yields is written, each value when the peer keeps up.
---
---```lua
---local coop = require 'coop'
---local flow = require 'coop.flow'
---local net = require 'coop.net'
---local shout = flow.make_protocol(function(conn)
---  for line in flow.LineBreak(conn, { delimiter = '\n' }) do coroutine.yield(line:upper() .. '\n') end
---end)
---local server = net.listen('127.0.0.1', 0, shout)
---local conn = coop.await(net.connect('127.0.0.1', server.port))
---conn:write 'is anybody there?\n'
---print(coop.await(conn:read 'l'))
---conn:close()
---server:close()
---```
---```
---IS ANYBODY THERE?
---```
---@param controller async fun(conn: coop.net.Connection): ...
---@param options? coop.ProtocolOptions
---@return fun(conn: coop.net.Connection): coop.Deferred
function flow.make_protocol(controller, options) end

---The values of an iterator that runs in a thread of its own, a bounded number ahead, where it may
---block. It and its values are copied: see `coop.threads`.
---@param f function|coop.Stage a generator's body without upvalues, or one that returns an iterator; or a QueryIterator
---@param ... any
---@return coop.Stage<any>
function flow.Threaded(f, ...) end

---The rows of a query, each with its columns by number and by name, a bounded number ahead.
---@param pool coop.db.ConnectionPool
---@param sql string each `?` stands for one of the parameters
---@param ... any the parameters
---@return coop.Stage<table>
function flow.QueryIterator(pool, sql, ...) end

---@class coop.Resource
---@overload fun(request: coop.http.Request, response: coop.http.Reply)

---Makes a web resource of a generator's body, for `http.serve{handler = resource}`. What
---`gen(request, response)` yields is written, a slow reader waited for; its end ends the response.
---@param gen async fun(request: coop.http.Request, response: coop.http.Reply): ...
---@return coop.Resource
function flow.Resource(gen) end

return flow
