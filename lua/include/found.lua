-- Whether the field `parts` can be read; false for no field. It lists name and size of each part as 'name=size '.
local function is_list(parts)
  return not parts or parts:gsub('[a-z0-9_]+=%d%d?%d?%d?%d?%d?%d?%d?%d?%d? ', '') == ''
end

-- The error reply of a write that requires another record than there is. It has the fields of that record, as JSON in
-- ASCII. The caller concludes from them whether the record is absent, at another version, or damaged.
local function found(version, expires_at, has_data, is_live, has_parts)
  return redis.error_reply('FOUND ' ..
    cjson.encode({ version, expires_at, has_data, is_live, has_parts }):gsub('[^ -~]', '?'))
end
