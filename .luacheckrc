-- Redis runs the scripts on Lua 5.1 with these globals.
std = "lua51"
read_globals = { "redis", "cjson", "KEYS", "ARGV" }
max_line_length = 120

-- A fragment is put into the middle of a script: each uses what the other defines, and may fill a block.
files["lua/*.lua"] = {
  read_globals = { "FOREVER", "digits", "has_parts", "latest", "score", "settle", "wake" },
  ignore = { "211/now", "211/parts", "542" },
}
files["lua/include/*.lua"] = {
  read_globals = {
    "call", "due", "has_data", "has_parts", "idx", "is_live", "expires_at", "now", "parts", "time", "version",
  },
  ignore = { "211" },
}
