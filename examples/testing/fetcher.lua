--- Gets pages: a few at once, and again when that fails.
---     local fetcher = require 'fetcher'
---     local fetch = fetcher.new { get = http.get, at_once = 4, tries = 3, pause = 1 }
---     local page = coop.await(fetch 'http://example.net/')

local coop = require 'coop'

local fetcher = {}

--- A function that fetches: `fetch(url)` returns a Deferred of what `options.get(url)` gives. Not
--- more than `at_once` are under way; one that fails is tried again after a pause, then after one
--- that is twice as long, `tries` times in all.
function fetcher.new(options)
  local slots = coop.DeferredSemaphore(options.at_once)

  local function try(url)
    local held <close> = coop.await(slots:acquire())
    return coop.await(options.get(url))
  end

  return coop.coroutine(function(url)
    local pause = options.pause
    for _ = 2, options.tries do
      local ok, page = pcall(try, url)
      if ok then return page end
      coop.await(coop.sleep(pause))
      pause = pause * 2
    end
    return try(url)
  end)
end

return fetcher
