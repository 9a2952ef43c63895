# Every verb does its own set-up: Python 3.11 or 3.12, make and git are all that must be there.
PROFILE ?= mini
SEED ?= 0
NB ?=
SEEDS ?= $(SEED)
WORKERS ?= 1
GRID ?=
SLURM ?=
SET ?=
RUN ?= results/mini
ONLY ?=
ARCH ?= R RA RA | RARA RRA RRA
FRESH ?=
IMAGE ?=
TASK ?= sr
OUT ?=
COMMIT ?=
WHEELS ?=
FOLDER ?= notebooks
PYTHON ?= $(shell for p in python3.11 python3 python3.12; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)

BIN := .venv/bin
STAMP := .venv/.stamp
SWEEP = --profile '$(PROFILE)' --seeds='$(SEEDS)' --workers '$(WORKERS)' \
	$(if $(GRID),--grid '$(GRID)') $(if $(SLURM),--slurm '$(SLURM)')
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest
CLI := $(BIN)/python -m nanosd_lib.cli
OFFLINE = $(if $(WHEELS),--no-index --find-links '$(WHEELS)')
INSTALL = $(BIN)/uv pip $(1) --quiet --python $(BIN)/python $(OFFLINE) $(if $(WHEELS),--offline)
CHOICE = --profile '$(PROFILE)' --seed='$(SEED)' $(foreach s,$(SET),--set '$(s)')
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	--all-extras --custom-compile-command 'make lock' pyproject.toml -o requirements.lock

.DEFAULT_GOAL := help
.PHONY: help env test nightly reproduce quick run hardware dryrun sweep sweep-status doctor lab teacher reference heads stale book bundle workshop compare release verify-release judge restore chaos drift slurm-test bench lock clean

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo "  variables: PROFILE=mini (smoke, mini, full, sd15)  SEED=0  NB=03  SET='fwkd.steps=10'  RUN=results/mini  ONLY=  FRESH=1  COMMIT=1"

# What would send an installer to another Python, or have it install something else than the lock,
# stays outside; where packages come from (PIP_INDEX_URL, UV_INDEX) does not.
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN PIP_REQUIREMENT \
	PIP_EDITABLE PIP_CONSTRAINT UV_SYSTEM_PYTHON UV_PYTHON UV_PROJECT UV_PROJECT_ENVIRONMENT \
	UV_WORKING_DIR UV_WORKING_DIRECTORY UV_TARGET UV_PREFIX UV_BREAK_SYSTEM_PACKAGES UV_DRY_RUN \
	UV_CONSTRAINT UV_OVERRIDE UV_EXCLUDE UV_BUILD_CONSTRAINT UV_TORCH_BACKEND UV_REQUIRE_HASHES \
	UV_NO_VERIFY_HASHES

env: $(STAMP)  ## install everything in .venv (once; again when the lock changes): WHEELS=folder without network

# uv comes first, at the version and with the hashes in the lock; then uv installs the whole lock
# and compiles it, or every kernel of a system that keeps no bytecode would compile it again.
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: install it, or name it with" \
		"make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || { \
		echo "Python 3.11 or 3.12 is needed, and $(PYTHON) is not one of them" >&2; exit 1; }
	$(if $(WHEELS),@$(PYTHON) -I nanosd_lib/studies/bundle.py --check '$(WHEELS)')
	@test -x $(BIN)/python || $(PYTHON) -I -m venv .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	@$(BIN)/python -I -m pip install --quiet --disable-pip-version-check --no-user \
		$(OFFLINE) --require-hashes -r .venv/uv.lock
	@if [ "$$(stat -c %d "$$($(BIN)/uv cache dir)" 2>/dev/null)" != "$$(stat -c %d .venv)" ]; then \
		export UV_LINK_MODE=copy; fi; \
	$(call INSTALL,sync) --compile-bytecode --require-hashes requirements.lock && \
	$(call INSTALL,install) --no-deps --no-build-isolation -e .
	@$(BIN)/python -I -m ipykernel install --sys-prefix --name nanosd \
		--display-name "Python (nanosd)" \
		--env PYTHONWARNINGS 'ignore:`torch.jit.script` is deprecated:FutureWarning' \
		--env GOMP_SPINCOUNT 10000 >/dev/null
	@touch $(STAMP)
	@echo "the environment is ready in .venv"

test: $(STAMP)  ## check the style, run the unit tests and the end-to-end smoke run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

