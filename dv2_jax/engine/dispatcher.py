"""The device half of the engine: weights, KV pages and image embeddings, and the programs that read and update them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from dv2_jax.config import EngineConfig
from dv2_jax.engine import batch_builder, model_runner
from dv2_jax.engine.buckets import Buckets
from dv2_jax.engine.engine_sharding import EngineSharding
from dv2_jax.engine.executables import ExecutableCache, Key
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import GraphDef, Params
from dv2_jax.model.vision_inputs import VisionBatch, VisionBucket, vision_batch
from dv2_jax.ops.paged_attention import empty_pages


class Dispatcher:
    """Launches the engine's programs. A call returns before its program has run.

    Args:
        graphdef: graph definition of the model, without weights.
        num_shards: number of data-parallel shards of rows and pages.
        stop_table: transitions of the stop automaton over the model's vocabulary.
        forbidden: mask of the ids that are never sampled.
    """

    def __init__(
        self,
        graphdef: GraphDef,
        model_config: ModelConfig,
        engine: EngineConfig,
        *,
        num_shards: int,
        seed: int,
        stop_table: Int[np.ndarray, "Q V"],
        forbidden: Bool[np.ndarray, "V"],
        compute_dtype: jnp.dtype,
        mesh: jax.sharding.Mesh | None,
    ):
        text = model_config.text
        self._model_config, self._config, self._num_shards = model_config, engine, num_shards
        self._sharding = EngineSharding.for_mesh(mesh, text.num_kv_heads)
        self.params: Params | None = None
        pages = empty_pages(
            text.num_layers, engine.pages, engine.page_size, text.num_kv_heads, text.head_dim, compute_dtype, num_shards
        )
        self._pages = pages if self._sharding.pages is None else jax.device_put(pages, self._sharding.pages)
        self._image_embeddings, *self._sampling_tables = self._sharding.replicate(
            (
                jnp.zeros((engine.image_cache_tokens, text.hidden_size), compute_dtype),
                jnp.asarray(seed & 0xFFFFFFFF, jnp.uint32),
                jnp.asarray(stop_table),
                jnp.asarray(forbidden),
            )
        )
        self.executables = ExecutableCache(model_runner.jit_functions(graphdef, self._sharding), mesh)

    def copy_pages(self, copies: Sequence[list[tuple[int, int]]]) -> None:
        """Copies pages; `copies` lists (source page, target page) for every shard."""
        size = self._config.prefill_rows
        for start in range(0, max(map(len, copies)), size):
            source, target = self._no_copies()
            for shard, pending in enumerate(copies):
                for column, (source_page, target_page) in enumerate(pending[start : start + size]):
                    source[shard, column] = source_page
                    target[shard, column] = target_page
            self._pages = self.executables(("copy", ()), self._pages, *self._sharding.device_put_rows(source, target))

    def prefill(self, batch: model_runner.PrefillBatch) -> None:
        """Computes keys and values of the tokens of `batch` and writes them to the KV pages."""
        self._pages = self.executables(_prefill_key(batch), *self._prefill_arguments(batch))

    def decode(self, batch: model_runner.DecodeBatch, min_live: int = 1) -> model_runner.DecodeOutput:
        """Samples tokens for every row of `batch`, and ends when fewer than `min_live` rows have not ended."""
        arguments = self._decode_arguments(batch, min_live)
        self._pages, decoded = self.executables(("decode", batch.page_table.shape), *arguments)
        return decoded

    def encode(self, vision: VisionBatch, rows: Int[np.ndarray, "M"]) -> None:
        """Writes the embeddings of images to these rows of the image-embedding cache; rows out of range are padding."""
        self._image_embeddings = self.executables(
            ("encode", vision.patches.shape), *self._encode_arguments(vision, rows)
        )

    def warmup(self, buckets: Buckets, image_buckets: Sequence[VisionBucket], pad_slot: int) -> float:
        """Compiles the programs of every bucket and returns the seconds spent. Needs weights."""
        size = self._config
        copies = self._sharding.device_put_rows(*self._no_copies())
        examples: list[tuple[Key, tuple[Any, ...]]] = [(("copy", ()), (self._pages, *copies))]
        for rows, width in buckets.decode:
            decode = batch_builder.empty_decode_batch(rows, size.decode_tokens, width, pad_slot)
            examples.append((("decode", (rows, width)), self._decode_arguments(decode)))
        for rows, tokens, width in buckets.prefill:
            prefill = batch_builder.empty_prefill_batch(rows, tokens, width, pad_slot)
            examples.append((_prefill_key(prefill), self._prefill_arguments(prefill)))
        for bucket in image_buckets:
            vision = vision_batch([], [bucket], self._model_config.vision)
            padding = np.full(bucket.num_merged_tokens, size.image_cache_tokens, np.int32)
            examples.append((("encode", vision.patches.shape), self._encode_arguments(vision, padding)))
        self.executables.warmup(examples)
        return self.executables.seconds

    def _prefill_arguments(self, batch: model_runner.PrefillBatch) -> tuple[Any, ...]:
        return self.params, self._pages, self._image_embeddings, self._sharding.device_put_batch(batch)

    def _decode_arguments(self, batch: model_runner.DecodeBatch, min_live: int = 1) -> tuple[Any, ...]:
        live = self._sharding.replicate(np.asarray(min_live, np.int32))
        return self.params, self._pages, *self._sampling_tables, live, self._sharding.device_put_batch(batch)

    def _encode_arguments(self, vision: VisionBatch, rows: Int[np.ndarray, "M"]) -> tuple[Any, ...]:
        return self.params, self._image_embeddings, *self._sharding.replicate((vision, rows))

    def _no_copies(self) -> tuple[np.ndarray, np.ndarray]:
        shape = self._num_shards, self._config.prefill_rows
        return np.zeros(shape, np.int32), np.full(shape, self._config.pages, np.int32)


def _prefill_key(batch: model_runner.PrefillBatch) -> Key:
    return "prefill", (*batch.token_ids.shape, batch.page_table.shape[1])
