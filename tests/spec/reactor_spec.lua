local coop = require 'coop'
local helper = require 'tests.spec.helper'
local child = require 'tests.spec.child'
local run, misuse, raises = helper.run, helper.misuse, helper.raises

local errors = coop.errors

local head = [[
  local coop = require 'coop'
  local r = coop.reactor
  local function add(...) return r:add_system_event_trigger(...) end
]]

-- Turns until something stops the loop; under `coop` it turns by itself.
local go = '\nif not r.running then r:run() end\n'

local function lines(text)
  local list = {}
  for line in text:gmatch '[^\n]+' do list[#list + 1] = line end
  return list
end

-- The lines that a script writes, which must end well and in silence.
local function written(execute, text)
  local result = execute(head .. text)
  assert.equal('', result.err)
  assert.equal(0, result.status)
  return lines(result.out)
end

child.each(function(name, execute)
  describe('the shutdown in ' .. name, function()
    it('EVT-02/03 runs its triggers phase by phase, in order, with their arguments', function()
      assert.same({
        'before\t1', 'before\t2\tx\tnil\ty', 'during\t1', 'during\t2', 'after\t1', 'after\t2',
      }, written(execute, [[
        add('after', 'shutdown', print, 'after', 1)
        add('during', 'shutdown', print, 'during', 1)
        add('before', 'shutdown', print, 'before', 1)
        add('before', 'shutdown', print, 'before', 2, 'x', nil, 'y')
        add('during', 'shutdown', print, 'during', 2)
        add('after', 'shutdown', print, 'after', 2)
        r:call_later(0, function() r:stop() end)
      ]] .. go))
    end)

    it('EVT-17 does not begin inside stop', function()
      assert.same({ 'stop', 'stopped', 'before', 'during', 'after' }, written(execute, [[
        for _, phase in ipairs { 'before', 'during', 'after' } do
          add(phase, 'shutdown', print, phase)
        end
        r:call_later(0, function()
          print 'stop'
          r:stop()
          print 'stopped'
        end)
      ]] .. go))
    end)

    it('EVT-04 is held back by the Deferreds of its first phase, until all have fired', function()
      assert.same({ 'before', 'fire 2', 'fire 1', 'during', 'after' }, written(execute, [[
        local d1, d2 = coop.Deferred(), coop.Deferred()
        add('before', 'shutdown', function() return d1 end)
        add('before', 'shutdown', function() return d2 end)
        add('before', 'shutdown', print, 'before')
        add('during', 'shutdown', print, 'during')
        add('after', 'shutdown', print, 'after')
        r:call_later(0, function()
          r:stop()
          r:call_later(0.001, function()
            print 'fire 2'
            d2:callback()
          end)
          r:call_later(0.003, function()
            print 'fire 1'
            d1:callback()
          end)
        end)
      ]] .. go))
    end)

    it('EVT-04a goes on when such a Deferred fails', function()
      local result = execute(head .. [[
        coop.on_unhandled(function() end)
        add('before', 'shutdown', function() return coop.defer_later(r, 0.001, error, 'oops') end)
        add('during', 'shutdown', print, 'during')
        r:call_later(0, function() r:stop() end)
      ]] .. go)
      assert.equal('during\n', result.out)
    end)

    it('EVT-06 reports a trigger that raises, and runs the others', function()
      local result = execute(head .. [[
        coop.on_unhandled(function(failure) print('reported', failure.value) end)
        for _, phase in ipairs { 'before', 'during', 'after' } do
          add(phase, 'shutdown', error, phase .. ' fails', 0)
          add(phase, 'shutdown', print, phase)
        end
        r:call_later(0, function() r:stop() end)
      ]] .. go)
      assert.same({
        'reported\tbefore fails', 'before', 'reported\tduring fails', 'during',
        'reported\tafter fails', 'after',
      }, lines(result.out))
    end)

    it('EVT-09 runs all but the one that was removed, however alike', function()
      assert.same({ 'same', 'same' }, written(execute, [[
        add('before', 'shutdown', print, 'same')
        local id = add('during', 'shutdown', print, 'same')
        add('during', 'shutdown', print, 'same')
        r:remove_system_event_trigger(id)
        r:call_later(0, function() r:stop() end)
      ]] .. go))
    end)

    it('comes to a loop that much still waits for', function()
      local result = execute(head .. [[
        add('during', 'shutdown', print, 'shutdown')
        r:call_later(1000, print, 'too late')
        coop.cooperate(function() return 'on and on' end)
        coop.spawn(function() coop.await(coop.Deferred()) end)
        r:call_later(0.001, function() r:stop() end)
      ]] .. go)
      assert.equal('shutdown\n', result.out)
      assert.equal(0, result.status)
    end)
  end)
end)

describe('a system event trigger', function()
  local r = coop.reactor

  it('EVT-01 is refused with an unknown phase, event or function', function()
    misuse(function() r:add_system_event_trigger('instead', 'shutdown', print) end,
      'add_system_event_trigger', '#1')
    misuse(function() r:add_system_event_trigger('during', 'lunch', print) end,
      'add_system_event_trigger', '#2')
    misuse(function() r:add_system_event_trigger('during', 'shutdown') end,
      'add_system_event_trigger', '#3')
    misuse(function() r:add_system_event_trigger('during', 'shutdown', 5) end,
      'add_system_event_trigger', '#3', 'number')
    misuse(function() r:add_system_event_trigger(nil, 'shutdown', print) end,
      'add_system_event_trigger')
  end)

  it('EVT-10 is removed once, and nothing else is', function()
    local ran = false
    local id = r:add_system_event_trigger('during', 'shutdown', function() ran = true end)
    assert.is_not_nil(id)
    r:remove_system_event_trigger(id)
    misuse(function() r:remove_system_event_trigger(id) end, 'remove_system_event_trigger')
    misuse(function() r:remove_system_event_trigger() end, 'remove_system_event_trigger')
    misuse(function() r:remove_system_event_trigger {} end, 'remove_system_event_trigger')
    misuse(function() r:remove_system_event_trigger 'during' end, 'remove_system_event_trigger')
    assert.is_false(ran)
  end)
end)

describe('the startup of a loop', function()
  it('EVT-02a runs its triggers phase by phase, and not those of the shutdown', function()
    assert.same({ 'before', 'during', 'after', 'call', 'shutdown' }, written(child.lua, [[
      add('during', 'shutdown', print, 'shutdown')
      add('after', 'startup', print, 'after')
      add('during', 'startup', print, 'during')
      add('before', 'startup', print, 'before')
      r:call_later(0, function()
        print 'call'
        r:stop()
      end)
      r:run()
    ]]))
  end)

  it('EVT-16 makes it a running one after its first phase', function()
    assert.same({
      'idle\tfalse', 'before\tfalse', 'during\ttrue', 'after\ttrue', 'call\ttrue', 'end\tfalse',
    }, written(child.lua, [[
      local function tell(phase) print(phase, r.running) end
      tell 'idle'
      for _, phase in ipairs { 'before', 'during', 'after' } do
        add(phase, 'startup', tell, phase)
      end
      r:call_later(0, tell, 'call')
      r:run()
      tell 'end'
    ]]))
  end)

  it('EVT-13/19 that is held back holds back neither the loop nor the shutdown', function()
    assert.same({ 'call', 'before', 'fire', 'during', 'after', 'end' }, written(child.lua, [[
      add('before', 'startup', function() return coop.Deferred() end)
      add('during', 'startup', print, 'never')
      add('before', 'shutdown', function()
        print 'before'
        local d = coop.Deferred()
        r:call_later(0.001, function()
          print 'fire'
          d:callback()
        end)
        return d
      end)
      add('during', 'shutdown', print, 'during')
      add('after', 'shutdown', print, 'after')
      r:call_later(0.001, function()
        print 'call'
        r:stop()
      end)
      r:run()
      print 'end'
    ]]))
  end)

  it('EVT-15 makes the calls that waited for it, in order', function()
    assert.same({
      'not yet', 'a\t1\ttrue', 'b\t2\ttrue', 'c\ttrue', 'in time', 'end',
    }, written(child.lua, [[
      r:call_when_running(function(...) print(..., r.running) end, 'a\t1')
      r:call_when_running(function(...) print(..., r.running) end, 'b\t2')
      r:call_when_running(function()
        r:call_when_running(print, 'c', r.running)
        print 'in time'
      end)
      print 'not yet'
      r:run()
      print 'end'
    ]]))
  end)

  it('reports what a call at its beginning raises, and makes the others', function()
    assert.same({ 'reported\toops', 'next' }, written(child.lua, [[
      coop.on_unhandled(function(failure) print('reported', failure.value) end)
      r:call_when_running(error, 'oops', 0)
      r:call_when_running(print, 'next')
      r:run()
    ]]))
  end)
end)

describe('a loop', function()
  it('ends when nothing is left', function()
    assert.same({ 'empty', '1', '2', 'end' }, written(child.lua, [[
      r:run()
      print 'empty'
      r:call_later(0.001, function()
        print '1'
        r:call_later(0.001, print, '2')
      end)
      r:run()
      print 'end'
    ]]))
  end)

  it('fires the shutdown triggers when it ends because nothing is left', function()
    assert.same({ 'call', 'before', 'during', 'after', 'end' }, written(child.lua, [[
      for _, phase in ipairs { 'after', 'during', 'before' } do
        add(phase, 'shutdown', print, phase)
      end
      r:call_later(0, print, 'call')
      r:run()
      print 'end'
    ]]))
  end)

  it('EVT-18 may be run again after stop', function()
    assert.same({ '1', 'stopped', '2', 'end' }, written(child.lua, [[
      r:call_later(0, function()
        print '1'
        r:stop()
      end)
      local far = r:call_later(1000, print, '2')
      r:run()
      print 'stopped'
      far:reset(0)
      r:run()
      print 'end'
    ]]))
  end)

  it('EVT-12 keeps for its next end what is added for a phase that is over', function()
    assert.same({ 'during', 'end 1', 'before', 'end 2' }, written(child.lua, [[
      local first = true
      add('during', 'shutdown', function()
        if not first then return end
        first = false
        print 'during'
        add('before', 'shutdown', print, 'before')
      end)
      r:run()
      print 'end 1'
      r:run()
      print 'end 2'
    ]]))
  end)

  it('is not stopped when it does not run', function()
    assert.same({ 'true', 'true', 'true' }, written(child.lua, [[
      local function refused()
        local ok, e = pcall(r.stop, r)
        print(not ok and coop.errors.ReactorNotRunning:is(e) and not not e.message:find 'stop')
      end
      refused()
      r:run()
      refused()
      r:call_later(0, function() r:stop() end)
      r:run()
      refused()
    ]]))
  end)

  it('EVT-18a is not run while it runs', run(function()
    assert.is_true(coop.reactor.running)
    raises(errors.ReactorAlreadyRunning, function() coop.reactor:run() end, 'run')
  end))

  it('EVT-18b is not run from one of its calls', function()
    assert.same({ 'true', 'next' }, written(child.lua, [[
      r:call_later(0, function()
        local ok, e = pcall(r.run, r)
        print(not ok and coop.errors.ReactorAlreadyRunning:is(e))
      end)
      r:call_later(0, print, 'next')
      r:run()
    ]]))
  end)

  it('EVT-15a makes a call at once that asks whether it runs', run(function()
    local seen
    coop.reactor:call_when_running(function(...) seen = table.pack(...) end, 1, nil)
    assert.same({ n = 2, 1, nil }, seen)
  end))

  it('refuses what it cannot call', run(function()
    misuse(function() coop.reactor:call_when_running() end, 'call_when_running')
    misuse(function() coop.reactor:call_when_running(5) end, 'call_when_running', 'number')
  end))

  it('goes on after an error in a call, which is reported', function()
    assert.same({ 'reported\toops', 'next', 'end' }, written(child.lua, [[
      coop.on_unhandled(function(failure) print('reported', failure.value) end)
      r:call_later(0, error, 'oops', 0)
      r:call_later(0, print, 'next')
      r:run()
      print 'end'
    ]]))
  end)

  it('reports an error in a call on standard error', function()
    local result = child.lua(head .. [[
      r:call_later(0, error, 'sorry about that', 0)
      r:call_later(0, print, 'next')
      r:run()
      print 'end'
    ]])
    assert.equal('next\nend\n', result.out)
    assert.truthy(result.err:find('sorry about that', 1, true), result.err)
  end)
end)

describe('the loop of the command', function()
  it('runs from the first line of the script', function()
    assert.same({ 'true', 'at once', 'on', 'true', 'call' }, written(child.coop, [[
      print(r.running)
      r:call_when_running(print, 'at once')
      print 'on'
      local ok, e = pcall(r.run, r)
      print(not ok and coop.errors.ReactorAlreadyRunning:is(e))
      r:call_later(0.001, print, 'call')
    ]]))
  end)

  it('ends with the process, with status 0, when it is stopped', function()
    local result = child.coop(head .. [[
      add('before', 'shutdown', print, 'before')
      add('after', 'shutdown', print, 'after')
      r:call_later(1000, print, 'too late')
      coop.spawn(function()
        coop.await(coop.Deferred())
        print 'never'
      end)
      r:call_later(0, function() r:stop() end)
      coop.await(coop.Deferred())
      print 'never'
    ]])
    assert.equal('before\nafter\n', result.out)
    assert.equal(0, result.status)
  end)

  it('ends with status 0 when the script itself stops it and then waits', function()
    local result = child.coop(head .. [[
      add('during', 'shutdown', print, 'shutdown')
      r:stop()
      coop.await(coop.sleep(1000))
      print 'never'
    ]])
    assert.equal('shutdown\n', result.out)
    assert.equal(0, result.status)
  end)

  it('EVT-23 ends with status 143 and its shutdown triggers at SIGTERM', function()
    local result = child.coop(head .. [[
      for _, phase in ipairs { 'before', 'during', 'after' } do
        add(phase, 'shutdown', print, phase)
      end
      r:call_later(0, os.execute, 'kill -TERM $PPID')
      r:call_later(1000, print, 'too late')
    ]])
    assert.same({ 'before', 'during', 'after' }, lines(result.out))
    assert.equal(143, result.status)
  end)
end)

describe('the module', function()
  it('is the same again when it is required again', function()
    local loaded = package.loaded.coop
    package.loaded.coop = nil
    local ok, again = pcall(require, 'coop')
    package.loaded.coop = loaded
    assert.is_true(ok, again)
    assert.is_true(rawequal(coop, again))
    assert.is_true(coop.reactor == again.reactor)
  end)

  child.each(function(name, execute)
    it('has the same state when it is required again, in ' .. name, function()
      assert.same({ 'true', 'true', 'call' }, written(execute, [[
        r:call_later(0, print, 'call')
        package.loaded.coop = nil
        local again = require 'coop'
        print(again == coop)
        print(again.reactor == r)
      ]] .. go))
    end)
  end)
end)
