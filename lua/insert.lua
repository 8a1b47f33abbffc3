-- insert: creates records that expire and have no parts, at version 1. Leaves out each record that only put can decide
-- on: it exists, its owner is at the quota, or the owner's index is newer than the server's clock or cannot be read.
-- First schedules the timers of the records, as schedule does.
--
-- KEYS[1..] key      the index of each owner, the hash of each record in the order of the owners, each key once, and
--                    the timers of the queue, if a record has a timer
-- ARGV[1]   owners   the number of owners
-- ARGV[2]   channel  the channel of the takers, '' to send no notification
-- ARGV[3]   publish  the command to publish with
-- ARGV[4..] record   for each owner: the maximum number of its live records, '' for no limit, and the number of its
--                    new records; for each of these: the task id, the record's bytes, the milliseconds until it
--                    expires, the milliseconds until its timer fires, '' for no timer, and the member of the timer
--
-- Reply: 'seconds microseconds expires_at ...': for each record expires_at, 0 if it was left out
-- Errors: none of its own

-- @include begin_index
-- @include digits
-- @include extend
-- @include purge
-- @include score
-- @include wake

local owners = tonumber(ARGV[1])
local time = redis.call('TIME')
-- Milliseconds with a fraction, which `digits` drops.
local now, micros = time[1] * 1000 + time[2] / 1000, time[1] * 1000000 + time[2]
local now_ms, first = digits(now), digits(micros)
local at, task_at, hashes, indexes, timers = 4, owners + 1, {}, {}, {}
-- The expiry of the latest record, its expires_at, and the last millisecond in which Redis holds the key. A record
-- expires one millisecond later, because `digits` rounds the clock down.
local expiry, expires_at, stop

-- The script reads everything before its first write, and writes the hashes last. A user who lacks the permission for
-- one command leaves neither a record nor an index that never expires, and no error leaves a part of the records.
for owner = 1, owners do
  local idx, quota, count = KEYS[owner], tonumber(ARGV[at]) or math.huge, ARGV[at + 1]
  local size, due, room, longest, members = redis.pcall('ZCARD', idx), 0, quota, '0', {}
  if type(size) == 'table' or size > 0 and redis.call('ZCOUNT', idx, first, '+inf') > 0 then
    room = 0
  elseif size > 0 then
    due = redis.call('ZCOUNT', idx, '-inf', now_ms)
    room = quota - size / 2 + due
  end
  at = at + 2
  local created_at = first
  for i = 1, count do
    local id, task = ARGV[at], KEYS[task_at]
    if ARGV[at + 3] ~= '' then timers[#timers + 1] = at + 3 end
    if room > 0 and redis.call('EXISTS', task) == 0 then
      if ARGV[at + 2] ~= expiry then
        expiry = ARGV[at + 2]
        expires_at, stop = digits(now + expiry + 1), digits(now + expiry)
      end
      if expiry - longest > 0 then longest = expiry end
      if i > 1 then created_at = digits(micros + i) end
      local k = #members
      members[k + 1], members[k + 2], members[k + 3], members[k + 4] = created_at, id, expires_at, '\255' .. id
      k, room = #hashes, room - 1
      hashes[k + 1], hashes[k + 2], hashes[k + 3], hashes[k + 4] = task, ARGV[at + 1], expires_at, stop
      time[#time + 1] = expires_at
    else
      time[#time + 1] = '0'
    end
    at, task_at = at + 5, task_at + 1
  end
  if members[1] then indexes[#indexes + 1] = { idx, size, due, members, longest } end
end

if timers[1] then
  local queue, earliest, scores, after, new_score = KEYS[task_at], math.huge, {}
  for _, timer in ipairs(timers) do
    local member = ARGV[timer + 1]
    local before = tonumber(redis.call('ZSCORE', queue, member))
    if before or ARGV[timer] ~= after then
      after = not before and ARGV[timer]
      -- The time is rounded down, because a timer never fires later than requested.
      local fires_at = math.min(math.floor(now) + ARGV[timer], math.floor(before or math.huge))
      earliest, new_score = math.min(earliest, fires_at), score(fires_at, before, time[2])
    end
    scores[#scores + 1], scores[#scores + 2] = new_score, member
  end
  wake(queue, earliest, ARGV[2], ARGV[3])
  redis.call('ZADD', queue, unpack(scores))
end

for i, index in ipairs(indexes) do
  local idx, size, due, members, longest = unpack(index)
  local last = digits(now + longest)
  if size == 0 and i == 1 then begin_index(idx, last) end
  redis.call('ZADD', idx, unpack(members))
  extend(idx, size, last, now + longest + 1, hashes[1])
  if due > 0 then purge(idx, now_ms) end
end

for i = 1, #hashes, 4 do
  local task = hashes[i]
  redis.call('HSET', task, 'version', '1', 'data', hashes[i + 1], 'expires_at', hashes[i + 2])
  redis.call('PEXPIREAT', task, hashes[i + 3])
end
return table.concat(time, ' ')
