"""Renders one trajectory record as an HTML card, from question to reward."""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from html import escape

from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String, _TokenType

from dv2_jax.agent.tools.base import NOT_TOOLS, RESPONSE_TAG
from dv2_jax.agent.tools.tool_registry import default_tools, find_tool, protocol_tags
from dv2_jax.telemetry.stage_titles import trajectory_title
from dv2_jax.telemetry.trajectories import IMAGE_MARK

_CODE = re.compile(r"(?<=```python\n)(.*?)(?=\n?```|\Z)", re.DOTALL)
_LINK = re.compile(
    r"\[([^\]\n]+)\] ?\((https?://[^)\s\"'<>]*)\)"
)  # search results are untrusted: link only http(s) URLs
_COLORS: tuple[tuple[_TokenType, str], ...] = (
    (Comment, "c"), (String, "s"), (Number, "m"), (Keyword, "k"), (Operator.Word, "k"),
    (Name.Builtin, "b"), (Name.Function, "f"), (Name.Class, "f"),
)  # fmt: skip


def record_title(record: dict, titles: Mapping[str, str]) -> str:
    """Returns the title of a record's stage, with the step of training records. `titles` are those of the summary."""
    title = trajectory_title(record["stage"], titles)
    return title if record.get("step") is None else f"{title}, step {record['step']}"


def outcome(record: dict) -> str:
    """Classifies a record as `right`, `wrong`, or `lost` (dropped after an infrastructure failure)."""
    if record["dropped"]:
        return "lost"
    return "right" if record["reward_parts"].get("accuracy", 0) > 0.5 else "wrong"


def tools_of(record: dict) -> list[str]:
    """Returns the names of the tools that a record called, in alphabetical order, or `none`."""
    return sorted({turn["kind"] for turn in record["turns"]} - set(NOT_TOOLS)) or ["none"]


@functools.cache
def _marker(tags: tuple[str, ...], *, escaped: bool) -> re.Pattern[str]:
    """Returns a pattern of control tokens, code fences, and the tags of the protocol and of `tags`."""
    pattern = rf"<\|[a-z_]+\|>|</?(?:{'|'.join(('think', 'answer', *tags))})>|```(?:python)?"
    return re.compile(pattern.replace("<", "&lt;").replace(">", "&gt;") if escaped else pattern)


def _tags(record: dict) -> tuple[str, ...]:
    """Returns the tags of all registered tools that this record may contain."""
    found = {turn["kind"]: find_tool(turn["kind"]) for turn in record["turns"]}
    return protocol_tags([*default_tools(), *(tool for tool in found.values() if tool is not None)])


def card(record: dict, image: Callable[[str, str], str], titles: Mapping[str, str]) -> str:
    """Renders a record as a collapsed `<details>` element.

    `image(file name, caption)` returns the HTML of a stored image; `{size}` in a caption is replaced by its size.
    """
    question, result = record["question"], outcome(record)
    stage = escape(record_title(record, titles))
    sign = _sign(record.get("advantage"))
    calls = record["tool_calls"]
    facts = [f'<span class="chip">{stage}</span>']
    facts.append(f"<span>{calls} tool call{'s' * (calls != 1)}</span>" if calls else "<span>no tools</span>")
    if record["reward"] is not None:
        facts.append(f"<span>reward {record['reward']:.2f}</span>")
    if record.get("advantage") is not None:
        facts.append(f'<span class="adv {sign}">advantage {record["advantage"]:+.2f}</span>')
    mark = {"right": "✓", "wrong": "✗", "lost": "–"}[result]
    return (
        f'<details class="card {sign}" data-stage="{stage}" data-outcome="{result}"'
        f' data-skill="{escape(question["skill"])}" data-tools="{" ".join(tools_of(record))}">'
        f'<summary><span class="mark {result}">{mark}</span><span class="skill">{escape(question["skill"])}</span>'
        f'<span class="ask">{escape(_one_line(question["text"]))}</span><span class="facts">{"".join(facts)}</span>'
        f'</summary><div class="body">{_question(record, image)}{transcript(record, image)}</div></details>'
    )


