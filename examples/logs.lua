-- You will learn: how to work through a large file in stages, with other things going on.
--     coop examples/logs.lua [a web server's log]

local coop = require 'coop'
local flow = require 'coop.flow'

-- Where there is no log, one is made up: a line in 7 tells of an error of the server.
local path = arg[1]
if not path then
  path = os.tmpname()
  local file <close> = assert(io.open(path, 'w'))
  local pages = { '/', '/news', '/search?q=lua', '/cart', '/help' }
  for i = 1, 50000 do
    local status = i % 7 == 0 and 500 + i % 4 or 200
    file:write(('10.0.0.%d "GET %s" %d %d\n'):format(i % 250, pages[i % 5 + 1], status, i))
  end
end

-- The file in blocks. However the flow ends, the file is closed.
local function blocks()
  local file <close> = assert(io.open(path))
  for block in file:lines(4096) do coroutine.yield(block) end
end

local lines = flow.LineBreak(blocks, { delimiter = '\n' })
local errors = flow.Filter(function(line) return line:find '" 5%d%d ' end, lines)
local pages = flow.Map(function(line) return line:match '"%u+ ([^"?]*)' end, errors)

-- Many values in, one out: how often each of them came.
local function tally()
  local counts = {}
  for page in pages do counts[page] = (counts[page] or 0) + 1 end
  coroutine.yield(counts)
end

-- Meanwhile a clock ticks. It is told how many ticks have passed since it was called last.
local ticks, missed = 0, 0
local clock = coop.LoopingCall.with_count(function(n)
  ticks = ticks + 1
  missed = missed + n - 1
end)
clock:start(0.02)

-- No block is read before the lines of the last one have been counted, and no line is
-- waited for: but as a task, the flow lets everybody else have a turn.
local counts = coop.await(flow.Deferred(tally))[1]
clock:stop()

local names = {}
for page in pairs(counts) do table.insert(names, page) end
table.sort(names)
for _, page in ipairs(names) do print(('%5d errors  %s'):format(counts[page], page)) end
print(('the clock ticked %d times and missed %d'):format(ticks, missed))

if not arg[1] then os.remove(path) end
