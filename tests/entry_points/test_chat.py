"""Chat: its configuration from the command line, and a complete conversation with the shipped policy."""

import contextlib
import io

import pytest
from PIL import Image

from dv2_jax import chat
from dv2_jax.config import ConfigError
from dv2_jax.toy.tasks import make_questions


def test_one_sequence_at_a_time_and_greedy_unless_asked():
    config = chat.configuration(None, [])
    assert (config.engine.slots, config.sampling.temperature, config.model.init) == (1, 0.0, "package:cold_start")
    assert chat.configuration(None, ["--config.sampling.temperature=0.7"]).sampling.temperature == 0.7


@pytest.mark.parametrize(
    ("model", "init"),
    [("package:base", "package:base"), ("hf:/m", "hf:/m"), ("runs/rl", "checkpoint:runs/rl"), ("random", "random")],
)
def test_a_model_is_named_like_everywhere_or_by_its_run_directory(model, init):
    assert chat.configuration(model, []).model.init == init


def test_a_misspelled_field_is_refused_before_anything_loads():
    with pytest.raises(ConfigError, match="temperature"):
        chat.configuration(None, ["--config.sampling.temprature=1"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.png", None, "No such file"),
        ("folder.png", "folder", "Is a directory"),
        ("text.png", b"hello", "cannot identify image file"),
        ("cut.png", "cut", "truncated"),
        ("narrow.png", "narrow", "as long as wide"),
    ],
)
def test_an_image_that_cannot_be_used_is_one_sentence_with_its_path(tmp_path, capsys, name, content, words):
    """Catches a traceback without the path, after the policy was loaded."""
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content in ("cut", "narrow"):
        Image.effect_noise((900, 2) if content == "narrow" else (60, 60), 90).save(path)
        path.write_bytes(path.read_bytes()[: None if content == "narrow" else 900])
    elif content:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        chat.main([f"--image={path}", "--question=What?"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and f"--image={path}" in error and words in error


@pytest.mark.parametrize("model", ["runs/none", "hf:/none", "checkpoint:none", "package:none", "none:none"])
def test_a_model_that_does_not_exist_is_one_sentence_with_its_name(capsys, model):
    with pytest.raises(SystemExit) as ended:
        chat.main([f"--model={model}", "--question=What?"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and model.rpartition(":")[2] in error


def test_too_many_images_are_refused(tmp_path):
    config = chat.configuration(None, ["--config.agent.max_images=1"])
    with pytest.raises(ConfigError, match="2 times --image, but agent.max_images = 1"):
        chat.read_images([tmp_path, tmp_path], config)


def test_an_image_and_a_question_become_a_conversation_with_tools(tmp_path, monkeypatch):
    """Catches a turn that is not printed, an image that is not saved, and tools that do not run."""
    question = next(q for q in make_questions("eval", 5, 0) if q.skill == "perception")
    image = tmp_path / "own.jpg"
    image.write_bytes(question.images[0])
    monkeypatch.setenv("COLUMNS", "100")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        chat.main([f"--image={image}", f"--question={question.text}", f"--image-folder={tmp_path / 'out'}"])
    text = out.getvalue()
    assert "image_1.crop(" in text
    assert text.index("image_1.crop(") < text.index("0001.png")
    assert (tmp_path / "out" / "0001.png").exists()
    assert " ms" in text  # duration of the cell: it ran
