"""Guards under a fault injector, in every place where an optimizer may stand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import check_skips, checked, skip_nonfinite, skip_spikes

STEPS = 10_000
GUARDS = pytest.mark.parametrize("guard", [skip_nonfinite, skip_spikes])


@functools.partial(jax.jit, static_argnums=0)
def train(tx, params, grads):
    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), grads)[0]


def stream(faults, seed=0):
    """Gradients of two leaves, with faults at random steps, leaves and elements."""
    rng = np.random.default_rng(seed)
    grads = {
        "w": rng.normal(size=(STEPS, 3)).astype(np.float32),
        "b": rng.normal(size=(STEPS, 2)).astype(np.float32),
    }
    bad = rng.choice(np.arange(200, STEPS), 500, replace=False)
    for step in bad:
        leaf = grads[rng.choice(list(grads))]
        leaf[step, rng.integers(leaf.shape[1])] = rng.choice(faults)
    return grads, np.setdiff1d(np.arange(STEPS), bad)


def test_spikes_are_told_in_a_run_that_went_on_without():
    """The average that the other guard does not keep is not one of 0."""
    before = skip_nonfinite(adam_jax.sgd(0.1))
    tx = skip_spikes(adam_jax.sgd(0.1), threshold=np.float32(5))
    param = jnp.ones(3)
    state = before.init(param)._replace(taken=jnp.int32(150))
    for scale, skipped in ((1.0, 0), (2.0, 0), (100.0, 1), (1.0, 1)):
        _, state = tx.update(scale * param, state, param)
        assert state.skipped == skipped


def test_the_first_gradient_that_is_not_zero_is_no_spike():
    tx, param = skip_spikes(adam_jax.sgd(0.1), warmup=2), jnp.ones(3)
    state = tx.init(param)
    for _ in range(5):
        _, state = tx.update(0 * param, state, param)
    assert tx.update(param, state, param)[1].skipped == 0


@pytest.mark.parametrize(
    ("guard", "faults"),
    [
        (skip_nonfinite, [np.nan, np.inf, -np.inf]),
        (skip_spikes, [np.nan, np.inf, 1e30, -1e30, 1e4]),
    ],
)
def test_faults_leave_no_trace(guard, faults):
    """Bit for bit the run on the stream without the bad batches."""
    grads, good = stream(faults)
    params = {"w": jnp.ones(3), "b": jnp.zeros(2)}
    tx = guard(adam_jax.adamw(1e-3, mu_dtype="bfloat16", nu_dtype="bfloat16"))
    faulty, state = train(tx, params, grads)
    clean, clean_state = train(tx, params, {k: g[good] for k, g in grads.items()})
    jax.tree.map(np.testing.assert_array_equal, faulty, clean)
    jax.tree.map(
        np.testing.assert_array_equal, state.inner_state, clean_state.inner_state
    )
    assert state.skipped == STEPS - len(good) and state.taken == len(good)
    assert clean_state.skipped == 0


@GUARDS
def test_a_skipped_step_changes_nothing_and_is_counted(guard):
    tx = guard(adam_jax.adam(1e-2))
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(())}
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    poison = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.float32(jnp.nan)}
    for skips in (1, 2):
        updates, after = tx.update(poison, state, params)
        assert all((u == 0).all() for u in jax.tree.leaves(updates))
        assert updates["w"].dtype == jnp.bfloat16
        jax.tree.map(
            np.testing.assert_array_equal, after.inner_state, state.inner_state
        )
        assert (after.skipped, after.in_a_row, after.taken) == (skips, skips, 1)
        state = after
    with pytest.raises(RuntimeError, match=r"2 steps in a row were skipped \(2 in all"):
        check_skips((optax.EmptyState(), state), limit=1)
    check_skips((optax.EmptyState(), state), limit=2)
    _, state = tx.update(params, state, params)
    assert (state.skipped, state.in_a_row, state.taken) == (2, 0, 2)


def test_updates_that_are_not_finite_are_skipped_too():
    blow_up = optax.stateless(lambda u, p: jax.tree.map(lambda x: x / 0.0, u))
    tx = skip_nonfinite(optax.chain(adam_jax.adam(1e-3), blow_up))
    updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    assert (updates == 0).all() and state.skipped == 1


def blow_up(tree, params=None):
    return jax.tree.map(lambda x: x / 0.0, tree)


def chained(*parts):
    """Adam with another stage before or after it; gradients are checked as it sees."""
    stages = {"adam": adam_jax.adam(1e-3), "blow_up": optax.stateless(blow_up)}
    return optax.chain(*(stages[part] for part in parts))


def not_finite(count):
    return jnp.float32(jnp.nan) + count


def always(value):
    return lambda count: jnp.float32(value) + 0 * count


UNSOUND = {
    "before": lambda: chained("blow_up", "adam"),
    "after": lambda: chained("adam", "blow_up"),
    "packed": lambda: adam_jax.packed(chained("blow_up", "adam")),
    "other moments": lambda: adam_jax.lion(not_finite),
    "learning rate": lambda: adam_jax.adam(not_finite),
    "weight decay": lambda: adam_jax.adamw(1e-3, weight_decay=not_finite),
    "b1": lambda: adam_jax.adam(1e-3, b1=not_finite),
    "b2, not corrected": lambda: optax.chain(
        adam_jax.scale_by_moments(0.9, not_finite),
        adam_jax.precondition(),
        adam_jax.scale_by_lr(1e-3),
    ),
    "b2 above 1, not corrected": lambda: optax.chain(
        adam_jax.scale_by_moments(0.9, always(1.05)),
        adam_jax.precondition(),
        adam_jax.scale_by_lr(1e-3),
    ),
    "negative eps_root": lambda: adam_jax.adam(1e-3, eps_root=always(-2)),
    "product of rates": lambda: adam_jax.adamw(1e10, weight_decay=1e30),
    "eps": lambda: adam_jax.adam(1e-3, eps=not_finite),
    "float16": lambda: adam_jax.adam(lambda n: jnp.float32(1e9)),
}


@GUARDS
@pytest.mark.parametrize("name", UNSOUND)
@pytest.mark.parametrize("fuse", [False, True])
def test_finite_gradients_may_still_do_harm(guard, name, fuse):
    """What Adam's own lines cannot do, something else in the chain can."""
    tx, dtype = guard(UNSOUND[name]()), "float16" if name == "float16" else "float32"
    params = {"w": jnp.ones((2, 3), dtype), "b": jnp.ones(4, dtype)}
    state = tx.init(params)

    def step(params, grads, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(adam_jax.fused.step(tx) if fuse else step)
    stepped, after = step(params, params, state)
    assert (after.skipped, after.taken) == (1, 0)
    kept = (stepped, after.inner_state), (params, state.inner_state)
    jax.tree.map(np.testing.assert_array_equal, *kept)


@pytest.mark.parametrize("eps", [1e-8, 1e-15, 0.0])
def test_a_large_learning_rate_is_not_refused(eps):
    """Without eps, the bound of the quotient tells nothing of it."""
    tx = skip_nonfinite(adam_jax.adamw(1e4, eps=eps, weight_decay=0.1))
    params = jnp.ones(3)
    updates, state = tx.update(params, tx.init(params), params)
    assert state.taken == 1
    np.testing.assert_allclose(updates, -1.1e4, rtol=1e-5)


@pytest.mark.parametrize("other", ["float32", "float64"])
def test_updates_of_float32_overflow_beside_float64(other):
    """Scalars that fit float64 need not fit the parameters that they belong to."""
    with jax.enable_x64(True):
        tx = skip_nonfinite(adam_jax.adamw(1e38, weight_decay=1e5))
        params = {"a": jnp.ones(3, "float32"), "b": jnp.ones(3, other)}
        state = tx.init(params)
        assert tx.update(params, state, params)[1].skipped == 1


@pytest.mark.usefixtures("frozen_heap")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        lambda tx: optax.conditionally_mask(tx, lambda step: step < 1),
        lambda tx: adam_jax.record(tx, every=2),
    ],
)
@pytest.mark.parametrize("guard_too", [False, True])
def test_guards_around_branches_leak_nothing(wrap, guard_too):
    inner = adam_jax.adamw(1e-3)
    tx = skip_nonfinite(wrap(skip_spikes(inner) if guard_too else inner))
    with jax.checking_leaks():
        params = jnp.ones(3)
        state = tx.init(params)
        _, state = jax.jit(tx.update)(params, state, params)
    assert state.taken == 1


