-- schedule: makes a timer fire no later than a time from now. One that fires earlier stays. Either way its score
-- changes, which voids the token of the taker before.
--
-- KEYS[1] due       the timers of the queue by due time
-- ARGV[1] member    the task's key
-- ARGV[2] after     in milliseconds from now
-- ARGV[3] channel   where takers listen, '' to notify nobody
-- ARGV[4] publish   the command to publish with
--
-- Reply: 'seconds microseconds', the server's clock
-- Errors: none of its own

local call, due, member = redis.call, KEYS[1], ARGV[1]
local time = call('TIME')

-- @include score
-- @include wake

local before = tonumber(call('ZSCORE', due, member))
-- Rounded down, as a timer never fires later than asked.
local at = math.floor(time[1] * 1000 + time[2] / 1000) + ARGV[2]
if before then at = math.min(at, math.floor(before)) end

wake(ARGV[3], ARGV[4], at)
call('ZADD', due, score(at, before), member)
return time[1] .. ' ' .. time[2]
