"""The command line of every verb: presets, typed overrides, and errors that name the right word."""

import json
import subprocess
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.config import Config, ConfigError, load
from dv2_jax.config.overrides import check_types, field_comments, flatten, replace_value

ROOT = Path(__file__).resolve().parent.parent.parent
RL = f"--config={ROOT}/configs/rl.py"


def error_of(*argv: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(argv)
    return str(error.value)


def test_the_preset_follows_the_colon_and_the_laptop_is_the_default():
    assert load([RL]) == load([f"{RL}:laptop"])
    assert load([RL]).model.preset == "tiny"
    assert load([f"{RL}:7b"]).model.preset == "7b"
    assert load([], default_config="configs/evaluate.py").sampling.temperature == 0.0  # found beside the package


def test_overrides_are_typed_by_the_annotations_and_the_last_one_wins():
    config = load(
        [
            RL,
            "--config.rl.group_size=4",
            "--config.rl.group_size=1e1",
            "--config.optim.learning_rate",
            "3e-6",
            "--config.run.resume=no",
            "--config.task.skills=plain, search",
            "--config.eval.stages=()",
            "--config.rl.algorithm=released",
            "--config.mesh.fsdp=-1",
            "--config.run.name=a=b",
        ]
    )
    assert config.rl.group_size == 10 and isinstance(config.rl.group_size, int)
    assert config.optim.learning_rate == 3e-6
    assert config.run.resume is False
    assert config.task.skills == ("plain", "search") and config.eval.stages == ()
    assert config.rl.algorithm == "released" and config.mesh.fsdp == -1
    assert config.run.name == "a=b"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.rl.groupsize=8", ["'rl.groupsize'", "did you mean 'group_size'?", "clip_low"]),
        ("--config.group_size=8", ["'group_size'", "did you mean 'rl.group_size'?"]),
        ("--config.rll.steps=8", ["'rll.steps'", "did you mean 'rl'?"]),
        ("--config.rl=8", ["'rl' is a section", "group_size"]),
        ("--config.rl.steps.x=8", ["'rl.steps.x'", "field of type int"]),
        ("--rl.steps=8", ["'--rl.steps'", "did you mean '--config.rl.steps'?"]),
        ("--confg.rl.steps=8", ["'--confg.rl.steps'", "did you mean '--config.rl.steps'?"]),
        ("--config.rl.steps=many", ["rl.steps = 'many'", "expected int"]),
        ("--config.rl.steps=2.5", ["rl.steps = '2.5'", "expected int", "not a whole number"]),
        ("--config.rl.clip_low=low", ["rl.clip_low = 'low'", "expected float"]),
        ("--config.run.resume=maybe", ["run.resume = 'maybe'", "expected bool", "true or false"]),
        ("--config.rl.algorithm=dap", ["rl.algorithm = 'dap'", "'dapo' | 'released'", "did you mean 'dapo'?"]),
        ("--config.run.resume", ["--config.run.resume needs a value"]),
    ],
)
def test_a_mistake_names_the_key_the_value_and_the_fix(argument, words):
    """Catches a key that is ignored, which would train with the default and say nothing."""
    message = error_of(RL, argument)
    assert [word for word in words if word not in message] == []


def test_an_unknown_preset_or_file_names_the_nearest_and_lists_what_there_is():
    message = error_of(f"{RL}:7bb")
    assert "'7bb'" in message and "did you mean '7b'?" in message and "7b_v5p_32" in message
    message = error_of(f"--config={ROOT}/configs/rll.py")
    assert "rll.py" in message and "did you mean" in message and "sft.py" in message
    assert "no configuration given" in error_of()


def test_a_recipe_file_with_a_wrong_type_is_refused(tmp_path):
    """Catches a list for a tuple or a float for a count in a file, where no parser looks."""
    (tmp_path / "mine.py").write_text(
        "from dv2_jax.config import Config, RLConfig\n"
        "def bad():\n    return Config(rl=RLConfig(steps=1.5))\n"
        "PRESETS = {'bad': bad}\n"
        "def get_config(preset):\n    return PRESETS[preset]()\n"
    )
    assert "rl.steps = 1.5 is not of type int" in error_of(f"--config={tmp_path}/mine.py")
    (tmp_path / "empty.py").write_text("")
    assert "needs PRESETS" in error_of(f"--config={tmp_path}/empty.py")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_preset_loads_and_survives_json(path):
    """Catches a preset that misspells a field, and a run directory whose config.json cannot be read back."""
    docstring = path.read_text().split('"""')[1]
    assert f"--config=configs/{path.name}" in docstring
    presets = error_of(f"--config={path}:?").split("presets: ")[1].rstrip(")").split(", ")
    assert presets[0] == "laptop" and {"3b", "7b", "32b"} <= set(presets)
    names = set()
    for preset in presets:
        config = load([f"--config={path}:{preset}"])
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        names.add(config.run.name)
    assert len(names) == len(presets)  # two presets never share a run directory


