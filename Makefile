# Everything a newcomer needs: `make demo` and `make test` set up a .venv of their own and run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Pinned versions of everything; an unpinned torch would bring several GB of CUDA to a machine without a GPU.
# On a terminal pip shows what it is at.
QUIET := $(if $(MAKE_TERMOUT),,--quiet)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(QUIET) --constraint constraints.txt
RUN := runs/digits
# Processes that share the tests, one per core; each uses one thread. make test WORKERS=0 runs them in this process.
WORKERS ?= $(shell nproc 2> /dev/null || getconf _NPROCESSORS_ONLN)
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist loadgroup

.PHONY: demo test test-slow style quality schema docs pictures cuda-check cuda clean

demo: $(VENV)/.installed  ## train on the digits and sample them, in about four minutes on two cores
	$(BIN)/python training/train.py --config configs/digits.yaml $$(test -d $(RUN)/checkpoints && echo --resume latest)
	$(BIN)/python pipelines/generate.py --config configs/digits.yaml --num_samples 16 --num_inference_steps 100
	@echo "Activate the environment before running the commands above: source $(VENV)/bin/activate"

test: $(VENV)/.installed-test  ## every fast test, offline
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test  ## the end-to-end tests
	$(PYTEST) -m slow $(PYTEST_ARGS)

style: $(VENV)/.installed-test  ## fix formatting and what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(VENV)/.installed-test  ## check formatting, lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

schema: $(VENV)/.installed  ## write the JSON schema that editors check the YAML files with
	$(BIN)/python -c "from ddpm_hf.config.root import schema_text; print(schema_text(), end=\"\")" > configs/schema.json

docs: $(VENV)/.installed  ## write the pages and tables of docs/ that follow from the code
	$(BIN)/python docs/api_page.py > docs/api.md
	$(BIN)/python docs/scaling_table.py

pictures: $(VENV)/.installed-test  ## make all of docs/images again; needs chromium, and the run of make demo
	$(BIN)/python docs/pictures.py --model $(RUN)

# An interpreter that has torch for the GPU and the packages of the tests; make's own unless it is given.
GPU_PYTHON :=
# Of the whole check, and of the tests in it; the benchmark takes what is left.
CHECK_SECONDS := 340
TEST_SECONDS := 120
CHECK := $(or $(GPU_PYTHON),$(BIN)/python)
CUDA_TESTS = tests/models tests/pipelines tests/training $$(grep -rl "mark[.]cuda" tests --include "test_*.py")
NO_CUDA := cuda-check measures a GPU, and PyTorch finds none here

cuda-check: export PYTHONPATH := $(CURDIR)
cuda-check: $(if $(GPU_PYTHON),,$(VENV)/.installed-test)  ## on a GPU, in six minutes: its tests, and speed against diffusers
	@$(CHECK) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else '$(NO_CUDA)')"
	@started=$$(date +%s); status=0; \
	timeout --signal INT --kill-after 10 $(TEST_SECONDS) $(CHECK) -m pytest $(CUDA_TESTS) -m "cuda or not slow" -q \
		-p no:benchmark -n $(WORKERS) --maxprocesses 14 --dist loadgroup --tb short --durations 10 || status=$$?; \
	$(CHECK) benchmarks/gpu.py --budget $$((started + $(CHECK_SECONDS) - $$(date +%s))) || status=$$?; \
	exit $$status

# the configuration's data come from the Hub unless CIFAR10 says otherwise, as in CIFAR10="dataset.name=FOLDER"
MINUTES := 60
CIFAR10 :=

cuda: $(VENV)/.installed-test  ## all that wants a GPU: tests, speed, then MINUTES of the CIFAR-10 run and its quality
	$(BIN)/python -m pytest tests/models tests/pipelines tests/training -m "not slow"
	$(BIN)/python benchmarks/network.py --device cuda --networks cifar10 ddpm_config celebahq256 --tasks train forward \
		--batches 1 16 --dtypes bfloat16 --modes eager compiled --save
	$(BIN)/python benchmarks/network.py --device cuda --batches 128 512 --dtypes bfloat16 --modes eager compiled --save
	$(BIN)/python benchmarks/versus_diffusers.py --device cuda --batches 128 512 --profile --save
	$(BIN)/python benchmarks/cifar10.py --minutes $(MINUTES) --save $(CIFAR10)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch by itself first: its pin decides which build is taken
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch and the rest into $(VENV), once: 1.8 GB, a few minutes"
	$(INSTALL) torch
	$(INSTALL) --editable ".[eval]"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --editable ".[test,quality]"
	touch $@

clean:  ## remove what make made, but no runs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
