# Every command of the project. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ORACLE_VENV := .venv-oracle
RUST_SOURCES := $(shell find crates -name '*.rs' -o -name 'Cargo.toml') Cargo.toml Cargo.lock

.DEFAULT_GOAL := help
.PHONY: help build demo simulated-gpu test test-rust test-python crash lint format bench bench-peers oracle wheel clean

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

simulated-gpu: ## a libcuda that runs PTX on the CPU, for LD_LIBRARY_PATH=target/simulated-gpu
	cargo build --release --quiet -p llama4rs-cuda-sim
	mkdir -p target/simulated-gpu
	rm -f target/simulated-gpu/libcuda.so.1 # programs that run go on with the old one
	cp $${CARGO_TARGET_DIR:-target}/release/libllama4rs_cuda_sim.so target/simulated-gpu/libcuda.so.1
	ln -sf libcuda.so.1 target/simulated-gpu/libcuda.so

test: test-rust test-python ## all tests

# Tests of the CUDA backend look for NVRTC in .venv.
test-rust: $(VENV)/ready
	$(BIN)/python -m pip install --quiet 'nvidia-cuda-nvrtc==13.0.*'
	cargo test --workspace --quiet

# The simulated device is for machines without a GPU.
test-python: build
	cargo build --quiet -p llama4rs-cuda-sim
	$(BIN)/python -m pytest -q

crash: build ## kill a process that stores keys and values, 400 times
	$(BIN)/python tests/kv_crash.py --kills 400

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

SHAPE ?= edge
THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
BENCH := target/bench
BENCH_BIN := $(BENCH)/venv/bin
BENCH_MODEL := $(BENCH)/$(SHAPE)
BENCH_REPORT := $(BENCH)/report.json
, := ,

# A short look, or everything, which takes some ten minutes.
FULL ?=
BENCH_KERNELS := $(if $(FULL),,best fast int4/g64)
BENCH_TESTS := $(if $(FULL),--depth 8000 --startup,--tests prefill-512$(,)decode$(,)decode-batch-8)

bench: build ## speed beside this machine's limits (SHAPE=edge THREADS=n; FULL=1: all tests)
	cargo run --release --quiet -p llama4rs-cpu --example kernel_speed $(THREADS) $(BENCH_KERNELS)
	test -d $(BENCH_MODEL) || $(BIN)/llama4rs synth $(BENCH_MODEL) --shape $(SHAPE)
	$(BIN)/python benches/end_to_end.py $(BENCH_MODEL) --threads $(THREADS) $(BENCH_TESTS)

bench-peers: build ## the same beside llama.cpp, built from source
	test -d $(BENCH)/venv || $(PYTHON) -m venv $(BENCH)/venv
	$(BENCH_BIN)/python -m pip install --quiet maturin matplotlib gguf
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(BENCH_BIN)/python -m pip install --quiet \
		--no-binary llama-cpp-python llama-cpp-python
	. $(BENCH_BIN)/activate && maturin build --release --quiet --out $(BENCH)/dist
	$(BENCH_BIN)/python -m pip install --quiet --force-reinstall --no-deps $(BENCH)/dist/llama4rs-*.whl
	$(BENCH_BIN)/python -m pip install --quiet $(BENCH)/dist/llama4rs-*.whl
	test -d $(BENCH_MODEL) || $(BENCH_BIN)/llama4rs synth $(BENCH_MODEL) --shape $(SHAPE)
	test -d $(BENCH_MODEL)-g32 || \
		$(BENCH_BIN)/llama4rs synth $(BENCH_MODEL)-g32 --shape $(SHAPE) --weights int4/g32
	test -f $(BENCH_MODEL).gguf || \
		$(BENCH_BIN)/python benches/random_gguf.py $(BENCH_MODEL) $(BENCH_MODEL).gguf
	$(BENCH_BIN)/python benches/end_to_end.py $(BENCH_MODEL) $(BENCH_MODEL)-g32 \
		--peer $(BENCH_MODEL).gguf --threads $(THREADS) $(BENCH_TESTS) --json $(BENCH_REPORT)
	$(BENCH_BIN)/python benches/plot.py $(BENCH_REPORT) $(BENCH)/report.svg

oracle: ## make the reference answers again (downloads torch and transformers)
	test -d $(ORACLE_VENV) || $(PYTHON) -m venv $(ORACLE_VENV)
	$(ORACLE_VENV)/bin/python -m pip install --quiet 'torch>=2.6' 'transformers>=5.0' safetensors
	$(ORACLE_VENV)/bin/python tests/oracle/make_answers.py

wheel: $(VENV)/ready ## a wheel for distribution, in dist/
	. $(BIN)/activate && maturin build --release --out dist

clean: ## remove everything that was built
	rm -rf target dist $(VENV) $(ORACLE_VENV)
