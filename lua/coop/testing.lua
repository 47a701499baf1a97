-- coop.testing: time in the hand of the test, assertions on Deferreds, and for busted a limit to
-- each test and a check that it leaves nothing behind.
--
-- What a module keeps for a whole run of busted is in core.testing, since busted loads modules
-- anew for each file: the files that are watched, the settings, the test under way.
local coop, core = ...

---@class coop.testing
local testing = {}

-- Of a run: `settings`; of the file and the test under way the same, if they have their own.
local run = core.testing
if not run then
  run = { settings = { timeout = 10, may_leave = {} } }
  core.testing = run
end

local busted = package.loaded.busted
if type(busted) ~= 'table' or not busted.subscribe then busted = nil end

-- Fails the test: `level` 1 is the caller of the function that calls this.
local function fail(message, level)
  if busted then busted.fail(message, level + 2) end
  error(message, level + 2)
end

-- Deferreds ---------------------------------------------------------------------------------------

local function nothing() end

local function check_deferred(fname, n, d)
  if not coop.is_deferred(d) then core.check(fname, n, 'Deferred', d) end
end

-- What is expected, in a sentence: 'Expected the Deferred made at file:line to ...'.
local function expected(d, what)
  local made = core.made(d)
  return ('Expected the Deferred%s %s'):format(made and ' made at ' .. made or '', what)
end

local function indented(text) return (text:gsub('\n', '\n  ')) end

-- A traceback down to the test: what runs it is busted's.
local function traceback(failure)
  local text = failure:traceback()
  return (text:gsub('\n\t%[C%]: in function \'xpcall\'\n\t[^\n]*[/\\]busted[/\\]core%.lua:.*$', ''))
end

-- A value as luassert shows it, when that is there.
local function show(value)
  local assert = package.loaded.luassert
  if assert then return assert:format({ value, n = 1 })[1] end
  return type(value) == 'string' and ('%q'):format(value) or core.text(value)
end

-- How a Deferred stands, in a sentence that begins on a line of its own or ends one.
local function state_text(d, state, result)
  if state == 'value' then return 'it fired with:\n  ' .. indented(show(result)) end
  if state == 'failure' then return 'it failed:\n  ' .. indented(traceback(result)) end
  if state == 'paused' then return 'it is paused' end
  local stand = core.standing(d)
  if stand and stand.place then
    return 'it has no result yet:\n  ' .. core.wait_text(stand, 'its coroutine')
  end
  return 'it has no result yet'
end

local function handled(d, state)
  if state == 'failure' then core.observe(d, nothing) end
end

--- The value that `d` has fired with. Fails the test when it has none yet, or has failed; then
--- with the traceback. The value stays where it is.
---@generic T
---@param d coop.Deferred<T>
---@return T
function testing.success_result_of(d)
  check_deferred('success_result_of', 1, d)
  local state, result = core.outcome(d)
  handled(d, state)
  if state == 'value' then return result end
  fail(expected(d, 'to have fired with a value, but ') .. state_text(d, state, result), 1)
end

local function names(list)
  local texts = {}
  for i = 1, list.n do texts[i] = core.text(list[i]) end
  return table.concat(texts, ' or ')
end

-- What `failure:check` takes.
local TRAPS = { table = true, string = true, ['function'] = true }

--- The Failure of `d`, which counts as handled now. Fails the test when there is none yet, when it
--- has fired with a value, and when the Failure matches none of the arguments (as
--- `failure:check` takes them), if there are any.
---@param d coop.Deferred
---@return coop.Failure
function testing.failure_result_of(d, ...)
  check_deferred('failure_result_of', 1, d)
  local state, result = core.outcome(d)
  if state ~= 'failure' then
    fail(expected(d, 'to have failed, but ') .. state_text(d, state, result), 1)
  end
  local wanted = table.pack(...)
  for i = 1, wanted.n do
    if not TRAPS[type(wanted[i])] then
      core.check('failure_result_of', i + 1, 'class, string or function', wanted[i])
    end
  end
  local matched = wanted.n == 0 or result:check(...) ~= nil
  handled(d, state)
  if not matched then
    fail(expected(d, ('to have failed with %s, but '):format(names(wanted)))
      .. state_text(d, state, result), 1)
  end
  return result
