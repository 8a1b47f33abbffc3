# The commands of the project; `make help` lists them. What they need besides a Rust toolchain they install as Debian packages, or
# they say what is missing.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export REDIS_URL ?= redis://127.0.0.1:6379
# One set of features for all tests, so that nothing is built twice.
export FEATURES ?= redis-tests,pmcp
RUN_FEATURES ?= redis
# Most tests wait for something.
export RUST_TEST_THREADS ?= 8
export FUZZ_SECONDS ?= 300

# A package of its own, because the dependencies of the peers conflict with those of the library.
PEERS := cargo run --manifest-path benches/peers/Cargo.toml

# A target's comment: what it does | how long it takes on two cores | what it changes

.PHONY: help
help: ## list the targets | |
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { split($$2, c, / *\| */); printf "make %-12s  %s\n", $$1, c[1]; \
		if (c[2]) printf "%19stakes %s; changes %s\n", "", c[2], c[3] }' $(MAKEFILE_LIST)

.PHONY: run
run: redis-up ## start an MCP server twice on one Redis; poll, answer, cancel and resume tasks across the two | 20 s, and 2 min to build | .redis, tasks in the Redis
	@DIGEST_SERVER_REDIS_URL="$$REDIS_URL" cargo run --example digest_server --features $(RUN_FEATURES)

.PHONY: test
test: redis-up redis-server faketime ## run every test, on the memory engine and on Redis, and print a summary | 15 min, building included | .redis
	@scripts/test.sh

.PHONY: test-faults
test-faults: redis-up redis-server faketime ## run the long forms of the fault tests, fuzz, and print a table of figures | 1 h | fuzz/found
	@scripts/test-faults.sh

.PHONY: test-matrix
test-matrix: redis-server ## run the contract and wire tests on Redis 6.2, 7.0 and 8.2 and on Valkey 9 | 6 min | .redis/matrix
	@scripts/need.sh "python3 -c 'import ensurepip'" python3-venv "python3 with venv"
	@scripts/matrix.sh

.PHONY: conformance
conformance: redis-up ## run the official MCP conformance suite on one instance, and on two behind a proxy | 1 min | tests/conformance/node_modules
	@scripts/need.sh "command -v npm" npm npm
	@scripts/conformance.sh

.PHONY: bench
bench: redis-server valgrind ## compare with pmcp-tasks and with the bare commands | 5 min, and 5 min to build | README.md, docs/benchmarks.md, docs/bench
	@$(PEERS) --release -- table --charts docs/bench --page docs/benchmarks.md --readme README.md

.PHONY: bench-check
bench-check: redis-server valgrind ## run make bench once, small and not optimized, on copies of its files | 3 min | nothing
	@results=$$(mktemp -d); trap 'rm -rf "$$results"' EXIT; \
	cp README.md docs/benchmarks.md "$$results"; \
	$(PEERS) -- table --charts "$$results" --page "$$results/benchmarks.md" --readme "$$results/README.md" --rounds 3 --divisor 20; \
	if cmp -s README.md "$$results/README.md" || cmp -s docs/benchmarks.md "$$results/benchmarks.md"; then \
		echo "error: a page was not rewritten" >&2; exit 1; fi; \
	test -s "$$results/concurrency.svg" && test -s "$$results/size.svg"

.PHONY: bench-scale
bench-scale: redis-server ## measure a million records over 10,000 owners, and of one owner | 4 min, and 5 min to build | nothing
	@$(PEERS) --release -- scale

.PHONY: check
check: lua-check deny ## check the format, clippy, the documentation, the Lua scripts, the dependencies | 8 min | nothing
	@scripts/check.sh

.PHONY: lua-check
lua-check: ## check the Lua scripts with luacheck | 1 s | nothing
	@scripts/need.sh "command -v luacheck" lua-check "luacheck (https://github.com/lunarmodules/luacheck)"
	@scripts/lua-check.sh

.PHONY: deny
deny: ## check the dependencies with cargo-deny: licenses, duplicates, sources, advisories | 10 s, and 2 min to install it | nothing
	@scripts/deny.sh

.PHONY: fuzz
fuzz: ## fuzz each target for FUZZ_SECONDS (300) | 20 min, and 2 min to build | fuzz/found
	@scripts/fuzz.sh

.PHONY: redis-up
redis-up: ## start a local Redis with append-only persistence, unless one answers at REDIS_URL | 1 s | .redis
	@scripts/redis.sh up

.PHONY: redis-down
redis-down: ## stop the server that make redis-up started, and no other | 1 s | .redis
	@scripts/redis.sh down

# Programs that the tests and benchmarks start.
.PHONY: redis-server valgrind faketime
redis-server:
	@if ! command -v "$${REDIS_SERVER:-redis-server}" >/dev/null && command -v valkey-server >/dev/null; then \
		echo "error: only valkey-server is installed; run REDIS_SERVER=valkey-server make $(MAKECMDGOALS)" >&2; exit 1; fi
	@scripts/need.sh 'command -v "$${REDIS_SERVER:-redis-server}"' redis-server redis-server
valgrind:
	@scripts/need.sh "command -v valgrind" valgrind valgrind
faketime:
	@scripts/need.sh "ls /usr/lib/*/faketime/libfaketime.so.1" faketime libfaketime
