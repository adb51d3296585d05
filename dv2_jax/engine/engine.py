"""The engine: sequences in, sampled turns out. One tick is one dispatch.

A sequence lives from `open` to `release`. `append` queues ids (a prompt, an observation) for prefill, `generate`
asks for a turn, and some later `tick` returns it. Between its turns a sequence is parked: it keeps its pages and
costs no compute. Sequences wait for pages in order of their first append; whoever has been admitted runs to its
end, so nothing deadlocks.

A tick first collects the decode dispatch that the tick before launched, then launches the next one and returns:
what the caller does with the finished turns overlaps with the device's work.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from dv2_jax.config import EngineConfig
from dv2_jax.data.chat_encoder import PictureInput
from dv2_jax.engine import batch_builder, model_runner
from dv2_jax.engine.buckets import Shapes, smallest
from dv2_jax.engine.engine_sharding import Placement, groups_of
from dv2_jax.engine.executables import CompiledPrograms, Key
from dv2_jax.engine.image_cache import PicturePool
from dv2_jax.engine.kv_cache_manager import Memory
from dv2_jax.engine.sequence_state import Generation, Sequence
from dv2_jax.engine.stop_strings import StopAutomaton
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import GraphDef, Params
from dv2_jax.model.vision_inputs import VisionBucket, fits, merged_tokens, vision_batch
from dv2_jax.ops.paged_attention import empty_pages


@dataclass(frozen=True)
class TurnOutput:
    """One sampled turn. ``finish``: a stop string, the end-of-turn id, or the turn's budget."""

    seq_id: str
    token_ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "eos", "length"]
    version: int  # of the weights that sampled it


@dataclass
class EngineStats:
    """Counts since the engine was made."""

    prefill_dispatches: int = 0
    decode_dispatches: int = 0
    prefilled_tokens: int = 0
    sampled_tokens: int = 0
    decode_rows: int = 0  # rows dispatched, summed; each is worth up to K tokens
    encoded_pictures: int = 0
    shared_tokens: int = 0  # prompt tokens taken over from a sibling


