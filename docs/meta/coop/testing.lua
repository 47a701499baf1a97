---@meta coop.testing

-- # Tests with busted

---@class coop.testing
local testing = {}

---The value that `d` has fired with. Fails the test when there is none yet, or a failure.
---@generic T
---@param d coop.Deferred<T>
---@return T
function testing.success_result_of(d) end

---The Failure of `d`, which counts as handled now. Fails the test when there is none, or when it matches
---none of the arguments.
---@param d coop.Deferred
---@param ... coop.Trap
---@return coop.Failure
function testing.failure_result_of(d, ...) end

---Fails the test when `d` has a result.
---@param d coop.Deferred
function testing.assert_no_result(d) end

---A clock that stands still until the test moves it.
---@return coop.Clock
function testing.Clock() end

---The reactor's time while it jumps. To be closed, too.
---@class coop.Autojump: coop.Clock
local Autojump = {}

---The reactor's time stands still while something runs, and jumps to the next delayed call as soon as
---everything waits: `coop.sleep(3600)` takes no time. It ends with the test.
---@return coop.Autojump
function testing.autojump() end

---Time goes its own way again.
function Autojump:stop() end

---How long a test may take (10 s unless told otherwise): said in a test, of that test; in a file outside
---of tests, of that file's; in busted's helper, of all.
---@param seconds number
function testing.timeout(seconds) end

---Says that it is on purpose when something of these kinds is left behind. Of what, as with `timeout`.
---@param ... 'timer'|'task'|'handle'|'wait'|'failure'
function testing.may_leave(...) end

---A test that waits, for any interpreter: `it('...', testing.async(function() ... end))`. Under `coop`
---tests may wait without.
---@param f async fun(...)
---@param timeout? number seconds
---@return fun(...)
function testing.async(f, timeout) end

---Assertions for luassert, each with its negation (`assert.not_fired(d)`), which are there once
---`coop.testing` has been loaded. None of them waits.
---@class luassert
---@field fired fun(d: coop.Deferred) it has a result
---@field pending fun(d: coop.Deferred) it has none
---@field failed_with fun(what: coop.Trap, d: coop.Deferred) it has failed with what matches
---@field resolves_to fun(value: any, d: coop.Deferred) it has fired with an equal value

return testing
