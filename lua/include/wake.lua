-- @include notify

-- Notifies takers if the timer that becomes due at `at` will be the earliest of its queue. Otherwise the takers know an
-- earlier timer. A script calls this function before it writes. ZADD XX changes nothing: a server that accepts no
-- writes at the moment refuses it, before subscribers receive a message.
local function wake(due, at, channel, publish)
  if channel ~= '' then
    local first = redis.call('ZRANGE', due, '0', '0', 'WITHSCORES')[2]
    if not first or at < math.floor(first) then
      redis.call('ZADD', due, 'XX', '0', '')
      notify(channel, publish, '? ' .. due)
    end
  end
end
