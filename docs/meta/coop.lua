---@meta coop
---@diagnostic disable: inject-field

-- # Types
--
-- Times are seconds, on a clock that only goes forward. *Fires* means that a Deferred gets its
-- value, *fails* that it gets a failure. Arguments of a wrong kind raise an error at the call, which
-- names the function, what was expected and what came; what can happen to a correct program comes as
-- the failure of a Deferred.

---What values are taken from: a Generator, a coroutine, a function that is called until it returns
---nil, a stage of `coop.flow`, or a table with a sequence part.
---@alias coop.Iterator<T> coop.Generator<T>|coop.Stage<T>|thread|(fun(): T?)|T[]

---What a failure is matched with: a class of `coop.errors`, any table that is used as a metatable, a
---text that is equal to the error value or occurs in it, or a predicate.
---@alias coop.Trap table|string|fun(value: any): boolean

---@class coop
---@field reactor coop.Reactor the loop
---@field cooperator coop.Cooperator the one that `coop.cooperate` and its like use
---@field errors coop.errors the classes of errors
local coop = {}

---The name of the kind of an object of coop's own, like "Deferred", "Coroutine" or "Failure"; nil of
---anything else.
---@param v any
---@return string?
function coop.type(v) end

-- # Deferreds: results to come
--
-- A Deferred has handlers, which are called in their order when the result is there, each with what
-- the one before has returned. An error in a handler, or a Failure that it returns, makes the result a
-- failure, which goes to the next handler for failures. A handler may return a Deferred: the next one
-- waits for it.

---A result to come.
---@class coop.Deferred<T>
---@field called boolean whether it has fired or failed
---@field paused integer how many calls of `pause` have not been undone
---@field result T|coop.Failure|nil the result at present; nil while there is none
local Deferred = {}

---Makes a Deferred that nobody has fired.
---
---```lua
---local coop = require 'coop'
---local d = coop.Deferred()
---d:add_callback(function(n) return n + 1 end)
---d:add_callback(print)
---d:callback(41)
---```
---```
---42
---```
---@generic T
---@param canceller? fun(d: coop.Deferred<T>) called when it is cancelled; may fire it
---@return coop.Deferred<T>
function coop.Deferred(canceller) end

---Fires it: the handlers are called, and those who wait go on, before this returns. A second call, or
---one after `errback`, raises AlreadyCalledError; a Deferred as the value is misuse.
---@param value? T
function Deferred:callback(value) end

---Fails it.
---@param err any a Failure, or any value, of which one is made
function Deferred:errback(err) end

---Has `f(value, ...)` called with the value. What it returns is the next handler's value.
---@generic R
---@param f fun(value: T, ...): R?
---@param ... any
---@return coop.Deferred<R> # the same Deferred
function Deferred:add_callback(f, ...) end

---Has `f(failure, ...)` called with a failure. What it returns takes its place.
---@generic R
---@param f fun(failure: coop.Failure, ...): R?
---@param ... any
---@return coop.Deferred<T|R> # the same Deferred
function Deferred:add_errback(f, ...) end

---Has `f(result, ...)` called with the value or the failure.
---@generic R
---@param f fun(result: T|coop.Failure, ...): R?
---@param ... any
---@return coop.Deferred<R> # the same Deferred
function Deferred:add_both(f, ...) end

---Has one or the other called. Either may be nil.
---@param callback? fun(value: T): any
---@param errback? fun(failure: coop.Failure): any
---@return coop.Deferred<any> # the same Deferred
function Deferred:add_callbacks(callback, errback) end

---Holds the handlers and those who wait back, at once, until each pause is undone.
function Deferred:pause() end

---Undoes one `pause`. Without one it is misuse: waits are counted apart.
function Deferred:unpause() end

---Nobody wants the result any more: the canceller is called, and what it leaves unfired fails with
---CancelledError. While it waits for another Deferred, that one is cancelled, unless others wait for
---it too. Does nothing once there is a result. A CancelledError that nobody handles is not reported.
function Deferred:cancel() end

