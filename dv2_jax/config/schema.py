"""Configuration schema: frozen dataclasses whose defaults run on a laptop.

Every field carries a help text, which `--help` prints and which names the unit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dv2_jax.config.curate_config import CurateConfig
from dv2_jax.config.migrations import migrate
from dv2_jax.config.overrides import from_mapping
from dv2_jax.config.setting import setting


@dataclass(frozen=True)
class RunConfig:
    """Run directory, random seed and logging."""

    name: str = setting("default", "Name of the run; the run directory is `root/name`.")
    root: str = setting("runs", "Parent folder of run directories, on a file system that all hosts mount.")
    seed: int = setting(0, "Random seed for question order, data order and token sampling.")
    resume: bool = setting(True, "Continue from the newest checkpoint in the run directory.")
    tensorboard: bool = setting(True, "Write TensorBoard event files in addition to metrics.jsonl.")
    wandb_project: str = setting("", "Weights & Biases project; empty: off.")


@dataclass(frozen=True)
class ModelSource:
    """Initial weights and numeric types of the policy."""

    init: str = setting(
        "package:cold_start",
        "Initial weights: package:base | package:cold_start | package:smol | hf:/path | checkpoint:/path | random.",
    )
    preset: str = setting("tiny", "Architecture if init is random: tiny | smol | 3b | 7b | 32b | 72b.")
    compute_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "Dtype of activations and matrix products; the trainer's weights stay float32."
    )
    freeze: tuple[str, ...] = setting((), "Parts without gradient updates, a subset of vision, projector, text.")
    remat: bool = setting(False, "Rematerialize each layer in the backward pass to save activation memory.")


@dataclass(frozen=True)
class MeshConfig:
    """Device mesh: number of devices along each axis."""

    data: int = setting(1, "Devices on the data-parallel axis; -1: all remaining devices.")
    fsdp: int = setting(-1, "Devices on the fully-sharded data-parallel axis; -1: all remaining devices.")
    tensor: int = setting(1, "Devices on the tensor-parallel axis, which shards heads and features.")
    context: int = setting(1, "Devices on the context-parallel axis, which shards each row's tokens and image patches.")
    cpu_devices: int = setting(
        1, "JAX devices to create on a machine without accelerators; a count in XLA_FLAGS takes precedence."
    )


@dataclass(frozen=True)
class ImageConfig:
    """Bounds of the image size that the model sees, after `smart_resize`."""

    min_pixels: int = setting(56 * 56, "Minimum pixels per image; smaller images are enlarged.")
    max_pixels: int = setting(84 * 56, "Maximum pixels per image; larger images are shrunk.")


@dataclass(frozen=True)
class AgentConfig:
    """Limits and prompts of one trajectory; the 7b preset has the released DeepEyesV2 values."""

    system_prompt: str = setting(
        "brief",
        "System prompt: brief | full | full_no_search | per_tool (describes the tools of the run) | path of a text file.",
    )
    tools: tuple[str, ...] = setting(
        ("code", "search", "image_search"),
        "Tools that the policy may call, in the order in which they parse a turn: registered names or"
        " package.module:ClassName.",
    )
    max_turns: int = setting(6, "Maximum generations per trajectory.")
    max_turn_tokens: int = setting(160, "Maximum tokens per generation.")
    max_total_tokens: int = setting(1024, "Maximum tokens of prompt and response together, image tokens included.")
    max_images: int = setting(12, "Maximum images per trajectory.")
    max_images_per_turn: int = setting(10, "Maximum images per observation.")
    stdout_chars: int = setting(8000, "Maximum characters of stdout per observation; the rest is clipped with a note.")
    stderr_chars: int = setting(4000, "Maximum characters of stderr per observation; the rest is clipped with a note.")
    search_results: int = setting(3, "Results per search query; 5 in the real presets, as released.")
    prefill_think: bool = setting(True, "End each observation with `<think>`, which is masked from the loss.")
    code_images: Literal["native", "view"] = setting(
        "native", "Size of the images preloaded in the sandbox: native pixels, or as the model sees them."
    )


@dataclass(frozen=True)
class SamplingConfig:
    """Token sampling of rollouts."""

    temperature: float = setting(1.0, "Sampling temperature; 0: greedy decoding.")


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of the generation engine; slots, pages and prefill rows are totals over all devices of all hosts."""

    slots: int = setting(64, "Sequences that decode concurrently.")
    page_size: int = setting(32, "Tokens per KV-cache page.")
    pages: int = setting(2560, "KV-cache pages in total.")
    page_allocation: Literal["reserved", "on_demand"] = setting(
        "reserved",
        "Pages of an admitted sequence: reserved for its maximum length | on_demand, as it grows; if none is free, another"
        " sequence is preempted and computed again later.",
    )
    page_watermark: float = setting(
        0.02, "Share of the pages that an admission leaves free if page_allocation is on_demand."
    )
    prefill_rows: int = setting(16, "Sequences per prefill dispatch.")
    prefill_tokens: int = setting(128, "Tokens per row of a prefill dispatch.")
    decode_tokens: int = setting(16, "Tokens per sequence of a decode dispatch.")
    min_live_rows: float = setting(
        0.75, "Share of its sequences below which a decode dispatch ends, so that others take the place of ended turns."
    )
    shape_tolerance: float = setting(
        1.8,
        "A program is not compiled if a larger shape costs at most this factor more. Nearer 1: less padding, longer warm-up.",
    )
    image_cache_tokens: int = setting(
        4096, "Capacity of the image embedding cache in merged image tokens; at least one largest image."
    )


