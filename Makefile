# make reproduce   the demo, in an environment of its own under .venv
# make test        lint, format and tests, in the same environment
# make site        the static site in build/site, in the same environment
# Another interpreter: make reproduce PYTHON=python3.12 (make clean first, if .venv has a different one)

PYTHON ?= python3

.PHONY: reproduce test site clean

reproduce: .venv/.installed
	.venv/bin/python run_all.py

test: .venv/.installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest

site: .venv/.installed-site
	.venv/bin/python -m sphinx -q -W --keep-going -c docs . build/site

clean:
	rm -rf build .venv

version_test = import sys; print(sys.version_info >= (3, 11))
python_is_new = $(filter True,$(shell $(PYTHON) -c '$(version_test)' 2>/dev/null))
too_old = igkd needs Python 3.11 or newer and "$(PYTHON)" is not: name one with PYTHON=python3.12

# Each stamp is touched last, so an installation that fails half-way is taken up again by the next call.
.venv/.made:
	$(if $(python_is_new),,$(error $(too_old)))
	$(PYTHON) -m venv --clear .venv
	touch $@

.venv/.installed: pyproject.toml constraints.txt .venv/.made
	.venv/bin/python -m pip install --constraint constraints.txt --editable .
	touch $@

.venv/.installed-test: .venv/.installed
	.venv/bin/python -m pip install --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/.installed-site: .venv/.installed
	.venv/bin/python -m pip install --constraint constraints.txt --editable '.[site]'
	touch $@
