--- Checks that every public name, of the modules as they are and of coop.h, is annotated and thus
--- in the reference, and that some test uses it; and that whatever is annotated is there. Run by
--- coop.

package.path = 'docs/?.lua;' .. package.path
local annotations = require 'annotations'
local coop = require 'coop'

local problems, count = {}, 0
local function problem(...) problems[#problems + 1] = string.format(...) end

-- What is there -----------------------------------------------------------------------------------

local function is_public(name) return type(name) == 'string' and not name:find '^_' end

-- Tables that an `__index` written in C has as upvalues: the methods of coop's own objects.
local function method_tables(object)
  local index = debug.getmetatable(object).__index
  if type(index) == 'table' then return { index } end
  local tables = {}
  if type(index) ~= 'function' then return tables end
  for i = 1, 255 do
    local name, value = debug.getupvalue(index, i)
    if not name then break end
    if type(value) == 'table' then tables[#tables + 1] = value end
  end
  return tables
end

-- The functions of an object, as the keys of a set.
local function methods_of(object)
  local methods = {}
  local function add(t)
    for name, value in next, t do
      if is_public(name) and type(value) == 'function' then methods[name] = true end
    end
  end
  if type(object) == 'table' then add(object) end
  for _, t in ipairs(method_tables(object)) do
    add(t)
    local meta = getmetatable(t) -- a class may stand on another
    if type(meta) == 'table' and type(meta.__index) == 'table' then add(meta.__index) end
  end
  return methods
end

local function names_in(t)
  local names = {}
  for name in next, t do
    if is_public(name) then names[name] = true end
  end
  return names
end

local function sleeper() coop.await(coop.sleep(0)) end

-- An object of each class, by the name of the class.
local function objects()
  local flow, net, http = require 'coop.flow', require 'coop.net', require 'coop.http'
  local threads, db = require 'coop.threads', require 'coop.db'
  local list = {
    ['coop.Deferred'] = coop.succeed(),
    ['coop.Coroutine'] = coop.spawn(sleeper),
    ['coop.Failure'] = coop.Failure 'x',
    ['coop.Generator'] = coop.generator(sleeper)(),
    ['coop.Cooperator'] = coop.cooperator,
    ['coop.CooperativeTask'] = coop.cooperate {},
    ['coop.ValueBucket'] = coop.ValueBucket(),
    ['coop.DeferredLock'] = coop.DeferredLock(),
    ['coop.DeferredSemaphore'] = coop.DeferredSemaphore(1),
    ['coop.DeferredQueue'] = coop.DeferredQueue(),
    ['coop.DelayedCall'] = coop.call_later(1000, print),
    ['coop.Clock'] = coop.Clock(),
    ['coop.Reactor'] = coop.reactor,
    ['coop.LoopingCall'] = coop.LoopingCall(sleeper),
    ['coop.Stage'] = flow.wrap {},
    ['coop.Callback'] = flow.Callback(),
    ['coop.Block'] = flow.Block {},
    ['coop.Resource'] = flow.Resource(sleeper),
    ['coop.ThreadPool'] = threads.Pool(1),
    ['coop.ThreadStream'] = threads.stream(function() end),
    ['coop.db.ConnectionPool'] = db.ConnectionPool('sqlite3', ':memory:'),
  }
  local bar = coop.progress()
  list['coop.Progress'] = bar
  local pool = list['coop.db.ConnectionPool']
  list['coop.db.Rows'] = db.rows(pool, 'select 1')
  list['coop.db.Rows']:close()
  coop.await(pool:run_interaction(function(tx) list['coop.db.Transaction'] = tx end))
  local server = net.listen('127.0.0.1', 0, function() end)
  list['coop.net.Server'] = server
  list['coop.net.Connection'] = coop.await(net.connect('127.0.0.1', server.port))
  server:close()
  local web = http.serve { handler = function(_, reply) list['coop.http.Reply'] = reply end }
  list['coop.http.Server'] = web
  list['coop.http.Response'] = coop.await(http.get('http://127.0.0.1:' .. web.port))
  web:close()
  local ok, testing = pcall(require, 'coop.testing')
  if ok then
    local jump = testing.autojump()
    list['coop.Autojump'] = jump
    jump:stop()
  end
  return list
end

-- What is used by tests ---------------------------------------------------------------------------

local function text_of(pattern)
  local pipe = io.popen('cat ' .. pattern)
  local text = pipe:read 'a'
  pipe:close()
  return text
end

local function words_of(text)
  local words = {}
  for separator, name in text:gmatch '([.:]?)([%a_][%w_]*)' do words[separator .. name] = true end
  return words
end

local words = words_of(text_of 'tests/spec/*.lua tests/command/*.lua tests/c/*.c')

-- Comparing ---------------------------------------------------------------------------------------

local documented = {} -- module or class -> name -> true
local parents = {}

local function note(owner, name)
  documented[owner] = documented[owner] or {}
  documented[owner][name] = true
end

-- Is the name documented for the class, or for what it is one of, too?
local function is_documented(owner, name)
  while owner do
    if documented[owner] and documented[owner][name] then return true end
    owner = parents[owner]
  end
  return false
end

local function compare(owner, live, methods)
  for name in pairs(live) do
    count = count + 1
    if not is_documented(owner, name) then problem('undocumented: %s.%s', owner, name) end
    local used = words['.' .. name] or words[':' .. name]
      or owner == 'coop.errors' and words[name]
    if not used then
      problem('no test uses %s.%s', owner, name)
    end
  end
  for name in pairs(methods or {}) do
    if not live[name] then problem('documented, but not there: %s.%s', owner, name) end
  end
end

local functions = {} -- class -> names of its functions
local modules = annotations.read()
for _, module in ipairs(modules) do
  for _, entry in ipairs(module.entries) do
    if entry.class then
      if entry.parent then parents[entry.class] = entry.parent:match '^[%w_.]+' end
      for _, field in ipairs(entry.fields) do note(entry.class, field.name) end
    elseif entry.kind == 'function' then
      local owner, name = entry.owner.class, entry.name
      if name:find '.' then note(owner, (name:gsub('%..*', ''))) end
      note(owner, name)
      functions[owner] = functions[owner] or {}
      functions[owner][name] = true
    end
  end
end

local live = {}
for _, module in ipairs(modules) do
  local ok, there = pcall(require, module.name)
  if ok then live[module.name] = there end
end
for name, there in pairs(live) do
  local names = {}
  for member in pairs(functions[name] or {}) do names[member:gsub('%..*', '')] = true end
  compare(name, names_in(there), names)
end
compare('coop.errors', names_in(coop.errors), documented['coop.errors'])
compare('coop.ErrorClass', { is = true }, functions['coop.ErrorClass'])

local seen = { ['coop.ErrorClass'] = true }
for class, object in pairs(objects()) do
  seen[class] = true
  compare(class, methods_of(object), functions[class])
end
if not live['coop.testing'] then seen['coop.testing'], seen['coop.Autojump'] = true, true end
for class in pairs(functions) do
  if not seen[class] and not live[class] then
    problem('no object of %s was looked at', class)
  end
end

local in_header = {}
for _, entry in ipairs(annotations.read_header()) do
  if entry.kind == 'c' and entry.declaration:find '%(' and not entry.declaration:find 'typedef' then
    in_header[entry.name] = true
    count = count + 1
    if not words[entry.name] then problem('no test uses %s', entry.name) end
  end
end
local header = io.open('include/coop.h'):read 'a'
for name in header:gmatch '\nCOOP_API [^;(]-([%w_]+)%(' do
  if not in_header[name] then problem('undocumented: %s', name) end
end

table.sort(problems)
for _, text in ipairs(problems) do print(text) end
if #problems == 0 then print(count .. ' names are documented') end
io.stdout:flush()
os.exit(#problems == 0 and 0 or 1)
