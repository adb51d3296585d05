"""The policy as the server sees it: encodes prompts, checks them against the engine's limits, and makes its requests."""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.config import Config
from dv2_jax.data.chat_encoder import Segment
from dv2_jax.data.images import ImageError
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.engine.engine import Engine
from dv2_jax.rollout.scheduler import RolloutRequest
from dv2_jax.rollout.session import RolloutSession
from dv2_jax.serving.api_error import invalid
from dv2_jax.serving.chat_prompt import agent_question, dialogue_prompt
from dv2_jax.serving.chat_request import ChatRequest
from dv2_jax.serving.text_stream import TextStream

RAW_SUFFIX = "-raw"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt with its ids, which all choices of a request share."""

    question: Question
    segment: Segment


class ServedPolicy:
    """Makes rollout requests of chat requests, for the models `config.serve.name` and `NAME-raw`."""

    def __init__(self, session: RolloutSession):
        self.config: Config = session.config
        self.encoder = session.prompt_encoder
        self.engine: Engine = session.engine
        self.agent_name = self.config.serve.name
        self.raw_name = self.config.serve.name + RAW_SUFFIX
        self.fingerprint = _fingerprint(self.config)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the policy."""
        return self.encoder.tokenizer

    @property
    def capacity(self) -> int:
        """The number of answers that may be generated or wait at the same time."""
        return self.engine.config.slots + self.config.serve.max_queue

    def is_raw(self, request: ChatRequest) -> bool:
        """Returns whether the request is one to the model without tools."""
        return request.model == self.raw_name

    def encode(self, request: ChatRequest) -> EncodedPrompt:
        """Decodes the images and encodes the messages. Safe to call from any thread.

        Raises:
            ApiError: an image cannot be used, there are too many, or the prompt leaves no room for an answer.
        """
        agent = self.config.agent
        images = [image for message in request.messages for image in message.images]
        if len(images) > agent.max_images:
            raise invalid(
                f"messages have {len(images)} images; at most {agent.max_images} are supported",
                "messages",
                "too_many_images",
            )
        question_id = f"chat-{uuid.uuid4().hex[:16]}"
        try:
            if self.is_raw(request):
                text = "\n".join(request.messages[-1].texts)
                question = Question(question_id, "chat", "perception", text, tuple(images), answer="")
                segment = dialogue_prompt(request.messages, self.encoder.chat, continue_last=request.continue_last)
            else:
                question = agent_question(request.messages, question_id, self.encoder)
                segment = self.encoder.encode_question(question)
            for image in segment.images:
                self.engine.check_image(image)
        except ImageError as error:
            reason = re.sub(r" <_io\.[^>]*>", "", str(error))  # Pillow's name of a file in memory
            raise invalid(f"an image cannot be used: {reason}", "messages", "invalid_image") from None
        except (ValueError, TypeError, OSError) as error:
            raise invalid(f"messages cannot be used: {error}", "messages") from None
        if len(segment.token_ids) >= agent.max_total_tokens:
            raise invalid(
                f"the maximum context length is {agent.max_total_tokens} tokens, but the messages have"
                f" {len(segment.token_ids)}: shorten them, or send fewer or smaller images",
                "messages",
                "context_length_exceeded",
            )
        return EncodedPrompt(question, segment)

    def rollout_request(self, request: ChatRequest, prompt: EncodedPrompt, choice: int) -> RolloutRequest:
        """Returns the rollout of one choice. Equal seeds give equal samples, whatever else the engine generates."""
        agent, prompt_tokens = self.config.agent, len(prompt.segment.token_ids)
        total = agent.max_total_tokens
        if request.max_tokens is not None:
            total = min(total, prompt_tokens + request.max_tokens)
        limits = replace(agent, max_total_tokens=total)
        if self.is_raw(request):
            limits = replace(limits, max_turns=1, max_turn_tokens=total)
        seed = secrets.token_hex(8) if request.seed is None else str(request.seed)
        key = int.from_bytes(hashlib.sha256(f"{seed}:{choice}".encode()).digest()[:4], "big")
        name = f"{prompt.question.id}.{choice}"
        return RolloutRequest(prompt.question, name, key, request.temperature, limits, prompt.segment)

    def text_stream(self, request: ChatRequest) -> TextStream:
        """Returns the decoder of a raw turn, which ends at the client's stop strings; `<|im_end|>` has no text."""
        return TextStream(
            self.tokenizer.token_bytes,
            request.stop,
            hidden=self.encoder.tokenizer.control_ids,
            keep_stop=request.include_stop_text,
        )

    def turn_is_complete(self, token_ids: Sequence[int]) -> bool:
        """Returns whether a raw turn ended by itself: with `<|im_end|>` or the closing tag of a tool."""
        if token_ids and token_ids[-1] == self.encoder.im_end:
            return True
        text = self.tokenizer.decode(token_ids)
        return any(stop in text for stop in self.encoder.chat.stop_strings)


def sampled_turn(trajectory: Trajectory) -> tuple[list[int], list[float]]:
    """Returns the ids and log-probs of the one turn of a raw trajectory."""
    return trajectory.response_ids, trajectory.logprobs[trajectory.prompt_tokens :]


def _fingerprint(config: Config) -> str:
    """Returns a digest of all that decides the answers: weights by name, limits, prompts and image sizes."""
    parts = (config.model, config.agent, config.image, config.run.seed, config.sampling)
    return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
