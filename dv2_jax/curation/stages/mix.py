"""The stage mix: the kept rows become the sets, with provenance, data card and manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dv2_jax.agent.prompts import PER_TOOL, build_messages
from dv2_jax.agent.tools.tool_registry import run_tools
from dv2_jax.config import RunFailure
from dv2_jax.curation.card import write_card
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.decisions import COLD_START, RL, WAITING, Decision
from dv2_jax.curation.funnel import Funnel
from dv2_jax.curation.mixture import LONG_COT, choose_rows, parse_mixture
from dv2_jax.curation.provenance import provenance
from dv2_jax.curation.set_writers import RL_FILE, SFT_FILE, find_other_fields, sft_writer, write_rl_file
from dv2_jax.curation.stage import CurationStage, StagePlan, register_stage
from dv2_jax.curation.trajectory_text import sft_messages
from dv2_jax.data.question import Question
from dv2_jax.files import atomic_write, atomic_writer, file_digest

OUTPUT = "output"
PROVENANCE_FILE, MANIFEST_FILE = "provenance.jsonl", "manifest.json"


@register_stage
class Mix(CurationStage):
    """Writes the sets into the folder `output` of the run. Everything is a function of the journals, byte for byte."""

    name = "mix"
    labels_rows = False
    is_global = True

    def run(self, curation: Curation) -> None:
        equal: dict[Decision, Decision] = {}  # equal decisions are stored once
        decided = ((row_id, curation.decision(row_id)) for row_id in curation.store.ids())
        decisions = {row_id: equal.setdefault(decision, decision) for row_id, decision in decided}
        waiting = Counter(d.stage for d in decisions.values() if d.destination == WAITING)
        if waiting:
            counts = ", ".join(f"{count:,} for {stage}" for stage, count in waiting.items())
            raise RunFailure(
                f"{sum(waiting.values()):,} rows wait ({counts}): run the other shards, or these stages, before mix"
            )
        chosen = _choose(curation, decisions)
        output = curation.folder / OUTPUT
        fields = find_other_fields(curation.store.document(row_id)["meta"] for row_id in chosen[RL])
        rl_rows = write_rl_file(output / RL_FILE, _rl_rows(curation, chosen[RL]), fields)
        sft_rows = _write_sft(curation, chosen[COLD_START], output)
        _write_provenance(curation, decisions, chosen, output / PROVENANCE_FILE)
        funnel = Funnel.count(curation, decisions, chosen)
        write_card(curation, funnel, output)
        files = sorted(path for path in output.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
        manifest = {str(path.relative_to(output)): file_digest(path) for path in files}
        atomic_write(output / MANIFEST_FILE, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        curation.display.line(f"{rl_rows:,} rows for RL, {sft_rows:,} for the cold start: {output}")

    def plan(self, curation: Curation) -> StagePlan:
        return StagePlan(self.name, len(curation.store), note="no requests")


def mixture_group(question: Question) -> str:
    """Returns the group of a row in mixtures: its data source, or `long_cot` for rows without images."""
    return question.data_source if question.images else LONG_COT


def _choose(curation: Curation, decisions: dict[str, Decision]) -> dict[str, list[str]]:
    settings, chosen = curation.settings, {}
    for destination, texts, size in (
        (RL, settings.rl_mixture, settings.rl_size),
        (COLD_START, settings.sft_mixture, settings.sft_size),
    ):
        kind = "rl" if destination == RL else "sft"
        groups: dict[str, list[str]] = {}
        for row_id, decision in decisions.items():
            if decision.destination == destination:
                line = curation.store.document(row_id)
                group = line["data_source"] if line["images"] else LONG_COT
                groups.setdefault(group, []).append(row_id)
        shares = parse_mixture(texts, f"curate.{kind}_mixture", kind)
        chosen[destination], _ = choose_rows(groups, shares, size, curation.config.run.seed)
    return chosen


def _prompt(curation: Curation, question: Question) -> list[dict[str, str]]:
    agent = curation.config.agent
    return [dict(message) for message in build_messages(question, agent.system_prompt, run_tools(agent))]


def _rl_rows(curation: Curation, ids: list[str]) -> Iterator[tuple[Question, list[dict[str, str]]]]:
    for row in curation.store.rows(ids):
        yield row.question, _prompt(curation, row.question)


def _write_sft(curation: Curation, ids: list[str], output: Path) -> int:
    """Writes conversations with their images next to them: those that were read, unchanged, and those of teachers."""
    with sft_writer(output / SFT_FILE) as writer:
        for row in curation.store.rows(ids):
            turns = curation.turns(row.id)
            if not turns:
                raise RunFailure(f"row {row.id!r} is for the cold start, but no teacher's trajectory is stored")
            names = [curation.store_image(image) for image in row.question.images]
            names += [name for turn in turns[:-1] for name in turn["images"]]
            for name in names:
                target = output / "images" / name
                if not target.exists():
                    atomic_write(target, curation.read_image(name))
            if row.conversation is not None:
                messages = [dict(message) for message in row.conversation]
            elif row.form == LONG_COT:
                prompt = [dict(message) for message in build_messages(replace(row.question, messages=None), PER_TOOL)]
                messages = sft_messages(prompt, turns)
            else:
                messages = sft_messages(_prompt(curation, replace(row.question, messages=None)), turns)
            writer.write(messages, [f"images/{name}" for name in names])
    return writer.rows


def _write_provenance(
    curation: Curation, decisions: dict[str, Decision], chosen: dict[str, list[str]], path: Path
) -> None:
    sets = {row_id: destination for destination, ids in chosen.items() for row_id in ids}
    lines = (provenance(curation, row_id, decision, sets.get(row_id)) for row_id, decision in decisions.items())
    with atomic_writer(path) as file:
        file.writelines(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
