-- schedule: makes a timer fire no later than `after` from now. A timer that fires earlier keeps its time. In both cases
-- its score changes, which voids the token of the previous taker.
--
-- KEYS[1] due       the timers of the queue by due time
-- ARGV[1] member    the task's key
-- ARGV[2] after     the time until the timer fires, in milliseconds
-- ARGV[3] channel   the channel of the takers, '' to send no notification
-- ARGV[4] publish   the command to publish with
--
-- Reply: 'seconds microseconds'
-- Errors: none of its own

-- @include score
-- @include wake

local due, member = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local before = tonumber(redis.call('ZSCORE', due, member))
-- The time is rounded down, because a timer never fires later than requested.
local at = math.floor(time[1] * 1000 + time[2] / 1000) + ARGV[2]
if before then at = math.min(at, math.floor(before)) end

wake(due, at, ARGV[3], ARGV[4])
redis.call('ZADD', due, score(at, before, time[2]), member)
return table.concat(time, ' ')
