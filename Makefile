# Everything sets itself up in .venv; the second time that takes a moment.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# The CPU build of torch first and exactly: a plain `torch` brings gigabytes of CUDA. Where a GPU is wanted,
# `make install TORCH=torch`.
TORCH ?= torch==2.13.0
RUNS ?= runs

.PHONY: install demo demo-compressibility demo-incompressibility demo-labelling demo-preferences test test-slow check format bench gpu docs measure-bundled bundled bundled-flow bundled-pixel clip surrogate curves clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 24

.venv/installed: pyproject.toml
	@test -d .venv || $(PYTHON) -m venv .venv
	@echo "installing into .venv (about a minute the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" 2> >(grep -v "is ignored: it is neither" >&2)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]" 2> >(grep -v "is ignored: it is neither" >&2)
	@touch $@

install: .venv/installed ## install the package and its development tools into .venv

demo: install ## AlignProp on the bundled model, in minutes on a CPU: more often the number of objects asked for
	$(BIN)/tastemaker train alignprop-clip

demo-compressibility: install ## DDPO on the bundled model, in minutes on a CPU: simple images, and over-optimisation
	$(BIN)/tastemaker train ddpo-compressibility

demo-incompressibility: install ## the same with the opposite reward: busy images
	$(BIN)/tastemaker train ddpo-incompressibility

demo-labelling: install ## a labelling project of the bundled model's images, labelled by simulated people (PEOPLE=1: by you)
	$(BIN)/python scripts/demo_labelling.py $(if $(PEOPLE),--people)

demo-preferences: install ## from people's comparisons to an aligned model, twice, with simulated people (PEOPLE=1: you)
	$(BIN)/python scripts/demo_preferences.py $(if $(PEOPLE),--people)

# Tests run on one thread each, and many wait for processes, servers and browsers: on two cores three files at a time. A
# file stays whole, since its tests share models and runs; in the order of their names the last ones are short.
WORKERS ?= 3

# Compiled files are kept, also where the environment says otherwise: without them each worker and each process of the tests
# compiles all of it anew.
test: export PYTHONDONTWRITEBYTECODE :=
test: install ## all tests that need no GPU and no long time
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 40

test-slow: install ## the longer tests: full-size Stable Diffusion, the judge's validation
	$(BIN)/python -m pytest -q -m slow

check: install ## linter, formatter, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: install ## formats the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## speed, memory and overhead of the demo, and where a round's time goes
	$(BIN)/tastemaker bench ddpo-compressibility

# On a GPU: `make gpu`, in a fresh checkout or with .venv removed, so that a torch with CUDA is installed. DEVICE=cpu
# rehearses all of it with small networks. What was measured is not measured again (FRESH=1: all of it is).
DEVICE ?= cuda
gpu: TORCH := $(if $(filter cpu,$(DEVICE)),$(TORCH),torch)
gpu: install .venv/gpu-installed ## everything that needs a GPU, in 25 minutes, into gpu.json in docs (DEVICE=cpu: a rehearsal)
	$(BIN)/python benchmarks/gpu.py --device $(DEVICE) $(if $(FRESH),--fresh) $(if $(ONLY),--only '$(ONLY)')

.venv/gpu-installed: .venv/installed
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[eight-bit]" 2> >(grep -v "is ignored: it is neither" >&2) \
		&& touch $@ || echo "bitsandbytes cannot be installed: the steps that need it are recorded as failed"

.venv/docs-installed: .venv/installed
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[docs]" 2> >(grep -v "is ignored: it is neither" >&2)
	@touch $@

docs: install .venv/docs-installed ## the docs site in build/site, with strict links and the reference of every setting
	$(BIN)/python scripts/docs_coverage.py
	$(BIN)/python scripts/docs_settings.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

measure-bundled: install ## measures a bundled model by the judge, for docs/results/bundled-model.md (MODEL=bundled)
	$(BIN)/python scripts/bundled/measure.py --model $(or $(MODEL),bundled)

bundled: install ## makes the bundled model and its judge again, from nothing (about two hours on 2 cores)
	$(BIN)/python scripts/bundled/build.py all --work build/bundled
	$(BIN)/python scripts/bundled/judge.py --work build/bundled
	$(BIN)/python scripts/bundled/ship.py --work build/bundled

bundled-flow: install ## trains the bundled flow transformer again (resumes; 5,000 steps and 1,000 to cool)
	$(BIN)/python scripts/bundled/build.py draw --work build/bundled
	$(BIN)/python scripts/bundled/flow.py all --work build/bundled
	$(BIN)/python scripts/bundled/ship.py --work build/bundled --only bundled-flow

bundled-pixel: install ## trains the bundled pixel U-Net again (resumes; 7,000 steps and 2,000 to cool)
	$(BIN)/python scripts/bundled/build.py draw --work build/bundled
	$(BIN)/python scripts/bundled/pixel.py all --work build/bundled
	$(BIN)/python scripts/bundled/ship.py --work build/bundled --only bundled-pixel

clip: install ## makes the bundled CLIP and its aesthetic head again, and measures them (an hour on 1 core)
	$(BIN)/python scripts/bundled/clip.py train
	$(BIN)/python scripts/bundled/clip.py taste
	$(BIN)/python scripts/bundled/clip.py measure

surrogate: install ## trains the differentiable JPEG size again (about 15 minutes), on runs in build/*/* too if there are any
	$(BIN)/python scripts/bundled/jpeg_surrogate.py --work build/jpeg_surrogate

curves: install ## the figures of docs/results/ddpo.md: two estimators, two rewards, three seeds
	$(BIN)/python benchmarks/curves.py --rounds 6

clean: ## removes what the build made
	rm -rf .venv build .pytest_cache .ruff_cache
