local coop = require 'coop'
local helper = require 'tests.spec.helper'
local child = require 'tests.spec.child'
local run, misuse, raises = helper.run, helper.misuse, helper.raises

local AlreadyCalled, AlreadyCancelled = coop.errors.AlreadyCalled, coop.errors.AlreadyCancelled
local huge, nan = math.huge, 0 / 0

local function nothing() end

-- Whether `list` has `item`.
local function has(list, item)
  for _, other in ipairs(list) do
    if other == item then return true end
  end
  return false
end

-- Lets the loop turn until `condition` holds.
local function settle(condition)
  local patience = coop.seconds() + 30
  while not condition() do
    if coop.seconds() > patience then error('nothing comes of waiting', 2) end
    coop.await(coop.sleep(0))
  end
end

describe('a delayed call of a virtual clock', function()
  local clk, log
  local function note(name)
    return function() log[#log + 1] = name end
  end

  before_each(function()
    clk, log = coop.Clock(), {}
  end)

  it('CLK-02 knows its time and is active', function()
    local call = clk:call_later(1, nothing)
    assert.equal(1, call:get_time())
    assert.is_true(call:active())
  end)

  it('CLK-02a hands its arguments on, nils too', function()
    local seen
    clk:call_later(1, function(...) seen = table.pack(...) end, 'a', nil, 3, nil)
    clk:advance(1)
    assert.same({ n = 4, 'a', nil, 3, nil }, seen)
  end)

  it('counts from the time at which it was made', function()
    clk:advance(10)
    assert.equal(11.5, clk:call_later(1.5, nothing):get_time())
  end)

  it('CLK-03 never runs once cancelled', function()
    local call = clk:call_later(1, note 'a')
    call:cancel()
    assert.is_false(call:active())
    clk:advance(2)
    assert.same({}, log)
  end)

  it('CLK-04 has a handle of its own', function()
    local a, b = clk:call_later(1, note 'a'), clk:call_later(1, note 'b')
    assert.not_equal(a, b)
    a:cancel()
    assert.is_true(b:active())
    clk:advance(1)
    assert.same({ 'b' }, log)
  end)

  it('CLK-05 runs when its time has come, once', function()
    local call = clk:call_later(2, note 'a')
    clk:advance(1)
    assert.same({}, log)
    assert.is_true(call:active())
    clk:advance(1)
    assert.same({ 'a' }, log)
    assert.is_false(call:active())
    clk:advance(10)
    assert.same({ 'a' }, log)
  end)

  it('is no longer active while it runs', function()
    local call, active
    call = clk:call_later(1, function() active = call:active() end)
    clk:advance(1)
    assert.is_false(active)
  end)

  it('CLK-06 cannot be cancelled from inside', function()
    local call, e
    call = clk:call_later(1, function()
      local _
      _, e = pcall(call.cancel, call)
    end)
    clk:advance(1)
    helper.is_error(AlreadyCalled, e, 'cancel')
  end)

  it('CLK-09 is reset relative to now', function()
    clk:advance(5)
    local call = clk:call_later(4, note 'a')
    clk:advance(1)
    call:reset(2)
    assert.equal(8, call:get_time())
    clk:advance(1)
    assert.same({}, log)
    clk:advance(1)
    assert.same({ 'a' }, log)
  end)

  it('CLK-09a is reset to an earlier time', function()
    local call = clk:call_later(4, note 'a')
    call:reset(3)
    clk:advance(3)
    assert.same({ 'a' }, log)
  end)

  it('is delayed relative to its own time', function()
    local call = clk:call_later(4, note 'a')
    clk:advance(1)
    call:delay(2)
    assert.equal(6, call:get_time())
    clk:advance(4.5)
    assert.same({}, log)
    clk:advance(0.5)
    assert.same({ 'a' }, log)
  end)

  it('CLK-17 knows its time after cancel', function()
    local call = clk:call_later(3, nothing)
    call:cancel()
    assert.equal(3, call:get_time())
  end)

  it('knows its time after it has run', function()
    local call = clk:call_later(3, nothing)
    clk:advance(5)
    assert.equal(3, call:get_time())
  end)

  it('refuses whatever comes after cancel', function()
    local call = clk:call_later(1, nothing)
    call:cancel()
    raises(AlreadyCancelled, function() call:cancel() end, 'cancel')
    raises(AlreadyCancelled, function() call:reset(1) end, 'reset')
    raises(AlreadyCancelled, function() call:delay(1) end, 'delay')
  end)

  it('refuses whatever comes after it has run', function()
    local call = clk:call_later(1, nothing)
    clk:advance(1)
    raises(AlreadyCalled, function() call:cancel() end, 'cancel')
    raises(AlreadyCalled, function() call:reset(1) end, 'reset')
    raises(AlreadyCalled, function() call:delay(1) end, 'delay')
  end)

  it('lets go of its function and arguments when cancelled', function()
    local weak = setmetatable({}, { __mode = 'v' })
    weak.argument = {}
    local call = clk:call_later(1, nothing, weak.argument)
    call:cancel()
    collectgarbage()
    collectgarbage()
    assert.is_nil(weak.argument)
    assert.is_false(call:active())
  end)

  it('CLK-31 has a string form in every state, whatever its arguments', function()
    local odd = setmetatable({}, { __tostring = function() error 'no name' end })
    local call = clk:call_later(1, nothing, odd, nil, nan)
    assert.equal('string', type(tostring(call)))
    call:reset(3)
    assert.equal('string', type(tostring(call)))
    call:cancel()
    assert.equal('string', type(tostring(call)))
    local inside
    call = clk:call_later(1, function() inside = tostring(call) end, odd)
    clk:advance(1)
    assert.equal('string', type(inside))
    assert.equal('string', type(tostring(call)))
  end)

  it('CLK-33 equals itself alone, and is ordered by its time', function()
    local a, b = clk:call_later(1, nothing), clk:call_later(1, nothing)
    assert.is_true(a == a) -- luacheck: ignore
    assert.is_false(a == b)
    b:delay(1)
    assert.is_true(a:get_time() < b:get_time())
  end)

  it('is an object of coop that hides what it is made of', function()
    local call = clk:call_later(1, nothing)
    assert.equal('string', type(coop.type(call)))
    assert.equal('string', type(getmetatable(call)))
  end)
end)

describe('the calls of a virtual clock', function()
  local clk, log
  local function note(name)
    return function() log[#log + 1] = name end
  end

  before_each(function()
    clk, log = coop.Clock(), {}
  end)

  it('CLK-10 are listed while they are pending', function()
    assert.same({}, clk:get_delayed_calls())
    local a, b = clk:call_later(1, nothing), clk:call_later(2, nothing)
    local c = clk:call_later(3, nothing)
    local calls = clk:get_delayed_calls()
    assert.equal(3, #calls)
    assert.is_true(has(calls, a) and has(calls, b) and has(calls, c))
    b:cancel()
    clk:advance(1)
    calls = clk:get_delayed_calls()
    assert.equal(1, #calls)
    assert.is_true(has(calls, c))
    clk:advance(2)
    assert.same({}, clk:get_delayed_calls())
  end)

  it('CLK-29a are listed when other calls have made them', function()
    local inner
    clk:call_later(1, function() inner = clk:call_later(5, nothing) end)
    clk:advance(1)
    local calls = clk:get_delayed_calls()
    assert.equal(1, #calls)
    assert.is_true(has(calls, inner))
  end)

  it('are listed in a table that is the reader\'s own', function()
    clk:call_later(1, note 'a')
    local calls = clk:get_delayed_calls()
    calls[1] = nil
    assert.equal(1, #clk:get_delayed_calls())
    clk:advance(1)
    assert.same({ 'a' }, log)
  end)

  it('CLK-11 run by their times after a reset made later', function()
    local a = clk:call_later(1, function() log[#log + 1] = 'a' .. clk:seconds() end)
    a:reset(3)
    clk:call_later(2, function() log[#log + 1] = 'b' .. clk:seconds() end)
    clk:pump { 1, 1, 1 }
    assert.equal(2, #log)
    assert.equal('b', log[1]:sub(1, 1))
    assert.equal(2, tonumber(log[1]:sub(2)))
    assert.equal('a', log[2]:sub(1, 1))
    assert.equal(3, tonumber(log[2]:sub(2)))
  end)

  it('CLK-12 run by their times after a reset', function()
    local a = clk:call_later(1, note 'a')
    clk:call_later(2, note 'b')
    a:reset(3)
    clk:pump { 1, 1, 1 }
    assert.same({ 'b', 'a' }, log)
  end)

  it('CLK-14 run in the order in which they were made when due together', function()
    local wanted = {}
    for i = 1, 100 do
      clk:call_later(1, note(i))
      wanted[i] = i
    end
    clk:advance(1)
    assert.same(wanted, log)
  end)

  it('keep that order through reset and delay', function()
    local a = clk:call_later(1, note 'a')
    clk:call_later(3, note 'b')
    local c = clk:call_later(1, note 'c')
    local d = clk:call_later(9, note 'd')
    d:reset(3)
    c:reset(3)
    a:delay(2)
    clk:advance(3)
    assert.same({ 'a', 'b', 'c', 'd' }, log)
  end)

  it('CLK-15 can prevent one another', function()
    local b
    clk:call_later(1, function()
      log[#log + 1] = 'a'
      b:cancel()
    end)
    b = clk:call_later(1, note 'b')
    clk:call_later(1, note 'c')
    clk:advance(1)
    assert.same({ 'a', 'c' }, log)
  end)

  it('run in order, however they were made, cancelled and moved', function()
    local seed, wanted = 7, {}
    local function random(n)
      seed = (seed * 1103515245 + 12345) % 2147483648
      return seed // 65536 % n
    end
    local calls = {}
    for i = 1, 1000 do
      local at = random(50)
      local entry = { at = at, number = i }
      entry.call = clk:call_later(at, function() log[#log + 1] = i end)
      calls[i] = entry
    end
    for _, entry in ipairs(calls) do
      local what = random(4)
      if what == 0 then
        entry.call:cancel()
      else
        if what == 1 then
          entry.at = random(50)
          entry.call:reset(entry.at)
        elseif what == 2 then
          entry.at = entry.at + 5
          entry.call:delay(5)
        end
        wanted[#wanted + 1] = entry
      end
    end
    table.sort(wanted, function(a, b)
      if a.at ~= b.at then return a.at < b.at end
      return a.number < b.number
    end)
    for i, entry in ipairs(wanted) do wanted[i] = entry.number end
    clk:advance(100)
    assert.same(wanted, log)
  end)
end)

describe('an advance of a virtual clock', function()
  local clk, log
  local function note(name)
    return function() log[#log + 1] = name end
  end
  local function at(name)
    return function() log[#log + 1] = { name, clk:seconds() } end
  end

  before_each(function()
    clk, log = coop.Clock(), {}
  end)

  it('begins at 0 and moves the time', function()
    assert.equal(0, clk:seconds())
    clk:advance(1.5)
    assert.equal(1.5, clk:seconds())
    clk:pump { 1, 2, 0.5 }
    assert.equal(5, clk:seconds())
  end)

  it('shows each call its own due time', function()
    clk:call_later(2, at 'b')
    clk:call_later(1, at 'a')
    clk:call_later(3.5, at 'c')
    clk:advance(10)
    assert.same({ { 'a', 1 }, { 'b', 2 }, { 'c', 3.5 } }, log)
    assert.equal(10, clk:seconds())
  end)

  it('completes sleeps that follow on one another', function()
    local done
    coop.spawn(function()
      for _ = 1, 3 do
        coop.await(coop.defer_later(clk, 1))
        log[#log + 1] = clk:seconds()
      end
      done = true
    end)
    clk:advance(3)
    assert.same({ 1, 2, 3 }, log)
    assert.is_true(done)
  end)

  it('runs what its calls make for times up to its end', function()
    clk:call_later(1, function()
      log[#log + 1] = { 'a', clk:seconds() }
      clk:call_later(1, at 'b')
      clk:call_later(3, at 'c')
    end)
    clk:advance(3)
    assert.same({ { 'a', 1 }, { 'b', 2 } }, log)
    clk:advance(1)
    assert.same({ 'c', 4 }, log[3])
  end)

  it('CLK-22 gives a call made for the same time a further turn', function()
    clk:call_later(1, function()
      log[#log + 1] = { 'a', clk:seconds() }
      clk:call_later(0, at 'c')
    end)
    clk:call_later(1, at 'b')
    clk:advance(2)
    assert.same({ { 'a', 1 }, { 'b', 1 }, { 'c', 1 } }, log)
  end)

  it('CLK-22a makes one turn only at its end time', function()
    clk:call_later(1, function()
      log[#log + 1] = { 'a', clk:seconds() }
      clk:call_later(0, at 'b')
    end)
    clk:advance(1)
    assert.same({ { 'a', 1 } }, log)
    clk:advance(0)
    assert.same({ { 'a', 1 }, { 'b', 1 } }, log)
  end)

  it('CLK-22b by 0 makes one turn', function()
    local turns = 0
    local function again()
      turns = turns + 1
      clk:call_later(0, again)
    end
    clk:call_later(0, again)
    clk:advance(0)
    assert.equal(1, turns)
    clk:pump { 0, 0, 0 }
    assert.equal(4, turns)
    assert.equal(0, clk:seconds())
  end)

  it('CLK-22c raises when 10,000 turns pass without time moving', function()
    local turns = 0
    local function again()
      turns = turns + 1
      clk:call_later(0, again)
    end
    clk:call_later(1, again)
    misuse(function() clk:advance(2) end, 'advance')
    assert.is_true(turns >= 9999 and turns <= 10001, turns)
  end)

  it('allows as many turns again at the next time', function()
    local turns, left = 0, 9000
    local function again()
      turns = turns + 1
      left = left - 1
      if left > 0 then clk:call_later(0, again) end
    end
    clk:call_later(1, again)
    clk:call_later(2, function()
      left = 9000
      again()
    end)
    clk:advance(3)
    assert.equal(18000, turns)
    assert.equal(3, clk:seconds())
  end)

  it('runs 20,000 calls due together in one turn', function()
    local n = 0
    for _ = 1, 20000 do clk:call_later(1, function() n = n + 1 end) end
    clk:advance(2)
    assert.equal(20000, n)
  end)

  it('CLK-23 raises the error of a call after the rest have run', function()
    local e = {}
    clk:call_later(1, function() error(e) end)
    clk:call_later(1, note 'b')
    clk:call_later(2, note 'c')
    local ok, raised = pcall(clk.advance, clk, 3)
    assert.is_false(ok)
    assert.equal(e, raised)
    assert.same({ 'b', 'c' }, log)
    assert.equal(3, clk:seconds())
    assert.same({}, clk:get_delayed_calls())
  end)

  it('CLK-23a raises the first of several errors and reports the others', function()
    local ok, raised
    local reported = helper.unhandled(function()
      clk:call_later(2, error, 'second', 0)
      clk:call_later(1, error, 'first', 0)
      clk:call_later(2, error, 'third', 0)
      ok, raised = pcall(clk.advance, clk, 2)
    end)
    assert.is_false(ok)
    assert.equal('first', raised)
    assert.equal(2, #reported)
    assert.equal('second', reported[1].value)
    assert.equal('third', reported[2].value)
  end)

  it('raises an error that is nil, too', function()
    clk:call_later(1, error, nil)
    local result = table.pack(pcall(clk.advance, clk, 1))
    assert.is_false(result[1])
    assert.is_nil(result[2])
    assert.equal(1, clk:seconds())
  end)

  it('goes on as usual after one that raised', function()
    clk:call_later(1, error, 'oops', 0)
    pcall(clk.advance, clk, 1)
    clk:call_later(1, note 'a')
    clk:advance(1)
    assert.same({ 'a' }, log)
  end)

  it('CLK-24 may be made inside a call, and time adds up', function()
    clk:call_later(1, function()
      clk:advance(2)
      log[#log + 1] = clk:seconds()
    end)
    clk:advance(1)
    assert.same({ 3 }, log)
    assert.equal(3, clk:seconds())
  end)

  it('CLK-24a adds up with one made in the middle of it', function()
    clk:call_later(1, function() clk:advance(2) end)
    clk:call_later(2, at 'b')
    clk:advance(5)
    assert.same({ { 'b', 2 } }, log)
    assert.equal(7, clk:seconds())
  end)

  it('does not touch another clock', function()
    local other = coop.Clock()
    other:call_later(1, note 'other')
    clk:advance(5)
    assert.same({}, log)
    assert.equal(0, other:seconds())
  end)
end)

describe('misuse of a clock', function()
  local clk
  before_each(function() clk = coop.Clock() end)

  it('CLK-25 is a delay that is negative, NaN or infinite', function()
    for _, delay in ipairs { -1, -0.001, nan, huge, -huge } do
      misuse(function() clk:call_later(delay, nothing) end, 'call_later')
    end
    assert.same({}, clk:get_delayed_calls())
  end)

  it('CLK-25a is an advance that is negative, NaN or infinite', function()
    local ran = false
    clk:call_later(0, function() ran = true end)
    for _, step in ipairs { -1, nan, huge, -huge } do
      misuse(function() clk:advance(step) end, 'advance')
    end
    assert.is_false(ran)
    assert.equal(0, clk:seconds())
  end)

  it('is a reset to what is no delay, which changes nothing', function()
    local call = clk:call_later(4, nothing)
    for _, delay in ipairs { -1, nan, huge, -huge } do
      misuse(function() call:reset(delay) end, 'reset')
    end
    for _, delay in ipairs { nan, huge, -huge } do
      misuse(function() call:delay(delay) end, 'delay')
    end
    assert.equal(4, call:get_time())
    assert.is_true(call:active())
  end)

  it('is an argument of the wrong type, named with what was expected and got', function()
    local e = misuse(function() clk:call_later({}, nothing) end, 'call_later', '#1', 'table')
    assert.truthy(e:find 'clock_spec%.lua:%d+: ', e)
    misuse(function() clk:call_later(nil, nothing) end, 'call_later')
    misuse(function() clk:call_later(1) end, 'call_later', '#2')
    misuse(function() clk:call_later(1, 42) end, 'call_later', '#2', 'number')
    misuse(function() clk:advance() end, 'advance')
    misuse(function() clk:advance {} end, 'advance', 'table')
    misuse(function() clk:pump(1) end, 'pump', 'number')
    misuse(function() clk:call_later(1, nothing):reset {} end, 'reset', 'table')
    misuse(function() clk:call_later(1, nothing):delay() end, 'delay')
    assert.equal(2, #clk:get_delayed_calls())
  end)

  it('is a pump with a wrong step', function()
    misuse(function() clk:pump { -1 } end)
    assert.equal(0, clk:seconds())
  end)

  it('is not a call of anything that can be called', function()
    local seen
    clk:call_later(1, setmetatable({}, { __call = function(_, v) seen = v end }), 'v')
    clk:advance(1)
    assert.equal('v', seen)
  end)
end)

describe('the reactor as a clock', function()
  local r = coop.reactor

  it('CLK-26 counts from what its clock reads', run(function()
    local before = r:seconds()
    local call = r:call_later(100, nothing)
    local after = r:seconds()
    assert.is_true(before + 100 <= call:get_time() and call:get_time() <= after + 100)
    before = r:seconds()
    call:reset(50)
    after = r:seconds()
    assert.is_true(before + 50 <= call:get_time() and call:get_time() <= after + 50)
    local due = call:get_time()
    call:delay(7)
    assert.equal(due + 7, call:get_time())
    call:cancel()
  end))

  it('runs no call before its time', run(function()
    local early = {}
    local left = 20
    for i = 1, left do
      local call
      call = r:call_later(i * 0.0003, function()
        if r:seconds() < call:get_time() then early[#early + 1] = i end
        left = left - 1
      end)
    end
    settle(function() return left == 0 end)
    assert.same({}, early)
  end))

  it('CLK-27 runs a call of 0 later, with its arguments', run(function()
    local seen
    r:call_later(0, function(...) seen = table.pack(...) end, 1, nil, 3)
    assert.is_nil(seen)
    settle(function() return seen end)
    assert.same({ n = 3, 1, nil, 3 }, seen)
  end))

  it('CLK-27a never runs what was cancelled', run(function()
    local ran, after = false, false
    local call = r:call_later(0, function() ran = true end)
    r:call_later(0, function() r:call_later(0, function() after = true end) end)
    call:cancel()
    settle(function() return after end)
    assert.is_false(ran)
    assert.is_false(call:active())
  end))

  it('CLK-28 refuses cancel once cancelled, called or running', run(function()
    local call, e
    call = r:call_later(0, function()
      local _
      _, e = pcall(call.cancel, call)
    end)
    settle(function() return e end)
    helper.is_error(AlreadyCalled, e, 'cancel')
    raises(AlreadyCalled, function() call:cancel() end, 'cancel')
    raises(AlreadyCalled, function() call:reset(1) end, 'reset')
    raises(AlreadyCalled, function() call:delay(1) end, 'delay')
    call = r:call_later(0, nothing)
    call:cancel()
    raises(AlreadyCancelled, function() call:cancel() end, 'cancel')
    raises(AlreadyCancelled, function() call:reset(1) end, 'reset')
    raises(AlreadyCancelled, function() call:delay(1) end, 'delay')
  end))

  it('CLK-29 moves the time of a call that is reset', run(function()
    local log = {}
    local a = r:call_later(1000, function() log[#log + 1] = 'a' end)
    local b = r:call_later(0, function() log[#log + 1] = 'b' end)
    b:reset(1000)
    assert.is_true(a:active())
    a:reset(0)
    settle(function() return log[1] end)
    assert.same({ 'a' }, log)
    assert.is_false(a:active())
    assert.is_true(b:active())
    b:cancel()
  end))

  it('CLK-30 refuses delays that are negative, NaN or infinite', run(function()
    for _, delay in ipairs { -1, -0.001, nan, huge, -huge } do
      misuse(function() r:call_later(delay, nothing) end, 'call_later')
      misuse(function() coop.call_later(delay, nothing) end, 'call_later')
      misuse(function() coop.sleep(delay) end, 'sleep')
    end
    misuse(function() r:call_later(0) end, 'call_later')
    misuse(function() r:call_later('soon', nothing) end, 'call_later', 'string')
    misuse(function() coop.call_later(0, 42) end, 'call_later', 'number')
    misuse(function() coop.sleep() end, 'sleep')
  end))

  it('runs calls in the order of their times', run(function()
    local log = {}
    for i = 5, 1, -1 do
      r:call_later(i / 1000, function() log[#log + 1] = i end)
    end
    settle(function() return #log == 5 end)
    assert.same({ 1, 2, 3, 4, 5 }, log)
  end))

  it('runs calls made one after another for now in that order', run(function()
    local log, wanted = {}, {}
    for i = 1, 100 do
      wanted[i] = i
      r:call_later(0, function() log[#log + 1] = i end)
    end
    settle(function() return #log == 100 end)
    assert.same(wanted, log)
  end))

  it('runs what a call makes no earlier than in the next turn', run(function()
    local log = {}
    r:call_later(0, function()
      log[#log + 1] = 'a'
      r:call_later(0, function() log[#log + 1] = 'c' end)
    end)
    r:call_later(0, function() log[#log + 1] = 'b' end)
    settle(function() return #log == 3 end)
    assert.same({ 'a', 'b', 'c' }, log)
  end))

  it('does not starve other calls for one that makes itself again', run(function()
    local stop, other = false, false
    local function again()
      if not stop then r:call_later(0, again) end
    end
    again()
    r:call_later(0.002, function() other = true end)
    settle(function() return other end)
    stop = true
    assert.is_true(other)
    coop.await(coop.sleep(0)) -- the last of them is called
  end))

  it('reports the error of a call and goes on', function()
    local log = {}
    local e = { 'a table' }
    local reported = helper.unhandled(run(function()
      r:call_later(0, error, e)
      r:call_later(0, function() log[#log + 1] = 'next' end)
      settle(function() return #log == 1 end)
    end))
    assert.same({ 'next' }, log)
    assert.equal(1, #reported)
    assert.equal('Failure', coop.type(reported[1]))
    assert.equal(e, reported[1].value)
  end)

  it('takes calls through coop.call_later', run(function()
    local seen
    local call = coop.call_later(0, function(...) seen = table.pack(...) end, 'x', nil)
    assert.is_true(call:active())
    settle(function() return seen end)
    assert.same({ n = 2, 'x', nil }, seen)
    assert.is_false(call:active())
  end))
end)

describe('time', function()

  it('is read from the clock, within a turn too', run(function()
    local start, used = coop.seconds(), os.clock()
    repeat until os.clock() - used > 0.002
    assert.is_true(coop.seconds() - start > 0.001)
  end))

  it('is a float and never goes back', run(function()
    local last = coop.seconds()
    assert.equal('float', math.type(last))
    for _ = 1, 1000 do
      local now = coop.seconds()
      assert.is_true(now >= last)
      last = now
    end
  end))

  it('passes in a sleep, which fires with nil', run(function()
    local start = coop.seconds()
    local d = coop.sleep(0.003)
    assert.equal('Deferred', coop.type(d))
    assert.is_false(d.called)
    local result = table.pack(coop.await(d))
    assert.is_nil(result[1])
    assert.is_true(coop.seconds() - start >= 0.003)
  end))

  it('is not waited for by a sleep of 0 longer than a turn', run(function()
    local d = coop.sleep(0)
    assert.is_false(d.called)
    coop.await(d)
    assert.is_true(d.called)
  end))

  it('ends a cancelled sleep with CancelledError', run(function()
    local d = coop.sleep(1000)
    d:cancel()
    assert.is_true(coop.errors.CancelledError:is((helper.error_of(d))))
  end))

  child.each(function(name, execute)
    it('is not waited for by a cancelled sleep, in ' .. name, function()
      local result = execute [[
        local coop = require 'coop'
        local function main()
          coop.sleep(1000):cancel()
          coop.call_later(1000, print):cancel()
          print 'end'
        end
        coop.run(main)
        if not coop.reactor.running then coop.reactor:run() end
      ]]
      assert.same({ out = 'end\n', err = '', status = 0 }, result)
    end)
  end)
end)