@dataclass(frozen=True)
class ToolsConfig:
    """Connection to the tools service."""

    address: str = setting(
        "", "Service address as host:port, replicas separated by commas; empty: start a service on loopback."
    )
    token_file: str = setting("", "File with the bearer token for the service at `address`.")
    tls_ca: str = setting("", "PEM file with the authority of the service's certificate; empty: no TLS.")
    tls_cert: str = setting("", "PEM file with the client certificate, for a service that requires one.")
    tls_key: str = setting("", "PEM file with the private key of the client certificate.")
    text_index: str = setting(
        "", "Text search index for a service started here; empty: the facts of the default tasks."
    )
    image_index: str = setting(
        "", "Image search index for a service started here; empty: the images of the default tasks."
    )
    cell_timeout_s: float = setting(10.0, "Time limit of one code block in seconds.")
    request_timeout_s: float = setting(60.0, "Time limit of one request to the service in seconds.")
    retries: int = setting(2, "Retries after infrastructure failures, before the trajectory is masked from the loss.")
    outage_s: float = setting(
        300.0, "Seconds without one result from the tools service after which the run stops with a checkpoint."
    )


@dataclass(frozen=True)
class TaskConfig:
    """Questions for RL training and for evaluation."""

    source: str = setting("default", "Training questions: default (embedded tasks) | path of a parquet/jsonl file.")
    skills: tuple[str, ...] = setting(
        ("perception", "reasoning", "search", "integration", "plain"), "Skills of the embedded tasks to draw from."
    )
    eval_source: str = setting(
        "", "File of held-out questions; empty: the embedded held-out questions, or the last rows of `source`."
    )
    train_size: int = setting(4096, "Number of embedded training questions; a file is used completely.")
    eval_size: int = setting(500, "Number of held-out questions; 0: all rows of `eval_source`.")
    seed: int = setting(0, "Random seed of the generated questions.")


@dataclass(frozen=True)
class DataConfig:
    """Treatment of data files; they are checked completely before they are used."""

    bad_rows: Literal["error", "skip"] = setting(
        "error", "Rows with faults: error (stop at the start with a report) | skip (leave them out and say so)."
    )
    max_bad_fraction: float = setting(
        0.05, "Fraction of rows with faults above which skip stops too. Rows that are only too long do not count."
    )


@dataclass(frozen=True)
class RewardConfig:
    """Reward weights and judge; the arithmetic is the released one (reward_score/deepeyesv2.py)."""

    accuracy_weight: float = setting(0.8, "Reward for a correct answer.")
    format_weight: float = setting(0.2, "Reward for well-formed turns.")
    search_penalty: float = setting(0.1, "Fraction of the accuracy reward lost in the search split after a tool call.")
    max_answer_chars: int = setting(
        300, "Maximum answer length in characters (perception and search); longer is wrong."
    )
    tool_bonus: float = setting(0.0, "Additional reward for a correct answer that used code.")
    judge_base_url: str = setting("", "Base URL of an OpenAI-compatible judge; empty: rules only.")
    judge_model: str = setting("", "Model name at the judge's endpoint; empty: the first one that it lists.")
    judge_outage_s: float = setting(
        300.0, "Seconds without one verdict from the judge after which the run stops with a checkpoint."
    )
    verdicts: tuple[str, ...] = setting(
        ("rules", "judge"),
        "Verdict sources in order, registered names or package.module:function; the first to decide wins.",
    )
    terms: tuple[str, ...] = setting(
        ("accuracy", "format", "tool_bonus"),
        "Reward terms that are added up, NAME or NAME=WEIGHT; a name is a registered one or package.module:function."
        " Without a weight: the fields above for these three, 1 for others.",
    )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and the learning-rate schedule."""

    learning_rate: float = setting(1e-4, "Peak learning rate.")
    warmup_ratio: float = setting(0.05, "Fraction of the steps with linear learning-rate warmup.")
    schedule: Literal["constant", "cosine"] = setting(
        "cosine", "Learning-rate schedule after warmup; cosine decays to 0."
    )
    b1: float = setting(0.9, "AdamW decay rate of the first moment.")
    b2: float = setting(0.95, "AdamW decay rate of the second moment.")
    weight_decay: float = setting(0.01, "AdamW weight decay; not applied to norms and biases.")
    max_grad_norm: float = setting(1.0, "Maximum global gradient norm; 0: no clipping.")


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning."""

    steps: int = setting(300, "Number of optimizer steps.")
    batch_rows: int = setting(8, "Packed rows per optimizer step.")
    row_tokens: int = setting(1024, "Tokens per packed row.")
    microbatches: int = setting(1, "Gradient accumulation microbatches per optimizer step.")
    data: str = setting(
        "cold_start", "Training data: cold_start (scripted solver with tools) | pretrain | path of messages JSON."
    )
    examples: int = setting(6000, "Number of trajectories generated if data is cold_start.")
    checkpoint_every: int = setting(100, "Checkpoint interval in optimizer steps.")


