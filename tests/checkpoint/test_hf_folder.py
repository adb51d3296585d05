"""Tests of the errors for folders of Hugging Face weights that cannot be loaded."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dv2_jax.checkpoint.hf import load_hf, save_hf
from dv2_jax.checkpoint.hf_folder import INDEX
from dv2_jax.checkpoint.policy_spec import load_policy_spec
from dv2_jax.config import ConfigError, ModelSource, UserError
from tests.checkpoint.test_hf import random_params, tiny


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Returns a folder with weights in one file."""
    folder = tmp_path_factory.mktemp("hf") / "original"
    save_hf(folder, random_params(tiny(tied=False)), tiny(tied=False), "float32")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "weights")


def rename(folder, change):
    file = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file)


def refusal(folder) -> str:
    with pytest.raises((UserError, FileNotFoundError)) as caught:
        load_hf(folder, tiny(tied=False))
    return str(caught.value)


def test_open_folder__a_tensor_in_two_files_names_both(folder):
    """Catches: a stray second file whose tensors silently replace those of the first, or are replaced by them."""
    tensors = load_file(folder / "model.safetensors")
    save_file({"model.norm.weight": tensors["model.norm.weight"] + 1}, folder / "old.safetensors")
    message = refusal(folder)
    assert "model.norm.weight is in both model.safetensors and old.safetensors" in message and "\n" not in message


def test_open_folder__files_outside_the_index_do_not_count(folder):
    """Catches: a consolidated copy next to the indexed files that makes a published folder unloadable."""
    tensors = load_file(folder / "model.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    assert load_hf(folder, tiny(tied=False))


def test_open_folder__missing_files_of_the_index_are_named(folder):
    """Catches: an interrupted download that ends in a stack trace."""
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    assert "model-00001-of-00002.safetensors" in refusal(folder)


def test_open_folder__weights_of_torch_are_named(folder):
    """Catches: a folder with pytorch_model.bin that is reported as empty."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin must be converted" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", "no safetensors file"),
        (b"\x02\0\0\0\0\0\0\0[]", "no safetensors file"),
    ],
)
def test_mapped_file__other_content_is_explained(folder, content, words):
    """Catches: a Git LFS pointer or an HTML page that ends in an error of the JSON parser without the file's name."""
    (folder / "model.safetensors").write_bytes(content)
    message = refusal(folder)
    assert words in message and "model.safetensors" in message and "\n" not in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name: f"module.{name}", "begin with 'module.': DistributedDataParallel"),
        (lambda name: f"_orig_mod.{name}", "begin with '_orig_mod.': torch.compile"),
        (lambda name: f"base_model.model.{name}", "begin with 'base_model.model.': a PEFT adapter was not merged"),
        (lambda name: f"policy.actor.{name}", "begin with 'policy.actor.': remove it from the names"),
        (
            lambda name: f"base_model.model.{name}".replace("q_proj.weight", "q_proj.base_layer.weight"),
            "merge_and_unload()",
        ),
    ],
)
def test_check_tensors__a_prefix_is_named_with_its_fix(folder, change, words):
    """Catches: hundreds of lines of missing and unexpected tensors where one wrapper explains them all."""
    rename(folder, change)
    message = refusal(folder)
    assert words in message and "\n" not in message


def test_check_tensors__many_mismatches_are_counted_in_ten_lines(folder):
    """Catches: a message with a line per tensor, and one that stops at the first mismatch."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in [n for n in tensors if "self_attn" in n]:
        del tensors[name]
    for name in [n for n in tensors if "mlp" in n and "layers" in n]:
        tensors[name] = np.zeros(3, np.float32)
    tensors |= {f"extra.{i}": np.zeros(2, np.float32) for i in range(20)}
    save_file(tensors, file)
    message = refusal(folder)
    assert "21 missing, 9 of another shape, 20 unexpected" in message
    assert len(message.splitlines()) <= 10 and "(and 18 more)" in message and "(and 17 more)" in message
    assert "is [3], should be [" in message


def test_policy_spec__a_folder_without_its_form_gets_a_suggestion(folder, tmp_path):
    """Catches: `model.init=/path` and a swapped form, which end in an error that does not name the right one."""
    for init in (str(folder), f"checkpoint:{folder}"):
        with pytest.raises(ConfigError, match=f"use hf:{folder}"):
            load_policy_spec(ModelSource(init=init))
    run = tmp_path / "run"
    load_policy_spec(ModelSource(init="random")).save(run)
    for init in (str(run), f"hf:{run}"):
        with pytest.raises(ConfigError, match=f"use checkpoint:{run}"):
            load_policy_spec(ModelSource(init=init))


@pytest.mark.parametrize("content", ['{"model_type": "llama"}', '{"model_type": "qwen2_5_vl"}', "{", "[]"])
def test_policy_spec__a_config_of_another_model_is_named(folder, content):
    """Catches: a KeyError or a JSON error without the path of the file."""
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=f"{folder}/config.json"):
        load_policy_spec(ModelSource(init=f"hf:{folder}"))


def test_policy_spec__a_missing_tokenizer_is_named(folder):
    """Catches: a policy that starts with another model's tokenizer, or a stack trace."""
    with pytest.raises(ConfigError, match=r"tokenizer\.json: not found; copy"):
        load_policy_spec(ModelSource(init=f"hf:{folder}"))
