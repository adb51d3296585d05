"""The registry of loss aggregations: token weights and the denominator that turn token losses into one number.

An aggregation is `function(tokens, config) -> (weights, denominator)`. `tokens` has the number of loss tokens of every
trajectory of a minibatch, over all hosts; a weight applies to each loss token of its trajectory. The loss of the
minibatch is the weighted sum over all tokens divided by the denominator, so that losses and gradients of microbatches
and hosts add up exactly.

Trajectories without loss tokens (lost or masked ones) count in means over sequences, as in TRL, and in verl with
`global_batch_size`, which its trainer sets; verl's bare `agg_loss` leaves them out of the denominator.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from dv2_jax.config import RLConfig
from dv2_jax.config.registry import Registry

Aggregation = Callable[[Int[np.ndarray, " N"], RLConfig], tuple[Float[np.ndarray, " N"], float]]
AGGREGATIONS: Registry[Aggregation] = Registry("aggregation", "rl.aggregation")


def aggregation(name: str) -> Callable[[Aggregation], Aggregation]:
    """Register a function as the aggregation `name`."""
    return AGGREGATIONS.register(name)


@aggregation("token_mean")
def token_mean(tokens, config: RLConfig):
    """Weight all tokens of the minibatch alike and divide by their number (DAPO, arXiv 2503.14476, eq. 8)."""
    return np.ones(len(tokens)), float(tokens.sum())


@aggregation("sequence_mean")
def sequence_mean(tokens, config: RLConfig):
    """Average over the tokens of each trajectory, then over the trajectories (GRPO, arXiv 2402.03300, eq. 3)."""
    return 1.0 / np.maximum(tokens, 1), float(len(tokens))


@aggregation("sequence_sum")
def sequence_sum(tokens, config: RLConfig):
    """Divide the sum over all tokens by the number of trajectories times a constant length (Dr. GRPO, 2503.20783).

    The length is `rl.max_response_tokens`, or `rl.row_tokens` if it is not set.
    """
    length = config.row_tokens if config.max_response_tokens is None else config.max_response_tokens
    return np.ones(len(tokens)), float(len(tokens) * length)
