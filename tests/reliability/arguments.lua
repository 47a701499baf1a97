--- The matrix of bad arguments: every public function and method, each of its arguments in turn
--- replaced by each of the hostile values below, and each self by each foreign one. Run by coop, or
--- by lua5.4 with the module's paths set:
---     coop tests/reliability/arguments.lua [a pattern for the names]
---
--- What an argument may be is said by its kind in argument_entries.lua. A value of its kind is
--- taken; any other is refused by an error that names the function and tells what was expected and
--- what came, at the line of the call, and changes nothing: afterwards the object tells the same
--- about itself and still works. A public function without an entry is a failure.

package.path = 'tests/?.lua;tests/reliability/?.lua;' .. package.path
local coop = require 'coop'
local public = require 'public'
local entries = require 'argument_entries'

local only = arg[1] or ''

-- Counting ----------------------------------------------------------------------------------------

local passed, failed = 0, 0
local function check(problem, ...)
  if not problem then
    passed = passed + 1
    return
  end
  failed = failed + 1
  print(('not ok %s: %s'):format(string.format(...), problem))
end

-- Values ------------------------------------------------------------------------------------------

local function dead_coroutine()
  local co = coroutine.create(function() end)
  coroutine.resume(co)
  return co
end

local function ended(generator) return generator(), generator end

-- Makers: what a value has been through does not stay in it.
local hostile = {
  { 'nil', function() return nil end },
  { 'true', function() return true end },
  { 'false', function() return false end },
  { 'NaN', function() return 0 / 0 end },
  { 'inf', function() return math.huge end },
  { '-inf', function() return -math.huge end },
  { '-0.0', function() return -0.0 end },
  { '0', function() return 0 end },
  { '-1', function() return -1 end },
  { '0.5', function() return 0.5 end },
  { '2^63', function() return 2.0 ^ 63 end },
  { 'mininteger', function() return math.mininteger end },
  { 'maxinteger', function() return math.maxinteger end },
  { 'empty string', function() return '' end },
  { '"3"', function() return '3' end },
  { 'long string', function() return ('x'):rep(100000) end },
  { 'string with NUL', function() return 'a\0b' end },
  { '{}', function() return {} end },
  { '{false}', function() return { false } end },
  { 'unknown option', function() return { no_such_option = 1 } end },
  { 'table with raising __index', function()
    return setmetatable({}, { __index = function() error('of the hostile table', 0) end })
  end },
  { 'table with lying __len', function()
    return setmetatable({}, { __len = function() return 2 ^ 53 end })
  end },
  { 'table with bad __name', function()
    return setmetatable({}, { __name = 'coop.Deferred', __tostring = function() return {} end })
  end },
  { 'callable table', function() return setmetatable({}, { __call = function() end }) end },
  { 'file', function() return io.stdout end },
  { 'coroutine', function() return coroutine.create(function() end) end },
  { 'dead coroutine', dead_coroutine },
  { 'running coroutine', function() return (coroutine.running()) end },
  { 'function of C', function() return string.len end },
  { 'function', function() return function() end end },
  { 'error class', function() return coop.errors.TimeoutError end },
  { 'error', function() return coop.errors.TimeoutError 'x' end },
  { 'fired Deferred', function() return coop.succeed(1) end },
  { 'ended Generator', function()
    local _, g = ended(coop.generator(function() end)())
    return g
  end },
  { 'stopped task', function()
    local task = coop.cooperate {}
    task:stop()
    return task
  end },
  { 'cancelled call', function()
    local call = coop.call_later(1000, print)
    call:cancel()
    return call
  end },
}

local ok, uv = pcall(require, 'luv')
if ok then
  local timer = uv.new_timer()
  timer:close()
  table.insert(hostile, { 'closed timer of luv', function() return timer end })
end

