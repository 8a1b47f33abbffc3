-- The score of a timer that is due at `at`, in milliseconds. Its fraction is a salt of ten bits, which changes with
-- every write of the timer: so each write has a score of its own, and the score is the token. A new timer takes the
-- salt from the clock's microseconds, as no two of one millisecond are alike. Exact until the year 2248. Needs `time`
-- before it.
local function score(at, before)
  local salt = before and math.abs(before) < 2 ^ 43 and before * 1024 + 1 or time[2]
  return ('%.17g'):format(at + math.floor(salt % 1024) / 1024)
end
