-- resolve: moves or removes a timer that was taken, unless somebody has scheduled or taken it since.
--
-- KEYS[1] due       the timers of the queue by due time
-- ARGV[1] member    the task's key
-- ARGV[2] token     the score that the taking gave the timer
-- ARGV[3] after     in milliseconds from now, '' to remove the timer
-- ARGV[4] channel   where takers listen, '' to notify nobody
-- ARGV[5] publish   the command to publish with
--
-- Reply: 'seconds microseconds effect', the server's clock first; effect is 1 if the token was valid, else 0
-- Errors: none of its own

local call, due = redis.call, KEYS[1]
local member, token, after, channel, publish = unpack(ARGV)
local time = call('TIME')

-- @include score
-- @include wake

local before, effect = tonumber(call('ZSCORE', due, member)), 0
if before and before == tonumber(token) then
  effect = 1
  if after == '' then
    call('ZREM', due, member)
  else
    local at = math.floor(time[1] * 1000 + time[2] / 1000) + after
    wake(channel, publish, at)
    call('ZADD', due, score(at, before), member)
  end
end
return time[1] .. ' ' .. time[2] .. ' ' .. effect
