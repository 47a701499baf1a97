-- Clients and servers that are not ours, over loopback. They are part of what testing needs (the
-- list in .ci/test): one that is missing is a failure.

local coop = require 'coop'
local helper = require 'tests.spec.helper'
local http = require 'coop.http'
local net = require 'coop.net'
local programs = require 'tests.spec.programs'

local await, errors = coop.await, coop.errors
local quote, write = programs.quote, programs.write
local is_error = helper.is_error

--- Wraps a test that waits; one that waits for ever fails.
local function run(f)
  return helper.run(function()
    await(coop.inline_callbacks(f)():add_timeout(60))
  end)
end

local servers

--- A server of ours, closed behind the test; and its address.
local function serve(handler, options)
  local all = { handler = handler }
  for name, value in pairs(options or {}) do all[name] = value end
  local server = http.serve(all)
  servers[#servers + 1] = server
  return server, ('http://127.0.0.1:%d'):format(server.port or 0)
end

local function listen(handler, host)
  local server = net.listen(host or '127.0.0.1', 0, handler)
  servers[#servers + 1] = server
  return server
end

before_each(helper.fresh)
before_each(function()
  servers = {}
end)
after_each(run(function()
  for _, server in ipairs(servers) do server:close() end
  await(coop.sleep(0))
end))

local function python(script) return 'python3 -u -c ' .. quote(script) end
local function node(script) return 'node -e ' .. quote(script) end

describe('connections with other programs', function()
  --- The echo of a server, in three pieces, then to the end.
  local function converse(conn)
    for _, text in ipairs { 'one\n', 'two\n', ('x'):rep(100000) .. '\n' } do
      await(conn:write(text))
      assert.equal(text, await(conn:read(#text)))
    end
    await(conn:shutdown())
    assert.is_nil(await(conn:read()))
    conn:close()
  end

  --- A server that a client sends all it has to, and gets it back in capitals.
  local function host()
    local outcome = coop.Deferred()
    local server = listen(function(conn)
      local all = await(conn:read('a'))
      await(conn:write(all:upper()))
      outcome:callback(all)
    end)
    return server.port, outcome
  end

  it('nc connects, and listens', run(function()
    local port, outcome = host()
    assert.equal('FROM NC', (programs.run(('printf "from nc" | nc -N 127.0.0.1 %d'):format(port))))
    assert.equal('from nc', await(outcome))

    local directory <close> = programs.directory()
    local path = directory .. '/socket'
    local nc <close> = programs.start(('nc -lU %s'):format(path))
    local conn = programs.eventually(function()
      local ok, c = pcall(await, net.connect('unix:' .. path))
      return ok and c
    end)
    await(conn:write 'to nc\n')
    nc:expect 'to nc\n'
    conn:close()
    assert.same({ 'to nc\n', 0 }, { nc:wait() })
  end))

  it('sockets of Python connect, and listen', run(function()
    local port, outcome = host()
    assert.equal('FROM PYTHON\n', (programs.run(python(([[
import socket
s = socket.create_connection(("127.0.0.1", %d))
s.sendall(b"from python")
s.shutdown(socket.SHUT_WR)
print(s.recv(100).decode())]]):format(port)))))
    assert.equal('from python', await(outcome))
    local server <close> = programs.start(python [[
import socket
l = socket.create_server(("127.0.0.1", 0))
print(l.getsockname()[1])
s, _ = l.accept()
while True:
    b = s.recv(4096)
    if not b: break
    s.sendall(b)
s.close()]])
    converse(await(net.connect('127.0.0.1', tonumber(server:expect '(%d+)\n'))))
    assert.equal(0, select(2, server:wait()))
  end))

  it('a reset by Python is one', run(function()
    local outcome, ready = coop.Deferred(), coop.Deferred()
    local server = listen(function(conn)
      assert.equal('last', await(conn:read(4)))
      await(conn:write 'go')
      ready:callback()
      local _, e = pcall(await, conn:read())
      outcome:callback(e)
    end)
    local client <close> = programs.start(python(([[
import socket, struct
s = socket.create_connection(("127.0.0.1", %d))
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
s.sendall(b"last")
s.recv(2)
s.close()]]):format(server.port)))
    await(ready)
    is_error(errors.ConnectionLost, await(outcome))
    client:wait()
  end))

  it('Node connects, and listens', run(function()
    local port, outcome = host()
    assert.equal('FROM NODE', (programs.run(node(([[
const s = require("net").connect(%d, "127.0.0.1")
s.end("from node")
s.pipe(process.stdout)]]):format(port)))))
    assert.equal('from node', await(outcome))
    local server <close> = programs.start(node [[
const l = require("net").createServer(c => { c.pipe(c); c.on("close", () => l.close()) })
l.listen(0, "127.0.0.1", () => console.log(l.address().port))]])
    converse(await(net.connect('127.0.0.1', tonumber(server:expect '(%d+)\n'))))
    assert.equal(0, select(2, server:wait()))
  end))
end)

describe('our server and clients of others', function()
  local curl = 'curl --silent --show-error --max-time 20 --noproxy "*" '

  --- Answers /chunks in three pieces, /echo with the body; else with method and size.
  local function various(request, response)
    response.headers['X-Path'] = request.path
    if request.path == '/chunks' then
      for i = 1, 3 do
        await(response:write(i .. ' '))
        await(coop.sleep(0.01))
      end
    elseif request.path == '/echo' then
      response.headers['Content-Type'] = request.headers['content-type']
      response:write(request.body)
    else
      response:write(('%s %d\n'):format(request.method, #request.body))
    end
  end

  it('curl is served', run(function()
    local _, base = serve(various)
    assert.equal('GET 0\nGET 0\n', (programs.run(curl .. base .. '/a ' .. base .. '/b')))
    assert.equal('1 2 3 ', (programs.run(curl .. '--no-buffer ' .. base .. '/chunks')))
    assert.equal('1 2 3 ', (programs.run(curl .. '--http1.0 ' .. base .. '/chunks')))
    assert.truthy(programs.run(curl .. '--head ' .. base .. '/a'):find 'Content%-Length: 7\r\n')
    local zeros = 'head -c 2000000 /dev/zero | '
    assert.equal('PUT 2000000\n',
      (programs.run(zeros .. curl .. '--upload-file - ' .. base .. '/up')))
    assert.equal('POST 2000000\n', (programs.run(zeros .. curl ..
      '--header "Expect: 100-continue" --data-binary @- ' .. base .. '/up')))
  end))

  it('curl is served at a Unix socket, and many times by one connection', run(function()
    local directory <close> = programs.directory()
    local path = directory .. '/socket'
    serve(various, { host = 'unix:' .. path })
    local text = programs.run(curl .. '--unix-socket ' .. path ..
      ' --output /dev/null --write-out "%{http_code} %{num_connects}\\n" "http://a/[1-20]"')
    assert.equal(20, select(2, text:gsub('200 %d\n', '')))
    assert.equal(1, select(2, text:gsub('200 1\n', '')), text)
  end))

  it('a page that is streamed reaches two curl at the same time, piece by piece', run(function()
    local there, go_on = 0, coop.Deferred()
    local _, base = serve(function(request, response)
      await(response:write(request.path .. ' begins\n'))
      there = there + 1
      await(go_on)
      response:write 'and ends\n'
    end)
    local one <close> = programs.start(curl .. '-N ' .. base .. '/one')
    local two <close> = programs.start(curl .. '-N ' .. base .. '/two')
    one:expect '^/one begins\n$'
    two:expect '^/two begins\n$'
    assert.equal(2, there)
    go_on:callback()
    assert.same({ '/one begins\nand ends\n', 0 }, { one:wait() })
    assert.same({ '/two begins\nand ends\n', 0 }, { two:wait() })
  end))

  it('a client that is killed in the middle frees its handler', run(function()
    local freed = coop.Deferred()
    local _, base = serve(function(_, response)
      local left <close> = setmetatable({}, { __close = function() freed:callback() end })
      while left do
        await(response:write(('x'):rep(1000)))
        await(coop.sleep(0.001))
      end
    end)
    do
      local client <close> = programs.start(curl .. '-N ' .. base)
      client:expect 'x'
    end
    await(freed)
  end))

  it('nc is served', run(function()
    local server = serve(various, { half_open = true })
    local text = programs.run(([[for i in 1 2; do printf 'GET / HTTP/1.1\r\nHost: a\r\n\r\n'; done |
      nc -N 127.0.0.1 %d]]):format(server.port))
    assert.equal(2, select(2, text:gsub('HTTP/1.1 200 OK', '')), text)
    text = programs.run(("printf 'rubbish\\r\\n\\r\\n' | nc -N 127.0.0.1 %d"):format(server.port))
    assert.truthy(text:find '^HTTP/1%.1 [45]')
  end))

  it('Node is served', run(function()
    local connections = {}
    local _, base = serve(function(request, response)
      connections[request.peer] = true
      various(request, response)
    end)
    local text, status = programs.run(node(([[
const http = require("http"), assert = require("assert")
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
const ask = (method, path, pieces) => new Promise((resolve, reject) => {
  const q = http.request("%s" + path, { method, agent }, r => {
    let s = ""
    r.on("data", d => s += d)
    r.on("end", () => resolve({ status: r.statusCode, headers: r.headers, body: s }))
    r.on("error", reject)
  })
  q.on("error", reject)
  for (const piece of pieces || []) q.write(piece)
  q.end()
})
const main = async () => {
  assert.equal((await ask("GET", "/x")).body, "GET 0\n")
  assert.equal((await ask("GET", "/chunks")).body, "1 2 3 ")
  assert.equal((await ask("POST", "/echo", ["some ", "chunks"])).body, "some chunks")
  const head = await ask("HEAD", "/x")
  assert.equal(head.headers["content-length"], "7")
  assert.equal(head.body, "")
  const f = await fetch("%s/echo", { method: "POST", body: "y".repeat(100000) })
  assert.equal((await f.text()).length, 100000)
  const all = await Promise.all([...Array(20).keys()].map(i => ask("GET", "/" + i)))
  all.forEach((r, i) => assert.equal(r.headers["x-path"], "/" + i))
  agent.destroy()
  console.log("good")
  process.exit(0)
}
main()]]):format(base, base)))
    assert.same({ 'good\n', 0 }, { text, status })
    local n = 0
    for _ in pairs(connections) do n = n + 1 end
    assert.equal(2, n) -- the agent's, and that of fetch
  end))

  it("Python's http.client is served", run(function()
    local server = serve(various)
    assert.equal('good\n', (programs.run(python(([[
import http.client
c = http.client.HTTPConnection("127.0.0.1", %d, timeout=20)
def ask(method, path, body=None, **more):
    c.request(method, path, body, **more)
    r = c.getresponse()
    return r.status, r.read()
assert ask("GET", "/x") == (200, b"GET 0\n")
assert ask("GET", "/chunks") == (200, b"1 2 3 ")
assert ask("HEAD", "/x") == (200, b"")
assert ask("POST", "/echo", "abc") == (200, b"abc")
assert ask("POST", "/echo", iter([b"a" * 10, b"b"]), encode_chunked=True,
           headers={"Transfer-Encoding": "chunked"}) == (200, b"a" * 10 + b"b")
print("good")]]):format(server.port)))))
  end))
end)

describe('our client and servers of others', function()
  it("Python's http.server", run(function()
    local server <close> = programs.start(python [[
import http.server as h, os
os.chdir("examples")
class Q(h.SimpleHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  def log_message(self, *a): pass
s = h.ThreadingHTTPServer(("127.0.0.1", 0), Q)
print(s.server_port)
s.serve_forever()]])
    local base = ('http://127.0.0.1:%d'):format(server:expect '(%d+)\n')
    local text = programs.contents 'examples/throttle.lua'
    assert.equal(text, await(http.get(base .. '/throttle.lua')).body)
    assert.equal(404, await(http.get(base .. '/nothing')).status)
    assert.equal(501, await(http.request { url = base, method = 'POST', body = 'x' }).status)
    local sizes = await(coop.parallel(4, { 1, 2, 3, 4, 5, 6, 7, 8 }, function()
      return http.get(base .. '/throttle.lua'):add_callback(function(r) return #r.body end)
    end))
    for i = 1, 8 do assert.equal(#text, sizes[i]) end
  end))

  it('Node', run(function()
    local server <close> = programs.start(node [[
const s = require("http").createServer((q, r) => {
  let n = 0
  q.on("data", d => n += d.length)
  q.on("end", () => {
    r.setHeader("X-Length", n)
    if (q.url == "/vanish") {
      r.setHeader("Content-Length", 100)
      r.write("begun", () => r.destroy())
      return
    }
    r.write("one ")
    setTimeout(() => r.end("two"), 20) }) })
s.listen(0, "127.0.0.1", () => console.log(s.address().port))]])
    local base = ('http://127.0.0.1:%d'):format(server:expect '(%d+)\n')
    local body = ('x'):rep(100000)
    local response = await(http.request { url = base, method = 'POST', body = body })
    assert.equal('one two', response.body)
    assert.equal('100000', response.headers['x-length'])
    response = await(http.get(base, { stream = true }))
    assert.equal('one ', await(response:read()))
    assert.equal('two', await(response:read()))
    assert.is_nil(await(response:read()))
    local ok, e = pcall(await, http.get(base .. '/vanish'))
    assert.is_false(ok)
    is_error(errors.ConnectionLost, e)
  end))

  --- A certificate for 127.0.0.1 and localhost: directory/cert and /key.
  local function make_certificate(directory)
    local made, status = programs.run(('openssl req -x509 -newkey rsa:2048 -nodes -days 2 ' ..
      '-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1,DNS:localhost ' ..
      '-keyout %s/key -out %s/cert'):format(directory.path, directory.path))
    assert.equal(0, status, made)
  end

  it('openssl s_server, whose certificate is checked', run(function()
    local directory <close> = programs.directory()
    make_certificate(directory)
    local server <close> = programs.start(
      ('openssl s_server -www -accept 127.0.0.1:0 -key %s/key -cert %s/cert')
      :format(directory.path, directory.path))
    local url = ('https://127.0.0.1:%d/'):format(server:expect 'ACCEPT [^\n]-:(%d+)\n')
    local ok, e = pcall(await, http.get(url))
    assert.is_false(ok)
    is_error(http.Error, e, 'certificate')
    assert.equal(200, await(http.get(url, { verify = false })).status)
    assert.equal(200, await(http.get(url, { ca_file = directory .. '/cert' })).status)
    local name = url:gsub('127%.0%.0%.1', '127.0.0.2') -- trusted, but another's
    ok, e = pcall(await, http.get(name, { ca_file = directory .. '/cert' }))
    assert.is_false(ok)
    assert.truthy(tostring(e):find '127.0.0.2', 1, true)
  end))

  --- nginx in the directory, with files of its own, in front of a server of ours at `port`.
  local function start_nginx(directory, port)
    local path = directory.path
    make_certificate(directory)
    os.execute(('mkdir %s/www %s/www/inner'):format(path, path))
    write(directory .. '/www/small.txt', 'small')
    write(directory .. '/www/large.bin', ('0123456789abcdef'):rep(256 * 1024))
    write(directory .. '/www/text.txt', ('what can be made small '):rep(1000))
    write(directory .. '/nginx.conf', ([[
daemon off;
master_process off;
pid PATH/nginx.pid;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path PATH/body;
  proxy_temp_path PATH/proxied;
  fastcgi_temp_path PATH/fastcgi;
  uwsgi_temp_path PATH/uwsgi;
  scgi_temp_path PATH/scgi;
  types { text/plain txt; }
  gzip on;
  gzip_min_length 1000;
  gzip_types text/plain;
  add_header X-Connection $connection always;
  server { listen unix:PATH/plain; root PATH/www; }
  server {
    listen unix:PATH/secure ssl http2;
    ssl_certificate PATH/cert;
    ssl_certificate_key PATH/key;
    root PATH/www;
    location /proxied { proxy_pass http://127.0.0.1:PORT; }
  }
  server {
    listen unix:PATH/proxy;
    location / {
      proxy_pass http://127.0.0.1:PORT;
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_request_buffering off;
    }
  }
}
]]):gsub('PATH', path):gsub('PORT', tostring(port)))
    local nginx = programs.start(('env PATH="$PATH:/usr/sbin" ' ..
      'nginx -e stderr -p %s -c %s/nginx.conf'):format(path, path))
    programs.eventually(function()
      if programs.contents(path .. '/nginx.pid') then return true end
      assert(not programs.contents(nginx.out .. '.status'), nginx:output())
    end)
    return nginx
  end

  local function at(directory, name, options)
    local all = { unix_socket = directory .. name }
    for k, v in pairs(options or {}) do all[k] = v end
    return all
  end

  it('nginx', run(function()
    local directory <close> = programs.directory()
    local nginx <close> = start_nginx(directory, 1)
    local function get(path, options)
      return await(http.get('http://localhost' .. path, at(directory, '/plain', options)))
    end
    local first = get '/small.txt'
    assert.equal('small', first.body)
    local connection = first.headers['x-connection']
    assert.equal(connection, get('/small.txt').headers['x-connection'])
    assert.equal(404, get('/nothing').status)
    local again = get('/inner') -- to /inner/, which may not be listed
    assert.equal(403, again.status)
    assert.equal('http://localhost/inner/', again.url)
    local part = get('/small.txt', { headers = { Range = 'bytes=1-2' } })
    assert.same({ 206, 'ma' }, { part.status, part.body })
    local same = get('/small.txt', { headers = { ['If-None-Match'] = first.headers.etag } })
    assert.same({ 304, '' }, { same.status, same.body })
    local text = get '/text.txt'
    assert.equal('gzip', text.headers['content-encoding'])
    assert.equal(('what can be made small '):rep(1000), text.body)
    assert.equal(405, await(http.request(at(directory, '/plain',
      { url = 'http://localhost/small.txt', method = 'POST', body = 'x' }))).status)
    local size, stream = 0, get('/large.bin', { stream = true })
    for block in stream do size = size + #block end
    assert.equal(4 * 1024 * 1024, size)
    assert.is_nil(nginx:output():match '%[alert%][^\n]*')
  end))

  it('nginx, which speaks HTTP/2', run(function()
    local directory <close> = programs.directory()
    local _, base = serve(function(request, response)
      response:write(request.body:upper())
    end)
    local nginx <close> = start_nginx(directory, base:match '%d+$')
    local options = at(directory, '/secure', { ca_file = directory .. '/cert' })
    local function get(path, more)
      for k, v in pairs(options) do more[k] = v end
      more.url = 'https://localhost' .. path
      return http.request(more)
    end
    local many, connection = {}, nil
    for i = 1, 50 do many[i] = get(i % 10 == 0 and '/large.bin' or '/text.txt', {}) end
    for i, response in ipairs(await(coop.gather_results(many))) do
      assert.same({ '2', 200 }, { response.version, response.status })
      assert.equal(i % 10 == 0 and 4 * 1024 * 1024 or 23000, #response.body)
      connection = connection or response.headers['x-connection']
      assert.equal(connection, response.headers['x-connection'])
    end
    local size, stream = 0, await(get('/large.bin', { stream = true }))
    assert.equal('2', stream.version)
    for block in stream do size = size + #block end
    assert.equal(4 * 1024 * 1024, size)
    local body = ('x'):rep(300000)
    local echo = await(get('/proxied', { method = 'POST', body = body }))
    assert.same({ '2', body:upper() }, { echo.version, echo.body })
    nginx:stop()
  end))

  it('nginx, which stands before a server of ours', run(function()
    local directory <close> = programs.directory()
    local half = coop.Deferred()
    local _, base = serve(function(request, response)
      if request.path == '/slowly' then
        await(response:write 'one ')
        await(half)
        response:write 'two'
      elseif request.path == '/early' then
        response.status = 403
        response:write 'no'
      else
        response.headers['X-Method'] = request.method
        response:write(request.body .. request.query.q)
      end
    end)
    local nginx <close> = start_nginx(directory, base:match '%d+$')
    local function ask(path, options)
      local all = at(directory, '/proxy', options)
      all.url = 'http://localhost' .. path
      return await(http.request(all))
    end
    assert.equal('a&b', ask('/x?q=a%26b').body)
    local upload = ask('/x?q=!', { method = 'PUT', body = ('y'):rep(200000) })
    assert.same({ 'PUT', 200001 }, { upload.headers['x-method'], #upload.body })
    local head = ask('/x?q=abc', { method = 'HEAD' })
    assert.same({ '3', '' }, { head.headers['content-length'], head.body })
    assert.equal(403, ask('/early').status)
    local stream = ask('/slowly', { stream = true })
    assert.equal('one ', await(stream:read()))
    half:callback()
    assert.equal('two', await(stream:read()))
    assert.is_nil(await(stream:read()))
    nginx:stop()
  end))
end)
