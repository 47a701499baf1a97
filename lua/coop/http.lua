--- coop.http: a client on libcurl, and a server for HTTP/1.1 on llhttp and coop.net.
---
--- The client's transfers are in C (src/http/lclient.c), and so is the parser of requests
--- (src/http/lparser.c). Everything else is here: what may be said, what is answered, and who waits
--- for whom.

local coop, core = ...

local net = require 'coop.net'
local errors = coop.errors

-- The C module ------------------------------------------------------------------------------------

-- It stands where coop itself leads to, or where package.cpath looks.
local function load_native()
  for _, directory in ipairs(core.libdirs()) do
    local open = package.loadlib(directory .. '/coop_http.so', 'luaopen_coop_http')
    if open then return open() end
  end
  return require 'coop_http'
end

local native = load_native()

local REDIRECTS = 10
local CONNECT_TIMEOUT = 30          -- seconds
local MAX_RESPONSE = 256 * 1024 * 1024

local MAX_LINE = 8 * 1024           -- bytes of a request's target
local MAX_HEAD = 64 * 1024          -- bytes of all its headers
local MAX_BODY = 8 * 1024 * 1024
local REQUEST_TIMEOUT = 30          -- seconds for all of a request
local IDLE_TIMEOUT = 75             -- seconds between requests
local WRITE_TIMEOUT = 60            -- seconds that a client may take nothing
local GATHER_MAX = 64 * 1024        -- bytes kept back while a handler has not yet waited
local FAREWELL = 1                  -- seconds that a client is listened to after its last answer
local FAREWELL_BLOCKS = 64          -- and how many blocks it may still send

---@class coop.http
local http = {}

-- What went wrong, where no other class fits: the library's text and the number of its error.
---@class coop.http.Error: coop.Error
---@field code integer? libcurl's number
local HTTPError = core.error_class('HTTPError', nil, 'the request failed')
http.Error = HTTPError

-- Headers -----------------------------------------------------------------------------------------

-- Names of headers are found in any case.
local any_case = {
  __index = function(headers, name)
    return type(name) == 'string' and rawget(headers, name:lower()) or nil
  end,
}

-- What is wrong with one value of a header, or nil.
local function value_problem(name, value)
  local kind = type(value)
  if kind ~= 'string' and kind ~= 'number' then
    return ("header '%s' is a string, got %s"):format(name, kind)
  end
  if kind == 'string' and not native.istext(value) then
    return ("the value of header '%s' contains a control character"):format(name)
  end
end

-- What is wrong with a header, or nil. A value may be a list: the header is then given repeatedly.
local function header_problem(name, value)
  if type(name) ~= 'string' then
    return ('the name of a header is a string, got %s'):format(type(name))
  end
  if not native.istoken(name) then return ('%q is no name of a header'):format(name) end
  if type(value) ~= 'table' then return value_problem(name, value) end
  for _, v in ipairs(value) do
    local problem = value_problem(name, v)
    if problem then return problem end
  end
end

local function each_header(headers, f)
  for name, value in pairs(headers) do
    if type(value) == 'table' then
      for _, v in ipairs(value) do f(name, tostring(v)) end
    else
      f(name, tostring(value))
    end
  end
end

-- Options -----------------------------------------------------------------------------------------

local function is_seconds(v) return core.is_number(v) and v > 0 end
local function is_timeout(v) return v == false or is_seconds(v) end
local function is_size(v) return math.type(v) == 'integer' and v >= 0 end
local function is_boolean(v) return type(v) == 'boolean' end
local function is_string(v) return type(v) == 'string' end
local function is_table(v) return type(v) == 'table' and not coop.type(v) end

local function is_plain(v) return is_string(v) and not v:find '%c' end
local function is_path(v) return is_string(v) and v ~= '' and not v:find('\0', 1, true) end

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

-- The client --------------------------------------------------------------------------------------

-- What libcurl's numbers mean to those who tell failures apart.
local REFUSED = { [5] = true, [6] = true, [7] = true }
local LOST = { [18] = true, [52] = true, [55] = true, [56] = true }
local TIMED_OUT = 28

local function outcome_error(code, text, options)
  local url = options.url
  local class = REFUSED[code] and errors.ConnectionRefused
    or LOST[code] and errors.ConnectionLost
    or code == TIMED_OUT and errors.TimeoutError
    or HTTPError
  return class {
    message = ('%s: %s'):format(url, text), code = code, url = url,
    seconds = class == errors.TimeoutError and options.timeout or nil,
  }
