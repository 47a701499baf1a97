-- Connections that are open at once and say nothing: what each costs a server in memory, its
-- handler included.
--     coop bench/net/idle.lua [COUNT, 10000] [http]     (as many descriptors must be allowed)
-- With http, each has been answered once, and is kept alive.
local coop = require 'coop'
local http = require 'coop.http'
local net = require 'coop.net'

local function connect(port, count, kind)
  local conns = {}
  for i = 1, count do
    conns[i] = coop.await(net.connect('127.0.0.1', port))
    if kind == 'http' then
      coop.await(conns[i]:write 'GET / HTTP/1.1\r\nHost: a\r\n\r\n')
      coop.await(conns[i]:read())
    end
  end
  coop.await(conns[1]:read()) -- until the server ends
end

if arg[1] == 'connect' then
  connect(tonumber(arg[2]), tonumber(arg[3]), arg[4])
  os.exit()
end

local count, kind = math.tointeger(tonumber(arg[1] or 10000)), arg[2] or 'net'

-- Kilobytes.
local function resident()
  for line in io.lines '/proc/self/status' do
    local kb = line:match '^VmRSS:%s+(%d+)'
    if kb then return tonumber(kb) end
  end
end

local accepted, all = 0, coop.Deferred()
local function one_more()
  accepted = accepted + 1
  if accepted == count then all:callback() end
end

local server
if kind == 'http' then
  server = http.serve { handler = one_more, idle_timeout = 600 }
else
  server = net.listen('127.0.0.1', 0, function(conn)
    one_more()
    coop.await(conn:read())
  end)
end

collectgarbage()
local before = resident()
os.execute(('%s %s connect %d %d %s &'):format(arg[-1], arg[0], server.port, count, kind))
coop.await(all)
coop.await(coop.sleep(0.1))
collectgarbage()
collectgarbage()
local each = (resident() - before) / count
print(('%d connections of coop.%s: %.2f KB each'):format(count, kind, each))
os.exit()
