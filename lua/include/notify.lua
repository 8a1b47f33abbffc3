-- Publishes `message` to the subscribers of `channel`; '' sends no notification. A script publishes before it writes:
-- the server refuses a user without the permission to publish before anything has changed.
local function notify(channel, publish, message)
  if channel ~= '' then redis.call(publish, channel, message) end
end
