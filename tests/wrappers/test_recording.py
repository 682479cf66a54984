"""record() in every place where an optimizer may stand, and what it writes down."""

import functools
import re
from typing import Any, NamedTuple

import chex
import figure_oracle
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import (
    FIGURES,
    Figure,
    first_nonfinite,
    named_figures,
    record,
)
from adam_jax.wrappers.recording import RecordState

PARAMS = {"b": jnp.zeros(2), "w": jnp.linspace(-1, 1, 6).reshape(3, 2)}
GRADS = jax.tree.map(lambda p: jnp.cos(3 * p) + 0.1, PARAMS)
FEW = ["update_norm", "nonfinite"]


def recorded(state):
    """Return the one RecordState in a state."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, RecordState))
    (node,) = [node for node in nodes if isinstance(node, RecordState)]
    return node


def equal(actual, expected):
    """Assert that two trees are the same, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def norm(tree):
    """Return the L2 norm of all leaves, in float64."""
    squares = [np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree)]
    return np.sqrt(np.sum(squares))


@functools.partial(jax.jit, static_argnums=0)
def train(tx, params, batches):
    """Fit a line: return params, grads and updates of every step, and the state."""

    def step(carry, batch):
        params, state = carry
        x, y = batch

        def loss(params):
            return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        after = optax.apply_updates(params, updates)
        return (after, state), (params, grads, updates)

    (_, state), past = jax.lax.scan(step, (params, tx.init(params)), batches)
    return past, state


def batches(steps=50):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, 8, 3))
    y = x @ rng.normal(size=(3, 2)) + 0.3 * rng.normal(size=(steps, 8, 2))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def average(gradients, decay, power):
    """Return the exponential average of all steps, in float64."""
    m = 0.0
    for g in np.asarray(gradients, np.float64) ** power:
        m = decay * m + (1 - decay) * g
    return m


