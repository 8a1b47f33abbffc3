-- Publishes `message` to the subscribers of `channel`; '' notifies nobody. A script publishes before it writes: a user
-- without the permission to publish is refused before anything has changed.
local function notify(channel, publish, message)
  if channel ~= '' then redis.call(publish, channel, message) end
end
