// host.cpp - a C++ program: states that close themselves, and calls from any thread.
//
// Two scripts, each in a state and a thread of its own, add up what the main thread
// posts to them. Their threads wait in poll(2), where a host might watch more.
#include <coop.h>
#include <lua.hpp>
#include <poll.h>

#include <cmath>
#include <functional>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

namespace {

const char script[] = R"lua(
  local coop = require 'coop'
  inbox = coop.DeferredQueue()
  local sum = 0
  repeat
    local n = coop.await(inbox:get())
    sum = sum + n
  until n == 0
  return sum
)lua";

// A Lua state with coop and a running script in it. One thread at a time uses it.
class Script {
public:
  Script() : state(luaL_newstate(), lua_close) {
    lua_State *L = state.get();
    luaL_openlibs(L);
    context = coop_open(L, nullptr);
    if (!context || luaL_loadstring(L, script) != LUA_OK ||
        coop_spawn(L, 0) != LUA_OK)
      throw std::runtime_error(lua_tostring(L, -1));
    coop_deferred_watch(L, -1, ended, this);
    lua_pop(L, 1);
  }

  // Hands a number to the script. From any thread.
  void put(int n) {
    post([n](lua_State *L) {
      lua_getglobal(L, "inbox");
      lua_getfield(L, -1, "put");
      lua_insert(L, -2);
      lua_pushinteger(L, n);
      lua_pcall(L, 2, 0, 0); // no Lua error passes through frames of C++
    });
  }

  // Runs the script to its end; its result.
  std::string run() {
    while (coop_poll(context, 0.01), result.empty()) {
      pollfd descriptor{coop_backend_fd(context), POLLIN, 0};
      double seconds = coop_backend_timeout(context);
      poll(&descriptor, 1, seconds < 0 ? -1 : int(std::ceil(seconds * 1000)));
    }
    return result;
  }

private:
  using Call = std::function<void(lua_State *)>;

  void post(Call call) {
    auto posted = std::make_unique<Call>(std::move(call));
    if (coop_post(context, run_posted, posted.get()) == 0) posted.release();
  }

  static void run_posted(lua_State *L, void *call) {
    std::unique_ptr<Call> posted(static_cast<Call *>(call));
    (*posted)(L);
  }

  static void ended(lua_State *L, int, void *self) {
    static_cast<Script *>(self)->result = luaL_tolstring(L, 1, nullptr);
  }

  std::unique_ptr<lua_State, decltype(&lua_close)> state; // closes coop as well
  coop_context *context;
  std::string result;
};

} // namespace

int main() {
  Script odd, even;
  std::string odd_sum, even_sum;
  std::thread first([&] { odd_sum = odd.run(); });
  std::thread second([&] { even_sum = even.run(); });
  for (int n = 1; n <= 1000; n++) (n % 2 ? odd : even).put(n);
  odd.put(0);
  even.put(0);
  first.join();
  second.join();
  std::cout << "odd numbers: " << odd_sum << "\neven numbers: " << even_sum << "\n";
}
