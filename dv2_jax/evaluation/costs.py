"""Computes costs from a price table, a JSON file of the user's: prices change, and none is built in.

    {"gpt-x": {"input": 2.5, "cached_input": 0.25, "output": 10, "currency": "USD", "date": "2026-11-01"}}

Prices are per million tokens. `cached_input` is the price of prompt tokens that the endpoint had cached, by default that of
`input`; `date` says from when the price is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dv2_jax.config import ConfigError
from dv2_jax.config.overrides import suggest
from dv2_jax.evaluation.records import AnswerInfo, JudgeReply

_KEY = "eval.prices"
_FIELDS = ("input", "output", "currency", "date")


@dataclass(frozen=True)
class ModelPrice:
    """Prices of one model per million tokens."""

    input: float
    output: float
    cached_input: float
    currency: str
    date: str

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Returns the cost of tokens, of whose prompt tokens `cached_tokens` were cached."""
        fresh = max(0, prompt_tokens - cached_tokens)
        return (fresh * self.input + cached_tokens * self.cached_input + completion_tokens * self.output) / 1e6


@dataclass(frozen=True)
class PriceTable:
    """Prices by model, all in one currency."""

    prices: Mapping[str, ModelPrice]
    path: str = ""

    @classmethod
    def load(cls, path: str | Path) -> PriceTable:
        """Reads the file `eval.prices`.

        Raises:
            ConfigError: the file cannot be read, or an entry is incomplete or not in the currency of the others.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{_KEY} = {path}: {getattr(error, 'strerror', None) or error}") from None
        if not isinstance(content, dict) or not content:
            raise ConfigError(f"{_KEY} = {path}: an object of prices by model is expected, such as {_EXAMPLE}")
        prices = {name: _read_price(f"{_KEY} = {path}: {name!r}", entry) for name, entry in content.items()}
        if len(currencies := {price.currency for price in prices.values()}) > 1:
            raise ConfigError(f"{_KEY} = {path}: one currency is needed, there are {', '.join(sorted(currencies))}")
        return cls(prices, str(path))

    @property
    def currency(self) -> str:
        """The currency of all prices."""
        return next(iter(self.prices.values())).currency

    def price(self, model: str) -> ModelPrice:
        """Returns the prices of a model.

        Raises:
            ConfigError: the table does not have it.
        """
        if model not in self.prices:
            known = ", ".join(self.prices)
            raise ConfigError(
                f"{_KEY} = {self.path}: there is no price of {model!r}, but of {known}{suggest(model, self.prices)}"
            )
        return self.prices[model]

    def answer_cost(self, info: AnswerInfo) -> float:
        """Returns the cost of an answer, failed or not. Raises ConfigError if its model has no price."""
        return self.price(info.model).cost(info.prompt_tokens, info.completion_tokens, info.cached_tokens)

    def judge_cost(self, reply: JudgeReply) -> float:
        """Returns the cost of a judge's reply. Raises ConfigError if its model has no price."""
        return self.price(reply.model).cost(reply.prompt_tokens, reply.completion_tokens)


def cost_per_correct(cost: float, correct: int) -> float | None:
    """Returns the cost of one correct answer, failed and wrong ones included; None if there is no correct answer."""
    return cost / correct if correct else None


_EXAMPLE = '{"MODEL": {"input": 2.5, "output": 10, "currency": "USD", "date": "2026-11-01"}}'


def _read_price(where: str, entry: Any) -> ModelPrice:
    if not isinstance(entry, dict) or set(_FIELDS) - entry.keys() or entry.keys() - {*_FIELDS, "cached_input"}:
        found = ", ".join(entry) if isinstance(entry, dict) else repr(entry)
        raise ConfigError(f"{where}: {', '.join(_FIELDS)} and, if it differs, cached_input are expected, not {found}")
    numbers = {name: entry.get(name, entry["input"]) for name in ("input", "output", "cached_input")}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < math.inf):
            raise ConfigError(f"{where}: {name} = {value!r}, a price per million tokens is expected")
    return ModelPrice(**numbers, currency=str(entry["currency"]), date=str(entry["date"]))
