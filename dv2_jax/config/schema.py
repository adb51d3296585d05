"""Configuration: frozen dataclasses whose defaults run on a laptop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dv2_jax.config.overrides import from_mapping


@dataclass(frozen=True)
class RunConfig:
    name: str = "default"  # run directory is root/name
    root: str = "runs"  # a folder here, or on a file system that all hosts mount
    seed: int = 0  # of everything that is drawn: questions, order, tokens
    resume: bool = True  # continue from the newest checkpoint in the run directory
    tensorboard: bool = True  # event files beside metrics.jsonl
    wandb_project: str = ""  # empty: off


@dataclass(frozen=True)
class ModelSource:
    init: str = "package:cold_start"  # package:base | package:cold_start | package:smol | hf:/path
    # | checkpoint:/path | random
    preset: str = "tiny"  # architecture when init is random: tiny | smol | 3b | 7b | 32b | 72b
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # weights stay float32
    freeze: tuple[str, ...] = ()  # subset of ("vision", "projector", "text")
    remat: bool = False  # rematerialize each layer in the backward pass


@dataclass(frozen=True)
class MeshConfig:
    data: int = 1  # replicas that share the batch
    fsdp: int = -1  # -1: all remaining devices
    tensor: int = 1  # devices that split each layer's heads and features
    context: int = 1  # devices that split each row's tokens and pictures
    cpu_devices: int = 1  # devices that JAX makes of a machine without accelerators; XLA_FLAGS goes before


@dataclass(frozen=True)
class ImageConfig:
    min_pixels: int = 56 * 56  # the model's view, after smart_resize; the tiny preset sees every picture at 56x56
    max_pixels: int = 84 * 56  # larger pictures are shrunk


@dataclass(frozen=True)
class AgentConfig:
    """Budgets and wording of one trajectory (DeepEyesV2 released values in the 7b preset)."""

    system_prompt: str = "brief"  # brief | full | full_no_search | path of a text file
    max_turns: int = 6  # generations
    max_turn_tokens: int = 160  # of one generation
    max_total_tokens: int = 1024  # prompt + response, image tokens expanded
    max_images: int = 12  # per trajectory
    max_images_per_turn: int = 10  # that one observation may bring
    stdout_chars: int = 8000  # of an observation; the rest is clipped, with a note
    stderr_chars: int = 4000  # likewise
    search_results: int = 3  # per query; the real presets show five, as released
    prefill_think: bool = True  # observations end with a masked "<think>"
    code_images: Literal["native", "view"] = "native"  # size at which image_i is pre-loaded in the sandbox


@dataclass(frozen=True)
class SamplingConfig:
    temperature: float = 1.0  # 0: greedy


@dataclass(frozen=True)
class EngineConfig:
    """Slots, pages and prefill rows count all devices together, those of all hosts."""

    slots: int = 64  # sequences decoding at once
    page_size: int = 32  # tokens per KV page
    pages: int = 2560  # KV pages in all
    prefill_rows: int = 16  # sequences per prefill dispatch
    prefill_tokens: int = 128  # tokens per row of a prefill dispatch
    decode_tokens: int = 16  # K: tokens per decode dispatch
    picture_tokens: int = 4096  # merged embeddings kept on the device; at least the largest picture's


@dataclass(frozen=True)
class ToolsConfig:
    address: str = ""  # host:port, several replicas with commas between; empty: start a service on loopback
    token_file: str = ""  # holds the secret of the service at address
    tls_ca: str = ""  # PEM file: authority of the service's certificate; empty: no TLS
    tls_cert: str = ""  # PEM file: certificate of this trainer, for a service that asks for one
    tls_key: str = ""  # PEM file: its private key
    text_index: str = ""  # index for the service that we start; empty: the facts of the default tasks
    image_index: str = ""  # likewise, of pictures
    cell_timeout_s: float = 10.0  # seconds one code block may run
    request_timeout_s: float = 60.0  # seconds until a request counts as lost
    retries: int = 2  # of infrastructure failures, before the trajectory is dropped from the loss


@dataclass(frozen=True)
class TaskConfig:
    source: str = "default"  # default: the embedded tasks | path of a parquet/jsonl file in the released row format
    skills: tuple[str, ...] = ("perception", "reasoning", "search", "integration", "plain")  # kinds of embedded tasks
    eval_source: str = ""  # file of held-out questions; empty: the embedded ones, or the last rows of source
    train_size: int = 4096  # embedded questions; a file is used whole
    eval_size: int = 500  # held-out questions; 0: all rows of eval_source
    seed: int = 0  # of the questions that are generated


@dataclass(frozen=True)
class RewardConfig:
    """Released arithmetic (spec of DeepEyesV2, reward_score/deepeyesv2.py)."""

    accuracy_weight: float = 0.8  # of a right answer
    format_weight: float = 0.2  # of well-formed turns
    search_penalty: float = 0.1  # fraction of accuracy lost in the search split after a tool call
    max_answer_chars: int = 300  # longer ones are wrong (perception and search)
    tool_bonus: float = 0.0  # for a right answer that used code
    judge_base_url: str = ""  # OpenAI-compatible; empty: rules
    judge_model: str = ""  # its name at that endpoint


@dataclass(frozen=True)
class OptimConfig:
    learning_rate: float = 1e-4  # at its peak
    warmup_ratio: float = 0.05  # fraction of the steps that climb to it
    schedule: Literal["constant", "cosine"] = "cosine"  # after the warm-up; cosine ends at 0
    b1: float = 0.9  # AdamW, decay of the first moment
    b2: float = 0.95  # of the second
    weight_decay: float = 0.01  # not on norms and biases
    max_grad_norm: float = 1.0  # global; 0: no clipping


@dataclass(frozen=True)
class SFTConfig:
    steps: int = 300  # optimizer steps
    batch_rows: int = 8  # packed rows per optimizer step
    row_tokens: int = 1024  # tokens of a packed row
    microbatches: int = 1  # forward and backward passes per optimizer step
    data: str = "cold_start"  # cold_start: scripted solver through the service | pretrain | path of messages JSON
    examples: int = 6000  # trajectories generated when data is cold_start
    checkpoint_every: int = 100  # steps


@dataclass(frozen=True)
class RLConfig:
    algorithm: Literal["dapo", "released"] = "dapo"  # the paper's | what the released script runs
    steps: int = 40  # batches of rollouts
    prompts_per_step: int = 16  # questions per batch of rollouts
    group_size: int = 8  # trajectories per question
    minibatches: int = 1  # optimizer steps per rollout batch
    microbatch_rows: int = 8  # packed rows per gradient accumulation step
    row_tokens: int = 1024  # tokens of a packed row
    clip_low: float = 0.2  # the ratio is clipped to 1 - clip_low ...
    clip_high: float = 0.3  # ... 1 + clip_high
    dual_clip: float = 3.0  # bound of the loss at negative advantages; 0: off
    loss_aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"  # over the batch
    normalize_std: bool = True  # divide advantages by the group's standard deviation
    dynamic_sampling: bool = False  # drop groups with equal rewards and sample others instead
    max_sampling_rounds: int = 4  # of dynamic sampling
    kl_coefficient: float = 0.0  # weight of the divergence from the starting policy; 0: none
    checkpoint_every: int = 10  # steps
    keep_trajectories: int = 64  # written per step with pictures; of several hosts, by the first


@dataclass(frozen=True)
class EvalConfig:
    batch: int = 64  # questions in flight
    stages: tuple[str, ...] = ("base", "cold_start", "rl")  # what the RL recipe evaluates
    baselines: tuple[str, ...] = ()  # what evaluate reports besides: guessing, no_tools (tools are refused)


@dataclass(frozen=True)
class Config:
    recipe: Literal["sft", "rl", "evaluate"] = "rl"
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelSource = field(default_factory=ModelSource)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tools: ToolsConfig = field(default_factory=ToolsConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """The configuration that ``to_dict`` (or a run's ``config.json``) came from."""
        return from_mapping(cls, data)
