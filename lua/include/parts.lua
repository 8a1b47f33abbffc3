-- Whether the field `parts`, which lists name and size of each part as 'name=size ', can be read. One that is not there
-- lists none. Needs `parts` before it.
local has_parts = not parts
  or parts:gsub('[a-z0-9_]+=%d%d?%d?%d?%d?%d?%d?%d?%d?%d? ', '') == ''
