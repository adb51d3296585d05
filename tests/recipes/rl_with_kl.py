"""Runs a small RL run with a KL term on the devices of this process; `test_rl_with_kl.py` starts it on 1 and 4 devices.

Arguments: the run's root, and the sizes of the mesh axes data, fsdp and context.
"""

import sys
from dataclasses import replace

from dv2_jax.config import EvalConfig, MeshConfig
from dv2_jax.recipes import rl
from tests.recipes.small_rl import one_layer_policy, reward_by_length, small_config


def main(root: str, data: str, fsdp: str, context: str) -> None:
    config = small_config(root)
    config = replace(
        config,
        mesh=MeshConfig(data=int(data), fsdp=int(fsdp), context=int(context)),
        engine=replace(config.engine, prefill_rows=4, page_size=256),
        task=replace(config.task, skills=("plain", "perception")),
        rl=replace(config.rl, prompts_per_step=4, microbatch_rows=4, kl_coefficient=0.1),
        eval=EvalConfig(stages=()),
    )
    summary = rl.run_rl(config, reward_by_length, one_layer_policy(config))
    print(f"steps {summary['steps']}, recompilations {summary['recompilations']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
