"""Agreement of all hosts on an outage of a service, so that none waits in a collective for one that has stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dv2_jax.config import ServiceOutage
from dv2_jax.parallel import distributed

__all__ = ["ServiceOutage", "raise_outage_together"]


@contextmanager
def raise_outage_together() -> Iterator[None]:
    """If the block raises ServiceOutage on one host, all hosts raise it at its end. Every host must enter the block."""
    message = "another host of the run has an outage of the judge or of the tools service"
    with distributed.raise_together(ServiceOutage, message):
        yield
