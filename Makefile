# The commands of the project. `make help` lists them. A target installs the programs that it needs as Debian packages, or says what is
# missing. It does not install a Rust toolchain.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export REDIS_URL ?= redis://127.0.0.1:6379
export POSTGRES_URL ?= postgres://postgres@127.0.0.1:5433/postgres
# The packages and features that the targets build and test. There is one selection for all of them, because cargo builds the
# dependencies again for another one.
export SELECTION ?= -p mcp-task-store -p mcp-tasks -p mcp-task-console -p custom-engine --features mcp-task-store/redis-tests,$\
	mcp-task-store/postgres-tests,mcp-task-store/pmcp,mcp-tasks/redis-tests,mcp-task-console/browser-tests
# More threads than cores, because most tests spend their time waiting.
export RUST_TEST_THREADS ?= 8
export FUZZ_SECONDS ?= 300

# Where cargo puts the programs of examples.
EXAMPLES := "$${CARGO_TARGET_DIR:-target}"/debug/examples

# Separate packages, because their dependencies conflict with those of the library. The harness starts the program in benches/turul.
PEERS := cargo run --manifest-path benches/peers/Cargo.toml
TURUL := cargo build --manifest-path benches/turul/Cargo.toml

# The comment of a target: what it does | how long it takes on two cores | which files it changes

.PHONY: help
help: ## list all targets | |
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { split($$2, c, / *\| */); printf "make %-12s  %s\n", $$1, c[1]; \
		if (c[2]) printf "%19stakes %s; changes %s\n", "", c[2], c[3] }' $(MAKEFILE_LIST)

.PHONY: run
run: RUN_SELECTION ?= --features sqlite
run: ## run three instances of an MCP server on one SQLite file; kill one, stop one, and show that tasks survive | 20 s, and 2 min to build | nothing
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	cargo build --example digest_server $(RUN_SELECTION); \
	$(EXAMPLES)/digest_server --sqlite "$$folder/tasks.db"

.PHONY: run-redis
run-redis: RUN_SELECTION ?= --features redis
run-redis: redis-up ## the same on one Redis | 20 s, and 2 min to build | .redis, and the tasks in the Redis
	@cargo build --example digest_server $(RUN_SELECTION)
	@DIGEST_SERVER_REDIS_URL="$$REDIS_URL" $(EXAMPLES)/digest_server

.PHONY: test
test: redis-up redis-server postgres-up faketime chromium ## run every test, on the memory engine, on SQLite, on Redis and on PostgreSQL, and print a summary | 20 min, including the build | .redis
	@scripts/test.sh

.PHONY: test-faults
test-faults: redis-up redis-server faketime ## run the long fault tests, fuzz each target, and print one table of figures | 1 h 20 min | fuzz/found
	@scripts/test-faults.sh

.PHONY: test-matrix
test-matrix: redis-server ## run the contract and wire tests on Redis 6.2, 7.0 and 8.2 and on Valkey 9 | 4 min | .redis/matrix
	@scripts/need.sh "python3 -c 'import ensurepip'" python3-venv "python3 with venv"
	@scripts/matrix.sh

.PHONY: conformance
conformance: redis-up ## run the official MCP conformance suite on one instance, and on two behind a proxy | 1 min | tests/conformance/node_modules
	@scripts/need.sh "command -v npm" npm npm
	@scripts/conformance.sh

.PHONY: clients
clients: redis-up ## run the TypeScript and Python clients, FastMCP and rmcp against one server; CLIENTS_WRITE=1 writes the results into the guide | 1 min, and 3 min to install and build | tests/clients/node_modules, tests/clients/venv, with CLIENTS_WRITE=1 docs/guide/clients.md
	@scripts/need.sh "command -v npm" npm npm
	@scripts/need.sh "python3 -c 'import ensurepip'" python3-venv "python3 with venv"
	@scripts/clients.sh

