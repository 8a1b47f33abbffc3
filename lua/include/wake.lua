-- Notifies takers if a timer that is due at `at` becomes the earliest one of its queue: they know when the earliest
-- one before it is due. The message comes before the write, as a user who may not publish is refused here, and behind a
-- command that changes nothing, which a server refuses that is in no state to write. Needs `call` and `due` before it.
local function wake(channel, publish, at)
  if channel == '' then return end
  local first = call('ZRANGE', due, '0', '0', 'WITHSCORES')[2]
  if not first or at < math.floor(first) then
    call('ZADD', due, 'XX', '0', '')
    call(publish, channel, '? ' .. due)
  end
end
