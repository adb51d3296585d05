"""The tunix side of `benchmarks.model`, run by a Python that has google-tunix and need not have this project.

    python benchmarks/model_tunix.py CONFIG_JSON SHAPE_FILE

It runs tunix's Qwen2 of the same sizes with random weights, by a jitted function instead of tunix's slower trainer.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2 import model as qwen2


def passes(config: dict, shape: dict[str, np.ndarray]) -> dict:
    heads = config["num_attention_heads"]
    model = qwen2.Qwen2(
        qwen2.ModelConfig(
            num_layers=config["num_hidden_layers"],
            vocab_size=config["vocab_size"],
            embed_dim=config["hidden_size"],
            hidden_dim=config["intermediate_size"],
            num_heads=heads,
            head_dim=config["hidden_size"] // heads,
            num_kv_heads=config["num_key_value_heads"],
            rope_theta=int(config["rope_theta"]),
            norm_eps=config["rms_norm_eps"],
            use_tied_embedding=config["tie_word_embeddings"],
        ),
        rngs=nnx.Rngs(0),
    )
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(0), len(leaves))  # its own initialization leaves kernels at zero
    leaves = [x if x.ndim == 1 else 0.02 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
    state = jax.tree.unflatten(tree, leaves)
    ids = jnp.asarray(shape["ids"], jnp.int32)
    rows, length = ids.shape
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (rows, length, length))

    def loss(state, ids):
        logits, _ = nnx.merge(graphdef, state)(ids, positions, None, mask)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:]).mean()

    forward, gradient = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    return {
        "forward": lambda: float(jax.block_until_ready(forward(state, ids))),
        "gradient": lambda: float(jax.block_until_ready(gradient(state, ids))[0]),
    }


def main(config: str, shape: str) -> None:
    found = passes(json.loads(Path(config).read_text()), dict(np.load(shape)))
    for line in sys.stdin:
        word = line.strip()
        if word == "reset":
            Path("/proc/self/clear_refs").write_text("5")
            answer = {}
        elif word == "memory":
            [row] = [r for r in Path("/proc/self/status").read_text().splitlines() if r.startswith("VmHWM:")]
            answer = {"bytes": int(row.split()[1]) * 1024}
        else:
            wall, cpu = time.perf_counter(), time.process_time()
            loss = found[word]()
            answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "loss": loss}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
