-- Progress: how far several tasks have come, a line for each on a terminal.
--
-- What is under way is in `shown`, in the order of its making. The lines stand below all other
-- output and are drawn anew by a timer that does not keep the loop alive, so that reporting costs
-- an addition, and following the values of a task nothing at all: they are counted when the line
-- is drawn. Where there is no terminal a line is written at each quarter of the way.
local coop, core = ...

local INTERVAL = 0.1 -- seconds between drawings
local BAR = 24       -- columns of a bar
local QUARTERS = 4

local shown = {}

---@class coop.Progress
---@field done integer how far it has come
---@field total integer? how far it goes, if that is known
---@field label string
local Progress = {}

-- Text --------------------------------------------------------------------------------------------

-- At most `columns` characters of the text, which is perhaps not UTF-8.
local function cut(text, columns)
  local ok, past = pcall(utf8.offset, text, columns + 1)
  if not ok or not utf8.len(text) then return text:sub(1, columns) end
  return past and text:sub(1, past - 1) or text
end

-- The fields are the script's to set: what says nothing counts as nothing.
local function mend(self)
  if not core.is_number(self.done) then self.done = 0 end
  local total = self.total
  if total ~= nil and not (core.is_number(total) and total > 0) then self.total = nil end
  if type(self.label) ~= 'string' then self.label = core.text(self.label) end
end

local function share(self)
  return self.total and math.max(math.min(self.done / self.total, 1), 0)
end

