-- resolve: moves or removes a timer that was taken, unless another call has scheduled or taken it since.
--
-- KEYS[1] due       the timers of the queue by due time
-- ARGV[1] member    the task's key
-- ARGV[2] token     the score that the timer got when it was taken
-- ARGV[3] after     the time until the timer fires again, in milliseconds; '' to remove the timer
-- ARGV[4] channel   the channel of the takers, '' to send no notification
-- ARGV[5] publish   the command to publish with
--
-- Reply: 'seconds microseconds effect': effect is 1 if the token was valid, else 0
-- Errors: none of its own

-- @include score
-- @include wake

local due, member = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local before = tonumber(redis.call('ZSCORE', due, member))
time[3] = 0
if before and before == tonumber(ARGV[2]) then
  time[3] = 1
  if ARGV[3] == '' then
    redis.call('ZREM', due, member)
  else
    local at = math.floor(time[1] * 1000 + time[2] / 1000) + ARGV[3]
    wake(due, at, ARGV[4], ARGV[5])
    redis.call('ZADD', due, score(at, before, time[2]), member)
  end
end
return table.concat(time, ' ')
