-- You will learn: how to have many jobs done, and never more than three at once.

local coop = require 'coop'
local http = require 'coop.http'

-- What the jobs ask takes its time to answer: here a server of squares.
local server = http.serve {
  handler = function(request, response)
    local number = tonumber(request.query.number)
    coop.await(coop.sleep(number < 3 and number * 0.03 or 0.09))
    response:write(tostring(number * number))
  end,
}

local outstanding, most

local function job(number)
  outstanding = outstanding + 1
  most = math.max(most, outstanding)
  print(('job %d starts, %d outstanding'):format(number, outstanding))

  local url = ('http://127.0.0.1:%d/?number=%d'):format(server.port, number)
  return http.get(url):add_callback(function(response)
    outstanding = outstanding - 1
    return response.body
  end)
end

-- First by hand: three tasks share one generator. Whoever is free takes the next
-- job from it, and no job exists before somebody takes it. (With a generator for
-- each task, every job would be done three times.)
print 'three tasks share the work'
outstanding, most = 0, 0

local work = coop.generator(function()
  for number = 1, 9 do coop.yield(job(number)) end
end)()

local tasks = {}
for i = 1, 3 do tasks[i] = coop.coiterate(work) end
coop.await(coop.gather_results(tasks))
print(('never more than %d'):format(most))

-- The same with coop.parallel, which keeps the results, in order.
print 'the same in parallel'
outstanding, most = 0, 0

local squares = coop.await(coop.parallel(3, { 1, 2, 3, 4, 5, 6, 7, 8, 9 }, job))
print(('never more than %d'):format(most))
print(table.concat(squares, ' '))

server:close()
