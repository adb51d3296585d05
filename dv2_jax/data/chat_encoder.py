"""ChatML as ids: the one place where dialogue, pictures and control tokens become a sequence.

Control tokens enter here by id and never by text, so nothing that a question or a tool says can end a turn or
stand for a picture. The rollout appends with the same functions (``agent.splice``) with which ``encode_messages``
reads a stored conversation; a trajectory therefore has the same ids in both.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from dv2_jax.config import ImageConfig
from dv2_jax.data.images import preprocess
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.model.vision_inputs import merged_tokens

IMAGE_MARKER = "<image>"  # where a picture stands in a message's text
DEFAULT_SYSTEM = "You are a helpful assistant."  # what Qwen's template puts where a system message is missing
_TURN_ENDS = ("</code>", "</tool_call>")  # generation stops here; the environment closes the turn


@dataclass(frozen=True, eq=False)
class PictureInput:
    """One picture as the vision tower takes it. ``digest`` names its content: equal digests, equal arrays."""

    digest: str
    patches: Float[np.ndarray, "P 1176"]
    grid: tuple[int, int, int]  # (1, rows, columns) in patches

    @property
    def tokens(self) -> int:
        """Placeholders that the picture takes in the sequence."""
        return merged_tokens(self.grid)


@dataclass(frozen=True)
class Segment:
    """Ids to append, with the pictures of their placeholders in order."""

    token_ids: tuple[int, ...]
    images: tuple[PictureInput, ...] = ()


@dataclass
class ChatExample:
    """A conversation ready for supervised training; ``loss_mask`` is 1 on what the assistant said."""

    id: str
    token_ids: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    pictures: list[PictureInput] = field(default_factory=list)

    def extend(self, token_ids: Sequence[int], trained: bool) -> None:
        self.token_ids.extend(token_ids)
        self.loss_mask.extend([int(trained)] * len(token_ids))


_SPELLED_OUT = re.compile(r"<(\|[a-z_]+\|>|/?(?:image|video|think|code|answer|tool_call|tool_response)>)")


def neutral(text: str) -> str:
    """What a tool returned, with nothing in it that means something to us: ``<|im_end|>`` → ``< |im_end|>``.

    Control tokens, picture markers and the protocol's tags get a space. Ids are safe without it
    (`Tokenizer.encode_untrusted`); it keeps the *text* of a trajectory safe too. There, ``<image>`` stands for a
    real picture, the rewards count tags, and others may render and tokenize it again.
    """
    return _SPELLED_OUT.sub(r"< \1", text)


class ChatEncoder:
    """Pieces of a dialogue to segments of ids. Pure but for decoding pictures."""

    def __init__(self, tokenizer: Tokenizer, image: ImageConfig):
        self.tokenizer = tokenizer
        self.image = image
        self.im_start = tokenizer.id("<|im_start|>")
        self.im_end = tokenizer.id("<|im_end|>")
        self._newline = tokenizer.encode("\n")
        # The samples of a group ask with the same picture, one after the other.
        self.picture = functools.lru_cache(maxsize=32)(self._picture)

    def _picture(self, encoded: bytes) -> PictureInput:
        """Patches of an encoded picture at the model's resolution."""
        patches, grid = preprocess(encoded, min_pixels=self.image.min_pixels, max_pixels=self.image.max_pixels)
        view = f"{self.image.min_pixels}:{self.image.max_pixels}:".encode()
        return PictureInput(hashlib.sha256(view + encoded).hexdigest()[:24], patches, tuple(map(int, grid)))

    def text(self, text: str, *, trusted: bool) -> list[int]:
        return self.tokenizer.encode(text) if trusted else self.tokenizer.encode_untrusted(text)

    def body(self, text: str, pictures: Sequence[PictureInput], *, trusted: bool) -> list[int]:
        """Ids of text with one ``<image>`` per picture.

        Raises:
            ValueError: where markers and pictures differ in number.
        """
        parts = text.split(IMAGE_MARKER)
        if len(parts) - 1 != len(pictures):
            raise ValueError(f"{len(parts) - 1} {IMAGE_MARKER} markers for {len(pictures)} pictures in {text[:80]!r}")
        ids = self.text(parts[0], trusted=trusted)
        for picture, part in zip(pictures, parts[1:], strict=True):
            ids.append(self.tokenizer.id("<|vision_start|>"))
            ids.extend([self.tokenizer.id("<|image_pad|>")] * picture.tokens)
            ids.append(self.tokenizer.id("<|vision_end|>"))
            ids.extend(self.text(part, trusted=trusted))
        return ids

    def message(
        self, role: str, text: str, pictures: Sequence[PictureInput] = (), *, trusted: bool = True
    ) -> list[int]:
        """``<|im_start|>role\\n{text}<|im_end|>\\n``."""
        # The template's "user\n" and the text are one run between control tokens: tokenized together, as Qwen does.
        body = self.body(f"{role}\n{text}", pictures, trusted=trusted)
        return [self.im_start, *body, self.im_end, *self._newline]

    def prompt(self, messages: Sequence[dict], pictures: Sequence[PictureInput]) -> Segment:
        """System and user messages and the opening of the first assistant turn."""
        ids: list[int] = []
        if not messages or messages[0]["role"] != "system":
            ids += self.message("system", DEFAULT_SYSTEM)
        used = 0
        for message in messages:
            count = message["content"].count(IMAGE_MARKER)
            ids += self.message(message["role"], message["content"], pictures[used : used + count])
            used += count
        if used != len(pictures):
            raise ValueError(f"{len(pictures)} pictures but {used} {IMAGE_MARKER} markers in the prompt")
        return Segment((*ids, *self.opening("")), tuple(pictures))

    def opening(self, prefill: str) -> list[int]:
        """``<|im_start|>assistant\\n{prefill}``."""
        return [self.im_start, *self.tokenizer.encode(f"assistant\n{prefill}")]

    def assistant(self, text: str) -> list[int]:
        """A whole assistant turn as the policy would sample it: to its stop string, or to ``<|im_end|>``."""
        if text.rstrip().endswith(_TURN_ENDS):
            return self.tokenizer.encode(text.rstrip())
        return [*self.tokenizer.encode(text), self.im_end]

    def reply(self, text: str, pictures: Sequence[PictureInput], *, prefill: str) -> Segment:
        """What follows an assistant turn when a tool has answered (spec 2.5).

        ``<|im_end|>\\n<|im_start|>user\\n{text}<|im_end|>\\n<|im_start|>assistant\\n{prefill}``
        """
        user = self.message("user", text, pictures, trusted=False)
        return Segment((self.im_end, *self._newline, *user, *self.opening(prefill)), tuple(pictures))


