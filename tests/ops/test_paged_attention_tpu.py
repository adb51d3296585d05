"""The paged-attention kernel in interpret mode equals attention over gathered pages, and it compiles for every TPU.

Catches: a page read twice or not at all, a page beyond a row's length that is read, rows without cached tokens, a list of
blocks whose rows run into one another, heads or query tokens that change places, scatters that copy the pages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dv2_jax.ops import paged_attention as paged
from dv2_jax.ops import paged_attention_tpu as kernel

LAYERS, PAGE, HEADS, KV_HEADS, DIM = 2, 16, 6, 2, 128
COLUMNS = 19  # pages of a row: two full blocks and a part of a third
LENGTHS = {
    "mixed": [0, 1, 16, 270, 130],
    "full": [COLUMNS * PAGE] * 5,
    "none": [0] * 5,
    "gaps": [0, 5, 0, 17, 0],
    "block ends": [128, 127, 129, 256, 255],
}


def random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def example(lengths, tokens: int):
    """Returns pages whose unused ones hold NaN, a page table, and the arrays of a dispatch."""
    rng = np.random.default_rng(0)
    rows = len(lengths)
    count = rows * COLUMNS + 1
    table = 1 + rng.permutation(rows * COLUMNS).reshape(rows, COLUMNS)
    live = np.zeros(count, bool)
    live[0] = True  # where the list of blocks points at before the first page
    for row, length in enumerate(lengths):
        live[table[row, : -(-length // PAGE)]] = True
    shape = LAYERS, count, PAGE, KV_HEADS * DIM
    k, v = (np.where(live[:, None, None], random(*shape), np.nan) for _ in range(2))
    pages = paged.Pages(jnp.asarray(k), jnp.asarray(v) + 1.0, KV_HEADS)
    new = (
        random(rows, tokens, HEADS, DIM),
        random(rows, tokens, KV_HEADS, DIM),
        random(rows, tokens, KV_HEADS, DIM) + 0.5,
    )
    return pages, jnp.asarray(table, jnp.int32), jnp.asarray(lengths, jnp.int32), new


@pytest.mark.parametrize("tokens", [1, 12])
@pytest.mark.parametrize("name", LENGTHS)
def test_the_kernel_equals_attention_over_gathered_pages_and_reads_live_pages_only(name, tokens):
    pages, table, lengths, (q, k, v) = example(LENGTHS[name], tokens)
    mask = jnp.tril(jnp.ones((tokens, tokens), bool))[None]
    in_place = paged.in_place(pages, table, lengths, interpret=True)
    finite = replace(pages, k=jnp.nan_to_num(pages.k), v=jnp.nan_to_num(pages.v))
    for layer in range(LAYERS):
        found = jax.jit(in_place.attend)(q, k, v, in_place.layers[layer], mask)
        prefix = paged.read_pages(finite, table, layer)
        expected = paged.paged_attention(q, k, v, prefix, lengths, mask)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_queries_are_tiled(monkeypatch):
    """Catches sums that one tile of queries leaves to the next."""
    monkeypatch.setattr(kernel, "QUERY_ROWS", 16)
    pages, table, lengths, (q, k, v) = example(LENGTHS["mixed"], 15)  # 45 rows of queries: 3 tiles, the last padded
    mask = jnp.tril(jnp.ones((15, 15), bool))[None]
    in_place = paged.in_place(pages, table, lengths, interpret=True)
    finite = replace(pages, k=jnp.nan_to_num(pages.k), v=jnp.nan_to_num(pages.v))
    expected = paged.paged_attention(q, k, v, paged.read_pages(finite, table, 1), lengths, mask)
    np.testing.assert_allclose(in_place.attend(q, k, v, in_place.layers[1], mask), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", LENGTHS)
def test_every_live_page_is_in_the_list_once(name):
    """Catches bytes beyond those of live pages: places that are not used repeat the page that they had before."""
    _, table, lengths, _ = example(LENGTHS[name], 1)
    blocks = kernel.page_blocks(table, lengths, PAGE, 1)
    count = int(blocks.count[0, 0])
    pages = np.asarray(blocks.page[0, :count])
    changed = np.ones(pages.shape, bool)
    changed[1:] = pages[1:] != pages[:-1]
    wanted = sorted(int(page) for row, length in enumerate(LENGTHS[name]) for page in table[row, : -(-length // PAGE)])
    read = sorted(int(page) for page in pages[changed] if page)  # 0: before a place's first page
    assert read == wanted
    live = kernel.live_bytes(LENGTHS[name], PAGE, KV_HEADS, DIM, 4)
    assert live == 2 * len(read) * PAGE * KV_HEADS * DIM * 4


def test_tokens_and_pages_are_written_where_the_general_functions_write_them(monkeypatch):
    """Catches a layer that writes into the pages of the next, and padding that is written to page 0."""
    pages = paged.empty_pages(LAYERS, 6, PAGE, KV_HEADS, DIM, jnp.float32)
    new_k, new_v = random(LAYERS, 4, 3, KV_HEADS, DIM), random(LAYERS, 4, 3, KV_HEADS, DIM) + 1
    slots = jnp.asarray([[0, 1, 2], [95, 94, 96], [40, 96, 96], [200, 17, 18]])
    source, target = jnp.asarray([[1, 5, 0]]), jnp.asarray([[3, 2, 6]])
    written = paged.write_pages(pages, new_k, new_v, slots)
    copied = paged.copy_pages(written, source, target)
    monkeypatch.setattr(kernel, "available", lambda head_dim, page_size: True)
    np.testing.assert_array_equal(paged.write_pages(pages, new_k, new_v, slots).v, written.v)
    np.testing.assert_array_equal(paged.copy_pages(written, source, target).k, copied.k)


PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from dv2_jax.config import MeshConfig
from dv2_jax.ops import paged_attention as paged
from dv2_jax.aot.compile import topology_devices
from dv2_jax.parallel.mesh import BATCH_AXES, make_mesh

topology, fsdp, tensor = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
devices = topology_devices(topology)[:fsdp * tensor]
mesh = make_mesh(MeshConfig(1, fsdp, tensor), devices)
def array(*shape, spec, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
layers, count, size, heads, kv_heads, dim, rows, columns = 3, 1024, 64, 28, 4, 128, 16, 128
pool = array(layers, count, size, kv_heads * dim, spec=(None, BATCH_AXES, None, "tensor"))
pages = paged.Pages(pool, pool, kv_heads, fsdp)
def step(pages, q, k, v, table, lengths):
    cached = paged.cached_rows(pages, table, lengths)
    tokens = q.shape[1]
    mask = jnp.tril(jnp.ones((tokens, tokens), bool))[None]
    for layer in cached.layers:
        q = cached.attend(q, k, v, layer, mask)
    slots = jnp.full((rows, tokens), 5, jnp.int32)
    pages = paged.write_pages(pages, jnp.stack([k] * layers), jnp.stack([v] * layers), slots)
    return paged.copy_pages(pages, jnp.zeros((fsdp, 2), jnp.int32), jnp.ones((fsdp, 2), jnp.int32)), q
for tokens in (1, 256):
    heads_spec = (BATCH_AXES, None, "tensor")
    arguments = (array(rows, tokens, heads, dim, spec=heads_spec), array(rows, tokens, kv_heads, dim, spec=heads_spec),
                 array(rows, tokens, kv_heads, dim, spec=heads_spec), array(rows, columns, spec=(BATCH_AXES,), dtype=jnp.int32),
                 array(rows, spec=(BATCH_AXES,), dtype=jnp.int32))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, donate_argnums=0).lower(pages, *arguments).compile()
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') >= layers, "the kernel is not used"
    assert "all-gather" not in text, "pages or rows are gathered"
    pool_bytes = layers * count * size * kv_heads * dim * 2 // (fsdp * tensor)
    assert compiled.memory_analysis().temp_size_in_bytes < (0.25 if tokens == 1 else 1.0) * pool_bytes + 2**26, "pages are copied"
print("compiled")
"""


@pytest.mark.parametrize(
    "topology, fsdp, tensor", [("v5e:2x2", 2, 2), ("v5p:2x2x1", 4, 1), ("v6e:2x2", 1, 4), ("tpu7x:2x2x1", 4, 2)]
)
def test_the_kernel_compiles_and_copies_no_pages(topology, fsdp, tensor):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install 'dv2_jax[tpu]'")
    environment = os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, topology, str(fsdp), str(tensor)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "compiled" in done.stdout, done.stderr[-3000:]
