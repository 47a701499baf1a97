local coop = require 'coop'
local helper = require 'tests.spec.helper'

local errors = coop.errors
local cap, pending, misuse = helper.cap, helper.pending, helper.misuse
local value_of, error_of, is_error = helper.value_of, helper.error_of, helper.is_error
local unhandled, values = helper.unhandled, helper.values

local function children(n)
  local list = {}
  for i = 1, n do list[i] = coop.Deferred() end
  return table.unpack(list)
end

--- A Deferred whose canceller counts its calls, and the table with the `count`.
local function counted()
  local calls = { count = 0 }
  return coop.Deferred(function() calls.count = calls.count + 1 end), calls
end

--- A Deferred whose canceller makes it succeed with `value`.
local function rescued(value)
  return coop.Deferred(function(d) d:callback(value) end)
end

local function cancelled(d) is_error(errors.CancelledError, (error_of(d))) end

describe('a DeferredList', function()

  it('LST-01 fires with success and value of each, in their order', function()
    local a, b, c = children(3)
    local list = coop.DeferredList { a, b, c }
    assert.is_true(coop.is_deferred(list))
    local seen = cap(list)
    c:callback '3'
    a:callback '1'
    assert.equal(0, seen.n)
    b:errback '2'
    assert.equal(1, seen.n)
    local result = seen[1]
    assert.equal(3, #result)
    assert.same({ true, '1' }, result[1])
    assert.is_false(result[2][1])
    assert.equal('Failure', coop.type(result[2][2]))
    assert.equal('2', result[2][2].value)
    assert.same({ true, '3' }, result[3])
  end)

  it('LST-02 of nothing fires at once with nothing', function()
    assert.same({}, value_of(coop.DeferredList {}))
    assert.same({}, value_of(coop.DeferredList({}, { fire_on_one_errback = true })))
    assert.same({}, value_of(coop.DeferredList({}, { consume_errors = true })))
  end)

  it('LST-03 of nothing that fires on one callback is misuse', function()
    misuse(function() coop.DeferredList({}, { fire_on_one_callback = true }) end, 'DeferredList')
    misuse(function()
      coop.DeferredList({}, { fire_on_one_callback = true, fire_on_one_errback = true })
    end, 'DeferredList')
  end)

  it('LST-04 that fires on one errback fails with the first failure and its index', function()
    local a, b, c = children(3)
    local list = coop.DeferredList({ a, b, c }, { fire_on_one_errback = true })
    local seen = cap(list)
    a:callback 'v'
    assert.equal(0, seen.n)
    local failure = coop.Failure {}
    b:errback(failure)
    assert.equal(1, seen.n)
    assert.equal('Failure', coop.type(seen[1]))
    local e = is_error(errors.FirstError, seen[1].value)
    assert.equal(2, e.index)
    assert.is_true(rawequal(failure, e.sub_failure))
    c:errback 'late'
    assert.equal(1, seen.n)
  end)

  it('LST-05 leaves a child its failure', function()
    local a, b = children(2)
    local list = coop.DeferredList { a, b }
    local mine = cap(a)
    a:errback 'E'
    b:callback()
    assert.equal('E', mine[1].value)
    assert.equal('E', value_of(list)[1][2].value)
  end)

  it('leaves a child its value', function()
    local a = coop.Deferred()
    local list = coop.DeferredList({ a }, { consume_errors = true })
    a:callback 'v'
    assert.equal('v', value_of(a))
    assert.same({ { true, 'v' } }, value_of(list))
  end)

  it('LST-06 that consumes errors leaves a failed child nil', function()
    local a, b = children(2)
    local list = coop.DeferredList({ a, b }, { consume_errors = true })
    local mine = cap(a)
    a:errback 'E'
    b:callback()
    assert.same({ n = 1 }, mine)
    assert.equal('E', value_of(list)[1][2].value)
  end)

  it('LST-08 of fired ones fires when it is made', function()
    local list = coop.DeferredList { coop.succeed(1), coop.fail 'E', coop.succeed(3) }
    assert.is_true(list.called)
    local result = value_of(list)
    assert.same({ true, 1 }, result[1])
    assert.equal('E', result[2][2].value)
    assert.same({ true, 3 }, result[3])
  end)

  it('keeps nil and false as values', function()
    local result = value_of(coop.DeferredList { coop.succeed(nil), coop.succeed(false) })
    assert.equal(2, #result)
    assert.is_true(result[1][1])
    assert.is_nil(result[1][2])
    assert.same({ true, false }, result[2])
  end)

  for name, value in values() do
    it('keeps the error value ' .. name, function()
      local result = value_of(coop.DeferredList { coop.fail(value) })
      assert.is_false(result[1][1])
      assert.is_true(rawequal(value, result[1][2].value))
      local d = coop.DeferredList({ coop.fail(value) }, { fire_on_one_errback = true })
      assert.is_true(rawequal(value, error_of(d).sub_failure.value))
      d = coop.DeferredList({ coop.fail(value) }, { fire_on_one_callback = true })
      assert.is_true(rawequal(value, error_of(d).failures[1].value))
    end)
  end

  it('LST-09 cancels every child when it is cancelled', function()
    local a, b, c = coop.Deferred(), coop.Deferred(), coop.succeed 'v'
    local list = coop.DeferredList { a, b, c }
    list:cancel()
    local result = value_of(list)
    is_error(errors.CancelledError, result[1][2].value)
    is_error(errors.CancelledError, result[2][2].value)
    assert.same({ true, 'v' }, result[3])
    cancelled(a)
    cancelled(b)
  end)

  it('LST-11 cancels its children when it fires on one callback', function()
    local a, first = counted()
    local b, second = counted()
    local list = coop.DeferredList({ a, b }, { fire_on_one_callback = true })
    list:cancel()
    assert.equal(1, first.count)
    assert.equal(1, second.count)
    cancelled(a)
    cancelled(b)
    local e = is_error(errors.FailureGroup, (error_of(list)))
    is_error(errors.CancelledError, e.failures[1].value)
    is_error(errors.CancelledError, e.failures[2].value)
  end)

  it('LST-12 fires with what a canceller makes when it fires on one callback', function()
    local a, b = rescued 'Callback Result', coop.Deferred()
    local list = coop.DeferredList({ a, b }, { fire_on_one_callback = true })
    list:cancel()
    assert.same({ 'Callback Result', 1 }, value_of(list))
    cancelled(b)
  end)

  it('LST-13 cancelled fails with FirstError when it fires on one errback', function()
    local a, b = children(2)
    local list = coop.DeferredList({ a, b }, { fire_on_one_errback = true })
    list:cancel()
    local e = is_error(errors.FirstError, (error_of(list)))
    assert.equal(1, e.index)
    is_error(errors.CancelledError, e.sub_failure.value)
    cancelled(a)
    cancelled(b)
  end)

  it('LST-14 cancelled succeeds when every canceller makes a value', function()
    local list = coop.DeferredList({ rescued 'a', rescued 'b' }, { fire_on_one_errback = true })
    list:cancel()
    assert.same({ { true, 'a' }, { true, 'b' } }, value_of(list))
  end)

  it('LST-16 has the error of a canceller in its place, and cancels the others', function()
    local a = coop.Deferred(function() error('E', 0) end)
    local b, calls = counted()
    local list = coop.DeferredList { a, b }
    assert.same({}, unhandled(function() list:cancel() end))
    local result = value_of(list)
    assert.equal('E', result[1][2].value)
    is_error(errors.CancelledError, result[2][2].value)
    assert.equal(1, calls.count)
  end)

  it('LST-17 that has fired cancels no child', function()
    local a, b = coop.Deferred(), counted()
    local list = coop.DeferredList({ a, b }, { fire_on_one_callback = true })
    a:callback 'v'
    list:cancel()
    pending(b)
    assert.is_false(b.called)
    assert.same({ 'v', 1 }, value_of(list))
    b:callback()
  end)

  it('fires on one callback with the value and its index', function()
    local a, b, c = children(3)
    local list = coop.DeferredList({ a, b, c }, { fire_on_one_callback = true })
    local seen = cap(list)
    a:errback 'E'
    assert.equal(0, seen.n)
    b:callback 'v'
    assert.same({ n = 1, { 'v', 2 } }, seen)
    c:callback 'late'
    assert.equal(1, seen.n)
  end)

  it('fires on one callback also with nil', function()
    local list = coop.DeferredList({ coop.succeed() }, { fire_on_one_callback = true })
    local result = value_of(list)
    assert.is_nil(result[1])
    assert.equal(1, result[2])
  end)

  it('LST-19 that fires on one callback fails with FailureGroup when all fail', function()
    local a, b = children(2)
    local list = coop.DeferredList({ a, b }, { fire_on_one_callback = true })
    local seen = cap(list)
    b:errback 'second'
    assert.equal(0, seen.n)
    a:errback 'first'
    assert.equal(1, seen.n)
    assert.equal('Failure', coop.type(seen[1]))
    local e = is_error(errors.FailureGroup, seen[1].value)
    assert.equal(2, #e.failures)
    assert.equal('Failure', coop.type(e.failures[1]))
    assert.equal('first', e.failures[1].value)
    assert.equal('second', e.failures[2].value)
  end)

  it('LST-20 with both is decided by what comes first', function()
    local both = { fire_on_one_callback = true, fire_on_one_errback = true }
    local a, b = children(2)
    local list = coop.DeferredList({ a, b }, both)
    b:callback 'v'
    a:errback 'E'
    assert.same({ 'v', 2 }, value_of(list))
    a, b = children(2)
    list = coop.DeferredList({ a, b }, both)
    b:errback 'E'
    a:callback 'v'
    local e = is_error(errors.FirstError, (error_of(list)))
    assert.equal(2, e.index)
    assert.equal('E', e.sub_failure.value)
  end)

  it('LST-21 may have the same child twice', function()
    local a = coop.Deferred()
    local list = coop.DeferredList { a, a }
    a:callback(3)
    assert.same({ { true, 3 }, { true, 3 } }, value_of(list))
  end)

  it('LST-23 refuses what is no Deferred, and touches no child', function()
    local made
    local reported = unhandled(function()
      local a = coop.fail 'untouched'
      for _, make in ipairs { coop.DeferredList, coop.gather_results, coop.race } do
        misuse(function() made = make { a, 5, a } end, 'Deferred', 'number')
        misuse(function() made = make { a, coop.Failure 'E' } end, 'Deferred', 'Failure')
      end
      assert.equal('untouched', a.result.value)
    end)
    assert.is_nil(made)
    assert.equal(1, #reported)
    assert.equal('untouched', reported[1].value)
  end)

  it('names itself and its fellows when their arguments are bad', function()
    for _, name in ipairs { 'DeferredList', 'gather_results', 'race' } do
      misuse(function() coop[name](5) end, name, 'table', 'number')
      misuse(function() coop[name]() end, name, 'table')
      misuse(function() coop[name](coop.Deferred()) end, name, 'table', 'Deferred')
      misuse(function() coop[name] { 5 } end, name)
    end
    misuse(function() coop.DeferredList({}, 5) end, 'DeferredList', 'table', 'number')
    misuse(function() coop.DeferredList({}, true) end, 'DeferredList', 'table', 'boolean')
  end)

  it('keeps a copy of the list', function()
    local a, b = children(2)
    local given = { a, b }
    local list = coop.DeferredList(given)
    assert.same({ a, b }, given)
    given[1], given[2], given[3] = nil, coop.Deferred(), coop.Deferred()
    a:callback(1)
    b:callback(2)
    assert.same({ { true, 1 }, { true, 2 } }, value_of(list))
  end)

  it('cancels the children that it was given, whatever became of their list', function()
    for _, make in ipairs { coop.DeferredList, coop.gather_results, coop.race } do
      local a, calls = counted()
      local b, others = counted()
      local given = { a }
      local d = make(given)
      given[1], given[2] = b, b
      d:cancel()
      assert.equal(1, calls.count)
      assert.equal(0, others.count)
      cap(d)
    end
  end)

  it('waits for what a child waits on, and cancels that', function()
    local inner, calls = counted()
    local a = coop.succeed():add_callback(function() return inner end)
    local list = coop.DeferredList { a }
    pending(list)
    list:cancel()
    assert.equal(1, calls.count)
    is_error(errors.CancelledError, value_of(list)[1][2].value)
  end)

  it('sees the value of a child at its place among the handlers', function()
    local a = coop.Deferred():add_callback(function(v) return v + 1 end)
    local list = coop.DeferredList { a }
    a:add_callback(function(v) return v * 10 end)
    a:callback(1)
    assert.same({ { true, 2 } }, value_of(list))
    assert.equal(20, value_of(a))
  end)

  it('counts the failures of children as handled, its own is reported', function()
    assert.same({}, unhandled(function()
      coop.DeferredList { coop.fail 'E', coop.succeed() }
      coop.DeferredList({ coop.fail 'E' }, { consume_errors = true })
      coop.DeferredList({ coop.succeed(), coop.fail 'E' }, { fire_on_one_callback = true })
    end))
    local reported = unhandled(function()
      coop.DeferredList({ coop.fail 'E1', coop.fail 'E2' }, { fire_on_one_errback = true })
    end)
    assert.equal(1, #reported)
    is_error(errors.FirstError, reported[1].value)
    reported = unhandled(function()
      coop.DeferredList({ coop.fail 'E1', coop.fail 'E2' }, { fire_on_one_callback = true })
    end)
    assert.equal(1, #reported)
    is_error(errors.FailureGroup, reported[1].value)
  end)

  it('counts the failure of a child as handled also when it comes late', function()
    assert.same({}, unhandled(function()
      local a, b = children(2)
      coop.DeferredList({ a, b }, { fire_on_one_callback = true })
      a:callback()
      b:errback 'late'
    end))
  end)
end)

describe('gather_results', function()

  it('fires with the values in their order, n set', function()
    local a, b, c = children(3)
    local d = coop.gather_results { a, b, c }
    local seen = cap(d)
    c:callback(3)
    a:callback(1)
    assert.equal(0, seen.n)
    b:callback(2)
    assert.same({ n = 1, { n = 3, 1, 2, 3 } }, seen)
  end)

  it('keeps the places of nils', function()
    local d = coop.gather_results { coop.succeed(), coop.succeed(2), coop.succeed() }
    assert.same({ n = 3, nil, 2, nil }, value_of(d))
  end)

  it('of nothing fires at once with nothing, n set', function()
    assert.same({ n = 0 }, value_of(coop.gather_results {}))
  end)

  it('fails with the first failure and its index, counted from 1', function()
    local a, b, c = children(3)
    local d = coop.gather_results { a, b, c }
    local seen = cap(d)
    local failure = coop.Failure {}
    c:errback(failure)
    assert.equal(1, seen.n)
    local e = is_error(errors.FirstError, seen[1].value)
    assert.equal(3, e.index)
    assert.is_true(rawequal(failure, e.sub_failure))
    a:callback()
    b:errback 'late'
    assert.equal(1, seen.n)
  end)

  it('LST-27 cancelled fires with the values that all cancellers make', function()
    local d = coop.gather_results { rescued 'a', rescued 'b' }
    d:cancel()
    assert.same({ n = 2, 'a', 'b' }, value_of(d))
  end)

  it('cancelled cancels its children and fails with FirstError', function()
    local a, first = counted()
    local b, second = counted()
    local d = coop.gather_results { a, b }
    d:cancel()
    assert.equal(1, first.count)
    assert.equal(1, second.count)
    local e = is_error(errors.FirstError, (error_of(d)))
    assert.equal(1, e.index)
    is_error(errors.CancelledError, e.sub_failure.value)
    cancelled(a)
    cancelled(b)
  end)

  it('LST-29 leaves the others running when one fails', function()
    local b, calls = counted()
    local d = coop.gather_results { coop.fail 'E', b }
    is_error(errors.FirstError, (error_of(d)))
    assert.is_false(b.called)
    assert.equal(0, calls.count)
    b:callback 'v'
    assert.equal('v', value_of(b))
  end)

  it('LST-30 counts the failures of all children as handled', function()
    assert.same({}, unhandled(function()
      local d = coop.gather_results { coop.fail 'E1', coop.fail 'E2' }
      d:add_errback(function(f) f:trap(errors.FirstError) end)
      local a, b = children(2)
      coop.gather_results({ a, b }):add_errback(function() end)
      a:errback 'E1'
      b:errback 'E2'
    end))
  end)

  it('leaves a child its failure, or nil when it consumes errors', function()
    for _, consume in ipairs { false, true } do
      local a = coop.Deferred()
      local d = coop.gather_results({ a }, consume)
      local mine = cap(a)
      a:errback 'E'
      assert.equal(1, mine.n)
      if consume then
        assert.is_nil(mine[1])
      else
        assert.equal('E', mine[1].value)
      end
      assert.equal('E', error_of(d).sub_failure.value)
    end
  end)

  it('keeps a copy of the list', function()
    local a, b = children(2)
    local given = { a, b }
    local d = coop.gather_results(given)
    given[1], given[2] = nil, nil
    a:callback(1)
    b:callback(2)
    assert.same({ n = 2, 1, 2 }, value_of(d))
  end)

  it('gathers a hundred thousand', function()
    local list = {}
    for i = 1, 100000 do list[i] = coop.Deferred() end
    local d = coop.gather_results(list)
    for i = #list, 1, -1 do list[i]:callback(i) end
    local result = value_of(d)
    assert.equal(100000, result.n)
    for i = 1, 100000 do assert(result[i] == i) end
  end)
end)

describe('race', function()

  for n = 1, 7 do
    it('LST-31 of ' .. n .. ' fires with the winner and cancels each other once', function()
      for k = 1, n do
        local list, calls, value = {}, {}, {}
        for i = 1, n do list[i], calls[i] = counted() end
        local d = coop.race(list)
        local seen = cap(d)
        assert.equal(0, seen.n)
        list[k]:callback(value)
        assert.equal(1, seen.n)
        assert.equal(k, seen[1][1])
        assert.is_true(rawequal(value, seen[1][2]))
        for i = 1, n do assert.equal(i == k and 0 or 1, calls[i].count) end
      end
    end)
  end

  it('LST-33 is not disturbed by a loser that fires late', function()
    local a, b, c = children(3)
    local d
    assert.same({}, unhandled(function()
      d = coop.race { a, b, c }
      a:callback 'v'
      b:callback 'late'
      c:errback 'late'
    end))
    assert.same({ 1, 'v' }, value_of(d))
  end)

  it('is won by the first that has fired already', function()
    local a, calls = counted()
    local d = coop.race { a, coop.succeed 'second', coop.succeed 'third' }
    assert.same({ 2, 'second' }, value_of(d))
    assert.equal(1, calls.count)
  end)

  it('is not won by a loser whose canceller makes a value', function()
    local a = coop.Deferred()
    local d = coop.race { rescued 'late', a, rescued 'later' }
    local seen = cap(d)
    a:callback 'first'
    assert.same({ n = 1, { 2, 'first' } }, seen)
  end)

  it('may be won with nil', function()
    local result = value_of(coop.race { coop.succeed() })
    assert.equal(1, result[1])
    assert.is_nil(result[2])
  end)

  it('LST-35 cancelled cancels each once and fails with CancelledError', function()
    local list, calls = {}, {}
    for i = 1, 3 do list[i], calls[i] = counted() end
    local d = coop.race(list)
    d:cancel()
    cancelled(d)
    for i = 1, 3 do
      assert.equal(1, calls[i].count)
      cancelled(list[i])
    end
  end)

  it('LST-36 passes over failures until one succeeds', function()
    local a, b = children(2)
    local d = coop.race { a, b }
    local seen = cap(d)
    a:errback 'E'
    assert.equal(0, seen.n)
    b:callback 'v'
    assert.same({ n = 1, { 2, 'v' } }, seen)
  end)

  it('LST-38 cancelled fires with what a canceller makes', function()
    local a, calls = counted()
    local d = coop.race { a, rescued 'saved' }
    d:cancel()
    assert.same({ 2, 'saved' }, value_of(d))
    assert.equal(1, calls.count)
  end)

  it('LST-39 of nothing is misuse', function()
    misuse(function() coop.race {} end, 'race')
  end)

  it('fails with all failures in the order of the list', function()
    local a, b, c = children(3)
    local d = coop.race { a, b, c }
    local seen = cap(d)
    c:errback 'third'
    a:errback 'first'
    assert.equal(0, seen.n)
    b:errback 'second'
    assert.equal(1, seen.n)
    local e = is_error(errors.FailureGroup, seen[1].value)
    assert.equal(3, #e.failures)
    for i, value in ipairs { 'first', 'second', 'third' } do
      assert.equal('Failure', coop.type(e.failures[i]))
      assert.equal(value, e.failures[i].value)
    end
    assert.falsy(tostring(e):find '^table: ')
  end)

  it('reports nothing of its losers', function()
    local d
    assert.same({}, unhandled(function()
      d = coop.race {
        coop.fail 'early', coop.Deferred(), coop.Deferred(function() error 'in the canceller' end),
        coop.Deferred(function(self) self:errback 'instead' end), coop.succeed 'v',
      }
    end))
    assert.same({ 5, 'v' }, value_of(d))
  end)

  it('that has fired is not cancelled any more', function()
    local a, calls = counted()
    local d = coop.race { coop.succeed 'v', a }
    d:cancel()
    assert.equal(1, calls.count)
    assert.same({ 1, 'v' }, value_of(d))
  end)
end)

describe('a FirstError', function()
  it('LST-40 shows its index and its failure in its text', function()
    local e = errors.FirstError { index = 17, sub_failure = coop.Failure 'the inner text' }
    assert.truthy(tostring(e):find('17', 1, true), tostring(e))
    assert.truthy(tostring(e):find('the inner text', 1, true), tostring(e))
    local inner = coop.Failure(errors.TimeoutError 'too slow')
    e = errors.FirstError { index = 2, sub_failure = inner }
    assert.truthy(tostring(e):find('too slow', 1, true), tostring(e))
  end)

  it('of an aggregate shows both too', function()
    local e = error_of(coop.gather_results { coop.succeed(), coop.fail 'the inner text' })
    assert.truthy(tostring(e):find('2', 1, true), tostring(e))
    assert.truthy(tostring(e):find('the inner text', 1, true), tostring(e))
  end)

  it('equals another with equal index and failure', function()
    local failure, other = coop.Failure 'E', coop.Failure 'E'
    local function make(index, sub_failure)
      return errors.FirstError { index = index, sub_failure = sub_failure }
    end
    assert.is_true(make(1, failure) == make(1, failure))
    assert.is_false(make(1, failure) == make(2, failure))
    assert.is_false(make(1, failure) == make(1, other))
    assert.is_false(make(1, failure) == errors.TimeoutError { index = 1, sub_failure = failure })
    assert.is_false(make(1, failure) == { index = 1, sub_failure = failure })
  end)
end)
