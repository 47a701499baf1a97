--- Runs the code in the documentation and compares what it prints with what is written there, and
--- checks that what is public is documented.
---     lua5.4 tests/docs.lua [the directory of a build, build]
---
--- A block of `lua` is a script, run by the command; one of `sh` is run by sh; the block without a
--- language that follows is what it prints. Behind the language `file=NAME` only writes the file,
--- `run` runs it, too, and `status=N` is how it ends, 0 else; then standard error is compared as
--- well. All blocks of a document share a directory. The build is installed for them, so that they
--- run as they would for a reader.

local build = arg[1] or 'build'
local documents = { 'README.md', 'docs/guide.md', 'docs/reference.md' }

local passed, failed = 0, 0
local function check(name, problem)
  if problem then
    failed = failed + 1
    print(('not ok %s\n%s'):format(name, problem))
  else
    passed = passed + 1
  end
end

-- What a shell command writes to both outputs, and its status.
local function capture(command)
  local pipe = assert(io.popen('{ ' .. command .. '\n} 2>&1 </dev/null'))
  local text = pipe:read 'a'
  local _, _, status = pipe:close()
  return text, status
end

local root = capture 'mktemp -d':gsub('\n', '')

local function write(path, text)
  local file <close> = assert(io.open(path, 'w'))
  file:write(text)
end

-- Installs the build: the settings with which a shell finds all of it.
local function install()
  local prefix = root .. '/prefix'
  local text, status = capture(('cmake --install %s --prefix %s'):format(build, prefix))
  if status ~= 0 then error(text) end
  local libraries = capture(('dirname $(find %s -name libcoop.so)'):format(prefix)):gsub('\n', '')
  return table.concat({
    'export PATH=' .. prefix .. '/bin:"$PATH"',
    'export LD_LIBRARY_PATH=' .. libraries,
    'export PKG_CONFIG_PATH=' .. libraries .. '/pkgconfig',
    ("export LUA_CPATH='%s/lua/5.4/?.so;;' LUA_PATH='%s/share/lua/5.4/?.lua;;'")
      :format(libraries, prefix),
    'unset LUA_INIT NO_COLOR; export TERM=dumb',
  }, '\n')
end

-- The blocks of a document: {language=, options=, text=, line=, output=}.
local function blocks_of(path)
  local blocks, block, n = {}, nil, 0
  for line in io.lines(path) do
    n = n + 1
    local info = line:match '^```(.*)$'
    if block and info then
      block.text = table.concat(block, '\n') .. '\n'
      if block.language == '' then
        local last = blocks[#blocks]
        if last and not last.output then last.output = block.text end
      else
        blocks[#blocks + 1] = block
      end
      block = nil
    elseif info then
      block = { language = info:match '^%S*', options = {}, line = n }
      for name, value in info:gmatch '(%a+)=?(%S*)' do block.options[name] = value end
    elseif block then
      block[#block + 1] = line
    end
  end
  return blocks
end

local run = {}

function run.lua(block, directory)
  local name = block.options.file or 'example.lua'
  write(directory .. '/' .. name, block.text)
  if block.options.file and not block.options.run then return nil end
  return 'timeout 60 coop ' .. name
end

function run.c(block, directory)
  write(directory .. '/' .. assert(block.options.file), block.text)
end

function run.sh(block, directory)
  write(directory .. '/commands.sh', 'set -e\n' .. block.text)
  return 'timeout 60 sh commands.sh'
end

-- What is wrong with a block, or nil.
local function problem_of(block, directory, settings)
  local prepare = run[block.language]
  if not prepare then return 'nothing runs ' .. block.language end
  local command = prepare(block, directory)
  if not command then return nil end
  local text, status = capture(('cd %s\n%s\n%s'):format(directory, settings, command))
  local expected = tonumber(block.options.status or 0)
  if status ~= expected then return ('it ended with status %d\n%s'):format(status, text) end
  if text ~= (block.output or '') then
    return ('expected:\n%s\ngot:\n%s'):format(block.output or '', text)
  end
end

local settings = install()
for i, path in ipairs(documents) do
  local directory = ('%s/%d'):format(root, i)
  assert(os.execute('mkdir ' .. directory))
  for _, block in ipairs(blocks_of(path)) do
    check(('%s:%d'):format(path, block.line), problem_of(block, directory, settings))
  end
end

local text, status = capture 'lua5.4 docs/generate.lua --check'
check('docs/reference.md is up to date', status ~= 0 and text or nil)

-- Each line of what is wrong is a name.
text, status = capture(('%s/coop tests/names.lua'):format(build))
for line in text:gmatch '[^\n]+' do
  local count = line:match '^(%d+) names are documented$'
  if count then passed = passed + count else check(line, 'see tests/names.lua') end
end
if status ~= 0 and failed == 0 then check('tests/names.lua', 'status ' .. status) end

os.execute('rm -rf ' .. root)
print(('%d passed, %d failed'):format(passed, failed))
os.exit(failed == 0, true)
