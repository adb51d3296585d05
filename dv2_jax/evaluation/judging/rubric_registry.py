"""The registry of rubrics: a rubric writes the prompt of a judge and reads the verdict from its reply.

A rubric sees the question, the references and the extracted answer, and nothing else: neither the trajectory nor the model's
name. Adding one is a function with a decorator, in one file::

    @rubric("exact")
    def exact(question, references, answer):
        text = f"Same answer? {answer!r} and {references!r}. Reply with yes or no."
        return RubricPrompt([{"role": "user", "content": text}], lambda reply: {"yes": True, "no": False}.get(reply.lower()))

A configuration names it `exact`, or `my_package.my_module:exact` without registration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dv2_jax.config.registry import Registry


@dataclass(frozen=True)
class RubricPrompt:
    """A judge's prompt. `read` returns the verdict in a reply; None: it has none, and the answer stays undecided.

    `sampling` holds parameters of the request other than the temperature, which is 0.
    """

    messages: Sequence[Mapping[str, Any]]
    read: Callable[[str], bool | None]
    sampling: Mapping[str, Any] = field(default_factory=dict)


RubricFunction = Callable[[str, Sequence[str], str], RubricPrompt]
RUBRICS: Registry[RubricFunction] = Registry("rubric", "eval.judge_rubric", "dv2_jax.evaluation.judging.rubrics")


def rubric(name: str) -> Callable[[RubricFunction], RubricFunction]:
    """Registers `function(question, references, answer) -> RubricPrompt` as the rubric `name`."""
    return RUBRICS.register(name)


def get_rubric(name: str) -> RubricFunction:
    """Returns the rubric of that name or import path.

    Raises:
        ConfigError: there is none.
    """
    return RUBRICS.get(name)


def joined_references(references: Sequence[str]) -> str:
    """Returns the references as one text, for rubrics that were written for a single one."""
    return references[0] if len(references) == 1 else " or ".join(f'"{text}"' for text in references)
