--- Values gathered as they come: ValueBucket and `parallel`.

local coop, core = ...

---@class coop.ValueBucket
---@overload fun(v: any)
local ValueBucket = {}

--- The values stored so far: the list itself, which goes on to grow.
---@return any[]
function ValueBucket:contents()
  if coop.type(self) ~= 'ValueBucket' then core.check('contents', 0, 'ValueBucket', self) end
  return self._values
end

--- Gives the values away and begins a new list.
---@return any[]
function ValueBucket:drain_contents()
  if coop.type(self) ~= 'ValueBucket' then core.check('drain_contents', 0, 'ValueBucket', self) end
  local values = self._values
  self._values = {}
  return values
end

local new_bucket = core.class('ValueBucket', ValueBucket, {
  __call = function(self, v)
    local values = self._values
    values[#values + 1] = v
  end,
  __len = function(self) return #self._values end,
})

--- Makes a bucket: called with a value, it stores the value unless that is nil.
---@return coop.ValueBucket
function coop.ValueBucket() return new_bucket { _values = {} } end

local function drains(v) return core.callable(v.drain_contents) end

--- What a task that filled `spigot` has gathered.
---@param _ any the iterator that has come to its end
---@param spigot table anything with `drain_contents`
---@return any[]
function coop.accumulation_handler(_, spigot)
  local ok, can = pcall(drains, spigot)
  if not ok or not can then
    core.check('accumulation_handler', 2, 'object with drain_contents', spigot)
  end
  return spigot:drain_contents()
end

-- A `parallel` under way is a table: `next`, `source`, `limit` and `f` as given, `args`,
-- `results`, `started` (how many values were taken), `flying` (what runs, by number),
-- `in_flight` (how many), `room` (a Deferred that the pump waits on while there is none),
-- `ended` (the iterator has), `over` (the outcome is there), `task` and `done`.

--- Ends it early: what is in flight is cancelled, the iterator closed.
local function abandon(work)
  work.over = true
  if not work.ended then pcall(work.task.stop, work.task) end -- it may just have ended
  local failure = core.close_iterator(work.source)
  if failure then core.report(failure) end
  local numbers, flying = {}, work.flying
  for i in next, flying do numbers[#numbers + 1] = i end
  table.sort(numbers)
  for _, i in ipairs(numbers) do
    if flying[i] then flying[i]:cancel() end
  end
end

local function fail(work, failure)
  if work.over then return end
  abandon(work)
  if not work.done.called then work.done:errback(failure) end
end

local function finish_if_done(work)
  if work.over or not work.ended or work.in_flight > 0 then return end
  work.over = true
  work.results.n = work.started
  if not work.done.called then work.done:callback(work.results) end
end

--- Notes the outcome of the value with number `i`.
local function landed(outcome, work, i)
  work.flying[i] = nil
  work.in_flight = work.in_flight - 1
  if coop.type(outcome) == 'Failure' then return fail(work, outcome) end
  if work.over then return end
  work.results[i] = outcome
  local room = work.room
  work.room = nil
  if room then room:callback() end
  finish_if_done(work)
end

--- The body that runs for one value. A Deferred stands for its value.
local function work_on(f, value, ...) return f(coop.await(value), ...) end

--- Takes the values one by one, each in a turn of its own, while there is room for more.
local pump = coop.generator(function(work)
  local args = work.args
  while not work.over do
    while work.in_flight >= work.limit do
      work.room = coop.Deferred()
      coroutine.yield(work.room)
    end
    local value = work.next()
    if value == nil or work.over then return end
    local i = work.started + 1
    work.started, work.in_flight = i, work.in_flight + 1
    local flight = coop.spawn(work_on, work.f, value, table.unpack(args, 1, args.n))
    work.flying[i] = flight
    flight:add_both(landed, work, i)
    coroutine.yield()
  end
end)

--- Calls `f(value, ...)` for each value of the iterator, at most `limit` at once, and fires with
--- the results in their order, `n` set. The first failure, of `f` or of the iterator, fails it,
--- cancels what is in flight and closes the iterator; cancelling it does so too.
---@param limit integer at least 1
---@param iterator any Generator, coroutine, callable or table
---@param f async fun(value: any, ...): any may await, may return a Deferred
---@return coop.Deferred
function coop.parallel(limit, iterator, f, ...)
  local most = type(limit) == 'number' and math.tointeger(limit)
  if not most or most < 1 then core.check('parallel', 1, 'integer of at least 1', limit) end
  local next_value = core.iterator('parallel', 2, iterator)
  if not core.callable(f) then core.check('parallel', 3, 'function', f) end

  local work = {
    limit = most, source = iterator, next = next_value, f = f, args = table.pack(...),
    results = {}, flying = {}, started = 0, in_flight = 0, over = false, ended = false,
  }
  work.done = coop.Deferred(function() abandon(work) end)
  work.task = coop.cooperate(pump(work))
  work.task:when_done():add_callbacks(function()
    work.ended = true
    finish_if_done(work)
  end, function(failure)
    work.ended = true
    if not work.over then return fail(work, failure) end
    if not failure:check(coop.errors.SchedulerError) then core.report(failure) end
  end)
  return work.done
end

--- Shows how far something has come. The part that does is read when somebody wants it.
---@param total? integer
---@param label? string
---@return coop.Progress
function coop.progress(total, label)
  if not core.new_progress then core.load_part 'progress' end
  return core.new_progress(total, label)
end
