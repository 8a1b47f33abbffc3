-- The refusal of a write that finds another record than it wants, or none: what it found, as JSON in ASCII. What that
-- means for the caller is for the caller to say.
return redis.error_reply('FOUND ' ..
  cjson.encode({ version, expires_at, has_data, is_live, has_parts }):gsub('[^ -~]', '?'))
