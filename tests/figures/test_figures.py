"""Each figure against NumPy in float64, on hand-made trees."""

import copy
import functools

import figure_oracle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adam_jax import (
    FIGURES,
    QUANTILES,
    Figure,
    Leaf,
    MomentsState,
    Step,
    measure,
    precondition,
    scale_by_moments,
    step_bound,
)
from adam_jax.figures.definitions import mean, quantiles
from adam_jax.figures.leaves import MissingError

LR, BOUND = 2.0**-7, 2.5
SHAPES = {
    "3d": (2, 3, 5),
    "empty": (0, 4),
    "long": (2500,),  # two rows and a half
    "matrix": (3, 7),
    "prime": (4099,),  # has no divisor to cut it by
    "scalar": (),
    "thin": (5, 1),
    "vector": (6,),
    "wide": (2, 3000),  # a last axis beyond a row
}


def moments_of(count, mu, nu, mu_weight, nu_weight):
    """Return moments, and the weights that they have seen, as a state holds them."""
    weights = [[w, jnp.zeros_like(w)] for w in (mu_weight, nu_weight)]
    return MomentsState(count, mu, nu, jnp.array(weights))


def tree(seed, shapes, dtype):
    """Normal values over two decades, zeros among them; a None leaf is no leaf."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        x = rng.normal(size=shape) * 10 ** rng.uniform(-2, 0, shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        return jnp.asarray(np.where(rng.random(shape) < 0.1, 0, x), dtype)

    return {name: draw(shape) for name, shape in shapes.items()} | {"none": None}


def hand_made(dtype, shapes, weights=(0.19, 0.002)):
    """One step, as a `Step` and as what the oracle reads."""
    wide = jnp.promote_types(dtype, jnp.float32)
    grads, params = tree(0, shapes, dtype), tree(1, shapes, dtype)
    # From far below the last bit of the parameters to a few learning rates.
    updates = jax.tree.map(
        lambda u: (u * abs(u) * 4 * LR).astype(dtype), tree(2, shapes, dtype)
    )
    mu = tree(3, shapes, wide)
    nu = jax.tree.map(lambda x: 0.1 * jnp.abs(x) ** 2, tree(4, shapes, wide))
    weights = [jnp.asarray(w, jnp.finfo(wide).dtype) for w in weights]
    moments = moments_of(jnp.int32(3), mu, nu, *weights)
    step = Step(grads, [moments], updates, params, LR, BOUND)
    leaves = [
        dict(
            zip(
                ("grad", "param", "update", "mu", "nu"), map(np.asarray, x), strict=True
            )
        )
        | {"mu_weight": float(weights[0]), "nu_weight": float(weights[1])}
        for x in zip(
            *map(jax.tree.leaves, (grads, params, updates, mu, nu)), strict=True
        )
    ]
    return step, leaves


def check_octave(actual, expected):
    """Assert that quantiles lie in the octave of the order statistic."""
    expected = np.asarray(expected)
    np.testing.assert_array_equal(actual == 0, expected == 0)
    off = np.log2(np.where(expected > 0, actual / np.maximum(expected, 1e-30), 1))
    # A bin is an octave wide; 1e-5 for exp2 in float32.
    assert np.abs(off).max() <= 1 + 1e-5, off


def check(measured, step_leaves, eps, names=FIGURES):
    """Assert that figures are the oracle's, of each leaf and of the tree."""
    total, leaves = figure_oracle.figures(step_leaves, LR, BOUND)
    assert measured.keys() == names.keys()
    # Sums of non-negative terms: in a row of n <= 2048 each addition errs by eps / 2
    # of the sum at most, and so do the few roundings of a term, of the tree of rows.
    rtol = eps / 2 * (2048 + 64)
    for name, (of_tree, of_leaves) in measured.items():
        assert len(of_leaves) == len(leaves)
        for actual, expected in zip(
            (of_tree, *of_leaves), (total, *leaves), strict=True
        ):
            if name.endswith("_quantiles"):
                check_octave(actual, expected[name])
            elif name in ("nonfinite",):
                assert actual == expected[name]
            else:
                np.testing.assert_allclose(
                    actual, expected[name], rtol=rtol, err_msg=name
                )


@functools.partial(jax.jit, static_argnums=0)
def measured(names, step):
    return measure({name: FIGURES[name] for name in names}, step)


