-- The index of one owner. It holds each task id by creation time (microseconds), and '\255' .. id by expires_at
-- (milliseconds; FOREVER for a record that never expires). '\255' never occurs in UTF-8, so no task id begins with it.
-- The key expires with the longest-lived record, and not at all while one record never expires.
local FOREVER = '9000000000000'

-- Returns milliseconds or microseconds since the epoch as the text of a whole number. Lua's own conversion rounds from
-- 10^14 on, and %d takes no more than 31 bits on some machines.
local function digits(number) return ('%d%07d'):format(number / 1e7, number % 1e7) end

-- Returns the `count` members that expire last, with their scores.
local function longest_lived(idx, count)
  return redis.call('ZRANGE', idx, FOREVER, '-inf', 'BYSCORE', 'REV', 'LIMIT', '0', count, 'WITHSCORES')
end

-- Sets the expiry of the index to that of the record that expires at `last`; does nothing if `last` is 0 or FOREVER.
-- With `now` or an earlier time, PEXPIREAT would delete the index at once, a millisecond before the last record
-- expires. Therefore the time is at least `now + 1`.
local function set_expiry(idx, last, now)
  if last > 0 and last < tonumber(FOREVER) then
    redis.call('PEXPIREAT', idx, digits(math.max(last - 1, now + 1)))
  end
end
