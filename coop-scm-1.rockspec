rockspec_format = '3.0'
package = 'coop'
version = 'scm-1'
source = { url = '.' } -- for luarocks make, in a clone
description = {
  summary = 'A cooperative scheduler on libuv',
  detailed = [[
    Many functions of a script share one thread: each runs until it waits for something, and then
    another has its turn. With timers, sockets, HTTP, threads and databases to wait for.]],
}
supported_platforms = { 'unix' }
dependencies = { 'lua ~> 5.4' }
external_dependencies = {
  LIBUV = { header = 'uv.h' },
}
build = {
  type = 'command',
  build_command = 'cmake -S . -B build-rock -DCMAKE_BUILD_TYPE=Release -DCOOP_TESTS=OFF'
    .. ' && cmake --build build-rock --parallel 4',
  install_command = 'cmake --install build-rock --component rock --prefix "$(PREFIX)"',
}
