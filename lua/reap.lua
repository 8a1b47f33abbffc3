-- reap: removes index members whose hash is gone (expired, evicted, or deleted by hand).
--
-- KEYS[1] idx       the owner's task ids by creation time
-- KEYS[2] exp       the owner's task ids by expires_at
-- KEYS[3..] tasks   the hashes to look for
-- ARGV[1..] ids     their task ids, in the same order
--
-- Reply: { how many were removed, seconds, microseconds of the server's clock }
-- Errors: none of its own

-- @include number
-- @include index

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local gone, ids = {}, {}
for i, id in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[i + 2]) == 0 then
    gone[id] = true
    ids[#ids + 1] = id
  end
end
if #ids == 0 then return { 0, time[1], time[2] } end
local index = read_index(gone, #ids)
local before = index.idx

remove_members(index, ids)
settle_expiry(index, now)
return { before - index.idx, time[1], time[2] }
