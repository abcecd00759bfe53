# `make help` lists the targets. PY=python3 uses an interpreter that you prepared instead of .venv (a GPU node with no
# network, say); otherwise each target sets up .venv first, once, with the first Python that fits, or with PYTHON.
# CHAPTERS and ARGS hold several words; PY, PORT, OUT and SUBMISSIONS hold one, spaces and all.
ifdef PY
READY :=
else
# .venv is complete: packages and a standard library from elsewhere could only be others.
unexport PYTHONPATH PYTHONHOME
PY := .venv/bin/python
READY := .venv/.ready
STALE := $(shell sh book/tools/venv.sh --stale)
endif
# `python -m` finds the package in this folder, asserts are executed, no library's warning ends a program, and all that
# runs reads and writes UTF-8, whatever the locale.
unexport PYTHONSAFEPATH PYTHONOPTIMIZE PYTHONWARNINGS
export PYTHONUTF8 := 1
# Tests wait for browsers and for processes of their own: two more at a time than there are cores.
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)

# What was said on make's own command line: OUT or ARGS in the environment may be somebody else's.
given = $(if $(filter command,$(origin $1)),$($1))
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' flashkat_lite/__init__.py)

.PHONY: help book serve test optional test-kernels test-all-else standin mutants lint execute bench compare record prices lab student grade slides exam colab wheelhouse wheel hub release-check \
  release-files publish anew newest-tests newest-compiler

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

.venv/.ready: requirements.txt pyproject.toml $(STALE)
	@sh book/tools/venv.sh "$(PYTHON)"

book: $(READY)  ## build the pages; executes nothing
	@"$(PY)" book/tools build

serve: book  ## build the pages and serve them on localhost
	@"$(PY)" book/tools serve "$(or $(PORT),8000)"

# Each of these processes with threads of its own would have them wait for one another. What is imported is kept.
TESTS := test test-kernels test-all-else
$(TESTS): export OMP_NUM_THREADS := 1
$(TESTS): export PYTHONDONTWRITEBYTECODE :=
# Kernels and exercises choose Triton's interpreter for a whole process, and run beside the rest: neither's end is alone.
FEWER = $(shell expr \( $(JOBS) + 1 \) / 3)
MORE = $(shell expr $(JOBS) - $(FEWER))
test: $(READY) lint  ## everything that CI runs: twelve minutes on 2 cores
	@$(MAKE) --no-print-directory -j 3 optional test-kernels test-all-else

optional: $(READY)
	@"$(PY)" -m flashkat_lite doctor --optional

test-kernels: $(READY)
	@mkdir -p _build; { "$(PY)" -m pytest -n "$(FEWER)" tests/kernels && "$(PY)" -m pytest -n "$(FEWER)" tests/exercises && \
	  "$(PY)" book/tools standin --test -n "$(FEWER)" -m standin; } >_build/test-kernels.log 2>&1; \
	  status=$$?; cat _build/test-kernels.log; exit $$status

test-all-else: $(READY)
	@MAKEFLAGS= "$(PY)" -m pytest -n "$(MORE)" --dist worksteal tests --ignore=tests/kernels --ignore=tests/exercises

standin: $(READY)  ## tests of kernels and exercises with a stand-in for Triton's compiled module, as on macOS and Windows
	@"$(PY)" book/tools standin --test $(or $(call given,ARGS),-n "$(JOBS)")

# The newest Triton of the index, beside the pinned one.
NEWEST := _build/newest
newest = "$(PY)" -m pip install -q --no-deps --upgrade --target "$(NEWEST)" triton && \
  PYTHONPATH="$(CURDIR)/$(NEWEST)$${PYTHONPATH:+:$$PYTHONPATH}" "$(PY)" book/tools

newest-tests: export OMP_NUM_THREADS := 1
newest-tests: $(READY)  ## the tests that depend on Triton, under the newest: half an hour on 2 cores
	@$(newest) tested --check

newest-compiler: $(READY)  ## what the newest Triton makes of every kernel: fails on a spill or on 5 % more instructions
	@$(newest) compilers --check

mutants: $(READY)  ## seed faults, one at a time in a copy, and see the tests find each: about ten minutes on 2 cores
	@"$(PY)" book/tools mutants $(call given,ARGS)

lint: $(READY)
	@"$(PY)" -m ruff check . && "$(PY)" -m ruff format --check .

execute: $(READY)  ## run chapters on this machine's GPU and keep their outputs: make execute CHAPTERS="07 09"
	@"$(PY)" book/tools execute $(CHAPTERS)

bench: $(READY)  ## measure the ladder of kernels on this machine's GPU: 3 minutes
	@"$(PY)" -m flashkat_lite bench

compare: $(READY)  ## hold fresh measurements to those in book/data: fails where a ratio is worse by 10 %
	@"$(PY)" book/tools compare

record: $(READY)  ## move fresh measurements from _build/records to book/data
	@"$(PY)" book/tools record

prices: $(READY)  ## price lists for forecasts (flashkat_lite.xray), from the records in book/data
	@"$(PY)" book/tools prices

lab: $(READY)  ## JupyterLab on the chapters
	@"$(PY)" book/tools lab $(call given,ARGS)

student: $(READY)  ## notebooks without solutions, in _build/student: make student CHAPTERS="07 09"
	@"$(PY)" book/tools student $(CHAPTERS)

slides: $(READY)  ## a deck for each session, in _build/slides, offline
	@"$(PY)" book/tools slides

exam: $(READY)  ## an exam with numbers of its own, and its answers, in _build/exam: make exam SEED=word
	@"$(PY)" book/tools exam -- "$(or $(call given,SEED),$(error make exam SEED=any word that you keep))"

# Folders' names may hold anything, so the shell reads them from the environment.
grade: $(READY)  ## score a folder of student notebooks: make grade SUBMISSIONS=folder [OUT=folder] [EXERCISES="2.1 3.1"]
	@"$(PY)" book/tools grade $(if $(call given,OUT),"--out=$$OUT") $(if $(call given,EXERCISES),"--exercises=$$EXERCISES") \
	  $(if $(call given,STUDENT),"--student=$$STUDENT") $(call given,ARGS) -- "$$SUBMISSIONS"

colab: $(READY)  ## a first cell that installs the package on Colab: make colab REPO_URL=https://github.com/owner/name
	@"$(PY)" book/tools colab

wheelhouse: $(READY)  ## .whl: what a GPU node without network needs beside its own torch and Triton: [EXTRA=census]
	@"$(PY)" book/tools wheelhouse $(if $(call given,EXTRA),--extra "$$EXTRA")

release-check: $(READY)  ## fails where a chapter is stale or was not executed on a GPU
	@"$(PY)" book/tools status --check

wheel: $(READY)  ## the package's wheel and source archive, in dist
	@"$(PY)" book/tools wheel

hub: $(READY)  ## the source of a kernel for the Hugging Face Hub, in _build/hub
	@"$(PY)" book/tools hub

release-files: book student wheel  ## what a release attaches, in dist: site, students' notebooks, package
	@tar -czf "dist/flashkat-site-$(VERSION).tar.gz" -C _build html
	@tar -czf "dist/flashkat-student-$(VERSION).tar.gz" -C _build student
	@ls dist

publish:  ## attach dist to a release on GitHub; the tag v<version> must have been pushed
	@gh release create "v$(VERSION)" --verify-tag --title "FlashKAT from Scratch $(VERSION)" --notes-file CHANGELOG.md dist/*
