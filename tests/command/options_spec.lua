--- The command line, in the manner of lua.

local process = require 'tests.command.process'
local run_coop, run_script, file = process.run_coop, process.run_script, process.file

-- Runs both interpreters with the same arguments and asserts that they print the same.
local function like_lua(args, options)
  local expected = process.run(process.lua, args, options)
  local got = run_coop(args, options)
  assert.equal(expected.out, got.out)
  assert.equal(expected.status, got.status)
  return got
end

describe('the command line', function()
  after_each(process.remove_files)

  describe('-e', function()
    it('runs a statement', function()
      assert.equal('2\n', like_lua({ '-e', 'print(1 + 1)' }).out)
    end)

    it('takes the statement in the same word', function()
      assert.equal('2\n', like_lua({ '-eprint(1 + 1)' }).out)
    end)

    it('runs several in order, with the same globals', function()
      assert.equal('7\n', like_lua({ '-e', 'x = 3', '-e', 'print(x + 4)' }).out)
    end)

    it('runs before the script', function()
      local result = like_lua { '-e', 'print "before"', file 'print "script"' }
      assert.equal('before\nscript\n', result.out)
    end)

    it('may await', function()
      local result = run_coop {
        '-e', 'local coop = require "coop" coop.await(coop.sleep(0.01)) print "slept"',
      }
      assert.equal('slept\n', result.out)
      assert.equal(0, result.status)
    end)

    it('names itself in an error', function()
      local result = run_coop { '-e', 'error "bad"' }
      assert.equal(1, result.status)
      assert.matches('(command line):1: bad', result.err, 1, true)
    end)

    it('keeps the script from running when it fails', function()
      assert.equal('', like_lua({ '-e', 'error "bad"', file 'print "script"' }).out)
    end)
  end)

  describe('-l', function()
    it('requires a module into a global', function()
      assert.equal('Deferred\n', run_coop({
        '-l', 'coop', '-e', 'print(coop.type(coop.Deferred()))',
      }).out)
    end)

    it('takes the module in the same word', function()
      assert.equal('table\n', run_coop({ '-lcoop', '-e', 'print(type(coop))' }).out)
    end)

    it('takes another name for the global', function()
      assert.equal('table\tnil\n', run_coop({ '-l', 'c=coop', '-e', 'print(type(c), coop)' }).out)
    end)

    it('fails without the module', function()
      local result = like_lua { '-l', 'no.such.module', '-e', 'print "not reached"' }
      assert.equal(1, result.status)
      assert.matches("module 'no.such.module' not found", result.err, 1, true)
    end)
  end)

  describe('-v', function()
    it('tells the versions and ends', function()
      local result = run_coop { '-v' }
      assert.matches('coop %d+%.%d+', result.out)
      assert.matches('Lua 5%.4', result.out)
      assert.equal(0, result.status)
    end)

    it('goes on with a script', function()
      assert.matches('\nscript\n$', run_coop({ '-v', file 'print "script"' }).out)
    end)
  end)

  describe('-W', function()
    it('turns warnings on', function()
      assert.matches('Lua warning: careful', run_coop({ '-W', '-e', 'warn "careful"' }).err)
    end)

    it('has it told where things were made', function()
      local script = [[
        local coop = require 'coop'
        local function make() return coop.Deferred() end
        local d = make()
        coop.call_later(0, function() d:errback 'lost' d = nil end)
        coop.await(coop.sleep(0.001))
        local e = make()
        coop.spawn(function()
          coop.await(e)
        end)
      ]]
      local result = process.run_coop { '-W', process.file(script) }
      assert.matches('unhandled failure: lost\n', result.err, 1, true)
      assert.matches('\n\t%(of what was made at [^\n]*%.lua:2%)\n', result.err)
      assert.matches('%.lua:8: a coroutine waits here, for a Deferred made at [^\n]*%.lua:2 '
        .. '%(started at [^\n]*%.lua:7%)\n', result.err)
      result = process.run_coop { process.file(script) }
      assert.matches('%.lua:8: a coroutine waits here, for a Deferred\n', result.err)
      assert.is_nil(result.err:find('made at', 1, true))
    end)

    it('is needed for them', function()
      assert.equal('', run_coop({ '-e', 'warn "careful"' }).err)
    end)
  end)

  describe('-E', function()
    it('ignores the environment', function()
      like_lua({ '-E', '-e', 'print(package.path, package.cpath)' }, {
        env = { LUA_INIT = 'print "init"', LUA_PATH = 'nowhere/?.lua', LUA_CPATH = 'nowhere/?.so' },
      })
    end)

    it('does so behind other options', function()
      like_lua({ '-e', 'print(package.path)', '-E' }, { env = { LUA_PATH = 'nowhere/?.lua' } })
    end)

    it('does not keep coop from being found', function()
      assert.equal('table\n', run_coop({ '-E', '-e', 'print(type(require "coop"))' }).out)
    end)
  end)

  describe('-i', function()
    local function prompt(...)
      local talk = {}
      for _, line in ipairs { ... } do table.insert(talk, { '> ', input = line .. '\n' }) end
      table.insert(talk, { '> ', input = '' })
      return run_coop({ '-i' }, { talk = talk })
    end

    it('prints what expressions are worth', function()
      local result = prompt('6 * 7', '"two", "words"')
      assert.matches('%f[%d]42\n', result.out)
      assert.matches('two\twords\n', result.out, 1, true)
      assert.equal(0, result.status)
    end)

    it('awaits', function()
      local result = prompt('coop = require "coop"',
        'coop.await(coop.sleep(0.01):add_callback(function() return 42 end))')
      assert.matches('%f[%d]42\n', result.out)
    end)

    it('outlives an error', function()
      local result = prompt('error "bad"', '6 * 7')
      assert.matches('stdin:1: bad', result.err, 1, true)
      assert.matches('%f[%d]42\n', result.out)
    end)

    it('reads on when a statement is not complete', function()
      assert.matches('%f[%d]42\n', prompt('do local x = 6', 'print(x * 7) end').out)
    end)

    it('comes after the script', function()
      local result = run_coop({ '-i', file 'x = 42' }, {
        talk = { { '> ', input = 'x // 2\n' }, { '21', input = '' } },
      })
      assert.matches('%f[%d]21\n', result.out)
    end)

    it('may be left while it waits for a line', function()
      local result = run_coop({ '-i', file 'require "coop".call_later(0.01, os.exit, 5)' }, {
        talk = { { 'never said', input = '' } },
      })
      assert.equal(5, result.status, result.err)
      assert.equal('', result.err)
    end)
  end)

  describe('--', function()
    it('ends the options', function()
      assert.equal('script\n', like_lua({ '-e', 'x = 1', '--', file 'print "script"' }).out)
    end)
  end)

  describe('-', function()
    it('runs standard input', function()
      assert.equal('from stdin\ta\tb\n', like_lua({ '-', 'a', 'b' }, {
        input = 'print("from stdin", ...)',
      }).out)
    end)

    it('names it in an error', function()
      assert.matches('stdin:2: bad', run_coop({ '-' }, { input = '\nerror "bad"' }).err, 1, true)
    end)
  end)

  describe('without any script', function()
    it('runs standard input when that is no terminal', function()
      assert.equal('from stdin\n', like_lua({}, { input = 'print "from stdin"' }).out)
    end)

    it('leaves standard input alone behind -e', function()
      assert.equal('x\n', like_lua({ '-e', 'print "x"' }, { input = 'print "from stdin"' }).out)
    end)
  end)

  describe('when bad', function()
    local function refused(...)
      local result = run_coop({ ... }, { input = 'print "not reached"' })
      assert.equal(2, result.status)
      assert.equal('', result.out)
      assert.matches('usage: ', result.err)
      return result
    end

    it('ends with status 2 and the usage', function() refused '-x' end)
    it('names the option', function() assert.matches("'-x'", refused('-x').err, 1, true) end)
    it('does so for a long option', function() refused '--help-me' end)
    it('does so when -e lacks its statement', function() refused '-e' end)
    it('does so when -l lacks its module', function() refused '-l' end)
    it('does so for letters behind -i', function() refused '-ix' end)
    it('runs nothing before it is understood', function() refused('-e', 'print "early"', '-x') end)
  end)

  describe('a script', function()
    it('gets its arguments as ...', function()
      assert.equal('2\ta\tb c\n', like_lua({ file 'print(select("#", ...), ...)', 'a', 'b c' }).out)
    end)

    it('gets options behind its name as arguments', function()
      assert.equal('-e\t-x\n', like_lua({ file 'print(...)', '-e', '-x' }).out)
    end)

    it('gets arg as in lua, with what stands before it', function()
      local script = file [[
        local low = 0
        while arg[low - 1] do low = low - 1 end
        print(low, #arg, arg[-1], arg[-2], arg[0] == SCRIPT, arg[1], arg[2])
      ]]
      local set = ('SCRIPT = %q'):format(script)
      assert.equal('-3\t2\t' .. set .. '\t-e\ttrue\ta\tb\n',
        like_lua({ '-e', set, script, 'a', 'b' }).out)
    end)

    it('finds the command itself at the lowest index of arg', function()
      assert.equal(process.coop .. '\n', run_script('print(arg[-1])').out)
    end)

    it('may begin with a line for the shell', function()
      assert.equal('script\n', like_lua({ file '#!/usr/bin/env coop\nprint "script"' }).out)
    end)

    it('counts that line', function()
      local result = run_script '#!/usr/bin/env coop\nerror "bad"'
      assert.matches(':2: bad', result.err, 1, true)
    end)

    it('fails with status 1 when it cannot be read', function()
      local result = like_lua { '/no/such/script.lua' }
      assert.equal(1, result.status)
      assert.matches('/no/such/script.lua', result.err, 1, true)
    end)

    it('fails with status 1 and the line when it cannot be compiled', function()
      local result = like_lua { file '\nlocal = 1' }
      assert.equal(1, result.status)
      assert.matches(":2: <name> expected near '='", result.err, 1, true)
    end)
  end)
end)

describe('the environment', function()
  after_each(process.remove_files)

  local print_x = { '-e', 'print(x)' }

  it('gives a statement to run first in LUA_INIT', function()
    assert.equal('42\n', like_lua(print_x, { env = { LUA_INIT = 'x = 42' } }).out)
  end)

  it('gives a file to run first in LUA_INIT', function()
    assert.equal('42\n', like_lua(print_x, { env = { LUA_INIT = '@' .. file 'x = 42' } }).out)
  end)

  it('prefers LUA_INIT_5_4', function()
    assert.equal('54\n', like_lua(print_x, {
      env = { LUA_INIT = 'x = 42', LUA_INIT_5_4 = 'x = 54' },
    }).out)
  end)

  it('fails the run when LUA_INIT fails', function()
    local result = like_lua(print_x, { env = { LUA_INIT = 'error "bad"' } })
    assert.equal(1, result.status)
    assert.matches('LUA_INIT:1: bad', result.err, 1, true)
  end)

  it('lets LUA_INIT await', function()
    local result = run_coop(print_x, {
      env = { LUA_INIT = 'local coop = require "coop" coop.await(coop.sleep(0.01)) x = 42' },
    })
    assert.equal('42\n', result.out)
  end)

  it('gives the path of modules in LUA_PATH and LUA_CPATH', function()
    like_lua({ '-e', 'print(package.path, package.cpath)' }, {
      env = { LUA_PATH = '/somewhere/?.lua', LUA_CPATH = '/somewhere/?.so' },
    })
  end)

  it('puts the default path in place of ;; there', function()
    like_lua({ '-e', 'print(package.path, package.cpath)' }, {
      env = { LUA_PATH = '/somewhere/?.lua;;', LUA_CPATH_5_4 = ';;/somewhere/?.so' },
    })
  end)

  it('gives the default path when it has none', function()
    like_lua { '-e', 'print(package.path, package.cpath)' }
  end)

  it('does not keep coop from being found', function()
    local result = run_coop({ '-e', 'print(type(require "coop"))' }, {
      env = { LUA_PATH = 'nowhere/?.lua', LUA_CPATH = 'nowhere/?.so' },
    })
    assert.equal('table\n', result.out)
  end)
end)
