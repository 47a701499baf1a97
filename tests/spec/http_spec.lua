local child = require 'tests.spec.child'
local coop = require 'coop'
local http = require 'coop.http'
local net = require 'coop.net'
local helper = require 'tests.spec.helper'

local misuse, is_error = helper.misuse, helper.is_error
local errors = coop.errors

--- Wraps a test that waits; one that waits for ever fails.
local function run(f)
  return helper.run(function()
    coop.await(coop.inline_callbacks(f)():add_timeout(30))
  end)
end

local servers

-- A server for the test, closed behind it.
local function serve(handler, options)
  local all = { handler = handler }
  for name, value in pairs(options or {}) do all[name] = value end
  local server = http.serve(all)
  servers[#servers + 1] = server
  return server, ('http://127.0.0.1:%d'):format(server.port)
end

-- A peer that knows nothing of HTTP: f(conn) for each connection.
local function raw_server(f)
  local server = net.listen('127.0.0.1', 0, f)
  servers[#servers + 1] = server
  return ('http://127.0.0.1:%d'):format(server.port)
end

local function raw(server) return coop.await(net.connect('127.0.0.1', server.port)) end

-- All that a server says to these bytes, until it closes; `half`: they are all that is sent.
local function say(server, bytes, half)
  local conn <close> = raw(server)
  coop.await(conn:write(bytes))
  if half then coop.await(conn:shutdown()) end
  local d = conn:read 'a'
  d:add_timeout(5)
  local ok, answer = pcall(coop.await, d)
  return ok and answer or nil, answer
end

local function failure_of(d)
  local ok, e = pcall(coop.await, d)
  assert.is_false(ok, 'it did not fail')
  return e
end

-- Waits until `f()` is true.
local function eventually(f)
  for _ = 1, 500 do
    if f() then return end
    coop.await(coop.sleep(0.01))
  end
  error('it never came', 2)
end

-- The number that `f()` comes to rest at: it has stayed so for some turns of the loop.
local function at_rest(f)
  local last, same = f(), 0
  while same < 5 do
    coop.await(coop.sleep(0.02))
    local now = f()
    last, same = now, now == last and same + 1 or 0
  end
  return last
end

local function hello(_, response) response:write 'hello' end

local function descriptors()
  local pipe = io.popen 'ls /proc/$PPID/fd | wc -l'
  local n = tonumber((pipe:read 'a'))
  pipe:close()
  return n
end

before_each(helper.fresh)
before_each(function()
  servers = {}
end)
after_each(run(function()
  for _, server in ipairs(servers) do server:close() end
  coop.await(coop.sleep(0))
end))

describe('the client', function()
  it('gets a page', run(function()
    local _, base = serve(function(_, response)
      response.headers['X-Colour'] = 'blue'
      response:write 'hello'
    end)
    local response = coop.await(http.get(base .. '/page'))
    assert.equal(200, response.status)
    assert.equal('OK', response.reason)
    assert.equal('hello', response.body)
    assert.equal('blue', response.headers['x-colour'])
    assert.equal('blue', response.headers['X-COLOUR'])
    assert.is_nil(response.headers.nothing)
    assert.equal(base .. '/page', response.url)
    assert.equal('Response', coop.type(response))
  end))

  it('sends a method, headers and a body', run(function()
    local seen
    local _, base = serve(function(request, response)
      seen = request
      response.status = 201
    end)
    local response = coop.await(http.request {
      url = base .. '/a%20b?x=1&y=a%26b', method = 'PUT', body = 'some\0bytes',
      headers = { ['X-One'] = 'eins', ['X-Number'] = 7, ['Content-Type'] = 'text/plain' },
    })
    assert.equal(201, response.status)
    assert.equal('', response.body)
    assert.equal('PUT', seen.method)
    assert.equal('/a b', seen.path)
    assert.equal('/a%20b?x=1&y=a%26b', seen.target)
    assert.equal('1', seen.query.x)
    assert.equal('a&b', seen.query.y)
    assert.equal('x=1&y=a%26b', tostring(seen.query))
    assert.equal('some\0bytes', seen.body)
    assert.equal('eins', seen.headers['X-One'])
    assert.equal('7', seen.headers['x-number'])
    assert.equal('text/plain', seen.headers['content-type'])
    assert.truthy(seen.peer:find '^127%.0%.0%.1:%d+$')
  end))

  it('fails when nobody listens, when there is no such name, and when it takes too long',
    run(function()
      is_error(errors.ConnectionRefused, failure_of(http.get 'http://127.0.0.1:1/'), '127.0.0.1')
      is_error(errors.ConnectionRefused, failure_of(http.get 'http://nothing.invalid/'))
      local _, base = serve(function() coop.await(coop.sleep(5)) end)
      local e = is_error(errors.TimeoutError, failure_of(http.get(base, { timeout = 0.05 })))
      assert.equal(0.05, e.seconds)
    end))

  it('fails when the peer vanishes: at once, in the head, in the body', run(function()
    for _, text in ipairs { '', 'HTTP/1.1 200 OK\r\nX: ',
      'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab' } do
      local base = raw_server(function(conn)
        coop.await(conn:read())
        coop.await(conn:write(text))
      end)
      is_error(errors.ConnectionLost, failure_of(http.get(base)))
    end
  end))

  it('tells of what is no HTTP', run(function()
    local head
    local base = raw_server(function(conn)
      coop.await(conn:read())
      coop.await(conn:write(head .. '\r\nX: y\r\nContent-Length: 0\r\n\r\n'))
    end)
    for _, malformed in ipairs { 'HTTP/1.1 banana', 'HTTP/b1.1 302 Found', 'HT/1.1 200 OK' } do
      head = malformed
      for _, stream in ipairs { false, true } do
        local e = failure_of(http.get(base, { stream = stream }))
        assert.truthy(http.Error:is(e) or errors.ConnectionLost:is(e), tostring(e))
      end
    end
    is_error(http.Error, failure_of(http.get 'ftp://127.0.0.1/'), 'ftp')
    assert.equal(coop.errors.HTTPError, http.Error)
  end))

  it('follows redirects, up to a number', run(function()
    local _, base = serve(function(request, response)
      local n = math.tointeger(tonumber(request.path:match '%d+'))
      if n == 0 then
        response:write('here by ' .. request.method)
      else
        response.status, response.headers.Location = 302, '/' .. (n < 0 and n or n - 1)
      end
    end)
    local response = coop.await(http.get(base .. '/3'))
    assert.equal('here by GET', response.body)
    assert.equal(base .. '/0', response.url)
    response = coop.await(http.request { url = base .. '/1', method = 'POST', body = 'x' })
    assert.equal('here by GET', response.body)
    is_error(http.Error, failure_of(http.get(base .. '/11')), 'redirect')
    is_error(http.Error, failure_of(http.get(base .. '/3', { redirects = 2 })))
    response = coop.await(http.get(base .. '/3', { redirects = false }))
    assert.equal(302, response.status)
    local stream = coop.await(http.get(base .. '/3', { stream = true }))
    assert.equal(200, stream.status)
    assert.equal('here by GET', coop.await(stream:read()))
  end))

  it('keeps method and body, or gets what is to be seen elsewhere, as a redirect says',
    run(function()
      local _, base = serve(function(request, response)
        local status = tonumber(request.path:match '^/(%d+)$')
        if status then response.status, response.headers.Location = status, '/x' end
        response:write(request.method .. ' ' .. request.body)
      end)
      local same = { [301] = '', [302] = '', [303] = 'GET ', [307] = '', [308] = '' }
      for status, other in pairs(same) do
        for _, method in ipairs { 'PUT', 'PATCH', 'DELETE', 'GET', 'OPTIONS' } do
          local response = coop.await(http.request {
            url = ('%s/%d'):format(base, status), method = method, body = 'data',
          })
          assert.equal(other == '' and method .. ' data' or other, response.body, status)
        end
        local url = ('%s/%d'):format(base, status)
        local response = coop.await(http.request { url = url, method = 'DELETE' })
        assert.equal(other == '' and 'DELETE ' or other, response.body, status)
        response = coop.await(http.request { url = url, method = 'HEAD' })
        assert.same({ 200, '' }, { response.status, response.body })
        response = coop.await(http.request { url = url, method = 'POST', body = 'data' })
        assert.equal(status > 303 and 'POST data' or 'GET ', response.body)
      end
    end))

  it('takes a redirect to nowhere as it is', run(function()
    local _, base = serve(function(_, response)
      response.status, response.headers.Location = 302, ''
      response:write 'here'
    end)
    local response = coop.await(http.get(base))
    assert.same({ 302, 'here' }, { response.status, response.body })
  end))

  it('streams, and does not read ahead of its reader for long', run(function()
    local block, written, total = ('x'):rep(65536), 0, 512
    local _, base = serve(function(_, response)
      for _ = 1, total do
        coop.await(response:write(block))
        written = written + 1
      end
    end)
    local response = coop.await(http.get(base, { stream = true }))
    assert.is_nil(response.body)
    assert.is_true(at_rest(function() return written end) < total,
      'all was sent to who does not read')
    local size = 0
    for chunk in response do size = size + #chunk end
    assert.equal(total * #block, size)
    assert.is_nil(coop.await(response:read()))
  end))

  it('gives a streamed response as soon as it begins, and its failure to who reads',
    run(function()
      local go_on = coop.Deferred()
      local base = raw_server(function(conn)
        coop.await(conn:read())
        coop.await(conn:write 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n')
        coop.await(go_on)
        coop.await(conn:write 'abc')
      end)
      local response = coop.await(http.get(base, { stream = true }))
      local first, second = response:read(), response:read()
      assert.is_false(first.called)
      go_on:callback()
      assert.equal('abc', coop.await(first))
      is_error(errors.ConnectionLost, failure_of(second))
      is_error(errors.ConnectionLost, failure_of(response:read()))
    end))

  it('gives a cancelled reader\'s bytes to the next', run(function()
    local go_on = coop.Deferred()
    local _, base = serve(function(_, response)
      coop.await(response:write 'a')
      coop.await(go_on)
      response:write 'b'
    end)
    local response = coop.await(http.get(base, { stream = true }))
    assert.equal('a', coop.await(response:read()))
    local cancelled, next_one = response:read(), response:read()
    cancelled:cancel()
    is_error(errors.CancelledError, failure_of(cancelled))
    go_on:callback()
    assert.equal('b', coop.await(next_one))
    assert.is_nil(coop.await(response:read()))
  end))

  it('lets go of the peer when it is cancelled, closed or forgotten', run(function()
    local begun, left = 0, 0
    local _, base = serve(function(_, response)
      local cleanup <close> = setmetatable({}, { __close = function() left = left + 1 end })
      begun = begun + 1
      for _ = 1, 1000 do
        coop.await(response:write(('x'):rep(65536)))
        coop.await(coop.sleep(0))
      end
    end)
    local d = http.get(base)
    eventually(function() return begun == 1 end)
    d:cancel()
    is_error(errors.CancelledError, failure_of(d))
    eventually(function() return left == 1 end)
    do
      local response <close> = coop.await(http.get(base, { stream = true }))
      coop.await(response:read())
      local waiting = response:read()
      response:close()
      pcall(coop.await, waiting)
    end
    eventually(function() return left == 2 end)
    coop.await(http.get(base, { stream = true }))
    coop.await(coop.sleep(0.1)) -- its buffers are full: nobody else holds it
    eventually(function()
      collectgarbage()
      return left == 3
    end)
  end))

  it('uses connections again, and never takes a late answer for another', run(function()
    local peers = {}
    local _, base = serve(function(request, response)
      peers[request.path] = request.peer
      if request.path == '/late' then coop.await(coop.sleep(0.1)) end
      response:write(request.path)
    end)
    coop.await(http.get(base .. '/1'))
    coop.await(http.get(base .. '/2'))
    assert.equal(peers['/1'], peers['/2'])
    is_error(errors.TimeoutError, failure_of(http.get(base .. '/late', { timeout = 0.03 })))
    for i = 3, 6 do
      assert.equal('/' .. i, coop.await(http.get(base .. '/' .. i)).body)
      coop.await(coop.sleep(0.03))
    end
  end))

  it('has many requests under way at once', run(function()
    local now, most = 0, 0
    local _, base = serve(function(request, response)
      now = now + 1
      most = math.max(most, now)
      coop.await(coop.sleep(0.02))
      now = now - 1
      response:write(request.query.n)
    end)
    local numbers = {}
    for i = 1, 60 do numbers[i] = i end
    local pages = coop.await(coop.parallel(8, numbers, function(n)
      return http.get(base .. '/?n=' .. n)
    end))
    for i = 1, 60 do assert.equal(tostring(i), pages[i].body) end
    assert.is_true(most <= 8 and most > 1)
  end))

  it('bounds what it keeps', run(function()
    local _, base = serve(function(_, response) response:write(('x'):rep(1000)) end)
    is_error(http.Error, failure_of(http.get(base, { max_body = 999 })), 'max_body')
    assert.equal(1000, #coop.await(http.get(base, { max_body = 1000 })).body)
    local endless = raw_server(function(conn)
      coop.await(conn:read())
      pcall(function()
        coop.await(conn:write 'HTTP/1.1 200 OK\r\n')
        for i = 1, 20000 do coop.await(conn:write(('X-%d: %s\r\n'):format(i, ('y'):rep(100)))) end
      end)
    end)
    assert.is_false(pcall(coop.await, http.get(endless)))
  end))

  it('uncompresses', run(function()
    local packed = '1f8b0800000000000203cb48cdc9c95748cbcf0700ec83fb6209000000'
    local bytes = packed:gsub('%x%x', function(h) return string.char(tonumber(h, 16)) end)
    local asked
    local _, base = serve(function(request, response)
      asked = request.headers['accept-encoding']
      response.headers['Content-Encoding'] = 'gzip'
      response:write(bytes)
    end)
    assert.equal('hello foo', coop.await(http.get(base)).body)
    assert.truthy(asked:find 'gzip')
    assert.equal(bytes, coop.await(http.get(base, { compression = false })).body)
    assert.is_nil(asked)
  end))

  it('joins headers given repeatedly; a HEAD has no body', run(function()
    local _, base = serve(function(request, response)
      response.headers['X-List'] = { 'a', 'b' }
      response.headers['Set-Cookie'] = { 'a=1', 'b=2' }
      response:write(request.headers['x-many'])
    end)
    local response = coop.await(http.get(base, { headers = { ['X-Many'] = { 'one', 'two' } } }))
    assert.equal('a, b', response.headers['x-list'])
    assert.equal('a=1\nb=2', response.headers['set-cookie'])
    assert.equal('one, two', response.body)
    response = coop.await(http.request {
      url = base, method = 'HEAD', headers = { ['X-Many'] = 'x' },
    })
    assert.equal('', response.body)
    assert.equal('1', response.headers['content-length'])
  end))

  it('refuses misuse', run(function()
    misuse(function() http.get() end, 'get', 'url')
    misuse(function() http.get(5) end, 'get', 'url')
    misuse(function() http.get('http://a/', 5) end, 'get', 'table')
    misuse(function() http.get('http://a/', { colour = 1 }) end, 'colour')
    misuse(function() http.get('http://a/', { timeout = -1 }) end, 'timeout')
    misuse(function() http.get('http://a/', { timeout = 0 / 0 }) end, 'timeout')
    misuse(function() http.request 'http://a/' end, 'request', 'table')
    misuse(function() http.request {} end, 'request', 'url')
    misuse(function() http.request { url = 'http://a/', method = 'HEAD', body = '' } end, 'HEAD')
    for _, bad in ipairs { '\r\n', '\n', '\r', '\0', ' ' } do
      misuse(function() http.get('http://a/' .. bad .. 'b') end, 'url')
      misuse(function() http.request { url = 'http://a/', method = 'G' .. bad } end, 'method')
      misuse(function() http.get('http://a/', { headers = { ['X' .. bad] = 'y' } }) end, 'header')
      if bad ~= ' ' then
        misuse(function() http.get('http://a/', { headers = { X = 'y' .. bad } }) end, "'X'")
        misuse(function() http.get('http://a/', { headers = { X = { 'y' .. bad } } }) end, "'X'")
      end
    end
    misuse(function() http.get('http://a/', { headers = { X = true } }) end, "'X'")
    misuse(function() http.get('http://a/', { headers = { 'X: y' } }) end, 'header')
  end))
end)

local function get(path, more)
  return ('GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n'):format(path, more or '')
end

-- A POST with these headers, and what follows them.
local function post(more, rest)
  return 'POST / HTTP/1.1\r\nHost: a\r\n' .. more .. '\r\n' .. (rest or '')
end

local LENGTH, CHUNKED = 'Content-Length: 3\r\n', 'Transfer-Encoding: chunked\r\n'

local function status_of(answer) return answer and tonumber(answer:match '^HTTP/1%.1 (%d+)') end

describe('the server', function()
  it('answers with date and length, in keep-alive', run(function()
    local server = serve(hello)
    local conn <close> = raw(server)
    for _ = 1, 3 do
      coop.await(conn:write(get '/'))
      local head = {}
      for line in function() return coop.await(conn:read 'l') end do
        line = line:gsub('\r$', '')
        if line == '' then break end
        head[#head + 1] = line
      end
      assert.equal('HTTP/1.1 200 OK', head[1])
      local text = table.concat(head, '\n')
      assert.truthy(text:find('Content-Length: 5', 1, true))
      assert.truthy(text:find '\nDate: %a%a%a, %d%d %a%a%a %d%d%d%d %d%d:%d%d:%d%d GMT')
      assert.equal('hello', coop.await(conn:read(5)))
    end
  end))

  it('closes when it is asked to, and after an HTTP/1.0 that does not ask otherwise',
    run(function()
      local server = serve(hello)
      local answer = say(server, get('/', 'Connection: close\r\n'))
      assert.truthy(answer:find 'Connection: close\r\n')
      answer = say(server, 'GET / HTTP/1.0\r\n\r\n')
      assert.truthy(answer:find '\r\n\r\nhello$')
      answer = say(server, 'GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n')
      local _, count = answer:gsub('HTTP/1.1 200', '')
      assert.equal(2, count)
      assert.truthy(answer:find 'Connection: keep%-alive\r\n')
    end))

  it('answers pipelined requests in order, slow ones too', run(function()
    local server = serve(function(request, response)
      if request.path == '/1' then coop.await(coop.sleep(0.05)) end
      response:write('<' .. request.path .. request.body .. '>')
    end, { half_open = true })
    local plain = 'POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc'
    local chunked = 'POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n' ..
      '2;x=y\r\nde\r\n1\r\nf\r\n0\r\nTrailer: x\r\n\r\n'
    local answer = say(server, get '/1' .. plain .. chunked .. get '/4', true)
    local seen = {}
    for part in answer:gmatch '<(.-)>' do seen[#seen + 1] = part end
    assert.equal('/1 /2abc /3def /4', table.concat(seen, ' '))
  end))

  it('takes a request byte by byte', run(function()
    local server = serve(function(request, response) response:write(request.body) end)
    local conn <close> = raw(server)
    local text = 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n' ..
      'Connection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n'
    for i = 1, #text do
      coop.await(conn:write(text:sub(i, i)))
      coop.await(coop.sleep(0))
    end
    assert.truthy(coop.await(conn:read 'a'):find 'abc$')
  end))

  it('sends what comes later in chunks, to HTTP/1.0 until it closes', run(function()
    local server = serve(function(_, response)
      response:write 'one '
      coop.await(coop.sleep(0.01))
      response:write 'two '
      response:write ''
      coop.await(coop.sleep(0.01))
      response:write 'three'
    end)
    local answer = say(server, get('/', 'Connection: close\r\n'))
    assert.truthy(answer:find('4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n', 1, true))
    answer = say(server, 'GET / HTTP/1.0\r\n\r\n')
    assert.truthy(answer:find '\r\n\r\none two three$')
    assert.is_nil(answer:find 'Transfer')
  end))

  it('sends no body to HEAD, nor with 204 and 304', run(function()
    local server = serve(function(request, response)
      response.status = tonumber(request.path:sub(2))
      response:write 'hello'
      if request.query.slow then
        coop.await(coop.sleep(0))
        response:write 'world'
      end
    end)
    local head = 'HEAD %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n'
    local answer = say(server, head:format '/200')
    assert.truthy(answer:find 'Content%-Length: 5\r\n')
    assert.truthy(answer:find '\r\n\r\n$')
    answer = say(server, head:format '/200?slow=1')
    assert.truthy(answer:find '\r\n\r\n$')
    answer = say(serve(function() end), head:format '/') -- what a GET would get is not known
    assert.equal(200, status_of(answer))
    assert.is_nil(answer:find 'Length')
    for _, status in ipairs { 204, 304 } do
      answer = say(server, get(('/%d'):format(status), 'Connection: close\r\n'))
      assert.equal(status, status_of(answer))
      assert.truthy(answer:find '\r\n\r\n$')
      assert.is_nil(answer:find 'Length')
    end
  end))

  it('says 100 Continue to who waits for it, and only then', run(function()
    local server = serve(function(request, response) response:write(request.body) end)
    local conn <close> = raw(server)
    local head = 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n' ..
      'Connection: close\r\n\r\n'
    coop.await(conn:write(head))
    assert.equal('HTTP/1.1 100 Continue\r\n\r\n', coop.await(conn:read()))
    coop.await(conn:write 'abc')
    assert.truthy(coop.await(conn:read 'a'):find '^HTTP/1.1 200.*abc$')
    assert.equal(200, status_of(say(server, head .. 'abc')))
    assert.equal(417, status_of(say(server, (head:gsub('100%-continue', 'magic')))))
    local big = head:gsub('Length: 3', 'Length: 999999999')
    assert.equal(413, status_of(say(server, big)))
  end))

  it('refuses what could be read in two ways', run(function()
    local count = 0
    local server = serve(function(_, response)
      count = count + 1
      response:write 'ok'
    end)
    local bad = {
      { 400, post(LENGTH .. CHUNKED, '0\r\n\r\n') },
      { 400, post(CHUNKED .. LENGTH, '0\r\n\r\n') },
      { 400, post('Content-Length: 3\r\nContent-Length: 4\r\n', 'abcd') },
      { 400, post('Content-Length: 3\r\nContent-Length: 3\r\n', 'abc') },
      { 400, post('Content-Length: 3, 3\r\n', 'abc') },
      { 400, post('Content-Length: -1\r\n') },
      { 400, post('Content-Length: +5\r\n', 'abcde') },
      { 400, post('Content-Length: 0x10\r\n') },
      { 400, post('Content-Length: 1e9999\r\n') },
      { 400, post('Content-Length: 99999999999999999999999\r\n') },
      { 400, post('Content-Length : 3\r\n', 'abc') },
      { 400, post(CHUNKED, 'FFFFFFFFFFFFFFFFF\r\n') },
      { 400, post(CHUNKED, 'xyz\r\n') },
      { 400, post(CHUNKED, '-1\r\n') },
      { 400, post(CHUNKED, '3\r\nabcX\r\n0\r\n\r\n') },
      { 400, post(CHUNKED, '3\nabc\r\n0\r\n\r\n') },
      { 400, post(CHUNKED, '3\r\nabc\n0\r\n\r\n') },
      { 400, post(CHUNKED, '3;x\nabc\r\n0\r\n\r\n') },
      { 400, post(CHUNKED, '3\r\nabc\r\n0\r\n\n') },
      { 400, post(CHUNKED, '3\r\nabc\r\n0\r\nX: y\n\r\n') },
      { 400, post(CHUNKED, '3\r\nabc\r\n0\r\nX: y\r\n z\r\n\r\n') },
      { 400, post(CHUNKED, '3\r\nabc\r\n0\r\n X: y\r\n\r\n') },
      { { 400, 501 }, post('Transfer-Encoding: gzip, chunked\r\n', '0\r\n\r\n') },
      { { 400, 501 }, post('Transfer-Encoding: xchunked\r\n', '0\r\n\r\n') },
      { { 400, 501 }, post('Transfer-Encoding: chunked, identity\r\n', '0\r\n\r\n') },
      { 400, 'POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\nHost: a\n\n' },
      { 400, 'GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\nHost : a\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\n Host: a\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\nHost: a\r\n: empty\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n' },
      { 400, 'GET /a b HTTP/1.1\r\nHost: a\r\n\r\n' },
      { { 400, 505 }, 'GET / HTTP/9.9\r\nHost: a\r\n\r\n' },
      { { 400, 505 }, 'GET / HTTP/2.0\r\nHost: a\r\n\r\n' },
      { 505, 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' },
      { 400, 'GET /\r\n\r\n' },
      { 400, 'GET /\r\n' },
      { 400, 'GARBAGE\r\n\r\n' },
      { 400, 'no request at all\r\n\r\n' },
      { 400, '\0\1\2\3\r\n\r\n' },
      { 400, 'GET  / HTTP/1.1\r\nHost: a\r\n\r\n' },
      { 400, 'GET / HTTP/1.1 \r\nHost: a\r\n\r\n' },
      { 400, 'GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n' },
      { 400, 'GET / http/1.1\r\nHost: a\r\n\r\n' },
      { 400, 'DESCRIBE / RTSP/1.0\r\nHost: a\r\n\r\n' },
      { 400, 'GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n' },
      { 400, 'GET * HTTP/1.1\r\nHost: a\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\nHost: a b\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\nHost: a/b\r\n\r\n' },
      { 400, 'GET / HTTP/1.1\r\nHost: user@a\r\n\r\n' },
      { 501, 'BREW / HTTP/1.1\r\nHost: a\r\n\r\n' },
      { 501, 'get / HTTP/1.1\r\nHost: a\r\n\r\n' },
      { 501, 'CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n' },
      { { 400, 501 }, '\22\3\1\0\171\1\0\0' },
    }
    for _, case in ipairs(bad) do
      local expected, text = case[1], case[2]
      local answer = say(server, text .. get '/smuggled', true)
      local status = status_of(answer)
      assert.is_true(status == expected or type(expected) == 'table' and
        (status == expected[1] or status == expected[2]), ('%q: %s'):format(text, answer))
      local _, answers = answer:gsub('HTTP/1%.1 ', '')
      assert.equal(1, answers, text)
    end
    assert.equal(0, count)
  end))

  it('says the same of a request line in whatever pieces it comes', run(function()
    local server = serve(hello)
    for line, status in pairs {
      ['GARBAGE'] = 400, ['no request at all'] = 400, ['BREW / HTTP/1.1'] = 501,
      ['GET / HTTP/3.0'] = 505, ['GET / HTTP/1.1'] = 400, -- it has no host
    } do
      local conn <close> = raw(server)
      for i = 1, #line do
        coop.await(conn:write(line:sub(i, i)))
        coop.await(coop.sleep(0))
      end
      pcall(coop.await, conn:write '\r\n\r\n')
      assert.equal(status, status_of(coop.await(conn:read 'a')), line)
    end
  end))

  it('takes the host of an absolute target, whatever the header says', run(function()
    local hosts = {}
    local server = serve(function(request) hosts[#hosts + 1] = request.headers.host end)
    say(server, get 'http://b.example:81/x' .. get 'http://c.example?y' ..
      get 'http://user@d.example' .. get '/' .. post(CHUNKED, '0\r\nHost: e\r\n\r\n'), true)
    assert.equal('b.example:81 c.example d.example a a', table.concat(hosts, ' '))
  end))

  it('takes what is unusual but plain', run(function()
    local paths = {}
    local server = serve(function(request) paths[#paths + 1] = request.method .. request.path end)
    local answer = say(server, '\r\n\r\n' .. get '/1' .. '\r\n' .. get 'http://a/2?x' ..
      'OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n' .. get('/3', 'X:\r\nY: \t z \t\r\n') ..
      get('/4', 'Connection: Upgrade\r\nUpgrade: h2c\r\n') .. get '/5', true)
    assert.equal('GET/1 GET/2 OPTIONS* GET/3 GET/4 GET/5', table.concat(paths, ' '), answer)
  end))

  it('bounds line, head, headers and body', run(function()
    local server = serve(hello, { max_body = 1000 })
    assert.equal(414, status_of(say(server, get('/' .. ('x'):rep(10000)))))
    assert.equal(414, status_of(say(server, 'GET /' .. ('x'):rep(1000000))))
    assert.equal(431, status_of(say(server, get('/', 'X: ' .. ('y'):rep(70000) .. '\r\n'))))
    local many = {}
    for i = 1, 100000 do many[i] = 'X: y\r\n' end
    assert.equal(431, status_of(say(server, get('/', table.concat(many)))))
    assert.equal(413, status_of(say(server,
      post('Content-Length: 1001\r\n') .. ('x'):rep(1001))))
    assert.equal(413, status_of(say(server,
      post(CHUNKED, '3e9\r\n') .. ('x'):rep(1001))))
    assert.equal(413, status_of(say(server, post(CHUNKED, 'FFFFFFFFFFFFFFFF\r\n'))))
    assert.equal(431, status_of(say(server,
      post(CHUNKED, '0\r\n' .. ('X: ' .. ('y'):rep(1000) .. '\r\n'):rep(100)))))
    assert.equal(414, status_of(say(server, 'GET /' .. ('\xe4'):rep(10000))))
    assert.equal(200, status_of(say(server, 'POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n' ..
      'Content-Length: 1000\r\n\r\n' .. ('x'):rep(1000))))
  end))

  it('bounds time: a slow request is told, an idle connection closed', run(function()
    local server = serve(hello, { request_timeout = 0.1 })
    assert.equal(408, status_of(say(server, 'GET / HTTP/1.1\r\nHo')))
    local conn <close> = raw(server)
    local d = conn:read 'a'
    for _ = 1, 40 do -- a byte now and then does not help
      pcall(coop.await, conn:write 'x')
      coop.await(coop.sleep(0.01))
    end
    eventually(function() return d.called end)
    d:add_errback(function() end)
    assert.equal('', say(server, ''))
    assert.truthy(say(serve(hello, { idle_timeout = 0.1 }), get '/'):find 'hello$')
  end))

  it('takes the end of the input at any place', run(function()
    local server = serve(hello)
    local text = post(CHUNKED, '3\r\nabc\r\n0\r\nX: y\r\n\r\n')
    for i = 1, #text - 1 do
      local answer = say(server, text:sub(1, i), true)
      assert.equal('', answer)
    end
    for i = 1, #text - 1, 7 do
      local conn = raw(server)
      coop.await(conn:write(text:sub(1, i)))
      conn:abort()
    end
  end))
end)

describe('a handler', function()
  it('that fails before it has said anything makes a 500', run(function()
    local reports
    local _, base = serve(function(_, response)
      response:write 'lost'
      error 'oops'
    end)
    local previous = coop.on_unhandled(function(failure) reports = failure end)
    local response = coop.await(http.get(base))
    coop.on_unhandled(previous)
    assert.equal(500, response.status)
    assert.is_nil(response.body:find 'oops')
    assert.is_nil(response.body:find 'lost')
    assert.truthy(reports.value:find 'oops$')
  end))

  it('that fails afterwards has its connection cut', run(function()
    local reports = 0
    local server, base = serve(function(_, response)
      coop.await(response:write 'begun')
      coop.await(coop.sleep(0))
      coop.await(response:write ' and')
      error 'oops'
    end)
    local previous = coop.on_unhandled(function() reports = reports + 1 end)
    is_error(errors.ConnectionLost, failure_of(http.get(base)))
    assert.is_nil((say(server, 'GET / HTTP/1.0\r\n\r\n'))) -- no good end there either
    coop.on_unhandled(previous)
    assert.equal(2, reports)
  end))

  it('says what it cannot say', run(function()
    local caught, wanted
    local _, base = serve(function(request, response)
      local ok, e = pcall(function()
        if request.path == '/name' then response.headers['X\r\nY'] = 'z' end
        if request.path == '/value' then response.headers.X = 'y\r\nZ: 1' end
        if request.path == '/nul' then response.headers.X = 'y\0' end
        if request.path == '/status' then response.status = 99 end
        if request.path == '/coding' then response.headers['Transfer-Encoding'] = 'gzip' end
        if request.path == '/write' then response:write {} end
        response:write 'x'
        coop.await(coop.sleep(0))
        response:write 'y'
      end)
      wanted = not ok
      caught = e
      response.headers, response.status = {}, 200
    end)
    local previous = coop.on_unhandled(function(failure) caught = failure.value end)
    for _, path in ipairs { 'name', 'value', 'nul', 'status', 'coding' } do
      caught = nil
      assert.equal(500, coop.await(http.get(base .. '/' .. path)).status)
      assert.equal('string', type(caught), path)
    end
    assert.equal(200, coop.await(http.get(base .. '/write')).status)
    coop.on_unhandled(previous)
    assert.is_true(wanted)
    assert.truthy(caught:find 'write' and caught:find 'string')
  end))

  it('keeps to the length that it has told', run(function()
    local caught
    local server, base = serve(function(request, response)
      response.headers['content-length'] = 5
      response:write 'abc'
      if request.path ~= '/at-once' then coop.await(coop.sleep(0)) end
      if request.path == '/right' then response:write 'de' end
      if request.path == '/more' then
        local ok, e = pcall(response.write, response, 'def')
        assert(not ok)
        caught = e
        response:write 'de'
      end
    end)
    local previous = coop.on_unhandled(function(failure) caught = failure.value end)
    assert.equal('abcde', coop.await(http.get(base .. '/right')).body)
    assert.equal('abcde', coop.await(http.get(base .. '/more')).body)
    assert.truthy(caught:find 'Content%-Length')
    is_error(errors.ConnectionLost, failure_of(http.get(base .. '/less')))
    assert.equal(500, coop.await(http.get(base .. '/at-once')).status)
    coop.on_unhandled(previous)
    assert.truthy(say(server, 'HEAD /at-once HTTP/1.0\r\n\r\n'):find 'Content%-Length: 5')
  end))

  it('that breaks its word before anything was sent makes a 500', run(function()
    local _, base = serve(function(request, response)
      response.headers['Content-Length'] = 3
      response:write 'ab'
      if request.path == '/refused' then
        response.headers.X = 'a\nb'
        misuse(function() response:write(('x'):rep(100000)) end, 'write', "'X'")
        response.headers.X = nil
        response:write 'c'
      else
        response:write 'cd'
      end
      coop.await(coop.sleep(0))
    end)
    local caught
    local previous = coop.on_unhandled(function(failure) caught = failure.value end)
    assert.equal(500, coop.await(http.get(base)).status)
    assert.truthy(caught:find('more', 1, true))
    coop.on_unhandled(previous)
    assert.equal('abc', coop.await(http.get(base .. '/refused')).body)
  end))

  it('is cancelled when its client goes, before and in the midst of its answer', run(function()
    local closed, waits = 0, {}
    local server, base = serve(function(request, response)
      local cleanup <close> = setmetatable({}, { __close = function() closed = closed + 1 end })
      if request.path == '/midst' then coop.await(response:write 'x') end
      local d = coop.Deferred()
      waits[#waits + 1] = d
      coop.await(d)
      error 'it went on'
    end)
    for i, path in ipairs { '/', '/midst' } do
      local conn = raw(server)
      coop.await(conn:write(get(path)))
      eventually(function() return #waits == 2 * i - 1 end)
      conn:close()
      eventually(function() return closed == 2 * i - 1 end)
      assert.is_true(waits[2 * i - 1].called)
      local d = http.get(base .. path)
      eventually(function() return #waits == 2 * i end)
      d:cancel()
      d:add_errback(function() end)
      eventually(function() return closed == 2 * i end)
    end
  end))

  it('of a client that only stops sending goes on where that is allowed', run(function()
    local function slow(_, response)
      coop.await(coop.sleep(0.05))
      response:write 'done'
    end
    assert.truthy(say(serve(slow, { half_open = true }), get '/', true):find 'done$')
    assert.equal('', say(serve(slow), get '/', true))
  end))

  it('waits for a slow reader, who gets all in the end', run(function()
    local sent, total, block = 0, 512, ('x'):rep(65536)
    local server = serve(function(_, response)
      for _ = 1, total do
        coop.await(response:write(block))
        sent = sent + 1
      end
    end)
    local conn <close> = raw(server)
    coop.await(conn:write(get('/', 'Connection: close\r\n')))
    eventually(function() return sent > 0 end)
    local function now() return sent end
    assert.is_true(at_rest(now) < total)
    local first = coop.await(conn:read(1024 * 1024))
    assert.is_true(at_rest(now) < total, 'one block was read, and all was written')
    local _, count = (first .. coop.await(conn:read 'a')):gsub('x', '')
    assert.equal(total * #block, count)
  end))

  it('is freed of who reads nothing for too long', run(function()
    local closed
    local server = serve(function(_, response)
      local cleanup <close> = setmetatable({}, { __close = function() closed = true end })
      while true do coop.await(response:write(('x'):rep(65536))) end
    end, { write_timeout = 0.1 })
    local conn <close> = raw(server)
    coop.await(conn:write(get '/'))
    eventually(function() return closed end)
  end))

  it('that has ended writes no more', run(function()
    local kept
    local _, base = serve(function(_, response) kept = response end)
    coop.await(http.get(base))
    is_error(errors.ConnectionDone, failure_of(kept:write 'late'))
  end))

  it('may be an object', run(function()
    local object = {}
    function object:_handle(request, response)
      response:write(tostring(self == object) .. request.path)
    end
    local _, base = serve(object)
    assert.equal('true/x', coop.await(http.get(base .. '/x')).body)
  end))
end)

describe('close', function()
  it('lets what is under way come to its end, and cuts off what does not', run(function()
    local go_on, asked = coop.Deferred(), 0
    local server, base = serve(function(_, response)
      asked = asked + 1
      coop.await(go_on)
      response:write 'done'
    end)
    local idle <close> = raw(server)
    local pages = {}
    for i = 1, 100 do pages[i] = http.get(base) end
    eventually(function() return asked == 100 end)
    local closed = server:close()
    assert.is_nil(coop.await(idle:read()))
    is_error(errors.ConnectionRefused, failure_of(http.get(base)))
    assert.is_false(closed.called)
    go_on:callback()
    for i = 1, 100 do assert.equal('done', coop.await(pages[i]).body) end
    coop.await(closed)
    coop.await(server:close())

    server, base = serve(function()
      asked = asked + 1
      coop.await(coop.Deferred())
    end)
    local page = http.get(base)
    eventually(function() return asked == 101 end)
    coop.await(server:close(0.05))
    is_error(errors.ConnectionLost, failure_of(page))
  end))

  it('leaves no descriptor behind', run(function()
    local before = descriptors()
    for _ = 1, 3 do
      local server = serve(hello)
      local conns = {}
      for i = 1, 20 do
        conns[i] = raw(server)
        coop.await(conns[i]:write(i % 2 == 0 and get '/' or 'GET / HT'))
      end
      coop.await(coop.sleep(0.02))
      local closed = server:close(0)
      coop.await(closed)
      for _, conn in ipairs(conns) do conn:close() end
    end
    -- Not at once: what libcurl opened for an earlier test may be ending still.
    eventually(function() return descriptors() <= before end)
  end))

  it('refuses misuse', run(function()
    misuse(function() http.serve() end, 'serve', 'table')
    misuse(function() http.serve {} end, 'handler')
    misuse(function() http.serve { handler = 5 } end, 'handler')
    misuse(function() http.serve { handler = hello, colour = 1 } end, 'colour')
    misuse(function() http.serve { handler = hello, max_body = -1 } end, 'max_body')
    local server = serve(hello)
    misuse(function() http.serve { handler = hello, port = server.port } end, 'serve', 'EADDRINUSE')
    misuse(function() server:close(-1) end, 'close')
    misuse(function() server.close(5) end, 'close')
  end))
end)

describe('1,000 requests with mutated bytes', function()
  -- A generator of our own: the same bytes in every run.
  local seed = 20260101
  local function random(n)
    seed = (seed * 1103515245 + 12345) % 2147483648
    return (seed >> 8) % n + 1
  end

  local originals = {
    get('/path?x=y', 'Accept: */*\r\nConnection: keep-alive\r\n'),
    'POST /form HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world',
    post(CHUNKED, '5\r\nhello\r\n6;x\r\n world\r\n0\r\n\r\n'),
    'HEAD / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab',
  }

  local function mutate(text)
    for _ = 1, random(3) do
      local at, how = random(#text), random(4)
      local byte = string.char(random(256) - 1)
      local before, behind = text:sub(1, at - 1), text:sub(at + 1)
      if how == 1 then text = before .. byte .. behind
      elseif how == 2 then text = before .. behind
      elseif how == 3 then text = before .. byte .. text:sub(at)
      else text = before .. text:sub(at, at + random(8)) .. text:sub(at) end
    end
    return text
  end

  it('are answered or refused, and nothing hangs', run(function()
    local server, base = serve(function(request, response)
      assert(type(request.path) == 'string' and type(request.body) == 'string')
      response:write(request.path)
    end, { request_timeout = 5 })
    local texts = {}
    for i = 1, 1000 do texts[i] = mutate(originals[random(#originals)]) end
    local answers = coop.await(coop.parallel(50, texts, function(text)
      return coop.spawn(say, server, text, true)
    end))
    local good, refused = 0, 0
    for i = 1, 1000 do
      local answer = answers[i]
      assert.is_string(answer, ('%q'):format(texts[i]))
      assert.is_true(answer == '' or answer:find '^HTTP/1%.1 %d%d%d ' ~= nil)
      if answer:find '^HTTP/1%.1 200' then good = good + 1 end
      if answer:find '^HTTP/1%.1 4' then refused = refused + 1 end
    end
    assert.is_true(good > 100 and refused > 100, good .. ' ' .. refused)
    assert.equal('/still', coop.await(http.get(base .. '/still')).body)
    coop.await(server:close()) -- no connection is left
  end))

  it('are not what a client trips over when they are responses', run(function()
    local responses = {
      'HTTP/1.1 200 OK\r\nContent-Length: 11\r\nX-Name: value\r\n\r\nhello world',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n' ..
        '5\r\nhello\r\n6;x\r\n world\r\n0\r\n\r\n',
      'HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n',
      'HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\nSet-Cookie: a=b\r\n\r\nno gzip',
    }
    local base = raw_server(function(conn)
      coop.await(conn:read 'l')
      coop.await(conn:write(mutate(responses[random(#responses)])))
    end)
    local list = {}
    for i = 1, 300 do list[i] = i end
    local function outcome_of(i)
      local ok, e = pcall(function()
        local response = coop.await(http.get(base,
          { stream = i % 3 == 0, timeout = 20, redirects = 2 }))
        if not response.body then for block in response do assert(#block > 0) end end
        return response.status
      end)
      return ok and math.type(e) == 'integer' and e or e.message
    end
    local outcomes = coop.await(coop.parallel(20, list, function(i)
      return coop.spawn(outcome_of, i)
    end))
    local good, failed = 0, 0
    for i = 1, 300 do
      if type(outcomes[i]) == 'number' then good = good + 1
      elseif type(outcomes[i]) == 'string' then failed = failed + 1
      else error(('outcome %d: %s'):format(i, tostring(outcomes[i]))) end
    end
    assert.is_true(good > 20 and failed > 20, good .. ' ' .. failed)
  end))
end)

describe('faults', function()
  it('a client that vanishes in the middle of its body leaves nothing behind', run(function()
    local called = 0
    local server, base = serve(function() called = called + 1 end)
    local halves = {
      post('Content-Length: 1000000\r\n', ('x'):rep(1000)),
      post('Content-Length: 3\r\nExpect: 100-continue\r\n'),
      post(CHUNKED, '5\r\nhello\r\nffff\r\nxx'),
      post(CHUNKED, '5\r\nhel'),
    }
    for _, half in ipairs(halves) do
      for _, leave in ipairs { 'close', 'abort', 'shutdown' } do
        local conn <close> = raw(server)
        coop.await(conn:write(half))
        coop.await(coop.sleep(0)) -- some have been read, some not
        conn[leave](conn)
      end
    end
    assert.equal(200, coop.await(http.get(base)).status)
    assert.equal(1, called)
    coop.await(server:close())
  end))

  it('a client that sends its body slowly is waited for; one that stops is told', run(function()
    local function echo(request, response) response:write(request.body) end
    local conn <close> = raw((serve(echo)))
    coop.await(conn:write(post('Content-Length: 10\r\nConnection: close\r\n')))
    for i = 0, 9 do
      coop.await(coop.sleep(0.005))
      coop.await(conn:write(tostring(i)))
    end
    assert.truthy(coop.await(conn:read 'a'):find '0123456789$')
    local server = serve(echo, { request_timeout = 0.2 })
    local answer = say(server, post('Content-Length: 10\r\n', '01234'))
    assert.equal(408, status_of(answer))
  end))

  it('a descriptor that is missing is an outcome, and only as long as it is missing', function()
    local r = child.coop [[
      if not arg[1] then
        local limited = ('ulimit -n 40; exec %s %s limited'):format(arg[-1], arg[0])
        os.exit((select(3, os.execute(limited))))
      end
      local coop, http, net = require 'coop', require 'coop.http', require 'coop.net'
      local server = http.serve { handler = function(request, response)
        coop.await(coop.sleep(0.001))
        response:write(request.path)
      end }
      local base = ('http://127.0.0.1:%d/'):format(server.port)
      -- both ends of each are of this process: there are not enough for all at once
      local hoard = {}
      pcall(function()
        while true do hoard[#hoard + 1] = coop.await(net.connect('127.0.0.1', server.port)) end
      end)
      local ok, e = pcall(coop.await, http.get(base))
      print(ok, coop.errors.ConnectionRefused:is(e))
      for _, conn in ipairs(hoard) do conn:close() end
      local all = {}
      for i = 1, 100 do all[i] = http.get(base .. i) end
      local answered, failed = 0, 0
      for i, outcome in ipairs(coop.await(coop.DeferredList(all, { consume_errors = true }))) do
        if outcome[1] and outcome[2].body == '/' .. i then answered = answered + 1
        elseif not outcome[1] then failed = failed + 1 end
      end
      print(answered + failed, answered > 0)
      print(coop.await(http.get(base .. 'again')).body)
      coop.await(server:close())
    ]]
    assert.same({ 'false\ttrue\n100\ttrue\n/again\n', '', 0 }, { r.out, r.err, r.status })
  end)

  -- Twenty clients in every state of a conversation; `wait` for ever.
  local BUSY = [[
    local coop, http, net = require 'coop', require 'coop.http', require 'coop.net'
    local waiting = coop.Deferred()
    local server = http.serve { handler = function(request, response)
      if request.path == '/wait' then coop.await(coop.Deferred()) end
      while true do coop.await(response:write(('x'):rep(60000))) end
    end }
    local base = ('http://127.0.0.1:%d'):format(server.port)
    local outcomes, streams, conns = {}, {}, {}
    for i = 1, 20 do
      outcomes[#outcomes + 1] = http.get(base .. '/wait')
      streams[i] = coop.await(http.get(base .. '/flood', { stream = true }))
      conns[i] = coop.await(net.connect('127.0.0.1', server.port))
      coop.await(conns[i]:write(i % 2 == 0 and 'GET / HTTP/1.1\r\nHost:' or
        'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf'))
      outcomes[#outcomes + 1] = conns[i]:read('a')
    end
    coop.await(coop.sleep(0.05))
  ]]

  it('all that is busy is closed, and every waiter has an outcome', function()
    local r = child.coop(BUSY .. [[
      for i = 1, 20 do
        local reading = coop.gather_results({ streams[i]:read(), streams[i]:read() })
        outcomes[#outcomes + 1] = reading
      end
      local closed = server:close(0)
      outcomes[#outcomes + 1] = closed
      for i = 1, 10 do streams[i]:close() end
      for i = 1, 10 do outcomes[2 * i]:cancel() end
      local over = coop.DeferredList(outcomes, { consume_errors = true })
      for i = 11, 20 do while pcall(streams[i]) and not closed.called do end end
      print(#coop.await(over))
      local left = 0
      for _ in pairs(server._sessions) do left = left + 1 end
      print(left)
      for _, conn in ipairs(conns) do conn:close() end
    ]])
    assert.same({ '61\n0\n', '', 0 }, { r.out, r.err, r.status })
  end)

  it('a stream that nobody reads any more does not keep the process', function()
    local r = child.coop [[
      local coop, http = require 'coop', require 'coop.http'
      local server = http.serve { handler = function(request, response)
        while true do coop.await(response:write(('x'):rep(60000))) end
      end }
      kept = coop.await(http.get('http://127.0.0.1:' .. server.port, { stream = true }))
      coop.await(coop.sleep(0.05))
      server:close(0)
      local began = os.time()
      kept_too = setmetatable({}, { __gc = function() print(os.time() - began < 10) end })
    ]]
    assert.same({ 'true\n', '', 0 }, { r.out, r.err, r.status })
  end)

  child.each(function(name, execute)
    it('the state may be closed while all is busy, under ' .. name, function()
      local r = execute(('local main = function() %s return os.exit(7, true) end\n')
        :format(BUSY) .. 'require "coop".run(main)')
      assert.same({ '', '', 7 }, { r.out, r.err, r.status })
    end)
  end)
end)
