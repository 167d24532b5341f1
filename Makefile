# make demo    run the hub's code example through Towhee's real loader
# make test    run the tests, each file in one of several processes
# make train-demo  make a small corpus of videos, train on it, search it (about a minute); writes demo/
# make search-demo  the same, then a page on which to search in it; prints its address
# make install link this folder into your Towhee cache, where ops.video_text_embedding.collaborative_experts() finds it
# make lint    ruff, and mypy on base/, features/ and retrieval/
# make bench   all benchmarks, and a page of them with plots in benchmarks/pages/ (40 minutes to an hour; on a quiet machine)
# make image   take img.png anew (needs chromium)

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CACHE = $${TOWHEE_HOME:-$$HOME/.towhee}/operators/video-text-embedding/collaborative-experts/versions/main

.PHONY: demo test train-demo search-demo lint install bench image clean

demo: $(VENV)/installed
	$(BIN)/python examples/code_example.py

test: $(VENV)/installed
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

train-demo: $(VENV)/installed
	$(BIN)/python examples/train_demo.py --folder demo

search-demo: $(VENV)/installed
	$(BIN)/python examples/search_demo.py --folder demo

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(VENV)/src $(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python benchmarks/page.py

image: $(VENV)/installed
	$(BIN)/python examples/make_image.py

install:
	@if [ -e "$(CACHE)" ] && [ ! -L "$(CACHE)" ]; then \
	  echo "$(CACHE) exists and is no link of ours; move it away first" >&2; exit 1; fi
	@mkdir -p "$$(dirname "$(CACHE)")"
	@ln -sfn "$(CURDIR)" "$(CACHE)"
	@echo "linked $(CACHE) -> $(CURDIR)"
	@echo "the Python that runs Towhee needs: pip install -r $(CURDIR)/requirements.txt"

clean:
	rm -rf $(VENV)

# Made anew only when what is installed changes.
$(VENV)/installed: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.version.split()[0]} found; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@# mypy looks for packages by their folder's name, which is the clone's.
	mkdir -p $(VENV)/src && ln -sfn "$(CURDIR)" $(VENV)/src/collaborative_experts
	touch $@
