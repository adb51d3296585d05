"""The policies that a run evaluates: those of `eval.compare`, and its own before and after training."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dv2_jax.checkpoint.policy_spec import init_name, load_policy_spec
from dv2_jax.config import Config, ConfigError
from dv2_jax.evaluation.tool_sets import PROTOCOL, check_tool_sets, set_suffix, set_title
from dv2_jax.policy import Policy
from dv2_jax.telemetry.stage_titles import FINAL, INITIAL, TITLES

EVALUATE = "evaluate"  # the policy that the command evaluate was given
BASELINES = ("guessing", "no_tools")
_RESERVED = {INITIAL, FINAL, EVALUATE, *TITLES, "train", "guessing", "stages", "model", "questions", "benchmarks"}


@dataclass(frozen=True)
class Stage:
    """One evaluated policy: its name in files and summaries, its title in tables, and its weights as in `model.init`.

    The command evaluate has one stage per policy and tool set. `refuses_tools`: the policy has its tools, but every call
    is refused.
    """

    name: str
    title: str
    init: str
    tool_set: str = PROTOCOL
    refuses_tools: bool = False

    def to_dict(self) -> dict[str, str]:
        """Converts to an element of the list `stages` of a summary."""
        tools = {} if self.tool_set == PROTOCOL else {"tools": self.tool_set}
        return {"name": self.name, "title": self.title, "init": self.init, **tools}


def rl_stages(config: Config) -> list[Stage]:
    """Returns the policies that an RL run evaluates, in display order.

    The initial policy is named after `model.init`, whatever checkpoint it is.

    Raises:
        ConfigError: `eval.stages` has an unknown name.
    """
    known = {
        INITIAL: Stage(INITIAL, init_name(config.model.init), config.model.init),
        FINAL: Stage(FINAL, TITLES[FINAL], config.model.init),
    }
    if unknown := sorted(set(config.eval.stages) - set(known)):
        raise ConfigError(
            f"eval.stages = {unknown}: there are {', '.join(known)};"
            " other policies are compared by eval.compare, e.g. --config.eval.compare=package:base"
        )
    own = [stage for name, stage in known.items() if name in config.eval.stages]
    return [*_compared(config, skip_own=INITIAL in config.eval.stages), *own]


def evaluation_stages(config: Config, endpoint_model: str = "") -> list[Stage]:
    """Returns the stages of the command evaluate: every policy with every set of `eval.tool_sets`, that of `model.init` last.

    With `eval.endpoint`, the endpoint's model takes the place of `model.init`; `endpoint_model` is its name.

    Raises:
        ConfigError: `eval.compare` is combined with an endpoint, or a tool set or baseline is unknown.
    """
    check_tool_sets(config)
    if unknown := sorted(set(config.eval.baselines) - set(BASELINES)):
        raise ConfigError(f"eval.baselines = {unknown}: there are {', '.join(BASELINES)}")
    if config.eval.endpoint and config.eval.compare:
        raise ConfigError(
            "eval.compare and eval.endpoint cannot be combined: evaluate each model in its own run, and compare the runs"
            " with python -m dv2_jax.compare"
        )
    compared = _compared(config, skip_own=True)
    if config.eval.endpoint:
        own = Stage(EVALUATE, endpoint_model or TITLES[EVALUATE], endpoint_model)
    else:
        own = Stage(EVALUATE, init_name(config.model.init) if compared else TITLES[EVALUATE], config.model.init)
    names, titles = set[str](), set[str]()
    stages = []
    for policy in [*compared, own]:
        for tool_set in config.eval.tool_sets:
            title = ", ".join(filter(None, [policy.title, set_title(tool_set)]))
            name = _distinct(policy.name + set_suffix(tool_set), names)
            stages.append(replace(policy, name=name, title=_distinct(title, titles), tool_set=tool_set))
    if "no_tools" in config.eval.baselines:
        stages.append(replace(own, name="no_tools", title="no tools", refuses_tools=True))
    return stages


def _compared(config: Config, *, skip_own: bool) -> list[Stage]:
    """Returns the policies of `eval.compare` with distinct names and titles; `skip_own` leaves out `model.init`."""
    own = config.model.init
    inits = [init for init in dict.fromkeys(config.eval.compare) if not (skip_own and init == own)]
    titles, names = {init_name(own)} if skip_own else set(), set(_RESERVED)
    stages = []
    for init in inits:
        title = _distinct(init_name(init), titles)
        name = _distinct(re.sub(r"[^A-Za-z0-9.-]", "_", title), names)
        stages.append(Stage(name, title, init))
    return stages


def _distinct(text: str, taken: set[str]) -> str:
    """Returns `text`, with a number if it is taken already, and adds it to `taken`."""
    result = next(t for n in itertools.count(1) if (t := text if n == 1 else f"{text}-{n}") not in taken)
    taken.add(result)
    return result


def check_comparable(policy: Policy, stages: Sequence[Stage]) -> None:
    """Checks that every policy has the architecture and the tokenizer of `policy`, whose engine evaluates it.

    Raises:
        ConfigError: one differs, or does not exist.
    """
    for stage in stages:
        if stage.init == policy.source.init:
            continue
        try:
            spec = load_policy_spec(replace(policy.source, init=stage.init))
        except ConfigError as error:
            raise ConfigError(f"eval.compare = {stage.init!r}: {error}") from None
        same_tokenizer = spec.tokenizer_file is not None and (
            spec.tokenizer_file.read_bytes() == policy.spec.tokenizer_file.read_bytes()
        )
        if spec.config != policy.config or not same_tokenizer:
            part = "tokenizer" if spec.config == policy.config else "architecture"
            raise ConfigError(
                f"eval.compare = {stage.init!r}: its {part} is not that of model.init = {policy.source.init!r};"
                f" evaluate it alone, with python -m dv2_jax.evaluate --config.model.init={stage.init}"
            )
