"""Supervised fine-tuning on packed batches: the loss, the train step, and a loop with background prefetch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dv2_jax.data.packing import PackedBatch, with_shared_denominator
from dv2_jax.trainer.forward import token_logprobs
from dv2_jax.trainer.state import TrainState
from dv2_jax.trainer.train_step import LossFn, TrainStep, shard_batch

T = TypeVar("T")


def sft_loss(graphdef: Any) -> LossFn:
    """Build the weighted negative log-likelihood, divided by the step's denominator (a token mean for 0/1 weights)."""

    def loss(params, batch: PackedBatch):
        logprobs, entropy = token_logprobs(graphdef, params, batch)
        weight = batch.loss_weight / batch.denominator
        metrics = {
            "entropy": jnp.sum(entropy * weight),
            "tokens": jnp.sum(batch.segment_ids > 0).astype(jnp.float32),
            "trained_tokens": jnp.sum(batch.loss_weight > 0).astype(jnp.float32),
        }
        return -jnp.sum(logprobs * weight), metrics

    return loss


def make_sft_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    trainable: tuple[str, ...],
    *,
    schedule: optax.Schedule | None = None,
    param_shardings=None,
) -> TrainStep:
    """Build the SFT train step."""
    return TrainStep(sft_loss(graphdef), optimizer, trainable, schedule=schedule, param_shardings=param_shardings)


def sft_loop(
    state: TrainState,
    batches: Iterable[PackedBatch | Sequence[PackedBatch]],
    step: TrainStep,
    on_step: Callable[[int, dict[str, float], TrainState], Any] | None = None,
    *,
    mesh: Mesh | None = None,
    prefetch: int = 2,
) -> TrainState:
    """Take one optimizer step per element of `batches` (a microbatch or a sequence of them) until they are exhausted.

    `on_step(step, metrics, state)` is called after each step; the loop ends when it returns True. A background thread
    reads and shards up to `prefetch` elements while the device computes. Use `prefetch=0` for a source that prefetches
    itself and whose checkpointed position must be that of the step. The passed `state` is donated: use the returned one.
    """

    def sharded() -> Iterator[list[PackedBatch]]:
        for item in batches:
            microbatches = [item] if isinstance(item, PackedBatch) else with_shared_denominator(item)
            yield [shard_batch(b, mesh) for b in microbatches]

    with PrefetchIterator(sharded(), prefetch) if prefetch else nullcontext(sharded()) as source:
        for microbatches in source:
            state, metrics = step(state, microbatches)
            if on_step is not None and on_step(int(state.step), metrics, state):
                break
    return state


class PrefetchIterator(Iterator[T]):
    """Iterates `source` in a background thread, at most `depth` elements ahead; re-raises its errors in the consumer."""

    def __init__(self, source: Iterator[T], depth: int):
        self._source = source
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="batch-prefetch", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for item in self._source:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # re-raised in the consumer's thread
            self._put((None, error))

    def _put(self, entry) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> T:
        item, error = self._queue.get()
        if error is not None:
            self._queue.put((None, error))  # a further next() raises again instead of blocking
            raise error
        return item

    def __enter__(self) -> PrefetchIterator[T]:
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
