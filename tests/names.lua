--- Checks that every public name, of the modules as they are and of coop.h, is annotated and thus
--- in the reference, and that some test uses it; and that whatever is annotated is there. Run by
--- coop.

package.path = 'docs/?.lua;tests/?.lua;' .. package.path
local annotations = require 'annotations'
local public = require 'public'
local coop = require 'coop'

local problems, count = {}, 0
local function problem(...) problems[#problems + 1] = string.format(...) end

-- What is used by tests ---------------------------------------------------------------------------

local function text_of(pattern)
  local pipe = io.popen('cat ' .. pattern)
  local text = pipe:read 'a'
  pipe:close()
  return text
end

local function words_of(text)
  local words = {}
  for separator, name in text:gmatch '([.:]?)([%a_][%w_]*)' do words[separator .. name] = true end
  return words
end

local words = words_of(text_of 'tests/spec/*.lua tests/command/*.lua tests/c/*.c')

-- Comparing ---------------------------------------------------------------------------------------

local documented = {} -- module or class -> name -> true
local parents = {}

local function note(owner, name)
  documented[owner] = documented[owner] or {}
  documented[owner][name] = true
end

-- Is the name documented for the class, or for what it is one of, too?
local function is_documented(owner, name)
  while owner do
    if documented[owner] and documented[owner][name] then return true end
    owner = parents[owner]
  end
  return false
end

local function compare(owner, live, methods)
  for name in pairs(live) do
    count = count + 1
    if not is_documented(owner, name) then problem('undocumented: %s.%s', owner, name) end
    local used = words['.' .. name] or words[':' .. name]
      or owner == 'coop.errors' and words[name]
    if not used then
      problem('no test uses %s.%s', owner, name)
    end
  end
  for name in pairs(methods or {}) do
    if not live[name] then problem('documented, but not there: %s.%s', owner, name) end
  end
end

local functions = {} -- class -> names of its functions
local modules = annotations.read()
for _, module in ipairs(modules) do
  for _, entry in ipairs(module.entries) do
    if entry.class then
      if entry.parent then parents[entry.class] = entry.parent:match '^[%w_.]+' end
      for _, field in ipairs(entry.fields) do note(entry.class, field.name) end
    elseif entry.kind == 'function' then
      local owner, name = entry.owner.class, entry.name
      if name:find '.' then note(owner, (name:gsub('%..*', ''))) end
      note(owner, name)
      functions[owner] = functions[owner] or {}
      functions[owner][name] = true
    end
  end
end

local live = {}
for _, module in ipairs(modules) do
  local ok, there = pcall(require, module.name)
  if ok then live[module.name] = there end
end
for name, there in pairs(live) do
  local names = {}
  for member in pairs(functions[name] or {}) do names[member:gsub('%..*', '')] = true end
  compare(name, public.names_in(there), names)
end
compare('coop.errors', public.names_in(coop.errors), documented['coop.errors'])
compare('coop.ErrorClass', { is = true }, functions['coop.ErrorClass'])

local seen = { ['coop.ErrorClass'] = true }
for class, object in pairs(public.objects()) do
  seen[class] = true
  compare(class, public.methods_of(object), functions[class])
end
if not live['coop.testing'] then seen['coop.testing'], seen['coop.Autojump'] = true, true end
for class in pairs(functions) do
  if not seen[class] and not live[class] then
    problem('no object of %s was looked at', class)
  end
end

local in_header = {}
for _, entry in ipairs(annotations.read_header()) do
  if entry.kind == 'c' and entry.declaration:find '%(' and not entry.declaration:find 'typedef' then
    in_header[entry.name] = true
    count = count + 1
    if not words[entry.name] then problem('no test uses %s', entry.name) end
  end
end
local header = io.open('include/coop.h'):read 'a'
for name in header:gmatch '\nCOOP_API [^;(]-([%w_]+)%(' do
  if not in_header[name] then problem('undocumented: %s', name) end
end

table.sort(problems)
for _, text in ipairs(problems) do print(text) end
if #problems == 0 then print(count .. ' names are documented') end
io.stdout:flush()
os.exit(#problems == 0 and 0 or 1)
