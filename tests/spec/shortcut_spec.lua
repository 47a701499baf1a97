-- What is done in a shorter way when it can be, beside the long way: a program sees no difference.

local coop = require 'coop'
local helper = require 'tests.spec.helper'

local value_of, error_of, cap = helper.value_of, helper.error_of, helper.cap
local inline, spawn, await = coop.inline_callbacks, coop.spawn, coop.await

local function nothing() end

-- Deferreds in every state that a script can tell apart, each with its fields.
local function states()
  local paused, unpaused, fired = coop.Deferred(), coop.Deferred(), coop.Deferred()
  paused:pause()
  unpaused:pause()
  unpaused:unpause()
  fired:pause()
  fired:callback 'v'
  return {
    fresh = { coop.Deferred(), called = false, paused = 0 },
    cancellable = { coop.Deferred(nothing), called = false, paused = 0 },
    listened = { coop.Deferred():add_both(nothing), called = false, paused = 0 },
    paused = { paused, called = false, paused = 1 },
    unpaused = { unpaused, called = false, paused = 0 },
    succeeded = { coop.succeed 'v', called = true, paused = 0, result = 'v' },
    held = { fired, called = true, paused = 1, result = 'v' },
    ['fired with false'] = { coop.succeed(false), called = true, paused = 0, result = false },
    waiting = { coop.Deferred():add_both(nothing):add_both(function() return coop.Deferred() end),
      called = false, paused = 0 },
    coroutine = { spawn(await, helper.forever()), called = false, paused = 0 },
    finished = { spawn(tostring, 7), called = true, paused = 0, result = '7' },
  }
end

