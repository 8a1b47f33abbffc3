-- create: does for one record without a timer what insert does for several. Its text is short, because a write that is
-- alone pays for all of it.
--
-- KEYS[1] idx     the owner's index
-- KEYS[2] task    the record's hash
-- ARGV[1] id      the task id
-- ARGV[2] data    the record's bytes
-- ARGV[3] expiry  the milliseconds until the record expires
-- ARGV[4] quota   the maximum number of live records of the owner, '' for no limit
--
-- Reply: 'seconds microseconds expires_at': expires_at is 0 if the record was left out
-- Errors: none of its own

-- @include begin_index
-- @include digits
-- @include extend
-- @include purge

local idx, task, id, data, expiry, quota = KEYS[1], KEYS[2], unpack(ARGV)
local time = redis.call('TIME')
-- Milliseconds with a fraction, which `digits` drops. A record expires one millisecond later than its duration, because
-- `digits` rounds the clock down.
local now, created_at = time[1] * 1000 + time[2] / 1000, digits(time[1] * 1000000 + time[2])
local now_ms, stop, expires_at = digits(now), digits(now + expiry), digits(now + expiry + 1)

-- The script reads everything before its first write, and writes the hash last. A user who lacks the permission for one
-- command leaves neither a record nor an index that never expires.
local size, due = redis.pcall('ZCARD', idx), 0
local is_new = type(size) == 'number' and redis.call('EXISTS', task) == 0
if is_new and size > 0 then
  due = redis.call('ZCOUNT', idx, '-inf', now_ms)
  is_new = redis.call('ZCOUNT', idx, created_at, '+inf') == 0 and size / 2 - due < (tonumber(quota) or math.huge)
elseif quota == '0' then
  is_new = false
end
time[3] = is_new and expires_at or '0'
if is_new then
  if size == 0 then begin_index(idx, stop) end
  local added = redis.call('ZADD', idx, created_at, id, expires_at, '\255' .. id)
  extend(idx, size > 0, added < 2, stop, task)
  if due > 0 then purge(idx, now_ms) end
  redis.call('HSET', task, 'version', '1', 'data', data, 'expires_at', expires_at)
  redis.call('PEXPIREAT', task, stop)
end
return table.concat(time, ' ')
