-- Returns the time in milliseconds at which a record expires. `expires_at` is the field of its hash; false for no
-- field. A record is live while the server's clock is before that time. Without the field a record never expires. A
-- field that cannot be read, or is too large, gives 2^53 or more: such a record is damaged, and must never count as
-- absent.
local function expiry_of(expires_at)
  return not expires_at and 9e12 or tonumber(expires_at:match('^[1-9]%d*$')) or math.huge
end
