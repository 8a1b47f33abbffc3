-- put: creates a record at version 1, or replaces a live record and adds 1 to its version. cas_put serves the writes at
-- an expected version that keep expiry and parts. put serves all other writes.
--
-- KEYS[1] idx       the owner's index
-- KEYS[2] task      the record's hash
-- ARGV[1] id        the task id
-- ARGV[2] data      the record's bytes
-- ARGV[3] expiry    'keep', 'never', or a duration in milliseconds
-- ARGV[4] quota     the maximum number of live records of the owner, '' for no limit
-- ARGV[5] mode      'upsert', 'create', or for an update the version that the record must have
-- ARGV[6] channel   the channel of the owner's subscribers, '' to send no notification
-- ARGV[7] publish   the command to publish with
-- ARGV[8..] parts   for each part that changes: its name, 'set' or 'clear', its bytes or ''
--
-- Reply: 'seconds microseconds version expires_at': expires_at is '' for never
-- Errors: FOUND [version,expires_at,has_data,is_live,has_parts], CAPACITYEXCEEDED live, TOOMANYPARTS count

-- @include expiry
-- @include found
-- @include index
-- @include notify
-- @include other

local idx, task = unpack(KEYS)
local id, data, expiry, quota, mode, channel, publish = unpack(ARGV, 1, 7)
local time = redis.call('TIME')
-- Milliseconds with a fraction, which `digits` drops.
local now = time[1] * 1000 + time[2] / 1000
local before, expires_at, parts, has_data = false, false, false, 0
local exists = redis.call('EXISTS', task) == 1
if exists then
  has_data = redis.call('HEXISTS', task, 'data')
  before, expires_at, parts = unpack(redis.call('HMGET', task, 'version', 'expires_at', 'parts'))
end
local ends, has_parts = expiry_of(expires_at), is_list(parts)
local is_live = (before or expires_at or has_data == 1) and now < ends
local is_wanted = not is_live and not tonumber(mode)
  or is_live and has_data == 1 and has_parts and ends < 2 ^ 53
  and before and before:find('^[1-9]%d*$') and before + 1 < 2 ^ 53
  and (mode == 'upsert' or mode == before)
if not is_wanted then return found(before, expires_at, has_data, is_live, has_parts) end

-- The fields to set, and those to remove.
local version = is_live and ('%.0f'):format(before + 1) or '1'
local set, cleared = { 'version', version, 'data', data }, {}

