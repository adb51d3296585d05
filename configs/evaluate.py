"""Evaluation on one or more benchmarks with greedy decoding: accuracy and tool use per skill.

    python -m dv2_jax.evaluate --config=configs/evaluate.py             two CPU cores, the shipped cold start
    python -m dv2_jax.evaluate --config=configs/evaluate.py:7b \\
        --config.model.init=hf:/models/deepeyesv2-7b --config.eval.benchmarks=embedded,/data/questions.jsonl
    python -m dv2_jax.evaluate --config=configs/evaluate.py:table1 \\
        --config.eval.endpoint=http://host:8000/v1 --config.eval.data=/data   another model, with and without searches
    python -m dv2_jax.evaluate --config=configs/evaluate.py:laptop_files \\
        --config.eval.data=/tmp/files          also on the files that python -m dv2_jax.toy.benchmark_files /tmp/files writes
    python -m dv2_jax.evaluate --list                                    the benchmarks that there are

Limits, prompts and image sizes equal those of the RL preset of the same name.
"""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

from dv2_jax.config import Config, EvalConfig, SamplingConfig

RL_PRESETS = run_path(str(Path(__file__).with_name("rl.py")))["PRESETS"]


def evaluate_rl_preset(preset: str, name: str) -> Config:
    """Converts an RL preset to evaluation: greedy decoding and a separate run directory."""
    config = RL_PRESETS[preset]()
    return replace(
        config,
        recipe="evaluate",
        run=replace(config.run, name=name),
        sampling=SamplingConfig(temperature=0.0),
        eval=EvalConfig(),
    )


def laptop() -> Config:
    """The tiny model on two CPU cores, on the embedded tasks."""
    return evaluate_rl_preset("laptop", "evaluate")


def laptop_files() -> Config:
    """Both shipped policies, with tools and with every call refused, on the embedded tasks and on small files.

    `python -m dv2_jax.toy.benchmark_files FOLDER` writes the files; `--config.eval.data=FOLDER` names their folder.
    """
    config = laptop()
    return replace(
        config,
        run=replace(config.run, name="laptop-files"),
        eval=replace(
            config.eval,
            benchmarks=("embedded", "realx", "vstar", "hrbench4k", "chartqa", "mathvista", "fvqa", "mmsearch", "tir"),
            compare=("package:base",),
            baselines=("no_tools",),
        ),
    )


def smol() -> Config:
    """SmolLM2-135M from the checkpoint of configs/sft.py:smol, on the embedded tasks."""
    return evaluate_rl_preset("smol", "evaluate-smol")


def evaluate_3b() -> Config:
    """A 3B checkpoint; 8 devices."""
    return evaluate_rl_preset("3b", "evaluate-3b")


def evaluate_7b() -> Config:
    """A 7B checkpoint; 8 devices."""
    return evaluate_rl_preset("7b", "evaluate-7b")


def evaluate_7b_v5p_32() -> Config:
    """A 7B checkpoint on a v5p-32 slice: 16 chips on 4 hosts."""
    return evaluate_rl_preset("7b_v5p_32", "evaluate-7b-v5p-32")


def evaluate_32b() -> Config:
    """A 32B checkpoint; 32 devices."""
    return evaluate_rl_preset("32b", "evaluate-32b")


def table1() -> Config:
    """The baselines of the paper's Table 1 on RealX-Bench: no search, text, image and both; with an endpoint or a 7B model."""
    config = evaluate_7b()
    return replace(
        config,
        run=replace(config.run, name="table1"),
        agent=replace(config.agent, system_prompt="per_tool"),
        eval=replace(
            config.eval,
            benchmarks=("realx",),
            tool_sets=("none", "text_search", "image_search", "both_searches"),
            search_record="auto",  # every model and every start gets the same search results
        ),
    )


PRESETS = {
    "laptop": laptop,
    "laptop_files": laptop_files,
    "smol": smol,
    "3b": evaluate_3b,
    "7b": evaluate_7b,
    "7b_v5p_32": evaluate_7b_v5p_32,
    "32b": evaluate_32b,
    "table1": table1,
}


def get_config(preset: str = "laptop") -> Config:
    return PRESETS[preset]()
