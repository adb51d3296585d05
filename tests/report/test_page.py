"""Tests the report page: self-contained, exact about tokens, safe against markup of policies and websites."""

import base64
import dataclasses
import io
import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from dv2_jax.config import Config
from dv2_jax.data.question import Question
from dv2_jax.report.page import render, write_report
from dv2_jax.telemetry.trajectories import TrajectoryWriter, read_trajectories

VOID = {"meta", "img", "br", "input", "line", "polyline", "link", "circle"}


class Page(HTMLParser):
    """Checks that elements nest, and collects what the tests ask for."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.stack, self.tokens, self.images, self.cards, self.addresses = [], [], [], [], []
        self.scripts, self.blob, self._in_token, self._blob = 0, "", False, False
        self.feed(text)
        self.close()
        assert not self.stack, self.stack

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert not [name for name in attrs if name.startswith("on")], attrs
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "i" and "title" in attrs:
            self.tokens.append([attrs["title"], ""])
            self._in_token = True
        if "data-image" in attrs:
            self.images.append(attrs["data-image"])
        if tag == "details" and "data-skill" in attrs:
            self.cards.append(attrs)
        self.scripts += tag == "script"
        self._blob = attrs.get("id") == "images"
        self.addresses += [attrs[name] for name in ("src", "href") if name in attrs]

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack.pop() == tag
        if tag == "i":
            self._in_token = False
        self._blob = False

    def handle_data(self, data):
        if self._in_token:
            self.tokens[-1][1] += data
        if self._blob:
            self.blob += data


def _summary(n: int = 5) -> dict:
    row = {
        "accuracy": 0.8,
        "tool_calls": 1.0,
        "tool_rate": 0.8,
        "reward": 0.85,
        "n": n,
        "accuracy_interval": [0.4, 0.9],
    }
    row["tool_kinds"] = {"crop": 0.5, "numerical": 0.25, "mark": 0, "other": 0, "image_search": 0, "search": 0.25}
    return {"overall": row, "perception": row}


@pytest.fixture
def run_dir(tmp_path, tokenizer, trajectories):
    rows = [dataclasses.replace(trajectory) for trajectory in trajectories]
    for row in rows:
        right = f"<answer>{row.question.answer}</answer>" in row.turns[-1].text
        row.reward, row.reward_parts = 0.2 + 0.8 * right, {"accuracy": float(right), "format": 1.0, "penalty": 0.0}
    with TrajectoryWriter(tmp_path / "trajectories", tokenizer) as writer:
        writer.write(rows, stage="rl")
        writer.write(rows, stage="train", step=1, advantages=[1.0, -1.0, 0.5, 0.0, -0.5])
    (tmp_path / "config.json").write_text(json.dumps(Config().to_dict()))
    guessing = {"overall": 0.1, "perception": 0.1}  # a share per skill: not a stage
    summary = {
        "base": _summary(),
        "rl": _summary(),
        "guessing": guessing,
        "logprob_gap_max": 2e-6,
        "recompilations": 0,
        "seconds": 754.0,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    lines = [json.dumps({"step": step, "reward": 0.1 * step, "tool_calls/plain": 1.5}) for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 6, "rew']))
    return tmp_path


def test_the_page_nests_and_needs_nothing_from_outside(run_dir):
    path = write_report(run_dir)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == run_dir / "report" / "index.html"
    assert [address for address in page.addresses if not address.startswith("https://example.org")] == []
    assert "url(" not in text and "@import" not in text and "<link" not in text
    assert "754" not in text and "12 min 34 s" in text and "2.0e-06" in text
    assert text.count('<polyline class="raw') == 2  # reward and calls; the torn line is left out


def test_every_token_that_was_trained_on_is_there_with_its_log_prob(run_dir):
    page = Page(render(run_dir))
    for stage in ("rl", "train"):
        for record in read_trajectories(run_dir / "trajectories", stage):
            model = "".join(piece["text"] for piece in record["segments"] if piece["role"] == "model")
            size = len(record["logprobs"])
            starts = range(len(page.tokens) - size + 1)
            found = [i for i in starts if "".join(text for _, text in page.tokens[i : i + size]) == model]
            tips = [[tip for tip, _ in page.tokens[i : i + size]] for i in found]
            wanted = [f"log p {logprob:.3f} " for logprob in record["logprobs"]]
            assert any(all(tip.startswith(w) for tip, w in zip(row, wanted, strict=True)) for row in tips), record["id"]


def test_images_are_embedded_once_and_small_ones_keep_every_pixel(run_dir, trajectories):
    page = Page(render(run_dir))
    embedded = json.loads(page.blob)
    assert set(page.images) == set(embedded) and len(page.images) > len(embedded)
    crop = trajectories[0].turns[0].images[0]
    sizes = {}
    for name, uri in embedded.items():
        with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
            sizes[name] = image.size
            if image.size == (40, 40):
                assert image.convert("RGB").tobytes() == Image.open(io.BytesIO(crop)).convert("RGB").tobytes()
    assert (40, 40) in sizes.values() and max(max(size) for size in sizes.values()) == 640


def test_cards_say_outcome_tools_and_the_sign_of_the_advantage(run_dir):
    cards = Page(render(run_dir)).cards
    rl = [card for card in cards if card["data-stage"] == "after RL"]
    assert {card["data-skill"] for card in rl} == {"perception", "reasoning", "search", "plain"}
    assert [card["data-outcome"] for card in rl if card["data-skill"] == "perception"] == ["right", "wrong"]
    assert {card["data-tools"] for card in rl} == {"code", "search", "none"}
    train = [card for card in cards if card["data-stage"] == "RL, step 1"]
    assert [card["class"] for card in train if card["data-skill"] == "perception"] == ["card up", "card down"]


def test_stages_have_the_titles_of_the_summary(run_dir, tokenizer, trajectories):
    """Catches: a policy shown under its name in files, and RL from another policy that is titled as a cold start."""
    for trajectory in trajectories:
        trajectory.reward, trajectory.reward_parts = 0.0, {"accuracy": 0.0, "format": 1.0, "penalty": 0.0}
    with TrajectoryWriter(run_dir / "trajectories", tokenizer) as writer:
        writer.write(trajectories, stage="initial")
        writer.write(trajectories, stage="final")
    listed = [("initial", "sft-smol"), ("final", "RL")]
    summary = {name: _summary() for name, _ in listed}
    summary["stages"] = [{"name": name, "title": title, "init": ""} for name, title in listed]
    (run_dir / "summary.json").write_text(json.dumps(summary))
    text = render(run_dir)
    assert "accuracy, sft-smol → RL" in text and "cold start" not in text
    assert {"sft-smol", "after RL", "RL, step 1"} <= {card["data-stage"] for card in Page(text).cards}


def test_text_of_others_stays_text(tmp_path, tokenizer, make, parts):
    """Catches markup in a question, in what the policy wrote, in a search result and in its address."""
    bad = '</pre><script>alert(1)</script><img src=x onerror="alert(1)">'
    question = Question("q", "search", "search", bad, (), bad)
    items = (parts.Item(bad, "javascript:alert(1)", bad), parts.Item("x", 'https://e.org/"onclick="alert(1)', bad))
    trajectory = make(
        question, [(parts.SEARCH, parts.Result(items=items)), (f"{bad}</think>\n<answer>{bad}</answer>", None)]
    )
    trajectory.reward, trajectory.reward_parts = 0.0, {"accuracy": 0.0, "format": 0.0, "penalty": 0.0}
    with TrajectoryWriter(tmp_path / "trajectories", tokenizer) as writer:
        writer.write([trajectory], stage="evaluate")
    page = Page(render(tmp_path))
    assert page.scripts == 2  # the page's own
    assert page.addresses == []


def test_a_run_that_has_only_begun_has_a_page_too(tmp_path):
    Page(render(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such run directory"):
        write_report(tmp_path / "missing")


def test_the_command_writes_the_page_without_loading_jax(run_dir):
    code = "import sys; from dv2_jax.report.__main__ import main; main(sys.argv[1:]); assert 'jax' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code, str(run_dir)], check=True, capture_output=True, text=True).stdout
    assert out.strip() == str(run_dir / "report" / "index.html")
