-- You will learn: how a coroutine hands its place to another, and leaves nothing behind.

local coop = require 'coop'

-- Ten thousand bodies deep, but never more than one at a time: each is gone
-- before the next begins, and the last one's result is the result of the first.
local function factorial(n, mantissa, exponent)
  if n == 0 then return ('%.4fe+%d'):format(mantissa, exponent) end
  mantissa = mantissa * n
  while mantissa >= 10 do
    mantissa, exponent = mantissa / 10, exponent + 1
  end
  return coop.noreturn(factorial, n - 1, mantissa, exponent)
end

print('10000! = ' .. coop.await(coop.spawn(factorial, 10000, 1, 0)))

-- A process that swaps itself for another.
local function megabytes()
  collectgarbage()
  return collectgarbage 'count' // 1024 | 0
end

local before = megabytes()

local function second(greeting)
  print(('the second runs; the first left %d MB'):format(megabytes() - before))
  coop.await(coop.sleep(0.01))
  return greeting .. ' from the second'
end

local function first()
  local ballast = ('x'):rep(32 << 20)
  coop.await(coop.sleep(0.01))
  print(('the first holds %d MB of %d'):format(#ballast >> 20, megabytes() - before))
  return coop.noreturn(second, 'hello')
end

-- Whoever waits for the first never learns of the change.
local process = coop.spawn(first)
print('result: ' .. coop.await(process))
