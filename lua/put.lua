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
-- ARGV[6] channel   where those who watch the owner's records listen, '' to tell nobody
--
-- Reply: 'seconds microseconds version expires_at', the server's clock first; expires_at is '' for never
-- Errors: FOUND [version,expires_at,has_data,is_live], CAPACITYEXCEEDED live

local call, idx, exp, task = redis.call, unpack(KEYS)
local id, data, expiry, quota, replaces, channel = unpack(ARGV)
local time = call('TIME')
-- Milliseconds with a fraction, which `digits` drops.
local now = time[1] * 1000 + time[2] / 1000
local version, expires_at, has_data = false, false, 0
local holds = call('EXISTS', task) == 1
if holds then
  has_data = call('HEXISTS', task, 'data')
  version, expires_at = unpack(call('HMGET', task, 'version', 'expires_at'))
end

-- A time that cannot be read is so far off that it is none that was written.
local ends = expires_at and (tonumber(expires_at:match('^[1-9]%d*$')) or 2 ^ 53)
local is_live = (version or ends or has_data == 1) and (not ends or now < ends)
local is_wanted = not is_live and not tonumber(replaces)
  or is_live and has_data == 1 and (not ends or ends < 2 ^ 53)
  and version and version:find('^[1-9]%d*$') and version + 1 < 2 ^ 53
  and (replaces == 'any' or replaces == version)
if not is_wanted then
  -- @include found
end

-- Before the first write, as a user who may not publish is refused here. Sharded from Redis 7 on.
if channel ~= '' then call(redis.REDIS_VERSION and 'SPUBLISH' or 'PUBLISH', channel, '? ' .. task) end

-- @include index

version = is_live and ('%.0f'):format(version + 1) or '1'
if is_live and expiry == 'keep' then
  call('HSET', task, 'version', version, 'data', data)
else
  -- The millisecond is there because `digits` rounds the server's clock down.
  ends = tonumber(expiry) and now + 1 + expiry
  expires_at = ends and digits(ends)
  local count, now_ms = call('ZCARD', idx), digits(now)
  quota = not is_live and tonumber(quota)
  if quota and count >= quota then
    local live = count - call('ZCOUNT', exp, '-inf', now_ms)
    if live >= quota then return redis.error_reply('CAPACITYEXCEEDED ' .. live) end
  end
  -- A creation time above all others of the owner, by the server's clock if it allows.
  local created_at = digits(time[1] * 1000000 + time[2])
  if call('ZCOUNT', idx, created_at, '+inf') > 0 then
    created_at = digits(call('ZRANGE', idx, 0, 0, 'REV', 'WITHSCORES')[2] + 1)
  end
  -- Most often all records of the owner are live and go before this one does: then all expire, this one last, and
  -- there is nothing to drop.
  local expiring, last, due = call('ZCARD', exp), 0, {}
  if not ends or count ~= expiring or count ~= call('ZCOUNT', exp, '(' .. now_ms, expires_at) then
    last = last_but(id)
    for _, other in ipairs(call('ZRANGE', exp, '-inf', now_ms, 'BYSCORE', 'LIMIT', 0, 32)) do
      if other ~= id then due[#due + 1] = other end
    end
  end

  -- All is read. From here on it is written. A script ends where it writes to a key that is gone, if the key's slot is
  -- being migrated. So no key of the index goes before it is written, and an expired record that still lies there,
  -- which must not outlive the insert, is replaced before all else.
  if holds and not is_live then
    call('DEL', task)
    call('HSET', task, 'version', version)
  end
  expiring = expiring + (ends and call('ZADD', exp, expires_at, id) or -call('ZREM', exp, id))
  -- A live record keeps its creation time, unless its member was lost. A new one is the newest.
  count = count + call('ZADD', idx, is_live and 'NX' or 'GT', created_at, id)
  if due[1] then
    expiring = expiring - call('ZREM', exp, unpack(due))
    count = count - call('ZREM', idx, unpack(due))
  end
  settle(count, expiring, math.max(last, ends or 0))
  if ends then
    call('HSET', task, 'version', version, 'data', data, 'expires_at', expires_at)
    call('PEXPIREAT', task, digits(ends - 1))
  else
    call('HSET', task, 'version', version, 'data', data)
    if is_live then
      call('HDEL', task, 'expires_at')
      call('PERSIST', task)
    end
  end
end
return time[1] .. ' ' .. time[2] .. ' ' .. version .. ' ' .. (expires_at or '')
