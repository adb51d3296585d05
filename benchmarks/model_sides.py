"""One side of `benchmarks.model` as a process: reads names of passes, answers with seconds and losses.

python -m benchmarks.model_sides ours|torch MODEL_FOLDER SHAPE_FILE DEVICES|THREADS
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Pass = Callable[[], float]  # computes, blocks until ready, returns the loss


def ours(folder: Path, shape: dict[str, np.ndarray], devices: int) -> dict[str, Pass]:
    """Returns the passes of dv2_jax, with the attention and log-probabilities of training.

    Rows are sharded over `devices` as in the laptop presets; the tokens of a single row by context parallelism.
    """
    import jax

    from dv2_jax.parallel import distributed, malloc

    distributed.initialize(cpu_devices=devices)

    from benchmarks.model_shapes import CONFIG
    from dv2_jax.checkpoint.hf import load_hf
    from dv2_jax.config import MeshConfig
    from dv2_jax.model.params import build, logical_axes, merge
    from dv2_jax.model.vision_inputs import VisionBucket, vision_batch
    from dv2_jax.ops.attention import causal_segment_attention
    from dv2_jax.ops.logprobs import row_logprobs
    from dv2_jax.parallel.mesh import (
        BATCH_AXES,
        constrain_batch,
        fold_context_into_batch,
        make_mesh,
        param_shardings,
        patch_axes,
        use_mesh,
    )

    rows = devices if shape["ids"].shape[0] % devices == 0 else 1
    mesh = make_mesh(MeshConfig(data=rows, fsdp=1, context=devices // rows)) if devices > 1 else None
    params = load_hf(folder, CONFIG, param_shardings(mesh, logical_axes(CONFIG)) if mesh else None)
    graphdef, _ = build(CONFIG)
    ids, segments, positions = (np.asarray(shape[name], np.int32) for name in ("ids", "segments", "positions"))
    targets = np.roll(ids, -1, axis=1)
    weight = (segments == np.roll(segments, -1, axis=1)).astype(np.float32)
    weight[:, -1] = 0
    index = np.where(ids == CONFIG.image_token_id, np.cumsum(ids == CONFIG.image_token_id, axis=1) - 1, -1)
    vision = None
    if "patches" in shape:
        grid = tuple(int(n) for n in shape["grid"])
        side = CONFIG.vision.window_size // CONFIG.vision.patch_size  # side of a window, in patches
        windows = math.prod(-(-size // side) for size in grid)
        bucket = VisionBucket(1, len(shape["patches"]), -(-windows // devices) * devices)  # exactly this image
        vision = vision_batch([(shape["patches"], grid)], [bucket], CONFIG.vision)
    batch_sharding = jax.NamedSharding(mesh, jax.P(BATCH_AXES)) if mesh else None
    batch = jax.device_put(
        (ids, targets, weight, segments, positions.swapaxes(0, 1), index.astype(np.int32)), batch_sharding
    )
    vision_sharding = None
    if mesh and vision:  # patches sharded as in training, indices replicated
        patch_sharding = jax.NamedSharding(mesh, jax.P(*patch_axes(vision.patches.shape, mesh.shape["context"])))
        replicated = jax.tree.map(lambda _: jax.NamedSharding(mesh, jax.P()), vision)
        vision_sharding = dataclasses.replace(replicated, patches=patch_sharding)
    vision = jax.device_put(vision, vision_sharding)

    def loss(params, vision, batch):
        ids, targets, weight, segments, positions, index = batch
        model = merge(graphdef, params)
        embeds = model.embed(ids) if vision is None else model.embed(ids, model.encode_images(vision), index)
        attend = lambda q, k, v, cache: (causal_segment_attention(q, k, v, segments), cache)  # noqa: E731
        hidden, _ = model.hidden(constrain_batch(embeds), positions.swapaxes(0, 1), attend)
        hidden, targets, weight = (fold_context_into_batch(x) for x in (constrain_batch(hidden), targets, weight))
        logprobs, _ = row_logprobs(hidden, model.head_kernel(), targets)
        return -(logprobs * weight).sum() / weight.sum()

    forward, gradient = jax.jit(loss), jax.jit(jax.value_and_grad(loss))

    def run(function) -> float:
        with use_mesh(mesh):
            new = not function._cache_size()
            found = jax.block_until_ready(function(params, vision, batch))
        if new:
            malloc.malloc_trim()  # as training does after compilation
        return float(found[0] if isinstance(found, tuple) else found)

    return {"forward": lambda: run(forward), "gradient": lambda: run(gradient)}


def torch(folder: Path, shape: dict[str, np.ndarray], threads: int) -> dict[str, Pass]:
    """Returns the passes of transformers with torch's fused attention; packed rows by position ids that restart at 0."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    ids, segments, positions = (
        torch.tensor(shape[name], dtype=torch.long) for name in ("ids", "segments", "positions")
    )
    inputs = {"input_ids": ids, "use_cache": False, "position_ids": positions}
    if len(segments.unique()) > 1:  # four rows: the first one, text positions, separates packed conversations
        inputs["position_ids"] = torch.cat([positions[:1], positions])
    if "patches" in shape:
        inputs["pixel_values"] = torch.tensor(shape["patches"])
        inputs["image_grid_thw"] = torch.tensor(shape["grid"])[None]
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    targets = torch.where(segments[:, 1:] == segments[:, :-1], ids[:, 1:], -100)

    def loss():
        logits = model(**inputs).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))

    def forward() -> float:
        with torch.inference_mode():
            return float(loss())

    def gradient() -> float:
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return float(value.detach())

    return {"forward": forward, "gradient": gradient}


def peak_bytes() -> int:
    """Returns the peak resident size since the last reset, bytes (Linux)."""
    [line] = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def serve(passes: dict[str, Pass]) -> None:
    """Answers each line of standard input until it ends."""
    for line in sys.stdin:
        word = line.strip()
        if word == "reset":
            Path("/proc/self/clear_refs").write_text("5")
            answer = {}
        elif word == "memory":
            answer = {"bytes": peak_bytes()}
        else:
            wall, cpu = time.perf_counter(), time.process_time()
            loss = passes[word]()
            answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "loss": loss}
        print(json.dumps(answer), flush=True)


def main(side: str, folder: str, shape: str, count: str) -> None:
    arrays = dict(np.load(shape))
    serve({"ours": ours, "torch": torch}[side](Path(folder), arrays, int(count)))


if __name__ == "__main__":
    main(*sys.argv[1:])
