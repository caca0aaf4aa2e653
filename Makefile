# The commands of contributors, once: the workflows in .github/ call these targets.
.PHONY: help test slow lint types docs format

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1: /p' Makefile

test:  ## the default tests, some minutes on two cores
	pytest -n 2 --dist loadfile

slow:  ## training, audits and kills of real runs, for hours; TESTS=tests/presets/test_presets.py takes one file
	pytest -m slow $(TESTS)

lint:  ## style and formatting
	ruff check .
	ruff format --check .

types:  ## static types, also as on Windows, where some functions of Python are missing
	mypy
	mypy --platform win32

docs:  ## the documentation, into site/
	mkdocs build --strict

format:  ## put style and formatting right, as far as ruff can
	ruff check --fix .
	ruff format .
