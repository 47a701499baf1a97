--- Several Deferreds waited for as one: DeferredList, gather_results and race.
---
--- What is watched keeps its result for later handlers, and its failure counts as handled.

local coop, core = ...

--- Copies a list of Deferreds, `n` set. For anything else: nil, what was expected, what came.
local function snapshot(list)
  local expected = 'table of Deferreds'
  if type(list) ~= 'table' or coop.type(list) then return nil, expected, list end
  local n = list.n
  if n == nil then
    n = #list
    for key in next, list do
      if math.type(key) == 'integer' and key > n then n = key end
    end
  elseif math.type(n) ~= 'integer' or n < 0 then
    return nil, expected .. ' with an integer n', n
  end
  local children = { n = n }
  for i = 1, n do
    local child = list[i]
    if not coop.is_deferred(child) then
      return nil, ('Deferred at index %d of the table'):format(i), child
    end
    children[i] = child
  end
  return children
end

local function is_failure(result) return coop.type(result) == 'Failure' end

local function cancel_all(children)
  for i = 1, children.n do children[i]:cancel() end
end

local function swallow() end

--- Calls `see(result, index)` for each child when it has a result.
local function watch(children, see, consume_errors)
  for i = 1, children.n do core.observe(children[i], see, i) end
  if not consume_errors then return end
  for i = 1, children.n do children[i]:add_errback(swallow) end
end

--- Waits for all of `children`. `collect(results, n)` makes what it fires with; the options are
--- those of DeferredList.
local function wait_for_all(children, collect, options)
  local n = children.n
  local left, failed, results = n, 0, {}
  local on_callback, on_errback = options.fire_on_one_callback, options.fire_on_one_errback
  local done = core.relay(function() cancel_all(children) end)

  local function see(result, index)
    if done.called then return end
    local failure = is_failure(result)
    results[index] = result
    left = left - 1
    if failure then failed = failed + 1 end
    if failure and on_errback then
      done:errback(coop.errors.FirstError { sub_failure = result, index = index })
    elseif not failure and on_callback then
      done:callback { result, index }
    elseif left == 0 and on_callback and failed == n then
      done:errback(coop.errors.FailureGroup { failures = results })
    elseif left == 0 then
      done:callback(collect(results, n))
    end
  end

  if n == 0 then done:callback(collect(results, 0)) end
  watch(children, see, options.consume_errors)
  return done
end

local function outcomes_of(results, n)
  local list = {}
  for i = 1, n do list[i] = { not is_failure(results[i]), results[i] } end
  return list
end

local function values_of(results, n)
  results.n = n
  return results
end

---@class coop.DeferredListOptions
---@field fire_on_one_callback? boolean fire with `{value, index}` of the first that succeeds
---@field fire_on_one_errback? boolean fail with FirstError of the first that fails
---@field consume_errors? boolean later handlers of a child that fails see nil

--- Waits for all Deferreds of `list`; fires with an array of `{success, value}` in their order.
--- Cancelling it cancels them.
---@param list coop.Deferred[]
---@param options? coop.DeferredListOptions
---@return coop.Deferred
function coop.DeferredList(list, options)
  local children, expected, got = snapshot(list)
  if not children then core.check('DeferredList', 1, expected, got) end
  if options == nil then options = {} end
  if type(options) ~= 'table' or coop.type(options) then
    core.check('DeferredList', 2, 'table', options)
  end
  if children.n == 0 and options.fire_on_one_callback then
    core.misuse('DeferredList', 'an empty list cannot fire on one callback')
  end
  return wait_for_all(children, outcomes_of, options)
end

--- Waits for all Deferreds of `list`; fires with their values in order, `n` set. The first
--- failure fails it with FirstError. Cancelling it cancels them.
---@param list coop.Deferred[]
---@param consume_errors? boolean later handlers of a child that fails see nil
---@return coop.Deferred
function coop.gather_results(list, consume_errors)
  local children, expected, got = snapshot(list)
  if not children then core.check('gather_results', 1, expected, got) end
  return wait_for_all(children, values_of, {
    fire_on_one_errback = true,
    consume_errors = consume_errors,
  })
end

--- Waits for the first Deferred of `list` that succeeds, cancels the others, and fires with
--- `{index, value}`. Fails with FailureGroup when all have failed, with CancelledError when it
--- is cancelled, which cancels them.
---@param list coop.Deferred[] at least one
---@return coop.Deferred
function coop.race(list)
  local children, expected, got = snapshot(list)
  if not children then core.check('race', 1, expected, got) end
  if children.n == 0 then core.misuse('race', 'the list of Deferreds is empty') end
  local failures, failed, winner, cancelled = {}, 0, nil, false
  local done = coop.Deferred(function()
    cancelled = true
    cancel_all(children)
  end)

  local function see(result, index)
    if done.called or winner then return end
    if not is_failure(result) then
      winner = children[index]
      for i = 1, children.n do
        if children[i] ~= winner then children[i]:cancel() end
      end
      if not done.called then done:callback { index, result } end
    else
      failures[index] = result
      failed = failed + 1
      if failed == children.n and not cancelled then
        done:errback(coop.errors.FailureGroup { failures = failures })
      end
    end
  end

  watch(children, see)
  return done
end
