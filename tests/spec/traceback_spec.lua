-- Failure:traceback(): the frames of the failure, then those of each coroutine that awaited it,
-- and none of coop's own.

local coop = require 'coop'
local helper = require 'tests.spec.helper'

local error_of = helper.error_of
local inline, spawn, await = coop.inline_callbacks, coop.spawn, coop.await

-- The line after the one that calls this.
local function next_line()
  return debug.getinfo(2, 'l').currentline + 1
end

local function traceback_of(d)
  local _, failure = error_of(d)
  return failure:traceback()
end

-- Fails `d` in a body of its own, so that the frames of the failure are those of this file.
local function fail_in_body(d, value)
  spawn(function() d:errback(value) end)
end

-- Asserts that `text` shows these lines of this file, in this order.
local function shows(text, ...)
  local from = 1
  for i, line in ipairs { ... } do
    local at = text:find(('traceback_spec.lua:%d:'):format(line), from, true)
    assert.truthy(at, ('line %d (the %dth) is not in its place in\n%s'):format(line, i, text))
    from = at + 1
  end
end

local function hides(text, line)
  local at = text:find(('traceback_spec.lua:%d:'):format(line), 1, true)
  assert.is_nil(at, ('line %d is in\n%s'):format(line, text))
end

local standard = {}
for name, value in pairs(_G) do standard[name] = type(value) == 'function' end
for _, library in ipairs { 'string', 'table', 'coroutine' } do
  for name in pairs(_G[library]) do standard[library .. '.' .. name] = true end
end

-- Asserts that every frame is one of this file or a function of Lua's own.
local function is_clean(text)
  local frames = 0
  for line in text:gmatch '[^\n]+' do
    local in_c = line:match '^%s*%[C%]: in (.*)'
    if in_c then
      local name = in_c:match "^function '(.-)'$"
      assert.is_true(name ~= nil and standard[name], ('%q in\n%s'):format(line, text))
    elseif line:find ': in ' then
      frames = frames + 1
      assert.truthy(line:find('traceback_spec.lua:', 1, true), ('%q in\n%s'):format(line, text))
    end
  end
  assert.is_true(frames > 0, text)
end

describe('the traceback of a failure', function()
  it('has the frames from where it was raised to the bottom of the body', function()
    local raised, called, body
    local function inner()
      raised = next_line()
      error('E', 0)
    end
    local function outer()
      called = next_line()
      inner()
      return 'not a tail call'
    end
    local text = traceback_of(spawn(function()
      body = next_line()
      outer()
      return 'not a tail call'
    end))
    shows(text, raised, called, body)
    is_clean(text)
  end)

  it('has them after a wait as well', function()
    local gate, raised = coop.Deferred(), nil
    for _, start in ipairs { spawn, function(f) return inline(f)() end } do
      local d = start(function()
        await(gate)
        raised = next_line()
        error('E', 0)
      end)
      if not gate.called then gate:callback() end
      local text = traceback_of(d)
      shows(text, raised)
      is_clean(text)
    end
  end)

  it('has them for an error value of any type', function()
    for name, value in helper.values() do
      local raised
      local text = traceback_of(spawn(function()
        raised = next_line()
        error(value, 0)
      end))
      assert.equal('string', type(text), name)
      shows(text, raised)
      is_clean(text)
    end
  end)

  it('has them for an error of Lua itself', function()
    local raised
    local text = traceback_of(spawn(function()
      local nothing = await(nil)
      raised = next_line()
      return nothing.field
    end))
    shows(text, raised)
    is_clean(text)
  end)

  it('has nothing of an earlier failure with an equal value that was caught', function()
    local early, late
    spawn(function()
      pcall(await, spawn(function()
        early = next_line()
        error('E', 0)
      end))
    end)
    local text = traceback_of(spawn(function()
      late = next_line()
      error('E', 0)
    end))
    shows(text, late)
    hides(text, early)
    is_clean(text)
  end)

  it('is the same text each time, also when the bodies are gone', function()
    local _, failure = error_of(spawn(function()
      await(spawn(function() error('E', 0) end))
    end))
    local first = failure:traceback()
    collectgarbage()
    collectgarbage()
    assert.equal(first, failure:traceback())
  end)

  it('begins where the Failure was made when nothing was raised', function()
    local made, errback, fail, failures = nil, nil, nil, {}
    local d = coop.Deferred()
    local c = spawn(function()
      made = next_line()
      failures[1] = coop.Failure 'made'
      errback = next_line()
      d:errback 'errback'
      fail = next_line()
      local failed = coop.fail 'fail'
      failures[3] = select(2, error_of(failed))
    end)
    failures[2] = select(2, error_of(d))
    assert.is_nil(helper.value_of(c))
    for i, line in ipairs { made, errback, fail } do
      local text = failures[i]:traceback()
      shows(text, line)
      is_clean(text)
    end
  end)
end)

