"""What XLA compiles for TPUs and an H100: bytes moved, memory, collectives.

`make compiled` runs these tests, where libtpu and the CUDA plugin are installed. No
such machine is needed, and nothing is run.
"""

import contextlib
import functools
import json
import math
import re

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import adam_jax
from adam_jax.experiments.bench.candidates import CANDIDATES, FORMATS
from adam_jax.experiments.bench.compiled import (
    count_different,
    count_local,
    find_devices,
    place,
    read_cost,
)
from adam_jax.experiments.bench.steppers import Program, compile_step
from adam_jax.experiments.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:adam_jax was installed without its native"),
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
]

# Or a fused step that is made before find_devices asks JAX for real devices.
jax.config.update("jax_platforms", "cpu")

# Smaller leaves lie in a TPU's VMEM as a whole, and look better than they are.
MATRIX = ((16384, 8192),)
# A vector, stacked layers, a convolution, and matrices: the same traffic.
LEAVES = ((2**26,), (24, 2048, 2048), (3, 3, 2048, 2048), (8192, 4096), (50257, 768))
# Bytes a parameter: all are read once, and what changes is written once.
LEAST = {
    ("optax", "float32"): 28,
    ("adamw", "float32"): 28,
    ("adamw", "mu_bfloat16"): 24,
    ("adamw", "bfloat16"): 20,
    ("adamw", "pure_float32"): 22,
    ("adamw", "pure_bfloat16"): 14,
    ("compensated", "pure_float32"): 26,
    ("compensated", "pure_bfloat16"): 18,
    ("skip_nonfinite", "float32"): 32,  # which reads the gradients once more
    ("skip_spikes", "float32"): 32,
    ("record_gradient_norm", "float32"): 28,  # figures are summed in the step's loop
    ("record_one", "float32"): 28,
    ("record_default", "float32"): 28,
}
MACHINES = ("v5e", "h100")
EXACT = [
    (machine, *case, least) for machine in MACHINES for case, least in LEAST.items()
]
EXACT += [(machine, "adamw", "pure_bfloat16", 14) for machine in ("v5p", "v6e")]
EXACT += [("v5e", "record_all", "float32", 28)]
EXACT += [("v6e", "compensated", "pure_float32", 26)]
KERNELS = ("v5e", "v5p", "v6e", "h100")  # where one steps 8-bit moments
EXACT += [(machine, "fused_step", "8bit", 16.125) for machine in KERNELS]
EXACT += [(machine, "fused_step", "pure_8bit", 10.125) for machine in KERNELS]
# What moves more than it must. First what is moved today, which may only fall, then the
# goal: a test that says XFAIL has not reached it.
TOO_MUCH = [
    ("v5e", "adamw", "8bit", 29.1, 33),
    ("v5e", "adamw", "pure_8bit", 19.1, 33),
    ("v5p", "adamw", "8bit", 42.2, 33),
    ("v6e", "adamw", "8bit", 40.9, 33),
    ("v5p", "compensated", "pure_float32", 36.1, 26),
    ("h100", "adamw", "8bit", 22.6, 33),
    ("h100", "adamw", "pure_8bit", 14.6, 33),
    ("h100", "record_all", "float32", 74.1, 80),
]
# Operations an element on a v5e, as XLA counts them. What several passes make, counts
# several times: codes are decoded in three.
OPERATIONS = {
    ("optax", "float32"): 15.01,
    ("adamw", "float32"): 22.01,
    ("adamw", "bfloat16"): 50.01,
    ("adamw", "8bit"): 214.8,
    ("adamw", "pure_bfloat16"): 73.01,
}
SPECS = {
    "rows": PartitionSpec("data", None),
    "columns": PartitionSpec(None, "model"),
    "both": PartitionSpec("data", "model"),
}
CHIPS = {
    ("v5e", 4): "2x2",
    ("v5e", 16): "4x4",
    ("h100", 4): "1x1x4",
    ("h100", 16): "1x1x16",
}
AXES = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}
LOCAL = (4096, 8192)  # of each chip

every_machine = pytest.mark.parametrize("machine", MACHINES)
every_spec = pytest.mark.parametrize("spec", SPECS)
both_axes = pytest.mark.parametrize("axes", AXES)


def program_of(candidate, format):
    if candidate != "record_gradient_norm":
        return CANDIDATES[candidate].program(FORMATS[format])
    return chain_of(adam_jax.record(adam_jax.adamw(1e-3), ["gradient_norm"]))


