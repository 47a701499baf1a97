--- What each public function takes, for the matrix of bad arguments.
---
--- An entry is a list of kinds, one for each argument. A kind is `make`, which gives a good value,
--- and `ok`, which tells of any value whether it is taken: true, false, 'either', 'own' where also
--- an error of the value's own metamethods may come out, or 'raises' where it is taken and what
--- comes of it may be any error. A kind of options has `fields`, each of a kind. An entry may have:
---     rest          the last kind repeats
---     exact         more arguments than these are refused
---     called        how errors call the function, where that is not its name
---     fresh         makes the object for this method, where the class's will not do
---     finish        ends what a good call has begun: finish(self, results...)
---     leaves        the call may leave the body that makes it
---     refused_only  a good call ends the process: other tests make it
---     raises        the class of the error that a good call raises here
---     any_self      there is no foreign self
--- A class has `fresh`, `state` (what an object tells of itself) and `selves`, the types of the
--- objects that its methods take, `shared` when `fresh` gives the same object again and again.

local coop = require 'coop'
local flow, net, http = require 'coop.flow', require 'coop.net', require 'coop.http'
local threads, db = require 'coop.threads', require 'coop.db'
local testing = require 'coop.testing'

-- Kinds -------------------------------------------------------------------------------------------

local function constant(v) return function() return v end end

local function kind(make, ok)
  if type(make) ~= 'function' then make = constant(make) end
  return { make = make, ok = ok }
end

local function optional(k, make)
  local new = kind(make or k.make, function(v) return v == nil or k.ok(v) end)
  new.fields = k.fields
  return new
end

local function yes() return true end

local function callable(v)
  if coop.type(v) == 'Response' then return 'raises' end
  if type(v) == 'function' then return true end
  local meta = debug.getmetatable(v)
  return meta ~= nil and rawget(meta, '__call') ~= nil
end

local function nothing() end
local function new_function() return function() end end

local function finite(v) return type(v) == 'number' and v - v == 0 end
local function integer(v) return type(v) == 'number' and math.tointeger(v) or nil end
local function is_string(v) return type(v) == 'string' end
local function is_plain_table(v) return type(v) == 'table' and not coop.type(v) end

local any = kind(1, yes)
local func = kind(new_function, callable)
local lua_function = kind(function() return nothing end, function(v)
  if type(v) ~= 'function' then return false end
  return 'either' -- functions with upvalues cannot be copied
end)
local copied = kind(1, function(v)
  local t = type(v)
  if t == 'nil' or t == 'boolean' or t == 'number' or t == 'string' then return true end
  if t == 'function' then return 'either' end
  return t == 'table' and not debug.getmetatable(v)
end)
local seconds = kind(0.25, function(v) return finite(v) and v >= 0 end)
local positive = kind(0.25, function(v) return finite(v) and v > 0 end)
local count = kind(2, function(v)
  local n = integer(v)
  return n ~= nil and n >= 1
end)
local size = kind(2, function(v)
  local n = integer(v)
  return n ~= nil and n >= 0
end)
local str = kind('x', is_string)
local text = kind('x', function(v) return is_string(v) or type(v) == 'number' end)
local deferred = kind(coop.Deferred, function(v) return coop.is_deferred(v) end)
local unfired = kind(coop.Deferred, function(v) return coop.is_deferred(v) and not v.called end)
local undeferred = kind(1, function(v) return not coop.is_deferred(v) end)

local function is_clock(v)
  local t = coop.type(v)
  if t == 'Clock' or t == 'Reactor' or t == 'Autojump' then return true end
  return type(v) == 'table' and not t and 'own' and callable(rawget(v, 'call_later'))
end
local clock = kind(coop.Clock, function(v)
  local meta = type(v) == 'table' and debug.getmetatable(v)
  if meta and type(rawget(meta, '__index')) == 'function' and not coop.type(v) then return 'own' end
  return is_clock(v)
end)