@dataclass(frozen=True)
class RLConfig:
    """Reinforcement learning."""

    algorithm: Literal["dapo", "grpo", "dr_grpo", "gspo", "cispo", "rloo", "deepeyesv2", "released"] = setting(
        "dapo",
        "Values of the fields loss to dual_clip that are none; deepeyesv2 (alias released): the released script.",
    )
    loss: str | None = setting(
        None,
        "Policy loss: ppo_clip | gspo | cispo | sapo | reinforce, a registered name or package.module:function;"
        " none: of the algorithm.",
    )
    advantage: str | None = setting(
        None,
        "Advantage estimator: grpo | dr_grpo (no standard deviation) | rloo | batch (standard deviation of the step), a"
        " registered name or package.module:function; none: of the algorithm.",
    )
    aggregation: str | None = setting(
        None,
        "Loss aggregation: token_mean (over all tokens of a minibatch) | sequence_mean (of per-sequence means) |"
        " sequence_sum (divided by sequences x max_response_tokens), a registered name or package.module:function;"
        " none: of the algorithm.",
    )
    clip_low: float | None = setting(
        None, "Lower clip distance: ratios are clipped at 1 - clip_low; none: of the algorithm."
    )
    clip_high: float | None = setting(
        None, "Upper clip distance: ratios are clipped at 1 + clip_high; none: of the algorithm."
    )
    dual_clip: float | None = setting(
        None, "Dual-clip bound of the loss at negative advantages; 0: off; none: of the algorithm."
    )
    loss_options: tuple[str, ...] = setting(
        (), "Further options of the loss, NAME=NUMBER (sapo: temperature_neg=1.05)."
    )
    max_response_tokens: int | None = setting(
        None, "Constant length of a sequence, in tokens, by which sequence_sum divides; none: row_tokens."
    )
    mask_truncated: bool = setting(
        False, "Leave trajectories that ended at a token limit out of the loss, but in the baseline of their group."
    )
    steps: int = setting(40, "Number of rollout batches.")
    prompts_per_step: int = setting(16, "Questions per rollout batch.")
    group_size: int = setting(8, "Trajectories per question.")
    minibatches: int = setting(1, "Optimizer steps per rollout batch.")
    microbatch_rows: int = setting(8, "Packed rows per gradient accumulation microbatch.")
    row_tokens: int = setting(1024, "Tokens per packed row.")
    dynamic_sampling: bool = setting(False, "Replace groups with equal rewards by newly sampled groups.")
    max_sampling_rounds: int = setting(4, "Maximum rollout rounds per step with dynamic sampling.")
    kl_coefficient: float = setting(0.0, "Weight of the KL divergence from the initial policy; 0: off.")
    checkpoint_every: int = setting(10, "Checkpoint interval in steps.")
    keep_trajectories: int = setting(
        64, "Trajectories stored with images per step; with several hosts, those of the first."
    )


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    stages: tuple[str, ...] = setting(
        ("initial", "final"), "Policies of an RL run to evaluate: initial (before training) | final."
    )
    compare: tuple[str, ...] = setting(
        (), "Further policies to evaluate on the same questions, each written like model.init, e.g. package:base."
    )
    benchmarks: tuple[str, ...] = setting(
        (),
        "Benchmarks of the command evaluate: registered names (--list shows them), package.module:ClassName, or paths of"
        " parquet, jsonl or json files; empty: the held-out questions of `task`.",
    )
    baselines: tuple[str, ...] = setting(
        (), "Baselines that evaluate adds: guessing (commonest answer), no_tools (every tool call is refused)."
    )
    data: str = setting(
        "", "Folder of benchmark files under their published names; empty: $LMUData or, without it, ~/LMUData."
    )
    size: int = setting(0, "Questions per benchmark: the first SIZE; 0: all.")
    scorers: tuple[str, ...] = setting(
        ("official",),
        "Scorers; the first fills the tables: official (the benchmark's rule) | deepeyesv2 (the released evaluation).",
    )
    samples: int = setting(1, "Answers per question, for mean@k and pass@k.")
    temperature: float = setting(0.0, "Sampling temperature of answers; above 0 for more than one sample.")
    tool_sets: tuple[str, ...] = setting(
        ("protocol",),
        "Tools of the evaluated policies, one evaluation each: protocol (those of the benchmark) | none | text_search |"
        " image_search | both_searches | all, or names joined by +, such as code+search.",
    )
    attempts: int = setting(3, "Attempts per answer, over all starts of the command; then it stays failed.")
    max_failed_fraction: float = setting(
        1.0, "Fraction of failed answers of a benchmark above which the command ends with an error."
    )
    endpoint: str = setting(
        "", "Base URL of an OpenAI-compatible model to evaluate instead of model.init, such as http://host:8000/v1."
    )
    endpoint_model: str = setting("", "Model name at the endpoint; empty: the first one that it lists.")
    endpoint_concurrency: int = setting(16, "Questions that are asked at the same time.")
    endpoint_max_tokens: int = setting(4096, "Maximum tokens per reply of the endpoint.")
    endpoint_timeout_s: float = setting(600.0, "Time limit of one request to the endpoint in seconds.")
    judge_rubric: str = setting(
        "consistency", "Rubric of the judge: consistency | math (both as released) | a registered name."
    )
    human_labels: str = setting(
        "", "JSONL file of human verdicts (benchmark, question_id, correct), for agreement and bias correction."
    )
    prices: str = setting("", "JSON file of prices per million tokens by model, for costs; empty: no costs.")
    max_cost: float = setting(0.0, "Cost at which the evaluation stops, in the currency of `prices`; 0: no limit.")
    max_hours: float = setting(0.0, "Hours after which the evaluation stops and can be continued; 0: no limit.")
    search_record: Literal["off", "record", "replay", "auto"] = setting(
        "off",
        "Search results of benchmarks: off | record (search and store) | replay (stored ones only) | auto (search for"
        " what is not stored).",
    )
    search_records: str = setting(
        "",
        "Folders of recorded searches and released result files, separated by commas; new ones go to the first folder, or else"
        " to search_records/ in the run directory.",
    )


