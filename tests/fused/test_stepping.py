"""The fused step beside update and apply_updates: in every place, on every path."""

import copy
import dataclasses
import functools
import pickle
import re
import warnings

import cloudpickle
import equinox as eqx
import interpreted
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.experimental import checkify
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import eight_bit, fused
from adam_jax.fused import stepping
from adam_jax.native import library

STORED = {
    "float32": None,
    "bfloat16": "bfloat16",
    "8bit": eight_bit(min_size=64),
}
needs_native = pytest.mark.skipif(
    not library.available(), reason="the native library was not built"
)


def falling(count):
    return 1e-2 / (1.0 + 0.1 * count)


# Learning rates are 1e-2 at most, so that an update is near 1e-2.
CASES = {
    "defaults": {},
    "nesterov, mask": {
        "nesterov": True,
        "mask": lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        "weight_decay": 0.1,
    },
    "schedules, a prefix as mask": {
        "learning_rate": falling,
        "b1": lambda count: 0.9 - 0.1 / (1.0 + count),
        "weight_decay": falling,
        "mask": {"w": True, "rest": False},
    },
    "arrays, eps_root": {
        "learning_rate": jnp.float32(1e-2),
        "b2": jnp.float32(0.99),
        "eps": 1e-3,
        "eps_root": 1e-4,
    },
}


def tree(dtype=jnp.float32):
    """Leaves of many shapes: coded and not, with a short last block, of no elements."""
    rng = np.random.default_rng(0)
    shapes = {"w": (5, 70), "rest": {"b": (7,), "c": (), "none": (3, 0), "v": (130,)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def gradients(step, params):
    rng = np.random.default_rng(step + 1)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape) * 10.0**-step, p.dtype), params
    )


def adamw(name, case="defaults"):
    """Return the optimizer of a case."""
    stored = STORED[name]
    h = {"learning_rate": 1e-2, **CASES[case], "mu_dtype": stored, "nu_dtype": stored}
    return adam_jax.adamw(**h)


EXACT = {"learning_rate": 2.0**-7} | interpreted.EXACT

# The step that is the reference.
update_and_apply = jax.jit(interpreted.update_and_apply, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def take(tx, params, grads, state):
    """Take the fused step."""
    return fused.step(tx)(params, grads, state)


def native_leaves(function, *args):
    """Return how many leaves the native step takes."""
    text = jax.jit(function).lower(*args).as_text()
    number = r"@adam_jax_fused_step\(.*leaf_numbers = dense<[^>]*> : tensor<(\d+)xi32>"
    return sum(map(int, re.findall(number, text)))


def is_native(function, *args):
    return native_leaves(function, *args) > 0


def assert_close(tree, expected, rtol=1e-6, atol=1e-8):
    """Compare to 1e-6 of the value, or of the learning rate where terms cancel."""

    def check(x, y):
        assert x.dtype == y.dtype and x.shape == y.shape
        wide = np.complex128 if jnp.iscomplexobj(x) else np.float64
        np.testing.assert_allclose(np.asarray(x, wide), np.asarray(y, wide), rtol, atol)

    jax.tree.map(check, tree, expected)


def assert_same_steps(tx, params, exact=False, rtol=1e-6, steps=3, leaves=None):
    """Let both take steps, each in turn from where the fused one has come."""
    state = jax.jit(tx.init)(params)
    leaves = len(jax.tree.leaves(params)) if leaves is None else leaves
    found = native_leaves(fused.step(tx), params, params, state)
    assert found == (leaves if available() else 0)
    for number in range(steps):
        grads = gradients(number, params)
        landed, expected = update_and_apply(tx, params, grads, state)
        params, state = take(tx, params, grads, state)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, expected)
        assert_close(params, landed, *((0, 0) if exact else (rtol,)))
        for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            # A contraction moves a code by one, rarely.
            different = np.asarray(x, np.float32) != np.asarray(y, np.float32)
            allowed = 0 if exact else 1 + 0.01 * x.size
            if x.dtype in ("int8", "uint8", "bfloat16") or exact:
                assert different.sum() <= allowed
            else:
                np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-12)


def available():
    return library.available()


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, "float32") for case in CASES] + [("nesterov, mask", "bfloat16")],
)
@pytest.mark.parametrize("name", STORED)
def test_a_step_is_update_and_apply_updates(name, case, dtype):
    # XLA may contract sums of products in another way: by a last place of bfloat16.
    rtol = 2**-7 if dtype == "bfloat16" else 1e-6
    assert_same_steps(adamw(name, case), tree(dtype), rtol=rtol)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize(
    "packs", [False, pytest.param(True, marks=pytest.mark.crossing)]
)
def test_every_bit_where_products_are_exact(name, dtype, rounds, packs):
    """Stochastic roundings of moments and parameters among them."""
    mask = {"w": True, "rest": {"b": False, "c": True, "none": True, "v": True}}
    h = EXACT | {"mu_dtype": STORED[name], "nu_dtype": STORED[name]}
    tx = adam_jax.adamw(**h, mask=mask)
    if packs:
        tx = adam_jax.packed(functools.partial(adam_jax.adamw, **h), mask=mask)
        buffers = tx.init(tree(dtype)).inner_state[0].mu.buffers
        assert len(buffers) == (5 if name == "8bit" else 3)
    if rounds:
        tx = adam_jax.round_to_params(tx, seed=3)
    assert_same_steps(tx, tree(dtype), exact=True)


