-- Notifies takers if a timer that is due at `at` becomes the earliest one of its queue: they know when the earliest
-- one before it is due. The message comes before the write: a user without the right to publish is refused here. A
-- command that changes nothing comes first: a server that accepts no writes at the moment refuses it. Needs `call` and
-- `due` before it.
local function wake(channel, publish, at)
  if channel == '' then return end
  local first = call('ZRANGE', due, '0', '0', 'WITHSCORES')[2]
  if not first or at < math.floor(first) then
    call('ZADD', due, 'XX', '0', '')
    call(publish, channel, '? ' .. due)
  end
end
