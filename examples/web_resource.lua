-- You will learn: how a page that takes its time is served to several at the same time.

local coop = require 'coop'
local flow = require 'coop.flow'
local http = require 'coop.http'

-- Thirty random numbers, each after a random pause. Every client gets a body of its own. What
-- it yields goes out at once, a slow reader is waited for, and who leaves ends it.
local numbers = flow.Resource(function(_, response)
  response.headers['Content-Type'] = 'text/html'
  coroutine.yield '<html><body><ol>\n'
  for _ = 1, 30 do
    coroutine.yield(flow.Cooperate(math.random() * 0.005))
    coroutine.yield(('<li>%d</li>\n'):format(math.random(1, 100)))
  end
  coroutine.yield '</ol></body></html>\n'
end)

local server = http.serve { port = tonumber(arg[1]) or 0, handler = numbers }
local url = ('http://127.0.0.1:%d/'):format(server.port)

-- With a port as its argument the server stays, for a browser or `curl -N`.
if arg[1] then return print(url) end

-- Else two clients read the page, as it comes.
local arrivals = {}

local function count(name)
  local page = coop.await(http.get(url, { stream = true }))
  local n = 0
  for line in flow.LineBreak(page, { delimiter = '\n' }) do
    if line:match '^<li>%d+</li>$' then
      n = n + 1
      table.insert(arrivals, name)
    end
  end
  return ('%s has %d numbers'):format(name, n)
end

local one, two = coop.spawn(count, 'one'), coop.spawn(count, 'two')
print(coop.await(one))
print(coop.await(two))

local turns = 0
for i = 2, #arrivals do
  if arrivals[i] ~= arrivals[i - 1] then turns = turns + 1 end
end
print(turns > 2 and 'they took turns' or 'one after the other')
server:close()
