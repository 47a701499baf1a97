--- What a failed script shows: where it failed, and who waited for it, and no frame of coop's own.

local process = require 'tests.command.process'

-- Runs a script; returns what it wrote to standard error, with "script" for its path.
local function errors_of(text)
  local path = process.file("local coop = require 'coop' -- 1\n" .. text)
  local result = process.run_coop { path }
  assert.equal(1, result.status)
  return (result.err:gsub('[^%s]*' .. path:match '[^/]*$', 'script'))
end

-- Asserts that the numbers of the script's lines in the traceback are these, in this order.
local function assert_frames(expected, err)
  local traceback = err:match 'stack traceback:\n(.*)'
  assert.not_nil(traceback, err)
  local lines = {}
  for number in traceback:gmatch 'script:(%d+):' do table.insert(lines, math.tointeger(number)) end
  assert.same(expected, lines, err)
end

local function assert_none_of_coops_own(err)
  for _, own in ipairs { 'coop%.', 'coop/', '%.c:', "'await'", "'spawn'", "'run'", 'main%.c' } do
    assert.not_matches(own, err)
  end
end

describe('the traceback of a failed script', function()
  after_each(process.remove_files)

  it('has the message first', function()
    assert.matches('script:3: bad\nstack traceback:\n', errors_of "\nerror 'bad'", 1, true)
  end)

  it('has the functions of the script', function()
    local err = errors_of [[
local function inner() error 'bad' end -- 2
local function outer() inner() end -- 3
outer() -- 4
]]
    assert_frames({ 2, 3, 4 }, err)
    assert.matches("'inner'", err, 1, true)
    assert_none_of_coops_own(err)
  end)

  it('has them when the script has waited before', function()
    local err = errors_of [[
local function inner() coop.await(coop.sleep(0.01)) error 'bad' end -- 2
local function outer() inner() end -- 3
outer() -- 4
]]
    assert_frames({ 2, 3, 4 }, err)
    assert_none_of_coops_own(err)
  end)

  it('goes on with who awaited the failed coroutine', function()
    local err = errors_of [[
local inner = coop.inline_callbacks(function() -- 2
  coop.await(coop.sleep(0.01))
  error 'bad' -- 4
end)
local outer = coop.inline_callbacks(function()
  return (coop.await(inner())) -- 7
end)
local function middle()
  coop.await(outer()) -- 10
  return nil
end
middle() -- 13
]]
    assert_frames({ 4, 7, 10, 13 }, err)
    assert_none_of_coops_own(err)
  end)

  it('does so when it failed before it was awaited', function()
    local err = errors_of [[
local d = coop.spawn(function()
  error 'bad' -- 3
end)
coop.await(d) -- 5
]]
    assert_frames({ 3, 5 }, err)
    assert_none_of_coops_own(err)
  end)

  it('does so for coroutines of every kind', function()
    local err = errors_of [[
local inner = coop.coroutine(function()
  coop.await(coop.sleep(0.01))
  error 'bad' -- 4
end)
local outer = coop.spawn(function()
  coop.await(inner()) -- 7
end)
coop.await(outer) -- 9
]]
    assert_frames({ 4, 7, 9 }, err)
    assert_none_of_coops_own(err)
  end)

  it('has the function that a delayed call ran', function()
    local err = errors_of [[
coop.call_later(0.01, function()
  error 'bad' -- 3
end)
]]
    assert.matches('script:3: bad', err, 1, true)
    assert_frames({ 3 }, err)
    assert_none_of_coops_own(err)
  end)

  it('has the handler that failed', function()
    local err = errors_of [[
coop.succeed(1):add_callback(function()
  error 'bad' -- 3
end)
]]
    assert.matches('script:3: bad', err, 1, true)
    assert_none_of_coops_own(err)
  end)

  it('blames the caller for a misuse', function()
    local err = errors_of [[

coop.call_later(-1, print) -- 3
]]
    assert.matches("script:3: bad argument #1 to 'call_later'", err, 1, true)
  end)

  it('is there when the error value is a string of a level above', function()
    local err = errors_of [[
local function check() error('bad', 2) end -- 2
check() -- 3
]]
    assert.matches('script:3: bad\n', err, 1, true)
    assert_frames({ 2, 3 }, err)
  end)

  it('is there for a compiled string', function()
    assert.matches('[string "error \'bad\'"]:1: bad', errors_of [[load "error 'bad'" ()]], 1, true)
  end)
end)
