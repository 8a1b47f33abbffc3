-- publish: publishes one message as the other scripts do. It shows whether the publishing command works on the server.
--
-- ARGV[1] channel   the channel to publish to
-- ARGV[2] publish   the command to publish with
-- ARGV[3] message   the message
--
-- Reply: 'seconds microseconds'
-- Errors: none of its own

-- @include notify

local time = redis.call('TIME')
notify(ARGV[1], ARGV[2], ARGV[3])
return table.concat(time, ' ')
