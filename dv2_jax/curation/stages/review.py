"""The stage review: a judge reads every trajectory and says whether its calls are relevant and its reasoning is coherent.

The judge sees the question, its images and the trajectory, no reference answer: correctness was decided before. A reply
without a verdict is asked for again, and after `curate.attempts` the row is dropped as undecided.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dv2_jax.agent.prompts import marked_text
from dv2_jax.config import ConfigError, CurateConfig
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.curation_rows import RowForm
from dv2_jax.curation.decisions import COLD_START, DROPPED, Decision
from dv2_jax.curation.models import open_reviewer
from dv2_jax.curation.stage import CurationStage, SingleRequest, StagePlan, register_stage
from dv2_jax.curation.stages.solve_rates import estimate
from dv2_jax.curation.teachers import run_reviewer
from dv2_jax.data.chat_encoder import IMAGE_MARKER
from dv2_jax.endpoint import ChatEndpoint, ChatReply, EndpointUnavailable, chat_content

MAX_TOKENS = 1024
QUALITIES = ("relevant", "coherent", "grounded")
_SYSTEM = """\
You review how an assistant solved a question with tools. Do not solve the question, and do not judge whether the answer is \
correct: that was checked. Judge only these three qualities:

- relevant: every call serves the question; nothing is cropped, computed or searched that has no bearing on it.
- coherent: every step follows from those before it, and the answer from the last step.
- grounded: what the assistant says about an output agrees with that output; it invents none.

Reply with one JSON object and nothing else: {"relevant": true or false, "coherent": true or false, "grounded": true or \
false, "reason": "one sentence"}."""
_USER = "Question:\n{question}\n\nSolution:\n{solution}"
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


@dataclass(frozen=True)
class Review:
    """The verdict of a judge; `failed` has the qualities that it denies."""

    failed: tuple[str, ...]
    reason: str

    @classmethod
    def parse(cls, text: str) -> Review | None:
        """Parses a reply; None if it has no verdict on every quality."""
        found = _OBJECT.search(text.rsplit("</think>", 1)[-1])
        try:
            values = json.loads(found.group()) if found else None
        except ValueError:
            return None
        if not isinstance(values, Mapping) or not all(isinstance(values.get(quality), bool) for quality in QUALITIES):
            return None
        return cls(tuple(quality for quality in QUALITIES if not values[quality]), str(values.get("reason", ""))[:500])


@register_stage
class ReviewStage(CurationStage):
    """Drops the trajectories that a judge finds irrelevant, incoherent or ungrounded."""

    name = "review"

    def applies(self, before: Decision, form: RowForm) -> bool:
        return before.destination == COLD_START

    def is_complete(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig) -> bool:
        return bool(entries) and (not entries[0]["failure"] or entries[0]["attempt"] >= settings.attempts)

    def decide(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig, before: Decision) -> Decision:
        entry = entries[0]
        if entry["failure"]:
            return Decision(DROPPED, self.name, f"undecided: {entry['failure']}")
        return Decision(DROPPED, self.name, f"not {', not '.join(entry['denied'])}") if entry["denied"] else before

    def plan(self, curation: Curation) -> StagePlan:
        rows = curation.unlabeled_ids(self.name)
        return estimate(self.name, len(rows), len(rows), curation)

    def single_requests(self, curation: Curation) -> Iterator[SingleRequest]:
        model = run_reviewer(curation.settings).model
        if not model:
            raise ConfigError("--batch-write needs curate.reviewer = URL#MODEL, with the name in the requests")
        for row_id in curation.unlabeled_ids(self.name):
            parameters = review_parameters(self._attempt(curation, row_id))
            key = parameters.pop("key")
            yield SingleRequest(model, review_messages(curation, row_id), parameters, key)

    def run(self, curation: Curation) -> None:
        while waiting := curation.unlabeled_ids(self.name):
            with (
                open_reviewer(curation) as endpoint,
                curation.display.track(f"{self.name}: {endpoint.model}", len(waiting), unit="trajectories") as bar,
                ThreadPoolExecutor(curation.settings.concurrency, "reviewer") as pool,
            ):
                ids = iter(waiting)
                while chunk := list(islice(ids, 4 * curation.settings.concurrency)):
                    for future in as_completed([pool.submit(self._review, curation, endpoint, id_) for id_ in chunk]):
                        row_id, labels = future.result()
                        cost = curation.budget.add(endpoint.model, labels["prompt_tokens"], labels["completion_tokens"])
                        curation.journal(self.name).add(row_id, labels | {"cost": cost})
                        bar.advance()
                    curation.budget.check()

    def _attempt(self, curation: Curation, row_id: str) -> int:
        before = curation.journal(self.name).get(row_id)
        return 1 if before is None else before["attempt"] + 1

    def _review(self, curation: Curation, endpoint: ChatEndpoint, row_id: str) -> tuple[str, dict[str, Any]]:
        """Asks for one verdict, in a thread of the pool."""
        attempt = self._attempt(curation, row_id)
        labels: dict[str, Any] = {
            "attempt": attempt,
            "model": endpoint.model,
            "denied": [],
            "reason": "",
            "failure": "",
        }
        reply = ChatReply("")
        try:
            reply = endpoint.complete(review_messages(curation, row_id), **review_parameters(attempt))
            found = None if reply.failure else Review.parse(reply.text)
            if found is None:
                labels["failure"] = reply.failure or "the reply has no verdict"
            else:
                labels |= {"denied": list(found.failed), "reason": found.reason}
        except (EndpointUnavailable, ValueError, OSError) as error:  # the latter: an image that cannot be sent
            labels["failure"] = str(error)
        tokens = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        return row_id, labels | tokens | {"seconds": reply.seconds}


def review_parameters(attempt: int) -> dict[str, Any]:
    """Returns the parameters of a request for a verdict; the key of a further attempt makes it another request."""
    return {"key": f"attempt {attempt}" if attempt > 1 else "", "temperature": 0.0, "max_tokens": MAX_TOKENS}


def review_messages(curation: Curation, row_id: str) -> list[dict[str, Any]]:
    """Returns the request for a verdict: the question with its images, and all turns with outputs and their images."""
    question, turns = curation.store.row(row_id).question, curation.turns(row_id)
    steps, images = [], list(question.images)
    for number, turn in enumerate(turns, start=1):
        steps.append(f"[assistant, step {number}]\n{turn['text'].replace(IMAGE_MARKER, '')}")
        if turn["observation"] is not None and number < len(turns):
            steps.append(f"[output]\n{turn['observation']}")
            images += [curation.read_image(name) for name in turn["images"]]
    content = chat_content(
        _USER.format(question=marked_text(question), solution="\n\n".join(steps)), images, IMAGE_MARKER
    )
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": content}]
