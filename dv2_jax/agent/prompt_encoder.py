"""Questions and observations as ids (spec 2.5), under one agent and image configuration."""

from __future__ import annotations

from dv2_jax.agent import prompts
from dv2_jax.agent.observation import Observation
from dv2_jax.config import AgentConfig, ImageConfig
from dv2_jax.data.chat_encoder import ChatEncoder, PictureInput, Segment
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer

__all__ = ["PictureInput", "Segment", "SpliceCodec"]


class SpliceCodec:
    """Turns what the environment says into ids; what the policy says is ids already."""

    def __init__(self, tokenizer: Tokenizer, image_config: ImageConfig, agent_config: AgentConfig):
        self.tokenizer = tokenizer
        self.image_config = image_config
        self.agent_config = agent_config
        self.chat = ChatEncoder(tokenizer, image_config)
        self.im_end = self.chat.im_end
        self._prefill = "<think>" if agent_config.prefill_think else ""

    def prompt(self, question: Question) -> Segment:
        """Up to and with ``<|im_start|>assistant\\n``; the first ``<think>`` is the policy's own."""
        pictures = [self.chat.picture(image) for image in question.images]
        return self.chat.prompt(prompts.messages(question, self.agent_config.system_prompt), pictures)

    def observation(self, observation: Observation) -> Segment:
        """From the ``<|im_end|>`` of the turn that asked to the (pre-filled) opening of the next turn."""
        pictures = [self.chat.picture(image) for image in observation.images]
        return self.chat.reply(observation.text, pictures, prefill=self._prefill)
