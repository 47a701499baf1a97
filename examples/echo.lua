-- An echo server and its clients, in one script. The server's handler is a coroutine for each
-- connection: it reads block by block, and does not read on while its peer is slow to take the
-- answer. So does each client, while the others have their turns.
local coop = require 'coop'
local net = require 'coop.net'

local server = net.listen('127.0.0.1', 0, function(conn)
  for block in conn do
    coop.await(conn:write(block))
  end
end)

local function client(name, lines)
  local conn <close> = coop.await(net.connect('127.0.0.1', server.port))
  for i = 1, lines do
    local sent = ('%s, line %d'):format(name, i)
    conn:write(sent .. '\n')
    local line = coop.await(conn:read 'l')
    print(('%s: sent %q, got %q'):format(name, sent, line))
  end
  coop.await(conn:shutdown())
  print(('%s: the rest is %q'):format(name, coop.await(conn:read 'a')))
end

coop.await(coop.gather_results {
  coop.spawn(client, 'Ada', 3),
  coop.spawn(client, 'Grace', 2),
})

-- A whole file's worth, written without waiting, comes back as a whole.
local conn = coop.await(net.connect('127.0.0.1', server.port))
local data = ('0123456789abcdef'):rep(65536)
conn:write(data)
conn:shutdown()
local echo = coop.await(conn:read 'a')
print(('%d bytes sent, %d came back, %s'):format(#data, #echo,
  echo == data and 'the same' or 'not the same'))
conn:close()

server:close()
local ok, refused = pcall(coop.await, net.connect('127.0.0.1', server.port))
print(ok, coop.errors.ConnectionRefused:is(refused))
