--- coop.net: TCP and Unix sockets for coroutines.
---
--- What a connection does is in C (src/lua/lnet.c). Here is what comes before: addresses, in which
--- order they are tried, and who serves a connection.

local coop, core = ...

local sockets = core.net
local errors = coop.errors

local CONNECT_TIMEOUT = 30 -- seconds, for all addresses of a name
local LINGER = 30          -- seconds that output left at a close may take
local BACKLOG = 511        -- connections that wait to be accepted
local FULL_PAUSE = 0.1     -- seconds until a listener tries again for a descriptor
local BUSY_PAUSE = 0.01    -- seconds until a Unix socket is tried again whose queue is full
local HOST_MAX = 255       -- bytes; no name is longer

---@class coop.net
local net = {}

---@class coop.net.Connection
---@field peer string "address:port", "[address]:port" or "unix:PATH"
---@field closed boolean
---@field read fun(self, what?: integer|'l'|'L'|'a'): coop.Deferred
---@field next async fun(self): string? the next block, waited for; nil at the end
---@field write fun(self, s: string): coop.Deferred
---@field shutdown fun(self): coop.Deferred
---@field close fun(self): coop.Deferred
---@field abort fun(self)
---@field set_timeout fun(self, seconds?: number): coop.net.Connection
---@field set_line_max fun(self, bytes: integer): coop.net.Connection

-- Arguments ---------------------------------------------------------------------------------------

-- What is wrong with a host, or nil.
local function host_problem(host)
  if host == '' or host == 'unix:' then return 'the host is empty' end
  if host:find('\0', 1, true) then return 'the host contains a NUL' end
end

-- The port as an integer, false when it is none; a Unix socket has no port.
local function port_of(host, port, least)
  if host:match '^unix:' then return nil end
  local n = type(port) == 'number' and math.tointeger(port)
  return n and n >= least and n <= 65535 and n or false
end

-- What is wrong with options, or nil.
local function options_problem(options, known)
  for name, value in pairs(options) do
    local valid = known[name]
    if not valid then return ("unknown option '%s'"):format(core.text(name)) end
    if not valid(value) then
      return ("option '%s' cannot be %s"):format(name, core.text(value))
    end
  end
end

local function is_timeout(v) return v == false or core.is_number(v) and v >= 0 end

local function is_count(v) return math.type(v) == 'integer' and v >= 1 end

local CONNECT_OPTIONS = { timeout = is_timeout }
local LISTEN_OPTIONS = { backlog = is_count }

-- Addresses ---------------------------------------------------------------------------------------

--- The addresses of a host that need no lookup, or nil. A path or name that is too long is a
--- failure: nil and its error.
local function known_addresses(host, port)
  local path = host:match '^unix:(.*)$'
  local address
  if path then
    address = sockets.unix_address(path)
  else
    address = sockets.address(host:match '^%[(.*)%]$' or host, port)
  end
  if address then return { address } end
  if path or #host > HOST_MAX then
    return nil, errors.ConnectionRefused {
      message = host .. ': name too long (ENAMETOOLONG)', code = 'ENAMETOOLONG', peer = host,
    }
  end
end

-- Serving -----------------------------------------------------------------------------------------

-- The connection is closed when its handler ends, however it does.
local function serve(handler, conn)
  local held <close> = conn
  return coop.await(handler(conn))
end

local function start(handler, conn)
  coop.spawn(serve, handler, conn):add_errback(core.report)
end

-- Output that is left at a close gets some time, no more.
sockets.set_linger(function(conn, closed)
  local call = coop.call_later(LINGER, conn.abort, conn)
  core.observe(closed, function()
    if call:active() then call:cancel() end
  end)
end)

-- Connecting --------------------------------------------------------------------------------------

local function connect_to(address)
  local ok, conn = pcall(coop.await, sockets.connect(address))
  while not ok and errors.ConnectionRefused:is(conn) and conn.code == 'EAGAIN' do
    coop.await(coop.sleep(BUSY_PAUSE))
    ok, conn = pcall(coop.await, sockets.connect(address))
  end
  if not ok and errors.CancelledError:is(conn) then error(conn, 0) end
  return ok, conn
end

-- Tries the addresses in order. The first failure is told of when all fail.
local connect = coop.inline_callbacks(function(host, port, protocol)
  local addresses, err = known_addresses(host, port)
  if err then error(err, 0) end
  addresses = addresses or coop.await(sockets.lookup(host, port))
  local first
  for _, address in ipairs(addresses) do
    local ok, conn = connect_to(address)
    if ok then
      if protocol then start(protocol, conn) end
      return conn
    end
    first = first or conn
  end
  error(first, 0)
end)

