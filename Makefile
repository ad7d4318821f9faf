PYTHON ?= python3
BIN := .venv/bin

.PHONY: install test lint demo

# The tests start many processes, which share what Python and pytest have compiled.
unexport PYTHONDONTWRITEBYTECODE
# More threads than cores wait for each other, which should leave the cores to those that compute.
export OMP_WAIT_POLICY = passive

install: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: $(PYTHON) is Python %d.%d; expected 3.10 or newer, as in `make PYTHON=python3.12 ...`" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

demo: .venv/installed data/moving_shapes/classes.txt
	$(BIN)/python tools/run_net.py --cfg configs/demo/iR3D18.yaml

data/moving_shapes/classes.txt: | .venv/installed
	$(BIN)/python data_prep/moving_shapes.py --out data/moving_shapes
