"""The money that a curation has spent, and its limit."""

from __future__ import annotations

from collections.abc import Iterable

from dv2_jax.config import ConfigError, CurateConfig, RunFailure
from dv2_jax.evaluation.costs import PriceTable


class CurationBudget:
    """Adds up costs and stops the run at `curate.max_cost`. Without a price table costs are unknown (None)."""

    def __init__(self, prices: PriceTable | None, max_cost: float):
        self.prices, self.max_cost, self.spent = prices, max_cost, 0.0

    @classmethod
    def of_curation(cls, settings: CurateConfig) -> CurationBudget:
        """Returns the budget of a configuration.

        Raises:
            ConfigError: the price table cannot be used, or there is a limit without one.
        """
        if settings.max_cost < 0 or (settings.max_cost and not settings.prices):
            raise ConfigError(f"curate.max_cost = {settings.max_cost:g}: use a positive number and set curate.prices")
        prices = PriceTable.load(settings.prices) if settings.prices else None
        return cls(prices, settings.max_cost)

    def add_stored(self, costs: Iterable[float | None]) -> None:
        """Adds the costs of stored answers."""
        self.spent += sum(cost for cost in costs if cost is not None)

    def add(self, model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Adds and returns the cost of an answer."""
        if self.prices is None:
            return None
        cost = self.prices.price(model).cost(prompt_tokens, completion_tokens)
        self.spent += cost
        return cost

    def check(self) -> None:
        """Raises RunFailure once the limit is reached; every answer is stored, and a higher limit continues the run."""
        if self.max_cost and self.spent >= self.max_cost:
            raise RunFailure(
                f"curate.max_cost = {self.max_cost:g} is reached ({self.spent:.2f} spent): every answer is stored;"
                " the same command with a higher limit continues"
            )
