-- Connections that are open at once, both ends in this process: what each costs in memory.
--     coop bench/net/idle.lua [COUNT, 10000]     (ulimit -n must allow twice as many descriptors)
local coop = require 'coop'
local net = require 'coop.net'

local count = tonumber(arg[1] or 10000)

local function resident()
  for line in io.lines '/proc/self/status' do
    local kb = line:match '^VmRSS:%s+(%d+)'
    if kb then return tonumber(kb) end
  end
end

local accepted = 0
local server = net.listen('127.0.0.1', 0, function(conn)
  accepted = accepted + 1
  coop.await(conn:read())
end)

collectgarbage()
local before = resident()
local conns = {}
for i = 1, count do conns[i] = coop.await(net.connect('127.0.0.1', server.port)) end
while accepted < count do coop.await(coop.sleep(0.01)) end
collectgarbage()
local after = resident()
print(('%d connections: %.1f KB for the two ends of each, handler included')
  :format(count, (after - before) / count))

for _, conn in ipairs(conns) do conn:close() end
server:close()
