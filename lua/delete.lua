-- delete: removes a record, readable or damaged, with its parts and its index members.
--
-- KEYS[1] idx       the owner's index
-- KEYS[2] task      the record's hash
-- ARGV[1] id        the task id
-- ARGV[2] channel   the channel of the owner's subscribers, '' to send no notification
-- ARGV[3] publish   the command to publish with
--
-- Reply: 'seconds microseconds removed': removed is 1 if the script removed a live record, else 0
-- Errors: none of its own

-- @include expiry
-- @include index
-- @include notify
-- @include other

local idx, task, id = KEYS[1], KEYS[2], ARGV[1]
local time, mark = redis.call('TIME'), '\255' .. id
local now = time[1] * 1000 + time[2] / 1000

-- A key of another type is a damaged record. The script removes it too.
local expires_at = redis.pcall('HGET', task, 'expires_at')
if type(expires_at) == 'table' then
  if not expires_at.err:find('WRONGTYPE') then return expires_at end
  expires_at = false
end
local ends, two = expiry_of(expires_at), longest_lived(idx, '2')
local last = last_other(two, mark)

-- The commands before DEL change nothing: no member is '', and PEXPIREAT sets the expiry that the record has already,
-- or one in the far future. A server that accepts no writes at the moment refuses ZREM, before subscribers receive a
-- message. A user who lacks the permission to publish, or to run one of the commands below, is refused here, before the
-- record changes. None of these commands needs memory, so a server without free memory accepts a delete.
redis.call('ZREM', idx, '')
notify(ARGV[2], ARGV[3], '? ' .. task)
if last > 0 then
  redis.call('PEXPIREAT', task, ends < 2 ^ 53 and digits(math.max(ends - 1, now + 1)) or FOREVER)
end
local removed = redis.call('DEL', task)
redis.call('ZREM', idx, id, mark)
set_expiry(idx, last, now)
time[3] = now < ends and removed or 0
return table.concat(time, ' ')
