"""Encodes questions and observations as token ids, for one agent and image configuration."""

from __future__ import annotations

from dv2_jax.agent import prompts
from dv2_jax.agent.tools.base import Observation
from dv2_jax.agent.tools.tool_registry import run_tools, stop_strings
from dv2_jax.config import AgentConfig, ImageConfig
from dv2_jax.data.chat_encoder import ChatEncoder, ImageInput, Segment
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer

__all__ = ["ImageInput", "PromptEncoder", "Segment"]


class PromptEncoder:
    """Encodes the text of the environment; the policy's own text arrives as sampled ids and is never re-encoded."""

    def __init__(self, tokenizer: Tokenizer, image_config: ImageConfig, agent_config: AgentConfig):
        self.tokenizer = tokenizer
        self.image_config = image_config
        self.agent_config = agent_config
        self.tools = run_tools(agent_config)
        self.chat = ChatEncoder(tokenizer, image_config, stop_strings(self.tools))
        self.im_end = self.chat.im_end
        self._prefill = "<think>" if agent_config.prefill_think else ""

    def encode_question(self, question: Question) -> Segment:
        """Returns the prompt up to `<|im_start|>assistant\\n`; the policy samples the first `<think>` itself."""
        images = [self.chat.encode_image(image) for image in question.images]
        messages = prompts.build_messages(question, self.agent_config.system_prompt, self.tools)
        return self.chat.encode_prompt(messages, images)

    def encode_observation(self, observation: Observation) -> Segment:
        """Returns the ids from the `<|im_end|>` of the calling turn to the (pre-filled) header of the next turn."""
        images = [self.chat.encode_image(image) for image in observation.images]
        return self.chat.encode_tool_response(observation.text, images, prefill=self._prefill)
