-- The refusal of a write that finds another record than it wants, or none: whether there are data and whether the
-- record is live (1 or 0), the lengths of `version` and `expires_at` (-1 if missing), and both in one, `?` for what is
-- no digit. What it means for the caller is for the caller to say.
return redis.error_reply('FOUND ' .. has_data .. (is_live and ' 1 ' or ' 0 ') .. (version and #version or -1) .. ' '
  .. (expires_at and #expires_at or -1) .. ' ' .. ((version or '') .. (expires_at or '')):gsub('%D', '?'))
