# Needs Python 3.11 or newer and make. Everything else is fetched into .venv, static/node_modules and .cache.
# The Python that the pins were resolved on comes first.

PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
MACHINE = $(or $(PYTHON),$(error Graftworks needs Python 3.11 or newer, and none was found on PATH)) -I dashboard/machine.py
VENV = .venv/bin/python
export OMP_NUM_THREADS ?= 1

.PHONY: help start test check chaos clean
help:
	@echo "make start   install what is missing, then run Graftworks on http://127.0.0.1:8000/ (PORT, DATA_DIR)"
	@echo "make test    every test, with a real broker, worker and browser (PARTS=quick, slow, jobs)"
	@echo "make chaos   hours of kill -9 while trainings run, on SQLite and PostgreSQL (STORM, BLOWS)"
	@echo "make check   format, lint, types, templates, import layers, migrations, deployment settings"
	@echo "make clean   remove what was installed and built; data stays"

start:
	@$(MACHINE) start
	@exec $(VENV) manage.py start

# What has to do with jobs runs a second time, on PostgreSQL and Debian's Valkey, where they are installed.
test:
	@$(MACHINE) test
	@CHROMIUM="$$($(MACHINE) browser)" && export CHROMIUM && exec $(VENV) -m tests $(PARTS)

# Seeded: the same STORM makes the same schedule. The races and walks of the quick tests run at their full length.
STORM ?= --jobs 500 --kills 200 --pauses 20 --seed 1
# The lines to PostgreSQL and to the broker break instead of processes.
BREAKS ?= --jobs 200 --kills 0 --pauses 0 --outages 5 --silences 1 --seed 1
# One at a time, to see how long each way back takes.
BLOWS ?= --recoveries 24 --elsewhere 4 --stops 20 --nodes 1
chaos: export CHAOS_SEQUENCES = 2000
chaos: export CHAOS_CLAIMERS = 32
chaos: export CHAOS_CLAIMED = 1000
chaos: export CHAOS_WALK = all
chaos: export CHAOS_SILENT_SECONDS = 300
chaos:
	@$(MACHINE) test
	$(VENV) -m tests.chaos $(STORM)
	$(VENV) -m tests.servers $(VENV) -m tests.chaos $(STORM)
	$(VENV) -m tests.servers $(VENV) -m tests.chaos $(BREAKS)
	$(VENV) -m tests.chaos $(BLOWS)
	$(VENV) -m tests.servers $(VENV) -m tests.chaos $(BLOWS)
	$(VENV) -m pytest -q tests/dashboard/test_job_machine.py tests/workers/test_claim_race.py tests/engine/test_death.py \
		tests/workers/test_broker_silence.py
	$(VENV) -m tests.servers $(VENV) -m pytest -q tests/dashboard/test_job_machine.py tests/workers/test_claim_race.py

check: export SECRET_KEY = $(shell $(PYTHON) -c 'import secrets; print(secrets.token_urlsafe(64))')
check: export PUBLIC_URL = https://graftworks.example.org
check: export DATA_DIR = .cache/check
check:
	@$(MACHINE) test
	$(VENV) -m ruff format --check .
	$(VENV) -m ruff check .
	$(VENV) -m mypy
	$(VENV) -m djlint templates --lint --check --quiet
	.venv/bin/lint-imports
	$(VENV) manage.py makemigrations --check --dry-run
	$(VENV) manage.py check --deploy --fail-level WARNING

clean:
	rm -rf .venv .cache static/node_modules static/vendor .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
