-- list: the ids of one page, newest first by creation time. Writes nothing.
--
-- KEYS[1] idx       the owner's index
-- ARGV[1] below     the creation time at which the previous page ended, or '+inf'
-- ARGV[2] limit     how many ids at most
--
-- Reply: { 'seconds microseconds', { id, creation time, id, creation time, ... } }
-- Errors: none of its own

local time = redis.call('TIME')
-- Creation times are above 10^14, and the values of expires_at are below.
return { table.concat(time, ' '), redis.call('ZRANGE', KEYS[1], '(' .. ARGV[1], '100000000000000', 'BYSCORE', 'REV',
  'LIMIT', '0', ARGV[2], 'WITHSCORES') }
