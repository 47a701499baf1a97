--- What a thread runs to fill a stream. This part is loaded in the state of a worker, where there
--- is no coop.

local create, resume, status, close =
  coroutine.create, coroutine.resume, coroutine.status, coroutine.close

--- Emits what the coroutine yields until it ends or nobody wants more; returns what it returned.
--- A nil is a turn given up.
local function drain(emit, fail, co, ...)
  local ok, value, state, control, closing = resume(co, ...)
  while true do
    if not ok then
      pcall(fail, co, value) -- keeps the frames, which closing would lose
      close(co)
      error(value, 0)
    end
    if status(co) == 'dead' then return true, value, state, control, closing end
    if value ~= nil and not emit(value) then
      local closed, err = close(co)
      if not closed then error(err, 0) end
      return false
    end
    ok, value, state, control, closing = resume(co)
  end
end

-- Some hide their metatables, coop's own Generators among them.
local function callable(v)
  if type(v) == 'function' then return true end
  local meta = debug.getmetatable(v)
  return meta and rawget(meta, '__call') ~= nil
end

--- Emits what an iterator gives: a coroutine, the values of a generic for, or a list.
local function iterate(emit, fail, iterator, ...)
  if type(iterator) == 'thread' then
    drain(emit, fail, iterator)
  elseif callable(iterator) then
    for value in iterator, ... do
      if not emit(value) then return end
    end
  elseif type(iterator) == 'table' then
    for _, value in ipairs(iterator) do
      if not emit(value) then return end
    end
  else
    error('the function of a stream must yield, or return an iterator; it returned a '
      .. type(iterator), 0)
  end
end

--- Emits all that `f(...)` makes: what it yields, and then what the iterator gives that it returns.
return function(emit, fail, f, ...)
  local open, iterator, state, control, closing = drain(emit, fail, create(f), ...)
  if open and iterator ~= nil then iterate(emit, fail, iterator, state, control, closing) end
end
