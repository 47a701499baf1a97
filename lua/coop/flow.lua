--- Flows: stages that pull from stages, in coroutines that can wait anywhere.
---
---     local flow = require 'coop.flow'
---
---     local function numbers()
---       for i = 1, 3 do
---         coroutine.yield(i)
---         coroutine.yield(flow.Cooperate(1))
---       end
---     end
---     local squares = flow.Map(function(n) return n * n end, numbers)
---     for n in squares do print(n) end
---
--- The body of a stage may yield, beside values: a Deferred, whose value the yield returns, or
--- whose error it raises; a stage, to have its next value ready for `stage:next()`; a Cooperate or
--- a CallLater; and nothing, which gives a turn up. What it awaits holds up itself and those that
--- pull from it, nobody else.
---
--- The end, an error and the interest in a stage travel: a source that fails fails who pulls from
--- it, unless he catches the error; a stage that ends, or is closed, closes its sources, once
--- nobody else pulls from them. One that nobody can reach any more is closed at collection.
---
--- A stage makes no value before it is asked for one. What is stored is: one value of a stage that
--- was yielded, or that Concurrent gave; one of each source of a Map or Zip; the unfinished line of
--- a LineBreak, `max_length` bytes and one block; `limit` values of a Callback; 2048 values of a
--- thread, or of a query, or fewer when they come to a megabyte.

local coop, core = ...

if core.stage and core.stage.flow then return core.stage.flow end

local stages = core.stage or require 'coop.stage'
local poll, close = stages.poll, stages.close
local new_stage, raise_failure = stages.new, stages.raise_failure
local await, yield = coop.await, coroutine.yield

---@class coop.flow
---@field clock coop.Clock what Cooperate takes its time from; default: `coop.reactor`
local M = {}
stages.flow = M

function stages.clock()
  local clock = M.clock
  if clock == nil then return coop.reactor end
  if not core.is_clock(clock) then error('Cooperate: flow.clock is not a clock', 0) end
  return clock
end

-- Instructions ------------------------------------------------------------------------------------

---@class coop.Instruction

local new_cooperate = core.class('Cooperate', {}, {
  __tostring = function(self) return ('Cooperate(%.14g)'):format(self.seconds) end,
})

--- What a body yields to go on after `seconds` of `flow.clock`, in a later turn of the loop.
---@param seconds? number default: 0
---@return coop.Instruction
function M.Cooperate(seconds)
  if seconds == nil then seconds = 0 end
  if not core.is_number(seconds) or seconds < 0 then
    core.check('Cooperate', 1, 'non-negative number', seconds)
  end
  return new_cooperate { seconds = seconds }
end

local new_call_later = core.class('CallLater', {}, {
  __tostring = function() return 'CallLater' end,
})

--- What a body yields to go on when somebody says so: `f(go_on)` is called, and `go_on()` lets it.
---@param f fun(go_on: fun())
---@return coop.Instruction
function M.CallLater(f)
  if not core.callable(f) then core.check('CallLater', 1, 'function', f) end
  return new_call_later { _f = f }
end

-- Bodies of what can be wrapped -------------------------------------------------------------------

--- Yields a value, or the value of a Deferred.
local function give(v)
  local value = yield(v)
  if value ~= nil then yield(value) end
end

local list = coop.generator(function(t)
  local n = math.type(t.n) == 'integer' and t.n
  for i = 1, n or math.maxinteger do
    local v = t[i]
    if v ~= nil then give(v) elseif not n then return end
  end
end)

local keys = coop.generator(function(t)
  for key in next, t do give(key) end
end)

local iterate = coop.generator(function(next_value)
  for v in next_value do give(v) end
end)

local one = coop.generator(function(d) yield(await(d)) end)

-- Objects of coop that are iterators, beside stages and Generators.
local ITERATORS = { Connection = true, Response = true }

local function is_list(t)
  return math.type(t.n) == 'integer' or t[1] ~= nil or next(t) == nil
end

local function of_table(t)
  if is_list(t) then return new_stage('list', list(t)) end
  return new_stage('keys', keys(t))
