# Drawdown. `make run` needs only Python 3.11 or newer.
#
#   make run                      everything on this machine, ad spend from a generator
#   make run SPEND=FILE           ad spend from a file (KEEP_TIMES=1: without shifting its times)
#   make run TRAFFIC=off          no ad spend; RATE=2000 spends a second instead of 500
#   make test | lint | bench      the test suite, the checks, the benchmarks
#   make test-quick               only the rules, the decoders and the scenarios, in some three minutes: for daily work
#   make test-embedded            the test suite only on the embedded servers; test-containers: only in containers
#   make chaos                    kills services and cuts off servers, in containers; takes eleven minutes
#   make audit-dependencies       known vulnerabilities of the locked libraries; needs a network
#   make security-check           attacks the system that `make up` has started: ARGS="--list", "--quick", "--only bombs"
#   make up | down                the same system in containers (SECURITY=off TRAFFIC=off RATE=2000 POSTGRES_TLS=off)
#   make logs | token             the log of their traffic; a bearer token for their API
#   make clean                    removes the installation and the ledger of `make run`

VENV := .venv
BIN := $(VENV)/bin
DATA_DIR := $(or $(DRAWDOWN_DATA_DIR),.drawdown)

# The secrets belong to the user who runs make.
COMPOSE := docker compose --file deploy/compose.yaml \
	$(if $(filter off,$(SECURITY)),--file deploy/compose.security-off.yaml) \
	$(if $(filter off,$(TRAFFIC)),,--profile traffic)
HTTP_PORT := $(or $(DRAWDOWN_HTTP_PORT),8080)
KAFKA_PORT := $(or $(DRAWDOWN_KAFKA_PORT),9092)
export DRAWDOWN_SECRETS_DIR := $(abspath $(or $(DRAWDOWN_SECRETS_DIR),deploy/secrets))
export DRAWDOWN_USER := $(shell id -u):$(shell id -g)

# The first Python that is new enough is used; PYTHON=… overrides that.
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3.14 python3 python)
FIND_PYTHON = for python in $(CANDIDATES); do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& break; python=; done; \
	test -n "$$python" || { echo 'drawdown: no Python 3.11 or newer with venv among: $(CANDIDATES) (set PYTHON=…)' >&2; exit 1; }

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet
# Each stamp says that the versions in its lock file are installed.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help install install-dev lock run test test-quick test-embedded test-containers lint audit-dependencies bench bench-memory chaos security-check up down logs token clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(INSTALLED)
install-dev: $(INSTALLED_DEV)

$(VENV)/pyvenv.cfg:
	@$(FIND_PYTHON); echo "drawdown: creating $(VENV) with $$("$$python" --version)"; "$$python" -m venv $(VENV)

$(INSTALLED): requirements.lock pyproject.toml | $(VENV)/pyvenv.cfg
	@echo 'drawdown: installing the libraries in requirements.lock (about 45 MB, once)'
	@$(PIP) --require-hashes --only-binary :all: --requirement requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(INSTALLED_DEV): requirements-dev.lock $(INSTALLED)
	@echo 'drawdown: installing the libraries for tests and checks'
	@$(PIP) --require-hashes --only-binary :all: --requirement requirements-dev.lock
	@touch $@

# For maintainers; needs uv.
lock:
	uv pip compile pyproject.toml --group build --group embedded --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --quiet --output-file requirements.lock
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --quiet --constraint requirements.lock \
		--output-file requirements-dev.lock
	uv pip compile pyproject.toml --group build --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --quiet --constraint requirements.lock \
		--output-file deploy/requirements.lock

run: $(INSTALLED)
	@exec $(BIN)/drawdown run $(if $(SPEND),--spend '$(SPEND)') $(if $(KEEP_TIMES),--keep-times) \
		$(if $(TRAFFIC),--traffic '$(TRAFFIC)') $(if $(RATE),--rate '$(RATE)')

test: $(INSTALLED_DEV)
	@$(BIN)/python -m tests $(ARGS)

test-quick: $(INSTALLED_DEV)
	@$(BIN)/python -m pytest --servers=embedded -n auto --dist loadfile tests/unit tests/acceptance $(ARGS)

test-embedded test-containers: test-%: $(INSTALLED_DEV)
	@$(BIN)/python -m pytest --servers=$* $(ARGS)

