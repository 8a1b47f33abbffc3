#!/usr/bin/env bash
# Fuzzes each target for FUZZ_SECONDS (300): the encoding of keys, and the parsers of cursors, envelopes, records and script errors.
# New inputs and logs are stored in fuzz/found. If a target fails, the script prints the end of its log.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/need.sh "command -v c++" g++ "a C++ compiler"
if ! cargo fuzz --version >/dev/null 2>&1; then
	echo "installing cargo-fuzz"
	cargo install --quiet --locked cargo-fuzz@^0.13
fi
# Without a sanitizer: it would find nothing in a crate without unsafe code, is slow, and needs a nightly Rust.
cargo fuzz build --sanitizer none
for target in $(cargo fuzz list); do
	found=fuzz/found/$target
	mkdir -p "$found"
	echo "fuzzing $target for ${FUZZ_SECONDS:=300} s"
	if ! cargo fuzz run --sanitizer none "$target" "$found" "fuzz/corpus/$target" -- \
		-max_total_time="$FUZZ_SECONDS" -timeout=10 >"$found.log" 2>&1; then
		echo "error: the fuzz target $target failed; the input is in fuzz/artifacts; the end of $found.log:" >&2
		tail -n 40 "$found.log" >&2
		exit 1
	fi
	sed -nE "s/^Done ([0-9]+) runs in ([0-9]+) second.*/figure | fuzz $target | \1 runs in \2 s, no crash/p" "$found.log"
done