ADAMS = {"b1": 0.9, "b2": 0.999}
EIGHT_BIT = adam_jax.eight_bit(min_size=0)
RUNS = {
    "adam": (adam_jax.adam, ADAMS),
    "adamw": (functools.partial(adam_jax.adamw, weight_decay=0.1), ADAMS),
    "nadam": (adam_jax.nadam, ADAMS),
    "amsgrad": (adam_jax.amsgrad, ADAMS),
    "sgd": (adam_jax.sgd, {}),
    "momentum": (functools.partial(adam_jax.sgd, momentum=0.9), {}),
    "lion": (adam_jax.lion, {"b1": 0.99}),  # what is kept decays at its b2
    "rmsprop": (adam_jax.rmsprop, {"b2": 0.9}),
    "bfloat16": (
        functools.partial(adam_jax.adam, mu_dtype="bfloat16", nu_dtype="bfloat16"),
        ADAMS,
    ),
    "8bit": (
        functools.partial(adam_jax.adam, mu_dtype=EIGHT_BIT, nu_dtype=EIGHT_BIT),
        ADAMS,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_s_last_figures_follow_from_its_trajectory(name):
    make, decays = RUNS[name]
    lr, steps = 1e-2, 50
    tx = record(make(lr), learning_rate=lr)
    past, state = train(tx, PARAMS, batches(steps))
    params, grads, updates = jax.tree.map(lambda x: np.asarray(x[-1]), past)
    leaves = [
        {"grad": grads[k], "update": updates[k], "param": params[k]} for k in params
    ]
    for leaf, key in zip(leaves, params, strict=True):
        for moment, decay, power in (("mu", "b1", 1), ("nu", "b2", 2)):
            if decay in decays:
                leaf[moment] = average(past[1][key], decays[decay], power)
                leaf[f"{moment}_weight"] = 1 - decays[decay] ** steps
        if name == "lion":  # reads another average, which nothing corrects
            leaf["mu_weight"] = 1.0
    if name in ("bfloat16", "8bit"):  # rounded by chance: take what is stored
        for leaf, *stored in zip(
            leaves, *map(jax.tree.leaves, adam_jax.load_moments(state)), strict=True
        ):
            leaf |= dict(zip(("mu", "nu"), map(np.asarray, stored), strict=True))
    total, each = figure_oracle.figures(leaves, lr, adam_jax.step_bound(0.9, 0.999))
    expected = {k for k in total if not k.endswith("_quantiles")}
    assert recorded(state).figures.keys() == expected
    for figure, (of_tree, of_leaves) in recorded(state).figures.items():
        want = [total[figure], *(leaf[figure] for leaf in each)]
        # Six terms, a few roundings of 6e-8 each; a float32 moment has erred by
        # 2^-24 max|g| / (1 - b1), 10 here, beside a root of at least max|g| / 50**.5.
        np.testing.assert_allclose(
            [of_tree, *of_leaves], want, rtol=1e-5, atol=1e-5, err_msg=figure
        )
    assert recorded(state).count == steps


@functools.partial(jax.jit, static_argnums=0)
def scan(tx, grads, params):
    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), (updates, state)

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw", "amsgrad", "lion"])
def test_record_changes_nothing(name):
    """Updates and inner state bit for bit; between multiples the figures stay.

    But for one rounding of lion's mu, where XLA contracts a multiplication and an
    addition in one program and not in the other.
    """
    make = adam_jax.OPTIMIZERS[name]
    rng = np.random.default_rng(0)
    grads = jnp.asarray(rng.normal(size=(7, 40)) * 10 ** rng.normal(size=40), "f")
    tx = make(1e-2)
    updates, states = scan(tx, grads, jnp.ones(40))
    norms = ["gradient_norm", "update_norm"]
    for every, names in ((1, None if name == "adamw" else norms), (3, norms)):
        ours, state = scan(record(tx, names, every=every), grads, jnp.ones(40))
        equal(ours, updates)
        if name == "lion":
            mu, want = (optax.tree.get(x, "mu") for x in (state.inner_state, states))
            np.testing.assert_allclose(mu, want, rtol=0, atol=2**-23 * abs(want).max())
        else:
            equal(state.inner_state, states)
        np.testing.assert_array_equal(state.count, np.arange(1, 8))
        last = [max(t // every * every, 0) for t in range(1, 8)]
        want = [norm(updates[t - 1]) if t else 0.0 for t in last]
        # 40 additions, 2^-24 each.
        measured = state.figures["update_norm"].total
        np.testing.assert_allclose(measured, want, rtol=40 * 2**-24)
        want = [norm(grads[t - 1]) if t else 0.0 for t in last]
        measured = state.figures["gradient_norm"].leaves[:, 0]
        np.testing.assert_allclose(measured, want, rtol=40 * 2**-24)


@pytest.mark.parametrize("every", [1, 2])
def test_one_trace_one_type_and_donation(every):
    """A state goes in donated, step after step, of the types of the first."""
    tx = record(adam_jax.adam(1e-2, b1=0.9, b2=0.9), every=every)  # twice the weight
    update = jax.jit(tx.update, donate_argnums=1)
    state = tx.init(PARAMS)
    types = jax.tree.map(jax.typeof, state)
    for _ in range(4):
        old = state
        _, state = update(GRADS, old, PARAMS)
        assert jax.tree.map(jax.typeof, state) == types
        moments = (old.inner_state[0].mu, old.inner_state[0].nu)
        assert all(x.is_deleted() for x in jax.tree.leaves(moments))
    assert update._cache_size() == 1
    assert state.count == 4
    assert jax.tree.map(jax.typeof, jax.jit(tx.init)(PARAMS)) == types


def test_init_takes_abstract_parameters_and_trees_of_oddities():
    tx = record(adam_jax.adam(1e-2), learning_rate=1e-2)
    abstract = jax.eval_shape(lambda: PARAMS)
    types = jax.tree.map(jax.typeof, tx.init(PARAMS))
    assert jax.tree.map(jax.typeof, tx.init(abstract)) == types
    odd = {"a": None, "b": {}, "c": jnp.ones((0, 3)), "d": 1.0, "e": jnp.bfloat16(2)}
    _, state = jax.jit(tx.update)(odd, tx.init(odd), odd)
    flat = named_figures(state, odd)
    assert flat["gradient_norm"] == pytest.approx(5**0.5)
    assert [flat[f"param_norm/{k}"] for k in "cde"] == [0, 1, 2]
    _, state = jax.jit(tx.update)({}, tx.init({}), {})
    assert named_figures(state, {}).keys() == state.figures.keys()


def test_vmap_over_learning_rates():
    def run(rate):
        names = ["effective_step", "update_norm", "nonfinite"]
        tx = record(adam_jax.adam(rate), names, learning_rate=rate, every=2)
        state = tx.init(PARAMS)
        for _ in range(2):
            _, state = tx.update(GRADS, state, PARAMS)
        return state

    rates = jnp.array([1e-3, 1e-2, 0.0])
    states = jax.jit(jax.vmap(run))(rates)
    for i, rate in enumerate(rates):
        alone = named_figures(jax.jit(run)(rate), PARAMS)
        one = named_figures(jax.tree.map(lambda x, i=i: x[i], states), PARAMS)
        # The same operations fused in other ways: a few roundings.
        assert one == pytest.approx(alone, rel=1e-5)
    np.testing.assert_allclose(
        states.figures["effective_step"].total, [1, 1, 0], rtol=1e-5
    )
    for batch in (states, jax.tree.map(lambda x: x[:1], states)):
        with pytest.raises(ValueError, match=r"a batch of states \(vmap\): take one"):
            named_figures(batch, PARAMS)


def test_derivatives_pass():
    """Meta-gradients are those without record(), finite at g = 0."""

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.grad, argnums=0)
    def slope(grads, tx):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return (params + updates, state), None

        params = jnp.zeros(2)
        carry, _ = jax.lax.scan(step, (params, tx.init(params)), length=2)
        return carry[0].sum()

    grads = jnp.array([0.0, 1.0])
    for every in (1, 2):
        tx = record(adam_jax.adam(1e-2), learning_rate=1e-2, every=every)
        ours = slope(grads, tx)
        np.testing.assert_allclose(ours, slope(grads, adam_jax.adam(1e-2)), rtol=1e-5)
        assert jnp.isfinite(ours).all()


def steps(tx, number=1, grads=GRADS, params=PARAMS, **extra):
    """Return the updates of the last of some jitted steps, and the state."""
    update = jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(number):
        updates, state = update(grads, state, params, **extra)
    return updates, state


def names_of(state):
    return set(recorded(state).figures)


ADAM = adam_jax.adam(1e-2)


def test_around_and_inside_a_mask():
    mask = {"b": False, "w": True}
    poison = GRADS | {"w": GRADS["w"].at[0, 0].set(jnp.nan)}
    around = record(optax.masked(ADAM, mask))
    _, state = steps(around, grads=poison)
    assert first_nonfinite(state, PARAMS) == "w"
    _, state = steps(around)
    flat = named_figures(state, PARAMS)
    # The masked leaf's update is its gradient; it has no moments.
    assert flat["update_norm/b"] == pytest.approx(norm(GRADS["b"]))
    assert (flat["signal_to_noise/b"], flat["bias_correction_mu/b"]) == (0, 1)
    assert flat["signal_to_noise"] == flat["signal_to_noise/w"] == pytest.approx(1)
    assert flat["bias_correction_mu"] == flat["bias_correction_mu/w"]

    inside = optax.masked(record(ADAM), mask)
    updates, state = steps(inside, grads=poison)
    equal(updates["b"], GRADS["b"])
    seen = {"b": optax.MaskedNode(), "w": PARAMS["w"]}
    assert first_nonfinite(state, seen) == "w"
    flat = named_figures(state, seen)
    assert flat["nonfinite"] == flat["nonfinite/w"] == 1
    assert "nonfinite/b" not in flat
    for look in (named_figures, first_nonfinite):  # else "b" would be blamed
        with pytest.raises(ValueError, match=r"saw 1 leaves, these parameters have 2"):
            look(state, PARAMS)


@pytest.mark.parametrize("compose", [optax.multi_transform, optax.partition])
def test_around_and_inside_a_partition(compose):
    labels = {"b": "slow", "w": "fast"}
    parts = {
        "slow": adam_jax.adam(1e-2, b1=0.99),
        "fast": adam_jax.adam(1e-2, b1=0.5),
    }
    _, state = steps(record(compose(parts, labels)), 2)
    flat = named_figures(state, PARAMS)
    np.testing.assert_allclose(
        [flat["bias_correction_mu/b"], flat["bias_correction_mu/w"]],
        [1 / (1 - 0.99**2), 1 / (1 - 0.5**2)],
        rtol=1e-6,
    )
    assert flat["signal_to_noise/b"] == pytest.approx(1, abs=1e-5)
    parts = {"slow": record(ADAM, FEW), "fast": ADAM}
    updates, state = steps(compose(parts, labels))
    flat = named_figures(state, {"b": PARAMS["b"]})
    assert flat["update_norm"] == pytest.approx(norm(updates["b"]))
    both = compose({"slow": record(ADAM), "fast": record(ADAM)}, labels)
    with pytest.raises(ValueError, match=r"expected one RecordState .* found 2"):
        named_figures(both.init(PARAMS), PARAMS)


def test_around_and_inside_multi_steps():
    """A schedule is read at the count of the moments, not of the micro-steps."""

    def rate(count):
        return 0.1 / (1.0 + count)

    tx = adam_jax.adam(rate)
    multi = optax.MultiSteps(tx, 2)
    names = ["effective_step", "update_norm", "signal_to_noise", "bias_correction_mu"]
    around = record(multi.gradient_transformation(), names, learning_rate=rate)
    _, state = steps(around)
    flat = named_figures(state, PARAMS)  # nothing has moved, no moment been fed
    assert flat["effective_step"] == flat["update_norm"] == 0
    assert flat["bias_correction_mu"] == flat["signal_to_noise"] == 0
    assert np.isfinite(list(flat.values())).all()
    _, state = steps(around, 6)  # the third step, of equal gradients: 1 learning rate
    flat = named_figures(state, PARAMS)
    assert flat["effective_step"] == pytest.approx(1, rel=1e-5)
    assert flat["bias_correction_mu"] == pytest.approx(1 / (1 - 0.9**3))

    inside = optax.MultiSteps(record(tx, names[:1], learning_rate=rate), 2)
    for number, taken in ((1, 0), (2, 1), (5, 2)):
        _, state = steps(inside.gradient_transformation(), number)
        assert recorded(state).count == taken
        step = named_figures(state, PARAMS)["effective_step"]
        assert step == pytest.approx(1 if taken else 0, rel=1e-5)


def cosine(count):
    return jnp.where(count >= 2, 0.0, 0.1 * (1 - count / 2))


@pytest.mark.parametrize(
    ("make", "rate"),
    [(adam_jax.adam, cosine), (adam_jax.sgd, cosine)]
    + [(adam_jax.adam, x) for x in (0.05, np.float32(0.05), 0, lambda count: 0.05)]
    + [(adam_jax.adam, lambda count: jnp.bfloat16(0.05))],
)
def test_learning_rates_of_every_kind(make, rate):
    """A float, an array, a schedule; at rate 0 a step is 0, not NaN."""
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    tx = record(make(rate), ["effective_step"], learning_rate=rate)
    for number in (1, 2, 3):
        _, state = steps(tx, number, grads=ones)
        step = named_figures(state, PARAMS)["effective_step"]
        zero = rate == 0 or (rate is cosine and number == 3)
        assert step == pytest.approx(0 if zero else 1, rel=1e-5)


def test_a_rate_under_x64_is_float64():
    with jax.enable_x64(True):
        params = jnp.ones(3, "float64")
        rate = lambda count: jnp.asarray(0.1, "float64") / (count + 1)  # noqa: E731
        tx = record(adam_jax.sgd(rate), learning_rate=rate)
        _, state = tx.update(params, tx.init(params), params)
        total = state.figures["effective_step"].total
        assert total.dtype == "float64" and abs(total - 1) < 1e-15


def test_with_a_guard_inside_and_outside():
    def rate(count):
        return 0.1 / (1.0 + count)

    bad = jax.tree.map(lambda g: g * jnp.nan, GRADS)
    tx = adam_jax.adam(rate)
    names = ["nonfinite", "update_norm", "effective_step"]
    names += ["bias_correction_mu", "signal_to_noise"]
    around = record(adam_jax.skip_nonfinite(tx), names, learning_rate=rate)
    update = jax.jit(around.update)
    state = around.init(PARAMS)
    _, state = update(bad, state, PARAMS)
    flat = named_figures(state, PARAMS)
    # The first step was skipped: its figures are of nothing, but for the gradient.
    assert first_nonfinite(state, PARAMS) == "b" and flat["nonfinite"] == 8
    assert flat["update_norm"] == flat["bias_correction_mu"] == 0
    assert flat["signal_to_noise"] == flat["effective_step"] == 0
    for _ in range(2):
        _, state = update(GRADS, state, PARAMS)
    _, state = update(bad, state, PARAMS)
    _, state = update(GRADS, state, PARAMS)
    flat = named_figures(state, PARAMS)
    assert first_nonfinite(state, PARAMS) is None
    assert flat["effective_step"] == pytest.approx(1, rel=1e-5)  # rate(2), not rate(4)
    assert flat["bias_correction_mu"] == pytest.approx(1 / (1 - 0.9**3))

    inside = adam_jax.skip_nonfinite(record(tx, FEW))
    update = jax.jit(inside.update)
    _, good = update(GRADS, inside.init(PARAMS), PARAMS)
    updates, state = update(bad, good, PARAMS)
    equal(state.inner_state, good.inner_state)  # a skipped step leaves no figures
    assert norm(updates) == 0 and state.skipped == 1


@pytest.mark.parametrize("wrap", [adam_jax.round_to_params, adam_jax.compensate_params])
def test_with_bfloat16_parameters(wrap):
    """Plain, small updates are lost; these wrappers lose none that they emit."""
    params = jax.tree.map(lambda p: (p + 2).astype("bfloat16"), PARAMS)
    grads = jax.tree.map(lambda g: g.astype("bfloat16"), GRADS)
    tx, names = adam_jax.adam(1e-4), ["swallowed", "nonfinite", "signal_to_noise"]
    _, state = steps(record(tx, names), 3, grads, params)
    assert named_figures(state, params)["swallowed"] == 1
    for both in (record(wrap(tx), names), wrap(record(tx, names))):
        plain, _ = steps(wrap(tx), 3, grads, params)
        updates, state = steps(both, 3, grads, params)
        equal(updates, plain)
        flat = named_figures(state, params)
        assert flat["swallowed"] == 0 and flat["nonfinite"] == 0
        assert flat["signal_to_noise"] == pytest.approx(1, abs=1e-5)


def test_under_inject_hyperparams_and_apply_if_finite():
    @optax.inject_hyperparams
    def make(learning_rate):
        tx = adam_jax.adam(learning_rate)
        return record(tx, ["effective_step"], learning_rate=learning_rate)

    tx = make(learning_rate=1e-2)
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    for rate in (1e-2, 1e-3):
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        _, state = update(GRADS, state, PARAMS)
        step = named_figures(state, PARAMS)["effective_step"]
        assert step == pytest.approx(1, rel=1e-5)
    assert update._cache_size() == 1

    around = record(optax.inject_hyperparams(adam_jax.adam)(1e-2), FEW)
    updates, state = steps(around)
    assert named_figures(state, PARAMS)["update_norm"] == pytest.approx(norm(updates))

    tx = optax.apply_if_finite(record(ADAM, FEW), max_consecutive_errors=3)
    updates, state = steps(tx)
    before = recorded(state)
    poison = jax.tree.map(lambda g: g * jnp.inf, GRADS)
    _, state = jax.jit(tx.update)(poison, state, PARAMS)
    equal(recorded(state), before)
    around = record(optax.apply_if_finite(ADAM, max_consecutive_errors=3), FEW)
    _, state = steps(around, grads=poison)
    assert named_figures(state, PARAMS)["update_norm"] == 0
    assert first_nonfinite(state, PARAMS) == "b"


def test_in_chains():
    """Clipping in front: gradients before it. Last in a chain: what arrives."""
    clipped = optax.chain(optax.clip_by_global_norm(0.5), ADAM)
    _, state = steps(record(clipped, ["gradient_norm"]))
    flat = named_figures(state, PARAMS)
    assert flat["gradient_norm"] == pytest.approx(norm(GRADS), rel=1e-6)

    behind = optax.chain(
        optax.clip_by_global_norm(0.5), record(ADAM, ["gradient_norm"])
    )
    _, state = steps(behind)
    assert named_figures(state, PARAMS)["gradient_norm"] == pytest.approx(0.5, rel=1e-6)

    last = optax.chain(ADAM, record(learning_rate=1e-2))
    updates, state = steps(last, 2)
    equal(updates, steps(ADAM, 2)[0])
    flat = named_figures(state, PARAMS)
    assert flat["update_norm"] == pytest.approx(norm(updates), rel=1e-6)
    assert flat["effective_step"] == pytest.approx(1, rel=1e-5)
    assert names_of(state) == {
        "update_norm",
        "param_norm",
        "update_ratio",
        "effective_step",
        "at_step_bound",
        "swallowed",
    }


def test_figures_that_can_be_had():
    """None takes all that there are, but for the quantiles."""
    few = {"gradient_norm", "update_norm", "param_norm", "update_ratio", "swallowed"}
    few |= {"nonfinite"}
    rates = {"effective_step", "at_step_bound"}
    both = {"signal_to_noise", "bias_correction_mu", "bias_correction_nu"}

    def had(tx, **kwargs):
        return names_of(record(tx, **kwargs).init(PARAMS))

    assert had(adam_jax.sgd(1e-2)) == few
    assert had(adam_jax.sgd(1e-2), learning_rate=1e-2) == few | rates
    assert had(ADAM) == few | both
    assert had(adam_jax.lion(1e-2)) == few | {"bias_correction_mu"}
    assert had(adam_jax.rmsprop(1e-2)) == few | {"bias_correction_nu"}
    assert had(optax.adam(1e-2)) == few  # its moments are not ours
    every = record(ADAM, FIGURES, learning_rate=1e-2)
    assert names_of(every.init(PARAMS)) == set(FIGURES)
    assert names_of(record(ADAM, []).init(PARAMS)) == set()
    assert named_figures(steps(record(ADAM, ()))[1], PARAMS) == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: record(ADAM, "update_norm"),
            r"a sequence of names, as in \['update_norm'\], got 'update_norm'",
        ),
        (
            lambda: record(ADAM, ["norm"]),
            "no figure 'norm': choose from gradient_norm,",
        ),
        (lambda: record(ADAM, every=0), "every must be a positive number .*, got 0"),
        (lambda: record(ADAM, every=True), "every must be .*, got True"),
        (lambda: record(ADAM, every=2.0), "every must be .*, got 2.0"),
        (lambda: record(ADAM, learning_rate=-1.0), "learning_rate must be a finite"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("tx", "name", "message"),
    [
        (ADAM, "effective_step", "a figure needs the learning rate: give it to record"),
        (adam_jax.sgd(1.0), "signal_to_noise", "a first moment, and this optimizer"),
        (adam_jax.rmsprop(1.0), "signal_to_noise", "needs a first moment"),
        (adam_jax.lion(1.0), "bias_correction_nu", "needs a second moment"),
        (None, "gradient_norm", r"gradients: wrap the optimizer, as in record\(adam"),
        (None, "nonfinite", "the gradients"),
    ],
)
def test_figures_that_cannot_be_had(tx, name, message):
    with pytest.raises(ValueError, match=message):
        record(tx, [name]).init(PARAMS)
    with pytest.raises(ValueError, match=message):
        record(tx, [name]).init({})


def test_update_without_parameters():
    for names in (None, ["param_norm"], ["swallowed"], ["update_ratio"]):
        tx = record(ADAM, names)
        with pytest.raises(ValueError, match=r"call tx.update\(grads, state, params\)"):
            jax.eval_shape(tx.update, GRADS, tx.init(PARAMS))
    tx = record(ADAM, ["update_norm", "signal_to_noise"])  # which need none
    updates, state = jax.jit(tx.update)(GRADS, tx.init(PARAMS))
    assert state.figures["update_norm"].total == pytest.approx(norm(updates), rel=1e-6)


def test_moments_are_no_updates():
    tx = optax.chain(adam_jax.scale_by_moments(), record(figures=["update_norm"]))
    with pytest.raises(TypeError, match=r"record\(\) takes gradients or updates, got"):
        tx.update(GRADS, tx.init(PARAMS))


def test_extra_arguments_arrive():
    def scale(updates, state, params=None, *, factor, **extra):
        del params, extra
        return jax.tree.map(lambda u: u * factor, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), scale)
    for every in (1, 2):
        tx = record(inner, ["update_norm"], every=every)
        updates, state = steps(tx, 2, factor=3.0, loss=1.0)
        np.testing.assert_allclose(updates["w"], 3 * GRADS["w"], rtol=1e-6)
        assert named_figures(state, PARAMS)["update_norm"] == pytest.approx(
            3 * norm(GRADS), rel=1e-6
        )