def chain_of(tx):
    """Return the program of a transformation, through XLA alone."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return Program(tx.init, step)


def cost_of(machine, candidate, format, shapes=MATRIX):
    """Return the cost of a step on one chip, and the number of its parameters."""
    compiled, count = compile_for(machine, candidate, format, shapes)
    return read_cost(compiled), count


@functools.cache
def compile_for(machine, candidate, format, shapes=MATRIX):
    """Return a step compiled for one chip, and the number of its parameters."""
    program = program_of(candidate, format)
    return compile_program(program, machine, FORMATS[format].dtype, shapes)


def compile_program(program, machine, dtype="float32", shapes=MATRIX):
    devices = find_devices(machine)
    params = place([jax.ShapeDtypeStruct(x, dtype) for x in shapes], devices)
    state = place(jax.eval_shape(program.init, params), devices)
    compiled, _ = compile_step(program, params, state, params)
    return compiled, count_local(params)


def check_nothing_is_added(cost, count):
    assert cost.temporary <= 0.1 * count
    assert cost.not_in_place <= 2**14  # scalars, of 512 bytes each on TPU
    assert cost.branches == 0
    assert cost.collectives == {}


@pytest.mark.parametrize(("machine", "candidate", "format", "least"), EXACT)
def test_the_least_is_moved(machine, candidate, format, least):
    cost, count = cost_of(machine, candidate, format)
    assert cost.moved / count == pytest.approx(least, abs=0.01)
    check_nothing_is_added(cost, count)


@every_machine
@pytest.mark.parametrize("format", ["float32", "bfloat16", "pure_bfloat16"])
def test_the_least_is_moved_for_leaves_of_any_shape(machine, format):
    cost, count = cost_of(machine, "adamw", format, LEAVES)
    assert cost.moved / count == pytest.approx(LEAST["adamw", format], abs=0.01)
    check_nothing_is_added(cost, count)


@pytest.mark.parametrize("machine", KERNELS)
def test_a_kernel_moves_the_least_for_leaves_of_any_shape(machine):
    """All but vectors, which it leaves to XLA on TPU.

    There XLA lays exponents of fewer than 4,096 columns column by column, and copies
    them: on v5p through main memory, those of one leaf at a time.
    """
    cost, count = cost_of(machine, "fused_step", "8bit", LEAVES[1:])
    copies = {"v5p": 0.22, "v6e": 0.1}.get(machine, 0.01)
    assert cost.moved / count == pytest.approx(16.125, abs=copies)
    assert cost.temporary <= 0.15 * count
    check_nothing_is_added(cost._replace(temporary=0), count)


@pytest.mark.parametrize(("machine", "candidate", "format", "today", "goal"), TOO_MUCH)
def test_no_more_is_moved_than_today(machine, candidate, format, today, goal):
    cost, count = cost_of(machine, candidate, format)
    moved = cost.moved / count
    assert moved <= today
    assert cost.not_in_place <= 0.01 * count
    if moved > goal or cost.temporary > 0.1 * count:
        pytest.xfail(
            f"{moved:.2f} bytes, {cost.temporary / count:.2f} of them temporary: the "
            f"goal is {goal}, none temporary"
        )


def test_codes_of_vectors_and_of_stacked_layers_lie_in_tiles():
    cost, count = cost_of("v5e", "adamw", "8bit", ((2**26,), (24, 2048, 2048)))
    assert cost.moved / count <= 29.3
    assert cost.not_in_place <= 2**14
    assert cost.branches == 0


def test_codes_of_an_embedding_lie_in_tiles_that_lack_rows():
    cost, count = cost_of("v5e", "adamw", "8bit", ((50257, 768),))
    assert cost.moved / count <= 50.1  # XLA keeps both moments between two loops
    assert cost.not_in_place <= 2**14
    assert cost.branches == 0


@pytest.mark.parametrize(("candidate", "format"), OPERATIONS)
def test_no_more_is_computed_than_today(candidate, format):
    compiled, count = compile_for("v5e", candidate, format)
    operations = compiled.cost_analysis()["flops"] / count
    assert operations <= OPERATIONS[candidate, format]


@pytest.mark.parametrize("make", [adam_jax.dense, adam_jax.eight_bit])
@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_one_hash_serves_both_moments_if_their_seeds_are_equal(make, seeds):
    """Each hash takes two multiplications an element."""
    kind = {"dtype": "bfloat16"} if make is adam_jax.dense else {}
    mu_dtype, nu_dtype = (make(**kind, seed=seed) for seed in seeds)
    tx = adam_jax.adamw(1e-3, mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    compiled, _ = compile_program(chain_of(tx), "v5e")
    text = compiled.as_text()
    multiplications = re.findall(r"u32\[16384,8192\]\S* multiply\(", text)
    assert len(multiplications) == 2 * len({*seeds})


@pytest.mark.parametrize(("machine", "most"), [("v5e", 24.01), ("h100", 28.2)])
def test_a_factored_moment_reads_gradients_once_more(machine, most):
    """Its means are those of all squares. An H100 takes them in two passes."""
    tx = adam_jax.adamw(1e-3, nu_dtype=adam_jax.factored())
    compiled, count = compile_program(chain_of(tx), machine)
    cost = read_cost(compiled)
    assert 24 <= cost.moved / count <= most
    assert cost.temporary <= 0.1 * count


@every_machine
def test_figures_of_leaves_of_any_shape_are_summed_in_the_step(machine):
    cost, count = cost_of(machine, "record_default", "float32", LEAVES)
    # On a GPU the sums of many rows are added up in another loop.
    assert cost.moved / count == pytest.approx(28, abs=0.1)
    assert cost.temporary <= 0.1 * count
    assert cost.not_in_place <= 2**14


@every_machine
@pytest.mark.parametrize("figures", ["one", "default"])
def test_steps_between_cost_nothing(machine, figures):
    """They move what a branch reads, 16 bytes, only if it is taken."""
    cost, count = cost_of(machine, f"record_{figures}_every_100", "float32")
    assert cost.moved / count == pytest.approx(28 + 16, abs=0.01)
    assert cost.temporary <= 0.1 * count
    assert cost.not_in_place <= 2**14
    assert cost.branches == 1


def lay(machine, chips, spec, axes, format, local=LOCAL):
    """Return a leaf that is cut over a mesh, and the mesh."""
    devices = find_devices(f"{machine}:{CHIPS[machine, chips]}")
    names = [name for name in SPECS[spec] if name]
    side = round(chips ** (1 / len(names)))
    types = (AXES[axes],) * len(names)
    mesh = Mesh(
        np.array(devices).reshape((side,) * len(names)), names, axis_types=types
    )
    shape = tuple(
        n * side if name else n for n, name in zip(local, SPECS[spec], strict=True)
    )
    sharding = NamedSharding(mesh, SPECS[spec])
    params = {
        "w": jax.ShapeDtypeStruct(shape, FORMATS[format].dtype, sharding=sharding)
    }
    return params, mesh


def start(program, params):
    """Return the state as the compiled init lays it."""
    shardings = jax.jit(program.init).lower(params).compile().output_shardings
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        jax.eval_shape(program.init, params),
        shardings,
    )


@functools.cache
def shared_cost_of(machine, chips, spec, axes, candidate, format, local=LOCAL):
    """Return the cost of a step for each of several chips, and how many it steps."""
    program = program_of(candidate, format)
    params, mesh = lay(machine, chips, spec, axes, format, local)
    with jax.set_mesh(mesh) if axes == "explicit" else contextlib.nullcontext():
        compiled, _ = compile_step(program, params, start(program, params), params)
    return read_cost(compiled), count_local(params)


@every_machine
@every_spec
@both_axes
@pytest.mark.parametrize(
    ("candidate", "format"),
    [("adamw", "float32"), ("adamw", "bfloat16"), ("compensated", "pure_bfloat16")],
)
def test_sixteen_chips_move_no_more_each(machine, spec, axes, candidate, format):
    cost, count = shared_cost_of(machine, 16, spec, axes, candidate, format)
    assert cost.moved / count == pytest.approx(LEAST[candidate, format], abs=0.01)
    check_nothing_is_added(cost, count)


@every_machine
@both_axes
def test_sixteen_chips_exchange_all_figures_at_once(machine, axes):
    cost, count = shared_cost_of(machine, 16, "both", axes, "record_default", "float32")
    assert cost.moved / count == pytest.approx(28, abs=0.1)
    assert cost.temporary <= 0.1 * count
    assert sum(cost.collectives.values()) <= 2  # at most one along each axis


@pytest.mark.parametrize(
    ("machine", "spec", "axes", "most"),
    [
        ("v5e", "rows", "automatic", 26),
        ("v5e", "columns", "automatic", 26),
        ("v5e", "both", "explicit", 50.3),  # where tiles are not used
        ("h100", "rows", "automatic", 22.9),
        ("h100", "both", "explicit", 26.9),
    ],
)
def test_codes_of_sixteen_chips_stay_where_they_are(machine, spec, axes, most):
    cost, count = shared_cost_of(machine, 16, spec, axes, "adamw", "8bit")
    assert cost.moved / count <= most
    assert cost.collectives == {}
    assert cost.not_in_place <= 4096


def test_codes_stay_where_they_are_if_a_tile_is_cut():
    cost, _ = shared_cost_of(
        "v5e", 16, "columns", "automatic", "adamw", "8bit", local=(4096, 96)
    )
    assert cost.collectives == {}
    assert cost.not_in_place <= 4096


@every_machine
@both_axes
@pytest.mark.parametrize("spec", ["rows", "both"])
def test_more_chips_take_no_more_temporary_memory_each(machine, axes, spec):
    few, many = (
        shared_cost_of(machine, chips, spec, axes, "adamw", "bfloat16")[0]
        for chips in (4, 16)
    )
    assert many.temporary <= few.temporary


@every_machine
@both_axes
@pytest.mark.parametrize("format", ["float32", "8bit"])
def test_moments_in_pieces_cost_a_gather_of_the_updates(machine, axes, format):
    """The sum of the gradients ends in pieces: as much is sent as without them."""
    devices = np.array(find_devices(f"{machine}:{CHIPS[machine, 16]}")).reshape(4, 4)
    mesh = Mesh(devices, ("data", "model"), axis_types=(AXES[axes],) * 2)
    whole = NamedSharding(mesh, PartitionSpec(None, "model"))
    params = jax.ShapeDtypeStruct(LOCAL, "float32", sharding=whole)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    batch = jax.ShapeDtypeStruct((256, LOCAL[0]), "float32", sharding=rows)
    adamw = adam_jax.adamw(1e-3, mu_dtype=format, nu_dtype=format)
    tx = adam_jax.shard_state(adamw, params, over="data")
    shardings = adam_jax.state_shardings(adamw, params, over="data")
    state = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        jax.eval_shape(adamw.init, params),
        shardings,
    )

    def step(params, state, batch):
        grads = jax.grad(lambda params: ((batch @ params) ** 2).mean())(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh) if axes == "explicit" else contextlib.nullcontext():
        compiled, _ = compile_step(Program(tx.init, step), params, state, batch)
    found = read_cost(compiled).collectives
    assert found.pop("all-gather") == 1
    if machine == "v5e":  # it exchanges pieces of the sum
        found.pop("collective-permute", None)
        assert found == {"all-reduce": 1}
        assert "all-reduce-scatter" in compiled.as_text()
    else:
        assert found == {"reduce-scatter": 1}
    moved, after = compiled.output_shardings
    assert moved.is_equivalent_to(whole, 2)
    for own, expected in zip(
        jax.tree.leaves(after), jax.tree.leaves(shardings), strict=True
    ):
        assert own.shard_shape((1024, 1024)) == expected.shard_shape((1024, 1024)) or (
            own.is_fully_replicated and expected.is_fully_replicated
        )


@every_machine
def test_a_kernel_steps_each_shard(machine):
    program, spec = program_of("fused_step", "8bit"), SPECS["rows"]
    params, mesh = lay(machine, 16, "rows", "automatic", "8bit")
    state = start(program, params)
    specs = jax.tree.map(lambda x: spec if x.size > 1000 else PartitionSpec(), state)
    step = jax.shard_map(
        program.step,
        mesh=mesh,
        in_specs=({"w": spec}, specs, {"w": spec}),
        out_specs=({"w": spec}, specs),
        check_vma=False,
    )
    compiled, _ = compile_step(Program(program.init, step), params, state, params)
    cost, count = read_cost(compiled), count_local(params)
    assert cost.moved / count == pytest.approx(16.125, abs=0.01)
    check_nothing_is_added(cost, count)


@every_machine
@pytest.mark.parametrize("fuses", [False, True])
def test_pieces_that_draw_the_bits_of_the_whole_cost_no_more(machine, fuses):
    """They lie in a matrix that is cut along both axes."""
    format = "8bit" if fuses else "bfloat16"
    tx = adam_jax.round_to_params(
        adam_jax.adamw(1e-3, mu_dtype=format, nu_dtype=format)
    )
    params, mesh = lay(machine, 16, "both", "automatic", "pure_bfloat16")
    specs = jax.tree.map(lambda x: x.sharding.spec, params)
    tx = adam_jax.in_shard_map(tx, specs)

    def step(params, state, grads):
        if fuses:
            return adam_jax.fused.step(tx)(params, grads, state)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = start(Program(tx.init, step), params)
    own = specs, jax.tree.map(lambda x: x.spec, adam_jax.state_shardings(tx, params))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(*own, specs), out_specs=own)
    compiled, _ = compile_step(Program(tx.init, mapped), params, state, params)
    cost, count = read_cost(compiled), count_local(params)
    least = 10.125 if fuses else 14
    assert cost.moved / count == pytest.approx(least, abs=0.01)
    check_nothing_is_added(cost, count)


@pytest.mark.parametrize("format", ["float32", "bfloat16"])
@pytest.mark.parametrize("leaves", [8, 24])
def test_moments_in_host_memory_come_a_few_leaves_at_a_time(leaves, format):
    mesh = Mesh(np.array(find_devices("v5e")), ("chips",))
    sharding = NamedSharding(mesh, PartitionSpec())
    leaf = jax.ShapeDtypeStruct((4096, 4096), "float32", sharding=sharding)
    params = [leaf] * leaves
    tx = adam_jax.adamw(1e-3, mu_dtype=format, nu_dtype=format)
    hosted = adam_jax.state_shardings(tx, params, memory_kind="pinned_host")
    state = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        jax.eval_shape(tx.init, params),
        hosted,
    )
    step = jax.jit(
        chain_of(tx).step,
        donate_argnums=(0, 1),
        out_shardings=([sharding] * leaves, hosted),
    )
    memory = step.lower(params, state, params).compile().memory_analysis()
    of_a_leaf = 2 * math.prod(leaf.shape) * (4 if format == "float32" else 2)
    assert memory.temp_size_in_bytes <= 3 * of_a_leaf + 2**20


@every_machine
@every_spec
@pytest.mark.parametrize("format", ["float32", "bfloat16", "pure_float32"])
@pytest.mark.parametrize("axes", [*AXES, "explicit, without set_mesh"])
def test_init_lays_moments_like_their_parameters(machine, spec, format, axes):
    check_init(machine, spec, format, axes)


@every_machine
@both_axes
def test_init_lays_codes_like_their_parameters(machine, axes):
    check_init(machine, "both", "8bit", axes)


def check_init(machine, spec, format, axes):
    kind, *without = axes.split(", ")
    params, mesh = lay(machine, 16, spec, kind, format)
    uses_mesh = kind == "explicit" and not without
    candidate = "compensated" if format == "pure_float32" else "adamw"
    with jax.set_mesh(mesh) if uses_mesh else contextlib.nullcontext():
        state = start(program_of(candidate, format), params)
    large = [x for x in jax.tree.leaves(state) if x.size > 1000]
    assert len(large) >= 2
    for x in large:
        assert x.sharding.is_equivalent_to(params["w"].sharding, x.ndim)
        assert 16 * math.prod(x.sharding.shard_shape(x.shape)) == x.size


@pytest.mark.parametrize("target", ["v5p", "v6e", "v5e:2x2", "h100:1x1x4"])
def test_the_command_counts(target, tmp_path, capfd):
    path = tmp_path / "compiled.json"
    command = ["bench", f"--compiled={target}", f"--json={path}", "--candidates=adamw"]
    assert main([*command, "--formats", "float32", "bfloat16"]) == 0
    rows = json.loads(path.read_text())["rows"]
    found = {row["format"]: row["moved_bytes_per_parameter"] for row in rows}
    assert found == pytest.approx({"float32": 28, "bfloat16": 20}, abs=0.01)
    for row in rows:
        assert row["compiled_for"] == target
        assert row["base_moved_bytes_per_parameter"] == pytest.approx(28, abs=0.01)
        assert row["temporary_bytes_per_parameter"] <= 0.1
        assert row["not_in_place_bytes_per_parameter"] <= 0.1
        assert row["collectives"] == {}
    out = capfd.readouterr().out
    assert f"16384,8192: 134,217,728 parameters, for {target}" in out
    assert "as compiled, not run" in out


def test_chips_that_do_not_exist(capfd):
    assert main(["bench", "--compiled=v5e:5x5"]) == 2
    err = capfd.readouterr().err
    assert "cannot compile for v5e:5x5: " in err
    assert err.strip().count("\n") == 0


@pytest.mark.parametrize("format", ["bfloat16", "8bit", "pure_bfloat16"])
def test_leaves_of_one_shape_share_their_loops_on_a_gpu(format):
    """XLA compiles loops that are alike once, so more leaves add hardly any.

    In one loop of 8-bit moments, operands may come in another order.
    """

    def count(leaves):
        shapes = ((32, 128),) * leaves
        compiled, _ = compile_for("h100", "adamw", format, shapes)
        return count_different(compiled.as_text())

    assert count(8) <= count(4) + 1
