-- reap: removes index members whose hash is gone (expired, evicted, or deleted by hand).
--
-- KEYS[1] idx       the owner's task ids by creation time
-- KEYS[2] exp       the owner's task ids by expires_at
-- KEYS[3..] tasks   the hashes to look for
-- ARGV[1..] ids     their task ids, in the same order
--
-- Reply: { how many were removed, seconds, microseconds of the server's clock }
-- Errors: none of its own

local call, idx, exp = redis.call, KEYS[1], KEYS[2]
local time = call('TIME')
local now = time[1] * 1000 + time[2] / 1000

-- @include index

local gone, ids = {}, {}
for i, id in ipairs(ARGV) do
  if call('EXISTS', KEYS[i + 2]) == 0 then
    gone[id] = true
    ids[#ids + 1] = id
  end
end
if not ids[1] then return { 0, time[1], time[2] } end
local before, expiring, last = call('ZCARD', idx), call('ZCARD', exp), 0
local latest = call('ZRANGE', exp, 0, #ids, 'REV', 'WITHSCORES')
for i = #latest - 1, 1, -2 do
  if not gone[latest[i]] then last = tonumber(latest[i + 1]) end
end

expiring = expiring - call('ZREM', exp, unpack(ids))
local count = before - call('ZREM', idx, unpack(ids))
settle(count, expiring, last)
return { before - count, time[1], time[2] }
