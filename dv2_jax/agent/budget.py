"""Budgets of one trajectory as pure functions: turns, tokens per turn, total tokens, images."""

from __future__ import annotations

from dv2_jax.config import AgentConfig


def max_new_tokens(config: AgentConfig, total_tokens: int) -> int:
    """Returns the number of tokens that the next generation may sample; 0 when the trajectory is full."""
    return max(0, min(config.max_turn_tokens, config.max_total_tokens - total_tokens))


def images_left(config: AgentConfig, used: int) -> int:
    """Returns how many more images a trajectory may take after `used` ones, the question's images included."""
    return max(0, config.max_images - used)


def may_continue(config: AgentConfig, turns: int) -> bool:
    """Returns True if another generation is allowed after `turns` of them."""
    return turns < config.max_turns


def observation_fits(config: AgentConfig, total_tokens: int, observation_tokens: int) -> bool:
    """Returns True if an observation leaves room for at least one sampled token.

    A trajectory never ends with an observation, because observation tokens are masked out of the loss.
    """
    return total_tokens + observation_tokens < config.max_total_tokens