local function sequence(v)
  if not is_plain_table(v) then return false end
  local meta = debug.getmetatable(v)
  if meta and not coop.errors[rawget(meta, '__name') or 1] then return 'own' end
  return next(v) == nil or rawget(v, 1) ~= nil
end
-- A coroutine that has ended is an iterator that has.
local function is_stepped(co)
  return coroutine.status(co) == 'suspended' or coroutine.status(co) == 'dead'
end

local iterator = kind(function() return { 1, 2 } end, function(v)
  if coop.type(v) == 'Generator' or callable(v) then return true end
  if type(v) == 'thread' then return is_stepped(v) end
  return sequence(v)
end)

local WRAPPED = { Stage = true, Generator = true, Deferred = true, Coroutine = true,
  Connection = true, Response = true }
local stage = kind(function() return { 1, 2 } end, function(v)
  if coop.type(v) then return WRAPPED[coop.type(v)] or false end
  if type(v) == 'thread' then return is_stepped(v) end
  return type(v) == 'table' and 'own' or type(v) == 'string' or type(v) == 'function'
end)

local function is_trap(v)
  local t = type(v)
  return t == 'string' or t == 'function' or t == 'table' and (coop.type(v) and 'either' or true)
    or callable(v) and 'either'
end
local trap = kind(function() return coop.errors.TimeoutError end, is_trap)

local options = kind(function() return {} end, function(v)
  if not is_plain_table(v) then return false end
  return 'own'
end)

-- Options of which each field is of a kind; `base` has those that are needed.
local function options_of(fields, base)
  return {
    make = function()
      local t = {}
      for name, v in pairs(base or {}) do t[name] = v end
      return t
    end,
    ok = options.ok,
    fields = fields,
  }
end

-- Objects -----------------------------------------------------------------------------------------

local function of(name)
  return kind(nil, function(v) return coop.type(v) == name end)
end

local function generator() return coop.generator(function() coroutine.yield(1) end)() end
local function endless()
  return coop.generator(function() while true do coroutine.yield() end end)()
end
local function task() return coop.cooperate(endless()) end
local function paused_task()
  local t = task()
  t:pause()
  return t
end

local server = net.listen('127.0.0.1', 0, function(conn)
  for _ in conn do end -- luacheck: ignore
end)
local function connection() return coop.await(net.connect('127.0.0.1', server.port)) end

