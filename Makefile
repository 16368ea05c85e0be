# Two commands on a fresh machine: `make demo` and `make test`. Both install first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# `make install TORCH=cpu` takes PyTorch's small build without CUDA.
TORCH ?=

DATA ?= ../shared/data

PEERS := .venv-peers
JOBS ?= a b c d e

.PHONY: help install demo test faults check format long results bench bench-corpus bench-startup bench-scaling bench-peers clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install, train three small generators, run a batch job with each"
	@echo "make test    install, run the tests"
	@echo "make faults  kill the chain at every point where something becomes visible, and start it again"
	@echo "make check   lint, types, import contracts"
	@echo "make bench   speed of training and decoding, beside the machine's limits; beside peers after make bench-peers"
	@echo "make bench-corpus, bench-startup, bench-scaling   reading and encoding text; starting up; two workers beside one"
	@echo "make long NAME=x DATA=folder SEEDS=0,1,2      run a benchmark experiment, or a comparison; resumable"
	@echo "make results write the table of what make long has measured into the README"

install: $(STAMP)
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
ifeq ($(TORCH),cpu)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch --index-url https://download.pytorch.org/whl/cpu
else
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
endif
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/python -m pipelines.demo

# Two files at a time, in the order of their folders: the slow ones, which wait much, come before those of tests/unit.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25 --cov --cov-report=term:skip-covered --cov-fail-under=90

faults: install
	RNNLM_LONG_FAULTS=1 $(BIN)/python -m pytest tests/faults

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

long: install
	$(BIN)/python tests/benchmarks/long.py $(NAME) $(DATA) $(if $(SEEDS),--seeds $(SEEDS)) $(OPTIONS)

results: install
	$(BIN)/python tests/benchmarks/results.py

bench: install
	$(BIN)/python tests/benchmarks/bench.py $(JOBS) $(OPTIONS)
	$(BIN)/python tests/benchmarks/picture.py

bench-corpus bench-startup bench-scaling: install
	$(BIN)/python tests/benchmarks/$(@:bench-%=%).py $(OPTIONS)

# Other people's code, in an environment of its own: some of it asks for older versions of everything.
bench-peers:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0
	$(PEERS)/bin/python -m pip install --quiet ctranslate2 sentencepiece regex sacrebleu tensorboard subword-nmt sacremoses \
		ConfigArgParse datasets spacy six tqdm fastdownload plum-dispatch pandas matplotlib scikit-learn scipy importlib_metadata==8.5.0
	$(PEERS)/bin/python -m pip install --quiet --no-deps joeynmt==2.3.0 fastai==2.7.19 fastcore==1.7.29 fastprogress==1.0.3 \
		fasttransform torchvision==0.28.0

clean:
	rm -rf $(VENV) $(PEERS) store build dist *.egg-info
