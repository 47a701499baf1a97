--- Scripts in processes of their own.

local M = {}

local command = os.getenv 'COOP_BIN' or 'build/coop'
local build = command:match '^(.*)/[^/]*$' or '.'

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

-- What lua5.4 needs to find the coop that is tested, also when these specs run under `coop`.
local paths = ('LUA_PATH=%s LUA_CPATH=%s '):format(
  quote(('%s;%s/lua/?.lua;%s/lua/?/init.lua'):format(package.path, build, build)),
  quote(('%s;%s/?.so'):format(package.cpath, build)))

local commands = {
  { name = 'lua5.4', prefix = paths, command = os.getenv 'COOP_LUA5_4' or 'lua5.4' },
  { name = 'coop', prefix = '', command = command },
}

local function execute(interpreter, text, ...)
  local script, errors = os.tmpname(), os.tmpname()
  local file = assert(io.open(script, 'w'))
  assert(file:write(text))
  assert(file:close())
  local words = { interpreter.prefix .. 'timeout 60', quote(interpreter.command), quote(script) }
  for _, word in ipairs { ... } do words[#words + 1] = quote(word) end
  words[#words + 1] = '2>' .. quote(errors) .. ' </dev/null; echo status=$?'
  local pipe = assert(io.popen(table.concat(words, ' ')))
  local all = pipe:read 'a'
  pipe:close()
  local out, status = all:match '^(.*)status=(%d+)\n$'
  file = assert(io.open(errors))
  local err = file:read 'a'
  file:close()
  os.remove(script)
  os.remove(errors)
  return { out = out, err = err, status = math.tointeger(tonumber(status)) }
end

--- Runs `text` as a script of `lua5.4`; the arguments behind it are the script's.
--- Returns what it wrote (`out`, `err`) and its exit `status`.
function M.lua(text, ...) return execute(commands[1], text, ...) end

--- The same of the command `coop`.
function M.coop(text, ...) return execute(commands[2], text, ...) end

--- Calls `f(name, execute)` for `lua5.4` and for `coop`.
function M.each(f)
  f('lua5.4', M.lua)
  f('coop', M.coop)
end

return M
