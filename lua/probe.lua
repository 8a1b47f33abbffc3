-- probe: runs each command of the other scripts, except those that publish. It shows which commands the server lacks
-- and which permissions the user lacks. It leaves nothing behind.
--
-- KEYS[1] probe     a key that only this script uses
--
-- Reply: { 'seconds microseconds', { command, error, ... } }: each command that failed, and the text of the server; the
--   clock is 0 if TIME failed
-- Errors: none of its own

local probe, failed = KEYS[1], {}

local function try(command, ...)
  local reply = redis.pcall(command, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  failed[#failed + 1], failed[#failed + 2] = command, reply.err:sub(1, 300)
end

-- Only the first two commands create the key. Each of the next three removes it, so one missing permission leaves no
-- key.
try('HSETNX', probe, 'version', '1')
try('HSET', probe, 'version', '1')
try('HDEL', probe, 'version')
try('PEXPIREAT', probe, '1')
try('DEL', probe)
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
local time = try('TIME') or { 0, 0 }
return { table.concat(time, ' '), failed }
