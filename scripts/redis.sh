#!/usr/bin/env bash
# Starts or stops a local Redis at REDIS_URL, with its data in .redis: redis.sh up|down
# `up` does nothing if a server answers at REDIS_URL. `down` stops only a server that `up` started.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=.redis

address=${REDIS_URL:-redis://127.0.0.1:6379}
address=${address#*://}
address=${address##*@}
address=${address%%[/?]*}
host=${address%:*}
port=${address##*:}
[ "$host" != "$address" ] || port=6379
[ -n "$host" ] || host=127.0.0.1

replies() { # prints the reply of the server at the address to PING, and fails if no Redis server replies
	(
		exec 3<>"/dev/tcp/$host/$port" && printf 'PING\r\n' >&3 && IFS= read -r -t 2 reply <&3 && [[ $reply == [+-]* ]] && echo "$reply"
	) 2>/dev/null
}

answers() { # succeeds if a Redis server answers at the address; waits while it loads its data
	local reply
	for _ in $(seq 600); do
		reply=$(replies) || return 1
		# Without a password, any error but this one says that the server is ready.
		if [[ $reply != -LOADING* ]]; then return; fi
		sleep 0.1
	done
	echo "error: the Redis at $host:$port still loads its data after 60 s; wait until it answers PING, or remove its data" >&2
	exit 1
}

started() { # sets pid to the process that `up` started, and succeeds if it still runs
	pid=$(cat $folder/redis.pid 2>/dev/null) || return 1
	if [ -e /proc/self/cwd ]; then
		[ "$(readlink "/proc/$pid/cwd")" = "$(pwd -P)/$folder" ]
	else
		ps -p "$pid" -o args= | grep -Eq '(redis|valkey)-server'
	fi
}

up() {
	if answers; then echo "Redis answers at $host:$port"; return; fi
	case $host in
		127.0.0.1 | localhost) ;;
		*) echo "error: no Redis answers at $host:$port; start one on that machine, or set REDIS_URL to another server" >&2; exit 1 ;;
	esac
	local server
	server=$(command -v "${REDIS_SERVER:-redis-server}" || command -v valkey-server || true)
	if [ -z "$server" ]; then
		scripts/need.sh false redis-server "redis-server or valkey-server"
		# The package may start the server as a service.
		if answers; then echo "Redis answers at $host:$port"; return; fi
		server=redis-server
	fi
	mkdir -p $folder
	cd $folder
	"$server" --port "$port" --bind 127.0.0.1 --appendonly yes --save "" --maxmemory-policy noeviction \
		--daemonize yes --dir "$PWD" --pidfile "$PWD/redis.pid" --logfile "$PWD/redis.log" >/dev/null
	for _ in $(seq 100); do
		if answers; then echo "started $(basename "$server") at $host:$port; its data is in $folder"; return; fi
		sleep 0.1
	done
	echo "error: $server did not answer at $host:$port within 10 s; the end of its log:" >&2
	tail -n 5 redis.log >&2
	exit 1
}

down() {
	if ! started; then
		echo "nothing to stop: no server that make redis-up started is running"
		rm -f $folder/redis.pid
		return
	fi
	kill "$pid"
	for _ in $(seq 100); do
		if ! kill -0 "$pid" 2>/dev/null; then echo "stopped the server that make redis-up started"; return; fi
		sleep 0.1
	done
	echo "error: the Redis of make redis-up (process $pid) did not stop within 10 s; run kill -9 $pid" >&2
	exit 1
}

case ${1:-} in
	up) up ;;
	down) down ;;
	*) echo "usage: redis.sh up|down" >&2; exit 2 ;;
esac
