-- Notifies takers if a timer that is due at `at` becomes the earliest one of its queue: they know when the earliest
-- one before it is due. It comes before the write, as a user who may not publish is refused here. Sharded from Redis 7
-- on. Needs `call` and `due` before it.
local function wake(channel, at)
  if channel == '' then return end
  local first = call('ZRANGE', due, '0', '0', 'WITHSCORES')[2]
  if not first or at < math.floor(first) then
    call(redis.REDIS_VERSION and 'SPUBLISH' or 'PUBLISH', channel, '? ' .. due)
  end
end