ALL = tuple(FIGURES)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "complex64", "float64"]
)
def test_every_figure_is_the_oracle_s(dtype):
    """Per leaf and in all; of every shape in float32, of fewer elsewhere."""
    shapes = SHAPES
    if dtype != "float32":
        shapes = {k: SHAPES[k] for k in ("empty", "long", "matrix", "scalar")}
    with jax.enable_x64(dtype == "float64"):
        step, leaves = hand_made(jnp.dtype(dtype), shapes)
        names = [x for x in ALL if dtype in ("float32", "float64") or "quant" not in x]
        result = jax.tree.map(np.asarray, measured(tuple(names), step))
        expected = "float64" if dtype == "float64" else "float32"
        assert {x.dtype for x in jax.tree.leaves(result)} == {np.dtype(expected)}
    swallowed = [float(x) for x in result["swallowed"].leaves]
    if dtype not in ("float64", "complex64"):
        assert any(0 < x < 1 for x in swallowed)  # both kinds are among them
    assert 0 < result["at_step_bound"].total < 1
    check(result, leaves, np.finfo(expected).eps, dict.fromkeys(names))


def test_eager_is_jitted():
    step, leaves = hand_made(jnp.dtype("bfloat16"), {"matrix": (3, 7)})
    names = ("update_ratio", "swallowed")
    some = {name: FIGURES[name] for name in names}
    check(measure(some, step), leaves, 2**-23, some)


def test_what_is_not_finite():
    """Counted by leaf; the sums show it, counts of the other figures stay finite."""
    grads = {
        "a": jnp.array([1.0, jnp.nan, -jnp.inf, jnp.inf]),
        "b": jnp.ones((2, 2)),
        "c": jnp.array(jnp.nan, "bfloat16"),
        "d": jnp.array([1 + 1j * jnp.inf, 1j]),
    }
    result = measured(ALL[:1] + ALL[-1:], Step(grads=grads))
    assert ALL[-1] == "nonfinite"
    np.testing.assert_array_equal(result["nonfinite"].leaves, [3, 0, 1, 1])
    assert result["nonfinite"].total == 5
    norms = result["gradient_norm"].leaves
    np.testing.assert_array_equal(np.isfinite(norms), [False, True, False, False])
    assert norms[1] == 2


def test_of_nothing_there_is_zero():
    """An empty tree, empty leaves, zero params, a zero rate, moments never fed."""
    zeros = {"a": jnp.zeros((0, 3)), "b": jnp.zeros(3)}
    moments = moments_of(jnp.int32(0), zeros, zeros, jnp.float32(0), jnp.float32(0))
    step = Step(zeros, [moments], zeros, zeros, 0.0)
    for leaf in jax.tree.leaves(measured(ALL, step)):
        np.testing.assert_array_equal(leaf, 0)
    # With a rate of 0 at the end of a schedule, updates are not: decay, or a stage.
    moving = step._replace(updates={"a": zeros["a"], "b": jnp.ones(3)})
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(measured(ALL, moving)))
    nothing = Step({}, [moments._replace(mu={}, nu={})], {}, {}, 1.0)
    for name, (total, leaves) in measured(ALL, nothing).items():
        assert total.shape == leaves.shape[1:] and len(leaves) == 0, name
        assert (total == 0).all()


def test_a_moment_before_its_first_step_is_no_nan():
    """Yogi and RMSProp start above 0, with a weight of 0: a skipped first step."""
    start = {"a": jnp.full(3, 1e-6)}
    moments = moments_of(jnp.int32(0), start, start, jnp.float32(0), jnp.float32(0))
    names = [name for name in ALL if "signal" in name or "bias" in name]
    for leaf in jax.tree.leaves(measured(tuple(names), Step(moments=[moments]))):
        np.testing.assert_array_equal(leaf, 0)


