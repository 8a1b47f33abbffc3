-- The index of one owner: `idx` holds each task id by creation time (microseconds), and '\255' with the task id, which
-- is no UTF-8 and so no task id, by expires_at (milliseconds; FOREVER for a record that never expires). The key expires
-- with the longest-lived record, and not at all while one never expires. Needs `call` and `now` before it.
local FOREVER = '9000000000000'

-- Whole milliseconds or microseconds since the epoch as text. Lua's own conversion rounds from 10^14 on, and %d
-- takes no more than 31 bits on some machines.
local function digits(number) return ('%d%07d'):format(number / 1e7, number % 1e7) end

-- The `count` members that expire last, with their scores.
local function latest(count)
  return call('ZRANGE', idx, FOREVER, '-inf', 'BYSCORE', 'REV', 'LIMIT', '0', count, 'WITHSCORES')
end

-- Makes the key expire at `last`, unless a record keeps it that never expires. `now + 1`, as a time that is not in the
-- future would delete the key at once, a millisecond before the last record goes.
local function settle(last)
  if last > 0 and last < tonumber(FOREVER) then
    call('PEXPIREAT', idx, digits(math.max(last - 1, now + 1)))
  end
end
