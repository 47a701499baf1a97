-- What is under way, in words: for the end of the command, and for the test kit.
local coop, core = ...

--- Seconds as one says them.
local function seconds(s)
  return (s < 100 and '%.3g s' or '%.0f s'):format(math.max(s, 0))
end

-- A test kit may know of places that are not the script's, by a pattern.
local function place_of(place)
  if place and not (core.not_places and place:find(core.not_places)) then return place end
end

local function made_at(object, known)
  local place = place_of(core.made(object))
  return place and place ~= known and ' made at ' .. place or ''
end

-- Where a function is written, if the state has the library for it.
local function source_of(f) return debug and debug.getinfo(f, 'S').source end

-- What a Deferred stands for. `known` is a place that need not be told again.
local function thing(d, known, deeper)
  local behind = core.behind(d)
  local kind = coop.type(behind)
  local text, more = 'a Deferred', ''
  if core.standing(d) then
    text = 'a coroutine'
  elseif kind == 'DelayedCall' then
    text = 'a sleep'
    more = (' with %s left'):format(seconds(behind:get_time() - coop.reactor:seconds()))
  elseif kind == 'CooperativeTask' then
    text = 'the values of a task'
  elseif type(behind) == 'function' and source_of(behind) == '=[coop.sync]' then
    text = 'its turn at a lock, a semaphore or a queue'
  end
  text = text .. made_at(d, known) .. more
  if coop.is_deferred(behind) and not deeper then
    text = text .. ', which waits for ' .. thing(behind, known, true)
  end
  return text
end

--- Where a coroutine waits, on what, and where it was started. `who` is its name.
function core.wait_text(record, who)
  local place = place_of(record.place)
  local name = place and not who and record.name and (" in function '%s'"):format(record.name) or ''
  local text = (who or 'a coroutine') .. ' waits'
  if place then text = ('%s: %s here%s'):format(place, text, name) end
  if record.on then text = text .. ', for ' .. thing(record.on, record.place) end
  local made = place_of(record.made)
  if made and made ~= record.place and not who then
    text = ('%s (started at %s)'):format(text, made)
  end
  return text
end

local function task_text(record)
  local made = place_of(core.made(record.task))
  local text = 'a task' .. (made and ' made at ' .. made or '')
  if record.state == 'paused' then return text .. ' is paused' end
  if record.state ~= 'waits' then return text .. ' has more to do' end
  local stand = record.thread and core.standing(record.thread)
  local what = record.on and coop.is_deferred(record.on) and thing(record.on)
    or stand and stand.on and thing(stand.on) or 'a Deferred'
  text = ('%s waits for %s'):format(text, what)
  return stand and stand.place and ('%s: %s'):format(stand.place, text) or text
end

--- A list of texts, one for each coroutine and each task that waits.
function core.waiting()
  local list = {}
  for _, record in ipairs(core.waits()) do list[#list + 1] = core.wait_text(record) end
  for _, record in ipairs(core.tasks()) do
    if record.state == 'waits' and not record.fiber then list[#list + 1] = task_text(record) end
  end
  return list
end

local TYPES = { work = 'work outside the loop', Connection = 'a Connection',
  Listener = 'a server', process = 'a process' }

local function handle_text(record)
  local text = TYPES[record.type] or ("a handle of libuv's (%s)"):format(record.type)
  local made = place_of(record.made)
  return text .. (made and ' made at ' .. made or '') .. ' is still open'
end

local function timer_text(call)
  local made = place_of(core.made(call))
  return ('a timer%s is due in %s'):format(made and ' made at ' .. made or '',
    seconds(call:get_time() - coop.reactor:seconds()))
end

--- What is under way: a list of { kind = 'timer' | 'task' | 'handle' | 'wait', key, text() }.
--- The key tells whether it is the same as in an earlier list; `waiter` is the key of the
--- coroutine that sleeps until a timer, `quick` says that it is the script's to end it.
function core.under_way()
  local list = {}
  local function add(kind, key, text, ...)
    local args = table.pack(...)
    list[#list + 1] = {
      kind = kind, key = key, text = function() return text(table.unpack(args, 1, args.n)) end,
    }
  end
  local waits, sleepers = core.waits(), {}
  for _, record in ipairs(waits) do
    local call = record.on and core.behind(record.on)
    if call ~= nil then sleepers[call] = record end
  end
  for _, call in ipairs(coop.reactor:get_delayed_calls()) do
    local sleeper = sleepers[call]
    add('timer', call, sleeper and core.wait_text or timer_text, sleeper or call)
    list[#list].quick = core.made(call) ~= nil
    if sleeper then list[#list].waiter = sleeper.thread end
  end
  for _, record in ipairs(core.tasks()) do
    if not record.custom then
      add('task', record.task, task_text, record)
      list[#list].quick = true
    end
  end
  for _, record in ipairs(core.handles()) do add('handle', record.handle, handle_text, record) end
  for _, record in ipairs(waits) do
    if record.place or record.made then add('wait', record.thread, core.wait_text, record) end
  end
  return list
end
