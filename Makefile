# `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AOT := .venv-aot
OPEN_CLIP := .venv-open-clip
# A browser for the tests of the report, which are skipped with a message where it is missing.
CHROMIUM := command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && timeout 180 apt-get install --quiet \
    --yes --no-install-recommends chromium > /dev/null; } || echo "Chromium could not be installed: \
    the tests of the report in a browser are skipped"
OUT ?= unlearn-demo
CONCEPT ?= astronaut

.PHONY: demo test check docs aot open-clip bench scale table demo-model demo-clip-model clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

# torch first and by itself, so that a local CPU build of this version is the one that is taken.
$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	$(CHROMIUM)
	touch $@

demo: $(VENV)/.run
	$(BIN)/jax-unlearn demo --concept "$(CONCEPT)" --out "$(OUT)" --overwrite

# A file of tests stays in one process, with what its tests share; in the order of
# `tests/conftest.py`.
test: $(VENV)/.test check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.test docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A warning is an error. The variable silences an advertisement.
docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# In an environment of its own: with these packages JAX looks for hardware at every start. It sees
# those of $(VENV), and pip adds the compilers only. Without the tests' cache: what is compiled for
# other machines cannot be loaded here. Warnings of its own packages are printed.
aot: $(AOT)/.made
	JAX_PLATFORMS=cpu JAX_ENABLE_COMPILATION_CACHE=false $(AOT)/bin/python -m pytest -n 2 -m aot -W default

SITE := import sysconfig; print(sysconfig.get_path("purelib"))
$(AOT)/.made: $(VENV)/.test
	$(BIN)/python -m venv --clear $(AOT)
	echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" \
	    > "$$($(AOT)/bin/python -c '$(SITE)')/test.pth"
	$(AOT)/bin/pip install --quiet -c constraints.txt -e '.[aot]'
	touch $@

# OpenCLIP needs torchvision, and no release of that goes with the PyTorch of $(VENV). 6 GB.
# Warnings of other versions are printed.
open-clip: $(OPEN_CLIP)/.made
	$(OPEN_CLIP)/bin/python -m pytest -W default tests/porting/test_open_clip_library.py

$(OPEN_CLIP)/.made: pyproject.toml
	$(PYTHON) -m venv --clear $(OPEN_CLIP)
	$(OPEN_CLIP)/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1
	$(OPEN_CLIP)/bin/pip install --quiet -e '.[torch]' open_clip_torch beartype hypothesis pytest
	touch $@

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.speed.jit_vs_eager
	$(BIN)/python -m benchmarks.speed.time_to_objective
	$(BIN)/python -m benchmarks.speed.rows
	$(BIN)/python -m benchmarks.speed.sweep
	$(BIN)/python -m benchmarks.speed.where_to_solve
	$(BIN)/python -m benchmarks.speed.stand_in_size
	$(BIN)/python -m benchmarks.speed.solver_blas
	$(BIN)/python -m benchmarks.speed.startup
	$(BIN)/python -m benchmarks.speed.stages
	$(BIN)/python -m benchmarks.scale.real_size
	$(BIN)/python -m benchmarks.scale.many_images
	$(BIN)/python -m benchmarks.scale.many_requests
	$(BIN)/python -m benchmarks.scale.processes
	$(BIN)/python -m benchmarks.write_docs

scale: $(AOT)/.made
	JAX_PLATFORMS=cpu $(AOT)/bin/python -m benchmarks.scale.chips

table: $(VENV)/.test
	$(BIN)/python -m benchmarks.forgetting.targets
	$(BIN)/python -m benchmarks.forgetting.optimisers
	$(BIN)/python -m benchmarks.forgetting.tradeoff
	$(BIN)/python -m benchmarks.forgetting.linears
	$(BIN)/python -m benchmarks.forgetting.stand_in
	$(BIN)/python -m benchmarks.forgetting.stand_in_several
	$(BIN)/python -m benchmarks.forgetting.stand_in_bent
	$(BIN)/python -m benchmarks.forgetting.ledger
	$(BIN)/python -m benchmarks.forgetting.ledger_steps
	$(BIN)/python -m benchmarks.forgetting.attacks
	$(BIN)/python -m benchmarks.forgetting.clip_names
	$(BIN)/python -m benchmarks.speed.tower
	$(BIN)/python -m benchmarks.speed.clip_names
	$(BIN)/python -m benchmarks.speed.demo
	$(BIN)/python -m benchmarks.shipped.qwen3_vl.exam
	$(BIN)/python -m benchmarks.shipped.clip.exam
	$(BIN)/python -m benchmarks.write_docs

demo-model: $(VENV)/.test
	$(BIN)/python -m benchmarks.shipped.qwen3_vl

demo-clip-model: $(VENV)/.test
	$(BIN)/pip install --quiet resvg-py
	$(BIN)/python -m benchmarks.shipped.clip

clean:
	rm -rf $(VENV) $(AOT) $(OPEN_CLIP) $(OUT) site
