--- Databases: a pool of connections, each in a thread of its own.
---
--- The drivers are LuaSQL's. A `?` in the SQL, outside of quotes and comments, stands for a
--- parameter, which is quoted in the database's own way: text cannot become SQL. (LuaSQL does not
--- prepare statements.) `??` is a question mark. One call has one statement.
---
--- What does not go through unchanged: NaN is NULL in SQLite; a string with NULs is bytea for
--- PostgreSQL, whose texts have none; a `numeric` of PostgreSQL comes back as text, exactly.

local coop, core = ...

local threads = core.threads

---@class coop.db
local M = {}

-- SQL ---------------------------------------------------------------------------------------------

---@class coop.Blob bytes that are no text
local new_blob = core.class('Blob', {})

--- Makes a parameter of the bytes of `s` that is no text.
---@param s string
---@return coop.Blob
function M.Blob(s)
  if type(s) ~= 'string' then core.check('Blob', 1, 'string', s) end
  return new_blob { _bytes = s }
end

local function hex(s)
  return (s:gsub('.', function(c) return ('%02x'):format(c:byte()) end))
end

-- The digits of a float that give it back exactly, as a float.
local function digits(v)
  local text = ('%.17g'):format(v):gsub(',', '.')
  return text:find '[.e]' and text or text .. '.0'
end

local function in_quotes(s) return "'" .. s:gsub("'", "''") .. "'" end

-- A negative number is put in parentheses, lest the minus before it begin a comment.
local function signed(text) return text:sub(1, 1) == '-' and '(' .. text .. ')' or text end

-- How each database writes values.
local dialects = {
  sqlite3 = {
    boolean = function(v) return v and '1' or '0' end,
    integer = function(v) return signed(('%d'):format(v)) end,
    float = function(v)
      if v ~= v then return 'NULL' end
      if v == math.huge then return '9e999' end
      if v == -math.huge then return '(-9e999)' end
      return signed(digits(v))
    end,
    string = function(v)
      if v:find('\0', 1, true) then return "CAST(x'" .. hex(v) .. "' AS TEXT)" end
      return in_quotes(v)
    end,
    blob = function(v) return "x'" .. hex(v) .. "'" end,
  },
  postgres = {
    boolean = function(v) return v and 'TRUE' or 'FALSE' end,
    integer = function(v)
      if v == math.mininteger then return "'-9223372036854775808'::bigint" end
      return signed(('%d'):format(v))
    end,
    float = function(v)
      local text = v ~= v and 'NaN' or v == math.huge and 'Infinity'
        or v == -math.huge and '-Infinity' or digits(v)
      return "'" .. text .. "'::float8"
    end,
    string = function(v)
      if v:find('\0', 1, true) then return "'\\x" .. hex(v) .. "'::bytea" end
      if v:find('\\', 1, true) then return ' E' .. in_quotes((v:gsub('\\', '\\\\'))) end
      return in_quotes(v)
    end,
    blob = function(v) return "'\\x" .. hex(v) .. "'::bytea" end,
  },
}

--- The value in SQL, or nil.
local function literal(dialect, v)
  if v == nil then return 'NULL' end
  if coop.type(v) == 'Blob' then return dialect.blob(v._bytes) end
  local write = dialect[math.type(v) or type(v)]
  return write and write(v)
end

--- Where the quoted text that begins at `at` ends: behind the closing quote, doubled ones skipped.
local function skip_quoted(sql, at, quote, escapes)
  local i = at + 1
  while true do
    i = sql:find(escapes and '[\\' .. quote .. ']' or quote, i, not escapes)
    if not i then return #sql + 1 end
    if sql:sub(i, i) == '\\' or sql:sub(i + 1, i + 1) == quote then
      i = i + 2
    else
      return i + 1
    end
  end
end

local function skip_comment(sql, at, nested)
  local depth, i = 1, at + 2
  while depth > 0 do
    i = sql:find('[*/][*/]', i)
    if not i then return #sql + 1 end
    local mark = sql:sub(i, i + 1)
    if mark == '*/' then
      depth, i = depth - 1, i + 2
    elseif mark == '/*' and nested then
      depth, i = depth + 1, i + 2
    else
      i = i + 1
    end
  end
  return i