describe('the traceback of an awaited failure', function()
  local function start_inline(f, ...) return inline(f)(...) end

  -- Three bodies that each wait for the next; the last one raises when `gate` fires.
  local function three(gate, starts)
    local lines = {}
    local function raising()
      await(gate)
      lines[1] = next_line()
      error('E', 0)
    end
    local function middle()
      local d = starts[3](raising)
      lines[2] = next_line()
      local value = await(d)
      return value
    end
    local d = starts[1](function()
      local below = starts[2](middle)
      lines[3] = next_line()
      local value = await(below)
      return value
    end)
    return d, lines
  end

  for name, starts in pairs {
    ['coroutines'] = { spawn, spawn, spawn },
    ['inline functions'] = { start_inline, start_inline, start_inline },
    ['both in turn'] = { spawn, start_inline, spawn },
  } do
    it('goes on with each body that awaited it, the nearest first: ' .. name, function()
      local gate = coop.Deferred()
      local d, lines = three(gate, starts)
      gate:callback()
      local text = traceback_of(d)
      shows(text, table.unpack(lines))
      is_clean(text)
    end)

    it('does so when all of it happens at once: ' .. name, function()
      local d, lines = three(coop.succeed(), starts)
      local text = traceback_of(d)
      shows(text, table.unpack(lines))
      is_clean(text)
    end)
  end

  it('shows the calls that led to the wait', function()
    local waited, called
    local function get(d)
      waited = next_line()
      local value = await(d)
      return value
    end
    local gate = coop.Deferred()
    local d = spawn(function()
      called = next_line()
      local value = get(gate)
      return value
    end)
    fail_in_body(gate, 'E')
    local text = traceback_of(d)
    shows(text, waited, called)
    is_clean(text)
  end)

  it('shows the wait of each of two that share the Deferred', function()
    local gate, lines = coop.Deferred(), {}
    local first = spawn(function()
      lines[1] = next_line()
      local value = await(gate)
      return value
    end)
    local last = spawn(function()
      lines[2] = next_line()
      local value = await(gate)
      return value
    end)
    fail_in_body(gate, 'E')
    shows(traceback_of(first), lines[1])
    shows(traceback_of(last), lines[2])
  end)

  it('shows waits inside pcall and with coroutine.yield', function()
    local gate, lines = coop.Deferred(), {}
    local middle = spawn(function()
      local ok, err = pcall(function()
        lines[1] = next_line()
        local value = coroutine.yield(gate)
        return value
      end)
      if not ok then
        lines[2] = next_line()
        error(err, 0)
      end
    end)
    local d = spawn(function()
      lines[3] = next_line()
      local value = await(middle)
      return value
    end)
    fail_in_body(gate, 'E')
    local text = traceback_of(d)
    shows(text, lines[2], lines[3])
    is_clean(text)
  end)

  it('shows waits inside coroutines of the script', function()
    local lines = {}
    local inner = coop.Deferred()
    local d = spawn(function()
      local step = coroutine.wrap(function()
        lines[1] = next_line()
        local value = await(inner)
        return value
      end)
      local value = step()
      return value
    end)
    fail_in_body(inner, {})
    local text = traceback_of(d)
    shows(text, lines[1])
    is_clean(text)
  end)

  it('shows waits inside generators', function()
    local lines = {}
    local gate = coop.Deferred()
    local d = spawn(function()
      local g = coop.generator(function()
        lines[1] = next_line()
        local value = await(gate)
        coop.yield(value)
      end)()
      local value = g:next()
      return value
    end)
    fail_in_body(gate, {})
    local text = traceback_of(d)
    shows(text, lines[1])
    is_clean(text)
  end)
end)

