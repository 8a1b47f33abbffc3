#!/usr/bin/env bash
# Checks the format, clippy for each set of features, and the documentation.
set -euo pipefail
cd "$(dirname "$0")/.."
peers=benches/peers/Cargo.toml
turul=benches/turul/Cargo.toml
step() { echo "== $*"; "$@"; }

step cargo fmt --all --check
step cargo fmt --manifest-path $peers --check
step cargo fmt --manifest-path $peers --package sqlite_calls --check
step cargo fmt --manifest-path $turul --package turul --check
# Tests and examples enable the feature rmcp. So clippy also checks each set of features without tests and examples.
for set in "" encryption metrics otel sqlite postgres redis redis-cluster redis-sentinel redis-tls rmcp pmcp otel,rmcp otel,redis otel,postgres; do
	step cargo clippy --features "$set" -- -D warnings
done
step cargo clippy --all-targets -- -D warnings
step cargo clippy --all-targets ${SELECTION:?make check sets it} -- -D warnings
step cargo clippy --manifest-path $peers --workspace -- -D warnings
step cargo clippy --manifest-path $turul -- -D warnings
export RUSTDOCFLAGS="-D warnings"
step cargo doc --no-deps
step cargo doc --no-deps --all-features
tree=$(cargo tree --edges normal --prefix none)
if grep -E '^(chacha20poly1305|metrics|opentelemetry|redis|rmcp|pmcp|rusqlite|tokio-postgres|tracing-opentelemetry) ' <<<"$tree"; then
	echo "error: a build without features depends on the crates above; make each optional" >&2
	exit 1
fi
