--- Dialogues with the prompt on a terminal.

local process = require 'tests.command.process'
local terminal = require 'tests.command.terminal'

describe('the prompt', function()
  local t, state

  -- Starts the command and waits for its prompt.
  local function start(arguments, env)
    env = env or {}
    env.XDG_STATE_HOME = state
    t = terminal.open(terminal.coop .. ' ' .. (arguments or ''), env)
    t:expect_last '>'
  end

  before_each(function()
    state = os.tmpname()
    os.remove(state)
  end)

  after_each(function()
    if t then t:close() end
    t = nil
    os.execute('rm -rf ' .. terminal.quoted(state))
    process.remove_files()
  end)

  describe('evaluates', function()
    it('expressions, and prints their values as lua does', function()
      start()
      t:enter '1 + 1, nil, "x"'
      t:expect '2       nil     x'
    end)

    it('=expressions and statements', function()
      start()
      t:enter 'x = 20'
      t:enter '=x + 1'
      t:expect '21'
      t:enter 'x = x + 2 print(x * 2)'
      t:expect '44'
    end)

    it('lines that go on', function()
      start()
      t:enter 'for i = 41, 42 do'
      t:expect_last '>>'
      t:enter 'print("i", i)'
      t:enter 'end'
      t:expect 'i       42'
      t:enter '#{ 1,'
      t:expect_last '>>'
      t:enter '2, 3 }'
      t:expect '3'
    end)

    it('what is not ASCII, also when it is edited', function()
      start()
      t:type 'print "gräßlich ∀'
      t:press('BSpace', 'BSpace', 'BSpace', 'BSpace')
      t:enter 'ch"'
      t:expect 'gräßlich'
    end)

    it('awaits, at top level', function()
      start()
      t:enter 'coop.await(coop.sleep(0.05):add_callback(function() return "slept" end))'
      t:expect 'slept'
      t:enter 'print(pcall(coop.await, coop.fail "no"))'
      t:expect 'false   no'
    end)

    it('the script before it, and keeps its globals', function()
      start('-i ' .. process.file 'x = "of the script"')
      t:enter 'x'
      t:expect 'of the script'
    end)

    it('errors with their frames, and goes on', function()
      start()
      t:enter 'local function f() error "bad" end f()'
      t:expect 'coop: stdin:1: bad'
      t:expect 'stack traceback:'
      t:enter 'x ='
      t:expect_last '>>'
      t:enter ')'
      t:expect "coop: stdin:2: unexpected symbol near ')'"
      t:enter 'os.exit(7)'
      t:expect 'status 7'
    end)

    it('errors in red, unless NO_COLOR says otherwise', function()
      local function shows_red(screen) return screen:find('\27[1m\27[31mcoop:', 1, true) end
      start()
      t:enter 'error "bad"'
      t:wait('red', shows_red, true)
      t:close()
      start(nil, { NO_COLOR = '1' })
      t:enter 'error "bad"'
      t:expect 'coop: stdin:1: bad'
      assert.is_nil(shows_red(t:screen(true)))
    end)
  end)

  describe('while one types', function()
    it('lets timers print above the line', function()
      start()
      t:enter [[l = coop.LoopingCall(function() n = (n or 0) + 1 print('tick', n) end)]]
      t:enter 'l:start(0.02)'
      t:enter '"started"'
      t:expect 'started'
      t:type '"typed in '
      local seen = tonumber(t:wait('tick', function(screen)
        return screen:match 'tick +(%d+)\n> "typed in$'
      end))
      t:wait('later tick', function(screen)
        local n = tonumber(screen:match 'tick +(%d+)\n> "typed in$')
        return n and n > seen + 3
      end)
      t:type 'two pieces"'
      t:press 'Enter'
      t:expect 'typed in two pieces'
      assert.is_nil(t:screen():find 'typed in[^\n]*tick', 'the output tore the line')
    end)

    it('runs tasks', function()
      start()
      t:enter 'd = coop.coiterate(coop.generator(function() while true do coop.yield(1) end end)())'
      t:enter '"still here"'
      t:expect 'still here'
    end)

    it('keeps a line of several rows whole when something is printed', function()
      start()
      local long = '"' .. ('long '):rep(25) .. '"'
      t:enter 'go = function() print "printed" end coop.call_later(0.2, go) print "armed"'
      t:expect 'armed'
      t:type(long)
      t:wait('line below the output', function(screen)
        return screen:find('printed\n> ' .. long, 1, true)
      end)
    end)

    it('reports failures above the line', function()
      start()
      t:enter 'do coop.call_later(0.1, error, "of a call") end'
      t:type 'typing'
      t:expect 'coop: unhandled failure: of a call'
      t:expect_last '> typing'
    end)
  end)

  describe('at Ctrl-C', function()
    it('drops the line', function()
      start()
      t:type 'print "dropped"'
      t:expect_last '> print "dropped"'
      t:press 'C-c'
      t:expect_last '>'
      t:enter 'print "kept"'
      t:expect 'kept'
      assert.is_nil(t:screen():find '\ndropped')
    end)

    it('drops the lines so far', function()
      start()
      t:enter 'print {'
      t:expect_last '>>'
      t:press 'C-c'
      t:expect_last '>'
      t:enter '1 + 2'
      t:expect '3'
    end)

    it('breaks off a loop that never yields, again and again', function()
      start()
      for i = 1, 2 do
        t:enter(('print("ready", %d) while true do end'):format(i))
        t:expect('ready   ' .. i)
        t:press 'C-c'
        t:expect_last '>'
      end
      t:expect 'coop: interrupted!'
      t:enter '"alive"'
      t:expect 'alive'
    end)

    it('breaks off a wait, and cancels what it was for', function()
      start()
      t:enter 'd = coop.sleep(1000):add_errback(function() print "cancelled" end)'
      t:enter 'coop.call_later(0, print, "ready") coop.await(d)'
      t:expect 'ready'
      t:press 'C-c'
      t:expect 'cancelled'
    end)

    it('breaks off a wait for something that would come', function()
      start()
      t:enter 'print "ready" coop.await(coop.sleep(1000))'
      t:expect 'ready'
      t:press 'C-c'
      t:expect 'coop: interrupted!'
      t:expect_last '>'
    end)

    it('leaves what goes on nevertheless to itself', function()
      start()
      t:enter 'function wait() return pcall(coop.await, coop.sleep(1000)) end'
      t:enter 'function tell(what) coop.call_later(0, print, what) end' -- when it waits
      t:enter 'tell "ready" while true do if not wait() then tell "caught" end end'
      t:expect 'ready'
      t:press 'C-c'
      t:expect 'caught'
      t:press 'C-c'
      t:expect 'coop: it is left to itself'
      t:enter '"alive"'
      t:expect 'alive'
    end)

    it('breaks off what a timer does', function()
      start()
      t:enter 'coop.call_later(0, function() print "ready" while true do end end) and nil'
      t:expect 'ready'
      t:press 'C-c'
      t:expect 'coop: unhandled failure: interrupted!'
      t:enter '"alive"'
      t:expect 'alive'
    end)
  end)

  it('tells of a wait that nothing can end', function()
    start()
    t:enter 'coop.await(coop.Deferred())'
    t:expect 'coop: nothing is left that could wake what waits'
    t:enter '"alive"'
    t:expect 'alive'
  end)

  describe('completes', function()
    it('fields of modules, and globals', function()
      start()
      t:type 'coop.seco'
      t:press 'Tab'
      t:expect_last '> coop.seconds'
      t:press 'C-u'
      t:type 'colle'
      t:press 'Tab'
      t:expect_last '> collectgarbage'
    end)

    it('methods of coop objects', function()
      start()
      t:enter 'd = coop.Deferred()'
      t:expect_last '>'
      t:type 'd:chai'
      t:press 'Tab'
      t:expect_last '> d:chain_deferred'
      t:press 'C-u'
      t:type 'd.call'
      t:press('Tab', 'Tab')
      t:wait('both', function(screen) return screen:find 'd.callback +d.called' end)
    end)

    it('nothing that would have to be called', function()
      start()
      t:enter 'called = false'
      t:enter 'p = setmetatable({}, { __index = function() called = true end })'
      t:type 'p.x'
      t:press 'Tab'
      t:type ' = called and 1 or 2 print(p.x)'
      t:press 'Enter'
      t:expect '2'
    end)
  end)

  describe('remembers', function()
    it('what was typed, several lines as one', function()
      start()
      t:enter 'print(6 *'
      t:expect_last '>>'
      t:enter '7)'
      t:expect '42'
      t:expect_last '>'
      t:press 'C-d'
      t:expect 'status 0'
      t:close()
      start()
      t:press 'Up'
      t:wait('both lines', function(screen) return screen:find('> print(6 *\n7)', 1, true) end)
      t:press 'Enter'
      t:expect '42'
      local mode = io.popen('stat -c %a ' .. terminal.quoted(state .. '/coop/history')):read 'l'
      assert.equal('600', mode)
    end)

    it('nothing where it may not write', function()
      local file = assert(io.open(state, 'w')) -- a file where a directory is to be
      file:close()
      start()
      t:enter '1 + 1'
      t:expect '2'
      t:press 'Up'
      t:expect_last '> 1 + 1'
    end)
  end)

  describe('at Ctrl-D', function()
    it('leaves in good order whatever runs', function()
      start()
      t:enter 'r = coop.reactor'
      t:enter 'r:add_system_event_trigger("before", "shutdown", print, "trigger") and nil'
      t:enter 'coop.LoopingCall(print):start(1000) and nil'
      t:enter 'x = setmetatable({}, { __gc = function() print "collected" end }) print "ready"'
      t:expect 'ready'
      t:expect_last '>'
      t:press 'C-d'
      t:expect 'status 0'
      t:expect 'trigger'
      t:expect 'collected'
    end)

    it('gives the terminal back as it was', function()
      t = terminal.open(('stty -g; %s; stty -g; true'):format(terminal.coop),
        { XDG_STATE_HOME = state })
      t:expect_last '>'
      t:press 'C-d'
      t:expect 'status 0'
      local before, after = t:screen():match '^([%x:]+)\n.*\n([%x:]+)\nstatus 0'
      assert.is_string(before)
      assert.equal(before, after)
    end)
  end)

  it('goes on where it was after Ctrl-Z and fg', function()
    t = terminal.open('bash --norc -i', { XDG_STATE_HOME = state, PS1 = 'shell ' })
    t:expect_last 'shell'
    t:enter(terminal.coop)
    t:expect_last '>'
    t:type 'x'
    t:expect_last '> x'
    t:press 'C-z'
    t:expect_last 'shell'
    t:enter 'fg'
    t:expect_last '> x'
    t:enter ' = 5'
    t:enter '=x'
    t:expect '5'
    t:expect '> x = 5'
    assert.is_nil(t:screen():find('\n = 5', 1, true), 'the terminal echoes, too')
  end)

  it('fits the line to a terminal that becomes narrower', function()
    start()
    local text = ('word '):rep(12)
    t:type('"' .. text)
    t:expect_last('> "' .. text:sub(1, -2))
    t:_tmux('resize-window', '-x', '40', '-y', '40')
    t:enter '"'
    t:expect(text:sub(1, -2))
  end)

  it('is left by SIGTERM', function()
    start()
    t:enter 'os.execute "kill -TERM $PPID"'
    t:expect 'status 143'
  end)

  it('is plain on a terminal that cannot do anything, which it leaves as it was', function()
    t = terminal.open(('TERM=dumb %s; echo over; cat'):format(terminal.coop))
    t:expect_last '>'
    t:enter '1 + 1'
    t:expect '2'
    t:expect_last '>'
    t:press 'C-d'
    t:expect 'over'
    t:enter 'for cat' -- which reads where coop has read
    t:wait('answer of cat', function(screen) return screen:find '\nfor cat\nfor cat$' end)
    t:press 'C-d'
    t:expect 'status 0'
  end)

  it('waits for the rest of a line', function()
    local result = process.run_coop({ '-i' }, {
      talk = {
        { '> ', input = '1 +' }, { '', input = ' 41\n', later = 0.05 }, { '42', input = '' },
      },
    })
    assert.matches('> 42\n', result.out, 1, true)
    assert.equal('', result.err)
  end)

  it('is plain where there is no terminal', function()
    local result = process.run_coop({ '-i' }, { input = '1 + 1\nx = {\n}\n#x\n' })
    assert.matches('> 2\n> >> > 0\n> \n$', result.out)
    assert.equal(0, result.status)
  end)
end)
