"""An exported policy behaves in transformers as here: weights, token ids, image patches and greedy tokens."""

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
from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.checkpoint.hf import load_hf
from dv2_jax.checkpoint.hf_export import export_hf, image_config
from dv2_jax.checkpoint.policy_spec import load_policy_spec, load_weights
from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.config import AgentConfig, Config, ConfigError, ImageConfig, ModelSource
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.model.params import build, merge
from dv2_jax.model.positions import mrope_positions
from dv2_jax.model.vision_inputs import VisionBucket, vision_batch
from dv2_jax.ops.attention import causal_segment_attention

IMAGE = ImageConfig(56 * 56, 112 * 112)
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def policy():
    """Returns random weights, which use all bits of float32, unlike shipped ones stored in bfloat16."""
    described = load_policy_spec(ModelSource(init="random"))
    return described, load_weights(ModelSource(init="random"), described.config, seed=1)


@pytest.fixture(scope="module")
def shipped():
    """Returns the shipped cold start, whose greedy tokens are sentences rather than noise."""
    source = ModelSource(init="package:cold_start")
    described = load_policy_spec(source)
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
    # Not AutoProcessor: its video part requires torchvision and does not depend on the export.
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


def _their_inputs(question, tokenizer, image_processor):
    """Returns the inputs of transformers' processor: the template's text, placeholders repeated per merged token."""
    pil_images = [Image.open(io.BytesIO(data)).convert("RGB") for data in question.images]
    rows = []
    for message in prompts.build_messages(question, "brief"):
        parts = []
        for index, text in enumerate(message["content"].split("<image>")):
            parts += [{"type": "image"}] if index else []
            parts += [{"type": "text", "text": text}] if text else []
        rows.append({"role": message["role"], "content": parts})
    text = tokenizer.apply_chat_template(rows, add_generation_prompt=True, tokenize=False)
    inputs = image_processor(images=pil_images, return_tensors="pt")
    pieces = text.split("<|image_pad|>")
    repeated = [
        piece + "<|image_pad|>" * int(grid.prod() // 4) for piece, grid in zip(pieces, inputs["image_grid_thw"])
    ]
    encoded = tokenizer(["".join([*repeated, pieces[-1]])], return_tensors="pt")
    kinds = (encoded["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()  # 1: image
    return dict(inputs) | dict(encoded) | {"mm_token_type_ids": kinds}


def test_template_tokenizer_and_processor_give_our_ids_and_patches(theirs, folder, question):
    """Catches a template without a newline, a vocabulary with other merges, and other pixel bounds."""
    segment = PromptEncoder(Tokenizer.from_file(folder), IMAGE, AgentConfig()).encode_question(question)
    inputs = _their_inputs(question, *theirs[1:])
    assert inputs["input_ids"][0].tolist() == list(segment.token_ids)
    assert inputs["image_grid_thw"].tolist() == [list(image.grid) for image in segment.images]
    ours = np.concatenate([image.patches for image in segment.images])
    np.testing.assert_allclose(inputs["pixel_values"].numpy(), ours, atol=1e-5)


def test_greedy_tokens_are_the_same(theirs, folder, shipped, question):
    described, params = shipped
    segment = PromptEncoder(Tokenizer.from_file(folder), IMAGE, AgentConfig()).encode_question(question)
    ours = _greedy(described.config, params, segment)
    with torch.inference_mode():
        ids = theirs[0].generate(**_their_inputs(question, *theirs[1:]), max_new_tokens=NEW_TOKENS, do_sample=False)
    assert ids[0, len(segment.token_ids) :].tolist() == ours
    assert len(set(ours)) > 5  # guards against a constant output


def _greedy(config, params, segment) -> list[int]:
    """Decodes greedily without a KV cache: recomputes the full sequence for every token."""
    graphdef, _ = build(config)
    grids = [image.grid for image in segment.images]
    vision = vision_batch(
        [(p.patches, p.grid) for p in segment.images], [VisionBucket.for_patches(4, 64)], config.vision
    )
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
        is_image = row == config.image_token_id
        image_index = np.where(is_image, np.cumsum(is_image, axis=1) - 1, -1).astype(np.int32)
        segments = (np.arange(length) < len(ids)).astype(np.int32)[None]
        logits = last_logits(params, vision, row, image_index, positions, segments, len(ids) - 1)
        ids.append(int(jnp.argmax(logits)))
        if ids[-1] in (config.eos_token_id, config.bos_token_id):
            break
    return ids[len(segment.token_ids) :]


def test_export_takes_a_runs_newest_checkpoint_and_its_image_bounds(policy, tmp_path, capsys):
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
    # The exported folder is a valid policy source.
    again = load_policy_spec(ModelSource(init=f"hf:{tmp_path / 'out'}"))
    assert again.config == described.config


def test_bfloat16_halves_the_file_and_rounds_to_nearest(policy, tmp_path):
    described, params = policy
    half = export_hf(tmp_path / "half", params, described, IMAGE)
    full = export_hf(tmp_path / "full", params, described, IMAGE, "float32")
    sizes = [(path / "model.safetensors").stat().st_size for path in (half, full)]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.02)
    loaded = load_hf(half, described.config)
    for name, array in params.items():
        np.testing.assert_array_equal(np.asarray(loaded[name]), np.asarray(array.astype(jnp.bfloat16), np.float32))


def test_a_folder_that_is_not_empty_is_not_modified(policy, tmp_path):
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
    with pytest.raises(ConfigError, match="missing"):
        export.run(str(tmp_path / "missing"), tmp_path / "out", "float32")
