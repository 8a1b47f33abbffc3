-- Integers as they are stored: decimal text, exact to 2^53 - 1.

local LAST_VERSION = '9007199254740991'

-- Lua's own conversion to text rounds from 10^14 on.
local function int(number) return string.format('%.0f', number) end

local function is_readable(field)
  return #field <= 16 and field:find('^[1-9]%d*$') and tonumber(field) <= tonumber(LAST_VERSION)
end
