"""Costs from HLO text against hand-computed costs of small programs."""

import jax
import jax.numpy as jnp
import pytest

from dv2_jax.aot.hlo_cost import analyze


def test_a_scan_counts_its_body_as_often_as_it_runs():
    """Catches: loop bodies counted once, as in XLA's own cost analysis."""

    def layers(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    w, x = jnp.zeros((7, 64, 64)), jnp.zeros((32, 64))
    compiled = jax.jit(jax.grad(layers)).lower(w, x).compile()
    costs = analyze(compiled.as_text())
    assert costs.flops == 7 * 3 * 2 * 32 * 64 * 64  # one matmul forward, two backward
    assert costs.unknown_loops == 0
    assert compiled.cost_analysis()["flops"] < costs.flops


# TPU HLO: matmuls are convolutions, and batched ones have a window that fits once per batch element.
MODULE = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add.clone (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[]{:T(128)} parameter(0)
  %y.1 = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%x.1, %y.1)
}

%body.1 (param.1: (s32[], bf16[128,1024])) -> (s32[], bf16[128,1024]) {
  %param.1 = (s32[]{:T(128)}, bf16[128,1024]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  %x.2 = bf16[128,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%param.1), index=1
  %all-gather.1 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-gather(%x.2), channel_id=1, replica_groups=mesh['a'=8,'b'=1] {'a'}, dimensions={0}
  %convolution.1 = bf16[128,1024]{1,0:T(8,128)(2,1)} convolution(%x.2, %all-gather.1), dim_labels=bf_io->bf
  %one.1 = s32[]{:T(128)} constant(1)
  %add.2 = s32[]{:T(128)} add(%i.1, %one.1)
  %add.3 = s32[]{:T(128)} add(%add.2, %one.1)
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[128,1024]{1,0:T(8,128)(2,1)}) tuple(%add.3, %convolution.1)
}

%condition.1 (param.2: (s32[], bf16[128,1024])) -> pred[] {
  %param.2 = (s32[]{:T(128)}, bf16[128,1024]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%param.2), index=0
  %bound.1 = s32[]{:T(128)} constant(7)
  ROOT %less.1 = pred[]{:T(512)} compare(%i.2, %bound.1), direction=LT
}

%all-reduce-scatter.1 (param.3: f32[800]) -> f32[100] {
  %param.3 = f32[800]{0} parameter(0)
  %all-reduce.1 = f32[800]{0} all-reduce(%param.3), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add.clone
  %zero.1 = s32[] constant(0)
  ROOT %slice.1 = f32[100]{0} dynamic-slice(%all-reduce.1, %zero.1), dynamic_slice_sizes={100}
}

