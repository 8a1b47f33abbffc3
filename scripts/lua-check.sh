#!/bin/bash
# Checks each script of lua/ with luacheck, with its includes expanded, as the server receives it. A warning fails the check. It
# names a file in a temporary folder, with the line numbers of the expanded script. After a warning, the script keeps this folder.
set -eu -o pipefail
cd "$(dirname "$0")/.."

whole() { # expands the includes of a script, as `whole` in src/scripts/mod.rs does
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