@pytest.mark.parametrize("size", [1e38, 1e-38, 1e-45])
@pytest.mark.parametrize("make", [adam_jax.adamw, adam_jax.nadamw])
@pytest.mark.parametrize("format", ["float32", "bfloat16", "8bit"])
def test_adam_makes_finite_updates_of_finite_gradients(size, make, format):
    """Guards rely on it. mu outlives nu here, so that their quotient grows."""
    tx = make(1.0, b1=0.99, b2=0.5, eps=0.0, mu_dtype=format, nu_dtype=format)
    params = jnp.full(4096, 2.0**100)

    def step(state, scale):
        grads = jnp.full(4096, jnp.float32(size) * scale)
        updates, state = tx.update(grads, state, params)
        return state, jnp.isfinite(updates).all()

    scales = jnp.array([1.0] * 3 + [0.0] * 150 + [1e-30, 1.0], jnp.float32)
    _, finite = jax.jit(lambda state: jax.lax.scan(step, state, scales))(
        tx.init(params)
    )
    assert finite.all()


def test_a_spike_is_told_after_the_warm_up():
    tx = skip_spikes(adam_jax.sgd(1.0), threshold=3.0, warmup=5)
    state = tx.init(jnp.zeros(1))
    update = jax.jit(tx.update)
    for size, skipped in [(1, 0), (10, 0), (1, 0), (1, 0), (1, 0), (9, 1), (1, 1)]:
        _, state = update(jnp.full(1, size, jnp.float32), state)
        assert state.skipped == skipped, size


