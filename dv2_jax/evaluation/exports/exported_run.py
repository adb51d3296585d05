"""A run as exports see it: its evaluations, and the answers of each with scores and messages, streamed from the records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dv2_jax.agent.tools.tool_registry import find_tool
from dv2_jax.config import ConfigError
from dv2_jax.evaluation.analysis.answer_rows import TRAIN, read_json, read_records, read_scores, record_names, verdict
from dv2_jax.report.page import tools_of_run
from dv2_jax.telemetry.stage_titles import stage_titles, trajectory_title
from dv2_jax.telemetry.trajectories import IMAGE_FOLDER, IMAGE_MARK

_MESSAGE = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_IMAGE = re.compile(rf"(?:<\|vision_start\|>)?{IMAGE_MARK}(?:<\|vision_end\|>)?\n?")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class Message:
    """One message of a conversation; `images` are names of files. A message of a tool answers `call_id`."""

    role: str  # system, user, assistant or tool
    text: str
    images: tuple[str, ...] = ()
    reasoning: str = ""
    call_id: str = ""
    tool: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportedAnswer:
    """One answer: its record, and the score line of the run's first scorer, if it has score files."""

    record: Mapping[str, Any]
    score: Mapping[str, Any] | None

    @property
    def info(self) -> Mapping[str, Any]:
        """The field `answer` of the record; empty for older runs."""
        return self.record.get("answer") or {}

    @property
    def question_id(self) -> str:
        return self.info.get("question_id", self.record["question"]["id"])

    @property
    def sample(self) -> int:
        return self.info.get("sample", 0)

    @property
    def outcome(self) -> str:
        """`correct`, `wrong`, `failed`, `undecided` or `unscored`."""
        return verdict(self.record, self.score)[0]

    @property
    def has_answer(self) -> bool:
        """False if the infrastructure gave no answer; an answer may still lack a verdict."""
        return not (self.info.get("failure") or self.record.get("dropped"))

    @property
    def value(self) -> float | None:
        """The score from 0 to 1; None without a verdict."""
        return verdict(self.record, self.score)[1]

    @property
    def cluster(self) -> str:
        """The cluster of the score; the question where there is none."""
        return verdict(self.record, self.score)[2] or self.question_id

    @property
    def failure(self) -> str:
        """The reason for which there is no answer or no verdict."""
        reason = self.info.get("failure") or ((self.score or {}).get("score") or {}).get("failure", "")
        if reason or self.value is not None:
            return reason
        return "lost by the infrastructure" if self.outcome == "failed" else "the answer has no score"

    @property
    def final(self) -> str | None:
        """The content of the final `<answer>`; None where there is none."""
        if "final" in self.info:
            return self.info["final"]
        found = _ANSWER.findall(self.last_turn)
        return found[-1].strip() if found else None

    @property
    def prediction(self) -> str:
        """The text that rules score: the final answer, or else the last turn without its thoughts."""
        return self.last_turn.rsplit("</think>", 1)[-1].strip() if self.final is None else self.final

    @property
    def last_turn(self) -> str:
        """The text that the policy wrote last."""
        turns = self.record["turns"]
        return turns[-1]["text"] if turns else self.info.get("text", "")

    @property
    def references(self) -> list[str]:
        """The accepted answers: those of the benchmark, or the one of the question."""
        question = self.record["question"]
        return list(question.get("references") or [question["answer"]])

    @property
    def input_tokens(self) -> int:
        return self.info.get("prompt_tokens") or len(self.record["token_ids"]) - len(self.record["logprobs"])

    @property
    def output_tokens(self) -> int:
        return self.info.get("completion_tokens") or len(self.record["logprobs"])

    @property
    def time(self) -> float:
        """Seconds since the epoch at which the answer was stored."""
        return float(self.record.get("time") or 0.0)

    def messages(self) -> list[Message]:
        """Returns the conversation: prompt, turns, and what the tools returned."""
        question = self.record["question"]
        pieces = self.record["segments"]
        prompt = pieces[0]["text"] if pieces and pieces[0]["role"] == "prompt" else ""
        images = iter(question["pictures"])
        found = []
        for role, text in _MESSAGE.findall(prompt):
            count = text.count(IMAGE_MARK)
            names = tuple(name for _, name in zip(range(count), images, strict=False))
            found.append(Message(role, _IMAGE.sub("", text).strip(), names))
        if not any(message.role == "user" for message in found):
            found.append(Message("user", question["text"].replace("<image>", "").strip(), tuple(question["pictures"])))
        for index, turn in enumerate(self.record["turns"]):
            thoughts, closed, text = turn["text"].partition("</think>")
            thoughts, text = (thoughts.removeprefix("<think>"), text) if closed else ("", turn["text"])
            call_id = f"call_{index}" if turn["status"] else ""
            tool = turn["kind"] if call_id else ""
            arguments = {"input": _payload(turn)} if call_id else {}
            found.append(Message("assistant", text.strip(), (), thoughts.strip(), call_id, tool, arguments))
            if turn["observation"] is not None:
                role = "tool" if call_id else "user"
                output = turn["observation"].replace("<image>", "")
                found.append(Message(role, output.strip(), tuple(turn["pictures"]), "", call_id, tool))
        return found


