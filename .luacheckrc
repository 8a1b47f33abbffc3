-- Redis runs the scripts on Lua 5.1 with these globals.
std = "lua51"
read_globals = { "redis", "cjson", "KEYS", "ARGV" }
max_line_length = 120

-- A fragment is put into the middle of a script: each uses what the other defines, and may fill a block.
files["lua/*.lua"] = {
  read_globals = { "digits", "last_but", "settle", "score", "wake" },
  ignore = { "211/now", "542" },
}
files["lua/include/*.lua"] = {
  read_globals = { "call", "idx", "exp", "now", "version", "expires_at", "has_data", "is_live", "time", "due" },
  ignore = { "211" },
}
