-- cas_put_batch: does for several records what cas_put does for one. It writes or refuses each record by itself.
--
-- KEYS[1..] task     the hash of each record, each once
-- ARGV[1]   publish  the command to publish with
-- ARGV[2..] record   for each record the four arguments that cas_put takes
--
-- Reply: { 'seconds microseconds', record, ... }: for each record its expires_at, '' for never, or its error
-- Errors: FOUND [version,expires_at,has_data,is_live,has_parts] of one record

-- @include expiry
-- @include found

local pcall, publish, at, accepts_writes = redis.pcall, ARGV[1], 2, false
local time = redis.call('TIME')
local now, replies = time[1] * 1000 + time[2] / 1000, { table.concat(time, ' ') }

for i = 1, #KEYS do
  -- A key of another type, and a channel that the user must not publish to, are errors of one record.
  local task = KEYS[i]
  local reply = pcall('HMGET', task, 'version', 'expires_at', 'parts')
  if not reply.err then
    local version, expires_at, parts = reply[1], reply[2], reply[3]
    local ends, has_parts, has_data = expiry_of(expires_at), is_list(parts), 1
    local is_live = now < ends
    local is_wanted = version == ARGV[at + 1] and is_live and ends < 2 ^ 53 and has_parts
    if is_wanted then
      -- HSETNX changes nothing. A server that accepts no writes at the moment refuses it, before subscribers receive a
      -- message. No record has been written then.
      if not accepts_writes then accepts_writes = redis.call('HSETNX', task, 'version', '') end
      local channel = ARGV[at + 3]
      reply = channel ~= '' and pcall(publish, channel, (expires_at or '') .. ' ' .. task)
      if type(reply) ~= 'table' then
        reply = expires_at or ''
        -- A field is new only if the record had no data. Such a record is damaged, so the script restores it.
        has_data = 1 - redis.call('HSET', task, 'version', ARGV[at + 2], 'data', ARGV[at])
        if has_data == 0 then
          redis.call('HSET', task, 'version', version)
          pcall('HDEL', task, 'data')
        end
      end
    else
      -- An error must not end the script, because it may have written other records.
      has_data = pcall('HEXISTS', task, 'data')
      if type(has_data) == 'table' then reply = has_data end
    end
    if has_data == 0 or not is_wanted and has_data == 1 then
      reply = found(version, expires_at, has_data, is_live, has_parts)
    end
  end
  replies[i + 1] = reply
  at = at + 4
end
return replies
