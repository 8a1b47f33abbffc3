-- put: creates a record at version 1, or replaces a live one and counts its version up. Every write but the
-- compare-and-swap that keeps the expiry, which is cas_put.
--
-- KEYS[1] idx       the owner's task ids by creation time
-- KEYS[2] exp       the owner's task ids by expires_at
-- KEYS[3] task      the record's hash
-- ARGV[1] id        the task id
-- ARGV[2] data      the record's bytes
-- ARGV[3] expiry    'keep', 'never', or a duration in milliseconds
-- ARGV[4] quota     the most live records that the owner may have, '' for no limit
-- ARGV[5] replaces  'any' version of a live record, 'none', or this version only, which must be live
--
-- Reply: { version, expires_at or nil, seconds, microseconds of the server's clock }
-- Errors: NOTFOUND reason, VERSIONCONFLICT actual, VERSIONEXHAUSTED version, CAPACITYEXCEEDED live, CORRUPT field

-- @include number
-- @include index
-- @include record

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

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local version, rest, corrupt = read_record(now)
if corrupt then return corrupt end
if version then
  if ARGV[5] ~= 'any' and ARGV[5] ~= version then return redis.error_reply('VERSIONCONFLICT ' .. version) end
  if version == LAST_VERSION then return redis.error_reply('VERSIONEXHAUSTED ' .. version) end
  version = int(version + 1)
  if ARGV[3] == 'keep' then
    redis.call('HSET', KEYS[3], 'version', version, 'data', ARGV[2])
    return { version, rest, time[1], time[2] }
  end
elseif tonumber(ARGV[5]) then
  return redis.error_reply('NOTFOUND no live record')
end

-- From here on the index changes. All of it is read before the first write.
local index = read_index({ [ARGV[1]] = true }, 1)
local created_at = next_creation(time)
local expires_at = new_expiry(now)
if version then
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

local due = redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, 32)
local quota = tonumber(ARGV[4])
if quota and index.idx >= quota then
  local live = index.idx - redis.call('ZCOUNT', KEYS[2], '-inf', now)
  if live >= quota then return redis.error_reply('CAPACITYEXCEEDED ' .. int(live)) end
end
if #due > 0 then remove_members(index, due) end
set_expiry(index, expires_at)
index.idx = index.idx + redis.call('ZADD', KEYS[1], created_at, ARGV[1])
settle_expiry(index, now)
-- Neither an expired record that still lies there nor an expiry set by hand may outlive the insert.
if rest or not expires_at then redis.call('DEL', KEYS[3]) end
return write_record('1', expires_at, time)
