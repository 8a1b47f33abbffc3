-- cas_put: replaces the data of a live record if it is at the expected version; expiry and parts stay as they are. The
-- commonest write: it touches no key but the hash.
--
-- KEYS[1] task      the record's hash
-- ARGV[1] data      the record's bytes
-- ARGV[2] expected  the version that the record must have, 1 or more
-- ARGV[3] next      the version after that
-- ARGV[4] channel   where subscribers of the owner's records listen, '' to notify nobody
-- ARGV[5] publish   the command to publish with
--
-- Reply: 'seconds microseconds expires_at', the server's clock first; expires_at is '' for never
-- Errors: FOUND [version,expires_at,has_data,is_live,has_parts]

local call, task = redis.call, KEYS[1]
local time, version, expires_at, parts = call('TIME'), unpack(call('HMGET', task, 'version', 'expires_at', 'parts'))

-- @include parts

-- A time that cannot be read, or is larger than any that was written, is refused as if it had passed.
local ends = expires_at and (tonumber(expires_at:match('^[1-9]%d*$')) or 0)
local is_live = not ends or ends < 2 ^ 53 and time[1] * 1000 + time[2] / 1000 < ends
local is_wanted = version == ARGV[2] and is_live and has_parts
-- HSETNX writes only to a record without data, which is damaged. A server that accepts no writes at the moment refuses
-- it, before subscribers receive a message.
local has_data = is_wanted and 1 - call('HSETNX', task, 'data', '') or call('HEXISTS', task, 'data')
if not is_wanted or has_data == 0 then
  if is_wanted then call('HDEL', task, 'data') end
  -- @include found
end
-- This stands before the first change: a user without the right to publish is refused here.
if ARGV[4] ~= '' then call(ARGV[5], ARGV[4], (expires_at or '') .. ' ' .. task) end
call('HSET', task, 'version', ARGV[3], 'data', ARGV[1])
return time[1] .. ' ' .. time[2] .. ' ' .. (expires_at or '')