def test_either_way_continues_a_run():
    tx, params = adamw("bfloat16"), tree()
    state = tx.init(params)
    mixed, expected = (params, state), (params, state)
    for number in range(4):
        grads = gradients(number, params)
        expected = update_and_apply(tx, expected[0], grads, expected[1])
        way = take if number % 2 else update_and_apply
        mixed = way(tx, mixed[0], grads, mixed[1])
    # A code that differs by one moves later steps by 1/16 of the learning rate.
    assert_close(mixed[0], expected[0], rtol=1e-6, atol=1e-3)


CHAINS = {
    "adam": lambda: adam_jax.adam(1e-2),
    "nadamw": lambda: adam_jax.nadamw(1e-2),
    "simplified": lambda: adam_jax.simplified_adam(1e-2),
    "three stages": lambda: optax.chain(
        adam_jax.scale_by_moments(), adam_jax.bias_correct(), adam_jax.scale_by_lr(1e-2)
    ),
    "one weight": lambda: optax.chain(
        adam_jax.scale_by_moments(),
        adam_jax.bias_correct(mu=False),
        adam_jax.precondition(eps=1e-3),
        adam_jax.scale_by_lr(1e-2),
    ),
    "upwards": lambda: optax.chain(
        adam_jax.scale_by_moments(),
        adam_jax.precondition(),
        adam_jax.scale_by_lr(1e-2, flip_sign=False),
    ),
    "no rate": lambda: optax.chain(
        adam_jax.scale_by_moments(), adam_jax.precondition(), adam_jax.scale_by_lr(None)
    ),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), adam_jax.adam(1e-2)),
    "zero_nans": lambda: optax.chain(optax.zero_nans(), adam_jax.adam(1e-2)),
    "scaled": lambda: optax.chain(optax.scale(0.5), adam_jax.adam(1e-2)),
    "l2": lambda: optax.chain(
        adam_jax.add_decayed_weights(0.1), optax.clip(1.0), adam_jax.adam(1e-2)
    ),
    "named": lambda: optax.named_chain(("adam", adam_jax.adam(1e-2)), ("id", IDENTITY)),
    "injected": lambda: optax.inject_hyperparams(adam_jax.adamw)(learning_rate=1e-2),
    "masked": lambda: optax.masked(adam_jax.adam(1e-2), {"w": False, "rest": True}),
    "labels": lambda: optax.multi_transform(
        {"a": adam_jax.adam(1e-2), "b": adam_jax.adamw(1e-3, b1=0.5)},
        {"w": "a", "rest": {"b": "b", "c": "a", "none": "b", "v": "b"}},
    ),
    "frozen": lambda: optax.multi_transform(
        {"a": adam_jax.adam(1e-2), "b": optax.set_to_zero()}, {"w": "a", "rest": "b"}
    ),
    "rates": lambda: optax.chain(
        adam_jax.scale_by_moments(),
        adam_jax.bias_correct(),
        adam_jax.precondition(),
        optax.multi_transform(
            {"a": adam_jax.scale_by_lr(1e-2), "b": adam_jax.scale_by_lr(falling)},
            {"w": "a", "rest": "b"},
        ),
    ),
    "recorded": lambda: adam_jax.record(adam_jax.adam(1e-2), ["update_norm"], every=2),
    "rounded": lambda: adam_jax.round_to_params(
        optax.chain(optax.clip_by_global_norm(0.1), adam_jax.adamw(1e-2))
    ),
    "packed": lambda: optax.chain(
        optax.clip_by_global_norm(0.1), adam_jax.packed(adam_jax.adam(1e-2))
    ),
    "partly packed": lambda: optax.masked(
        adam_jax.packed(adam_jax.adam(1e-2)), {"w": False, "rest": True}
    ),
    "guarded": lambda: adam_jax.skip_nonfinite(adam_jax.adamw(1e-2)),
    "guarded twice, packed": lambda: adam_jax.skip_spikes(
        optax.chain(
            optax.clip(1.0),
            adam_jax.packed(adam_jax.skip_nonfinite(adam_jax.adamw(1e-2))),
        )
    ),
    "guarded, rounded": lambda: adam_jax.round_to_params(
        adam_jax.skip_spikes(adam_jax.adamw(1e-2))
    ),
    "every second": lambda: optax.MultiSteps(adam_jax.adamw(1e-2), 2),
    "every second, guarded": lambda: optax.MultiSteps(
        adam_jax.skip_nonfinite(adam_jax.adamw(1e-2)),
        2,
        should_skip_update_fn=optax.skip_not_finite,
    ).gradient_transformation(),
    "wrapped": lambda: optax.with_extra_args_support(adam_jax.adam(1e-2)),
}
IDENTITY = optax.identity()
# What stands around chooses between old and new, or changes what Adam emits or keeps.
ELSEWHERE = {
    "sgd": lambda: adam_jax.sgd(1e-2, momentum=0.9),
    "lion": lambda: adam_jax.lion(1e-2),
    "radam": lambda: adam_jax.radam(1e-2),
    "optax": lambda: optax.adamw(1e-2),
    "amsgrad": lambda: adam_jax.amsgrad(1e-2),
    "scaled after": lambda: optax.chain(adam_jax.adam(1e-2), optax.scale(0.5)),
    "decay after": lambda: optax.chain(
        adam_jax.adam(1e-2), optax.add_decayed_weights(-0.1)
    ),
    "two decays": lambda: optax.chain(
        adam_jax.scale_by_moments(),
        adam_jax.precondition(),
        adam_jax.add_decayed_weights(0.1),
        adam_jax.add_decayed_weights(0.1),
        adam_jax.scale_by_lr(1e-2),
    ),
    "two rates": lambda: optax.chain(adam_jax.adam(1e-2), adam_jax.scale_by_lr(0.5)),
    "own stage": lambda: optax.chain(
        adam_jax.scale_by_moments(),
        optax.stateless(
            lambda m, params: m._replace(mu=jax.tree.map(lambda x: 2 * x, m.mu))
        ),
        adam_jax.precondition(),
        adam_jax.scale_by_lr(1e-2),
    ),
    "own stage, by dataclasses": lambda: optax.chain(
        adam_jax.scale_by_moments(),
        optax.stateless(
            lambda m, params: dataclasses.replace(
                m, nu=jax.tree.map(lambda x: 2 * x, m.nu)
            )
        ),
        adam_jax.scale_by_lr(1e-2),
    ),
    "own weight": lambda: optax.chain(
        adam_jax.scale_by_moments(),
        optax.stateless(lambda m, params: m._replace(mu_weight=2 * m.mu_weight)),
        adam_jax.bias_correct(),
        adam_jax.scale_by_lr(1e-2),
    ),
    "mu for nu": lambda: optax.chain(
        adam_jax.scale_by_moments(),
        optax.stateless(lambda m, params: m._replace(mu=m.nu, nu=m.mu)),
        adam_jax.scale_by_lr(1e-2),
    ),
    "derived accumulator": lambda: optax.chain(
        adam_jax.scale_by_moments(
            b2=dataclasses.replace(
                adam_jax.ema(0.9), power=1, measure=lambda grad, mu, h: jnp.abs(grad)
            )
        ),
        adam_jax.bias_correct(),
        adam_jax.scale_by_lr(1e-2),
    ),
    "every second, inside": lambda: optax.chain(
        IDENTITY, optax.MultiSteps(adam_jax.adam(1e-2), 2).gradient_transformation()
    ),
    "if finite": lambda: optax.apply_if_finite(adam_jax.adam(1e-2), 3),
    "compensated": lambda: adam_jax.compensate_params(adam_jax.adam(1e-2)),
    "rounded late": lambda: optax.chain(
        adam_jax.adam(1e-2), adam_jax.round_to_params()
    ),
    "factored": lambda: adam_jax.adam(1e-2, nu_dtype=adam_jax.factored(2)),
    "belief": lambda: adam_jax.adabelief(1e-2),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_and_wrappers_that_keep_the_fast_step(name):
    leaves = {"masked": 4, "partly packed": 4, "frozen": 1}.get(name)
    assert_same_steps(CHAINS[name](), tree(), leaves=leaves)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_goes_through_xla_has_the_same_numbers(name):
    bfloat16 = name in ("compensated", "rounded late")
    params = tree("bfloat16" if bfloat16 else "float32")
    assert_same_steps(ELSEWHERE[name](), params, leaves=0)


@pytest.mark.parametrize(
    "before",
    [
        optax.scale(-0.5),
        optax.clip(0.1),
        optax.zero_nans(),
        adam_jax.add_decayed_weights(0.1),
        adam_jax.adam(1.0),
    ],
)
def test_what_changes_gradients_inside_a_packed_optimizer(before):
    """The kernel would be given those of the leaves, as they were."""
    tx = adam_jax.packed(optax.chain(before, adam_jax.adam(1e-2)))
    assert_same_steps(tx, {"a": jnp.ones(5), "b": jnp.ones((2, 3))}, leaves=0)


class Bounded(optax.MultiSteps):
    def update(self, updates, state, params=None, **extra):
        updates, state = super().update(updates, state, params, **extra)
        return jax.tree.map(lambda u: jnp.clip(u, -1e-3, 1e-3), updates), state


def test_multi_steps_of_other_kinds():
    """A subclass; gradients wider than the state; the last of all counts."""
    params = tree()
    assert_same_steps(Bounded(adam_jax.adam(1e-2), 2), params, leaves=0)
    tx = optax.MultiSteps(optax.sgd(1e-2, momentum=0.9), 2)
    narrow = tree("bfloat16")
    state = tx.init(narrow)
    for number in range(2):
        grads = gradients(number, params)
        _, expected = tx.update(grads, state, narrow)
        _, state = take(tx, narrow, grads, state)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, expected)
    tx = optax.MultiSteps(adam_jax.adam(1e-2), 1)
    state = tx.init(params)._replace(gradient_step=jnp.int32(2**31 - 1))
    assert_close(
        take(tx, params, params, state), update_and_apply(tx, *[params] * 2, state)
    )


