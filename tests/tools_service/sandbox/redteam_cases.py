"""Loads hostile cells from `redteam/*.yaml` and compares their results.

Keys of a case:

- `code` runs in a fresh session for at most `timeout_s`; `status` lists the outcomes that count as contained.
- `prints` must, and `never` must not, match the output and message (regular expressions, line by line).
- `keeps` states if the next cell still runs in the same namespace. That cell prints `after` and if it runs in the
  session's original process; `next_prints` must be in its output.
- `then` lists further cells with the same keys; `elsewhere` is a cell in another session that existed before.
- `differs_elsewhere`: the same code must print something else in another session.
- `spoils`: the session may be unusable afterwards, as long as it answers, and works again once its process has ended.
- `limit` names the field of `Limits` that the cell tries to exceed; such cases run under every isolation.
- `watched` maps a limit to keys that hold where the watchdog enforces it: it ends the session.

`/sandbox` in the code stands for the work folder.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tools_service.client import ToolResult

FOLDER = Path(__file__).parent / "redteam"
SERVICE = "service.yaml"  # cases against the service, which name a test instead of a cell
KEYS = {
    "id", "title", "code", "timeout_s", "status", "prints", "never", "keeps", "next_prints", "then", "elsewhere",
    "differs_elsewhere", "watched", "limit", "spoils",
}  # fmt: skip
TIMEOUT_S = 20.0


def load() -> list[dict]:
    """Loads all cases that are cells. Raises ValueError for an unknown key or a duplicate id."""
    cases = [
        case
        for path in sorted(FOLDER.glob("*.yaml"))
        if path.name != SERVICE
        for case in yaml.safe_load(path.read_text())
    ]
    for case in cases:
        for part in (case, *case.get("then", ()), case.get("elsewhere", {}), *case.get("watched", {}).values()):
            if unknown := part.keys() - KEYS:
                raise ValueError(f"{case['id']}: unknown keys {sorted(unknown)}")
    if len({case["id"] for case in cases}) < len(cases):
        raise ValueError("an id is used twice")
    return cases


def under(case: dict, enforced_by: dict[str, str]) -> dict:
    """Returns the case as it is where `enforced_by` maps limits to mechanisms."""
    for limit, keys in case.get("watched", {}).items():
        if enforced_by[limit] == "watchdog":
            case = case | keys
    return case


def against_the_service() -> list[dict]:
    """Loads the cases against the service."""
    return yaml.safe_load((FOLDER / SERVICE).read_text())


def differences(case: dict, result: ToolResult) -> list[str]:
    """Lists the differences between the result and the case; empty if the cell was contained."""
    text = f"{result.stdout}\n{result.stderr}\n{result.message}"
    found = []
    if result.status.value not in case.get("status", ["ok"]):
        found.append(f"status {result.status.value}, not {case.get('status', ['ok'])}")
    if "prints" in case and not re.search(str(case["prints"]), text, re.MULTILINE):
        found.append(f"{case['prints']!r} is missing")
    if "never" in case and (seen := re.search(str(case["never"]), text, re.MULTILINE)):
        found.append(f"{seen[0]!r} must not come back")
    return [f"{line}; it printed {text[:300]!r} ... {text[-300:]!r}" for line in found]
