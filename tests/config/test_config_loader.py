"""Configuration from the command line: presets, typed overrides, and errors that name the fix."""

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

from dv2_jax.config import Config, ConfigError, EvalConfig, load
from dv2_jax.config.migrations import REMOVED_FIELDS, RENAMED_FIELDS, RENAMED_VALUES, REPLACED_FIELDS
from dv2_jax.config.overrides import check_types, field_help, flatten, replace_value
from dv2_jax.config.schema import setting
from dv2_jax.rl.algorithms import resolve_algorithm

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
    assert load([], default_config="configs/evaluate.py").sampling.temperature == 0.0


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
        ("--config.rl.steps=2.5", ["rl.steps = '2.5'", "expected int", "not an integer"]),
        ("--config.rl.clip_low=low", ["rl.clip_low = 'low'", "expected float"]),
        ("--config.run.resume=maybe", ["run.resume = 'maybe'", "expected bool", "true or false"]),
        ("--config.rl.algorithm=dap", ["rl.algorithm = 'dap'", "'dapo' | 'grpo' | 'dr_grpo'", "did you mean 'dapo'?"]),
        ("--config.run.resume", ["--config.run.resume needs a value"]),
        ("--config.engine.picture_tokens=8", ["'engine.picture_tokens' was renamed to 'engine.image_cache_tokens'"]),
        (
            "--config.rl.normalise_std=no",
            ["'rl.normalise_std' was replaced: use --config.rl.advantage=grpo or dr_grpo"],
        ),
        ("--config.eval.batch=8", ["'eval.batch' no longer exists", "engine.slots"]),
    ],
)
def test_a_mistake_names_the_key_the_value_and_the_fix(argument, words):
    """Catches an invalid key that is ignored: training would silently use the default."""
    message = error_of(RL, argument)
    assert [word for word in words if word not in message] == []


def test_an_unknown_preset_or_file_names_the_nearest_and_lists_what_there_is():
    message = error_of(f"{RL}:7bb")
    assert "'7bb'" in message and "did you mean '7b'?" in message and "7b_v5p_32" in message
    message = error_of(f"--config={ROOT}/configs/rll.py")
    assert "rll.py" in message and "did you mean" in message and "sft.py" in message
    assert "no configuration given" in error_of()


def test_a_recipe_file_with_a_wrong_type_is_refused(tmp_path):
    """Catches a list for a tuple or a float for an int in a recipe file, whose values are not parsed from text."""
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
    """Catches a preset with a misspelled field, and a config.json that cannot be read back."""
    docstring = path.read_text().split('"""')[1]
    assert f"--config=configs/{path.name}" in docstring
    presets = error_of(f"--config={path}:?").split("presets: ")[1].rstrip(")").split(", ")
    assert presets[0] == "laptop" and {"3b", "7b", "32b"} <= set(presets)
    names = set()
    for preset in presets:
        config = load([f"--config={path}:{preset}"])
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        names.add(config.run.name)
    assert len(names) == len(presets)  # presets must not share a run directory


def test_the_7b_presets_carry_the_released_hyper_parameters():
    """Compares with the hyper-parameters of the paper (section 5.1) and of the released scripts."""
    rl = load([f"{RL}:7b"])
    assert (rl.rl.prompts_per_step, rl.rl.group_size, rl.rl.minibatches) == (256, 16, 8)
    algorithm = resolve_algorithm(rl.rl)
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.kl_coefficient) == (0.2, 0.3, 0.0)
    assert (rl.agent.max_turns, rl.agent.max_turn_tokens, rl.agent.max_total_tokens) == (9, 8192, 24576)
    assert (rl.optim.learning_rate, rl.optim.warmup_ratio, rl.optim.schedule) == (1e-6, 0.0, "constant")
    assert (rl.image.min_pixels, rl.image.max_pixels) == (3136, 12_845_056) and rl.model.freeze == ()
    released = resolve_algorithm(load([f"{RL}:7b_released"]).rl)
    assert (released.algorithm, released.clip_high, released.dual_clip) == ("deepeyesv2", 0.2, 3.0)
    assert (released.advantage, released.aggregation) == ("grpo", "sequence_mean")
    sft = load([f"--config={ROOT}/configs/sft.py:7b"])
    assert sft.model.freeze == ("vision", "projector") and sft.image.max_pixels == 262_144
    assert (sft.optim.learning_rate, sft.optim.warmup_ratio, sft.optim.schedule) == (1e-5, 0.1, "cosine")
    assert (sft.sft.row_tokens, sft.sft.batch_rows) == (20_480, 128)


