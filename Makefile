# make demo: set up, train on made-up faces, evaluate. make test: the whole test suite.
VENV ?= .venv
MXNET_VENV ?= .venv-mxnet
DALI_VENV ?= .venv-dali
OLDEST_VENV ?= .venv-oldest
TORCH211_VENV ?= .venv-torch211
PYTHON ?= python3
PY = $(VENV)/bin/python
# One thread a process: tests start more processes than there are cores, and their products are small.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest
CORE_PACKAGES = -r requirement.txt -r requirement-opencv.txt pytest pytest-xdist hypothesis scikit-learn
DEMO = work_dirs/demo
GPU_OUT ?= work_dirs/gpu
TWO_AT_ONCE = -n 2 --dist loadfile
# Tests of the first choice two at once, then those of the second alone, since they need both cores.
both-parts = failed=0; $(PYTEST) $(TWO_AT_ONCE) -m "$(1)" || failed=1; $(PYTEST) -m "$(2)" && exit $$failed

.PHONY: demo test test-avx2 faults core-oldest core-2.11 oldest-ready 2.11-ready lint types mxnet clients dali gpu clean

demo: $(VENV)/.ready
	$(PY) -m tools.make_demo_faces $(DEMO)_data
	OMP_NUM_THREADS=1 $(PY) -m torch.distributed.launch --standalone --nproc_per_node=2 \
		train.py configs/demo rec=$(DEMO)_data/train output=$(DEMO) overwrite=True
	$(PY) eval_ijbc.py --model-prefix $(DEMO)/model.pt --image-path $(DEMO)_data/IJBC \
		--result-dir $(DEMO)/ijb_test_results --network rtiny
	$(PY) -m tools.show_demo $(DEMO) $(DEMO)_data

test: $(VENV)/.ready-dev
	$(call both-parts,not distributed,distributed)

# The tests of numbers once more, as a processor without AVX-512 computes them.
test-avx2: $(VENV)/.ready-dev
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) $(TWO_AT_ONCE) -m "numeric and not slow"

# Every fault that docs/reliability.md counts, in an hour on two cores; FAULTS="--only NAME ..." plays some again. Disks
# that fill up and hosts of their own need root, and say so where they are left out.
faults: $(VENV)/.ready-dev
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(PY) -m faults --out docs/results/faults.jsonl \
		--tally docs/reliability.md $(FAULTS)

# Classifier, training, checkpoint and evaluation on the oldest releases that requirement.txt admits, and on torch 2.11.
core-oldest: PY = $(OLDEST_VENV)/bin/python
core-oldest: oldest-ready
	$(call both-parts,core and not distributed,core and distributed)

core-2.11: PY = $(TORCH211_VENV)/bin/python
core-2.11: 2.11-ready
	$(call both-parts,core and not distributed,core and distributed)

oldest-ready: $(OLDEST_VENV)/.ready

2.11-ready: $(TORCH211_VENV)/.ready

# Tests and tables of a GPU. It installs nothing: make gpu PY=python3 takes an environment that is there already.
gpu:
	$(PY) -m benchmarks.gpu --out $(GPU_OUT) $(GPU)

lint: $(VENV)/.ready-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

types: $(VENV)/.ready-dev
	$(PY) -m mypy

# mxnet, for tests and benchmarks/bench_data.py, which hold our record files and their reader against its own; it needs
# an old numpy and Python 3.11 or older.
mxnet: $(MXNET_VENV)/.ready

# insightface, for the tests that load our ONNX files into its own classes; it goes beside the development tools.
clients: $(VENV)/.ready-clients

# The loader with nvidia-dali as its decoder, on the CPU. Not in CI: an environment of 7 GB, a second torch in it.
dali: $(DALI_VENV)/.ready
	MHS_REQUIRE=dali $(DALI_VENV)/bin/python -m pytest -m dali

$(VENV)/.ready: requirement.txt requirement-opencv.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "the tested set needs Python 3.11 or newer, $(PYTHON) is older; say make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -r requirement.txt -r requirement-opencv.txt -c constraints.txt
	touch $@

$(VENV)/.ready-dev: requirement-dev.txt $(VENV)/.ready
	$(PY) -m pip install -r requirement-dev.txt -c constraints.txt
	touch $@

$(VENV)/.ready-clients: requirement-clients.txt $(VENV)/.ready-dev
	$(PY) -m pip install -r requirement-clients.txt -c constraints.txt
	$(PY) -m pip install --no-deps insightface==2.1
	touch $@

$(DALI_VENV)/.ready: requirement-dev.txt requirement-dali.txt
	$(PYTHON) -m venv $(DALI_VENV)
	$(DALI_VENV)/bin/python -m pip install -r requirement-dev.txt -r requirement-dali.txt -c constraints.txt
	touch $@

$(OLDEST_VENV)/.ready: requirement.txt requirement-opencv.txt constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --no-compile $(CORE_PACKAGES) -c constraints-oldest.txt
	touch $@

$(TORCH211_VENV)/.ready: requirement.txt requirement-opencv.txt constraints.txt
	$(PYTHON) -m venv $(TORCH211_VENV)
	grep -vE '^(torch|triton|nvidia|cuda)' constraints.txt > $(TORCH211_VENV)/constraints.txt
	$(TORCH211_VENV)/bin/python -m pip install --no-compile $(CORE_PACKAGES) torch==2.11.0 \
		-c $(TORCH211_VENV)/constraints.txt
	touch $@

$(MXNET_VENV)/.ready: requirement-mxnet.txt
	$(PYTHON) -m venv $(MXNET_VENV)
	$(MXNET_VENV)/bin/python -m pip install -r requirement-mxnet.txt
	touch $@

clean:
	rm -rf work_dirs .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