end

--- What came back.
---@class coop.http.Response
---@field status integer
---@field reason string
---@field version string "1.1", "2"
---@field headers table<string, string> found in any case
---@field url string where it came from in the end
---@field body string? nil of a stream
local Response = {}

-- The Deferred of the first who reads and has not been cancelled, or nil.
local function first_reader(self)
  local waiting = self._waiting
  while waiting.first <= waiting.last do
    local d = waiting[waiting.first]
    if not d.called then return d end
    waiting[waiting.first] = nil
    waiting.first = waiting.first + 1
  end
end

-- Hands what is here to those who read.
local function fire_readers(self)
  local d = first_reader(self)
  while d do
    local data = self._transfer and self._transfer:take() or ''
    if data ~= '' then
      d:callback(data)
    elseif not self._over then
      return
    elseif self._error then
      d:errback(self._error)
    else
      d:callback(nil)
    end
    d = first_reader(self)
  end
end

local function check_stream(fname, self)
  if coop.type(self) ~= 'Response' or not rawget(self, '_waiting') then
    core.check(fname, 0, 'Response of a stream', self)
  end
end

--- Fires with bytes of the body as they come, with nil at its end. As long as nobody reads, the
--- server is not read from for longer than some buffers are filled.
---@return coop.Deferred
function Response:read()
  check_stream('read', self)
  local waiting = self._waiting
  local d = coop.Deferred()
  waiting.last = waiting.last + 1
  waiting[waiting.last] = d
  fire_readers(self)
  return d
end

--- Ends the transfer: nothing more is read.
function Response:close()
  check_stream('close', self)
  if self._over then return end
  self._over = true
  self._transfer:cancel()
  self._transfer = nil
  self._error = errors.ConnectionDone(self.url .. ': the response was closed')
  fire_readers(self)
end

local new_response = core.class('Response', Response, {
  __close = function(self) if rawget(self, '_waiting') then self:close() end end,
  __call = function(self) return coop.await(self:read()) end,
})

-- Makes a response of a head as it came: "HTTP/1.1 200 OK", and headers. Nil when it is none, which
-- libcurl does not mind.
local function parse_head(head)
  local version, status, reason = head:match '^HTTP/([%d.]+) +(%d%d%d) *([^\r\n]*)'
  if not status then return nil end
  local headers = setmetatable({}, any_case)
  local last
  for line in head:gmatch '\n([^\r\n]+)' do
    local name, value = line:match '^([^:%s]+)[ \t]*:[ \t]*(.-)[ \t]*$'
    if name then
      last = name:lower()
      local before = rawget(headers, last)
      local between = last == 'set-cookie' and '\n' or ', '
      headers[last] = before and before .. between .. value or value
    elseif last and line:find '^[ \t]' then
      headers[last] = headers[last] .. ' ' .. line:match '^[ \t]*(.-)[ \t]*$'
    end
  end
  return { version = version, status = math.tointeger(tonumber(status)), reason = reason,
    headers = headers }
end

-- A transfer has news. `state` is what it was started with: the options, the Deferred for the
-- response, whether it is streamed, and the response once there is one.
local function on_news(state, transfer, head, url, over, code, text)
  if head then
    local fields = parse_head(head)
    if not fields then
      transfer:cancel()
      if not state.d.called then
        state.d:errback(outcome_error(8, 'the head of the response is malformed', state.options))
      end
      return
    end
    fields.url = url or state.options.url
    if state.stream then
      fields._transfer, fields._over = transfer, false
      fields._waiting = { first = 1, last = 0 }
    end
    state.response = new_response(fields)
  end
  local response, d = state.response, state.d
  local err = code and code ~= 0 and outcome_error(code, text, state.options) or nil
  if state.stream and response then
    if over then response._over, response._error = true, err end
    if not d.called then d:callback(response) end
    fire_readers(response)
  elseif over and not d.called then
    if err then
      d:errback(err)
    elseif not response then
      d:errback(outcome_error(52, 'the response has no head', state.options))
    else
      response.body = transfer:take()
      d:callback(response)
    end
  end
end

local client

