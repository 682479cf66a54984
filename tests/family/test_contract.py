"""What every optimizer of the table must do. A new one joins by being registered."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES, MAKERS, OFTEN, case_id, often, run
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax

# The table at its defaults, and the switches that add a stage or an accumulator.
MOVING = {  # visibly, and from the first step
    "schedule_free_radam": {"silent": False},
    "prodigy": {"estim_lr0": 1.0},
}
TABLE = [(name, MOVING.get(name, {})) for name in adam_jax.OPTIMIZERS] + [
    case for case in CASES if case[1] and case[0] in ("sgd", "rmsprop", "adabelief")
]
# In their first step nothing moves: they only gather.
WAITING = ("adopt", "soap")
# Of a matrix of equal elements, whose gradient is one too, they move nothing, or what
# is left to roundings.
DEGENERATE = ("adam_hyperball", "soap")
every_optimizer = pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=() if case[0] in OFTEN else pytest.mark.crossing,
            id=case_id(case),
        )
        for case in TABLE
    ],
)


def make(case, learning_rate=1e-2):
    name, kwargs = case
    return MAKERS[name](learning_rate, **kwargs)


def tree(value=1.0):
    """A pytree with the oddities that are valid."""
    return {
        "matrix": jnp.full((2, 3), value, jnp.float32),
        "scalar": jnp.float32(value),
        "none": None,
        "empty": {},
        "nothing": jnp.zeros((0, 3)),
        "nested": (jnp.full(2, value, jnp.float32), [jnp.float32([value])]),
    }


@every_optimizer
def test_valid_oddities_and_one_trace(case):
    tx, traces = make(case), 0

    @functools.partial(jax.jit, donate_argnums=1)
    def step(grads, state, params):
        nonlocal traces
        traces += 1
        return tx.update(grads, state, params)

    params = tree(0.5)
    state = tx.init(params)
    types = jax.tree.map(jax.typeof, state)
    for count in range(3):
        updates, state = step(tree(), state, params)
        assert jax.tree.map(jax.typeof, state) == types
        assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, params)
        waits = count == 0 and case[0] in WAITING
        if case[0] in DEGENERATE:
            del updates["matrix"]
        for update in jax.tree.leaves(updates):
            assert jnp.all(update == 0 if waits else update < 0)
    assert traces == 1
    empty, _ = tx.update({}, tx.init({}), {})
    assert empty == {}


@every_optimizer
def test_eager_equals_jitted_and_python_numbers_are_parameters(case):
    tx = make(case)
    state = tx.init({"a": 1.0})
    eager, _ = tx.update({"a": 2.0}, state, {"a": 1.0})
    jitted, _ = jax.jit(tx.update)({"a": 2.0}, state, {"a": 1.0})
    np.testing.assert_allclose(eager["a"], jitted["a"], rtol=1e-6)


@every_optimizer
def test_vmap_over_learning_rates_and_seeds(case):
    grads = jnp.linspace(-1, 1, 4)

    def first_update(learning_rate, params):
        tx = make(case, learning_rate)
        return tx.update(grads, tx.init(params), params)[0]

    rates, params = jnp.array([1e-3, 1e-2]), jnp.ones((2, 4))
    together = jax.vmap(first_update)(rates, params)
    for i in range(2):
        alone = first_update(rates[i], params[i])
        np.testing.assert_allclose(together[i], alone, rtol=1e-5)


@every_optimizer
def test_masked_leaves_are_left_alone(case):
    tx = optax.masked(make(case), {"a": True, "b": False})
    params = {"a": jnp.ones(2), "b": jnp.arange(2)}
    grads = {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = tx.init(params)
    for _ in range(2):
        updates, state = jax.jit(tx.update)(grads, state, params)
    assert (updates["a"] < 0).all()
    assert (updates["b"] == grads["b"]).all()


@every_optimizer
def test_meta_gradients_are_finite_at_zero(case):
    tx = make(case)

    def two_steps(grads):
        params = jnp.zeros(2)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
            params = params + updates
        return params.sum()

    assert jnp.isfinite(jax.grad(two_steps)(jnp.array([0.0, 1.0]))).all()


@every_optimizer
def test_count_saturates(case):
    tx = make(case)
    params = jnp.ones(2)
    largest = jnp.iinfo(jnp.int32).max
    state = jax.tree.map(
        lambda x: jnp.full_like(x, largest) if x.dtype == jnp.int32 else x,
        tx.init(params),
    )
    updates, new_state = jax.jit(tx.update)(params, state, params)
    counts = [x for x in jax.tree.leaves(new_state) if x.dtype == jnp.int32]
    assert all(count == largest for count in counts)
    assert jnp.isfinite(updates).all()


@every_optimizer
def test_training_step_exports_for_every_platform(case):
    tx = make(case)
    params = jax.ShapeDtypeStruct((4,), jnp.bfloat16)
    state = jax.eval_shape(tx.init, params)

    def step(params, state, batch):
        grads = jax.grad(lambda p: jnp.sum((p - batch) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    exported = jax.export.export(
        jax.jit(step, donate_argnums=(0, 1)), platforms=("cpu", "cuda", "rocm", "tpu")
    )(params, state, params)
    assert exported.platforms == ("cpu", "cuda", "rocm", "tpu")
    moved = jnp.ones(4, jnp.bfloat16)
    state = tx.init(moved)
    for _ in range(2):
        batch = jnp.zeros(4, jnp.bfloat16)
        moved, state, updates = exported.call(moved, state, batch)
    assert (updates < 0).all()


@pytest.mark.parametrize("shape", [(8,), (4, 2)], ids=["1d", "2d"])
@every_optimizer
def test_moments_are_sharded_like_their_parameters(case, shape):
    tx = make(case)
    names = ("x", "y")[: len(shape)]
    auto = (jax.sharding.AxisType.Auto,) * len(shape)
    mesh = jax.make_mesh(shape, names, axis_types=auto)
    sharding = NamedSharding(mesh, P(*names))
    params = jax.device_put(jnp.ones((8, 2)), sharding)
    state = jax.jit(tx.init)(params)
    _, stepped = jax.jit(tx.update)(params, state, params)
    for moments in (state, stepped, tx.init(params)):
        for leaf in jax.tree.leaves(moments):
            if leaf.shape == params.shape:
                assert leaf.sharding.is_equivalent_to(sharding, 2)


@every_optimizer
def test_init_takes_abstract_parameters(case):
    abstract = make(case).init(jax.ShapeDtypeStruct((2, 3), jnp.bfloat16))
    concrete = make(case).init(jnp.zeros((2, 3), jnp.bfloat16))
    assert jax.tree.map(jax.typeof, abstract) == jax.tree.map(jax.typeof, concrete)


@every_optimizer
def test_composes_with_optax(case):
    """chain, MultiSteps, multi_transform, apply_if_finite, map_params, extra args."""
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    alone, _ = make(case).update(params, make(case).init(params), params)

    partitioned = optax.multi_transform(
        {"ours": make(case), "frozen": optax.set_to_zero()},
        {"a": "ours", "b": "frozen"},
    )
    updates, _ = partitioned.update(params, partitioned.init(params), params)
    assert (updates["a"] == alone["a"]).all() and (updates["b"] == 0).all()

    tx = optax.apply_if_finite(
        optax.MultiSteps(make(case), 2).gradient_transformation(),
        max_consecutive_errors=1,
    )
    state = tx.init(params)
    update = jax.jit(tx.update)
    held, state = update(params, state, params)
    released, state = update(params, state, params)
    assert (held["a"] == 0).all()
    np.testing.assert_allclose(released["a"], alone["a"], rtol=1e-6)

    tx = optax.with_extra_args_support(make(case))
    mapped = optax.tree.map_params(tx, lambda x: x + 1, tx.init(params))
    assert jax.tree.structure(mapped) == jax.tree.structure(tx.init(params))
    extra, _ = tx.update(params, tx.init(params), params, loss=1.0)
    assert (extra["a"] == alone["a"]).all()


HYPERPARAMS = {
    "learning_rate": 1e-3,
    "b1": 0.8,
    "b2": 0.9,
    "eps": 1e-4,
    "eps_root": 1e-4,
    "decay": 0.8,
    "weight_decay": 0.1,
    "initial_scale": 0.5,
    "initial_accumulator_value": 0.5,
    "threshold": 4.0,
    "a": 1.0,
    "adam_b1": 0.8,
    "adam_b2": 0.9,
    "adam_eps_root": 1e-4,
    "adam_weight_decay": 0.1,
    "alpha": 2.0,
    "b": 0.5,
    "b0": 0.5,
    "b3": 0.9,
    "beta": 0.8,
    "clip_decay": 0.9,
    "clip_value_fn": 1.0,
    "clipping_threshold": 0.5,
    "decay_offset": 1,
    "decay_rate": 0.5,
    "eps_confidence": 1e-8,
    "estim_lr0": 1e-3,
    "estim_lr_coef": 2.0,
    "final_lr": 0.01,
    "gamma": 0.1,
    "momentum": 0.5,
    "norm_b1": 0.8,
    "norm_b2": 0.9,
    "optimism": 1e-3,
    "partial": 0.25,
    "rho": 0.8,
    "scale": 0.5,
    "slow_decay": 0.8,
    "slow_step_size": 0.2,
    "slow_weight": 1.0,
    "tolerance": 0.1,
    "trust_coefficient": 0.1,
    "v1": 0.5,
    "v2": 0.5,
    "weight_lr_power": 1.0,
}


@pytest.mark.parametrize("name", often(adam_jax.OPTIMIZERS))
def test_injected_hyperparameters_change_without_recompiling(name):
    arguments = inspect.signature(MAKERS[name]).parameters.values()
    whole = [x.name for x in arguments if type(x.default) is int]  # set shapes, or ifs
    tx = optax.inject_hyperparams(MAKERS[name], whole)(learning_rate=1e-2)
    params = jnp.ones(3)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for key in state.hyperparams:
        old = state.hyperparams[key]
        state.hyperparams[key] = jnp.full_like(old, HYPERPARAMS[key])
        updates, state = update(params, state, params)
        assert jnp.isfinite(updates).all()
    assert update._cache_size() == 1


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "radam", "rmsprop"])
def test_arrays_and_injection_follow_the_floats(name):
    """A float32 array stands for a slightly different decay, no more."""
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(300, 5)), jnp.float32)
    plain, _, _ = run(MAKERS[name](1e-2), grads, jnp.ones(5))
    keys = (
        {"b2": jnp.float32(0.999)} if name != "rmsprop" else {"decay": jnp.float32(0.9)}
    )
    arrays, _, _ = run(MAKERS[name](1e-2, **keys), grads, jnp.ones(5))
    injected, _, _ = run(
        optax.inject_hyperparams(MAKERS[name])(1e-2), grads, jnp.ones(5)
    )
    # float32(0.999) differs by 1.3e-8, so 1 - b2 by 1.3e-5 and its root by half.
    np.testing.assert_allclose(arrays, plain, rtol=0, atol=1e-2 * 1e-4)
    np.testing.assert_allclose(injected, plain, rtol=0, atol=1e-2 * 1e-4)


def test_a_scheduled_decay_is_corrected_by_the_weight_that_it_gave():
    """Directly and through inject_hyperparams, in float32, over 3,000 steps."""

    def b2(count):
        return 0.9 + 0.0999 * (count / (count + 100.0))

    grads = jnp.ones((3000, 1))  # so the corrected moment is exactly 1 at every step
    for tx in (
        adam_jax.adam(1e-2, b2=b2),
        optax.inject_hyperparams(adam_jax.adam)(1e-2, b2=b2),
    ):
        updates, _, _ = run(tx, grads, jnp.zeros(1))
        np.testing.assert_allclose(updates, -1e-2, rtol=2e-5)