local replies = {}
local web = http.serve { handler = function(request, reply)
  if request.path == '/' then
    reply:write 'x'
    return
  end
  local over = coop.Deferred()
  replies[#replies + 1] = { reply = reply, over = over }
  if replies.wanted then replies.wanted:callback() end
  coop.await(over)
end }
local web_url = 'http://127.0.0.1:' .. web.port
local function reply()
  replies.wanted = coop.Deferred()
  http.get(web_url .. '/hold'):add_both(nothing)
  coop.await(replies.wanted)
  replies.wanted = nil
  return replies[#replies].reply
end
local function response() return coop.await(http.request { url = web_url, stream = true }) end

local function memory() return db.ConnectionPool('sqlite3', ':memory:') end
local shared_db = memory()
local pool_of_db = kind(constant(shared_db), of 'ConnectionPool'.ok)
local function rows() return db.rows(shared_db, 'select 1') end

-- A transaction that stays open.
local open = {}
local function transaction()
  local there = coop.Deferred()
  local pool = memory()
  pool:run_interaction(function(tx)
    there:callback(tx)
    open[#open + 1] = coop.Deferred()
    coop.await(open[#open])
  end):add_both(nothing)
  return coop.await(there)
end

local bound = kind(1, function(v)
  local t = coop.type(v) or type(v)
  return t == 'Blob' or t == 'nil' or t == 'boolean' or t == 'string' or t == 'number' and 'either'
end)
local one_bound = kind('select ?', function(v) return is_string(v) and 'either' end)

local host = kind('127.0.0.1', function(v) return is_string(v) and 'either' end)
local port = kind(function() return server.port end, function(v)
  local n = integer(v)
  return n ~= nil and n >= 1 and n <= 65535
end)
local any_port = kind(0, function(v)
  local n = integer(v)
  return n ~= nil and n >= 0 and n <= 65535
end)

local function some_stage() return flow.wrap { 1, 2 } end

local entries = {}

-- coop --------------------------------------------------------------------------------------------

local cooperator = kind(function() return coop.Cooperator { started = false } end,
  of 'Cooperator'.ok)
local deferreds = kind(function() return { coop.succeed(1) } end, function(v)
  if not is_plain_table(v) then return false end
  local meta = debug.getmetatable(v)
  if meta then return 'own' end
  return next(v) == nil or coop.is_deferred(v[1]) or v[1] == nil and 'either'
end)
local some_deferreds = kind(deferreds.make, function(v)
  local good = deferreds.ok(v)
  if good == true and next(v) == nil then return false end
  return good
end)
local cooperator_or_options = optional(kind(cooperator.make, function(v)
  return coop.type(v) == 'Cooperator' or options.ok(v)
end))

local a_progress = kind(function()
  local bar = coop.progress(1)
  bar:finish()
  return bar
end, of 'Progress'.ok)
local accumulating = options_of { progress = optional(a_progress) }

-- A scheduler has to return something that can be cancelled: that is seen when it is used.
local function schedule() return { cancel = nothing } end
local function each_step() return function() return true end end
local factory = kind(constant(each_step), function(v) return callable(v) and 'raises' end)

entries.coop = {
  Clock = {},
  Cooperator = { optional(options_of {
    slice = optional(seconds), quantum = optional(count), started = any,
    scheduler = optional(kind(constant(schedule), callable)),
    termination_predicate_factory = optional(factory),
  }) },
  Deferred = { optional(func) },
  DeferredList = { deferreds, optional(options_of {
    fire_on_one_callback = any, fire_on_one_errback = any, consume_errors = any,
  }) },
  DeferredLock = {},
  DeferredQueue = { optional(size), optional(size) },
  DeferredSemaphore = { count },
  Failure = { any },
  LoopingCall = { func, any, rest = true },
  ['LoopingCall.with_count'] = { func },
  ValueBucket = {},
  accumulate = { iterator, cooperator_or_options, optional(accumulating) },
  accumulation_handler = { any, kind(coop.ValueBucket, function(v)
    local meta = type(v) == 'table' and debug.getmetatable(v)
    if coop.type(v) == 'ValueBucket' then return true end
    return meta and not coop.type(v) and 'own' or false
  end) },
  await = { any, leaves = true },
  batch_accumulate = { count, iterator, cooperator_or_options, optional(accumulating) },
  call_later = { seconds, func, any, rest = true },
  coiterate = { iterator, optional(unfired) },
  cooperate = { iterator },
  coroutine = { func },
  defer_later = { clock, seconds, optional(func), any, rest = true },
  execute = { func, any, rest = true },
  fail = { undeferred },
  gather_results = { deferreds, any },
  generator = { func },
  inline_callbacks = { func },
  is_deferred = { any },
  maybe_deferred = { func, any, rest = true },
  noreturn = { any, any, rest = true, leaves = true },
  on_unhandled = { optional(func, nothing), finish = function() coop.on_unhandled(nothing) end },
  parallel = { count, iterator, func, any, rest = true },
  progress = { optional(count), optional(str), finish = function(_, bar) bar:finish() end },
  race = { some_deferreds },
  react = { func, optional(kind(function() return {} end, function(v)
    return type(v) == 'table'
  end)), refused_only = true },
  return_value = { any, leaves = true },
  run = { func, any, rest = true },
  seconds = {},
  sleep = { seconds },
  spawn = { func, any, rest = true },
  succeed = { undeferred },
  type = { any },
  yield = { kind(1, function(v) return coop.type(v) ~= 'Failure' or 'raises' end), rest = true },
}

local message = kind('x', function(v)
  return v == nil or is_string(v) or type(v) == 'number' or is_plain_table(v)
end)
entries['coop.errors'] = { new = { message }, is = { any } }

-- The classes of coop -----------------------------------------------------------------------------

local function state_of_deferred(d) return d.called, d.paused, d.result end

local handler = { func, any, rest = true }
local function of_deferreds(fresh)
  local function paused()
    local d = fresh()
    d:pause()
    return d
  end
  return {
    fresh = fresh, state = state_of_deferred, selves = { Deferred = true, Coroutine = true },
    add_both = handler, add_callback = handler, add_errback = handler,
    add_callbacks = { optional(func), optional(func) },
    add_timeout = { seconds, optional(clock), optional(func) },
    callback = { undeferred, fresh = coop.Deferred },
    cancel = {},
    chain_deferred = { deferred },
    errback = { undeferred, fresh = coop.Deferred },
    pause = {},
    unpause = { fresh = paused },
  }
end
entries['coop.Deferred'] = of_deferreds(coop.Deferred)
entries['coop.Coroutine'] = of_deferreds(function()
  return coop.spawn(function() coop.await(coop.Deferred()) end)
end)

entries['coop.Failure'] = {
  fresh = function() return coop.Failure(coop.errors.TimeoutError 'x') end,
  state = function(f) return f.value end,
  selves = { Failure = true },
  traceback = {},
  check = { kind(trap.make, function(v)
    return v == string.len and 'raises' or is_trap(v)
  end), rest = true },
  trap = { kind(trap.make, function(v) return is_trap(v) and 'raises' end), rest = true },
  raise = { raises = 'TimeoutError' },
}

entries['coop.Generator'] = {
  fresh = generator, selves = { Generator = true },
  next = {}, close = {},
}

entries['coop.Cooperator'] = {
  fresh = function() return coop.Cooperator() end,
  state = function(c) return c.running end,
  selves = { Cooperator = true },
  cooperate = { iterator },
  coiterate = { iterator, optional(unfired) },
  start = { fresh = function() return coop.Cooperator { started = false } end },
  stop = {},
}

entries['coop.CooperativeTask'] = {
  fresh = task, selves = { CooperativeTask = true },
  pause = {}, stop = {}, when_done = {}, resume = { fresh = paused_task },
}

entries['coop.ValueBucket'] = {
  fresh = coop.ValueBucket, selves = { ValueBucket = true },
  state = function(b) return #b end,
  contents = {}, drain_contents = {},
}

local function held(new)
  return function()
    local lock = new()
    lock:acquire()
    return lock
  end
end
local function of_holdable(new, type_name, state)
  return {
    fresh = new, selves = { [type_name] = true }, state = state,
    fields = { locked = true, tokens = true, limit = true },
    acquire = {}, release = { fresh = held(new) }, run = { func, any, rest = true },
  }
end
entries['coop.DeferredLock'] = of_holdable(coop.DeferredLock, 'DeferredLock',
  function(lock) return lock.locked end)
entries['coop.DeferredSemaphore'] = of_holdable(function() return coop.DeferredSemaphore(1) end,
  'DeferredSemaphore', function(s) return s.tokens, s.limit end)
entries['coop.DeferredQueue'] = {
  fresh = coop.DeferredQueue, selves = { DeferredQueue = true },
  state = function(q) return #q end,
  put = { undeferred }, get = {},
}

entries['coop.DelayedCall'] = {
  fresh = function() return coop.call_later(1000, nothing) end,
  state = function(call) return call:active(), call:active() and call:get_time() end,
  selves = { DelayedCall = true },
  active = {}, cancel = {}, get_time = {}, delay = { kind(1, finite) }, reset = { seconds },
}

local steps = kind(function() return { 1 } end, function(v)
  if not is_plain_table(v) then return false end
  return debug.getmetatable(v) and 'own' or next(v) == nil or v[1] == nil and 'either' or false
end)
entries['coop.Clock'] = {
  fresh = coop.Clock, selves = { Clock = true, Reactor = true, Autojump = true },
  state = function(c) return c:seconds(), #c:get_delayed_calls() end,
  advance = { seconds }, pump = { steps }, call_later = { seconds, func, any, rest = true },
  get_delayed_calls = {}, seconds = {},
}

local function the_reactor() return coop.reactor end
entries['coop.Reactor'] = {
  fresh = the_reactor, selves = { Clock = true, Reactor = true, Autojump = true },
  state = function(r) return r.running end,
  add_system_event_trigger = {
    kind('before', function(v) return v == 'before' end),
    kind('shutdown', function(v) return v == 'shutdown' end), func, any, rest = true,
    finish = function(r, id) r:remove_system_event_trigger(id) end,
  },
  remove_system_event_trigger = {
    kind(function()
      return coop.reactor:add_system_event_trigger('before', 'shutdown', nothing)
    end, constant(false)),
  },
  call_later = { seconds, func, any, rest = true },
  call_when_running = { func, any, rest = true },
  get_delayed_calls = {}, seconds = {},
  run = { raises = 'ReactorAlreadyRunning' },
  stop = { refused_only = true },
}

local function running_loop()
  local l = coop.LoopingCall(nothing)
  l:start(1000)
  return l
end
entries['coop.LoopingCall'] = {
  fresh = function() return coop.LoopingCall(nothing) end,
  state = function(l) return l.running, l.interval, l.clock end,
  selves = { LoopingCall = true },
  start = { seconds, any, finish = function(l) if l.running then l:stop() end end },
  stop = { fresh = running_loop }, reset = { fresh = running_loop },
}

entries['coop.Progress'] = {
  fresh = function() return coop.progress(10) end,
  state = function(p) return p.done, p.total, p.label end,
  selves = { Progress = true },
  advance = { optional(size), finish = function(p) p:finish() end }, finish = {},
}

-- coop.flow ---------------------------------------------------------------------------------------

local threaded_function = kind(function() return function() return nil end end, function(v)
  return type(v) == 'function' and 'either'
end)

local traps = kind(trap.make, function(v)
  return type(v) == 'table' and 'own' or is_trap(v)
end)

entries['coop.flow'] = {
  Block = { stage, trap, rest = true },
  CallLater = { func },
  Callback = { trap, rest = true },
  Chain = { stage, rest = true },
  Concurrent = { stage, rest = true },
  Cooperate = { optional(seconds) },
  Deferred = { stage, kind(trap.make, function(v)
    local good = is_trap(v)
    return good == true and type(v) == 'table' and 'either' or good
  end), rest = true },
  Filter = { optional(func), stage, trap, rest = true },
  LineBreak = { stage, optional(options_of {
    delimiter = optional(kind('x', function(v) return is_string(v) and v ~= '' end)),
    max_length = optional(kind(9, function(v) return math.type(v) == 'integer' and v >= 1 end)),
    trailer = any, trap = optional(traps),
  }) },
  Map = { optional(func), stage, rest = true },
  Merge = { stage, rest = true },
  Pipe = { func, stage, trap, rest = true },
  QueryIterator = { pool_of_db, one_bound, bound, exact = true },
  Resource = { func },
  Threaded = { threaded_function, copied, rest = true },
  Zip = { stage, rest = true },
  make_protocol = { func, optional(options_of {
    trap = optional(traps), finish_on_connection_lost = any,
  }) },
  wrap = { stage, trap, rest = true },
}

entries['coop.Stage'] = {
  fresh = some_stage, selves = { Stage = true },
  next = { raises = 'NotReadyError' }, close = {},
}

entries['coop.Callback'] = {
  fresh = flow.Callback, selves = { Stage = true },
  state = function(c) return c.limit end,
  next = { raises = 'NotReadyError' }, close = {}, finish = {},
  errback = { any },
  result = { kind(1, function(v) return v ~= nil end) },
}

entries['coop.Block'] = {
  fresh = function() return flow.Block { 1, 2 } end, selves = { Block = true },
  next = {}, close = {},
}

entries['coop.Resource'] = { fresh = function() return flow.Resource(nothing) end }

-- coop.net ----------------------------------------------------------------------------------------

local limit = kind(1, function(v) return v == false or seconds.ok(v) end)

entries['coop.net'] = {
  connect = { host, port, optional(kind(new_function, function(v)
    return callable(v) or options.ok(v)
  end)), optional(options_of { timeout = optional(limit) }) },
  listen = { host, any_port, func, optional(options_of {
    backlog = optional(kind(5, function(v) return math.type(v) == 'integer' and v >= 1 end)),
  }) },
}

entries['coop.net.Connection'] = {
  fresh = connection, selves = { Connection = true },
  state = function(c) return c.peer end,
  abort = {}, close = {}, shutdown = {},
  next = { fresh = function()
    local c = connection()
    c:shutdown()
    return c
  end },
  read = { optional(kind(0, function(v)
    local n = integer(v)
    return n ~= nil and n >= 0
  end)) },
  set_line_max = { count },
  set_timeout = { optional(seconds) },
  write = { text },
}

entries['coop.net.Server'] = {
  fresh = function() return net.listen('127.0.0.1', 0, nothing) end,
  state = function(s) return s.host, s.port end,
  selves = { Server = true },
  close = {},
}

-- coop.http ---------------------------------------------------------------------------------------

local function is_boolean(v) return type(v) == 'boolean' end
local bool = kind(true, is_boolean)
local either_text = kind('x', function(v) return is_string(v) and 'either' end)
local url = kind(web_url, either_text.ok)
local bytes = kind(1000, function(v)
  return size.ok(v) and (math.type(v) == 'integer' or 'either')
end)
local request_fields = {
  method = optional(kind('GET', either_text.ok)),
  headers = optional(kind(function() return { a = 'b' } end, function(v)
    return is_plain_table(v) and 'own'
  end)),
  body = optional(kind('x', is_string)),
  timeout = optional(kind(5, function(v)
    return v == false or seconds.ok(v) and 'either'
  end)),
  connect_timeout = optional(kind(5, function(v) return seconds.ok(v) and 'either' end)),
  stream = optional(bool), redirects = optional(kind(3, function(v)
    return v == false or bytes.ok(v) and 'either'
  end)),
  verify = optional(bool), compression = optional(bool), max_body = optional(bytes),
  ca_file = optional(kind('/dev/null', either_text.ok)),
  proxy = optional(kind('', either_text.ok)),
  unix_socket = optional(kind('/nowhere', either_text.ok)),
}
local serve_fields = {
  handler = kind(new_function, function(v)
    return callable(v) or is_plain_table(v) and debug.getmetatable(v) ~= nil and 'own'
  end),
  host = optional(kind('127.0.0.1', either_text.ok)),
  port = optional(kind(0, function(v) return any_port.ok(v) and 'either' end)),
  max_line = optional(bytes), max_head = optional(bytes), max_body = optional(bytes),
  request_timeout = optional(kind(1, function(v) return seconds.ok(v) and 'either' end)),
  idle_timeout = optional(kind(1, function(v) return seconds.ok(v) and 'either' end)),
  write_timeout = optional(kind(1, function(v) return seconds.ok(v) and 'either' end)),
  half_open = optional(bool),
  backlog = optional(kind(5, function(v) return bytes.ok(v) and 'either' end)),
}

entries['coop.http'] = {
  Error = { message, called = 'HTTPError' },
  get = { url, optional(options_of(request_fields)) },
  request = { options_of(request_fields, { url = web_url }) },
  serve = { options_of(serve_fields, { handler = nothing }) },
}

entries['coop.http.Response'] = {
  fresh = response, selves = { Response = true },
  state = function(r) return r.status, r.reason, r.version, r.headers, r.url, r.body end,
  close = {}, read = {},
}

entries['coop.http.Reply'] = {
  fresh = reply, selves = { Reply = true },
  state = function(r) return r.status, r.headers end,
  write = { text },
}

entries['coop.http.Server'] = {
  fresh = function() return http.serve { handler = nothing } end,
  state = function(s) return s.host, s.port end,
  selves = { HTTPServer = true },
  close = { optional(seconds) },
}

-- coop.threads ------------------------------------------------------------------------------------

local few = kind(1, function(v)
  local n = integer(v)
  return n ~= nil and n >= 1 and n <= 10000
end)
local shared_pool = threads.Pool(1)
entries['coop.threads'] = {
  Pool = { few, optional(count) },
  call = { lua_function, copied, rest = true },
  stream = { lua_function, copied, rest = true },
}

entries['coop.ThreadPool'] = {
  fresh = function() return shared_pool end, shared = true, selves = { ThreadPool = true },
  call = { lua_function, copied, rest = true },
  map = { lua_function, iterator },
  close = { fresh = function() return threads.Pool(1) end },
}

entries['coop.ThreadStream'] = {
  fresh = function() return threads.stream(nothing) end, selves = { ThreadStream = true },
  batch = {}, close = {}, next = {}, when_done = {},
}

-- coop.db -----------------------------------------------------------------------------------------

local driver = kind('sqlite3', function(v) return is_string(v) and 'either' end)
entries['coop.db'] = {
  Blob = { str },
  ConnectionPool = { driver, kind(':memory:', function(v)
    return copied.ok(v) and (type(v) ~= 'table' or 'own') or is_plain_table(v) and 'own'
  end), optional(kind(function() return { size = 1 } end, function(v)
    return type(v) == 'table' and not coop.type(v) and 'own' or type(v) ~= 'table' and copied.ok(v)
  end)) },
  rows = { pool_of_db, one_bound, bound, exact = true },
}

entries['coop.db.ConnectionPool'] = {
  fresh = function() return shared_db end, shared = true, selves = { ConnectionPool = true },
  run_query = { one_bound, bound, exact = true },
  run_operation = { one_bound, bound, exact = true },
  run_interaction = { func, any, rest = true },
  close = { fresh = memory },
}

entries['coop.db.Rows'] = {
  fresh = rows, selves = { Rows = true },
  batch = {}, close = {}, next = {},
}

entries['coop.db.Transaction'] = {
  fresh = transaction, selves = { Transaction = true },
  query = { one_bound, bound, exact = true }, operation = { one_bound, bound, exact = true },
}

-- coop.testing ------------------------------------------------------------------------------------

local fired = kind(function() return coop.succeed(1) end, function(v)
  return coop.is_deferred(v) and v.called
end)
local function raises_if(ok)
  return function(v) return ok(v) and 'raises' end
end
local function failed_deferred()
  local d = coop.fail(coop.errors.TimeoutError 'x')
  d:add_errback(function(f) return f end)
  return d
end
entries['coop.testing'] = {
  Clock = {},
  autojump = { finish = function(_, jump) jump:stop() end },
  success_result_of = { fired },
  failure_result_of = {
    kind(failed_deferred, raises_if(coop.is_deferred)), kind(trap.make, raises_if(is_trap)),
    rest = true,
  },
  assert_no_result = { kind(coop.Deferred, raises_if(coop.is_deferred)) },
  async = { func, optional(positive) },
  may_leave = { kind('timer', constant(false)), rest = true },
  timeout = { positive },
}

entries['coop.Autojump'] = {
  fresh = testing.autojump, selves = { Clock = true, Reactor = true, Autojump = true },
  call_later = { seconds, func, any, rest = true },
  get_delayed_calls = {}, seconds = {},
  stop = { finish = function() testing.autojump() end },
}

return entries
