# The commands of a developer, after `pip install -e '.[dev]'`.
.PHONY: fast test lint format docs

# Parts with long runs: training recipes, commands, the tools service, programs for TPUs and for
# several devices or processes, comparisons with other implementations.
SLOW_PARTS = recipes entry_points tools_service aot examples
SLOW_FILES = checkpoint/test_damage.py checkpoint/test_loading_memory.py engine/test_engine_on_mesh.py \
  model/test_parity.py model/test_parity_layouts.py ops/test_attention_on_tpu.py ops/test_logprobs_on_tpu.py \
  parallel/test_distributed.py parallel/test_mesh_of_slices.py parallel/test_weight_sync.py rl/test_reference_values.py \
  rollout/test_fourth_tool.py rollout/test_tools_client.py test_wheel.py toy/test_pretraining.py toy/test_teacher.py \
  trainer/test_gradients_on_meshes.py trainer/test_train_step.py

fast: # under five minutes on two cores
	pytest -q -m "not slow and not long and not second_stage" $(addprefix --ignore=tests/,$(SLOW_PARTS) $(SLOW_FILES))

test: # everything
	pytest

lint:
	ruff check .
	ruff format --check .
	mypy
	codespell *.md docs configs dv2_jax tools_service tpu $(wildcard examples)

format:
	ruff check --fix .
	ruff format .

docs: # into build/docs; fails on a broken link or an unknown reference
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
