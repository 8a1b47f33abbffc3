-- The record under the hash KEYS[#KEYS]. Needs number before it.

-- Gives version and expires_at of a live record (false: it never expires). Without one the version is
-- nil, and the second value says whether an expired one still lies there. If the stored fields cannot
-- be read, the third value is the error reply.
local function read_record(now)
  local fields = redis.call('HMGET', KEYS[#KEYS], 'version', 'expires_at')
  local has_data = redis.call('HEXISTS', KEYS[#KEYS], 'data') == 1
  local version, expires_at = fields[1], fields[2]
  if not (version or expires_at or has_data) then return nil, false end
  if expires_at then
    if not is_readable(expires_at) then return nil, nil, redis.error_reply('CORRUPT expires_at') end
    if now >= tonumber(expires_at) then return nil, true end
  end
  if not version or not is_readable(version) then return nil, nil, redis.error_reply('CORRUPT version') end
  if not has_data then return nil, nil, redis.error_reply('CORRUPT data') end
  return version, expires_at
end
