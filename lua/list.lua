-- list: the ids of one page, newest first by creation. Writes nothing.
--
-- KEYS[1] idx       the owner's index
-- ARGV[1] below     creation time at which the page before ended, or '+inf'
-- ARGV[2] limit     how many ids at most
--
-- Reply: { seconds, microseconds of the server's clock, { id, creation time, id, creation time, ... } }
-- Errors: none of its own

local time = redis.call('TIME')
-- Creation times lie above 10^14, what the index holds by expires_at below.
local members = redis.call('ZRANGE', KEYS[1], '(' .. ARGV[1], '100000000000000', 'BYSCORE', 'REV',
  'LIMIT', '0', ARGV[2], 'WITHSCORES')
return { time[1], time[2], members }
