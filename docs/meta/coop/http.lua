---@meta coop.http

-- # HTTP
--
-- It is there where libcurl and llhttp were when coop was built.

---@class coop.http
---@field Error coop.ErrorClass what failed requests fail with, if no class of `coop.errors` fits: with libcurl's `code`
local http = {}

---@class coop.http.RequestOptions
---@field url? string `http.request` needs it
---@field method? string default "GET"
---@field headers? table<string, string|number|string[]>
---@field body? string
---@field timeout? number|false seconds for all of it; default: none
---@field connect_timeout? number seconds until there is a connection; default 30
---@field stream? boolean the body is read with `response:read()`
---@field redirects? integer|false how many are followed; default 10
---@field verify? boolean false: any certificate will do
---@field compression? boolean false: is not asked for
---@field max_body? integer bytes; default 256 MiB, of a stream none
---@field ca_file? string certificates to be trusted, instead of the system's
---@field proxy? string none by default, whatever the environment says
---@field unix_socket? string path of a socket to connect to, whatever the url says

---What came back. In a generic for it gives the blocks of a stream. To be closed, too.
---@class coop.http.Response
---@field status integer
---@field reason string
---@field version string "1.1", "2"
---@field headers table<string, string> found in any case
---@field url string where it came from in the end
---@field body string? nil of a stream
---@overload fun(): string?
local Response = {}

---Sends a request. Redirects are followed, certificates are checked, what comes compressed is
---uncompressed, connections are used again. It fires whatever the status is; for a stream, as soon as
---the response begins.
---@param options coop.http.RequestOptions
---@return coop.Deferred<coop.http.Response>
function http.request(options) end

---Gets a page: `http.request` with the url apart.
---
---```lua
---local coop = require 'coop'
---local http = require 'coop.http'
---local server = http.serve {
---  handler = function(request, response) response:write('you asked for ' .. request.path) end,
---}
---local response = coop.await(http.get('http://127.0.0.1:' .. server.port .. '/page'))
---print(response.status, response.body)
---server:close()
---```
---```
---200	you asked for /page
---```
---@param url string
---@param options? coop.http.RequestOptions
---@return coop.Deferred<coop.http.Response>
function http.get(url, options) end

---Fires with bytes of a stream's body as they come, with nil at its end. While nobody reads, the server
---is made to wait.
---@return coop.Deferred<string?>
function Response:read() end

---Ends the transfer.
function Response:close() end

---What a client asks for.
---@class coop.http.Request
---@field method string
---@field path string with its %XX undone
---@field query table<string, string> the parameters behind the `?`; their text at 1
---@field target string path and query as they came
---@field headers table<string, string> found in any case
---@field body string
---@field version string "1.1" or "1.0"
---@field peer string address and port of the client

---What a handler answers with.
---@class coop.http.Reply
---@field status integer default 200
---@field headers table<string, string|number|string[]>
local Reply = {}

---Sends a chunk; the first one sends the head too. Fires when the client keeps up.
---@param s string
---@return coop.Deferred<any>
function Reply:write(s) end

---@class coop.http.ServeOptions
---@field handler (async fun(request: coop.http.Request, response: coop.http.Reply): ...)|coop.Resource
---@field host? string default "127.0.0.1"
---@field port? integer default 0: any that is free
---@field max_line? integer bytes of a request's target; default 8 KiB
---@field max_head? integer bytes of all its headers; default 64 KiB
---@field max_body? integer bytes of its body; default 8 MiB
---@field request_timeout? number seconds for all of a request to come; default 30
---@field idle_timeout? number seconds between requests; default 75
---@field write_timeout? number seconds that a client may take nothing; default 60
---@field half_open? boolean a client that only stops sending still gets its answer
---@field backlog? integer connections that wait to be accepted

---@class coop.http.Server
---@field host string
---@field port integer?
local Server = {}

---Serves HTTP/1.1. The handler runs as a coroutine for each request; its end ends the response. It is
---cancelled when its client goes.
---@param options coop.http.ServeOptions
---@return coop.http.Server
function http.serve(options) end

---Takes no more requests; those under way are answered. Fires when the last connection is closed.
---@param seconds? number cuts off what has not ended then
---@return coop.Deferred<any>
function Server:close(seconds) end

return http
