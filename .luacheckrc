-- Redis runs the scripts on Lua 5.1 with these globals.
std = "lua51"
read_globals = { "redis", "cjson", "KEYS", "ARGV" }
max_line_length = 120

-- A fragment is put into the middle of a script: each uses what the other defines, and may fill a block.
files["lua/*.lua"] = {
  read_globals = { "FOREVER", "digits", "has_parts", "latest", "settle" },
  ignore = { "211/now", "211/parts", "542" },
}
files["lua/include/*.lua"] = {
  read_globals = { "call", "idx", "now", "version", "expires_at", "has_data", "is_live", "parts", "has_parts" },
  ignore = { "211" },
}
