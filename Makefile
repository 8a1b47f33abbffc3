# The commands of the project. What they want beside a Rust toolchain they install from Debian's packages, or say so.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

export REDIS_URL ?= redis://127.0.0.1:6379
REDIS_DIR := .redis
FEATURES := redis-tests,pmcp
# Most tests wait for something.
export RUST_TEST_THREADS ?= 8
FUZZ_SECONDS ?= 300
ADVISORIES := https://github.com/RustSec/advisory-db

# Installs a Debian package, or says what to install.
define install
	if command -v apt-get >/dev/null; then
		echo "installing Debian's $(1)"
		$$([ "$$(id -u)" = 0 ] || echo sudo) sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends $(1)' >/dev/null
	else
		echo "error: $(2) is needed and there is no apt-get to install it with: put it on the PATH" >&2; exit 1
	fi
endef

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: redis-up ## start an MCP server twice on one Redis, and see its tasks polled, answered, cancelled and resumed across
	@DIGEST_SERVER_REDIS_URL="$$REDIS_URL" cargo run --quiet --example digest_server --features redis

.PHONY: test
test: redis-up redis-server faketime ## run every test, on the memory engine and on Redis
	@cargo test
	cargo test --features $(FEATURES)

.PHONY: test-faults
test-faults: redis-up redis-server faketime ## run the long forms of the tests of faults, then fuzz; print one table
	@figures=$$(mktemp)
	trap 'rm -f "$$figures"' EXIT
	export FAULT_ROUNDS=20
	for suite in faults "redis cluster:: sentinel:: one_owner::" "lifecycle lost_workers::"; do
		set -- $$suite
		cargo test --features $(FEATURES) --test "$$1" -- --nocapture "$${@:2}" | tee -a "$$figures"
		cargo test --features $(FEATURES) --test "$$1" -- --nocapture --ignored long | tee -a "$$figures"
	done
	$(MAKE) --no-print-directory fuzz | tee -a "$$figures"
	echo
	sed -n 's/^.*figure | //p' "$$figures" | column -t -s '|' -o '|'

.PHONY: test-matrix
test-matrix: redis-server ## run the contract, agenda, MONITOR and model tests on Redis 6.2, 7 and 8.2 and on Valkey 9
	@if ! python3 -c 'import ensurepip' 2>/dev/null; then
		$(call install,python3-venv,python3 with venv)
	fi
	FEATURES=$(FEATURES) tests/matrix.sh

.PHONY: conformance
conformance: redis-up ## run the official MCP conformance suite on one instance, and on two behind a proxy
	@if ! command -v npm >/dev/null; then
		$(call install,npm,npm)
	fi
	FEATURES=$(FEATURES) tests/conformance/run.sh

# The harness is a package of its own, so that what it needs of the peer stays out of the crate.
PEERS := benches/peers/Cargo.toml

.PHONY: bench
bench: redis-server valgrind ## measure beside pmcp-tasks and the bare commands; write the table and charts of docs/bench
	@cargo run --quiet --release --manifest-path $(PEERS) -- table --folder docs/bench --readme README.md

.PHONY: bench-check
bench-check: redis-server valgrind # all of make bench, small and quick, with its results in a temporary folder
	@results=$$(mktemp -d)
	trap 'rm -rf "$$results"' EXIT
	cp README.md "$$results"
	cargo run --quiet --release --manifest-path $(PEERS) -- \
		table --folder "$$results" --readme "$$results/README.md" --rounds 3 --divisor 20
	for result in table.md concurrency.svg size.svg; do test -s "$$results/$$result"; done

.PHONY: bench-scale
bench-scale: redis-server ## measure a million records over 10,000 owners, and of one owner
	@cargo run --quiet --release --manifest-path $(PEERS) -- scale

.PHONY: check
check: lua-check deny ## check the format, clippy, the documentation, the Lua scripts, the dependencies
	@cargo fmt --all --check
	cargo fmt --manifest-path $(PEERS) --check
	cargo clippy --release --manifest-path $(PEERS) -- -D warnings
	# The tests and examples bring the feature rmcp in, so each set is looked at without them as well.
	for features in "" redis redis-cluster redis-sentinel redis-tls rmcp pmcp; do
		cargo clippy --features "$$features" -- -D warnings
	done
	for features in "" redis $(FEATURES); do
		cargo clippy --all-targets --features "$$features" -- -D warnings
	done
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features
	tree=$$(cargo tree --edges normal --prefix none)
	if grep -E '^(redis|rmcp|pmcp) ' <<<"$$tree"; then echo "error: a build without features pulls redis or an SDK" >&2; exit 1; fi

