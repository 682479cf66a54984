"""`state_shardings`, beside what JAX itself does with the shardings of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import eight_bit, shard_state, state_shardings

SPECS = {
    "w": P(None, "model"),
    "rows": P("model"),
    "both": P(("data", "model")),
    "b": P(),
}
SHAPES = {"w": (16, 64), "rows": (12, 32), "both": (8, 32), "b": (3,)}
EIGHT = eight_bit(block=8, min_size=16)
CODED = {"mu_dtype": EIGHT, "nu_dtype": EIGHT}
MAKERS = {
    "adam": lambda: adam_jax.adamw(1e-2),
    "bfloat16": lambda: adam_jax.adamw(1e-2, mu_dtype="bfloat16"),
    "8bit": lambda: adam_jax.adamw(1e-2, **CODED),
    "factored": lambda: adam_jax.adamw(1e-2, nu_dtype=adam_jax.factored(min_size=4)),
    "maxima": lambda: adam_jax.adamw(1e-2, nu_dtype=adam_jax.axis_maxima()),
    "amsgrad": lambda: adam_jax.amsgrad(1e-2),
    "compensate": lambda: adam_jax.compensate_params(adam_jax.adamw(1e-2)),
    "wrapped": lambda: adam_jax.record(
        adam_jax.skip_spikes(
            optax.MultiSteps(adam_jax.adamw(1e-2, **CODED), 2).gradient_transformation()
        )
    ),
    "packed": lambda: adam_jax.packed(adam_jax.adamw(1e-2), max_size=4096),
    "optax": lambda: optax.adamw(1e-2),
}


def mesh_of(kind=AxisType.Auto):
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    return Mesh(devices, ("data", "model"), axis_types=(kind,) * 2)


def place(mesh, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {
        name: jax.device_put(
            jnp.asarray(rng.normal(size=shape), dtype), NamedSharding(mesh, SPECS[name])
        )
        for name, shape in SHAPES.items()
    }


def bytes_of_a_device(state):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))


OFTEN = ("8bit", "compensate", "optax")


def cross(names):
    """Return cases, of which few run in each test run."""
    return [
        pytest.param(name, marks=() if name in OFTEN else pytest.mark.crossing)
        for name in names
    ]


@pytest.mark.parametrize("name", cross(MAKERS))
def test_states_lie_like_parameters_and_over_another_axis(name):
    tx = MAKERS[name]()
    params = place(mesh_of(), jnp.bfloat16 if name == "compensate" else jnp.float32)
    natural = jax.jit(tx.init)(params)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    sizes = {}
    for over in (None, "data"):
        shardings = state_shardings(tx, shapes, over=over)
        assert jax.tree.structure(shardings) == jax.tree.structure(natural)
        state = jax.jit(tx.init, out_shardings=shardings)(params)
        jax.tree.map(np.testing.assert_array_equal, state, natural)
        sizes[over] = bytes_of_a_device(state)

        def step(params, state):
            updates, state = tx.update(params, state, params)
            return optax.apply_updates(params, updates), state

        kept = jax.tree.map(lambda x: x.sharding, params), shardings
        moved, after = jax.jit(step, out_shardings=kept)(params, state)
        expected = jax.jit(step)(params, natural)
        for x, y in zip(
            jax.tree.leaves((moved, after)), jax.tree.leaves(expected), strict=True
        ):
            if x.dtype in ("int8", "uint8", "int16", "bfloat16"):  # the last place
                assert (np.asarray(x) != np.asarray(y)).mean() < 0.02
            else:
                np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    assert sizes[None] <= bytes_of_a_device(natural)
    if name not in ("packed", "factored", "maxima"):
        # "both" is cut over it already, and the bias cannot be.
        assert sizes["data"] < 0.62 * sizes[None]


def test_the_first_axis_that_can_be_cut_is():
    params = place(mesh_of())
    shardings = state_shardings(adam_jax.adam(1e-2, **CODED), params, over="data")
    specs = jax.tree.map(lambda s: tuple(s.spec), shardings)[0]
    expected = {
        "w": ("data", "model"),
        "rows": ("model", "data"),
        "both": (("data", "model"),),
        "b": (),
    }
    assert specs.mu == specs.nu == expected
    assert specs.mu_format.exponents["w"] == ("data", "model")
    assert specs.mu_format.exponents["rows"] == ("model", "data")  # 4 blocks
    large = {"mu_dtype": eight_bit(32, 16)}  # one block in 32 columns: not to be cut
    specs = state_shardings(adam_jax.adam(1e-2, **large), params, over="data")[0]
    for moment in (specs.mu, specs.nu):
        assert tuple(moment["rows"].spec) == ("model",)
    # What a mean shares along an axis does not keep mu from being cut.
    tx = adam_jax.adam(1e-2, nu_dtype=adam_jax.mean_over((0,)))
    specs = state_shardings(tx, params, over="data")[0]
    assert tuple(specs.mu["w"].spec) == ("data", "model")
    assert tuple(specs.nu["w"].spec) == (None, "model")
    assert tuple(specs.nu["both"].spec) == ()  # its parameter is cut over it already
    tx = adam_jax.skip_nonfinite(
        adam_jax.adam(1e-2, nu_dtype=adam_jax.factored(min_size=4))
    )
    specs = state_shardings(tx, params, over="data").inner_state[0]
    assert tuple(specs.mu["w"].spec) == ("data", "model")
    assert tuple(specs.nu["w"].spec) == ("data",)  # (16, 1)
    assert tuple(specs.nu_format.columns["w"].spec) == (None, "model")  # (1, 64)
    tx = adam_jax.adam(1e-2, nu_dtype=adam_jax.axis_maxima())
    specs = state_shardings(tx, params, over="data")[0]
    assert tuple(specs.nu["w"].spec) == ("data",)  # (16, 1)
    assert tuple(specs.nu_format.others["w"][0].spec) == (None, "model")  # (1, 64)


def test_a_single_array_is_a_tree_too():
    param = place(mesh_of())["w"]
    shardings = state_shardings(adam_jax.adam(1e-2, **CODED), param, over="data")[0]
    assert tuple(shardings.mu.spec) == ("data", "model")
    assert tuple(shardings.nu_format.exponents.spec) == ("data", "model")
    assert not any((*shardings.weights.spec, *shardings.count.spec))
    mesh = mesh_of()
    small = jax.device_put(jnp.ones((2, 2)), NamedSharding(mesh, P("model")))
    assert not any(state_shardings(adam_jax.adam(1e-2), small)[0].weights.spec)
    scalar = jax.device_put(jnp.float32(1), NamedSharding(mesh, P()))
    hosted = state_shardings(adam_jax.adam(1e-2), scalar, memory_kind="pinned_host")
    assert hosted[0].mu.memory_kind == "pinned_host" != hosted[0].count.memory_kind


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_what_is_placed_so_is_not_compiled_for_again(kind):
    mesh, tx = mesh_of(kind), adam_jax.adamw(1e-2)
    params = place(mesh)
    for own in (tx, shard_state(tx, params, over="data")):
        over = None if own is tx else "data"
        shardings = state_shardings(tx, params, over=over)
        with jax.set_mesh(mesh):
            state = jax.device_put(jax.jit(tx.init)(params), shardings)
            update = jax.jit(own.update)
            for _ in range(3):
                _, state = update(params, state, params)
        assert update._cache_size() == 1


def test_explicit_axes_and_host_memory():
    params = place(mesh_of(AxisType.Explicit))
    tx = adam_jax.adam(1e-2)
    shardings = state_shardings(tx, params)
    natural = jax.tree.leaves(jax.jit(tx.init)(params))
    for x, where in zip(natural, jax.tree.leaves(shardings), strict=True):
        assert x.sharding.is_equivalent_to(where, x.ndim)
    hosted = state_shardings(tx, params, memory_kind="pinned_host")
    state = jax.device_put(tx.init(params), hosted)
    assert state[0].mu["w"].sharding.memory_kind == "pinned_host"
    assert state[0].count.sharding.memory_kind != "pinned_host"


def test_second_moments_that_stages_hold_go_to_the_host_with_all_others():
    params = place(mesh_of())
    tx = adam_jax.adadelta(1e-2, nu_dtype="8bit")
    hosted = state_shardings(tx, params, memory_kind="pinned_host")
    kept = {
        where.memory_kind
        for node in jax.tree.leaves(hosted, is_leaf=lambda x: hasattr(x, "nu_trace"))
        if hasattr(node, "nu_trace")
        for where in jax.tree.leaves((node.nu_trace, node.nu_trace_format))
    }
    assert kept == {"pinned_host"}


def test_a_function_picks_the_moments_in_host_memory():
    """By the name of the parameter; its codes, exponents and residual go together."""
    params = {"layer": place(mesh_of(), jnp.bfloat16)}
    tx = adam_jax.compensate_params(
        adam_jax.adam(1e-2, nu_dtype=adam_jax.eight_bit(min_size=0))
    )
    asked = set()

    def pick(name):
        asked.add(name)
        return "pinned_host" if name == "layer/w" else None

    found = state_shardings(tx, params, memory_kind=pick)
    assert asked == {f"layer/{name}" for name in params["layer"]}
    for path, where in jax.tree_util.tree_leaves_with_path(found):
        expected = "w" in [getattr(key, "key", None) for key in path]
        assert (where.memory_kind == "pinned_host") == expected


@pytest.mark.parametrize("kind", [3, True, lambda name: name.endswith("w")])
def test_what_names_no_memory_is_refused(kind):
    params = place(mesh_of(), jnp.float32)
    with pytest.raises(
        TypeError, match=r"got (3|True|False) for params\['\w+'\]; a fun"
    ):
        state_shardings(adam_jax.adam(1e-2), params, memory_kind=kind)


@pytest.mark.parametrize("name", cross(["adam", "8bit", "wrapped", "compensate"]))
def test_moments_in_host_memory_are_stepped_and_stay(name):
    tx = MAKERS[name]()
    params = place(mesh_of(), jnp.bfloat16 if name == "compensate" else jnp.float32)
    hosted = state_shardings(tx, params, memory_kind="pinned_host")
    start = jax.jit(tx.init)(params)
    host = jax.device_put(params["b"], jax.memory.Space.Host)
    back = jax.jit(lambda x: jax.device_put(-x, jax.memory.Space.Host))(host)
    if back.sharding.memory_kind != "pinned_host":
        pytest.skip("this JAX leaves no result in the host's memory on CPU")
    update = jax.jit(tx.update)
    expected, state = (params, start), (params, jax.device_put(start, hosted))
    for _ in range(3):
        expected = update(params, expected[1], params)
        state = update(params, state[1], params)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    for x, where in zip(
        jax.tree.leaves(state[1]), jax.tree.leaves(hosted), strict=True
    ):
        assert (x.sharding.memory_kind == "pinned_host") == (
            where.memory_kind == "pinned_host"
        )


@pytest.mark.parametrize("in_map", [False, True], ids=["one device", "shard_map"])
@pytest.mark.parametrize("name", ["adam", "8bit"])
def test_the_fused_step_leaves_moments_in_host_memory_to_xla(name, in_map):
    """Kernels take arrays of the device alone, on one device and in a shard_map."""
    tx = MAKERS[name]()
    params = {"v": jnp.ones((64, 64)), "w": jnp.ones((64, 64))}
    start = tx.init(params)
    step, place = adam_jax.fused.step(tx), jax.sharding.SingleDeviceSharding
    hosted = place(jax.devices()[0], memory_kind="pinned_host")
    if in_map:
        mesh, spec = jax.sharding.Mesh(jax.devices()[:1], ("data",)), P()
        hosted = NamedSharding(mesh, spec, memory_kind="pinned_host")
        step = jax.shard_map(
            adam_jax.fused.step(adam_jax.in_shard_map(tx, spec)),
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
        )
    nu = jax.device_put(start[0].nu["w"], hosted)
    state = (start[0]._replace(nu={**start[0].nu, "w": nu}), *start[1:])
    if name == "8bit":
        field = start[0].nu_format
        own = jax.device_put(field.exponents["w"], hosted)
        field = field._replace(exponents={**field.exponents, "w": own})
        state = (state[0]._replace(nu_format=field), *start[1:])
    found, _ = jax.jit(step)(params, params, state)
    expected, _ = jax.jit(adam_jax.fused.step(tx))(params, params, start)
    for leaf in params:
        np.testing.assert_allclose(found[leaf], expected[leaf], rtol=1e-6)


def describe(params, mesh):
    """Return the shapes of parameters, on a mesh."""
    return {
        name: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, SPECS[name])
        )
        for name, x in params.items()
    }


@pytest.mark.parametrize("name", cross(MAKERS))
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_run_is_planned_without_its_devices(name, kind):
    tx, mesh = MAKERS[name](), mesh_of(kind)
    params = describe(place(mesh), mesh)
    abstract = describe(params, mesh.abstract_mesh)
    for options in ({}, {"over": "data"}, {"memory_kind": "pinned_host"}):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            planned = jax.tree.leaves(state_shardings(tx, abstract, **options))
            real = jax.tree.leaves(state_shardings(tx, params, **options))
        assert [x.spec for x in planned] == [x.spec for x in real]
        assert all(x.mesh == mesh.abstract_mesh for x in planned)
        kinds = [[x.memory_kind == "pinned_host" for x in a] for a in (planned, real)]
        assert kinds[0] == kinds[1]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        shard_state(tx, abstract, over="data")


def test_a_mesh_may_have_more_devices_than_there_are():
    mesh = AbstractMesh((512, 8), ("data", "model"))
    sharding = NamedSharding(mesh, P(None, "model"))
    shape = (4096, 11008)
    params = {"w": jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)}
    tx = adam_jax.adam(1e-2, mu_dtype="8bit", nu_dtype="8bit")
    state, shardings = jax.eval_shape(tx.init, params), state_shardings(tx, params)
    cut = state_shardings(tx, params, over="data")
    pieces = [
        where[0].mu_format.exponents["w"].shard_shape((4096, 344))
        for where in (shardings, cut)
    ]
    assert state[0].mu_format.exponents["w"].shape == (4096, 344)
    assert pieces == [(4096, 43), (8, 43)]


def test_what_lies_on_no_mesh_is_refused():
    params = place(mesh_of())
    with pytest.raises(ValueError, match="no axis 'rows': it has 'data', 'model'"):
        state_shardings(adam_jax.adam(1e-2), params, over="rows")
    with pytest.raises(ValueError, match=r"params\['w'\] has no NamedSharding"):
        state_shardings(adam_jax.adam(1e-2), {"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="there are no parameters"):
        state_shardings(adam_jax.adam(1e-2), {})
    other = Mesh(np.array(jax.devices()[4:6]), ("data",))
    strange = {**params, "z": jax.device_put(jnp.ones(4), NamedSharding(other, P()))}
    with pytest.raises(ValueError, match=r"params\['z'\] is on another mesh"):
        state_shardings(adam_jax.adam(1e-2), strange)
    for mesh in (AbstractMesh((2,), ("data",)), AbstractMesh((4,), ("data",))):
        mixed = {**params, "z": jax.ShapeDtypeStruct((4,), "float32")}
        mixed["z"] = mixed["z"].update(sharding=NamedSharding(mesh, P()))
        with pytest.raises(ValueError, match=r"params\['z'\] is on another mesh"):
            state_shardings(adam_jax.adam(1e-2), mixed)
    small, large = (AbstractMesh((n,), ("data",)) for n in (2, 4))
    pair = {
        name: jax.ShapeDtypeStruct((4,), "float32", sharding=NamedSharding(mesh, P()))
        for name, mesh in (("a", small), ("b", large))
    }
    with pytest.raises(ValueError, match=r"params\['b'\] is on another mesh"):
        state_shardings(adam_jax.adam(1e-2), pair)
    with pytest.raises(TypeError, match="state_shardings"):
        state_shardings(adam_jax.adam, params)
