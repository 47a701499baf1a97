-- A yield after which the same coroutine would go on at once does not switch. No program may be
-- able to tell: here programs run the short way, and the long one, which a predicate that is asked
-- after each step enforces.
local coop = require 'coop'
local helper = require 'tests.spec.helper'
local fakes = require 'tests.spec.fakes'
local run = helper.run

local function never() return false end

--- A Cooperator on the scheduler `s`, the long way or the short one.
local function cooperator(s, long, options)
  options = options or {}
  options.scheduler, options.slice = s.schedule, 1000
  if long then
    options.termination_predicate_factory = function() return never end
  end
  return coop.Cooperator(options)
end

--- Runs everything to its end.
local function pump(s)
  for _ = 1, 10000 do
    if s.outstanding() == 0 then return end
    s.pump()
  end
  error('this never ends', 2)
end

--- So many quick steps that it is asked only now and then whether the slice is over.
local calm = coop.generator(function()
  for _ = 1, 1000 do coroutine.yield() end
end)

--- Runs `program(cooperator, note, s)` both ways, which must note the same.
local function same_both_ways(program, options, name)
  local logs = {}
  for way, long in ipairs { true, false } do
    local log, s = {}, fakes.scheduler()
    local c = cooperator(s, long, options and { quantum = options.quantum })
    local function note(...) log[#log + 1] = table.concat({ ... }, ' ') end
    c:cooperate(calm())
    pump(s)
    program(c, note, s)
    pump(s)
    logs[way] = log
  end
  local wanted, got = logs[1], logs[2]
  assert.is_true(#wanted > 0)
  for i = 1, math.max(#wanted, #got) do
    if wanted[i] ~= got[i] then
      local before = table.concat(wanted, '; ', math.max(1, i - 20), i - 1)
      error(('%s %s\n  long way: %s\n  short way: %s'):format(name or '', before, wanted[i],
        got[i]), 2)
    end
  end
  return wanted
end

--- Random numbers of its own for each program, the same ones for both ways.
local function dice(seed)
  return function(n)
    seed = (seed * 1103515245 + 12345) & 0x7fffffff
    return (seed >> 8) % n + 1
  end
end

local function outcome(note, name)
  return function(result)
    if coop.type(result) == 'Failure' then
      local value = result.value
      note(name, 'failed', type(value) == 'table' and value.message or tostring(value))
    else
      note(name, 'done')
    end
  end
end

--- A program of tasks that do by chance what tasks can do to one another.
local function chaos(seed)
  return function(c, note)
    local roll, tasks, paused, count = dice(seed), {}, {}, 0
    local add

    local function any() return roll(#tasks) end

    local actions = {
      function() coroutine.yield() end,
      function() coroutine.yield() end,
      function() coroutine.yield() end,
      function() coroutine.yield(roll(100)) end,
      function() coroutine.yield(false, 'more') end,
      function() coroutine.yield { 'a table' } end,
      function() pcall(coroutine.yield) end,
      function() coroutine.yield(coop.succeed(1)) end,
      function() note('awaited', coop.await(coop.succeed(roll(9)))) end,
      function() if count < 12 then add() end end,
      function()
        local i = any()
        if pcall(tasks[i].pause, tasks[i]) then paused[i] = (paused[i] or 0) + 1 end
      end,
      function()
        local i = any()
        if (paused[i] or 0) > 0 then
          paused[i] = paused[i] - 1
          tasks[i]:resume()
        end
      end,
      function() if roll(4) == 1 then pcall(tasks[any()].stop, tasks[any()]) end end,
      function() if roll(30) == 1 then c:stop() end end,
      function() if roll(10) == 1 then error('by chance ' .. roll(9), 0) end end,
    }

    function add()
      count = count + 1
      local name = count
      local body = coop.generator(function()
        for step = 1, 5 + roll(40) do
          note(name, step)
          actions[roll(#actions)]()
        end
      end)
      local iterator = body()
      if roll(4) == 1 then
        local inner = iterator
        iterator = coroutine.create(function()
          for _ in inner do coroutine.yield() end
        end)
      end
      tasks[name] = c:cooperate(iterator)
      tasks[name]:when_done():add_both(outcome(note, name))
    end

    for _ = 1, roll(3) do add() end
  end
end

describe('A yield that does not switch', function()
  before_each(helper.watch)

  it('leaves the order of tasks that meddle with one another as it is', function()
    for seed = 1, 150 do
      for _, quantum in ipairs { 1, 2, 16 } do
        same_both_ways(chaos(seed), { quantum = quantum },
          ('seed %d, quantum %d: '):format(seed, quantum))
      end
    end
  end)

  it('gives the turn up as soon as there is another task, and not before', function()
    local log = same_both_ways(function(c, note)
      local function body(name, n, act)
        return coop.generator(function()
          for i = 1, n do
            note(name, i)
            if i == 3 and act then act() end
            coroutine.yield()
          end
        end)()
      end
      c:cooperate(body('a', 6, function() c:cooperate(body('b', 2)) end))
    end)
    assert.same({ 'a 1', 'a 2', 'a 3', 'b 1', 'a 4', 'b 2', 'a 5', 'a 6' }, log)
  end)

  it('counts the steps of a quantum', function()
    local log = same_both_ways(function(c, note)
      for _, name in ipairs { 'a', 'b' } do
        c:cooperate(coop.generator(function()
          for i = 1, 4 do
            note(name, i)
            coroutine.yield(i)
          end
        end)())
      end
    end, { quantum = 3 })
    assert.same({ 'a 1', 'a 2', 'a 3', 'b 1', 'b 2', 'b 3', 'a 4', 'b 4' }, log)
  end)

  it('ends what a quantum has left when a Deferred is yielded in between', function()
    for quantum = 2, 5 do
      same_both_ways(function(c, note)
        local d = coop.Deferred()
        for _, name in ipairs { 'a', 'b' } do
          c:cooperate(coop.generator(function()
            for i = 1, 9 do
              note(name, i)
              if name == 'a' and i == 3 then coroutine.yield(d) else coroutine.yield() end
              if name == 'b' and i == 6 then d:callback(1) end
            end
          end)())
        end
      end, { quantum = quantum })
    end
  end)

  it('takes hold of a pause, a stop and the stop of the Cooperator at once', function()
    for _, act in ipairs {
      function(task) task:pause() end,
      function(task) task:stop() end,
      function(_, c) c:stop() end,
      function(task) task:pause() task:resume() end,
    } do
      same_both_ways(function(c, note)
        local task
        task = c:cooperate(coop.generator(function()
          for i = 1, 6 do
            note('step', i)
            if i == 3 then act(task, c) end
            coroutine.yield()
          end
        end)())
        task:when_done():add_both(outcome(note, 'task'))
      end)
    end
  end)

  it('returns nothing, whatever was yielded', function()
    same_both_ways(function(c, note)
      c:cooperate(coop.generator(function()
        for _, v in ipairs { 1, 'a', false, {}, print } do
          note('got', select('#', coroutine.yield(v)), select('#', coroutine.yield(v, v)))
        end
        note('got', select('#', coroutine.yield()), select('#', pcall(coroutine.yield)))
      end)())
    end)
  end)

  it('is refused where a switch is', function()
    local log = same_both_ways(function(c, note)
      c:cooperate(coop.generator(function()
        coroutine.yield()
        local ok, e = pcall(table.sort, { 3, 2, 1 }, function(a, b)
          coroutine.yield()
          return a < b
        end)
        note(tostring(ok), e)
        note(select(2, pcall(string.gsub, 'a', 'a', coroutine.yield)))
      end)())
    end)
    assert.truthy(log[1]:find('attempt to yield across a C-call boundary', 1, true), log[1])
  end)

  it('is nothing to what other coroutines yield to one another', function()
    same_both_ways(function(c, note)
      local inner = coop.generator(function(n)
        for i = 1, n do coroutine.yield(i) end
      end)
      local shared = inner(20)
      local function reader(name)
        return coop.generator(function()
          for _ = 1, 3 do
            note(name, tostring(shared:next()))
            coroutine.yield()
            for v in inner(2) do note(name, 'own', v) end
            local wrapped = coroutine.wrap(function() coroutine.yield(coroutine.yield('w')) end)
            note(name, wrapped(), wrapped('x'))
          end
        end)()
      end
      c:cooperate(shared)
      c:cooperate(reader 'a')
      c:cooperate(reader 'b')
    end)
  end)

  it('calls the same functions, as a hook sees it', function()
    same_both_ways(function(c, note)
      local calls, returns, lines = 0, 0, 0
      c:cooperate(coop.generator(function()
        debug.sethook(function(event)
          if event == 'line' then lines = lines + 1
          elseif event == 'return' then returns = returns + 1
          else calls = calls + 1 end
        end, 'crl')
        for i = 1, 20 do
          coroutine.yield(i)
        end
        debug.sethook()
        note(calls, returns, lines)
      end)())
    end)
  end)

  it('goes unnoticed when one Cooperator ticks within a step of another', function()
    same_both_ways(function(c, note)
      local s = fakes.scheduler()
      local inner = cooperator(s, false)
      local function body(name, n, act)
        return coop.generator(function()
          for i = 1, n do
            note(name, i)
            if act then act() end
            coroutine.yield(i)
          end
        end)()
      end
      inner:cooperate(body('inner', 5))
      local outer = c:cooperate(body('outer', 5, function() s.pump() end))
      inner:cooperate(body('stops', 1, function() outer:stop() end))
      outer:when_done():add_both(outcome(note, 'outer'))
    end)
  end)

  for _, batch in ipairs { 1, 2, 7, 1000 } do
    it('stores the same values, up to ' .. batch .. ' a step', function()
      for seed = 1, 60 do
        same_both_ways(function(c, note)
          local roll = dice(seed)
          -- a batch may end at any time with its slice: then another task has its turn
          for task = 1, batch == 1 and roll(2) or 1 do
            local values = coop.generator(function()
              for i = 1, roll(80) do
                local kind = roll(12)
                if kind == 1 then coroutine.yield()
                elseif kind == 2 then coroutine.yield(nil)
                elseif kind == 3 then coroutine.yield(coop.succeed(-i))
                elseif kind == 4 then coroutine.yield(i, 'more')
                elseif kind == 5 then coroutine.yield(false)
                elseif kind == 6 then note(task, 'at', i) coroutine.yield('s' .. i)
                elseif kind == 7 and roll(8) == 1 then error('by chance', 0)
                elseif kind == 8 then coroutine.yield(coop.await(coop.succeed(i)))
                else coroutine.yield(i) end
              end
            end)
            local iterator = values()
            if roll(3) == 1 then
              iterator = coroutine.create(function()
                for v in values() do coroutine.yield(v) end
              end)
            end
            local done = batch == 1 and coop.accumulate(iterator, c)
              or coop.batch_accumulate(batch, iterator, c)
            done:add_both(function(result)
              if coop.type(result) == 'Failure' then
                note(task, 'failed', tostring(result.value))
                result = result.partial
              end
              for _, v in ipairs(result) do note(task, tostring(v)) end
            end)
          end
        end)
      end
    end)
  end

  it('does not keep the values of an accumulation that is over', function()
    local kept = setmetatable({}, { __mode = 'v' })
    local s = fakes.scheduler()
    do
      local d = coop.accumulate(coop.generator(function()
        for i = 1, 5 do coroutine.yield { i } end
      end)(), cooperator(s, false))
      d:add_callback(function(values) kept.values = values end)
    end
    pump(s)
    collectgarbage()
    collectgarbage()
    assert.is_nil(kept.values)
  end)

  it('lets a call be made when it is due', run(function()
    local over = false
    coop.call_later(0.01, function() over = true end)
    coop.await(coop.coiterate(coop.generator(function()
      while not over do coroutine.yield() end
    end)()))
    assert.is_true(over)
  end))

  it('ends a slice that is used up', run(function()
    local turns, over = 0, false
    coop.reactor:call_later(0, function()
      local function count()
        turns = turns + 1
        over = turns == 3
        if not over then coop.call_later(0, count) end
      end
      count()
    end)
    coop.await(coop.coiterate(coop.generator(function()
      while not over do coroutine.yield(1) end
    end)()))
    assert.equal(3, turns)
  end))

  it('lets input in that comes during a slice, long before the slice is over', run(function()
    local net = require 'coop.net'
    local server = net.listen('127.0.0.1', 0, function(conn)
      for block in conn do coop.await(conn:write(block)) end
    end)
    local over = false
    local busy = coop.Cooperator { slice = 3600 } -- it would never get there
    local task = busy:coiterate(coop.generator(function()
      while not over do coroutine.yield() end
    end)())
    local conn = coop.await(net.connect('127.0.0.1', server.port))
    coop.await(conn:write 'hello')
    assert.equal('hello', coop.await(conn:read(5)))
    over = true
    conn:close()
    server:close()
    coop.await(task)
  end))
end)