@dataclass(frozen=True)
class ServeConfig:
    """The OpenAI-compatible server."""

    host: str = setting("127.0.0.1", "Address to listen on; one that other machines can reach requires a token.")
    port: int = setting(8000, "Port to listen on; 0: a free one.")
    name: str = setting("dv2", "Served name of the agent; the model without tools is NAME-raw.")
    token_file: str = setting(
        "", "File with the bearer token that clients send; empty: $DV2_SERVE_TOKEN or, without it, none."
    )
    max_queue: int = setting(256, "Answers that wait for a slot of the engine; further requests get status 429.")
    max_choices: int = setting(16, "Maximum n: answers to one request.")
    max_body_mb: int = setting(64, "Maximum size of one request in megabytes.")
    keep_alive_s: float = setting(10.0, "Seconds without data after which a stream sends a comment.")
    drain_s: float = setting(60.0, "Seconds that running requests have to finish after SIGTERM.")
    save_trajectories: bool = setting(
        False, "Write every answer, with the client's images, to trajectories/serve.jsonl in the run directory."
    )


@dataclass(frozen=True)
class Config:
    """Complete configuration of one run."""

    recipe: Literal["sft", "rl", "evaluate", "serve", "curate"] = setting(
        "rl", "Entry point that the configuration is for."
    )
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelSource = field(default_factory=ModelSource)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tools: ToolsConfig = field(default_factory=ToolsConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    curate: CurateConfig = field(default_factory=CurateConfig)

    def to_dict(self) -> dict:
        """Returns nested dictionaries, as stored in a run's `config.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """Builds the configuration from `to_dict` or a run's `config.json`, also one with fields since renamed.

        Raises:
            ConfigError: a key is unknown, or a value has the wrong type.
        """
        return from_mapping(cls, migrate(data))
