-- reap: removes index members whose hash no longer exists: it expired, was evicted, or was deleted by hand.
--
-- KEYS[1] idx       the owner's index
-- KEYS[2..] tasks   the hashes to look for
-- ARGV[1..] ids     their task ids, in the same order
--
-- Reply: 'seconds microseconds removed': how many records the script removed from the index
-- Errors: none of its own

-- @include index

local idx = KEYS[1]
local time, gone, members = redis.call('TIME'), {}, {}
for i, id in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[i + 1]) == 0 then
    local mark = '\255' .. id
    gone[mark] = true
    members[#members + 1] = id
    members[#members + 1] = mark
  end
end
time[3] = 0
if members[1] then
  -- The script sets the expiry first. If the user lacks the permission for ZREM, the index still expires.
  local last, others = 0, longest_lived(idx, #members / 2 + 1)
  for i = #others - 1, 1, -2 do
    if not gone[others[i]] then last = tonumber(others[i + 1]) end
  end
  set_expiry(idx, last, time[1] * 1000 + time[2] / 1000)
  time[3] = math.ceil(redis.call('ZREM', idx, unpack(members)) / 2)
end
return table.concat(time, ' ')