@pytest.mark.parametrize("make", [adam_jax.adam, adam_jax.lion])
def test_a_nan_in_a_step_that_is_not_taken_changes_nothing(make):
    """In Optax 0 * NaN would; here neither with the kernel nor without."""
    tx, params = optax.MultiSteps(make(1e-2), 2), jnp.ones(70)
    moved, _ = fused.step(tx)(params, params * jnp.nan, tx.init(params))
    np.testing.assert_array_equal(moved, params)


@pytest.mark.parametrize("inner", [adam_jax.skip_nonfinite, adam_jax.skip_spikes])
def test_a_guard_counts_what_the_guard_in_it_skips_as_taken(inner):
    tx = adam_jax.skip_nonfinite(inner(adam_jax.adamw(lambda n: jnp.inf + n)))
    params = {"w": jnp.ones(70)}
    state = take(tx, params, params, tx.init(params))[1]
    assert (state.taken, state.skipped, state.inner_state.skipped) == (1, 0, 1)


@pytest.mark.parametrize("rounds", [False, True])
def test_a_guard_sees_updates_as_they_are_rounded(rounds):
    """Between the largest bfloat16 and the largest float32 there is room."""
    wrap = adam_jax.round_to_params if rounds else lambda tx: tx
    tx = adam_jax.skip_nonfinite(wrap(adam_jax.adam(3.4e38)))
    params = {"w": jnp.ones(70, jnp.bfloat16)}
    moved, state = take(tx, params, params, tx.init(params))
    landed, expected = update_and_apply(tx, params, params, tx.init(params))
    assert state.skipped == expected.skipped == 1
    np.testing.assert_array_equal(moved["w"], landed["w"])


