local coop = require 'coop'
local helper = require 'tests.spec.helper'

local errors = coop.errors
local cap, pending, misuse, raises = helper.cap, helper.pending, helper.misuse, helper.raises
local value_of, error_of, is_error = helper.value_of, helper.error_of, helper.is_error
local run, values = helper.run, helper.values

local function cancelled(d) is_error(errors.CancelledError, (error_of(d))) end

--- Adds to `d` a handler that writes `name`.
local function note(log, name, d)
  return d:add_callback(function(v)
    log[#log + 1] = name
    return v
  end)
end

describe('a DeferredLock', function()

  it('SYNC-01 is held by one at a time', function()
    local lock = coop.DeferredLock()
    assert.is_false(lock.locked)
    local first = cap(lock:acquire())
    assert.equal(1, first.n)
    assert.is_true(lock.locked)
    local second = cap(lock:acquire())
    assert.equal(0, second.n)
    lock:release()
    assert.equal(1, second.n)
    assert.is_true(lock.locked)
    lock:release()
    assert.is_false(lock.locked)
  end)

  it('SYNC-02 is held by run until the Deferred of the function has fired', function()
    local lock, gate, got = coop.DeferredLock(), coop.Deferred(), nil
    local d = lock:run(function(...)
      got = table.pack(...)
      return gate
    end, 1, nil, 3)
    assert.same({ n = 3, 1, nil, 3 }, got)
    assert.is_true(lock.locked)
    pending(d)
    local waiting = cap(lock:acquire())
    assert.equal(0, waiting.n)
    gate:callback 'v'
    assert.equal(1, waiting.n)
    assert.is_true(lock.locked)
    assert.equal('v', value_of(d))
  end)

  it('is free after run has a plain result', function()
    local lock, held = coop.DeferredLock(), nil
    local d = lock:run(function()
      held = lock.locked
      return 'v'
    end)
    assert.is_true(held)
    assert.is_false(lock.locked)
    assert.equal('v', value_of(d))
  end)

  it('runs the function of run only when it is free', function()
    local lock, called = coop.DeferredLock(), false
    lock:acquire()
    local d = lock:run(function() called = true return 'v' end)
    assert.is_false(called)
    lock:release()
    assert.is_true(called)
    assert.equal('v', value_of(d))
    assert.is_false(lock.locked)
  end)

  it('SYNC-05 stays held when an acquire that has it is cancelled', function()
    local lock = coop.DeferredLock()
    local d = lock:acquire()
    d:cancel()
    assert.is_true(lock.locked)
    assert.equal(lock, value_of(d))
  end)

  it('SYNC-06 fails a waiting acquire that is cancelled', function()
    local lock = coop.DeferredLock()
    lock:acquire()
    local d = lock:acquire()
    d:cancel()
    cancelled(d)
    assert.is_true(lock.locked)
    lock:release()
    assert.is_false(lock.locked)
  end)

  it('SYNC-07 is what acquire fires with', function()
    local lock = coop.DeferredLock()
    local first, second = lock:acquire(), lock:acquire()
    lock:release()
    assert.is_true(rawequal(lock, value_of(first)))
    assert.is_true(rawequal(lock, value_of(second)))
  end)

  it('SYNC-08 refuses release when nobody holds it', function()
    local lock = coop.DeferredLock()
    misuse(function() lock:release() end, 'release')
    assert.is_false(lock.locked)
    assert.equal(1, cap(lock:acquire()).n)
    lock:release()
    misuse(function() lock:release() end, 'release')
  end)

  for name, value in values() do
    it('SYNC-09 is free after run has failed with ' .. name, function()
      local lock = coop.DeferredLock()
      local d = lock:run(function() error(value, 0) end)
      assert.is_true(rawequal(value, (error_of(d))))
      assert.is_false(lock.locked)
      d = lock:run(function() return coop.fail(value) end)
      assert.is_true(rawequal(value, (error_of(d))))
      assert.is_false(lock.locked)
    end)
  end

  it('SYNC-12 goes to those who wait in order, past those cancelled', function()
    local lock, log = coop.DeferredLock(), {}
    lock:acquire()
    local first = lock:acquire()
    note(log, 'first', first)
    note(log, 'second', lock:acquire())
    note(log, 'third', lock:acquire())
    first:cancel()
    cancelled(first)
    lock:release()
    assert.same({ 'second' }, log)
    lock:release()
    assert.same({ 'second', 'third' }, log)
    assert.is_true(lock.locked)
    lock:release()
    assert.is_false(lock.locked)
  end)

  it('SYNC-13 goes through a hundred thousand who release it at once', function()
    local lock, count = coop.DeferredLock(), 0
    lock:acquire()
    local order = true
    for i = 1, 100000 do
      lock:acquire():add_callback(function(held)
        count = count + 1
        order = order and count == i
        held:release()
      end)
    end
    lock:release()
    assert.equal(100000, count)
    assert.is_true(order)
    assert.is_false(lock.locked)
  end)

  it('goes through ten thousand coroutines and runs', function()
    local lock, count = coop.DeferredLock(), 0
    lock:acquire()
    for _ = 1, 10000 do
      coop.spawn(function()
        local held = coop.await(lock:acquire())
        count = count + 1
        held:release()
      end)
      lock:run(function() count = count + 1 end)
    end
    lock:release()
    assert.equal(20000, count)
    assert.is_false(lock.locked)
  end)

  it('released inside a hand-off goes on when the handlers of that one have run', function()
    local lock, log = coop.DeferredLock(), {}
    lock:acquire()
    local first = lock:acquire()
    first:add_callback(function(held)
      log[#log + 1] = 'first begins'
      held:release()
      log[#log + 1] = 'first has released'
    end)
    note(log, 'first ends', first)
    note(log, 'second', lock:acquire())
    lock:release()
    assert.same({ 'first begins', 'first has released', 'first ends', 'second' }, log)
    assert.is_true(lock.locked)
  end)

  it('is never seen free while it is handed on', function()
    local lock, seen = coop.DeferredLock(), {}
    lock:acquire()
    for i = 1, 3 do
      lock:acquire():add_callback(function(held)
        seen[i] = lock.locked
        held:release()
        if i < 3 then seen[i] = seen[i] and lock.locked end
      end)
    end
    lock:release()
    assert.same({ true, true, true }, seen)
    assert.is_false(lock.locked)
  end)

  it('has resumed the next body when release returns', function()
    local lock, log = coop.DeferredLock(), {}
    local function wait(name)
      return coop.spawn(function()
        coop.await(lock:acquire())
        log[#log + 1] = name
      end)
    end
    wait 'first'
    note(log, 'behind second', wait 'second')
    wait 'third'
    lock:release()
    assert.same({ 'first', 'second', 'behind second' }, log)
    coop.spawn(function()
      lock:release()
      log[#log + 1] = 'released in a body'
    end)
    assert.same({ 'first', 'second', 'behind second', 'third', 'released in a body' }, log)
  end)

  it('is released at the end of a block that holds it to be closed', function()
    local lock, log = coop.DeferredLock(), {}
    local gate = coop.Deferred()
    local d = coop.spawn(function()
      do
        local held <close> = coop.await(lock:acquire())
        assert.equal(lock, held)
        coop.await(gate)
        log[#log + 1] = lock.locked
      end
      log[#log + 1] = lock.locked
      return 'v'
    end)
    assert.is_true(lock.locked)
    gate:callback()
    assert.same({ true, false }, log)
    assert.equal('v', value_of(d))
  end)

  it('is released by its block in the running loop', run(function()
    local lock = coop.DeferredLock()
    do
      local _ <close> = coop.await(lock:acquire())
      assert.is_true(lock.locked)
    end
    assert.is_false(lock.locked)
  end))

  it('is released at the end of a block that is left by an error', function()
    local lock = coop.DeferredLock()
    local d = coop.spawn(function()
      local _ <close> = coop.await(lock:acquire())
      error('E', 0)
    end)
    assert.equal('E', (error_of(d)))
    assert.is_false(lock.locked)
  end)

  it('is released when the coroutine that holds it to be closed is cancelled', function()
    local lock = coop.DeferredLock()
    local d = coop.spawn(function()
      local _ <close> = coop.await(lock:acquire())
      coop.await(coop.Deferred())
    end)
    local waiting = cap(lock:acquire())
    d:cancel()
    cancelled(d)
    assert.equal(1, waiting.n)
    assert.is_true(lock.locked)
  end)

  it('never runs the function of a run that is cancelled while it waits', function()
    local lock, called = coop.DeferredLock(), false
    lock:acquire()
    local d = lock:run(function() called = true end)
    local next_one = cap(lock:acquire())
    d:cancel()
    cancelled(d)
    assert.equal(0, next_one.n)
    lock:release()
    assert.is_false(called)
    assert.equal(1, next_one.n)
    lock:release()
    assert.is_false(lock.locked)
  end)

  it('cancels what the function of a run returned, and is released', function()
    local lock, count = coop.DeferredLock(), 0
    local d = lock:run(function()
      return coop.Deferred(function() count = count + 1 end)
    end)
    d:cancel()
    assert.equal(1, count)
    cancelled(d)
    assert.is_false(lock.locked)
  end)

  it('cancels what the function of a run returned after it had waited', function()
    local lock, count = coop.DeferredLock(), 0
    lock:acquire()
    local d = lock:run(function()
      return coop.Deferred(function() count = count + 1 end)
    end)
    lock:release()
    assert.is_true(lock.locked)
    d:cancel()
    assert.equal(1, count)
    cancelled(d)
    assert.is_false(lock.locked)
  end)

  it('refuses to run what is no function, and stays free', function()
    local lock = coop.DeferredLock()
    misuse(function() lock:run(5) end, 'run', 'function', 'number')
    misuse(function() lock:run() end, 'run', 'function')
    assert.is_false(lock.locked)
  end)

  it('refuses a foreign self', function()
    local lock, semaphore = coop.DeferredLock(), coop.DeferredSemaphore(1)
    for _, name in ipairs { 'acquire', 'release', 'run' } do
      for _, self in ipairs { 5, 'text', {}, coop.Deferred(), coop.DeferredQueue() } do
        misuse(function() lock[name](self, print) end, name, 'DeferredLock')
        misuse(function() semaphore[name](self, print) end, name, 'DeferredSemaphore')
      end
      misuse(function() lock[name]() end, name, 'DeferredLock')
      misuse(function() lock[name](semaphore, print) end, name, 'DeferredLock')
      misuse(function() semaphore[name](lock, print) end, name, 'DeferredSemaphore')
    end
    assert.is_false(lock.locked)
    assert.equal(1, semaphore.tokens)
  end)
end)

describe('a DeferredSemaphore', function()

  it('SYNC-14 gives as many tokens as it has, then makes wait', function()
    local semaphore, gate = coop.DeferredSemaphore(13), coop.Deferred()
    local d = semaphore:run(function() return gate:add_callback(function() return 'v' end) end)
    assert.equal(12, semaphore.tokens)
    pending(d)
    gate:callback()
    assert.equal('v', value_of(d))
    assert.equal(13, semaphore.tokens)
    local count = 0
    for i = 1, 13 do
      semaphore:acquire():add_callback(function() count = count + 1 end)
      assert.equal(i, count)
      assert.equal(13 - i, semaphore.tokens)
    end
    local fourteenth = semaphore:acquire()
    local fifteenth = cap(semaphore:acquire())
    pending(fourteenth)
    fourteenth:cancel()
    cancelled(fourteenth)
    assert.equal(0, fifteenth.n)
    semaphore:release()
    assert.equal(1, fifteenth.n)
    assert.equal(0, semaphore.tokens)
    for i = 1, 13 do
      semaphore:release()
      assert.equal(i, semaphore.tokens)
    end
    assert.equal(13, count)
    assert.equal(1, fifteenth.n)
  end)

  it('SYNC-15 refuses to have no tokens', function()
    misuse(function() coop.DeferredSemaphore(0) end, 'DeferredSemaphore')
    misuse(function() coop.DeferredSemaphore(-1) end, 'DeferredSemaphore')
    misuse(function() coop.DeferredSemaphore(1.5) end, 'DeferredSemaphore')
    misuse(function() coop.DeferredSemaphore(0 / 0) end, 'DeferredSemaphore')
    misuse(function() coop.DeferredSemaphore(math.huge) end, 'DeferredSemaphore')
    misuse(function() coop.DeferredSemaphore 'x' end, 'DeferredSemaphore', 'string')
    misuse(function() coop.DeferredSemaphore() end, 'DeferredSemaphore')
  end)

  it('SYNC-16 is cancelled like a lock', function()
    local semaphore = coop.DeferredSemaphore(1)
    local first, second = semaphore:acquire(), semaphore:acquire()
    first:cancel()
    assert.equal(semaphore, value_of(first))
    assert.equal(0, semaphore.tokens)
    second:cancel()
    cancelled(second)
    semaphore:release()
    assert.equal(1, semaphore.tokens)
  end)

  it('SYNC-17 refuses release beyond its limit', function()
    local semaphore = coop.DeferredSemaphore(2)
    misuse(function() semaphore:release() end, 'release')
    assert.equal(2, semaphore.tokens)
    semaphore:acquire()
    semaphore:release()
    misuse(function() semaphore:release() end, 'release')
    assert.equal(2, semaphore.tokens)
    assert.equal(2, semaphore.limit)
  end)

  it('SYNC-18 is held by blocks', function()
    local semaphore, gate, log = coop.DeferredSemaphore(3), coop.Deferred(), {}
    local third, fourth
    local d = coop.spawn(function()
      do
        local outer <close> = coop.await(semaphore:acquire())
        assert.equal(semaphore, outer)
        log[1] = semaphore.tokens
        do
          local _ <close> = coop.await(semaphore:acquire())
          log[2] = semaphore.tokens
          third, fourth = cap(semaphore:acquire()), cap(semaphore:acquire())
          log[3], log[4] = third.n, fourth.n
          coop.await(gate)
        end
        log[5] = fourth.n
      end
      log[6] = semaphore.tokens
    end)
    gate:callback()
    assert.is_nil(value_of(d))
    assert.same({ 2, 1, 1, 0, 1, 1 }, log)
    semaphore:release()
    semaphore:release()
    assert.equal(3, semaphore.tokens)
  end)

  it('is what acquire fires with, and keeps its limit', function()
    local semaphore = coop.DeferredSemaphore(2)
    assert.equal(2, semaphore.limit)
    assert.equal(2, semaphore.tokens)
    assert.is_true(rawequal(semaphore, value_of(semaphore:acquire())))
    assert.equal(2, semaphore.limit)
    assert.equal(1, semaphore.tokens)
  end)

  it('lets as many run at once as it has tokens, in order', function()
    local semaphore, gates, started = coop.DeferredSemaphore(2), {}, {}
    local results = {}
    for i = 1, 5 do
      gates[i] = coop.Deferred()
      results[i] = semaphore:run(function(n)
        started[#started + 1] = n
        return gates[n]
      end, i)
    end
    assert.same({ 1, 2 }, started)
    gates[2]:callback 'two'
    assert.same({ 1, 2, 3 }, started)
    gates[1]:errback 'E'
    assert.same({ 1, 2, 3, 4 }, started)
    assert.equal('two', value_of(results[2]))
    assert.equal('E', (error_of(results[1])))
    for i = 3, 5 do gates[i]:callback(i) end
    for i = 3, 5 do assert.equal(i, value_of(results[i])) end
    assert.equal(2, semaphore.tokens)
  end)

  it('goes to those who wait in order', function()
    local semaphore, log = coop.DeferredSemaphore(1), {}
    semaphore:acquire()
    for i = 1, 3 do note(log, i, semaphore:acquire()) end
    for i = 1, 3 do
      semaphore:release()
      assert.equal(i, #log)
    end
    assert.same({ 1, 2, 3 }, log)
  end)

  it('goes through a hundred thousand who release it at once', function()
    local semaphore, count = coop.DeferredSemaphore(2), 0
    semaphore:acquire()
    semaphore:acquire()
    for _ = 1, 100000 do
      semaphore:acquire():add_callback(function(held)
        count = count + 1
        held:release()
      end)
    end
    semaphore:release()
    assert.equal(100000, count)
    assert.equal(1, semaphore.tokens)
    semaphore:release()
    assert.equal(2, semaphore.tokens)
  end)

  it('released inside a hand-off goes on when the handlers of that one have run', function()
    local semaphore, log = coop.DeferredSemaphore(1), {}
    semaphore:acquire()
    local first = semaphore:acquire()
    first:add_callback(function(held)
      held:release()
      log[#log + 1] = 'first has released'
    end)
    note(log, 'first ends', first)
    note(log, 'second', semaphore:acquire())
    semaphore:release()
    assert.same({ 'first has released', 'first ends', 'second' }, log)
  end)

  it('cancels what the function of a run returned, and gets its token back', function()
    local semaphore, count = coop.DeferredSemaphore(1), 0
    local d = semaphore:run(function()
      return coop.Deferred(function() count = count + 1 end)
    end)
    d:cancel()
    assert.equal(1, count)
    cancelled(d)
    assert.equal(1, semaphore.tokens)
  end)

  it('refuses to run what is no function, and keeps its tokens', function()
    local semaphore = coop.DeferredSemaphore(1)
    misuse(function() semaphore:run(5) end, 'run', 'function', 'number')
    assert.equal(1, semaphore.tokens)
  end)
end)

describe('a DeferredQueue', function()

  it('SYNC-21 without limits serves getters in order', function()
    local queue, seen = coop.DeferredQueue(), {}
    for i = 1, 10 do
      queue:get():add_callback(function(v) seen[i] = v end)
    end
    for i = 1, 10 do
      queue:put(i * i)
      assert.equal(i * i, seen[i])
      assert.is_nil(seen[i + 1])
    end
    assert.equal(0, #queue)
  end)

  it('stores what nobody waits for, in order', function()
    local queue = coop.DeferredQueue()
    for i = 1, 3 do
      queue:put(i)
      assert.equal(i, #queue)
    end
    for i = 1, 3 do
      assert.equal(i, value_of(queue:get()))
      assert.equal(3 - i, #queue)
    end
    pending(queue:get())
  end)

  it('SYNC-22 of size 0 stores nothing, of backlog 0 lets nobody wait', function()
    local queue = coop.DeferredQueue(0)
    local e = raises(errors.QueueOverflow, function() queue:put(1) end, 'put')
    assert.truthy(tostring(e):find('put', 1, true))
    assert.equal(0, #queue)
    local waiting = cap(queue:get())
    queue:put(2)
    assert.same({ n = 1, 2 }, waiting)
    queue = coop.DeferredQueue(nil, 0)
    e = raises(errors.QueueUnderflow, function() queue:get() end, 'get')
    assert.truthy(tostring(e):find('get', 1, true))
    queue:put(3)
    assert.equal(3, value_of(queue:get()))
  end)

  it('keeps what it has when a put beyond its size is refused', function()
    local queue = coop.DeferredQueue(2)
    queue:put 'a'
    queue:put 'b'
    raises(errors.QueueOverflow, function() queue:put 'c' end, 'put')
    assert.equal(2, #queue)
    assert.equal('a', value_of(queue:get()))
    queue:put 'd'
    assert.equal('b', value_of(queue:get()))
    assert.equal('d', value_of(queue:get()))
    assert.equal(0, #queue)
  end)

  it('keeps those who wait when a get beyond its backlog is refused', function()
    local queue = coop.DeferredQueue(nil, 2)
    local first, second = queue:get(), queue:get()
    raises(errors.QueueUnderflow, function() queue:get() end, 'get')
    first:cancel()
    cancelled(first)
    local third = queue:get()
    raises(errors.QueueUnderflow, function() queue:get() end, 'get')
    queue:put 'a'
    queue:put 'b'
    assert.equal('a', value_of(second))
    assert.equal('b', value_of(third))
  end)

  for name, value in values() do
    it('SYNC-25 hands on ' .. name, function()
      local queue = coop.DeferredQueue()
      queue:put(value)
      assert.equal(1, #queue)
      local got, count
      queue:get():add_callback(function(...) got, count = ..., select('#', ...) end)
      assert.equal(1, count)
      assert.is_true(rawequal(value, got))
      local waiting = cap(queue:get())
      queue:put(value)
      assert.equal(1, waiting.n)
      assert.is_true(rawequal(value, waiting[1]))
    end)
  end

  it('keeps the places of nils', function()
    local queue = coop.DeferredQueue()
    queue:put(nil)
    queue:put(1)
    queue:put(nil)
    assert.equal(3, #queue)
    assert.same({ n = 1 }, cap(queue:get()))
    assert.same({ n = 1, 1 }, cap(queue:get()))
    assert.same({ n = 1 }, cap(queue:get()))
    assert.equal(0, #queue)
  end)

  it('SYNC-26 serves another getter when it is filled inside the handler of one', function()
    local queue, log = coop.DeferredQueue(), {}
    local first = queue:get():add_callback(function(v)
      log[#log + 1] = 'first got ' .. v
      queue:put 'nested'
      log[#log + 1] = 'first has put'
    end)
    note(log, 'first ends', first)
    queue:get():add_callback(function(v) log[#log + 1] = 'second got ' .. v end)
    queue:put 'item'
    assert.same({ 'first got item', 'first has put', 'first ends', 'second got nested' }, log)
    assert.equal(0, #queue)
  end)

  it('keeps order when it is filled and emptied inside handlers', function()
    local queue, got = coop.DeferredQueue(), {}
    queue:get():add_callback(function(v)
      got[#got + 1] = v
      queue:put 'b'
      queue:put 'c'
    end)
    queue:get():add_callback(function(v) got[#got + 1] = v end)
    queue:put 'a'
    assert.same({ 'a', 'b' }, got)
    assert.equal(1, #queue)
    assert.equal('c', value_of(queue:get()))
  end)

  it('of size 0 takes inside a handler what a getter waits for, and no more', function()
    local queue, refused = coop.DeferredQueue(0), nil
    queue:get():add_callback(function()
      queue:put 'nested'
      refused = raises(errors.QueueOverflow, function() queue:put 'too much' end, 'put')
    end)
    local second = cap(queue:get())
    queue:put 'item'
    assert.same({ n = 1, 'nested' }, second)
    assert.truthy(refused)
    assert.equal(0, #queue)
  end)

  it('has resumed the getter when put returns, also in a body', function()
    local queue, log = coop.DeferredQueue(), {}
    local function getter()
      return coop.spawn(function()
        local value = coop.await(queue:get())
        log[#log + 1] = value
      end)
    end
    getter()
    note(log, 'behind the second', getter())
    queue:put 'one'
    assert.same({ 'one' }, log)
    coop.spawn(function()
      queue:put 'two'
      log[#log + 1] = 'put'
    end)
    assert.same({ 'one', 'two', 'behind the second', 'put' }, log)
  end)

  it('passes over a getter that was cancelled', function()
    local queue = coop.DeferredQueue()
    local first, second = queue:get(), queue:get()
    first:cancel()
    cancelled(first)
    queue:put 'v'
    assert.equal('v', value_of(second))
    assert.equal(0, #queue)
  end)

  it('does not take back what a getter has when that is cancelled', function()
    local queue = coop.DeferredQueue()
    queue:put 'v'
    local d = queue:get()
    d:cancel()
    assert.equal('v', value_of(d))
    assert.equal(0, #queue)
  end)

  it('goes through a hundred thousand getters that each put for the next', function()
    local queue, count = coop.DeferredQueue(), 0
    for _ = 1, 100000 do
      queue:get():add_callback(function(v)
        count = count + 1
        queue:put(v + 1)
      end)
    end
    queue:put(1)
    assert.equal(100000, count)
    assert.equal(100001, value_of(queue:get()))
  end)

  it('stores a hundred thousand and forgets what was taken', function()
    local queue, weak = coop.DeferredQueue(), setmetatable({}, { __mode = 'k' })
    for _ = 1, 100000 do
      local item = {}
      queue:put(item)
      weak[item] = true
    end
    for _ = 1, 100000 do queue:get() end
    collectgarbage()
    assert.is_nil(next(weak))
    assert.equal(0, #queue)
  end)

  it('refuses bad limits', function()
    for _, bad in ipairs { -1, 1.5, 'x', {}, false } do
      misuse(function() coop.DeferredQueue(bad) end, 'DeferredQueue')
      misuse(function() coop.DeferredQueue(nil, bad) end, 'DeferredQueue')
    end
    misuse(function() coop.DeferredQueue 'x' end, 'string')
    assert.equal(0, #coop.DeferredQueue(nil, nil))
  end)

  it('refuses a foreign self', function()
    local queue = coop.DeferredQueue()
    for _, name in ipairs { 'put', 'get' } do
      for _, self in ipairs { 5, 'text', {}, coop.Deferred(), coop.DeferredLock() } do
        misuse(function() queue[name](self, 1) end, name, 'DeferredQueue')
      end
      misuse(function() queue[name]() end, name, 'DeferredQueue')
    end
    assert.equal(0, #queue)
  end)
end)