.PHONY: lua-check
lua-check: ## check the Lua scripts with luacheck, warnings are failures
	@if ! command -v luacheck >/dev/null; then
		$(call install,lua-check,luacheck (https://github.com/lunarmodules/luacheck))
	fi
	scripts/lua-check

.PHONY: deny
deny: ## check the dependencies with cargo-deny: licenses, duplicates, sources, and advisories where it can
	@if ! cargo deny --version >/dev/null 2>&1; then
		echo "installing cargo-deny" # without optimization: half a minute instead of minutes
		CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --debug --locked cargo-deny@^0.20
	fi
	cargo deny check licenses bans sources
	cargo deny --manifest-path $(PEERS) --locked check sources
	if reason=$$($$(command -v timeout >/dev/null && echo timeout 60) cargo deny fetch db 2>&1); then
		cargo deny check advisories
	else
		reason=$$(tail -n 1 <<<"$$reason")
		echo "advisories: not checked, the database at $(ADVISORIES) cannot be reached ($${reason:-60 s without an answer})"
	fi

.PHONY: fuzz
fuzz: ## fuzz what writes keys and what reads foreign text, FUZZ_SECONDS (300) each
	@if ! command -v c++ >/dev/null; then
		$(call install,g++,a C++ compiler)
	fi
	if ! cargo fuzz --version >/dev/null 2>&1; then
		echo "installing cargo-fuzz"
		cargo install --quiet --locked cargo-fuzz@^0.13
	fi
	# No sanitizer: in a crate without unsafe code it finds nothing, costs most of the speed and wants a nightly Rust.
	cargo fuzz build --sanitizer none
	targets=$$(cargo fuzz list)
	for target in $$targets; do
		found=fuzz/found/$$target
		mkdir -p "$$found"
		if ! cargo fuzz run --sanitizer none "$$target" "$$found" "fuzz/corpus/$$target" -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 >"$$found.log" 2>&1; then
			echo "error: fuzzing $$target failed; the end of $$found.log:" >&2
			tail -n 40 "$$found.log" >&2
			exit 1
		fi
		sed -nE "s/^Done ([0-9]+) runs in ([0-9]+) second.*/figure | fuzz $$target | \1 runs in \2 s, no crash/p" "$$found.log"
	done

.PHONY: redis-server
redis-server: # the tests start servers of their own
	@if ! command -v "$${REDIS_SERVER:-redis-server}" >/dev/null; then
		if command -v valkey-server >/dev/null; then
			echo "error: only valkey-server is here: run REDIS_SERVER=valkey-server make test" >&2; exit 1
		fi
		$(call install,redis-server,redis-server)
	fi

.PHONY: valgrind
valgrind: # counts instructions
	@if ! command -v valgrind >/dev/null; then
		$(call install,valgrind,valgrind)
	fi

.PHONY: faketime
faketime: # a process with a wrong clock
	@if ! ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1; then
		$(call install,faketime,libfaketime)
	fi

# Splits REDIS_URL into host and port; answers: whether a Redis server replies there.
define redis
	address=$${REDIS_URL#*://}; address=$${address##*@}; address=$${address%%[/?]*}
	host=$${address%:*}; port=$${address##*:}
	[ "$$host" != "$$address" ] || port=6379
	[ -n "$$host" ] || host=127.0.0.1
	answers() {
		( exec 3<>"/dev/tcp/$$host/$$port" && printf 'PING\r\n' >&3 && IFS= read -r -t 2 reply <&3 && [[ $$reply == [+-]* ]] ) 2>/dev/null
	}
	ours() { # the process that redis-up started, if it is still there
		pid=$$(cat $(REDIS_DIR)/redis.pid 2>/dev/null) || return 1
		if [ -e /proc/self/cwd ]; then [ "$$(readlink "/proc/$$pid/cwd")" = "$$(pwd -P)/$(REDIS_DIR)" ]
		else ps -p "$$pid" -o args= | grep -Eq '(redis|valkey)-server'; fi
	}
endef

.PHONY: redis-up
redis-up: ## start a local Redis with append-only persistence, unless REDIS_URL answers already
	@$(redis)
	if answers; then echo "Redis answers at $$host:$$port"; exit 0; fi
	case $$host in
		127.0.0.1 | localhost) ;;
		*) echo "error: nothing answers at $$host:$$port, and it is not this machine: start it there, or set REDIS_URL" >&2; exit 1 ;;
	esac
	server=$$(command -v "$${REDIS_SERVER:-redis-server}" || command -v valkey-server || true)
	if [ -z "$$server" ]; then
		$(call install,redis-server,redis-server or valkey-server)
		if answers; then echo "Redis answers at $$host:$$port"; exit 0; fi # as a service of the package
		server=redis-server
	fi
	mkdir -p $(REDIS_DIR)
	cd $(REDIS_DIR)
	"$$server" --port "$$port" --bind 127.0.0.1 --appendonly yes --save "" --maxmemory-policy noeviction \
		--daemonize yes --dir "$$PWD" --pidfile "$$PWD/redis.pid" --logfile "$$PWD/redis.log" >/dev/null
	for _ in $$(seq 100); do
		if answers; then echo "started $$(basename "$$server") at $$host:$$port (data in $(REDIS_DIR))"; exit 0; fi
		sleep 0.1
	done
	echo "error: $$server does not answer at $$host:$$port; the end of its log:" >&2
	tail -n 5 redis.log >&2
	exit 1

.PHONY: redis-down
redis-down: ## stop what redis-up started, and nothing else
	@$(redis)
	if ! ours; then echo "redis-up has started nothing that still runs"; rm -f $(REDIS_DIR)/redis.pid; exit 0; fi
	kill "$$pid"
	for _ in $$(seq 100); do
		if ! kill -0 "$$pid" 2>/dev/null; then echo "stopped the server that redis-up had started"; exit 0; fi
		sleep 0.1
	done
	echo "error: process $$pid does not stop" >&2
	exit 1