@pytest.mark.parametrize("jit", [False, True])
def test_traced_extra_arguments(jit):
    """As the line searches take them, in a jitted training step."""
    inner = adam_jax.adamw(1e-2)

    def update(grads, state, params=None, *, value, **extra):
        return inner.update(jax.tree.map(lambda g: g * value, grads), state, params)

    tx, params = optax.GradientTransformationExtraArgs(inner.init, update), tree()

    def run(value):
        return fused.step(tx)(params, params, tx.init(params), value=value)[1]

    state = (jax.jit(run) if jit else run)(jnp.float32(2))
    mu = optax.tree.get(state, "mu")["w"]
    np.testing.assert_allclose(mu, 0.2 * params["w"], rtol=1e-6)


def test_checks_reach_checkify():
    tx, params = adam_jax.checked(adam_jax.adamw(1e-2)), tree()
    step = checkify.checkify(jax.jit(fused.step(tx)))
    error, (_, state) = step(params, params, tx.init(params))
    assert error.get() is None and optax.tree.get(state, "count") == 1
    poisoned = params | {"w": params["w"].at[0, 0].set(jnp.nan)}
    assert "['w']" in step(params, poisoned, tx.init(params))[0].get()


def test_a_collective_over_a_vmapped_axis():
    mean = optax.stateless(lambda u, _: jax.lax.pmean(u, "i"))
    tx = optax.chain(mean, adam_jax.adamw(1e-2))
    params, grads = jnp.ones((4, 8)), jnp.arange(32.0).reshape(4, 8)
    state = jax.vmap(tx.init)(params)
    found = jax.vmap(fused.step(tx), axis_name="i")(params, grads, state)
    step = functools.partial(update_and_apply, tx)
    assert_close(found, jax.vmap(step, axis_name="i")(params, grads, state))


def test_derivatives_of_a_vmapped_step():
    """Of gradients alone: what else there is, is the same for all."""
    tx, params = adam_jax.adam(1e-2, eps=1.0), jnp.ones(8)
    state = tx.init(params)

    def moved(step, grads):
        return jax.vmap(lambda g: step(params, g, state)[0])(grads).sum()

    def slope(step):
        return jax.grad(functools.partial(moved, step))(jnp.ones((2, 8)))

    expected = slope(functools.partial(update_and_apply, tx))
    assert (expected != 0).all()
    np.testing.assert_allclose(slope(fused.step(tx)), expected, rtol=1e-6)


@pytest.mark.usefixtures("frozen_heap")
def test_nothing_leaks_and_an_update_may_be_any_callable():
    tx, params = adam_jax.skip_nonfinite(adam_jax.adamw(1e-2)), jnp.ones(70)
    state = tx.init(params)

    @dataclasses.dataclass
    class Update:
        inner: object

        def __call__(self, *args, **extra):
            return self.inner(*args, **extra)

    tx = optax.GradientTransformationExtraArgs(tx.init, Update(tx.update))
    with jax.checking_leaks():
        lowered = jax.jit(fused.step(tx)).lower(params, params, state)
    moved, _ = lowered.compile()(params, params, state)
    assert (moved < 1).all()


