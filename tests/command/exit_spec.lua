--- When the command ends, with which status, and in which order.

local process = require 'tests.command.process'

-- What the scripts below share.
local prelude = [[
local coop = require 'coop'
local function closing(text)
  return setmetatable({}, { __close = function() print('closed ' .. text) end })
end
local function collected(text)
  return setmetatable({}, { __gc = function() print('collected ' .. text) end })
end
local function forever() return coop.Deferred() end
]]

local function run(text, options)
  local result = process.run_script(prelude .. text, options)
  assert.is_nil(result.hangs, 'it hangs')
  assert.is_nil(result.signal, 'it died of a signal')
  return result
end

-- The line of `run`'s text that has this comment, as an error message names it.
local function line_of(text, mark)
  local _, before = (prelude .. text):match('^(.-)' .. mark):gsub('\n', '')
  return ':' .. before + 1
end

local function assert_lines(expected, result)
  assert.equal(table.concat(expected, '\n') .. '\n', result.out)
end

describe('the process', function()
  after_each(process.remove_files)

  describe('ends with status 0', function()
    it('when the script has returned', function()
      local result = run 'print "done"'
      assert.equal('done\n', result.out)
      assert.equal('', result.err)
      assert.equal(0, result.status)
    end)

    it('whatever the script returned', function()
      assert.equal(0, run('return false, 7').status)
    end)

    it('no earlier than the last delayed call', function()
      local result = run [[
        coop.call_later(0.02, function()
          print 'first'
          coop.call_later(0.02, print, 'second')
        end)
        print 'script'
      ]]
      assert_lines({ 'script', 'first', 'second' }, result)
      assert.equal(0, result.status)
    end)

    it('no earlier than the last coroutine', function()
      local result = run [[
        coop.spawn(function() coop.await(coop.sleep(0.02)) print 'coroutine' end)
        print 'script'
      ]]
      assert_lines({ 'script', 'coroutine' }, result)
    end)

    it('no earlier than the last task', function()
      local result = run [[
        local n = 0
        coop.cooperate(function() n = n + 1 if n == 3 then print 'task' else return n end end)
        print 'script'
      ]]
      assert_lines({ 'script', 'task' }, result)
    end)

    it('at once when a Deferred is pending that nobody waits on', function()
      assert.equal(0, run('local d = forever() d:add_callback(print)').status)
    end)

    it('when the last failure has been handled', function()
      local result = run [[
        coop.spawn(error, 'lost'):add_errback(function() print 'handled' end)
      ]]
      assert.equal('handled\n', result.out)
      assert.equal(0, result.status)
    end)

    it('when a cancelled Deferred is left unhandled', function()
      local result = run 'forever():cancel()'
      assert.equal('', result.err)
      assert.equal(0, result.status)
    end)

    it('when the reactor is stopped, whatever still waits', function()
      local result = run [[
        coop.reactor:add_system_event_trigger('before', 'shutdown', print, 'before')
        coop.reactor:add_system_event_trigger('during', 'shutdown', print, 'during')
        coop.reactor:add_system_event_trigger('after', 'shutdown', print, 'after')
        coop.call_later(0.02, function() coop.reactor:stop() end)
        coop.call_later(1000, print, 'not reached')
        coop.spawn(function() local held <close> = closing 'coroutine' coop.await(forever()) end)
        coop.await(forever())
      ]]
      assert_lines({ 'before', 'during', 'after', 'closed coroutine' }, result)
      assert.equal('', result.err)
      assert.equal(0, result.status)
    end)

    it('and fires the shutdown triggers when nothing is left', function()
      local result = run [[
        coop.reactor:add_system_event_trigger('before', 'shutdown', function()
          return coop.sleep(0.02):add_callback(function() print 'slept' end)
        end)
        coop.reactor:add_system_event_trigger('during', 'shutdown', print, 'during')
      ]]
      assert_lines({ 'slept', 'during' }, result)
      assert.equal(0, result.status)
    end)
  end)

  describe('ends with status 1', function()
    it('and a traceback when the script fails', function()
      local text = [[
        local function fail() error 'bad' end -- here
        fail()
      ]]
      local result = run(text)
      assert.equal(1, result.status)
      assert.matches(line_of(text, 'here') .. ': bad\nstack traceback:\n', result.err, 1, true)
    end)

    it('when the script fails after a wait', function()
      local result = run 'coop.await(coop.sleep(0.01)) error "bad"'
      assert.matches(': bad\nstack traceback:\n', result.err, 1, true)
      assert.equal(1, result.status)
    end)

    it('and closes what the script has opened when it fails', function()
      local result = run 'local held <close> = closing "script" error "bad"'
      assert.equal('closed script\n', result.out)
    end)

    it('when the error is a table with __tostring', function()
      local result = run [[
        error(setmetatable({}, { __tostring = function() return 'my error' end }))
      ]]
      assert.matches('my error', result.err, 1, true)
      assert.equal(1, result.status)
    end)

    it('when the error is a table without', function()
      local result = run 'error {}'
      assert.matches('table', result.err, 1, true)
      assert.equal(1, result.status)
    end)

    it('when the error is nil', function()
      local result = run 'error(nil)'
      assert.matches('nil', result.err, 1, true)
      assert.equal(1, result.status)
    end)

    it('when a failure is left unhandled', function()
      local result = run 'coop.fail "lost" print "script"'
      assert.equal('script\n', result.out)
      assert.matches('lost', result.err, 1, true)
      assert.equal(1, result.status)
    end)

    it('when a coroutine fails that nobody waits on, and runs the others on', function()
      local text = [[
        coop.spawn(function()
          coop.await(coop.sleep(0.01))
          error 'lost' -- here
        end)
        coop.call_later(0.03, print, 'later')
      ]]
      local result = run(text)
      assert.equal('later\n', result.out)
      assert.matches(line_of(text, 'here') .. ': lost', result.err, 1, true)
      assert.equal(1, result.status)
    end)

    it('reporting such a failure once', function()
      local result = run 'for i = 1, 3 do coop.fail("lost " .. i) end'
      for i = 1, 3 do
        local _, count = result.err:gsub('lost ' .. i, '')
        assert.equal(1, count)
      end
    end)

    it('when a delayed call fails, and runs the others on', function()
      local result = run [[
        coop.call_later(0.01, error, 'lost')
        coop.call_later(0.03, print, 'later')
      ]]
      assert.equal('later\n', result.out)
      assert.matches('lost', result.err, 1, true)
      assert.equal(1, result.status)
    end)

    it('and says what waits where when the script can never go on', function()
      local text = 'coop.await(forever()) -- here'
      local result = run(text)
      assert.matches(line_of(text, 'here'), result.err, 1, true)
      assert.equal(1, result.status)
    end)

    it('and does so for each coroutine', function()
      local text = [[
        coop.spawn(function()
          coop.await(forever()) -- first
        end)
        local function wait()
          coop.await(coop.DeferredQueue():get()) -- second
        end
        coop.spawn(wait)
        coop.await(coop.sleep(0.01))
        print 'script'
      ]]
      local result = run(text)
      assert.equal('script\n', result.out)
      assert.matches(line_of(text, 'first'), result.err, 1, true)
      assert.matches(line_of(text, 'second'), result.err, 1, true)
      assert.equal(1, result.status)
    end)

    it('when a coroutine is paused for good', function()
      local result = run [[
        local d = coop.coroutine(function() coop.await(coop.sleep(0.01)) end)()
        d:pause()
      ]]
      assert.not_equal('', result.err)
      assert.equal(1, result.status)
    end)

    it('and closes what can never go on', function()
      local result = run [[
        coop.spawn(function() local held <close> = closing 'coroutine' coop.await(forever()) end)
        local held <close> = closing 'script'
        coop.await(forever())
      ]]
      assert.matches('closed coroutine\n', result.out, 1, true)
      assert.matches('closed script\n', result.out, 1, true)
    end)
  end)

  describe('ends with the status of os.exit', function()
    local function exits(status, text)
      local result = run(text)
      assert.equal(status, result.status)
      assert.equal('', result.err)
      return result
    end

    it('in the script', function() exits(7, 'os.exit(7)') end)
    it('with true', function() exits(0, 'os.exit(true)') end)
    it('with false', function() exits(1, 'os.exit(false)') end)
    it('without a status', function() exits(0, 'os.exit()') end)
    it('as a float or a string, like numbers elsewhere', function()
      exits(7, 'os.exit(7.0)')
      exits(7, 'os.exit "7"')
    end)
    it('whatever its second argument', function() exits(7, 'os.exit(7, false)') end)
    it('behind a wait', function() exits(7, 'coop.await(coop.sleep(0.01)) os.exit(7)') end)
    it('in a delayed call', function() exits(7, 'coop.call_later(0.01, os.exit, 7)') end)
    it('in a handler', function() exits(7, 'coop.succeed(7):add_callback(os.exit)') end)

    it('in a canceller', function()
      exits(7, 'coop.Deferred(function() os.exit(7) end):cancel()')
    end)

    it('in a coroutine', function()
      exits(7, 'coop.spawn(function() coop.await(coop.sleep(0.01)) os.exit(7) end)')
    end)

    it('in a coroutine of the script\'s own', function()
      exits(7, 'coroutine.wrap(function() coroutine.wrap(os.exit)(7) end)()')
    end)

    it('in a generator', function()
      exits(7, 'coop.coiterate(coop.generator(function() coop.yield(1) os.exit(7) end)())')
    end)

    it('inside pcall, which does not catch it', function()
      for _, place in ipairs {
        '%s',
        'coop.call_later(0.01, function() %s end)',
        'table.sort({ 1, 2, 3 }, function() %s end)',
      } do
        local text = place:format 'pcall(os.exit, 7) print "not reached"'
        assert.equal('', exits(7, text).out)
      end
    end)

    it('in __close', function()
      exits(7, [[
        local held <close> = setmetatable({}, { __close = function() os.exit(7) end })
      ]])
    end)

    it('in a sort comparator', function()
      exits(7, 'table.sort({ 1, 2, 3 }, function() os.exit(7) end)')
    end)

    it('in -e and in LUA_INIT', function()
      assert.equal(7, process.run_coop({ '-e', 'os.exit(7)' }).status)
      assert.equal(7, process.run_coop({ '-e', '' }, { env = { LUA_INIT = 'os.exit(7)' } }).status)
    end)

    it('although a failure is left unhandled', function()
      assert.equal(7, run('coop.fail "lost" os.exit(7)').status)
    end)

    it('although others still wait', function()
      exits(7, 'coop.spawn(function() coop.await(forever()) end) coop.sleep(1000) os.exit(7)')
    end)

    it('closing bodies and collecting objects, from everywhere', function()
      local scene = [[
        held_by_a_global = collected 'object'
        coop.spawn(function()
          local held <close> = closing 'coroutine'
          coop.await(forever())
        end)
        local generator = coop.generator(function()
          local held <close> = closing 'generator'
          coop.yield(1)
        end)()
        generator:next()
        local held <close> = closing 'script'
      ]]
      local places = {
        'os.exit(7)',
        'coop.await(coop.sleep(0.01)) os.exit(7)',
        'coop.call_later(0.01, os.exit, 7) coop.await(forever())',
        'coop.spawn(function() os.exit(7) end)',
        'coroutine.wrap(os.exit)(7)',
      }
      for _, place in ipairs(places) do
        local result = exits(7, scene .. place)
        for _, line in ipairs {
          'closed coroutine', 'closed generator', 'closed script', 'collected object',
        } do
          assert.matches(line .. '\n', result.out, 1, true)
        end
        assert.matches('collected object\n$', result.out)
      end
    end)

    it('writing out what is still buffered', function()
      local result = exits(7, 'io.stdout:setvbuf "full" io.write "buffered" os.exit(7)')
      assert.equal('buffered', result.out)
    end)
  end)

  describe('ignores SIGPIPE', function()
    it('so that writing to a closed peer is an error value', function()
      local result = run([[
        local ok, message
        repeat ok, message = io.write(('x'):rep(4096)) until not ok
        io.stderr:write(message)
      ]], { deaf = true })
      -- It is the second when the peer closes with something unread.
      assert.is_truthy(result.err:find('Broken pipe', 1, true)
        or result.err:find('Connection reset by peer', 1, true), result.err)
      assert.equal(0, result.status)
    end)
  end)
end)