def test_a_figure_of_one_s_own():
    largest = Figure(
        lambda leaf: (jnp.abs(leaf.update), leaf.mu > 0),
        lambda sums, leaf: sums[0] / leaf.size + 10 * sums[1],
    )
    updates, state = steps(record(ADAM, {"mine": largest}))
    flat = named_figures(state, PARAMS)
    assert flat.keys() == {"mine", "mine/b", "mine/w"}
    for key, u in updates.items():
        want = float(jnp.abs(u).mean() + 10 * jnp.sum(GRADS[key] > 0))
        assert flat[f"mine/{key}"] == pytest.approx(want, rel=1e-6)


def test_names_of_figures_for_a_logger():
    params = {"a": [jnp.ones(2), jnp.ones(3)], "b": {"c": jnp.ones(())}}
    names = ["update_norm", "effective_step_quantiles"]
    tx = record(ADAM, names, learning_rate=1e-2)
    _, state = steps(tx, grads=params, params=params)
    flat = named_figures((optax.EmptyState(), state), params)
    paths = ["a/0", "a/1", "b/c"]
    quantiles = ["q05", "q25", "q50", "q75", "q95"]
    want = {"update_norm", *(f"update_norm/{p}" for p in paths)}
    for q in quantiles:
        name = f"effective_step_quantiles/{q}"
        want |= {name, *(f"{name}/{p}" for p in paths)}
    assert flat.keys() == want
    assert all(type(x) is float for x in flat.values())
    for i, p in enumerate(paths):
        assert flat[f"update_norm/{p}"] == float(state.figures["update_norm"].leaves[i])
    # Each step is 1: the quantiles divide the octave around it.
    assert flat["effective_step_quantiles/q95/a/1"] == pytest.approx(2**0.45, rel=1e-4)
    assert flat["effective_step_quantiles/q05"] == pytest.approx(2**-0.45, rel=1e-4)
    with pytest.raises(ValueError, match=r"expected one RecordState in .*, found 0"):
        named_figures(ADAM.init(params), params)


