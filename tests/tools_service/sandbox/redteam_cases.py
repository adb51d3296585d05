"""Hostile cells, as data: ``redteam/*.yaml``.

Keys of a case: ``code`` is run in a session of its own for at most ``timeout_s``; ``status`` lists the outcomes
that count as contained; ``prints`` must and ``never`` may not be found (regular expressions, line by line) in what
comes back. ``keeps`` says whether the next cell still runs in the same namespace, ``next_prints`` what that cell,
which prints ``after`` and whether it is the session's own process, must show. ``then`` are further cells with the same keys, ``elsewhere``
is a cell in another session that was there before, ``differs_elsewhere`` that the same code prints something else
there. ``spoils``: the session may be of no use afterwards, as
long as it answers. ``plain`` replaces keys on the tier without a file system of its own. ``/sandbox`` is the work folder.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tools_service.client import ToolResult

FOLDER = Path(__file__).parent / "redteam"
SERVICE = "service.yaml"  # cases against the service: not cells, but names of tests
KEYS = {
    "id", "title", "code", "timeout_s", "status", "prints", "never", "keeps", "next_prints", "then", "elsewhere",
    "differs_elsewhere", "plain", "spoils",
}  # fmt: skip
TIMEOUT_S = 20.0


def load() -> list[dict]:
    """All cases that are cells. Raises ValueError for a key that nobody reads, and for an id that is used twice."""
    cases = [
        case
        for path in sorted(FOLDER.glob("*.yaml"))
        if path.name != SERVICE
        for case in yaml.safe_load(path.read_text())
    ]
    for case in cases:
        for part in (case, *case.get("then", ()), case.get("elsewhere", {}), case.get("plain", {})):
            if unknown := part.keys() - KEYS:
                raise ValueError(f"{case['id']}: unknown keys {sorted(unknown)}")
    if len({case["id"] for case in cases}) < len(cases):
        raise ValueError("an id is used twice")
    return cases


def against_the_service() -> list[dict]:
    return yaml.safe_load((FOLDER / SERVICE).read_text())


def differences(case: dict, result: ToolResult) -> list[str]:
    """What is not as the case says; empty if all is contained."""
    text = f"{result.stdout}\n{result.stderr}\n{result.message}"
    found = []
    if result.status.value not in case.get("status", ["ok"]):
        found.append(f"status {result.status.value}, not {case.get('status', ['ok'])}")
    if "prints" in case and not re.search(str(case["prints"]), text, re.MULTILINE):
        found.append(f"{case['prints']!r} is missing")
    if "never" in case and (seen := re.search(str(case["never"]), text, re.MULTILINE)):
        found.append(f"{seen[0]!r} must not come back")
    return [f"{line}; it printed {text[:300]!r} ... {text[-300:]!r}" for line in found]
