"""The section `curate` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from dv2_jax.config.setting import setting


@dataclass(frozen=True)
class CurateConfig:
    """Data construction: which rows, which models, which thresholds, which sets."""

    sources: tuple[str, ...] = setting(
        ("embedded",),
        "Sources: embedded (training questions of `task`) | NAME=PATH;LICENSE of parquet, jsonl, json or csv, with ;KIND:"
        " perception | reason | search | long_cot (answered without tools); without KIND each row's own.",
    )
    size: int = setting(0, "Rows per source: the first SIZE; 0: all, and task.train_size of the embedded ones.")
    stages: tuple[str, ...] = setting(
        ("read", "deduplicate", "difficulty", "benefit", "synthesize", "verify", "withheld", "mix"),
        "Stages in order: registered names or package.module:ClassName; a stage sees the rows that those before it keep.",
    )
    shard: str = setting("0/1", "Part of the rows that this process labels, INDEX/COUNT; all mount the run directory.")
    samples: int = setting(8, "Answers per question in the stages difficulty and benefit.")
    temperature: float = setting(1.0, "Sampling temperature of these answers.")
    attempts: int = setting(3, "Attempts per answer and per trajectory of a teacher.")
    max_failed_samples: int = setting(2, "Failed answers of a question above which it is dropped.")
    max_solved_without_tools: int = setting(
        2, "Correct answers without tools above which a question is too easy, as in the paper (2 of 8)."
    )
    min_solved_with_tools: int = setting(
        1, "Correct answers with tools from which on a question is for RL; with fewer, teachers solve it."
    )
    endpoint: str = setting(
        "", "Base URL of the model whose abilities are labeled; empty: model.init on the own engine."
    )
    endpoint_model: str = setting("", "Model name at the endpoint; empty: the first one that it lists.")
    teachers: tuple[str, ...] = setting(
        ("scripted",), "Teachers: scripted (embedded tasks only) | URL#MODEL, with =WEIGHT for a share other than 1."
    )
    teacher_temperature: float = setting(0.7, "Sampling temperature of teachers behind endpoints.")
    hinted_attempts: int = setting(
        0, "Attempts of a teacher, the last of `attempts`, whose prompt has the reference answer; the set never has it."
    )
    withheld_samples: int = setting(1, "Answers from a trajectory's first call on without its output, in `withheld`.")
    max_solved_withheld: int = setting(0, "Correct answers without the output above which the tool did not help.")
    reviewer: str = setting(
        "", "Judge of the stage `review`, URL#MODEL; it sees question and trajectory, no reference."
    )
    max_tokens: int = setting(4096, "Maximum tokens per reply of an endpoint.")
    concurrency: int = setting(16, "Questions that are asked at the same time; rate limits lower it for a time.")
    requests_per_minute: int = setting(0, "Requests per minute to each endpoint; 0: no limit.")
    tokens_per_minute: int = setting(0, "Tokens per minute of each endpoint, prompt and reply; 0: no limit.")
    timeout_s: float = setting(600.0, "Time limit of one request to an endpoint in seconds.")
    benchmarks: tuple[str, ...] = setting(
        ("found",),
        "Benchmarks to decontaminate against: found (all with files in eval.data) | names as eval.benchmarks.",
    )
    rl_size: int = setting(0, "Rows of the RL set; 0: as many as the shares permit.")
    sft_size: int = setting(0, "Rows of the cold-start set; 0: as many as the shares permit.")
    rl_mixture: tuple[str, ...] = setting(
        (), "Shares of the RL set: paper | GROUP=SHARE, groups are perception, reason, search; empty: all rows."
    )
    sft_mixture: tuple[str, ...] = setting(
        (),
        "Shares of the cold-start set: paper | GROUP=SHARE, with the further group long_cot (no images); empty: all.",
    )
    prices: str = setting("", "JSON file of prices per million tokens by model, for costs; empty: no costs.")
    max_cost: float = setting(0.0, "Cost at which the run stops, in the currency of `prices`; 0: no limit.")
