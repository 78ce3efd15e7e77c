# make demo | test | test-postgres | serve | lint | bench: each sets up the virtual environment first when it is missing or out of date.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := requirements.txt requirements-dev.txt constraints.txt
# The CUDA extras only where an NVIDIA driver answers: torchvision's wheel needs the CUDA build of torch.
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
ifeq ($(GPU),yes)
REQUIREMENTS += requirements-gpu.txt
endif

CODE := ftproject datasets_app training_app evaluation_app inference_app sessions_app benchmarks manage.py .ci

# Files of tests at a time, at most one a core: each worker holds torch and models, up to 1.5 GB.
TEST_WORKERS := 4

.PHONY: demo test test-postgres serve lint audit format bench schema check-python

demo: $(VENV)/installed
	$(BIN)/python manage.py demo

serve: $(VENV)/installed
	$(BIN)/python manage.py serve

test: $(VENV)/installed-dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m pytest -n logical --maxprocesses $(TEST_WORKERS) --dist loadfile --cov --cov-report=term

# The same suite on a PostgreSQL server that is started for it; ARGS are pytest's, as in `make test-postgres ARGS=tests/core`.
test-postgres: $(VENV)/installed-dev
	$(BIN)/python -m tests.postgres $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy . .ci/audit.py
	$(BIN)/lint-imports
	$(BIN)/python manage.py check --fail-level WARNING
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/bandit -q -c pyproject.toml -r $(CODE)

audit: $(VENV)/installed-dev
	$(BIN)/python .ci/audit.py

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks

schema: $(VENV)/installed-dev
	$(BIN)/python manage.py spectacular --validate --fail-on-warn --file docs/openapi.yaml

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 is needed: install it, or name it with 'make PYTHON=/path/to/python3.11 ...'."; exit 1; }

$(VENV)/installed: $(REQUIREMENTS) | check-python
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt $(if $(GPU),-r requirements-gpu.txt)
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@