local function sorted(names)
  local list = {}
  for name in pairs(names) do list[#list + 1] = name end
  table.sort(list)
  return list
end

-- Like pairs, the same each time.
local function in_order(t)
  local names, i = sorted(t), 0
  return function()
    i = i + 1
    return names[i], t[names[i]]
  end
end

-- What an object tells about itself.
local function looks(v, state)
  local list = { n = 0 }
  local function note(...)
    for i = 1, select('#', ...) do
      list.n = list.n + 1
      list[list.n] = (select(i, ...))
    end
  end
  if coop.type(v) then note((tostring(v):gsub('-?%d+%.?%d* s%f[%W]', 'some s'))) end -- time goes on
  if state then note(state(v)) end
  note(#coop.reactor:get_delayed_calls())
  return list
end

local function same(a, b)
  for i = 1, math.max(a.n, b.n) do
    if not rawequal(a[i], b[i]) then
      return false, ('%s became %s'):format(tostring(a[i]), tostring(b[i]))
    end
  end
  return true
end

-- Errors ------------------------------------------------------------------------------------------

local function tell_type(v) return coop.type(v) or type(v) end

-- What never belongs into the text of a misuse.
local INTERNAL = {
  'attempt to ', "to '%?'", '%f[%w]coop%.[%w_]+:%d', 'lua/coop', '%.lua:%d', 'stack overflow',
  'table index is', "'for' ", 'of the hostile table',
}

-- What is wrong with an error that refuses a value, or nil.
local function fault_of(err, name, position, value)
  local text = err
  if type(err) == 'table' and coop.errors[getmetatable(err) and getmetatable(err).__name] then
    text = err.message
  end
  if type(text) ~= 'string' then return 'the error is no string: ' .. tostring(err) end
  local function fault(what) return ('%s: %q'):format(what, text:sub(1, 200)) end
  for _, pattern in ipairs(INTERNAL) do
    if text:find(pattern) then return fault 'internal message' end
  end
  local said = text:match '^call:1: (.*)$'
  if not said then return fault 'not at the line of the call' end
  local number, named, what = said:match "^bad argument #(%d+) to '([%w_]+)' (%b())"
  if not named then
    named, what = said:match "^calling '([%w_]+)' on bad self (%b())"
    number = named and 0
  end
  if not named then
    if position == 0 then return fault 'not said of self' end
    if not said:find('^' .. name .. ': ') then return fault 'the function is not named' end
    return nil
  end
  if named ~= name then return fault 'another function is named' end
  if position and tonumber(number) ~= position then
    return fault(('argument %s instead of %d'):format(number, position))
  end
  if what == '(value expected)' or what:find '^%(unknown field ' then return nil end
  local got = what:match ' expected, got (.*)%)$'
  if not got then return fault 'not said what was expected and what came' end
  local came = type(value) == 'number' and tostring(value) or tell_type(value)
  local known = got == came or got == tell_type(value) or value == nil and got == 'no value'
    or got:find('coroutine', 1, true) and type(value) == 'thread' or type(value) == 'table'
    or type(value) == 'number' and ('%.14g'):format(value) == got
    or type(value) == 'string' and #got > 0
    or coop.is_deferred(value) and (got:find 'Deferred$' or got == 'one that has')
    or type(value) == 'userdata' and got:find '^userdata'
  if not known then return fault(came .. ' came') end
end

-- Calls -------------------------------------------------------------------------------------------

local callers = {}

-- Calls a method of `owner`, or a function in it, from a place called 'call'.
local function caller(is_method, name)
  local key = (is_method and ':' or '.') .. name
  if not callers[key] then
    local source = 'local o, a = ...; local r = table.pack(o%s(table.unpack(a, 1, a.n))); return r'
    callers[key] = load(source:format(key), '=call')
  end
  return callers[key]
end

local call_foreign =
  load('local f, a = ...; local r = table.pack(f(table.unpack(a, 1, a.n))); return r', '=call')

local function swallow() end

-- Ends what a call has made.
local function clean(v)
  local kind = coop.type(v)
  if kind and public.is_foreigner[v] then return end
  if coop.is_deferred(v) then
    v:add_errback(swallow)
    pcall(v.cancel, v)
  elseif kind == 'CooperativeTask' then
    pcall(v.stop, v)
  elseif kind == 'DelayedCall' then
    pcall(v.cancel, v)
  elseif kind == 'LoopingCall' then
    if v.running then v:stop() end
  elseif kind and kind ~= 'Reactor' and kind ~= 'Response' then
    local has, close = pcall(function() return v.close end)
    if has and close then clean((select(2, pcall(close, v)))) end
  end
end

local nothing = {}

-- Runs a call: true and its results, or false and its error. What leaves its body gets one.
local function run(entry, f, ...)
  if not entry.leaves then return pcall(f, ...) end
  local _, outcome = pcall(coop.await, coop.spawn(function(...)
    return { mark = nothing, table.pack(pcall(f, ...)) }
  end, ...))
  if type(outcome) == 'table' and rawget(outcome, 'mark') == nothing then
    return table.unpack(outcome[1], 1, 2)
  end
  return true, { n = 0 }
end

local function valid_args(entry)
  local args = { n = #entry }
  for i, kind in ipairs(entry) do args[i] = kind.make() end
  return args
end

local function finish(entry, self, results)
  if entry.finish then entry.finish(self, table.unpack(results, 1, results.n)) end
  for i = 1, results.n do
    if results[i] ~= self then clean(results[i]) end
  end
end

-- The matrix --------------------------------------------------------------------------------------

-- Good arguments, but for one.
local function with(entry, position, value)
  local args = valid_args(entry)
  args[position] = value
  args.n = math.max(args.n, position)
  return args
end

-- The fields of a table of options, each with each hostile value.
local function test_fields(self, one, position, kind)
  for _, name in ipairs(sorted(kind.fields or {})) do
    local of_field = kind.fields[name]
    local function try(label, value)
      local options = {}
      for key, v in pairs(kind.make()) do options[key] = v end
      options[name] = value
      local accepts = { ok = function() return of_field.ok(value) end }
      self = one(self, position, accepts, ('{ %s = %s }'):format(name, label), options)
    end
    try('a good one', of_field.make())
    for _, h in ipairs(hostile) do try(h[1], h[2]()) end
    for class, object in in_order(public.foreigners) do try(class, object) end
  end
  return self
end

-- A function or method under test: `fresh()` makes what it is called on.
local function test_positions(title, entry, fresh, is_method, name, state, shared)
  local call = caller(is_method, name)
  local short = entry.called or name:match '[%w_]+$'
  local valid = not entry.refused_only

  local function works(self, after)
    if not valid then return end
    local good, r = run(entry, call, self, valid_args(entry))
    local problem = not good and tostring(r) or nil
    if entry.raises then
      problem = good and 'no error'
        or not coop.errors[entry.raises]:is(r) and 'not ' .. entry.raises or nil
    elseif good then
      finish(entry, self, r)
    end
    check(problem, '%s still works after %s', title, after)
  end

  local function one(self, position, kind, label, value)
    local accepts = kind.ok(value)
    if accepts and not valid then return self end
    if accepts then self = fresh() end
    local args = with(entry, position, value)
    collectgarbage 'stop' -- what is collected meanwhile is no change that the call has made
    local before = looks(self, state)
    local good, r = run(entry, call, self, args)
    local kept, change = good, nil
    if not good then kept, change = same(before, looks(self, state)) end
    collectgarbage 'restart'
    if entry.raises and not good and coop.errors[entry.raises]:is(r) then
      check(nil)
    elseif good then
      finish(entry, self, r)
      if is_method and not shared then clean(self) end
      check(not accepts and 'taken' or nil, '%s #%d = %s', title, position, label)
      return fresh()
    else
      local problem
      if accepts == 'raises' then problem = nil
      elseif accepts == true then problem = 'refused: ' .. tostring(r)
      elseif not (accepts == 'own' and r == 'of the hostile table') then
        problem = fault_of(r, short, position, value)
      end
      check(problem, '%s #%d = %s', title, position, label)
    end
    if not kept then check('it changed: ' .. change, '%s #%d = %s', title, position, label) end
    return self
  end

  works(fresh(), 'nothing')
  for position, kind in ipairs(entry) do
    local self = fresh()
    for _, h in ipairs(hostile) do self = one(self, position, kind, h[1], h[2]()) end
    for class, object in in_order(public.foreigners) do
      self = one(self, position, kind, class, object)
    end
    self = test_fields(self, one, position, kind)
    -- nothing at all from here on
    if not kind.ok(nil) and not (entry.rest and position == #entry) then
      local args = valid_args(entry)
      args.n = position - 1
      local good, r = run(entry, call, self, args)
      check(good and 'taken' or fault_of(r, short, position), '%s with %d arguments', title, args.n)
    end
    works(self, ('bad arguments #%d'):format(position))
    if is_method and not shared then clean(self) end
  end
  if valid and not entry.raises and not entry.rest and not entry.exact then
    local self = fresh()
    local args = valid_args(entry)
    for _ = 1, 3 do
      args.n = args.n + 1
      args[args.n] = {}
    end
    local good, r = run(entry, call, self, args)
    if good then finish(entry, self, r) end
    check(not good and tostring(r) or nil, '%s with too many arguments', title)
    if is_method and not shared then clean(self) end
  end
end

local function test_selves(title, entry, class, fresh, name)
  local object = fresh()
  local f = object[name]
  local selves = class.selves or {}
  local function one(label, self)
    if selves[tell_type(self)] then return end
    collectgarbage 'stop'
    local before = coop.type(self) and looks(self)
    local given = valid_args(entry)
    local args = table.move(given, 1, given.n, 2, { self, n = given.n + 1 })
    local good, r = run(entry, call_foreign, f, args)
    local kept, change = true, nil
    if before then kept, change = same(before, looks(self)) end
    collectgarbage 'restart'
    check(good and 'taken' or fault_of(r, name, 0, self), '%s with self = %s', title, label)
    if not kept then check('it changed: ' .. change, '%s with self = %s', title, label) end
  end
  for _, h in ipairs(hostile) do one(h[1], h[2]()) end
  for label, foreign in in_order(public.foreigners) do one(label, foreign) end
  local good, r = run(entry, call_foreign, f, { n = 0 })
  check(good and 'taken' or fault_of(r, name, 0), '%s without self', title)
  if not class.shared or entry.fresh then clean(object) end
end

-- An object does not let its inside be seen or changed: its metatable, its fields.
local function test_object(class, object)
  check(type(getmetatable(object)) ~= 'string' and 'seen' or nil, '%s: metatable', class)
  if type(object) == 'table' then
    check(pcall(setmetatable, object, {}) and 'set' or nil, '%s: metatable', class)
  end
  check(type(tostring(object)) ~= 'string' and 'none' or nil, '%s: text', class)
  for _, h in ipairs(hostile) do
    local key = h[2]()
    local good, v = pcall(function() return object[key] end)
    check(not good and tostring(v) or v ~= nil and 'there' or nil, '%s[%s]', class, h[1])
  end
end

local function test_module(title, module, of)
  for _, name in ipairs(sorted(public.names_in(module))) do
    local value = module[name]
    if type(value) == 'function' or of[name] or type(value) == 'table' and title == 'coop'
      and name ~= 'errors' then
      local entry = of[name]
      local full = title .. '.' .. name
      if not entry then
        check('has no entry', '%s', full)
      elseif full:find(only) then
        test_positions(full, entry, function() return module end, false, name)
      end
    end
  end
end

local function test_class(title, object)
  local class = entries[title]
  if not class then
    check('has no entries', '%s', title)
    return
  end
  if title:find(only) then test_object(title, object) end
  for _, name in ipairs(sorted(public.methods_of(object))) do
    local entry = class[name]
    local full = title .. ':' .. name
    if not entry then
      if not (class.fields and class.fields[name]) then check('has no entry', '%s', full) end
    elseif full:find(only) then
      local fresh = entry.fresh or class.fresh
      test_positions(full, entry, fresh, true, name, class.state, class.shared and not entry.fresh)
      if not entry.any_self then test_selves(full, entry, class, fresh, name) end
    end
  end
end

local function main()
  public.foreigners = public.objects()
  public.is_foreigner = {}
  for _, object in pairs(public.foreigners) do public.is_foreigner[object] = true end
  for _, name in ipairs { 'coop', 'coop.flow', 'coop.net', 'coop.http', 'coop.threads', 'coop.db',
    'coop.testing' } do
    test_module(name, require(name), entries[name])
  end
  if ('coop.LoopingCall.with_count'):find(only) then
    test_positions('coop.LoopingCall.with_count', entries.coop['LoopingCall.with_count'],
      function() return coop end, false, 'LoopingCall.with_count')
  end
  for _, name in ipairs(sorted(public.names_in(coop.errors))) do
    local full = 'coop.errors.' .. name
    if full:find(only) then
      local function errors() return coop.errors end
      test_positions(full, entries['coop.errors'].new, errors, false, name)
    end
  end
  if ('coop.errors:is'):find(only) then
    test_positions('coop.errors:is', entries['coop.errors'].is,
      function() return coop.errors.TimeoutError end, true, 'is')
  end
  for _, title in ipairs(sorted(public.foreigners)) do
    test_class(title, public.foreigners[title])
  end
end

-- What the calls themselves report, and the progress they show, is not what is looked at.
local stderr = io.stderr
rawset(io, 'stderr', { write = swallow, flush = swallow })
coop.on_unhandled(swallow)
local good, err = pcall(coop.run, main)
rawset(io, 'stderr', stderr)
if not good then error(err, 0) end
print(('%d passed, %d failed'):format(passed, failed))
io.stdout:flush()
os.exit(failed == 0 and 0 or 1, true)