.PHONY: bench
bench: redis-server valgrind ## compare the speed with pmcp-tasks and the bare Redis commands, and with turul-mcp-task-storage and bare SQLite statements | 15 min, and 8 min to build | README.md, docs/benchmarks.md, docs/bench
	@$(TURUL) --release
	@$(PEERS) --release -- table --charts docs/bench --page docs/benchmarks.md --readme README.md

.PHONY: bench-sqlite
bench-sqlite: redis-server ## measure only the rows of SQLite of make bench | 4 min, and 8 min to build | README.md, docs/benchmarks.md
	@$(TURUL) --release
	@$(PEERS) --release -- table --only-sqlite --charts docs/bench --page docs/benchmarks.md --readme README.md

.PHONY: bench-tried
bench-tried: redis-server ## measure the bare scripts of what was tried to make the calls faster | 1 min, and 5 min to build | docs/benchmarks.md
	@$(PEERS) --release -- tried --page docs/benchmarks.md

.PHONY: bench-check
bench-check: redis-server valgrind ## run a small make bench with little optimization, on copies of its files | 4 min | nothing
	@$(TURUL)
	@cargo test --manifest-path benches/peers/Cargo.toml
	@results=$$(mktemp -d); trap 'rm -rf "$$results"' EXIT; \
	cp README.md docs/benchmarks.md "$$results"; \
	$(PEERS) -- table --charts "$$results" --page "$$results/benchmarks.md" --readme "$$results/README.md" --rounds 2 --divisor 20; \
	if cmp -s README.md "$$results/README.md" || cmp -s docs/benchmarks.md "$$results/benchmarks.md"; then \
		echo "error: make bench left README.md or docs/benchmarks.md unchanged; check the marks of the results in both" >&2; exit 1; fi; \
	test -s "$$results/concurrency.svg" && test -s "$$results/size.svg"

.PHONY: bench-scale
bench-scale: redis-server ## measure a million records: over 10,000 owners, and of one owner | 4 min, and 5 min to build | docs/scale.md
	@$(PEERS) --release -- scale --page docs/scale.md

.PHONY: screenshots
screenshots: faketime chromium ## take the pictures of the console in the README and the guide | 15 s, and 5 min to build | docs/guide/images
	@SCREENSHOTS_WRITE=1 cargo test -p mcp-task-console --features browser-tests --test console -- browser::screenshots

.PHONY: record-dumps
record-dumps: redis-up ## record the tasks of this version in every state, for the tests of later versions; run it before a release | 2 min | tests/lifecycle/recorded/dumps
	@cargo test $$SELECTION --test lifecycle -- --ignored --exact recorded::record_dumps

.PHONY: check
check: lua-check deny ## check the format, the lints of clippy, the documentation, the Lua scripts and the dependencies | 7 min | nothing
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
redis-up: ## start a local Redis with append-only persistence, unless a server answers at REDIS_URL | 1 s | .redis
	@scripts/redis.sh up

.PHONY: redis-down
redis-down: ## stop the Redis that make redis-up started | 1 s | .redis
	@scripts/redis.sh down

.PHONY: postgres-up
postgres-up: ## start a local PostgreSQL, unless a server answers at POSTGRES_URL | 5 s | a folder below TMPDIR
	@scripts/postgres.sh up

.PHONY: postgres-down
postgres-down: ## stop the PostgreSQL that make postgres-up started, and remove its data | 1 s | the same folder
	@scripts/postgres.sh down

# The programs that the tests and benchmarks start.
.PHONY: redis-server valgrind faketime chromium
redis-server:
	@if ! command -v "$${REDIS_SERVER:-redis-server}" >/dev/null && command -v valkey-server >/dev/null; then \
		echo "error: only valkey-server is installed; run REDIS_SERVER=valkey-server make $(MAKECMDGOALS)" >&2; exit 1; fi
	@scripts/need.sh 'command -v "$${REDIS_SERVER:-redis-server}"' redis-server redis-server
valgrind:
	@scripts/need.sh "command -v valgrind" valgrind valgrind
faketime:
	@scripts/need.sh "ls /usr/lib/*/faketime/libfaketime.so.1" faketime libfaketime
chromium:
	@scripts/need.sh "command -v chromium" chromium Chromium
