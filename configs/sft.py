"""Supervised cold start: teaches the format of turns, code and searches before reinforcement learning.

    python -m dv2_jax.train --config=configs/sft.py                     two CPU cores, from the shipped base model
    python -m dv2_jax.train --config=configs/sft.py:pretrain            pre-training of the base model
    python -m dv2_jax.train --config=configs/sft.py:smol                a pre-trained model of 135M parameters
    python -m dv2_jax.train --config=configs/sft.py:7b \\
        --config.model.init=hf:/models/Qwen2.5-VL-7B-Instruct --config.sft.data=/data/sft.json

The real sizes carry the released DeepEyesV2 settings: learning rate 1e-5 with 10 % warm-up and a cosine, batch 128,
3 epochs, views of at most 262,144 pixels, the vision tower and the projector frozen.
"""

from dataclasses import replace

from dv2_jax.config import (
    AgentConfig,
    Config,
    ImageConfig,
    MeshConfig,
    ModelSource,
    OptimConfig,
    RunConfig,
    SFTConfig,
)

CORES = MeshConfig(data=-1, fsdp=1, cpu_devices=2)  # one data shard per core, weights replicated


def laptop() -> Config:
    """The tiny model on two CPU cores: the shipped base learns from the scripted solver's trajectories."""
    return Config(
        recipe="sft",
        run=RunConfig(name="sft"),
        model=ModelSource(init="package:base"),
        mesh=CORES,
        optim=OptimConfig(learning_rate=1e-3, warmup_ratio=0.05, schedule="cosine", weight_decay=0.05),
        sft=SFTConfig(steps=600, batch_rows=4, row_tokens=1024, data="cold_start", examples=3_000),
    )


def pretrain() -> Config:
    """The tiny model from random weights: captions, questions, notes, snippets of code; about an hour on two CPU cores."""
    return Config(
        recipe="sft",
        run=RunConfig(name="pretrain"),
        model=ModelSource(init="random", preset="tiny"),
        mesh=CORES,
        optim=OptimConfig(learning_rate=3e-3, warmup_ratio=0.02, schedule="cosine", weight_decay=0.05),
        sft=SFTConfig(steps=5_000, batch_rows=8, row_tokens=512, data="pretrain", checkpoint_every=500),
    )


def smol() -> Config:
    """SmolLM2-135M with a fresh vision tower, on the scripted solver's trajectories; two CPU cores."""
    return Config(
        recipe="sft",
        run=RunConfig(name="sft-smol"),
        model=ModelSource(init="package:smol", preset="smol"),
        optim=OptimConfig(learning_rate=2e-4, warmup_ratio=0.1, schedule="cosine", weight_decay=0.0),
        sft=SFTConfig(
            steps=100,
            batch_rows=2,
            microbatches=2,
            row_tokens=1024,
            data="cold_start",
            examples=500,
            checkpoint_every=50,
        ),
    )


def accelerator(size: str, row_tokens: int) -> Config:
    """Settings common to 3B, 7B and 32B; the `fsdp` axis takes all devices."""
    return Config(
        recipe="sft",
        run=RunConfig(name=f"sft-{size}"),
        model=ModelSource(
            init=f"hf:models/Qwen2.5-VL-{size.upper()}-Instruct",
            preset=size,
            compute_dtype="bfloat16",
            freeze=("vision", "projector"),
            remat=True,
        ),
        image=ImageConfig(min_pixels=4 * 28**2, max_pixels=512**2),
        agent=AgentConfig(
            system_prompt="full",
            search_results=5,
            max_turns=9,
            max_turn_tokens=8_192,
            max_total_tokens=row_tokens,
            max_images=50,
        ),
        # Weight decay and betas are the defaults of the trainer that the released run used.
        optim=OptimConfig(learning_rate=1e-5, warmup_ratio=0.1, schedule="cosine", b1=0.9, b2=0.999, weight_decay=0.0),
        sft=SFTConfig(
            # 65,807 released trajectories × 3 epochs / 128. The original does not pack; a packed row holds several
            # short trajectories, so 128 rows are at least the original batch of 128 trajectories.
            steps=1_542,
            batch_rows=128,
            microbatches=16,
            row_tokens=row_tokens,
            data="data/deepeyesv2_sft.json",
            checkpoint_every=500,
        ),
    )


def sft_3b() -> Config:
    """Qwen2.5-VL-3B; 8 devices."""
    return accelerator("3b", row_tokens=20_480)


def sft_7b() -> Config:
    """Qwen2.5-VL-7B, the size of the paper; 8 devices."""
    return accelerator("7b", row_tokens=20_480)


def sft_7b_v5p_32() -> Config:
    """7B on a v5p-32 slice: 16 chips on 4 hosts."""
    config = sft_7b()
    return replace(
        config,
        run=replace(config.run, name="sft-7b-v5p-32"),
        mesh=MeshConfig(data=1, fsdp=16, tensor=1),
        sft=replace(config.sft, microbatches=8),
    )


def sft_32b() -> Config:
    """Qwen2.5-VL-32B, trajectories of at most 16,384 tokens; 32 devices."""
    config = accelerator("32b", row_tokens=16_384)
    return replace(config, sft=replace(config.sft, microbatches=4))


PRESETS = {
    "laptop": laptop,
    "pretrain": pretrain,
    "smol": smol,
    "3b": sft_3b,
    "7b": sft_7b,
    "7b_v5p_32": sft_7b_v5p_32,
    "32b": sft_32b,
}


def get_config(preset: str = "laptop") -> Config:
    return PRESETS[preset]()
