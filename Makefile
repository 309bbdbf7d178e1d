# One command for people and CI alike.
VENV ?= .venv
BIN := $(VENV)/bin
WORKFLOWS := $(wildcard .github/workflows/*.yml docs/workflows/*.yml)

.PHONY: setup demo test lint bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/rnp-hub sanitize demo --data digits --out demo-out --overwrite

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-actions action.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows $(WORKFLOWS)
	$(BIN)/shellcheck .github/actions/rnp-hub/*.sh .github/lint/*.sh
	ACTIONLINT_PLACE=$(VENV)/actionlint .github/lint/actionlint.sh $(WORKFLOWS)

bench: setup
	$(BIN)/python -m rnp_hub.bench.speed
	$(BIN)/python -m pytest -m slow --timeout=3600

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out bench-out
