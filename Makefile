# Needs Python 3.11 or newer and make. Everything else is fetched into .venv, static/node_modules and .cache.
# The Python that the pins were resolved on comes first.

PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
MACHINE = $(or $(PYTHON),$(error Graftworks needs Python 3.11 or newer, and none was found on PATH)) -I dashboard/launcher/machine.py
VENV = .venv/bin/python
export OMP_NUM_THREADS ?= 1
# Dozens of processes would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help start test test-postgres check proof bench gpu-check clean
help:
	@echo "make start   install what is missing, then run Graftworks on http://127.0.0.1:8000/ (PORT, DATA_DIR)"
	@echo "make test    every test, with a real broker, worker and browser "
	@echo "make test-postgres   the tests of jobs again, on PostgreSQL and Valkey"
	@echo "make proof   hours: kill storms, long walks, simulations, on SQLite and PostgreSQL (STORM, BREAKS, BLOWS)"
	@echo "make gpu-check   train, resume, score and serve on an NVIDIA GPU, compared with the CPU"
	@echo "make bench   hours: speed and memory of training against HF Trainer with PEFT (BENCH_REPEATS=1 for a trial; TRL=PATH/TO/bin/python adds TRL)"
	@echo "make check   format, lint, types, templates, import layers, migrations, deployment settings"
	@echo "make clean   remove what was installed and built; data stays"

start:
	@$(MACHINE) start
	@exec $(VENV) manage.py start

BROWSER = CHROMIUM="$$($(MACHINE) browser)" && export CHROMIUM
PYTEST = $(VENV) -m pytest -q
# One more than two cores, because tests often wait; a fourth gains nothing.
PROCESSES = 3
test:
	@$(MACHINE) test
	@$(BROWSER) && exec $(PYTEST) -n $(PROCESSES) --durations 10

# The queue, workers and recovery once more, on PostgreSQL and Debian's Valkey.
test-postgres:
	@$(MACHINE) test
	@exec $(VENV) -m tests.servers $(PYTEST) -n $(PROCESSES) -m "jobs and not proof and not gpu" tests/dashboard tests/workers

# Needs a CUDA build of torch; for 4 bits also bitsandbytes (`pip install -e .[four-bit]`).
gpu-check:
	@$(MACHINE) test
	@$(PYTEST) -m gpu tests/gpu tests/workers/recovery

# Seeded: the same STORM makes the same schedule.
STORM ?= --jobs 100 --kills 40 --pauses 4 --seed 1
# The connections to PostgreSQL and to the broker break instead of processes.
BREAKS ?= --jobs 200 --kills 0 --pauses 0 --outages 5 --silences 1 --seed 1
# One at a time, to measure how long each recovery takes.
BLOWS ?= --recoveries 24 --elsewhere 4 --stops 20 --nodes 1
proof: export CHAOS_SEQUENCES ?= 500
proof:
	@$(MACHINE) test
	@$(BROWSER) && $(PYTEST) -m proof
	$(VENV) -m tests.servers $(PYTEST) -m "proof and jobs"
	$(VENV) -m tests.proof.api_recording check
	$(VENV) -m tests.chaos $(STORM)
	$(VENV) -m tests.servers $(VENV) -m tests.chaos $(STORM)
	$(VENV) -m tests.servers $(VENV) -m tests.chaos $(BREAKS)
	$(VENV) -m tests.chaos $(BLOWS)
	$(VENV) -m tests.servers $(VENV) -m tests.chaos $(BLOWS)

# On a quiet machine, with MLFLOW naming the program of MLflow 3.17, TRL a Python with TRL and BEFORE a checkout of an earlier commit; BENCH_SHAPES, BENCH_DTYPES and BENCH_STEPS shorten it further.
bench:
	@$(MACHINE) test
	@$(VENV) -m tests.bench
	@$(VENV) -m tests.bench.serving
	@test -z "$$BEFORE" || $(VENV) -m tests.bench.scoring
	@$(VENV) -m tests.bench.warm_start
	@$(VENV) -m tests.bench.open_streams
	@$(VENV) -m tests.bench.beside_trainings
	@$(VENV) -m tests.bench.pages
	@$(VENV) -m tests.bench.tracker
	@$(VENV) -m tests.bench.idle
	@$(VENV) -m tests.bench.load
	@$(VENV) -m tests.servers $(VENV) -m tests.bench.load

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
