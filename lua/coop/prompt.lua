-- The prompt: lines are read and evaluated, and timers and tasks go on meanwhile.
--
-- On a terminal a line is edited by the C module coop_prompt, and the prompt is in one of three
-- states: it reads (`line` is the Deferred of what comes), it evaluates (`running` is the body of
-- what was read), or it is closed. Elsewhere lines are read plainly, without a state to keep.
local coop, core = ...

local prompt = {}
core.prompt = prompt

local editor  -- the C module while it has the terminal
local line    -- the Deferred of the line being edited: a text, false at the end, nil when dropped
local running -- the expression that is evaluated: its `body`, and what has broken it off
local leaving -- os.exit was called
local host    -- what only the command can tell

local INTERRUPT = 2 -- the signal of Ctrl-C

-- Names -------------------------------------------------------------------------------------------

local KEYWORDS = {
  'and', 'break', 'do', 'else', 'elseif', 'end', 'false', 'for', 'function', 'goto', 'if', 'in',
  'local', 'nil', 'not', 'or', 'repeat', 'return', 'then', 'true', 'until', 'while',
}

-- Fields that are no methods, of objects that show what they have only when asked for it.
local FIELDS = {
  Deferred = { 'called', 'paused', 'result' },
  Coroutine = { 'called', 'paused', 'result' },
  Failure = { 'value' },
  Cooperator = { 'running' },
  Reactor = { 'running' },
  Connection = { 'peer' },
  Listener = { 'port' },
}

