local child = require 'tests.spec.child'
local coop = require 'coop'
local helper = require 'tests.spec.helper'

local unhandled, values, error_of = helper.unhandled, helper.values, helper.error_of

local function raiser(value)
  return function() error(value, 0) end
end

--- Asserts that `f` leaves one failure, of `value`, unhandled.
local function reports(value, f)
  local reported = unhandled(f)
  assert.equal(1, #reported)
  assert.equal('Failure', coop.type(reported[1]))
  assert.is_true(rawequal(value, reported[1].value))
end

local function reports_nothing(f)
  assert.same({}, unhandled(f))
end

describe('an unhandled failure', function()

  it('ERR-01 is reported when the Deferred of a raising callback is collected', function()
    reports('E', function() coop.succeed():add_callback(raiser 'E') end)
  end)

  it('ERR-02 is reported also when the Deferred was made in an inner scope', function()
    reports('E', function()
      local function inner()
        do
          local d = coop.Deferred()
          d:add_callback(raiser 'E')
          d:callback(1)
        end
      end
      inner()
    end)
  end)

  it('ERR-03 is reported also when the Deferred is part of a cycle', function()
    reports('E', function()
      local t = {}
      t.d = coop.Deferred(function() return t end)
      t.d:add_callback(function()
        t.ran = true
        error('E', 0)
      end)
      t.d:add_callback(function() return t end)
      t.d:callback(t)
    end)
  end)

  it('ERR-09 is reported when an errback returns the same failure', function()
    reports('E', function() coop.fail('E'):add_errback(function(f) return f end) end)
  end)

  it('ERR-10 is reported when the Deferred was paused before it failed', function()
    reports('E', function()
      local d = coop.Deferred()
      d:pause()
      d:errback 'E'
    end)
  end)

  it('ERR-11 is reported when the Deferred was paused after it failed', function()
    reports('E', function() coop.fail('E'):pause() end)
  end)

  for name, value in values() do
    it('is reported with its value, ' .. name, function()
      reports(value, function() coop.fail(value) end)
      reports(value, function() coop.succeed():add_callback(raiser(value)) end)
      reports(value, function() coop.spawn(raiser(value)) end)
    end)
  end

  it('is reported with its own Failure', function()
    local failure = coop.Failure 'E'
    local reported = unhandled(function() coop.fail(failure) end)
    assert.equal(1, #reported)
    assert.is_true(rawequal(failure, reported[1]))
  end)

  it('is not reported before its Deferred is collected', function()
    local d
    reports_nothing(function() d = coop.fail 'E' end)
    assert.equal('E', (error_of(d)))
  end)

  it('is reported once for each Deferred', function()
    local reported = unhandled(function()
      for i = 1, 10 do coop.fail(i) end
    end)
    assert.equal(10, #reported)
    local seen = {}
    for _, failure in ipairs(reported) do seen[failure.value] = true end
    assert.equal(10, #seen)
  end)

  it('is reported once', function()
    local count = 0
    local previous = coop.on_unhandled(function() count = count + 1 end)
    coop.fail 'E'
    for _ = 1, 5 do collectgarbage() end
    coop.on_unhandled(previous)
    assert.equal(1, count)
  end)

  it('is reported for the last of a line of waits only', function()
    reports('E', function()
      local source = coop.Deferred()
      local outer = coop.succeed():add_callback(function() return source end)
      local last = coop.succeed():add_callback(function() return outer end)
      source:errback 'E'
      assert.is_true(last.called)
    end)
  end)

  it('is reported for the target of chain_deferred only', function()
    reports('E', function()
      local source, target = coop.Deferred(), coop.Deferred()
      source:chain_deferred(target)
      source:errback 'E'
    end)
  end)

  it('of a coroutine is reported for the one nobody awaits', function()
    reports('E', function()
      local inner = coop.inline_callbacks(raiser 'E')
      coop.spawn(function() coop.await(inner()) end)
    end)
  end)

  it('is the last one, when an errback raises another', function()
    reports('E2', function() coop.fail('E1'):add_errback(raiser 'E2') end)
  end)

  it('that becomes one after a success is reported', function()
    reports('E', function()
      local d = coop.fail 'first'
      d:add_errback(function() return 'saved' end)
      d:add_callback(raiser 'E')
    end)
  end)
end)

describe('a handled failure', function()

  it('is not reported when an errback saved it', function()
    reports_nothing(function() coop.fail('E'):add_errback(function() end) end)
    reports_nothing(function() coop.fail('E'):add_both(function() end) end)
    reports_nothing(function() coop.fail('E'):add_callbacks(nil, function() end) end)
  end)

  it('is not reported when it is handled later', function()
    reports_nothing(function()
      local d = coop.fail 'E'
      collectgarbage()
      d:add_errback(function() end)
    end)
  end)

  it('is not reported when a paused Deferred is unpaused and handles it', function()
    reports_nothing(function()
      local d = coop.Deferred()
      d:pause()
      d:errback 'E'
      d:add_errback(function() end)
      d:unpause()
    end)
  end)

  it('is not reported when a coroutine awaited it', function()
    reports_nothing(function()
      local d = coop.fail 'E'
      coop.spawn(function() pcall(coop.await, d) end)
    end)
    reports_nothing(function()
      local d = coop.Deferred()
      coop.spawn(function() pcall(coop.await, d) end)
      d:errback 'E'
    end)
  end)

  it('is not reported when it is a CancelledError', function()
    reports_nothing(function() coop.fail(coop.errors.CancelledError 'cancelled') end)
    reports_nothing(function() coop.Deferred():cancel() end)
  end)

  it('is not reported when a Deferred merely never fires', function()
    reports_nothing(function()
      local inner = coop.Deferred()
      coop.succeed():add_callback(function() return inner end)
      coop.Deferred():pause()
    end)
  end)
end)

describe('on_unhandled', function()

  it('returns the function that was set before', function()
    local function first() end
    local function second() end
    local original = coop.on_unhandled(first)
    assert.is_function(original)
    assert.equal(first, coop.on_unhandled(second))
    assert.equal(second, coop.on_unhandled(original))
  end)

  it('gives the function the Failure alone', function()
    local got
    local previous = coop.on_unhandled(function(...) got = table.pack(...) end)
    coop.fail 'E'
    collectgarbage()
    collectgarbage()
    coop.on_unhandled(previous)
    assert.equal(1, got.n)
    assert.equal('Failure', coop.type(got[1]))
  end)

  it('lets its function make and fire Deferreds', function()
    local got
    local previous = coop.on_unhandled(function(failure)
      local d = coop.Deferred()
      d:add_errback(function(f) got = f.value end)
      d:errback(failure)
    end)
    coop.fail 'E'
    collectgarbage()
    collectgarbage()
    coop.on_unhandled(previous)
    assert.equal('E', got)
  end)

  it('refuses what is no function and leaves the one that is set', function()
    local mine = function() end
    local original = coop.on_unhandled(mine)
    for _, bad in ipairs { 5, 'f', {}, false } do
      helper.misuse(function() coop.on_unhandled(bad) end, 'on_unhandled', 'function', type(bad))
    end
    assert.equal(mine, coop.on_unhandled(original))
  end)
end)

child.each(function(name, execute)
  local function count(text, pattern)
    return select(2, text:gsub(pattern, ''))
  end

  describe('a script of ' .. name .. ' with an unhandled failure', function()
    it('ERR-04 writes that it was unhandled, its text and its frames to standard error', function()
      local r = execute [[
        local coop = require 'coop'
        local function broken() error 'kaboom' end
        coop.succeed():add_callback(broken)
        collectgarbage()
        print 'end'
      ]]
      assert.equal('end\n', r.out)
      assert.truthy(r.err:lower():find('unhandled', 1, true), r.err)
      assert.truthy(r.err:find('kaboom', 1, true), r.err)
      assert.truthy(r.err:find('traceback', 1, true), r.err)
      assert.falsy(r.err:find '0x%x%x%x', r.err)
    end)

    it('writes it once', function()
      local r = execute [[
        require 'coop'.fail 'kaboom'
        for _ = 1, 5 do collectgarbage() end
      ]]
      assert.equal(1, count(r.err:lower(), 'unhandled'), r.err)
    end)

    it('writes at its exit what was not collected', function()
      local r = execute [[
        KEPT = require 'coop'.fail 'late'
        print 'end'
      ]]
      assert.equal('end\n', r.out)
      assert.truthy(r.err:find('late', 1, true), r.err)
      assert.equal(1, count(r.err:lower(), 'unhandled'), r.err)
    end)

    it('gives its own function what was not collected, once, at its exit', function()
      local r = execute [[
        local coop = require 'coop'
        coop.on_unhandled(function(failure) print('got', failure.value) end)
        KEPT = coop.fail 'late'
        OTHER = coop.fail 'handled'
        OTHER:add_errback(function() end)
        print 'end'
      ]]
      assert.equal('end\ngot\tlate\n', r.out)
      assert.equal('', r.err)
    end)

    it('has a first function that can be given back', function()
      local r = execute [[
        local coop = require 'coop'
        local original = coop.on_unhandled(function() print 'mine' end)
        coop.fail 'first'
        collectgarbage() collectgarbage()
        print(type(coop.on_unhandled(original)))
        coop.fail 'second'
        collectgarbage() collectgarbage()
      ]]
      assert.equal('mine\nfunction\n', r.out)
      assert.falsy(r.err:find('first', 1, true), r.err)
      assert.truthy(r.err:find('second', 1, true), r.err)
    end)

    it('writes nothing of a cancelled one', function()
      local r = execute [[
        local coop = require 'coop'
        KEPT = coop.Deferred()
        KEPT:cancel()
        coop.Deferred():cancel()
        collectgarbage()
      ]]
      assert.equal('', r.err)
      assert.equal(0, r.status)
    end)

    it('survives an error value that cannot be turned into text', function()
      local r = execute [[
        local coop = require 'coop'
        coop.fail(setmetatable({}, { __tostring = function() error 'no text' end }))
        collectgarbage()
        print 'end'
      ]]
      assert.equal('end\n', r.out)
      assert.equal(1, count(r.err:lower(), 'unhandled'), r.err)
    end)
  end)
end)
