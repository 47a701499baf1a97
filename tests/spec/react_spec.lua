local coop = require 'coop'
local helper = require 'tests.spec.helper'
local child = require 'tests.spec.child'
local run, misuse = helper.run, helper.misuse

local head = "local coop = require 'coop'\n"

child.each(function(name, execute)
  describe('react in ' .. name, function()
    -- What a script writes that calls react with `main`; it must end with `status`.
    local function react(status, main, tail)
      tail = tail or 'coop.react(main)'
      local result = execute(("%s%s\n%s\nprint 'never'"):format(head, main, tail))
      assert.equal(status, result.status, result.err)
      if status == 0 then assert.equal('', result.err) end
      return result.out, result.err
    end

    -- The same bodies of main as a function and as two kinds of coroutine (REACT-12).
    local function mains(body)
      local i = 0
      local forms = { 'function(r, ...) %s end', 'coop.inline_callbacks(function(r, ...) %s end)',
        'coop.coroutine(function(r, ...) %s end)' }
      return function()
        i = i + 1
        return forms[i] and ('local main = ' .. forms[i]):format(body)
      end
    end

    it('REACT-01/12 turns until the Deferred of main fires, and exits with 0', function()
      for main in mains [[
        local d = coop.Deferred()
        r:call_later(0.004, function() print 'fire' d:callback 'value' end)
        r:call_later(0.001, function() print 'before' end)
        r:call_later(1000, function() print 'too late' end)
        return d
      ]] do
        assert.equal('before\nfire\n', (react(0, main)))
      end
    end)

    it('REACT-02 exits with 0 when that Deferred has fired', function()
      for main in mains [[
        r:call_later(1000, print, 'too late')
        return coop.succeed 'value'
      ]] do
        assert.equal('', (react(0, main)))
      end
    end)

    it('REACT-03 exits with 1 when that Deferred fails, and reports it once', function()
      for main in mains [[
        coop.on_unhandled(function(failure) print('reported', failure.value) end)
        local d = coop.Deferred()
        r:call_later(0.001, function() print 'fail' d:errback 'oops' end)
        return d
      ]] do
        assert.equal('fail\nreported\toops\n', (react(1, main)))
      end
    end)

    it('REACT-03a reports on standard error', function()
      local out, err = react(1, [[
        local function main(r)
          return coop.defer_later(r, 0.001, error, 'sorry about that', 0)
        end
      ]])
      assert.equal('', out)
      assert.truthy(err:find('sorry about that', 1, true), err)
    end)

    it('REACT-04 exits with 1 when that Deferred has failed, and reports it once', function()
      for main in mains [[
        coop.on_unhandled(function(failure) print('reported', failure.value) end)
        r:call_later(1000, print, 'too late')
        return coop.fail 'oops'
      ]] do
        assert.equal('reported\toops\n', (react(1, main)))
      end
    end)

    it('exits with 1 when the error is nil', function()
      assert.equal('reported\tnil\n', (react(1, [[
        coop.on_unhandled(function(failure) print('reported', failure.value) end)
        local function main() return coop.fail(nil) end
      ]])))
    end)

    it('REACT-05 exits with 0 when another stops the loop and the shutdown fires it', function()
      for main in mains [[
        local d = coop.Deferred()
        r:add_system_event_trigger('during', 'shutdown', function()
          print 'shutdown'
          d:callback()
        end)
        r:call_later(0.001, function() r:stop() end)
        return d
      ]] do
        assert.equal('shutdown\n', (react(0, main)))
      end
    end)

    it('exits with 0 when the loop is stopped without an outcome', function()
      for main in mains [[
        r:call_later(0.001, function() print 'stop' r:stop() end)
        return coop.Deferred()
      ]] do
        assert.equal('stop\n', (react(0, main)))
      end
    end)

    it('REACT-08 gives main the reactor and its arguments', function()
      for main in mains [[
        print(r == coop.reactor, r.running, select('#', ...), ...)
        return coop.succeed()
      ]] do
        assert.equal('true\ttrue\t2\tx\ty\n', (react(0, main, "coop.react(main, { 'x', 'y' })")))
        assert.equal('true\ttrue\t0\n', (react(0, main)))
      end
    end)

    it('REACT-10 exits with 0 when main is done right after stop', function()
      for main in mains [[
        local d = coop.Deferred()
        r:call_later(0.001, function()
          r:stop()
          d:callback()
        end)
        return d
      ]] do
        assert.equal('', (react(0, main)))
      end
    end)

    it('REACT-12a takes a coroutine that waits', function()
      for _, kind in ipairs { 'inline_callbacks', 'coroutine' } do
        assert.equal('1\n2\n', (react(0, ([[
          local main = coop.%s(function(r)
            for i = 1, 2 do
              coop.await(coop.sleep(0.001))
              print(i)
            end
          end)
        ]]):format(kind))))
        assert.equal('reported\toops\n', (react(1, ([[
          coop.on_unhandled(function(failure) print('reported', failure.value) end)
          local main = coop.%s(function(r)
            coop.await(coop.sleep(0.001))
            error('oops', 0)
          end)
        ]]):format(kind))))
      end
    end)

    it('REACT-13 exits with 1 when main raises at once, and reports it once', function()
      for main in mains [[
        coop.on_unhandled(function(failure) print('reported', failure.value) end)
        error('at once', 0)
      ]] do
        assert.equal('reported\tat once\n', (react(1, main)))
      end
    end)

    it('REACT-13a takes a plain result, or none, for success', function()
      for main in mains 'return 42' do assert.equal('', (react(0, main))) end
      for main in mains 'return false' do assert.equal('', (react(0, main))) end
      for main in mains "print 'main'" do assert.equal('main\n', (react(0, main))) end
    end)

    it('runs the shutdown triggers before it exits', function()
      assert.equal('main\nshutdown\n', (react(0, [[
        local function main(r)
          r:add_system_event_trigger('after', 'shutdown', print, 'shutdown')
          print 'main'
        end
      ]])))
    end)

    it('closes the state when it exits', function()
      assert.equal('main\ncollected\n', (react(0, [[
        local function main(r)
          kept = setmetatable({}, { __gc = function() print 'collected' end })
          print 'main'
        end
      ]])))
    end)

    it('is refused without a function', function()
      local result = execute(head .. [[
        print((pcall(coop.react)))
        print((pcall(coop.react, 42)))
        print((pcall(coop.react, print, 'x')))
        print(select(2, pcall(coop.react, 42)):find('react', 1, true) ~= nil)
      ]])
      assert.same({ out = 'false\nfalse\nfalse\ntrue\n', err = '', status = 0 }, result)
    end)
  end)
end)

