--- Lines that tell how far something has come, on a terminal and elsewhere.

local process = require 'tests.command.process'
local terminal = require 'tests.command.terminal'

-- What a script writes to standard error where there is no terminal.
local function lines_of(text)
  local result = process.run_script("local coop = require 'coop'\n" .. text)
  assert.equal(0, result.status, result.err)
  return result.err, result.out
end

describe('coop.progress', function()
  after_each(process.remove_files)

  describe('without a terminal', function()
    it('writes a line at each quarter', function()
      assert.equal([[
load: 25% (2 of 8)
load: 50% (4 of 8)
load: 75% (6 of 8)
load: 100% (8 of 8)
]], (lines_of [[
        local p = coop.progress(8, 'load')
        for _ = 1, 8 do p:advance() end
      ]]))
    end)

    it('leaves quarters out that are passed at once', function()
      assert.equal('load: 70% (7 of 10)\nload: 100% (10 of 10)\n', (lines_of [[
        local p = coop.progress(10, 'load')
        p:advance(7)
        p:advance(3)
        p:advance(1)
      ]]))
    end)

    it('writes one line of what has no known end', function()
      assert.equal('progress: 3\n', (lines_of [[
        local p = coop.progress()
        p:advance(3)
        p:finish()
        p:finish()
      ]]))
    end)

    it('counts as nothing what a script has put into its fields and is no number', function()
      assert.equal([[
a: 1
true: 1
c: 75% (1.5 of 2)
c: 75% (1.5 of 2)
d: 50% (1 of 2)
d: 50% (1 of 2)
]], (lines_of [[
        local p = coop.progress(4, 'a')
        p.done, p.total = 'x', {}
        p:advance()
        p:finish()
        p = coop.progress(nil, 'b')
        p.done, p.label = 0 / 0, true
        p:advance()
        p:finish()
        p = coop.progress(2, 'c')
        p.done = 0.5
        p:advance()
        p:finish()
        p = coop.progress(2, 'd')
        p.done = -math.huge
        p:advance()
        p:finish()
      ]]))
    end)

    it('is finished at the end of its block', function()
      assert.equal('part: 30% (3 of 10)\npart: 30% (3 of 10)\n', (lines_of [[
        do
          local p <close> = coop.progress(10, 'part')
          p:advance(3)
        end
      ]]))
    end)

    it('counts and hands on what it is called with', function()
      local err, out = lines_of [[
        local flow = require 'coop.flow'
        local p = coop.progress(4, 'flow')
        local list = coop.await(flow.Deferred(flow.Map(p, { 'a', 'b', 'c', 'd' })))
        print(table.concat(list), p.done, p.total, p.label, p, coop.type(p))
      ]]
      assert.equal('abcd\t4\t4\tflow\tflow: 100% (4 of 4)\tProgress\n', out)
      assert.matches('flow: 100%% %(4 of 4%)\n$', err)
    end)

    it('is the same for who kept the function before', function()
      local err, out = lines_of [[
        local progress = coop.progress
        local p, q = progress(1, 'p'), progress(1, 'q')
        coop.await(coop.accumulate({ 1 }, { progress = p }))
        q:advance()
        print(coop.progress == progress, coop.type(p), coop.type(q))
      ]]
      assert.equal('true\tProgress\tProgress\n', out)
      assert.equal('p: 100% (1 of 1)\nq: 100% (1 of 1)\n', err)
    end)

    it('keeps nothing alive', function()
      assert.equal('', (lines_of "coop.progress(10, 'never') print 'end'"))
    end)
  end)

  describe('follows', function()
    local generator = [[
      local upto = coop.generator(function(n) for i = 1, n do coop.yield(i) end end)
    ]]

    it('coop.accumulate', function()
      local err, out = lines_of(generator .. [[
        local p = coop.progress(100, 'acc')
        print(#coop.await(coop.accumulate(upto(100), { progress = p })), p.done)
      ]])
      assert.equal('100\t100\n', out)
      assert.matches('acc: 100%% %(100 of 100%)\n$', err)
    end)

    it('coop.batch_accumulate, behind a Cooperator', function()
      local err, out = lines_of(generator .. [[
        local p, c = coop.progress(100, 'acc'), coop.Cooperator {}
        print(#coop.await(coop.batch_accumulate(7, upto(100), c, { progress = p })), p.done)
        print(#coop.await(coop.batch_accumulate(7, upto(5), nil, { progress = p })), p.done)
        print(#coop.await(coop.batch_accumulate(7, upto(5), nil, nil)), p.done)
        print(#coop.await(coop.batch_accumulate(7, upto(5), nil, {})), p.done)
      ]])
      assert.equal('100\t100\n5\t105\n5\t105\n5\t105\n', out)
      assert.matches('acc: 100%% %(100 of 100%)\n', err)
    end)

    it('several tasks at once, and is finished by the last', function()
      local err, out = lines_of(generator .. [[
        local p = coop.progress(nil, 'three')
        coop.await(coop.gather_results {
          coop.accumulate(upto(10), { progress = p }),
          coop.batch_accumulate(3, upto(20), { progress = p }),
          coop.accumulate(upto(30), { progress = p }),
        })
        print(p.done)
      ]])
      assert.equal('60\n', out)
      assert.equal('three: 60\n', err)
    end)

    it('flow.Deferred', function()
      local err, out = lines_of(generator .. [[
        local flow = require 'coop.flow'
        local p = coop.progress(10, 'flow')
        print(#coop.await(flow.Deferred(upto(10), 'trapped', { progress = p })), p.done)
      ]])
      assert.equal('10\t10\n', out)
      assert.matches('flow: 100%% %(10 of 10%)\n$', err)
    end)

    it('what fails, to where it came', function()
      local err, out = lines_of [[
        local p = coop.progress(10, 'bad')
        local fails = coop.generator(function() coop.yield(1) coop.yield(2) error 'no' end)
        print(pcall(coop.await, coop.accumulate(fails(), { progress = p })))
      ]]
      assert.matches('^false\t.*no\n$', out)
      assert.equal('bad: 20% (2 of 10)\n', err)
    end)

    it('without hiding a failure', function()
      local result = process.run_script [[
        local coop = require 'coop'
        local p = coop.progress(10, 'bad')
        coop.accumulate(function() error 'nobody looks' end, { progress = p })
      ]]
      assert.equal(1, result.status)
      assert.matches('coop: unhandled failure: .*nobody looks', result.err)
    end)
  end)

  it('refuses what is no progress', function()
    local _, out = lines_of [[
      for _, f in ipairs {
        function() coop.progress(0) end,
        function() coop.progress('x') end,
        function() coop.progress(1, 2) end,
        function() coop.progress(1):advance(-1) end,
        function() coop.progress(1).advance() end,
        function() coop.progress(1).finish(1) end,
        function() coop.accumulate({}, { progress = 1 }) end,
        function() coop.accumulate({}, {}) end,
        function() coop.accumulate({}, nil, 1) end,
        function() coop.batch_accumulate(1, {}, coop.cooperator, coop.sleep(0)) end,
      } do
        print(select(2, pcall(f)):match "bad.*")
      end
      os.exit(0)
    ]]
    assert.equal([[
bad argument #1 to 'progress' (integer of at least 1 expected, got 0)
bad argument #1 to 'progress' (integer of at least 1 expected, got string)
bad argument #2 to 'progress' (string expected, got number)
bad argument #1 to 'advance' (integer of at least 0 expected, got -1)
bad self (Progress expected, got nil)
bad self (Progress expected, got number)
bad argument #2 to 'accumulate' (table with a Progress as progress expected, got number)
bad argument #2 to 'accumulate' (Cooperator expected, got table)
bad argument #3 to 'accumulate' (table expected, got number)
bad argument #4 to 'batch_accumulate' (table expected, got Deferred)
]], out)
  end)

  describe('on a terminal', function()
    local t

    local function start(text, env)
      local path = process.file("local coop = require 'coop'\n" .. text)
      t = terminal.open(terminal.coop .. ' ' .. path, env)
    end

    after_each(function() if t then t:close() end end)

    local scene = [[
      print 'a first line' -- tmux keeps what is erased from the top of a screen
      local a, b = coop.progress(10, 'first'), coop.progress(10, 'the second')
      a:advance(5)
      b:advance(1)
      print 'printed above'
      local more = io.read()
      a:advance(5)
      io.stderr:write('so is this\n')
      b:advance(9)
    ]]

    it('keeps a line for each below all output', function()
      -- reading blocks the loop, so the lines are to be drawn before
      start((scene:gsub('local more = io.read%(%)', 'coop.await(coop.sleep(0.3)) io.read()')))
      t:wait('both lines', function(screen)
        return screen:find('printed above\n' ..
          'first       [############------------]   50%  5/10\n' ..
          'the second  [##----------------------]   10%  1/10', 1, true)
      end)
      t:press 'Enter'
      t:expect 'status 0'
      t:expect 'so is this'
      t:expect 'first       [########################]  100%  10/10'
      t:expect 'the second  [########################]  100%  10/10'
      local _, times = t:screen():gsub('the second', '')
      assert.equal(1, times, t:screen())
    end)

    it('has no colours with NO_COLOR, and no bars where TERM is dumb', function()
      start(scene, { NO_COLOR = '1' })
      t:expect 'printed above'
      t:press 'Enter'
      t:expect 'status 0'
      assert.is_nil(t:screen(true):find('\27[32m', 1, true))
      t:close()
      start(scene, { TERM = 'dumb' })
      t:expect 'printed above'
      t:press 'Enter'
      t:expect 'status 0'
      t:expect 'the second: 100% (10 of 10)'
      assert.is_nil(t:screen():find('##', 1, true))
    end)

    it('begins its lines on lines of their own', function()
      start [[
        local p = coop.progress(nil, 'bar')
        io.write 'no end'
        coop.await(coop.sleep(0.3))
        io.write '; more'
        p:finish()
      ]]
      t:expect 'status 0'
      t:expect 'no end'
      t:expect '; more'
      t:expect 'bar  0'
    end)

    it('gives way to the prompt', function()
      t = terminal.open('XDG_STATE_HOME=/dev/null ' .. terminal.coop)
      t:expect_last '>'
      t:enter 'p = coop.progress(4, "at the prompt")'
      t:enter 'p:advance(2)'
      t:expect 'at the prompt: 50% (2 of 4)'
      t:expect_last '>'
    end)
  end)
end)