end

local WRAPPABLE = 'stage, generator, function, table, string or Deferred'

--- The stage that `v` is or is made into, or nil.
local function to_stage(v)
  local kind = coop.type(v)
  if kind == 'Stage' then return v end
  if kind == 'Generator' then return new_stage('generator', v) end
  if type(v) == 'string' then return new_stage('string', nil, nil, v) end
  if coop.is_deferred(v) then return new_stage('Deferred', one(v)) end
  if ITERATORS[kind] then return new_stage(kind, iterate(v)) end
  if kind then return nil end
  local stage
  if core.callable(v) then
    stage = new_stage('function', coop.generator(v)())
    stage._function = true
    return stage
  end
  if type(v) == 'table' then
    stage = of_table(v)
  elseif type(v) == 'thread' then
    local good, next_value = pcall(core.iterator, 'wrap', 1, v)
    if not good then return nil end -- it runs
    stage = new_stage('coroutine', iterate(next_value))
  else
    return nil
  end
  stage._passes = true
  return stage
end

--- The index of the first argument that is no trap item, or nil.
local function bad_trap(...)
  for i = 1, select('#', ...) do
    local item = select(i, ...)
    local kind = type(item)
    if kind ~= 'table' and kind ~= 'string' and kind ~= 'function' then return i end
  end
end

local TRAP = 'class, string or function'

--- The stages of several arguments; or nil and the index of the one that is none.
local function to_stages(...)
  local sources = {}
  for i = 1, select('#', ...) do
    local source = to_stage((select(i, ...)))
    if not source then return nil, i end
    sources[i] = source
  end
  return sources
end

--- Makes a stage of anything that has values: a stage (it is returned as it is), a Generator, a
--- function (called once, as a generator body; a Generator or stage that it returns goes on in its
--- place), a list (its elements) or another table (its keys), a string (which is one value), a
--- coroutine, a Deferred (its value), a connection or the response to an HTTP request (the blocks
--- that come). A Deferred among the elements stands for its value.
---
--- An error that matches one of the trap items, in the way of `Failure:check`, ends the stage: the
--- item is its last value. A stage that is wrapped again gets the new items first.
---@param obj any
---@param ... any trap items
---@return coop.Stage
function M.wrap(obj, ...)
  local stage = to_stage(obj)
  if not stage then core.check('wrap', 1, WRAPPABLE, obj) end
  local bad = bad_trap(...)
  if bad then core.check('wrap', bad + 1, TRAP, (select(bad, ...))) end
  if select('#', ...) > 0 then stages.trap(stage, { ... }) end
  return stage
end

--- Makes a stage whose values are those that the generator `f` is given by its sources.
local function derive(name, sources, f, ...)
  local stage = new_stage(name, f(...), sources)
  stage._passes = true
  return stage
end

-- Several sources at once -------------------------------------------------------------------------

-- A line of sources that may have a value: entries {source, index} in their turn. One that waits
-- is not among them: it comes to the end of the line when its wait is over.

local function join(line, entry)
  line.last = line.last + 1
  line[line.last] = entry
end

local function new_line(sources)
  local line = { first = 1, last = 0, waiting = 0, bell = nil }
  for i, source in ipairs(sources) do join(line, { source, i }) end
  return line
end

local function come_back(_, line, entry)
  line.waiting = line.waiting - 1
  join(line, entry)
  local bell = line.bell
  line.bell = nil
  if bell and not bell.called then bell:callback() end
end

--- The first in the line; waits while all of them do. Nil when there is none.
local function leave(line)
  while line.first > line.last do
    if line.waiting == 0 then return nil end
    line.bell = coop.Deferred()
    await(line.bell)
  end
  local entry = line[line.first]
  line[line.first] = nil
  line.first = line.first + 1
  return entry
end

