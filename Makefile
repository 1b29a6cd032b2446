# What people and CI both run. All but build, release and lint need root (or sudo).

CARGO ?= cargo
SUDO  := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E env "PATH=$$PATH")

.PHONY: all setup build release demo test unit bench lint

all: build

## setup: install what this machine lacks, and say what and why
setup:
	$(SUDO) integration/bin/setup

build:
	$(CARGO) build --workspace

## release: skiff and skiff-cni, which belong side by side
release:
	$(CARGO) build --release -p cli -p cni-plugins

## demo: a two-node lab with nginx behind a Service
demo: setup release
	$(SUDO) integration/bin/demo target/release/skiff

## test: every test, those with real containers and namespaces included
test: setup build
	$(SUDO) $(CARGO) test --workspace --no-fail-fast

## unit: only what needs no container runtime; some make network namespaces
unit:
	$(SUDO) $(CARGO) test --workspace --exclude integration --lib --bins

## bench: the figures of README, each beside its floor
bench: setup release
	$(SUDO) $(CARGO) run --release -p integration --bin bench
	$(SUDO) $(CARGO) run --release -p integration --bin bench-api

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	if command -v cargo-deny >/dev/null; then $(CARGO) deny check licenses bans sources; \
	else echo "cargo-deny is not installed; for the licence check: cargo install cargo-deny"; fi
