"""Run by `test_rl_on_hosts.py`, once for each host: a small RL run on four devices, however many hosts have them.

The second argument may name a host that gets Ctrl-C in the first step.
"""

import os
import signal
import sys
from dataclasses import replace

from dv2_jax.config import EvalConfig, MeshConfig
from dv2_jax.parallel import distributed
from dv2_jax.recipes import rl
from dv2_jax.recipes import run as run_module
from dv2_jax.rollout import session as session_module
from tests.recipes.small_rl import assign_by_length, small_config, thinner


def config_of(root):
    """Prompts with and without pictures; two optimizer steps of a step, each of which both hosts have rows for."""
    config = small_config(root)
    return replace(
        config,
        mesh=MeshConfig(data=2, fsdp=2),
        engine=replace(config.engine, prefill_rows=4, page_size=256),  # one width of page tables: fewer programs
        task=replace(config.task, skills=("plain", "perception")),
        rl=replace(config.rl, steps=2, prompts_per_step=4, minibatches=2, microbatch_rows=4, keep_trajectories=16),
        eval=EvalConfig(stages=("rl",)),
    )


def main() -> None:
    distributed.initialize()
    run_module.architecture = session_module.architecture = thinner
    rl.assign = assign_by_length
    if len(sys.argv) > 2 and int(sys.argv[2]) == distributed.process_index():
        written = run_module.Metrics.write

        def write_and_interrupt(self, step, values):
            written(self, step, values)
            os.kill(os.getpid(), signal.SIGINT)

        run_module.Metrics.write = write_and_interrupt
    summary = rl.run_rl(config_of(sys.argv[1]))
    print(f"steps {summary['steps']}, recompilations {summary['recompilations']}")


if __name__ == "__main__":
    main()
