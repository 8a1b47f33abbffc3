-- cas_put: replaces a live record if it is at the expected version, and keeps its expiry. The commonest write: it
-- touches no key but the hash.
--
-- KEYS[1] task      the record's hash
-- ARGV[1] data      the record's bytes
-- ARGV[2] expected  the version that the record must have, 1 or more
--
-- Reply: { version, expires_at or nil, seconds, microseconds of the server's clock }
-- Errors: NOTFOUND reason, VERSIONCONFLICT actual, VERSIONEXHAUSTED version, CORRUPT field

-- @include number
-- @include record

local time = redis.call('TIME')
local version, expires_at, corrupt = read_record(time[1] * 1000 + math.floor(time[2] / 1000))
if corrupt then return corrupt end
if not version then return redis.error_reply('NOTFOUND no live record') end
if version ~= ARGV[2] then return redis.error_reply('VERSIONCONFLICT ' .. version) end
if version == LAST_VERSION then return redis.error_reply('VERSIONEXHAUSTED ' .. version) end
version = int(version + 1)
redis.call('HSET', KEYS[1], 'version', version, 'data', ARGV[1])
return { version, expires_at, time[1], time[2] }