class Attention(NamedTuple):
    """Have a parameter that is called `value` itself."""

    query: Any
    value: Any


def named_leaves(params):
    """Give the paths by which figures name the leaves."""
    tx = record(ADAM, ["update_norm", "nonfinite"])
    _, state = tx.update(params, tx.init(params), params)
    assert first_nonfinite(state, jax.tree.map(jnp.zeros_like, params)) is None
    names = named_figures(state, params)
    return [x.removeprefix("update_norm/") for x in names if "update_norm/" in x]


def test_boxes_of_flax_are_no_part_of_a_name():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    for tree in (nnx.state(model, nnx.Param), {"value": nnx.state(model)}):
        before = "value/" if "value" in tree else ""
        assert named_leaves(tree) == [f"{before}bias", f"{before}kernel"]
    split = nn.with_partitioning(nn.initializers.ones, (None, "x"))
    linen = nn.Dense(3, kernel_init=split)
    variables = linen.init(jax.random.key(0), jnp.ones((1, 2)))
    assert named_leaves(variables) == ["params/bias", "params/kernel"]


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"value": jnp.ones(2)}, ["value"]),
        ({"a": {"value": jnp.ones(2)}}, ["a/value"]),
        (Attention(jnp.ones(2), jnp.ones(2)), ["query", "value"]),
        (Attention({"w": jnp.ones(2)}, jnp.ones(2)), ["query/w", "value"]),
        (nnx.Param(jnp.ones(2)), [""]),
        (jnp.ones(2), [""]),
        (({"value": nnx.Param(jnp.ones(2))},), ["0/value"]),
    ],
)
def test_a_parameter_called_value_keeps_its_name(params, names):
    assert named_leaves(params) == names


