-- Removes the members of expired records from the index, those of at most 64 records.
local function purge(idx, now_ms)
  local gone = redis.call('ZRANGE', idx, '-inf', now_ms, 'BYSCORE', 'LIMIT', '0', '64')
  for i = 1, #gone do gone[#gone + 1] = gone[i]:sub(2) end
  -- The only due members may have been those of records that exist again.
  if gone[1] then redis.call('ZREM', idx, unpack(gone)) end
end
