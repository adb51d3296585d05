"""Programs of the tiny model, compiled ahead of time for TPU slices and lowered for GPUs. Nothing runs."""

import dataclasses
import importlib.util
import json
import math
import os

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from dv2_jax import compile_ahead
from dv2_jax.aot.compile import Compiled, TopologyError, bytes_per_device, single_host_slice, topology_devices
from dv2_jax.aot.compile_report import HEAD, Row, step_cells, table
from dv2_jax.aot.hlo_cost import Costs
from dv2_jax.aot.programs import abstract_policy, engine_programs, rl_programs, sft_programs
from dv2_jax.aot.roofline import Chip
from dv2_jax.checkpoint.policy_spec import load_policy_spec
from dv2_jax.config import Config, ConfigError, ImageConfig, MeshConfig, ModelSource, RLConfig, SFTConfig, load
from dv2_jax.engine.buckets import Buckets, per_host
from dv2_jax.model.params import abstract_params, logical_axes
from dv2_jax.ops import scan_layers
from dv2_jax.parallel.mesh import AXES, make_mesh, max_tensor_parallelism, num_data_shards
from dv2_jax.parallel.weight_sync import local_mesh

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install 'dv2_jax[tpu]')"
)
Device = dataclasses.make_dataclass("Device", ["process_index", "id"], frozen=True)
SOURCE = ModelSource(init="random", preset="tiny", compute_dtype="bfloat16", remat=True)


@pytest.fixture(autouse=True)
def rolled(monkeypatch, no_compilation_cache):
    """Scans the layers in a loop, as for the real sizes; the tiny model's few layers would be unrolled."""
    monkeypatch.setattr(scan_layers, "UNROLL_LAYERS", 1)


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
    """Catches: a program that the TPU compiler rejects, weights that are not sharded, and activations that are sent."""
    config = recipe("sft", rows=4)
    place, total, [row] = compile_ahead.run(config, "v5e:2x2", ["gradient"])
    assert total == 1 and place == "v5e:2x2, 4 devices of 15.75 GiB, mesh data 1, fsdp 4, tensor 1"
    assert row.fits and row.compiled.costs.unknown_loops == 0
    params = abstract_params(model(config))
    weights = 4 * sum(math.prod(p.shape) for p in params.values())
    # Weights and gradients, a fourth of each per device, plus a batch and the padding of small arrays.
    assert 2 * weights / 4 <= row.compiled.arguments < 2 * 2 * weights / 4
    tokens = 512  # one row per device; per token and weight 2 for the forward pass, 4 for the backward one
    matrices = sum(math.prod(p.shape) for name, p in params.items() if name.startswith("text.") and "norm" not in name)
    # Model FLOPs are fewer than computed FLOPs, which include rematerialized layers and logits, and masked scores.
    assert 6 * tokens * matrices < row.model_flops < row.compiled.costs.flops < 1.6 * row.model_flops
    assert row.model_flops / row.chip.flops < row.seconds.roofline_time < row.seconds.serial_time
    # Every weight is gathered for the forward pass and again for the backward pass (bf16), its gradient is summed.
    assert 0 < row.compiled.costs.total_collective_bytes < 3 * weights


@needs_libtpu
def test_reinforcement_learning_and_the_engine_compile_for_another_slice():
    """Catches: an RL or engine program that the TPU compiler rejects, with data parallelism."""
    config = recipe("rl", rows=4, mesh=MeshConfig(data=2, fsdp=2))
    config = dataclasses.replace(config, rl=dataclasses.replace(config.rl, kl_coefficient=0.1))
    place, total, rows = compile_ahead.run(config, "v5p:2x2x1", ["log-probs", "prefill", "decode"])
    assert place.endswith("mesh data 2, fsdp 2, tensor 1") and total == 3
    assert {row.name: row.fits for row in rows} == {"log-probs": True, "prefill": True, "decode": True}
    assert [Row.from_dict(json.loads(json.dumps(row.to_dict()))) for row in rows] == rows
    assert len(table(rows).splitlines()) == 2 + len(rows)


