-- Returns milliseconds or microseconds since the epoch as the text of a whole number. Lua's own conversion rounds from
-- 10^14 on, and %d takes no more than 31 bits on some machines.
local function digits(number) return ('%d%07d'):format(number / 1e7, number % 1e7) end
