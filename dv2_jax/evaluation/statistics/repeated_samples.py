"""Several samples per question: the mean over them, and the chance that one of k is correct."""

from __future__ import annotations

import math


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Computes the probability that one of k samples is correct, without bias: 1 - C(n - c, k) / C(n, k).

    Source: M. Chen et al., arXiv 2107.03374, section 2.1. The plug-in 1 - (1 - c/n)^k is too high in the mean.

    Args:
        correct: c, the number of correct ones among the samples.
        samples: n, the number of samples of the question, at least k.

    Raises:
        ValueError: the numbers do not describe samples.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {correct} correct among {samples} samples is not defined")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def sample_sizes(samples: int) -> list[int]:
    """Returns the k of a table: powers of two below the number of samples, and that number."""
    return [*(2**i for i in range(samples.bit_length()) if 2**i < samples), samples] if samples else []