---Hands the result over to another Deferred, which it fires or fails.
---@param other coop.Deferred<T>
function Deferred:chain_deferred(other) end

---Cancels it after so many seconds unless the handlers added so far have a result by then; the
---CancelledError that comes of it becomes a TimeoutError.
---@param seconds number
---@param clock? coop.Clock the reactor when left out
---@param on_timeout_cancel? fun(result: any, seconds: number): any its result takes the place of what came
---@return coop.Deferred<T> # the same Deferred
function Deferred:add_timeout(seconds, clock, on_timeout_cancel) end

---A Deferred that has fired.
---@generic T
---@param value? T no Deferred
---@return coop.Deferred<T>
function coop.succeed(value) end

---A Deferred that has failed.
---@param err any a Failure, or any value, of which one is made
---@return coop.Deferred<any>
function coop.fail(err) end

---Calls `f(...)` and gives a Deferred of the outcome in every case: a Deferred that it returns, a value,
---or the error that it raises.
---@generic R
---@param f fun(...): R?
---@param ... any
---@return coop.Deferred<R>
function coop.maybe_deferred(f, ...) end

---`coop.maybe_deferred` by another name.
---@generic R
---@param f fun(...): R?
---@param ... any
---@return coop.Deferred<R>
function coop.execute(f, ...) end

---@param v any
---@return boolean
function coop.is_deferred(v) end

---Says who is told of failures that nobody has handled, each once: when its Deferred is collected, at
---the end of the process at the latest. By default they are written to standard error, and the command
---ends with status 1.
---@param f? fun(failure: coop.Failure) nil: the default
---@return fun(failure: coop.Failure) # the one before
function coop.on_unhandled(f) end

---@class coop.DeferredListOptions
---@field fire_on_one_callback? boolean fires with `{value, index}` of the first that fires; FailureGroup when all fail
---@field fire_on_one_errback? boolean the first failure fails it, with FirstError
---@field consume_errors? boolean later handlers of a child that fails see nil

---Waits for all Deferreds of a list, and fires with an array of `{success, value}` in their order.
---Cancelling it cancels them.
---@param list coop.Deferred[]
---@param options? coop.DeferredListOptions
---@return coop.Deferred<table>
function coop.DeferredList(list, options) end

---Waits for all Deferreds of a list, and fires with their values in order, `n` set. The first failure
---fails it with FirstError. Cancelling it cancels them.
---
---```lua
---local coop = require 'coop'
---local function later(v) return coop.sleep(0.01):add_callback(function() return v end) end
---print(table.unpack(coop.await(coop.gather_results { later 'a', coop.succeed 'b', later 'c' })))
---```
---```
---a	b	c
---```
---@generic T
---@param list coop.Deferred<T>[]
---@param consume_errors? boolean later handlers of a child that fails see nil
---@return coop.Deferred<T[]>
function coop.gather_results(list, consume_errors) end

---Waits for the first Deferred of a list that fires, cancels the others, and fires with `{index, value}`.
---When all fail, it fails with FailureGroup.
---@param list coop.Deferred[] at least one
---@return coop.Deferred<table>
function coop.race(list) end

-- # Failures and errors
--
-- Any value may be an error, nil too, and reaches its handler unchanged.

---An error value with the frames it came from.
---@class coop.Failure
---@field value any the value as it was raised
---@field partial any[]? of an accumulation or a flow: the values that came before
local Failure = {}

---Makes a Failure of an error value; a Failure stays itself.
---@param value any
---@return coop.Failure
function coop.Failure(value) end

---A text: the error, the frames it came through, then those of each coroutine that awaited it, and none
---of coop's own.
---@return string
function Failure:traceback() end

---The first argument that the error matches, or nil. Nil or a number as an argument is misuse.
---@param ... coop.Trap
---@return coop.Trap?
function Failure:check(...) end

