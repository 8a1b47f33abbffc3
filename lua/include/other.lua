-- When the longest-lived record expires, apart from the record of `mark`; 0 if there is no other. `members` are the two
-- that expire last, with their scores.
local function last_other(members, mark)
  return tonumber(members[1] ~= mark and members[2] or members[4]) or 0
end
