"""Tests of the comparison of a stored configuration with that of a command that resumes the run."""

import dataclasses
import json
from fnmatch import fnmatchcase

import pytest

from dv2_jax.config import Config, ConfigError, EngineConfig, OptimConfig, RLConfig, RunConfig, SFTConfig, TaskConfig
from dv2_jax.config.overrides import flatten
from dv2_jax.config.resume import (
    FILES,
    MAY_CHANGE,
    MAY_MOVE,
    UNUSED,
    Difference,
    differences,
    file_digests,
    is_allowed,
    read_stored,
)


def stored(config: Config) -> dict:
    """Returns the content of `config.json` as read from disk."""
    return json.loads(json.dumps(config.to_dict()))


def test_differences__equal_configurations_have_none():
    """Catches: a tuple that JSON turns into a list and that then counts as different."""
    config = Config(optim=OptimConfig(learning_rate=3e-4))
    assert differences(stored(config), config) == []


def test_differences__name_both_values():
    """Catches: a difference that is found in one section only, or reported without the stored value."""
    old = Config(optim=OptimConfig(learning_rate=3e-4), rl=RLConfig(group_size=8))
    new = Config(optim=OptimConfig(learning_rate=1e-2), rl=RLConfig(group_size=4))
    assert [str(item) for item in differences(stored(old), new)] == [
        "optim.learning_rate = 0.0003 there, 0.01 here",
        "rl.group_size = 8 there, 4 here",
    ]


def test_differences__older_versions_compare_by_meaning():
    """Catches: a renamed, removed or not yet existing field that makes every older run incompatible."""
    config = Config(engine=EngineConfig(image_cache_tokens=99))
    document = stored(config)
    document["engine"]["picture_tokens"] = document["engine"].pop("image_cache_tokens")
    document["eval"]["batch"] = 7
    document["gone"] = {"x": 1}
    document["rl"]["forgotten"] = 3
    del document["reward"]["terms"]
    assert differences(document, config) == []


def test_differences__a_missing_field_counts_as_its_default():
    """Catches: a new field that is set on resuming and goes unnoticed because the older run did not store it."""
    config = Config(optim=OptimConfig(b2=0.5))
    document = stored(config)
    del document["optim"]["b2"]
    assert [item.key for item in differences(document, config)] == ["optim.b2"]


def test_differences__stored_values_are_completed_as_the_given_ones():
    """Catches: a derived value that is filled in on one side only."""

    def complete(config: Config) -> Config:
        return dataclasses.replace(config, rl=dataclasses.replace(config.rl, clip_high=0.77))

    old = Config()
    assert differences(stored(old), complete(old), complete=complete) == []


def test_files__content_counts_instead_of_the_path(tmp_path):
    """Catches: other data under the same name, and a refusal of the same data in another folder."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("a\n")
    two.write_text("a\n")
    config, moved = (Config(sft=SFTConfig(data=str(path))) for path in (one, two))
    before = file_digests(config)
    compare = {"stored_files": before, "given_files": file_digests(moved)}
    assert differences(stored(config), moved, **compare) == []
    one.write_text("b\n")
    (found,) = differences(stored(config), config, stored_files=before, given_files=file_digests(config, before))
    assert found.key == "sft.data" and "sha256" in found.stored and found.stored != found.given
    assert not is_allowed(found, "sft") and is_allowed(found, "rl")


def test_files__an_unchanged_file_is_not_read_again(tmp_path):
    """Catches: a digest that is computed anew for gigabytes at every start."""
    path = tmp_path / "data.jsonl"
    path.write_text("a\n")
    config = Config(sft=SFTConfig(data=str(path)))
    known = file_digests(config)
    known["sft.data"]["sha256"] = "remembered"
    assert file_digests(config, known)["sft.data"]["sha256"] == "remembered"


def test_files__a_folder_counts_with_all_its_data_files(tmp_path):
    """Catches: a run over a folder that is resumed after a file of it was changed, added or renamed."""
    config = Config(task=TaskConfig(source=str(tmp_path)))
    (tmp_path / "a.jsonl").write_text("a\n")
    before = file_digests(config)
    (tmp_path / "notes.txt").write_text("of no row")
    assert file_digests(config, before) == before
    digests = [before["task.source"]["sha256"]]
    for change in (
        lambda: (tmp_path / "a.jsonl").rename(tmp_path / "z.jsonl"),
        lambda: (tmp_path / "z.jsonl").rename(tmp_path / "a.jsonl"),
        lambda: (tmp_path / "b.json").write_text("[]"),
        lambda: (tmp_path / "a.jsonl").write_text("b\n"),
        lambda: (tmp_path / "a.jsonl").rename(tmp_path / "c.jsonl"),
    ):
        change()
        digests.append(file_digests(config, before)["task.source"]["sha256"])
    assert digests[0] == digests[2] and len(set(digests)) == 5


@pytest.mark.parametrize(
    ("key", "recipe", "allowed"),
    [
        ("run.name", "rl", True),
        ("run.seed", "rl", False),
        ("rl.steps", "rl", True),
        ("rl.steps", "sft", True),  # not read there
        ("sft.steps", "sft", True),
        ("optim.learning_rate", "sft", False),
        ("rl.group_size", "rl", False),
        ("mesh.fsdp", "rl", True),
        ("engine.slots", "rl", True),
        ("model.init", "sft", False),
        ("reward.accuracy_weight", "rl", False),
        ("recipe", "rl", False),
    ],
)
def test_allowed__only_fields_that_change_no_step(key, recipe, allowed):
    """Catches: an allow-list that a hyperparameter slips through."""
    assert is_allowed(Difference(key, "1", "2"), recipe) is allowed


def test_allowed__a_judge_may_move_but_not_vanish():
    """Catches: a run whose rewards come from a judge for some steps and from rules for others."""
    assert is_allowed(Difference("reward.judge_base_url", "'http://a/v1'", "'http://b/v1'"), "rl")
    assert not is_allowed(Difference("reward.judge_base_url", "'http://a/v1'", "''"), "rl")


def test_allowed__every_pattern_matches_a_field():
    """Catches: an entry that refers to a field that was renamed, whose change would then be refused."""
    keys = [key for key, _, _ in flatten(Config())]
    patterns = [*MAY_CHANGE, *MAY_MOVE, *FILES, *(pattern for group in UNUSED.values() for pattern in group)]
    assert [pattern for pattern in patterns if not any(fnmatchcase(key, pattern) for key in keys)] == []


def test_stored__a_truncated_file_is_named(tmp_path):
    """Catches: a stack trace of the JSON parser without the name of the file."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(Config(run=RunConfig(seed=3)).to_dict())[:50])
    with pytest.raises(ConfigError, match=rf"{path} is no JSON object"):
        read_stored(path)
