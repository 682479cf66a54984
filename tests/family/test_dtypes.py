"""The dtype grid: right, not merely finite, in every combination of precisions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import MAKERS, OLDEST, falling, run
from oracle import trajectory

import adam_jax

DTYPES = ["float16", "bfloat16", "float32"]
LEARNING_RATES = {
    "float": lambda: 1e-2,
    "float32_scalar": lambda: jnp.float32(1e-2),
    "schedule": lambda: falling,
}
STEPS = 8


def grid_gradients(dtype, largest):
    """Normal, zero, tiny and huge gradients, a column each, rounded to `dtype`."""
    rng = np.random.default_rng(0)
    tiny = 6e-8 if dtype == "float16" else 1e-30
    columns = [rng.normal(size=STEPS), np.zeros(STEPS)]
    columns += [np.full(STEPS, tiny), np.full(STEPS, -largest), np.full(STEPS, largest)]
    return jnp.asarray(np.stack(columns, axis=1), dtype)


# Their updates grow with the gradient, and float16 must hold them.
PROPORTIONAL = (*("sgd", "radam", "aggmo", "madgrad", "padam", "acprop", "adabound"),)
# They step to a place that they keep; parameters reach it up to their own rounding.
PLACED = ("lookahead", "schedule_free_adamw", "schedule_free_radam", "adam_hyperball")


def check_cell(name, params_dtype, grads_dtype, learning_rate, inject):
    proportional = name in PROPORTIONAL
    largest = 3e4 if proportional or grads_dtype == "float16" else 1e30
    grads = grid_gradients(grads_dtype, largest)
    params = jnp.asarray([1.0, -1.0, 0.5, 2.0, 0.0], params_dtype)
    factory = optax.inject_hyperparams(MAKERS[name]) if inject else MAKERS[name]
    tx = factory(learning_rate=LEARNING_RATES[learning_rate]())
    updates, _, state = run(tx, grads, params)  # a scan: the state's dtypes hold

    assert updates.dtype == params_dtype
    moments = [optax.tree.get_all_with_path(state, k) for k in ("mu", "nu", "trace")]
    moments = [moment for found in moments for _, moment in found]
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(moments))
    rate = falling if learning_rate == "schedule" else 1e-2
    expected, _ = trajectory(
        name,
        np.asarray(grads, np.float64),
        np.asarray(params, np.float64),
        learning_rate=rate,
    )
    rates = np.array([rate(t) if callable(rate) else rate for t in range(STEPS)])
    size = (
        np.maximum(np.abs(expected), rates[:, None]) if proportional else rates[:, None]
    )
    if name in PLACED:
        size = size + 10 * float(jnp.finfo(params_dtype).eps) * 2.0
    error = np.abs(np.asarray(updates, np.float64) - expected) / size
    assert np.max(error) < 0.1, error.max(axis=0)


@pytest.mark.parametrize("inject", [False, True], ids=["plain", "inject"])
@pytest.mark.parametrize("learning_rate", LEARNING_RATES)
@pytest.mark.parametrize("grads_dtype", DTYPES)
@pytest.mark.parametrize("params_dtype", DTYPES)
def test_adamw_is_right_in_every_cell(params_dtype, grads_dtype, learning_rate, inject):
    check_cell("adamw", params_dtype, grads_dtype, learning_rate, inject)


OFTEN = ("adam", "adagrad", "lion", "radam")
# Of such a vector shampoo inverts the outer products, which no float holds.
CELLS = [
    pytest.param(*cell, marks=() if cell[0] in OFTEN else pytest.mark.crossing)
    for cell in itertools.product(adam_jax.OPTIMIZERS, DTYPES, DTYPES, (False, True))
    # Of the others, what is like nothing else: all narrow, and all wide.
    if cell[0] in OLDEST or (cell[1] == cell[2] != "float16" and not cell[3])
    if cell[0] != "shampoo"
]


@pytest.mark.parametrize(("name", "params_dtype", "grads_dtype", "inject"), CELLS)
def test_every_optimizer_is_right(name, params_dtype, grads_dtype, inject):
    check_cell(name, params_dtype, grads_dtype, "float32_scalar", inject)
