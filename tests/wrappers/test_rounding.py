"""bfloat16 parameters without a float32 copy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import run
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import compensate_params, numerics, round_to_params

STAGES = pytest.mark.parametrize("stage", [round_to_params, compensate_params])


def train(tx, params, grads, steps):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, steps)[0])(
        params
    )
    return carry[0]


@STAGES
def test_a_hundred_small_steps_arrive(stage):
    ones = jnp.ones(1000, jnp.bfloat16)
    ours = train(stage(adam_jax.adam(1e-3)), ones, ones, 100)
    last = train(optax.chain(adam_jax.adam(1e-3), stage()), ones, ones, 100)
    theirs = train(optax.adam(1e-3), ones, ones, 100)
    assert ours.dtype == jnp.bfloat16 and (theirs == 1).all()
    # 100 steps of 1e-3; the mean over 1000 parameters, whose last bit is 1/256.
    np.testing.assert_allclose(ours.astype(jnp.float32).mean(), 0.9, rtol=0.01)
    np.testing.assert_allclose(last.astype(jnp.float32).mean(), 0.9, rtol=0.01)


@STAGES
def test_apply_updates_lands_exactly(stage):
    """What is emitted, added to the parameter, is a bfloat16 number: none is lost."""
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=10_000), jnp.bfloat16)
    updates = jnp.asarray(rng.normal(size=10_000) * 10.0 ** rng.uniform(-6, 0, 10_000))
    updates = updates.astype(jnp.float32)
    tx = stage()
    emitted, _ = jax.jit(tx.update)(updates, tx.init(params), params)
    target = params.astype(jnp.float32) + emitted
    within = jnp.abs(target) > 2.0**-16 * jnp.abs(params.astype(jnp.float32))
    assert within.mean() > 0.99
    landed = optax.apply_updates(params, emitted)
    np.testing.assert_array_equal(landed[within].astype(jnp.float32), target[within])
    # Never further than one bfloat16 step from params + updates.
    wanted = params.astype(jnp.float32) + updates
    error = jnp.abs(landed.astype(jnp.float32) - wanted)
    assert (error <= jnp.abs(wanted) / 128 + 2.0**-16).all()


def test_outside_the_limit_the_error_is_that_of_float32():
    """The new value is 2^-20 of the old: it is off by up to 2^-24 of the old."""
    params = jnp.ones(1, jnp.bfloat16)
    update = jnp.float32([-1 + 2.0**-20])
    tx = compensate_params()
    emitted, _ = tx.update(update, tx.init(params), params)
    landed = optax.apply_updates(params, emitted).astype(jnp.float32)
    assert abs(landed[0] - 2.0**-20) <= 2.0**-24


def test_rounding_is_unbiased():
    params = jnp.ones(100_000, jnp.bfloat16)
    updates = jnp.full(100_000, 1e-3, jnp.float32)
    tx = round_to_params()
    emitted, _ = tx.update(updates, tx.init(params), params)
    # Bernoulli steps of 1/128: sigma of the mean is 8.3e-6.
    np.testing.assert_allclose(emitted.mean(), 1e-3, atol=5e-5)


def test_compensation_is_float32_training_rounded():
    """At every step the parameters are those of float32, rounded: bit for bit."""
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=1000), jnp.bfloat16)
    master = params.astype(jnp.float32)
    tx = compensate_params()
    state = tx.init(params)
    for _ in range(50):
        # Small beside the parameters: 2^-16 of the old value is not crossed.
        update = jnp.asarray(rng.normal(size=1000) * 1e-3, jnp.float32) * master
        emitted, state = tx.update(update, state, params)
        params = optax.apply_updates(params, emitted)
        master = master + update
        whole = numerics.join_float32(params, state.residual)
        np.testing.assert_array_equal(whole, master)
        nearest = jnp.abs(params.astype(jnp.float32) - master)
        assert (nearest <= jnp.abs(master) * 2.0**-8).all()


def test_a_compensated_optimizer_is_float32_training_rounded():
    """All of adamw, weight decay included: its master is float32's, bit for bit."""
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=1000), jnp.bfloat16)
    grads = jnp.asarray(rng.normal(size=(50, 1000)), jnp.bfloat16)
    adamw = adam_jax.adamw(1e-3, weight_decay=0.1)
    _, exact, _ = run(adamw, grads, params.astype(jnp.float32))
    _, rounded, state = run(compensate_params(adamw), grads, params)
    residual = optax.tree.get(state, "residual")
    whole = numerics.join_float32(jnp.asarray(rounded[-1]), jnp.asarray(residual))
    np.testing.assert_array_equal(whole, exact[-1])


