"""``python -m dv2_jax.train --config=configs/rl.py[:preset] [--config.SECTION.FIELD=VALUE ...]``

Runs the recipe that the configuration names. On several hosts, start the same command on every one of them.
"""

from __future__ import annotations

from dv2_jax.config import Config, ConfigError, run_verb


def run(config: Config) -> object:
    """Joins the other hosts, if there are any, and runs the recipe to its end."""
    if config.recipe not in ("sft", "rl"):
        raise ConfigError(f"recipe = {config.recipe!r} is not for training: use python -m dv2_jax.{config.recipe}")
    if "://" in config.run.root:  # pathlib would quietly make a folder named "gs:" on this machine's own disk
        raise ConfigError(
            f"run.root = {config.run.root!r}: metrics, trajectories and reports need a file system; mount the bucket"
            " (gcsfuse) on every host and give the path, e.g. --config.run.root=/mnt/bucket/runs"
        )
    from dv2_jax.parallel import distributed  # after the command line is read: --help needs no jax

    distributed.initialize(cpu_devices=config.mesh.cpu_devices)
    if config.recipe == "sft":
        from dv2_jax.recipes.sft import run_sft

        return run_sft(config)
    from dv2_jax.recipes.rl import run_rl

    return run_rl(config)


if __name__ == "__main__":
    run_verb(run)
