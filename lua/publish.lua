-- publish: publishes one message as the other scripts do, to find out whether this command works on the server.
--
-- ARGV[1] channel   where to publish
-- ARGV[2] publish   the command to publish with
-- ARGV[3] message   what to publish
--
-- Reply: how many subscribers of this server received it
-- Errors: none of its own

return redis.call(ARGV[2], ARGV[1], ARGV[3])
