-- You will learn: how to get many pages, and never more than three at once.

local coop = require 'coop'
local http = require 'coop.http'

-- A server to get them from. Its handler is a coroutine: while one page is being
-- made, others are too.
local now, most = 0, 0

local server = http.serve {
  handler = function(request, response)
    now = now + 1
    most = math.max(most, now)
    coop.await(coop.sleep(0.01))
    now = now - 1
    response.headers['Content-Type'] = 'text/plain'
    response:write(('page %s'):format(request.query.number))
  end,
}

local function get_page(number)
  local url = ('http://127.0.0.1:%d/?number=%d'):format(server.port, number)
  local response = coop.await(http.get(url))
  return response.body
end

local numbers = {}
for number = 1, 12 do numbers[number] = number end

local pages = coop.await(coop.parallel(3, numbers, get_page))
for _, page in ipairs(pages) do print(page) end
print(('never more than %d at once'):format(most))

-- A page that is not there is no failure: its status tells. Nobody at all is one.
server:close()
local ok, err = pcall(coop.await, http.get(('http://127.0.0.1:%d/'):format(server.port)))
print(ok, coop.errors.ConnectionRefused:is(err))
