#!/usr/bin/env bash
# Starts or stops a local PostgreSQL at POSTGRES_URL, with its data in a folder of its own below TMPDIR: postgres.sh up|down
# `up` does nothing if a server answers at POSTGRES_URL. `down` stops only a server that `up` started, and removes its data.
set -euo pipefail
cd "$(dirname "$0")/.."

address=${POSTGRES_URL:-postgres://postgres@127.0.0.1:5433/postgres}
address=${address#*://}
user=${address%%@*}
[ "$user" != "$address" ] || user=postgres
user=${user%%:*}
address=${address##*@}
address=${address%%[/?]*}
host=${address%:*}
port=${address##*:}
[ "$host" != "$address" ] || port=5432
[ -n "$host" ] || host=127.0.0.1
folder=${TMPDIR:-/tmp}/mcp-task-store-postgres-$(id -u)-$port

programs() { # prints the folder of initdb and pg_ctl, and fails if there is none
	local found
	found=$(command -v pg_ctl || ls -v /usr/lib/postgresql/*/bin/pg_ctl 2>/dev/null | tail -n 1)
	[ -n "$found" ] && dirname "$(readlink -f "$found")"
}

as_user() { # runs a command as a user that may run a server: PostgreSQL refuses to run as root
	if [ "$(id -u)" = 0 ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi
}

answers() { # succeeds if a server accepts connections at the address
	"$(programs)/pg_isready" -q -h "$host" -p "$port"
}

up() {
	scripts/need.sh "command -v pg_ctl || ls /usr/lib/postgresql/*/bin/pg_ctl" postgresql postgresql
	if answers; then echo "PostgreSQL answers at $host:$port"; return; fi
	case $host in
		127.0.0.1 | localhost) ;;
		*) echo "error: no PostgreSQL answers at $host:$port; start one on that machine, or set POSTGRES_URL to another server" >&2; exit 1 ;;
	esac
	rm -rf "$folder"
	mkdir -m 700 "$folder"
	if [ "$(id -u)" = 0 ]; then chown postgres "$folder"; fi
	as_user "$(programs)/initdb" -D "$folder/data" -U "$user" --auth=trust --encoding=UTF8 --no-locale >/dev/null
	# The tests of crashes start servers of their own, so this one need not wait for the disk.
	as_user "$(programs)/pg_ctl" -D "$folder/data" -l "$folder/log" -w -s start \
		-o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300 -c fsync=off" || {
		echo "error: PostgreSQL did not start at $host:$port; the end of its log:" >&2
		tail -n 5 "$folder/log" >&2
		exit 1
	}
	echo "started PostgreSQL at $host:$port; its data is in $folder"
}

down() {
	if [ ! -f "$folder/data/postmaster.pid" ]; then
		echo "nothing to stop: no server that make postgres-up started is running"
	else
		as_user "$(programs)/pg_ctl" -D "$folder/data" -m fast -w -s stop
		echo "stopped the server that make postgres-up started"
	fi
	rm -rf "$folder"
}

case ${1:-} in
	up) up ;;
	down) down ;;
	*) echo "usage: postgres.sh up|down" >&2; exit 2 ;;
esac
