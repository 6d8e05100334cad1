SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Root needs no sudo; a developer's account does.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Before a command that may be silent for long: says every few seconds that it still works.
BEAT = ( while sleep 4; do echo "  ... $$SECONDS s"; done ) & beat=$$!; trap 'kill $$beat' EXIT;

.PHONY: help system venv check lint test unit demo lab-down bench format constraints

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' Makefile | column -t -s '|'

system: ## install the Debian packages that are missing (debian-packages.txt)
	@wanted=$$(sed -E 's/[[:space:]]*#.*//' debian-packages.txt); \
	have=$$(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $$wanted 2>/dev/null | sed -n 's/^installed //p' || true); \
	missing=$$(comm -23 <(tr -s ' ' '\n' <<<"$$wanted" | sed '/^$$/d' | sort -u) <(sort -u <<<"$$have") | xargs); \
	if [ -n "$$missing" ]; then \
	  echo "Installing Debian packages: $$missing"; $(BEAT) \
	  $(SUDO) apt-get update; \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	else echo "Debian packages: all there"; fi

venv: $(STAMP) ## make or refresh the virtual environment

# --system-site-packages: guestfs and nbd come from the distribution; constraints.txt pins all the rest.
$(STAMP): pyproject.toml constraints.txt
	@echo "Virtual environment $(VENV): installing what constraints.txt pins"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv --system-site-packages $(VENV)
	@$(BEAT) $(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --no-compile -c constraints.txt \
	  -e '.[dev]'
	@touch $@

check: lint ## ruff, mypy, import contracts (seconds)
	$(BIN)/mypy

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# Three workers on two cores: the lab's tests wait for guests and ssh a third of their time. mypy runs beside them.
test: system lint ## everything, as CI runs it
	@echo "$(BIN)/mypy, and $(BIN)/pytest beside it"; \
	$(BIN)/mypy >$(VENV)/mypy.log 2>&1 & mypy=$$!; \
	$(BIN)/pytest -ra --durations=15 -n 3 --dist loadfile --no-loadscope-reorder && tested=0 || tested=$$?; \
	wait $$mypy || { cat $(VENV)/mypy.log; exit 1; }; \
	exit $$tested

unit: venv ## only the quick floor: no server, no VM
	$(BIN)/pytest -q -n 3 tests/unit

demo: system venv ## a lab with a real VM, two nights, a disaster, a recovery
	$(BIN)/python -m tests.lab.demo

lab-down: venv ## end the lab and the UI, leave nothing behind
	$(BIN)/python -m tests.lab.demo down

bench: system venv ## GBS beside bare rsync and rsnapshot, nbdcopy and virtnbdbackup
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.files
	$(BIN)/python -m tests.bench.fleet
	$(BIN)/python -m tests.bench.rotation
	$(BIN)/python -m tests.bench.images
	$(BIN)/python -m tests.bench.update
	$(BIN)/python -m tests.bench.instant
	$(BIN)/python -m tests.bench.recovery
	$(BIN)/python -m tests.bench.points --policy-nights 120
	$(BIN)/python -m tests.bench.points --guest --tree /usr/lib/python3.13
	$(BIN)/python -m tests.bench.latency

format: venv ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: ## resolve pyproject.toml anew into constraints.txt
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(PYTHON) -m venv "$$tmp"; \
	"$$tmp/bin/pip" install -e '.[dev]'; \
	{ sed '/^[^#]/,$$d' constraints.txt; "$$tmp/bin/pip" freeze --exclude-editable; } >"$$tmp/new"; \
	cp "$$tmp/new" constraints.txt
