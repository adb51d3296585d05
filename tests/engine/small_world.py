"""A small model with random weights, its tokenizer, and an oracle: a full forward pass over stored ids."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dv2_jax.config import EngineConfig, ImageConfig
from dv2_jax.data.chat_encoder import ChatEncoder, ImageInput
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.engine import Engine, StopAutomaton, TurnOutput, forbidden_ids
from dv2_jax.model.image_grid import num_image_tokens
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import build, init_params, logical_axes, merge
from dv2_jax.model.positions import mrope_positions
from dv2_jax.model.vision_inputs import VisionBucket, vision_batch
from dv2_jax.ops.attention import causal_segment_attention
from dv2_jax.ops.logprobs import chunked_logprobs
from dv2_jax.parallel.mesh import param_shardings

SMALL = EngineConfig(
    slots=8, page_size=8, pages=260, prefill_rows=4, prefill_tokens=16, decode_tokens=6, image_cache_tokens=64
)
BUCKETS = [VisionBucket.for_patches(2, 64)]
MAX_TOKENS = 200
SEED = 5
TURNS = 3  # of each sequence in `roll_out`


@dataclass
class World:
    """Model, tokenizer, encoder and oracle that the engine tests share."""

    tokenizer: Tokenizer
    config: ModelConfig
    graphdef: object
    params: dict
    forbidden: np.ndarray
    stop: StopAutomaton
    encoder: ChatEncoder
    _oracles: dict = field(default_factory=dict)

    def engine(self, max_tokens: int = MAX_TOKENS, *, mesh: jax.sharding.Mesh | None = None, **sizes) -> Engine:
        engine = Engine(
            self.graphdef,
            self.config,
            dataclasses.replace(SMALL, **sizes),
            BUCKETS,
            stop=self.stop,
            max_tokens_per_sequence=max_tokens,
            seed=SEED,
            forbidden=self.forbidden,
            mesh=mesh,
        )
        params = self.params
        if mesh is not None:
            params = jax.device_put(params, param_shardings(mesh, logical_axes(self.config)))
        engine.set_params(params, 3)
        return engine

    def prompt(self, text: str, num_images: int = 0, seed: int = 0):
        """Encodes a question with random images of different shapes; returns ids and images."""
        rng = np.random.default_rng(seed)
        inputs = [self.encoder.encode_image(png(rng, 60 + 30 * i, 110 - 20 * i)) for i in range(num_images)]
        segment = self.encoder.encode_prompt([{"role": "user", "content": "<image>" * num_images + text}], inputs)
        return list(segment.token_ids), list(segment.images)

    def observation(self, text: str, num_images: int = 0, seed: int = 100):
        """Encodes a tool response with random images; returns ids and images."""
        rng = np.random.default_rng(seed)
        inputs = [self.encoder.encode_image(png(rng, 90, 56 + 28 * i)) for i in range(num_images)]
        segment = self.encoder.encode_tool_response(text + "<image>" * num_images, inputs, prefill="<think>")
        return list(segment.token_ids), list(segment.images)

    def full_logprobs(self, token_ids: list[int], images: list[ImageInput], temperature: float) -> np.ndarray:
        """Computes the log-prob of every token with the trainer's functions: one forward pass, no KV cache."""
        padded = -(-len(token_ids) // 32) * 32
        grids = [image.grid for image in images]
        ids = np.zeros((1, padded), np.int32)
        ids[0, : len(token_ids)] = token_ids
        positions = np.zeros((3, 1, padded), np.int32)
        positions[:, 0, : len(token_ids)], _ = mrope_positions(token_ids, grids, self.config)
        segments = (np.arange(padded)[None] < len(token_ids)).astype(np.int32)
        image_index = np.full((1, padded), -1, np.int32)
        image_index[0, : len(token_ids)][np.asarray(token_ids) == self.config.image_token_id] = np.arange(
            sum(num_image_tokens(grid) for grid in grids)
        )
        targets = np.roll(ids, -1, axis=1)
        vision = vision_batch(
            [(image.patches, image.grid) for image in images], [VisionBucket.for_patches(8, 64)], self.config.vision
        )
        result = self._oracle(padded)(
            self.params, ids, positions, segments, image_index, targets, vision, temperature or 1.0
        )
        return np.concatenate([[0.0], np.asarray(result)[: len(token_ids) - 1]])

    def _oracle(self, padded: int):
        if padded not in self._oracles:

            def forward(params, ids, positions, segments, image_index, targets, vision, temperature):
                model = merge(self.graphdef, params)
                embeds = model.embed(ids, model.encode_images(vision), image_index)
                attend = lambda q, k, v, cache: (causal_segment_attention(q, k, v, segments), cache)  # noqa: E731
                hidden, _ = model.hidden(embeds, positions, attend)
                return chunked_logprobs(
                    hidden[0], model.head_kernel(), targets[0], temperature=temperature,
                    forbidden=jnp.asarray(self.forbidden),
                )[0]  # fmt: skip

            self._oracles[padded] = jax.jit(forward)
        return self._oracles[padded]


def png(rng: np.random.Generator, height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def finish_turns(engine: Engine, count: int, *, release: bool = False, steps: int = 400) -> dict[str, TurnOutput]:
    """Steps the engine until `count` turns have finished; with `release`, frees each sequence after its turn."""
    outputs: dict[str, TurnOutput] = {}
    for _ in range(steps):
        for output in engine.step():
            outputs[output.seq_id] = output
            if release:
                engine.free_sequence(output.seq_id)
        if len(outputs) == count:
            return outputs
    raise AssertionError(f"{len(outputs)} of {count} turns were finished after {steps} steps")


def roll_out(world, engine, names, temperatures):
    """Samples multi-turn sequences concurrently; returns (ids, images, sampled mask, log-probs) of each."""
    rows = {}
    for number, name in enumerate(names):
        ids, images = world.prompt(f"Question {number}: what stands on the {'large ' * number}table?", number % 3)
        rows[name] = (list(ids), list(images), [0] * len(ids), [0.0] * len(ids))
        engine.add_sequence(name, 1000 + number)
        engine.append(name, ids, images)
    for turn in range(TURNS):
        for number, name in enumerate(names):
            engine.request_turn(name, 5 + 3 * ((number + turn) % 4), temperatures[number % len(temperatures)])
        for name, output in finish_turns(engine, len(names)).items():
            ids, images, mask, logprobs = rows[name]
            ids += output.token_ids
            mask += [1] * len(output.token_ids)
            logprobs += output.logprobs
            if turn + 1 < TURNS:
                number = names.index(name)
                text = f"stdout: {number * 17}" + " and so on" * (number % 3)
                new, shown = world.observation(text, (number + turn) % 2, seed=number * 10 + turn)
                ids += new
                images += shown
                mask += [0] * len(new)
                logprobs += [0.0] * len(new)
                engine.append(name, new, shown)
    return rows


def make_world() -> World:
    """Builds a small model with random weights and every part of the published architecture."""
    tokenizer = Tokenizer.from_package()
    vocab = tokenizer.vocab_size + 4  # a model's vocabulary is usually padded
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "pad_token_id": "<|endoftext|>",
    }
    config = ModelConfig.tiny(
        vocab,
        text=dict(
            hidden_size=64, num_layers=2, intermediate_size=96, mrope_section=(2, 3, 3), tie_word_embeddings=False
        ),
        vision=dict(hidden_size=32, num_heads=2, intermediate_size=48),
        **{field: tokenizer.id(name) for field, name in names.items()},
    )
    graphdef, _ = build(config)
    params = init_params(config, jax.random.key(0))
    # Untied and scaled up: a tied random head repeats the last token, a small one samples almost uniformly.
    params["text.head.kernel"] = params["text.head.kernel"] * 3
    eos = tokenizer.id("<|im_end|>")
    return World(
        tokenizer,
        config,
        graphdef,
        params,
        forbidden_ids(tokenizer, vocab, frozenset({eos})),
        StopAutomaton(tokenizer, ("</code>", "</tool_call>"), [eos]),
        ChatEncoder(tokenizer, ImageConfig(), ("</code>", "</tool_call>")),
    )
