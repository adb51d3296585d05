"""Supervised learning on packed batches: the loss, and a loop that overlaps host work with the device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dv2_jax.data.packing import PackedBatch, share_denominator
from dv2_jax.trainer.forward import token_logprobs
from dv2_jax.trainer.state import TrainState
from dv2_jax.trainer.train_step import LossFn, Update, place

T = TypeVar("T")


def sft_loss(graphdef: Any) -> LossFn:
    """Weighted negative log-likelihood over the step's denominator (token mean where weights are 0 and 1)."""

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
) -> Update:
    """`state, metrics = step(state, microbatches)` for supervised learning."""
    return Update(sft_loss(graphdef), optimizer, trainable, schedule=schedule, param_shardings=param_shardings)


def sft_loop(
    state: TrainState,
    batches: Iterable[PackedBatch | Sequence[PackedBatch]],
    step: Update,
    on_step: Callable[[int, dict[str, float], TrainState], Any] | None = None,
    *,
    mesh: Mesh | None = None,
    ahead: int = 2,
) -> TrainState:
    """Take one optimizer step per element of `batches` (a microbatch or a sequence of them) until they end.

    `on_step(step, metrics, state)` is called after each; returning True stops. A background thread draws and places
    up to `ahead` elements while the device computes; 0: no thread, for a source that runs ahead by itself and whose
    position must be that of the step. The caller's `state` is donated: use the returned one.
    """

    def placed() -> Iterator[list[PackedBatch]]:
        for item in batches:
            microbatches = [item] if isinstance(item, PackedBatch) else share_denominator(item)
            yield [place(b, mesh) for b in microbatches]

    with Ahead(placed(), ahead) if ahead else nullcontext(placed()) as source:
        for microbatches in source:
            state, metrics = step(state, microbatches)
            if on_step is not None and on_step(int(state.step), metrics, state):
                break
    return state


class Ahead(Iterator[T]):
    """Iterate `source` in a background thread, at most `depth` elements ahead; its errors reach the consumer."""

    def __init__(self, source: Iterator[T], depth: int):
        self._source = source
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="batches-ahead", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for item in self._source:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # carried over to the consumer, whatever it is
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
            self._queue.put((None, error))  # stays ended
            raise error
        return item

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
