"""Budgets of one trajectory as pure functions: turns, tokens per turn, tokens in all, pictures (spec 2.7)."""

from __future__ import annotations

from dv2_jax.config import AgentConfig


def turn_allowance(config: AgentConfig, total_tokens: int) -> int:
    """Tokens that the next generation may sample; 0 when the trajectory is full."""
    return max(0, min(config.max_turn_tokens, config.max_total_tokens - total_tokens))


def images_left(config: AgentConfig, used: int) -> int:
    """Pictures that a trajectory with ``used`` ones, the question's included, may still take."""
    return max(0, config.max_images - used)


def may_continue(config: AgentConfig, turns: int) -> bool:
    """Whether a further generation is allowed after ``turns`` of them."""
    return turns < config.max_turns


def observation_fits(config: AgentConfig, total_tokens: int, observation_tokens: int) -> bool:
    """Whether an observation leaves room for at least one sampled token.

    A trajectory never ends with an observation: nothing could be learned from it.
    """
    return total_tokens + observation_tokens < config.max_total_tokens