def test_recipes_are_found_from_any_folder_by_path_or_by_name(tmp_path, monkeypatch):
    """Catches a command of the README that works only in a checkout's root."""
    expected = load([f"{RL}:7b"])
    monkeypatch.chdir(tmp_path)
    assert load(["--config=configs/rl.py:7b"]) == expected
    assert load(["--config=rl:7b"]) == expected
    assert load(["--config=rl"]) == load([RL])
    (tmp_path / "rl").mkdir()  # such as a run directory
    assert load(["--config=rl"]) == load([RL])


def test_a_recipe_file_here_takes_precedence_over_the_packaged_one(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "rl.py").write_text(
        "from dv2_jax.config import Config, RunConfig\n"
        "PRESETS = {'mine': lambda: Config(run=RunConfig(name='mine'))}\n"
        "def get_config(preset):\n    return PRESETS[preset]()\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load(["--config=configs/rl.py"]).run.name == "mine"
    assert load(["--config=rl"]).run.name == "rl"


@pytest.mark.parametrize("name", ["configs/rll.py", "rll"])
def test_an_unknown_recipe_suggests_a_packaged_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = error_of(f"--config={name}")
    assert f"no configuration file '{name}'" in message and "did you mean" in message and "sft" in message


def test_a_configuration_stored_before_fields_were_renamed_still_loads():
    """Catches a run directory of an earlier version that can no longer be resumed, exported or evaluated."""
    data = Config().to_dict()
    del data["engine"]["image_cache_tokens"]
    for name in ("loss", "advantage", "aggregation", "loss_options", "max_response_tokens", "mask_truncated"):
        del data["rl"][name]
    data["engine"]["picture_tokens"] = 123
    data["rl"] |= {
        "algorithm": "released", "normalise_std": False, "loss_aggregation": "token_mean", "clip_low": 0.2,
        "clip_high": 0.3, "dual_clip": 3.0,
    }  # fmt: skip
    data["eval"]["batch"] = 8
    stored = json.loads(json.dumps(data))
    config = Config.from_dict(stored)
    assert config.engine.image_cache_tokens == 123
    assert (config.rl.algorithm, config.rl.loss, config.rl.advantage) == ("deepeyesv2", "ppo_clip", "dr_grpo")
    assert (config.rl.aggregation, config.rl.clip_high) == ("token_mean", 0.3)
    assert resolve_algorithm(config.rl) == config.rl, "every value of the old run is explicit"
    assert stored["eval"]["batch"] == 8  # the argument is not modified
    assert "batch" not in config.to_dict()["eval"]


def test_old_and_present_name_of_a_field_together_are_refused():
    with pytest.raises(ConfigError, match="'rl.loss_aggregation' was renamed to 'rl.aggregation', and both are given"):
        Config.from_dict({"rl": {"loss_aggregation": "token_mean", "aggregation": "token_mean"}})
    with pytest.raises(ConfigError, match="'rl.normalise_std' was renamed to 'rl.advantage', and both are given"):
        Config.from_dict({"rl": {"normalise_std": True, "advantage": "grpo"}})
    with pytest.raises(ConfigError, match="rl.normalize_std = 'maybe': expected True or False"):
        Config.from_dict({"rl": {"normalize_std": "maybe"}})


def test_the_paper_stages_stored_before_0_2_are_read_as_policies_to_evaluate():
    """Catches: an older run that no longer loads, or is resumed without one of its evaluations."""
    data = Config().to_dict()
    del data["eval"]["compare"]
    data["eval"]["stages"] = ["base", "cold_start", "rl"]
    assert Config.from_dict(data).eval == EvalConfig(stages=("initial", "final"), compare=("package:base",))
    data["eval"]["stages"] = ["rl"]
    assert Config.from_dict(data).eval == EvalConfig(stages=("final",), compare=())
    assert Config.from_dict(Config().to_dict()) == Config()


def test_renamed_fields_lead_to_existing_ones():
    known = {key for key, _, _ in flatten(Config())}
    present = {*RENAMED_FIELDS.values(), *RENAMED_VALUES, *(new for new, _ in REPLACED_FIELDS.values())}
    assert present <= known and not known & {*RENAMED_FIELDS, *REPLACED_FIELDS, *REMOVED_FIELDS}


def test_an_unknown_key_of_a_saved_configuration_is_named():
    data = Config().to_dict()
    data["rl"]["grup_size"] = 3
    with pytest.raises(ConfigError, match="'rl.grup_size'; did you mean 'group_size'"):
        Config.from_dict(data)


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, float] = setting((1, 0.5), "Two sizes.")
    limit: int | None = None
    mode: Literal["a", 2] = setting("a", "One of two modes.")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    text: str = ""