describe('run', function()

  it('returns what main returns, given its arguments', function()
    local seen
    assert.equal('result', coop.run(function(...)
      seen = table.pack(...)
      return 'result'
    end, 1, nil, 'x', nil))
    assert.same({ n = 4, 1, nil, 'x', nil }, seen)
    assert.is_nil(coop.run(function() end))
    assert.is_false(coop.run(function() return false end))
  end)

  it('turns until main has done its waiting', function()
    local log = {}
    assert.equal('slept', coop.run(function()
      log[#log + 1] = 'before'
      coop.await(coop.sleep(0.001))
      log[#log + 1] = 'after'
      return 'slept'
    end))
    assert.same({ 'before', 'after' }, log)
  end)

  it('waits for a Deferred that main returns', function()
    assert.equal('late', coop.run(function()
      return coop.defer_later(coop.reactor, 0.001, function() return 'late' end)
    end))
  end)

  it('takes a coroutine function', function()
    for _, kind in ipairs { coop.inline_callbacks, coop.coroutine } do
      assert.equal(3, coop.run(kind(function(a, b)
        coop.await(coop.sleep(0))
        return a + b
      end), 1, 2))
    end
  end)

  it('raises the error of main, whatever it is', function()
    for name, value in helper.values() do
      local result = table.pack(pcall(coop.run, function() error(value, 0) end))
      assert.is_false(result[1], name)
      assert.equal(value, result[2], name)
      result = table.pack(pcall(coop.run, function()
        coop.await(coop.sleep(0))
        error(value, 0)
      end))
      assert.is_false(result[1], name)
      assert.equal(value, result[2], name)
      result = table.pack(pcall(coop.run, function() return coop.fail(value) end))
      assert.is_false(result[1], name)
      assert.equal(value, result[2], name)
    end
  end)

  it('awaits inside a running loop', run(function()
    local log = {}
    coop.spawn(function()
      coop.await(coop.sleep(0))
      log[#log + 1] = 'other'
    end)
    assert.equal('inner', coop.run(function(v)
      coop.await(coop.sleep(0))
      coop.await(coop.sleep(0))
      log[#log + 1] = 'main'
      return v
    end, 'inner'))
    assert.same({ 'other', 'main' }, log)
    local ok, e = pcall(coop.run, function() error('nested', 0) end)
    assert.is_false(ok)
    assert.equal('nested', e)
    assert.is_true(coop.reactor.running)
  end))

  it('runs main inside the running loop', function()
    assert.is_true(coop.run(function() return coop.reactor.running end))
  end)

  it('is refused without a function', function()
    misuse(function() coop.run() end, 'run')
    misuse(function() coop.run(42) end, 'run', 'number')
  end)

  it('ends with main, whatever else waits, and may be called again', function()
    local result = child.lua(head .. [[
      local far = coop.call_later(1000, print, 'too late')
      print(coop.reactor.running)
      print(coop.run(function() coop.await(coop.sleep(0.001)) return 'one' end))
      print(coop.reactor.running)
      print(coop.run(function() return 'two' end))
      print(far:active())
      far:cancel()
    ]])
    assert.same({ out = 'false\none\nfalse\ntwo\ntrue\n', err = '', status = 0 }, result)
  end)

  it('does not wait for what can never come', function()
    local result = child.lua(head .. [[
      print(pcall(coop.run, function() coop.await(coop.Deferred()) end) == false)
      coop.run(function() coop.await(coop.Deferred()) end)
      print 'never'
    ]])
    assert.equal('true\n', result.out)
    assert.equal(1, result.status)
  end)

  it('awaits in a script of the command', function()
    local result = child.coop(head .. [[
      print(coop.run(function(v) coop.await(coop.sleep(0.001)) return v end, 'x'))
      print(coop.await(coop.defer_later(coop.reactor, 0, function() return 'y' end)))
    ]])
    assert.same({ out = 'x\ny\n', err = '', status = 0 }, result)
  end)
end)
