-- probe: runs each command that the other scripts run, except those that publish, to find out what the server lacks and
-- which rights the user lacks. It leaves nothing behind.
--
-- KEYS[1] probe     a key that only this script uses
--
-- Reply: { command, error, ... }: for each command that failed, and the server's words
-- Errors: none of its own

local probe, failed = KEYS[1], {}

local function try(command, ...)
  local reply = redis.pcall(command, ...)
  if type(reply) == 'table' and reply.err then
    failed[#failed + 1] = command
    failed[#failed + 1] = reply.err:sub(1, 300)
  end
end

-- Only the first two create the key. It goes with any one of the next three, should a right be missing to the others.
try('HSETNX', probe, 'version', '1')
try('HSET', probe, 'version', '1')
try('HDEL', probe, 'version')
try('PEXPIREAT', probe, '1')
try('DEL', probe)
try('TIME')
try('EXISTS', probe)
try('HGET', probe, 'version')
try('HMGET', probe, 'version')
try('HEXISTS', probe, 'version')
try('PERSIST', probe)
try('ZADD', probe, 'XX', '0', '')
try('ZREM', probe, '')
try('ZCARD', probe)
try('ZCOUNT', probe, '-inf', '0')
try('ZRANGE', probe, '0', '0')
try('ZSCORE', probe, '')
return failed
