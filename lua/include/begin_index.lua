-- Prepares the first write to an index that does not exist. Neither command changes anything. A server without free
-- memory refuses the first one: once a script has written, the server refuses none of its later commands for lack of
-- memory. A user who lacks the permission for the second one gets no index that never expires.
local function begin_index(idx, stop)
  redis.call('ZADD', idx, 'XX', stop, '')
  redis.call('PEXPIREAT', idx, stop)
end
