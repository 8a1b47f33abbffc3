#!/bin/bash
# Checks each script of lua/ with luacheck, as the server receives it: with the text of what it includes. A warning is a
# failure. Line numbers are those of the whole script, which stays in the folder of the message if there is a warning.
set -eu -o pipefail
cd "$(dirname "$0")/.."

whole() { # does the same as `whole` in src/scripts/mod.rs
	local line
	while IFS= read -r line; do
		case $line in
			"-- @include "*) whole <"lua/include/${line#-- @include }.lua" ;;
			*) printf '%s\n' "$line" ;;
		esac
	done
}

folder=$(mktemp -d)
for script in lua/*.lua; do
	whole <"$script" >"$folder/$(basename "$script")"
done
luacheck --no-color --config .luacheckrc "$folder"
rm -r "$folder"