def _question(record: dict, image: Callable[[str, str], str]) -> str:
    question = record["question"]
    views = record["views"]
    images = []
    for index, name in enumerate(question["pictures"]):
        seen = f"; the model saw {_view_size(views[index])}" if index < len(views) else ""
        images.append(image(name, f"image_{index + 1}, {{size}}{seen}"))
    rows = [("expected", question["answer"]), ("answered", _final_answer(record) or "–")]
    reward_parts = {name: value for name, value in record["reward_parts"].items() if name != "total"}
    rows += [(name.replace("_", " "), _number(value)) for name, value in reward_parts.items()]
    rows.append(("reward", "–" if record["reward"] is None else f"{record['reward']:.2f}"))
    if record.get("advantage") is not None:
        rows.append(("advantage", f"{record['advantage']:+.3f}"))
    sampled, tokens = len(record["logprobs"]), len(record["token_ids"])
    if not tokens and (answer := record.get("answer")):  # of an endpoint
        sampled = answer["completion_tokens"]
        tokens = answer["prompt_tokens"] + sampled
    rows += [("ended by", str(record["finish"]).replace("_", " ")), ("tokens", str(tokens))]
    rows.append(("… of the policy", str(sampled)))
    if record["versions"]:
        low, high = min(record["versions"]), max(record["versions"])
        rows.append(("policy version", str(low) if low == high else f"{low}–{high}"))
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return (
        f'<aside><p class="question">{escape(question["text"])}</p>{"".join(images)}'
        f'<table class="parts">{table}</table></aside>'
    )


def transcript(record: dict, image: Callable[[str, str], str]) -> str:
    """Renders the segments of a record, token by token; records of endpoints have turns instead, without token ids."""
    if not record["segments"]:
        return _turns(record, image)
    names = iter(record["question"]["pictures"] + [name for turn in record["turns"] for name in turn["pictures"]])
    logprobs, versions = iter(record["logprobs"]), iter(record["versions"])
    parts, turn_number, tags = [], 0, _tags(record)
    trained = record.get("advantage") is not None  # records of evaluations have no advantage
    for piece in record["segments"]:
        count = piece["end"] - piece["start"]
        if piece["role"] == "model":
            turn = record["turns"][turn_number] if turn_number < len(record["turns"]) else None
            turn_number += 1
            scores = [(next(logprobs), next(versions)) for _ in piece["ends"]]
            label = f"turn {turn_number} · {_kind(turn)} · {count} tokens{', trained on' * trained}"
            parts.append(f'<section class="model"><h4>{label}</h4><pre>{_tokens(piece, scores, tags)}</pre></section>')
        else:
            shown, inline = _context(piece["text"], names, image, tags)
            label = f"{count} tokens{', not trained on' * trained}"
            if piece["role"] == "prompt":
                parts.append(f'<details class="context"><summary>prompt · {label}</summary>{shown}</details>')
            else:
                turn = record["turns"][turn_number - 1] if 0 < turn_number <= len(record["turns"]) else None
                parts.append(
                    f'<section class="context"><h4>{_observation_label(turn)} · {label}</h4>'
                    f'<div class="side-by-side">{shown}{inline}</div></section>'
                )
    return f'<div class="transcript">{"".join(parts)}</div>'


def _turns(record: dict, image: Callable[[str, str], str]) -> str:
    """Renders the turns of a record whose token ids are not known."""
    parts, tags = [], _tags(record)
    for number, turn in enumerate(record["turns"], 1):
        body = _marker(tags, escaped=True).sub(r'<b class="tag">\g<0></b>', escape(turn["text"], quote=False))
        parts.append(f'<section class="model"><h4>turn {number} · {_kind(turn)}</h4><pre>{body}</pre></section>')
        if turn["observation"] or turn["pictures"]:
            marks = IMAGE_MARK * (len(turn["pictures"]) - turn["observation"].count(IMAGE_MARK))
            shown, inline = _context(turn["observation"] + marks, iter(turn["pictures"]), image, tags)
            parts.append(
                f'<section class="context"><h4>{_observation_label(turn)}</h4>'
                f'<div class="side-by-side">{shown}{inline}</div></section>'
            )
    return f'<div class="transcript">{"".join(parts)}</div>'


