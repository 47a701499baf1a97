local child = require 'tests.spec.child'
local coop = require 'coop'
local helper = require 'tests.spec.helper'
local net = require 'coop.net'

local await, errors = coop.await, coop.errors
local is_error, misuse = helper.is_error, helper.misuse

--- Wraps a test that waits; one that waits for ever fails.
local function waiting(f)
  return helper.run(function()
    await(coop.inline_callbacks(f)():add_timeout(30))
  end)
end

--- The error that `d` fails with.
local function failure_of(d, class, ...)
  local ok, e = pcall(await, d)
  assert.is_false(ok, 'it did not fail')
  return is_error(class, e, ...)
end

--- A server on a free port, which is closed when the test ends, and its handler's connections.
local function listen(handler)
  local conns = {}
  local server = net.listen('127.0.0.1', 0, function(conn)
    conns[#conns + 1] = conn
    return handler(conn)
  end)
  return server, conns
end

local function connect(server) return await(net.connect('127.0.0.1', server.port)) end

--- Two ends of one connection; the handler of the second ends when it is closed.
local function pair()
  local theirs = coop.Deferred()
  local over = coop.Deferred()
  local server = net.listen('127.0.0.1', 0, function(conn)
    theirs:callback(conn)
    await(over)
  end)
  local a = connect(server)
  local b = await(theirs)
  server:close()
  local function finish()
    a:close()
    over:callback()
    b:close()
  end
  return a, b, setmetatable({}, { __close = finish })
end

local function upper(conn)
  for block in conn do await(conn:write(block:upper())) end
end

local function temporary_path()
  local path = os.tmpname()
  os.remove(path)
  return path
end

local function exists(path)
  local file = io.open(path)
  if file then file:close() end
  return file ~= nil or os.rename(path, path) == true
end

--- Turns of the loop, so that what is on its way arrives.
local function pass(seconds) await(coop.sleep(seconds or 0.02)) end

describe('a connection', function()

  it('carries what is written to the other end', waiting(function()
    local a, b, cleanup <close> = pair()
    await(a:write('hello'))
    assert.equal('hello', await(b:read()))
    await(b:write('\0\r\n\255'))
    assert.equal('\0\r\n\255', await(a:read()))
    await(a:write(42))
    assert.equal('42', await(b:read()))
    await(coop.sleep(0))
    local first, second = a:write('one '), a:write('two')
    assert.same({ true, true }, { first.called, second.called })
    assert.is_nil(first.result)
    assert.equal('one two', await(b:read(7)))
  end))

  it('is read by count, line, or to the end', waiting(function()
    local a, b, cleanup <close> = pair()
    a:write('one\ntwo\r\nthree\n\nrest')
    assert.equal('on', await(b:read(2)))
    assert.equal('e', await(b:read('l')))
    assert.equal('two\r', await(b:read('l')))
    assert.equal('three\n', await(b:read('L')))
    assert.equal('', await(b:read('l')))
    assert.equal('', await(b:read(0)))
    a:write('-')
    a:shutdown()
    assert.equal('rest-', await(b:read('a')))
    assert.equal('', await(b:read('a')))
    assert.is_nil(await(b:read('l')))
    assert.is_nil(await(b:read(1)))
    assert.is_nil(await(b:read(0)))
    assert.is_nil(await(b:read()))
  end))

  it('gives what there is when it ends in the middle', waiting(function()
    local a, b, cleanup <close> = pair()
    a:write('half a line')
    a:shutdown()
    assert.equal('half', await(b:read(4)))
    assert.equal(' a line', await(b:read('l')))
    assert.is_nil(await(b:read('l')))
    local c, d, _cleanup <close> = pair()
    c:write('abc')
    c:shutdown()
    assert.equal('abc', await(d:read(10)))
    assert.is_nil(await(d:read(10)))
  end))

  it('puts together what comes in pieces', waiting(function()
    local a, b, cleanup <close> = pair()
    local line, ten = b:read('l'), b:read(10)
    for piece in ('a lin\n0123|456|789|'):gmatch '.' do
      await(a:write(piece))
      pass(0)
    end
    assert.equal('a lin', await(line))
    assert.equal('0123|456|7', await(ten))
    assert.equal('89|', await(b:read(3)))
  end))

  it('fails for a line that is too long, and keeps it', waiting(function()
    local a, b, cleanup <close> = pair()
    b:set_line_max(5)
    a:write('12345\n123456\n')
    assert.equal('12345', await(b:read('l')))
    failure_of(b:read('l'), errors.LineTooLong)
    assert.equal('123456\n', await(b:read()))
    a:write('1234567')
    failure_of(b:read('l'), errors.LineTooLong)
    assert.equal('1234567', await(b:read(7)))
  end))

  it('is iterated block by block to its end', waiting(function()
    local a, b, cleanup <close> = pair()
    local blocks = {}
    local reading = coop.spawn(function()
      for block in b do blocks[#blocks + 1] = block end
    end)
    for i = 1, 3 do
      await(a:write('block ' .. i))
      pass()
    end
    a:shutdown()
    await(reading)
    assert.same({ 'block 1', 'block 2', 'block 3' }, blocks)
  end))

  it('serves those who read in the order in which they asked', waiting(function()
    local a, b, cleanup <close> = pair()
    local reads = { b:read('l'), b:read(2), b:read('l'), b:read() }
    a:write('one\ntwo\nrest')
    a:write(' of it')
    local got = await(coop.gather_results(reads))
    assert.same({ 'one', 'tw', 'o' }, { got[1], got[2], got[3] })
    assert.equal('rest', got[4]:sub(1, 4))
  end))

  it('loses nothing to a read that was cancelled', waiting(function()
    local a, b, cleanup <close> = pair()
    local first, second, third = b:read(3), b:read(3), b:read(3)
    second:cancel()
    first:cancel()
    a:write('abcdef')
    assert.equal('abc', await(third))
    failure_of(first, errors.CancelledError)
    failure_of(second, errors.CancelledError)
    assert.equal('def', await(b:read(3)))
  end))

  it('goes on after a wait has timed out', waiting(function()
    local a, b, cleanup <close> = pair()
    b:set_timeout(0.02)
    failure_of(b:read(), errors.TimeoutError)
    local ok, e = pcall(function() for _ in b do end end)
    assert.is_false(ok)
    is_error(errors.TimeoutError, e)
    a:write('late')
    b:set_timeout()
    assert.equal('late', await(b:read()))
  end))

  it('can be written to when the peer has ended its side', waiting(function()
    local a, b, cleanup <close> = pair()
    a:write('question')
    await(a:shutdown())
    assert.equal('question', await(b:read('a')))
    await(b:write('answer'))
    b:close()
    assert.equal('answer', await(a:read('a')))
  end))

  it('takes no more output after shutdown', waiting(function()
    local a, b, cleanup <close> = pair()
    await(a:shutdown())
    await(a:shutdown())
    failure_of(a:write('x'), errors.ConnectionDone)
    assert.is_nil(await(b:read()))
  end))

  it('keeps the order of many small writes of a turn', waiting(function()
    local a, b, cleanup <close> = pair()
    local expected = {}
    for i = 1, 5000 do
      expected[i] = ('%d;'):format(i)
      a:write(expected[i])
    end
    a:shutdown()
    assert.equal(table.concat(expected), await(b:read('a')))
  end))

  it('sends what was written before a close', waiting(function()
    local a, b, cleanup <close> = pair()
    local data = ('0123456789abcdef'):rep(1024 * 256)
    a:write(data)
    local closed = a:close()
    assert.is_true(a.closed)
    assert.is_false(closed.called)
    assert.is_true(data == await(b:read('a')))
    assert.is_true(await(closed))
    assert.is_true(await(a:close()))
  end))

  it('gives everybody who waits an outcome when it is closed', waiting(function()
    local a, b, cleanup <close> = pair()
    local data = ('x'):rep(1024 * 1024)
    local writes = {}
    for i = 1, 20 do writes[i] = a:write(data) end
    local shut = a:shutdown()
    local reads = { a:read(), a:read('l'), a:read(5) }
    local iterating = coop.spawn(function() for _ in a do end end)
    pass()
    assert.is_false(writes[20].called)
    a:close()
    for _, d in ipairs(reads) do failure_of(d, errors.ConnectionDone, a.peer) end
    failure_of(iterating, errors.ConnectionDone)
    failure_of(writes[20], errors.ConnectionDone)
    failure_of(shut, errors.ConnectionDone)
    assert.equal(20 * #data, #await(b:read('a')))
  end))

  it('is closed once, by whomever, also in its own read loop', waiting(function()
    local a, b, cleanup <close> = pair()
    local other = a:read(1000)
    local slow = {}
    for i = 1, 10 do slow[i] = a:write(('x'):rep(1024 * 1024)) end
    b:write('now')
    local ok, e = pcall(function()
      other:cancel()
      for _ in a do
        a:close()
        a:close()
      end
    end)
    assert.is_false(ok)
    is_error(errors.ConnectionDone, e)
    failure_of(a:read(), errors.ConnectionDone)
    failure_of(a:write('x'), errors.ConnectionDone)
    failure_of(a:shutdown(), errors.ConnectionDone)
    failure_of(slow[10], errors.ConnectionDone)
    failure_of(other, errors.CancelledError)
    a:abort()
    assert.is_true(await(a:close()))
    pcall(await, b:read('a'))
  end))

  it('is closed at the end of the block that it is a variable of', waiting(function()
    local a, b, cleanup <close> = pair()
    do
      local held <close> = a
      a:write('bye')
    end
    assert.is_true(a.closed)
    assert.equal('bye', await(b:read('a')))
  end))

  it('tells a reset from an end', waiting(function()
    local a, b, cleanup <close> = pair()
    local reading = b:read()
    local stuck
    repeat stuck = b:write(('x'):rep(1024 * 1024)) until not stuck.called
    a:abort()
    local e = failure_of(reading, errors.ConnectionLost, b.peer, 'ECONNRESET')
    assert.equal('ECONNRESET', e.code)
    assert.equal(b.peer, e.peer)
    failure_of(stuck, errors.ConnectionLost)
    failure_of(b:read(), errors.ConnectionLost)
    failure_of(b:write('x'), errors.ConnectionLost)
    failure_of(a:read(), errors.ConnectionDone)
  end))

  it('gives what came before a reset first', waiting(function()
    local a, b, cleanup <close> = pair()
    a:write('line\nrest')
    assert.equal('line', await(b:read('l')))
    a:abort()
    pass()
    assert.equal('rest', await(b:read()))
    failure_of(b:read(), errors.ConnectionLost)
  end))

  it('makes a writer wait for a peer that does not read', waiting(function()
    local a, b, cleanup <close> = pair()
    local block, count = ('x'):rep(64 * 1024), 0
    local writing = coop.spawn(function()
      for _ = 1, 1024 do
        await(a:write(block))
        count = count + 1
      end
      a:shutdown()
    end)
    local taken, same = 0, 0
    while same < 5 do -- it has come to rest
      pass()
      taken, same = count, count == taken and same + 1 or 0
    end
    assert.is_true(taken < 512, 'written without a reader: ' .. taken)
    local total = 0
    for piece in b do total = total + #piece end
    await(writing)
    assert.equal(1024 * #block, total)
  end))

  it('takes nothing in while nobody reads', waiting(function()
    local a, b, cleanup <close> = pair()
    local block = ('x'):rep(64 * 1024)
    coop.spawn(function()
      for _ = 1, 2048 do await(a:write(block)) end
      a:close()
    end)
    collectgarbage()
    local before, peak, total = collectgarbage 'count', 0, 0
    for piece in b do
      total = total + #piece
      if total % (16 * #block) < #piece then pass(0) end
      if total % (64 * #block) < #piece then collectgarbage() end
      peak = math.max(peak, collectgarbage 'count')
    end
    assert.equal(2048 * #block, total)
    assert.is_true(peak - before < 32 * 1024, ('%.0f KB more'):format(peak - before))
  end))

  it('lets others have their turn while it floods', waiting(function()
    local a, b, cleanup <close> = pair()
    local block, turns = ('x'):rep(64 * 1024), 0
    local ticking = coop.LoopingCall(function() turns = turns + 1 end)
    ticking:start(0)
    coop.spawn(function()
      for _ = 1, 500 do await(a:write(block)) end
      a:close()
    end)
    for _ in b do end
    ticking:stop()
    assert.is_true(turns > 10, turns .. ' turns')
  end))

  it('has a peer, a text and a type, and hides the rest', waiting(function()
    local a, b, cleanup <close> = pair()
    assert.matches('^127%.0%.0%.1:%d+$', a.peer)
    assert.matches('^127%.0%.0%.1:%d+$', b.peer)
    assert.equal('Connection', coop.type(a))
    assert.matches('^Connection: 0x%x+ %(127%.0%.0%.1:%d+%)$', tostring(a))
    assert.equal('coop.Connection', getmetatable(a))
    assert.is_false(pcall(setmetatable, a, {}))
    assert.is_false(a.closed)
    assert.is_nil(a.nothing)
    assert.is_false(pcall(function() a.peer = 'x' end))
    a:close()
    assert.is_true(a.closed)
    assert.matches('closed', tostring(a))
    assert.is_string(a.peer)
  end))

  it('refuses what makes no sense, and changes nothing', waiting(function()
    local a, b, cleanup <close> = pair()
    misuse(function() a:read('n') end, 'read', '"n"')
    misuse(function() a:read(-1) end, 'read', '-1')
    misuse(function() a:read(1.5) end, 'read', '1.5')
    misuse(function() a:read({}) end, 'read', 'table')
    misuse(function() a:write() end, 'write', 'string expected, got no value')
    misuse(function() a:write({}) end, 'write', 'string expected, got table')
    misuse(function() a:set_timeout(-1) end, 'set_timeout')
    misuse(function() a:set_timeout('1') end, 'set_timeout')
    misuse(function() a:set_line_max(0) end, 'set_line_max')
    for _, name in ipairs {
      'read', 'write', 'shutdown', 'close', 'abort', 'set_timeout', 'set_line_max',
    } do
      for _, other in ipairs { io.stdout, coop.Deferred(), coop.succeed(1), 5, {} } do
        misuse(function() a[name](other, 'x') end, name, 'Connection expected')
      end
      misuse(function() a[name]() end, name, 'Connection expected, got no value')
    end
    a:write('still there')
    assert.equal('still there', await(b:read()))
  end))

  it('is kept while somebody waits for it', waiting(function()
    local a, _, cleanup <close> = pair()
    local got
    do
      local server = listen(function(conn)
        await(conn:read())
        await(conn:write('answer'))
      end)
      local conn = connect(server)
      conn:write('question')
      conn:read():add_callback(function(block) got = block end)
      server:close()
    end
    for _ = 1, 5 do
      collectgarbage()
      collectgarbage()
      pass()
    end
    assert.equal('answer', got)
    assert.is_false(a.closed)
  end))

  it('is closed when nobody has it any more', waiting(function()
    local ended = coop.Deferred()
    local server = listen(function(conn) ended:callback(await(conn:read('a'))) end)
    local function start() connect(server):write('last words') end
    coop.await(coop.inline_callbacks(start)())
    for _ = 1, 5 do
      collectgarbage()
      collectgarbage()
      pass()
    end
    assert.equal('last words', await(ended))
    server:close()
  end))

  it('survives that scripts fire its Deferreds themselves', waiting(function()
    local a, b, cleanup <close> = pair()
    local read = b:read()
    read:callback('mine')
    a:write('one')
    assert.equal('mine', await(read))
    pass()
    a:write('two')
    assert.matches('two$', await(b:read()))
  end))
end)

describe('connect', function()

  it('fails where nobody listens', waiting(function()
    local server = listen(upper)
    local port = server.port
    server:close()
    local e = failure_of(net.connect('127.0.0.1', port), errors.ConnectionRefused,
      'connection refused', '127.0.0.1:' .. port)
    assert.equal('ECONNREFUSED', e.code)
    failure_of(net.connect('localhost', port), errors.ConnectionRefused)
    failure_of(net.connect('unix:' .. temporary_path()), errors.ConnectionRefused, 'ENOENT')
  end))

  it('fails for a name that is not found', waiting(function()
    local e = failure_of(net.connect('no-such-name.invalid', 80), errors.ConnectionRefused,
      'no-such-name.invalid')
    assert.matches('^EAI_', e.code)
  end))

  it('takes names and addresses', waiting(function()
    local server = net.listen('localhost', 0, upper)
    for _, host in ipairs { 'localhost', '127.0.0.1' } do
      local conn = await(net.connect(host, server.port))
      await(conn:write('name'))
      assert.equal('NAME', await(conn:read()))
      conn:close()
    end
    server:close()
  end))

  it('reaches IPv6, where there is any', waiting(function()
    local ok, server = pcall(net.listen, '::1', 0, upper)
    if not ok then return pending('no IPv6: ' .. server) end
    for _, host in ipairs { '::1', '[::1]' } do
      local conn = await(net.connect(host, server.port))
      assert.equal('[::1]:' .. server.port, conn.peer)
      await(conn:write('six'))
      assert.equal('SIX', await(conn:read()))
      conn:close()
    end
    server:close()
  end))

  it('reaches Unix sockets', waiting(function()
    local path = temporary_path()
    local seen
    local server = net.listen('unix:' .. path, nil, function(conn)
      seen = conn.peer
      upper(conn)
    end)
    assert.is_nil(server.port)
    local conn = await(net.connect('unix:' .. path))
    assert.equal('unix:' .. path, conn.peer)
    await(conn:write('path'))
    await(conn:shutdown())
    assert.equal('PATH', await(conn:read('a')))
    assert.equal('unix:' .. path, seen)
    conn:close()
    assert.is_true(exists(path))
    server:close()
    assert.is_false(exists(path))
  end))

  it('serves more clients of a Unix socket than its queue holds', waiting(function()
    local path = temporary_path()
    local server = net.listen('unix:' .. path, nil, upper, { backlog = 1 })
    local clients = {}
    for i = 1, 50 do
      clients[i] = coop.spawn(function()
        local conn <close> = await(net.connect('unix:' .. path))
        await(conn:write('client' .. i))
        return await(conn:read())
      end)
    end
    for i, got in ipairs(await(coop.gather_results(clients))) do
      assert.equal('CLIENT' .. i, got)
    end
    server:close()
  end))

  it('never cuts a path or a name short', waiting(function()
    local long = temporary_path() .. ('x'):rep(200)
    failure_of(net.connect('unix:' .. long), errors.ConnectionRefused, 'ENAMETOOLONG')
    misuse(function() net.listen('unix:' .. long, nil, upper) end, 'listen', 'ENAMETOOLONG')
    for _, n in ipairs { 254, 255, 256, 257, 5000 } do
      failure_of(net.connect(('a'):rep(n), 80), errors.ConnectionRefused)
    end
    failure_of(net.connect('xn--' .. ('\255'):rep(40), 80), errors.ConnectionRefused)
    misuse(function() net.connect('127.0.0.1\0.example', 80) end, 'connect', 'NUL')
    misuse(function() net.listen('127.0.0.1\0.example', 80, upper) end, 'listen', 'NUL')
    misuse(function() net.connect('', 80) end, 'connect', 'empty')
    misuse(function() net.connect('unix:', 80) end, 'connect', 'empty')
  end))

  it('refuses what is no port, host, protocol or option', waiting(function()
    for _, port in ipairs { -1, 65536, 1.5, 'http', '80', 0 / 0, 1 / 0, {}, true, 0 } do
      misuse(function() net.connect('127.0.0.1', port) end, 'connect', 'port')
      if port ~= 0 then
        misuse(function() net.listen('127.0.0.1', port, upper) end, 'listen', 'port')
      end
    end
    misuse(function() net.connect('127.0.0.1') end, 'connect', 'port', 'nil')
    misuse(function() net.connect(5, 80) end, 'connect', 'host', 'number')
    misuse(function() net.listen(nil, 80, upper) end, 'listen', 'host', 'nil')
    misuse(function() net.listen('127.0.0.1', 0) end, 'listen', '#3', 'function')
    misuse(function() net.connect('127.0.0.1', 80, 'x') end, 'connect', '#3')
    misuse(function() net.connect('127.0.0.1', 80, nil, 'x') end, 'connect', '#4')
    misuse(function() net.connect('127.0.0.1', 80, { speed = 1 }) end, 'connect', 'speed')
    misuse(function() net.connect('127.0.0.1', 80, { timeout = -1 }) end, 'connect', 'timeout')
    misuse(function() net.listen('127.0.0.1', 0, upper, { backlog = 0 }) end, 'backlog')
  end))

  it('can be cancelled', waiting(function()
    local server = listen(upper)
    local d = net.connect('127.0.0.1', server.port)
    d:cancel()
    failure_of(d, errors.CancelledError)
    local looked_up = net.connect('no-such-name.invalid', 80)
    looked_up:cancel()
    failure_of(looked_up, errors.CancelledError)
    server:close()
  end))

  it('runs a protocol, and closes the connection when that ends', waiting(function()
    local server = listen(upper)
    local got
    local conn = await(net.connect('127.0.0.1', server.port, function(c)
      await(c:write('protocol'))
      got = await(c:read())
    end))
    assert.equal('Connection', coop.type(conn))
    while not conn.closed do pass() end
    assert.equal('PROTOCOL', got)
    server:close()
  end))
end)

describe('a server', function()

  it('tells its port, and raises when that is in use', waiting(function()
    local server = listen(upper)
    assert.equal('integer', math.type(server.port))
    assert.equal('Server', coop.type(server))
    assert.equal('Server (127.0.0.1:' .. server.port .. ')', tostring(server))
    misuse(function() net.listen('127.0.0.1', server.port, upper) end, 'listen',
      'EADDRINUSE', '127.0.0.1:' .. server.port)
    misuse(function() net.listen('192.0.2.1', 0, upper) end, 'listen', 'EADDRNOTAVAIL')
    misuse(function() net.listen('no-such-name.invalid', 0, upper) end, 'listen', 'EAI_')
    server:close()
    server:close()
    local again = net.listen('127.0.0.1', server.port, upper)
    again:close()
    misuse(function() server.close({}) end, 'close', 'Server expected')
  end))

  it('serves many at once', waiting(function()
    local server = listen(upper)
    local clients = {}
    for i = 1, 200 do
      clients[i] = coop.spawn(function()
        local conn <close> = connect(server)
        for round = 1, 5 do
          await(conn:write(('client %d %d\n'):format(i, round)))
          assert.equal(('CLIENT %d %d'):format(i, round), await(conn:read('l')))
        end
      end)
    end
    await(coop.gather_results(clients))
    server:close()
  end))

  it('takes no more connections once closed; those that it has go on', waiting(function()
    local server = listen(upper)
    local conn <close> = connect(server)
    server:close()
    failure_of(net.connect('127.0.0.1', server.port), errors.ConnectionRefused)
    await(conn:write('still'))
    assert.equal('STILL', await(conn:read()))
  end))

  it('closes a connection whose handler ends, and reports a failure', waiting(function()
    local reported = coop.Deferred()
    local previous = coop.on_unhandled(function(f) reported:callback(f.value) end)
    local server, conns = listen(function(conn)
      if await(conn:read('l')) == 'fail' then error('handler failed', 0) end
      conn:write('done')
    end)
    local conn = connect(server)
    await(conn:write('end\n'))
    assert.equal('done', await(conn:read('a')))
    conn:close()
    conn = connect(server)
    await(conn:write('fail\n'))
    assert.is_nil(await(conn:read()))
    conn:close()
    assert.equal('handler failed', await(reported))
    coop.on_unhandled(previous)
    assert.is_true(conns[1].closed and conns[2].closed)
    server:close()
  end))

  it('waits for a Deferred that its handler returns', waiting(function()
    local server = listen(function(conn) return coop.sleep(0.02):add_callback(function()
      return conn:write('later')
    end) end)
    local conn <close> = connect(server)
    assert.equal('later', await(conn:read('a')))
    server:close()
  end))
end)

describe('a process with sockets', function()
  child.each(function(name, execute)
    describe('under ' .. name, function()
      local function run(text, ...)
        return execute('local coop, net = require "coop", require "coop.net"\n' ..
          'coop.run(function(...)\n' .. text .. '\nend, ...)', ...)
      end

      it('lives until its server is closed', function()
        local r = execute([[
          local coop, net = require 'coop', require 'coop.net'
          local server = net.listen('127.0.0.1', 0, function() end)
          coop.call_later(0.1, function() print 'closing' server:close() end)
          if not coop.reactor.running then coop.reactor:run() end
        ]])
        assert.same({ out = 'closing\n', err = '', status = 0 }, r)
      end)

      it('is not kept by a connection that nobody waits for', function()
        local r = run [[
          local server = net.listen('127.0.0.1', 0, function(conn)
            conn:read()
            coop.await(conn:read())
          end)
          kept = coop.await(net.connect('127.0.0.1', server.port))
          kept:read():cancel()
          server:close()
          kept:close()
          print 'end'
        ]]
        assert.same({ 'end\n', 0 }, { r.out, r.status })
      end)

      it('is not killed by writing to a peer that is gone', function()
        local r = run [[
          local server = net.listen('127.0.0.1', 0, function(conn)
            coop.await(conn:read())
            conn:abort()
          end)
          local conn = coop.await(net.connect('127.0.0.1', server.port))
          coop.await(conn:write('x'))
          coop.await(coop.sleep(0.05))
          local outcomes = {}
          for _ = 1, 5 do
            local ok, e = pcall(coop.await, conn:write(('x'):rep(100000)))
            local lost = not ok and coop.errors.ConnectionLost:is(e) and 'lost'
            outcomes[#outcomes + 1] = ok and 'sent' or lost or tostring(e)
          end
          print(outcomes[5])
          server:close()
        ]]
        assert.same({ out = 'lost\n', err = '', status = 0 }, r)
      end)

      it('goes on accepting after it has run out of descriptors', function()
        local r = run [[
          if not arg[1] then
            local limited = ('ulimit -n 64; exec %s %s limited'):format(arg[-1], arg[0])
            os.exit((select(3, os.execute(limited))))
          end
          local served = 0
          local server = net.listen('127.0.0.1', 0, function(conn)
            served = served + 1
            coop.await(conn:read())
          end)
          local clients = {}
          for i = 1, 64 do
            local ok, conn = pcall(coop.await, net.connect('127.0.0.1', server.port))
            if not ok then
              print(coop.errors.ConnectionRefused:is(conn), conn.code)
              break
            end
            clients[i] = conn
          end
          for i = 1, #clients // 2 do clients[i]:close() end
          while served < #clients do coop.await(coop.sleep(0.01)) end
          local conn = coop.await(net.connect('127.0.0.1', server.port))
          coop.await(conn:write('x'))
          for _, c in ipairs(clients) do c:close() end
          conn:close()
          server:close()
        ]]
        assert.same({ 'true\tEMFILE\n', '', 0 },
          { r.out, r.err, r.status })
      end)

      it('is closed in good order with everything in flight', function()
        local r = execute [[
          local coop, net = require 'coop', require 'coop.net'
          coop.run(function()
            local server = net.listen('127.0.0.1', 0, function() coop.await(coop.sleep(60)) end)
            local path = os.tmpname()
            os.remove(path)
            net.listen('unix:' .. path, nil, print)
            local conn = coop.await(net.connect('127.0.0.1', server.port))
            for _ = 1, 50 do conn:write(('x'):rep(1024 * 1024)) end
            conn:write('more')
            conn:read()
            local other = coop.await(net.connect('127.0.0.1', server.port))
            other:write('a') other:write('b') other:write('c')
            net.connect('127.0.0.1', server.port)
            net.connect('localhost', server.port)
            net.connect('unix:' .. path)
            local closing = coop.await(net.connect('127.0.0.1', server.port))
            for _ = 1, 50 do closing:write(('x'):rep(1024 * 1024)) end
            closing:close()
            io.stdout:write(path)
          end)
          os.exit(7, true)
        ]]
        assert.same({ '', 7 }, { r.err, r.status })
        assert.is_false(exists(r.out))
      end)

      it('survives a peer that is killed in the middle', function()
        local r = run [[
          local got = 0
          local over = coop.Deferred()
          local server = net.listen('127.0.0.1', 0, function(conn)
            local pid = coop.await(conn:read('l'))
            for block in conn do
              got = got + #block
              if pid and got > 100000 then
                os.execute('kill -9 ' .. pid)
                pid = nil
              end
            end
            over:callback()
          end)
          local script = ([=[
            local file = io.open('/proc/self/stat')
            local pid = file:read('n')
            file:close()
            local coop, net = require 'coop', require 'coop.net'
            coop.run(function()
              local conn = coop.await(net.connect('127.0.0.1', %d))
              coop.await(conn:write(pid .. '\n'))
              while true do coop.await(conn:write(('x'):rep(10000))) end
            end)
          ]=]):format(server.port)
          local name = os.tmpname()
          local file = io.open(name, 'w')
          file:write(script)
          file:close()
          os.execute(arg[-1] .. ' ' .. name .. ' >/dev/null 2>&1 &')
          coop.await(over)
          os.remove(name)
          print(got > 100000)
          server:close()
        ]]
        assert.same({ 'true\n', 0 }, { r.out, r.status }, r.err)
      end)
    end)
  end)
end)

describe('luv beside coop', function()
  local ok, uv = pcall(require, 'luv')
  if not ok then return pending('luv', function() end) end

  it('has its timers on the same loop', waiting(function()
    local order, done = {}, coop.Deferred()
    local timer = uv.new_timer()
    uv.update_time() -- luv's timers count from when the loop last looked
    timer:start(30, 0, function()
      order[#order + 1] = 'luv'
      timer:close()
      done:callback()
    end)
    coop.call_later(0.01, function() order[#order + 1] = 'before' end)
    coop.call_later(0.06, function() order[#order + 1] = 'after' end)
    await(done)
    await(coop.sleep(0.05))
    assert.same({ 'before', 'luv', 'after' }, order)
  end))

  it('talks to a server of coop', waiting(function()
    local server = listen(upper)
    local got = coop.Deferred()
    local tcp = uv.new_tcp()
    tcp:connect('127.0.0.1', server.port, function()
      tcp:write('from luv')
      tcp:read_start(function(_, data)
        tcp:close()
        got:callback(data)
      end)
    end)
    assert.equal('FROM LUV', await(got))
    server:close()
  end))

  it('serves a client of coop', waiting(function()
    local tcp = uv.new_tcp()
    tcp:bind('127.0.0.1', 0)
    tcp:listen(10, function()
      local peer = uv.new_tcp()
      tcp:accept(peer)
      peer:read_start(function(_, data)
        if data then peer:write(data .. '!') else peer:close() end
      end)
    end)
    local conn = await(net.connect('127.0.0.1', tcp:getsockname().port))
    await(conn:write('hello'))
    assert.equal('hello!', await(conn:read()))
    await(conn:shutdown())
    assert.is_nil(await(conn:read()))
    conn:close()
    tcp:close()
  end))

  it('has its errors reported, and does not end the process', waiting(function()
    local reported = coop.Deferred()
    local previous = coop.on_unhandled(function(f) reported:callback(f.value) end)
    local timer = uv.new_timer()
    timer:start(1, 0, function()
      timer:close()
      error('in a callback of luv', 0)
    end)
    assert.equal('in a callback of luv', await(reported))
    coop.on_unhandled(previous)
  end))

  it('may not run the loop, which is coop\'s and runs already, nor walk its handles', function()
    coop.run(function()
      await(coop.sleep(0))
      misuse(function() uv.run 'nowait' end, 'luv.run', 'runs already')
    end)
    helper.raises(errors.Unsupported, function() uv.walk(print) end, 'luv.walk')
  end)

  it('may run it where nothing else does, with all that coop has on it', waiting(function()
    local r = child.coop [[
      local coop, uv = require 'coop', require 'luv'
      local d = coop.Deferred()
      local waiting = coop.spawn(function()
        print('waited for', coop.await(d))
        coop.await(coop.sleep(0.001))
      end)
      waiting:add_callback(function() print 'slept' end)
      local timer = uv.new_timer()
      timer:start(1, 0, function()
        timer:close()
        d:callback 'a timer of luv'
        print(pcall(uv.run))
      end)
      uv.run()
      print 'over'
    ]]
    assert.same({ 'waited for\ta timer of luv\nfalse\tluv.run: the loop is coop\'s, and runs ' ..
      'already\nslept\nover\n', 0 }, { r.out, r.status }, r.err)
  end))

  -- luv frees what is collected, and takes for granted that what it closes has been closed by then.
  child.each(function(name, execute)
    it('may be closing handles when the state ends, under ' .. name, function()
      local r = execute [[
        local coop, uv = require 'coop', require 'luv'
        local before = uv.new_timer()
        package.loaded.luv = nil
        uv = require 'luv'
        for _ = 1, 50 do
          uv.new_timer():close()
          uv.new_tcp():close(function() end)
          uv.close(uv.new_udp())
          uv.new_timer():start(60000, 0, print)
        end
        before:close()
        coop.run(function()
          local timer, d = uv.new_timer(), coop.Deferred()
          timer:start(1, 0, function()
            timer:close()
            d:callback(pcall(timer.close, timer))
          end)
          print(coop.await(d))
        end)
        os.exit(0, true)
      ]]
      assert.same({ 0, 'false' }, { r.status, r.out:match '%f[%w]false' }, r.err)
    end)
  end)

  it('keeps a loop of its own when it was there before coop', function()
    local r = child.lua [[
      local uv = require 'luv'
      local timer = uv.new_timer()
      timer:start(1, 0, function() timer:close() print 'before' end)
      package.loaded.luv = nil
      local coop = require 'coop'
      uv = require 'luv'
      coop.run(function() coop.await(coop.sleep(0.01)) print(uv.run()) end)
      os.exit(0, true)
    ]]
    assert.same({ 'before\nfalse\n', 0 }, { r.out, r.status }, r.err)
  end)

  it('leaves a connect to a peer that does not answer to its timeout', waiting(function()
    local tcp = uv.new_tcp()
    tcp:bind('127.0.0.1', 0)
    tcp:listen(1, function() end)
    local port = tcp:getsockname().port
    local attempts, timed_out = {}, 0
    for i = 1, 12 do attempts[i] = net.connect('127.0.0.1', port, { timeout = 0.2 }) end
    for _, outcome in ipairs(await(coop.DeferredList(attempts, { consume_errors = true }))) do
      if outcome[1] then
        outcome[2]:close()
      else
        is_error(errors.TimeoutError, outcome[2].value, '0.2')
        timed_out = timed_out + 1
      end
    end
    tcp:close()
    assert.is_true(timed_out > 0)
  end))
end)