-- Sets and clears the parts that the arguments name, and updates `sizes`.
local function change_parts(sizes)
  for i = 8, #ARGV, 3 do
    local name, bytes = ARGV[i], ARGV[i + 2]
    if ARGV[i + 1] == 'set' then
      sizes[name] = #bytes
      set[#set + 1], set[#set + 2] = 'part:' .. name, bytes
    elseif is_live then
      sizes[name] = nil
      cleared[#cleared + 1] = 'part:' .. name
    end
  end
end

if ARGV[8] then
  local sizes, count, listed = {}, 0, ''
  if is_live and parts then
    for name, size in parts:gmatch('([^ =]+)=(%d+)') do sizes[name] = size end
  end
  change_parts(sizes)
  for name, size in pairs(sizes) do
    count = count + 1
    listed = listed .. name .. '=' .. size .. ' '
  end
  if count > 4 then return redis.error_reply('TOOMANYPARTS ' .. count) end
  if count > 0 then
    set[#set + 1], set[#set + 2] = 'parts', listed
  elseif is_live then
    cleared[#cleared + 1] = 'parts'
  end
end
if is_live and expiry == 'never' and expires_at then cleared[#cleared + 1] = 'expires_at' end

-- The script reads everything before its first write. It orders its writes so that a user who lacks the permission for
-- one command leaves neither a record nor an index that never expires. If the server could refuse a command after such
-- a write, the script runs the same command earlier, in a form without effect. While a slot is being migrated, a write
-- to a key that no longer exists also ends the script. The first command that writes is always one that needs memory. A
-- server without free memory refuses it. Once a script has written, the server refuses none of its later commands for
-- lack of memory.

-- A record that does not exist has no subscribers.
if is_live and channel ~= '' then
  -- HSETNX changes nothing. A server that accepts no writes at the moment refuses it, before subscribers receive a
  -- message.
  redis.call('HSETNX', task, 'version', '')
  notify(channel, publish, '? ' .. task)
end

-- Replaces a live record that keeps its expiry. The index stays as it is.
local function update()
  if cleared[1] then
    redis.call('HSET', task, 'version', before)
    redis.call('HDEL', task, '')
  end
  redis.call('HSET', task, unpack(set))
end

local mark, members, last, created_at, due = '\255' .. id, 0, 0, '', {}

-- Reads from the index what a write to it needs.
local function read_index(now_ms)
  -- The creation time is the server's time, or, if another record of the owner was created at this time or later, the
  -- highest creation time of the owner plus one.
  created_at = digits(time[1] * 1000000 + time[2])
  if members > 0 then
    if redis.call('ZCOUNT', idx, created_at, '+inf') > 0 then
      created_at = digits(redis.call('ZRANGE', idx, '0', '0', 'REV', 'WITHSCORES')[2] + 1)
    end
    local two = longest_lived(idx, '2')
    last = last_other(two, mark)
    -- The write also removes the members of expired records, at most 32 members.
    for _, other in ipairs(redis.call('ZRANGE', idx, '-inf', now_ms, 'BYSCORE', 'LIMIT', '0', '32')) do
      if other ~= mark then
        due[#due + 1], due[#due + 2] = other, other:sub(2)
      end
    end
  end
  last = math.max(last, ends or 0)
end

local function remove_due()
  if due[1] then redis.call('ZREM', idx, unpack(due)) end
end

-- Replaces a live record and its expiry.
local function replace()
  redis.call('HSET', task, 'version', before)
  if cleared[1] then redis.call('HDEL', task, '') end
  redis.call('ZADD', idx, expires_at or FOREVER, mark)
  -- The record keeps its creation time, unless its member was lost.
  redis.call('ZADD', idx, 'NX', created_at, id)
  remove_due()
  if ends then
    set_expiry(idx, last, now)
    redis.call('PEXPIREAT', task, digits(ends - 1))
  else
    redis.call('PERSIST', idx)
    redis.call('PERSIST', task)
  end
  redis.call('HSET', task, unpack(set))
end

-- Deletes an expired record that the server still holds. The key that replaces it expires within a second, even if a
-- later command fails.
local function drop_expired()
  local soon = digits(now + 1000)
  redis.call('PEXPIREAT', task, soon)
  redis.call('DEL', task)
  redis.call('HSET', task, 'version', version)
  redis.call('PEXPIREAT', task, soon)
end

local function insert()
  if not ends or exists or members == 0 then redis.call('ZADD', idx, 'XX', FOREVER, '') end
  if exists then drop_expired() end
  if ends then
    if members == 0 then redis.call('PEXPIREAT', idx, expires_at) end
    redis.call('ZADD', idx, created_at, id, expires_at, mark)
    set_expiry(idx, last, now)
    remove_due()
    redis.call('HSET', task, unpack(set))
    redis.call('PEXPIREAT', task, digits(ends - 1))
  else
    remove_due()
    redis.call('PERSIST', task)
    redis.call('HSET', task, unpack(set))
    redis.call('ZADD', idx, created_at, id, FOREVER, mark)
    redis.call('PERSIST', idx)
  end
end

if is_live and expiry == 'keep' then
  update()
else
  -- The script adds 1 because Redis holds a key through the millisecond of its expiry, and `digits` rounds the clock
  -- down.
  ends = tonumber(expiry) and now + 1 + expiry
  expires_at = ends and digits(ends)
  if ends then set[#set + 1], set[#set + 2] = 'expires_at', expires_at end
  members = redis.call('ZCARD', idx)
  local now_ms = digits(now)
  quota = not is_live and tonumber(quota)
  if quota and members / 2 >= quota then
    local live = members / 2 - redis.call('ZCOUNT', idx, '-inf', now_ms)
    if live >= quota then return redis.error_reply('CAPACITYEXCEEDED ' .. math.ceil(live)) end
  end
  read_index(now_ms)
  if is_live then replace() else insert() end
end
if cleared[1] then redis.call('HDEL', task, unpack(cleared)) end
time[3], time[4] = version, expires_at or ''
return table.concat(time, ' ')
