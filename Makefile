# make demo: train start model, reward model and policy in the embedded world.  make test: lint and tests, as in CI.
# Both set up .venv on the first call.  PYTHON=python3.12 make test uses another interpreter.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test clean

demo: .venv/ready
	$(BIN)/python train_policy.py $(if $(wildcard runs/policy/checkpoint.pt),--resume,--overwrite)
	@echo "Look at runs/policy/report.html"

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch is installed first, so that no other package chooses its version
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[judge,dev]"
	touch $@
