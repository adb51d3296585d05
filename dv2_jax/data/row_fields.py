"""Checks the fields of one row and converts it: every problem becomes an issue, none ends the check of the others.

The formats are those of the released data: RL rows with `prompt`, `images`, `reward_model`, `extra_info`,
`data_source`, and SFT rows with `messages`, `images`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dv2_jax.data.faults import Issue, clip, clip_text
from dv2_jax.data.images import ImageFile
from dv2_jax.data.question import DATA_SOURCES, VERIFIERS, Question

_ROLES = ("system", "user", "assistant")
_IMAGE_FORMS = '{"bytes": ...}, {"image": path} or a path'
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{200,}={0,2}\s*")
_ABSENT = object()


@dataclass(frozen=True)
class Conversation:
    """One supervised example, with images in the order of the `<image>` markers."""

    id: str
    messages: tuple[dict, ...]
    images: tuple[bytes, ...]


class RowReader:
    """Reads the fields of one row and collects issues. A getter returns None for a field that cannot be used."""

    def __init__(self, row: Mapping[str, Any], folder: Path):
        self.row, self.folder = row, folder
        self.issues: list[Issue] = []
        self.image_paths: list[str] = []  # image files that the row names, as written

    def add(self, kind: str, field: str, problem: str, fix: str) -> None:
        self.issues.append(Issue(kind, field, problem, fix))

    def wrong_type(self, field: str, value: Any, wanted: str, fix: str) -> None:
        found = "NaN" if _is_nan(value) else type(value).__name__
        self.add("wrong type", field, f"is {found} ({clip(value)}), not {wanted}", fix)

    def text(self, mapping: Mapping[str, Any], key: str, field: str, *, required: bool = True) -> str | None:
        """Returns a string field that can be encoded and is not blank."""
        value = mapping.get(key, _ABSENT)
        if value is _ABSENT or (value is None and not required):
            if required:
                self.add("missing field", field, f"field {field!r} is missing", "add it")
            return None
        if not isinstance(value, str):
            self.wrong_type(field, value, "a string", f'write it as text: "{clip(value, 20)}"')
            return None
        if required and not value.strip():
            self.add("bad value", field, "is blank", "fill it in")
            return None
        return value if self.encodable(value, field) else None

    def encodable(self, value: str, field: str) -> bool:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            character = f"U+{ord(value[error.start]):04X}"
            problem = f"a lone surrogate ({character}) at character {error.start}"
            self.add("encoding", field, problem, "remove it, or write both halves of the character")
            return False
        return True

    def mapping(self, key: str, *, required: bool) -> Mapping[str, Any]:
        value = self.row.get(key, _ABSENT)
        if isinstance(value, Mapping):
            return value
        if value is _ABSENT or value is None:
            if required:
                self.add("missing field", key, f"field {key!r} is missing", "add it")
        else:
            hint = "parse the JSON text first" if isinstance(value, str) else "write an object"
            self.wrong_type(key, value, "an object", hint)
        return {}

    def text_list(self, value: Any, field: str) -> list[str]:
        """Returns a list of texts: a list, or JSON text of one, as some files store it; adds an issue for anything else."""
        parsed = value
        if isinstance(value, str):
            try:
                parsed = json.loads(value)
            except ValueError:
                parsed = [value] if value.strip() else []
            parsed = parsed if isinstance(parsed, list) else [value]
        if parsed is None:
            return []
        if not isinstance(parsed, (list, tuple)) or not all(isinstance(item, (str, int, float)) for item in parsed):
            self.wrong_type(field, value, "a list of texts", f"write a list, not {clip(value, 40)}")
            return []
        return [str(item) for item in parsed if str(item).strip()]

    def messages(self, key: str) -> tuple[dict, ...] | None:
        value = self.row.get(key, _ABSENT)
        if value is _ABSENT or value is None:
            other = next((name for name in ("messages", "prompt", "conversations") if name in self.row), None)
            hint = f"rename {other!r}" if other and other != key else "add a list of {role, content}"
            self.add("missing field", key, f"field {key!r} is missing", hint)
            return None
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            self.wrong_type(key, value, "a list of messages", 'write [{"role": ..., "content": ...}, ...]')
            return None
        before = len(self.issues)
        found = [self._message(message, f"{key}[{index}]") for index, message in enumerate(value)]
        if len(self.issues) == before and not found:
            self.add("bad value", key, "is an empty list", "add the user's message")
        return tuple(found) if len(self.issues) == before else None

    def _message(self, message: Any, field: str) -> dict:
        if not isinstance(message, Mapping):
            self.wrong_type(field, message, "an object", 'write {"role": ..., "content": ...}')
            return {}
        hint = "rename from/value to role/content" if "from" in message else f"use one of {', '.join(_ROLES)}"
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            self.add("roles", f"{field}.role", f"role {clip(role)} is none of {', '.join(_ROLES)}", hint)
        if isinstance(content, str):
            self.encodable(content, f"{field}.content")
        else:
            fix = "write the text, with one <image> where each image belongs"
            self.wrong_type(f"{field}.content", content, "a string", fix)
        return {"role": role, "content": content}

    def images(self) -> tuple[bytes, ...] | None:
        """Returns the encoded images, not yet decoded."""
        if self.row.get("videos"):
            self.add("videos", "videos", "the row has videos, which are not supported", "give frames as images")
        value = self.row.get("images")
        if value is None:
            return ()
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            one = f"[{clip(value, 40)}]" if isinstance(value, str) and len(value) <= 40 else "[...]"
            self.wrong_type("images", value, "a list", f"write a list, also for one image: {one}")
            return None
        found = [self.image(image, f"images[{index}]") for index, image in enumerate(value)]
        return None if None in found else tuple(found)

    def image(self, value: Any, field: str) -> bytes | None:
        """Returns the encoded image of `{"bytes": ...}`, `{"image": path}`, bytes or a path."""
        if isinstance(value, Mapping):
            data, name = value.get("bytes"), value.get("image") or value.get("path")
            if isinstance(data, bytes):
                return self._not_empty(data, field)
            if isinstance(data, str):
                return self._base64(data, field)
            if data is not None:
                self.wrong_type(f"{field}.bytes", data, "bytes or base64 text", f"an image is {_IMAGE_FORMS}")
                return None
            value = name
        if isinstance(value, bytes):
            return self._not_empty(value, field)
        if isinstance(value, str):
            return self._image_file(value, field)
        problem = f"is {type(value).__name__} ({clip(value)}), no image"
        self.add("image", field, problem, f"an image is {_IMAGE_FORMS}")
        return None

    def _not_empty(self, data: bytes, field: str) -> bytes | None:
        if data:
            return data
        self.add("image", field, "has no bytes", "write the image's file content, or leave the row out")
        return None

    def _base64(self, text: str, field: str) -> bytes | None:
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            return self._not_empty(base64.b64decode(text, validate=True), field)
        except (binascii.Error, ValueError) as error:
            problem = f"bytes is not base64 ({clip_text(str(error))}): {clip(text)}"
            self.add("image", field, problem, "encode the file with base64.b64encode")
            return None

    def _image_file(self, name: str, field: str) -> bytes | None:
        if is_base64_text(name):
            problem = f"base64 text where a path belongs: {clip(name)}"
            self.add("image", field, problem, 'write {"bytes": text}')
            return None
        if re.match(r"https?://", name):
            self.add("image", field, f"is a URL: {clip(name)}", "download it and give the path of the file")
            return None
        name = name.removeprefix("file://")
        self.image_paths.append(name)
        try:
            image = ImageFile.read(self.folder / name)
        except (OSError, ValueError) as error:  # ValueError: a null character
            reason = clip_text(getattr(error, "strerror", None) or str(error))
            problem = f"cannot read {clip(name, 200)}: {reason}"
            self.add("image", field, problem, f"paths are relative to {self.folder}")
            return None
        return self._not_empty(image, field)

    def no_nan(self, value: Any, field: str) -> None:
        """Adds an issue for every number in `value` that is not finite, and for text that cannot be encoded."""
        if isinstance(value, float) and not math.isfinite(value):
            self.add("NaN", field, f"is {value}, which is no JSON number", "write null or a number")
        elif isinstance(value, str):
            self.encodable(value, field)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self.no_nan(item, f"{field}.{clip_text(str(key), 40)}")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                self.no_nan(item, f"{field}[{index}]")


def is_base64_text(text: str) -> bool:
    """Returns whether a text is an image in base64, with or without the head of a data URL, and no path."""
    return text.startswith("data:") or _BASE64.fullmatch(text) is not None


def parse_question(row: Mapping[str, Any], id_: str, reader: RowReader) -> Question | None:
    """Returns the question of an RL row; None if `reader` has collected issues."""
    source = row.get("data_source")
    if source not in DATA_SOURCES:
        problem = f"data_source {clip(source)} is none of {', '.join(DATA_SOURCES)}"
        reader.add("bad value", "data_source", problem, "choose the one whose reward arithmetic applies")
    messages = reader.messages("prompt")
    if messages is not None:
        _check_prompt(messages, "prompt", reader)
    extra = dict(reader.mapping("extra_info", required=False))
    reader.no_nan({key: value for key, value in extra.items() if key not in ("question", "skill")}, "extra_info")
    reward_model = reader.mapping("reward_model", required=True)
    truth = None
    if isinstance(row.get("reward_model"), Mapping):
        truth = reader.text(reward_model, "ground_truth", "reward_model.ground_truth")
    text = reader.text(extra, "question", "extra_info.question", required=False)
    skill = reader.text(extra, "skill", "extra_info.skill", required=False)
    verifier = extra.get("verifier")
    if verifier and verifier not in VERIFIERS:
        problem = f"verifier {clip(verifier)} is none of {', '.join(VERIFIERS)}"
        reader.add("bad value", "extra_info.verifier", problem, "choose one, or leave it out")
    _check_answer_options(extra, reader)
    images = reader.images()
    if reader.issues:
        return None
    return Question(
        id=id_,
        skill=skill or source,
        data_source=source,
        text=text or next(m["content"] for m in reversed(messages) if m["role"] == "user"),
        images=images,
        answer=truth,
        verifier=verifier or default_verifier(source, truth),
        messages=messages,
        meta=extra,
    )


def parse_conversation(row: Mapping[str, Any], id_: str, reader: RowReader) -> Conversation | None:
    """Returns the conversation of an SFT row; None if `reader` has collected issues."""
    messages = reader.messages("messages")
    if messages is not None:
        _check_dialogue(messages, reader)
    images = reader.images()
    return None if reader.issues else Conversation(id_, messages, images)


def default_verifier(source: str, truth: str) -> str:
    """Chooses the verifier for rule-based grading, because released rows do not name one."""
    if source == "reason":
        return "math"
    return "choice" if len(truth.strip()) == 1 and truth.strip().isalpha() else "text"


def _check_answer_options(extra: Mapping[str, Any], reader: RowReader) -> None:
    """Checks the options of the verifiers: `aliases`, `choices`, `tolerance`, `relative_tolerance`, `unit`."""
    aliases = extra.get("aliases")
    if aliases is not None and not isinstance(aliases, str) and not _is_list_of_text(aliases):
        reader.wrong_type("extra_info.aliases", aliases, "a list of strings", "write every alias as text")
    choices = extra.get("choices")
    if choices is not None and not isinstance(choices, Mapping) and not _is_list_of_text(choices):
        fix = "write a list of wordings, or a mapping from label to wording"
        reader.wrong_type("extra_info.choices", choices, "a list or a mapping", fix)
    for name in ("tolerance", "relative_tolerance"):
        value = extra.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and (not is_number or value < 0):
            field = f"extra_info.{name}"
            reader.add("bad value", field, f"is {clip(value)}, no number >= 0", "write a number >= 0, or leave it out")
    unit = extra.get("unit")
    if unit is not None and not isinstance(unit, str):
        reader.wrong_type("extra_info.unit", unit, "a string", "write the unit's symbol")


def _check_prompt(messages: Sequence[dict], field: str, reader: RowReader) -> None:
    """Checks the messages up to the policy's first turn: at most one system message, first; a user message, last."""
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        reader.add("roles", field, f"has no user message: roles are {clip_text(str(roles))}", "add the question")
    elif roles[-1] != "user":
        fix = "remove what follows the question"
        reader.add("roles", field, f"ends with the role {roles[-1]!r}, not with the user's question", fix)
    elif not messages[-1]["content"].strip():
        reader.add("bad value", f"{field}[{len(messages) - 1}].content", "is blank", "write the question")
    if "system" in roles[1:]:
        index = roles.index("system", 1)
        reader.add("roles", f"{field}[{index}].role", "a system message that is not the first", "move it to the front")


