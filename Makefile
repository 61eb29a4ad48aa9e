# make test        run the tests                 make quickstart   the whole story on the embedded model
# make lint        ruff and mypy                 make .venv        only install
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: .venv test lint quickstart

# One pip command with torch pinned in it: whichever build of that version pip is set up to find is the one that is taken.
.venv/.installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.txt -e .
	touch $@

.venv: .venv/.installed

# The tests are many small ones: processes of one thread each beat threads. More than four only cost memory.
test: .venv
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

lint: .venv
	@failed=0; $(BIN)/ruff check . || failed=1; $(BIN)/ruff format --check -q . || failed=1; $(BIN)/mypy || failed=1; exit $$failed

quickstart: .venv
	$(BIN)/ccm quickstart $(ARGS)