@needs_libtpu
def test_context_parallel_rows_compile():
    """Catches: tokens that every device of a context group computes, which doubles the FLOPs."""
    config = recipe("sft", rows=2, mesh=MeshConfig(fsdp=2, context=2))
    place, _, [row] = compile_ahead.run(config, "v5e:2x2", ["gradient"])
    assert place.endswith("mesh data 1, fsdp 2, context 2, tensor 1")
    assert row.fits and row.compiled.costs.unknown_loops == 0
    assert row.model_flops < row.compiled.costs.flops < 1.8 * row.model_flops
    assert row.compiled.costs.calls["all-to-all"] > 0


@needs_libtpu
def test_the_engine_of_a_slice_of_several_hosts_is_that_of_one():
    """Catches: an engine that spans hosts, and a copy of the weights that is not counted."""
    config = recipe("rl", rows=16, mesh=MeshConfig(data=1, fsdp=16))
    config = dataclasses.replace(
        config, engine=dataclasses.replace(config.engine, slots=64, pages=256, prefill_rows=16)
    )
    devices = topology_devices("v5p:2x2x4")
    host = topology_devices(single_host_slice("v5p:2x2x4", devices))
    policy = abstract_policy(config, devices, host)
    learning, engine = rl_programs(policy, config), engine_programs(policy, config)
    assert {p.mesh.size for p in learning} == {16} and {p.mesh for p in engine} == {policy.engine_mesh}
    assert set(policy.engine_mesh.devices.flat) == set(host)
    assert dict(policy.engine_mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 1}  # 2 key/value heads, 3 vision heads
    weights = sum(math.prod(p.shape) for p in abstract_params(policy.config).values())
    assert bytes_per_device(policy.engine_params) == 2 * weights  # bf16
    trainer = 3 * 4 * weights / 16  # weights and two moments
    assert all(program.resident_bytes > trainer for program in engine)