def test_the_first_leaf_that_is_not_finite():
    params = {"a": jnp.ones(2), "b": [jnp.ones(2), jnp.ones((2, 2))]}
    tx = record(ADAM, ["nonfinite"])
    _, state = steps(tx, grads=params, params=params)
    assert first_nonfinite(state, params) is None
    for leaf, path in ((jnp.inf, "b/0"), (jnp.nan, "b/0")):
        grads = {"a": params["a"], "b": [params["b"][0].at[1].set(leaf)] * 2}
        grads["b"][1] = params["b"][1].at[0, 1].set(-leaf)
        _, state = steps(tx, grads=grads, params=params)
        assert first_nonfinite(state, params) == path
        assert named_figures(state, params)["nonfinite"] == 2
    with pytest.raises(ValueError, match="the state records no 'nonfinite': name it"):
        first_nonfinite(record(ADAM, ["update_norm"]).init(params), params)
    with pytest.raises(ValueError, match="found 0: wrap the optimizer in record"):
        first_nonfinite(ADAM.init(params), params)


def test_the_state_is_a_state_like_others():
    """For optax.tree, tree_map, map_params, Flax's bytes and jax.export."""
    tx = record(ADAM, learning_rate=1e-2)
    updates, state = steps(tx, 2)
    total = optax.tree.get(state, "update_norm").total
    assert total == pytest.approx(norm(updates), rel=1e-6)
    equal(optax.tree.get(state, "mu"), state.inner_state[0].mu)

    restored = serialization.from_bytes(tx.init(PARAMS), serialization.to_bytes(state))
    assert type(restored) is RecordState
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    equal(restored, state)

    for recorder in (tx, record(ADAM), record(adam_jax.sgd(1.0)), record()):
        own = recorder.init(PARAMS)
        mapped = optax.tree.map_params(recorder, lambda x: x + 1, own)
        assert jax.tree.structure(mapped) == jax.tree.structure(own)
        equal(mapped.figures, own.figures)  # figures are none of the parameters'
    mapped = optax.tree.map_params(tx, lambda x, y: y, state, {"b": "B", "w": "W"})
    assert optax.tree.get(mapped, "mu") == {"b": "B", "w": "W"}

    exported = jax.export.export(jax.jit(tx.update))(GRADS, state, PARAMS)
    again, after = exported.call(GRADS, state, PARAMS)
    # An exported program sums through XLA.
    jitted = jax.jit(tx.update)(GRADS, state, PARAMS)
    chex.assert_trees_all_close((again, after), jitted, rtol=1e-6)


