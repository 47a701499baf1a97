--- The side of coop.db that is in a thread: one connection, and what is done with it. This part is
--- loaded in the state of a worker, where there is no coop.

local M = {}

local environment, connection
local in_transaction = false
local failed = false -- a statement has, since the connection was last known to be in order

-- How rows come out of a driver's hands: functions by the type of the column.
local conversions = {}

local function to_number(text)
  if text == 'NaN' then return 0 / 0 end
  if text == 'Infinity' then return math.huge end
  if text == '-Infinity' then return -math.huge end
  return tonumber(text) + 0.0
end

local function to_bytes(text)
  if text:sub(1, 2) ~= '\\x' then return text end
  return (text:sub(3):gsub('%x%x', function(pair) return string.char(tonumber(pair, 16)) end))
end

-- LuaSQL gives all that PostgreSQL has as text. What a Lua number cannot hold exactly stays that.
conversions.postgres = {
  int2 = math.tointeger, int4 = math.tointeger, int8 = math.tointeger, oid = math.tointeger,
  float4 = to_number, float8 = to_number,
  bool = function(text) return text == 't' end,
  bytea = to_bytes,
}

-- What makes a new connection ready.
local settings = {
  sqlite3 = { 'pragma busy_timeout = 5000' },
  postgres = {
    'set client_min_messages = error', -- a needless rollback says nothing
    'set standard_conforming_strings = on',
    "set client_encoding = 'UTF8'",
    "set bytea_output = 'hex'",
  },
}

local function fail(message) error((tostring(message):gsub('^LuaSQL: ', '')), 0) end

--- Calls a method of the driver's: nil and a message is a failure.
local function check(result, message, ...)
  if result == nil then
    failed = true
    fail(message or 'the driver does not say why')
  end
  return result, message, ...
end

local function execute(sql)
  local ok, result, message = pcall(connection.execute, connection, sql)
  if not ok then return nil, result end
  return result, message
end

local function disconnect()
  local closing = connection
  connection, in_transaction, failed = nil, false, false
  if closing then pcall(closing.close, closing) end
end

local function connect(config)
  if connection then return end
  local ok, driver = pcall(require, 'luasql.' .. config.driver)
  if not ok then fail(driver) end
  environment = environment or driver[config.driver]()
  local connected, result, message =
    pcall(environment.connect, environment, table.unpack(config.args, 1, config.args.n))
  if not connected then fail(result) end
  if not result then fail(message) end
  connection = result
  for _, sql in ipairs(settings[config.driver] or {}) do
    local set, why = execute(sql)
    if not set then
      disconnect()
      fail(why)
    end
    if type(set) == 'userdata' then set:close() end
  end
end

local closing_cursor = { __close = function(self) pcall(self[1].close, self[1]) end }

--- The functions for the columns of a cursor that are to be converted, by number, or nil. The
--- driver asks the server for the types.
local function conversions_of(config, cursor)
  local by_type = conversions[config.driver]
  if not by_type then return nil end
  local list, any = {}, false
  for i, name in ipairs(cursor:getcoltypes()) do
    if name == 'undefined' then check(nil, 'connection lost before the types were known') end
    list[i] = by_type[name]
    any = any or list[i]
  end
  return any and list
end

local function fetch(cursor, columns, row)
  local result, message = cursor:fetch(row, 'n')
  if not result then
    if message then check(nil, message) end
    return nil
  end
  if columns then
    for i, convert in pairs(columns) do
      if row[i] ~= nil then row[i] = convert(row[i]) end
    end
  end
  return row
end

