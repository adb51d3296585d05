"""Agreement of all hosts on an outage of the judge, so that none waits in a collective for one that has stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dv2_jax.parallel import distributed
from dv2_jax.rewards.judge import JudgeOutage


@contextmanager
def raise_outage_together() -> Iterator[None]:
    """If the block raises JudgeOutage on one host, all hosts raise it at its end. Every host must enter the block."""
    outage = None
    try:
        yield
    except JudgeOutage as error:
        outage = error
    if distributed.any_process(outage is not None):
        raise outage or JudgeOutage("another host of the run gets no verdicts from the judge")