---The same, but raises the error value when none matches.
---@param ... coop.Trap
---@return coop.Trap
function Failure:trap(...) end

---Raises the error value.
function Failure:raise() end

---What an error of coop's is.
---@class coop.Error
---@field message string
local Error = {}

---The classes of errors. A class makes an instance when it is called with a message or a table of
---fields.
---
---```lua
---local coop = require 'coop'
---local errors = coop.errors
---local ok, err = pcall(coop.await, coop.Deferred():add_timeout(0.01))
---print(ok, errors.TimeoutError:is(err), err)
---print(errors.TaskDone:is(errors.TaskDone 'over'), errors.SchedulerError:is(errors.TaskDone()))
---```
---```
---false	true	TimeoutError: timed out after 0.01 seconds
---true	true
---```
---@class coop.errors
---@field AlreadyCalledError coop.ErrorClass a Deferred was fired twice
---@field CancelledError coop.ErrorClass the outcome of what was cancelled
---@field ContextClosed coop.ErrorClass a CancelledError: coop was closed by its host
---@field TimeoutError coop.ErrorClass with `seconds`
---@field FirstError coop.ErrorClass with `sub_failure` and `index`
---@field FailureGroup coop.ErrorClass with `failures`
---@field NotReadyError coop.ErrorClass a stage was asked for a value that it has not got
---@field Unsupported coop.ErrorClass
---@field SchedulerError coop.ErrorClass what the next six are
---@field SchedulerStopped coop.ErrorClass the Cooperator has been stopped
---@field NotPaused coop.ErrorClass a task was resumed that was not paused
---@field TaskFinished coop.ErrorClass what the next three are
---@field TaskDone coop.ErrorClass the task has come to its end
---@field TaskStopped coop.ErrorClass the task was stopped
---@field TaskFailed coop.ErrorClass the task has failed
---@field QueueOverflow coop.ErrorClass more was put than may be stored
---@field QueueUnderflow coop.ErrorClass more wait than may
---@field AlreadyCalled coop.ErrorClass the delayed call has been made
---@field AlreadyCancelled coop.ErrorClass the delayed call was cancelled
---@field ReactorNotRunning coop.ErrorClass
---@field ReactorAlreadyRunning coop.ErrorClass
---@field ConnectionDone coop.ErrorClass the connection was closed in good order
---@field ConnectionLost coop.ErrorClass the connection was lost
---@field ConnectionRefused coop.ErrorClass nobody listens there
---@field LineTooLong coop.ErrorClass
---@field HTTPError coop.ErrorClass `coop.http.Error`, once that has been loaded

---@class coop.ErrorClass
---@field super table? the class that it inherits from
---@overload fun(fields?: string|table): coop.Error
local ErrorClass = {}

---Whether `v` is an instance of the class or of a subclass.
---@param v any
---@return boolean
function ErrorClass:is(v) end

-- # Coroutines
--
-- `coop.await` works in whatever runs in a coroutine of coop's, at any depth of calls: in `pcall`, in
-- metamethods, in iterators, and in coroutines that the script makes itself. Under the command the
-- script itself is one.

---A Deferred of what a body returns. Pausing it pauses what the body waits for, if nobody else does;
---cancelling it cancels that, and closes the body.
---@class coop.Coroutine<T>: coop.Deferred<T>

---Waits for a Deferred: its value; a failure's error value is raised. Anything else is returned as it is.
---@async
---@generic T
---@param d coop.Deferred<T>|coop.Coroutine<T>
---@return T
function coop.await(d) end

---A function whose calls run `f(...)` in a coroutine, to its first wait at once, and return it as a
---Deferred.
---
---```lua
---local coop = require 'coop'
---local greet = coop.coroutine(function(name)
---  coop.await(coop.sleep(0.01))
---  return 'hello, ' .. name
---end)
---print(coop.await(greet 'world'))
---```
---```
---hello, world
---```
---@generic R
---@param f async fun(...): R?
---@return fun(...): coop.Coroutine<R>
function coop.coroutine(f) end

