# `make demo` and `make test` need git, make, a C++ compiler and Python 3.11, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt runtime/CMakeLists.txt \
           $(shell find runtime/csrc -name '*.cc' -o -name '*.h' -o -name '*.map')
BENCHMARKS := codespell output_layer probabilities transform_table hashing hash_packing step_phases \
              scaling training serving memory_prediction
# The pins hold for what the package needs to build as well as for what it needs to run.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint format bench sanitize package versions clean
# glibc would hand large tensors back to the system at every step; kept, on huge pages, the full
# softmax that the demo compares with is twice as fast.
demo: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296
demo: $(VENV)/demo.stamp
	$(BIN)/python examples/quickstart.py

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cc' '*.h')
	PATH=$(abspath $(BIN)):$$PATH .ci/types

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cc' '*.h')

bench: $(VENV)/bench.stamp
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --json build/$$name.json; done

# C++ alone, without Python: memory and undefined behaviour first, then data races.
sanitize: $(VENV)/dev.stamp
	PATH=$(abspath $(BIN)):$$PATH .ci/sanitize

# The source distribution, the wheel made from it, and an import far from this folder.
package: $(VENV)/dev.stamp
	PATH=$(abspath $(BIN)):$$PATH .ci/package

# The one plugin on several releases of onnxruntime.
versions: $(VENV)/test.stamp
	$(BIN)/python tests/runtime/onnxruntime_versions.py build/onnxruntime

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/bench.stamp: $(VENV)/test.stamp $(VENV)/pecos.stamp
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

# PECOS needs releases of NumPy and SciPy that nothing else here runs with, and an environment for them.
$(VENV)/pecos.stamp: export PIP_CONSTRAINT :=
$(VENV)/pecos.stamp: $(VENV)/bin/python benchmarks/extreme/pecos.txt
	$(PYTHON) -m venv $(VENV)/pecos
	$(VENV)/pecos/bin/python -m pip install --quiet --no-deps --requirement benchmarks/extreme/pecos.txt
	touch $@

$(VENV)/demo.stamp: EXTRA = data
$(VENV)/test.stamp: EXTRA = test
$(VENV)/dev.stamp: EXTRA = dev
# What an extra contains need not be installed, and compiled, once more.
$(VENV)/test.stamp: INCLUDED = demo
$(VENV)/dev.stamp: INCLUDED = demo test
$(VENV)/%.stamp: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRA)]'
	touch $@ $(patsubst %,$(VENV)/%.stamp,$(INCLUDED))

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .coverage
