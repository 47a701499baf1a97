local coop = require 'coop'
local helper = require 'tests.spec.helper'
local fakes = require 'tests.spec.fakes'
local run, misuse, raises, is_error = helper.run, helper.misuse, helper.raises, helper.is_error
local value_of, error_of, pending = helper.value_of, helper.error_of, helper.pending
local logging, steps = fakes.logging, fakes.steps

local errors = coop.errors
local many = steps(1000000)

local s, c, log

-- A Cooperator on the scheduler `s` that makes one step in each tick, or what `predicate` allows.
local function cooperator(predicate, options)
  options = options or {}
  options.scheduler = s.schedule
  options.termination_predicate_factory = predicate or steps(1)
  return coop.Cooperator(options)
end

local function note(text)
  return function() log[#log + 1] = text end
end

local function add(name, n, hooks) return c:cooperate(logging(log, name, n, hooks)) end

local function setup()
  s, log = fakes.scheduler(), {}
  c = cooperator()
end

-- Steps everything to its end.
local function finish()
  for _ = 1, 100000 do
    if s.outstanding() == 0 then return end
    s.pump()
  end
  error('this never ends', 2)
end

local function words(text)
  local list = {}
  for word in text:gmatch '%S+' do list[#list + 1] = word end
  return list
end

describe('a Cooperator', function()
  before_each(setup)

  it('COOP-01 steps its tasks in turn', function()
    c = cooperator(many)
    local items = coop.generator(function(text)
      for item in text:gmatch '.' do
        log[#log + 1] = item
        coroutine.yield(item)
      end
    end)
    local ds = {}
    for i, text in ipairs { 'abc', '123', 'def', '456' } do ds[i] = c:coiterate(items(text)) end
    local all = coop.DeferredList(ds)
    s.pump()
    assert.same(words 'a 1 d 4 b 2 e 5 c 3 f 6', log)
    assert.equal(4, #value_of(all))
  end)

  it('has types of its own', function()
    assert.equal('Cooperator', coop.type(c))
    assert.equal('CooperativeTask', coop.type(add('a', 1)))
    assert.equal('Deferred', coop.type(c:coiterate {}))
    assert.equal('string', type(getmetatable(c)))
    assert.is_true(c.running)
  end)

  it('steps nothing before its scheduler says so', function()
    add('a', 3)
    assert.same({}, log)
    assert.equal(1, s.outstanding())
    s.pump()
    assert.same({ 'a0' }, log)
  end)

  it('COOP-02 gives the iterator itself when it is done', function()
    local generator = coop.generator(function() coroutine.yield(1) end)()
    local list, f = { 1 }, logging(log, 'a', 1)
    local co = coroutine.create(function() coroutine.yield(1) end)
    for _, iterator in ipairs { generator, list, f, co } do
      local done = c:cooperate(iterator):when_done()
      finish()
      assert.equal(iterator, value_of(done))
    end
  end)

  it('COOP-02a gives the iterator itself that was at its end already', function()
    local generator = coop.generator(function() coroutine.yield(1) end)()
    local co = coroutine.create(function() coroutine.yield(1) end)
    for _, iterator in ipairs { generator, co } do
      local first = c:coiterate(iterator)
      finish()
      assert.equal(iterator, value_of(first))
      local second = c:coiterate(iterator)
      finish()
      assert.equal(iterator, value_of(second))
    end
  end)

  it('COOP-03 fails a task with the error of its iterator', function()
    local e = {}
    local d = c:coiterate(function() error(e) end)
    finish()
    assert.equal(e, (error_of(d)))
  end)

  it('fails a task with an error value of any type', function()
    for name, value in helper.values() do
      local d = c:cooperate(function() error(value, 0) end):when_done()
      finish()
      assert.equal(value, (error_of(d)), name)
    end
  end)

  it('COOP-04 fails a task with the failure of a Deferred that it yielded', function()
    local d = coop.Deferred()
    local done = c:cooperate({ d, 2 }):when_done()
    s.pump()
    assert.equal(0, s.outstanding())
    pending(done)
    d:errback 'late'
    assert.equal('late', (error_of(done)))
    assert.equal(0, s.outstanding())
  end)

  it('COOP-05 fails a task with a failed Deferred that it yielded', function()
    local done = c:cooperate({ coop.fail 'before', 2 }):when_done()
    finish()
    assert.equal('before', (error_of(done)))
  end)

  it('COOP-06 ends its tick when the predicate says so', function()
    local i = 0
    c = cooperator(function() return function() return i == 10 end end)
    c:cooperate(function()
      i = i + 1
      return i <= 100 and i or nil
    end)
    s.pump()
    assert.equal(10, i)
    assert.equal(1, s.outstanding())
  end)

  it('COOP-09 asks the factory once in a tick and the predicate once after each step', function()
    local factories, asked = 0, 0
    c = cooperator(function()
      factories = factories + 1
      local left = 3
      return function()
        asked = asked + 1
        assert.equal(asked, #log)
        left = left - 1
        return left == 0
      end
    end)
    add('a', 3)
    c:cooperate(coop.generator(function()
      for _, name in ipairs { 'b0', 'b1', 'b2' } do
        log[#log + 1] = name
        coroutine.yield(coop.succeed(name))
      end
    end)())
    assert.equal(0, factories)
    s.pump()
    assert.same(words 'a0 b0 a1', log)
    assert.equal(1, factories)
    s.pump()
    assert.same(words 'a0 b0 a1 b1 a2 b2', log)
    assert.equal(2, factories)
    assert.equal(6, asked)
  end)

  it('COOP-09a asks nobody when there is no task', function()
    local asked = 0
    local thunk
    c = coop.Cooperator {
      scheduler = function(f)
        thunk = f
        return { cancel = function() end }
      end,
      termination_predicate_factory = function()
        return function()
          asked = asked + 1
          return true
        end
      end,
    }
    local task = add('a', 3)
    task:stop()
    thunk()
    assert.equal(0, asked)
    assert.same({}, log)
  end)

  it('COOP-10 takes no notice of plain values, Failures among them', function()
    local failure = coop.Failure 'only a value'
    local list = { 1, false, '', failure, {}, print }
    local done = c:cooperate(list):when_done()
    s.pump(6)
    pending(done)
    s.pump()
    assert.equal(list, value_of(done))
  end)

  it('COOP-12 raises no failure of a Deferred in the iterator, and does not close it', function()
    local d = coop.Deferred()
    local g = coop.generator(function()
      local _ <close> = setmetatable({}, { __close = note 'closed' })
      log[#log + 1] = tostring(select('#', coroutine.yield(d)))
      coroutine.yield 'next'
    end)()
    local done = c:cooperate(g):when_done()
    s.pump()
    d:errback 'oops'
    assert.equal('oops', (error_of(done)))
    assert.same({}, log)
    assert.equal('next', g:next())
    assert.same({ '0' }, log)
    g:close()
    assert.same({ '0', 'closed' }, log)
  end)

  it('COOP-13 refuses what is no iterator', function()
    for _, v in ipairs { 5, true, 'abc' } do
      misuse(function() c:cooperate(v) end, 'cooperate', type(v))
      misuse(function() c:coiterate(v) end, 'coiterate', type(v))
    end
    misuse(function() c:cooperate(io.stdout) end, 'cooperate')
    misuse(function() c:cooperate(coop.Deferred()) end, 'cooperate')
    misuse(function() c:cooperate(nil) end, 'cooperate', 'nil')
    misuse(function() c:cooperate() end, 'cooperate')
    misuse(function() c:coiterate() end, 'coiterate')
    misuse(function() coop.cooperate(5) end, 'cooperate')
    misuse(function() coop.coiterate(5) end, 'coiterate')
    assert.equal(0, s.asked)
  end)

  it('COOP-14 needs a step to notice the end', function()
    for n = 0, 3 do
      local done = c:cooperate(logging(log, 'a', n)):when_done()
      s.pump(n)
      pending(done)
      s.pump()
      assert.is_true(done.called)
    end
  end)

  it('COOP-14a counts the step that notices an end', function()
    c = cooperator(steps(2))
    add('a', 1)
    add('b', 3)
    s.pump()
    assert.same(words 'a0 b0', log)
    s.pump()
    assert.same(words 'a0 b0 b1', log)
    s.pump()
    assert.same(words 'a0 b0 b1 b2', log)
    assert.equal(0, s.outstanding())
  end)

  it('steps a Generator, a coroutine, a callable and a list', function()
    c = cooperator(many)
    local function body()
      for i = 1, 2 do
        log[#log + 1] = i
        coroutine.yield(i)
      end
    end
    local callable = setmetatable({}, { __call = logging(log, 'c', 2) })
    for _, iterator in ipairs {
      coop.generator(body)(), coroutine.create(body), coroutine.wrap(body), callable,
    } do
      local done = c:cooperate(iterator):when_done()
      finish()
      assert.equal(iterator, value_of(done))
    end
    assert.same({ 1, 2, 1, 2, 1, 2, 'c0', 'c1' }, log)
    local list = { 1, 2, 3 }
    assert.equal(list, (function()
      local done = c:cooperate(list):when_done()
      finish()
      return value_of(done)
    end)())
    assert.same({ 1, 2, 3 }, list)
  end)

  it('takes a nil that a generator yields for a turn given up', function()
    local function body()
      note 'x'()
      coroutine.yield(nil)
      note 'y'()
      coroutine.yield()
      note 'z'()
    end
    for _, iterator in ipairs { coop.generator(body)(), coroutine.create(body) } do
      log = {}
      local done = c:cooperate(iterator):when_done()
      s.pump()
      assert.same({ 'x' }, log)
      s.pump()
      assert.same({ 'x', 'y' }, log)
      pending(done)
      s.pump()
      assert.same({ 'x', 'y', 'z' }, log)
      assert.equal(iterator, value_of(done))
    end
  end)

  it('takes false from a callable for a value', function()
    local left = 2
    local done = c:cooperate(function()
      left = left - 1
      if left >= 0 then return false end
    end):when_done()
    s.pump(2)
    pending(done)
    s.pump()
    assert.is_true(done.called)
  end)

  it('leaves a yielded Deferred its value', function()
    local d = coop.Deferred()
    local done = c:cooperate({ d }):when_done()
    s.pump()
    d:callback 'mine'
    assert.equal('mine', value_of(d))
    finish()
    assert.is_true(done.called)
  end)

  it('reports a task that fails unobserved, once', function()
    local e = {}
    local reported = helper.unhandled(function()
      c:cooperate(function() error(e) end)
      finish()
    end)
    assert.equal(1, #reported)
    assert.equal(e, reported[1].value)
  end)

  it('reports once the Deferred that made an unobserved task fail', function()
    local reported = helper.unhandled(function()
      local d = coop.Deferred()
      c:cooperate { d }
      s.pump()
      d:errback 'oops'
    end)
    assert.equal(1, #reported)
    assert.equal('oops', reported[1].value)
  end)

  it('reports no task that was stopped', function()
    local reported = helper.unhandled(function()
      add('a', 3):stop()
      add('b', 3)
      c:stop()
    end)
    assert.same({}, reported)
  end)
end)

describe('the scheduler of a Cooperator', function()
  before_each(setup)

  it('COOP-15 is asked once, and again when there is work again', function()
    local a, b = add('a', 3), add('b', 3)
    assert.equal(1, s.asked)
    a:stop()
    assert.equal(1, s.outstanding())
    b:stop()
    assert.equal(0, s.outstanding())
    assert.equal(1, s.cancelled)
    add('c', 3)
    assert.equal(2, s.asked)
    assert.equal(1, s.outstanding())
  end)

  it('is asked anew at the end of a tick, while a task remains', function()
    add('a', 2)
    s.pump()
    assert.equal(2, s.asked)
    s.pump()
    assert.equal(3, s.asked)
    s.pump()
    assert.equal(3, s.asked)
    assert.equal(0, s.outstanding())
    assert.equal(0, s.cancelled)
  end)

  it('is not asked while all tasks are paused or wait', function()
    local d = coop.Deferred()
    local a = add('a', 2)
    c:cooperate { d }
    a:pause()
    assert.equal(1, s.outstanding())
    s.pump()
    assert.equal(0, s.outstanding())
    d:callback()
    assert.equal(1, s.outstanding())
    s.pump()
    assert.equal(0, s.outstanding())
    a:resume()
    assert.equal(1, s.outstanding())
    assert.same({}, log)
  end)

  it('has its call cancelled when the last runnable task is paused', function()
    local a = add('a', 2)
    a:pause()
    assert.equal(0, s.outstanding())
    assert.equal(1, s.cancelled)
  end)

  it('is asked once for a task that is added in a step', function()
    add('a', 1, { [0] = function() add('b', 1) end })
    s.pump()
    assert.equal(1, s.outstanding())
    assert.equal(2, s.asked)
  end)

  it('COOP-58 must return something that can be cancelled', function()
    local bad = { n = 3, nil, 42, {} }
    for i = 1, bad.n do
      local answer, thunk = bad[i], nil
      c = coop.Cooperator {
        scheduler = function(f)
          thunk = f
          return answer
        end,
        termination_predicate_factory = many,
      }
      misuse(function() add('refused', 1) end, 'scheduler')
      answer = { cancel = function() end }
      local done = add('a', 1):when_done()
      thunk()
      assert.is_true(done.called)
      assert.same({ 'a0' }, log)
      log = {}
    end
  end)

  it('COOP-23 may not tick within a tick', function()
    c = cooperator(many)
    local e
    add('a', 2, { [0] = function() e = misuse(s.last) end })
    add('b', 2)
    s.pump()
    assert.equal('string', type(e))
    assert.same(words 'a0 b0 a1 b1', log)
    assert.equal(0, s.outstanding())
  end)
end)

describe('the rotation of a Cooperator', function()
  before_each(setup)

  it('COOP-16 goes on where the last tick ended', function()
    add('a', 2)
    add('b', 2)
    add('c', 2)
    for _, name in ipairs(words 'a0 b0 c0 a1 b1 c1') do
      s.pump()
      assert.equal(name, log[#log])
    end
  end)

  it('COOP-16a skips nobody when a task ends', function()
    c = cooperator(many)
    add('a', 1)
    add('b', 3)
    add('c', 3)
    s.pump()
    assert.same(words 'a0 b0 c0 b1 c1 b2 c2', log)
  end)

  it('skips nobody when a task fails', function()
    c = cooperator(many)
    local done = c:cooperate(function() error 'oops' end):when_done()
    add('b', 2)
    add('c', 2)
    s.pump()
    assert.same(words 'b0 c0 b1 c1', log)
    error_of(done)
  end)

  it('skips nobody when a task begins to wait', function()
    c = cooperator(many)
    c:cooperate { coop.Deferred() }
    add('b', 2)
    add('c', 2)
    s.pump()
    assert.same(words 'b0 c0 b1 c1', log)
  end)

  it('skips nobody when a task pauses one before it', function()
    c = cooperator(many)
    local a
    a = add('a', 3)
    add('b', 3, { [0] = function() a:pause() end })
    add('c', 3)
    s.pump()
    assert.same(words 'a0 b0 c0 b1 c1 b2 c2', log)
  end)

  it('passes over whom another stops or pauses before its turn', function()
    c = cooperator(many)
    local b, d
    add('a', 2, { [0] = function()
      b:stop()
      d:pause()
    end })
    b = add('b', 2)
    add('c', 2)
    d = add('d', 2)
    add('e', 2)
    s.pump()
    assert.same(words 'a0 c0 e0 a1 c1 e1', log)
  end)

  it('passes over whom is stopped between ticks, where it stands too', function()
    local a, b = add('a', 3), add('b', 3)
    add('c', 3)
    s.pump()
    a:stop()
    s.pump()
    assert.same(words 'a0 b0', log)
    b:stop()
    add('d', 3)
    s.pump(2)
    assert.same(words 'a0 b0 c0 d0', log)
    s.pump(2)
    assert.same(words 'a0 b0 c0 d0 c1 d1', log)
  end)

  it('reaches in the same round who is added in it', function()
    c = cooperator(many)
    add('a', 2, { [0] = function() add('d', 2) end })
    add('b', 2)
    add('c', 2)
    s.pump()
    assert.same(words 'a0 b0 c0 d0 a1 b1 c1 d1', log)
  end)

  it('reaches in the same round who is added in its last step', function()
    c = cooperator(many)
    add('a', 2)
    add('b', 2, { [0] = function() add('c', 2) end })
    s.pump()
    assert.same(words 'a0 b0 c0 a1 b1 c1', log)
  end)

  it('reaches in the same round who is added after the tick of its last step', function()
    add('a', 2)
    add('b', 2)
    s.pump(2)
    add('c', 2)
    s.pump(4)
    assert.same(words 'a0 b0 c0 a1 b1 c1', log)
  end)

  it('reaches in the same round who is resumed when its cursor stands at the end', function()
    local a = add('a', 2)
    add('b', 2)
    add('c', 2)
    s.pump()
    a:pause()
    s.pump(2)
    assert.same(words 'a0 b0 c0', log)
    a:resume()
    s.pump(3)
    assert.same(words 'a0 b0 c0 a1 b1 c1', log)
  end)

  it('COOP-22 puts whom a step resumes at its end, and skips nobody', function()
    c = cooperator(many)
    local a = add('a', 3)
    add('b', 3, { [0] = function() a:resume() end })
    add('c', 3)
    a:pause()
    s.pump()
    assert.same(words 'b0 c0 a0 b1 c1 a1 b2 c2 a2', log)
  end)

  it('COOP-22a puts whom a step pauses and resumes at its end', function()
    c = cooperator(many)
    local a = add('a', 3)
    add('b', 3, { [0] = function()
      a:pause()
      a:resume()
    end })
    add('c', 3)
    s.pump()
    assert.same(words 'a0 b0 c0 a1 b1 c1 a2 b2 c2', log)
  end)

  it('puts a task whose Deferred fires at its end', function()
    local d = coop.Deferred()
    c:cooperate(coop.generator(function()
      note 'a0'()
      coroutine.yield(d)
      note 'a1'()
    end)())
    add('b', 2)
    add('c', 2)
    s.pump(2)
    d:callback()
    s.pump(4)
    assert.same(words 'a0 b0 c0 a1 b1 c1', log)
  end)

  it('COOP-21 keeps a task in its place that yields Deferreds that have fired', function()
    c = cooperator(many)
    local i = -1
    c:cooperate(function()
      i = i + 1
      if i == 3 then return nil end
      log[#log + 1] = 'f' .. i
      return coop.succeed(i)
    end)
    add('b', 3)
    s.pump()
    assert.same(words 'f0 b0 f1 b1 f2 b2', log)
  end)

  it('COOP-21a counts one step for a Deferred that has fired', function()
    c:cooperate { coop.succeed(), coop.succeed(), coop.succeed() }
    add('b', 2)
    s.pump(2)
    assert.same({ 'b0' }, log)
    s.pump(2)
    assert.same({ 'b0', 'b1' }, log)
  end)

  it('is fair to a thousand tasks', function()
    c = cooperator(many)
    local seen = {}
    for i = 1, 1000 do
      local left = 1 + i % 3
      c:cooperate(function()
        if left == 0 then return nil end
        left = left - 1
        seen[#seen + 1] = i
        return i
      end)
    end
    s.pump()
    local wanted = {}
    for round = 1, 3 do
      for i = 1, 1000 do
        if 1 + i % 3 >= round then wanted[#wanted + 1] = i end
      end
    end
    assert.same(wanted, seen)
  end)

  it('gives a task its quantum of steps in a row', function()
    c = cooperator(many, { quantum = 3 })
    add('a', 4)
    add('b', 2)
    add('c', 7)
    s.pump()
    assert.same(words 'a0 a1 a2 b0 b1 c0 c1 c2 a3 c3 c4 c5 c6', log)
  end)

  it('asks the predicate after each step of a quantum', function()
    local asked = 0
    c = cooperator(function()
      return function()
        asked = asked + 1
        return false
      end
    end, { quantum = 4 })
    add('a', 10)
    s.pump()
    assert.equal(11, asked)
  end)

  it('gives a task the rest of its quantum in the next tick', function()
    c = cooperator(steps(3), { quantum = 2 })
    add('a', 4)
    add('b', 4)
    s.pump()
    assert.same(words 'a0 a1 b0', log)
    s.pump()
    assert.same(words 'a0 a1 b0 b1 a2 a3', log)
  end)

  it('ends the quantum of a task that pauses, waits or ends', function()
    c = cooperator(many, { quantum = 10 })
    local a
    a = add('a', 3, { [0] = function() a:pause() end })
    c:cooperate(coop.generator(function()
      note 'w'()
      coroutine.yield(coop.Deferred())
      note 'never'()
    end)())
    add('b', 2)
    s.pump()
    assert.same(words 'a0 w b0 b1', log)
  end)
end)

describe('a task waiting on a Deferred', function()
  before_each(setup)

  it('is not stepped until it fires, then from another tick', function()
    local d = coop.Deferred()
    c:cooperate(coop.generator(function()
      note 'x'()
      log[#log + 1] = select('#', coroutine.yield(d))
    end)())
    s.pump(3)
    assert.same({ 'x' }, log)
    d:callback 'value'
    assert.same({ 'x' }, log)
    s.pump()
    assert.same({ 'x', 0 }, log)
  end)

  it('waits by coop.await within its generator, which gets the value', function()
    local d = coop.Deferred()
    local g = coop.generator(function()
      log[#log + 1] = coop.await(d)
      coroutine.yield 'item'
      log[#log + 1] = 'end'
    end)()
    local done = c:cooperate(g):when_done()
    s.pump()
    assert.equal(0, s.outstanding())
    d:callback 'value'
    assert.same({}, log)
    assert.equal(1, s.outstanding())
    s.pump()
    assert.same({ 'value' }, log)
    s.pump()
    assert.same({ 'value', 'end' }, log)
    assert.equal(g, value_of(done))
  end)

  it('has the error raised at coop.await in its generator, which may catch it', function()
    local d, e = coop.Deferred(), {}
    local done = c:cooperate(coop.generator(function()
      local ok, raised = pcall(coop.await, d)
      log[#log + 1] = not ok and raised == e and 'caught'
    end)()):when_done()
    s.pump()
    d:errback(e)
    finish()
    assert.same({ 'caught' }, log)
    assert.is_true(done.called)
  end)

  it('fails with an error that coop.await raised and nobody caught', function()
    local d = coop.Deferred()
    local done = c:cooperate(coop.generator(function() coop.await(d) end)()):when_done()
    s.pump()
    d:errback 'oops'
    finish()
    assert.equal('oops', (error_of(done)))
  end)

  it('has made a step when it ends in coop.await', function()
    c = cooperator(steps(2))
    c:cooperate(coop.generator(function()
      note 'x'()
      coop.await(helper.forever())
    end)())
    add('b', 3)
    s.pump()
    assert.same(words 'x b0', log)
  end)

  it('COOP-27 that is also paused needs both, the Deferred last', function()
    local d = coop.Deferred()
    local task = c:cooperate(coop.generator(function()
      coroutine.yield(d)
      note 'on'()
    end)())
    s.pump()
    task:pause()
    task:resume()
    s.pump()
    assert.same({}, log)
    assert.equal(0, s.outstanding())
    d:callback()
    s.pump()
    assert.same({ 'on' }, log)
  end)

  it('COOP-27a that is also paused needs both, the Deferred first', function()
    local d = coop.Deferred()
    local task = c:cooperate(coop.generator(function()
      coroutine.yield(d)
      note 'on'()
    end)())
    s.pump()
    task:pause()
    d:callback()
    assert.equal(0, s.outstanding())
    s.pump()
    assert.same({}, log)
    task:resume()
    s.pump()
    assert.same({ 'on' }, log)
  end)

  it('COOP-29 is not resumed', function()
    local d = coop.Deferred()
    local task = c:cooperate(coop.generator(function()
      coroutine.yield(d)
      note 'on'()
    end)())
    s.pump()
    raises(errors.NotPaused, function() task:resume() end, 'resume')
    s.pump()
    assert.same({}, log)
    d:callback 'ok'
    assert.equal('ok', value_of(d))
    s.pump()
    assert.same({ 'on' }, log)
  end)

  it('COOP-29a is not resumed from coop.await', function()
    local d = coop.Deferred()
    local task = c:cooperate(coop.generator(function()
      coop.await(d)
      note 'on'()
    end)())
    s.pump()
    raises(errors.NotPaused, function() task:resume() end, 'resume')
    assert.equal(0, s.outstanding())
    assert.same({}, log)
    d:callback()
    finish()
    assert.same({ 'on' }, log)
  end)

  it('COOP-34a that is stopped takes no notice of a late value', function()
    local d = coop.Deferred()
    local task = c:cooperate { d, 2, 3 }
    local done = task:when_done()
    s.pump()
    task:stop()
    is_error(errors.TaskStopped, (error_of(done)))
    d:callback 'late'
    assert.equal('late', value_of(d))
    assert.equal(0, s.outstanding())
  end)

  it('COOP-34b that is stopped takes no notice of a late failure', function()
    local reported = helper.unhandled(function()
      local d = coop.Deferred()
      local task = c:cooperate { d, 2, 3 }
      local done = task:when_done()
      s.pump()
      task:stop()
      d:errback 'late'
      is_error(errors.TaskStopped, (error_of(done)))
      is_error(errors.TaskStopped, (error_of(task:when_done())))
      raises(errors.TaskStopped, function() task:pause() end)
    end)
    assert.same({}, reported)
    assert.equal(0, s.outstanding())
  end)
end)

describe('pause of a task', function()
  before_each(setup)

  it('COOP-25 is what resume needs', function()
    local task = add('a', 3)
    raises(errors.NotPaused, function() task:resume() end, 'resume')
    task:pause()
    task:resume()
    raises(errors.NotPaused, function() task:resume() end, 'resume')
    s.pump()
    assert.same({ 'a0' }, log)
  end)

  it('COOP-26 is counted', function()
    local task = add('a', 3)
    task:pause()
    task:pause()
    task:resume()
    s.pump()
    assert.same({}, log)
    assert.equal(0, s.outstanding())
    task:resume()
    assert.same({}, log)
    s.pump()
    assert.same({ 'a0' }, log)
  end)

  it('may be called by the task itself, whose step is completed', function()
    local task
    task = add('a', 3, { [1] = function() task:pause() end })
    s.pump(5)
    assert.same(words 'a0 a1', log)
    task:resume()
    s.pump(5)
    assert.same(words 'a0 a1 a2', log)
  end)

  it('may be called by the task itself that then waits', function()
    local d = coop.Deferred()
    local task
    task = c:cooperate(coop.generator(function()
      task:pause()
      coroutine.yield(d)
      note 'on'()
    end)())
    s.pump()
    d:callback()
    s.pump()
    assert.same({}, log)
    task:resume()
    s.pump()
    assert.same({ 'on' }, log)
  end)

  it('may be called by the task itself that then ends', function()
    local task
    task = c:cooperate(function() task:pause() end)
    local done = task:when_done()
    s.pump()
    assert.is_true(done.called)
    assert.equal(0, s.outstanding())
    task:resume()
    raises(errors.NotPaused, function() task:resume() end, 'resume')
  end)
end)

describe('the end of a task', function()
  before_each(setup)

  it('COOP-30 is told to each Deferred of when_done apart', function()
    local list = { 1 }
    local task = c:cooperate(list)
    local first, second = task:when_done(), task:when_done()
    assert.not_equal(first, second)
    first:add_callback(function() return 'other' end)
    finish()
    assert.equal('other', value_of(first))
    assert.equal(list, value_of(second))
  end)

  it('COOP-32 is TaskStopped after stop', function()
    local task = add('a', 3)
    local done = task:when_done()
    task:stop()
    is_error(errors.TaskStopped, (error_of(done)))
  end)

  it('COOP-33 is told at once after it', function()
    local list = { 1 }
    local task = c:cooperate(list)
    finish()
    assert.equal(list, value_of(task:when_done()))
    local stopped = add('a', 1)
    stopped:stop()
    is_error(errors.TaskStopped, (error_of(stopped:when_done())))
    local failed = c:cooperate(function() error('oops', 0) end)
    local done = failed:when_done()
    finish()
    assert.equal('oops', (error_of(done)))
    assert.equal('oops', (error_of(failed:when_done())))
  end)

  it('COOP-34 comes with stop, at once', function()
    local task = add('a', 3)
    s.pump()
    task:stop()
    s.pump(3)
    assert.same({ 'a0' }, log)
    raises(errors.TaskStopped, function() task:stop() end, 'stop')
    raises(errors.TaskStopped, function() task:pause() end, 'pause')
  end)

  it('COOP-35 is not undone by resume', function()
    local task = add('a', 3)
    task:pause()
    task:stop()
    task:resume()
    s.pump(3)
    assert.same({}, log)
    raises(errors.NotPaused, function() task:resume() end, 'resume')
  end)

  it('COOP-37 is refused and told what it was, when it is over', function()
    local ended = c:cooperate {}
    finish()
    raises(errors.TaskDone, function() ended:stop() end, 'stop')
    raises(errors.TaskDone, function() ended:pause() end, 'pause')
    raises(errors.NotPaused, function() ended:resume() end, 'resume')
    local failed = c:cooperate(function() error 'oops' end)
    local d = failed:when_done()
    finish()
    error_of(d)
    raises(errors.TaskFailed, function() failed:stop() end, 'stop')
    raises(errors.TaskFailed, function() failed:pause() end, 'pause')
    raises(errors.NotPaused, function() failed:resume() end, 'resume')
  end)

  it('is a TaskFinished and a SchedulerError', function()
    local task = add('a', 1)
    task:stop()
    raises(errors.TaskFinished, function() task:stop() end)
    raises(errors.SchedulerError, function() task:stop() end)
    raises(errors.SchedulerError, function() task:resume() end)
  end)

  it('closes the generator that is stopped, and then tells', function()
    local g = coop.generator(function()
      local _ <close> = setmetatable({}, { __close = note 'closed' })
      coroutine.yield(1)
      coroutine.yield(2)
    end)()
    local task = c:cooperate(g)
    task:when_done():add_errback(note 'told')
    s.pump()
    task:stop()
    assert.same({ 'closed', 'told' }, log)
    assert.is_nil(g:next())
  end)

  it('closes the coroutine that is stopped', function()
    local co = coroutine.create(function()
      local _ <close> = setmetatable({}, { __close = note 'closed' })
      coroutine.yield(1)
    end)
    local task = c:cooperate(co)
    s.pump()
    task:stop()
    assert.same({ 'closed' }, log)
    assert.equal('dead', coroutine.status(co))
  end)

  it('closes the generator that is stopped in coop.await', function()
    local d = coop.Deferred()
    local task = c:cooperate(coop.generator(function()
      local _ <close> = setmetatable({}, { __close = note 'closed' })
      coop.await(d)
      note 'never'()
    end)())
    s.pump()
    task:stop()
    assert.same({ 'closed' }, log)
    if not d.called then d:callback() end
    s.pump()
    assert.same({ 'closed' }, log)
  end)

  it('ends with stop for all who share the generator', function()
    local g = coop.generator(function()
      for i = 1, 10 do coroutine.yield(i) end
    end)()
    local first, second = c:cooperate(g), c:cooperate(g)
    local one, other = first:when_done(), second:when_done()
    s.pump(2)
    first:stop()
    is_error(errors.TaskStopped, (error_of(one)))
    s.pump()
    assert.equal(g, value_of(other))
  end)

  it('ends with stop for all who share a generator that awaits', function()
    for stopping = 1, 2 do
      local g = coop.generator(function()
        local _ <close> = setmetatable({}, { __close = note 'closed' })
        coop.await(coop.Deferred())
      end)()
      local tasks = { c:cooperate(g), c:cooperate(g) }
      local other = tasks[3 - stopping]:when_done()
      log = {}
      s.pump(2)
      assert.equal(0, s.outstanding())
      tasks[stopping]:stop()
      assert.same({ 'closed' }, log)
      finish()
      assert.equal(g, value_of(other))
    end
  end)

  it('closes no generator of a task that fails', function()
    local d = coop.Deferred()
    local g = coop.generator(function()
      coroutine.yield(d)
      coroutine.yield 'more'
    end)()
    local done = c:cooperate(g):when_done()
    s.pump()
    d:errback 'oops'
    error_of(done)
    assert.equal('more', g:next())
  end)

  it('COOP-41 that the task itself makes stands, whatever its step comes to', function()
    c = cooperator(many)
    local kinds = {
      value = function() return 'value' end,
      ending = function() return nil end,
      pending = function() return coop.Deferred() end,
      fired = function() return coop.succeed() end,
    }
    for kind, result in pairs(kinds) do
      log = {}
      local task
      task = c:cooperate(function()
        assert.equal(0, #log, kind)
        note 'a'()
        task:stop()
        return result()
      end)
      local done = task:when_done()
      add('b', 2)
      s.pump()
      assert.same(words 'a b0 b1', log, kind)
      is_error(errors.TaskStopped, (error_of(done)))
      raises(errors.TaskStopped, function() task:stop() end)
      assert.equal(0, s.outstanding())
    end
  end)

  it('COOP-41a that a generator makes itself closes it when its step is over', function()
    c = cooperator(many)
    for _, ending in ipairs { 'value', 'deferred', 'return' } do
      log = {}
      local task
      task = c:cooperate(coop.generator(function()
        local _ <close> = setmetatable({}, { __close = note 'closed' })
        task:stop()
        note 'stopped'()
        if ending == 'value' then coroutine.yield(1) end
        if ending == 'deferred' then coroutine.yield(coop.Deferred()) end
        if ending ~= 'return' then note 'never'() end
      end)())
      local done = task:when_done()
      add('b', 1)
      s.pump()
      assert.same({ 'stopped', 'closed', 'b0' }, log, ending)
      is_error(errors.TaskStopped, (error_of(done)))
    end
  end)

  it('COOP-41b that the task itself makes stands when its step then fails', function()
    c = cooperator(many)
    for _, fail in ipairs { error, coop.fail } do
      log = {}
      helper.unhandled(function()
        local task
        task = c:cooperate(function()
          task:stop()
          return fail 'not heard'
        end)
        local done = task:when_done()
        add('b', 2)
        s.pump()
        assert.same(words 'b0 b1', log)
        is_error(errors.TaskStopped, (error_of(done)))
      end)
      assert.equal(0, s.outstanding())
    end
  end)

  it('may be made by another task\'s step', function()
    c = cooperator(many)
    local g = coop.generator(function()
      for i = 0, 5 do
        note('g' .. i)()
        coroutine.yield(i)
      end
    end)()
    local b
    add('a', 3, { [1] = function()
      b:stop()
      g:close()
    end })
    b = add('b', 3)
    local stopped, done = b:when_done(), c:cooperate(g):when_done()
    s.pump()
    assert.same(words 'a0 b0 g0 a1 a2', log)
    is_error(errors.TaskStopped, (error_of(stopped)))
    assert.equal(g, value_of(done))
  end)

  it('COOP-45 is one Deferred\'s affair when its handler raises', function()
    local list = {}
    local task = c:cooperate(list)
    local first, second = task:when_done(), task:when_done()
    first:add_callback(error)
    finish()
    assert.equal(list, (error_of(first)))
    assert.equal(list, value_of(second))
    assert.equal(list, value_of(task:when_done()))
  end)

  it('is told when the task has left, so that its handler may stop everything', function()
    c = cooperator(many)
    add('a', 0):when_done():add_callback(function() c:stop() end)
    local other = add('b', 3):when_done()
    s.pump()
    is_error(errors.SchedulerStopped, (error_of(other)))
    assert.same({}, log)
    assert.equal(0, s.outstanding())
  end)
end)

describe('start and stop of a Cooperator', function()
  before_each(setup)

  it('let tasks wait for the start', function()
    c = cooperator(nil, { started = false })
    assert.is_false(c.running)
    local done = add('a', 1):when_done()
    assert.equal(0, s.asked)
    c:start()
    assert.is_true(c.running)
    assert.equal(1, s.asked)
    finish()
    assert.is_true(done.called)
  end)

  it('schedule once for two starts', function()
    c = cooperator(nil, { started = false })
    add('a', 1)
    c:start()
    c:start()
    assert.equal(1, s.asked)
  end)

  it('ask the scheduler for nothing without a task', function()
    c = cooperator(nil, { started = false })
    c:start()
    assert.equal(0, s.asked)
  end)

  it('COOP-46 refuse whatever comes after stop', function()
    c:stop()
    assert.is_false(c.running)
    is_error(errors.SchedulerStopped, (error_of(c:coiterate { 1 })))
    local done = coop.Deferred()
    assert.equal(done, c:coiterate({ 1 }, done))
    is_error(errors.SchedulerStopped, (error_of(done)))
    is_error(errors.SchedulerStopped, (error_of(c:cooperate({ 1 }):when_done())))
    assert.equal(0, s.outstanding())
  end)

  it('COOP-47 complete a task that was just added', function()
    local d = c:coiterate(logging(log, 'a', 1))
    c:stop()
    s.pump()
    assert.same({}, log)
    is_error(errors.SchedulerStopped, (error_of(d)))
    assert.equal(0, s.outstanding())
  end)

  it('COOP-48 complete a task that waits, whose Deferred comes too late', function()
    for _, late in ipairs { 'callback', 'errback' } do
      c = cooperator()
      local d = coop.Deferred()
      local done = c:cooperate(coop.generator(function()
        coroutine.yield(d)
        note 'never'()
      end)()):when_done()
      s.pump()
      c:stop()
      is_error(errors.SchedulerStopped, (error_of(done)))
      d[late](d, 'late')
      s.pump()
      assert.same({}, log)
      assert.equal(0, s.outstanding())
    end
  end)

  it('complete a task in coop.await', function()
    local d = coop.Deferred()
    local done = c:cooperate(coop.generator(function()
      coop.await(d)
      note 'never'()
    end)()):when_done()
    s.pump()
    c:stop()
    is_error(errors.SchedulerStopped, (error_of(done)))
    if not d.called then d:callback() end
    s.pump()
    assert.same({}, log)
  end)

  it('COOP-49 complete a paused task', function()
    local task = add('a', 3)
    local done = task:when_done()
    task:pause()
    c:stop()
    is_error(errors.SchedulerStopped, (error_of(done)))
    task:resume()
    s.pump()
    assert.same({}, log)
  end)

  it('COOP-50 complete every task, in order of addition', function()
    local told, tasks = {}, {}
    local d = coop.Deferred()
    for i = 1, 7 do
      tasks[i] = c:cooperate(i == 3 and { d } or logging(log, 'a', 9))
      tasks[i]:when_done():add_both(function(failure)
        is_error(errors.SchedulerStopped, failure.value)
        told[#told + 1] = i
      end)
    end
    s.pump(4)
    tasks[1]:pause()
    tasks[1]:resume()
    tasks[5]:pause()
    c:stop()
    assert.same({ 1, 2, 3, 4, 5, 6, 7 }, told)
    assert.equal(0, s.outstanding())
  end)

  it('COOP-51 may come from a step, which is the last', function()
    c = cooperator(many)
    local told = {}
    local function watch(name, task)
      task:when_done():add_both(function(failure)
        is_error(errors.SchedulerStopped, failure.value)
        told[#told + 1] = name
      end)
    end
    watch('a', add('a', 3))
    watch('b', add('b', 3, { [0] = function() c:stop() end }))
    watch('c', add('c', 3))
    s.pump()
    assert.same(words 'a0 b0', log)
    assert.same({ 'a', 'b', 'c' }, told)
    assert.equal(0, s.outstanding())
    assert.is_false(c.running)
  end)

  it('COOP-52 leave tasks that say so', function()
    local task = add('a', 3)
    c:stop()
    raises(errors.SchedulerStopped, function() task:pause() end, 'pause')
    raises(errors.SchedulerStopped, function() task:stop() end, 'stop')
    raises(errors.NotPaused, function() task:resume() end, 'resume')
  end)

  it('COOP-55 may be repeated', function()
    c:stop()
    c:stop()
    c:start()
    assert.is_true(c.running)
    local done = add('a', 1):when_done()
    finish()
    assert.is_true(done.called)
    assert.same({ 'a0' }, log)
  end)

  it('let a handler start again what was stopped', function()
    local again
    add('a', 1):when_done():add_errback(function()
      c:start()
      again = add('b', 1):when_done()
    end)
    c:stop()
    finish()
    assert.same({ 'b0' }, log)
    assert.is_true(again.called)
  end)
end)

describe('coiterate', function()
  before_each(setup)

  it('COOP-56 returns the Deferred that it is given, and fires it', function()
    local done, list = coop.Deferred(), { 1 }
    assert.equal(done, c:coiterate(list, done))
    finish()
    assert.equal(list, value_of(done))
  end)

  it('COOP-56a refuses a Deferred that has fired, and anything else', function()
    misuse(function() c:coiterate(logging(log, 'a', 1), coop.succeed()) end, 'coiterate')
    misuse(function() c:coiterate(logging(log, 'a', 1), 5) end, 'coiterate', 'number')
    assert.equal(0, s.outstanding())
    assert.same({}, log)
  end)

  it('is reported when it fails unobserved', function()
    local reported = helper.unhandled(function()
      c:coiterate(function() error('oops', 0) end)
      finish()
    end)
    assert.equal(1, #reported)
    assert.equal('oops', reported[1].value)
  end)
end)

describe('the settings of a Cooperator', function()
  before_each(setup)

  it('are all optional', function()
    c = coop.Cooperator()
    assert.is_true(c.running)
    c:stop()
    c = coop.Cooperator {}
    assert.is_true(c.running)
    c:stop()
  end)

  it('are checked', function()
    misuse(function() coop.Cooperator(5) end, 'Cooperator', 'number')
    for _, quantum in ipairs { 0, -1, 0.5, 'x', {} } do
      misuse(function() coop.Cooperator { quantum = quantum } end, 'Cooperator')
    end
    for _, slice in ipairs { -1, 0 / 0, 'x' } do
      misuse(function() coop.Cooperator { slice = slice } end, 'Cooperator')
    end
    misuse(function() coop.Cooperator { scheduler = 5 } end, 'Cooperator', 'number')
    misuse(function() coop.Cooperator { termination_predicate_factory = 5 } end,
      'Cooperator', 'number')
  end)

  it('COOP-57 have a slice of 10 ms', function()
    c = coop.Cooperator { scheduler = s.schedule }
    local n = 0
    local task = c:cooperate(function()
      n = n + 1
      fakes.spin(coop.seconds, 0.0105)
      return n
    end)
    for i = 1, 3 do
      s.pump()
      assert.equal(i, n)
    end
    task:stop()
  end)

  it('COOP-57a have a slice that has room for many steps', function()
    c = coop.Cooperator { scheduler = s.schedule }
    local n, most = 0, 0
    local task = c:cooperate(function()
      n = n + 1
      return n
    end)
    for _ = 1, 100 do
      n = 0
      s.pump()
      if n > most then most = n end
      if most > 10 then break end
    end
    task:stop()
    assert.is_true(most > 10, most)
  end)

  it('COOP-57b have another slice when told', function()
    c = coop.Cooperator { scheduler = s.schedule, slice = 3600 }
    local done = add('a', 1000):when_done()
    s.pump()
    assert.is_true(done.called)
    c = coop.Cooperator { scheduler = s.schedule, slice = 0.0001 }
    local n = 0
    c:cooperate(function()
      n = n + 1
      fakes.spin(coop.seconds, 0.00011)
      return n
    end)
    for i = 1, 5 do
      s.pump()
      assert.equal(i, n)
    end
    c:stop()
  end)

  it('COOP-57c have the reactor for their scheduler, which turns between ticks', run(function()
    c = coop.Cooperator { termination_predicate_factory = steps(1) }
    local turned, n = false, 0
    coop.call_later(0, function() turned = true end)
    coop.await(c:coiterate(function()
      n = n + 1
      if turned or n == 100 then return nil end
      return n
    end))
    assert.is_true(turned)
    assert.is_true(n < 100, n)
  end))
end)

describe('the global Cooperator', function()
  before_each(setup)

  it('COOP-08 runs a task to its end', run(function()
    assert.equal('Cooperator', coop.type(coop.cooperator))
    assert.is_true(coop.cooperator.running)
    local f = logging(log, 'a', 3)
    local task = coop.cooperate(f)
    assert.equal('CooperativeTask', coop.type(task))
    assert.equal(f, coop.await(task:when_done()))
    assert.same(words 'a0 a1 a2', log)
  end))

  it('COOP-08a is what coiterate uses', run(function()
    local f, done = logging(log, 'a', 3), coop.Deferred()
    assert.equal(f, coop.await(coop.coiterate(f)))
    assert.equal(done, coop.coiterate({ 1 }, done))
    assert.same({ 1 }, coop.await(done))
  end))

  it('waits for what its tasks yield', run(function()
    local seen
    local task = coop.cooperate(coop.generator(function()
      coroutine.yield(coop.sleep(0.001))
      seen = coop.await(coop.defer_later(coop.reactor, 0.001, function() return 'slept' end))
    end)())
    coop.await(task:when_done())
    assert.equal('slept', seen)
  end))

  it('raises the failure of a task at who awaits it', run(function()
    local e = {}
    local ok, raised = pcall(coop.await, coop.cooperate(function() error(e) end):when_done())
    assert.is_false(ok)
    assert.equal(e, raised)
  end))

  it('shares its turns between tasks', run(function()
    local ds = {}
    for _, name in ipairs { 'a', 'b', 'c' } do
      ds[#ds + 1] = coop.coiterate(logging(log, name, 2))
    end
    coop.await(coop.gather_results(ds))
    assert.same(words 'a0 b0 c0 a1 b1 c1', log)
  end))
end)

describe('a Cooperator with much to do', function()
  before_each(setup)

  it('stops 10,000 tasks in order', function()
    local told = {}
    for i = 1, 10000 do
      local task = c:cooperate { 1 }
      task:when_done():add_errback(function() told[#told + 1] = i end)
    end
    c:stop()
    assert.equal(10000, #told)
    for i = 1, 10000 do assert(told[i] == i) end
  end)

  it('lets 10,000 tasks wait on one Deferred', function()
    c = cooperator(many)
    local d = coop.Deferred()
    local seen = {}
    for i = 1, 10000 do seen[i] = helper.cap(c:cooperate({ d }):when_done()) end
    s.pump()
    d:callback()
    s.pump()
    for i = 1, 10000 do assert(seen[i].n == 1) end
  end)
end)
