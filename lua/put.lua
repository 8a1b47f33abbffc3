-- put: creates a record at version 1, or replaces a live one and counts its version up.
--
-- KEYS[1] idx       the owner's task ids by creation time
-- KEYS[2] exp       the owner's task ids by expires_at
-- KEYS[3] task      the record's hash
-- ARGV[1] id        the task id
-- ARGV[2] data      the record's bytes
-- ARGV[3] expiry    'keep', 'never', or a duration in milliseconds
-- ARGV[4] quota     the most live records that the owner may have, '' for no limit
-- ARGV[5] if_live   'replace' a live record, or 'refuse' to
--
-- Reply: { version, expires_at or nil, seconds, microseconds of the server's clock }
-- Errors: VERSIONCONFLICT actual, VERSIONEXHAUSTED version, CAPACITYEXCEEDED live, CORRUPT field

-- @include number
-- @include index
-- @include record

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local version, rest, corrupt = read_record(now)
if corrupt then return corrupt end
if version then
  if ARGV[5] == 'refuse' then return redis.error_reply('VERSIONCONFLICT ' .. version) end
  if version == LAST_VERSION then return redis.error_reply('VERSIONEXHAUSTED ' .. version) end
  return replace_record(version, rest, time, now)
end

local index = read_index({ [ARGV[1]] = true }, 1)
local created_at = next_creation(time)
local due = redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, 32)
local quota = tonumber(ARGV[4])
if quota and index.idx >= quota then
  local live = index.idx - redis.call('ZCOUNT', KEYS[2], '-inf', now)
  if live >= quota then return redis.error_reply('CAPACITYEXCEEDED ' .. int(live)) end
end

if #due > 0 then remove_members(index, due) end
local expires_at = new_expiry(now)
set_expiry(index, expires_at)
index.idx = index.idx + redis.call('ZADD', KEYS[1], created_at, ARGV[1])
settle_expiry(index, now)
-- Neither an expired record that still lies there nor an expiry set by hand may outlive the insert.
if rest or not expires_at then redis.call('DEL', KEYS[3]) end
return write_record('1', expires_at, time)