def every_second(tx):
    return optax.MultiSteps(tx, 2).gradient_transformation()


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        pytest.param(
            name,
            rounds,
            marks=() if rounds == (name == "8bit") else pytest.mark.crossing,
        )
        for name in STORED
        for rounds in (False, True)
    ],
)
@pytest.mark.parametrize(
    "wrap",
    [
        adam_jax.skip_nonfinite,
        functools.partial(adam_jax.skip_spikes, warmup=1),
        lambda tx: adam_jax.skip_nonfinite(adam_jax.packed(tx)),
        every_second,
    ],
    ids=["nonfinite", "spikes", "packed", "every second"],
)
def test_a_step_that_is_not_taken_leaves_every_bit(name, wrap, rounds):
    """Of five gradients the third is infinite; before the last a parameter is NaN."""
    h = EXACT | {"mu_dtype": STORED[name], "nu_dtype": STORED[name]}
    tx = wrap(adam_jax.adamw(**h, eps=2.0**-20))
    tx = adam_jax.round_to_params(tx) if rounds else tx
    params = tree("bfloat16" if rounds else "float32")
    state = tx.init(params)
    for number in range(5):
        grads = gradients(number, params)
        if number == 2 and wrap is not every_second:
            grads["w"] = grads["w"].at[0, 3].set(jnp.inf)
        if number == 4 and wrap is not every_second:
            params["rest"]["v"] = params["rest"]["v"].at[5].set(jnp.nan)
        landed, expected = update_and_apply(tx, params, grads, state)
        params, state = take(tx, params, grads, state)
        for x, y in zip(
            *map(jax.tree.leaves, ((params, state), (landed, expected))), strict=True
        ):
            # The average of norms is a sum of products: XLA contracts it as it likes.
            wide = [np.asarray(a, np.float32) for a in (x, y)]
            np.testing.assert_allclose(*wide, rtol=1e-6 * (x.shape == ()), atol=0)


@pytest.mark.parametrize("poison", ["learning_rate", "nu", "mu", "params"])
def test_a_guard_and_what_is_not_finite_but_no_gradient(poison):
    """Of one element, its moment or the parameter: then it is left to itself."""
    rate = jnp.nan if poison == "learning_rate" else 1e-2
    tx = adam_jax.skip_nonfinite(
        optax.inject_hyperparams(adam_jax.adamw)(learning_rate=1e-2)
    )
    params = tree()
    state = tx.init(params)
    state.inner_state.hyperparams["learning_rate"] = jnp.float32(rate)
    if poison in ("mu", "nu"):
        moments = optax.tree.get(state, poison)
        moments["w"] = moments["w"].at[1, 1].set(jnp.inf)
        state = optax.tree.set(state, **{poison: moments})
    if poison == "params":
        params["w"] = params["w"].at[1, 1].set(jnp.nan)
    grads = gradients(0, params)
    assert native_leaves(fused.step(tx), params, grads, state) == 5 * available()
    landed, expected = update_and_apply(tx, params, grads, state)
    stepped, after = take(tx, params, grads, state)
    assert after.skipped == expected.skipped == (poison == "learning_rate")
    assert_close(stepped, landed)
    finite = jax.tree.map(lambda x: int(jnp.isfinite(x).sum()), stepped)
    sizes = jax.tree.map(jnp.size, params)
    sizes["w"] -= poison in ("mu", "params")  # an infinite nu makes an update of 0
    assert finite == sizes


def test_a_guard_in_a_shard_map_and_under_vmap():
    """In a shard_map each shard is guarded by itself."""
    params = {"w": jnp.linspace(-1, 1, 8 * 128).reshape(8, 128)}
    mesh = Mesh(np.array(jax.devices()), ("a",))
    tx = adam_jax.skip_nonfinite(adamw("8bit"))

    def local(params, grads):
        return fused.step(tx)(params, grads, tx.init(params))[0]

    spec = {"w": P("a")}
    step = jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    expected, _ = take(tx, params, params, tx.init(params))
    poisoned = {"w": params["w"].at[3, 5].set(jnp.nan)}
    moved = jax.jit(step)(params, poisoned)
    others = np.arange(8) != 3
    assert_close(moved["w"][others], expected["w"][others])
    assert_close(moved["w"][3], params["w"][3])
    batch = jax.tree.map(lambda g: jnp.stack([g, g * jnp.inf]), params)
    state = tx.init(params)
    new, _ = jax.vmap(lambda g: fused.step(tx)(params, g, state))(batch)
    assert_close(jax.tree.map(lambda x: x[0], new), expected)
    assert_close(jax.tree.map(lambda x: x[1], new), params)


def test_leaves_that_the_kernel_does_not_know_go_through_xla():
    """Beside others that it does."""
    params = {**tree(), "half": jnp.ones(4, "float16"), "i": jnp.ones(3, "complex64")}
    tx = adam_jax.adamw(1e-2)
    state = tx.init(params)
    assert native_leaves(fused.step(tx), params, params, state) == available() * 5
    landed, expected = update_and_apply(tx, params, params, state)
    stepped, state = take(tx, params, params, state)
    assert_close(stepped, landed)
    assert_close(state, expected)


