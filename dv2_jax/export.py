"""Exports a policy: `python -m dv2_jax.export --checkpoint=runs/default --output=FOLDER [--dtype bfloat16|float32]`.

Writes safetensors and config.json in the layout of transformers, with tokenizer, chat template, image processor and
generation settings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dv2_jax.config import one_line_errors


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m dv2_jax.export",
        description="Write a policy in the layout of transformers (safetensors, config, tokenizer, processor).",
    )
    result.add_argument(
        "--checkpoint",
        required=True,
        help="a run directory (its newest checkpoint), one of its checkpoints, package:base, package:cold_start, "
        "or hf:FOLDER to rewrite one",
    )
    result.add_argument("--output", required=True, help="folder to create, local or gs://; must be empty or not exist")
    result.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="dtype of the exported weights"
    )
    return result


def run(checkpoint: str, output: str | Path, dtype: str) -> str | Path:
    """Loads the weights of `checkpoint` and writes them to `output`; see `checkpoint.hf_export.export_hf` for the files."""
    from dv2_jax.checkpoint.hf_export import export_hf, image_config
    from dv2_jax.checkpoint.policy_spec import load_policy_spec, load_weights
    from dv2_jax.config import ImageConfig, ModelSource

    source = ModelSource(init=checkpoint if ":" in checkpoint else f"checkpoint:{checkpoint}")
    described = load_policy_spec(source)
    params = load_weights(source, described.config)
    return export_hf(output, params, described, image_config(source.init) or ImageConfig(), dtype)


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    with one_line_errors():
        output = run(arguments.checkpoint, arguments.output, arguments.dtype)
    print(f"{output}, in {arguments.dtype}; load it with transformers' AutoModelForImageTextToText")


if __name__ == "__main__":
    main()
