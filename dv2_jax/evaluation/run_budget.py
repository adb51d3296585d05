"""Limits that end an evaluation early: money, time and signals. What is on its way is finished and stored."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dv2_jax.config import Config, ConfigError
from dv2_jax.telemetry.interrupt import Interrupt

CONTINUE = "every answer is stored, and the same command continues"


@dataclass
class Budget:
    """Says when to stop: `eval.max_cost`, `eval.max_hours` of this start, or a signal.

    Attributes:
        spent: cost of all stored answers of the run directory, in the currency of `eval.prices`.
        reason: the sentence of the first limit that was reached; empty: none.
    """

    max_cost: float
    max_hours: float
    interrupt: Interrupt | None = None
    clock: Callable[[], float] = time.monotonic
    spent: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        self._started = self.clock()

    @classmethod
    def of_run(cls, config: Config, interrupt: Interrupt | None = None) -> Budget:
        """Returns the limits of a configuration.

        Raises:
            ConfigError: a limit is negative, or one of costs is set without prices.
        """
        limits = config.eval
        for key, value in (("eval.max_cost", limits.max_cost), ("eval.max_hours", limits.max_hours)):
            if value < 0:
                raise ConfigError(f"{key} = {value:g}: use a positive number, or 0 for no limit")
        if limits.max_cost and not limits.prices:
            raise ConfigError(f"eval.max_cost = {limits.max_cost:g} needs prices: set --config.eval.prices=FILE")
        return cls(limits.max_cost, limits.max_hours, interrupt)

    def add(self, cost: float | None) -> None:
        """Adds the cost of an answer; None: unknown."""
        self.spent += cost or 0.0

    def is_reached(self) -> bool:
        """Tests the limits; `reason` then says which one was reached."""
        hours = (self.clock() - self._started) / 3600
        if self.reason:
            return True
        if self.interrupt is not None and self.interrupt.requested:
            self.reason = f"stopped by {self.interrupt.signal_name}: {CONTINUE}"
        elif self.max_hours and hours >= self.max_hours:
            self.reason = f"stopped after {hours:.2f} hours (eval.max_hours = {self.max_hours:g}): {CONTINUE}"
        elif self.max_cost and self.spent >= self.max_cost:
            self.reason = (
                f"stopped at a cost of {self.spent:.4g} (eval.max_cost = {self.max_cost:g}): every answer is stored; the"
                " same command continues with a larger eval.max_cost"
            )
        return bool(self.reason)
