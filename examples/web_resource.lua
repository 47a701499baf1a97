-- You will learn: how a page that takes its time is served to several at the same time.

local coop = require 'coop'
local http = require 'coop.http'

-- Thirty random numbers, each after a random pause. Every client gets a coroutine of its
-- own; what it writes goes out at once, and a slow reader is waited for.
local function numbers(_, response)
  response.headers['Content-Type'] = 'text/plain'
  for _ = 1, 30 do
    coop.await(coop.sleep(math.random() * 0.005))
    coop.await(response:write(('%d\n'):format(math.random(1, 100))))
  end
end

local server = http.serve { port = tonumber(arg[1]) or 0, handler = numbers }
local url = ('http://127.0.0.1:%d/'):format(server.port)

-- With a port as its argument the server stays, for a browser or `curl -N`.
if arg[1] then return print(url) end

-- Else two clients read the page, as it comes.
local arrivals = {}

local read = coop.coroutine(function(name)
  local response = coop.await(http.get(url, { stream = true }))
  local text = ''
  for chunk in response do
    text = text .. chunk
    table.insert(arrivals, name)
  end
  local _, lines = text:gsub('\n', '')
  return ('%s has %d numbers'):format(name, lines)
end)

local results = coop.await(coop.gather_results { read 'one', read 'two' })
for _, result in ipairs(results) do print(result) end

local turns = 0
for i = 2, #arrivals do
  if arrivals[i] ~= arrivals[i - 1] then turns = turns + 1 end
end
print(turns > 2 and 'they took turns' or 'one after the other')
server:close()