def _payload(turn: Mapping[str, Any]) -> str:
    """Returns the input of a call: code or a query; the text of the turn if its tool is not registered here."""
    tool = find_tool(turn["kind"])
    parsed = None if tool is None else tool.parse(turn["text"])
    return turn["text"] if parsed is None else parsed.payload


@dataclass(frozen=True)
class ExportedEvaluation:
    """The answers of one policy to one benchmark."""

    run: ExportedRun
    name: str  # of its files in `trajectories/`
    stage: str
    benchmark: str

    @property
    def title(self) -> str:
        """The title of the policy."""
        return trajectory_title(self.stage, stage_titles(self.run.results))

    @property
    def file_stem(self) -> str:
        """A name for files, unique in the run."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", f"{self.stage}_{self.benchmark}")

    @property
    def model(self) -> str:
        """The model as in `model.init`, or its name at the endpoint."""
        first = next(iter(self.answers()), None)
        listed = {stage["name"]: stage["init"] for stage in self.run.results.get("stages", ())}
        stored = self.run.config.get("model", {}).get("init") or self.run.results.get("model", "")
        return (first.info.get("model") if first else "") or listed.get(self.stage) or stored or "unknown"

    @property
    def tools(self) -> list[str]:
        """Names of the tools that the policy had, as far as the records say."""
        first = next(iter(self.answers()), None)
        stored = first.info.get("tools") if first else None
        return list(self.run.config.get("agent", {}).get("tools", ()) if stored is None else stored)

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows of the benchmark's result table."""
        return self.run.results.get("benchmarks", {}).get(self.benchmark, {}).get("rows", {}).get(self.stage, ())

    @property
    def scorer(self) -> str:
        """The scorer of the exported scores."""
        return (self.run.config.get("eval", {}).get("scorers") or ["official"])[0]

    def answers(self) -> Iterator[ExportedAnswer]:
        """Yields the answers in the order of the records; memory holds one."""
        scores = self.run.scores(self.name)
        for record in read_records(self.run.directory / "trajectories", self.name):
            info = record.get("answer") or {}
            key = (info.get("question_id", record["question"]["id"]), info.get("sample", 0))
            yield ExportedAnswer(record, None if scores is None else scores.get(key, {}))


@dataclass(frozen=True)
class ExportedRun:
    """A run directory with records of evaluations."""

    directory: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    evaluations: tuple[ExportedEvaluation, ...] = ()

    @classmethod
    def read(cls, directory: str | Path) -> ExportedRun:
        """Reads a run directory of any version.

        Raises:
            ConfigError: the directory has no records of an evaluation.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise ConfigError(f"{directory}: no such run directory")
        results = read_json(directory / "results.json") or read_json(directory / "summary.json")
        run = cls(directory, read_json(directory / "config.json"), results)
        tools_of_run(run.config)  # registers tools of the user's own, which parse their calls
        folder = directory / "trajectories"
        names = [name for name in record_names(folder) if name != TRAIN] if folder.is_dir() else []
        found = []
        for name in names:
            first = next(read_records(folder, name), None)
            if first is not None:
                stage, _, benchmark = name.partition("@")
                own = (first.get("answer") or {}).get("benchmark") or benchmark or run.first_benchmark()
                found.append(ExportedEvaluation(run, name, stage, own))
        if not found:
            raise ConfigError(
                f"{directory}: no records of answers (trajectories/*.jsonl); give the folder of an evaluation"
            )
        return cls(directory, run.config, results, tuple(found))

    def first_benchmark(self) -> str:
        """Returns the benchmark of files whose names have none."""
        benchmarks = list(self.results.get("benchmarks", {}))
        return benchmarks[0] if benchmarks and "embedded" not in benchmarks else "embedded"

    def scores(self, name: str) -> Mapping[tuple[str, int], Mapping[str, Any]] | None:
        """Returns the score lines of the first scorer by (question id, sample); None for runs without score files."""
        scorer = (self.config.get("eval", {}).get("scorers") or [""])[0]
        return read_scores(self.directory / "scores", name, scorer)

    def image(self, name: str) -> Path:
        """Returns the path of a stored image."""
        return self.directory / "trajectories" / IMAGE_FOLDER / name