def result_sizes(text, operations):
    """Return the elements of each result of these operations in an HLO text."""
    sizes = []
    for line in text.splitlines():
        found = re.search(r" = (.*?) (?:%s)(?:-start)?\(" % "|".join(operations), line)  # noqa: UP031
        for dims in re.findall(r"\w+\[([\d,]*)\]", found[1] if found else ""):
            sizes.append(int(np.prod([int(n) for n in dims.split(",") if n])))
    return sizes


def test_result_sizes():
    text = """
      %a = f32[16,8]{0,1} all-gather(%b), dimensions={1}
      %c = (s32[3]{0}, f32[]) all-gather-start(%b, %d)
      ROOT %e = f32[99]{0} add(%all-gather, %b)
    """
    assert result_sizes(text, ["all-gather"]) == [128, 3, 1]


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((16, 256), P("x")),
        ((16, 256), P(None, "x")),
        ((16, 64, 2), P(None, "x")),
        ((4, 4096), P(None, "x")),
        ((8192,), P("x")),
        ((3000,), P("x")),
    ],
)
def test_a_sharded_step_gathers_no_moments(shape, spec):
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((8,), ("x",), axis_types=auto)
    names = ["update_ratio", "effective_step", "signal_to_noise", "swallowed"]
    tx = record(ADAM, names, learning_rate=1e-2)
    rng = np.random.default_rng(0)
    plain = jnp.asarray(rng.normal(size=shape), jnp.float32)
    sharded = jax.device_put(plain, NamedSharding(mesh, spec))
    update = jax.jit(tx.update)
    expected, want = update(plain, tx.init(plain), plain)
    state = jax.jit(tx.init)(sharded)
    text = update.lower(sharded, state, sharded).compile().as_text()
    actual, after = update(sharded, state, sharded)
    equal(actual, expected)
    equal(after.inner_state, want.inner_state)
    # Partial sums in another order: n additions of 2^-24, of which counts are exact.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=plain.size * 2**-24),
        after.figures,
        want.figures,
    )
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(after.figures))
    moves = ["all-gather", "all-to-all", "collective-permute"]
    # A shard is an eighth of a moment: what travels is less than half of a shard.
    assert max(result_sizes(text, moves), default=0) < plain.size / 16
    assert result_sizes(text, ["all-reduce", "all-gather"])


