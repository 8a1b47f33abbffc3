-- delete: removes a record, readable or not, with its parts and its index members.
--
-- KEYS[1] idx       the owner's index
-- KEYS[2] task      the record's hash
-- ARGV[1] id        the task id
-- ARGV[2] channel   where subscribers of the owner's records listen, '' to notify nobody
-- ARGV[3] publish   the command to publish with
--
-- Reply: { 1 if a live record was removed else 0, seconds, microseconds of the server's clock }
-- Errors: none of its own

local call, idx, task, id = redis.call, KEYS[1], KEYS[2], ARGV[1]
local time = call('TIME')
local now = time[1] * 1000 + time[2] / 1000

-- @include index

-- A key of another type is a record that cannot be read: it goes too.
local expires_at = redis.pcall('HGET', task, 'expires_at')
if type(expires_at) == 'table' then
  if not expires_at.err:find('WRONGTYPE') then return expires_at end
  expires_at = false
end
local ends = expires_at and tonumber(expires_at:match('^[1-9]%d*$'))
local mark, last = '\255' .. id, latest(2)
last = tonumber(last[1] ~= mark and last[2] or last[4]) or 0

-- These commands change nothing: no member is '', and the time is the one that the record has, or one beyond all
-- others. A server that accepts no writes at the moment refuses them, before subscribers receive a message. A user who
-- lacks the right to publish, or to one of the commands below, is refused here, with the record as it was. None of
-- these commands needs memory, as a delete makes room.
call('ZREM', idx, '')
if ARGV[2] ~= '' then call(ARGV[3], ARGV[2], '? ' .. task) end
if last > 0 then
  call('PEXPIREAT', task, ends and ends < 2 ^ 53 and digits(math.max(ends - 1, now + 1)) or FOREVER)
end
local removed = call('DEL', task)
call('ZREM', idx, id, mark)
settle(last)
if ends and now >= ends then removed = 0 end
return { removed, time[1], time[2] }
