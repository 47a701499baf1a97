-- The life of a run: system events, reactor:run, coop.run, coop.react.
local coop, core = ...

local reactor = coop.reactor
local methods = core.methods.Reactor
local PHASES = { before = true, during = true, after = true }

-- System events ----------------------------------------------------------------------------------

-- events[event][phase] is a list of triggers in order; firing uses them up.
local events = { startup = {}, shutdown = {} }
for _, phases in pairs(events) do
  for phase in pairs(PHASES) do phases[phase] = {} end
end

local new_trigger = core.class('SystemEventTrigger', {})

local function check_reactor(fname, self)
  if self ~= reactor then core.check(fname, 0, 'Reactor', self) end
end

--- Has `f(...)` called in a phase of an event; before-triggers may return a Deferred that holds
--- the later phases back until it fires.
---@param phase 'before'|'during'|'after'
---@param event 'startup'|'shutdown'
---@param f function
---@return any id for remove_system_event_trigger
function methods:add_system_event_trigger(phase, event, f, ...)
  check_reactor('add_system_event_trigger', self)
  if not PHASES[phase] then
    core.check('add_system_event_trigger', 1, '"before", "during" or "after"', phase)
  end
  if not events[event] then
    core.check('add_system_event_trigger', 2, '"startup" or "shutdown"', event)
  end
  if not core.callable(f) then core.check('add_system_event_trigger', 3, 'function', f) end
  local trigger = new_trigger { _f = f, _args = table.pack(...), _list = events[event][phase] }
  table.insert(trigger._list, trigger)
  return trigger
end

--- Takes a trigger away that has not been used up. Misuse when there is none.
---@param id any what add_system_event_trigger returned
function methods:remove_system_event_trigger(id)
  check_reactor('remove_system_event_trigger', self)
  if coop.type(id) ~= 'SystemEventTrigger' then
    core.check('remove_system_event_trigger', 1, 'SystemEventTrigger', id)
  end
  for i, trigger in ipairs(id._list) do
    if rawequal(trigger, id) then
      table.remove(id._list, i)
      return
    end
  end
  core.misuse('remove_system_event_trigger', 'the trigger was used or removed already')
end

