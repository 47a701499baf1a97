-- You will learn: how heavy sums share one thread with requests that are answered on time.

local coop = require 'coop'

local start = coop.seconds()

local function log(...)
  print(('%.3f  %s'):format(coop.seconds() - start, string.format(...)))
end

-- How many values each sum has; give a million to keep a fast machine busy for longer.
local count = tonumber((...)) or 100000
local marks = { [count // 4] = '1/4', [count // 2] = '1/2', [count * 3 // 4] = '3/4' }

-- The values are made one at a time, as somebody asks for them.
local expensive = coop.generator(function(number)
  log('%s: starting', number)
  for value = 0, count - 1 do
    if marks[value] then log('%s: %s', number, marks[value]) end
    coop.yield(number * value / 3)
  end
end)

-- How far it has come is told on standard error: on a terminal by a line that is redrawn.
local function values_of(number)
  local progress = coop.progress(count, tostring(number))
  return coop.await(coop.batch_accumulate(1000, expensive(number), { progress = progress }))
end

local function sum(values)
  local total = 0
  for _, value in ipairs(values) do total = total + value end
  return total
end

-- The second pass works on what came out of the first.
local two_passes = coop.inline_callbacks(function(number)
  local first = sum(values_of(number))
  log('%s: first sum %.0f', number, first)

  local next_number = first // 1e9 | 0
  local second = sum(values_of(next_number))
  log('%s: second sum %.0f', number, second)
  return second
end)

-- Something from outside, to be answered the moment it comes.
local function request(number, delay)
  local due = coop.seconds() + delay
  return coop.sleep(delay):add_callback(function()
    log('request %d: answered %.1f ms late', number, (coop.seconds() - due) * 1000)
    return ('answer %d'):format(number)
  end)
end

local results = coop.await(coop.gather_results {
  two_passes(54.0), two_passes(42), two_passes(10), two_passes(34),
  request(1, 0.3), request(2, 0.5), request(3, 1.0),
})

log('all done')
for i, result in ipairs(results) do print(i, result) end