def _check_dialogue(messages: Sequence[dict], reader: RowReader) -> None:
    """Checks a conversation: a prompt, then assistant and user in turns, and the assistant last."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        reader.add("roles", "messages", "has no assistant message to train on", "add the answer, or leave the row out")
        return
    start = roles.index("assistant")
    if start == 0:
        reader.add("roles", "messages", "has no user message before the assistant's", "add the question")
    else:
        _check_prompt(messages[:start], "messages", reader)
    expected = (["assistant", "user"] * len(roles))[: len(roles) - start]
    wrong = [i for i, (found, wanted) in enumerate(zip(roles[start:], expected, strict=True), start) if found != wanted]
    if wrong:
        problem = f"role {roles[wrong[0]]!r} where {expected[wrong[0] - start]!r} must follow"
        reader.add("roles", f"messages[{wrong[0]}].role", problem, "assistant and user messages must alternate")
    elif roles[-1] != "assistant":
        reader.add("roles", "messages", f"ends with the role {roles[-1]!r}", "end with the assistant's message")
    for index, message in enumerate(messages[start:], start):
        if message["role"] == "assistant" and not message["content"].strip():
            reader.add("bad value", f"messages[{index}].content", "is blank", "write the assistant's turn")


def _is_list_of_text(value: Any) -> bool:
    return (
        isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and all(isinstance(v, str) for v in value)
    )


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
