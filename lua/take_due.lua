-- take_due: takes timers that are due, from the queues in their order, and from each queue the earliest first. In the
-- same step it moves each timer to `hide_for` from now, so no other taker gets the timer before that time. With a limit
-- of 0 it writes nothing.
--
-- KEYS[1..] due       the timers of each queue by due time, each key once
-- ARGV[1]   hide_for  how long a taken timer is hidden, in milliseconds
-- ARGV[2]   limit     how many timers at most, over all queues
--
-- Reply: { 'seconds microseconds', { for each queue: the first score, '' if it has no timer; how many are due },
--   { for each timer taken: the number of its queue, member, the score before, the score now } }
-- Errors: none of its own

-- @include score

local left = tonumber(ARGV[2])
local time = redis.call('TIME')
-- A timer is due from the beginning of its millisecond on, whatever its salt.
local later = math.floor(time[1] * 1000 + time[2] / 1000) + 1
local hidden_until, below, queues, taken = later - 1 + ARGV[1], ('(%.17g'):format(later), {}, {}

local function first_score(due) return redis.call('ZRANGE', due, '0', '0', 'WITHSCORES')[2] end

-- Takes up to `left` due timers of one queue, and hides them.
local function take(queue, due)
  local found, moved = redis.call('ZRANGE', due, '-inf', below, 'BYSCORE', 'LIMIT', '0', left, 'WITHSCORES'), {}
  for i = 1, #found, 2 do
    local token, last = score(hidden_until, tonumber(found[i + 1]), time[2]), #taken
    moved[i], moved[i + 1] = token, found[i]
    taken[last + 1], taken[last + 2], taken[last + 3], taken[last + 4] = queue, found[i], found[i + 1], token
  end
  redis.call('ZADD', due, unpack(moved))
  left = left - #found / 2
end

for queue, due in ipairs(KEYS) do
  local first, count = first_score(due), 0
  if first and tonumber(first) < later then
    if left > 0 then
      take(queue, due)
      first = first_score(due)
    end
    count = redis.call('ZCOUNT', due, '-inf', below)
  end
  queues[2 * queue - 1], queues[2 * queue] = first or '', count
end
return { table.concat(time, ' '), queues, taken }