@needs_libtpu
@pytest.mark.parametrize(("slice_", "tensor"), [("v5p:2x4x4", 4), ("v6e:8x16", 4), ("v5p:2x4x4", 2)])
def test_the_devices_of_a_tensor_group_are_of_one_host(slice_, tensor):
    """Catches: a topology order that spreads a tensor group over two hosts, and a slice of unknown topology."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=tensor), topology_devices(slice_))
    groups = mesh.devices.reshape(-1, tensor)
    assert all(len({device.process_index for device in group}) == 1 for group in groups)
    assert len(set(mesh.devices.flat)) == mesh.size


@needs_libtpu
@pytest.mark.parametrize(
    ("slice_", "host"), [("v5p:2x4x4", "v5p:2x2x1"), ("v6e:4x8", "v6e:2x2"), ("tpu7x:2x2x2", "tpu7x:2x2x1")]
)
def test_an_engine_is_compiled_for_a_single_host_slice(slice_, host):
    """Catches: a part of a slice, for which libtpu does not compile because it numbers v6e devices within the full slice."""
    devices = topology_devices(slice_)
    assert single_host_slice(slice_, devices) == host
    assert len(topology_devices(host)) == sum(d.process_index == devices[0].process_index for d in devices)


def test_an_unknown_slice_is_named_with_examples():
    with pytest.raises(TopologyError, match="v9:2x2.*v5p:2x4x4"):
        topology_devices("v9:2x2")


def model(config):
    return abstract_policy(config, jax.devices()[:1]).config


@pytest.mark.parametrize("name", ["sft", "rl"])
def test_every_program_lowers_for_cuda(name):
    """Catches: a kernel of another platform, or the CPU backend of attention, in a program for GPUs."""
    config = recipe(name, rows=2, mesh=MeshConfig(fsdp=1))
    policy = abstract_policy(config, jax.devices()[:1])
    if name == "sft":
        found = sft_programs(policy, config)
    else:
        found = [*rl_programs(policy, config), *engine_programs(policy, config)]
    names = [program.name for program in found]
    assert names == (["SFT gradient", "SFT optimizer"] if name == "sft" else
                     ["RL gradient", "RL optimizer", "prefill", "decode", "encode"])  # fmt: skip
    for program in found:
        lowered = program.function.trace(*program.arguments).lower(lowering_platforms=("cuda",))
        assert "tpu_custom_call" not in lowered.as_text(), program.name


def test_a_kl_term_adds_the_reference_policy():
    """Catches: reference weights that are not counted, a gradient compiled without reference log-probs (a run would
    compile another), and a log-prob program that runs without a KL term do not use."""
    plain = recipe("rl", rows=4, mesh=MeshConfig(fsdp=1))
    with_kl = dataclasses.replace(plain, rl=dataclasses.replace(plain.rl, kl_coefficient=0.1))
    found = {}
    for name, config in (("plain", plain), ("kl", with_kl)):
        policy = abstract_policy(config, jax.devices()[:1])
        found[name] = {p.name: p for p in [*rl_programs(policy, config), *engine_programs(policy, config)]}
    weights = 4 * sum(math.prod(p.shape) for p in abstract_params(model(plain)).values())
    assert set(found["kl"]) - set(found["plain"]) == {"log-probs"}
    for name, program in found["plain"].items():
        assert found["kl"][name].resident_bytes == program.resident_bytes + weights, name
    gradients = {name: programs["RL gradient"] for name, programs in found.items()}
    assert gradients["plain"].arguments[2].reference_logprobs is None
    expected = gradients["kl"].arguments[2].behavior_logprobs
    assert gradients["kl"].arguments[2].reference_logprobs == expected
    scorer = found["kl"]["log-probs"]
    # Its arguments are the reference's weights; the engine and the training state (weights, two moments) stay resident.
    engine = found["plain"]["RL optimizer"].resident_bytes
    assert 3 * weights <= scorer.resident_bytes - engine < 3 * weights + 100
    assert scorer.runs_per_step == gradients["kl"].runs_per_step
    output = jax.eval_shape(scorer.function, *scorer.arguments)
    assert output.shape == expected.shape and output.dtype == expected.dtype


CHIP = Chip(memory=100, flops=10.0, hbm_bandwidth=5.0, ici_bandwidth=2.0)


def row(compiled, **fields):
    return Row("gradient", "", compiled, CHIP, **fields)


def test_resident_buffers_count_against_the_memory():
    """Catches: optimizer state or KV pages that are not counted because they are not arguments of a program."""
    compiled = Compiled(1.0, arguments=40, temporaries=30, peak=60, costs=Costs())
    assert row(compiled, resident_bytes=30).fits and not row(compiled, resident_bytes=31).fits
    too_large = row(Compiled(1.0, error="Ran out of memory"))
    assert not too_large.fits and "Ran out of memory" in table([too_large])


def test_an_optimizer_step_is_its_programs_as_often_as_they_run():
    """Catches: a step that takes the time of one microbatch, added times that overlap, and MFU of the wrong time."""
    sums = Costs(
        flops=60.0,
        hbm_bytes=20.0,
        collective_bytes={"all-gather": 2},
        calls={"all-gather": 1},
        largest={"all-gather": 2},
    )
    gradient = row(Compiled(1.0, costs=sums), model_flops=45.0, runs_per_step=4)
    optimizer = row(Compiled(1.0, costs=Costs(hbm_bytes=30.0)), runs_per_step=1)
    assert (gradient.seconds.roofline_time, gradient.seconds.bound, gradient.seconds.serial_time) == (
        6.0,
        "compute",
        11.0,
    )
    cells = dict(zip(HEAD, step_cells([gradient, optimizer]), strict=True))
    assert cells["shape"] == "4 × gradient + 1 × gradient" and cells["roofline s"] == "24.00"
    assert cells["MFU (overlap)"] == "75%" and cells["MFU (serial)"] == f"{180 / 10 / (24 + 22 + 4):.0%}"
    assert step_cells([gradient, row(Compiled(1.0, error="Ran out of memory"), runs_per_step=1)]) is None


@needs_libtpu
def test_a_list_of_commands_becomes_a_report(tmp_path, capsys):
    """Catches: omitted programs of a command, a second run that compiles again, and a failure that stops the report."""
    listed, report = tmp_path / "list.txt", tmp_path / "report.md"
    laptop = "--topology v5e:2x2 --config=configs/sft.py --config.mesh.data=1 --config.mesh.fsdp=-1"
    listed.write_text(f"# Small\n{laptop} --programs optimizer\n{laptop} --programs nothing\n")
    call = ["--table", str(listed), "--output", str(report), "--cache", str(tmp_path / "cache")]
    assert compile_ahead.main(call) == 1
    first = report.read_text()
    assert first.startswith("# Small\n```\npython -m dv2_jax.compile_ahead --topology v5e:2x2")
    assert "| SFT optimizer |" in first and "--programs nothing: none of" in first
    [kept] = (tmp_path / "cache").iterdir()
    document = json.loads(kept.read_text())
    kept.write_text(json.dumps(document | {"seconds": 12345.0}))
    assert compile_ahead.main(call) == 1 and "12345" in report.read_text()


COMPILER_CRASH = """
import os, sys
if "--number" in sys.argv and sys.argv[sys.argv.index("--number") + 1] in "01":
    from dv2_jax.aot import compile as aot
    def compile_for(*_):
        print("F0101 00:00:00.000000 1 emitter.cc:1] Check failed: a || b no window", file=sys.stderr, flush=True)
        os.abort()
    aot.compile_for = compile_for
