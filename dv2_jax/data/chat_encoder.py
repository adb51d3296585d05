"""Encodes ChatML dialogues as token ids: the only place where text, images and control tokens become a sequence.

Control tokens are inserted by id and never parsed from text, so no text of a question or a tool can end a turn or
act as an image placeholder. The rollout (through `agent.prompt_encoder`) and `encode_conversation`, which reads
stored conversations, use the same functions, so a trajectory has the same ids in both.
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
from dv2_jax.model.image_grid import num_image_tokens

IMAGE_MARKER = "<image>"  # marks the position of an image in a message's text
DEFAULT_SYSTEM = "You are a helpful assistant."  # Qwen's chat template inserts it if there is no system message


@dataclass(frozen=True, eq=False)
class ImageInput:
    """One image as the vision tower takes it. `digest` identifies its content: equal digests mean equal arrays."""

    digest: str
    patches: Float[np.ndarray, "P 1176"]
    grid: tuple[int, int, int]  # (1, rows, columns) in patches

    @property
    def tokens(self) -> int:
        """The number of placeholders that the image takes in the sequence."""
        return num_image_tokens(self.grid)


@dataclass(frozen=True)
class Segment:
    """Ids to append, with the images of their placeholders in order."""

    token_ids: tuple[int, ...]
    images: tuple[ImageInput, ...] = ()


@dataclass
class ChatExample:
    """An encoded conversation for supervised training; `loss_mask` is 1 on the assistant's tokens."""

    id: str
    token_ids: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    images: list[ImageInput] = field(default_factory=list)

    def extend(self, token_ids: Sequence[int], trained: bool) -> None:
        self.token_ids.extend(token_ids)
        self.loss_mask.extend([int(trained)] * len(token_ids))


_PROTOCOL_TAGS = ("image", "video", "think", "answer")


def escape_special_tokens(text: str, tags: Sequence[str]) -> str:
    """Escapes control tokens, image markers and protocol tags in tool output: `<|im_end|>` → `< |im_end|>`.

    `tags` are the names of the tags of the run's tools (`agent.tools.tool_registry.protocol_tags`).

    Ids are safe without it (`Tokenizer.encode_untrusted`). This keeps the *text* of a trajectory safe too: there,
    `<image>` marks a real image, the rewards count tags, and downstream readers may render and tokenize it again.
    """
    return _special_text(tuple(tags)).sub(r"< \1", text)


@functools.lru_cache(maxsize=16)
def _special_text(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"<(\|[a-z_]+\|>|/?(?:{'|'.join((*_PROTOCOL_TAGS, *tags))})>)")


