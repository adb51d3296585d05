"""Configuration: the schema, recipe files and command-line overrides."""

from dv2_jax.config.errors import ConfigError, RunFailure, UserError, one_line_errors
from dv2_jax.config.loading import load, run_command
from dv2_jax.config.schema import (
    AgentConfig,
    Config,
    DataConfig,
    EngineConfig,
    EvalConfig,
    ImageConfig,
    MeshConfig,
    ModelSource,
    OptimConfig,
    RewardConfig,
    RLConfig,
    RunConfig,
    SamplingConfig,
    ServeConfig,
    SFTConfig,
    TaskConfig,
    ToolsConfig,
)

__all__ = [
    "AgentConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EngineConfig",
    "EvalConfig",
    "ImageConfig",
    "MeshConfig",
    "ModelSource",
    "OptimConfig",
    "RLConfig",
    "RewardConfig",
    "RunConfig",
    "RunFailure",
    "SFTConfig",
    "SamplingConfig",
    "ServeConfig",
    "TaskConfig",
    "ToolsConfig",
    "UserError",
    "load",
    "one_line_errors",
    "run_command",
]
