# What people and CI type. Every target makes the environment it needs, in .venv.
#
#   make demo    the whole loop on a bundled world, ending in its ledger
#   make test    the default tests
#   make check   lint, format, types, the import contract
#   make bench   the ablations that benchmarks/README.md reports, again
#
# PYTHON=python3.12 picks the interpreter, ARGS="..." goes to the command, PIP_ARGS="..." to pip.

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# The stamps carry a checksum of what decides the environment's content, so that a change installs again.
KEY := $(shell cat pyproject.toml constraints-cpu.txt | cksum | tr ' ' '-')
FOR_DEMO := $(VENV)/.ready-demo-$(KEY)
FOR_DEV := $(VENV)/.ready-dev-$(KEY)

export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check bench format
.DEFAULT_GOAL := demo

demo: $(FOR_DEMO)
	$(BIN)/decant demo $(ARGS)

test: $(FOR_DEV)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

check: $(FOR_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Trains several dozen small students: hours on two cores. It goes on where it was stopped.
bench: $(FOR_DEMO)
	$(BIN)/python -m ablation placements $(ARGS)
	$(BIN)/python -m ablation filters $(ARGS)

format: $(FOR_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The test environment holds the demo's too, so one install never undoes the other's stamp.
$(FOR_DEMO): | $(BIN)/pip
	$(call install,demo)
	@touch $@

$(FOR_DEV): | $(BIN)/pip
	$(call install,demo dev)
	@touch $(FOR_DEMO) $@

define install
	@echo "decant: installing the parts '$(1)' into $(VENV); the first time takes a few minutes"
	@rm -f $(VENV)/.ready-*
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints-cpu.txt $(foreach part,$(1),-e '.[$(part)]')
	@$(BIN)/python -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null \
	  || { echo "decant: llama.cpp needs the OpenMP library; run: apt install libgomp1" >&2; exit 1; }
endef

# pip is the last thing that venv writes: an interrupted one is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "decant: needs Python 3.11 or newer, $(PYTHON) is not; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv; from ensurepip import bootstrap' 2>/dev/null \
	  || { echo "decant: $(PYTHON) cannot make virtual environments; run: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