@GUARDS
def test_where_an_optimizer_may_stand(guard):
    """jit with donation, vmap, masked, MultiSteps, extra arguments."""
    tx = guard(adam_jax.adam(1e-2))
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    plain, _ = tx.update(params, tx.init(params), params)

    donated = jax.jit(tx.update, donate_argnums=1)
    updates, _ = donated(params, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], plain["a"], rtol=1e-6)

    batch = jnp.array([[1.0, 1.0], [jnp.nan, 1.0]])
    updates, states = jax.vmap(tx.update)(batch, jax.vmap(tx.init)(batch))
    np.testing.assert_array_equal(states.skipped, [0, 1])
    np.testing.assert_array_equal(updates[1], [0, 0])

    masked = optax.masked(tx, {"a": True, "b": False})
    updates, _ = masked.update(params, masked.init(params), params)
    np.testing.assert_allclose(updates["a"], plain["a"], rtol=1e-6)

    steps = optax.MultiSteps(tx, 2, should_skip_update_fn=optax.skip_not_finite)
    state = steps.init(params)
    for _ in range(2):
        updates, state = jax.jit(steps.update)(params, state, params)
    np.testing.assert_allclose(updates["a"], plain["a"], rtol=1e-6)

    updates, _ = tx.update(params, tx.init(params), params, loss=1.0)
    np.testing.assert_allclose(updates["a"], plain["a"], rtol=1e-6)


@GUARDS
def test_around_multi_steps_it_leaves_out_single_gradients(guard):
    """The sums are of the good gradients alone, in the composed and the fused step."""

    def run(tx, grads, step):
        params = jnp.ones(3)
        state, step = tx.init(params), jax.jit(step(tx))
        for grad in grads:
            params, state = step(params, jnp.full(3, grad), state)
        return params

    def compose(tx):
        def step(params, grads, state):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return step

    grads = [1.0, jnp.inf, 2.0, 3.0, -1.0, jnp.nan]
    steps = optax.MultiSteps(adam_jax.adam(0.1), 2)
    expected = run(steps, [1.0, 2.0, 3.0, -1.0], compose)
    for step in (compose, adam_jax.fused.step):
        np.testing.assert_array_equal(run(guard(steps), grads, step), expected)


@GUARDS
@pytest.mark.parametrize("between", [lambda tx: tx, adam_jax.record])
def test_inside_multi_steps_it_comes_too_late(guard, between):
    tx = between(guard(adam_jax.adam(1e-2)))
    message = f"{guard.__name__}.* inside optax.MultiSteps comes too late"
    steps = optax.MultiSteps(tx, 2).gradient_transformation()
    for init in (steps.init, jax.jit(steps.init)):
        with pytest.raises(ValueError, match=message):
            init(jnp.ones(3))


class ClearsItsSums(optax.MultiSteps):
    def update(self, updates, state, params=None, **extra_args):
        sums = jax.tree.map(jnp.nan_to_num, state.acc_grads)
        state = state._replace(acc_grads=sums)
        return super().update(updates, state, params, **extra_args)


def test_inside_multi_steps_that_never_gather_a_nan():
    """They skip it, a guard outside does, or they are of a class of their own."""
    adam = skip_spikes(adam_jax.adam(1e-2))
    small = functools.partial(optax.skip_large_updates, max_squared_norm=9.0)
    for tx in (
        optax.MultiSteps(adam, 2, should_skip_update_fn=small),
        skip_nonfinite(optax.MultiSteps(adam, 2)),
        ClearsItsSums(adam, 2),
    ):
        state, params = tx.init(jnp.ones(3)), jnp.ones(3)
        for scale in (1.0, jnp.nan, 1.0, 1.0, 1.0, 1.0):
            updates, state = tx.update(scale * params, state, params)
        assert jnp.isfinite(updates).all() and optax.tree.get(state, "count") > 0


