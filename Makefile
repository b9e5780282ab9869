# make figures: every figure of the paper, on the small preset.    make test: everything that is checked.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
TOGETHER := -n logical --maxprocesses 8

# Some recipes work in notebooks/, where a relative folder would be another.
FOLDERS := REPRO_DATA REPRO_FIGURES REPRO_STORE
$(foreach name,$(FOLDERS),$(if $($(name)),$(if $(filter /%,$($(name))),,$(eval export $(name) := $(CURDIR)/$($(name))))))

.PHONY: help figures test test-notebooks test-browser test-faults test-oldest bench site lab notebooks clean
.DEFAULT_GOAL := help

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(INSTALLED): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

figures: $(INSTALLED)  ## draw every figure on the small preset (arguments: ARGS="--fresh")
	$(BIN)/repro figures $(ARGS)

test: $(INSTALLED)  ## lint, unit, property and oracle tests, every notebook
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q $(TOGETHER) tests
	$(MAKE) test-notebooks

# What failed is tried once more: a kernel dies at its start when another program takes the port that it was given. A cell that
# fails for a reason of its own fails again, without those before it.
test-notebooks: $(INSTALLED)  ## run every notebook against data/ and compare its verdicts, to the digit
	figures=$$(mktemp -d) && export REPRO_FIGURES=$$figures MPLBACKEND=agg; \
	  check="$(BIN)/python -m pytest -q $(TOGETHER) --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout=600"; \
	  $$check notebooks || $$check --last-failed notebooks; \
	  status=$$?; rm -rf "$$figures"; exit $$status

test-browser: $(INSTALLED)  ## drive the diagrams in a Chromium, over the static page and over JupyterLab
	REPRO_BROWSER_TESTS=1 $(BIN)/python -m pytest -q -rs tests/browser

test-faults: $(INSTALLED)  ## kill it, fill its disk, turn its clock; more bad input; 10,000 recipes (minutes)
	REPRO_FAULT_TESTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(TOGETHER) tests/faults tests/test_fuzz.py

test-oldest:  ## the tests with the oldest packages that pyproject.toml allows, in .venv-oldest (5 GB, ten minutes)
	$(PYTHON) -m venv --clear $(VENV)-oldest
	sed -nE 's/^ *"([a-z-]+)>=([0-9.]+).*/\1==\2.*/p' pyproject.toml > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet -c $(VENV)-oldest/constraints.txt -e '.[figures,cluster,test]'
	$(VENV)-oldest/bin/python -m pytest -q $(TOGETHER) tests

bench: $(INSTALLED)  ## time ablation and training side by side with others, write benchmarks/README.md (half an hour)
	TQDM_DISABLE=1 $(BIN)/python -m benchmarks.run $(ARGS)

site: $(INSTALLED)  ## write figures/site/index.html: the diagrams, the figures and the scorecard on one page
	$(BIN)/repro site

lab: $(INSTALLED)  ## open the notebooks in JupyterLab
	cd notebooks && ../$(BIN)/jupyter lab

notebooks: $(INSTALLED)  ## run the notebooks in place, so that they are committed with their outputs
	$(BIN)/repro figures --in-place

clean:  ## remove the virtual environments, locks, and states of unfinished training; results stay
	rm -rf $(VENV) $(VENV)-oldest data/work
