--- Other programs, which run beside the loop in a directory of their own.

local coop = require 'coop'

local M = {}

--- As a word for the shell.
function M.quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

--- All of a file, or nil.
function M.contents(path)
  local file <close> = io.open(path)
  return file and file:read 'a'
end

--- Writes a file and returns its path.
function M.write(path, text)
  local file <close> = assert(io.open(path, 'w'))
  assert(file:write(text))
  return path
end

--- Waits until f() is true, and returns that.
function M.eventually(f)
  for _ = 1, 2500 do
    local value = f()
    if value then return value end
    coop.await(coop.sleep(0.01))
  end
  error('it never came', 2)
end

--- A new directory; it is gone at the end of the block that it is a variable of. `path` is where.
function M.directory()
  local path = os.tmpname()
  assert(os.remove(path))
  assert(os.execute('mkdir -m 755 ' .. path))
  return setmetatable({ path = path }, {
    __close = function() os.execute('rm -rf ' .. M.quote(path)) end,
    __concat = function(self, name) return self.path .. name end,
  })
end

local Program = {}

--- What it has written so far, errors included.
function Program:output() return M.contents(self.out) or '' end

--- Waits for its end: what it wrote, and its exit status.
function Program:wait()
  local status = M.eventually(function()
    local text = M.contents(self.out .. '.status')
    return text and text:match '^(%d+)\n'
  end)
  local text = self:output()
  self.ended = true
  return text, math.tointeger(tonumber(status))
end

--- Waits until a pattern is found in what it writes: the first capture.
function Program:expect(pattern)
  local found = M.eventually(function()
    local found = self:output():match(pattern)
    return found or M.contents(self.out .. '.status') and 'ended'
  end)
  if found == 'ended' then
    found = self:output():match(pattern)
    if not found then error('it has ended:\n' .. self:output(), 2) end
  end
  return found
end

function Program:stop()
  if not self.ended then
    os.execute(('kill $(cat %s.pid) 2>/dev/null'):format(self.out))
    self.ended = true
  end
  os.execute(('rm -f %s %s.pid %s.status'):format(self.out, self.out, self.out))
end

--- Starts a command of the shell; it gets no input, and is stopped at the end of the block that
--- it is a variable of, or after half a minute.
function M.start(command)
  local out = os.tmpname()
  os.execute(([[{ timeout 30 sh -c %s >%s 2>&1 </dev/null & echo $! >%s.pid
    wait $!; echo $? >%s.status; } >/dev/null 2>&1 &]])
    :format(M.quote('exec ' .. command), out, out, out))
  return setmetatable({ out = out }, { __index = Program, __close = Program.stop })
end

--- Runs a command of the shell to its end: what it wrote, and its exit status.
function M.run(command)
  local program <close> = M.start(('sh -c ' .. M.quote(command)))
  return program:wait()
end

return M
