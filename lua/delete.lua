-- delete: removes a record, readable or not, with its index members.
--
-- KEYS[1] idx       the owner's task ids by creation time
-- KEYS[2] exp       the owner's task ids by expires_at
-- KEYS[3] task      the record's hash
-- ARGV[1] id        the task id
--
-- Reply: { 1 if a live record was removed else 0, seconds, microseconds of the server's clock }
-- Errors: none of its own

-- @include number
-- @include index

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- A key of another type is a record that cannot be read: it goes too.
local expires_at = redis.pcall('HGET', KEYS[3], 'expires_at')
if type(expires_at) == 'table' then
  if not expires_at.err:find('WRONGTYPE') then return expires_at end
  expires_at = false
end
local index = read_index({ [ARGV[1]] = true }, 1)

remove_members(index, { ARGV[1] })
settle_expiry(index, now)
local removed = redis.call('DEL', KEYS[3])
if expires_at and is_readable(expires_at) and now >= tonumber(expires_at) then removed = 0 end
return { removed, time[1], time[2] }
