--- Reads annotations: the files in docs/meta, for lua-language-server, and include/coop.h.
---
--- What is read is a list of entries in their order: headings, classes, aliases and functions. An
--- annotation that is not as it should be raises an error with its place: a type that cannot be
--- parsed or names nothing, a parameter without a @param, or a @param without a parameter.

local M = {}

--- The files, in the order of the reference.
M.files = {
  'coop', 'coop/flow', 'coop/net', 'coop/http', 'coop/threads', 'coop/db', 'coop/testing',
}

-- Types -------------------------------------------------------------------------------------------

local BUILTIN = {}
for name in ([[any nil boolean string number integer function table thread userdata true false
  self]]):gmatch '%a+' do BUILTIN[name] = true end

-- Parses the type at the beginning of `text`: where it ends, and the names in it go to `names`.
local function parse_type(text, names)
  local at = 1
  local parse_union

  local function skip() at = text:match('^[ ]*()', at) end
  local function take(pattern)
    local found, past = text:match('^(' .. pattern .. ')()', at)
    if found then at = past end
    return found
  end
  local function need(pattern, what)
    skip()
    return take(pattern) or error(('%s expected at "%s"'):format(what, text:sub(at)), 0)
  end

  -- name: type, ... to the closing character
  local function parse_fields(close)
    skip()
    while not take(close) do
      if not take '%.%.%.' then
        if take '%[' then
          parse_union()
          need('%]', ']')
        else
          need('[%a_][%w_]*', 'name')
        end
        take '%?'
      end
      skip()
      if take ':' then parse_union() end
      skip()
      if not take ',' then
        need(close, close)
        return
      end
      skip()
    end
  end

  local function parse_function()
    if not take '%(' then return end
    parse_fields '%)'
    if not take ':' then return end
    parse_union()
    while text:match('^, ', at) do
      take ','
      parse_union()
    end
  end

  local function parse_primary()
    skip()
    take 'async '
    if take 'fun%f[^%w_]' then return parse_function() end
    if take '%(' then
      parse_union()
      need('%)', ')')
    elseif take '{' then
      parse_fields '}'
    elseif not (take '%.%.%.' or take "'[^']*'" or take '"[^"]*"' or take '%d+') then
      local name = need('[%a_][%w_.]*', 'type')
      names[#names + 1] = name
      if take '<' then
        repeat parse_union() until not take ','
        need('>', '>')
      end
    end
  end

  function parse_union()
    repeat
      parse_primary()
      while take '%[%]' or take '%?' do end
    until not take '|'
  end

  parse_union()
  return at
end

-- A type and the text behind it.
local function split_type(text, names)
  local past = parse_type(text, names)
  local note = text:sub(past):gsub('^%s*#?%s*', '')
  return text:sub(1, past - 1), note ~= '' and note or nil
end

-- Blocks ------------------------------------------------------------------------------------------

local function name_and_generics(text)
  local name, generics, rest = text:match '^([%w_.]+)(%b<>)%s*(.*)$'
  if name then return name, generics, rest end
  name, rest = text:match '^([%w_.]+)%s*(.*)$'
  return name, '', rest
end

local function add_names(list, text)
  for name in text:gmatch '[%a_][%w_]*' do list[#list + 1] = name end
end

local tags = {}

function tags.param(block, text)
  local name, optional, rest = text:match '^([%w_.]+)(%??)%s+(.*)$'
  if not name then error('@param without a name and type', 0) end
  local of_type, note = split_type(rest, block.names)
  local param = { name = name, optional = optional == '?', type = of_type, note = note }
  table.insert(block.params, param)
end

tags['return'] = function(block, text)
  local of_type, note = split_type(text, block.names)
  if note == '...' then of_type, note = of_type .. '...', nil end
  table.insert(block.returns, { type = of_type, note = note })
end

function tags.field(block, text)
  local name, optional, rest = text:match '^([%w_]+)(%??)%s+(.*)$'
  if not name then error('@field without a name and type', 0) end
  local of_type, note = split_type(rest, block.names)
  local field = { name = name, optional = optional == '?', type = of_type, note = note }
  table.insert(block.fields, field)
end

function tags.generic(block, text) add_names(block.generics, text:gsub(':.*', '')) end

function tags.class(block, text)
  local name, generics, rest = name_and_generics(text)
  block.class, block.shown = name, name .. generics
  add_names(block.generics, generics)
  local parent = rest:match '^:%s*(.+)$'
  if parent then block.parent = split_type(parent, block.names) end
end

function tags.alias(block, text)
  local name, generics, rest = name_and_generics(text)
  block.alias, block.shown = name, name .. generics
  add_names(block.generics, generics)
  block.type = split_type(rest, block.names)
end

function tags.overload(block, text) block.overload = split_type(text, block.names) end
function tags.async(block) block.async = true end
function tags.meta() end
function tags.diagnostic() end

local function new_block()
  return { text = {}, params = {}, returns = {}, fields = {}, generics = {}, names = {} }
end

local function add_line(block, line)
  local tag, rest = line:match '^@(%a+)%s*(.*)$'
  if not tag then
    table.insert(block.text, line)
  elseif tags[tag] then
    tags[tag](block, rest)
  else
    error('unknown tag @' .. tag, 0)
  end
end

-- A function's parameters are those of its annotations.
local function check_params(block, parameters)
  local given = {}
  for name in parameters:gmatch '[^%s,]+' do given[#given + 1] = name end
  for i = 1, math.max(#given, #block.params) do
    local annotated = block.params[i] and block.params[i].name
    if given[i] ~= annotated then
      error(('parameter %s, @param %s'):format(given[i] or 'none', annotated or 'none'), 0)
    end
  end
end

-- Files -------------------------------------------------------------------------------------------

-- Reads a file of docs/meta: its entries are added to the list.
local function read_meta(path, entries)
  local block, prose
  local variables = {} -- local name -> its class
  local function one_line(line)
    local heading = line:match '^%-%- # (.*)$'
    if heading then
      prose = { kind = 'heading', title = heading, text = {} }
      table.insert(entries, prose)
    elseif line:find '^%-%-%-' then
      block = block or new_block()
      add_line(block, line:sub(4))
    elseif line:find '^%-%-' then
      if prose then table.insert(prose.text, (line:gsub('^%-%- ?', ''))) end
    else
      if block and (block.class or block.alias) then
        block.kind = block.class and 'class' or 'alias'
        local variable = line:match '^local ([%w_]+) = {}$'
        if variable then variables[variable] = block end
        table.insert(entries, block)
        block = nil
      end
      local variable, separator, name, parameters =
        line:match '^function ([%w_]+)([.:])([%w_.]+)%((.-)%) end$'
      if variable then
        block = block or new_block()
        check_params(block, parameters)
        block.kind, block.name, block.method = 'function', name, separator == ':'
        block.owner = variables[variable] or error(variable .. ' is no class', 0)
        block.variable = variable
        table.insert(entries, block)
        block = nil
      end
      prose = nil
    end
  end
  local n = 0
  for line in io.lines(path) do
    n = n + 1
    local ok, err = pcall(one_line, line)
    if not ok then error(('%s:%d: %s'):format(path, n, err), 0) end
    local last = entries[#entries]
    if last and not last.place then last.place = path .. ':' .. n end
  end
end

-- Every name in a type is one of something.
local function check_names(modules)
  local known = {}
  for _, module in ipairs(modules) do
    for _, entry in ipairs(module.entries) do
      local name = entry.class or entry.alias
      if name then
        if known[name] then error(('%s: %s is declared twice'):format(entry.place, name), 0) end
        known[name] = true
      end
    end
  end
  for _, module in ipairs(modules) do
    for _, entry in ipairs(module.entries) do
      local generic = {}
      for _, name in ipairs(entry.generics or {}) do generic[name] = true end
      for _, name in ipairs(entry.owner and entry.owner.generics or {}) do generic[name] = true end
      for _, name in ipairs(entry.names or {}) do
        if not (known[name] or generic[name] or BUILTIN[name]) then
          error(('%s: there is no type %s'):format(entry.place, name), 0)
        end
      end
    end
  end
end

--- The annotations of all modules: a list of {name = 'coop.flow', entries = {...}}.
function M.read()
  local modules = {}
  for _, file in ipairs(M.files) do
    local module = { name = file:gsub('/', '.'), entries = {} }
    read_meta('docs/meta/' .. file .. '.lua', module.entries)
    table.insert(modules, module)
  end
  check_names(modules)
  return modules
end

-- The text of a comment in C, its lines joined but for those of lists, which are indented further.
local function comment_text(comment)
  local lines, listing = {}, false
  for line in comment:gmatch '[^\n]+' do
    local indent, text = line:match '^(%s*)(.*)$'
    local ends = listing and #indent <= 3
    listing = text:find '^%- ' ~= nil or listing and not ends
    if ends and not listing then lines[#lines + 1] = '' end
    if #lines == 0 or ends or text:find '^%- ' then
      lines[#lines + 1] = text
    else
      lines[#lines] = lines[#lines] .. ' ' .. text
    end
  end
  return table.concat(lines, '\n')
end

--- What include/coop.h declares: headings and {kind = 'c', name=, declaration=, text=}.
function M.read_header()
  local file <close> = assert(io.open 'include/coop.h')
  local source = file:read 'a'
  local entries = {}
  local at = source:find('extern "C"', 1, true)
  while true do
    local comment, past = source:match('/%*%s*(.-)%s*%*/\n()', at)
    if not comment then return entries end
    at = past
    local heading = comment:match '^%-%-%- (.-) %-+$'
    local declaration = not heading and source:match('^([^\n].-;)\n\n', at)
    if heading then
      entries[#entries + 1] = { kind = 'heading', title = heading }
    elseif declaration then
      declaration = declaration:gsub('COOP_API ', ''):gsub('%s+', ' ')
      local name = declaration:find '^typedef' and declaration:match '%(%*([%w_]+)%)%('
        or declaration:match '([%w_]+)%(' or declaration:match '([%w_]+);$'
      entries[#entries + 1] = {
        kind = 'c', name = name, declaration = declaration, text = comment_text(comment),
      }
    elseif entries[#entries] and entries[#entries].kind == 'heading' then
      entries[#entries].text = comment_text(comment)
    end
  end
end

return M
