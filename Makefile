# `make demo` and `make test` need Python 3.11+, a C compiler and make; everything else goes into .venv.
#   PYTHON=/path/to/python3   the Python to use instead of the first suitable one
#   MODEL=NAME PROMPT=TEXT    what `make demo` runs; any name `lib-mlx pull` knows
#   MLX=cpu|cuda|cuda13       MLX's build on Linux; without a GPU, CUDA's cannot even be imported
MODEL ?= smollm2
PROMPT ?=
MLX ?= cpu

VENV := .venv
BIN := $(VENV)/bin
SYNCED := $(VENV)/.synced-$(MLX)
CHAT := examples/c/chat

.PHONY: demo test lint format clean library

demo: library $(CHAT)
	@model=$$($(BIN)/lib-mlx pull $(MODEL)) && exec ./$(CHAT) "$$model" $(if $(PROMPT),"$(PROMPT)")

test: library
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone" $(ARGS)
	$(BIN)/python -m pytest -m alone $(ARGS) || [ $$? = 5 ] # none of them in ARGS

lint: $(SYNCED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(SYNCED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Does nothing when the library is up to date.
library: $(SYNCED)
	@$(BIN)/python build_ffi.py >/dev/null

$(CHAT): examples/c/chat.c examples/c/http.h examples/c/json.h include/lib_mlx.h | library
	@$(MAKE) --no-print-directory -C examples/c chat

# The versions of uv.lock, and this checkout as an editable install.
$(SYNCED): pyproject.toml uv.lock tools/sync.sh tools/find_python.sh
	@tools/sync.sh $(VENV) $(MLX)
	@rm -f $(VENV)/.synced-* && touch $@

clean:
	rm -rf $(VENV) build dist lib_mlx/*.so lib_mlx/*.so.* lib_mlx/*.dylib lib_mlx/include lib_mlx/share $(CHAT)
