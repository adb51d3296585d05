"""Tests that records on disk equal their trajectories, also if the writer is killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest

from dv2_jax.telemetry.trajectories import (
    IMAGE_MARK,
    TrajectoryWriter,
    image_file_name,
    loss_mask,
    read_trajectories,
    segments,
    stages,
)


@pytest.fixture
def written(tmp_path, tokenizer, trajectories):
    with TrajectoryWriter(tmp_path, tokenizer) as writer:
        writer.write(trajectories, stage="train", step=3, advantages=[1.0, -1.0, 0.0, 0.5, -0.5])
    return tmp_path


def test_a_record_holds_ids_mask_and_float32_logprobs_exactly(written, trajectories):
    records = list(read_trajectories(written, "train"))
    assert [record["id"] for record in records] == [trajectory.id for trajectory in trajectories]
    for record, trajectory in zip(records, trajectories, strict=True):
        assert record["token_ids"] == trajectory.token_ids
        assert loss_mask(record) == trajectory.loss_mask
        kept = np.float32([x for x, m in zip(trajectory.logprobs, trajectory.loss_mask, strict=True) if m])
        np.testing.assert_array_equal(np.float32(record["logprobs"]), kept)
        assert record["versions"] == [v for v, m in zip(trajectory.versions, trajectory.loss_mask, strict=True) if m]
        assert (record["finish"], record["step"], record["stage"]) == ("answer", 3, "train")


def test_text_equals_the_decoded_ids_with_one_mark_per_image(written, trajectories, tokenizer):
    pad = "<|image_pad|>"
    for record, trajectory in zip(read_trajectories(written, "train"), trajectories, strict=True):
        text = "".join(piece["text"] for piece in record["segments"])
        decoded = tokenizer.decode(trajectory.token_ids)
        while pad * 2 in decoded:
            decoded = decoded.replace(pad * 2, pad)
        assert text.replace(IMAGE_MARK, pad) == decoded
        assert text.count(IMAGE_MARK) == len(trajectory.images) == len(record["views"])


def test_token_ends_cut_the_text_of_a_turn_into_its_tokens(written, tokenizer):
    """Catches characters that span tokens: the comment in one cell is Japanese, which this vocabulary encodes as bytes."""
    multibyte = 0
    for record in read_trajectories(written, "train"):
        for piece in record["segments"]:
            if piece["role"] == "model":
                starts = [0, *piece["ends"][:-1]]
                parts = [piece["text"][a:b] for a, b in zip(starts, piece["ends"], strict=True)]
                assert "".join(parts) == piece["text"]
                ids = record["token_ids"][piece["start"] : piece["end"]]
                for part, token in zip(parts, ids, strict=True):
                    try:
                        complete = tokenizer.token_bytes(token).decode()
                    except UnicodeDecodeError:
                        multibyte += 1
                    else:
                        assert part == complete
    assert multibyte >= 2


def test_bytes_that_never_become_a_character_still_end_somewhere(tokenizer):
    broken = tokenizer.encode("両")[:-1]
    (piece,) = segments(broken, [1] * len(broken), tokenizer)
    assert piece["text"] == "\ufffd" and piece["ends"][-1] == 1


def test_an_image_is_stored_once(written, trajectories):
    question = trajectories[0].question
    names = sorted(path.name for path in (written / "pictures").iterdir())
    shown = {image for trajectory in trajectories for image in trajectory.question.images}
    shown |= {image for trajectory in trajectories for turn in trajectory.turns for image in turn.images}
    assert names == sorted(map(image_file_name, shown))
    assert (written / "pictures" / image_file_name(question.images[0])).read_bytes() == question.images[0]


def test_the_reader_steps_over_a_torn_line_and_the_next_writer_starts_a_fresh_one(written, trajectories, tokenizer):
    path = written / "train.jsonl"
    complete = path.read_bytes()
    path.write_bytes(complete[: len(complete) - 200])  # killed in the last line
    with pytest.warns(UserWarning, match="1 incomplete lines were skipped"):
        assert len(list(read_trajectories(written, "train"))) == len(trajectories) - 1
    with TrajectoryWriter(written, tokenizer) as writer:
        writer.write(trajectories[-1:], stage="train", step=3)
    with pytest.warns(UserWarning, match="1 incomplete lines were skipped"):
        assert [record["id"] for record in read_trajectories(written, "train")] == [t.id for t in trajectories]


def test_a_step_that_was_written_twice_is_read_once_the_newest(written, trajectories, tokenizer):
    with TrajectoryWriter(written, tokenizer) as writer:
        writer.write(trajectories, stage="train", step=3, advantages=[9.0] * 5)
        writer.write(trajectories[:1], stage="train", step=4, advantages=[8.0])
    advantages = [record["advantage"] for record in read_trajectories(written, "train")]
    assert advantages == [9.0] * 5 + [8.0]


def test_a_writer_killed_at_any_moment_leaves_complete_lines_and_images(tmp_path):
    """Catches a rewrite of the file, an image written in place, and a buffer held over many trajectories."""
    code = textwrap.dedent("""
        import sys
        from types import SimpleNamespace as N
        from dv2_jax.telemetry.trajectories import TrajectoryWriter
        tokenizer = N(id=lambda name: 999, token_bytes=lambda token: bytes([token]))
        writer = TrajectoryWriter(sys.argv[1], tokenizer)
        for step in range(10**6):
            image = b"\\x89PNG" + step.to_bytes(4, "big") * 100_000
            question = N(id="q", skill="s", data_source="reason", text="t", answer="a", verifier="text", images=(image,), meta={})
            trajectory = N(id=str(step), question=question, token_ids=[65] * 3000, loss_mask=[0, 1, 1] * 1000,
                           logprobs=[-0.1] * 3000, versions=[0] * 3000, images=[], turns=[], finish="answer",
                           dropped=False, reward=1.0, reward_parts={}, tool_calls=0)
            writer.write([trajectory], stage="train", step=step)
            if step == 5:
                print("going", flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"going\n"
        os.kill(process.pid, signal.SIGKILL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = list(read_trajectories(tmp_path, "train"))
    # Other threads of this process may warn meanwhile: only the reader's warnings are counted.
    incomplete = [str(warning.message) for warning in caught if "incomplete lines" in str(warning.message)]
    assert len(incomplete) <= 1 and all("1 incomplete lines were skipped" in message for message in incomplete)
    assert len(records) >= 6 and [record["step"] for record in records] == list(range(len(records)))
    for record in records:
        (name,) = record["question"]["pictures"]
        data = (tmp_path / "pictures" / name).read_bytes()
        assert image_file_name(data) == name


def test_misuse_is_refused_by_name(tmp_path, tokenizer, trajectories):
    writer = TrajectoryWriter(tmp_path, tokenizer)
    with pytest.raises(ValueError, match="5 trajectories but 1 advantages"):
        writer.write(trajectories, stage="train", advantages=[1.0])
    with pytest.raises(ValueError, match="stage '../x'"):
        writer.write(trajectories, stage="../x")
    assert not any(tmp_path.iterdir())


def test_lines_are_plain_json_and_stages_are_listed(written):
    assert stages(written) == ["train"]
    line = (written / "train.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(line)["format"] == 1


def test_a_record_holds_every_reference_of_a_benchmark(tmp_path, tokenizer, trajectories):
    """Catches an error class or an export that sees only the first of several accepted answers."""
    plain = trajectories[0]
    question = dataclasses.replace(plain.question, meta={"references": ["Paris", "Lutetia"]})
    writer = TrajectoryWriter(tmp_path, tokenizer)
    stored = writer.record(dataclasses.replace(plain, question=question))
    assert stored["question"]["references"] == ["Paris", "Lutetia"]
    assert "references" not in writer.record(plain)["question"]
