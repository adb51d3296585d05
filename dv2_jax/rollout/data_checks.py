"""The checks of data files under a configuration: limits, image sizes, and the verifier of each question."""

from __future__ import annotations

from dv2_jax.agent.tools.tool_registry import run_tools, stop_strings
from dv2_jax.checkpoint.policy_spec import load_policy_spec
from dv2_jax.config import Config, ConfigError
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.data.validation import ConversationCheck, QuestionCheck
from dv2_jax.rewards.reference_check import reference_issue


def load_tokenizer(config: Config) -> Tokenizer:
    """Returns the tokenizer of `config.model`, without loading weights.

    Raises:
        ConfigError: the policy does not exist, or has no tokenizer.
    """
    found = load_policy_spec(config.model).tokenizer_file
    if found is None:
        raise ConfigError(f"model.init = {config.model.init!r} has no tokenizer: it cannot read text")
    return Tokenizer.from_file(found)


def question_check(config: Config, tokenizer: Tokenizer) -> QuestionCheck:
    """Returns the check of RL rows."""
    return QuestionCheck(
        tokenizer,
        config.image,
        max_total_tokens=config.agent.max_total_tokens,
        max_images=config.agent.max_images,
        check_reference=reference_issue,
    )


def conversation_check(config: Config, tokenizer: Tokenizer) -> ConversationCheck:
    """Returns the check of SFT rows."""
    return ConversationCheck(
        tokenizer,
        config.image,
        row_tokens=config.sft.row_tokens,
        max_images=config.agent.max_images,
        stop_strings=stop_strings(run_tools(config.agent)),
    )
