--- What the command does about Ctrl-C and SIGTERM.

local process = require 'tests.command.process'

local prelude = [[
local coop = require 'coop'
io.stdout:setvbuf 'no'
local function closing(text)
  return setmetatable({}, { __close = function() print('closed ' .. text) end })
end
]]

-- A script and a coroutine that both have something to close.
local scene = [[
coop.spawn(function()
  local held <close> = closing 'coroutine'
  coop.await(coop.sleep(1000))
end)
local held <close> = closing 'script'
print 'ready'
]]

-- Runs a script and sends it the signals, each shortly after it has printed the text in front.
local function run(text, ...)
  local talk = {}
  for i = 1, select('#', ...), 2 do
    local when, signal = select(i, ...)
    table.insert(talk, { when, signal = signal, later = 0.03 })
  end
  local result = process.run_script(prelude .. text, { talk = talk })
  assert.is_nil(result.hangs, 'it hangs')
  return result
end

local function assert_interrupted(result)
  assert.is_nil(result.signal, 'it died of a signal')
  assert.equal(130, result.status)
  assert.is_true(result.reaction < 2, 'it took its time')
end

-- At once means that nothing runs any more, so dying of the signal is as good.
local function assert_ended_at_once(result)
  assert.is_true(result.status == 130 or result.signal == 2)
  assert.is_true(result.reaction < 2, 'it took its time')
end

describe('Ctrl-C', function()
  after_each(process.remove_files)

  describe('in a loop that never yields', function()
    -- Each ends up in the loop below, having printed "ready".
    local loop = "local function loop() print 'ready' while true do end end\n"
    local places = {
      { 'the script', 'loop()' },
      { 'the script behind a wait', 'coop.await(coop.sleep(0.01)) loop()' },
      { 'a coroutine', 'coop.spawn(loop)' },
      { 'a coroutine behind a wait', [[
        coop.spawn(function() coop.await(coop.sleep(0.01)) loop() end)
        coop.await(coop.sleep(1000))
      ]] },
      { "a coroutine of the script's own", 'coroutine.wrap(loop)()' },
      { "a coroutine of a coroutine of the script's own", [[
        coop.spawn(function()
          coop.await(coop.sleep(0.01))
          coroutine.wrap(function() coroutine.wrap(loop)() end)()
        end)
      ]] },
      { 'a coroutine that was resumed after a wait in it', [[
        coroutine.wrap(function() coop.await(coop.sleep(0.01)) loop() end)()
      ]] },
      { 'a delayed call', 'coop.call_later(0.01, loop) coop.await(coop.sleep(1000))' },
      { 'a handler', 'coop.succeed():add_callback(loop)' },
      { 'a handler that a delayed call runs', 'coop.sleep(0.01):add_callback(loop)' },
      { 'a generator', 'coop.coiterate(coop.generator(loop)())' },
      { 'the iterator of a task', 'coop.cooperate(loop)' },
      { 'a metamethod', 'local x = setmetatable({}, { __index = loop }).field' },
      { 'a sort comparator', 'table.sort({ 1, 2, 3 }, loop)' },
    }
    for _, place in ipairs(places) do
      it('ends ' .. place[1], function()
        local result = run(loop .. place[2], 'ready', 'sigint')
        assert_interrupted(result)
        assert.matches('stack traceback:', result.err, 1, true)
      end)
    end

    it('shows where the loop was', function()
      local result = run('print "ready"\nwhile true do end', 'ready', 'sigint')
      assert.matches(':7: ', result.err, 1, true)
    end)

    it('ends a statement of -e', function()
      local result = process.run_coop({ '-e', 'print "ready" io.stdout:flush() while true do end' },
        { talk = { { 'ready', signal = 'sigint' } } })
      assert_interrupted(result)
    end)

    it('closes what is open', function()
      local result = run(scene .. 'while true do end', 'ready', 'sigint')
      assert_interrupted(result)
      assert.matches('closed coroutine\n', result.out, 1, true)
      assert.matches('closed script\n', result.out, 1, true)
    end)

    it('is an error that pcall catches', function()
      local result = run([[
        local ok, e = pcall(function() print 'ready' while true do end end)
        print(ok, tostring(e):match 'interrupted')
      ]], 'ready', 'sigint')
      assert.equal('ready\nfalse\tinterrupted\n', result.out)
      assert.equal('', result.err)
      assert.equal(130, result.status)
    end)

    it('leaves the script the time to end in good order', function()
      local result = run([[
        pcall(function() print 'ready' while true do end end)
        local n = 0
        for i = 1, 5000000 do n = n + i end
        print 'saved'
      ]], 'ready', 'sigint')
      assert.equal('ready\nsaved\n', result.out)
      assert.equal('', result.err)
      assert.equal(130, result.status)
    end)
  end)

  describe('while the script waits', function()
    it('is an error that pcall catches', function()
      local result = run([[
        print 'ready'
        local ok, e = pcall(coop.await, coop.sleep(1000))
        print(ok, tostring(e):match 'interrupted')
      ]], 'ready', 'sigint')
      assert.equal('ready\nfalse\tinterrupted\n', result.out)
      assert.equal('', result.err)
      assert.equal(130, result.status)
    end)

    it('says so once', function()
      local result = run('print "ready" coop.await(coop.sleep(1000))', 'ready', 'sigint')
      local _, count = result.err:gsub('interrupted', '')
      assert.equal(1, count, result.err)
    end)

    it('ends it', function()
      local result = run('print "ready" coop.await(coop.sleep(1000))', 'ready', 'sigint')
      assert_interrupted(result)
    end)

    it('closes what is open', function()
      local result = run(scene .. 'coop.await(coop.sleep(1000))', 'ready', 'sigint')
      assert_interrupted(result)
      assert.matches('closed coroutine\n', result.out, 1, true)
      assert.matches('closed script\n', result.out, 1, true)
    end)

    it('ends it when only others wait any more', function()
      local result = run([[
        coop.spawn(function() coop.await(coop.sleep(1000)) end)
        coop.call_later(1000, print)
        print 'ready'
      ]], 'ready', 'sigint')
      assert_interrupted(result)
    end)

    it('fires the shutdown triggers', function()
      local result = run([[
        coop.reactor:add_system_event_trigger('before', 'shutdown', print, 'shutdown')
        print 'ready'
        coop.await(coop.sleep(1000))
      ]], 'ready', 'sigint')
      assert_interrupted(result)
      assert.matches('shutdown\n', result.out, 1, true)
    end)

    it('ends one that is busy with short steps', function()
      local result = run([[
        local coroutine_of_steps = coop.generator(function() while true do coop.yield(1) end end)
        coop.coiterate(coroutine_of_steps())
        coop.call_later(0.05, print, 'ready')
        coop.await(coop.sleep(1000))
      ]], 'ready', 'sigint')
      assert_interrupted(result)
    end)
  end)

  describe('a second time', function()
    it('ends a script that catches every error', function()
      local result = run([[
        print 'ready'
        local function loop() while true do end end
        while true do
          pcall(loop)
          print 'again'
        end
      ]], 'ready', 'sigint', 'again', 'sigint')
      assert_ended_at_once(result)
    end)

    it('ends a C function that never returns', function()
      local result = process.run_script([[
        print 'ready'
        io.stdout:flush()
        ;(('a'):rep(100)):find(('a*'):rep(50) .. 'b') -- tries for ages
      ]], { talk = { { 'ready', signal = 'sigint' }, { '', signal = 'sigint', later = 0.2 } } })
      assert_ended_at_once(result)
    end)

    it('ends a cleanup that never ends', function()
      local result = run([[
        local held <close> = setmetatable({}, { __close = function()
          print 'closing'
          while true do end
        end })
        print 'ready'
        while true do end
      ]], 'ready', 'sigint', 'closing', 'sigint')
      assert_ended_at_once(result)
    end)

    it('ends a shutdown trigger that never comes to an end', function()
      local result = run([[
        coop.reactor:add_system_event_trigger('before', 'shutdown', function()
          print 'shutdown'
          return coop.Deferred()
        end)
        print 'ready'
        coop.await(coop.sleep(1000))
      ]], 'ready', 'sigint', 'shutdown', 'sigint')
      assert_ended_at_once(result)
    end)
  end)
end)

