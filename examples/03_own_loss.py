"""Adds a policy loss and an advantage estimator from outside the package, and trains the tiny policy with them.

    python examples/03_own_loss.py [FOLDER]

The loss replaces the clip of PPO by a mask: a token has no gradient once its probability has moved by more than a threshold
in the direction of its advantage (the total-variation mask of DPPO).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dv2_jax.config import RLConfig
from dv2_jax.rl.loss_registry import LossTokens


def total_variation_mask(tokens: LossTokens, config: RLConfig, *, threshold: float = 0.2):
    """Returns -A r per token, 0 where the probability has moved enough, and the mask of those tokens, which is logged."""
    moved = jnp.exp(tokens.logprobs) - jnp.exp(tokens.old_logprobs)
    done = tokens.response_mask & (jnp.sign(tokens.advantages) * jax.lax.stop_gradient(moved) > threshold)
    return jnp.where(done, 0.0, -tokens.advantages * jnp.exp(tokens.log_ratio())), {"moved": done}


def ranks(rewards: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Returns the centered rank of every reward in its group; equal rewards share a rank."""
    advantages = np.zeros_like(rewards)
    for members in groups:
        values = rewards[members]
        rank = (values[:, None] > values).sum(1) + 0.5 * (values[:, None] == values).sum(1)
        advantages[members] = rank - rank.mean()
    return advantages


def show_gradients() -> None:
    """Prints the gradients of three tokens: unmoved, moved far with the advantage, moved far against it."""
    old = jnp.log(jnp.array([[0.5, 0.5, 0.5]]))
    new = jnp.log(jnp.array([[0.5, 0.9, 0.1]]))

    def loss(logprobs):
        tokens = LossTokens(logprobs, old, jnp.ones((1, 3)), jnp.ones((1, 3), bool), jnp.ones((1, 3), int))
        return total_variation_mask(tokens, RLConfig())[0].sum()

    print("gradients:", np.asarray(jax.grad(loss)(new)[0], np.float64).round(2).tolist())


def main(folder: Path) -> None:
    show_gradients()
    print("ranks:", ranks(np.array([0.0, 1.0, 1.0, 0.2]), [np.arange(4)]).tolist())
    module = Path(__file__).stem
    arguments = [
        "--config=configs/rl.py", f"--config.rl.loss={module}:total_variation_mask",
        "--config.rl.loss_options=threshold=0.3", f"--config.rl.advantage={module}:ranks",
        "--config.rl.steps=2", "--config.rl.prompts_per_step=4", "--config.rl.group_size=4", "--config.rl.minibatches=2",
        "--config.task.eval_size=5", f"--config.run.root={folder}", "--config.run.name=own-loss",
    ]  # fmt: skip
    print("$ python -m dv2_jax.train", *arguments, flush=True)
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run([sys.executable, "-m", "dv2_jax.train", *arguments], check=True, env=environment)
    for line in (folder / "own-loss" / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        if "moved" in metrics:
            print(f"step {metrics['step']}: {100 * metrics['moved']:.2f} % of the tokens are masked")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
