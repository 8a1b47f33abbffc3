#!/usr/bin/env bash
# Runs every test, and prints a summary: the number of programs and of passed, failed and ignored tests, the time, the slowest program.
# SELECTION names the packages and features of the second run. The script fails if a test fails, or if a program does not build.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
begun=$SECONDS
failed=0
run() {
	echo "== cargo test $*"
	cargo test --no-fail-fast "$@" 2>&1 | tee -a "$log" || failed=1
}

# The first run has no features, and covers the library without Redis. The run with all features covers the other programs, and
# runs the tests of the lifecycle on the memory engine too.
run --lib --test contract
# One call for the library, the command line, the console and the example engine, so that nothing is built twice.
run ${SELECTION:?make test sets it}

awk -v seconds=$((SECONDS - begun)) '
	/^ +Running / { program = $2 == "unittests" ? $3 : $2 }
	/^ +Doc-tests / { program = "documentation of " $2 }
	/^test .* \.\.\. FAILED$/ { failures[++failed_tests] = program ": " $2 }
	/^test result: / {
		programs++
		passed += $4; failed += $6; ignored += $8
		time = $NF; sub(/s$/, "", time)
		if (time + 0 > slowest) { slowest = time + 0; slowest_program = program }
	}
	END {
		printf "\n%d programs: %d passed, %d failed, %d ignored, in %d min %02d s\n", programs, passed, failed, ignored, seconds / 60, seconds % 60
		if (slowest_program) printf "slowest: %s, %.0f s\n", slowest_program, slowest
		for (i = 1; i <= failed_tests; i++) print "FAILED " failures[i]
	}' "$log"
if [ $failed != 0 ]; then echo "error: a test failed, or a program did not build; see the output above" >&2; fi
exit $failed
