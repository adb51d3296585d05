"""Writes `reference_values.npz`: policy losses, gradients and advantages of TRL 1.16 and verl 0.9.1 on fixed inputs.

Run from the repository root in an environment of its own (CPU, Python 3.11; torch 2.13, transformers 5.23):

    pip install "trl==1.16.0" accelerate datasets
    pip install --no-deps "verl==0.9.1" tensordict omegaconf hydra-core antlr4-python3-runtime==4.9.3 codetiming ray \\
        pyvers torchdata pylatexenc aiohttp aiosignal frozenlist multidict yarl propcache aiohappyeyeballs importlib_metadata
    python -m tests.rl.make_reference_values

The losses are those of `GRPOTrainer._compute_loss` and of verl's registered policy losses, in float64. verl's divide
by `global_batch_size`, as its trainer sets it, so both libraries count fully masked rows in the mean over sequences.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from trl import GRPOTrainer
from trl.trainer.utils import nanstd
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

from tests.rl.reference_inputs import NOISE, REFERENCE_FILE, loss_inputs, reward_inputs

DUAL_CLIP_OFF = 1e9

# Name of a case → (TRL settings or None, verl loss, verl aggregation, verl clip low, high, c).
CASES = {
    "dapo": (dict(loss_type="dapo", low=0.2, high=0.3, delta=3.0), "vanilla", "token-mean", 0.2, 0.3, 3.0),
    "grpo": (dict(loss_type="grpo", low=0.2, high=0.2), "vanilla", "seq-mean-token-mean", 0.2, 0.2, DUAL_CLIP_OFF),
    "dr_grpo": (
        dict(loss_type="dr_grpo", low=0.2, high=0.2), "vanilla", "seq-mean-token-sum-norm", 0.2, 0.2, DUAL_CLIP_OFF
    ),
    "gspo": (
        dict(loss_type="grpo", low=3e-4, high=4e-4, level="sequence"), "gspo", "seq-mean-token-mean", 3e-4, 4e-4, 3.0
    ),
    "cispo": (dict(loss_type="cispo", low=0.2, high=5.0), "cispo", "token-mean", 1.0, 4.0, 3.0),
    "rloo": (None, "vanilla", "token-mean", 0.2, 0.2, 3.0),  # TRL's RLOO clips the ratio of the sequence
    "deepeyesv2": (
        dict(loss_type="grpo", low=0.2, high=0.2, delta=3.0), "vanilla", "seq-mean-token-mean", 0.2, 0.2, 3.0
    ),
    "sapo": (dict(loss_type="sapo", low=0.2, high=0.2), "sapo", "seq-mean-token-mean", 0.2, 0.2, 3.0),
    "reinforce": (None, "reinforce", "token-mean", 0.2, 0.2, 3.0),
}  # fmt: skip


def trl_loss(inputs, *, loss_type, low, high, level="token", delta=None):
    """Call TRL's loss on given log-probs; a dual clip of c equals its two-sided clip `delta` = c."""
    logprobs = torch.tensor(inputs.logprobs, requires_grad=True)
    trainer = GRPOTrainer.__new__(GRPOTrainer)
    trainer.__dict__.update(
        loss_type=loss_type, epsilon_low=low, epsilon_high=high, importance_sampling_level=level, beta=0.0,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, aux_loss_enabled=False,
        _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1,
        max_completion_length=logprobs.shape[1], model=SimpleNamespace(training=True),
        args=SimpleNamespace(
            delta=delta, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, steps_per_generation=1
        ),
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, torch.zeros_like(logprobs), None),
    )  # fmt: skip
    mask = torch.tensor(inputs.mask)
    ids = torch.zeros(mask.shape, dtype=torch.long)
    batch = dict(
        prompt_ids=ids, prompt_mask=ids, completion_ids=ids, completion_mask=mask,
        advantages=torch.tensor(inputs.advantages), old_per_token_logps=torch.tensor(inputs.old_logprobs),
        num_items_in_batch=mask.sum(),
    )  # fmt: skip
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), logprobs.grad.numpy()


