"""Memory traffic and memory of decoding on one TPU host, from programs that libtpu compiles: nothing runs on a TPU.

    python -m benchmarks.decode_traffic [--topology v5p:2x2x1] [--sizes 3b 7b 32b] [--slots 64 256 512] [--json FILE]

A decode step must read the weights and the keys and values of the rows' tokens; `ratio` is what the compiled program moves
between a chip and its HBM, divided by these. The bytes of the compiled operations are counted in the HLO text; those of the
attention kernel, which XLA does not know, are computed from lengths: 98 % of the trajectories around 2,000 tokens, the others
24,000. `tokens/s` is the bound that HBM bandwidth alone sets for the host.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

LONG = 24_000  # tokens of 2 % of the trajectories


def sample_lengths(rows: int) -> list[int]:
    """Returns cached tokens of rows: 98 % log-normal around 2,000 tokens, at least one of 24,000."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(2_000), 0.6, rows), 200, 8_000).astype(int)
    lengths[: max(1, round(0.02 * rows))] = LONG
    return [int(length) for length in lengths]


@dataclass(frozen=True)
class Traffic:
    """Bytes of one decode step on one device."""

    size: str
    slots: int
    tensor: int
    rows: int  # of one device
    weights_gb: float
    live_kv_gb: float
    total_gb: float
    ratio: float
    temporaries_gib: float
    tokens_per_s: int  # of the host


def measure(size: str, slots: int, topology: str) -> Traffic:
    """Compiles the decode program of a size with as many rows as slots and counts its bytes.

    Raises:
        RuntimeError: the program does not compile.
    """
    from dv2_jax.aot.compile import bytes_per_device, compile_for, topology_devices
    from dv2_jax.aot.programs import abstract_policy, engine_programs
    from dv2_jax.aot.roofline import chip_of
    from dv2_jax.config import load
    from dv2_jax.engine.buckets import Buckets
    from dv2_jax.ops.paged_attention_tpu import live_bytes
    from dv2_jax.parallel.mesh import num_data_shards, use_mesh

    config = load(
        [f"--config=configs/rl.py:{size}", f"--config.engine.slots={slots}", "--config.engine.pages=4096"],
        command="train",
    )
    devices = topology_devices(topology)
    policy = abstract_policy(config, devices, devices)
    program = next(found for found in engine_programs(policy, config) if found.name == "decode")
    with use_mesh(program.mesh):
        compiled = compile_for(program.function, program.arguments, None, None, program.max_trip_count)
    if compiled.error or compiled.costs is None:
        raise RuntimeError(f"{size}, {slots} slots: {compiled.error or 'no HLO text'}")
    text, engine, mesh = policy.config.text, policy.engine_config(config), policy.engine_mesh
    shards = num_data_shards(mesh)
    rows, width = Buckets.from_config(engine, text, config.agent.max_total_tokens, shards).decode[-1]
    heads = text.num_kv_heads // mesh.shape["tensor"]

    def kernel(lengths: list[int]) -> int:
        return live_bytes(lengths, engine.page_size, heads, text.head_dim, 2) * text.num_layers

    lengths = sample_lengths(rows // shards)
    steps = engine.decode_tokens
    per_step = (compiled.costs.hbm_bytes - steps * kernel([width * engine.page_size] * (rows // shards))) / steps
    unused = ("vision", "embedding") if not text.tie_word_embeddings else ("vision",)
    weights = bytes_per_device({n: x for n, x in policy.engine_params.items() if not any(word in n for word in unused)})
    live = sum(lengths) * 2 * heads * text.head_dim * 2 * text.num_layers
    total = per_step + kernel(lengths)
    chip = chip_of(devices[0])
    return Traffic(
        size, slots, mesh.shape["tensor"], rows // shards, round(weights / 1e9, 2), round(live / 1e9, 2),
        round(total / 1e9, 2), round(total / (weights + live), 2), round(compiled.temporaries / 2**30, 2),
        round(rows / (total / chip.hbm_bandwidth)),
    )  # fmt: skip


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_traffic", description=__doc__.partition("\n")[0])
    parser.add_argument("--topology", default="v5p:2x2x1", help="the slice of one host")
    parser.add_argument("--sizes", nargs="+", default=["3b", "7b", "32b"], help="presets of configs/rl.py")
    parser.add_argument("--slots", nargs="+", type=int, default=[64, 256, 512], help="rows of the host")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    arguments = parser.parse_args()
    import jax

    jax.config.update("jax_platforms", "cpu")  # libtpu only compiles; JAX must not look for chips
    jax.config.update("jax_enable_compilation_cache", False)
    found: list[dict[str, Any]] = []
    for size in arguments.sizes:
        for slots in arguments.slots:
            found.append(asdict(measure(size, slots, arguments.topology)))
            if len(found) == 1:
                print("| " + " | ".join(name.replace("_", " ") for name in found[0]) + " |")
                print("|" + "---|" * len(found[0]))
            print("| " + " | ".join(str(value) for value in found[-1].values()) + " |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
