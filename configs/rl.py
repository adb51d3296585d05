"""Reinforcement learning from a cold-started policy, with real tools.

    python -m dv2_jax.train --config=configs/rl.py                      two CPU cores, the embedded tasks
    python -m dv2_jax.train --config=configs/rl.py:smol                 a pre-trained model of 135M, after configs/sft.py:smol
    python -m dv2_jax.train --config=configs/rl.py:7b \\
        --config.model.init=hf:/models/cold-start-7b --config.task.source=/data/rl.parquet

The real sizes carry the released DeepEyesV2 settings: 256 prompts × 16 samples, 8 optimizer steps per batch of
rollouts, learning rate 1e-6 without warm-up, no KL term, 9 turns of at most 8,192 tokens, 24,576 in all.
The clip range is the paper's 0.2/0.3 (DAPO); the preset `7b_released` has the settings of the released script.
"""

from dataclasses import replace

from dv2_jax.config import (
    AgentConfig,
    Config,
    EngineConfig,
    EvalConfig,
    ImageConfig,
    MeshConfig,
    ModelSource,
    OptimConfig,
    RLConfig,
    RunConfig,
    TaskConfig,
    ToolsConfig,
)


def laptop() -> Config:
    """The tiny model on two CPU cores: shipped cold start, embedded tasks, local tools, minutes."""
    return Config(
        recipe="rl",
        run=RunConfig(name="rl"),
        mesh=MeshConfig(data=-1, fsdp=1, cpu_devices=2),  # one data shard per core, weights replicated
        optim=OptimConfig(learning_rate=3e-4, warmup_ratio=0.05, schedule="cosine", b2=0.99, weight_decay=0.0),
        rl=RLConfig(steps=50, prompts_per_step=16, group_size=8, microbatch_rows=8, row_tokens=1_024),
        eval=EvalConfig(compare=("package:base",)),
    )


def smol() -> Config:
    """SmolLM2-135M from the checkpoint of configs/sft.py:smol in runs/sft-smol; two CPU cores."""
    return Config(
        recipe="rl",
        run=RunConfig(name="rl-smol"),
        model=ModelSource(init="checkpoint:runs/sft-smol", preset="smol"),
        agent=AgentConfig(max_turns=4, max_turn_tokens=128),
        task=TaskConfig(eval_size=24),
        optim=OptimConfig(learning_rate=1e-5, warmup_ratio=0.0, schedule="constant", b2=0.99, weight_decay=0.0),
        # Pages for one full sequence per slot: 45 KiB per token, 360 MiB in total.
        engine=EngineConfig(slots=8, pages=256, prefill_rows=4, decode_tokens=8),
        rl=RLConfig(
            steps=10, prompts_per_step=4, group_size=4, microbatch_rows=1, row_tokens=1_024, checkpoint_every=5
        ),
    )


def accelerator(size: str) -> Config:
    """Settings common to 3B, 7B and 32B; the `fsdp` axis takes all devices."""
    return Config(
        recipe="rl",
        run=RunConfig(name=f"rl-{size}"),
        model=ModelSource(
            init=f"hf:models/deepeyesv2-{size}-cold-start",  # export of configs/sft.py at the same size
            preset=size,
            compute_dtype="bfloat16",
            remat=True,  # no part is frozen: the released run also trains the vision tower
        ),
        image=ImageConfig(min_pixels=4 * 28**2, max_pixels=16_384 * 28**2),
        agent=AgentConfig(
            system_prompt="full",
            search_results=5,
            max_turns=9,
            max_turn_tokens=8_192,
            max_total_tokens=24_576,  # prompt up to 8,192, response up to 16,384 including tool text
            max_images=50,
            max_images_per_turn=10,
        ),
        tools=ToolsConfig(cell_timeout_s=200.0, request_timeout_s=240.0),
        task=TaskConfig(
            source="data/deepeyesv2_rl.parquet",
            train_size=82_389,  # rows of the released set; 60 steps see 15,360 of them
        ),
        optim=OptimConfig(
            learning_rate=1e-6, warmup_ratio=0.0, schedule="constant", b1=0.9, b2=0.999, weight_decay=0.01
        ),
        # 64 sequences of full length: 24,576 pages of 64 tokens. The KV cache takes 84 GiB over all devices at 7B
        # (56 KiB per token), 54 GiB at 3B (36 KiB) and 384 GiB at 32B (256 KiB).
        engine=EngineConfig(
            slots=64,
            page_size=64,
            pages=24_576,
            prefill_rows=8,  # divided evenly over hosts, like slots and pages
            prefill_tokens=1_024,
            decode_tokens=16,
            image_cache_tokens=32_768,  # two maximum-size images
        ),
        rl=RLConfig(
            algorithm="dapo",  # token mean, clip 0.2/0.3
            steps=60,
            prompts_per_step=256,
            group_size=16,
            minibatches=8,  # each of 32 prompts, 512 trajectories
            microbatch_rows=8,
            row_tokens=24_576,
            checkpoint_every=4,
        ),
    )


def rl_3b() -> Config:
    """Qwen2.5-VL-3B; 8 devices."""
    return accelerator("3b")


def rl_7b() -> Config:
    """Qwen2.5-VL-7B, the size of the paper; 8 devices."""
    return accelerator("7b")


def rl_7b_released() -> Config:
    """7B with the settings of the released script: GRPO, clip 0.2/0.2, dual clip 3, mean over sequences."""
    config = rl_7b()
    return replace(
        config,
        run=replace(config.run, name="rl-7b-released"),
        rl=replace(config.rl, algorithm="deepeyesv2"),
    )


def rl_7b_v5p_32() -> Config:
    """7B on a v5p-32 slice: 16 chips on 4 hosts."""
    config = rl_7b()
    return replace(
        config,
        run=replace(config.run, name="rl-7b-v5p-32"),
        mesh=MeshConfig(data=1, fsdp=16, tensor=1),
        engine=replace(config.engine, slots=256, pages=98_304, prefill_rows=16),  # 336 GiB of KV pages, 21 GiB per chip
        rl=replace(config.rl, microbatch_rows=16),
    )


def rl_32b() -> Config:
    """Qwen2.5-VL-32B; 32 devices."""
    config = accelerator("32b")
    return replace(config, rl=replace(config.rl, microbatch_rows=32))


PRESETS = {
    "laptop": laptop,
    "smol": smol,
    "3b": rl_3b,
    "7b": rl_7b,
    "7b_released": rl_7b_released,
    "7b_v5p_32": rl_7b_v5p_32,
    "32b": rl_32b,
}


def get_config(preset: str = "laptop") -> Config:
    return PRESETS[preset]()