def reductions(text, largest, through_conditionals=True):
    """Return how many reductions of more than `largest` elements an HLO text has."""
    blocks, sizes, name = {}, {}, None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            name = head[2]
            blocks[name] = []
            entry = name if head[1] else None or locals().get("entry")
        elif name and (op := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)", line)):
            blocks[name].append(op[2])
            dims = re.match(r"\w+\[([\d,]*)\]", op[2])
            numbers = dims[1].split(",") if dims else ["0"]
            sizes[op[1]] = np.prod([int(n) for n in numbers if n])
    count, todo = 0, [entry]
    while todo:
        for op in blocks[todo.pop()]:
            if " conditional(" in op and not through_conditionals:
                continue
            todo += [x for x in re.findall(r"%([\w.\-]+)", op) if x in blocks]
            if found := re.search(r" (?:reduce|reduce-window)\(.*?%([\w.\-]+)", op):
                count += sizes[found[1]] > largest
    return count


def compiled(tx, params):
    state = jax.eval_shape(tx.init, params)
    return jax.jit(tx.update).lower(params, state, params).compile()


LARGE = (128, 65)  # more elements than native code sums


def test_what_is_not_asked_for_is_not_computed():
    params = jnp.ones(LARGE)
    some = {
        "none": [],
        "weights": ["bias_correction_mu", "bias_correction_nu"],
        "one": ["update_norm"],
        "all": None,
    }
    programs = {k: compiled(record(ADAM, names), params) for k, names in some.items()}
    counts = {k: reductions(p.as_text(), 100) for k, p in programs.items()}
    assert counts["none"] == counts["weights"] == 0 < counts["one"] < counts["all"]
    flops = {k: p.cost_analysis()["flops"] for k, p in programs.items()}
    plain = compiled(ADAM, params).cost_analysis()["flops"]
    assert flops["none"] - plain < 100
    # Each of the two moments' loops first selects the gradient: no more than that.
    assert flops["weights"] - plain < 2 * params.size + 100
    assert flops["one"] < flops["all"]


