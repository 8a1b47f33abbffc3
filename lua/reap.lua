-- reap: removes index members whose hash is gone (expired, evicted, or deleted by hand).
--
-- KEYS[1] idx       the owner's index
-- KEYS[2..] tasks   the hashes to look for
-- ARGV[1..] ids     their task ids, in the same order
--
-- Reply: { how many records were removed from the index, seconds, microseconds of the server's clock }
-- Errors: none of its own

local call, idx = redis.call, KEYS[1]
local time = call('TIME')
local now = time[1] * 1000 + time[2] / 1000

-- @include index

local is_gone, members = {}, {}
for i, id in ipairs(ARGV) do
  if call('EXISTS', KEYS[i + 1]) == 0 then
    is_gone['\255' .. id] = true
    members[#members + 1] = id
    members[#members + 1] = '\255' .. id
  end
end
if not members[1] then return { 0, time[1], time[2] } end
local last, others = 0, latest(#members / 2 + 1)
for i = #others - 1, 1, -2 do
  if not is_gone[others[i]] then last = tonumber(others[i + 1]) end
end

-- The expiry first: what a user may not do leaves an index that expires.
settle(last)
return { math.ceil(call('ZREM', idx, unpack(members)) / 2), time[1], time[2] }