---The same, but cancelling raises CancelledError at the body's wait, where it may be caught; pausing
---holds only the handlers of the Deferred.
---@generic R
---@param f async fun(...): R?
---@return fun(...): coop.Deferred<R>
function coop.inline_callbacks(f) end

---`coop.coroutine(f)(...)`.
---@generic R
---@param f async fun(...): R?
---@param ... any
---@return coop.Coroutine<R>
function coop.spawn(f, ...) end

---Leaves the body for good: `f(...)` takes its place, on an empty stack, for the same Deferred.
---@async
---@param f async fun(...): ...
---@param ... any
function coop.noreturn(f, ...) end

---Leaves the body with a value, from any depth of calls.
---@async
---@param value? any
function coop.return_value(value) end

-- # Generators

---Values that are made as somebody asks for them. Calling it is the same as `next`; in a generic for it
---gives its values one after the other. To be closed, too: `local g <close> = gen()`.
---@class coop.Generator<T>
---@overload fun(): T?
local Generator = {}

---A function whose calls make Generators. The body yields its values by `coop.yield` or
---`coroutine.yield`, and may await.
---
---```lua
---local coop = require 'coop'
---local squares = coop.generator(function(n) for i = 1, n do coop.yield(i * i) end end)
---for v in squares(3) do print(v) end
---```
---```
---1
---4
---9
---```
---@param f async fun(...)
---@return fun(...): coop.Generator<any>
function coop.generator(f) end

---`coroutine.yield`: gives a value in a generator's body, where nil only gives the turn up. In a
---coroutine's body a Deferred is waited for.
---@async
---@param ... any
---@return any ...
function coop.yield(...) end

---The next value; nil at the end, again and again.
---@return T?
function Generator:next() end

---Ends it: its to-be-closed variables are closed.
function Generator:close() end

-- # Tasks that take turns

---@class coop.CooperatorOptions
---@field slice? number seconds that a tick may take; default 0.01
---@field quantum? integer steps that a task takes in a row; default 1
---@field started? boolean default true
---@field scheduler? fun(f: fun()): table arranges for `f` to be called later; what it returns has `cancel`
---@field termination_predicate_factory? fun(): fun(): boolean makes what is asked after each step whether the tick is over

---Steps its tasks strictly in turn.
---@class coop.Cooperator
---@field running boolean
local Cooperator = {}

---Makes one. There is one already, `coop.cooperator`.
---@param options? coop.CooperatorOptions
---@return coop.Cooperator
function coop.Cooperator(options) end

---Adds a task that takes the iterator's values, one a step. A Deferred among them is waited for, and its
---failure fails the task.
---@param iterator coop.Iterator
---@return coop.CooperativeTask
function Cooperator:cooperate(iterator) end

---Does the same, and gives the Deferred of the task's end.
---@generic I
---@param iterator I a coop.Iterator
---@param done_deferred? coop.Deferred<I> to be fired instead of a new one
---@return coop.Deferred<I> # fires with the iterator
function Cooperator:coiterate(iterator, done_deferred) end

---Starts it, or starts it again.
function Cooperator:start() end

---Ends all its tasks with SchedulerStopped, in the order in which they were added.
function Cooperator:stop() end

---An iterator that is being stepped.
---@class coop.CooperativeTask
local CooperativeTask = {}

---`coop.cooperator:cooperate(iterator)`.
---
---```lua
---local coop = require 'coop'
---local say = coop.generator(function(name)
---  for i = 1, 2 do
---    print(name, i)
---    coop.yield()
---  end
---end)
---local a, b = coop.cooperate(say 'a'), coop.cooperate(say 'b')
---coop.await(a:when_done())
---coop.await(b:when_done())
---```
---```
---a	1
---b	1
---a	2
---b	2
---```
---@param iterator coop.Iterator
---@return coop.CooperativeTask
function coop.cooperate(iterator) end

