# What people and CI run. `make` alone lists it.

SHELL := /bin/sh
target := $(or $(CARGO_TARGET_DIR),target)
lab := $(target)/debug/unanimous-lab

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
	$(lab) with-clusters -- cargo nextest run --workspace

.PHONY: fix
fix: ## format, and apply what clippy can repair
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all
	UPDATE_GOLDEN=1 cargo test -q -p unanimous-protocol --test main the_page_says
	UPDATE_GOLDEN=1 cargo test -q -p unanimous --lib the_golden_copy_is_what_is_served

.PHONY: sim
sim: ## simulate 1,000 worlds; SEED=n replays one and prints its events, HOURS=h runs long
	cargo run -q -p unanimous-world --bin unanimous-world -- \
		$(if $(SEED),--seed $(SEED),$(if $(HOURS),--hours $(HOURS) --from $(or $(FROM),1000000),--from 0 --count 1000))

.PHONY: model
model: ## search exhaustively, the larger bounds too; NAME=text takes those with the text
	cargo run -q -p unanimous-world --bin model -- --large $(NAME)

# Each is applied to a copy and must be noticed; CI takes a seventh of them, by the day.
.PHONY: mutants
mutants: ## break one rule at a time; PART=k/n takes every n-th, NAME=text those with the text, MODEL=1 by search
	cargo build -q -p unanimous-world --bins
	$(target)/debug/mutants $(if $(PART),--part $(PART)) $(if $(MODEL),--model) $(NAME)

.PHONY: schemathesis
schemathesis: ## make requests up from the OpenAPI description, and check every answer against it
	scripts/schemathesis.sh

.PHONY: fuzz
fuzz: ## throw bytes at every parser, SECS=60 seconds at each
	fuzz/run.sh $(or $(SECS),60)

.PHONY: demo
demo: ## see a commit, a refusal, and a coordinator that is killed and recovers
	scripts/tools.sh postgres
	cargo build --workspace --bins
	$(lab) demo