@pytest.mark.parametrize("wrap", ["masked", "recorded", "wrapped"])
def test_a_tree_that_the_wrapper_has_changed(wrap):
    """A wrapper whose optimizer's leaves are others than the tree's own."""
    tx = optax.chain(CHAINS[wrap](), optax.keep_params_nonnegative())
    assert_same_steps(tx, jax.tree.map(jnp.abs, tree()), leaves=0)


def test_parameters_that_decay_are_those_that_move():
    """A lookahead's: the decay is of others than what the update is added to."""
    inner = adam_jax.adamw(1e-2, weight_decay=0.5)

    def elsewhere(grads, state, params):
        return inner.update(grads, state, jax.tree.map(lambda p: p + 1, params))

    tx = optax.GradientTransformation(inner.init, elsewhere)
    assert_same_steps(tx, tree(), leaves=0)


def test_extra_arguments_reach_the_optimizer():
    plateau = optax.contrib.reduce_on_plateau()
    tx = optax.chain(adam_jax.adam(1e-2), plateau)
    params = tree()
    step = fused.step(tx)
    stepped, _ = step(params, params, tx.init(params), value=1.0)
    updates, _ = tx.update(params, tx.init(params), params, value=1.0)
    assert_close(stepped, optax.apply_updates(params, updates))

    def search(updates, state, params=None, *, value_fn, **extra):
        scale = value_fn(params)
        return jax.tree.map(lambda u: scale * u, updates), state

    line = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), search)
    tx = optax.chain(adam_jax.adam(1e-2), line)
    stepped, _ = fused.step(tx)(
        params, params, tx.init(params), value_fn=lambda p: jnp.float32(0.5)
    )
    half, _ = fused.step(adam_jax.adam(5e-3))(
        params, params, adam_jax.adam(5e-3).init(params)
    )
    assert_close(stepped, half)


def test_extra_arguments_of_every_kind():
    """Arrays are traced; strings, flags and functions, in whatever tree, are not."""

    def act(updates, state, params=None, *, how, flag=False):
        scale = how["by"](how["much"]) if how["name"] == "scaled" and flag else 0.0
        return jax.tree.map(lambda u: scale * u, updates), state

    line = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), act)
    tx, params = optax.chain(adam_jax.adam(1e-2), line), tree()
    options = {
        "how": {"by": lambda x: x / 2, "much": jnp.float32(3), "name": "scaled"},
        "flag": True,
    }
    stepped, _ = fused.step(tx)(params, params, tx.init(params), **options)
    updates, _ = tx.update(params, tx.init(params), params, **options)
    assert_close(stepped, optax.apply_updates(params, updates))


@needs_native
def test_the_backend_is_native():
    assert fused.backend() == "native"


def test_a_format_of_one_s_own_goes_through_xla():
    class Own(adam_jax.Format):
        reader = adam_jax.Dense

        def init(self, x, signed):
            return adam_jax.Stored(x, adam_jax.Dense())

        def encode(self, x, old, noise):
            return adam_jax.Stored(jnp.round(x, 3), adam_jax.Dense())

    assert_same_steps(adam_jax.adam(1e-2, mu_dtype=Own()), tree(), leaves=0)


@pytest.mark.parametrize("dtype", ["float16", "complex64"])
def test_other_dtypes_take_the_chain(dtype):
    params = tree(dtype)
    tx, grads = adam_jax.adamw(1e-2), gradients(0, params)
    state = tx.init(params)
    assert not is_native(fused.step(tx), params, grads, state)
    landed, _ = update_and_apply(tx, params, grads, state)
    assert_close(take(tx, params, grads, state)[0], landed, rtol=1e-3)


def test_float64_takes_the_chain():
    with jax.enable_x64(True):
        params = tree("float64")
        tx, grads = adam_jax.adamw(1e-2), gradients(0, params)
        state = tx.init(params)
        landed, _ = update_and_apply(tx, params, grads, state)
        assert_close(take(tx, params, grads, state)[0], landed, rtol=1e-14)


@needs_native
def test_half_precision_gradients_of_float32_parameters_are_native():
    params, tx = tree(), adam_jax.adamw(1e-2)
    state = tx.init(params)
    for dtype in ("float16", "bfloat16"):
        grads = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), params)
        assert is_native(fused.step(tx), params, grads, state)
        landed, _ = update_and_apply(tx, params, grads, state)
        assert_close(take(tx, params, grads, state)[0], landed)


