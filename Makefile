# One interpreter, one virtual environment, nothing outside this folder. Windows: see CONTRIBUTING.md.
# PYTHON       the interpreter that makes .venv (3.10 to 3.13)
# TORCH_INDEX  where to take PyTorch from, if not where scripts/setup.py would
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH ?= startup

.PHONY: setup demo test check format bench docs clean

setup: $(VENV)/.dev  ## everything, with the tools for tests and checks

demo: $(VENV)/.core  ## train a small model and let it write; installs only what that needs
	@$(BIN)/gpt2 demo

test: $(VENV)/.dev  ## the test suite, offline
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

check: $(VENV)/.dev  ## lint, format, types, and whether the generated pages are up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python scripts/reference.py --check

format: $(VENV)/.dev  ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.dev  ## write docs/reference/ anew
	@$(BIN)/python scripts/reference.py

bench: $(VENV)/.dev  ## BENCH="startup ..." names the scripts in benchmarks/
	@set -e; for name in $(BENCH); do $(BIN)/python benchmarks/$$name.py; done
	@echo "benchmarks/README.md lists every script, its claim and its cost; run one with: make bench BENCH=name" >&2

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.core: pyproject.toml constraints.txt scripts/setup.py
	@"$(PYTHON)" scripts/setup.py

$(VENV)/.dev: $(VENV)/.core
	@"$(PYTHON)" scripts/setup.py dev
