"""The outcome of a tool request, shared by the client, the agent loop and stored records."""

from __future__ import annotations

import enum


class Status(enum.Enum):
    """The outcome of a tool request. The value is the word that stored trajectories contain."""

    OK = "ok"
    ERROR = "error"  # the code raised
    TIMEOUT = "timeout"
    OOM = "oom"
    CRASHED = "crashed"
    OUTPUT_LIMIT = "output_limit"
    SESSION_LOST = "session_lost"  # not executed: the namespace that the code relied on is gone
    REFUSED = "refused"  # not executed: the request is wrong
    UNAVAILABLE = "unavailable"  # infrastructure; may be tried again
    CANCELLED = "cancelled"  # stopped because its call was canceled and not repeated; may have run in part

    @property
    def is_infrastructure_failure(self) -> bool:
        """True if the request must be retried and must not be shown to the policy, which is not at fault."""
        return self in (Status.UNAVAILABLE, Status.SESSION_LOST, Status.CANCELLED)
