--- Installs coop, moves what was installed, and uses it there as strangers would; then the same
--- with the packages that can be made of it.
---     lua5.4 tests/install/run.lua [the build, build] [hosts]
--- With 'hosts', only the host programs are built and run: with a sanitized build, sanitized.

local build = arg[1] or 'build'
local only_hosts = arg[2] == 'hosts'
local sanitizer = build:match 'asan$' and '-fsanitize=address,undefined' or ''

local function capture(command)
  local pipe = assert(io.popen(command))
  local text = pipe:read 'a'
  return pipe:close(), text
end

local function line(command)
  local _, text = capture(command)
  return (text:gsub('\n$', ''))
end

local function read(path)
  local file <close> = assert(io.open(path))
  return file:read 'a'
end

local function write(path, text)
  local file <close> = assert(io.open(path, 'w'))
  file:write(text)
end

local here = line 'pwd'
local top = line 'mktemp -d'     -- all that is made here, but for the packages' builds
local prefix = top .. '/moved'

-- Running and comparing ---------------------------------------------------------------------------

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

-- Variables of the environment that find what stands in `root`, for lua5.4, ld.so and pkg-config.
local function environment(root)
  local lib = line(("dirname $(find '%s' -name libcoop.so.0)"):format(root))
  return table.concat({
    "LUA_PATH='" .. root .. "/share/lua/5.4/?.lua'",
    "LUA_CPATH='" .. lib .. "/lua/5.4/?.so;" .. top .. "/?.so'",
    "LD_LIBRARY_PATH='" .. lib .. "'",
    "PKG_CONFIG_PATH='" .. lib .. "/pkgconfig'",
  }, ' ')
end

-- Runs a shell command that must succeed: its output, both streams; a problem or nil.
local function run(command)
  local ok, text = capture(('(%s) 2>&1 </dev/null'):format(command))
  return text, not ok and command .. '\n' .. text or nil
end

local function succeeds(name, command) check(name, select(2, run(command))) end

local function same(expected, got)
  if got == expected then return end
  return ('expected: %s\n     got: %s'):format(expected, got)
end

local function gives(name, expected, command)
  local text, problem = run(command)
  check(name, problem or same(expected, text))
end

-- What can be done with an installed coop ---------------------------------------------------------

-- Waits, threads, and a server and its client, whose C module is found beside coop.
local script = top .. '/script.lua'
write(script, [[
local coop = require 'coop'
local function main()
  coop.await(coop.sleep(0.001))
  print(coop.await(require 'coop.threads'.call(function(n) return n + 1 end, 41)))
  local http = require 'coop.http'
  local server = http.serve { host = '127.0.0.1', port = 0, handler = function(request, response)
    response:write('served ' .. request.path)
  end }
  print(coop.await(http.get('http://127.0.0.1:' .. server.port .. '/here')).body)
  server:close()
end
if coop.reactor.running then coop.await(coop.spawn(main)) else coop.run(main) end
]])
local printed = '42\nserved /here\n'

local modules = { 'flow', 'net', 'http', 'threads', 'db', 'stage' }

local function use_command(what, command)
  gives(what .. ': the command runs a script', printed,
    ("cd / && env -i timeout 60 '%s' '%s'"):format(command, script))
end

