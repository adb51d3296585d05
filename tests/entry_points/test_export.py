"""An exported policy is, for transformers, the very policy that we run: weights, ids, pictures and greedy tokens."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from dv2_jax import export
from dv2_jax.agent import prompts
from dv2_jax.agent.prompt_encoder import SpliceCodec
from dv2_jax.checkpoint.hf import load_hf
from dv2_jax.checkpoint.hf_export import export_hf, image_config
from dv2_jax.checkpoint.policy_spec import architecture, load_weights
from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.config import AgentConfig, Config, ConfigError, ImageConfig, ModelSource
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.model import build, merge, mrope_positions, vision_batch
from dv2_jax.model.vision_inputs import VisionBucket
from dv2_jax.ops.attention import causal_segment_attention

IMAGE = ImageConfig(56 * 56, 112 * 112)
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def policy():
    """Random weights: unlike trained ones that were stored in bfloat16, they use all bits of float32."""
    described = architecture(ModelSource(init="random"))
    return described, load_weights(ModelSource(init="random"), described.config, seed=1)


@pytest.fixture(scope="module")
def shipped():
    """The cold start that comes with the package: its greedy tokens are sentences, not noise."""
    source = ModelSource(init="package:cold_start")
    described = architecture(source)
    return described, load_weights(source, described.config)


@pytest.fixture(scope="module")
def folder(shipped, tmp_path_factory):
    described, params = shipped
    return export_hf(tmp_path_factory.mktemp("export") / "policy", params, described, IMAGE, "float32")


@pytest.fixture(scope="module")
def theirs(folder):
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    # Not AutoProcessor: its video half wants torchvision, which says nothing about what is exported.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return model.eval(), tokenizer, transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


@pytest.fixture(scope="module")
def question():
    rng = np.random.default_rng(0)
    images = []
    for size in ((300, 180), (90, 260)):
        small = Image.fromarray(rng.integers(0, 255, (6, 7, 3), np.uint8))
        out = io.BytesIO()
        small.resize(size, Image.Resampling.BICUBIC).save(out, "PNG")
        images.append(out.getvalue())
    return Question(
        "q", "plain", "perception", "Compare <image> with <image>: 12 + 30, naïve – 両?", tuple(images), "x"
    )


def _their_inputs(question, tokenizer, images):
    """What their processor makes of a dialogue: the template's text, each placeholder repeated per merged token."""
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in question.images]
    rows = []
    for message in prompts.messages(question, "brief"):
        parts = []
        for index, text in enumerate(message["content"].split("<image>")):
            parts += [{"type": "image"}] if index else []
            parts += [{"type": "text", "text": text}] if text else []
        rows.append({"role": message["role"], "content": parts})
    text = tokenizer.apply_chat_template(rows, add_generation_prompt=True, tokenize=False)
    inputs = images(images=pictures, return_tensors="pt")
    pieces = text.split("<|image_pad|>")
    repeated = [
        piece + "<|image_pad|>" * int(grid.prod() // 4) for piece, grid in zip(pieces, inputs["image_grid_thw"])
    ]
    encoded = tokenizer(["".join([*repeated, pieces[-1]])], return_tensors="pt")
    kinds = (encoded["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()  # 1: picture
    return dict(inputs) | dict(encoded) | {"mm_token_type_ids": kinds}


def test_template_tokenizer_and_processor_give_our_ids_and_patches(theirs, folder, question):
    """Catches a template that lacks a newline, a vocabulary that splits otherwise, and other pixel bounds."""
    segment = SpliceCodec(Tokenizer.from_file(folder), IMAGE, AgentConfig()).prompt(question)
    inputs = _their_inputs(question, *theirs[1:])
    assert inputs["input_ids"][0].tolist() == list(segment.token_ids)
    assert inputs["image_grid_thw"].tolist() == [list(picture.grid) for picture in segment.images]
    ours = np.concatenate([picture.patches for picture in segment.images])
    np.testing.assert_allclose(inputs["pixel_values"].numpy(), ours, atol=1e-5)


def test_greedy_tokens_are_the_same(theirs, folder, shipped, question):
    described, params = shipped
    segment = SpliceCodec(Tokenizer.from_file(folder), IMAGE, AgentConfig()).prompt(question)
    ours = _greedy(described.config, params, segment)
    with torch.inference_mode():
        ids = theirs[0].generate(**_their_inputs(question, *theirs[1:]), max_new_tokens=NEW_TOKENS, do_sample=False)
    assert ids[0, len(segment.token_ids) :].tolist() == ours
    assert len(set(ours)) > 5  # a constant would prove little


def _greedy(config, params, segment) -> list[int]:
    """The whole sequence anew for every token: slow and plain."""
    graphdef, _ = build(config)
    grids = [picture.grid for picture in segment.images]
    vision = vision_batch([(p.patches, p.grid) for p in segment.images], [VisionBucket.of(4, 64)], config.vision)
    length = len(segment.token_ids) + NEW_TOKENS

    @jax.jit
    def last_logits(params, vision, ids, image_index, positions, segments, last):
        model = merge(graphdef, params)
        embeds = model.embed(ids, model.encode_images(vision), image_index)
        attend = lambda q, k, v, cache: (causal_segment_attention(q, k, v, segments), cache)  # noqa: E731
        return model.logits(model.hidden(embeds, positions, attend)[0][0, last])

    ids = list(segment.token_ids)
    while len(ids) < length:
        row = np.zeros((1, length), np.int32)
        row[0, : len(ids)] = ids
        positions = np.zeros((3, 1, length), np.int32)
        positions[:, 0, : len(ids)] = mrope_positions(np.array(ids), grids, config)[0]
        places = row == config.image_token_id
        image_index = np.where(places, np.cumsum(places, axis=1) - 1, -1).astype(np.int32)
        segments = (np.arange(length) < len(ids)).astype(np.int32)[None]
        logits = last_logits(params, vision, row, image_index, positions, segments, len(ids) - 1)
        ids.append(int(jnp.argmax(logits)))
        if ids[-1] in (config.eos_token_id, config.bos_token_id):
            break
    return ids[len(segment.token_ids) :]


def test_the_verb_exports_a_runs_newest_checkpoint_with_the_view_it_was_trained_with(policy, tmp_path, capsys):
    described, params = policy
    run = tmp_path / "run"
    described.save(run)
    config = Config(image=ImageConfig(28 * 28, 84 * 84))
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    with CheckpointStore(run / "checkpoints") as store:
        store.save(7, params, {"count": jnp.zeros(())}, {})
    export.main([f"--checkpoint={run}", f"--output={tmp_path / 'out'}", "--dtype=float32"])
    assert str(tmp_path / "out") in capsys.readouterr().out
    loaded = load_hf(tmp_path / "out", described.config)
    for name, array in params.items():
        np.testing.assert_array_equal(np.asarray(loaded[name]), np.asarray(array))
    assert image_config(f"hf:{tmp_path / 'out'}") == config.image
    # and what was exported is a policy again
    again = architecture(ModelSource(init=f"hf:{tmp_path / 'out'}"))
    assert again.config == described.config


def test_bfloat16_halves_the_file_and_rounds_to_nearest(policy, tmp_path):
    described, params = policy
    half = export_hf(tmp_path / "half", params, described, IMAGE)
    whole = export_hf(tmp_path / "whole", params, described, IMAGE, "float32")
    sizes = [(path / "model.safetensors").stat().st_size for path in (half, whole)]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.02)
    loaded = load_hf(half, described.config)
    for name, array in params.items():
        np.testing.assert_array_equal(np.asarray(loaded[name]), np.asarray(array.astype(jnp.bfloat16), np.float32))


def test_a_folder_with_something_in_it_stays_as_it_is(policy, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        export_hf(tmp_path, policy[1], policy[0], IMAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_export_leaves_nothing(policy, tmp_path):
    described, params = policy
    broken = dict(params)
    broken.pop(next(iter(broken)))
    with pytest.raises(KeyError):
        export_hf(tmp_path / "out", broken, described, IMAGE)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        export.run(str(tmp_path / "nowhere"), tmp_path / "out", "float32")
