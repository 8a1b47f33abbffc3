-- The index of one owner: `idx` holds its task ids by creation time, `exp` those that expire by expires_at. Both
-- keys share one expiry: that of the longest-lived record while all records expire, none while one never does.
-- So they go exactly with the last record. Needs `call` and `now` before it.

-- Whole milliseconds or microseconds since the epoch as text. Lua's own conversion rounds from 10^14 on, and %d
-- takes no more than 31 bits on some machines.
local function digits(number) return ('%d%07d'):format(number / 1e7, number % 1e7) end

-- The latest expires_at among the ids in `exp` but this one, 0 if there is none.
local function last_but(one)
  local latest = call('ZRANGE', exp, 0, 1, 'REV', 'WITHSCORES')
  return tonumber(latest[1] ~= one and latest[2] or latest[4]) or 0
end

-- Gives the keys, which hold `count` and `expiring` ids, the expiry that they share. `now + 1`, as a time that is
-- not in the future would delete them at once, a millisecond before the last record goes.
local function settle(count, expiring, last)
  if count > expiring then
    if expiring > 0 then call('PERSIST', exp) end
    call('PERSIST', idx)
  elseif expiring > 0 then
    local at = digits(math.max(last - 1, now + 1))
    call('PEXPIREAT', exp, at)
    call('PEXPIREAT', idx, at)
  end
end
