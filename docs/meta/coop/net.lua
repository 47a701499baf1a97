---@meta coop.net

-- # Connections
--
-- A host is a name, an address, or "unix:PATH". A script that requires `luv` gets it on coop's loop.

---@class coop.net
local net = {}

---In a generic for it gives blocks as they come, nil at the end. To be closed, too.
---@class coop.net.Connection
---@field peer string address and port of the other side
---@overload fun(): string?
local Connection = {}

---@class coop.net.ConnectOptions
---@field timeout? number|false seconds for all of it; default 30

---Connects. A protocol is run as a coroutine with the connection, which is closed when it ends.
---@param host string
---@param port? integer
---@param protocol? async fun(conn: coop.net.Connection): ...
---@param options? coop.net.ConnectOptions
---@return coop.Deferred<coop.net.Connection>
function net.connect(host, port, protocol, options) end

---@class coop.net.ListenOptions
---@field backlog? integer

---@class coop.net.Server
---@field host string
---@field port integer? the port, also when any was asked for; nil of a Unix socket
local Server = {}

---Listens. The handler runs as a coroutine for each connection, which is closed when it ends; it may be a
---protocol of `flow.make_protocol`.
---
---```lua
---local coop = require 'coop'
---local net = require 'coop.net'
---local server = net.listen('127.0.0.1', 0, function(conn)
---  for block in conn do coop.await(conn:write(block)) end
---end)
---local conn = coop.await(net.connect('127.0.0.1', server.port))
---conn:write 'echo'
---coop.await(conn:shutdown())
---print(coop.await(conn:read 'a'))
---server:close()
---```
---```
---echo
---```
---@param host string
---@param port? integer 0: any that is free
---@param handler async fun(conn: coop.net.Connection): ...
---@param options? coop.net.ListenOptions
---@return coop.net.Server
function net.listen(host, port, handler, options) end

---Takes no more connections. Those that there are go on.
function Server:close() end

---Fires with what is there, nil at the end; with `n` bytes; with a line ("l"; with its end, "L"); with
---everything to the end ("a").
---@param what? integer|'l'|'L'|'a'
---@return coop.Deferred<string?>
function Connection:read(what) end

---The next block, waited for; nil at the end.
---@async
---@return string?
function Connection:next() end

---Sends the text. Fires when the peer keeps up: when no more than a bounded amount is left to be sent.
---@param s string
---@return coop.Deferred<any>
function Connection:write(s) end

---No more output. Fires when the peer has been told.
---@return coop.Deferred<any>
function Connection:shutdown() end

---No more at all; what was written is still sent.
function Connection:close() end

---Ends it at once, without regard to what is under way.
function Connection:abort() end

---The most bytes of a line that `read 'l'` takes: a longer one fails with LineTooLong.
---@param bytes integer
function Connection:set_line_max(bytes) end

---Has each read and write fail with TimeoutError after so many seconds.
---@param seconds? number nil: none
function Connection:set_timeout(seconds) end

return net
