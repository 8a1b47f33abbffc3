#!/usr/bin/env bash
# Checks the dependencies with cargo-deny: licenses, duplicates and sources. If the database of advisories can be reached, also checks
# advisories.
set -euo pipefail
cd "$(dirname "$0")/.."
database=https://github.com/RustSec/advisory-db
if ! cargo deny --version >/dev/null 2>&1; then
	# A build without optimization takes half a minute; an optimized one takes minutes.
	echo "installing cargo-deny"
	CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --debug --locked cargo-deny@^0.20
fi
cargo deny check licenses bans sources
for package in peers turul; do
	cargo deny --manifest-path benches/$package/Cargo.toml --locked check sources
done
limit=()
if command -v timeout >/dev/null; then limit=(timeout 60); fi
if reason=$("${limit[@]}" cargo deny fetch db 2>&1); then
	cargo deny check advisories
else
	reason=$(tail -n 1 <<<"$reason")
	echo "warning: advisories are not checked, because the database at $database cannot be reached (${reason:-no answer within 60 s})"
fi