---`coop.cooperator:coiterate(iterator, done_deferred)`.
---@generic I
---@param iterator I a coop.Iterator
---@param done_deferred? coop.Deferred<I>
---@return coop.Deferred<I>
function coop.coiterate(iterator, done_deferred) end

---Holds the task until each pause is undone.
function CooperativeTask:pause() end

---Undoes one `pause`. NotPaused is raised when there is none, also when the task only waits.
function CooperativeTask:resume() end

---Ends it: its iterator is closed, then `when_done` fails with TaskStopped.
function CooperativeTask:stop() end

---@return coop.Deferred<any> # fires with the iterator
function CooperativeTask:when_done() end

---@class coop.AccumulateOptions
---@field progress? coop.Progress counts the values

---A task that gathers the iterator's values, those that are not nil. A Deferred stands for its value.
---Cancelling it stops the task and closes the iterator; pausing pauses it. The Failure of one that fails
---has the values that came before as `partial`.
---@generic T
---@param iterator coop.Iterator<T>
---@param cooperator? coop.Cooperator|coop.AccumulateOptions
---@param options? coop.AccumulateOptions may stand in the place of the Cooperator
---@return coop.Deferred<T[]>
function coop.accumulate(iterator, cooperator, options) end

---The same, up to `max_batch_size` values a step. A batch ends early when the slice is over, and at a
---Deferred that has not fired.
---
---```lua
---local coop = require 'coop'
---local upto = coop.generator(function(n) for i = 1, n do coop.yield(i) end end)
---local all = coop.await(coop.batch_accumulate(1000, upto(100000)))
---print(#all, all[#all])
---```
---```
---100000	100000
---```
---@generic T
---@param max_batch_size integer at least 1
---@param iterator coop.Iterator<T>
---@param cooperator? coop.Cooperator|coop.AccumulateOptions
---@param options? coop.AccumulateOptions may stand in the place of the Cooperator
---@return coop.Deferred<T[]>
function coop.batch_accumulate(max_batch_size, iterator, cooperator, options) end

---Calls `f(value, ...)` for each value, at most `limit` at once, and fires with the results in their
---order, `n` set. The first failure fails it, cancels what is in flight and closes the iterator.
---@generic T, R
---@param limit integer at least 1
---@param iterator coop.Iterator<T>
---@param f async fun(value: T, ...): R?
---@param ... any
---@return coop.Deferred<R[]>
function coop.parallel(limit, iterator, f, ...) end

---Called with a value, it stores the value, unless that is nil. `#bucket` is how many there are.
---@class coop.ValueBucket
---@overload fun(v: any)
local ValueBucket = {}

---@return coop.ValueBucket
function coop.ValueBucket() end

---The values so far: the list itself, which goes on to grow.
---@return any[]
function ValueBucket:contents() end

---Gives the values away, and begins a new list.
---@return any[]
function ValueBucket:drain_contents() end

---What a task that filled `spigot` has gathered: a handler for its end.
---@param stopped any the iterator that has come to its end
---@param spigot table anything with `drain_contents`
---@return any[]
function coop.accumulation_handler(stopped, spigot) end

---How far something has come, shown on standard error: on a terminal by a line below all other output,
---which is redrawn with those of others; elsewhere by a line at each quarter of the way. Called with a
---value it counts one and returns the value: `flow.Map(p, stage)`. To be closed: the end of the block
---finishes it.
---@class coop.Progress
---@field done integer how far it has come
---@field total integer? how far it goes
---@field label string
---@overload fun(v: any): any
local Progress = {}

---Shows one. Several tasks may report to it; `coop.accumulate`, `coop.batch_accumulate` and
---`flow.Deferred` do when it is given as `{progress = p}`.
---@param total? integer at least 1; nil: not known
---@param label? string default "progress"
---@return coop.Progress
function coop.progress(total, label) end

---Tells of `n` more. With the last of `total` it is finished.
---@param n? integer default 1
function Progress:advance(n) end