describe('SIGTERM', function()
  after_each(process.remove_files)

  local triggers = [[
    for _, phase in ipairs { 'after', 'during', 'before' } do
      coop.reactor:add_system_event_trigger(phase, 'shutdown', print, phase)
    end
  ]]

  local function assert_terminated(result)
    assert.is_nil(result.signal, 'it died of a signal')
    assert.equal(143, result.status)
    assert.is_true(result.reaction < 2, 'it took its time')
  end

  it('ends a script that waits, and fires the shutdown triggers', function()
    local result = run(triggers .. 'print "ready" coop.await(coop.sleep(1000))', 'ready', 'sigterm')
    assert_terminated(result)
    assert.equal('ready\nbefore\nduring\nafter\n', result.out)
  end)

  it('waits for what they wait for', function()
    local result = run([[
      coop.reactor:add_system_event_trigger('before', 'shutdown', function()
        return coop.sleep(0.05):add_callback(function() print 'saved' end)
      end)
      print 'ready'
      coop.await(coop.sleep(1000))
    ]], 'ready', 'sigterm')
    assert_terminated(result)
    assert.equal('ready\nsaved\n', result.out)
  end)

  it('ends a loop that never yields, and fires them', function()
    local result = run(triggers .. 'print "ready" while true do end', 'ready', 'sigterm')
    assert_terminated(result)
    assert.equal('ready\nbefore\nduring\nafter\n', result.out)
  end)

  it('closes what is open', function()
    local result = run(scene .. 'coop.await(coop.sleep(1000))', 'ready', 'sigterm')
    assert_terminated(result)
    assert.matches('closed coroutine\n', result.out, 1, true)
    assert.matches('closed script\n', result.out, 1, true)
  end)
end)
