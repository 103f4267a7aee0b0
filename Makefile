# make demo   set-up, then train on `forks` and print eight thoughts side by side (about five minutes on two cores)
# make test   set-up, then every test
# make check  set-up, then lint, format and the floors' import contract
# make setup  the environment alone

PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready

.PHONY: demo test check setup

demo: $(SETUP)
	$(BIN)/python train_mot.py --config configs/forks.yaml --output_dir outputs/demo --overwrite

test: $(SETUP)
	$(BIN)/python -m pytest

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@
