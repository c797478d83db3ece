# make demo    builds a dataset from the synthetic sources, fits a tiny model to it, makes videos of sounds
# make test    passes the tests, in parallel; make test-fast the quick ones; PYTEST_ARGS="tests/pipeline/media -x" some of them
# make check   linters, types, import contracts, the documentation  make clean   removes what the demo made
# make docs    builds the documentation and serves it on this machine
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
PYTEST := $(BIN)/python -m pytest --durations=20
PARALLEL := -n $(WORKERS) --dist loadfile
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

.PHONY: demo test test-fast check docs clean

$(READY): pyproject.toml constraints.txt
	@echo "Making the environment in $(VENV): a few minutes the first time (torch is large)."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python -m flows.demo
	$(BIN)/python -m trainer.demo

test: $(READY)
	$(PYTEST) $(PARALLEL) -m "not alone" $(PYTEST_ARGS) || [ $$? = 5 ]
	$(PYTEST) -m alone $(PYTEST_ARGS) || [ $$? = 5 ]

test-fast: $(READY)
	$(PYTEST) $(PARALLEL) -m "not alone and not slow" $(PYTEST_ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MKDOCS) build --strict --quiet

docs: $(READY)
	$(MKDOCS) serve --dev-addr 127.0.0.1:8790

clean:
	rm -rf manifests/demo manifests/demo-sources runs/demo
