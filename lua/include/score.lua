-- Returns the score of a timer that is due at `at`, in milliseconds. `before` is its score so far, nil for a new timer,
-- and `microseconds` are those of the server's clock. The fraction of a score is a salt of ten bits, which changes with
-- every write of the timer: each write has a score of its own, and the score is the token. A new timer takes its salt
-- from the microseconds, which differ between two writes of one millisecond. Scores are exact until the year 2248.
local function score(at, before, microseconds)
  local salt = before and math.abs(before) < 2 ^ 43 and before * 1024 + 1 or microseconds
  return ('%.17g'):format(at + math.floor(salt % 1024) / 1024)
end
