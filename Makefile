# `make demo` runs the main job on the embedded model, `make test` the tests.
# Both set up what they need on a machine with nothing but Python and make.

BIN := .venv/bin
DEMO := build/demo-4bit

# Processes of tests, each of which takes whole files: one more than there are cores, as tests wait for
# servers, browsers and terminals a fifth of their time.
PROCESSES := $(shell expr 1 + `getconf _NPROCESSORS_ONLN`)
PYTEST := $(BIN)/pytest -q -n $(PROCESSES) --dist loadfile

.PHONY: help demo check test lint docs format clean

help:
	@echo "make demo    convert the embedded model to 4 bits and ask it, with text and an image"
	@echo "make check   run the linters and the quick tests, in under two minutes"
	@echo "make test    run all tests"
	@echo "make lint    run ruff, mypy and import-linter"
	@echo "make docs    build the guides and the reference into build/site"
	@echo "make format  let ruff rewrite the code"
	@echo "make clean   remove the environments and what was built"

demo: .venv/.runtime
	$(BIN)/magistral-mlx convert demo -o $(DEMO) --force
	$(BIN)/magistral-mlx generate "What is 37 + 85?" --model $(DEMO) --temperature 0
	$(BIN)/magistral-mlx generate "What is in the picture?" --image examples/circle.png \
		--model $(DEMO) --temperature 0

check: lint
	$(PYTEST) -m "not slow" tests/unit

test: .venv/.dev .venv-mlx-vlm/.ready
	$(PYTEST)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Fails on a broken link, a name that cannot be found, and a public name without a docstring.
docs: .venv/.dev
	$(BIN)/pytest -q tests/unit/test_reference.py
	$(BIN)/zensical build --strict --config-file mkdocs.yml

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-mlx-vlm build

# An environment is set up again when what it is made from changes.
.venv/.runtime: pyproject.toml scripts/setup.sh
	@scripts/setup.sh runtime
	@touch $@

.venv/.dev: pyproject.toml scripts/setup.sh
	@scripts/setup.sh dev
	@touch $@ .venv/.runtime

.venv-mlx-vlm/.ready: tests/parity/mlx-vlm.txt scripts/setup.sh
	@scripts/setup.sh mlx-vlm
	@touch $@
