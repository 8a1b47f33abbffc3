#!/usr/bin/env bash
# Fuzzes each target for FUZZ_SECONDS (300): what writes keys, and what reads text of others.
# Inputs that it finds go to fuzz/found, and a failure prints the end of its log.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/need.sh "command -v c++" g++ "a C++ compiler"
if ! cargo fuzz --version >/dev/null 2>&1; then
	echo "installing cargo-fuzz"
	cargo install --quiet --locked cargo-fuzz@^0.13
fi
# No sanitizer: in a crate without unsafe code it finds nothing, is slow, and needs a nightly Rust.
cargo fuzz build --sanitizer none
for target in $(cargo fuzz list); do
	found=fuzz/found/$target
	mkdir -p "$found"
	echo "fuzzing $target for ${FUZZ_SECONDS:=300} s"
	if ! cargo fuzz run --sanitizer none "$target" "$found" "fuzz/corpus/$target" -- \
		-max_total_time="$FUZZ_SECONDS" -timeout=10 >"$found.log" 2>&1; then
		echo "error: fuzzing $target failed; the end of $found.log:" >&2
		tail -n 40 "$found.log" >&2
		exit 1
	fi
	sed -nE "s/^Done ([0-9]+) runs in ([0-9]+) second.*/figure | fuzz $target | \1 runs in \2 s, no crash/p" "$found.log"
done
