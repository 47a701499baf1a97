--- coop.testing in the hands of a user: specs that busted runs, and what it says of them.

local process = require 'tests.command.process'

local busted = '/usr/bin/busted'
local build = process.coop:match '^(.*)/[^/]*$' or '.'
local lua = os.getenv 'COOP_LUA5_4' or process.lua
local beside_lua = {
  LUA_PATH = ('%s/lua/?.lua;%s/lua/?/init.lua;;'):format(build, build),
  LUA_CPATH = build .. '/?.so;;',
}

local prelude = [[
local coop = require 'coop'
local testing = require 'coop.testing'
local function busy() return function() return 1 end end
]]

-- Runs the text as a spec under `coop`, or with `options.lua` under that; the name of the file is
-- FILE in what comes back.
local function run(text, options)
  options = options or {}
  local path = process.file((options.bare and '' or prelude) .. text)
  local args = { busted, table.unpack(options.args or {}) }
  args[#args + 1] = path
  local result = options.lua and process.run(lua, args, { env = beside_lua })
    or process.run_coop(args)
  assert.is_nil(result.hangs, 'it hangs')
  result.out = result.out:gsub(path:gsub('%p', '%%%0'), 'FILE')
  return result
end

local function counts(result, successes, failures, errors)
  local expected = ('%d success%s / %d failure%s / %d error%s / 0 pending'):format(
    successes, successes == 1 and '' or 'es', failures, failures == 1 and '' or 's',
    errors, errors == 1 and '' or 's')
  assert.matches(expected, result.out, 1, true)
  assert.equal(failures + errors == 0 and 0 or 1, result.status)
  assert.equal('', result.err)
end

local function says(result, ...)
  for _, text in ipairs { ... } do assert.matches(text, result.out, 1, true) end
end

-- One test whose body is the text, on line 4 of the file.
local function test(body)
  return "it('is on trial', testing.async(function() " .. body .. ' end))\n'
end

-- Each is run under both interpreters.
local function each(name, f)
  it(name .. ', under coop', function() f {} end)
  it(name .. ', under lua5.4', function() f { lua = true } end)
end

describe('what a test leaves behind', function()
  after_each(process.remove_files)

  local function leak(name, body, ...)
    local texts = { 'is on trial\nThe test has left behind:\n', ... }
    each(name, function(options)
      local result = run(test(body) .. "it('is innocent', function() end)", options)
      counts(result, 2, 0, 1)
      says(result, table.unpack(texts))
    end)
  end

  leak('a timer', 'coop.call_later(100, print)', '  a timer made at FILE:4 is due in 100 s\n')
  leak('a sleeping coroutine', 'coop.spawn(function() coop.await(coop.sleep(100)) end)',
    '  FILE:4: a coroutine waits here, for a sleep with ')
  leak('a LoopingCall', 'coop.LoopingCall(print):start(100, false)',
    '  a timer made at FILE:4 is due in 100 s\n')
  leak('a task', 'coop.cooperate(busy())', '  a task made at FILE:4 has more to do\n')
  leak('a paused task', 'Kept = coop.cooperate(busy()) Kept:pause()',
    '  a task made at FILE:4 is paused\n')
  leak('a task that waits', [[ Kept = coop.Deferred() coop.cooperate { Kept }
    coop.await(coop.sleep(0.001))]],
    '  a task made at FILE:4 waits for a Deferred made at FILE:4\n')
  leak('a server', 'require "coop.net".listen("127.0.0.1", 0, print)',
    '  a server made at FILE:4 is still open\n')
  leak('a connection', [[
    local net = require 'coop.net'
    local server <close> = net.listen('127.0.0.1', 0, function(conn) conn:read() end)
    Kept = coop.await(net.connect('127.0.0.1', server.port))]],
    '  a Connection made at FILE:6 is still open\n')
  leak("a handle of luv's", [[
    local timer = require 'luv'.new_timer()
    timer:start(100000, 0, print)]],
    "  a handle of libuv's (timer) is still open\n")
  leak('a coroutine that waits', [[ Kept = coop.Deferred()
    coop.spawn(function() coop.await(Kept) end)]],
    '  FILE:5: a coroutine waits here, for a Deferred made at FILE:4\n')
  leak('a coroutine that waits within another of its own', [[
    Kept = coop.Deferred()
    coop.spawn(function()
      coroutine.wrap(function()
        local function deep() coop.await(Kept) end
        deep()
      end)()
    end)]],
    "  FILE:7: a coroutine waits here in function 'deep', for a Deferred made at FILE:4 "
    .. '(started at FILE:5)\n')
  leak('a coroutine that was collected as it waited', [[
    coop.spawn(function() coop.await(coop.Deferred()) end)
    collectgarbage()]],
    '  FILE:4: a coroutine waits here\n')
  leak('an unhandled failure', 'coop.fail "lost"',
    '  a failure that nobody handled, of what was made at FILE:4:\n    lost\n',
    '    stack traceback:\n    \tFILE:4: in function ')
  leak('an unhandled failure, collected', 'coop.fail "lost" collectgarbage()',
    '  a failure that nobody handled, of what was made at FILE:4:\n    lost\n')
  leak('an error in a delayed call', [[
    coop.call_later(0, error, 'lost')
    coop.await(coop.sleep(0))]],
    '  a failure that nobody handled:\n    lost\n')

  each('is nothing, of a clean test', function(options)
    local result = run([[
      local net, server = require 'coop.net'
      before_each(testing.async(function()
        server = net.listen('127.0.0.1', 0, function(conn)
          local line = coop.await(conn:read 'l')
          while line do
            conn:write(line .. '\n')
            line = coop.await(conn:read 'l')
          end
        end)
      end))
      after_each(function() server:close() end)
      it('talks', testing.async(function()
        local conn = coop.await(net.connect('127.0.0.1', server.port))
        conn:write 'hello\n'
        assert.equal('hello', coop.await(conn:read 'l'))
        conn:close()
      end))
      it('counts', testing.async(function()
        local call = coop.call_later(100, print)
        assert.same({ 1, 2 }, coop.await(coop.accumulate { 1, 2 }))
        call:cancel()
        coop.fail 'x':add_errback(function() end)
      end))
    ]], options)
    counts(result, 2, 0, 0)
  end)

  each('is not what a setup keeps for all tests', function(options)
    local result = run([[
      local server, call, task, loop
      setup(function()
        server = require 'coop.net'.listen('127.0.0.1', 0, print)
        call = coop.call_later(1000, print)
        task = coop.cooperate(busy())
      end)
      teardown(function() server:close() call:cancel() task:stop() end)
      it('is innocent', testing.async(function() coop.await(coop.sleep(0)) end))
      it('is innocent, too', function() end)
    ]], options)
    counts(result, 2, 0, 0)
  end)

  each('is looked for behind the last after_each', function(options)
    local result = run([[
      local call
      after_each(function() call:cancel() end)
      it('is innocent', function() call = coop.call_later(1000, print) end)
    ]], options)
    counts(result, 1, 0, 0)
  end)

  each('is forgiven to a test that has failed, and ended', function(options)
    local result = run([[
      it('fails', function() coop.call_later(1000, print) error 'here' end)
      it('is innocent', function() assert.same({}, coop.reactor:get_delayed_calls()) end)
    ]], options)
    counts(result, 1, 0, 1)
    assert.is_nil(result.out:find 'left behind')
  end)

  each('may still wait at the end of the process, if that is on purpose', function(options)
    local result = run(test 'testing.may_leave "wait" Kept = coop.Deferred() '
      .. 'coop.spawn(function() coop.await(Kept) end)', options)
    counts(result, 1, 0, 0)
  end)

  each('may be on purpose', function(options)
    local result = run([[
      it('says so', function() testing.may_leave('timer', 'wait') coop.call_later(1000, print)
        coop.spawn(function() coop.await(coop.Deferred()) end) end)
      it('does not', function() coop.call_later(1000, print) end)
      describe('a block', function()
        before_each(function() testing.may_leave 'failure' end)
        it('says so', function() coop.fail 'x' end)
      end)
      describe('another block', function()
        it('does not', function() coop.fail 'x' end)
      end)
    ]], options)
    counts(result, 4, 0, 2)
    says(result, 'does not\nThe test has left behind:\n  a timer',
      'another block does not\nThe test has left behind:\n  a failure')
  end)
end)

describe('a test that does not end', function()
  after_each(process.remove_files)

  each('is ended when its time is over, and tells where everything waits', function(options)
    local result = run([[
it('is slow', testing.async(function()
  local function fetch(d) return coop.await(d) end
  local worker = coop.spawn(function()
    fetch(coop.sleep(1000))
  end)
  coop.await(worker)
end, 0.1))
it('is innocent', testing.async(function() coop.await(coop.sleep(0)) end))
    ]], options)
    counts(result, 1, 0, 1)
    says(result, 'FILE:4: the test took longer than 0.1 s:\n'
      .. '  FILE:9: the test waits here, for a coroutine made at FILE:6\n'
      .. "  FILE:5: a coroutine waits here in function 'fetch', for a sleep made at FILE:7 with ",
      ' s left (started at FILE:6)\n')
  end)

  each('is ended at once when nothing is left that could end it', function(options)
    local result = run(test 'local d = coop.Deferred() coop.await(d)', options)
    counts(result, 0, 0, 1)
    says(result, 'FILE:4: the test waits for what nothing is left to bring about:\n'
      .. '  FILE:4: the test waits here, for a Deferred\n')
    assert.is_true(result.seconds < 10)
  end)

  each('tells of a lock', function(options)
    local result = run(test [[
      local lock = coop.DeferredLock()
      coop.await(lock:acquire())
      coop.await(lock:acquire())]], options)
    says(result, 'FILE:6: the test waits here, for its turn at a lock, a semaphore or a queue\n')
  end)

  each('has failed, even if it catches the error', function(options)
    local result = run(test 'pcall(coop.await, coop.Deferred())', options)
    counts(result, 1, 0, 1)
    says(result, 'FILE:4: the test waits for what nothing is left to bring about:\n')
  end)

  each('has the time that the file gives', function(options)
    local result = run("testing.timeout(0.1)\n" .. test 'coop.await(coop.sleep(1000))', options)
    counts(result, 0, 0, 1)
    says(result, 'FILE:5: the test took longer than 0.1 s:\n')
  end)

  it('may also wait in before_each', function()
    local result = run [[
      before_each(function() coop.await(coop.Deferred()) end)
      it('is not begun', function() end)
    ]]
    says(result, 'nothing is left to bring about', 'the test waits here')
    assert.equal(1, result.status)
  end)
end)

describe('busted', function()
  after_each(process.remove_files)

  local specs = [[
    it('leaks', function() coop.call_later(100, print) end)
    it('awaits', function() coop.await(coop.sleep(0)) end)
  ]]

  for _, handler in ipairs { 'plainTerminal', 'utfTerminal', 'TAP', 'json', 'junit', 'gtest' } do
    it('tells of a leak through ' .. handler, function()
      local result = run(specs, { args = { '-o', handler } })
      says(result, 'The test has left behind:', 'a timer made at FILE:4 is due in 100 s')
      assert.equal(1, result.status)
    end)
  end

  it('shuffles, repeats and filters', function()
    local result = run(specs, { args = { '--shuffle', '--repeat=2' } })
    local _, rounds = result.out:gsub('2 successes / 0 failures / 1 error / 0 pending', '')
    assert.equal(2, rounds)
    counts(run(specs, { args = { '--filter=awaits' } }), 1, 0, 0)
  end)

  it('takes coop.testing for a helper', function()
    local result = run([[
      local coop = require 'coop'
      it('leaks', function() coop.call_later(100, print) end)
      it('fails', function() assert.fired(coop.Deferred()) end)
      it('is innocent', function() coop.await(coop.sleep(0)) end)
    ]], { bare = true, args = { '--helper=coop.testing' } })
    counts(result, 2, 1, 1)
    says(result, 'a timer made at FILE:2 is due in 100 s', 'FILE:3: Expected the Deferred made at '
      .. 'FILE:3 to have fired, but it has no result yet\n')
  end)

  it('runs the specs of a newcomer', function()
    local result = process.run_coop { busted, '--ignore-lua', '-C', 'examples/testing' }
    counts(result, 4, 0, 0)
  end)

  it('is started by --lua=coop', function()
    local result = process.run(process.lua, {
      busted, '--lua=' .. process.coop, '--helper=coop.testing',
      process.file(prelude .. test 'coop.await(coop.sleep(0))'),
    })
    counts(result, 1, 0, 0)
  end)
end)