---Redraws it no more: its line stays where it is.
function Progress:finish() end

-- # Locks and queues
--
-- Whoever asks first is first. A lock or semaphore that was acquired may be a to-be-closed variable,
-- which releases it: `local held <close> = coop.await(lock:acquire())`.

---Held by one at a time.
---@class coop.DeferredLock
---@field locked boolean
local DeferredLock = {}

---@return coop.DeferredLock
function coop.DeferredLock() end

---Fires with the lock when it is the caller's turn.
---@return coop.Deferred<coop.DeferredLock>
function DeferredLock:acquire() end

---Gives it to the next who waits.
function DeferredLock:release() end

---Acquires, calls `f(...)`, and releases when its outcome is there.
---@generic R
---@param f async fun(...): R?
---@param ... any
---@return coop.Deferred<R>
function DeferredLock:run(f, ...) end

---Held by up to `limit` at a time.
---@class coop.DeferredSemaphore
---@field tokens integer how many more may hold it now
---@field limit integer
local DeferredSemaphore = {}

---@param n integer at least 1
---@return coop.DeferredSemaphore
function coop.DeferredSemaphore(n) end

---Fires with the semaphore when it is the caller's turn.
---@return coop.Deferred<coop.DeferredSemaphore>
function DeferredSemaphore:acquire() end

---Gives a token to the next who waits.
function DeferredSemaphore:release() end

---Acquires, calls `f(...)`, and releases when its outcome is there.
---@generic R
---@param f async fun(...): R?
---@param ... any
---@return coop.Deferred<R>
function DeferredSemaphore:run(f, ...) end

---Values for those who wait for them, both in order. `#queue` is how many are stored.
---@class coop.DeferredQueue<T>
local DeferredQueue = {}

---@param size? integer how many values it stores; nil: no limit
---@param backlog? integer how many may wait; nil: no limit
---@return coop.DeferredQueue<any>
function coop.DeferredQueue(size, backlog) end

---Hands a value to the first who waits, or stores it. Beyond `size` QueueOverflow is raised.
---@param v T
function DeferredQueue:put(v) end

---Fires with the oldest value. More to wait than `backlog` raise QueueUnderflow.
---@return coop.Deferred<T>
function DeferredQueue:get() end

-- # Time and the loop

---@param seconds number
---@return coop.Deferred<nil> # fires after so many seconds; cancelling it removes the timer
function coop.sleep(seconds) end

---Calls `f(...)` after so many seconds, not before the next turn of the loop.
---@param delay number
---@param f fun(...)
---@param ... any
---@return coop.DelayedCall
function coop.call_later(delay, f, ...) end

---The time of a clock that only goes forward.
---@return number
function coop.seconds() end

---A Deferred of what `f(...)` gives, called after so many seconds of a clock.
---@generic R
---@param clock coop.Clock
---@param delay number
---@param f? async fun(...): R?
---@param ... any
---@return coop.Deferred<R>
function coop.defer_later(clock, delay, f, ...) end

---A call that is to be made.
---@class coop.DelayedCall
local DelayedCall = {}

---Takes it back. AlreadyCalled or AlreadyCancelled is raised when it is too late, here and below.
function DelayedCall:cancel() end

---Has it made so many seconds from now.
---@param seconds number
function DelayedCall:reset(seconds) end

---Has it made so many seconds later than it would be.
---@param seconds number
function DelayedCall:delay(seconds) end

---Whether it is still to be made.
---@return boolean
function DelayedCall:active() end

---When it is due, on its clock.
---@return number
function DelayedCall:get_time() end

---A clock that is moved by hand. Wherever a clock is asked for, any object with `seconds` and
---`call_later` will do.
---
---```lua
---local coop = require 'coop'
---local clock = coop.Clock()
---clock:call_later(3600, print, 'an hour later')
---clock:advance(3599)
---print(clock:seconds())
---clock:advance(1)
---```
---```
---3599.0
---an hour later
---```
---@class coop.Clock
local Clock = {}

