local coop = require 'coop'
local helper = require 'tests.spec.helper'
local fakes = require 'tests.spec.fakes'
local run, value_of, error_of = helper.run, helper.value_of, helper.error_of

-- The throttling pattern: several tasks share one generator, which makes a Deferred when asked.
describe('a generator that several tasks share', function()
  local s, c, made

  before_each(function()
    s, made = fakes.scheduler(), {}
    c = coop.Cooperator {
      scheduler = s.schedule,
      termination_predicate_factory = fakes.steps(1000),
    }
  end)

  local work = coop.generator(function(n)
    for i = 1, n do
      made[i] = coop.Deferred()
      coroutine.yield(made[i])
    end
  end)

  local function workers(n, generator)
    local ds = {}
    for i = 1, n do ds[i] = c:coiterate(generator) end
    return ds
  end

  local function fire(i)
    made[i]:callback(i)
    s.pump()
  end

  it('THROT-01 is asked for one more Deferred whenever one has fired', function()
    local g = work(5)
    local all = coop.gather_results(workers(2, g))
    s.pump()
    assert.equal(2, #made)
    s.pump()
    assert.equal(2, #made)
    fire(1)
    assert.equal(3, #made)
    fire(3)
    assert.equal(4, #made)
    fire(2)
    assert.equal(5, #made)
    fire(4)
    assert.is_false(all.called)
    fire(5)
    assert.same({ n = 2, g, g }, value_of(all))
  end)

  it('THROT-01a hands each item to one of them', function()
    local seen = {}
    local g = coop.generator(function()
      for i = 1, 6 do
        seen[#seen + 1] = i
        coroutine.yield(i)
      end
    end)()
    local ds = workers(3, g)
    s.pump()
    assert.same({ 1, 2, 3, 4, 5, 6 }, seen)
    for _, d in ipairs(ds) do assert.equal(g, value_of(d)) end
  end)

  it('leaves each Deferred its result for the handlers that the generator adds', function()
    local results = {}
    local g = coop.generator(function()
      for i = 1, 3 do
        made[i] = coop.Deferred()
        made[i]:add_callback(function(v) results[#results + 1] = v * 10 end)
        coroutine.yield(made[i])
      end
    end)()
    workers(2, g)
    s.pump()
    fire(2)
    fire(1)
    fire(3)
    assert.same({ 20, 10, 30 }, results)
  end)

  it('makes them all wait that ask for more while it awaits', function()
    local d, seen = coop.Deferred(), {}
    local g = coop.generator(function()
      seen[#seen + 1] = coop.await(d)
      for i = 1, 4 do
        coroutine.yield(i)
        seen[#seen + 1] = i
      end
    end)()
    local ds = workers(3, g)
    s.pump()
    assert.equal(0, s.outstanding())
    d:callback 'go'
    assert.same({}, seen)
    s.pump(3)
    assert.same({ 'go', 1, 2, 3, 4 }, seen)
    for i = 1, 3 do assert.equal(g, value_of(ds[i])) end
  end)

  it('THROT-03 goes on with the others when the Deferred of one fails', function()
    local g = work(5)
    local ds = workers(2, g)
    s.pump()
    made[1]:errback 'oops'
    s.pump()
    assert.equal('oops', (error_of(ds[1])))
    assert.equal(2, #made)
    for i = 2, 4 do
      fire(i)
      assert.equal(i + 1, #made)
    end
    assert.is_false(ds[2].called)
    fire(5)
    assert.equal(g, value_of(ds[2]))
  end)

  it('THROT-04 fails the one that steps it when it raises, and has ended for the others', function()
    local g = coop.generator(function()
      coroutine.yield(1)
      coroutine.yield(2)
      error('broken', 0)
    end)()
    local ds = workers(3, g)
    s.pump()
    local failed = 0
    for _, d in ipairs(ds) do
      d:add_callbacks(function(v) assert.equal(g, v) end, function(failure)
        assert.equal('broken', failure.value)
        failed = failed + 1
      end)
      assert.is_true(d.called)
    end
    assert.equal(1, failed)
  end)

  it('THROT-04a makes its error visible to all in parallel', run(function()
    local g = coop.generator(function()
      coroutine.yield(1)
      coroutine.yield(2)
      error('broken', 0)
    end)()
    local ok, e = pcall(coop.await, coop.parallel(3, g, function(v) return v end))
    assert.is_false(ok)
    assert.equal('broken', e)
  end))

  it('THROT-05 does its work once, where a generator for each would do it again', function()
    local count = 0
    local items = coop.generator(function()
      for i = 1, 4 do
        count = count + 1
        coroutine.yield(i)
      end
    end)
    workers(3, items())
    s.pump()
    assert.equal(4, count)
    for _ = 1, 3 do c:coiterate(items()) end
    s.pump()
    assert.equal(4 + 3 * 4, count)
  end)

  it('THROT-07 lets go of whom it has no item for', function()
    local g = work(2)
    local ds = workers(5, g)
    s.pump()
    assert.equal(2, #made)
    local done = 0
    for _, d in ipairs(ds) do
      d:add_callback(function(v)
        assert.equal(g, v)
        done = done + 1
      end)
    end
    assert.equal(3, done)
    fire(1)
    fire(2)
    assert.equal(5, done)
  end)
end)
