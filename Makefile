PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

TRITON := $(VENV)/triton

.PHONY: help install demo check test test-exhaustive test-gpu test-triton clean

help:
	@echo "make demo             install, then train, export, prove, run and time both heads on handwritten digits"
	@echo "make install          make $(VENV) with everything"
	@echo "make check            lint, format and types"
	@echo "make test             all tests that need no GPU, each on few forms of the head that stand for all"
	@echo "make test-exhaustive  tests of the head on all of its forms, and planted faults that tests must find"
	@echo "make test-gpu         the tests that need a GPU"
	@echo "make test-triton      the tests that need a Triton, which is made from a wheel"
	@echo "make clean            remove $(VENV), runs and caches"

install: $(INSTALLED)

# Without its dependencies: tversky-nn asks for an older Pillow, and for much that its layer does not use.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps tversky-nn
	@touch $@

demo: install
	$(BIN)/python examples/demo --out runs/demo --overwrite

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install
	$(PYTEST) -m "not gpu and not exhaustive"

test-exhaustive: install
	$(PYTEST) -m "(forms or exhaustive) and not gpu"

test-gpu: install
	$(BIN)/pytest -m "gpu and not exhaustive"

test-triton: $(TRITON)/tritonserver
	TNN_TRITON=$(abspath $(TRITON)) $(BIN)/pytest tests/export/triton

$(TRITON)/tritonserver: tests/triton_server.py tests/triton_onnxruntime.py | install
	rm -rf $(TRITON)
	$(BIN)/python -m pip download --quiet --no-deps --dest $(TRITON) nvidia-pytriton==0.7.0
	$(BIN)/python tests/triton_server.py $(TRITON)/*.whl $(TRITON)

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