def test_figures_of_one_value_are_known():
    """All ratios 1: the quantiles divide the octave around it log-linearly."""
    ones = {"a": jnp.ones(100), "b": jnp.ones((10, 10))}
    moments = moments_of(jnp.int32(1), ones, ones, jnp.float32(1), jnp.float32(1))
    result = measured(ALL, Step(ones, [moments], ones, ones, 1.0, bound=1.0))
    expected = [2 ** (q - 0.5) for q in QUANTILES.values()]
    for name in ("effective_step_quantiles", "signal_to_noise_quantiles"):
        for row in (result[name].total, *result[name].leaves):
            np.testing.assert_allclose(row, expected, rtol=1e-6)
    for name in ("effective_step", "at_step_bound", "signal_to_noise"):
        assert result[name].total == 1
    assert result["gradient_norm"].total == pytest.approx(200**0.5, rel=1e-6)


def test_the_bound_is_met_within_one_percent():
    updates = {"a": jnp.array([2.0, -1.99, 1.97, 3.0]) * 2.5}
    step = Step(updates=updates, learning_rate=2.5, bound=2.0)
    assert measured(("at_step_bound",), step)["at_step_bound"].total == 0.75


@functools.partial(jax.jit, static_argnums=1)
def quantiles_of(x, side=1):
    figure = quantiles(lambda leaf: leaf.update)
    return measure({"q": figure}, Step(updates={"a": x}))["q"].total


def test_quantiles_are_of_the_positive_values():
    """Close to np.quantile of a smooth distribution, whatever is 0 or NaN."""
    rng = np.random.default_rng(0)
    x = np.exp2(rng.normal(-3, 1.5, 4000)).astype(np.float32)
    exact = np.quantile(x.astype(np.float64), list(QUANTILES.values()))
    padded = np.concatenate([x, np.zeros(500), np.full(10, np.nan)])
    for values in (x, padded):
        off = np.log2(np.asarray(quantiles_of(values)) / exact)
        assert np.abs(off).max() < 0.2  # an octave at most; of a smooth density less


def test_quantiles_of_a_log_uniform_value_are_exact():
    """There the interpolation is the truth, but for the grain of 12,000 values."""
    octaves = -9.5 + 12 * (np.arange(12_000) + 0.5) / 12_000
    expected = np.exp2(-9.5 + 12 * np.array(list(QUANTILES.values())))
    actual = quantiles_of(np.exp2(octaves).astype(np.float32))
    # One value of 12,000 is 1/1000 of an octave, a factor of 1.0007.
    np.testing.assert_allclose(actual, expected, rtol=7e-4)


@pytest.mark.parametrize("value", [1e-9, 2**-9.6, 2**2.4, 2**2.6, 1e9, np.inf])
def test_quantiles_stay_within_the_histogram(value):
    actual = quantiles_of(np.full(7, value, np.float32))
    nearest = np.clip(value, figure_oracle.LEAST, figure_oracle.LARGEST)
    check_octave(np.asarray(actual), np.full(5, nearest))
    if value not in (2**2.4,):  # outside it is the edge itself
        np.testing.assert_allclose(actual, nearest, rtol=1e-6)


def test_quantiles_of_two_heaps_jump():
    """The lower heap up to its share, the upper one, beyond the histogram, above."""
    actual = quantiles_of(np.array([1.0] * 50 + [100.0] * 50, np.float32))
    assert 2**-0.5 <= actual[0] <= actual[1] <= 2**0.5
    np.testing.assert_allclose(actual[2:], 2**2.5, rtol=1e-6)


@pytest.mark.parametrize("shape", [(10**6,), (1, 10**6), (1000, 1000), (10**6, 1)])
def test_a_million_equal_numbers_add_up(shape):
    x = np.full(shape, 0.1, np.float32)
    exact = np.sqrt(x.size * np.float64(x.flat[0]) ** 2)
    step = Step(grads=x, updates=x, params=x)  # several sums share a pass
    result = measured(("gradient_norm", "update_norm", "param_norm"), step)
    for name in result:
        # 2048 additions in order err by 2^-24 each, a root halves it; 64 for the rest.
        np.testing.assert_allclose(
            result[name].total, exact, rtol=(2048 + 64) * 2**-25, err_msg=name
        )


