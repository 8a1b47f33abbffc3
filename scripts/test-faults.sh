#!/usr/bin/env bash
# Runs the fault tests and their long forms, then fuzzes each target. Prints all figures as one table.
set -euo pipefail
cd "$(dirname "$0")/.."
figures=$(mktemp)
trap 'rm -f "$figures"' EXIT
export FAULT_ROUNDS=20
for suite in faults "redis cluster:: sentinel:: one_owner::" "lifecycle lost_workers::" "sqlite kills:: churn::"; do
	read -ra words <<<"$suite"
	test=(cargo test ${SELECTION:?make test-faults sets it} --test "${words[0]}" -- --nocapture)
	echo "== ${suite}"
	"${test[@]}" "${words[@]:1}" | tee -a "$figures"
	echo "== ${suite}, long tests"
	"${test[@]}" --ignored long --skip load::long | tee -a "$figures"
done
echo "== the load of 100,000 calls, in a build with optimization"
cargo test --release ${SELECTION:?make test-faults sets it} --test faults -- --nocapture --ignored load::long | tee -a "$figures"
scripts/fuzz.sh | tee -a "$figures"
echo
sed -n 's/^.*figure | //p' "$figures" | column -t -s '|' -o '|'
