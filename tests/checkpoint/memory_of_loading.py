"""Measures the host memory that loading a checkpoint takes on top of the arrays.

`test_loading_memory.py` runs it in a process with four devices.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dv2_jax.checkpoint import hf
from dv2_jax.config import MeshConfig
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import init_params, logical_axes
from dv2_jax.parallel.mesh import make_mesh, param_shardings

CONFIG = ModelConfig.tiny(
    8_192,
    text=dict(
        hidden_size=512, num_layers=16, intermediate_size=2048, mrope_section=(16, 24, 24), tie_word_embeddings=False
    ),
    vision=dict(hidden_size=64, num_heads=2),
    image_token_id=1, video_token_id=2, vision_start_token_id=3, vision_end_token_id=4, bos_token_id=5,
    eos_token_id=6, pad_token_id=7,
)  # fmt: skip


def memory(name: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def main(folder: Path) -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    shardings = param_shardings(mesh, logical_axes(CONFIG))
    params = jax.device_put(init_params(CONFIG, jax.random.key(0)), shardings)
    arrays = sum(p.nbytes for p in params.values())
    hf.save_hf(folder, params, CONFIG, "bfloat16")
    expected = {name: np.asarray(p.astype(jnp.bfloat16), np.float64).sum() for name, p in params.items()}
    del params
    hf.LARGE_BYTES = 2**20  # so that this small model takes the path of large models
    largest = 4 * CONFIG.text.vocab_size * CONFIG.text.hidden_size
    for _ in range(2):  # the first iteration compiles
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # freed but resident heap would hide new allocations
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak (VmHWM)
        before = memory("VmRSS")
        loaded = hf.load_hf(folder, CONFIG, shardings)
        peak = memory("VmHWM") - before
        for name, array in loaded.items():
            assert array.sharding.is_equivalent_to(shardings[name], array.ndim), name
            assert np.asarray(array, np.float64).sum() == expected[name], name
        del loaded, array
    print(
        f"arrays {arrays >> 20} MiB, largest tensor {largest >> 20} MiB, on top of the arrays {(peak - arrays) >> 20} MiB"
    )
    assert peak - arrays <= 2 * largest


if __name__ == "__main__":
    main(Path(sys.argv[1]))