@pytest.mark.parametrize("name", STORED)
def test_vmap_over_gradients_and_learning_rates(name):
    params = tree()
    batch = jax.tree.map(lambda g: jnp.stack([g, -2 * g]), gradients(0, params))

    def trained(takes_step, learning_rate, grads):
        stored = STORED[name]
        tx = adam_jax.adamw(learning_rate, mu_dtype=stored, nu_dtype=stored)
        new, state = params, tx.init(params)
        for _ in range(2):
            if takes_step:
                new, state = fused.step(tx)(new, grads, state)
            else:
                updates, state = tx.update(grads, state, new)
                new = optax.apply_updates(new, updates)
        return new

    rates = jnp.array([1e-2, 1e-3])
    ours, theirs = (
        jax.jit(jax.vmap(functools.partial(trained, takes_step)))(rates, batch)
        for takes_step in (True, False)
    )
    assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def test_step_under_vmap():
    params, tx = tree(), adam_jax.adamw(1e-2)
    batch = jax.tree.map(lambda g: jnp.stack([g, -2 * g]), gradients(0, params))
    state = tx.init(params)
    step = fused.step(tx)
    new, _ = jax.jit(jax.vmap(lambda g: step(params, g, state)))(batch)
    for i in range(2):
        grads = jax.tree.map(lambda g, i=i: g[i], batch)
        landed, _ = update_and_apply(tx, params, grads, state)
        assert_close(jax.tree.map(lambda x, i=i: x[i], new), landed)


def test_derivatives_through_the_step_are_the_chains():
    params = {"w": jnp.linspace(-1, 1, 5)}

    def loss(uses_step, learning_rate, scale):
        tx = adam_jax.adamw(learning_rate)
        new, state = params, tx.init(params)
        for power in (1, 2):
            grads = jax.tree.map(lambda x, power=power: scale * x**power, params)
            if uses_step:
                new, state = fused.step(tx)(new, grads, state)
            else:
                updates, state = tx.update(grads, state, new)
                new = optax.apply_updates(new, updates)
        return jnp.sum(new["w"] ** 2)

    def mixed(uses_step):
        first = jax.grad(functools.partial(loss, uses_step))
        return jax.jit(jax.grad(lambda a, b: first(a, b), argnums=(0, 1)))(1e-2, 1.0)

    assert_close(mixed(True), mixed(False), rtol=1e-4, atol=1e-6)


def test_in_a_scan_with_a_rate_from_outside():
    params = tree()

    @jax.jit
    def train(learning_rate):
        tx = adam_jax.adamw(learning_rate, mu_dtype="bfloat16", nu_dtype="bfloat16")

        def body(carry, number):
            grads = jax.tree.map(lambda p: p * jnp.cos(number), carry[0])
            return fused.step(tx)(carry[0], grads, carry[1]), None

        return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(4.0))[0]

    moved, state = train(1e-2)
    assert optax.tree.get(state, "count") == 4
    distance = jnp.abs(moved["w"] - params["w"]).max()
    assert 0.01 < distance < 0.05
    assert is_native(train, 1e-2) == available()


def test_transformations_copy_pickle_and_rebuild():
    """Nothing is lost: there is nothing beside the pair that Optax knows."""
    params = tree()
    tx = optax.chain(optax.clip_by_global_norm(1.0), adam_jax.adamw(1e-3))
    state = tx.init(params)
    expected = take(tx, params, params, state)

    @dataclasses.dataclass
    class Holder:
        tx: optax.GradientTransformation

    copies = [
        copy.copy(tx),
        copy.deepcopy(tx),
        tx._replace(init=tx.init),
        jax.tree.map(lambda x: x, tx),
        dataclasses.asdict(Holder(tx))["tx"],
        pickle.loads(cloudpickle.dumps(tx)),
    ]

    # As an argument that is no array, beside a model that is one.
    @eqx.filter_jit
    def step(params, tx, state):
        return fused.step(tx)(params, params, state)

    assert_close(step(params, tx, state), expected, rtol=0, atol=0)
    for other in copies:
        assert is_native(fused.step(other), params, params, state) == available()
        assert_close(take(other, params, params, state), expected, rtol=0, atol=0)


def sharded(params):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    specs = {"w": P("a", "b"), "b": P("a")}
    place = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    return mesh, specs, place, jax.device_put(params, place)


@pytest.mark.parametrize("name", STORED)
def test_on_a_mesh_xla_shards_the_chain(name):
    params = {"w": jnp.linspace(-1, 1, 8 * 128).reshape(8, 128), "b": jnp.ones(8)}
    _, _, place, placed = sharded(params)
    tx = adamw(name)
    for wrap in (adam_jax.skip_nonfinite, lambda tx: tx):
        step, state = fused.step(wrap(tx)), jax.jit(wrap(tx).init)(placed)
        compiled = jax.jit(step).lower(placed, placed, state).compile()
        assert "all-gather" not in compiled.as_text()
    expected, _ = take(tx, params, params, tx.init(params))
    assert_close(compiled(placed, placed, state)[0], expected)
    # Nothing tells a traced step that its inputs are going to be sharded.
    given = params, params, jax.device_get(state)
    shardings = place, place, jax.tree.map(lambda x: x.sharding, state)
    late = jax.jit(step, in_shardings=shardings).lower(*given).compile()
    assert "all-gather" not in late.as_text()
    made = late(*given)
    assert_close(made[0], expected)
    for new, old in zip(*map(jax.tree.leaves, (made, (placed, state))), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, new.ndim)


