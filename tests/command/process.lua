--- Runs the command under test in a process of its own and tells all that it did.

local uv = require 'luv'

local M = {}

--- The path of the command: the environment variable COOP_BIN, else build/coop.
M.coop = os.getenv 'COOP_BIN' or 'build/coop'
M.lua = 'lua5.4'

-- What we write to a process that has ended is lost, and no more than that.
local sigpipe = uv.new_signal()
sigpipe:start 'sigpipe'
sigpipe:unref()

-- Enough for a sanitized build on a busy machine; what takes longer hangs.
local patience = 30000

local function environment(changes)
  local variables = uv.os_environ()
  for name in pairs(variables) do
    if name:find '^LUA_' then variables[name] = nil end
  end
  for name, value in pairs(changes or {}) do variables[name] = value end
  local list = {}
  for name, value in pairs(variables) do table.insert(list, name .. '=' .. value) end
  return list
end

-- Appends what comes out of `pipe` to `result[field]`, and tells it.
local function collect(pipe, result, field, tell)
  result[field] = ''
  pipe:read_start(function(_, data)
    if not data then return pipe:close() end
    result[field] = result[field] .. data
    tell(data)
  end)
end

--- Runs `command` with the list `args` until it ends. Returns a table: `out` and `err`, what it
--- wrote; `status`, its exit status, or `signal`, what it died of; `seconds`, how long it took;
--- `reaction`, how long it went on after the last signal or input that it was given.
---
--- `options.env` changes its environment (which has no LUA_* of ours), `options.cwd` is its
--- directory, `options.input` is its standard input, `options.deaf` closes the reading end of its
--- standard output. `options.talk` is a list of {text, signal = name} or {text, input = text}:
--- once it has written `text` (behind the previous one's), the signal or the input is sent, `later`
--- by that many seconds. Its standard input ends with the last of them.
function M.run(command, args, options)
  options = options or {}
  local talk = options.talk or {}
  local result = {}
  local stdin, stdout, stderr = uv.new_pipe(), uv.new_pipe(), uv.new_pipe()
  local started, last_told = uv.hrtime(), uv.hrtime()
  local process, pid = uv.spawn(command, {
    args = args,
    stdio = { stdin, stdout, stderr },
    env = environment(options.env),
    cwd = options.cwd,
  }, function(status, signal)
    local now = uv.hrtime()
    result.seconds, result.reaction = (now - started) / 1e9, (now - last_told) / 1e9
    if signal == 0 then result.status = status else result.signal = signal end
  end)
  assert(process, pid)

  local limit, later = uv.new_timer(), uv.new_timer()
  uv.update_time() -- nothing may have turned the loop for long
  limit:start(patience, 0, function()
    result.hangs = true
    process:kill 'sigkill'
  end)

  local written, from, step = '', 1, 1
  local function end_input()
    if not stdin:is_closing() then stdin:close() end
  end
  local function send(what)
    last_told = uv.hrtime()
    if what.signal then process:kill(what.signal) end
    if what.input then stdin:write(what.input) end
    step = step + 1
    if not talk[step] then end_input() end
  end
  local function go_on(data)
    written = written .. data
    while talk[step] and not later:is_active() do
      local what = talk[step]
      local _, seen = written:find(what[1], from, true)
      if not seen then return end
      from = seen + 1
      if what.later then
        later:start(what.later * 1000 // 1 | 0, 0, function()
          send(what)
          go_on ''
        end)
      else
        send(what)
      end
    end
  end

  if options.deaf then
    result.out = ''
    stdout:close()
  else
    collect(stdout, result, 'out', go_on)
  end
  collect(stderr, result, 'err', go_on)
  if options.input then stdin:write(options.input) end
  if talk[1] then go_on '' else end_input() end

  while result.seconds == nil or not (stdout:is_closing() and stderr:is_closing()) do
    uv.run 'once'
  end
  end_input()
  limit:close()
  later:close()
  process:close()
  uv.run()
  return result
end

--- The command under test with these arguments.
function M.run_coop(args, options) return M.run(M.coop, args, options) end

--- A text as the script of the command under test; `options.args` are the script's.
function M.run_script(text, options)
  local path = M.file(text)
  return M.run_coop({ path, table.unpack(options and options.args or {}) }, options)
end

local files = {}

--- The path of a new file with this text, which `remove_files` removes.
function M.file(text)
  local path = os.tmpname()
  os.remove(path)
  path = path .. '.lua'
  table.insert(files, path)
  local file <close> = assert(io.open(path, 'w'))
  file:write(text)
  return path
end

function M.remove_files()
  for _, path in ipairs(files) do os.remove(path) end
  files = {}
end

return M