--- Connects to a host and port, or to "unix:PATH". A protocol is run as a coroutine with the
--- connection, which is closed when that ends: a function, or what flow.make_protocol makes.
---@param host string a name, an address, or "unix:PATH"
---@param port? integer
---@param protocol? async fun(conn: coop.net.Connection)
---@param options? { timeout?: number|false } seconds for all of it; default 30
---@return coop.Deferred of the connection
function net.connect(host, port, protocol, options)
  if type(host) ~= 'string' then core.check('connect', 1, 'host', host) end
  local problem = host_problem(host)
  if problem then core.misuse('connect', problem) end
  local number = port_of(host, port, 1)
  if number == false then core.check('connect', 2, 'port number from 1 to 65535', port) end
  if options == nil and type(protocol) == 'table' and not core.callable(protocol) then
    protocol, options = nil, protocol
  end
  if protocol ~= nil and not core.callable(protocol) then
    core.check('connect', 3, 'function', protocol)
  end
  if options == nil then options = {} end
  if type(options) ~= 'table' or coop.type(options) then
    core.check('connect', 4, 'table of options', options)
  end
  problem = options_problem(options, CONNECT_OPTIONS)
  if problem then core.misuse('connect', problem) end

  local timeout = options.timeout
  if timeout == nil then timeout = CONNECT_TIMEOUT end
  local d = connect(host, number, protocol)
  if timeout and not d.called then d:add_timeout(timeout) end
  return d
end

-- Listening ---------------------------------------------------------------------------------------

---@class coop.net.Server
---@field host string
---@field port integer? the port, also when it was asked for as 0; nil of a Unix socket
local Server = {}

--- Takes no more connections. Those that there are go on.
function Server:close()
  if coop.type(self) ~= 'Server' then core.check('close', 0, 'Server', self) end
  for _, listener in ipairs(self._listeners) do listener:close() end
end

local function server_text(self)
  local where = self.port and ('%s:%d'):format(self.host, self.port) or self.host
  return ('Server (%s)'):format(where)
end

local new_server = core.class('Server', Server, {
  __close = Server.close, __tostring = server_text,
})

-- No descriptor is left for a connection: it waits in the system's queue. What nobody holds any
-- more may have some.
local function rest(listener)
  collectgarbage()
  coop.call_later(FULL_PAUSE, listener.resume, listener)
end

local function server_addresses(host, port)
  local addresses, err = known_addresses(host, port)
  if addresses then return addresses end
  if err then return nil, err.message end
  local problem
  local d = sockets.lookup(host, port, true)
  d:add_errback(function(failure) problem = failure.value.message end)
  return d.result, problem
end

--- Listens at a host and port, or at "unix:PATH"; of a name with several addresses at all of them.
--- The name is looked up here and now: it is this machine's own. When it is not possible to
--- listen there, an error says why.
---@param host string a name, an address, or "unix:PATH"
---@param port? integer 0: any that is free
---@param handler async fun(conn: coop.net.Connection) run as a coroutine for each connection, which
--- is closed when it ends
---@param options? { backlog?: integer }
---@return coop.net.Server
function net.listen(host, port, handler, options)
  if type(host) ~= 'string' then core.check('listen', 1, 'host', host) end
  local problem = host_problem(host)
  if problem then core.misuse('listen', problem) end
  local wanted = port_of(host, port, 0)
  if wanted == false then core.check('listen', 2, 'port number from 0 to 65535', port) end
  if not core.callable(handler) then core.check('listen', 3, 'function', handler) end
  if options == nil then options = {} end
  if type(options) ~= 'table' or coop.type(options) then
    core.check('listen', 4, 'table of options', options)
  end
  problem = options_problem(options, LISTEN_OPTIONS)
  if problem then core.misuse('listen', problem) end

  local addresses
  addresses, problem = server_addresses(host, wanted)
  if not addresses then error('listen: ' .. problem, 2) end
  local server = new_server { host = host, port = wanted, _listeners = {} }
  local function accept(conn) start(handler, conn) end
  for _, address in ipairs(addresses) do
    local listener, why = sockets.listen(address, options.backlog or BACKLOG, accept, rest)
    if not listener then
      server:close()
      error(('listen: %s: %s'):format(sockets.text(address), why), 2)
    end
    table.insert(server._listeners, listener)
    server.port = server.port and listener.port
    if wanted == 0 and #addresses > 1 then break end
  end
  return server
end

return net