@needs_native
@pytest.mark.parametrize("name", STORED)
def test_in_a_shard_map_each_shard_is_native(name):
    params = {"w": jnp.linspace(-1, 1, 8 * 128).reshape(8, 128), "b": jnp.ones(8)}
    mesh, specs, _, _ = sharded(params)
    tx = adamw(name)

    def local(params, grads):
        return fused.step(tx)(params, grads, tx.init(params))[0]

    step = jax.shard_map(local, mesh=mesh, in_specs=(specs, specs), out_specs=specs)
    assert is_native(step, params, params)
    expected, _ = take(tx, params, params, tx.init(params))
    assert_close(jax.jit(step)(params, params), expected)


@needs_native
def test_a_donated_step_happens_in_place():
    params = {"w": jnp.ones((64, 1024))}
    tx = adam_jax.adamw(1e-3)
    state = tx.init(params)
    step = jax.jit(fused.step(tx), donate_argnums=(0, 2)).lower(params, params, state)
    memory = step.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4096
    assert memory.alias_size_in_bytes >= 3 * params["w"].nbytes


@needs_native
def test_a_step_is_exported_where_its_call_is_allowed():
    params = tree()
    tx = adam_jax.adamw(1e-2)
    step, state = fused.step(tx), tx.init(params)
    allowed = jax.export.DisabledSafetyCheck.custom_call("adam_jax_fused_step")
    exported = jax.export.export(jax.jit(step), disabled_checks=[allowed])(
        params, params, state
    )
    called = exported.call(params, params, state)
    assert_close(called, step(params, params, state))


@needs_native
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_a_step_is_exported_for_several_platforms():
    """Each has its own kernel, or none."""
    params = {"w": jnp.ones((16, 64))}
    format = eight_bit(min_size=0)
    tx = adam_jax.adamw(1e-2, mu_dtype=format, nu_dtype=format)
    step, state = jax.jit(fused.step(tx)), tx.init(params)
    calls = "adam_jax_fused_step", "__gpu$xla.gpu.triton"
    allowed = [jax.export.DisabledSafetyCheck.custom_call(name) for name in calls]
    exported = jax.export.export(
        step, platforms=["cpu", "cuda", "tpu"], disabled_checks=allowed
    )(params, params, state)
    assert_close(exported.call(params, params, state), step(params, params, state))


def test_flax_train_state():
    params = tree()
    grads = gradients(0, params)
    ours, theirs = (
        TrainState.create(apply_fn=None, params=params, tx=tx)
        for tx in (adam_jax.adamw(1e-2), adam_jax.adamw(1e-2))
    )
    ours = jax.jit(fused.apply_gradients)(ours, grads)
    theirs = jax.jit(lambda s, g: s.apply_gradients(grads=g))(theirs, grads)
    assert ours.step == theirs.step == 1
    assert_close(ours.params, theirs.params)
    assert_close(ours.opt_state, theirs.opt_state)


def test_flax_nnx():
    def train(wrap, update):
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        tx = wrap(adam_jax.adamw(1e-2, mu_dtype=eight_bit(min_size=6)))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((4, 3))) ** 2))(model)
            update(optimizer, model, grads)

        for _ in range(3):
            step(model, optimizer)
        assert optimizer.step[...] == 3
        return nnx.to_pure_dict(nnx.state(model))

    theirs = train(lambda tx: tx, nnx.Optimizer.update)
    for wrap in (lambda tx: tx, adam_jax.packed):
        assert_close(train(wrap, fused.update_model), theirs, 1e-6)
        assert_close(train(wrap, nnx.Optimizer.update), theirs, 1e-6)


def test_errors_are_those_of_the_chain():
    params = tree()
    tx = adam_jax.adamw(1e-3)
    step, state = fused.step(tx), tx.init(params)
    small = adam_jax.packed(adam_jax.adamw(1e-3))
    with pytest.raises(AssertionError, match="grads do not fit the optimizer's packed"):
        fused.step(small)(*[{"v": jnp.ones(3)}] * 2, small.init(params))
    with pytest.raises(
        AssertionError, match=r"grads do not fit mu .*: \['rest'\]\['b'\] is miss"
    ):
        step(params, {"w": params["w"]}, state)
    with pytest.raises(AssertionError, match=r"shape \(5,\), not \(5, 70\)"):
        step(params, params | {"w": jnp.ones(5)}, state)
    with pytest.raises(TypeError, match="dtype int32"):
        step(params, params | {"w": jnp.ones((5, 70), int)}, state)
    with pytest.raises(ValueError, match="another format"):
        fused.step(adam_jax.adamw(1e-3, mu_dtype="8bit"))(params, params, state)


def test_without_the_library_it_says_so_once_and_goes_through_xla(monkeypatch):
    monkeypatch.setattr(library, "available", lambda: False)
    stepping._warn_once.cache_clear()
    params, tx = tree(), adam_jax.adamw(1e-2)
    with pytest.warns(UserWarning, match="without its native library"):
        step = fused.step(tx)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused.step(tx)
    assert fused.backend() == "xla"
    grads = gradients(0, params)
    landed, _ = update_and_apply(tx, params, grads, tx.init(params))
    assert_close(step(params, grads, tx.init(params))[0], landed)
    tx = adam_jax.skip_nonfinite(tx)
    text = jax.jit(fused.step(tx)).lower(params, grads, tx.init(params)).as_text()
    assert "adam_jax_fused" not in text
