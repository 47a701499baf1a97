--- Runs each example with the command and compares what it prints with examples/expected.
---     lua5.4 tests/examples.lua [the command, build/coop]
--- Figures that no two runs share are masked, here and there; all else is compared exactly.

local coop = arg[1] or 'build/coop'
local sanitized = os.getenv 'ASAN_OPTIONS' ~= nil

-- A timer is late by a slice (0.01 s), the step under way and the system's own wait at most.
local latest = 0.02

local examples = {
  { name = 'hello', interleaved = true },
  {
    name = 'expensive',
    masks = { { '^%d+%.%d%d%d  ', '' }, { '%d+%.%d ms late', 'N ms late' } },
    interleaved = true,
    errors = '^[%d.]+: %d+%% %(%d+ of %d+%)$', -- lines that it may write to standard error
  },
  { name = 'throttle', masks = { { '%d outstanding', 'N outstanding' } } },
  { name = 'cancel' },
  { name = 'cascade' },
  { name = 'tail_call' },
  { name = 'requests', interleaved = true },
  { name = 'flow' },
  { name = 'together' },
  { name = 'logs', masks = { { 'ticked %d+ times and missed %d+', 'ticked and missed none' } } },
  { name = 'echo', interleaved = true },
  { name = 'threaded', interleaved = true },
  { name = 'query' },
  { name = 'download' },
  { name = 'web_resource' },
}

local function read(path)
  local file <close> = assert(io.open(path))
  return file:read 'a'
end

local function masked(line, masks)
  for _, mask in ipairs(masks or {}) do line = line:gsub(mask[1], mask[2]) end
  return line
end

-- Lines read "who: what". Between lines that don't, each one's own lines are put together, in
-- their order, so that it does not matter who took a turn before whom.
local function grouped(lines)
  local result, section = {}, {}
  local function finish_section()
    table.sort(section, function(a, b)
      if a.who ~= b.who then return a.who < b.who end
      return a.place < b.place
    end)
    for _, entry in ipairs(section) do table.insert(result, entry.line) end
    section = {}
  end
  for place, line in ipairs(lines) do
    local who = line:match '^(.-): '
    if who then
      table.insert(section, { who = who, place = place, line = line })
    else
      finish_section()
      table.insert(result, line)
    end
  end
  finish_section()
  return result
end

local function lines_of(text, example)
  local lines = {}
  for line in text:gmatch '([^\n]*)\n' do table.insert(lines, masked(line, example.masks)) end
  return lines
end

-- What is wrong with the text that an example printed, or nil.
local function difference(text, example)
  local got = lines_of(text, example)
  local expected = lines_of(read('examples/expected/' .. example.name .. '.txt'), example)
  if example.interleaved then
    local in_turns = table.concat(got, '\n')
    got, expected = grouped(got), grouped(expected)
    if in_turns == table.concat(got, '\n') then return 'nobody took turns' end
  end
  for i = 1, math.max(#got, #expected) do
    if got[i] ~= expected[i] then
      return ('expected: %s\n       got: %s'):format(expected[i], got[i])
    end
  end
end

-- What an example wrote to standard error, but for the lines that it may write.
local function complaints(path, allowed)
  local text = read(path)
  if not allowed then return text end
  return (text:gsub('([^\n]*)\n', function(line) if line:find(allowed) then return '' end end))
end

-- What an example prints; and what is wrong with its end, or nil.
local function run(name, arguments, errors_allowed)
  local errors = os.tmpname()
  local command = ('COOP_EXAMPLE_CLOCK=virtual timeout 60 %s examples/%s.lua %s 2>%s')
    :format(coop, name, arguments or '', errors)
  local pipe = assert(io.popen(command))
  local text = pipe:read 'a'
  local _, how, status = pipe:close()
  local complaint = complaints(errors, errors_allowed)
  os.remove(errors)
  if status ~= 0 or complaint ~= '' then
    return text, ('%s %d\n%s%s'):format(how, status, text, complaint)
  end
  return text
end

local function compare(example)
  local text, problem = run(example.name, nil, example.errors)
  return problem or difference(text, example)
end

-- The requests of `expensive` while its sums run for long enough to be in their way.
local function be_late()
  local text, problem = run('expensive', 1000000, examples[2].errors)
  if problem then return problem end
  if not text:match 'request 1.*second sum' then return 'no request while the sums ran' end
  for late in text:gmatch '(%d+%.%d) ms late' do
    if tonumber(late) > latest * 1000 then return late .. ' ms late' end
  end
end

-- The clock of `logs` while it reads.
local function miss_a_tick()
  local text, problem = run 'logs'
  if problem then return problem end
  local ticks, missed = text:match 'ticked (%d+) times and missed (%d+)'
  if tonumber(ticks) < 2 or missed ~= '0' then
    return ('%s ticks, %s missed'):format(ticks, missed)
  end
end

-- On a busy machine a timer may be later than its program can help.
local function try_thrice(f) return f() and f() and f() end

local passed, failed = 0, 0
local function check(name, problem)
  if problem then
    failed = failed + 1
    print(('not ok %s\n%s'):format(name, problem))
  else
    passed = passed + 1
    print('ok ' .. name)
  end
end

for _, example in ipairs(examples) do check(example.name, compare(example)) end
if not sanitized then
  check('expensive, on time while it sums', try_thrice(be_late))
  check('logs, its clock on time while it reads', try_thrice(miss_a_tick))
end
print(('%d passed, %d failed'):format(passed, failed))
os.exit(failed == 0, true)
