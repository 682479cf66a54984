"""Sums over small leaves that native code takes, beside those of XLA."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax import FIGURES, measure, record
from adam_jax.figures.definitions import Step
from adam_jax.native import calls, library
from adam_jax.states.reading import read_moments

pytestmark = pytest.mark.skipif(
    not library.available(), reason="the native library was not built"
)

PLAIN = {name: x for name, x in FIGURES.items() if not name.endswith("_quantiles")}
SHAPES = [(64, 128), (1,), (), (3, 5, 7)]


def leaf(shape, scale):
    rng = np.random.default_rng(len(shape))
    return jnp.asarray(np.float32(rng.normal(size=shape) * scale))


def a_step(shapes=SHAPES, dtype="float32"):
    params = [leaf(shape, 1e5).astype(dtype) for shape in shapes]
    grads = [leaf(shape, 0.1).astype(dtype) for shape in shapes]
    if params[0].size > 10:
        grads[0] = grads[0].at[0, :3].set(jnp.array([jnp.nan, jnp.inf, 0], dtype))
    tx = adam_jax.adam(1e-3)
    updates, state = tx.update(grads, tx.init(params), params)
    updates = [u.astype(dtype) for u in updates]
    return Step(grads, [*read_moments(state)], updates, params, 1e-3, 1.0)


def count_calls(function, *args):
    return jax.jit(function).lower(*args).as_text().count("@adam_jax_sum_leaf")


def both(figures, step):
    """Return figures from native sums, and from XLA's alone."""

    def look(step, given=figures):
        return measure(given, step)

    assert count_calls(look, step) > 0
    native = jax.jit(look)(step)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calls, "SMALL", 0)
        jax.clear_caches()
        assert count_calls(look, step) == 0
        composed = jax.jit(look)(step)
    jax.clear_caches()
    return native, composed


def test_all_figures_are_those_of_xla():
    native, composed = both(PLAIN, a_step())
    chex.assert_trees_all_close(native, composed, rtol=2e-6)
    assert native["nonfinite"].total == 2
    assert native["swallowed"].total > 0


@pytest.mark.parametrize("name", PLAIN)
def test_each_figure_is_that_of_xla(name):
    if name.startswith("bias_correction"):
        assert (
            count_calls(lambda step: measure({name: PLAIN[name]}, step), a_step()) == 0
        )
        return
    chex.assert_trees_all_close(*both({name: PLAIN[name]}, a_step()), rtol=2e-6)


def test_what_is_not_summed_is_not_read():
    step = a_step([(64, 64)])
    look = jax.jit(lambda step: measure({"norm": PLAIN["gradient_norm"]}, step))
    lines = look.lower(step).as_text().splitlines()
    [call] = [line for line in lines if "@adam_jax_sum_leaf" in line]
    assert call.count("tensor<64x64xf32>") == 1
    assert call.count("tensor<0xf32>") == 4


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_steps_are_counted_in_learning_rates(rate):
    names = ("effective_step", "at_step_bound")
    step = a_step()._replace(learning_rate=rate)
    chex.assert_trees_all_close(*both({k: PLAIN[k] for k in names}, step), rtol=2e-6)


@pytest.mark.parametrize("missing", ["grads", "updates", "params", "moments"])
def test_parts_may_be_missing(missing):
    step = a_step()._replace(**{missing: () if missing == "moments" else None})
    figures = {}
    for name, figure in PLAIN.items():
        try:
            measure({name: figure}, step)
        except ValueError:
            continue
        figures[name] = figure
    assert len(figures) < len(PLAIN)
    chex.assert_trees_all_close(*both(figures, step), rtol=2e-6)


@pytest.mark.parametrize(
    "step",
    [
        a_step([(128, 65)]),
        a_step(dtype="bfloat16"),
        a_step()._replace(grads=[x.astype("bfloat16") for x in a_step().grads]),
    ],
    ids=["large", "bfloat16", "mixed"],
)
def test_others_go_through_xla(step):
    assert count_calls(lambda step: measure(PLAIN, step), step) == 0


def test_quantiles_and_figures_of_ones_own_go_through_xla():
    step = a_step()
    for figure in (
        FIGURES["effective_step_quantiles"],
        PLAIN["gradient_norm"]._replace(sums=lambda leaf: (jnp.abs(leaf.grad),)),
    ):
        given = {"norm": PLAIN["param_norm"], "own": figure}
        assert count_calls(lambda step, given=given: measure(given, step), step) == 0


def test_a_recorded_step_of_small_leaves_is_taken_once():
    tx, x = record(adam_jax.adam(1e-3)), jnp.ones((64, 64))
    update = jax.jit(tx.update)

    def loops(x):
        text = update.lower(x, tx.init(x), x).compile().as_text()
        return text.count(f"f32[{x.shape[0]},{x.shape[1]}]{{1,0}} sqrt")

    # One loop writes the update, another the moments' ratio in XLA's own sums.
    assert loops(x) == 1 < loops(jnp.ones((128, 65)))


FOUR = jnp.ones(4)
WRONG = {
    "a part is F32.3., expected F32 of 4": ({"grad": FOUR, "mu": FOUR[:3]}, 1),
    "a part is S32.4., expected F32 of 4": ({"grad": FOUR.astype(int)}, 1),
    "the sums are F32.1. with 2 factors": ({"grad": FOUR}, 2),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_operands_are_errors(message):
    parts, factors = WRONG[message]
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        calls.sum_leaf(
            parts, jnp.float32(1), ["nonfinite"], jnp.ones(factors)
        ).block_until_ready()
