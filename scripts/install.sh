#!/usr/bin/env bash
# Installs WHAT from the registry of TOOL with a command: install.sh WHAT TOOL COMMAND...
# If the command fails, prints the end of its log, and says whether the registry cannot be reached.
set -euo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "installing $1 with $2"
if "${@:3}" >"$log" 2>&1; then exit 0; fi
tail -n 10 "$log" >&2
if grep -Eq 'ECONNREFUSED|ECONNRESET|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|FETCH_ERROR|NewConnectionError|ConnectTimeout|ReadTimeout|NameResolutionError' "$log"; then
	echo "error: $2 cannot reach its registry, so nothing was checked; check the network and the registry that $2 is configured to use" >&2
else
	echo "error: $2 cannot install $1, so nothing was checked; see the log above" >&2
fi
exit 1
