# The commands of a developer, after `pip install -e '.[dev]'`.
.PHONY: fast test lint format types docs

# Parts with long runs: training recipes, commands, the sandbox and its services, programs compiled for TPUs.
SLOW_PARTS = recipes entry_points tools_service aot examples
SLOW_FILES = ops/test_attention_on_tpu.py ops/test_logprobs_on_tpu.py parallel/test_mesh_of_slices.py toy/test_teacher.py \
  model/test_parity.py model/test_parity_layouts.py trainer/test_gradients_on_meshes.py test_wheel.py

fast: # under five minutes on two cores
	pytest -q -m "not slow and not second_stage" $(addprefix --ignore=tests/,$(SLOW_PARTS) $(SLOW_FILES))

test: # everything
	pytest

lint:
	ruff check .
	ruff format --check .
	codespell *.md docs configs dv2_jax tools_service tpu $(wildcard examples)

format:
	ruff check --fix .
	ruff format .

docs: # into build/docs; fails on a broken link or an unknown reference
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
