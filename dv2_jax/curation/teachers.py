"""Teachers: models that write trajectories for the cold start, with weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dv2_jax.config import ConfigError, CurateConfig
from dv2_jax.endpoint.retry_rules import printable_url

SCRIPTED = "scripted"
_FORM = re.compile(r"(?P<place>[^=]+?)(?:#(?P<model>[^=]*))?(?:=(?P<weight>.+))?")


@dataclass(frozen=True)
class Teacher:
    """A teacher: the base URL of an endpoint with its model, or the scripted solver of the embedded tasks."""

    base_url: str
    model: str
    weight: float = 1.0

    @property
    def is_scripted(self) -> bool:
        return self.base_url == SCRIPTED

    @property
    def name(self) -> str:
        """The model's name, as provenance and data card state it; the address only if the model has no name."""
        return self.model or printable_url(self.base_url)


def run_teachers(config: CurateConfig) -> list[Teacher]:
    """Returns the teachers of `curate.teachers`: `scripted` or `URL#MODEL`, each with `=WEIGHT` if it is not 1.

    Raises:
        ConfigError: there is none, one is named twice, or a weight is no positive number.
    """
    teachers = [_parse(text) for text in config.teachers]
    if not teachers:
        raise ConfigError("curate.teachers is empty: name scripted, or endpoints as http://host:8000/v1#MODEL")
    names = [(teacher.base_url, teacher.model) for teacher in teachers]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"curate.teachers: {twice[0][0]!r} is named twice; give one weight")
    return teachers


def run_reviewer(config: CurateConfig) -> Teacher:
    """Returns the judge of `curate.reviewer`: `URL#MODEL`.

    Raises:
        ConfigError: it is empty or no endpoint.
    """
    if not config.reviewer.startswith(("http://", "https://")):
        raise ConfigError(f"curate.reviewer = {config.reviewer!r}: the stage review needs URL#MODEL")
    return _parse(config.reviewer, "curate.reviewer")


def _parse(text: str, key: str = "curate.teachers") -> Teacher:
    match = _FORM.fullmatch(text)
    try:
        weight = float((match and match["weight"]) or 1.0)
    except ValueError:
        weight = 0.0
    if match is None or not weight > 0:
        raise ConfigError(f"{key}: {text!r}: write scripted or URL#MODEL, and =WEIGHT with a positive number")
    place, model = match["place"], match["model"] or ""
    if place != SCRIPTED and not place.startswith(("http://", "https://")):
        raise ConfigError(f"{key}: {place!r} is neither {SCRIPTED!r} nor an http(s) URL")
    return Teacher(place.rstrip("/") if place != SCRIPTED else place, model, weight)