describe('a Deferred that is fresh', function()
  for name in pairs(states()) do
    it(('has the face of all others: %s'):format(name), function()
      local all = states()
      local state = all[name]
      local d, other = state[1], coop.succeed(1)
      for _, field in ipairs { 'called', 'paused', 'result' } do
        assert.equal(state[field], d[field], field)
      end
      for _, method in ipairs {
        'add_callback', 'add_errback', 'add_both', 'add_callbacks', 'add_timeout', 'callback',
        'errback', 'pause', 'unpause', 'cancel', 'chain_deferred',
      } do
        assert.is_function(d[method], method)
        assert.equal(other[method], d[method], method)
      end
      assert.is_nil(d.nonsense)
      assert.is_nil(d[1])
      assert.is_nil(d[d])
      assert.is_string(getmetatable(d))
      assert.is_false(pcall(function() d.called = true end))
      assert.is_false(pcall(function() d.extra = 1 end))
      assert.equal(state.called, d.called)
      for _, other_state in pairs(all) do other_state[1]:cancel() end
    end)
  end

  it('has told its state truly ever since it changed', function()
    local d, seen = coop.Deferred(), {}
    local function look() seen[#seen + 1] = ('%s %d %s'):format(d.called, d.paused, d.result) end
    look()
    d:pause()
    look()
    d:add_both(function(v)
      look()
      return v + 1
    end)
    d:callback(1)
    look()
    d:unpause()
    look()
    assert.same({ 'false 0 nil', 'false 1 nil', 'true 1 1', 'true 0 1', 'true 0 2' }, seen)
  end)

  it('told a canceller so', function()
    local seen
    local d = coop.Deferred(function(self) seen = { self.called, self.paused, self.result } end)
    d:cancel()
    assert.same({ false, 0 }, seen)
    assert.is_true(d.called)
    error_of(d)
  end)
end)

describe('handlers that run one after the other', function()
  -- Adds a handler that notes what it got, and what the Deferred's result is, then calls `f`.
  local function note(d, log, f)
    d:add_both(function(v)
      log[#log + 1] = ('%s %s'):format(v, d.result)
      if f then return f(v) end
      return v .. '+'
    end)
  end

  it('each find their value as the result', function()
    local d, log = coop.Deferred(), {}
    for _ = 1, 6 do note(d, log) end
    d:callback 'a'
    assert.same({ 'a a', 'a+ a+', 'a++ a++', 'a+++ a+++', 'a++++ a++++', 'a+++++ a+++++' }, log)
    assert.equal('a++++++', d.result)
  end)

  it('stop at a pause from within, with the result so far', function()
    for place = 1, 5 do
      local d, log = coop.Deferred(), {}
      for i = 1, 5 do
        note(d, log, i == place and function(v)
          d:pause()
          return v .. '+'
        end)
      end
      d:callback ''
      assert.equal(place, #log)
      assert.equal(('+'):rep(place), d.result)
      d:unpause()
      assert.equal(5, #log)
      assert.equal('+++++', value_of(d))
    end
  end)

  it('go on behind one that raises, waits, or gives something of the host', function()
    for _, f in ipairs {
      function() error('an error', 0) end,
      function() return coop.fail 'an error' end,
      function()
        local inner = coop.Deferred()
        coop.call_later(0, inner.errback, inner, 'an error')
        return inner
      end,
    } do
      coop.run(function()
        local d, log = coop.Deferred(), {}
        d:add_callback(nothing):add_callback(f):add_callback(function() log[1] = 'no' end)
        d:add_errback(function(failure) return failure.value end)
        d:add_errback(function() log[2] = 'no' end)
        d:add_callback(function(v) return v .. '!' end)
        d:callback(1)
        assert.equal('an error!', await(d))
        assert.same({}, log)
      end)
    end
    local d = coop.Deferred()
    d:add_both(function() return io.stdout end)
    d:add_both(function(v)
      assert.equal(d.result, v)
      return v
    end)
    d:callback()
    assert.equal(io.stdout, value_of(d))
  end)

  it('queue what they add, and run it last', function()
    local d, log = coop.Deferred(), {}
    for i = 1, 3 do
      d:add_both(function()
        log[#log + 1] = i
        d:add_both(function() log[#log + 1] = i .. ' later' end)
      end)
    end
    d:callback()
    assert.same({ 1, 2, 3, '1 later', '2 later', '3 later' }, log)
  end)

  it('leave a trace of the script alone', function()
    local d = coop.Deferred()
    d:add_callback(nothing):add_callback(nothing)
    d:add_callback(function() error 'here' end)
    d:callback()
    local _, failure = error_of(d)
    local text = failure:traceback()
    assert.truthy(text:find('shortcut_spec.lua', 1, true), text)
    assert.falsy(text:find('[coop', 1, true), text)
  end)

  it('are let go of once they have run', function()
    local d, kept = coop.Deferred(), setmetatable({}, { __mode = 'k' })
    for _ = 1, 3 do
      local big = {}
      local function handler() return big and {} end
      kept[big], kept[handler] = true, true
      d:add_callback(handler)
    end
    d:callback {}
    collectgarbage()
    collectgarbage()
    assert.is_nil(next(kept))
    assert.is_table(d.result)
  end)
end)

describe('who is woken', function()
  it('runs before the handlers behind, however many wake each other', function()
    for _, depth in ipairs { 1, 2, 7, 8, 9, 10, 25, 60 } do
      local all, log, expected = {}, {}, {}
      local last = coop.Deferred()
      all[0] = last
      for i = 1, depth do
        local source = all[i - 1]
        all[i] = spawn(function() return await(source) + 1 end)
        source:add_both(function(v)
          log[#log + 1] = i - 1
          return v
        end)
      end
      for i = depth - 1, 0, -1 do expected[#expected + 1] = i end
      last:callback(0)
      assert.same(expected, log)
      assert.equal(depth, value_of(all[depth]))
    end
  end)

  it('finds what it was woken by busy: a handler added there is queued', function()
    local d, log = coop.Deferred(), {}
    spawn(function()
      log[#log + 1] = await(d)
      d:add_both(function() log[#log + 1] = 'added' end)
      log[#log + 1] = 'goes on'
    end)
    d:add_both(function() log[#log + 1] = 'behind' end)
    d:callback 'woken'
    assert.same({ 'woken', 'goes on', 'behind', 'added' }, log)
  end)

  it('holds nothing of what it waited for', function()
    local kept = setmetatable({}, { __mode = 'k' })
    local waited, stop = coop.Deferred(), coop.Deferred()
    local proc = spawn(function()
      local function wait()
        local d, value = coop.Deferred(), {}
        kept[d], kept[value] = true, true
        coop.call_later(0, d.callback, d, value)
        assert.equal(value, await(d))
      end
      wait()
      wait()
      waited:callback()
      return await(stop)
    end)
    coop.run(function()
      await(waited)
      await(coop.sleep(0))
    end)
    collectgarbage()
    collectgarbage()
    assert.is_nil(next(kept))
    stop:callback(1)
    assert.equal(1, value_of(proc))
  end)

  it('gets nil, false and Failures as they are', function()
    for _, wait in ipairs { await, coroutine.yield } do
      for _, fired in ipairs { false, true } do
        local d = coop.Deferred()
        if fired then d:callback(nil) end
        local got = spawn(function() return select('#', wait(d)), d.result end)
        if not fired then d:callback(nil) end
        assert.equal(1, value_of(got))
        local e, err = coop.Deferred(), {}
        e:add_errback(function(failure) return failure end)
        if fired then e:errback(err) end
        local failed = inline(function() return select(2, pcall(wait, e)) end)()
        if not fired then e:errback(err) end
        assert.equal(err, value_of(failed))
      end
    end
  end)
end)

describe('a coroutine that is used again', function()
  it('is none that a script has seen', function()
    local seen = {}
    for i = 1, 20 do
      value_of(spawn(function()
        local co = coroutine.running()
        assert.is_nil(seen[co])
        seen[co] = i
      end))
    end
    for co in pairs(seen) do
      assert.equal('dead', coroutine.status(co))
      assert.is_false(coroutine.resume(co))
    end
  end)

  it('has no hook and no frames of the last', function()
    for _, ends in ipairs { nothing, error } do
      cap(spawn(function()
        debug.sethook(nothing, '', 1000)
        ends()
      end))
      local hook = value_of(spawn(function() return { debug.gethook() } end))
      local lines = value_of(spawn(debug.traceback))
      assert.is_nil(hook[1])
      assert.falsy(lines:find('sethook', 1, true))
    end
  end)

  it('is clean after errors, cleanups and early leaves', function()
    local log = {}
    local function body(how)
      local function close(_, e) log[#log + 1] = tostring(e) end
      local _ <close> = setmetatable({}, { __close = close })
      if how == 'error' then error('e', 0) end
      if how == 'return' then coop.return_value 'r' end
      if how == 'noreturn' then coop.noreturn(tostring, 'n') end
      if how == 'wait' then return await(coop.sleep(0)) end
      return how
    end
    for _ = 1, 3 do
      for _, how in ipairs { 'error', 'return', 'noreturn', 'plain' } do
        log = {}
        local outcome = cap(spawn(body, how))
        assert.equal(1, #log, how)
        assert.equal(1, outcome.n, how)
      end
      coop.run(function() await(spawn(body, 'wait')) end)
      local given = { spawn(select, '#'), spawn(select, '#', nil), spawn(select, '#', 1, nil, nil) }
      assert.same({ 0, 1, 3 }, { value_of(given[1]), value_of(given[2]), value_of(given[3]) })
    end
  end)

  it('is not mixed up where some end, some wait, some nest', function()
    local gates, results = {}, {}
    local function body(n, depth)
      local inner = depth > 0 and spawn(body, n * 2, depth - 1)
      if n % 3 == 0 then
        local gate = coop.Deferred()
        gates[#gates + 1] = gate
        n = n + await(gate)
      end
      return n + (inner and await(inner) or 0)
    end
    for i = 1, 200 do results[i] = spawn(body, i, i % 12) end
    while #gates > 0 do
      local open = gates
      gates = {}
      for i = #open, 1, -1 do open[i]:callback(0) end
    end
    for i = 1, 200 do assert.equal(i * (2 ^ (i % 12 + 1) - 1), value_of(results[i])) end
  end)

  it('is collected with its body when that waits for ever', function()
    local kept, closed = setmetatable({}, { __mode = 'k' }), 0
    for _ = 1, 50 do value_of(spawn(nothing)) end
    for _ = 1, 50 do
      spawn(function()
        local held <close> = setmetatable({}, { __close = function() closed = closed + 1 end })
        kept[held] = true
        value_of(spawn(nothing))
        await(helper.forever())
      end)
    end
    for _ = 1, 3 do collectgarbage() end
    assert.equal(50, closed)
    assert.is_nil(next(kept))
  end)

  it('holds no argument and no result of the last', function()
    local kept = setmetatable({}, { __mode = 'k' })
    local function give(v) return v, {}, v end
    do
      local v = {}
      kept[v] = true
      value_of(spawn(give, v, v, v))
    end
    for _ = 1, 3 do collectgarbage() end
    assert.is_nil(next(kept))
  end)

  it('serves bodies that run in a finaliser', function()
    local log = {}
    for i = 1, 10 do
      setmetatable({}, { __gc = function() log[#log + 1] = value_of(spawn(math.abs, -i)) end })
    end
    for _ = 1, 3 do collectgarbage() end
    table.sort(log)
    assert.same({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, log)
  end)
end)
