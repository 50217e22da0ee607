# Every command of the project. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ORACLE_VENV := .venv-oracle
RUST_SOURCES := $(shell find crates -name '*.rs' -o -name 'Cargo.toml') Cargo.toml Cargo.lock

.DEFAULT_GOAL := help
.PHONY: help build demo test test-rust test-python lint format bench oracle wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

# The virtual environment with everything that development needs.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet 'maturin>=1.9,<2'
	touch $@

# The package, built with optimisation and installed in editable form.
$(VENV)/built: $(VENV)/ready $(RUST_SOURCES)
	. $(BIN)/activate && maturin develop --release --quiet --extras dev
	touch $@

build: $(VENV)/built ## build the package into .venv

demo: build ## the main job on the embedded demo model
	$(BIN)/llama4rs demo

test: test-rust test-python ## all tests

test-rust:
	cargo test --workspace --quiet

test-python: build
	$(BIN)/python -m pytest -q

lint: build ## formats, lints, types, stubs
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest llama4rs._llama4rs --concise
	$(BIN)/python scripts/check_dependencies.py

format: build ## put everything into the house format
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --quiet .

bench: build ## speed beside this machine's limits
	cargo run --release --quiet -p llama4rs-cpu --example kernel_speed
	$(BIN)/python benches/end_to_end.py

oracle: ## make the reference answers again (downloads torch and transformers)
	test -d $(ORACLE_VENV) || $(PYTHON) -m venv $(ORACLE_VENV)
	$(ORACLE_VENV)/bin/python -m pip install --quiet 'torch>=2.6' 'transformers>=5.0' safetensors
	$(ORACLE_VENV)/bin/python tests/oracle/make_answers.py

wheel: $(VENV)/ready ## a wheel for distribution, in dist/
	. $(BIN)/activate && maturin build --release --out dist

clean: ## remove everything that was built
	rm -rf target dist $(VENV) $(ORACLE_VENV)