@pytest.mark.parametrize("shape", [(2**25,), (1, 2**25)])
def test_counts_and_sums_go_beyond_2_24(shape):
    """Where a float32 that grows by one stands still. Every partial sum is exact."""
    figures = {
        "count": Figure(lambda leaf: (leaf.grad > 0,), lambda sums, leaf: sums[0]),
        "sum": Figure(
            lambda leaf: (leaf.grad, 2 * leaf.grad), lambda sums, leaf: sums.sum()
        ),
    }
    grads = {"a": jnp.ones(shape, "bfloat16"), "b": jnp.ones(4)}
    result = jax.jit(lambda g: measure(figures, Step(grads=g)))(grads)
    np.testing.assert_array_equal(result["count"].leaves, [2**25, 4])
    np.testing.assert_array_equal(result["count"].total, 2**25 + 4)
    np.testing.assert_array_equal(result["sum"].leaves, [3 * 2**25, 12])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_swallowed_is_what_apply_updates_loses(dtype):
    """Under jit too, where XLA would rather not round a bfloat16 in between."""
    info = jnp.finfo(dtype)
    ulp = float(info.eps)
    # Above 1 a half goes to even, down; what exceeds it goes up. 0 is no update.
    sizes = np.array([ulp / 4, ulp / 2, ulp * 0.75, ulp, 0.0, -ulp / 8, -ulp], "f")
    params = jnp.ones(7, dtype)
    for updates in (jnp.asarray(sizes), jnp.asarray(sizes, dtype)):
        step = Step(params=params, updates=updates)
        eager = measure({"swallowed": FIGURES["swallowed"]}, step)["swallowed"]
        jitted = measured(("swallowed",), step)["swallowed"]
        assert eager.total == jitted.total == np.float32(3 / 6)
    # And where the optimizer's own rounding is in the same computation.
    rounded = jax.jit(
        lambda p, u: measure(
            {"swallowed": FIGURES["swallowed"]}, Step(params=p, updates=u.astype(dtype))
        )
    )(params, jnp.full(7, ulp / 2 * (1 + 2**-12), "float32"))
    assert rounded["swallowed"].total == 1


def test_two_optimizers_share_a_tree():
    """The moments of each leaf are its own, and their weight; without, 0."""
    a, b, c = jnp.full(2, 0.5), jnp.full(3, 0.25), jnp.ones(4)
    first = moments_of(1, {"a": a}, {"a": a**2}, jnp.float32(0.5), jnp.float32(0.25))
    second = moments_of(1, {"b": b}, {"b": b}, jnp.float32(0.1), jnp.float32(0.01))
    names = ("signal_to_noise", "bias_correction_mu", "bias_correction_nu")
    grads = {"a": a, "b": b, "c": c}
    result = measured(names, Step(grads=grads, moments=[first, second]))
    # b: (0.25 / 0.1) / sqrt(0.25 / 0.01) = 0.5.
    np.testing.assert_allclose(result["signal_to_noise"].leaves, [1, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(
        result["signal_to_noise"].total, (2 + 3 * 0.5) / 5, rtol=1e-6
    )
    np.testing.assert_allclose(result["bias_correction_mu"].leaves, [2, 10, 1])
    np.testing.assert_allclose(result["bias_correction_nu"].leaves, [4, 100, 1])
    # Of the whole tree it is that of the first optimizer that keeps the moment.
    lion = first._replace(nu=None, weights=first.weights.at[1, 0].set(1))
    result = measured(names[1:], Step(grads=grads, moments=[lion, second]))
    assert result["bias_correction_mu"].total == 2
    np.testing.assert_allclose(result["bias_correction_nu"].total, 100, rtol=1e-6)


def test_a_figure_of_one_s_own():
    """Booleans are counted, floats added; it is read with the size of the leaf."""
    largest = Figure(
        lambda leaf: (leaf.grad > 1, leaf.grad), lambda sums, leaf: sums[1] / leaf.size
    )
    share = Figure(lambda leaf: (leaf.grad > 1,), mean)
    grads = {"a": jnp.array([1.0, 2.0, 3.0]), "b": jnp.array([[5.0]])}
    result = measure({"mean": largest, "share": share}, Step(grads=grads))
    np.testing.assert_allclose(result["mean"].leaves, [2, 5])
    np.testing.assert_allclose(result["mean"].total, 11 / 4)
    np.testing.assert_allclose(result["share"].leaves, [2 / 3, 1])
    np.testing.assert_allclose(result["share"].total, 3 / 4)
    assert measure({}, Step(grads=grads)) == {} == measure({}, Step())


@pytest.mark.parametrize(
    ("name", "lacking", "message"),
    [
        ("gradient_norm", "grads", "a figure needs the gradients: wrap the optimizer"),
        ("nonfinite", "grads", "a figure needs the gradients"),
        ("param_norm", "params", r"the parameters: call tx.update\(grads, state, par"),
        ("update_ratio", "params", "the parameters: call"),
        ("swallowed", "params", "the parameters: call"),
        ("effective_step", "learning_rate", r"the learning rate: give it to record\("),
        ("at_step_bound", "learning_rate", "the learning rate"),
        ("effective_step_quantiles", "learning_rate", "the learning rate"),
        ("signal_to_noise", "moments", "first moment, and this optimizer keeps none"),
        ("bias_correction_mu", "moments", "a first moment, and this"),
        ("bias_correction_nu", "moments", "a second moment, and this"),
        ("update_norm", "updates", "a figure needs the updates: wrap the optimizer"),
    ],
)
def test_what_a_figure_needs(name, lacking, message):
    step, _ = hand_made(jnp.dtype("float32"), {"vector": (6,)})
    without = step._replace(**{lacking: () if lacking == "moments" else None})
    figure = {name: FIGURES[name]}
    with pytest.raises(MissingError, match=message):
        measure(figure, without)
    # Of an empty tree as of another: which figures there are is the optimizer's affair.
    moments = [m._replace(mu={}, nu={}) for m in without.moments]
    empty = without._replace(moments=moments)
    for part in ("grads", "updates", "params"):
        if getattr(without, part):
            empty = empty._replace(**{part: {}})
    with pytest.raises(ValueError, match=message):
        measure(figure, empty)
    jax.eval_shape(lambda step: measure(figure, step), step)  # nothing else is lacking


def test_a_figure_that_asks_for_what_no_leaf_has():
    leaf = Leaf(grad=jnp.ones(2))
    assert copy.copy(leaf).grad is leaf.grad
    with pytest.raises(AttributeError, match=r"no 'gradient': choose from .*grad"):
        leaf.gradient.sum()


def test_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        step, _ = hand_made(jnp.dtype("float32"), {"vector": (6,)})
        jax.eval_shape(lambda step: measure(FIGURES, step), step)


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 1.0), (2.0, 0.9), (0.9, -3)])
def test_step_bound_of_no_decay_rates(b1, b2):
    with pytest.raises(ValueError, match="must be a decay rate in"):
        step_bound(b1, b2)


