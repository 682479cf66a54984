"""Defaults that survive inject_hyperparams; hyperparameters in their three forms."""

import copy
import inspect
import pickle
import subprocess
import sys

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax.hyperparams import at, check_decay, check_non_negative, exact


def test_exact_is_its_number():
    value = exact(0.999)
    assert float(value) == 0.999 and value == 0.999 and repr(value) == "0.999"
    assert hash(value) == hash(0.999)
    assert jnp.asarray(value).dtype == jnp.float32
    with jax.enable_x64(True):
        assert jnp.asarray(value) == 0.999
    assert str(inspect.signature(adam_jax.adam)).count("0.999") == 1


def pickled(x):
    return pickle.loads(cloudpickle.dumps(x))


def test_exact_pickles_copies_and_goes_through_jit():
    value = exact(0.999)
    made = [
        copy.copy(value),
        copy.deepcopy(value),
        pickle.loads(pickle.dumps(value)),
        pickled(value),
    ]
    for other in made:
        assert type(other) is type(value) and repr(other) == "0.999"
    expected = np.float32(0.999)
    for found in (
        jax.jit(lambda x: x)(value),
        jax.jit(lambda x: 2 * x["b2"])({"b2": value}) / 2,
        jax.tree.map(jnp.asarray, value),
        jax.vmap(lambda x, y: x * y, in_axes=(None, 0))(value, jnp.ones(1))[0],
    ):
        assert found.dtype == jnp.float32 and found == expected
    tx = adam_jax.adam(1e-3, b2=value)  # given on by hand, as it was found
    assert tx.init(jnp.ones(2))[0].count == 0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_what_is_injected_pickles_and_copies(copied):
    tx = optax.inject_hyperparams(adam_jax.adamw)(learning_rate=1e-3)
    params = jnp.ones(3, jnp.bfloat16)
    state = tx.init(params)
    updates, after = copied(tx).update(params, copied(state), params)
    expected, _ = tx.update(params, state, params)
    assert updates.dtype == jnp.bfloat16 and (updates == expected).all()
    assert after.hyperparams["b2"] == np.float32(0.999)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_injected_defaults_stay_float32(dtype, jit):
    tx = optax.inject_hyperparams(adam_jax.adamw)(learning_rate=1e-3)
    params = jnp.ones(3, dtype)
    wrap = jax.jit if jit else lambda f: f
    state = wrap(tx.init)(params)
    for _ in range(3):
        for name in ("b1", "b2", "eps", "eps_root", "weight_decay"):
            value = state.hyperparams[name]
            default = inspect.signature(adam_jax.adamw).parameters[name].default
            assert value.dtype == jnp.float32 and not value.weak_type
            assert value == np.float32(float(default))
        updates, state = wrap(tx.update)(params, state, params)
        assert updates.dtype == dtype


def test_importing_starts_no_backend():
    code = (
        "import adam_jax, jax._src.xla_bridge as b, sys;"
        "assert not b.backends_are_initialized();"
        "assert not {'flax', 'altair'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_three_forms():
    float_, array = check_decay("b", 0.9), check_decay("b", jnp.float32(0.9))
    schedule = check_decay("b", lambda count: 0.9)
    assert isinstance(float_, float) and isinstance(at(float_, 0, "float32"), float)
    assert at(array, 0, "float32").dtype == jnp.float32
    assert at(schedule, 0, "float32") == np.float32(0.9)
    assert check_decay("b", np.float64(0.9)) == check_decay("b", exact(0.9)) == 0.9
    assert isinstance(check_decay("b", 0), float)
    half = check_non_negative("lr", jnp.bfloat16(0.5), half_precision=True)
    assert at(half, 0, "float32").dtype == jnp.float32


class Halving(optax.schedules.StatefulSchedule):
    """Half of the learning rate at each step, by a state of its own."""

    def init(self):
        return jnp.float32(0.1)

    def update(self, state, **extra_args):
        return state / 2

    def __call__(self, state, **extra_args):
        return state


@pytest.mark.parametrize("name", ["adamw", "sgd", "radam"])
def test_a_schedule_with_state(name):
    """It is Optax's to keep; fused and not, the step is that of the number."""
    make, params = adam_jax.OPTIMIZERS[name], jnp.ones(3)
    tx = optax.inject_hyperparams(make)(learning_rate=Halving())
    state = tx.init(params)
    inner, rate = make(jnp.float32(1.0)).init(params), 0.1
    for _ in range(3):
        moved, _ = adam_jax.fused.step(tx)(params, params, state)
        updates, state = tx.update(params, state, params)
        expected, inner = make(jnp.float32(1.0)).update(params, inner, params)
        np.testing.assert_allclose(updates, rate * expected, rtol=1e-6)
        np.testing.assert_allclose(moved, params + updates, rtol=1e-6)
        rate /= 2
