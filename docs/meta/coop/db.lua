---@meta coop.db

-- # Databases
--
-- Connections of LuaSQL's drivers, each in a thread of its own.

---@class coop.db
local db = {}

---Bytes that are no text, as a parameter.
---@class coop.db.Blob

---@param s string
---@return coop.db.Blob
function db.Blob(s) end

---@class coop.db.ConnectionPool
local ConnectionPool = {}

---Connections, which are opened as they are needed. The arguments are those of the driver's `connect`; a
---table behind them has options: `size`, how many there may be (4; of a database in memory, 1). To be
---closed, too.
---
---```lua
---local coop = require 'coop'
---local db = require 'coop.db'
---local pool = db.ConnectionPool('sqlite3', ':memory:')
---coop.await(pool:run_operation 'create table pets (name text, legs integer)')
---coop.await(pool:run_operation('insert into pets values (?, ?)', 'Rex', 4))
---for _, row in ipairs(coop.await(pool:run_query('select * from pets where legs > ?', 2))) do
---  print(row.name, row[2])
---end
---coop.await(pool:close())
---```
---```
---Rex	4
---```
---@param driver string "sqlite3", "postgres", ... of LuaSQL
---@param ... any
---@return coop.db.ConnectionPool
function db.ConnectionPool(driver, ...) end

---Runs a statement that gives rows, and fires with an array of them, each with its columns by number and
---by name; NULL is nil.
---@param sql string each `?` stands for one of the parameters
---@param ... any the parameters
---@return coop.Deferred<table[]>
function ConnectionPool:run_query(sql, ...) end

---Runs a statement that changes rows, and fires with how many.
---@param sql string
---@param ... any
---@return coop.Deferred<integer>
function ConnectionPool:run_operation(sql, ...) end

---Statements of a transaction.
---@class coop.db.Transaction
local Transaction = {}

---Runs `f(tx, ...)` as a coroutine in a transaction on one connection: committed when it returns, rolled
---back when it fails or is cancelled.
---@generic R
---@param f async fun(tx: coop.db.Transaction, ...): R?
---@param ... any
---@return coop.Deferred<R>
function ConnectionPool:run_interaction(f, ...) end

---Closes the pool: what waits for a connection is cancelled. Fires when the connections are closed.
---@return coop.Deferred<any>
function ConnectionPool:close() end

---@param sql string
---@param ... any
---@return coop.Deferred<table[]>
function Transaction:query(sql, ...) end

---@param sql string
---@param ... any
---@return coop.Deferred<integer>
function Transaction:operation(sql, ...) end

---Rows that come as they are taken, a bounded number ahead. To be closed, too.
---@class coop.db.Rows
local Rows = {}

---Runs a query on a connection that it has to itself until the last row was taken, or it is closed.
---@param pool coop.db.ConnectionPool
---@param sql string
---@param ... any
---@return coop.db.Rows
function db.rows(pool, sql, ...) end

---@return coop.Deferred<table?> # fires with the next row; nil at the end
function Rows:next() end

---@return coop.Deferred<table[]?> # fires with the rows that are there, `n` set; nil at the end
function Rows:batch() end

---Gives the connection back.
function Rows:close() end

return db