end

--- Fails the test when `d` has a result.
---@param d coop.Deferred
function testing.assert_no_result(d)
  check_deferred('assert_no_result', 1, d)
  local state, result = core.outcome(d)
  if state == 'pending' or state == 'paused' then return end
  handled(d, state)
  fail(expected(d, 'to have no result, but ') .. state_text(d, state, result), 1)
end

-- Time --------------------------------------------------------------------------------------------

--- A clock that stands still until the test moves it: `clock:advance(s)`, `clock:pump{...}`.
---@return coop.Clock
function testing.Clock()
  return coop.Clock()
end

---@class coop.Autojump
local Autojump = {}

local function check_jump(fname, self)
  if coop.type(self) ~= 'Autojump' then core.check(fname, 0, 'Autojump', self) end
end

--- Time goes its own way again. Calls that are still to come are as far off as they were.
function Autojump:stop()
  check_jump('stop', self)
  if run.jump ~= self then return end
  run.jump = nil
  core.jump(false)
end

function Autojump:seconds()
  check_jump('seconds', self)
  return coop.reactor:seconds()
end

function Autojump:call_later(...)
  check_jump('call_later', self)
  return coop.reactor:call_later(...)
end

function Autojump:get_delayed_calls()
  check_jump('get_delayed_calls', self)
  return coop.reactor:get_delayed_calls()
end

local new_jump = core.class('Autojump', Autojump, { __close = Autojump.stop })

--- From now on the reactor's time stands still while something runs, and jumps to the next delayed
--- call as soon as everything waits: `coop.sleep(3600)` takes no time. It ends with the test, with
--- `stop()`, or with the block of a to-be-closed variable. What it returns is a clock.
---@return coop.Autojump
function testing.autojump()
  if run.jump then return run.jump end
  run.jump = new_jump {}
  core.jump(true)
  return run.jump
end

local function stop_jump()
  if run.jump then run.jump:stop() end
end

-- Settings ----------------------------------------------------------------------------------------

local KINDS = { timer = true, task = true, handle = true, wait = true, failure = true }

-- Called in a test, a setting is for that test; else for the file, or in a helper for the run.
local function settings() return run.test or run.file or run.settings end

local function copy(t)
  local may_leave = {}
  for kind in pairs(t.may_leave) do may_leave[kind] = true end
  return { timeout = t.timeout, may_leave = may_leave }
end

local watch_test -- below

--- How long a test may take (10 s unless told otherwise): said in a test, of that test from now on;
--- in a file outside of tests, of that file's tests; in busted's helper, of all.
---@param seconds number
function testing.timeout(seconds)
  if not core.is_number(seconds) or seconds <= 0 then
    core.check('timeout', 1, 'positive number of seconds', seconds)
  end
  settings().timeout = seconds
  if run.test then watch_test(seconds) end
end

--- Says that it is on purpose when something of these kinds is left behind: `'timer'`, `'task'`,
--- `'handle'`, `'wait'` (a coroutine that waits), `'failure'`. Of what, as with `timeout`.
---@param ... 'timer'|'task'|'handle'|'wait'|'failure'
function testing.may_leave(...)
  local kinds = table.pack(...)
  for i = 1, kinds.n do
    if not KINDS[kinds[i]] then
      core.check('may_leave', i, '"timer", "task", "handle", "wait" or "failure"', kinds[i])
    end
  end
  for i = 1, kinds.n do settings().may_leave[kinds[i]] = true end
end

-- The limit ---------------------------------------------------------------------------------------

