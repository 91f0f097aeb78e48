# Two commands: `make demo` and `make test`. Both set up their own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Every process would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test test-all constraints clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[test]"
	touch $(READY)

demo: $(READY)
	$(BIN)/surveyproc demo --out demo-survey

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest -m "not slow"

# Everything, in an hour; before a release.
test-all: check
	$(BIN)/pytest

# The newest versions that pyproject.toml allows; `make test-all` then says whether they will do.
constraints:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/constraints.py > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) demo-survey
