-- Redis runs the scripts on Lua 5.1 with these globals.
std = "lua51"
read_globals = { "redis", "KEYS", "ARGV" }
max_line_length = 120

-- A fragment is put in front of the scripts that include it: what it defines is used there.
local fragments = {
  "LAST_VERSION", "is_readable", "read_record",
  "int", "read_index", "next_creation", "set_expiry", "settle_expiry", "remove_members",
}
files["lua/*.lua"] = { read_globals = fragments }
files["lua/include/*.lua"] = { read_globals = fragments, ignore = { "211" } }