describe('the traceback of a failure in a handler', function()
  it('has the frames of the handler, then those of each body that awaited', function()
    local lines, source = {}, coop.Deferred()
    local function helper_of_handler()
      lines[1] = next_line()
      error('E', 0)
    end
    source:add_callback(function()
      lines[2] = next_line()
      helper_of_handler()
      return 'not a tail call'
    end)
    local middle = spawn(function()
      lines[3] = next_line()
      local value = await(source)
      return value
    end)
    local d = spawn(function()
      lines[4] = next_line()
      local value = await(middle)
      return value
    end)
    spawn(function() source:callback() end)
    local text = traceback_of(d)
    shows(text, table.unpack(lines))
    is_clean(text)
  end)

  it('goes on through handlers that return Deferreds', function()
    local lines, gate = {}, coop.Deferred()
    local function raising()
      await(gate)
      lines[1] = next_line()
      error('E', 0)
    end
    local chain = coop.succeed()
    chain:add_callback(function()
      local inner = coop.succeed()
      inner:add_callback(function() return spawn(raising) end)
      return inner
    end)
    local d = spawn(function()
      lines[2] = next_line()
      local value = await(chain)
      return value
    end)
    gate:callback()
    local text = traceback_of(d)
    shows(text, lines[1], lines[2])
    is_clean(text)
  end)

  it('stays when an errback gives the failure back, or fires another Deferred with it', function()
    local lines = {}
    local source, other = coop.Deferred(), coop.Deferred()
    local body = spawn(function()
      lines[1] = next_line()
      error('E', 0)
    end)
    body:add_errback(function(failure) return failure end)
    body:add_errback(function(failure) other:errback(failure) end)
    other:add_errback(function(failure) return coop.Failure(failure) end)
    source:add_callback(function() return other end)
    local d = spawn(function()
      lines[2] = next_line()
      local value = await(source)
      return value
    end)
    source:callback()
    local text = traceback_of(d)
    shows(text, lines[1], lines[2])
    is_clean(text)
  end)
end)

describe('the traceback of a failure after noreturn', function()
  it('has the frames of what took the place, and not of the body that has left', function()
    local gate, left, raised, waited = coop.Deferred(), nil, nil, nil
    local function tail()
      await(gate)
      raised = next_line()
      error('E', 0)
    end
    local function leaving()
      left = next_line()
      coop.noreturn(tail)
    end
    local d = spawn(function()
      local below = spawn(leaving)
      waited = next_line()
      local value = await(below)
      return value
    end)
    gate:callback()
    local text = traceback_of(d)
    shows(text, raised, waited)
    hides(text, left)
    is_clean(text)
  end)

  it('goes on through it from what it awaited', function()
    local gate, raised, tail_waited, waited = coop.Deferred(), nil, nil, nil
    local function raising()
      await(gate)
      raised = next_line()
      error('E', 0)
    end
    local function tail()
      local d = spawn(raising)
      tail_waited = next_line()
      local value = await(d)
      return value
    end
    local d = inline(function()
      local below = inline(function() return coop.noreturn(tail) end)()
      waited = next_line()
      local value = await(below)
      return value
    end)()
    gate:callback()
    local text = traceback_of(d)
    shows(text, raised, tail_waited, waited)
    is_clean(text)
  end)

  it('is no longer for a thousand of them', function()
    local function tail(n)
      if n == 0 then error('E', 0) end
      return coop.noreturn(tail, n - 1)
    end
    local text = traceback_of(spawn(tail, 1000))
    is_clean(text)
    assert.is_true(#text < 1000, text)
  end)
end)

describe('the traceback that on_unhandled gets', function()
  it('is the whole one', function()
    local raised, waited
    local reported = helper.unhandled(function()
      spawn(function()
        local d = spawn(function()
          raised = next_line()
          error('E', 0)
        end)
        waited = next_line()
        await(d)
        return 'not a tail call'
      end)
    end)
    assert.equal(1, #reported)
    local text = reported[1]:traceback()
    shows(text, raised, waited)
    is_clean(text)
  end)
end)
