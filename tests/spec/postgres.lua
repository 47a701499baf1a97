--- A PostgreSQL server of the specs' own, on a Unix socket in a directory of its own.

local M = {}

local function lines(command)
  local list = {}
  local pipe <close> = assert(io.popen(command))
  for line in pipe:lines() do list[#list + 1] = line end
  return list
end

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

-- The server refuses to be run by root.
local is_root = lines('id -u')[1] == '0'

local function run(command)
  if is_root then command = 'su postgres -s /bin/sh -c ' .. quote('cd / && ' .. command) end
  return os.execute(command .. ' >/dev/null 2>&1 </dev/null')
end

--- Starts it: a table with `socket`, the directory to connect to as user postgres, and `stop`.
--- Nil and what is missing, where it is not installed.
function M.start()
  local bin = lines('ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1')[1]
  if not bin then return nil, 'PostgreSQL is not installed (package postgresql)' end
  if not package.searchpath('luasql.postgres', package.cpath) then
    return nil, 'LuaSQL for PostgreSQL is not installed (package lua-sql-postgres)'
  end
  local directory = lines('mktemp -d /tmp/coop-postgres-XXXXXX')[1]
  if is_root then os.execute('chown postgres ' .. directory) end
  local data = directory .. '/data'
  assert(run(bin .. '/initdb -D ' .. data .. ' -A trust -N -U postgres -E UTF8 --locale=C'),
    'initdb failed')
  local options = quote('-k ' .. directory .. ' -c listen_addresses= -c fsync=off')
  assert(run(bin .. '/pg_ctl -D ' .. data .. ' -w -l ' .. directory .. '/log -o ' .. options
    .. ' start'), 'the server does not start')
  return {
    socket = directory,
    stop = function()
      run(bin .. '/pg_ctl -D ' .. data .. ' -m immediate -w stop')
      os.execute('rm -rf ' .. directory)
    end,
  }
end

return M