--- Fetches all rows: { names = column names, rows... }.
function M.query(config, sql)
  connect(config)
  local cursor = check(execute(sql))
  if type(cursor) ~= 'userdata' then return { names = {} } end
  local cleanup <close> = setmetatable({ cursor }, closing_cursor)
  local rows, columns = { names = cursor:getcolnames() }, conversions_of(config, cursor)
  while true do
    local row = fetch(cursor, columns, {})
    if not row then return rows end
    rows[#rows + 1] = row
  end
end

--- How many rows a statement has changed; of one that gives rows, how many it gave.
function M.operation(config, sql)
  connect(config)
  local result = check(execute(sql))
  if type(result) ~= 'userdata' then return math.tointeger(result) or result end
  local cleanup <close> = setmetatable({ result }, closing_cursor)
  local count = 0
  while fetch(result, nil, {}) do count = count + 1 end
  return count
end

-- Transactions ------------------------------------------------------------------------------------

function M.begin(config)
  connect(config)
  local result, message
  if config.driver == 'sqlite3' then
    -- At once for writing: one that begins by reading could not wait for another that writes.
    result, message = execute 'begin immediate'
    if not result and tostring(message):find('readonly', 1, true) then result = execute 'begin' end
  else
    result, message = execute 'begin'
  end
  check(result, message)
  in_transaction = true
end

function M.commit(config)
  if failed and config.driver == 'postgres' then
    check(execute 'select 1') -- else it would be rolled back in silence
  end
  check(execute 'commit')
  in_transaction, failed = false, false
end

--- Makes the connection ready for whoever is next; one that does not become so is given up.
function M.clean(config)
  if not connection or not (in_transaction or failed) then return end
  local result, message = execute 'rollback'
  local ended = result
    or config.driver == 'sqlite3' and tostring(message):find('no transaction', 1, true)
  if ended then in_transaction, failed = false, false else disconnect() end
end

function M.close() disconnect() end

-- Rows one by one ---------------------------------------------------------------------------------

-- An iterator over rows is a table: `cursor` and `columns` as they are now, `row`, whose table is
-- used again, and `names` until they have been given.

local function next_row(rows)
  local names = rows.names
  if names then
    rows.names = nil
    return names
  end
  return rows.cursor and fetch(rows.cursor, rows.columns, rows.row)
end

local function take_cursor(rows, config, cursor)
  rows.cursor = cursor
  if rows.columns == nil then
    rows.names = cursor:getcolnames()
    rows.columns = conversions_of(config, cursor) or false
  end
end

local BATCH = 1000

--- PostgreSQL's library would take all rows into memory: a cursor of the server's gives them in
--- batches. False when the statement is none for a cursor.
local function open_batches(config, sql, rows)
  check(execute 'begin')
  in_transaction = true
  if not execute('declare coop_rows no scroll cursor for ' .. sql) then
    check(execute 'rollback')
    in_transaction = false
    return false
  end
  local left = 0
  function rows.fetch(self)
    if self.names then return next_row(self) end
    while left > 0 do
      local row = next_row(self)
      if row then return row end
      self.cursor:close()
      self.cursor = nil
      if left < BATCH then break end
      take_cursor(self, config, check(execute(('fetch %d from coop_rows'):format(BATCH))))
      left = self.cursor:numrows()
    end
    if in_transaction then
      check(execute 'commit')
      in_transaction = false
    end
  end
  take_cursor(rows, config, check(execute(('fetch %d from coop_rows'):format(BATCH))))
  left = rows.cursor:numrows()
  return true
end

local finishing = {
  __close = function(rows)
    if rows.cursor then pcall(rows.cursor.close, rows.cursor) end
    M.clean(rows.config)
  end,
}

--- Returns an iterator that gives the names of the columns, and then each row.
function M.rows(config, sql)
  connect(config)
  local rows = setmetatable({ config = config, row = {}, fetch = next_row }, finishing)
  local cleanup <close> = setmetatable({}, { __close = function(_, err)
    if err ~= nil then finishing.__close(rows) end
  end })
  if config.driver ~= 'postgres' or not open_batches(config, sql, rows) then
    local cursor = check(execute(sql))
    if type(cursor) == 'userdata' then take_cursor(rows, config, cursor) else rows.names = {} end
  end
  return rows.fetch, rows, nil, rows
end

return M