lint: $(INSTALLED_DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# In a separate environment, because pip-audit depends on many libraries.
audit-dependencies: $(VENV)/pyvenv.cfg
	@test -x $(VENV)/audit/bin/pip-audit || { $(BIN)/python -m venv $(VENV)/audit && \
		$(VENV)/audit/bin/pip --disable-pip-version-check --no-input install --quiet pip-audit; }
	@for lock in requirements.lock requirements-dev.lock deploy/requirements.lock; do \
		$(VENV)/audit/bin/pip-audit --strict --progress-spinner off --timeout 30 --require-hashes --disable-pip --requirement $$lock || exit 1; done

# CHAOS_SEED=…, CHAOS_KILLS=… (1,000), CHAOS_ONLY=kills|zombies|faults or one fault's name: docs/faults.md.
chaos: $(INSTALLED_DEV)
	@CHAOS_SEED='$(CHAOS_SEED)' CHAOS_KILLS='$(CHAOS_KILLS)' CHAOS_ONLY='$(CHAOS_ONLY)' \
		exec $(BIN)/python -m tests.chaos

# Against the system that `make up` has started with the same COMPOSE_PROJECT_NAME, ports and secrets.
security-check: $(INSTALLED_DEV)
	@exec $(BIN)/python -m tests.security $(ARGS)

bench: $(INSTALLED_DEV)
	@exec $(BIN)/python -m tests.benchmarks

# Sends ten million spends, and reports the memory of the allocation process at each million. Takes minutes and about
# 10 GB of disk.
bench-memory: $(INSTALLED_DEV)
	@BENCH_MEMORY=1 exec $(BIN)/python -m tests.benchmarks

up:
	@docker compose version >/dev/null 2>&1 || { echo 'drawdown: make up needs Docker and its compose plugin' >&2; exit 1; }
	@mkdir -p '$(DRAWDOWN_SECRETS_DIR)' && chmod 700 '$(DRAWDOWN_SECRETS_DIR)'
	@$(COMPOSE) build
	@$(COMPOSE) run --rm credentials
	@tls='$(POSTGRES_TLS)'; test "$$tls" || { \
		built=$$($(COMPOSE) run --rm --no-deps --entrypoint pg_config postgres --configure) || exit 1; \
		case $$built in *openssl*) tls=on ;; *) tls=off ;; esac; }; \
	test "$$tls" = on && tls=verify-full; echo "DRAWDOWN_DATABASE_TLS=$$tls" >deploy/.env
	$(if $(filter off,$(TRAFFIC)),@$(COMPOSE) --profile traffic rm --stop --force traffic)
	@$(COMPOSE) up --detach --wait --remove-orphans
	@echo 'API      http://localhost:$(HTTP_PORT)/docs; make token prints a token for it'
	@echo 'Kafka    localhost:$(KAFKA_PORT), as ad-delivery or back-office; passwords and certificate in $(DRAWDOWN_SECRETS_DIR)'
	@echo 'Spend    make logs shows it, and the first pause'
	@echo 'Stop     make down keeps the ledger, and the next make up continues it'
	@! grep -q =off deploy/.env || echo 'NO TLS TO POSTGRESQL: $(if $(POSTGRES_TLS),it is switched off,its image was built without it); only the services share a network with it'
	@test '$(SECURITY)' != off || echo 'SECURITY IS OFF: neither Kafka nor the API authenticates anybody, and Kafka has no TLS'

logs:
	@$(COMPOSE) logs --no-log-prefix --tail 20 --follow $(or $(SERVICE),traffic)

# The volumes are kept, so the next `make up` continues the same ledger.
down:
	@$(COMPOSE) --profile '*' down --remove-orphans

# A bearer token for the API of `make up`, valid for an hour: make token SUBJECT=ann ROLE=finance_manager BC=acme
token:
	@$(COMPOSE) run --rm token --subject '$(or $(SUBJECT),admin)' --role '$(or $(ROLE),admin)' --business-center '$(or $(BC),*)'

# If root started the embedded PostgreSQL, its data may be outside the data directory, where a link leads to them.
clean:
	rm -rf "$$(readlink -f $(DATA_DIR)/postgres 2>/dev/null || echo $(DATA_DIR)/postgres)" $(DATA_DIR) $(VENV)