---@return coop.Clock
function coop.Clock() end

---Moves the time on, from one due call to the next. An error in a call comes out of it when the others
---have been made.
---@param seconds number
function Clock:advance(seconds) end

---Advances by each of several times.
---@param steps number[]
function Clock:pump(steps) end

---@param delay number
---@param f fun(...)
---@param ... any
---@return coop.DelayedCall
function Clock:call_later(delay, f, ...) end

---The calls that are to be made.
---@return coop.DelayedCall[]
function Clock:get_delayed_calls() end

---@return number # 0.0 at first
function Clock:seconds() end

---The loop: `coop.reactor`. Under the command it runs from the script's first line on.
---@class coop.Reactor: coop.Clock
---@field running boolean
local Reactor = {}

---@param delay number
---@param f fun(...)
---@param ... any
---@return coop.DelayedCall
function Reactor:call_later(delay, f, ...) end

---The calls that are to be made.
---@return coop.DelayedCall[]
function Reactor:get_delayed_calls() end

---@return number
function Reactor:seconds() end

---Runs the loop until `stop`, or until nothing is left. It may be run again.
function Reactor:run() end

---Ends the run after the present turn; the triggers of "shutdown" run then. Under the command the
---process ends, with status 0.
function Reactor:stop() end

---Calls `f(...)` when the loop runs: at once if it does.
---@param f fun(...)
---@param ... any
function Reactor:call_when_running(f, ...) end

---Has `f(...)` called in a phase of an event. A trigger of "before" may return a Deferred, for which the
---later phases wait.
---@param phase 'before'|'during'|'after'
---@param event 'startup'|'shutdown'
---@param f fun(...): any
---@param ... any
---@return any # what `remove_system_event_trigger` takes
function Reactor:add_system_event_trigger(phase, event, f, ...) end

---Takes a trigger away that has not been used up.
---@param id any
function Reactor:remove_system_event_trigger(id) end

---A function that is called every so often. It keeps to its grid: what it missed it skips, and while
---what it returned waits it is not called.
---@class coop.LoopingCall
---@field running boolean
---@field interval number seconds; may be assigned while it runs
---@field clock coop.Clock may be assigned before `start`
local LoopingCall = {}

---```lua
---local coop = require 'coop'
---local n = 0
---local loop
---loop = coop.LoopingCall(function()
---  n = n + 1
---  print('tick', n)
---  if n == 3 then loop:stop() end
---end)
---coop.await(loop:start(0.01))
---```
---```
---tick	1
---tick	2
---tick	3
---```
---@param f async fun(...): ...
---@param ... any
---@return coop.LoopingCall
function coop.LoopingCall(f, ...) end

---Makes one that calls `f(n)`: `n` is how many intervals have passed since the last call, 1 at first.
---@param f async fun(n: integer): any
---@return coop.LoopingCall
function coop.LoopingCall.with_count(f) end

---Begins: the first call is made at once, unless `now` is false.
---@param interval number seconds; 0: once in each turn of the loop
---@param now? boolean default true
---@return coop.Deferred<coop.LoopingCall> # fires when it is stopped, fails when the function does
function LoopingCall:start(interval, now) end

---Ends it: when the function waits, as soon as that is over.
function LoopingCall:stop() end

---Begins the interval anew, from now.
function LoopingCall:reset() end

---Runs `main(...)` as a coroutine, and the loop until its outcome, which is returned or raised. Within a
---running loop, as under the command, it awaits it.
---@generic R
---@param main async fun(...): R?
---@param ... any
---@return R
function coop.run(main, ...) end

---Runs `main(reactor, table.unpack(argv))` to its outcome, and ends the process: with status 0, or 1
---after reporting the failure.
---@param main async fun(reactor: coop.Reactor, ...): any
---@param argv? any[]
function coop.react(main, argv) end

return coop
