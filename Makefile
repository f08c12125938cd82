# pyvmm: `make help` lists what there is. Needs git, make and python3 (3.11 or later); it installs the rest.

PYTHON ?= python3
BIN := .venv/bin
PACKAGES := python3-venv gcc libc6-dev \
	$(if $(filter test bench lab,$(MAKECMDGOALS)),busybox-static) \
	$(if $(filter images,$(MAKECMDGOALS)),busybox-static debootstrap $(if $(filter 0,$(shell id -u)),,fakechroot fakeroot)) \
	$(if $(filter lab,$(MAKECMDGOALS)),linux-image-amd64 qemu-system-x86)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint guest images lab bench clean packages shipped

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: shipped .venv/.installed ## install into .venv, build the guest and boot the hello image
	$(BIN)/pyvmm boot images/_built/hello/hello

test: lint guest ## lint, then all tests
	$(BIN)/python -m pytest

lint: .venv/.installed-dev ## ruff and mypy
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy

guest: packages ## build what runs inside the VM
	@$(MAKE) -s -C guest

images: shipped ## build the archives of the images hello, busybox and debian
	@$(MAKE) -s -C images

lab: guest .venv/.installed-dev ## the guest tests on hardware-KVM semantics (kvm_amd under QEMU)
	$(BIN)/python tests/lab/run.py

bench: guest .venv/.installed-dev ## measure, and print a table
	$(BIN)/python -m tests.bench

clean: ## remove all that was built
	$(MAKE) -s -C guest clean
	rm -rf .venv .venv.lock .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist pyvmm.egg-info
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

shipped: packages
	@$(MAKE) -s -C guest shipped

packages:
	@PYTHON=$(PYTHON) tools/packages $(PACKAGES)

# Two makes at once: the second waits for the lock and then finds the work done.
.venv/.installed-dev: extra := [dev]
.venv/.installed .venv/.installed-dev: pyproject.toml setup.py | packages
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("pyvmm needs Python 3.11 or later, this is " + sys.version.split()[0])'
	@exec 9>.venv.lock && flock 9 && \
	if [ ! -e $@ ] || [ pyproject.toml -nt $@ ] || [ setup.py -nt $@ ]; then \
		{ $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv; } && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(extra)' && \
		touch .venv/.installed $@; \
	fi
