# make demo    trains, evaluates and draws a small Faster R-CNN (CPU, minutes)
# make test    runs all tests
# make stress  runs make sanitize, then the long forms of the attacks (an hour or so); docs/reliability.md has
#              their counts
# make sanitize    tests and fuzzes the operators in a build of their own, under build/, that stops at the first
#              access out of bounds and at undefined behavior; needs gcc; FUZZ_CALLS is how many calls (100000)
# make test-gpu-emulated    runs the CUDA path without a GPU, on the emulated device of tools/cuda_emulator; needs
#              nvcc, and a second environment with a CUDA build of torch (GPU_VENV says where; several GB)
# make gpu-report    on a machine with a GPU: tests, sanitizers, verification and measurements in nine minutes, and a
#              report; GPU_PYTHON names an interpreter that has torch, where nothing shall be installed, and
#              GPU_REPORT_ARGS are the options of benchmarks/gpu_report.py
# make rehearse-gpu-report    the same on the emulated device, with small sizes, to see that it runs through
# make wheel    builds dist/*.whl for every Python from 3.10 and every torch from 2.10 on, on machines as old as the
#              manylinux tag says; WHEEL_PYTHON is an interpreter with the torch to compile against (default: that of
#              .venv); one with CUDA, and nvcc, give a wheel that has CUDA
# make test-wheel    builds the wheel with the torch of SECOND_CONSTRAINTS (default: the oldest of everything), in an
#              environment that SECOND_VENV names (several GB), and tries it under that torch and .venv's
# make test-newer-torch    tries the extension that .venv's torch compiled under the newer torch of GPU_VENV
# make sdist    builds dist/*.tar.gz
# make docs    builds the site of docs/ into build/site; a warning is an error
# make lint    checks style, types and workflows; make format applies the style
# make test-gpu, make cuda-check    for machines with a GPU, with nvcc
# make cuda-link    builds and imports the extension with CUDA_PYTHON, an interpreter whose torch has CUDA
#
# PYTHON chooses the interpreter, PIP_ARGS goes to pip (for example an --index-url with the torch build you want),
# TEST_ARGS to pytest, DEMO_ARGS to examples/demo.py, CONSTRAINTS names the file with the versions that are installed. TESTS names what `make test`
# runs (default: all), THREADS how many threads each process has.

PYTHON ?= python3
PIP_ARGS ?=
CONSTRAINTS ?= requirements/constraints.txt
TEST_ARGS ?=
DEMO_ARGS ?=
TESTS ?= tests
THREADS ?= 1

# Threads that wait for each other sleep instead of spinning: on a busy machine a training step is more than twice
# as fast, and it frees the cores for the loader.
export OMP_WAIT_POLICY ?= PASSIVE

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS)
BUILT_FROM := pyproject.toml setup.py requirements/constraints.txt \
    $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')