---@class coop.http.RequestOptions
---@field url string
---@field method? string default GET
---@field headers? table<string, string|number|string[]>
---@field body? string
---@field timeout? number|false seconds for all of it; default none
---@field connect_timeout? number seconds until there is a connection; default 30
---@field stream? boolean the body is read with response:read()
---@field redirects? integer|false how many are followed; default 10
---@field verify? boolean false: any certificate will do
---@field compression? boolean false: is not asked for
---@field max_body? integer bytes; default 256 MiB, of a stream none
---@field ca_file? string certificates to be trusted, instead of the system's
---@field proxy? string none by default, whatever the environment says
---@field unix_socket? string path of a socket to connect to, whatever the url says

local REQUEST_OPTIONS = {
  url = is_string, method = is_string, headers = is_table, body = is_string,
  timeout = is_timeout, connect_timeout = is_seconds, stream = is_boolean,
  redirects = function(v) return v == false or is_size(v) end,
  verify = is_boolean, compression = is_boolean, max_body = is_size,
  ca_file = is_path, proxy = is_plain, unix_socket = is_path,
}

-- What is wrong with a request, or nil.
local function request_problem(options)
  local url, method = options.url, options.method
  if url == nil then return 'a url is needed' end
  if url == '' or url:find '[%c ]' then
    return 'the url contains a control character or a space, or is empty'
  end
  if method and not native.istoken(method) then return 'the method contains what no method may' end
  if method == 'HEAD' and options.body then return 'a HEAD has no body' end
  for name, value in pairs(options.headers or {}) do
    local problem = header_problem(name, value)
    if problem then return problem end
  end
end

