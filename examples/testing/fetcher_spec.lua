local coop = require 'coop'
local fetcher = require 'fetcher'
local testing = require 'coop.testing'

describe('a fetcher', function()
  local asked, fetch

  -- Requests that the test answers: asked[url] is the Deferred of the last one.
  local function get(url)
    asked[url] = coop.Deferred()
    return asked[url]
  end

  before_each(function()
    asked = {}
    fetch = fetcher.new { get = get, at_once = 2, tries = 3, pause = 1 }
  end)

  it('gives the page', function()
    local page = fetch 'a'
    assert.pending(page)
    asked.a:callback 'hello'
    assert.resolves_to('hello', page)
  end)

  it('has no more than two requests under way', function()
    local pages = coop.gather_results { fetch 'a', fetch 'b', fetch 'c' }
    assert.is_nil(asked.c)
    asked.b:callback 'B'
    assert.pending(asked.c)
    asked.a:callback 'A'
    asked.c:callback 'C'
    assert.same({ 'A', 'B', 'C', n = 3 }, testing.success_result_of(pages))
  end)

  it('tries again, later and later', function()
    local clock, times = testing.autojump(), {} -- nothing below takes any time
    local start = clock:seconds()
    fetch = fetcher.new {
      get = function()
        table.insert(times, clock:seconds() - start)
        return coop.fail 'no answer'
      end,
      at_once = 1, tries = 4, pause = 1,
    }
    local ok, err = pcall(coop.await, fetch 'a')
    assert.is_false(ok)
    assert.equal('no answer', err)
    assert.same({ 0.0, 1.0, 3.0, 7.0 }, times)
  end)

  it('gives up what nobody waits for any more', function()
    local page = fetch 'a'
    page:cancel()
    assert.failed_with(coop.errors.CancelledError, page)
    assert.failed_with(coop.errors.CancelledError, asked.a)
  end)
end)
