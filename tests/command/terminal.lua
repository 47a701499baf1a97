--- Runs a command on a terminal: in a tmux of its own, whose keys are pressed and whose screen is
--- read. Nothing here knows how long anything takes: what is expected is looked for until it is
--- there.

local process = require 'tests.command.process'
local uv = require 'luv'

-- Enough for a sanitized build on a busy machine.
local patience = tonumber(os.getenv "PATIENCE") or 60

local Terminal = {}
Terminal.__index = Terminal

local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function read_command(...)
  local words = {}
  for i = 1, select('#', ...) do words[i] = quoted((select(i, ...))) end
  local pipe = assert(io.popen(table.concat(words, ' ') .. ' 2>&1'))
  local text = pipe:read 'a'
  return text, pipe:close()
end

function Terminal:_tmux(...)
  local text, ok = read_command('env', '-u', 'TMUX', 'LC_ALL=C.UTF-8', 'tmux', '-u', '-f',
    '/dev/null', '-S', self._socket, ...)
  if not ok then error('tmux: ' .. text, 2) end
  return text
end

--- What is on the screen and above it, without spaces at the ends of lines; with escape sequences
--- when `coloured`.
function Terminal:screen(coloured)
  local text = self:_tmux('capture-pane', '-p', '-J', '-S', '-500', coloured and '-e' or '-p')
  return (text:gsub('[ ]+\n', '\n'):gsub('\n+$', ''))
end

--- The last line of the screen that is not empty.
function Terminal:line() return self:screen():match '[^\n]*$' end

--- Waits until `found(screen)` is true; `what` tells what is waited for.
function Terminal:wait(what, found, coloured)
  local limit = uv.hrtime() + patience * 1e9
  while true do
    local screen = self:screen(coloured)
    local result = found(screen)
    if result then return result end
    if uv.hrtime() > limit then
      error(('no %s on the screen:\n%s'):format(what, screen), 3)
    end
    uv.sleep(10)
  end
end

--- Waits for a line that is this text, or, with `coloured`, has it.
function Terminal:expect(text)
  self:wait(('%q'):format(text), function(screen)
    return ('\n' .. screen .. '\n'):find('\n' .. text .. '\n', 1, true)
  end)
end

--- Waits until the last line is this text.
function Terminal:expect_last(text)
  self:wait(('%q at the end'):format(text), function(screen)
    return screen:match '[^\n]*$' == text
  end)
end

--- Types the text as it is.
function Terminal:type(text) self:_tmux('send-keys', '-l', '--', text) end

--- Presses keys by their names in tmux: Enter, Tab, Up, C-c.
function Terminal:press(...) self:_tmux('send-keys', ...) end

--- Types a line, and Enter.
function Terminal:enter(text)
  self:type(text)
  self:press 'Enter'
end

function Terminal:close()
  pcall(self._tmux, self, 'kill-server')
  os.remove(self._socket)
end

--- Starts a shell command (text) on a terminal of 80 columns, and says `status N` when it has
--- ended. `env` is its environment beside that of the tests.
local function open(command, env)
  local socket = os.tmpname()
  os.remove(socket)
  local self = setmetatable({ _socket = socket }, Terminal)
  local words = { 'env', '-u', 'NO_COLOR', '-u', 'LUA_INIT', '-u', 'LUA_PATH', '-u', 'LUA_CPATH',
    'INPUTRC=/dev/null', 'LC_ALL=C.UTF-8' }
  for name, value in pairs(env or {}) do words[#words + 1] = quoted(name .. '=' .. value) end
  words[#words + 1] = 'sh -c ' .. quoted(command .. '; echo status $?; exec sleep 1000')
  self:_tmux('new-session', '-d', '-x', '80', '-y', '40', table.concat(words, ' '))
  return self
end

return { open = open, coop = process.coop, quoted = quoted }
