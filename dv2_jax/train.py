"""Trains a policy: `python -m dv2_jax.train --config=configs/rl.py[:PRESET] [--config.SECTION.FIELD=VALUE ...]`.

Runs the recipe (SFT or RL) that the configuration names. On several hosts, start the same command on every host.
"""

from __future__ import annotations

from dv2_jax.config import Config, ConfigError, run_command


def run(config: Config) -> object:
    """Connects to the other hosts, if there are any, and runs the recipe to completion."""
    if config.recipe not in ("sft", "rl"):
        raise ConfigError(f"recipe = {config.recipe!r} is not for training: use python -m dv2_jax.{config.recipe}")
    if "://" in config.run.root:  # pathlib would silently create a local folder named "gs:"
        raise ConfigError(
            f"run.root = {config.run.root!r}: metrics, trajectories and reports need a file system; mount the bucket"
            " (gcsfuse) on every host and give the path, e.g. --config.run.root=/mnt/bucket/runs"
        )
    from dv2_jax.parallel import distributed  # imported here because --help must not load jax

    distributed.initialize(cpu_devices=config.mesh.cpu_devices)
    if config.recipe == "sft":
        from dv2_jax.recipes.sft import run_sft

        return run_sft(config)
    from dv2_jax.recipes.rl import run_rl

    return run_rl(config)


def main() -> None:
    """Runs `dv2-train`."""
    run_command(run)


if __name__ == "__main__":
    main()
