"""The paper's comparison: base, cold start and RL on the same held-out questions, as one table.

    python -m dv2_jax.evaluate --config=configs/paper_stages.py             the shipped base and cold start, and runs/rl
    python -m dv2_jax.evaluate --config=configs/paper_stages.py:7b          three checkpoints of 7B; 8 devices

configs/sft.py and configs/rl.py train the cold start and the RL policy: run them first. Another run is compared with
--config.model.init=checkpoint:runs/NAME, and other policies of the same architecture with --config.eval.compare=….
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from dv2_jax.config import Config

PRESETS_TO_EVALUATE = run_path(str(Path(__file__).with_name("evaluate.py")))["PRESETS"]


def compare(preset: str, *stages: str) -> Config:
    """Evaluates `stages` in order, each written like `model.init`; the last one is the policy with baselines."""
    config = PRESETS_TO_EVALUATE[preset]()
    return replace(
        config,
        run=replace(config.run, name=f"stages-{preset}"),
        model=replace(config.model, init=stages[-1]),
        eval=replace(config.eval, compare=stages[:-1]),
    )


def laptop() -> Config:
    """The tiny model on two CPU cores."""
    return compare("laptop", "package:base", "package:cold_start", "checkpoint:runs/rl")


def trained(size: str) -> Config:
    """Compares the base model with the exports of configs/sft.py and the run of configs/rl.py at the same size."""
    base, cold_start = f"hf:models/Qwen2.5-VL-{size.upper()}-Instruct", f"hf:models/deepeyesv2-{size}-cold-start"
    return compare(size, base, cold_start, f"checkpoint:runs/rl-{size}")


def stages_3b() -> Config:
    """Qwen2.5-VL-3B; 8 devices."""
    return trained("3b")


def stages_7b() -> Config:
    """Qwen2.5-VL-7B, the size of the paper; 8 devices."""
    return trained("7b")


def stages_32b() -> Config:
    """Qwen2.5-VL-32B; 32 devices."""
    return trained("32b")


PRESETS = {"laptop": laptop, "3b": stages_3b, "7b": stages_7b, "32b": stages_32b}


def get_config(preset: str = "laptop") -> Config:
    return PRESETS[preset]()
