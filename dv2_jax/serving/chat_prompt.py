"""Turns the messages of a client into a prompt: a question of the agent, or the token ids of a dialogue."""

from __future__ import annotations

from collections.abc import Sequence

from dv2_jax.agent import prompts
from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.data.chat_encoder import IMAGE_MARKER, ChatEncoder, ImageInput, Segment, strip_duplicate_eos
from dv2_jax.data.question import Question
from dv2_jax.serving.chat_request import SYSTEM_ROLES, ChatMessage

_ESCAPED_MARKER = "< image>"  # a literal marker in a client's text; as `escape_special_tokens` writes it


def agent_question(messages: Sequence[ChatMessage], question_id: str, encoder: PromptEncoder) -> Question:
    """Returns the question that the last message asks, with the agent's own prompt.

    One message of a user becomes `Question.text` and `Question.images`, so that its prompt is the one of an evaluation.
    System messages are appended to the agent's system prompt, and earlier turns precede the question as text. Images of
    all messages are loaded in the sandbox, in their order.
    """
    system = [text for message in messages if message.role in SYSTEM_ROLES for text in message.texts]
    turns = [message for message in messages if message.role not in SYSTEM_ROLES]
    images = tuple(image for message in turns for image in message.images)
    last = _with_marks(turns[-1])
    plain = Question(question_id, "chat", "perception", last, tuple(turns[-1].images), answer="")
    if len(turns) == 1 and not system:
        return plain
    first, asked = prompts.build_messages(plain, encoder.agent_config.system_prompt, encoder.tools)
    history = [{"role": turn.role, "content": _with_marks(turn)} for turn in turns[:-1]]
    head = {"role": "system", "content": "\n\n".join([first["content"], *map(_escape, system)])}
    return Question(
        question_id, "chat", "perception", last, images, answer="", messages=(head, *history, asked)
    )  # fmt: skip


def dialogue_prompt(messages: Sequence[ChatMessage], encoder: ChatEncoder, *, continue_last: bool) -> Segment:
    """Returns the ids of a dialogue up to the beginning of the assistant's next turn, without any prompt of the agent.

    Turns after the first are encoded as in a rollout: a message of the user that follows one of the assistant is an
    observation. A client that sends back the turns which it got therefore prompts with the ids of the agent's
    trajectory. An assistant turn that begins with `<think>` after an observation continues a pre-filled tag.

    Args:
        continue_last: the last message is the beginning of the assistant's next turn.
    """
    entries = [
        {"role": "system" if message.role in SYSTEM_ROLES else message.role, "content": _with_marks(message)}
        for message in messages
    ]
    shown = [[encoder.encode_image(image) for image in message.images] for message in messages]
    prefix = entries.pop()["content"] if continue_last else ""
    roles = [entry["role"] for entry in entries]
    start = roles.index("assistant") if "assistant" in roles else len(entries)
    images: list[ImageInput] = [image for inputs in shown for image in inputs]
    head = [image for inputs in shown[:start] for image in inputs]
    ids = list(encoder.encode_prompt(entries[:start], head).token_ids)
    if start == len(entries):
        header = len(encoder.encode_assistant_header(""))
        return Segment((*ids[:-header], *encoder.encode_assistant_header(prefix)), tuple(images))
    prefill = ""
    for index in range(start, len(entries), 2):
        ids += encoder.encode_assistant(entries[index]["content"].removeprefix(prefill))
        is_last = index + 2 >= len(entries)
        following = prefix if is_last else entries[index + 2]["content"]
        prefill = "<think>" if following.startswith("<think>") else ""
        response = encoder.encode_tool_response(
            entries[index + 1]["content"], shown[index + 1], prefill=prefix if is_last else prefill
        )
        ids += strip_duplicate_eos(ids, response, encoder.im_end).token_ids
    return Segment(tuple(ids), tuple(images))


def _with_marks(message: ChatMessage) -> str:
    """Joins texts and images with newlines, each image as a marker.

    Markers that the text itself contains, one per image, are the positions of images that precede the text, as in
    `Question.text`; other literal markers are escaped.
    """
    images = len(message.images)
    images_first = all(isinstance(part, bytes) for part in message.parts[:images])
    if images and images_first and sum(text.count(IMAGE_MARKER) for text in message.texts) == images:
        return "\n".join(message.texts)
    return "\n".join(IMAGE_MARKER if isinstance(part, bytes) else _escape(part) for part in message.parts)


def _escape(text: str) -> str:
    return text.replace(IMAGE_MARKER, _ESCAPED_MARKER)
