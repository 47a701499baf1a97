-- Iterators of every kind as functions that give the next value, nil at the end.
local coop, core = ...

local function of_coroutine(co)
  local done = false
  return function()
    while not done do
      local ok, value = coroutine.resume(co)
      done = coroutine.status(co) == 'dead'
      if not ok then
        coroutine.close(co)
        error(value, 0)
      end
      if value ~= nil and not done then return value end
    end
  end
end

local function of_sequence(list)
  local i = 0
  return function()
    i = i + 1
    return list[i]
  end
end

--- A function that gives the next value of any iterator; misuse when `v` is none.
---@param fname string who asks
---@param n integer which argument it is
---@param v any
---@return fun(): any
function core.iterator(fname, n, v)
  core.check_iterator(fname, n, v)
  if type(v) == 'thread' then return of_coroutine(v) end
  if type(v) == 'table' and not core.callable(v) then return of_sequence(v) end
  return v
end

return coop
