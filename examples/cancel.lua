-- You will learn: how a coroutine ends when it is cancelled, and who cleans up first.

local coop = require 'coop'

-- A message takes a second to come, unless nobody wants it any more.
local function get_message()
  print 'getting a message'
  local arrival
  local message = coop.Deferred(function()
    print 'not waiting for the message any longer'
    arrival:cancel()
  end)
  arrival = coop.call_later(1, function() message:callback 'hello' end)
  return message
end

local process = coop.coroutine(function()
  local cleanup <close> = setmetatable({}, {
    __close = function() print 'the process cleans up' end,
  })
  while true do
    print('processing: ' .. coop.await(get_message()))
  end
end)

local running
coop.call_later(3, function()
  print 'cancel'
  running:cancel()
end)
running = process()