-- Tables that an `__index` written in C has as upvalues: the methods of coop's own objects.
local function kept_by(f)
  local tables = {}
  if debug.getinfo(f, 'S').what ~= 'C' then return tables end
  for i = 1, 255 do
    local name, value = debug.getupvalue(f, i)
    if not name then return tables end
    if type(value) == 'table' then tables[#tables + 1] = value end
  end
  return tables
end

-- The tables in which the members of a value are looked for, without asking the value.
local function member_tables(v)
  local tables, seen = {}, {}
  local function add(t)
    if type(t) == 'table' and not seen[t] then
      seen[t] = true
      tables[#tables + 1] = t
    end
    local meta = debug.getmetatable(t)
    local index = type(meta) == 'table' and rawget(meta, '__index')
    if type(index) == 'function' then
      for _, kept in ipairs(kept_by(index)) do tables[#tables + 1] = kept end
    elseif index and not seen[index] then
      add(index)
    end
  end
  add(v)
  return tables
end

local function member(v, name)
  for _, t in ipairs(member_tables(v)) do
    local found = rawget(t, name)
    if found ~= nil then return found end
  end
end

local function names_of(v, only_functions)
  local names = {}
  for _, t in ipairs(member_tables(v)) do
    for name, value in next, t do
      if type(name) == 'string' and (not only_functions or type(value) == 'function') then
        names[#names + 1] = name
      end
    end
  end
  if not only_functions then table.move(FIELDS[coop.type(v)] or {}, 1, 9, #names + 1, names) end
  return names
end

-- What the word may become: a list, in order. Nothing of the script is called for it.
local function complete(word)
  local path, separator, start = word:match '^(.-)([.:]?)([%a_]?[%w_]*)$'
  local names
  if separator == '' then
    if path ~= '' then return {} end
    names = names_of(_G)
    table.move(KEYWORDS, 1, #KEYWORDS, #names + 1, names)
  else
    local value = _G
    for part in (path .. '.'):gmatch '(.-)%.' do
      value = member(value, part)
      if value == nil then return {} end
    end
    names = names_of(value, separator == ':')
  end
  local words, seen = {}, {}
  for _, name in ipairs(names) do
    local hidden = name:sub(1, 1) == '_' and start == ''
    if name:sub(1, #start) == start and name:find '^[%a_][%w_]*$' and not hidden
      and not seen[name] then
      seen[name] = true
      words[#words + 1] = path .. separator .. name
    end
  end
  table.sort(words)
  return words
end

-- Lines -------------------------------------------------------------------------------------------

-- The file of the history, in the directory that the XDG base directory specification names.
local function history_file()
  local state = os.getenv 'XDG_STATE_HOME'
  if state and state:sub(1, 1) == '/' then return state .. '/coop/history' end
  local home = os.getenv 'HOME'
  if home and home ~= '' then return home .. '/.local/state/coop/history' end
end

-- The C module; nil where readline was not there when coop was built.
local function load_editor()
  for _, directory in ipairs(core.libdirs()) do
    local open = package.loadlib(directory .. '/coop_prompt.so', 'luaopen_coop_prompt')
    if open then return open() end
  end
  local ok, module = pcall(require, 'coop_prompt')
  return ok and module or nil
end

local function on_line(text)
  local waiting = line
  line = nil
  waiting:callback(text)
end

-- Edits lines from now on, if that can be.
local function open_editor()
  local module = load_editor()
  if not module or not module.open(core.outside(), on_line, complete) then return end
  editor = module
  local file = history_file()
  if file then editor.load(file) end
end

-- A line; false at the end of the input; nil when it was dropped.
local function read(text)
  if editor then
    io.stdout:flush()
    line = coop.Deferred()
    editor.read(text)
    return coop.await(line)
  end
  io.write(text)
  io.flush()
  coop.await(core.wait_readable(0))
  return io.read 'l' or false
end

-- Evaluation --------------------------------------------------------------------------------------

local function ends_early(message) return message:sub(-5) == '<eof>' end

-- The text as a function: as an expression, else as statements. Or nil, a message, and whether
-- more of it might do.
local function compile(text)
  local chunk, message = load('return ' .. text:gsub('^=', ''), '=stdin')
  if chunk then return chunk end
  local more = ends_early(message)
  if text:sub(1, 1) == '=' then return nil, message, more end
  chunk, message = load(text, '=stdin')
  return chunk, message, more or message and ends_early(message)
end

-- Reads until it is whole: a function; nil and a message, or nil alone when it was dropped; false
-- at the end of the input.
local function read_chunk()
  local text = read '> '
  if not text then return text end
  local chunk, message, more = compile(text)
  while not chunk and more do
    local next_line = read '>> '
    if next_line == nil then return nil end
    if not next_line then break end
    text = text .. '\n' .. next_line
    chunk, message, more = compile(text)
  end
  if editor and text:find '%S' then editor.remember(text) end
  return chunk, message
end

local function show(results, complain)
  if results.n == 0 then return end
  local ok, err = pcall(print, table.unpack(results, 1, results.n))
  if not ok then complain(core.text(err)) end
end

-- Runs it as a body of its own, so that it can be interrupted alone, and left to itself.
local function evaluate(chunk, complain)
  local results, failure
  local this = { over = coop.Deferred() } -- fires with whether the body has ended
  this.body = coop.inline_callbacks(function() results = table.pack(chunk()) end)()
  running = this
  core.observe(this.body, function(result)
    failure = coop.type(result) == 'Failure' and result or nil
    if running == this then
      this.over:callback(true)
    elseif failure and not leaving then
      core.report(failure)
    end
  end)
  local ended = coop.await(this.over)
  running = nil
  if leaving then return end
  if editor and core.interrupted() and host.signal() == INTERRUPT then
    core.clear_interrupt()
    host.rearm()
    io.write '\n' -- behind the ^C that the terminal shows
  end
  if not ended then
    complain 'it is left to itself'
  elseif failure then
    local known = this.broken_off ~= nil and failure.value == this.broken_off
    complain(known and this.broken_off or core.traceback(failure))
  else
    show(results, complain)
  end
end

-- The whole ---------------------------------------------------------------------------------------

--- Reads and evaluates to the end of the input. `complain(text)` tells of errors; the host has
--- `signal()`, the one that came, and `rearm()`, which makes Ctrl-C raise again.
function prompt.interact(complain, its_host)
  host = its_host
  if rawget(_G, 'coop') == nil then rawset(_G, 'coop', coop) end
  open_editor()
  if not editor then io.stdin:setvbuf 'no' end
  while not leaving do
    local chunk, message = read_chunk()
    if chunk then
      evaluate(chunk, complain)
    elseif message then
      complain(message)
    elseif chunk == false then
      break
    end
  end
  if leaving then return end
  io.write '\n'
  if editor and not core.stop_asked() then coop.reactor:stop() end
  prompt.close()
end

--- Gives the terminal back.
function prompt.close()
  if editor then editor.close() end
  editor = nil
end

--- The process is to end.
function prompt.leave() leaving = true end

-- Raises the message where the expression waits. One that goes on nevertheless is left to itself
-- the next time.
local function break_off(message)
  local this = running
  local again = this.broken_off
  this.broken_off = message
  if again then
    this.over:callback(false)
  else
    core.interrupt(this.body, message)
  end
end

--- At Ctrl-C drops the line, or breaks the expression off. False when it was something else, or
--- there is no prompt.
function prompt.interrupt()
  if not editor or host.signal() ~= INTERRUPT then return false end
  core.clear_interrupt()
  host.rearm()
  if line then
    editor.drop()
    on_line(nil)
  elseif running then
    io.write '\n'
    break_off 'interrupted!'
  end
  return true
end

--- Nothing is left to turn the loop for: breaks the expression off that waits. False when there is
--- none.
function prompt.stuck()
  if not editor or not running then return false end
  break_off 'nothing is left that could wake what waits'
  return true
end

return prompt
