-- Returns the time at which the longest-lived record other than that of `mark` expires; 0 if there is no other record.
-- `members` are the two members that expire last, with their scores.
local function last_other(members, mark)
  return tonumber(members[1] ~= mark and members[2] or members[4]) or 0
end
