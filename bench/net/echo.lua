-- An echo server for a load generator: coop bench/net/echo.lua PORT
local coop = require 'coop'
local net = require 'coop.net'

net.listen('127.0.0.1', math.tointeger(tonumber(arg[1])), function(conn)
  local ok, e = pcall(function()
    for block in conn do coop.await(conn:write(block)) end
  end)
  if not ok and not coop.errors.ConnectionLost:is(e) then error(e, 0) end
end)
