# What people and CI run. `make` alone lists it.

SHELL := /bin/sh
target := $(or $(CARGO_TARGET_DIR),target)
lab := $(target)/debug/unanimous-lab
# Programs that a test may weaken, or kill at any step.
weakened := --unanimous $(target)/debug/system-unanimous --bank $(target)/debug/system-bank

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

# The tests come last, so that a run ends with their summary. Binaries and tests are built by one
# command with one choice of features, or cargo would build some dependencies twice.
.PHONY: test
test: ## all checks and tests, as CI runs them; changes nothing
	scripts/tools.sh
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	cargo build --workspace --bins --tests
	cargo test --workspace --doc
	$(target)/debug/unanimous-world --count 1000
	$(target)/debug/mutants --part $$(date +%j)/12
	$(lab) recovery --in-doubt 200 --runs 1 --within-ms 20000 --records 100000 --start-within-ms 10000
	$(lab) power --where-possible --cycles 3 $(weakened)
	$(lab) power --where-possible --cycles 1 --weaken log $(weakened)
	$(lab) power --where-possible --cycles 1 --weaken bank $(weakened)
	$(lab) with-clusters -- cargo nextest run --workspace

.PHONY: fix
fix: ## format, and apply what clippy can repair
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all
	UPDATE_GOLDEN=1 cargo test -q -p unanimous-protocol --test main the_page_says
	UPDATE_GOLDEN=1 cargo test -q -p unanimous --lib the_golden_copy_is_what_is_served

.PHONY: sim
sim: ## simulate 1,000 worlds; SEED=n replays one, HOURS=h runs long, TRANSACTIONS=n puts so many in one world
	cargo run -q -p unanimous-world --bin unanimous-world -- \
		$(if $(SEED),--seed $(SEED),$(if $(TRANSACTIONS),--transactions $(TRANSACTIONS) --from $(or $(FROM),3), \
		$(if $(HOURS),--hours $(HOURS) --from $(or $(FROM),1000000),--count 1000)))

.PHONY: model
model: ## search exhaustively, the larger bounds too; NAME=text takes those with the text, COMPARE=1 with and without what is spent
	cargo run -q -p unanimous-world --bin model -- --large $(if $(COMPARE),--compare) $(if $(NAME),"$(NAME)")

# Each is applied to a copy and must be noticed; CI takes a twelfth of them, by the day.
.PHONY: mutants
mutants: ## break one rule at a time; PART=k/n takes every n-th, NAME=text those with the text, MODEL=1 by search
	cargo build -q -p unanimous-world --bins
	$(target)/debug/mutants $(if $(PART),--part $(PART)) $(if $(MODEL),--model) $(NAME)

.PHONY: crash
crash: ## kill every program before and after every write that lasts and every call, on both kinds of log
	scripts/tools.sh
	cargo build --workspace --bins --tests
	CRASH=all $(lab) with-clusters -- cargo nextest run --workspace -E 'test(crash::)'

.PHONY: power
power: ## let the power fail 20 times under load; as root, on a file system in a file
	scripts/tools.sh
	cargo build --workspace --bins --tests
	$(lab) power $(weakened)
	$(lab) power --cycles 1 --weaken log $(weakened)
	$(lab) power --cycles 2 --weaken bank $(weakened)

.PHONY: recovery
recovery: ## kill a coordinator with 1,000 and 10,000 in doubt, and start one on a million records; optimized
	scripts/tools.sh
	cargo build --release -p unanimous -p unanimous-bank -p unanimous-lab --bins
	$(target)/release/unanimous-lab recovery --in-doubt 1000 --in-doubt 10000
	$(target)/release/unanimous-lab recovery --in-doubt 1000 --in-doubt 10000 --postgres --records 0

.PHONY: bench
bench: ## measure transfers by hand and through Unanimous, side by side; optimized; ARGS="--clients 64" passes on
	scripts/tools.sh postgres
	cargo build --release -p unanimous -p unanimous-bank -p unanimous-lab --bins
	$(target)/release/unanimous-lab bench $(ARGS)

.PHONY: growth
growth: ## measure memory with 100,000 transactions in flight, and pages of a long history; optimized
	scripts/tools.sh
	cargo build --release -p unanimous -p unanimous-lab --bins
	$(target)/release/unanimous-lab growth $(ARGS)

.PHONY: microbench
microbench: ## measure single steps: the machines, ids, JSON; ARGS="id" takes those with the text
	cargo bench -p unanimous-microbench --bench protocol -- $(ARGS)

.PHONY: schemathesis
schemathesis: ## make requests up from the OpenAPI description, and check every answer against it
	scripts/schemathesis.sh

.PHONY: fuzz
fuzz: ## throw bytes at every parser, SECS=60 seconds at each
	fuzz/run.sh $(or $(SECS),60)

.PHONY: demo
demo: ## see a commit, a refusal, kills and recoveries, and the audit; ARGS="--log postgres" passes on
	scripts/tools.sh postgres
	cargo build --workspace --bins
	$(lab) demo $(ARGS)
