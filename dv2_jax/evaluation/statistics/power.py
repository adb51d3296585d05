"""The smallest difference between two runs that a number of questions can show."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import ndtri

ALPHA = 0.05  # of the two-sided test
POWER = 0.8  # probability that the test shows a difference of that size
DISCORDANCE = 0.2  # share of questions that one of two similar models answers and the other does not
FEWEST_DISCORDANT = 6  # fewer in one direction are never significant at 5 %: 2 · 0.5⁵ > 0.05 ≥ 2 · 0.5⁶


def smallest_visible_difference(
    n: float, discordance: float = DISCORDANCE, design_effect: float = 1.0, power: float = POWER, alpha: float = ALPHA
) -> float | None:
    """Computes the smallest difference of two proportions on the same questions that McNemar's test shows with `power`.

    The difference d solves d √n = z(1 - alpha/2) √ψ + z(power) √(ψ - d²), where ψ is the discordance, the share of
    questions with different outcomes (R. J. Connor, Biometrics 43, 1987). Where d exceeds ψ, the discordance must be as
    large as the difference, and ψ = d is solved for. At n = 171 and 20 % it is 9.5 points, at 1000 it is 4.0.

    Args:
        n: number of questions that both runs have answered.
        design_effect: factor by which clusters increase the variance of the difference; n is divided by it.

    Returns:
        A fraction of 1; None if not even a run that answers all questions more is significant.
    """
    n = n / max(design_effect, 1.0)
    if n < FEWEST_DISCORDANT:
        return None
    z_alpha, z_power = float(ndtri(1 - alpha / 2)), float(ndtri(power))

    def excess(difference: float) -> float:
        psi = max(discordance, difference)
        return difference * math.sqrt(n) - z_alpha * math.sqrt(psi) - z_power * math.sqrt(psi - difference**2)

    found = brentq(excess, 0.0, 1.0) if excess(1.0) > 0 else 1.0
    return max(float(found), FEWEST_DISCORDANT / n)


def smallest_unpaired_difference(variance: float, power: float = POWER, alpha: float = ALPHA) -> float:
    """Computes the smallest visible difference to a number of others, whose answers are not known.

    Args:
        variance: the sum of the variances of both means.
    """
    return float(ndtri(1 - alpha / 2) + ndtri(power)) * math.sqrt(variance)