-- Calls the triggers of a phase; returns the Deferreds that they returned.
local function fire_phase(event, phase)
  local list, waits = events[event][phase], {}
  while #list > 0 do
    local trigger = table.remove(list, 1)
    local d = coop.maybe_deferred(trigger._f, table.unpack(trigger._args, 1, trigger._args.n))
    d:add_errback(core.report)
    if phase == 'before' then waits[#waits + 1] = d end
  end
  return waits
end

-- The loop ----------------------------------------------------------------------------------------

local stop_asked = false -- r:stop() was called in the present run
local when_running = {}

-- Turns the loop until `done()`; false when nothing was left to turn it for.
local function turn_until(done)
  while not done() do
    if not core.turn_once(true) and not done() then return false end
  end
  return true
end

-- Calls what call_when_running was given.
local function call_waiting()
  local calls = when_running
  when_running = {}
  for _, call in ipairs(calls) do
    local ok, err = pcall(call.f, table.unpack(call, 1, call.n))
    if not ok then core.report(err) end
  end
end

-- The same for `body`, the main one; when nothing is left, a test kit may know how to go on.
local function turn_main(body, done)
  core.main_running = body
  local over
  repeat over = turn_until(done) until over or not (core.on_stall and core.on_stall())
  core.main_running = nil
  return over
end

-- A before-trigger that waits holds the other triggers back, not the loop.
local function start()
  stop_asked = false
  local held = coop.DeferredList(fire_phase('startup', 'before'))
  core.set_running(true)
  local function go_on()
    if not reactor.running then return end
    fire_phase('startup', 'during')
    fire_phase('startup', 'after')
  end
  held:add_callback(go_on)
  call_waiting()
end

local function shut_down()
  local held = coop.DeferredList(fire_phase('shutdown', 'before'))
  turn_until(function() return held.called end)
  core.set_running(false)
  fire_phase('shutdown', 'during')
  fire_phase('shutdown', 'after')
  stop_asked = false
end

-- A run that a host makes in pieces, its polls: from the first one to stop() or to the end of coop.
-- Outside of them reactor.running is false.
local polled = false
local ending -- the shutdown's before-triggers, while they hold the rest back

function core.begin_poll()
  if polled then
    core.set_running(true)
    call_waiting()
  else
    polled = true
    start()
  end
end

-- Ends a poll; true when the reactor has been stopped.
function core.end_poll()
  local stopped = false
  if stop_asked then
    ending = ending or coop.DeferredList(fire_phase('shutdown', 'before'))
    stopped = ending.called
  end
  core.set_running(false)
  if stopped then core.end_polls() end
  return stopped
end

-- Ends the run, if there is one.
function core.end_polls()
  if not polled then return end
  if not ending then fire_phase('shutdown', 'before') end
  polled, stop_asked, ending = false, false, nil
  fire_phase('shutdown', 'during')
  fire_phase('shutdown', 'after')
end

-- Whatever ends a run, it is over, and so is an interrupt that ended it.
local function run_end()
  return setmetatable({}, {
    __close = function()
      core.main_running = nil
      core.set_running(false)
      core.clear_interrupt()
    end,
  })
end

core.start_up, core.shut_down, core.turn_main = start, shut_down, turn_main

function core.stop_asked() return stop_asked end

--- Calls `f(...)` when the loop runs: at once if it does.
---@param f function
function methods:call_when_running(f, ...)
  check_reactor('call_when_running', self)
  if not core.callable(f) then core.check('call_when_running', 1, 'function', f) end
  if reactor.running then
    f(...)
  else
    when_running[#when_running + 1] = { f = f, n = select('#', ...), ... }
  end
end

--- Ends the run after the present turn; the shutdown triggers run then.
function methods:stop()
  check_reactor('stop', self)
  if not reactor.running or stop_asked then
    core.raise('ReactorNotRunning', 'stop', 'the reactor is not running')
  end
  stop_asked = true
  core.wake()
end

--- Runs the loop until stop() or until nothing is left. It may be run again.
function methods:run()
  check_reactor('run', self)
  if reactor.running or core.looping() then
    core.raise('ReactorAlreadyRunning', 'run', 'the reactor is running already')
  end
  local cleanup <close> = run_end()
  start()
  turn_until(core.stop_asked)
  shut_down()
end

-- coop.run, coop.react ----------------------------------------------------------------------------

-- Why main, a body, will never end.
local function stuck_text(body)
  local lines = { 'main waits, and nothing is left that could wake it' }
  local stand = core.standing(body)
  if stand then lines[2] = '\t' .. core.wait_text(stand, 'main') end
  return table.concat(lines, '\n')
end

-- Runs `body`, a Deferred made by core.main, to its outcome, in a loop of its own.
-- Returns 'value' or 'failure' and it; 'stopped'; or 'stuck' and the body when it can never end.
local function run_body(body)
  local how, what
  core.observe(body, function(result)
    how, what = coop.type(result) == 'Failure' and 'failure' or 'value', result
  end)
  local cleanup <close> = run_end()
  start()
  core.start(body)
  local over = turn_main(body, function() return how or stop_asked end)
  if not how then how = over and 'stopped' or 'stuck' end
  if how == 'stuck' then what = body end
  shut_down()
  return how, what
end

--- Runs `main(...)` as a coroutine, and the loop until its outcome; returns it, or raises it.
--- Inside a running loop it awaits it.
---@param main async fun(...): any
---@return any
function coop.run(main, ...)
  if not core.callable(main) then core.check('run', 1, 'function', main) end
  if reactor.running or core.looping() then
    if not core.inside() then
      core.misuse('run', 'the loop runs already; only a coroutine that coop runs can wait in it')
    end
    return coop.await(coop.inline_callbacks(main)(...))
  end
  local how, what = run_body(core.main(main, ...))
  if how == 'failure' then what:raise() end
  if how == 'stuck' then error('run: ' .. stuck_text(what), 2) end
  return what
end

local function exit_with(how, what)
  if how == 'failure' then core.report(what) end
  if how == 'stuck' then core.report('react: ' .. stuck_text(what)) end
  local bad = how == 'failure' or how == 'stuck'
  os.exit(bad and 1 or 0, true)
end

--- Runs `main(reactor, table.unpack(argv))` to its outcome and exits: 0, or 1 after reporting a
--- failure; 0 when the loop was stopped first.
---@param main async fun(reactor: any, ...): any
---@param argv? any[]
function coop.react(main, argv)
  if not core.callable(main) then core.check('react', 1, 'function', main) end
  if argv ~= nil and type(argv) ~= 'table' then core.check('react', 2, 'table', argv) end
  argv = argv or {}
  local n = argv.n or #argv
  if reactor.running or core.looping() then
    local ok, err = pcall(coop.await,
      coop.inline_callbacks(main)(reactor, table.unpack(argv, 1, n)))
    exit_with(ok and 'value' or 'failure', err)
  end
  exit_with(run_body(core.main(main, reactor, table.unpack(argv, 1, n))))
end

-- os.exit closes the state; failures that nobody saw are told of before.
function core.last_words()
  collectgarbage()
  collectgarbage()
  core.report_guarded()
end

return coop
