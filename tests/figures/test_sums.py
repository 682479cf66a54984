"""Sums as each platform does them, all computed here on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax.figures import sums
from adam_jax.figures.sums import sum_all

WAYS = [sums._sum_by_rows, sums._sum_together, sums._sum_side_by_side]
every_way = pytest.mark.parametrize("way", WAYS)
ODD = [np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, -3e38]


def arrays(shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    return [jnp.asarray(x, dtype), jnp.asarray(x > 0), jnp.asarray(-abs(x), dtype)]


def beside(shape, dtype):
    """Arrays with whatever there may be in them, some of other shapes."""
    odd = np.resize(np.array(ODD), shape)
    parts = {"grad": odd, "param": -odd, "mu": odd, "nu": np.zeros(7), "landed": odd}
    return {k: jnp.asarray(v).astype(dtype) for k, v in parts.items()}


@every_way
@pytest.mark.parametrize("shape", [(), (1,), (70000,), (3, 30000), (2, 3, 4), (0, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_sums_are_of_the_arrays_alone(way, shape, dtype):
    with jax.enable_x64(dtype == "float64"):
        given = arrays(shape, dtype)
        if shape:
            found = jax.jit(way, static_argnums=0)(
                jnp.dtype(dtype), given, beside(shape, dtype)
            )
        else:
            found = sum_all(given, beside(shape, dtype))
        assert all(x.dtype == dtype and x.shape == () for x in found)
    want = [np.sum(np.asarray(x), dtype="complex128") for x in given]
    size = [np.sum(np.abs(x)) for x in given]
    for x, y, scale in zip(found, want, size, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * float(scale))


@every_way
@pytest.mark.parametrize("odd", ODD)
def test_what_is_summed_keeps_every_bit(way, odd):
    odd = 0.0 if odd == 1e-45 else odd  # which a CPU flushes
    x = jnp.zeros(70000).at[7].set(odd)  # few are not tied to what is beside them
    [found] = way(jnp.dtype("float32"), [x], dict.fromkeys(("grad", "mu"), x))
    np.testing.assert_array_equal(found, np.float32(odd))


@every_way
def test_sums_of_a_batch(way):
    def run(x, y):
        return jnp.stack(way(jnp.dtype("float32"), [x, x > 1], {"grad": y, "mu": x}))

    x = jnp.arange(12.0).reshape(2, 6)
    found = jax.vmap(run)(x, -x)
    np.testing.assert_array_equal(found, [[15, 4], [51, 6]])


def test_an_array_that_is_given_twice_is_summed_once():
    def run(x):
        y = x * x
        return sum_all([y, x, y])

    text = jax.jit(run).trace(jnp.ones((4, 5))).lower(lowering_platforms=("tpu",))
    large = [x for x in text.as_text().splitlines() if ".reduce(" in x]
    assert len(large) == 2
    np.testing.assert_array_equal(run(jnp.full((4, 5), 2.0)), [80, 40, 80])