local function figures(self)
  if not self.total then return ('%s'):format(self.done) end
  return ('%3d%%  %s/%s'):format(share(self) * 100 // 1 | 0, self.done, self.total)
end

local function plain_line(self)
  mend(self)
  local text = self.total
    and ('%d%% (%s of %s)'):format(share(self) * 100 // 1 | 0, self.done, self.total)
    or ('%s'):format(self.done)
  return ('%s: %s'):format(self.label, text)
end

local function bar(self, coloured)
  local full = math.floor(share(self) * BAR)
  local done, rest = ('#'):rep(full), ('-'):rep(BAR - full)
  if coloured then done = '\27[32m' .. done .. '\27[0m' end
  return '[' .. done .. rest .. ']  '
end

local function line_of(self, columns, width)
  mend(self)
  local label = cut(self.label, math.max(columns - BAR - 36, 8))
  label = label .. (' '):rep(width - (utf8.len(label) or #label)) .. '  '
  local text = figures(self)
  local room = columns - 1 - (utf8.len(label) or #label) - #text
  local graph = self.total and room >= BAR + 4 and bar(self, core.colours(2)) or ''
  return label .. graph .. text
end

-- Drawing -----------------------------------------------------------------------------------------

-- How many columns there are to draw lines on; nil where lines are not redrawn.
local function terminal()
  return os.getenv 'TERM' ~= 'dumb' and core.terminal(2)
end

local function label_width(columns)
  local width = 0
  for _, self in ipairs(shown) do
    mend(self)
    local label = cut(self.label, math.max(columns - BAR - 36, 8))
    width = math.max(width, utf8.len(label) or #label)
  end
  return width
end

-- Draws the lines, if they can be drawn: not where a prompt stands.
local function draw()
  local columns = terminal()
  if not columns then return false end
  local lines, width = {}, label_width(columns)
  for i, self in ipairs(shown) do lines[i] = line_of(self, columns, width) end
  return core.paint(#lines > 0 and table.concat(lines, '\n') or nil) or #lines == 0
end

local function write_line(text)
  io.stdout:flush()
  io.stderr:write(text, '\n')
  io.stderr:flush()
end

-- Writes a line when another quarter of the way is behind it.
local function write_quarter(self)
  local part = share(self)
  local quarter = part and part * QUARTERS // 1
  if not quarter or quarter <= self._quarter or quarter >= QUARTERS then return end
  self._quarter = quarter
  write_line(plain_line(self))
end

-- Counts the values that its tasks have got since.
local function count(self)
  mend(self)
  for values, before in next, self._followed do
    local now = #values
    self.done = self.done + now - before
    self._followed[values] = now
  end
end

local function update()
  for _, self in ipairs(shown) do count(self) end
  if draw() then return end
  for _, self in ipairs(shown) do write_quarter(self) end
end

local function show(self)
  if self._shown then return end
  self._shown = true
  shown[#shown + 1] = self
  if #shown == 1 then core.every(INTERVAL, update) end
  draw()
end

local function check(fname, self)
  if coop.type(self) ~= 'Progress' then core.check(fname, 0, 'Progress', self) end
end

local function advance(self, n)
  mend(self)
  self.done = self.done + n
  if not self._shown then return end
  if self.total and self.done >= self.total and next(self._followed) == nil then
    self:finish()
  elseif not terminal() then
    write_quarter(self)
  end
end

-- What it does ------------------------------------------------------------------------------------

--- Tells of `n` more, of one when that is left out. With the last of `total` it is finished.
---@param n? integer
function Progress:advance(n)
  check('advance', self)
  if n == nil then n = 1 end
  local exact = type(n) == 'number' and math.tointeger(n)
  if not exact or exact < 0 then core.check('advance', 1, 'integer of at least 0', n) end
  advance(self, exact)
end

--- Takes its line away from those that are redrawn: it stays where it is, and the others go on
--- below it. Does nothing when it has been finished before.
function Progress:finish()
  check('finish', self)
  if not self._shown then return end
  count(self)
  local columns = terminal()
  local width = columns and label_width(columns)
  self._shown, self._followed = false, {}
  for i, other in ipairs(shown) do
    if other == self then
      table.remove(shown, i)
      break
    end
  end
  if #shown == 0 then core.every() end
  if columns then core.end_line() end
  if columns and draw() then
    write_line(line_of(self, columns, width))
  else
    write_line(plain_line(self))
  end
end

local new_progress = core.class('Progress', Progress, {
  __call = function(self, v)
    advance(self, 1)
    return v
  end,
  __close = function(self) self:finish() end,
  __tostring = plain_line,
})

--- Shows how far something has come: a line on standard error, which tells `label`, and, if `total`
--- is given, which part of it is done. On a terminal all lines stand below the other output and are
--- redrawn together; elsewhere a line is written at each quarter of the way, and at the end.
---
--- Several tasks may advance the same one. `coop.accumulate`, `coop.batch_accumulate` and
--- `flow.Deferred` report the values they get to the one that is given as `{progress = p}`. Called
--- with a value it counts one and returns the value: `flow.Map(p, stage)`. A to-be-closed variable
--- finishes it at the end of the block.
---@param total? integer
---@param label? string
---@return coop.Progress
function core.new_progress(total, label)
  if total ~= nil then
    local exact = type(total) == 'number' and math.tointeger(total)
    if not exact or exact < 1 then core.check('progress', 1, 'integer of at least 1', total) end
    total = exact
  end
  if label ~= nil and type(label) ~= 'string' then core.check('progress', 2, 'string', label) end
  local self = new_progress {
    done = 0, total = total, label = label or 'progress', _followed = {}, _quarter = 0,
  }
  show(self)
  return self
end

--- core.follow(p, values, d): counts what is stored in the list until `d` has fired. It is finished
--- with the last of them, or, when its total is not known, with the last that it follows.
function core.follow(self, values, d)
  self._followed[values] = #values
  show(self)
  d:add_both(function(result)
    local before = self._followed[values]
    if not before then return result end
    mend(self)
    self.done = self.done + #values - before
    self._followed[values] = nil
    local all = next(self._followed) == nil
    if all and (not self.total or self.done >= self.total or coop.type(result) == 'Failure') then
      self:finish()
    end
    return result
  end)
end