@pytest.mark.parametrize("b1", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("b2", [0.0, 0.81, 0.9, 0.99, 0.999])
def test_step_bound(b1, b2):
    """The larger one of two steps: after many zeros, and of steady gradients."""
    tx = optax.chain(scale_by_moments(b1, b2), precondition(eps=0.0))
    silent = steady = tx.init(jnp.zeros([]))
    alone, _ = tx.update(jnp.ones([]), silent)
    steady = steady[0]._replace(mu=jnp.ones([]), nu=jnp.ones([])), steady[1]
    always, _ = tx.update(jnp.ones([]), steady)
    np.testing.assert_allclose(step_bound(b1, b2), max(alone, always), rtol=1e-5)


def passes(figures, step, platform):
    """Return how many reductions read a whole leaf of 300 rows."""
    jitted = jax.jit(lambda step: measure(figures, step))
    text = jitted.trace(step).lower(lowering_platforms=(platform,)).as_text()
    return sum(".reduce(" in x and "<300x" in x for x in text.splitlines())


@pytest.mark.parametrize(
    ("platform", "columns", "count"),
    [("cpu", 300, 2), ("cpu", 64, 1), ("cuda", 300, 1), ("cuda", 64, 1)],
)
def test_every_figure_takes_one_pass(platform, columns, count):
    """Over a leaf; on CPU counts take another if there are many of them."""
    step, _ = hand_made(jnp.dtype("float32"), {"matrix": (300, columns)})
    assert passes(FIGURES, step._replace(bound=1.0), platform) == count


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (("gradient_norm",), 1),
        (("gradient_norm", "update_norm", "param_norm", "update_ratio"), 3),
        (("effective_step", "effective_step_quantiles"), 15),
    ],
)
def test_figures_share_their_sums(names, count):
    step, _ = hand_made(jnp.dtype("float32"), {"matrix": (300, 8)})
    some = {name: FIGURES[name] for name in names}
    assert passes(some, step, "tpu") == count  # a reduction for each