-- Where everything waits that did not when the test began, as lines.
local function waiting_text(body)
  local stand = core.standing(body)
  local lines = { stand and '\n  ' .. core.wait_text(stand, 'the test') }
  for _, one in ipairs(core.under_way()) do
    local is_new = not run.before or run.before[one.key] == nil
    local is_other = not stand or one.key ~= stand.thread
    local is_wait = one.kind == 'wait' or one.kind == 'task'
    if is_new and is_other and is_wait then lines[#lines + 1] = '\n  ' .. one.text() end
  end
  return table.concat(lines)
end

-- Ends the wait of the test under way with an error.
local function give_up(why)
  local body = core.main_running
  local trace = run.element and run.element.trace
  local place = trace and ('%s:%d: '):format(trace.short_src, trace.currentline) or ''
  run.gave_up = place .. why .. waiting_text(body)
  core.interrupt(body, run.gave_up)
end

function watch_test(seconds)
  core.watch(seconds, function()
    if core.main_running then give_up(('the test took longer than %g s:'):format(seconds)) end
  end)
end

-- When nothing is left that could wake the test there is no need to wait for its time to be over.
local function stalled()
  if not (run.test and core.main_running and core.standing(core.main_running)) then return false end
  give_up 'the test waits for what nothing is left to bring about:'
  return true
end

--- A test that waits, for any interpreter: `it('...', testing.async(function() ... end))`. Under
--- `coop` tests may wait without; `timeout` is as in `testing.timeout`.
---@param test async fun(...)
---@param timeout? number seconds
---@return fun(...)
function testing.async(test, timeout)
  if not core.callable(test) then core.check('async', 1, 'function', test) end
  if timeout ~= nil and not (core.is_number(timeout) and timeout > 0) then
    core.check('async', 2, 'positive number of seconds', timeout)
  end
  local unwatch = setmetatable({}, { __close = function()
    if run.test then watch_test(settings().timeout) else core.watch() end
  end })
  return function(...)
    local limit = timeout or settings().timeout
    local _ <close> = unwatch
    watch_test(limit)
    if core.inside() then return test(...) end
    return coop.run(test, ...)
  end
end

-- What a test leaves behind -----------------------------------------------------------------------

-- How long connections and coroutines may take to notice that the test is over.
local GRACE = 0.25

local function turn()
  if core.inside() then
    coop.await(coop.sleep(0.001))
  elseif not core.looping() then
    local call = coop.call_later(0.001, nothing)
    core.turn_once(true)
    if call:active() then call:cancel() end
  end
end

-- What is under way now that was not before and has not been told of; whether there are things in
-- it that are told of at once, and others.
local function left_over(told)
  local list, quick, slow = {}, false, false
  for _, one in ipairs(core.under_way()) do
    if run.before[one.key] == nil and not told[one.key] then
      list[#list + 1] = one
      if one.quick then quick = true elseif not settings().may_leave[one.kind] then slow = true end
    end
  end
  return list, quick, slow
end

local function end_it(one)
  if one.kind == 'timer' then pcall(one.key.cancel, one.key) end
  if one.kind == 'task' then pcall(one.key.stop, one.key) end
  if one.kind == 'handle' then core.let_go(one.key) end
end

-- Adds the texts of what must not be left, once each.
local function tell(found, kind, text)
  if settings().may_leave[kind] or found[text] then return end
  found[text] = true
  found[#found + 1] = text
end

-- Timers and tasks are told of and ended at once; sockets, coroutines and timers of coop's own have
-- a little time to end by themselves.
local function find_leaks(found)
  local told = {}
  local function tell_of(one)
    if told[one.key] then return end
    told[one.key] = true
    if one.waiter then told[one.waiter] = true end
    tell(found, one.kind, one.text())
    end_it(one)
  end

  local list, quick, slow = left_over(told)
  if quick then
    for _, one in ipairs(list) do
      if one.quick then tell_of(one) end
    end
    list, quick, slow = left_over(told)
  end
  local patience = coop.seconds() + GRACE
  while slow and not quick and coop.seconds() < patience do
    turn()
    list, quick, slow = left_over(told)
  end
  for _, one in ipairs(list) do tell_of(one) end
end

local function failure_text(failure)
  local made = core.made(failure)
  return ('a failure that nobody handled%s:\n    %s'):format(
    made and ', of what was made at ' .. made or '', indented(indented(traceback(failure))))
end

local function find_failures(found)
  for _, failure in ipairs(core.unseen()) do run.failures[#run.failures + 1] = failure end
  for _, failure in ipairs(run.failures) do tell(found, 'failure', failure_text(failure)) end
end

local function remember()
  run.before = setmetatable({}, { __mode = 'k' })
  for _, one in ipairs(core.under_way()) do run.before[one.key] = true end
end

-- The check begins: before the first before_each.
local function begin()
  if run.test then return end -- another hook has begun it
  core.census(true)
  core.not_places = '[/\\]busted[/\\][%w_]+%.lua:%d+$'
  remember()
  core.lost()
  core.unseen()
  run.test = copy(run.file or run.settings)
  run.failures, run.status, run.element, run.gave_up = {}, nil, nil, nil
  local failures = run.failures
  run.reporter = function(failure) failures[#failures + 1] = failure end
  run.reported_to = coop.on_unhandled(run.reporter)
  core.on_stall = stalled
  watch_test(run.test.timeout)
end

local function end_report()
  local last = coop.on_unhandled(run.reported_to)
  if last ~= run.reporter then coop.on_unhandled(last) end
  run.reporter, run.reported_to = nil, nil
end

local function full_name(element)
  local words = {}
  while element and element.name and element.descriptor ~= 'file' do
    table.insert(words, 1, element.name)
    element = busted.parent(element)
  end
  return table.concat(words, ' ')
end

-- busted is told as of an error beside the test, under the test's own name and place.
local function publish(message)
  local test = run.element
  local element = {
    descriptor = 'after_each', name = full_name(test), trace = test.trace, attributes = {},
    starttick = test.starttick, endtick = test.endtick, duration = test.duration,
    starttime = test.starttime, endtime = test.endtime,
  }
  busted.publish({ 'error', 'after_each' }, element, busted.parent(test), message, test.trace)
end

-- The check itself: after the last after_each.
local function finish()
  if not run.test then return end
  stop_jump()
  core.watch()
  core.on_stall = nil
  local found = {}
  find_leaks(found)
  for _, record in ipairs(core.lost()) do
    local known = record.thread and run.before[record.thread]
    if not known and (record.place or record.made) then
      tell(found, 'wait', core.wait_text(record))
    end
  end
  find_failures(found)
  end_report()
  core.census(false)
  run.test = nil
  if run.status ~= 'success' then return end
  if run.gave_up then
    publish(run.gave_up) -- the test has caught the error
  elseif #found > 0 then
    publish('The test has left behind:\n  ' .. table.concat(found, '\n  '))
  end
end

-- Hooks -------------------------------------------------------------------------------------------

-- The check's own after_each is to be the last of its level.
local function put_last(element)
  while element do
    local list = element.after_each
    for i = 1, list and #list or 0 do
      if run.hooks[list[i].run] and i < #list then
        table.insert(list, table.remove(list, i))
        break
      end
    end
    element = busted.parent(element)
  end
end

local function on_start(element)
  put_last(busted.parent(element))
  if run.test then
    run.element = element
    watch_test(run.test.timeout)
  end
  return nil, true
end

local function on_end(_, _, status)
  if run.test then
    run.status = status
    watch_test(run.test.timeout)
  end
  return nil, true
end

local function on_file()
  run.file = copy(run.settings)
  return nil, true
end

-- Of what still waits has been told, or it may; the command has no more to say at its end.
local function on_suite_end()
  core.waiting_told = true
  return nil, true
end

local function on_file_end()
  run.file = nil
  return nil, true
end

-- Whoever requires this module in a spec has the tests of that block watched, in busted's helper
-- those of all files.
local function hook()
  if run.busted ~= busted then
    run.busted, run.hooks = busted, setmetatable({}, { __mode = 'k' })
    busted.subscribe({ 'test', 'start' }, on_start)
    busted.subscribe({ 'test', 'end' }, on_end, { priority = 1 })
    busted.subscribe({ 'file', 'start' }, on_file)
    busted.subscribe({ 'file', 'end' }, on_file_end)
    busted.subscribe({ 'suite', 'end' }, on_suite_end, { priority = 1 })
  end
  local function finish_here() finish() end
  run.hooks[finish_here] = true
  local in_file = false -- what is registered at the root, by a helper, has no trace
  local noticed = busted.subscribe({ 'register', 'before_each' }, function(_, _, trace)
    in_file = trace ~= nil
    return nil, true
  end, { priority = 1 })
  busted.before_each(begin)
  busted.unsubscribe(noticed.id, { 'register', 'before_each' })
  busted.after_each(finish_here)
  if in_file and not run.file then run.file = copy(run.settings) end
end

-- luassert ----------------------------------------------------------------------------------------

-- Replaces the arguments by the message: all that luassert is to show.
local function say(arguments, text)
  for i = 1, arguments.n do arguments[i] = nil end
  arguments[1], arguments.n, arguments.nofmt = text, 1, { true }
end

local function check_argument(name, arguments, n, level)
  if not coop.is_deferred(arguments[n]) then
    error(("bad argument #%d to '%s' (Deferred expected, got %s)"):format(n, name,
      coop.type(arguments[n]) or type(arguments[n])), level + 2)
  end
  return arguments[n]
end

local function is_fired(state) return state == 'value' or state == 'failure' end

local function register(assert, say_messages)
  say_messages:set('assertion.coop', '%s')

  local function assertion(name, f)
    assert:register('assertion', name, f, 'assertion.coop', 'assertion.coop')
  end

  -- What the test says itself: the argument behind the Deferred.
  local function message_of(arguments, d)
    for i = 1, 2 do
      if rawequal(arguments[i], d) then return arguments[i + 1] end
    end
  end

  -- `is` or is not what was expected; says so either way, below what the test says
  -- itself. A failure that the message tells of counts as handled.
  local function verdict(luassert, arguments, d, is, what, state, result)
    luassert.failure_message = message_of(arguments, d)
    if is ~= luassert.mod then handled(d, state) end
    local text = expected(d, ('%sto %s'):format(is and 'not ' or '', what))
    local but = text:find '\n' and '\nbut ' or ', but '
    say(arguments, text .. but .. state_text(d, state, result))
    return is
  end

  assertion('fired', function(luassert, arguments, level)
    local d = check_argument('fired', arguments, 1, level)
    local state, result = core.outcome(d)
    return verdict(luassert, arguments, d, is_fired(state), 'have fired', state, result)
  end)

  assertion('pending', function(luassert, arguments, level)
    local d = check_argument('pending', arguments, 1, level)
    local state, result = core.outcome(d)
    return verdict(luassert, arguments, d, not is_fired(state), 'be pending', state, result)
  end)

  assertion('failed_with', function(luassert, arguments, level)
    local wanted = arguments[1]
    local kind = type(wanted)
    if kind ~= 'table' and kind ~= 'string' and kind ~= 'function' then
      error(("bad argument #1 to 'failed_with' (class, string or function expected, got %s)")
        :format(coop.type(wanted) or kind), level + 1)
    end
    local d = check_argument('failed_with', arguments, 2, level)
    local state, result = core.outcome(d)
    local is = state == 'failure' and result:check(wanted) ~= nil
    if is then handled(d, state) end
    return verdict(luassert, arguments, d, is,
      'have failed with ' .. core.text(wanted), state, result)
  end)

  assertion('resolves_to', function(luassert, arguments, level)
    local d = check_argument('resolves_to', arguments, 2, level)
    local wanted = arguments[1]
    local state, result = core.outcome(d)
    local is = state == 'value'
      and (result == wanted or require 'luassert.util'.deepcompare(result, wanted, true))
    return verdict(luassert, arguments, d, is,
      'resolve to:\n  ' .. indented(show(wanted)), state, result)
  end)
end

local assert = package.loaded.luassert
if assert then register(assert, require 'say') end
if busted then hook() end

return testing
