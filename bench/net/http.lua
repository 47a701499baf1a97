-- A server that says hello, for a load generator: coop bench/net/http.lua PORT
local http = require 'coop.http'

http.serve { port = math.tointeger(tonumber(arg[1])), handler = function(_, response)
  response.headers['Content-Type'] = 'text/plain'
  response:write 'hello\n'
end }