def verl_loss(inputs, name, aggregation, low, high, dual_clip):
    """Call verl's registered loss; denominators are those of the batch with fully masked rows."""
    logprobs = torch.tensor(inputs.logprobs, requires_grad=True)
    mask = torch.tensor(inputs.mask)
    config = ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio=low, clip_ratio_low=low,
        clip_ratio_high=high, clip_ratio_c=dual_clip, tau_pos=1.0, tau_neg=1.05,
    )  # fmt: skip
    config.global_batch_info.update(global_batch_size=len(mask), loss_scale_factor=mask.shape[1])
    old = torch.tensor(inputs.old_logprobs)
    arguments = dict(
        log_prob=logprobs, advantages=torch.tensor(inputs.advantages)[:, None].expand(mask.shape), response_mask=mask,
        loss_agg_mode=aggregation, config=config,
    )  # fmt: skip
    if name == "reinforce":
        loss, _ = core_algos.compute_policy_loss_reinforce(rollout_log_prob=old, **arguments)
    else:
        loss, _ = core_algos.get_policy_loss_fn(name)(old_log_prob=old, **arguments)
    loss.backward()
    return loss.item(), logprobs.grad.numpy()


def verl_kl(inputs) -> tuple[float, np.ndarray]:
    """Return the token mean of verl's k3 estimate of KL to the reference, and its gradient."""
    logprobs = torch.tensor(inputs.logprobs, requires_grad=True)
    per_token = core_algos.kl_penalty(logprobs, torch.tensor(inputs.reference_logprobs), "low_var_kl")
    loss = core_algos.agg_loss(per_token, torch.tensor(inputs.mask), "token-mean")
    loss.backward()
    return loss.item(), logprobs.grad.numpy()


def advantages() -> dict[str, np.ndarray]:
    """Return verl's advantages, and TRL's with `scale_rewards="batch"` at verl's epsilon of 1e-6."""
    rewards, groups = reward_inputs()
    scores, mask = torch.tensor(rewards)[:, None], torch.ones(len(rewards), 1, dtype=torch.float64)
    found = {
        "grpo": core_algos.compute_grpo_outcome_advantage(scores.clone(), mask, groups)[0],
        "dr_grpo": core_algos.compute_grpo_outcome_advantage(
            scores.clone(), mask, groups, norm_adv_by_std_in_grpo=False
        )[0],
        "rloo": core_algos.compute_rloo_outcome_advantage(scores.clone(), mask, groups)[0],
    }
    by_group = torch.tensor(rewards).view(-1, (groups == 0).sum())
    centered = by_group - torch.nanmean(by_group, dim=1, keepdim=True)
    found["batch"] = centered / (nanstd(torch.tensor(rewards)) + 1e-6)
    return {name: value.numpy().reshape(-1) for name, value in found.items()}


def main() -> None:
    values: dict[str, np.ndarray] = {f"advantage/{name}": value for name, value in advantages().items()}
    for noise in NOISE:
        inputs = loss_inputs(noise)
        found = {("verl", "kl"): verl_kl(inputs)}
        for name, (trl, *verl) in CASES.items():
            found["verl", name] = verl_loss(inputs, *verl)
            if trl:
                found["trl", name] = trl_loss(inputs, **trl)
        for (peer, name), (loss, gradient) in found.items():
            print(f"{noise:12} {name:12} {peer:5} {loss:+.8f}, largest gradient {np.abs(gradient).max():.6f}")
            values[f"{noise}/{name}/{peer}/loss"] = np.float64(loss)
            values[f"{noise}/{name}/{peer}/gradient"] = gradient
    np.savez_compressed(Path(REFERENCE_FILE), **values)


if __name__ == "__main__":
    main()
