-- insert: creates records that expire and have no parts, at version 1. Leaves out each record that only put can decide
-- on: it exists, its owner is at the quota, or the owner's index is newer than the server's clock or cannot be read.
-- First schedules the timers of the records, as schedule does.
--
-- KEYS[1..] key      the index of each owner, the hash of each record in the order of the owners, each key once, and
--                    the timers of the queue, if the records have timers
-- ARGV[1]   owners   the number of owners
-- ARGV[2]   records  the number of records
-- ARGV[3]   channel  the channel of the takers, '' to send no notification
-- ARGV[4]   publish  the command to publish with
-- ARGV[5..] record   for each owner: the maximum number of its live records, '' for no limit, and the number of its
--                    new records; for each of these: the task id, the record's bytes, the milliseconds until it
--                    expires. Then for each timer: the milliseconds until it fires, and its member
--
-- Reply: 'seconds microseconds expires_at ...': for each record expires_at, 0 if it was left out
-- Errors: none of its own

-- @include begin_index
-- @include digits
-- @include extend
-- @include purge
-- @include score
-- @include wake

-- Locals are faster than globals.
local KEYS, ARGV = KEYS, ARGV
local owners, records, at = tonumber(ARGV[1]), tonumber(ARGV[2]), 5
local task_at, queue = owners + 1, KEYS[owners + records + 1]
local time = redis.call('TIME')
-- Milliseconds with a fraction, which `digits` drops.
local now, micros = time[1] * 1000 + time[2] / 1000, time[1] * 1000000 + time[2]
local now_ms, first = digits(now), digits(micros)
local none_exists = redis.call('EXISTS', unpack(KEYS, task_at, owners + records)) == 0
-- The expiry of the latest record, the time at which it ends, its expires_at, and the last millisecond in which Redis
-- holds the key. A record expires one millisecond later, because `digits` rounds the clock down.
local expiry, ends, expires_at, stop, has_written

if queue then
  local earliest, scores, after, new_score = math.huge, {}
  for i = #ARGV - 2 * records + 1, #ARGV, 2 do
    local member = ARGV[i + 1]
    local before = tonumber(redis.call('ZSCORE', queue, member))
    if before or ARGV[i] ~= after then
      after = not before and ARGV[i]
      -- The time is rounded down, because a timer never fires later than requested.
      local fires_at = math.min(math.floor(now) + ARGV[i], math.floor(before or math.huge))
      earliest, new_score = math.min(earliest, fires_at), score(fires_at, before, time[2])
    end
    scores[#scores + 1], scores[#scores + 2] = new_score, member
  end
  wake(queue, earliest, ARGV[3], ARGV[4])
  redis.call('ZADD', queue, unpack(scores))
end

-- Each script removes the members of expired records from one index, because few indexes have any. No record has been
-- created then: a user who lacks the permission must not receive an error for a record that was created. ZADD XX
-- changes nothing. A server without free memory refuses it: once a script has written, the server refuses none of its
-- later commands for lack of memory.
redis.call('ZADD', KEYS[1], 'XX', '0', '')
purge(KEYS[time[2] % owners + 1], now_ms)

-- The script writes the hashes of an owner last. A user who lacks the permission for one command leaves neither a
-- record nor an index that never expires, and no error leaves a part of the records.
for owner = 1, owners do
  local idx, quota, count = KEYS[owner], ARGV[at], ARGV[at + 1]
  local size, room, last, created_at, members, hashes = redis.pcall('ZCARD', idx), math.huge, 0, first
  -- Until a record is written, the script runs this command for new indexes too. A user who lacks the permission must
  -- receive the error before that.
  if type(size) == 'table' or (size > 0 or not has_written) and redis.call('ZCOUNT', idx, first, '+inf') > 0 then
    room = 0
  elseif quota ~= '' then
    room = quota - size / 2
    if room - count < 0 then room = room + redis.call('ZCOUNT', idx, '-inf', now_ms) end
  end
  at = at + 2
  for i = 1, count do
    local id, task = ARGV[at], KEYS[task_at]
    if room > 0 and (none_exists or redis.call('EXISTS', task) == 0) then
      if ARGV[at + 2] ~= expiry then
        expiry = ARGV[at + 2]
        ends = now + expiry
        expires_at, stop = digits(ends + 1), digits(ends)
      end
      if ends > last then last = ends end
      if i > 1 then created_at = digits(micros + i) end
      if members then
        local k = #members
        members[k + 1], members[k + 2], members[k + 3], members[k + 4] = created_at, id, expires_at, '\255' .. id
        hashes[k + 1], hashes[k + 2], hashes[k + 3], hashes[k + 4] = task, ARGV[at + 1], expires_at, stop
      else
        members, hashes = { created_at, id, expires_at, '\255' .. id }, { task, ARGV[at + 1], expires_at, stop }
      end
      time[#time + 1], room = expires_at, room - 1
    else
      time[#time + 1] = '0'
    end
    at, task_at = at + 3, task_at + 1
  end
  if members then
    local till = last == ends and stop or digits(last)
    if size == 0 and not has_written then begin_index(idx, till) end
    has_written = true
    local added = redis.call('ZADD', idx, unpack(members))
    extend(idx, size > 0, added < #members / 2, till, hashes[1])
    for i = 1, #hashes, 4 do
      local task = hashes[i]
      redis.call('HSET', task, 'version', '1', 'data', hashes[i + 1], 'expires_at', hashes[i + 2])
      redis.call('PEXPIREAT', task, hashes[i + 3])
    end
  end
end
return table.concat(time, ' ')