@STAGES
def test_a_small_decay_beside_a_large_step_is_not_lost(stage):
    """Steps of 1e-2 that cancel, and a decay of 1e-5: as in float32."""
    grads = jnp.tile(jnp.array([[1.0], [-1.0]], jnp.bfloat16), (500, 1000))
    lion = adam_jax.lion(1e-2, b1=0.0, b2=0.0, weight_decay=1e-3)
    ones = jnp.ones(1000, jnp.bfloat16)
    _, params, _ = run(stage(lion), grads, ones)
    # 1000 steps of 1e-5: 0.990; the mean over 1000 parameters of last bit 1/256.
    np.testing.assert_allclose(params[-1].astype(np.float32).mean(), 0.990, atol=2e-3)


@STAGES
def test_wide_updates_python_numbers_and_abstract_parameters(stage):
    tx = stage(adam_jax.adam(1e-2))
    updates, _ = tx.update({"a": 2.0}, tx.init({"a": 1.0}), {"a": 1.0})
    np.testing.assert_allclose(updates["a"], -1e-2, rtol=1e-6)
    abstract = tx.init(jax.ShapeDtypeStruct((2, 3), jnp.bfloat16))
    concrete = tx.init(jnp.ones((2, 3), jnp.bfloat16))
    assert jax.tree.map(jax.typeof, abstract) == jax.tree.map(jax.typeof, concrete)
    with jax.enable_x64(True):
        params = jnp.ones(3, jnp.bfloat16)
        wide = jnp.full(3, 0.5, jnp.float64)
        updates, _ = stage().update(wide, stage().init(params), params)
        np.testing.assert_allclose(updates, 0.5)


@STAGES
def test_wide_leaves_pass_and_types_stay(stage):
    params = {"half": jnp.ones(3, jnp.bfloat16), "single": jnp.ones(3)}
    tx = stage(adam_jax.adam(1e-3))
    moved = train(tx, params, params, 3)
    plain = train(adam_jax.adam(1e-3), params, params, 3)
    np.testing.assert_array_equal(moved["single"], plain["single"])
    assert moved["half"].dtype == jnp.bfloat16


@STAGES
def test_sharding_changes_nothing(stage):
    auto = (jax.sharding.AxisType.Auto,)
    sharding = NamedSharding(jax.make_mesh((8,), ("x",), axis_types=auto), P("x"))
    params = jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.bfloat16)
    tx = optax.chain(adam_jax.adam(1e-3), stage())
    plain = train(tx, params, params, 5)
    sharded = train(tx, jax.device_put(params, sharding), params, 5)
    np.testing.assert_array_equal(
        plain.astype(jnp.float32), sharded.astype(jnp.float32)
    )


@STAGES
def test_flax_as_it_is(stage):
    """NNX's Optimizer and linen's TrainState, unmodified, on bfloat16 parameters."""
    model = nnx.Linear(4, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    tx = optax.chain(adam_jax.adam(1e-3), stage())
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = model.kernel[...]

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 4)))))(model)
        optimizer.update(model, grads)

    for _ in range(20):
        step(model, optimizer)
    moved = (model.kernel[...] - before).astype(jnp.float32)
    assert model.kernel[...].dtype == jnp.bfloat16
    np.testing.assert_allclose(moved.mean(), -0.02, rtol=0.2)

    linen = nn.Dense(2, param_dtype=jnp.bfloat16)
    variables = linen.init(jax.random.key(0), jnp.ones((1, 4)))
    state = TrainState.create(apply_fn=linen.apply, params=variables["params"], tx=tx)
    for _ in range(20):
        state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    moved = state.params["kernel"] - variables["params"]["kernel"]
    np.testing.assert_allclose(moved.astype(jnp.float32).mean(), -0.02, rtol=0.2)


@STAGES
def test_errors(stage):
    tx = stage()
    params = jnp.ones(2, jnp.bfloat16)
    with pytest.raises(ValueError, match=r"call tx\.update\(grads, state, params\)"):
        tx.update(params, tx.init(params))
    with pytest.raises(TypeError, match=r"params\['w'\] is float16"):
        tx.init({"w": jnp.ones(2, jnp.float16)})
    with pytest.raises(TypeError, match=r"params\['w'\] has dtype int32"):
        tx.init({"w": jnp.ones(2, jnp.int32)})
    with pytest.raises(AssertionError, match="updates do not fit params"):
        tx.update(jnp.ones(3), tx.init(params), params)