local function use_lua(what, variables)
  gives(what .. ': lua5.4 runs a script', printed,
    ("cd / && env %s timeout 60 lua5.4 '%s'"):format(variables, script))
  for _, module in ipairs(modules) do
    gives(('%s: lua5.4 requires coop.%s first'):format(what, module), 'true\n',
      ([[cd / && env %s lua5.4 -e 'local m = require "coop.%s"; require "coop"
        print(type(m) == "table" and m == require "coop.%s")']]):format(variables, module, module))
  end
end

-- Hosts -------------------------------------------------------------------------------------------

local hosts = { 'host', 'frames', 'own_loop', 'glib_host', 'host_cpp' }

local function masked(text)
  return (text:gsub('%d+%.%d+ ms', 'N ms'):gsub('frames: %d+', 'frames: N'))
end

local function compare_host(name, program)
  local text, problem = run(("cd / && timeout 60 '%s'"):format(program))
  local expected = read('examples/expected/hosts/' .. name .. '.txt')
  check('host: ' .. name, problem or same(masked(expected), masked(text)))
end

-- As a project of its own, which gets coop by find_package.
local function build_hosts()
  succeeds('hosts build with find_package', table.concat({
    "cmake -S examples/hosts -B '" .. top .. "/hosts' -DCMAKE_BUILD_TYPE=RelWithDebInfo",
    "-DCMAKE_PREFIX_PATH='" .. prefix .. "'",
    "-DCMAKE_C_FLAGS='-Wall -Wextra -Werror " .. sanitizer .. "'",
    "-DCMAKE_CXX_FLAGS='-Wall -Wextra -Werror " .. sanitizer .. "'",
    "&& cmake --build '" .. top .. "/hosts' --parallel 2",
  }, ' '))
  for _, name in ipairs(hosts) do compare_host(name, top .. '/hosts/' .. name) end
end

local function compile(what, source, options, output)
  succeeds(what, table.concat({
    'cc -Wall -Wextra -Werror', source, options, "-o '" .. output .. "'",
    '$(env ' .. environment(prefix) .. ' pkg-config --cflags --libs coop)',
  }, ' '))
end

-- With pkg-config and cc alone.
local function compile_host()
  compile('a host builds with pkg-config', 'examples/hosts/host.c',
    "-Wl,-rpath,'" .. prefix .. "/lib'", top .. '/alone')
  compare_host('host', top .. '/alone')
end

-- A C module that is linked to the library has the coop that the script has.
local function load_module()
  compile('a C module builds', 'tests/install/module.c', '-shared -fPIC', top .. '/later.so')
  local statement = [[-e 'local coop = require "coop"; local later = require "later"
    local function main() return coop.await(later("at last")) end
    if coop.reactor.running then print(main()) else print(coop.run(main)) end']]
  local variables = environment(prefix)
  for _, interpreter in ipairs { 'lua5.4', prefix .. '/bin/coop' } do
    gives('a C module under ' .. interpreter:match '[^/]+$', 'at last\n',
      ('cd / && env %s %s %s'):format(variables, interpreter, statement))
  end
end

-- The installed tree ------------------------------------------------------------------------------

local in_place = {
  'bin/coop', 'include/coop.h', 'lib/libcoop.a', 'lib/libcoop.so', 'lib/libcoop.so.0',
  'lib/cmake/coop/coopConfig.cmake', 'lib/pkgconfig/coop.pc', 'lib/lua/5.4/coop.so',
  'lib/lua/5.4/coop_http.so', 'lib/lua/5.4/coop_prompt.so',
  'share/lua/5.4/coop/flow.lua', 'share/man/man1/coop.1',
  'share/bash-completion/completions/coop', 'share/zsh/site-functions/_coop',
  'share/fish/vendor_completions.d/coop.fish', 'share/doc/coop/README.md',
}

local function install()
  succeeds('cmake --install', ("cmake --install '%s' --prefix '%s/first' && mv '%s/first' '%s'")
    :format(build, top, top, prefix))
end

local function look_at_files()
  for _, path in ipairs(in_place) do
    succeeds('installed: ' .. path, ("test -s '%s/%s'"):format(prefix, path))
  end
  gives('the name of the library has its ABI version', 'libcoop.so.0\n',
    ([[readelf -d '%s/lib/libcoop.so' | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p']]):format(prefix))
  gives('no text tells of where it was built or installed first', '',
    ("! grep -rlI -e '%s/first' -e '%s/%s' '%s'"):format(top, here, build, prefix))
  gives('pkg-config knows the version', line(build .. '/coop -v'):match '^coop (%S+)' .. '\n',
    ('env %s pkg-config --modversion coop'):format(environment(prefix)))
  gives('the manual page is in order', '',
    ("mandoc -Tlint '%s/share/man/man1/coop.1'"):format(prefix))
  gives('bash completes an option', '--help\n', ([[bash -c '
    source "%s/share/bash-completion/completions/coop"
    COMP_WORDS=(coop --he) COMP_CWORD=1
    _coop coop --he coop
    echo "${COMPREPLY[*]}"']]):format(prefix))
end

-- Packages ----------------------------------------------------------------------------------------

local function try_debian()
  local folder = build .. '-package'
  succeeds('a Debian package', table.concat({
    "cmake -S . -B '" .. folder .. "' -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/usr",
    "-DCOOP_TESTS=OFF && cmake --build '" .. folder .. "' --parallel 2",
    "&& cd '" .. folder .. "' && rm -f *.deb && cpack -G DEB",
  }, ' '))
  local package = line(('ls %s/coop_*.deb'):format(folder))
  local depends = line(("dpkg-deb -f '%s' Depends"):format(package))
  for _, needed in ipairs { 'libc6', 'liblua5.4-0', 'libuv1', 'libcurl4' } do
    check('the Debian package depends on ' .. needed,
      not (', ' .. depends):find(', ' .. needed .. ' (>= ', 1, true) and depends or nil)
  end
  succeeds('the Debian package is unpacked', ("dpkg-deb -x '%s' '%s/deb'"):format(package, top))
  use_command('Debian package', top .. '/deb/usr/bin/coop')
  use_lua('Debian package', environment(top .. '/deb/usr'))
end

local function try_rock()
  local tree = top .. '/rock'
  succeeds('a rock', ("luarocks --lua-version 5.4 --tree '%s' make"):format(tree))
  use_command('rock', tree .. '/bin/coop')
  use_lua('rock', ("LUA_PATH='%s/share/lua/5.4/?.lua' LUA_CPATH='%s/lib/lua/5.4/?.so'")
    :format(tree, tree))
end

install()
build_hosts()
if not only_hosts then
  compile_host()
  load_module()
  look_at_files()
  use_command('moved', prefix .. '/bin/coop')
  use_lua('moved', environment(prefix))
  try_debian()
  try_rock()
end
os.execute(("rm -rf '%s'"):format(top))
print(('%d passed, %d failed'):format(passed, failed))
os.exit(failed == 0, true)
