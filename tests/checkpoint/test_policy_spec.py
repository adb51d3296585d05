"""Tests of every form of `model.init`: loaded spec and weights, and error messages."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dv2_jax.checkpoint.policy_spec import load_policy_spec, load_weights, run_directory
from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.config import ConfigError, ModelSource
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.model.model_config import ModelConfig


@pytest.fixture(scope="module")
def random():
    return load_policy_spec(ModelSource(init="random"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, random):
    """Return a run directory with two checkpoints of different weights, and the weights of the first."""
    run_dir = tmp_path_factory.mktemp("runs") / "demo"
    random.save(run_dir)
    params = load_weights(ModelSource(init="random"), random.config, seed=3)
    with CheckpointStore(run_dir / "checkpoints") as store:
        store.save(10, params, {"count": jnp.zeros(())}, {})
        store.save(20, jax.tree.map(lambda array: array + 1, params), {"count": jnp.zeros(())}, {})
    return run_dir, params


def test_a_random_tiny_policy_has_the_packaged_vocabulary(random):
    tokenizer = Tokenizer.from_package()
    assert random.config.text.vocab_size == tokenizer.vocab_size
    assert random.config.image_token_id == tokenizer.id("<|image_pad|>")
    assert random.config.eos_token_id == tokenizer.id("<|im_end|>")


def test_the_spec_of_a_published_size_needs_no_tokenizer():
    found = load_policy_spec(ModelSource(init="random", preset="7b"))
    assert found.config == ModelConfig.preset("7b") and found.tokenizer_file is None


def test_a_run_directory_loads_its_newest_checkpoint_and_a_step_loads_itself(run, random):
    run_dir, params = run
    for path, offset in ((run_dir, 1), (run_dir / "checkpoints", 1), (run_dir / "checkpoints" / "10", 0)):
        source = ModelSource(init=f"checkpoint:{path}")
        found = load_policy_spec(source)
        assert found.config == random.config
        assert Tokenizer.from_file(found.tokenizer_file).to_json() == Tokenizer.from_package().to_json()
        loaded = load_weights(source, found.config)
        assert loaded.keys() == params.keys()
        for name, array in params.items():
            np.testing.assert_array_equal(np.asarray(loaded[name]), np.asarray(array) + offset)


def test_reading_does_not_delete_a_save_in_progress(run, random):
    """Catches: an evaluation that deletes the checkpoint which a running trainer is writing."""
    run_dir, _ = run
    under_way = run_dir / "checkpoints" / "30.orbax-checkpoint-tmp-1"
    (under_way / "params").mkdir(parents=True)
    try:
        load_weights(ModelSource(init=f"checkpoint:{run_dir}"), random.config)
        assert (under_way / "params").is_dir()
    finally:
        shutil.rmtree(under_way)


def test_a_run_directory_that_moved_still_opens(run, random, monkeypatch):
    """Catches: a saved spec that refers to the original path of the tokenizer."""
    run_dir, _ = run
    moved = run_dir.rename(run_dir.with_name("moved"))
    try:
        monkeypatch.chdir(moved.parent)
        found = load_policy_spec(ModelSource(init="checkpoint:moved"))
        assert found.tokenizer_file.resolve().is_relative_to(moved)
        assert run_directory("moved/checkpoints/10").resolve() == moved
    finally:
        moved.rename(run_dir)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("pakage:base", "pakage:base.*use one of package:base"),
        ("package:bse", "there are base, cold_start, smol"),
        ("hf:/missing", "/missing/config.json"),
        ("checkpoint:/missing", "/missing"),
        ("runs/default", "checkpoint:/path"),
    ],
)
def test_an_invalid_init_is_refused_with_the_valid_forms(init, message):
    with pytest.raises(ConfigError, match=message):
        load_policy_spec(ModelSource(init=init))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, random):
    (tmp_path / "config.json").write_text(json.dumps(random.config.to_hf()))
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        load_policy_spec(ModelSource(init=f"hf:{tmp_path}"))


def test_a_run_without_a_checkpoint_says_so(tmp_path, random):
    random.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        load_weights(ModelSource(init=f"checkpoint:{tmp_path}"), random.config)
