"""The OpenAI-compatible server of a policy and its tools: greedy decoding unless a request says otherwise.

    python -m dv2_jax.serve --config=configs/serve.py                   the shipped cold start on two CPU cores
    python -m dv2_jax.serve --config=configs/serve.py:7b \\
        --config.model.init=hf:/models/deepeyesv2-7b --config.serve.port=8000

Limits, prompts and image sizes equal those of the evaluation preset of the same name, so that answers are equal too.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from dv2_jax.config import Config

EVALUATION_PRESETS = run_path(str(Path(__file__).with_name("evaluate.py")))["PRESETS"]


def serve_evaluation_preset(preset: str, name: str) -> Config:
    """Converts an evaluation preset to a server with its own run directory."""
    config = EVALUATION_PRESETS[preset]()
    return replace(config, recipe="serve", run=replace(config.run, name=name))


def laptop() -> Config:
    """The tiny model on two CPU cores."""
    return serve_evaluation_preset("laptop", "serve")


def smol() -> Config:
    """SmolLM2-135M from the checkpoint of configs/sft.py:smol."""
    return serve_evaluation_preset("smol", "serve-smol")


def serve_3b() -> Config:
    """A 3B checkpoint; 8 devices of one host."""
    return serve_evaluation_preset("3b", "serve-3b")


def serve_7b() -> Config:
    """A 7B checkpoint; 8 devices of one host."""
    return serve_evaluation_preset("7b", "serve-7b")


def serve_32b() -> Config:
    """A 32B checkpoint; 32 devices of one host."""
    return serve_evaluation_preset("32b", "serve-32b")


PRESETS = {"laptop": laptop, "smol": smol, "3b": serve_3b, "7b": serve_7b, "32b": serve_32b}


def get_config(preset: str = "laptop") -> Config:
    return PRESETS[preset]()
