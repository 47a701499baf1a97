-- The command `coop`: options in the manner of `lua`, the script as the main coroutine.
local coop, core = ...

local USAGE = [==[
usage: coop [options] [script [args]]
Available options are:
  -e stat  execute string 'stat'
  -i       enter interactive mode after executing 'script'
  -l mod   require library 'mod' into global 'mod'
  -l g=mod require library 'mod' into global 'g'
  -v       show version information
  -E       ignore environment variables
  -W       turn warnings on, and tell where things were made
  -h       show this help
  --       stop handling options
  -        stop handling options and execute stdin
]==]

local function complain(message)
  io.stdout:flush()
  local name = core.colours(2) and '\27[1;31mcoop:\27[0m ' or 'coop: '
  io.stderr:write(name, message, '\n')
  io.stderr:flush()
end

local function bad_usage(option)
  complain("unrecognized option '" .. option .. "'")
  io.stderr:write(USAGE)
end

-- Options -----------------------------------------------------------------------------------------

-- The options of argv as { actions, flags, script = index of the script or nil }; nil after a
-- complaint.
local function parse(argv)
  local options = { actions = {} }
  local i = 1
  while argv[i] and argv[i]:sub(1, 1) == '-' do
    local option, letter = argv[i], argv[i]:sub(2, 2)
    if option == '-' then
      break
    elseif option == '--' then
      i = i + 1
      break
    elseif letter == 'e' or letter == 'l' then
      local operand = option:sub(3)
      if operand == '' then
        i = i + 1
        operand = argv[i]
      end
      if not operand or operand:sub(1, 1) == '-' and #option == 2 then
        complain("'" .. option .. "' needs argument")
        io.stderr:write(USAGE)
        return nil
      end
      if letter == 'e' then options.e = true end
      table.insert(options.actions, { letter, operand })
    elseif option == '-i' or option == '-v' or option == '-E' then
      options[letter] = true
    elseif option == '-W' then
      table.insert(options.actions, { 'W' })
    elseif option == '--help' or option == '-h' then
      options.help = true
    else
      bad_usage(option)
      return nil
    end
    i = i + 1
  end
  options.script = argv[i] and i or nil
  return options
end

local function set_arg(argv, script)
  local args = {}
  local zero = script or 0
  for i = 0, #argv do args[i - zero] = argv[i] end
  arg = args -- luacheck: ignore 111 121
  return args
end

-- What main does ----------------------------------------------------------------------------------

local function load_or_fail(source, name)
  local chunk, message = load(source, name)
  if not chunk then error(message, 0) end
  return chunk
end

local function run_init()
  local name = 'LUA_INIT_5_4'
  local init = os.getenv(name)
  if not init then
    name = 'LUA_INIT'
    init = os.getenv(name)
  end
  if not init then return end
  if init:sub(1, 1) == '@' then
    local chunk, message = loadfile(init:sub(2))
    if not chunk then error(message, 0) end
    chunk()
  else
    load_or_fail(init, '=' .. name)()
  end
end

local function act(action)
  local kind, operand = table.unpack(action)
  if kind == 'e' then
    load_or_fail(operand, '=(command line)')()
  elseif kind == 'l' then
    local global, module = operand:match('^([^=]+)=(.+)$')
    if not global then global, module = operand, operand end
    _G[global] = require(module)
  else
    warn('@on')
    core.census(true)
  end
end

local function run_script(args)
  local name = args[0]
  if name == '-' then name = nil end
  local chunk, message = loadfile(name)
  if not chunk then error(message, 0) end
  return chunk(table.unpack(args))
end

local prompt -- once lines are read

local function interact(host)
  if not prompt then core.load_part 'prompt' end
  prompt = core.prompt
  prompt.interact(complain, host)
end

local function main_of(options, argv, host)
  local args = set_arg(argv, options.script)
  return function()
    if not options.E then run_init() end
    if options.v or options.i then print(host.version) end
    for _, action in ipairs(options.actions) do act(action) end
    if options.script then
      run_script(args)
    elseif not options.i and not options.v and not options.e then
      if host.terminal then
        print(host.version)
        interact(host)
      else
        run_script({ [0] = '-' })
      end
    end
    if options.i then interact(host) end
  end
end

-- Waiting for the end -----------------------------------------------------------------------------

local exit_status -- of os.exit

-- What still waits, one line for each coroutine: where.
local function tell_waiting(waiting)
  local lines = { 'nothing is left that could wake what waits:' }
  for _, place in ipairs(waiting) do lines[#lines + 1] = '\t' .. place end
  complain(table.concat(lines, '\n'))
end

-- The status of an interrupt that came from a signal.
local function signal_status(host)
  local signal = host.signal()
  return signal and 128 + signal
end

-- Runs the main body and the loop to the end of the process: its status.
local function run(body, host)
  local outcome
  core.observe(body, function(result) outcome = { result } end)
  core.start_up()
  core.start(body)
  local function over()
    if prompt and core.interrupted() and prompt.interrupt() then return false end
    return exit_status or core.stop_asked() or core.interrupted()
      or outcome and coop.type(outcome[1]) == 'Failure'
  end
  local function stuck() return not core.turn_main(body, over) and prompt and prompt.stuck() end
  while stuck() do end
  if prompt then prompt.close() end
  if core.interrupted() and not outcome then core.interrupt(body, core.interrupted()) end
  local status = exit_status or signal_status(host)
  core.clear_interrupt()
  local failed = outcome and coop.type(outcome[1]) == 'Failure'
  if failed and not exit_status then complain(core.traceback(outcome[1])) end
  if not status then
    local waiting = not (failed or core.stop_asked() or core.waiting_told) and core.waiting() or {}
    if #waiting > 0 then tell_waiting(waiting) end
    if failed or #waiting > 0 then status = 1 end
    if core.stop_asked() then status = 0 end
  end
  core.shut_down()
  return status
end

--- Runs the command: `argv` from the program's name (0) on, `host` what only C can tell.
---@return integer status
return function(argv, host)
  local options = parse(argv)
  if not options then return 2 end
  if options.help then
    io.write(USAGE)
    return 0
  end
  function os.exit(status) -- luacheck: ignore 122
    if status == nil or status == true then status = 0 end
    if status == false then status = 1 end
    local n = math.tointeger(tonumber(status))
    if not n then core.check('exit', 1, 'integer or boolean', status) end
    exit_status = exit_status or n & 0xff
    if prompt then prompt.leave() end
    core.leave()
  end
  local status = run(core.main(main_of(options, argv, host)), host)
  core.last_words()
  if not status then status = core.unhandled_count() > 0 and 1 or 0 end
  return status
end