def test_optional_fixed_length_and_mixed_literal_fields_are_understood():
    config = replace_value(Outer(), "inner.sizes", "(3, 1e-2)")
    assert config.inner.sizes == (3, 0.01)
    assert replace_value(config, "inner.limit", "5").inner.limit == 5
    assert replace_value(config, "inner.limit", "none").inner.limit is None
    assert replace_value(config, "inner.mode", "2").inner.mode == 2
    for key, text in (("inner.sizes", "3"), ("inner.limit", "x"), ("inner.mode", "b")):
        with pytest.raises(ConfigError, match=key):
            replace_value(config, key, text)


def test_help_texts_come_from_the_field_metadata():
    assert field_help(Inner) == {"sizes": "Two sizes.", "limit": "", "mode": "One of two modes."}
    assert field_help(Outer) == {"inner": "", "text": ""}


def test_every_field_has_a_help_text_that_is_a_sentence():
    """Catches a setting without help, and headless notes such as "of the second"."""
    sections = {name: value for name, value in vars(Config()).items() if name != "recipe"}
    wrong = [
        f"{section}.{name}: {text}"
        for section, value in sections.items()
        for name, text in field_help(type(value)).items()
        if not (text[:1].isupper() and text.endswith("."))
    ]
    assert wrong == []
    assert [
        name for name, value in sections.items() if type(value).__doc__.startswith(f"{type(value).__name__}(")
    ] == []


@given(st.data())
def test_what_help_shows_can_be_typed_back(data):
    """Property: for any field and value of its type, parsing the text that --help prints gives the value back."""
    from dv2_jax.config.help_text import format_value

    key, kind, _ = data.draw(st.sampled_from(list(flatten(Config()))))
    words = st.text("abcxyz_/:.", min_size=1).filter(lambda word: word.strip() == word)
    kinds = {int: st.integers(), float: st.floats(allow_nan=False), bool: st.booleans(), str: words}
    if type(None) in typing.get_args(kind):
        [kind] = set(typing.get_args(kind)) - {type(None)}
        value = data.draw(st.none() | kinds[kind].filter(lambda text: text not in ("none", "null")))
    elif kind in kinds:
        value = data.draw(kinds[kind])
    elif typing.get_origin(kind) is Literal:
        value = data.draw(st.sampled_from(typing.get_args(kind)))
    else:
        value = tuple(data.draw(st.lists(words)))
    changed = replace_value(Config(), key, format_value(value))
    check_types(changed)
    assert dict((k, v) for k, _, v in flatten(changed))[key] == value


def run_train(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dv2_jax.train", *argv], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_help_shows_usage_presets_fields_values_and_help_texts():
    shown = run_train("--config=configs/rl.py:7b", "--help")
    assert shown.returncode == 0, shown.stderr
    for words in (
        "usage: python -m dv2_jax.train",
        "(the default)",
        "7b_v5p_32",
        "v5p-32 slice: 16 chips",
        "--config.rl.group_size=16  (int)",
        "Trajectories per question.",
        "'dapo' | 'grpo' | 'dr_grpo'",
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