end

--- Is the quote at `at` one with escapes, E'...'?
local function has_escapes(sql, at)
  return at > 1 and sql:find('^[eE]', at - 1)
    and (at == 2 or not sql:find('^[%w_$\128-\255]', at - 2))
end

--- Where what is quoted at `at` ends, or nil.
local function quoted_end(sql, at, postgres)
  local c = sql:sub(at, at)
  if c == "'" then return skip_quoted(sql, at, c, postgres and has_escapes(sql, at)) end
  if c == '"' or c == '`' and not postgres then return skip_quoted(sql, at, c) end
  if c == '[' and not postgres then return (sql:find(']', at, true) or #sql) + 1 end
  if c == '$' and postgres and (at == 1 or not sql:find('^[%w_$\128-\255]', at - 1)) then
    local tag = sql:match('^%$[%a_\128-\255]?[%w_\128-\255]*%$', at)
    if tag then return (select(2, sql:find(tag, at + #tag, true)) or #sql) + 1 end
  end
end

--- What stands at `at`, and where it ends.
local function token(sql, at, postgres)
  local past = quoted_end(sql, at, postgres)
  if past then return 'quoted', past end
  local two = sql:sub(at, at + 1)
  if two == '--' then return 'space', (sql:find('\n', at, true) or #sql) + 1 end
  if two == '/*' then return 'space', skip_comment(sql, at, postgres) end
  if two == '??' then return 'question mark', at + 2 end
  local c = two:sub(1, 1)
  if c == '?' then return 'parameter', at + 1 end
  if c == ';' then return 'semicolon', at + 1 end
  past = sql:find('^%s+()', at)
  if past then return 'space', sql:match('^%s+()', at) end
  return 'text', sql:find([=[['"`%[%-/%$%?;%s]]=], at + 1) or #sql + 1
end

-- A connection that goes back to the pool is in no transaction.
local transaction_words = {
  begin = true, start = true, commit = true, ['end'] = true, rollback = true, abort = true,
  savepoint = true, release = true,
}

--- Puts the parameters into the SQL: the text, or nil and what is wrong.
local function bind(driver, in_pool, sql, ...)
  local dialect, postgres = dialects[driver], driver == 'postgres'
  local n, used, parts, at = select('#', ...), 0, {}, 1
  local word, over -- the first word; has the statement ended?
  if n > 0 and not dialect then
    return nil, 'parameters can be quoted for sqlite3 and postgres only'
  end
  while at <= #sql do
    local kind, past = token(sql, at, postgres)
    local text = sql:sub(at, past - 1)
    at = past
    if over and kind ~= 'space' then return nil, 'one statement at a time' end
    if kind == 'semicolon' then
      over = word ~= 'create' -- a body may have statements
    elseif kind == 'question mark' then
      text = dialect and '?' or text
    elseif kind == 'parameter' and dialect then
      used = used + 1
      text = '' -- in case there are too few
      if used <= n then
        local v = select(used, ...)
        text = literal(dialect, v)
        if not text then
          return nil, ('parameter %d must be nil, a boolean, number, string or Blob, got %s')
            :format(used, coop.type(v) or type(v))
        end
      end
    elseif kind == 'text' then
      word = word or text:match('^%a*'):lower()
    end
    parts[#parts + 1] = text
  end
  if used ~= n then
    return nil, ('%d parameter%s for %d question mark%s'):format(
      n, n == 1 and '' or 's', used, used == 1 and '' or 's')
  end
  if in_pool and transaction_words[word] then
    return nil, "'" .. word .. "' belongs into run_interaction, which does it by itself"
  end
  return table.concat(parts)
end

-- Connections -------------------------------------------------------------------------------------

-- In the thread.
local function in_worker(name, ...) return require 'coop._worker_db'[name](...) end

local function rows_in_worker(...) return require 'coop._worker_db'.rows(...) end

---@class coop.Lane a thread with a connection; held by one user at a time
local Lane = {}

--- Does something with the connection: a function of worker_db, by name.
function Lane:call(name, ...) return self._threads:call(in_worker, name, self._config, ...) end

--- Gives the lane back when all that was begun has ended and the connection is clean.
local function give_back(self)
  local pool = self._pool
  local function free()
    pool._idle[#pool._idle + 1] = self
    pool._turns:release()
  end
  if self._clean then return free() end
  local ok, cleaning = pcall(self.call, self, 'clean')
  if not ok then return free() end -- the thread has ended, the connection with it
  cleaning:add_both(function(result)
    if coop.type(result) == 'Failure' and not result:check(coop.errors.CancelledError) then
      core.report(result)
    end
    free()
  end)
end

local new_lane = core.class('Lane', Lane, { __close = give_back })

--- Waits for a connection to be free; to be closed.
local function take_lane(pool)
  local turn = pool._turns:acquire()
  pool._waiting[turn] = true
  turn:add_both(function(result)
    pool._waiting[turn] = nil
    return result
  end)
  coop.await(turn)
  local lane = table.remove(pool._idle)
    or new_lane { _pool = pool, _config = pool._config, _threads = threads.Pool(1) }
  pool._lanes[lane] = true
  lane._clean = false
  return lane
end

--- Gives each row its columns by name.
local function name_columns(rows)
  local names = rows.names
  for _, row in ipairs(rows) do
    for i, name in ipairs(names) do row[name] = row[i] end
  end
  rows.names = nil
  return rows
end

local run_on_lane = coop.inline_callbacks(function(pool, name, text)
  local held <close> = take_lane(pool)
  local result = coop.await(held:call(name, text))
  held._clean = true
  return result
end)

-- The pool ----------------------------------------------------------------------------------------

---@class coop.ConnectionPool
local ConnectionPool = {}

--- Runs a statement that gives rows: an array of them, each with its columns by number and by name;
--- NULL is nil. Cancelling it drops the result; the connection is used again when it is done.
---@param sql string each `?` stands for one of the parameters
---@return coop.Deferred
function ConnectionPool:run_query(sql, ...)
  if coop.type(self) ~= 'ConnectionPool' then core.check('run_query', 0, 'ConnectionPool', self) end
  if type(sql) ~= 'string' then core.check('run_query', 1, 'string', sql) end
  if self._closing then core.misuse('run_query', 'the pool is closed') end
  local text, problem = bind(self._config.driver, true, sql, ...)
  if not text then core.misuse('run_query', problem) end
  return run_on_lane(self, 'query', text):add_callback(name_columns)
end

--- Runs a statement that changes rows: how many.
---@param sql string
---@return coop.Deferred
function ConnectionPool:run_operation(sql, ...)
  if coop.type(self) ~= 'ConnectionPool' then
    core.check('run_operation', 0, 'ConnectionPool', self)
  end
  if type(sql) ~= 'string' then core.check('run_operation', 1, 'string', sql) end
  if self._closing then core.misuse('run_operation', 'the pool is closed') end
  local text, problem = bind(self._config.driver, true, sql, ...)
  if not text then core.misuse('run_operation', problem) end
  return run_on_lane(self, 'operation', text)
end

---@class coop.Transaction
local Transaction = {}

--- Like run_query, in the transaction.
function Transaction:query(sql, ...)
  if coop.type(self) ~= 'Transaction' then core.check('query', 0, 'Transaction', self) end
  if type(sql) ~= 'string' then core.check('query', 1, 'string', sql) end
  if not self._lane then core.misuse('query', 'the interaction is over') end
  local text, problem = bind(self._lane._config.driver, false, sql, ...)
  if not text then core.misuse('query', problem) end
  return self._lane:call('query', text):add_callback(name_columns)
end

--- Like run_operation, in the transaction.
function Transaction:operation(sql, ...)
  if coop.type(self) ~= 'Transaction' then core.check('operation', 0, 'Transaction', self) end
  if type(sql) ~= 'string' then core.check('operation', 1, 'string', sql) end
  if not self._lane then core.misuse('operation', 'the interaction is over') end
  local text, problem = bind(self._lane._config.driver, false, sql, ...)
  if not text then core.misuse('operation', problem) end
  return self._lane:call('operation', text)
end

local new_transaction = core.class('Transaction', Transaction, {
  __close = function(self) self._lane = nil end,
})

local run_interaction = coop.inline_callbacks(function(pool, body, ...)
  local held <close> = take_lane(pool)
  coop.await(held:call 'begin')
  local tx <close> = new_transaction { _lane = held }
  local result = coop.await(body(tx, ...))
  coop.await(held:call 'commit')
  held._clean = true
  return result
end)

--- Runs `f(tx, ...)` as a coroutine in a transaction on one connection: committed when it returns,
--- rolled back when it fails or is cancelled. `tx:query` and `tx:operation` are its statements.
---@param f async fun(tx: coop.Transaction, ...): any
---@return coop.Deferred outcome of `f`
function ConnectionPool:run_interaction(f, ...)
  if coop.type(self) ~= 'ConnectionPool' then
    core.check('run_interaction', 0, 'ConnectionPool', self)
  end
  if not core.callable(f) then core.check('run_interaction', 1, 'function', f) end
  if self._closing then core.misuse('run_interaction', 'the pool is closed') end
  return run_interaction(self, coop.inline_callbacks(f), ...)
end

local close_pool = coop.inline_callbacks(function(pool)
  for _ = 1, pool._turns.limit do coop.await(pool._turns:acquire()) end
  for lane in pairs(pool._lanes) do
    coop.await(lane._threads:call(in_worker, 'close'))
    coop.await(lane._threads:close())
  end
end)

--- Closes the pool: what waits for a connection is cancelled; it fires when what runs has ended,
--- rows that somebody takes included, and the connections are closed.
---@return coop.Deferred
function ConnectionPool:close()
  if coop.type(self) ~= 'ConnectionPool' then core.check('close', 0, 'ConnectionPool', self) end
  if not self._closing then
    self._closing = true
    local waiting = {}
    for turn in pairs(self._waiting) do waiting[#waiting + 1] = turn end
    for _, turn in ipairs(waiting) do turn:cancel() end
    self._closing = close_pool(self)
    if not self._closing.called then collectgarbage() end -- rows that nobody will take
  end
  return coop.succeed():add_callback(function() return self._closing end)
end

local new_pool = core.class('ConnectionPool', ConnectionPool, {
  __close = function(self) self:close() end,
})

local function check_size(options)
  for name in pairs(options) do
    if name ~= 'size' then return nil, ("there is no option '%s'"):format(tostring(name)) end
  end
  local size = options.size
  if size == nil then return 4 end
  local n = type(size) == 'number' and math.tointeger(size)
  if not n or n < 1 then return nil, 'size must be an integer of at least 1' end
  return n
end

--- Makes a pool of connections, which are opened as they are needed.
---
--- The arguments are those of the driver's `connect`: a file for "sqlite3"; for "postgres" a
--- database name or connection string, user, password, host and port. A table behind them has
--- options: `size`, how many connections there may be (4; of a database in memory, 1).
---@param driver string the name of a LuaSQL driver: "sqlite3", "postgres", ...
---@return coop.ConnectionPool
function M.ConnectionPool(driver, ...)
  if type(driver) ~= 'string' or not driver:find '^[%w_]+$' then
    core.check('ConnectionPool', 1, 'name of a driver', driver)
  end
  local args, options = table.pack(...), {}
  if type(args[args.n]) == 'table' and not coop.type(args[args.n]) then
    options, args[args.n], args.n = args[args.n], nil, args.n - 1
  end
  local fault = threads.fault(args)
  if fault then
    core.misuse('ConnectionPool', 'the arguments of a driver must be plain values, ' .. fault)
  end
  local size, problem = check_size(options)
  if not size then core.misuse('ConnectionPool', problem) end
  if driver == 'sqlite3' and (args[1] == ':memory:' or args[1] == '') then size = 1 end
  return new_pool {
    _config = { driver = driver, args = args },
    _turns = coop.DeferredSemaphore(size),
    _idle = {}, -- lanes
    _lanes = {}, -- all of them, as keys
    _waiting = {}, -- for a turn, as keys
  }
end

-- Rows one by one ---------------------------------------------------------------------------------

---@class coop.Rows
local Rows = {}

--- The next rows, with their names, or nil at the end.
local fetch_batch = coop.inline_callbacks(function(self)
  local stream = coop.await(self._opening)
  if not stream then return nil end
  if not self._named then
    local names = coop.await(stream:next())
    self._named = true
    if names then threads.name(stream, names) end
  end
  return coop.await(stream:batch())
end)

--- A list of the rows that are there, `n` set; nil at the end.
---@return coop.Deferred
function Rows:batch()
  if coop.type(self) ~= 'Rows' then core.check('batch', 0, 'Rows', self) end
  local rest, at = self._batch, self._at
  self._batch = nil
  if not rest then return fetch_batch(self) end
  return coop.succeed(table.move(rest, at, rest.n, 1, { n = rest.n - at + 1 }))
end

--- The next row; nil at the end.
---@return coop.Deferred
function Rows:next()
  if coop.type(self) ~= 'Rows' then core.check('next', 0, 'Rows', self) end
  local batch, at = self._batch, self._at
  if batch then
    self._at = at + 1
    if at == batch.n then self._batch = nil end
    return coop.succeed(batch[at])
  end
  return fetch_batch(self):add_callback(function(rows)
    if not rows then return nil end
    if rows.n > 1 then self._batch, self._at = rows, 2 end
    return rows[1]
  end)
end

--- Gives the connection back, whether all rows were taken or not.
function Rows:close()
  if coop.type(self) ~= 'Rows' then core.check('close', 0, 'Rows', self) end
  self._batch = nil
  local opening = self._opening
  self._opening = coop.succeed(nil)
  if opening.called then
    local stream = opening.result
    if coop.type(stream) == 'ThreadStream' then stream:close() end
  else
    opening:cancel()
  end
end

local new_rows = core.class('Rows', Rows, { __close = Rows.close })

--- Waits for a connection, which is held until the rows are at their end. Only `opening` is told
--- of the stream: it ends when nothing holds it. No coroutine waits for that end, since nobody
--- need come to it.
local hold_lane = coop.inline_callbacks(function(pool, text, opening)
  local ok, lane = pcall(take_lane, pool)
  if not ok then
    if not opening.called then opening:errback(lane) end
    return
  end
  local begun, stream = pcall(threads.stream_in, lane._threads, rows_in_worker, lane._config, text)
  if not begun then
    give_back(lane)
    return opening:errback(stream)
  end
  threads.done(stream):add_both(function() give_back(lane) end)
  opening:callback(stream)
end)

-- For flow.QueryIterator.
core.db = { bind = bind }

--- Runs what `bind` has made, in a pool that is open.
function core.db.open_rows(pool, text)
  local holding
  local opening = coop.Deferred(function() holding:cancel() end)
  holding = hold_lane(pool, text, opening)
  return new_rows { _opening = opening }
end

--- Runs a query whose rows come as they are taken, a bounded number ahead. It has a connection to
--- itself until the last row was taken or it is closed.
---@param pool coop.ConnectionPool
---@param sql string
---@return coop.Rows
function M.rows(pool, sql, ...)
  if coop.type(pool) ~= 'ConnectionPool' then core.check('rows', 1, 'ConnectionPool', pool) end
  if type(sql) ~= 'string' then core.check('rows', 2, 'string', sql) end
  if pool._closing then core.misuse('rows', 'the pool is closed') end
  local text, problem = bind(pool._config.driver, true, sql, ...)
  if not text then core.misuse('rows', problem) end
  return core.db.open_rows(pool, text)
end

return M