class Engine:
    """Generation for one model on the devices of this process.

    Args:
        graphdef: static graph of the model.
        engine: sizes of dispatches and of the cache.
        image_buckets: shapes in which pictures are encoded.
        stop: where a turn ends.
        max_tokens_per_sequence: prompt, sampled tokens and observations together.
        seed: of the run; with a sequence's key and a position it names a token's random number.
        forbidden: ids that are never sampled, over the model's vocabulary (`sampling.forbidden_ids`).
        mesh: of several devices, all of this process. Rows and pages are split over ``data`` and ``fsdp``, heads over
            ``tensor``; slots, prefill rows and pages count all devices together.
    """

    def __init__(
        self,
        graphdef: GraphDef,
        model_config: ModelConfig,
        engine: EngineConfig,
        image_buckets: List[VisionBucket],
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
        groups = groups_of(mesh)
        self._mesh, self._groups = mesh, groups
        self._placement = Placement.on(mesh, text.num_kv_heads)
        self.model_config, self.config = model_config, engine
        self.max_tokens = max_tokens_per_sequence
        self.shapes = Shapes.of(engine, max_tokens_per_sequence, groups)
        self.stop = stop
        self.version = -1
        self._stats = EngineStats()
        self._buckets = sorted(image_buckets)
        self._memories = [
            Memory(engine.pages // groups, engine.page_size, max_tokens_per_sequence) for _ in range(groups)
        ]
        self._pool_index = PicturePool(engine.picture_tokens)
        self._sequences: dict[str, Sequence] = {}
        self._inflight: tuple[list[Sequence], model_runner.Decoded] | None = None
        self._last_was_prefill = False
        self._idle = True

        self._params: Params | None = None
        self._seed = jnp.asarray(seed & 0xFFFFFFFF, jnp.uint32)
        self._table = jnp.asarray(stop.widened(text.vocab_size))
        nothing = np.zeros(text.vocab_size, bool)
        self._forbidden = jnp.asarray(nothing if forbidden is None else forbidden)
        pages = empty_pages(
            text.num_layers, engine.pages, engine.page_size, text.num_kv_heads, text.head_dim, compute_dtype, groups
        )
        self._pages = pages if self._placement.pages is None else jax.device_put(pages, self._placement.pages)
        pool = jnp.zeros((engine.picture_tokens, text.hidden_size), compute_dtype)
        self._pool, self._seed, self._table, self._forbidden = self._placement.put_whole(
            (pool, self._seed, self._table, self._forbidden)
        )
        self._programs = CompiledPrograms(model_runner.jitted(graphdef, self._placement), mesh)

    def set_params(self, params: Params | None, version: int) -> None:
        """Takes new weights; None lets go of the old ones. What older weights have cached is never used again.

        Raises:
            RuntimeError: while sequences are open; half of their keys and values would be of the old weights.
        """
        if self._sequences:
            raise RuntimeError(f"{len(self._sequences)} sequences are open: release them before new weights come")
        self._params, self.version = params, version
        for memory in self._memories:
            memory.table.forget_all()
        self._pool_index.clear()

    def open(self, seq_id: str, key: int) -> None:
        """Begins a sequence whose random numbers ``key`` names (32 bits)."""
        if seq_id in self._sequences:
            raise ValueError(f"sequence {seq_id!r} is open already")
        self._sequences[seq_id] = Sequence(seq_id, key & 0xFFFFFFFF)

    def append(self, seq_id: str, token_ids: List[int], pictures: List[PictureInput] = ()) -> None:
        """Queues ids, with the pictures of their placeholders in order, for prefill.

        Raises:
            ValueError: when the sequence would exceed ``max_tokens_per_sequence``, placeholders and pictures do
                not match, or a picture is too large for the buckets or the pool.
        """
        sequence = self._sequences[seq_id]
        if sequence.generation is not None:
            raise RuntimeError(f"sequence {seq_id!r} is sampling: nothing can be appended until its turn is over")
        total = len(sequence.token_ids) + len(token_ids)
        if total > self.max_tokens or not len(token_ids):
            raise ValueError(f"sequence {seq_id!r} would hold {total} tokens; at least 1, at most {self.max_tokens}")
        for picture in pictures:
            self._check_picture(picture)
        first = not sequence.token_ids
        sequence.extend(token_ids, pictures, self.model_config)
        if first:
            sequence.group = self._group_for(sequence)
            self._memories[sequence.group].enqueue(sequence)

    def generate(self, seq_id: str, max_new_tokens: int, temperature: float) -> None:
        """Asks for a turn of up to ``max_new_tokens``; temperature 0 is greedy."""
        sequence = self._sequences[seq_id]
        if sequence.generation is not None:
            raise RuntimeError(f"sequence {seq_id!r} is sampling already")
        room = self.max_tokens - len(sequence.token_ids)
        if not sequence.token_ids or not 1 <= max_new_tokens <= room or temperature < 0:
            raise ValueError(
                f"sequence {seq_id!r}: cannot sample {max_new_tokens} tokens at temperature {temperature} "
                f"behind {len(sequence.token_ids)} tokens (room for {room})"
            )
        sequence.generation = Generation(max_new_tokens, temperature)

    def release(self, seq_id: str) -> None:
        """Ends a sequence and gives its pages back, whatever it was doing."""
        sequence = self._sequences[seq_id]
        if self._inflight is not None and sequence in self._inflight[0]:
            self._collect()
        del self._sequences[seq_id]
        self._memories[sequence.group].release(sequence)

    def tick(self) -> list[TurnOutput]:
        """Collects what was in flight, launches one dispatch, returns the turns that are over."""
        if self._params is None:
            raise RuntimeError("set_params has not been called")
        self._collect()
        finished = self._finished()
        for memory in self._memories:
            memory.admit()
        self._copy_tails()
        sequences = self._sequences.values()
        waiting = [s for s in sequences if s.to_prefill and not self._memories[s.group].must_wait(s)]
        ready = [s for s in sequences if s.ready]
        full = len(waiting) >= self.config.prefill_rows
        self._idle = not waiting and not ready
        if waiting and (full or not ready or not self._last_was_prefill):
            self._prefill(batch_builder.share(waiting, self._groups, self.config.prefill_rows))
            self._last_was_prefill = True
        elif ready:
            self._decode(batch_builder.share(ready, self._groups, self.config.slots))
            self._last_was_prefill = False
        return finished

    @property
    def idle(self) -> bool:
        """Whether the last tick found nothing to do: all sequences are parked, or wait for parked ones' pages."""
        return self._idle

    @property
    def waiting(self) -> int:
        """Sequences that have not been given pages yet."""
        return sum(memory.waiting for memory in self._memories)

    @property
    def stats(self) -> EngineStats:
        self._stats.shared_tokens = sum(memory.shared_tokens for memory in self._memories)
        return self._stats

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return sum(memory.table.free for memory in self._memories)

    @property
    def recompilations(self) -> int:
        """Programs compiled after `warmup`: 0, unless a shape was forgotten."""
        return self._programs.late

    def compiled_programs(self) -> int:
        """How many programs exist."""
        return len(self._programs)

    def executables(self) -> dict[Key, Callable]:
        """The compiled programs by name and shape, for what can be read off them (memory, cost)."""
        return self._programs.made()

    def warmup(self) -> float:
        """Compiles every listed shape; returns the seconds that took. Needs weights (`set_params`)."""
        size, nowhere, shapes = self.config, self._memories[0].nowhere, self.shapes
        examples = [(("copy", ()), (self._pages, *self._placement.put_rows(*self._no_copies())))]
        for rows in shapes.decode_rows:
            for width in shapes.decode_widths:
                example = batch_builder.empty_decode(rows, size.decode_tokens, width, nowhere)
                examples.append((("decode", (rows, width)), self._decode_arguments(example)))
        for rows in shapes.prefill_rows:
            for width in shapes.prefill_widths:
                example = batch_builder.empty_prefill(rows, size.prefill_tokens, width, nowhere)
                arguments = self._params, self._pages, self._pool, self._placement.put(example)
                examples.append((("prefill", (rows, width)), arguments))
        for bucket in self._buckets:
            vision = vision_batch([], [bucket], self.model_config.vision)
            rows = np.full(bucket.merged, self._pool_index.rows, np.int32)
            arguments = self._params, self._pool, *self._placement.put_whole((vision, rows))
            examples.append((("encode", vision.patches.shape), arguments))
        self._programs.prepare(examples)
        return self._programs.seconds

    def _check_picture(self, picture: PictureInput) -> None:
        tokens = merged_tokens(picture.grid, self.model_config.vision)
        if tokens > self._pool_index.rows:
            raise ValueError(f"a picture of {tokens} tokens exceeds engine.picture_tokens {self._pool_index.rows}")
        if not fits([picture.grid], self._buckets, self.model_config.vision):
            raise ValueError(f"a picture of grid {picture.grid} fits no image bucket of {self._buckets}")

    def _collect(self) -> None:
        if self._inflight is not None:
            sequences, decoded = self._inflight
            self._inflight = None
            before = sum(len(s.token_ids) for s in sequences)
            batch_builder.absorb(sequences, self._groups, decoded)
            self._stats.sampled_tokens += sum(len(s.token_ids) for s in sequences) - before

    def _finished(self) -> list[TurnOutput]:
        outputs = []
        for sequence in self._sequences.values():
            turn = sequence.generation
            if turn is None:
                continue
            if self.stop.is_final(turn.state):
                finish = "eos" if turn.state == self.stop.eos else "stop"
            elif len(turn.token_ids) >= turn.max_new_tokens:
                finish = "length"
            else:
                continue
            outputs.append(TurnOutput(sequence.id, turn.token_ids, turn.logprobs, finish, self.version))
            sequence.generation = None
        return outputs

    def _group_for(self, sequence: Sequence) -> int:
        """The group of a sibling with the same prompt, whose pages it can share; else the least busy one."""
        if self._groups == 1:
            return 0
        load = [0] * self._groups
        for other in self._sequences.values():
            if other is not sequence and other.token_ids:
                if other.token_ids[: len(sequence.token_ids)] == sequence.token_ids:
                    return other.group
                load[other.group] += 1
        return load.index(min(load))

    def _copy_tails(self) -> None:
        copies: list[list[tuple[int, int]]] = [[] for _ in range(self._groups)]
        for sequence in self._sequences.values():
            if sequence.admitted and sequence.cached < sequence.prompt_end:
                copy = self._memories[sequence.group].catch_up(sequence)
                copies[sequence.group] += [copy] if copy else []
        while any(copies):
            source, target = self._no_copies()
            for group, wanted in enumerate(copies):
                now, copies[group] = wanted[: source.shape[1]], wanted[source.shape[1] :]
                if now:
                    source[group, : len(now)], target[group, : len(now)] = zip(*now, strict=True)
            self._pages = self._programs(("copy", ()), self._pages, *self._placement.put_rows(source, target))

    def _no_copies(self) -> tuple[np.ndarray, np.ndarray]:
        shape = self._groups, self.config.prefill_rows
        return np.zeros(shape, np.int32), np.full(shape, self.config.pages, np.int32)

    def _prefill(self, sequences: list[Sequence]) -> None:
        pieces = self._encode_for(sequences)
        chosen = [sequence for sequence, _ in pieces]
        rows = smallest(self.shapes.prefill_rows, batch_builder.rows_needed(chosen, self._groups))
        width = batch_builder.width_for(self.shapes.prefill_widths, chosen, self.config.page_size)
        for sequence, count in pieces:
            self._memories[sequence.group].grow(sequence, sequence.cached + count)
        arrays = batch_builder.prefill_rows(
            pieces, (rows, self.config.prefill_tokens, width), self._memories, self._pool_index
        )
        self._pages = self._programs(
            ("prefill", (rows, width)), self._params, self._pages, self._pool, self._placement.put(arrays)
        )
        for sequence, count in pieces:
            self._memories[sequence.group].written(sequence, sequence.cached, sequence.cached + count)
        self._stats.prefill_dispatches += 1
        self._stats.prefilled_tokens += sum(count for _, count in pieces)

    def _encode_for(self, sequences: list[Sequence]) -> list[batch_builder.Piece]:
        """The next piece of each sequence, cut where the pool has no room for another picture; encodes what is new."""
        pieces: list[batch_builder.Piece] = []
        pinned: set[str] = set()
        fresh: list[tuple[PictureInput, np.ndarray]] = []
        for sequence in sequences:
            start = sequence.cached
            end = start + min(self.config.prefill_tokens, sequence.to_prefill)
            for first, picture in sequence.pictures_between(start, end):
                if picture.digest not in self._pool_index:
                    rows = self._pool_index.place(picture.digest, picture.tokens, pinned)
                    if rows is None:
                        end = max(start, first)
                        break
                    fresh.append((picture, rows))
                pinned.add(picture.digest)
            if end > start:
                pieces.append((sequence, end - start))
        while fresh:
            fresh = self._encode(fresh)
        return pieces

    def _encode(self, fresh: list[tuple[PictureInput, np.ndarray]]) -> list[tuple[PictureInput, np.ndarray]]:
        """Encodes as many pictures as a bucket holds; returns the others."""
        vision = self.model_config.vision
        count = 1
        while count < len(fresh) and fits([p.grid for p, _ in fresh[: count + 1]], self._buckets, vision):
            count += 1
        now = fresh[:count]
        batch = vision_batch([(p.patches, p.grid) for p, _ in now], self._buckets, vision)
        rows = np.full(batch.merged_index.shape, self._pool_index.rows, np.int32)
        placed = np.concatenate([rows for _, rows in now])
        rows[: len(placed)] = placed
        self._pool = self._programs(
            ("encode", batch.patches.shape), self._params, self._pool, *self._placement.put_whole((batch, rows))
        )
        self._stats.encoded_pictures += count
        return fresh[count:]

    def _decode_arguments(self, rows: model_runner.DecodeRows) -> tuple:
        return self._params, self._pages, self._seed, self._table, self._forbidden, self._placement.put(rows)

    def _decode(self, sequences: list[Sequence]) -> None:
        rows = smallest(self.shapes.decode_rows, batch_builder.rows_needed(sequences, self._groups))
        width = batch_builder.width_for(self.shapes.decode_widths, sequences, self.config.page_size)
        arrays = batch_builder.decode_rows(sequences, (rows, self.config.decode_tokens, width), self._memories)
        self._pages, decoded = self._programs(("decode", (rows, width)), *self._decode_arguments(arrays))
        self._inflight = (sequences, decoded)
        self._stats.decode_dispatches += 1
        self._stats.decode_rows += rows
