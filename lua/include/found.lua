-- Returns whether the field `parts` can be read; `parts` is false for no field. The field lists the name and size of
-- each part as 'name=size '.
local function is_list(parts)
  return not parts or parts:gsub('[a-z0-9_]+=%d%d?%d?%d?%d?%d?%d?%d?%d?%d? ', '') == ''
end

-- Returns the error reply of a write that did not find the record that it requires. The reply holds the fields of the
-- record that the write found, as JSON in ASCII. The caller derives from them whether the record is absent, at another
-- version, or damaged.
local function found(version, expires_at, has_data, is_live, has_parts)
  return redis.error_reply('FOUND ' ..
    cjson.encode({ version, expires_at, has_data, is_live, has_parts }):gsub('[^ -~]', '?'))
end
