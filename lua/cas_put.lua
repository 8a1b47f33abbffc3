-- cas_put: replaces a live record if it is at the expected version.
--
-- KEYS[1] idx       the owner's task ids by creation time
-- KEYS[2] exp       the owner's task ids by expires_at
-- KEYS[3] task      the record's hash
-- ARGV[1] id        the task id
-- ARGV[2] data      the record's bytes
-- ARGV[3] expiry    'keep', 'never', or a duration in milliseconds
-- ARGV[4] expected  the version that the record must have, 1 or more
--
-- Reply: { version, expires_at or nil, seconds, microseconds of the server's clock }
-- Errors: NOTFOUND reason, VERSIONCONFLICT actual, VERSIONEXHAUSTED version, CORRUPT field

-- @include number
-- @include index
-- @include record

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local version, expires_at, corrupt = read_record(now)
if corrupt then return corrupt end
if not version then return redis.error_reply('NOTFOUND no live record') end
if version ~= ARGV[4] then return redis.error_reply('VERSIONCONFLICT ' .. version) end
if version == LAST_VERSION then return redis.error_reply('VERSIONEXHAUSTED ' .. version) end
return replace_record(version, expires_at, time, now)
