-- delete: removes a record, readable or not, with its index members.
--
-- KEYS[1] idx       the owner's task ids by creation time
-- KEYS[2] exp       the owner's task ids by expires_at
-- KEYS[3] task      the record's hash
-- ARGV[1] id        the task id
-- ARGV[2] channel   where those who watch the owner's records listen, '' to tell nobody
--
-- Reply: { 1 if a live record was removed else 0, seconds, microseconds of the server's clock }
-- Errors: none of its own

local call, idx, exp, task, id = redis.call, KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local time = call('TIME')
local now = time[1] * 1000 + time[2] / 1000

-- @include index

-- A key of another type is a record that cannot be read: it goes too.
local expires_at = redis.pcall('HGET', task, 'expires_at')
if type(expires_at) == 'table' then
  if not expires_at.err:find('WRONGTYPE') then return expires_at end
  expires_at = false
end
local count, expiring, last = call('ZCARD', idx), call('ZCARD', exp), last_but(id)

-- Before the first write, as a user who may not publish is refused here. Sharded from Redis 7 on.
if ARGV[2] ~= '' then call(redis.REDIS_VERSION and 'SPUBLISH' or 'PUBLISH', ARGV[2], '? ' .. task) end
expiring = expiring - call('ZREM', exp, id)
settle(count - call('ZREM', idx, id), expiring, last)
local removed = call('DEL', task)
if expires_at and expires_at:find('^[1-9]%d*$') and now >= tonumber(expires_at) then removed = 0 end
return { removed, time[1], time[2] }