nightly: $(STAMP)  ## what takes longer: two whole smoke studies compared, byte for byte
	$(PYTEST) -m nightly

reproduce: $(STAMP)  ## execute every notebook: PROFILE=mini SEED=0
	@$(CLI) reproduce $(CHOICE)

quick: $(STAMP)  ## two minutes once installed: prompts through the teacher and NanoSD 2, one photograph restored
	@$(CLI) quick

run: $(STAMP)  ## execute one notebook: NB=03 PROFILE=mini
	@$(CLI) run --nb '$(NB)' $(CHOICE)

hardware: $(STAMP)  ## profile SD 1.5's stages, networks and pipeline here (an hour, 35 GB of disk)
	@$(CLI) hardware

sweep: $(STAMP)  ## many studies and their spread: SEEDS="0 1 2" WORKERS=2 GRID=grid.yaml SLURM=1
	@$(CLI) sweep $(SWEEP)

sweep-status: $(STAMP)  ## how far each study of a sweep is, checked
	@$(CLI) sweep status $(SWEEP)

doctor: $(STAMP)  ## what this machine has, and which profiles it can run
	@$(CLI) doctor

dryrun: $(STAMP)  ## every stage once with random weights, and a plan: PROFILE=sd15
	@HF_HUB_OFFLINE=1 $(CLI) dryrun --profile '$(PROFILE)'

lab: $(STAMP)  ## open JupyterLab on the notebooks: FOLDER=results/workshop/student
	@$(BIN)/python -m jupyterlab --notebook-dir='$(FOLDER)' \
		--MappingKernelManager.default_kernel_name=nanosd

teacher: $(STAMP)  ## train sd-mini from nothing (hours; resumes where it stopped)
	@$(CLI) teacher

reference: $(STAMP)  ## copy a finished mini run, or one page (NB=00), to results/reference
	@$(CLI) reference $(if $(NB),--nb '$(NB)')

heads: $(STAMP)  ## bring README and the pages' heads in line with results/reference
	@$(CLI) reference --refresh

stale: $(STAMP)  ## which pages of results/reference the code has outgrown, and why
	@$(CLI) stale

book: $(STAMP)  ## the executed pages as a site that works without network: RUN=results/mini
	@$(CLI) book --run '$(if $(filter command line environment,$(origin RUN)),$(RUN))'

bundle: $(STAMP)  ## all of it and every wheel, for a room without network: OUT=/media/stick/nanosd
	@$(CLI) bundle --out '$(OUT)'

workshop: $(STAMP)  ## student, solution and instructor copies of the notebooks, and a plan of 90 minutes
	@$(CLI) workshop

compare: $(STAMP)  ## a finished run beside the reference, claim by claim: RUN=results/mini-seed1
	@$(CLI) compare --run '$(RUN)'

release: $(STAMP)  ## train and publish what data/nanosd-mini lacks: ONLY=surrogates/E1 WORKERS=2
	@$(CLI) release --only '$(ONLY)' --workers '$(WORKERS)' $(if $(FRESH),--fresh) \
		$(if $(COMMIT),--commit)

verify-release: $(STAMP)  ## compute every released member's witness again: ONLY=surrogates/E1
	@$(CLI) verify-release --only '$(ONLY)'

judge: $(STAMP)  ## a network of your own, assembled and judged: ARCH="R RA RA | RARA RRA RRA"
	@$(CLI) judge --arch '$(ARCH)'

restore: $(STAMP)  ## a picture of your own, four times as large: IMAGE=photo.jpg TASK=sr OUT=photo-x4.png
	@$(CLI) restore --image '$(IMAGE)' --task '$(TASK)' --out '$(OUT)'

chaos: $(STAMP)  ## break a smoke run in every way we know, and count what is lost (24 minutes)
	@$(BIN)/python tests/chaos.py

drift: $(STAMP)  ## the smoke run with one thread and with two: what moves, and by how much
	@$(CLI) drift

slurm-test: $(STAMP)  ## a sweep on a one-node Slurm of Debian's packages (root; some ten minutes)
	@$(BIN)/python tests/slurm.py

bench: $(STAMP)  ## run every benchmark
	@set -e; for b in benchmarks/*.py; do echo "$$b"; $(BIN)/python "$$b"; done

lock: $(STAMP)  ## bring requirements.lock in line with pyproject.toml (versions stay where they can)
	$(LOCK)

clean:  ## remove the environment and the caches; results stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
