--- Writes docs/reference.md out of docs/meta and include/coop.h.
---     lua5.4 docs/generate.lua           writes it
---     lua5.4 docs/generate.lua --check   tells whether it is up to date

package.path = 'docs/?.lua;' .. package.path
local annotations = require 'annotations'

local out = {}
local function put(text, ...) out[#out + 1] = select('#', ...) > 0 and text:format(...) or text end
local function put_text(lines)
  if #lines == 0 then return end
  put(table.concat(lines, '\n'))
  put ''
end

-- Class names are told without the module that they are in.
local function short(of_type) return (of_type:gsub('coop%.([%w_.]*)', '%1')) end

local function variable_of(entry)
  if not entry.method then return entry.owner.class end
  return short(entry.owner.class):gsub('^.*%.', '')
end

local function signature(entry)
  local text, closing = '', ''
  for i, param in ipairs(entry.params) do
    local separator = i > 1 and ', ' or ''
    if param.optional then
      text = text .. (i > 1 and ' [' or '[') .. separator .. param.name
      closing = closing .. ']'
    else
      text = text .. closing .. separator .. param.name
      closing = ''
    end
  end
  return ('%s%s%s(%s%s)'):format(variable_of(entry), entry.method and ':' or '.', entry.name, text,
    closing)
end

local function put_list(items)
  for _, item in ipairs(items) do
    local note = item.note and ' – ' .. item.note or ''
    put('- `%s`: `%s`%s', item.name .. (item.optional and '?' or ''), short(item.type), note)
  end
  if #items > 0 then put '' end
end

-- Parameters that say nothing but that they are any values need not be listed.
local function telling(params)
  local list = {}
  for _, param in ipairs(params) do
    if param.type ~= 'any' or param.note then list[#list + 1] = param end
  end
  return list
end

local function put_function(entry)
  put('#### `%s`\n', signature(entry))
  put_text(entry.text)
  put_list(telling(entry.params))
  for _, result in ipairs(entry.returns) do
    put('Returns `%s`%s\n', short(result.type), result.note and ': ' .. result.note or '')
  end
  if entry.async then put 'To be called in what coop runs, for it may wait.\n' end
end

local function put_class(entry)
  if #entry.text == 0 and #entry.fields == 0 then return end
  local name = short(entry.shown)
  if name:find '^%l' then name = entry.shown end
  put('#### %s\n', name:gsub('<', '\\<'))
  put_text(entry.text)
  if entry.parent then put('It is a `%s`, too.\n', short(entry.parent)) end
  put_list(entry.fields)
end

local function put_alias(entry)
  put('#### %s\n', short(entry.shown):gsub('<', '\\<'))
  put_text(entry.text)
  put('`%s`\n', short(entry.type))
end

local function put_heading(entry)
  put('### %s\n', entry.title)
  put_text(entry.text)
end

local kinds = {
  heading = put_heading, class = put_class, alias = put_alias, ['function'] = put_function,
}

local function put_module(module)
  put('## `%s`\n', module.name)
  for _, entry in ipairs(module.entries) do
    if entry.class == module.name then
      put_text(entry.text)
      put_list(entry.fields)
    end
  end
  for _, entry in ipairs(module.entries) do
    if entry.class ~= module.name then kinds[entry.kind](entry) end
  end
end

local function put_header()
  put '## `coop.h`\n'
  put 'Effects on the stack are in the notation of the Lua manual: [-popped, +pushed, raises].\n'
  for _, entry in ipairs(annotations.read_header()) do
    if entry.kind == 'heading' then
      put('### %s\n', (entry.title:gsub('^%l', string.upper)))
      if entry.text then put(entry.text .. '\n') end
    else
      put('#### %s\n', entry.name)
      put('`%s`\n', entry.declaration)
      put(entry.text .. '\n')
    end
  end
end

local function reference()
  put '# Reference\n'
  put 'Made of docs/meta and include/coop.h by docs/generate.lua; not to be edited.\n'
  local modules = annotations.read()
  for _, module in ipairs(modules) do
    put('- [`%s`](#%s)', module.name, (module.name:gsub('%.', '')))
  end
  put '- [`coop.h`](#cooph)\n'
  for _, module in ipairs(modules) do put_module(module) end
  put_header()
  return (table.concat(out, '\n'):gsub('\n\n+', '\n\n'):gsub('%s+$', '\n'))
end

local path = 'docs/reference.md'
local text = reference()
if arg[1] == '--check' then
  local file = io.open(path)
  local old = file and file:read 'a'
  if old ~= text then
    io.stderr:write(path, ' is not up to date: lua5.4 docs/generate.lua writes it\n')
    os.exit(1)
  end
else
  local file <close> = assert(io.open(path, 'w'))
  file:write(text)
end
