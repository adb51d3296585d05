"""Data construction: raw questions become verified sets for the cold start and for RL.

    python -m dv2_jax.curate --config=configs/curate.py             two CPU cores: embedded questions, the shipped policy
    python -m dv2_jax.curate --config=configs/curate.py:7b \\
        --config.curate.sources="vstar=/data/vstar.parquet;CC-BY-4.0,fvqa=/data/fvqa.parquet;Apache-2.0" \\
        --config.curate.endpoint=http://host:8000/v1 \\
        --config.curate.teachers=http://teacher:8000/v1#big=2,http://other:8000/v1#large
    python -m dv2_jax.curate --plan                                 rows, requests, tokens and cost of every stage
    python -m dv2_jax.curate --batch-write=FOLDER                   the next single requests as batch files of a provider

Limits, prompts and image sizes equal those of the RL preset of the same name.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from runpy import run_path

from dv2_jax.config import Config, CurateConfig

RL_PRESETS = run_path(str(Path(__file__).with_name("rl.py")))["PRESETS"]


def curate_rl_preset(preset: str, name: str, **settings: object) -> Config:
    """Converts an RL preset to data construction with a run directory of its own."""
    config = RL_PRESETS[preset]()
    return replace(config, recipe="curate", run=replace(config.run, name=name), curate=CurateConfig(**settings))


def laptop() -> Config:
    """The tiny model labels 512 embedded questions; the scripted solver is the teacher."""
    return curate_rl_preset("laptop", "curate", size=512)


def published_size(preset: str) -> Callable[[], Config]:
    """Returns a preset whose model labels files and whose sets have the paper's shares.

    The model runs on its own engine, or behind `curate.endpoint`.
    """

    def load() -> Config:
        return curate_rl_preset(preset, f"curate-{preset}", rl_mixture=("paper",), sft_mixture=("paper",))

    return load


PRESETS = {"laptop": laptop} | {preset: published_size(preset) for preset in ("3b", "7b", "32b")}


def get_config(preset: str = "laptop") -> Config:
    return PRESETS[preset]()
