-- The index of one owner: KEYS[1] holds its task ids by creation time, KEYS[2] those that expire by
-- expires_at. Both keys share one expiry: that of the longest-lived record while all records expire,
-- none while one never does. So they go exactly with the last record.

-- How many ids each key holds, and the latest expires_at among the ids that are not in the set `apart`
-- of `count` ids. All reads that a later change of the index needs, so that nothing is read after the
-- first write.
local function read_index(apart, count)
  local index = { idx = redis.call('ZCARD', KEYS[1]), exp = redis.call('ZCARD', KEYS[2]), last = 0 }
  local latest = redis.call('ZRANGE', KEYS[2], 0, count, 'REV', 'WITHSCORES')
  for i = 1, #latest, 2 do
    if not apart[latest[i]] then
      index.last = tonumber(latest[i + 1])
      break
    end
  end
  return index
end

-- A creation time above all others of the owner, by the server's clock if it allows.
local function next_creation(time)
  local newest = redis.call('ZRANGE', KEYS[1], 0, 0, 'REV', 'WITHSCORES')[2]
  return int(math.max(time[1] * 1000000 + time[2], (newest or 0) + 1))
end

-- Enters the expiry of the record ARGV[1], nil for never.
local function set_expiry(index, expires_at)
  if expires_at then
    index.exp = index.exp + redis.call('ZADD', KEYS[2], int(expires_at), ARGV[1])
    index.last = math.max(index.last, expires_at)
  else
    index.exp = index.exp - redis.call('ZREM', KEYS[2], ARGV[1])
  end
end

-- Gives both keys the expiry that they share. `now + 1`, as a time that is not in the future would
-- delete them at once, a millisecond before the last record goes.
local function settle_expiry(index, now)
  if index.idx > index.exp then
    redis.call('PERSIST', KEYS[2])
    redis.call('PERSIST', KEYS[1])
  elseif index.exp > 0 then
    local at = int(math.max(index.last - 1, now + 1))
    redis.call('PEXPIREAT', KEYS[2], at)
    redis.call('PEXPIREAT', KEYS[1], at)
  end
end

local function remove_members(index, ids)
  index.exp = index.exp - redis.call('ZREM', KEYS[2], unpack(ids))
  index.idx = index.idx - redis.call('ZREM', KEYS[1], unpack(ids))
end