def _tokens(piece: dict, scores: list[tuple[float, int]], tags: tuple[str, ...]) -> str:
    """Renders the text of a model segment, one element per token, split further where the syntax color changes."""
    text, out, start = piece["text"], [], 0
    colors = _coloring(text, tags)
    borders = [begin for begin, _ in colors]
    for end, (logprob, version) in zip(piece["ends"], scores, strict=True):
        inner, at = [], start
        while at < end:
            index = bisect_right(borders, at) - 1
            stop = min(end, borders[index + 1]) if index + 1 < len(borders) else end
            css, fragment = colors[index][1], escape(text[at:stop])
            inner.append(f'<b class="{css}">{fragment}</b>' if css else fragment)
            at = stop
        surprise = min(1.0, -logprob / 3.0)
        tip = f"log p {logprob:.3f} · p {2.718281828459045**logprob:.1%} · version {version}"
        out.append(f'<i title="{tip}" style="--t:{surprise:.2f}">{"".join(inner)}</i>')
        start = end
    return "".join(out)


def _coloring(text: str, tags: tuple[str, ...]) -> list[tuple[int, str]]:
    """Returns the start of each syntax color as ascending [(offset, CSS class or "")], beginning at offset 0."""
    marks: list[tuple[int, str]] = [(0, "")]
    for match in _marker(tags, escaped=False).finditer(text):
        marks += [(match.start(), "tag"), (match.end(), "")]
    for match in _CODE.finditer(text):
        marks = [mark for mark in marks if not match.start() <= mark[0] < match.end()]
        at = match.start()
        for token, value in PythonLexer(stripnl=False, ensurenl=False).get_tokens(match.group()):
            marks.append((at, next((css for family, css in _COLORS if token in family), "")))
            at += len(value)
        marks.append((match.end(), "tag" if text.startswith("```", match.end()) else ""))
    return sorted(dict(marks).items())


def _context(
    text: str, names: Iterator[str], image: Callable[[str, str], str], tags: tuple[str, ...]
) -> tuple[str, str]:
    """Renders the text of a prompt or observation, and its images."""
    shown = []
    for _ in range(text.count(IMAGE_MARK)):
        name = next(names, None)
        shown.append(image(name, "{size}") if name else '<span class="missing">image not stored</span>')
    body = escape(text, quote=False)
    body = _LINK.sub(r'<a href="\2" rel="noreferrer">\1</a>', body) if RESPONSE_TAG in text else body
    body = _marker(tags, escaped=True).sub(r'<b class="tag">\g<0></b>', body)
    body = body.replace(IMAGE_MARK, '<b class="tag">⟨image⟩</b>')
    return f"<pre>{body}</pre>", f'<div class="shots">{"".join(shown)}</div>' if shown else ""


def _kind(turn: dict | None) -> str:
    if turn is None:
        return "cut off"
    tool = find_tool(turn["kind"])
    return tool.verb if tool is not None else {"answer": "answers"}.get(turn["kind"], str(turn["kind"]))


def _observation_label(turn: dict | None) -> str:
    if turn is None:
        return "observation"
    status = "" if turn["status"] in ("", "ok") else f" · {str(turn['status']).replace('_', ' ')}"
    return f"tool answers after {turn['wall_ms']:.0f} ms{status}" if turn["wall_ms"] else f"tool answers{status}"


def _final_answer(record: dict) -> str:
    found = re.findall(r"<answer>(.*?)</answer>", record["turns"][-1]["text"] if record["turns"] else "", re.DOTALL)
    return found[0].strip() if found else ""


def _view_size(view: dict) -> str:
    _, rows, columns = view["grid"]
    return f"{columns * 14} × {rows * 14}"


def _sign(advantage: float | None) -> str:
    return "" if not advantage else "up" if advantage > 0 else "down"


def _one_line(text: str) -> str:
    return " ".join(text.replace("<image>", "").split())


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