def after(token_ids: Sequence[int], segment: Segment, im_end: int) -> Segment:
    """``segment`` without its leading ``<|im_end|>`` where ``token_ids`` already end with one."""
    return replace(segment, token_ids=segment.token_ids[1:]) if token_ids[-1] == im_end else segment


def encode_messages(
    messages: Sequence[dict],
    images: Sequence[bytes],
    encoder: ChatEncoder,
    *,
    example_id: str = "",
) -> ChatExample:
    """A stored conversation (spec 5.4) as the rollout would have built it.

    Everything up to the first assistant message is the prompt. Every later user message is a tool's answer:
    untrusted and masked. Where the assistant goes on with ``<think>`` after a tool's answer, that tag is the
    environment's (masked). An assistant turn is trained with its ``<|im_end|>``, except where generation stops
    at ``</code>`` or ``</tool_call>`` and the environment adds it.

    Raises:
        ValueError: roles out of order, or markers and pictures that differ in number.
    """
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise ValueError(f"conversation {example_id!r} has no assistant message")
    start = roles.index("assistant")
    expected = ["assistant", "user"] * len(roles)
    if roles[start:] != expected[: len(roles) - start] or roles[-1] != "assistant":
        raise ValueError(f"conversation {example_id!r}: roles {roles} do not alternate and end with the assistant")
    pictures = [encoder.picture(image) for image in images]
    markers = [message["content"].count(IMAGE_MARKER) * (message["role"] != "assistant") for message in messages]
    if sum(markers) != len(pictures):
        raise ValueError(f"conversation {example_id!r}: {sum(markers)} {IMAGE_MARKER} markers, {len(pictures)} images")

    used = sum(markers[:start])
    example = ChatExample(example_id, pictures=pictures)
    example.extend(encoder.prompt(messages[:start], pictures[:used]).token_ids, trained=False)
    prefill = ""
    for index in range(start, len(messages), 2):
        text = messages[index]["content"].removeprefix(prefill)
        example.extend(encoder.assistant(text), trained=True)
        if index + 1 == len(messages):
            break
        prefill = "<think>" if messages[index + 2]["content"].startswith("<think>") else ""
        shown = pictures[used : used + markers[index + 1]]
        used += markers[index + 1]
        reply = encoder.reply(messages[index + 1]["content"], shown, prefill=prefill)
        example.extend(after(example.token_ids, reply, encoder.im_end).token_ids, trained=False)
    return example
