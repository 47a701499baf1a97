--- Specs of a user, run by busted under the command.

local process = require 'tests.command.process'

local busted = '/usr/bin/busted'

local good = [[
local coop = require 'coop'
describe('a spec', function()
  before_each(function() coop.await(coop.sleep(0.01)) end)
  it('awaits', function()
    assert.equal(42, coop.await(coop.sleep(0.01):add_callback(function() return 42 end)))
  end)
  it('awaits inside pcall', function()
    local ok, e = pcall(coop.await, coop.fail 'bad')
    assert.is_false(ok)
    assert.equal('bad', e)
  end)
  it('uses coop.run', function()
    assert.equal(42, coop.run(function() coop.await(coop.sleep(0.01)) return 42 end))
  end)
end)
]]

local bad = [[
local coop = require 'coop'
describe('a spec', function()
  it('fails behind a wait', function()
    coop.await(coop.sleep(0.01))
    assert.equal(1, 2)
  end)
  it('goes on with the next', function() coop.await(coop.sleep(0.01)) end)
end)
]]

describe('busted under coop', function()
  after_each(process.remove_files)

  it('runs tests that await', function()
    local result = process.run_coop { busted, process.file(good) }
    assert.matches('3 successes / 0 failures / 0 errors / 0 pending', result.out, 1, true)
    assert.equal('', result.err)
    assert.equal(0, result.status)
  end)

  it('tells of a test that fails behind a wait', function()
    local result = process.run_coop { busted, process.file(bad) }
    assert.matches('1 success / 1 failure / 0 errors / 0 pending', result.out, 1, true)
    assert.matches(':5: Expected objects to be equal', result.out, 1, true)
    assert.equal(1, result.status)
  end)

  it('is started by --lua=coop', function()
    local result = process.run(process.lua, {
      busted, '--lua=' .. process.coop, process.file(good),
    })
    assert.matches('3 successes / 0 failures / 0 errors / 0 pending', result.out, 1, true)
    assert.equal(0, result.status)
  end)
end)