class ChatEncoder:
    """Encodes the parts of a dialogue as segments of ids. Decoded images are cached; everything else is pure.

    `stop_strings` are the closing tags of the run's tools (`agent.tools.tool_registry.stop_strings`). Generation stops at
    them, so an assistant turn that ends with one has no `<|im_end|>` of its own.
    """

    def __init__(self, tokenizer: Tokenizer, image_config: ImageConfig, stop_strings: Sequence[str]):
        self.tokenizer = tokenizer
        self.image_config = image_config
        self.stop_strings = tuple(stop_strings)
        self.im_start = tokenizer.id("<|im_start|>")
        self.im_end = tokenizer.id("<|im_end|>")
        self._newline = tokenizer.encode("\n")
        # All samples of a group use the same image, one after the other.
        self.encode_image = functools.lru_cache(maxsize=32)(self._encode_image)

    def _encode_image(self, encoded: bytes) -> ImageInput:
        """Returns the patches of an encoded image at the model's resolution."""
        min_pixels, max_pixels = self.image_config.min_pixels, self.image_config.max_pixels
        patches, grid = preprocess(encoded, min_pixels=min_pixels, max_pixels=max_pixels)
        view = f"{min_pixels}:{max_pixels}:".encode()
        return ImageInput(hashlib.sha256(view + encoded).hexdigest()[:24], patches, tuple(map(int, grid)))

    def encode_text(self, text: str, *, trusted: bool) -> list[int]:
        return self.tokenizer.encode(text) if trusted else self.tokenizer.encode_untrusted(text)

    def encode_content(self, text: str, images: Sequence[ImageInput], *, trusted: bool) -> list[int]:
        """Encodes text with one `<image>` marker per image.

        Raises:
            ValueError: the numbers of markers and images differ.
        """
        parts = text.split(IMAGE_MARKER)
        if len(parts) - 1 != len(images):
            raise ValueError(f"{len(parts) - 1} {IMAGE_MARKER} markers for {len(images)} images in {text[:80]!r}")
        ids = self.encode_text(parts[0], trusted=trusted)
        for image, part in zip(images, parts[1:], strict=True):
            ids.append(self.tokenizer.id("<|vision_start|>"))
            ids.extend([self.tokenizer.id("<|image_pad|>")] * image.tokens)
            ids.append(self.tokenizer.id("<|vision_end|>"))
            ids.extend(self.encode_text(part, trusted=trusted))
        return ids

    def encode_message(
        self, role: str, text: str, images: Sequence[ImageInput] = (), *, trusted: bool = True
    ) -> list[int]:
        """Encodes `<|im_start|>role\\n{text}<|im_end|>\\n`."""
        # The role and the text are tokenized together, as in Qwen's template: no control token separates them.
        content = self.encode_content(f"{role}\n{text}", images, trusted=trusted)
        return [self.im_start, *content, self.im_end, *self._newline]

    def encode_prompt(self, messages: Sequence[dict], images: Sequence[ImageInput]) -> Segment:
        """Encodes system and user messages, followed by the header of the first assistant turn.

        Raises:
            ValueError: the numbers of markers and images differ.
        """
        ids: list[int] = []
        if not messages or messages[0]["role"] != "system":
            ids += self.encode_message("system", DEFAULT_SYSTEM)
        used = 0
        for message in messages:
            count = message["content"].count(IMAGE_MARKER)
            ids += self.encode_message(message["role"], message["content"], images[used : used + count])
            used += count
        if used != len(images):
            raise ValueError(f"{len(images)} images but {used} {IMAGE_MARKER} markers in the prompt")
        return Segment((*ids, *self.encode_assistant_header("")), tuple(images))

    def encode_assistant_header(self, prefill: str) -> list[int]:
        """Encodes `<|im_start|>assistant\\n{prefill}`."""
        return [self.im_start, *self.tokenizer.encode(f"assistant\n{prefill}")]

    def encode_assistant(self, text: str) -> list[int]:
        """Encodes an assistant turn with the ids that the policy would sample, up to its stop string or `<|im_end|>`."""
        if text.rstrip().endswith(self.stop_strings):
            return self.tokenizer.encode(text.rstrip())
        return [*self.tokenizer.encode(text), self.im_end]

    def encode_tool_response(self, text: str, images: Sequence[ImageInput], *, prefill: str) -> Segment:
        """Encodes an observation as the user message between two assistant turns.

        `<|im_end|>\\n<|im_start|>user\\n{text}<|im_end|>\\n<|im_start|>assistant\\n{prefill}`
        """
        user = self.encode_message("user", text, images, trusted=False)
        return Segment((self.im_end, *self._newline, *user, *self.encode_assistant_header(prefill)), tuple(images))


def strip_duplicate_eos(token_ids: Sequence[int], segment: Segment, im_end: int) -> Segment:
    """Returns `segment` without its leading `<|im_end|>` if `token_ids` already end with one."""
    if token_ids[-1] != im_end:
        return segment
    return replace(segment, token_ids=segment.token_ids[1:])


def encode_conversation(
    messages: Sequence[dict],
    images: Sequence[bytes],
    encoder: ChatEncoder,
    *,
    example_id: str = "",
) -> ChatExample:
    """Encodes a stored conversation with the ids that a rollout would have produced.

    Everything up to the first assistant message is the prompt. Every later user message is an observation:
    untrusted and masked. If the assistant continues with `<think>` after an observation, that tag is taken as
    pre-filled by the environment (masked). An assistant turn is trained with its `<|im_end|>`, unless it ends with
    a stop string of the encoder: there generation stops, and the environment appends `<|im_end|>`.

    Raises:
        ValueError: roles are out of order, or the numbers of markers and images differ.
    """
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise ValueError(f"conversation {example_id!r} has no assistant message")
    start = roles.index("assistant")
    expected = ["assistant", "user"] * len(roles)
    if roles[start:] != expected[: len(roles) - start] or roles[-1] != "assistant":
        raise ValueError(f"conversation {example_id!r}: roles {roles} do not alternate and end with the assistant")
    inputs = [encoder.encode_image(image) for image in images]
    markers = [message["content"].count(IMAGE_MARKER) * (message["role"] != "assistant") for message in messages]
    if sum(markers) != len(inputs):
        raise ValueError(f"conversation {example_id!r}: {sum(markers)} {IMAGE_MARKER} markers, {len(inputs)} images")

    used = sum(markers[:start])
    example = ChatExample(example_id, images=inputs)
    example.extend(encoder.encode_prompt(messages[:start], inputs[:used]).token_ids, trained=False)
    prefill = ""
    for index in range(start, len(messages), 2):
        text = messages[index]["content"].removeprefix(prefill)
        example.extend(encoder.encode_assistant(text), trained=True)
        if index + 1 == len(messages):
            break
        prefill = "<think>" if messages[index + 2]["content"].startswith("<think>") else ""
        shown = inputs[used : used + markers[index + 1]]
        used += markers[index + 1]
        response = encoder.encode_tool_response(messages[index + 1]["content"], shown, prefill=prefill)
        example.extend(strip_duplicate_eos(example.token_ids, response, encoder.im_end).token_ids, trained=False)
    return example
