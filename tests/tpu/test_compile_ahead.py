"""Programs of the tiny model, compiled for TPUs that are not here and lowered for GPUs. Nothing of it runs."""

import dataclasses
import importlib.util
import math

import jax
import pytest

from dv2_jax import compile_ahead
from dv2_jax.config import Config, ConfigError, ImageConfig, MeshConfig, ModelSource, RLConfig, SFTConfig
from dv2_jax.model import text
from dv2_jax.model.params import abstract_params
from dv2_jax.parallel.aot import Compiled, TopologyError, topology_devices
from dv2_jax.parallel.hlo import Costs
from dv2_jax.recipes.programs import Program, abstract_policy, engine_programs, rl_programs, sft_programs

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install 'dv2_jax[tpu]')"
)
SOURCE = ModelSource(init="random", preset="tiny", compute_dtype="bfloat16", remat=True)


@pytest.fixture(autouse=True)
def rolled(monkeypatch):
    """Layers in a loop, as in the real sizes; the few of the tiny model would be unrolled."""
    monkeypatch.setattr(text, "UNROLL_LAYERS", 1)
    caching = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", caching)


def recipe(name, *, rows, **fields):
    config = Config(recipe=name, model=SOURCE, **fields)
    return dataclasses.replace(
        config,
        sft=SFTConfig(batch_rows=rows, row_tokens=512),
        rl=RLConfig(microbatch_rows=rows, row_tokens=512),
        image=ImageConfig(max_pixels=56 * 56),
        agent=dataclasses.replace(config.agent, max_total_tokens=512, max_images=1),
        engine=dataclasses.replace(config.engine, slots=8, pages=64, prefill_rows=4),
    )


@needs_libtpu
def test_supervised_learning_compiles_for_a_slice():
    """Sees a program that the TPU compiler refuses, weights that are not split, and activations that are sent."""
    config = recipe("sft", rows=4)
    mesh, rows = compile_ahead.run(config, "v5e:2x2", ["gradient"])
    assert mesh == {"data": 1, "fsdp": 4, "tensor": 1}
    [row] = rows
    assert row.fits and row.compiled.costs.unknown_loops == 0
    params = abstract_params(model(config))
    weights = 4 * sum(math.prod(p.shape) for p in params.values())
    # Weights and gradients, each a fourth per device, besides a batch and the padding of small arrays.
    assert 2 * weights / 4 <= row.compiled.arguments < 2 * 2 * weights / 4
    tokens = 512  # one row per device; per token 2 for the forward pass, 4 for the backward one, 2 for the layers again
    matrices = sum(math.prod(p.shape) for name, p in params.items() if name.startswith("text.") and "norm" not in name)
    assert 6 * tokens * matrices < row.compiled.costs.flops < 9 * tokens * matrices
    # Every weight is gathered for the forward pass and again for the backward pass (bf16), its gradient is summed.
    assert 0 < row.compiled.costs.bytes_sent < 3 * weights


@needs_libtpu
def test_reinforcement_learning_and_the_engine_compile_for_another_slice():
    """Sees the same with replicas, and an engine program that the TPU compiler refuses."""
    config = recipe("rl", rows=4, mesh=MeshConfig(data=2, fsdp=2))
    mesh, rows = compile_ahead.run(config, "v5p:2x2x1", ["log-probs", "prefill", "decode"])
    assert mesh == {"data": 2, "fsdp": 2, "tensor": 1}
    assert {row.program.name: row.fits for row in rows} == {"log-probs": True, "prefill": True, "decode": True}
    shown = compile_ahead.table(rows)
    assert len(shown.splitlines()) == 2 + len(rows)


@needs_libtpu
def test_an_unknown_slice_is_named_with_examples():
    with pytest.raises(TopologyError, match="v9:2x2.*v5p:2x4x4"):
        topology_devices("v9:2x2")


def model(config):
    return abstract_policy(config, jax.devices()[:1]).model


@pytest.mark.parametrize("name", ["sft", "rl"])
def test_every_program_lowers_for_cuda(name):
    """Sees a kernel of another platform, or a form of attention that only a CPU has, in a program for GPUs."""
    config = recipe(name, rows=2, mesh=MeshConfig(fsdp=1))
    policy = abstract_policy(config, jax.devices()[:1])
    found = sft_programs(policy) if name == "sft" else [*rl_programs(policy), *engine_programs(policy)]
    names = [program.name for program in found]
    assert names == (["SFT gradient", "SFT optimiser"] if name == "sft" else
                     ["RL gradient", "RL optimiser", "log-probs", "prefill", "decode", "encode"])  # fmt: skip
    for program in found:
        lowered = program.function.trace(*program.arguments).lower(lowering_platforms=("cuda",))
        assert "tpu_custom_call" not in lowered.as_text(), program.name


def test_what_lies_beside_a_program_counts_against_the_memory():
    """Sees optimiser moments or KV pages that are forgotten because a program does not take them."""
    program = Program("gradient", "", None, (), beside=30, mesh=None)
    done = Compiled(1.0, arguments=40, temporaries=30, peak=60, costs=Costs())
    assert compile_ahead.Row(program, done, limit=100).fits
    assert not compile_ahead.Row(program, done, limit=99).fits
    refused = compile_ahead.Row(program, Compiled(1.0, error="Ran out of memory"), limit=1000)
    assert not refused.fits and "Ran out of memory" in compile_ahead.table([refused])


def test_a_program_that_is_not_there_is_named():
    config = recipe("sft", rows=2, mesh=MeshConfig(fsdp=1))
    policy = abstract_policy(config, jax.devices()[:1])
    with pytest.raises(ConfigError, match="prefil: none of SFT gradient, SFT optimiser"):
        compile_ahead.choose(sft_programs(policy), ["prefil"])


def test_the_command_says_what_it_lacks(capsys):
    if importlib.util.find_spec("libtpu") is None:
        assert compile_ahead.main(["--topology", "v5p:2x2x1", "--config=configs/sft.py"]) == 2
        assert "pip install" in capsys.readouterr().err
    assert compile_ahead.main(["--topology", "v5p:2x2x1", "--config=configs/sft.py:8b"]) == 2
    assert "no preset '8b'" in capsys.readouterr().err