--- The next value of those in the line, and its entry; nil when all have ended. Raises the error of
--- the first that fails.
local function take(line)
  while true do
    local entry = leave(line)
    if not entry then return nil end
    local source = entry[1]
    local value, wait = poll(source)
    if value ~= nil then return value, entry end
    if wait then
      line.waiting = line.waiting + 1
      core.observe(wait, come_back, line, entry)
    elseif source._failure then
      raise_failure(source)
    end
  end
end

local merge = coop.generator(function(sources)
  local line = new_line(sources)
  for value, entry in take, line do
    yield(value)
    join(line, entry)
  end
end)

--- Takes what there is, from each stage in its turn. A stage that waits keeps nobody else waiting.
---@param ... any stages, or what can be wrapped
---@return coop.Stage
function M.Merge(...)
  local sources, bad = to_stages(...)
  if bad then core.check('Merge', bad, WRAPPABLE, (select(bad, ...))) end
  return derive('Merge', sources, merge, sources)
end

local concurrent = coop.generator(function(sources)
  local line = new_line(sources)
  for value, entry in take, line do
    local source = entry[1]
    source._value, source[1] = value, false
    yield(source)
    join(line, entry)
  end
end)

--- Gives the stages themselves, each when it has a value, for `stage:next()`. One whose value was
--- not taken comes again in its turn.
---@param ... any stages, or what can be wrapped
---@return coop.Stage
function M.Concurrent(...)
  local sources, bad = to_stages(...)
  if bad then core.check('Concurrent', bad, WRAPPABLE, (select(bad, ...))) end
  return derive('Concurrent', sources, concurrent, sources)
end