CPP := $(shell find csrc examples tests tools -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')

.PHONY: demo test stress sanitize test-gpu test-gpu-emulated gpu-report rehearse-gpu-report docs lint format \
    cuda-check cuda-link wheel try-wheel test-wheel test-newer-torch second-torch emulated-torch sdist install clean

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

# One process per core with one thread each: most tests are too small to share among threads.
test: $(INSTALLED)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest $(TESTS) -n auto --dist loadfile $(TEST_ARGS)

stress: sanitize
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m stress --stress -n auto --dist load \
	    -o faulthandler_timeout=0 $(TEST_ARGS)

# Left out is what tests torch.compile, speed and the package's files rather than the operators. Python is not built
# with the sanitizers, so their library comes first, and before libstdc++, whose exceptions it watches. A size
# that the allocator refuses must raise, as it does in a plain build; Python's leaks are its own.
SANITIZED := build/sanitize
SANITIZERS := -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all
FUZZ_CALLS ?= 100000
sanitize: $(INSTALLED)
	rm -rf $(SANITIZED)/lib
	CXXFLAGS="$(SANITIZERS) -g1 -fno-omit-frame-pointer" LDFLAGS="$(SANITIZERS)" FORCE_CUDA=0 $(BIN)/python \
	    setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
	    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	    PYTHONPATH=$(CURDIR)/$(SANITIZED)/lib OMP_NUM_THREADS=2 FUZZ_CALLS=$(FUZZ_CALLS) $(BIN)/pytest tests/ops -x \
	    --ignore tests/ops/test_build.py --ignore tests/ops/test_extension.py --ignore tests/ops/test_speed.py \
	    -k "not opcheck and not compile and not registration" -o faulthandler_timeout=0 $(TEST_ARGS)

test-gpu: $(INSTALLED)
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit( \
	'make test-gpu needs a CUDA device, and torch ' + torch.__version__ + ' sees none')"
	@$(BIN)/python -c "import sys, frcnn_ops; ops = frcnn_ops.build_info()['ops']; \
	any('cuda' in devices for devices in ops.values()) or sys.exit( \
	'frcnn_ops was built without CUDA: make clean, then FORCE_CUDA=1 make test-gpu')"
	$(BIN)/python -m pytest tests $(TEST_ARGS)

# Outside the checkout, so that it is made once. The extension is built for one architecture beside the CPU's own.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/frcnn
GPU_VENV ?= $(CACHE)/emulated-gpu
GPU_BIN := $(GPU_VENV)/bin
GPU_LIB := build/emulated-gpu/lib
CUDA_HOME ?= /usr/local/cuda
GPU_TESTS ?= tests/ops tests/emulated_gpu tests/inference/test_cuda_graph.py
$(GPU_VENV)/.installed: requirements/emulated_gpu.txt
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r $<
	@touch $@

emulated-torch: $(GPU_VENV)/.installed

define BUILD_EMULATED
	CUDA_HOME=$(CUDA_HOME) FORCE_CUDA=1 FRCNN_CUDART=shared TORCH_CUDA_ARCH_LIST=9.0 $(GPU_BIN)/python setup.py --quiet build \
	    --build-base build/emulated-gpu --build-lib $(GPU_LIB)
endef

test-gpu-emulated: $(GPU_VENV)/.installed
	$(BUILD_EMULATED)
	PYTHONPATH=$(CURDIR)/$(GPU_LIB) CUDA_HOME=$(CUDA_HOME) OMP_NUM_THREADS=1 $(GPU_BIN)/python \
	    tools/cuda_emulator/emulated_gpu.py --devices 2 $(GPU_BIN)/pytest $(GPU_TESTS) -n auto --dist loadfile \
	    -k "cuda or emulated_gpu" $(TEST_ARGS)

GPU_PYTHON ?=
GPU_REPORT_ARGS ?=
gpu-report: $(if $(GPU_PYTHON),,$(INSTALLED))
	$(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu_report.py $(GPU_REPORT_ARGS)

rehearse-gpu-report: $(GPU_VENV)/.installed
	$(BUILD_EMULATED)
	PATH=$(CURDIR)/tools/cuda_emulator/rehearsal:$$PATH PYTHONPATH=$(CURDIR)/$(GPU_LIB) CUDA_HOME=$(CUDA_HOME) \
	    FRCNN_CUDART=shared $(GPU_BIN)/python tools/cuda_emulator/emulated_gpu.py $(GPU_BIN)/python benchmarks/gpu_report.py \
	    --rehearsal --build build/emulated-gpu $(GPU_REPORT_ARGS)

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(CURDIR) $(BIN)/python -m mkdocs build
	@echo build/site/index.html

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/jactionlint

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

cuda-check: $(INSTALLED)
	@command -v nvcc >/dev/null || test -x /usr/local/cuda/bin/nvcc || \
	{ echo 'make cuda-check needs nvcc, on PATH or in /usr/local/cuda/bin'; exit 1; }
	.ci/cuda_check

cuda-link: $(INSTALLED)
	$(BIN)/python .ci/link_cuda.py $(CUDA_PYTHON)

sdist: $(INSTALLED)
	rm -f dist/frcnn-*.tar.gz
	FORCE_CUDA=0 $(BIN)/python -m build --sdist --no-isolation > /dev/null

# Built from the source distribution, so that both are whole. torch's libraries stay outside: they are those of the
# torch that is there when it runs. Only Linux has names for how old a system may be.
WHEEL_PYTHON ?= $(BIN)/python
wheel: sdist
	rm -rf build/wheel
	$(WHEEL_PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w build/wheel \
	    dist/frcnn-*.tar.gz
ifeq ($(shell uname),Linux)
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
	    -w build/wheel build/wheel/*-linux_*.whl
	rm build/wheel/*-linux_*.whl
endif
	cp build/wheel/*.whl dist/
	ls -l dist

# Outside the checkout, so that it is made once; by an older Python too, where there is one.
SECOND_VENV ?= $(CACHE)/second-torch
SECOND_CONSTRAINTS ?= requirements/oldest.txt
SECOND_PYTHON ?= $(or $(shell python3.10 -c 'import ensurepip, os, sysconfig as s; \
    os.stat(s.get_path("include") + "/Python.h"); print("python3.10")' 2>/dev/null),$(PYTHON))
SECOND := $(abspath $(SECOND_VENV))/bin/python -m
SECOND_PIP := $(SECOND) pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c $(SECOND_CONSTRAINTS)
second-torch: $(SECOND_VENV)/.installed
$(SECOND_VENV)/.installed: $(SECOND_CONSTRAINTS)
	$(SECOND_PYTHON) -m venv $(SECOND_VENV)
	$(SECOND_PIP) torch numpy 'setuptools>=78' wheel ninja
	@touch $@

# From a folder where nothing hides what was installed. What takes long says more of the sources, which make test does,
# than of the wheel.
WHEEL_TESTS ?= $(addprefix tests/ops/test_,extension.py roi_align.py nms.py iou_loss.py box_coder.py assign_max_iou.py \
    select_proposals.py select_detections.py winograd_conv.py normalize_images.py) tests/test_cli_errors.py
WHEEL_CASES ?= r50
define TRY_WHEEL
	cd build/wheel && $(1) -m frcnn env
	cd build/wheel && $(1) -c "import frcnn_ops as o; assert not o.__file__.startswith('$(CURDIR)/frcnn_ops'), o"
	cd build/wheel && OMP_NUM_THREADS=1 $(1) -m pytest $(addprefix $(CURDIR)/,$(WHEEL_TESTS)) -n auto --dist loadfile \
	    -p no:cacheprovider -k "not compiles and not opcheck and not registration and not gradcheck" $(TEST_ARGS)
	cd build/wheel && $(1) -m frcnn verify $(WHEEL_CASES)
endef
# What PYTHON has installed; cibuildwheel calls it.
try-wheel:
	mkdir -p build/wheel
	$(call TRY_WHEEL,$(PYTHON))

# The extension that .venv's torch has compiled, under the newer one of GPU_VENV: the same file for both.
test-newer-torch: $(INSTALLED) $(GPU_VENV)/.installed
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(GPU_BIN)/python -m pytest $(WHEEL_TESTS) -n auto --dist loadfile \
	    -p no:cacheprovider -k "not compiles and not opcheck and not registration and not gradcheck" $(TEST_ARGS)
	PYTHONPATH=$(CURDIR) $(GPU_BIN)/python -m frcnn verify $(WHEEL_CASES)

# Built with the second torch, as the oldest has the fewest headers. For CPUs, unless FORCE_CUDA=1 asks for the CUDA that
# both that torch and nvcc have.
test-wheel: export FORCE_CUDA ?= 0
test-wheel: WHEEL_PYTHON = $(abspath $(SECOND_VENV))/bin/python
test-wheel: second-torch wheel
	$(SECOND) pip uninstall --quiet --yes frcnn
	$(SECOND_PIP) build/wheel/*.whl pytest pytest-xdist hypothesis
	$(PIP) --no-deps --target build/wheel/installed build/wheel/*.whl
	$(BIN)/torch-abi-audit --check both build/wheel/installed/frcnn_ops
	$(call TRY_WHEEL,PYTHONPATH=$(CURDIR)/build/wheel/installed $(CURDIR)/$(BIN)/python)
	$(call TRY_WHEEL,$(abspath $(SECOND_VENV))/bin/python)

install: $(INSTALLED)

# torch first: the package compiles against it, so its build is not isolated.
$(INSTALLED): $(BUILT_FROM)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.10 or newer, or set PYTHON"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) 'setuptools>=78' wheel ninja
	$(PIP) torch numpy
	$(PIP) --no-build-isolation -e '.[tensorboard,export,ray,demo,docs,test]'
	$(PIP) --no-deps trackers # it asks for opencv-python, whose cv2 would take the place of the headless one
	@touch $@

clean:
	rm -rf $(VENV) build demo
