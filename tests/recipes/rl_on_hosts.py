"""Runs a small RL run on four devices in one or several processes; `test_rl_on_hosts.py` starts one per host.

Further arguments: `interrupt=INDEX`, the process that receives SIGINT in the first step; `gspo`, with a KL term.
"""

import os
import signal
import sys
from dataclasses import replace

from dv2_jax.config import EvalConfig, MeshConfig
from dv2_jax.parallel import distributed
from dv2_jax.recipes import rl
from dv2_jax.recipes import run as run_module
from tests.recipes.small_rl import one_layer_policy, reward_by_length, small_config


def config_of(root):
    """Return a config with text and image prompts and two minibatches per step, each with rows on both hosts."""
    config = small_config(root)
    return replace(
        config,
        mesh=MeshConfig(data=2, fsdp=2),
        engine=replace(config.engine, prefill_rows=4, page_size=256),  # one page-table bucket, so fewer programs
        task=replace(config.task, skills=("plain", "perception")),
        rl=replace(config.rl, steps=2, prompts_per_step=4, minibatches=2, microbatch_rows=4, keep_trajectories=16),
        eval=EvalConfig(stages=("final",)),
    )


def main() -> None:
    distributed.initialize()
    root, *options = sys.argv[1:]
    if f"interrupt={distributed.process_index()}" in options:
        written = run_module.MetricsWriter.write

        def write_and_interrupt(self, step, values):
            written(self, step, values)
            os.kill(os.getpid(), signal.SIGINT)

        run_module.MetricsWriter.write = write_and_interrupt
    config = config_of(root)
    if "gspo" in options:
        rl_config = replace(config.rl, algorithm="gspo", kl_coefficient=0.1, minibatches=1)
        config = replace(config, rl=rl_config, eval=EvalConfig(stages=()))
    summary = rl.run_rl(config, reward_by_length, one_layer_policy(config))
    print(f"steps {summary['steps']}, recompilations {summary['recompilations']}")


if __name__ == "__main__":
    main()