--- One value of each source, nil of those that have ended; nil when all have. They wait side by
--- side.
local function row_of(entries)
  local line = { first = 1, last = 0, waiting = 0, bell = nil }
  for _, entry in ipairs(entries) do join(line, entry) end
  local row
  for value, entry in take, line do
    row = row or { n = #entries }
    row[entry[2]] = value
  end
  return row
end

local rows = coop.generator(function(sources, f)
  local entries = {}
  for i, source in ipairs(sources) do entries[i] = { source, i } end
  for row in row_of, entries do
    if f then row = f(table.unpack(row, 1, row.n)) end
    if row ~= nil then give(row) end
  end
end)

local map = coop.generator(function(source, f)
  for value in source do
    value = f(value)
    if value ~= nil then
      value = yield(value)
      if value ~= nil then yield(value) end -- it was a Deferred
    end
  end
end)

--- Calls `f` with a value of each stage, nil of those that have ended before the others. Its
--- results are the values; nil is left out, a Deferred stands for its value. Without `f`: tables of
--- the values, `n` set.
---@param f? async fun(...): any
---@param ... any one stage at least, or what can be wrapped
---@return coop.Stage
function M.Map(f, ...)
  if f ~= nil and not core.callable(f) then core.check('Map', 1, 'function', f) end
  local sources, bad = to_stages(...)
  if bad or #sources == 0 then
    core.check('Map', (bad or 1) + 1, WRAPPABLE, (select(bad or 1, ...)))
  end
  if f ~= nil and #sources == 1 then return derive('Map', sources, map, sources[1], f) end
  return derive('Map', sources, rows, sources, f)
end

--- Tables of one value of each stage, `n` set, nil of those that have ended before the others.
---@param ... any one stage at least, or what can be wrapped
---@return coop.Stage
function M.Zip(...)
  local sources, bad = to_stages(...)
  if bad or #sources == 0 then
    core.check('Zip', bad or 1, WRAPPABLE, (select(bad or 1, ...)))
  end
  return derive('Zip', sources, rows, sources)
end

local chain = coop.generator(function(sources)
  for _, source in ipairs(sources) do
    for value in source do yield(value) end
  end
end)

--- The values of one stage after those of the other.
---@param ... any stages, or what can be wrapped
---@return coop.Stage
function M.Chain(...)
  local sources, bad = to_stages(...)
  if bad then core.check('Chain', bad, WRAPPABLE, (select(bad, ...))) end
  return derive('Chain', sources, chain, sources)
end

-- One source --------------------------------------------------------------------------------------

local filter = coop.generator(function(source, f)
  for value in source do
    local keep = value
    if f then keep = f(value) end
    if keep and keep ~= true and f then keep = await(keep) end
    if keep then yield(value) end
  end
end)

--- The values for which `f(value)` is true, or that are true themselves.
---@param f? async fun(value: any): any
---@param stage any or what can be wrapped
---@param ... any trap items
---@return coop.Stage
function M.Filter(f, stage, ...)
  if f ~= nil and not core.callable(f) then core.check('Filter', 1, 'function', f) end
  local source = to_stage(stage)
  if not source then core.check('Filter', 2, WRAPPABLE, stage) end
  local bad = bad_trap(...)
  if bad then core.check('Filter', bad + 2, TRAP, (select(bad, ...))) end
  local self = derive('Filter', { source }, filter, source, f)
  stages.trap(self, { ... })
  return self
end

local inside = core.flow.inside

local pipe = coop.generator(function(source, f)
  local here = inside()
  local function emit(v)
    if inside() ~= here then core.misuse('emit', "called outside of the Pipe's function") end
    if v ~= nil then give(v) end
  end
  for value in source do f(emit, value) end
  f(emit, nil)
end)

--- Calls `f(emit, value)` for each value, and `f(emit, nil)` at the end. What `f` emits are the
--- values, each taken before `emit` returns; nil is left out, a Deferred stands for its value.
---@param f async fun(emit: async fun(v: any), value: any)
---@param stage any or what can be wrapped
---@param ... any trap items
---@return coop.Stage
function M.Pipe(f, stage, ...)
  if not core.callable(f) then core.check('Pipe', 1, 'function', f) end
  local source = to_stage(stage)
  if not source then core.check('Pipe', 2, WRAPPABLE, stage) end
  local bad = bad_trap(...)
  if bad then core.check('Pipe', bad + 2, TRAP, (select(bad, ...))) end
  local self = derive('Pipe', { source }, pipe, source, f)
  stages.trap(self, { ... })
  return self
end

-- Lines -------------------------------------------------------------------------------------------

--- How many bytes at the end of `text` may turn out to be the beginning of the delimiter.
local function begun(text, delimiter)
  for n = math.min(#delimiter - 1, #text), 1, -1 do
    if text:sub(-n) == delimiter:sub(1, n) then return n end
  end
  return 0
end

local function too_long(max)
  error(coop.errors.LineTooLong {
    message = ('LineBreak: a line is longer than %d bytes'):format(max),
    max_length = max,
  })
end

-- `pieces` are the blocks since the last line, `length` bytes; a delimiter may begin in the last
-- few of these, the `tail`, and end in the next block.
local line_break = coop.generator(function(source, options)
  local delimiter, max = options.delimiter, options.max_length
  local overlap = #delimiter - 1
  local pieces, length, tail = {}, 0, ''
  for block in source do
    block = tostring(block)
    local text = block
    if (tail .. block):find(delimiter, 1, true) then
      pieces[#pieces + 1] = block
      text = table.concat(pieces)
      local start = 1
      local from, to = text:find(delimiter, math.max(1, length - overlap + 1), true)
      while from do
        if from - start > max then too_long(max) end
        yield(text:sub(start, from - 1))
        start = to + 1
        from, to = text:find(delimiter, start, true)
      end
      text = text:sub(start)
      pieces, length, tail = {}, 0, ''
    end
    pieces[#pieces + 1] = text
    length = length + #text
    tail = overlap > 0 and (tail .. text):sub(-overlap) or ''
    if length > max and length - begun(tail, delimiter) > max then too_long(max) end
  end
  if length == 0 then return end
  if not options.trailer then
    error(('LineBreak: %d bytes without a delimiter at the end'):format(length), 0)
  end
  yield(table.concat(pieces))
end)

local LINE_OPTIONS = { delimiter = true, max_length = true, trailer = true, trap = true }

--- The trap items of an option: a list of them, or one.
local function trap_items(trap)
  if trap == nil then return {} end
  if type(trap) == 'table' and not coop.type(trap) and (trap[1] ~= nil or next(trap) == nil) then
    return table.move(trap, 1, rawlen(trap), 1, {})
  end
  return { trap }
end

---@class coop.LineBreakOptions
---@field delimiter? string default: "\r\n"
---@field max_length? integer the most bytes of a line without its delimiter; default: 16384
---@field trailer? boolean a last line without a delimiter is a line, not an error
---@field trap? any trap item, or a list of them

--- Breaks blocks of text into lines. What is no text is made into one. A line that is too long,
--- finished or not, fails the stage with LineTooLong.
---@param stage any or what can be wrapped
---@param options? coop.LineBreakOptions
---@return coop.Stage
function M.LineBreak(stage, options)
  local source = to_stage(stage)
  if not source then core.check('LineBreak', 1, WRAPPABLE, stage) end
  if options == nil then options = {} end
  if type(options) ~= 'table' or coop.type(options) then
    core.check('LineBreak', 2, 'table', options)
  end
  for key in next, options do
    if not LINE_OPTIONS[key] then
      core.misuse('LineBreak', ("unknown option '%s'"):format(core.text(key)))
    end
  end
  local delimiter, max = options.delimiter, options.max_length
  if delimiter == nil then delimiter = '\r\n' end
  if type(delimiter) ~= 'string' or delimiter == '' then
    core.misuse('LineBreak', 'option delimiter: a string that is not empty expected')
  end
  if max == nil then max = 16384 end
  if math.type(max) ~= 'integer' or max < 1 then
    core.misuse('LineBreak', 'option max_length: an integer of at least 1 expected')
  end
  local items = trap_items(options.trap)
  if bad_trap(table.unpack(items)) then
    core.misuse('LineBreak', 'option trap: ' .. TRAP .. ' expected, or a list of them')
  end
  local self = derive('LineBreak', { source }, line_break, source,
    { delimiter = delimiter, max_length = max, trailer = options.trailer })
  stages.trap(self, items)
  return self
end

-- Values that are pushed --------------------------------------------------------------------------

---@class coop.Callback: coop.Stage
---@field limit integer how many values it stores that nobody has taken; may be assigned
---@field _first integer the values are those at `_first` to `_last` of `_stored`
---@field _bell coop.Deferred? fires for the body when there is something
---@field _room coop.Deferred? fires for who pushes when there is room
---@field _finished boolean? `finish` or `errback` was called
local Callback = {}

local LIMIT = 65536

local callback = coop.generator(function(self)
  while true do
    if self._first <= self._last then
      local value = self._stored[self._first]
      self._stored[self._first] = nil
      self._first = self._first + 1
      local room = self._room
      self._room = nil
      if room and not room.called then room:callback() end
      give(value)
    elseif self._finished then
      if self._error then self._error:raise() end
      return
    else
      self._bell = coop.Deferred()
      await(self._bell)
    end
  end
end)

local function wake(self)
  local bell = self._bell
  self._bell = nil
  if bell and not bell.called then bell:callback() end
end

local function is_callback(v) return coop.type(v) == 'Stage' and v._stored ~= nil end

local FINISHED = 'the Callback has finished'

--- Adds a value. One beyond `limit` raises QueueOverflow. When the stage has been closed, nobody
--- wants any: it is dropped.
---@param v any
function Callback:result(v)
  if not is_callback(self) then core.check('result', 0, 'Callback', self) end
  if v == nil then core.check('result', 1, 'value', v) end
  if self._finished then core.misuse('result', FINISHED) end
  if self._over then return end
  local limit = self.limit
  if type(limit) ~= 'number' then core.misuse('result', 'the field limit is not a number') end
  local stored = self._last - self._first + 1
  if stored >= limit then
    core.raise('QueueOverflow', 'result', ('%d values are stored already'):format(stored))
  end
  self._last = self._last + 1
  self._stored[self._last] = v
  wake(self)
end

--- No more values will come.
function Callback:finish()
  if not is_callback(self) then core.check('finish', 0, 'Callback', self) end
  if self._finished then core.misuse('finish', FINISHED) end
  self._finished = true
  wake(self)
end

--- The stage fails when the values that are stored have been taken.
---@param e any a Failure, or any error value
function Callback:errback(...)
  if not is_callback(self) then core.check('errback', 0, 'Callback', self) end
  if select('#', ...) == 0 then core.misuse('errback', 'an error value expected') end
  if self._finished then core.misuse('errback', FINISHED) end
  self._finished = true
  self._error = coop.Failure((...))
  wake(self)
end

--- Makes a stage of what is pushed: `cb:result(v)` for each value, then `cb:finish()`, or
--- `cb:errback(e)`.
---@param ... any trap items
---@return coop.Callback
function M.Callback(...)
  local bad = bad_trap(...)
  if bad then core.check('Callback', bad, TRAP, (select(bad, ...))) end
  local self = new_stage('Callback')
  self._body, self._over, self._passes = callback(self), false, true
  self._stored, self._first, self._last = {}, 1, 0
  self.limit = LIMIT
  self.result, self.finish, self.errback = Callback.result, Callback.finish, Callback.errback
  stages.trap(self, { ... })
  return self
end

-- Flows that are driven ---------------------------------------------------------------------------

--- The wrapped stage for `fname`'s arguments; or nil and what is wrong with which of them.
local function wrap_for(obj, ...)
  local stage = to_stage(obj)
  if not stage then return nil, 1, WRAPPABLE, obj end
  local bad = bad_trap(...)
  if bad then return nil, bad + 1, TRAP, (select(bad, ...)) end
  stages.trap(stage, { ... })
  return stage
end

---@class coop.Block
---@overload fun(): any
local Block = {}

--- Sleeps until the next Cooperate is over; false when there is none. The time of the Block's clock
--- is that of the reactor since the Block was made.
local function sleep(self)
  local calls = self._clock:get_delayed_calls()
  local due = math.huge
  for _, call in ipairs(calls) do due = math.min(due, call:get_time()) end
  if due == math.huge then return false end
  repeat
    local now = coop.seconds() - self._start
    core.flow.sleep(due - now)
    if core.interrupted() then error(core.interrupted(), 0) end
  until now >= due
  self._clock:advance(due - self._clock:seconds())
  return true
end

local function next_blocking(self)
  local stage = self._stage
  local value, wait
  repeat
    value, wait = stages.poll_blocking(stage, self._clock)
    if wait and not sleep(self) then return nil, wait end
  until not wait
  if value == nil and stage._failure then raise_failure(stage) end
  return value
end

--- The next value; the process sleeps until it is there. Nil at the end.
---@return any
function Block:next()
  if coop.type(self) ~= 'Block' then core.check('next', 0, 'Block', self) end
  local value, wait = next_blocking(self)
  if wait then
    core.raise('Unsupported', 'Block', 'the stage waits for something other than Cooperate')
  end
  return value
end

--- Ends the stage.
function Block:close()
  if coop.type(self) ~= 'Block' then core.check('close', 0, 'Block', self) end
  local failure = close(self._stage)
  if failure then failure:raise() end
end

local new_block = core.class('Block', Block, { __call = Block.next, __close = Block.close })

--- An iterator over a stage, for programs without a loop: `for v in flow.Block(stage) do`. The
--- process sleeps for each Cooperate. Where the stage waits for anything else, Unsupported is
--- raised, and the stage left as it is. A generic for that is left early closes the stage.
---@param stage any or what can be wrapped
---@param ... any trap items
---@return coop.Block
function M.Block(stage, ...)
  local source, bad, expected, got = wrap_for(stage, ...)
  if not source then core.check('Block', bad, expected, got) end
  local self = new_block { _stage = source, _clock = coop.Clock(), _start = coop.seconds() }
  return self, nil, nil, self
end

-- The Progress that the last argument names as an option; how many arguments are before it.
local function progress_at_end(...)
  local n = select('#', ...)
  local options = n > 0 and select(n, ...)
  local progress = type(options) == 'table' and rawget(options, 'progress')
  if coop.type(progress) ~= 'Progress' then return nil, n end
  return progress, n - 1
end

--- Runs a stage to its end, as a task of the global Cooperator: each value is a step. Fires with
--- the list of the values. The failure of one that fails has those that came before as `partial`.
--- Cancelling it closes the stage, unless others take from it too.
---
--- A table `{progress = p}` behind the trap items has the values counted by a `coop.progress`.
---@param stage any or what can be wrapped
---@param ... any trap items
---@return coop.Deferred
function M.Deferred(stage, ...)
  local progress, n = progress_at_end(...)
  local source, bad, expected, got = wrap_for(stage, table.unpack({ ... }, 1, n))
  if not source then core.check('Deferred', bad, expected, got) end
  local results = {}
  local task, done

  local function fail(failure)
    if done.called then return end -- what closed has fired it
    failure.partial = results
    done:errback(failure)
  end

  done = coop.Deferred(function()
    local failure = stages.let_go(source)
    fail(failure or coop.Failure(coop.errors.CancelledError()))
    task:stop()
  end)
  stages.hold(source)
  task = coop.cooperate(stages.gather(source, results))
  task:when_done():add_callbacks(function()
    if done.called then return end
    stages.let_go(source)
    done:callback(results)
  end, function(failure)
    if done.called then return end
    local cleanup = stages.let_go(source)
    if cleanup then core.report(cleanup) end
    fail(failure)
  end)
  if progress then core.follow(progress, results, done) end
  return done
end

-- The world outside -------------------------------------------------------------------------------

--- The stage of a body that is called with arguments. It may return a Generator or stage instead.
local function body_stage(name, f, ...)
  local stage = new_stage(name, coop.generator(f)(...))
  stage._function = true
  return stage
end

--- Writes what the stage gives, each value when the last one has been taken.
local function write_all(fname, stage, writer)
  local source <close> = stage
  for value in source do
    if type(value) ~= 'string' and type(value) ~= 'number' then
      error(('%s: what is yielded must be a string, got %s'):format(
        fname, coop.type(value) or type(value)), 0)
    end
    await(writer:write(value))
  end
end

local PROTOCOL_OPTIONS = { trap = true, finish_on_connection_lost = true }

-- Closed when the conversation is over, also when it is cancelled.
local hanging_up = { __close = function(self) self.conn:close() end }

local converse = coop.coroutine(function(controller, conn)
  local cleanup <close> = setmetatable({ conn = conn }, hanging_up)
  write_all('make_protocol', body_stage('protocol', controller, conn), conn)
end)

---@class coop.ProtocolOptions
---@field trap? any trap item, or a list of them: errors that are as good as the controller's end
---@field finish_on_connection_lost? boolean so is the loss of the connection; default: true

--- Makes a protocol of a generator body: a function for `net.listen` and `net.connect`, which calls
--- `controller(conn)` for each connection. The controller pulls blocks from `conn`: by
--- `for block in conn do`, by a stage such as `flow.LineBreak(conn)`, by `conn:read`, or by
--- `coroutine.yield(conn)` and `conn:next()`. What it yields is written, each value when the peer
--- keeps up; its end closes the connection.
---@param controller async fun(conn: coop.net.Connection)
---@param options? coop.ProtocolOptions
---@return fun(conn: coop.net.Connection): coop.Deferred fires when the conversation is over
function M.make_protocol(controller, options)
  if not core.callable(controller) then core.check('make_protocol', 1, 'function', controller) end
  if options == nil then options = {} end
  if type(options) ~= 'table' or coop.type(options) then
    core.check('make_protocol', 2, 'table', options)
  end
  for key in next, options do
    if not PROTOCOL_OPTIONS[key] then
      core.misuse('make_protocol', ("unknown option '%s'"):format(core.text(key)))
    end
  end
  local items = trap_items(options.trap)
  if bad_trap(table.unpack(items)) then
    core.misuse('make_protocol', 'option trap: ' .. TRAP .. ' expected, or a list of them')
  end
  if options.finish_on_connection_lost ~= false then
    items[#items + 1] = coop.errors.ConnectionLost
    items[#items + 1] = coop.errors.ConnectionDone
  end
  local function forgive(failure)
    if #items == 0 or not failure:check(table.unpack(items)) then return failure end
  end
  return function(conn) return converse(controller, conn):add_errback(forgive) end
end

-- Who takes values faster than a thread makes them would be woken for each: when few came soon,
-- more are left to come.
local FEW, SOON, WHILE = 64, 0.0005, 0.001 -- values, seconds, seconds

local function yield_batches(source)
  while true do
    local asked = coop.seconds()
    local batch = await(source:batch())
    if not batch then return end
    yield(core.flow.many, batch)
    if batch.n < FEW and coop.seconds() - asked < SOON then await(coop.sleep(WHILE)) end
  end
end

local threaded = coop.generator(function(f, args)
  local stream <close> = core.threads.stream(f, table.unpack(args, 1, args.n))
  yield_batches(stream)
end)

--- The values of an iterator that runs in a thread of its own, where it may block: `f` is a
--- generator body, or returns an iterator. It is begun when the first value is wanted, runs a
--- bounded number of values ahead, and is closed at its next value when the stage is.
---
--- `f`, its arguments and its values are copied: see coop.threads. Or `f` is a QueryIterator, whose
--- rows come from a thread as it is.
---@param f function|coop.Stage
---@return coop.Stage
function M.Threaded(f, ...)
  if coop.type(f) == 'Stage' and f._threaded then
    if select('#', ...) > 0 then core.misuse('Threaded', 'a QueryIterator has its arguments') end
    return f
  end
  if type(f) ~= 'function' then core.check('Threaded', 1, 'function or QueryIterator', f) end
  local args = table.pack(...)
  for i = 0, args.n do
    local v = f
    if i > 0 then v = args[i] end
    local fault = core.threads.fault(v)
    if fault then
      core.misuse('Threaded', ('argument %d must be a value that can be copied, %s')
        :format(i + 1, fault))
    end
  end
  local stage = new_stage('Threaded', threaded(f, args))
  stage._passes, stage._threaded = true, true
  return stage
end

local query = coop.generator(function(pool, text)
  if pool._closing then error('QueryIterator: the pool is closed', 0) end
  local source <close> = core.db.open_rows(pool, text)
  yield_batches(source)
end)

--- The rows of a query, each with its columns by number and by name, a bounded number ahead. The
--- query is begun when the first row is wanted, and has a connection to itself to its end.
---@param pool coop.ConnectionPool
---@param sql string each `?` stands for one of the parameters
---@return coop.Stage for Threaded, or as it is
function M.QueryIterator(pool, sql, ...)
  if coop.type(pool) ~= 'ConnectionPool' then
    core.check('QueryIterator', 1, 'ConnectionPool', pool)
  end
  if type(sql) ~= 'string' then core.check('QueryIterator', 2, 'string', sql) end
  if pool._closing then core.misuse('QueryIterator', 'the pool is closed') end
  local text, problem = core.db.bind(pool._config.driver, true, sql, ...)
  if not text then core.misuse('QueryIterator', problem) end
  local stage = new_stage('QueryIterator', query(pool, text))
  stage._passes, stage._threaded = true, true
  return stage
end

---@class coop.Resource
local Resource = {}

function Resource:_handle(request, response)
  write_all('Resource', body_stage('Resource', self._gen, request, response), response)
end

local new_resource = core.class('Resource', Resource, { __call = Resource._handle })

--- Makes a web resource of a generator body, for `http.serve{handler = resource}`, or to be called
--- by a handler with its request and response. What `gen(request, response)` yields is written, a
--- slow reader waited for; its end ends the response. It is closed when the client leaves.
---@param gen async fun(request: coop.http.Request, response: coop.http.Reply)
---@return coop.Resource
function M.Resource(gen)
  if not core.callable(gen) then core.check('Resource', 1, 'function', gen) end
  return new_resource { _gen = gen }
end

return M
