-- The record under KEYS[3]: reading and writing its hash. Needs number and index before it.

-- Gives version and expires_at of a live record (false: it never expires). Without one the version is
-- nil, and the second value says whether an expired one still lies there. If the stored fields cannot
-- be read, the third value is the error reply.
local function read_record(now)
  local fields = redis.call('HMGET', KEYS[3], 'version', 'expires_at')
  local has_data = redis.call('HEXISTS', KEYS[3], 'data') == 1
  local version, expires_at = fields[1], fields[2]
  if not (version or expires_at or has_data) then return nil, false end
  if expires_at then
    if not is_readable(expires_at) then return nil, nil, redis.error_reply('CORRUPT expires_at') end
    if now >= tonumber(expires_at) then return nil, true end
  end
  if not version or not is_readable(version) then return nil, nil, redis.error_reply('CORRUPT version') end
  if not has_data then return nil, nil, redis.error_reply('CORRUPT data') end
  return version, expires_at
end

-- The expires_at that ARGV[3] asks for, nil for never. The millisecond is there because `now` was
-- rounded down.
local function new_expiry(now)
  return tonumber(ARGV[3]) and now + 1 + ARGV[3]
end

-- Writes the hash, and gives the script's reply.
local function write_record(version, expires_at, time)
  local at = expires_at and int(expires_at)
  if at then
    redis.call('HSET', KEYS[3], 'version', version, 'data', ARGV[2], 'expires_at', at)
    redis.call('PEXPIREAT', KEYS[3], int(expires_at - 1))
  else
    redis.call('HSET', KEYS[3], 'version', version, 'data', ARGV[2])
  end
  return { version, at or false, time[1], time[2] }
end

-- Replaces a live record. With 'keep' no key but the hash is touched.
local function replace_record(version, expires_at, time, now)
  version = int(version + 1)
  if ARGV[3] == 'keep' then
    redis.call('HSET', KEYS[3], 'version', version, 'data', ARGV[2])
    return { version, expires_at, time[1], time[2] }
  end
  local index = read_index({ [ARGV[1]] = true }, 1)
  local created_at = next_creation(time)
  expires_at = new_expiry(now)
  set_expiry(index, expires_at)
  -- The record keeps its creation time; only a member that was lost is entered anew.
  index.idx = index.idx + redis.call('ZADD', KEYS[1], 'NX', created_at, ARGV[1])
  settle_expiry(index, now)
  if not expires_at then
    redis.call('HDEL', KEYS[3], 'expires_at')
    redis.call('PERSIST', KEYS[3])
  end
  return write_record(version, expires_at, time)
end
