"""Inference engine with continuous batching: a step prefills appended tokens or samples turns.

A sequence exists from `add_sequence` to `free_sequence`. `append` queues ids (a prompt, an observation) for prefill,
`request_turn` asks for a turn, and a later `step` returns it. Between its turns a sequence is parked: it keeps its
pages and costs no compute. Sequences are admitted in the order of their first append (FIFO).

With `engine.page_allocation` = reserved, admission reserves the pages of a sequence of maximum length, so that an admitted
sequence never waits for pages. With on_demand, sequences take pages as they grow. If none is free, a parked sequence is
preempted, or else the youngest: its pages are freed, and its ids are prefilled again when it is its turn. A sequence is
preempted for an older one, or while it is parked; the oldest with work therefore always proceeds, and the engine cannot
deadlock. Parked sequences are also preempted if all admitted ones are parked and others wait for pages.

A step first processes the outputs of the decode dispatches that the previous step launched, then launches the next ones,
one per group of sequences of similar length, and returns without waiting for them: the caller's work on finished turns
overlaps with the device's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from dv2_jax.config import EngineConfig
from dv2_jax.data.chat_encoder import ImageInput
from dv2_jax.engine import batch_builder, model_runner
from dv2_jax.engine.buckets import Buckets, Shape
from dv2_jax.engine.dispatcher import Dispatcher
from dv2_jax.engine.engine_outputs import EngineStats, TurnOutput
from dv2_jax.engine.executables import Key
from dv2_jax.engine.image_cache import ImageEmbeddingCache
from dv2_jax.engine.kv_cache_manager import KVCacheManager
from dv2_jax.engine.preemption import Preemption, page_watermark
from dv2_jax.engine.sequence_state import Generation, SequenceState
from dv2_jax.engine.stop_strings import StopAutomaton
from dv2_jax.model.image_grid import num_image_tokens
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import GraphDef, Params
from dv2_jax.model.vision_inputs import VisionBucket, fits, vision_batch
from dv2_jax.parallel.mesh import num_data_shards


class Engine:
    """Generates turns with one model on the local devices of this process.

    Args:
        graphdef: graph definition of the model, without weights.
        engine: sizes of dispatches, the KV cache and the image-embedding cache.
        image_buckets: padded shapes in which images are encoded.
        stop: automaton of stop strings and end-of-turn ids that end a turn.
        max_tokens_per_sequence: limit of prompt, sampled and observation tokens together.
        seed: run seed; together with a sequence's key and a token's position it determines the token's random number.
        forbidden: mask over the model's vocabulary of ids that are never sampled (`sampling.forbidden_ids`).
        mesh: mesh of several local devices. Rows and pages are sharded over `data` and `fsdp`, heads over `tensor`;
            slots, prefill rows and pages are totals over all devices.
    """

    def __init__(
        self,
        graphdef: GraphDef,
        model_config: ModelConfig,
        engine: EngineConfig,
        image_buckets: Sequence[VisionBucket],
        *,
        stop: StopAutomaton,
        max_tokens_per_sequence: int,
        seed: int,
        forbidden: Bool[np.ndarray, "V"] | None = None,
        compute_dtype: jnp.dtype = jnp.float32,
        mesh: jax.sharding.Mesh | None = None,
    ):
        text = model_config.text
        mesh = mesh if mesh is not None and mesh.size > 1 else None
        num_shards = num_data_shards(mesh)
        self._num_shards = num_shards
        self.model_config, self.config = model_config, engine
        self.max_tokens = max_tokens_per_sequence
        self.buckets = Buckets.from_config(engine, text, max_tokens_per_sequence, num_shards)
        self.stop = stop
        self.version = -1
        self._stats = EngineStats()
        self._image_buckets = sorted(image_buckets)
        pages, watermark = engine.pages // num_shards, page_watermark(engine, num_shards)
        self._kv_managers = [
            KVCacheManager(pages, engine.page_size, max_tokens_per_sequence, watermark=watermark)
            for _ in range(num_shards)
        ]
        self._image_cache = ImageEmbeddingCache(engine.image_cache_tokens)
        self._sequences: dict[Hashable, SequenceState] = {}
        self._preemption = Preemption(self._kv_managers, self._sequences, self._stats)
        self._inflight: list[tuple[list[SequenceState], Shape, model_runner.DecodeOutput]] = []
        self._last_was_prefill = False
        self._idle = True

        nothing = np.zeros(text.vocab_size, bool)
        self._dispatcher = Dispatcher(
            graphdef,
            model_config,
            engine,
            num_shards=num_shards,
            seed=seed,
            stop_table=stop.pad_vocab(text.vocab_size),
            forbidden=nothing if forbidden is None else forbidden,
            compute_dtype=compute_dtype,
            mesh=mesh,
        )

    def set_params(self, params: Params | None, version: int) -> None:
        """Sets the weights (None frees them) and invalidates the KV, prefix and image caches.

        Raises:
            RuntimeError: if sequences are open; they would mix keys and values of old and new weights.
        """
        if self._sequences:
            raise RuntimeError(f"{len(self._sequences)} sequences are open: free them before setting weights")
        self._dispatcher.params, self.version = params, version
        for manager in self._kv_managers:
            manager.page_table.invalidate()
        self._image_cache.clear()

    def add_sequence(self, seq_id: Hashable, key: int) -> None:
        """Adds an empty sequence. `key` (32 bits) seeds its random numbers."""
        if seq_id in self._sequences:
            raise ValueError(f"sequence {seq_id!r} is open already")
        self._sequences[seq_id] = SequenceState(seq_id, key & 0xFFFFFFFF)

    def append(self, seq_id: Hashable, token_ids: Sequence[int], images: Sequence[ImageInput] = ()) -> None:
        """Queues token ids for prefill, with the images of their placeholders in order.

        Raises:
            RuntimeError: if the sequence is sampling a turn.
            ValueError: if the sequence would exceed `max_tokens_per_sequence`, placeholders and images do not match,
                or an image is too large for the buckets or the image-embedding cache.
        """
        sequence = self._sequences[seq_id]
        if sequence.generation is not None:
            raise RuntimeError(f"sequence {seq_id!r} is sampling: nothing can be appended until its turn is over")
        total = len(sequence.token_ids) + len(token_ids)
        if total > self.max_tokens or not len(token_ids):
            raise ValueError(f"sequence {seq_id!r} would hold {total} tokens; at least 1, at most {self.max_tokens}")
        for image in images:
            self.check_image(image)
        first = not sequence.token_ids
        sequence.extend(token_ids, images, self.model_config)
        if first:
            sequence.shard = self._assign_shard(sequence)
            self._kv_managers[sequence.shard].enqueue(sequence)

    def request_turn(self, seq_id: Hashable, max_new_tokens: int, temperature: float) -> None:
        """Requests a turn of up to `max_new_tokens` tokens; a later `step` returns it. Temperature 0 is greedy.

        Raises:
            RuntimeError: if the sequence is sampling already.
            ValueError: if the sequence has no tokens or no room for `max_new_tokens` more.
        """
        sequence = self._sequences[seq_id]
        if sequence.generation is not None:
            raise RuntimeError(f"sequence {seq_id!r} is sampling already")
        room = self.max_tokens - len(sequence.token_ids)
        if not sequence.token_ids or not 1 <= max_new_tokens <= room or temperature < 0:
            raise ValueError(
                f"sequence {seq_id!r}: cannot sample {max_new_tokens} tokens at temperature {temperature} "
                f"after {len(sequence.token_ids)} tokens (room for {room})"
            )
        sequence.generation = Generation(max_new_tokens, temperature)

    def sampled(self, seq_id: Hashable) -> tuple[list[int], list[float]]:
        """Returns ids and log-probs that the turn in progress has sampled so far; both empty if there is no such turn.

        The tokens of the dispatches in flight are not among them.
        """
        turn = self._sequences[seq_id].generation
        return ([], []) if turn is None else (list(turn.token_ids), list(turn.logprobs))

    def free_sequence(self, seq_id: Hashable) -> None:
        """Ends a sequence in any state and frees its pages."""
        sequence = self._sequences[seq_id]
        if any(sequence in sequences for sequences, _, _ in self._inflight):
            self._process_outputs()
        del self._sequences[seq_id]
        self._kv_managers[sequence.shard].free_sequence(sequence)

    def step(self) -> list[TurnOutput]:
        """Processes the outputs of the dispatches in flight, launches the next ones and returns the finished turns.

        Prefill and decode dispatches alternate while both have work; a full prefill batch takes precedence.

        Raises:
            RuntimeError: if no weights have been set.
        """
        if self._dispatcher.params is None:
            raise RuntimeError("set_params has not been called")
        self._process_outputs()
        finished = self._take_finished_turns()
        for manager in self._kv_managers:
            manager.admit()
        self._preemption.admit_instead_of_parked()
        self._copy_partial_pages()
        sequences = self._sequences.values()
        waiting = [s for s in sequences if s.to_prefill and not self._kv_managers[s.shard].blocked_on_shared_prefix(s)]
        ready = [s for s in sequences if s.ready]
        full = len(waiting) >= self.config.prefill_rows
        self._idle = not waiting and not ready
        launched = False
        if waiting and (full or not ready or not self._last_was_prefill):
            launched = self._prefill(
                batch_builder.select_per_shard(waiting, self._num_shards, self.config.prefill_rows)
            )
        if launched:
            self._last_was_prefill = True
        elif ready := [s for s in ready if s.ready]:  # others were preempted
            self._decode(batch_builder.select_per_shard(ready, self._num_shards, self.config.slots))
            self._last_was_prefill = False
        return finished

    @property
    def idle(self) -> bool:
        """True if the last step had nothing to launch: every sequence is parked or waits for pages."""
        return self._idle

    @property
    def waiting(self) -> int:
        """Number of sequences that have not been admitted."""
        return sum(manager.waiting for manager in self._kv_managers)

    @property
    def stats(self) -> EngineStats:
        self._stats.shared_tokens = sum(manager.shared_tokens for manager in self._kv_managers)
        return self._stats

    @property
    def free_pages(self) -> int:
        """Number of pages that no sequence refers to."""
        return sum(manager.page_table.num_free for manager in self._kv_managers)

    @property
    def recompilations(self) -> int:
        """Number of programs compiled after `warmup`; more than 0 means that a shape is missing from the buckets."""
        return self._dispatcher.executables.compiled_after_warmup

    def compiled_programs(self) -> int:
        """Returns the number of compiled programs."""
        return len(self._dispatcher.executables)

    def executables(self) -> dict[Key, Callable]:
        """Returns the compiled programs by (name, shape), for memory and cost analysis."""
        return self._dispatcher.executables.by_key()

    def warmup(self) -> float:
        """Compiles the programs of every bucket and returns the seconds spent. Needs weights (`set_params`)."""
        return self._dispatcher.warmup(self.buckets, self._image_buckets, self._kv_managers[0].pad_slot)

    def check_image(self, image: ImageInput) -> None:
        """Raises ValueError if an image is too large for the buckets or the image-embedding cache."""
        tokens = num_image_tokens(image.grid, self.model_config.vision)
        if tokens > self._image_cache.num_rows:
            raise ValueError(
                f"an image of {tokens} tokens exceeds engine.image_cache_tokens {self._image_cache.num_rows}"
            )
        if not fits([image.grid], self._image_buckets, self.model_config.vision):
            raise ValueError(f"an image of grid {image.grid} fits no image bucket of {self._image_buckets}")

    def _process_outputs(self) -> None:
        inflight, self._inflight = self._inflight, []
        for sequences, (rows, width), decoded in inflight:
            cached = [sequence.cached for sequence in sequences]
            batch_builder.append_sampled(sequences, self._num_shards, decoded)
            counts = [sequence.cached - before for sequence, before in zip(sequences, cached, strict=True)]
            row_steps = rows * max(counts)
            self._stats.sampled_tokens += sum(counts)
            self._stats.decode_row_steps += row_steps
            self._stats.decode_keys += row_steps * width * self.config.page_size
            self._stats.decode_keys_needed += sum(map(operator.mul, cached, counts))

    def _take_finished_turns(self) -> list[TurnOutput]:
        outputs = []
        for sequence in self._sequences.values():
            turn = sequence.generation
            if turn is None:
                continue
            finish: Literal["stop", "eos", "length"]
            if self.stop.is_final(turn.state):
                finish = "eos" if turn.state == self.stop.eos else "stop"
            elif len(turn.token_ids) >= turn.max_new_tokens:
                finish = "length"
            else:
                continue
            outputs.append(TurnOutput(sequence.id, turn.token_ids, turn.logprobs, finish, self.version))
            sequence.generation = None
        return outputs

    def _assign_shard(self, sequence: SequenceState) -> int:
        """Returns the shard of a sequence with the same prompt, to share its prefix, or else the least loaded shard."""
        if self._num_shards == 1:
            return 0
        load = [0] * self._num_shards
        for other in self._sequences.values():
            if other is not sequence and other.token_ids:
                if other.token_ids[: len(sequence.token_ids)] == sequence.token_ids:
                    return other.shard
                load[other.shard] += 1
        return load.index(min(load))

    def _copy_partial_pages(self) -> None:
        copies: list[list[tuple[int, int]]] = [[] for _ in range(self._num_shards)]
        for sequence in self._sequences.values():
            if sequence.admitted and sequence.cached < sequence.prompt_end:
                copy = self._kv_managers[sequence.shard].advance_shared_prefix(sequence)
                copies[sequence.shard] += [copy] if copy else []
        self._dispatcher.copy_pages(copies)

    def _prefill(self, sequences: list[SequenceState]) -> bool:
        """Launches the next prefill chunk of each sequence that has room; returns whether there was any."""
        chunk = self.config.prefill_tokens
        sequences = self._preemption.with_room(sequences, lambda s: s.cached + min(chunk, s.to_prefill))
        for chunks, shape in self.buckets.plan_prefill(
            self._prepare_prefill(sequences), self.config.page_size, self._num_shards
        ):
            for sequence, count in chunks:
                self._kv_managers[sequence.shard].allocate_pages(sequence, sequence.cached + count)
            batch = batch_builder.build_prefill_batch(chunks, shape, self._kv_managers, self._image_cache)
            self._dispatcher.prefill(batch)
            for sequence, count in chunks:
                self._kv_managers[sequence.shard].mark_written(sequence, sequence.cached, sequence.cached + count)
            self._stats.prefill_dispatches += 1
            self._stats.prefilled_tokens += sum(count for _, count in chunks)
            self._stats.prefill_slots += shape[0] * shape[1]
        return bool(sequences)

    def _prepare_prefill(self, sequences: list[SequenceState]) -> list[batch_builder.PrefillChunk]:
        """Chooses the next prefill chunk of each sequence and encodes its images that are not cached.

        A chunk ends before an image that does not fit into the image-embedding cache.
        """
        chunks: list[batch_builder.PrefillChunk] = []
        pinned: set[str] = set()
        fresh: list[tuple[ImageInput, np.ndarray]] = []
        for sequence in sequences:
            start = sequence.cached
            end = start + min(self.config.prefill_tokens, sequence.to_prefill)
            for first, image in sequence.images_between(start, end):
                if image.digest not in self._image_cache:
                    rows = self._image_cache.allocate(image.digest, image.tokens, pinned)
                    if rows is None:
                        end = max(start, first)
                        break
                    fresh.append((image, rows))
                pinned.add(image.digest)
            if end > start:
                chunks.append((sequence, end - start))
        while fresh:
            fresh = self._encode(fresh)
        return chunks

    def _encode(self, fresh: list[tuple[ImageInput, np.ndarray]]) -> list[tuple[ImageInput, np.ndarray]]:
        """Encodes as many of the images as the largest bucket holds and returns the remaining ones."""
        vision = self.model_config.vision
        count = 1
        while count < len(fresh) and fits([image.grid for image, _ in fresh[: count + 1]], self._image_buckets, vision):
            count += 1
        encoded = fresh[:count]
        batch = vision_batch([(image.patches, image.grid) for image, _ in encoded], self._image_buckets, vision)
        rows = np.full(batch.merge_index.shape, self._image_cache.num_rows, np.int32)
        allocated = np.concatenate([rows for _, rows in encoded])
        rows[: len(allocated)] = allocated
        self._dispatcher.encode(batch, rows)
        self._stats.encoded_images += count
        return fresh[count:]

    def _decode(self, sequences: list[SequenceState]) -> None:
        sequences = self._preemption.with_room(sequences, lambda s: s.cached + min(self.config.decode_tokens, s.budget))
        for group, shape in self.buckets.plan_decode(sequences, self.config.page_size, self._num_shards):
            rows, width = shape
            batch = batch_builder.build_decode_batch(group, (rows, self.config.decode_tokens, width), self._kv_managers)
            min_live = math.ceil(self.config.min_live_rows * len(group))
            self._inflight.append((group, shape, self._dispatcher.decode(batch, max(1, min_live))))
            self._stats.decode_dispatches += 1