"""


@needs_libtpu
def test_a_compiler_crash_fails_only_one_program(tmp_path, monkeypatch):
    """Catches: a crash that loses the other programs of a command, and a table without the reason."""
    (tmp_path / "sitecustomize.py").write_text(COMPILER_CRASH)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    listed, report = tmp_path / "list.txt", tmp_path / "report.md"
    listed.write_text("--topology v5e:2x2 --config=configs/sft.py --config.mesh.data=1 --config.mesh.fsdp=-1\n")
    call = ["--table", str(listed), "--output", str(report), "--cache", str(tmp_path / "cache")]
    assert compile_ahead.main(call) == 1
    gradient, larger_gradient, optimizer = (
        line for line in report.read_text().splitlines() if line.startswith("| SFT")
    )
    for crashed in (gradient, larger_gradient):
        assert "**no**" in crashed and r"ended: Check failed: a \|\| b no window" in crashed
    assert "SFT optimizer" in optimizer and "yes" in optimizer


@pytest.mark.parametrize("of_a_host", [4, 8])
@pytest.mark.parametrize(
    ("preset", "devices"), [("3b", 8), ("7b", 8), ("7b_released", 8), ("7b_v5p_32", 16), ("32b", 32)]
)
def test_the_rows_and_pages_of_a_preset_are_sharded_evenly_over_its_devices(preset, devices, of_a_host):
    """Catches: a preset whose dispatches, pages or microbatches its devices do not divide."""
    config = load([f"--config=configs/rl.py:{preset}"])
    slice_devices = [Device(number // of_a_host, number) for number in range(devices)]
    fsdp = devices if config.mesh.fsdp == -1 else config.mesh.fsdp
    mesh = Mesh(np.array(slice_devices, object).reshape(config.mesh.data, fsdp, config.mesh.tensor), AXES)
    model = load_policy_spec(ModelSource(init="random", preset=config.model.preset)).config
    own = local_mesh(mesh, max_tensor_parallelism(abstract_params(model), logical_axes(model)), process=0)
    assert own.size == of_a_host
    engine = per_host(config.engine, devices // of_a_host)
    Buckets.from_config(engine, model.text, config.agent.max_total_tokens, num_data_shards(own))
    assert config.rl.microbatch_rows % num_data_shards(mesh) == 0
    per_step = config.rl.prompts_per_step * config.rl.group_size // config.rl.minibatches
    assert per_step == 512 and config.rl.row_tokens == 24_576, "the released batch and length"


def test_an_unknown_program_is_named():
    config = recipe("sft", rows=2, mesh=MeshConfig(fsdp=1))
    policy = abstract_policy(config, jax.devices()[:1])
    with pytest.raises(ConfigError, match="prefil: none of SFT gradient, SFT optimizer"):
        compile_ahead.select_programs(sft_programs(policy, config), ["prefil"])


def test_the_command_reports_missing_dependencies_and_presets(capsys):
    if importlib.util.find_spec("libtpu") is None:
        with pytest.raises(SystemExit, match="2"):
            compile_ahead.main(["--topology", "v5p:2x2x1", "--config=configs/sft.py"])
        assert "pip install" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        compile_ahead.main(["--topology", "v5p:2x2x1", "--config=configs/sft.py:8b"])
    assert "no preset '8b'" in capsys.readouterr().err
