"""States through every library that stores them: every bit comes back, in its place."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from cases import LEAFWISE, MAKERS, OLDEST
from flax import nnx, serialization
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax

PARAMS = {
    "w": jnp.ones((8, 32), jnp.bfloat16),
    "b": jnp.ones(3, jnp.bfloat16),
    "wide": {"v": jnp.ones(5), "s": jnp.float32(1)},
}
STORED = {
    "as it comes": (None, None),
    "bfloat16": ("bfloat16", "bfloat16"),
    "8bit": (adam_jax.eight_bit(min_size=64),) * 2,
    "shared": ("bfloat16", adam_jax.factored(min_size=4)),
    "mean": (None, adam_jax.mean_over(-1)),
}
WRAPPERS = {
    "plain": lambda make: make(),
    "packed": lambda make: adam_jax.packed(make()),
    "record": lambda make: adam_jax.record(make()),
    "skip_nonfinite": lambda make: adam_jax.skip_nonfinite(make()),
    "skip_spikes": lambda make: adam_jax.skip_spikes(make()),
    "round": lambda make: adam_jax.round_to_params(make()),
    "compensate": lambda make: adam_jax.compensate_params(make()),
    "MultiSteps": lambda make: optax.MultiSteps(make(), 2).gradient_transformation(),
    "injected": lambda make: optax.inject_hyperparams(make)(learning_rate=1e-2),
    "masked": lambda make: optax.masked(make(), {"w": True, "b": False, "wide": True}),
    "all": lambda make: adam_jax.record(
        adam_jax.skip_nonfinite(
            adam_jax.round_to_params(
                optax.chain(optax.clip_by_global_norm(1.0), adam_jax.packed(make()))
            )
        )
    ),
}


def wrap_all(name, make):
    """Return the optimizer in every wrapper that takes it."""
    packs = {"packed", "all"} if name in LEAFWISE else set()
    return {k: wrap(make) for k, wrap in WRAPPERS.items() if k not in packs}


def bind(name, storage):
    """Return what makes the optimizer, with this storage for what moments it keeps."""
    mu, nu = STORED[storage]
    takes = inspect.signature(MAKERS[name]).parameters
    options = {"mu_dtype": mu, "accumulator_dtype": mu, "nu_dtype": nu}
    options = {key: value for key, value in options.items() if key in takes}
    if name == "sgd":
        options["momentum"] = 0.9

    def make(learning_rate=1e-2):
        return MAKERS[name](learning_rate, **options)

    return make


def fill(state, seed=0):
    """Return a state of the same types with arrays that are no zeros."""
    rng = np.random.default_rng(seed)

    def draw(x):
        bits = rng.integers(0, 256, (*x.shape, x.dtype.itemsize), np.uint8)
        if x.dtype == bool:
            bits &= 1
        return jnp.asarray(bits.view(x.dtype).reshape(x.shape))

    return jax.tree.map(draw, state)


def bits(x):
    x = np.asarray(x)
    return x.reshape(-1).view(np.uint8) if x.size else x.reshape(-1)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(found),
        jax.tree.leaves(expected),
        strict=True,
    ):
        where = jax.tree_util.keystr(path)
        assert (x.shape, x.dtype) == (y.shape, y.dtype), where
        np.testing.assert_array_equal(bits(x), bits(y), err_msg=where)


CASES = [
    (name, storage)
    for name in adam_jax.OPTIMIZERS
    for storage in STORED
    # In 8 bits a state holds most. Formats that share are for second moments.
    if storage == "8bit" or name in OLDEST
    if storage in ("as it comes", "bfloat16", "8bit")
    or "nu_dtype" in inspect.signature(MAKERS[name]).parameters
]
OFTEN = ("adamw", "amsgrad", "rmsprop")
every_case = pytest.mark.parametrize(
    ("name", "storage"),
    [
        pytest.param(*case, marks=() if case[0] in OFTEN else pytest.mark.crossing)
        for case in CASES
    ],
)


@every_case
def test_every_state_comes_back_bit_for_bit(name, storage, tmp_path):
    """Of all wrappers at once, into the types that eval_shape tells."""
    make = bind(name, storage)
    made = wrap_all(name, make)
    target = {k: jax.eval_shape(tx.init, PARAMS) for k, tx in made.items()}
    states = fill(target)
    assert all(x.size for x in jax.tree.leaves(states))

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "standard", states)
        checkpointer.wait_until_finished()
        assert_same(checkpointer.restore(tmp_path / "standard", target), states)
    with ocp.CheckpointManager(
        tmp_path / "managed",
        options=ocp.CheckpointManagerOptions(enable_async_checkpointing=True),
    ) as manager:
        manager.save(7, args=ocp.args.StandardSave(states))
        manager.wait_until_finished()
        found = manager.restore(7, args=ocp.args.StandardRestore(target))
        assert_same(found, states)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), target)
    found = serialization.from_bytes(zeros, serialization.to_bytes(states))
    assert_same(found, states)
    assert_same(pickle.loads(pickle.dumps(jax.device_get(states))), states)


class Model(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(8, 32, rngs=nnx.Rngs(0))
        self.scale = nnx.Param(jnp.ones(3))


@pytest.mark.parametrize(
    "storage",
    [
        pytest.param(k, marks=() if k == "8bit" else pytest.mark.crossing)
        for k in STORED
    ],
)
def test_an_nnx_optimizer_is_saved_restored_and_goes_on(storage, tmp_path):
    def loss(model):
        return jnp.sum(model.dense(jnp.ones((2, 8))) ** 2) * model.scale[...].sum()

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    wraps = ["plain", "packed", "record", "skip_nonfinite", "MultiSteps", "injected"]
    for wrapper in [*wraps, "all"]:
        tx = WRAPPERS[wrapper](bind("adamw", storage))
        model = Model()
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for _ in range(2):
            step(model, optimizer)
        _, state = nnx.split((model, optimizer))
        path = tmp_path / wrapper
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, state)
            checkpointer.wait_until_finished()

            def anew(tx=tx):
                model = Model()
                return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

            graph, abstract = nnx.split(nnx.eval_shape(anew))
            found = checkpointer.restore(path, abstract)
        assert_same(jax.tree.leaves(found), jax.tree.leaves(state))
        others = nnx.merge(graph, found)
        for pair in ((model, optimizer), others):
            step(*pair)
        assert_same(
            *(jax.tree.leaves(nnx.state(x)) for x in ((model, optimizer), others))
        )


@every_case
def test_one_structure_for_floats_arrays_and_schedules(name, storage):
    """And for whatever way init was run; so a run may go on with a schedule."""
    takes = inspect.signature(MAKERS[name]).parameters
    hypers = {"b1": 0.9, "b2": 0.99, "decay": 0.9, "eps": 1e-6, "weight_decay": 0.1}
    hypers = {k: v for k, v in hypers.items() if k in takes} | {"learning_rate": 0.1}
    if name in ("muon", "normuon", "adamuon", "shampoo"):
        del hypers["eps"]  # which is read once
    kinds = {
        "float": lambda value: value,
        "array": jnp.float32,
        "schedule": lambda value: lambda count: value / (1 + 0 * count),
    }
    options = dict(
        zip(("mu_dtype", "nu_dtype"), STORED[storage], strict=True)
        if name != "sgd"
        else (("accumulator_dtype", STORED[storage][0]), ("momentum", 0.9))
    )
    options = {k: v for k, v in options.items() if k in takes}
    found = []
    for kind in kinds.values():
        tx = MAKERS[name](**options, **{k: kind(v) for k, v in hypers.items()})
        both = (tx,) if name in LEAFWISE else (tx, adam_jax.packed(tx))
        states = [jax.eval_shape(x.init, PARAMS) for x in both]
        found.append(jax.tree.map(jax.typeof, states))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("fuse", [False, True], ids=["update", "fused.step"])
@pytest.mark.parametrize("argument", ["learning_rate", "weight_decay", "b1", "b2"])
def test_a_run_begun_with_a_number_goes_on_with_a_schedule(argument, fuse):
    """At the step that it has reached, as if it had always had the schedule."""

    def make(value):
        options = {"learning_rate": 0.1, "weight_decay": 0.1} | {argument: value}
        return adam_jax.packed(adam_jax.adamw(**options))

    def steps(tx, state, params, count):
        for _ in range(count):
            if fuse:
                params, state = adam_jax.fused.step(tx)(params, params, state)
            else:
                updates, state = tx.update(params, state, params)
                params = optax.apply_updates(params, updates)
        return params, state

    begun, scheduled = make(0.5), make(lambda count: jnp.where(count < 5, 0.5, 0.25))
    params, state = steps(begun, begun.init(PARAMS), PARAMS, 5)
    found, _ = steps(scheduled, state, params, 3)
    expected, _ = steps(scheduled, scheduled.init(PARAMS), PARAMS, 8)
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=1e-5)
    constant, _ = steps(begun, state, params, 3)
    assert (constant["wide"]["v"] != found["wide"]["v"]).all()


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_eager_jitted_and_sharded_inits_make_one_state(wrapper, storage):
    tx = WRAPPERS[wrapper](bind("adamw", storage))
    expected = jax.jit(tx.init)(PARAMS)
    types = jax.tree.map(lambda x: (x.shape, x.dtype), expected)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = {
        **PARAMS,
        "w": jax.device_put(PARAMS["w"], NamedSharding(mesh, P("x"))),
    }
    shapes = jax.eval_shape(tx.init, PARAMS)
    for state in (tx.init(PARAMS), tx.init(spread), jax.jit(tx.init)(spread), shapes):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == types
    jax.tree.map(np.testing.assert_array_equal, tx.init(PARAMS), expected)


def test_optax_finds_its_way():
    """tree_map_params with specs, get and set; with and without is_leaf."""
    tx = adam_jax.adamw(1e-3, mu_dtype=adam_jax.eight_bit(min_size=64))
    state = tx.init(PARAMS)
    specs = {"w": P("x"), "b": P(), "wide": {"v": P("x"), "s": P()}}
    for is_leaf in (None, lambda x: isinstance(x, optax.MaskedNode)):
        mapped = optax.tree.map_params(
            tx,
            lambda x, spec: spec,
            state,
            specs,
            transform_non_params=lambda x: P(),
            is_leaf=is_leaf,
        )
        assert optax.tree.get(mapped, "mu") == optax.tree.get(mapped, "nu") == specs
        assert mapped[0].mu_format == adam_jax.EightBit(P())
        assert mapped[0].count == P()
    assert optax.tree.get(state, "count") == 0
    exponents = optax.tree.get(state, "exponents")
    assert exponents["w"].shape == (8, 1) and exponents["b"] == optax.MaskedNode()
    nu = jax.tree.map(jnp.ones_like, state[0].nu)
    changed = optax.tree.set(state, nu=nu, count=jnp.int32(3))
    assert changed[0].count == 3 and (changed[0].nu["w"] == 1).all()
    assert changed[0].mu_format == state[0].mu_format