def test_the_7b_presets_carry_the_released_hyper_parameters():
    """The numbers of the paper's section 5.1 and of the released scripts, written down a second time."""
    rl = load([f"{RL}:7b"])
    assert (rl.rl.prompts_per_step, rl.rl.group_size, rl.rl.minibatches) == (256, 16, 8)
    assert (rl.rl.clip_low, rl.rl.clip_high, rl.rl.kl_coefficient) == (0.2, 0.3, 0.0)
    assert (rl.agent.max_turns, rl.agent.max_turn_tokens, rl.agent.max_total_tokens) == (9, 8192, 24576)
    assert (rl.optim.learning_rate, rl.optim.warmup_ratio, rl.optim.schedule) == (1e-6, 0.0, "constant")
    assert (rl.image.min_pixels, rl.image.max_pixels) == (3136, 12_845_056) and rl.model.freeze == ()
    released = load([f"{RL}:7b_released"]).rl
    assert (released.algorithm, released.clip_high, released.dual_clip) == ("released", 0.2, 3.0)
    assert released.loss_aggregation == "sequence_mean"
    sft = load([f"--config={ROOT}/configs/sft.py:7b"])
    assert sft.model.freeze == ("vision", "projector") and sft.image.max_pixels == 262_144
    assert (sft.optim.learning_rate, sft.optim.warmup_ratio, sft.optim.schedule) == (1e-5, 0.1, "cosine")
    assert (sft.sft.row_tokens, sft.sft.batch_rows) == (20_480, 128)


def test_an_unknown_key_of_a_saved_configuration_is_named():
    data = Config().to_dict()
    data["rl"]["grup_size"] = 3
    with pytest.raises(ConfigError, match="'rl.grup_size'; did you mean 'group_size'"):
        Config.from_dict(data)


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, float] = (1, 0.5)  # first line
    # and its second line
    limit: int | None = None
    mode: Literal["a", 2] = "a"  # of a text and a number


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    text: str = "# not a comment"


def test_optional_fixed_length_and_mixed_literal_fields_are_understood():
    config = replace_value(Outer(), "inner.sizes", "(3, 1e-2)")
    assert config.inner.sizes == (3, 0.01)
    assert replace_value(config, "inner.limit", "5").inner.limit == 5
    assert replace_value(config, "inner.limit", "none").inner.limit is None
    assert replace_value(config, "inner.mode", "2").inner.mode == 2
    for key, text in (("inner.sizes", "3"), ("inner.limit", "x"), ("inner.mode", "b")):
        with pytest.raises(ConfigError, match=key):
            replace_value(config, key, text)


def test_comments_are_read_from_the_source_and_not_from_strings():
    assert field_comments(Inner) == {
        "sizes": "first line and its second line",
        "limit": "",
        "mode": "of a text and a number",
    }
    assert field_comments(Outer) == {"inner": "", "text": ""}


def test_every_field_has_a_comment():
    sections = {"": Config()} | {name: getattr(Config(), name) for name in Config().to_dict() if name != "recipe"}
    missing = [
        f"{section}.{name}"
        for section, value in sections.items()
        if section
        for name, comment in field_comments(type(value)).items()
        if not comment
    ]
    assert missing == []


@given(st.data())
def test_what_help_shows_can_be_typed_back(data):
    """Any field, any value of its type: printed by --help, parsed again, the same."""
    from dv2_jax.config.help_text import show

    key, kind, _ = data.draw(st.sampled_from(list(flatten(Config()))))
    words = st.text("abcxyz_/:.", min_size=1).filter(lambda word: word.strip() == word)
    kinds = {int: st.integers(), float: st.floats(allow_nan=False), bool: st.booleans(), str: words}
    if kind in kinds:
        value = data.draw(kinds[kind])
    elif typing.get_origin(kind) is Literal:
        value = data.draw(st.sampled_from(typing.get_args(kind)))
    else:
        value = tuple(data.draw(st.lists(words)))
    changed = replace_value(Config(), key, show(value))
    check_types(changed)
    assert dict((k, v) for k, _, v in flatten(changed))[key] == value


def run_train(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dv2_jax.train", *argv], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_help_shows_usage_presets_fields_values_and_comments():
    shown = run_train("--config=configs/rl.py:7b", "--help")
    assert shown.returncode == 0, shown.stderr
    for words in (
        "usage: python -m dv2_jax.train",
        "(the default)",
        "7b_v5p_32",
        "v5p-32 slice: 16 chips",
        "--config.rl.group_size=16  (int)",
        "trajectories per question",
        "'dapo' | 'released'",
    ):
        assert words in shown.stdout
    for key, _, _ in flatten(Config()):
        assert f"--config.{key}=" in shown.stdout
    assert "configs/sft.py" in run_train("--help").stdout


def test_a_mistake_ends_train_with_one_message_and_code_2():
    done = run_train("--config=configs/rl.py", "--config.rl.groop_size=8")
    assert done.returncode == 2 and "did you mean 'group_size'?" in done.stderr and "Traceback" not in done.stderr
    done = run_train("--config=configs/evaluate.py")
    assert done.returncode == 2 and "use python -m dv2_jax.evaluate" in done.stderr
    done = run_train("--config=configs/rl.py", "--config.run.root=gs://bucket/runs")
    assert done.returncode == 2 and "run.root = 'gs://bucket/runs'" in done.stderr and "mount the bucket" in done.stderr
