# Every target works from a bare checkout: it needs make, and Python 3.11 or later with venv.
SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
SUITE ?= trixie

# Whatever the locale, files and their names are read as UTF-8; and what is set for other Pythons is not for this one.
export PYTHONUTF8 := 1
unexport PYTHONHOME PYTHONPATH PYTHONPLATLIBDIR PYTHONWARNINGS PYTHONOPTIMIZE PYTHONINSPECT
export PYTHON
# What is asked on this machine is asked directly.
export no_proxy := localhost,127.0.0.1,$(or $(no_proxy),$(NO_PROXY))
export NO_PROXY := $(no_proxy)

.PHONY: help run rush locust test test-newer test-compose test-chaos audit model walks mutants chaos check readme dashboards lock clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: $(VENV)/.runtime ## Start everything here, send a first rush hour, serve until Ctrl-C
	@$(BIN)/evenload up

rush: $(VENV)/.dev ## Play a rush hour of 1,200 vehicles against `make run`; report in .evenload/rush_hour.html
	@gateway=$$($(GATEWAY)) || exit; \
		$(BIN)/python -m locust -f locustfiles/rush_hour.py --headless --only-summary --host "$$gateway" \
		--html $(RUSH_REPORT) --master-bind-host 127.0.0.1 $(ARGS); \
		code=$$?; test ! -f $(RUSH_REPORT) || echo "the report is in $(RUSH_REPORT)"; exit $$code

locust: $(VENV)/.dev ## Open locust's page (127.0.0.1:8089) to play rush hours against `make run`
	@gateway=$$($(GATEWAY)) || exit; \
		$(BIN)/python -m locust -f locustfiles --class-picker --web-host 127.0.0.1 --host "$$gateway" $(ARGS)

# As the commands read it, with all that EVENLOAD_GATEWAY_PORT and its file may hold.
GATEWAY := $(BIN)/python -c 'from services import surroundings; surroundings.settle("evenload"); \
	from services.cli import options, output; output.leave_with(lambda: print(options.gateway_url("")) or 0)'
RUSH_REPORT := .evenload/rush_hour.html

test: $(VENV)/.dev ## Run the test suite on a real RabbitMQ and PostgreSQL of its own
	@$(BIN)/python -m pytest $(ARGS)

test-newer: $(VENV)/.suite-$(SUITE) ## Run the tests that a version could fail on another Debian suite's Python, RabbitMQ and PostgreSQL (SUITE=trixie)
	@TEST_SERVERS_SUITE=$(SUITE) $(VENV)/$(SUITE)/bin/python -m pytest tests/unit tests/contract tests/integration \
		tests/e2e/test_broker_trouble.py tests/e2e/test_postgres_trouble.py $(ARGS)

test-compose: $(VENV)/.dev ## Start, load, break and scale the compose files on a Docker engine (brings one up as root)
	@PYTHONPATH=tests $(BIN)/python -m harness.compose_check $(ARGS)

test-chaos: $(VENV)/.dev ## Run the three short chaos tests on both databases: 1,800 requests, and 28 faults (5 min)
	@$(BIN)/python -m pytest tests/chaos -n 2 --dist load $(ARGS)

model: $(VENV)/.dev ## Run the protocol's model with 3,000 seeds (EVENLOAD_MODEL_RUNS, EVENLOAD_MODEL_FIRST_SEED)
	@EVENLOAD_MODEL_RUNS=$${EVENLOAD_MODEL_RUNS:-3000} $(BIN)/python -m pytest tests/model --dist load $(ARGS)

walks: $(VENV)/.dev ## Walk at random over ledgers on both databases, beside the model of their promises: 100 and 25 walks
	@EVENLOAD_WALKS_SQLITE=$${EVENLOAD_WALKS_SQLITE:-100} EVENLOAD_WALKS_POSTGRES=$${EVENLOAD_WALKS_POSTGRES:-25} \
		$(BIN)/python -m pytest tests/contract/test_ledger_model.py --dist load $(ARGS)

mutants: $(VENV)/.dev ## Break lines one at a time, and tell which broken line no test notices (10 min; ARGS=--help)
	@PYTHONPATH=tests $(BIN)/python -m harness.mutants $(ARGS)

chaos: $(VENV)/.dev ## Break a stack of its own 100 times in 23 ways, and check every promise (25 min; ARGS=--list, --help)
	@PYTHONPATH=tests $(BIN)/python -m harness.chaos $(ARGS)

check: $(VENV)/.dev ## Run the linters: style, types, architecture, dead code, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/deptry .

audit: $(VENV)/.audit ## Look for known vulnerabilities in every locked package; fails where one cannot be looked up
	@for lock in runtime dev audit; do $(VENV)/audit/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off \
		--requirement requirements/$$lock.txt || exit 1; done

readme: $(VENV)/.dev ## Write the README's configuration table anew
	@$(BIN)/python tools/settings_table.py

dashboards: $(VENV)/.dev ## Write Grafana's dashboards anew, from their code in tools
	@$(BIN)/python tools/grid_dashboard.py

lock: ## Renew the hashed requirement locks (needs uv)
	@command -v uv >/dev/null || { echo "uv is missing: pip install uv"; exit 2; }
	uv pip compile $(LOCK_OPTIONS) pyproject.toml --group build -o requirements/runtime.txt
	uv pip compile $(LOCK_OPTIONS) pyproject.toml --group dev -o requirements/dev.txt
	uv pip compile $(LOCK_OPTIONS) --group audit -o requirements/audit.txt

LOCK_OPTIONS := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

clean: ## Remove the environment, the local stack's data and all caches of this checkout
	@if [ -f .evenload/lock ] && command -v flock >/dev/null && ! flock -n .evenload/lock true; then \
		echo "a stack runs from this checkout: stop it first" >&2; exit 2; fi
	rm -rf $(VENV) .evenload dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps name what was installed; a half-made environment has none and is made anew. So is one that was moved, or
# whose Python is gone.
ifneq ($(shell sh tools/environment is-sound $(VENV) && echo yes),yes)
$(VENV)/.runtime $(VENV)/.dev: FORCE
endif

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml tools/environment tools/install_lock.py
	@$(MAKE) environment LOCK=$<
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml tools/environment tools/install_lock.py
	@$(MAKE) environment LOCK=$<
	@touch $@ $(VENV)/.runtime

$(VENV)/.audit: requirements/audit.txt tools/install_lock.py $(VENV)/.dev
	@$(BIN)/python -m venv --without-pip $(VENV)/audit
	@$(BIN)/python tools/install_lock.py $(VENV)/audit $<
	@touch $@

$(VENV)/.suite-%: requirements/dev.txt pyproject.toml tools/install_lock.py $(VENV)/.dev
	@python=$$(PYTHONPATH=tests $(BIN)/python -m harness.suites $*) && rm -rf $(VENV)/$* && "$$python" -m venv --without-pip $(VENV)/$*
	@$(BIN)/python tools/install_lock.py $(VENV)/$* $<
	@sh tools/environment link $(VENV)/$*
	@touch $@

.PHONY: environment FORCE
environment:
	@sh tools/environment make $(VENV) $(LOCK)
