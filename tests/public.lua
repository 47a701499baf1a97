--- What is public of coop, as it is and not as it is written down: the names in its modules, and
--- an object of each class with its methods.

local coop = require 'coop'

local M = {}

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

--- The functions of an object, as the keys of a set.
function M.methods_of(object)
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

--- The public names in a table, as the keys of a set.
function M.names_in(t)
  local names = {}
  for name in next, t do
    if is_public(name) then names[name] = true end
  end
  return names
end

local function sleeper() coop.await(coop.sleep(0)) end

--- An object of each class, by the name of the class. Waits: to be called in a coroutine.
function M.objects()
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

return M
