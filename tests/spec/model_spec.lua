local coop = require 'coop'
local model = require 'tests.spec.model'
require 'tests.spec.helper'
local testing = require 'coop.testing'

testing.may_leave('wait') -- a program that was made at random does

local errors = coop.errors

--- The text of a value, the same for coop and for the model.
local function text(v)
  if errors.CancelledError:is(v) then return 'cancelled' end
  if errors.AlreadyCalledError:is(v) then return 'already' end
  local s = tostring(v)
  return s:find('itself', 1, true) and 'itself' or s
end

--- Runs the random program number `seed` on `api`: coop, or the model of it.
--- Returns what was seen, line by line, and the Deferreds.
local function play(api, seed)
  math.randomseed(seed)
  local random = math.random
  local trace, ds, bodies = {}, {}, {}

  local function show(v)
    return api.type(v) == 'Failure' and 'failure ' .. text(v.value) or text(v)
  end

  local function say(...) trace[#trace + 1] = table.concat({ ... }, ' ') end

  local cancellers = {
    function() end,
    function(d) d:callback 'from the canceller' end,
    function(d) d:errback 'from the canceller' end,
    function() error('raised by the canceller', 0) end,
  }

  local function note(name, d)
    d:add_both(function(v)
      say(name, 'added', show(v))
      return v
    end)
  end

  local function fire(how, d, value)
    if not bodies[d] then say(how, tostring((pcall(d[how], d, value)))) end
  end

  -- What a handler named `name` of `d` does with the value, `other` being any Deferred.
  local acts = {
    function(name) return 'value of ' .. name end,
    function(name) error('error of ' .. name, 0) end,
    function(name) return api.Failure('failure of ' .. name) end,
    function(_, v) return v end,
    function(_, _, _, other) return other end,
    function(_, v, d) d:pause() return v end,
    function(name, v, d) note(name, d) return v end,
    function(name, v, _, other) note(name, other) return v end,
    function(name, v, _, other) fire('callback', other, name) return v end,
    function(name, v, _, other) fire('errback', other, name) return v end,
    function(_, v, _, other) other:cancel() return v end,
    function(_, v, _, other) pcall(other.unpause, other) return v end,
  }

  local adds = { 'add_callback', 'add_errback', 'add_both' }

  -- What a program does next with `d`; `name` is new each time.
  local calls = {
    function(d, name, other)
      local add, act = adds[random(#adds)], acts[random(#acts)]
      d[add](d, function(v)
        say(name, show(v))
        return act(name, v, d, other)
      end)
    end,
    function(d, name) fire('callback', d, name) end,
    function(d, name) fire('errback', d, name) end,
    function(d) d:cancel() end,
    function(d) d:pause() end,
    function(d) say('unpause', tostring((pcall(d.unpause, d)))) end,
    function(d, _, other)
      if d ~= other and not bodies[other] then d:chain_deferred(other) end
    end,
    function(d, name, other)
      local body = api.inline_callbacks(function()
        local ok, v = pcall(api.await, d)
        say(name, 'got', tostring(ok), text(v))
        v = api.await(other)
        say(name, 'got', text(v))
        return v
      end)()
      ds[#ds + 1], bodies[body] = body, true
    end,
  }

  for i = 1, random(2, 5) do ds[i] = api.Deferred(cancellers[random(2 * #cancellers)]) end
  for i = 1, random(5, 40) do
    local call = calls[random(3) == 1 and 1 or random(#calls)]
    local d, other = ds[random(#ds)], ds[random(#ds)]
    call(d, 'h' .. i, other)
    for n, each in ipairs(ds) do
      say('state', n, tostring(each.called), tostring(each.paused), show(each.result))
    end
  end
  return trace, ds
end

--- Plays program number `seed` on both and compares what was seen.
--- Adds the texts of the failures that are left unhandled to `left`.
local function compare(seed, left)
  local wanted, ds = play(model, seed)
  local got = play(coop, seed)
  for i = 1, math.max(#wanted, #got) do
    if wanted[i] ~= got[i] then
      error(('program %d, line %d: %s, not %s'):format(seed, i, got[i], wanted[i]), 0)
    end
  end
  for _, d in ipairs(ds) do
    if model.unhandled(d) then left[#left + 1] = text(d.outcome.value) end
  end
end

describe('any sequence of calls', function()
  -- Texts alone are kept: a Failure holds the functions that it passed, and so their Deferreds.
  local reported, previous

  before_each(function()
    reported = {}
    previous = coop.on_unhandled(function(f) reported[#reported + 1] = text(f.value) end)
  end)

  after_each(function() coop.on_unhandled(previous) end)

  it('has the effects that a plain model has', function()
    local left = {}
    for seed = 1, 500 do compare(seed, left) end
    -- what was raised last may be held: let it be nothing of a program's
    pcall(function() coop.Failure(nil):raise() end)
    for _ = 1, 3 do collectgarbage() end
    table.sort(left)
    table.sort(reported)
    assert.equal(table.concat(left, '\n'), table.concat(reported, '\n'))
  end)
end)
