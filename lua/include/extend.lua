-- Makes the index expire no earlier than its new records. Redis holds the key through the millisecond `stop`; the
-- longest-lived new record expires at `ends`, one millisecond later. `exists` says whether there was an index
-- before them. `task` is the key of a new hash, which does not exist yet. An index that never expires stays so.
local function extend(idx, exists, stop, ends, task)
  if exists and redis.REDIS_VERSION then
    redis.call('PEXPIREAT', idx, stop, 'GT')
  -- A server older than Redis 7 does not know GT.
  elseif not exists or redis.call('ZCOUNT', idx, '(' .. digits(ends), '9000000000000') == 0 then
    redis.call('PEXPIREAT', idx, stop)
  else
    -- Changes nothing. A user who lacks the permission gets no hash that never expires.
    redis.call('PEXPIREAT', task, stop)
  end
end
