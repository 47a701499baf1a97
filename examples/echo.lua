-- You will learn: how both ends of a conversation are written as generator bodies,
-- which pull blocks from a connection and yield what is to be written.

local coop = require 'coop'
local flow = require 'coop.flow'
local net = require 'coop.net'

-- The server: what comes goes back. While a peer is slow to take it, no more is read.
local echo = flow.make_protocol(function(conn)
  for block in conn do coroutine.yield(block) end
end)

local server = net.listen('127.0.0.1', 0, echo)

-- A client: it says something and waits for the answer. Its end closes the connection.
local function client(name, words)
  local done = coop.Deferred()
  net.connect('127.0.0.1', server.port, flow.make_protocol(function(conn)
    for _, word in ipairs(words) do
      coroutine.yield(word)
      print(('%s: said %q, heard %q'):format(name, word, conn:next()))
    end
    done:callback()
  end))
  return done
end

coop.await(coop.gather_results {
  client('Ada', { 'testing', 'one', 'two' }),
  client('Grace', { 'hello', 'world' }),
})

-- Stages can stand in between. This server answers line by line.
local shout = flow.make_protocol(function(conn)
  local lines = flow.LineBreak(conn, { delimiter = '\n' })
  return flow.Map(function(line) return line:upper() .. '!\n' end, lines)
end)

-- And without a protocol: a handler, and a connection to read and write.
local other <close> = net.listen('127.0.0.1', 0, shout)
local conn <close> = coop.await(net.connect('127.0.0.1', other.port))
conn:write 'hel'
conn:write 'lo\nwor'
conn:write 'ld\n'
conn:shutdown()
print(coop.await(conn:read 'l'))
print(coop.await(conn:read 'l'))

server:close()
local ok, refused = pcall(coop.await, net.connect('127.0.0.1', server.port))
print(ok, coop.errors.ConnectionRefused:is(refused))
