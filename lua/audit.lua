-- audit: compares records of one owner with the members of its index. With `repair` it makes the index agree with the
-- records. It changes no record. A record whose creation time was lost becomes the newest one of its owner.
--
-- KEYS[1] idx       the owner's index
-- KEYS[2..] tasks   the hashes of the records
-- ARGV[1] repair    '1' to repair, '' to compare only
-- ARGV[2..] ids     the task ids, in the same order
--
-- Reply: { 'seconds microseconds', { for each task a state } }: 'ok' if record and members agree; 'gone' without a live
--   record, also while the members of an expired record wait for their removal; 'member' for members without a record;
--   'record' for a record without its members; 'damaged' for a record that cannot be read
-- Errors: none of its own

-- @include begin_index
-- @include expiry
-- @include index

local idx, repair = KEYS[1], ARGV[1] == '1'
local time, states, stale, lost = redis.call('TIME'), {}, {}, {}
local now = time[1] * 1000 + time[2] / 1000

local function state_of(task, id)
  local mark = '\255' .. id
  local created_at, ends = redis.call('ZSCORE', idx, id), redis.call('ZSCORE', idx, mark)
  if redis.call('EXISTS', task) == 0 then
    if not created_at and not ends or created_at and ends and tonumber(ends) <= now then return 'gone' end
    stale[#stale + 1], stale[#stale + 2] = id, mark
    return 'member'
  end
  local fields = redis.pcall('HMGET', task, 'version', 'expires_at')
  -- The key is not a hash.
  if fields.err then return 'damaged' end
  local version, expires_at = unpack(fields, 1, 2)
  local stop = expiry_of(expires_at)
  if not version or stop >= 2 ^ 53 then return 'damaged' end
  if stop <= now then return 'gone' end
  if created_at and tonumber(ends) == stop then return 'ok' end
  lost[#lost + 1] = { id, mark, stop, created_at }
  return 'record'
end

-- Adds the members of a record.
local function add(id, mark, stop, created_at)
  if redis.call('EXISTS', idx) == 0 then begin_index(idx, digits(stop)) end
  if not created_at then
    local newest = redis.call('ZRANGE', idx, '0', '0', 'REV', 'WITHSCORES')[2]
    created_at = digits(math.max(time[1] * 1000000 + time[2], (newest or 0) + 1))
  end
  redis.call('ZADD', idx, created_at, id, digits(stop), mark)
end

for i = 2, #KEYS do states[i - 1] = state_of(KEYS[i], ARGV[i]) end
if repair and (stale[1] or lost[1]) then
  for _, record in ipairs(lost) do add(unpack(record, 1, 4)) end
  if stale[1] then redis.call('ZREM', idx, unpack(stale)) end
  local last = longest_lived(idx, '1')[2]
  if last == FOREVER then redis.call('PERSIST', idx) else set_expiry(idx, tonumber(last or 0), now) end
end
return { table.concat(time, ' '), states }
