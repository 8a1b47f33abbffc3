-- Makes the index expire no earlier than its new records. Redis holds the key through the millisecond `stop`, in which
-- the longest-lived new record ends. `exists` says whether there was an index before them, and `is_again` whether it
-- had members of the new records: their hashes were evicted or deleted by hand, and the index may live for them alone.
-- `task` is the key of a new hash, which does not exist yet.
local function extend(idx, exists, is_again, stop, task)
  if exists and not is_again and redis.REDIS_VERSION then
    redis.call('PEXPIREAT', idx, stop, 'GT')
  elseif not exists then
    redis.call('PEXPIREAT', idx, stop)
  -- A server older than Redis 7 does not know GT.
  else
    local last = redis.call('ZRANGE', idx, '9e12', '-inf', 'BYSCORE', 'REV', 'LIMIT', '0', '1', 'WITHSCORES')[2]
    if last ~= '9000000000000' then
      redis.call('PEXPIREAT', idx, digits(last - 1))
    else
      -- Changes nothing. A user who lacks the permission gets no hash that never expires.
      redis.call('PEXPIREAT', task, stop)
    end
  end
end