def test_steps_between_reduce_nothing():
    params = jnp.ones(LARGE)
    text = compiled(record(ADAM, every=3), params).as_text()
    assert " conditional(" in text
    assert reductions(text, 100) > 0
    assert reductions(text, 100, through_conditionals=False) == 0


def test_packed_moments_have_the_figures_of_unpacked_ones():
    params = {f"w{i}": jnp.linspace(-1, i, 8) for i in range(3)}
    grads = jax.tree.map(jnp.cos, params)
    found = []
    for wrap in (lambda tx: tx, adam_jax.packed):
        tx = record(wrap(adam_jax.adam(1e-2, nu_dtype="bfloat16")), learning_rate=1e-2)
        state = tx.init(params)
        for scale in (1.0, -0.5):
            scaled = jax.tree.map(lambda g, scale=scale: scale * g, grads)
            _, state = jax.jit(tx.update)(scaled, state, params)
        found.append(named_figures(state, params))
    assert found[0]["signal_to_noise"] > 0.1
    assert found[1] == pytest.approx(found[0], rel=1e-2)  # other random bits
    # And of a part of the leaves, with gradients that agree.
    masked = optax.masked(
        adam_jax.packed(adam_jax.adam(1e-2)), {"w0": True, "w1": False, "w2": True}
    )
    _, state = record(masked).update(grads, record(masked).init(params), params)
    ratios = state.figures["signal_to_noise"].leaves
    np.testing.assert_allclose(ratios, [1, 0, 1], rtol=1e-6)


def test_moments_sharded_over_more_axes_than_parameters():
    """As in ZeRO, on explicit axes. Nothing but sums is exchanged."""
    kinds = (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds)
    with jax.set_mesh(mesh):
        plain = {"w": jnp.linspace(-1, 1, 128).reshape(16, 8)}
        tx = record(adam_jax.adam(1e-2), FIGURES, learning_rate=1e-2)
        params = jax.device_put(plain, NamedSharding(mesh, P(None, "model")))
        finer = NamedSharding(mesh, P("data", "model"))
        grads = jax.device_put(plain, finer)
        state = tx.init(grads)
        _, after = jax.jit(tx.update)(grads, state, params)
    _, expected = jax.jit(tx.update)(plain, tx.init(plain), plain)
    assert recorded(after).inner_state[0].nu["w"].sharding.is_equivalent_to(finer, 2)
    for name, measured in recorded(expected).figures.items():
        actual = recorded(after).figures[name]
        np.testing.assert_allclose(actual.total, measured.total, rtol=1e-5)


@pytest.mark.parametrize("kind", list(jax.sharding.AxisType)[:2])
@pytest.mark.parametrize("spec", [P(), P("x")])
def test_arrays_on_a_mesh_and_beside_it(kind, spec):
    """Gradients that were made without the mesh, and arrays of NumPy."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    grads = jnp.linspace(-1, 1, 16 * 8).reshape(16, 8)
    tx = record(adam_jax.adam(1e-2))
    _, expected = jax.jit(tx.update)(grads, tx.init(grads), grads)
    with jax.set_mesh(mesh):
        params = jax.device_put(grads, NamedSharding(mesh, spec))
        state = tx.init(params)
        for own in (grads, np.asarray(grads)):
            for update in (jax.jit(tx.update), tx.update):
                _, after = update(own, state, params)
                norms = [
                    recorded(s).figures["update_norm"].total for s in (after, expected)
                ]
                np.testing.assert_allclose(*norms, rtol=1e-5)


def test_figures_of_an_optimizer_that_is_made_anew(caplog):
    """As optax.inject_hyperparams does at every update; without jit, too."""
    make = optax.inject_hyperparams(lambda rate: record(adam_jax.adam(rate)))
    tx = make(1e-3)
    state = tx.init(PARAMS)
    for _ in range(2):
        _, state = tx.update(GRADS, state, PARAMS)
    caplog.clear()
    with jax.log_compiles():
        tx.update(GRADS, state, PARAMS)
    assert "Compiling jit(_compiled)" not in caplog.text


def test_figures_are_compiled_once_without_jit(caplog):
    names = ["gradient_norm", "effective_step"]
    tx = record(adam_jax.adam(1e-3), names, learning_rate=1e-3)
    state = tx.init(PARAMS)
    compiled = []
    for _ in range(3):
        caplog.clear()
        with jax.log_compiles():
            _, state = tx.update(GRADS, state, PARAMS)
        compiled.append("Compiling jit(_compiled)" in caplog.text)
    assert compiled == [True, False, False]


def test_ranks_are_never_promoted():
    with jax.numpy_rank_promotion("raise"):
        tx = record(adam_jax.adamw(1e-3), FIGURES, learning_rate=1e-3)
        _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert recorded(state).figures["effective_step_quantiles"].total[2] > 0
