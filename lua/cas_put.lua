-- cas_put: replaces the data of a live record at the expected version. Expiry and parts stay as they are. This is the
-- most frequent write, so it touches only one key, the hash.
--
-- KEYS[1]   task     the record's hash
-- ARGV[1]   publish  the command to publish with
-- ARGV[2..] record   its bytes, the version that it must have, 1 or more, its version after the write, and the channel
--                    of the owner's subscribers, '' to send no notification
--
-- Reply: 'seconds microseconds expires_at': expires_at is '' for never
-- Errors: FOUND [version,expires_at,has_data,is_live,has_parts]

-- @include expiry
-- @include found
-- @include notify

local task, publish, data, expected, new, channel = KEYS[1], unpack(ARGV)
local time = redis.call('TIME')
local version, expires_at, parts = unpack(redis.call('HMGET', task, 'version', 'expires_at', 'parts'))
local ends, has_parts = expiry_of(expires_at), is_list(parts)
local is_live = time[1] * 1000 + time[2] / 1000 < ends
local is_wanted = version == expected and is_live and ends < 2 ^ 53 and has_parts

-- HSETNX writes only to a record without data, which is damaged. A server that accepts no writes at the moment refuses
-- HSETNX, before subscribers receive a message.
local has_data = is_wanted and 1 - redis.call('HSETNX', task, 'data', '') or redis.call('HEXISTS', task, 'data')
if not is_wanted or has_data == 0 then
  if is_wanted then redis.call('HDEL', task, 'data') end
  return found(version, expires_at, has_data, is_live, has_parts)
end
notify(channel, publish, (expires_at or '') .. ' ' .. task)
redis.call('HSET', task, 'version', new, 'data', data)
time[3] = expires_at or ''
return table.concat(time, ' ')