@GUARDS
def test_a_sharded_step_reduces_but_gathers_nothing(guard):
    auto = (jax.sharding.AxisType.Auto,)
    sharding = NamedSharding(jax.make_mesh((8,), ("x",), axis_types=auto), P("x"))
    tx = guard(adam_jax.adam(1e-2))
    grads = jax.device_put(jnp.ones((16, 4)).at[9, 1].set(jnp.nan), sharding)
    state = jax.jit(tx.init)(grads)
    update = jax.jit(tx.update)
    updates, after = update(grads, state)
    assert (updates == 0).all() and after.skipped == 1  # one shard's fault skips all
    text = update.lower(grads, state).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, "threshold must be greater than 1, got 1.0"),
        ({"warmup": -1}, "warmup must be a number of steps >= 0, got -1"),
        ({"decay": 1.0}, r"decay must be a decay rate in \[0, 1\), got 1.0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        skip_spikes(adam_jax.adam(1e-3), **options)


def error_of(tx, grads, state, params):
    update = checkify.checkify(jax.jit(tx.update))
    return update(grads, state, params)[0].get()


def test_checked_names_the_leaf():
    tx = checked(adam_jax.adam(1e-3, nu_dtype="8bit"))
    params = {"w": jnp.ones((64, 64)), "b": [jnp.ones(2)]}
    state = tx.init(params)
    assert error_of(tx, params, state, params) is None
    bad = {"w": params["w"], "b": [jnp.array([1.0, jnp.inf])]}
    message = error_of(tx, bad, state, params)
    assert "updates['b'][0] has 1 elements that are not finite" in message
    moments = state[0]._replace(nu={"w": moments_nu(state)["w"], "b": [-jnp.ones(2)]})
    message = error_of(tx, params, (moments, *state[1:]), params)
    assert "nu['b'][0] has 2 negative elements" in message


def moments_nu(state):
    return optax.tree.get(state, "nu")


def test_checked_takes_what_round_to_params_emits():
    tx = checked(adam_jax.round_to_params(adam_jax.adam(1e-3)))
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    assert error_of(tx, params, tx.init(params), params) is None


def test_checked_sees_a_count_that_does_not_grow():
    inner = adam_jax.adam(1e-3)

    def update_fn(updates, state, params=None):
        updates, new = inner.update(updates, state, params)
        return updates, (new[0]._replace(count=state[0].count), *new[1:])

    tx = checked(optax.GradientTransformation(inner.init, update_fn))
    params = jnp.ones(2)
    assert "count went from 0 to 0" in error_of(tx, params, tx.init(params), params)


PAUSING = {
    "skip_nonfinite": adam_jax.skip_nonfinite,
    "skip_spikes": adam_jax.skip_spikes,
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "masked": lambda tx: optax.transforms.conditionally_mask(tx, lambda n: n > 5),
    "passed on": lambda tx: optax.conditionally_transform(tx, lambda n: n > 5),
}


@pytest.mark.parametrize("name", PAUSING)
def test_checked_around_what_pauses(name):
    """Where no step is taken the count stays, and so do the moments."""
    tx = checked(PAUSING[name](adam_jax.adam(1e-3)))
    params = {"w": jnp.ones(2)}
    update = checkify.checkify(jax.jit(tx.update))
    state = tx.init(params)
    for scale in (1.0, jnp.inf if name.startswith("skip") else 1.0, 1.0):
        error, (_, state) = update({"w": scale * params["w"]}, state, params)
        assert error.get() is None


def test_checked_wants_updates_like_the_parameters():
    narrow = optax.stateless(lambda u, p: {"w": u["w"].astype("bfloat16")})
    tx = checked(optax.chain(adam_jax.adam(1e-3), narrow))
    params = {"w": jnp.ones(2)}
    with pytest.raises(AssertionError, match=r"updates\['w'\] is bfloat16, its param"):
        error_of(tx, params, tx.init(params), params)


def test_checked_under_chexify():
    tx = checked(adam_jax.adam(1e-3))
    params = jnp.ones(2)
    update = chex.chexify(jax.jit(tx.update), async_check=False)
    update(params, tx.init(params), params)
    update.wait_checks()
    with pytest.raises(Exception, match="updates has 2 elements that are not finite"):
        update(params * jnp.nan, tx.init(params), params)
