"""Compares what clients measured with what `evaluate` measured: `python .ci/clients/compare.py RUN FOLDER`.

RUN is a run directory of `evaluate` on `rows`, `vstar` and `treebench`; FOLDER holds the results of the clients on the same
questions: `openai.json`, a log of inspect-ai in `logs/`, and VLMEvalKit's predictions and status in `kit.json`. Answers must
be equal question by question, and scores must be equal.
"""

import json
import sys
from pathlib import Path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(run: Path, benchmark: str) -> list[str]:
    """Returns the answers that `evaluate` scored, in the order of the questions."""
    (path,) = run.glob(f"trajectories/*@{benchmark}.jsonl")
    found = {}
    for record in read_lines(path):
        turns = [piece["text"] for piece in record["segments"] if piece["role"] == "model"]
        last = turns[-1].removesuffix("<|im_end|>").rsplit("</think>", 1)[-1].strip()
        final = record["answer"]["final"]
        found[record["answer"]["question_id"]] = last if final is None else final
    return [found[id_] for id_ in sorted(found, key=lambda id_: (len(id_), id_))]  # numbers without leading zeros


def accuracy(run: Path, benchmark: str) -> float:
    """Returns the share of correct answers; one that needs a judge is wrong, as under the kit's `exact_matching`."""
    (path,) = run.glob(f"scores/*@{benchmark}.jsonl")
    outcomes = [record["outcome"] for record in read_lines(path)]
    return outcomes.count("correct") / len(outcomes)


def expect_equal(what: str, client: object, evaluate: object) -> None:
    if client != evaluate:
        raise SystemExit(f"{what}: the client has {client!r}, evaluate has {evaluate!r}")
    print(f"{what}: equal{f' ({client:.3f})' if isinstance(client, float) else ''}")


def main() -> None:
    run, folder = map(Path, sys.argv[1:])
    expected = answers(run, "rows")
    expect_equal("openai: answers", json.loads((folder / "openai.json").read_text()), expected)
    (log,) = (folder / "logs").glob("*.json")
    logged = json.loads(log.read_text())
    outputs = {}
    for sample in logged["samples"]:
        content = sample["output"]["choices"][0]["message"]["content"]
        texts = content if isinstance(content, str) else "".join(p["text"] for p in content if p["type"] == "text")
        outputs[sample["id"]] = texts
    expect_equal("inspect-ai: answers", [outputs[id_] for id_ in sorted(outputs)], expected)
    score = logged["results"]["scores"][0]["metrics"]["mean"]["value"]
    expect_equal("inspect-ai: score", round(score, 6), round(accuracy(run, "rows"), 6))
    kit = json.loads((folder / "kit.json").read_text())
    for name, benchmark, metric in [
        ("TinyMCQ", "vstar", "split=none|Overall"),
        ("TreeBench", "treebench", "Overall"),
    ]:
        expect_equal(f"VLMEvalKit {name}: answers", kit["predictions"][name], answers(run, benchmark))
        score = kit["status"]["datasets"][name]["metrics"][metric]
        expect_equal(f"VLMEvalKit {name}: score", round(score, 6), round(accuracy(run, benchmark), 6))


if __name__ == "__main__":
    main()