ENTRY %main.1 (x.3: bf16[128,1024], y.3: bf16[16,64,32], z.3: bf16[16,32,48], w.3: f32[800]) -> bf16[128,1024] {
  %x.3 = bf16[128,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %y.3 = bf16[16,64,32]{2,1,0:T(8,128)(2,1)} parameter(1)
  %z.3 = bf16[16,32,48]{2,1,0:T(8,128)(2,1)} parameter(2)
  %w.3 = f32[800]{0} parameter(3)
  %two.1 = s32[]{:T(128)} constant(2)
  %convolution.2 = bf16[16,64,48]{2,1,0:T(8,128)(2,1)} convolution(%y.3, %z.3), window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0io->0bf
  %kernel.1 = (f32[8]{0}, s8[1]{0}) custom-call(%w.3), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
 "block": 512
}}, metadata={op_name="attention"}
  %sum.1 = f32[100]{0} fusion(%w.3), kind=kCustom, calls=%all-reduce-scatter.1
  %permute.1 = (bf16[128,1024]{1,0}, bf16[128,1024]{1,0}, u32[], u32[]) collective-permute-start(%x.3), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %permuted.1 = bf16[128,1024]{1,0} collective-permute-done(%permute.1)
  %tuple.2 = (s32[]{:T(128)}, bf16[128,1024]{1,0:T(8,128)(2,1)}) tuple(%two.1, %permuted.1)
  %while.1 = (s32[]{:T(128)}, bf16[128,1024]{1,0:T(8,128)(2,1)}) while(%tuple.2), condition=%condition.1, body=%body.1
  ROOT %out.1 = bf16[128,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""


def test_a_tpu_module_is_counted_as_it_runs():
    """Catches loops that begin later than 0 or take two steps at once, batched products counted once per pair, sums that are scattered, and all that
    follows a kernel whose description takes several lines."""
    costs = analyze(MODULE)
    loop = 3  # from 2 to 7 in steps of 2
    assert costs.flops == loop * 2 * 128 * 1024 * 1024 + 2 * 16 * 64 * 32 * 48
    assert dict(costs.collective_bytes) == {
        "all-gather": loop * 1024 * 1024 * 2 * 7 // 8,
        "reduce-scatter": 800 * 4 * 7 // 8,
        "collective-permute": 128 * 1024 * 2,
    }
    assert costs.calls["all-gather"] == loop and costs.largest["all-gather"] == 1024 * 1024 * 2 * 7 // 8


# A scan: each iteration adds a slice of a stacked array to a running sum, and stores the previous sum.
SCAN = """HloModule scan, num_partitions=1

%gathered.1 (p.1: bf16[64,128], i.1: s32[8]) -> bf16[8,128] {
  %p.1 = bf16[64,128]{1,0} parameter(0)
  %i.1 = s32[8]{0} parameter(1)
  ROOT %gather.1 = bf16[8,128]{1,0} gather(%p.1, %i.1), offset_dims={1}
}, execution_thread="sparsecore"

%step.1 (stack.1: f32[7,256], place.1: s32[], sum.1: f32[256]) -> f32[256] {
  %stack.1 = f32[7,256]{1,0} parameter(0)
  %place.1 = s32[] parameter(1)
  %sum.1 = f32[256]{0} parameter(2)
  %zero.1 = s32[] constant(0)
  %slice.1 = f32[1,256]{1,0} dynamic-slice(%stack.1, %place.1, %zero.1), dynamic_slice_sizes={1,256}
  %flat.1 = f32[256]{0} bitcast(%slice.1)
  ROOT %add.1 = f32[256]{0} add(%flat.1, %sum.1)
}

%keep.1 (kept.1: f32[7,256], place.2: s32[], sum.2: f32[256]) -> f32[7,256] {
  %kept.1 = f32[7,256]{1,0} parameter(0)
  %place.2 = s32[] parameter(1)
  %sum.2 = f32[256]{0} parameter(2)
  %zero.2 = s32[] constant(0)
  %one.1 = f32[1,256]{1,0} bitcast(%sum.2)
  ROOT %update.1 = f32[7,256]{1,0} dynamic-update-slice(%kept.1, %one.1, %place.2, %zero.2)
}

%body.1 (state.1: (s32[], f32[256], f32[7,256], f32[7,256])) -> (s32[], f32[256], f32[7,256], f32[7,256]) {
  %state.1 = (s32[], f32[256]{0}, f32[7,256]{1,0}, f32[7,256]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%state.1), index=0
  %sum.3 = f32[256]{0} get-tuple-element(%state.1), index=1
  %stack.2 = f32[7,256]{1,0} get-tuple-element(%state.1), index=2
  %kept.2 = f32[7,256]{1,0} get-tuple-element(%state.1), index=3
  %fusion.1 = f32[7,256]{1,0} fusion(%kept.2, %i.2, %sum.3), kind=kLoop, calls=%keep.1
  %fusion.2 = f32[256]{0} fusion(%stack.2, %i.2, %sum.3), kind=kLoop, calls=%step.1
  %one.2 = s32[] constant(1)
  %next.1 = s32[] add(%i.2, %one.2)
  ROOT %tuple.1 = (s32[], f32[256]{0}, f32[7,256]{1,0}, f32[7,256]{1,0}) tuple(%next.1, %fusion.2, %stack.2, %fusion.1)
}

%condition.1 (state.2: (s32[], f32[256], f32[7,256], f32[7,256])) -> pred[] {
  %state.2 = (s32[], f32[256]{0}, f32[7,256]{1,0}, f32[7,256]{1,0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%state.2), index=0
  %seven.1 = s32[] constant(7)
  ROOT %less.1 = pred[] compare(%i.3, %seven.1), direction=LT
}

ENTRY %main.1 (x.1: f32[256], y.1: f32[7,256], z.1: f32[7,256], q.1: bf16[28,8192,128], k.1: bf16[4,8192,128]) -> f32[256] {
  %x.1 = f32[256]{0} parameter(0)
  %y.1 = f32[7,256]{1,0} parameter(1)
  %z.1 = f32[7,256]{1,0} parameter(2)
  %q.1 = bf16[28,8192,128]{2,1,0} parameter(3)
  %k.1 = bf16[4,8192,128]{2,1,0} parameter(4)
  %near.1 = f32[256]{0:T(256)S(1)} copy(%x.1)
  %doubled.1 = f32[256]{0:T(256)S(1)} add(%near.1, %near.1)
  %attended.1 = bf16[28,8192,128]{2,1,0} custom-call(%q.1, %k.1, %k.1), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(f)/causal_attention/shard_map/splash_mha_fwd_segmented_residuals/pallas_call"}
  %start.1 = s32[] constant(0)
  %tuple.2 = (s32[], f32[256]{0}, f32[7,256]{1,0}, f32[7,256]{1,0}) tuple(%start.1, %x.1, %y.1, %z.1)
  %while.1 = (s32[], f32[256]{0}, f32[7,256]{1,0}, f32[7,256]{1,0}) while(%tuple.2), condition=%condition.1, body=%body.1
  ROOT %out.1 = f32[256]{0} get-tuple-element(%while.1), index=1
}
"""


def test_hbm_bytes_of_a_scan_are_those_of_its_slices():
    """Catches: a stacked array counted in full in every iteration, on-chip memory counted as HBM, and a computation
    lost that follows one of another core."""
    row = 256 * 4
    loop = 7 * (row + row + (row + row + row)) + 7 * (4 + 4 + 4 + 4 + 4)  # stored: read, write; added: two reads, write
    copied = row
    attention = (28 + 28 + 4) * 8192 * 128 * 2  # an operand that occurs twice is read once
    assert analyze(SCAN).hbm_bytes == pytest.approx(loop + copied + attention, rel=1e-5)


def test_an_attention_kernel_counts_the_blocks_it_visits():
    """Catches a kernel that counts nothing, as all of the square, or by its key heads."""
    square = 2 * 2 * 28 * 8192 * 8192 * 128
    assert analyze(SCAN).flops == square * (8192 + 512) / (2 * 8192)
    full = SCAN.replace("causal_attention", "segment_attention")
    assert analyze(full).flops == square
    assert analyze(full.replace("splash_mha_fwd", "splash_mha_dkv")).flops == 2 * square


def test_a_loop_of_unknown_trip_count_is_reported():
    unknown = MODULE.replace("compare(%i.2, %bound.1), direction=LT", "compare(%i.2, %bound.1), direction=NE")
    costs = analyze(unknown)
    assert costs.unknown_loops == 1 and costs.calls["all-gather"] == 1
    bounded = analyze(unknown, max_trip_count=5)
    assert bounded.unknown_loops == 0 and bounded.calls["all-gather"] == 5


PAGED = """HloModule paged, num_partitions=1

%write.1 (pool.1: bf16[6144,128], at.1: s32[32,1], new.1: bf16[32,128]) -> bf16[6144,128] {
  %pool.1 = bf16[6144,128]{1,0} parameter(0)
  %at.1 = s32[32,1]{1,0} parameter(1)
  %new.1 = bf16[32,128]{1,0} parameter(2)
  ROOT %scatter.1 = bf16[6144,128]{1,0} scatter(%pool.1, %at.1, %new.1), update_window_dims={1}, to_apply=%other.1
}

ENTRY %main.1 (k.1: bf16[3,32,64,128], v.1: bf16[3,32,64,128], q.1: bf16[4,1,7,128], at.2: s32[32,1], new.2: bf16[32,128]) -> bf16[6144,128] {
  %k.1 = bf16[3,32,64,128]{3,2,1,0} parameter(0)
  %v.1 = bf16[3,32,64,128]{3,2,1,0} parameter(1)
  %q.1 = bf16[4,1,7,128]{3,2,1,0} parameter(2)
  %at.2 = s32[32,1]{1,0} parameter(3)
  %new.2 = bf16[32,128]{1,0} parameter(4)
  %count.1 = s32[] constant(2)
  %list.1 = s32[24]{0} constant({0})
  %attended.1 = (f32[4,1,7,128]{3,2,1,0}, f32[4,1,7,128]{3,2,1,0}) custom-call(%count.1, %list.1, %q.1, %k.1, %k.1, %v.1, %v.1), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/shard_map/paged_attention/pallas_call"}
  %pool.2 = bf16[6144,128]{1,0} bitcast(%k.1)
  ROOT %written.1 = bf16[6144,128]{1,0} fusion(%pool.2, %at.2, %new.2), kind=kCustom, calls=%write.1
}
"""


def test_the_paged_kernel_and_writes_in_place_count_the_pages_that_they_touch():
    """Catches all pages of the cache counted in every layer, and a written token that counts as a copy of the cache."""
    costs = analyze(PAGED)
    page = 64 * 128 * 2
    results, queries, lists = 2 * 4 * 7 * 128 * 4, 4 * 7 * 128 * 2, 24 * 4 + 4
    written = 32 * 4 + 32 * 128 * 2 + 32 * 128 * 2  # indices, updates read, updates written
    assert costs.hbm_bytes == 2 * 24 * page + results + queries + lists + written
    assert costs.flops == 2 * 2 * 7 * 128 * 24 * 64
    tiled = analyze(PAGED.replace("[4,1,7,128]", "[4,1,1024,128]"))
    assert tiled.flops == 2 * 2 * 1024 * 128 * 24 * 64
    grown = 2 * 4 * (1024 - 7) * 128 * 4 + 4 * (1024 - 7) * 128 * 2
    assert tiled.hbm_bytes - costs.hbm_bytes == 2 * 24 * page + grown  # two tiles of queries read the pages twice