-- The headers as lines for libcurl, in which an empty one and none are told apart.
local function header_lines(options)
  local lines, typed = {}, false
  each_header(options.headers or {}, function(name, value)
    if name:lower() == 'content-type' then typed = true end
    lines[#lines + 1] = value == '' and name .. ';' or name .. ': ' .. value
  end)
  if not typed then lines[#lines + 1] = 'Content-Type:' end -- not libcurl's guess
  return lines
end

local function start(options)
  client = client or native.client(core.outside(), on_news)
  local redirects = options.redirects
  if redirects == nil then redirects = REDIRECTS end
  local state = { options = options, stream = options.stream }
  local transfer, code, text = client:start({
    url = options.url, method = options.method or 'GET', body = options.body,
    lines = header_lines(options),
    stream = options.stream, max_body = options.max_body or MAX_RESPONSE,
    timeout = options.timeout or 0, connect_timeout = options.connect_timeout or CONNECT_TIMEOUT,
    redirects = redirects or 0,
    verify = options.verify ~= false, compression = options.compression ~= false,
    ca_file = options.ca_file, proxy = options.proxy, unix_socket = options.unix_socket,
  }, state)
  if not transfer then return coop.fail(outcome_error(code, text, options)) end
  state.d = coop.Deferred(function() transfer:cancel() end)
  return state.d
end

--- Sends a request. Redirects are followed, certificates are checked, what comes compressed is
--- uncompressed, connections are used again.
---@param options coop.http.RequestOptions
---@return coop.Deferred of the response, whatever its status; of a stream as soon as it begins
function http.request(options)
  if type(options) ~= 'table' or coop.type(options) then
    core.check('request', 1, 'table of options', options)
  end
  local problem = options_problem(options, REQUEST_OPTIONS) or request_problem(options)
  if problem then core.misuse('request', problem) end
  return start(options)
end

--- Gets a page: http.request with the url apart.
---@param url string
---@param options? table those of http.request
---@return coop.Deferred of the response
function http.get(url, options)
  if type(url) ~= 'string' then core.check('get', 1, 'url', url) end
  if options ~= nil and (type(options) ~= 'table' or coop.type(options)) then
    core.check('get', 2, 'table of options', options)
  end
  local all = { url = url }
  for name, value in pairs(options or {}) do all[name] = value end
  local problem = options_problem(all, REQUEST_OPTIONS) or request_problem(all)
  if problem then core.misuse('get', problem) end
  return start(all)
end

-- The server: what is asked -----------------------------------------------------------------------

local function unescape(s)
  return (s:gsub('%%(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end))
end

local query_meta = { __tostring = function(query) return rawget(query, 1) or '' end }

-- The parameters of "a=1&b=2"; of one given repeatedly the last. The text itself is at 1.
local function parse_query(text)
  local query = setmetatable({}, query_meta)
  if text == '' then return query end
  query[1] = text
  for part in text:gmatch '[^&]+' do
    local name, value = part:match '^([^=]*)=(.*)$'
    name, value = name or part, value or ''
    query[unescape(name:gsub('%+', ' '))] = unescape(value:gsub('%+', ' '))
  end
  return query
end

--- What a client asks for.
---@class coop.http.Request
---@field method string
---@field path string with its %XX undone
---@field query table<string, string> the parameters behind the `?`; their text at 1
---@field target string path and query as they came
---@field headers table<string, string> found in any case
---@field body string
---@field version string "1.1" or "1.0"
---@field peer string address and port of the client
local function make_request(peer, method, target, minor, headers, body)
  local path, text = target, ''
  if not target:find '^/[^?%%]*$' then -- what it mostly is
    local authority, from = target:match '^%a[%w+.-]*://([^/?]*)()'
    if authority then headers.host = authority:match '[^@]*$' end -- whatever the header says
    path, text = (from and target:sub(from) or target):match '^([^?]*)%??(.*)$'
    path = from and path == '' and '/' or unescape(path)
  end
  return {
    method = method, path = path, query = parse_query(text), target = target,
    headers = setmetatable(headers, any_case), body = body,
    version = minor == 0 and '1.0' or '1.1', peer = peer,
  }
end

-- The server: what is answered --------------------------------------------------------------------

local REASONS = {
  [200] = 'OK', [201] = 'Created', [202] = 'Accepted', [204] = 'No Content',
  [206] = 'Partial Content', [301] = 'Moved Permanently', [302] = 'Found', [303] = 'See Other',
  [304] = 'Not Modified', [307] = 'Temporary Redirect', [308] = 'Permanent Redirect',
  [400] = 'Bad Request', [401] = 'Unauthorized', [403] = 'Forbidden', [404] = 'Not Found',
  [405] = 'Method Not Allowed', [408] = 'Request Timeout', [409] = 'Conflict', [410] = 'Gone',
  [413] = 'Content Too Large', [414] = 'URI Too Long', [415] = 'Unsupported Media Type',
  [417] = 'Expectation Failed', [422] = 'Unprocessable Content', [429] = 'Too Many Requests',
  [431] = 'Request Header Fields Too Large', [500] = 'Internal Server Error',
  [501] = 'Not Implemented', [502] = 'Bad Gateway', [503] = 'Service Unavailable',
  [505] = 'HTTP Version Not Supported',
}

local DAYS = { 'Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat' }
local MONTHS = {
  'Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec',
}

local date_second, date_line

-- "Date: Sun, 06 Nov 1994 08:49:37 GMT", made once a second.
local function date()
  local now = os.time()
  if now ~= date_second then
    local t = os.date('!*t', now)
    date_second = now
    date_line = ('Date: %s, %02d %s %d %02d:%02d:%02d GMT\r\n')
      :format(DAYS[t.wday], t.day, MONTHS[t.month], t.year, t.hour, t.min, t.sec)
  end
  return date_line
end

local status_lines = {} -- by status, made when first used

local function status_line(status)
  local line = status_lines[status]
  if not line then
    line = ('HTTP/1.1 %d %s\r\n'):format(status, REASONS[status] or 'Unknown')
    status_lines[status] = line
  end
  return line
end

local function nothing() end

-- The client is not there any more: its handler is not needed.
local function gone(session)
  session.gone = true
  local handling = session.handling
  if handling and not handling.called then handling:cancel() end
end

-- Sends bytes; a failure tells that the client has gone. The Deferred waits for a slow one.
local function send(session, data)
  local d = session.conn:write(data)
  if d.called then
    if d.result ~= nil then
      core.observe(d, nothing)
      session.gone = true
    end
    return d
  end
  local server = session.server
  session.deadline, session.overdue = server._ticks + server._write_ticks, 'write'
  core.observe(d, function(result)
    session.deadline = nil
    if result ~= nil then session.gone = true end
  end)
  return d
end

-- The answer to one request.
---@class coop.http.Reply
---@field status integer
---@field headers table<string, string|number|string[]>
local Reply = {}

-- Headers that say how the response is framed, or that are the server's own. Each is told of
-- in `said` rather than sent; what is wrong, if anything.
local FRAMING = {
  ['content-length'] = function(said, value)
    local digits = type(value) ~= 'table' and tostring(value):match '^%d+$'
    said.length = digits and math.tointeger(tonumber(digits))
    if not said.length then return 'Content-Length is not a count of bytes' end
  end,
  ['connection'] = function(said, value)
    said.last = type(value) == 'string' and value:lower():find('close', 1, true) ~= nil
  end,
  ['transfer-encoding'] = function()
    return "the server itself decides about 'Transfer-Encoding'"
  end,
  ['date'] = function(said, value) said.date = ('Date: %s\r\n'):format(core.text(value)) end,
}

-- Adds the script's headers to the lines of the head. What they say of its framing; or nil and what
-- is wrong with them.
local function add_headers(self, lines)
  local said = {}
  for name, value in pairs(self.headers) do
    local problem = header_problem(name, value)
    if problem then return nil, problem end
    local framing = FRAMING[name:lower()]
    if framing then
      problem = framing(said, value)
      if problem then return nil, problem end
    elseif type(value) == 'table' then
      for _, v in ipairs(value) do lines[#lines + 1] = name .. ': ' .. v .. '\r\n' end
    else
      lines[#lines + 1] = name .. ': ' .. value .. '\r\n'
    end
  end
  return said
end

local function status_problem(status)
  if math.type(status) ~= 'integer' or status < 200 or status > 999 then
    return ('the status is an integer from 200 to 999, got %s'):format(core.text(status))
  end
end

-- Decides how the body is framed, of `length` bytes, or nil when that is not known: adds to the
-- lines of the head.
local function frame(self, lines, length)
  if length and self.status ~= 204 then
    lines[#lines + 1] = 'Content-Length: ' .. length .. '\r\n'
  elseif self._bodyless or length then
    self._chunked = false
  elseif self._minor == 1 then
    self._chunked = true
    lines[#lines + 1] = 'Transfer-Encoding: chunked\r\n'
  else
    self._keep, self._until_close = false, true
  end
  if not self._keep then
    lines[#lines + 1] = 'Connection: close\r\n'
  elseif self._minor == 0 then
    lines[#lines + 1] = 'Connection: keep-alive\r\n'
  end
end

-- Makes the head, for a body of `size` bytes, or nil when that is not known yet; or nil and what is
-- wrong with it.
local function make_head(self, size)
  local session, status = self._session, self.status
  local problem = status_problem(status)
  if problem then return nil, problem end
  if type(self.headers) ~= 'table' then return nil, 'the headers are no table' end
  local lines = { status_line(status), '' }
  local said
  said, problem = add_headers(self, lines)
  if not said then return nil, problem end
  lines[2] = said.date or date()
  if said.last or session.last then self._keep = false end
  self._bodyless = self._method == 'HEAD' or status == 204 or status == 304
  local length = said.length
  if length and size and length ~= size and not self._bodyless then
    return nil, ('Content-Length is %d, the body has %d bytes'):format(length, size)
  end
  self._left = length
  local unknown = status == 304 or size == 0 and self._method == 'HEAD' -- how long it would be
  if not unknown then length = length or size end
  frame(self, lines, length)
  lines[#lines + 1] = '\r\n'
  self._sent = true
  return table.concat(lines)
end

-- Part of the body as it goes over the wire; or nil and what is wrong.
local function framed(self, s)
  if self._bodyless or s == '' then return '' end
  if self._left then
    if #s > self._left then return nil, 'more is written than Content-Length says' end
    self._left = self._left - #s
    return s
  end
  return self._chunked and ('%x\r\n%s\r\n'):format(#s, s) or s
end

-- What was kept back: mostly one piece.
local function take_kept(self)
  local kept = self._kept
  self._kept, self._size = nil, 0
  return type(kept) == 'table' and table.concat(kept) or kept or ''
end

-- Sends what was kept back and `s`. The Deferred of that; or nil and what is wrong: then nothing is
-- sent, and nothing has changed.
local function push(self, s)
  local kept, size, sent = self._kept, self._size, self._sent
  local head, body, problem = '', nil, nil
  if kept then s = take_kept(self) .. s end
  if not sent then head, problem = make_head(self, nil) end
  if head then body, problem = framed(self, s) end
  if body then return send(self._session, head .. body) end
  self._kept, self._size, self._sent = kept, size, sent
  return nil, problem
end

-- Sends what was kept back, with the head. When that cannot be, the handler is of no use.
local function flush(self)
  self._flush = nil
  if not self._kept then return end
  local d, problem = push(self, '')
  if d then return end
  self._problem = problem
  local handling = self._session.handling
  if handling and not handling.called then handling:cancel() end
end

-- Keeps the first bytes of a body back, so that they may go together with the head, or be all of
-- it: until the next turn, or, of a handler that has not waited yet, until it does.
local function keep_back(self, s, size)
  local kept = self._kept
  if not kept then
    self._kept = s
  elseif type(kept) == 'string' then
    self._kept = { kept, s }
  else
    kept[#kept + 1] = s
  end
  self._size = size
  if not self._at_once and not self._flush then self._flush = coop.call_later(0, flush, self) end
end

--- Sends a chunk. The first one sends the head too, as it is then; a response that is complete in
--- one go tells its length.
---@param s string
---@return coop.Deferred fires when the client keeps up
function Reply:write(s)
  if coop.type(self) ~= 'Reply' then core.check('write', 0, 'response of a server', self) end
  if type(s) == 'number' then s = tostring(s) end
  if type(s) ~= 'string' then core.check('write', 1, 'string', s) end
  if self._ended or self._session.gone then
    local d = coop.fail(errors.ConnectionDone 'the response has ended, or its client has gone')
    core.observe(d, nothing)
    return d
  end
  local size = self._size + #s
  if not self._sent and size <= GATHER_MAX then
    keep_back(self, s, size)
    return coop.succeed()
  end
  local d, problem = push(self, s)
  if not d then core.misuse('write', problem) end
  return d
end

local new_reply = core.class('Reply', Reply)

-- The usual answer, whose body is all there: its bytes; nil of any other.
local function usual_answer(self, body)
  local status = self.status
  if status == 204 or status == 304 or self._method == 'HEAD' or status_problem(status) then
    return nil
  end
  local keep = self._keep and not self._session.last
  local connection = not keep and 'Connection: close\r\n'
    or self._minor == 0 and 'Connection: keep-alive\r\n' or ''
  local bytes = native.answer(status_line(status), date(), self.headers, connection, body)
  if bytes then self._keep, self._sent = keep, true end
  return bytes
end

-- The end of a response: whatever is not sent yet. What is wrong, if anything.
local function finish(self)
  if self._sent then
    if self._chunked then send(self._session, '0\r\n\r\n') end
    if self._left and self._left > 0 and not self._bodyless then
      return 'less was written than Content-Length says'
    end
    return
  end
  local body = take_kept(self)
  local whole = usual_answer(self, body)
  if whole then
    send(self._session, whole)
    return
  end
  local head, problem = make_head(self, #body)
  if not head then return problem end
  send(self._session, self._bodyless and head or head .. body)
end

-- A whole response of the server's own, to a request that has failed.
local function send_plain(session, status, reason, keep, bodyless)
  local body = reason .. '\n'
  send(session, table.concat {
    status_line(status), date(), 'Content-Type: text/plain\r\n',
    ('Content-Length: %d\r\n'):format(#body), keep and '' or 'Connection: close\r\n', '\r\n',
    bodyless and '' or body,
  })
end

-- The server: conversations -----------------------------------------------------------------------

local function set_deadline(session, ticks, why)
  session.deadline, session.overdue = session.server._ticks + ticks, why
end

-- Waits for bytes; nil when there are no more.
local function next_bytes(session)
  local ahead, ok, data = session.ahead
  session.ahead = nil
  if ahead then ok, data = pcall(coop.await, ahead) else ok, data = pcall(session.conn) end
  return ok and data or nil
end

-- While a handler waits, what comes next is read ahead, one block: so it is seen when the client
-- goes.
local function listen_on(session)
  if session.ahead then return end
  local ahead = session.conn:read()
  session.ahead = ahead
  core.observe(ahead, function(result)
    local failed = coop.type(result) == 'Failure'
    if failed or result == nil and not session.server._half_open then gone(session) end
  end)
end

-- The handler has failed.
local function fail(reply, failure)
  local session = reply._session
  if session.gone then
    local e = failure.value
    if errors.ConnectionLost:is(e) or errors.ConnectionDone:is(e) then return end
  end
  if not errors.CancelledError:is(failure.value) then core.report(failure) end
  if session.gone then return end
  if not reply._sent then
    send_plain(session, 500, 'Internal Server Error', reply._keep, reply._method == 'HEAD')
    return
  end
  reply._keep = false
  if reply._until_close then session.conn:abort() end -- else its end could be taken for the body's
end

-- Waits for the end of a handler.
local function wait_for(session, handling, reply)
  session.handling = handling
  reply._at_once = false
  flush(reply)
  listen_on(session)
  if not handling.called then pcall(coop.await, handling) end
  session.handling = nil
  if reply._flush and reply._flush:active() then reply._flush:cancel() end
  reply._flush = nil
end

-- Waits until a slow client has taken the answer.
local function drain(session)
  if session.gone then return end
  local d = session.conn:write ''
  if not d.called then pcall(coop.await, d) else core.observe(d, nothing) end
end

-- Answers a request. False when the connection is to be closed.
local function answer(session, method, target, minor, headers, body, keep)
  local server = session.server
  session.deadline = nil
  local reply = new_reply {
    status = 200, headers = {},
    _session = session, _method = method, _minor = minor, _keep = keep and not session.last,
    _at_once = true, _size = 0,
  }
  local request = make_request(session.conn.peer, method, target, minor, headers, body)
  local handling = server._handle(request, reply)
  if not handling.called then wait_for(session, handling, reply) end
  local failure = handling.result
  if reply._problem then
    core.observe(handling, nothing)
    fail(reply, coop.Failure('the response: ' .. reply._problem))
  elseif coop.type(failure) == 'Failure' then
    core.observe(handling, nothing)
    fail(reply, failure)
  elseif not session.gone then
    local problem = finish(reply)
    if problem then fail(reply, coop.Failure('the response: ' .. problem)) end
  end
  reply._ended = true
  if not reply._keep or session.gone then return false end
  if session.deadline then drain(session) end
  return not session.gone
end

-- The last answer has been sent. The connection is not closed before the client does so, or a
-- moment has passed: one that is still sending would else lose the answer with it.
local function farewell(session)
  if session.gone then return end
  session.idle = false
  set_deadline(session, session.server._farewell_ticks, 'farewell')
  local d = session.conn:shutdown()
  if not d.called then pcall(coop.await, d) else core.observe(d, nothing) end
  local left = FAREWELL_BLOCKS
  while left > 0 and next_bytes(session) do left = left - 1 end
end

local function converse(session)
  local server, parser = session.server, session.parser
  set_deadline(session, server._request_ticks, 'request')
  while true do
    local event, a, b, c, d, e, f = parser:next()
    if event == 'request' then
      session.idle = false
      if not answer(session, a, b, c, d, e, f) or session.last then return farewell(session) end
      session.idle = not parser:begun()
      if session.idle then set_deadline(session, server._idle_ticks, 'idle')
      else set_deadline(session, server._request_ticks, 'request') end
    elseif event == 'error' then
      send_plain(session, a, b, false)
      return farewell(session)
    elseif event == 'continue' then
      send(session, 'HTTP/1.1 100 Continue\r\n\r\n')
    else
      local data = next_bytes(session)
      if not data then return end
      if session.idle then
        session.idle = false
        set_deadline(session, server._request_ticks, 'request')
      end
      parser:feed(data)
    end
  end
end

-- It takes too long.
local function expire(session)
  local conn = session.conn
  session.deadline = nil
  if session.overdue == 'write' then
    gone(session)
    conn:abort()
  else
    if session.overdue == 'request' and session.parser:begun() then
      send_plain(session, 408, 'Request Timeout', false)
    end
    session.last = true
    conn:close()
  end
end

-- Once a tick, as long as there are conversations.
local function sweep(server)
  server._ticks = server._ticks + 1
  for session in pairs(server._sessions) do
    if session.deadline and session.deadline < server._ticks then expire(session) end
  end
  server._sweep = next(server._sessions) and coop.call_later(server._tick, sweep, server) or nil
end

-- Also when the state is closed: the handler, if there is one still, is closed with it.
local function leave(session)
  local server = session.server
  session.handling = nil
  server._sessions[session] = nil
  session.conn:close()
  if next(server._sessions) then return end
  if server._sweep and server._sweep:active() then
    server._sweep:cancel()
    server._sweep = nil
  end
  if server._drained and not server._drained.called then server._drained:callback() end
end

local session_meta = { __close = leave }

local function accept(server, conn)
  local session <close> = setmetatable({
    server = server, conn = conn, idle = true,
    parser = native.parser(server._max_line, server._max_head, server._max_body),
  }, session_meta)
  server._sessions[session] = true
  if not server._sweep then server._sweep = coop.call_later(server._tick, sweep, server) end
  converse(session)
end

-- The server itself -------------------------------------------------------------------------------

---@class coop.http.Server
---@field port integer?
---@field host string
local Server = {}

--- Takes no more connections and no more requests; those under way are answered. Given a time, it
--- cuts off what has not ended then.
---@param seconds? number
---@return coop.Deferred fires when the last connection is closed
function Server:close(seconds)
  if coop.type(self) ~= 'HTTPServer' then core.check('close', 0, 'HTTPServer', self) end
  if seconds ~= nil and not (core.is_number(seconds) and seconds >= 0) then
    core.check('close', 1, 'number of seconds', seconds)
  end
  if not self._closed then
    self._closed = true
    self._listener:close()
  end
  local idle = {}
  for session in pairs(self._sessions) do
    session.last = true
    if session.idle then idle[#idle + 1] = session end
  end
  for _, session in ipairs(idle) do session.conn:close() end
  local drained = coop.Deferred()
  if not next(self._sessions) then
    drained:callback()
    return drained
  end
  if self._drained then self._drained:chain_deferred(drained) end
  self._drained = drained
  if seconds then
    local call = coop.call_later(seconds, function()
      local rest = {}
      for session in pairs(self._sessions) do rest[#rest + 1] = session end
      for _, session in ipairs(rest) do
        gone(session)
        session.conn:abort()
      end
    end)
    core.observe(drained, function() if call:active() then call:cancel() end end)
  end
  return drained
end

local new_server = core.class('HTTPServer', Server, {
  __close = function(self) self:close() end,
  __tostring = function(self) return ('HTTPServer (%s:%s)'):format(self.host, self.port) end,
})

local function is_handler(v)
  return core.callable(v) or is_table(v) and core.callable(v._handle)
end

---@class coop.http.ServeOptions
---@field handler fun(request: coop.http.Request, response: coop.http.Reply)|table
---@field host? string default 127.0.0.1; "unix:PATH"
---@field port? integer default 0: any that is free
---@field max_line? integer bytes of a request's target; default 8 KiB
---@field max_head? integer bytes of all its headers; default 64 KiB
---@field max_body? integer default 8 MiB
---@field request_timeout? number seconds for all of a request to come; default 30
---@field idle_timeout? number seconds between requests; default 75
---@field write_timeout? number seconds that a client may take nothing; default 60
---@field half_open? boolean a client that only stops sending still gets its answer
---@field backlog? integer connections that wait to be accepted

local SERVE_OPTIONS = {
  host = is_string, port = is_size, handler = is_handler,
  max_line = is_size, max_head = is_size, max_body = is_size,
  request_timeout = is_seconds, idle_timeout = is_seconds, write_timeout = is_seconds,
  half_open = is_boolean, backlog = is_size,
}

--- Serves HTTP/1.1. The handler runs as a coroutine for each request; its end ends the response. It
--- is cancelled when its client goes; one that only stops sending counts as gone, unless half_open.
--- A handler may be an object with a method _handle(request, response).
---@param options coop.http.ServeOptions
---@return coop.http.Server
function http.serve(options)
  if type(options) ~= 'table' or coop.type(options) then
    core.check('serve', 1, 'table of options', options)
  end
  local problem = options_problem(options, SERVE_OPTIONS)
  if not problem and options.handler == nil then problem = 'a handler is needed' end
  if problem then core.misuse('serve', problem) end
  local request = options.request_timeout or REQUEST_TIMEOUT
  local idle = options.idle_timeout or IDLE_TIMEOUT
  local write = options.write_timeout or WRITE_TIMEOUT
  local tick = math.min(1, math.max(0.01, math.min(request, idle, write) / 4))
  local handler = options.handler
  local function handle(...) return handler:_handle(...) end
  local server = new_server {
    host = options.host or '127.0.0.1',
    _handle = coop.coroutine(core.callable(handler) and handler or handle),
    _sessions = {}, _closed = false, _half_open = options.half_open or false,
    _max_line = options.max_line or MAX_LINE, _max_head = options.max_head or MAX_HEAD,
    _max_body = options.max_body or MAX_BODY,
    _tick = tick, _ticks = 0,
    _request_ticks = math.ceil(request / tick), _idle_ticks = math.ceil(idle / tick),
    _write_ticks = math.ceil(write / tick), _farewell_ticks = math.ceil(FAREWELL / tick),
  }
  local ok, listener = pcall(net.listen, server.host, options.port or 0,
    function(conn) return accept(server, conn) end, { backlog = options.backlog })
  if not ok then error('serve: ' .. core.text(listener), 2) end
  server._listener, server.port = listener, listener.port
  return server
end

return http
