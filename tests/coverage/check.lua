-- Checks that every scenario has a test or a reason to have none.
--
-- A test covers the ids that its name begins with: `it('DEF-04 ...')`, `DEF-04a` (one of several
-- tests of DEF-04), `EVT-02/03`, `INL-25a/b/c`, `DEF-26..29`. The tables beside this file tell
-- which ids do not apply. Run from the project's root; `--table` prints where each id is tested.

local folder = arg[0]:match '^(.*/)' or './'
local specs = folder .. '../spec/'
local ids = dofile(folder .. 'ids.lua')
for _, id in ipairs(ids.flow) do table.insert(ids, id) end

local problems = {}
local function complain(text, ...) problems[#problems + 1] = text:format(...) end

local known = {}  -- id -> true
local variants = {}  -- an id without its letter -> the ids with one
for _, id in ipairs(ids) do
  if known[id] then complain('%s is listed twice', id) end
  known[id] = true
  local plain = id:match '^(.*%d)%l$'
  if plain then
    variants[plain] = variants[plain] or {}
    table.insert(variants[plain], id)
  end
end

-- What `id` of a test's name stands for, or nil.
local function meaning(id)
  if known[id] then return { id } end
  if variants[id] then return variants[id] end
  local plain = id:match '^(.*%d)%l$'
  if plain and known[plain] then return { plain } end
end

-- The ids at the beginning of a test's name.
local function named(name)
  local list = {}
  local prefix, number, letter, rest = name:match '^(%u+)%-(%d+)(%l?)(.*)$'
  if not prefix then return list end
  local function add(n, suffix) list[#list + 1] = ('%s-%s%s'):format(prefix, n, suffix) end
  add(number, letter)
  local last, after = rest:match '^%.%.(%d+)(.*)$'
  if last then
    for n = tonumber(number) + 1, tonumber(last) do add(('%02d'):format(n), '') end
    rest = after
  end
  while rest:sub(1, 1) == '/' do
    local full, n, suffix, more = rest:match '^/(%u+)%-(%d+)(%l?)(.*)$'
    if full then
      prefix, number = full, n
    else
      n, suffix, more = rest:match '^/(%d+)(%l?)(.*)$'
      if n then
        number = n
      else
        suffix, more = rest:match '^/(%l)(.*)$'
        if not suffix or more:find '^%l' then break end
      end
    end
    add(number, suffix)
    rest = more
  end
  return list
end

local tested = {}  -- id -> list of spec files
local function cover(id, file)
  for _, one in ipairs(meaning(id) or {}) do
    tested[one] = tested[one] or {}
    local files = tested[one]
    if files[#files] ~= file then files[#files + 1] = file end
  end
end

local listing = assert(io.popen("ls '" .. specs .. "'"))
for file in listing:lines() do
  if file:find '_spec%.lua$' then
    local input = assert(io.open(specs .. file))
    local text = ('\n' .. input:read 'a'):gsub('\n%s*%-%-[^\n]*', '')
    input:close()
    for _, name in text:gmatch '%f[%w_]it[%w_]*%s*%(?%s*(["\'])(.-)%1' do
      for _, id in ipairs(named(name)) do
        if meaning(id) then
          cover(id, file)
        else
          complain('%s: no scenario is called %s', file, id)
        end
      end
    end
  end
end
listing:close()

local excused = {}
for _, name in ipairs { 'deferred', 'coroutine', 'time', 'flow' } do
  local file = folder .. name .. '.lua'
  local chunk, message = loadfile(file)
  if chunk then
    for id, reason in pairs(chunk()) do
      if not meaning(id) then
        complain('%s: no scenario is called %s', file, id)
      elseif type(reason) ~= 'string' or reason == '' then
        complain('%s: no reason for %s', file, id)
      end
      for _, one in ipairs(meaning(id) or {}) do
        if excused[one] then complain('%s does not apply for two reasons', one) end
        excused[one] = reason
      end
    end
  else
    complain('%s', message)
  end
end

local counts = { tested = 0, excused = 0 }
for _, id in ipairs(ids) do
  if tested[id] and excused[id] then
    complain('%s is tested in %s and said not to apply', id, table.concat(tested[id], ', '))
  elseif tested[id] then
    counts.tested = counts.tested + 1
  elseif excused[id] then
    counts.excused = counts.excused + 1
  else
    complain('%s has no test', id)
  end
end

if #problems > 0 then
  table.sort(problems)
  for _, problem in ipairs(problems) do io.stderr:write(problem, '\n') end
  io.stderr:write(('%d problems\n'):format(#problems))
  os.exit(1)
end

if arg[1] == '--table' then
  for _, id in ipairs(ids) do
    local where = tested[id] and table.concat(tested[id], ' ') or '- ' .. excused[id]
    print(('%-10s %s'):format(id, where))
  end
end
print(('%d scenarios tested, %d do not apply'):format(counts.tested, counts.excused))
