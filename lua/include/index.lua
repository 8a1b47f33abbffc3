-- @include digits

-- The index of one owner. It holds each task id by creation time (microseconds), and '\255' .. id by expires_at
-- (milliseconds; FOREVER for a record that never expires). '\255' never occurs in UTF-8, so no task id begins with it.
-- The key expires with the longest-lived record, and not at all while one record never expires.
local FOREVER = '9000000000000'

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
