-- put: creates a record at version 1, or replaces a live one and counts its version up. Every write but the
-- compare-and-swap that keeps expiry and parts, which is cas_put.
--
-- KEYS[1] idx       the owner's index
-- KEYS[2] task      the record's hash
-- ARGV[1] id        the task id
-- ARGV[2] data      the record's bytes
-- ARGV[3] expiry    'keep', 'never', or a duration in milliseconds
-- ARGV[4] quota     the most live records that the owner may have, '' for no limit
-- ARGV[5] replaces  'any' version of a live record, 'none', or this version only, which must be live
-- ARGV[6] channel   where subscribers of the owner's records listen, '' to notify nobody
-- ARGV[7] publish   the command to publish with
-- ARGV[8..] parts   for each part that changes: its name, 'set' or 'clear', its bytes or ''
--
-- Reply: 'seconds microseconds version expires_at', the server's clock first; expires_at is '' for never
-- Errors: FOUND [version,expires_at,has_data,is_live,has_parts], CAPACITYEXCEEDED live, TOOMANYPARTS count

local call, idx, task = redis.call, unpack(KEYS)
local id, data, expiry, quota, replaces, channel, publish = unpack(ARGV, 1, 7)
local time = call('TIME')
-- Milliseconds with a fraction, which `digits` drops.
local now = time[1] * 1000 + time[2] / 1000
local version, expires_at, parts, has_data = false, false, false, 0
local holds = call('EXISTS', task) == 1
if holds then
  has_data = call('HEXISTS', task, 'data')
  version, expires_at, parts = unpack(call('HMGET', task, 'version', 'expires_at', 'parts'))
end

-- @include parts

-- A time that cannot be read is so far off that it is none that was written.
local ends = expires_at and (tonumber(expires_at:match('^[1-9]%d*$')) or 2 ^ 53)
local is_live = (version or ends or has_data == 1) and (not ends or now < ends)
local is_wanted = not is_live and not tonumber(replaces)
  or is_live and has_data == 1 and has_parts and (not ends or ends < 2 ^ 53)
  and version and version:find('^[1-9]%d*$') and version + 1 < 2 ^ 53
  and (replaces == 'any' or replaces == version)
if not is_wanted then
  -- @include found
end

-- The fields to set, and those to remove.
local before = version
version = is_live and ('%.0f'):format(version + 1) or '1'
local set, cleared = { 'version', version, 'data', data }, {}
if ARGV[8] then
  local sizes, count, listed = {}, 0, ''
  if is_live and parts then
    for name, size in parts:gmatch('([^ =]+)=(%d+)') do sizes[name] = size end
  end
  for i = 8, #ARGV, 3 do
    local name, bytes = ARGV[i], ARGV[i + 2]
    if ARGV[i + 1] == 'set' then
      sizes[name] = #bytes
      set[#set + 1] = 'part:' .. name
      set[#set + 1] = bytes
    elseif is_live then
      sizes[name] = nil
      cleared[#cleared + 1] = 'part:' .. name
    end
  end
  for name, size in pairs(sizes) do
    count = count + 1
    listed = listed .. name .. '=' .. size .. ' '
  end
  if count > 4 then return redis.error_reply('TOOMANYPARTS ' .. count) end
  if count > 0 then
    set[#set + 1] = 'parts'
    set[#set + 1] = listed
  elseif is_live then
    cleared[#cleared + 1] = 'parts'
  end
end

-- @include index

-- Each branch reads everything before its first write. It orders its writes so that a user who lacks the right to one
-- command leaves neither a record nor an index that never expires: where a command could be refused too late, the same
-- command first runs where it has no effect. A script also ends where it writes to a key that is gone, if the slot of
-- the key is being migrated. The first command that writes is always one that needs memory: a server that has none left
-- refuses it, and refuses no command behind another that writes.
if is_live then
  -- Nobody can have subscribed to a record that did not exist.
  if channel ~= '' then
    -- HSETNX changes nothing. A server that accepts no writes at the moment refuses it, before subscribers receive a
    -- message. A user without the right to publish is refused before anything has changed.
    call('HSETNX', task, 'version', '')
    call(publish, channel, '? ' .. task)
  end
  if expiry == 'never' and expires_at then cleared[#cleared + 1] = 'expires_at' end
end
if is_live and expiry == 'keep' then
  if cleared[1] then
    call('HSET', task, 'version', before)
    call('HDEL', task, '')
  end
  call('HSET', task, unpack(set))
else
  -- The millisecond is there because `digits` rounds the server's clock down.
  ends = tonumber(expiry) and now + 1 + expiry
  expires_at = ends and digits(ends)
  if ends then
    set[#set + 1] = 'expires_at'
    set[#set + 1] = expires_at
  end
  local members, now_ms, mark = call('ZCARD', idx), digits(now), '\255' .. id
  quota = not is_live and tonumber(quota)
  if quota and members / 2 >= quota then
    local live = members / 2 - call('ZCOUNT', idx, '-inf', now_ms)
    if live >= quota then return redis.error_reply('CAPACITYEXCEEDED ' .. math.ceil(live)) end
  end
  -- A creation time above all others of the owner, by the server's clock if it allows.
  local created_at = digits(time[1] * 1000000 + time[2])
  if members > 0 and call('ZCOUNT', idx, created_at, '+inf') > 0 then
    created_at = digits(call('ZRANGE', idx, '0', '0', 'REV', 'WITHSCORES')[2] + 1)
  end
  local last, due = 0, {}
  if members > 0 then
    last = latest('2')
    last = tonumber(last[1] ~= mark and last[2] or last[4]) or 0
    for _, other in ipairs(call('ZRANGE', idx, '-inf', now_ms, 'BYSCORE', 'LIMIT', '0', '32')) do
      if other ~= mark then
        due[#due + 1] = other
        due[#due + 1] = other:sub(2)
      end
    end
  end
  last = math.max(last, ends or 0)

  if is_live then
    call('HSET', task, 'version', before)
    if cleared[1] then call('HDEL', task, '') end
    call('ZADD', idx, expires_at or FOREVER, mark)
    -- It keeps its creation time, unless its member was lost.
    call('ZADD', idx, 'NX', created_at, id)
    if due[1] then call('ZREM', idx, unpack(due)) end
    if ends then
      settle(last)
      call('PEXPIREAT', task, digits(ends - 1))
    else
      call('PERSIST', idx)
      call('PERSIST', task)
    end
    call('HSET', task, unpack(set))
  else
    if not ends or holds or members == 0 then call('ZADD', idx, 'XX', FOREVER, '') end
    if holds then
      -- What expired must not outlive the insert. The key that takes its place expires soon, whatever comes next.
      local soon = digits(now + 1000)
      call('PEXPIREAT', task, soon)
      call('DEL', task)
      call('HSET', task, 'version', version)
      call('PEXPIREAT', task, soon)
    end
    if ends then
      if members == 0 then call('PEXPIREAT', idx, expires_at) end
      call('ZADD', idx, created_at, id, expires_at, mark)
      settle(last)
      if due[1] then call('ZREM', idx, unpack(due)) end
      call('HSET', task, unpack(set))
      call('PEXPIREAT', task, digits(ends - 1))
    else
      if due[1] then call('ZREM', idx, unpack(due)) end
      call('PERSIST', task)
      call('HSET', task, unpack(set))
      call('ZADD', idx, created_at, id, FOREVER, mark)
      call('PERSIST', idx)
    end
  end
end
if cleared[1] then call('HDEL', task, unpack(cleared)) end
return time[1] .. ' ' .. time[2] .. ' ' .. version .. ' ' .. (expires_at or '')
