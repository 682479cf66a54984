"""The native step beside the composed chain, jitted: bits where they are defined."""

import os
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import EightBit, Stored, dense, eight_bit
from adam_jax.fused import kernels
from adam_jax.fused.cpu import native
from adam_jax.hyperparams import at
from adam_jax.native import library

pytestmark = pytest.mark.skipif(
    not library.available(), reason="the native library was not built"
)

FORMATS = {
    "float32": dense("float32", seed=3),
    "bfloat16": dense("bfloat16", seed=4),
    "8bit": eight_bit(min_size=64, seed=5),
    "8bit, odd blocks": eight_bit(block=7, min_size=0, seed=6),
}
NO_SEEDS = kernels.Seeds(0, 0, 0)
SHAPES = [(), (3, 0), (7,), (65,), (3, 2, 100), (2, 5003)]


class Leaf(NamedTuple):
    """A parameter, new or old, and what belongs to it."""

    param: Any
    grad: Any
    mu: Any
    nu: Any
    mu_exponents: Any = None
    nu_exponents: Any = None


def call(leaves, scalars, counts, decays, rounding, seeds=NO_SEEDS, **options):
    """Step leaves, each on its own; return them with new params and moments."""
    stepped = [None] * len(leaves)
    for decay in (False, True):
        chosen = [i for i, x in enumerate(decays) if x == decay]
        groups = [
            kernels.Group(i, [i], [leaves[i].param], [leaves[i].grad], *leaves[i][2:])
            for i in chosen
        ]
        kind = kernels.Options(decay, rounding, seeds, **options)
        after = native.step(groups, scalars, counts, kind) if groups else []
        for i, group in zip(chosen, after, strict=True):
            stepped[i] = Leaf(*group.params, leaves[i].grad, *group[1:])
    return stepped


def half(count):
    """Return 1/2, without XLA's knowing: of a constant it takes out the factor."""
    return jnp.where(count < 1000, 0.5, 0.9)


EXACT = {"b1": half, "b2": half, "learning_rate": 2.0**-7, "weight_decay": 0.25}
USUAL = {"b1": 0.9, "b2": 0.999, "learning_rate": 1e-3, "weight_decay": 0.01}
ROUNDINGS = ["nearest", "stochastic"]
PARAM_SEED = 8
STEPS = 3


def scalars(count, seen, b1, b2, learning_rate, weight_decay, eps, eps_root, corrects):
    """Return what the composed chain computes with, as it rounds it."""
    b1, b2 = (at(b, count, "float32") for b in (b1, b2))
    return kernels.Scalars(
        b1=b1,
        one_minus_b1=1 - b1,
        b2=b2,
        one_minus_b2=1 - b2,
        learning_rate=learning_rate,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
        mu_weight=seen[0] if corrects else 1.0,
        nu_weight=seen[1] if corrects else 1.0,
        look_ahead=seen[0] / (b1 * seen[0] + (1 - b1)),
    )


def composed(h, mu, nu, rounding, nesterov, eps, eps_root, corrects, mask):
    """Return the chain, as adamw builds it, with or without bias correction."""
    tx = optax.chain(
        adam_jax.scale_by_moments(
            b1=adam_jax.ema(h["b1"], nesterov=nesterov),
            b2=h["b2"],
            mu_dtype=FORMATS[mu],
            nu_dtype=FORMATS[nu],
        ),
        adam_jax.bias_correct(mu=corrects, nu=corrects),
        adam_jax.precondition(eps=eps, eps_root=eps_root),
        adam_jax.add_decayed_weights(h["weight_decay"], mask),
        adam_jax.scale_by_lr(h["learning_rate"]),
    )
    if rounding == "stochastic":
        return adam_jax.round_to_params(tx, seed=PARAM_SEED)
    return tx


def moments_of(state, rounding):
    return (state.inner_state if rounding == "stochastic" else state)[0]


def exponents_of(format, count):
    """Return the exponents of each leaf's codes, None for those without."""
    if not format:
        return [None] * count
    hole = optax.MaskedNode()
    return [None if x == hole else x for x in format.exponents]


def leaves_of(params, grads, moments):
    exponents = (
        exponents_of(format, len(params))
        for format in (moments.mu_format, moments.nu_format)
    )
    rows = zip(params, grads, moments.mu, moments.nu, *exponents, strict=True)
    return [Leaf(*row) for row in rows]


def random_tree(seed, dtype, specials):
    """Return arrays of SHAPES over many scales, some of their elements special."""
    rng = np.random.default_rng(seed)
    arrays = []
    for shape in SHAPES:
        x = rng.normal(size=shape) * 10 ** rng.uniform(-4, 1, size=shape)
        if specials and x.size:
            values = [0.0, np.nan, np.inf, -np.inf, 1e30, -3e38, 1e-30, 1e-42]
            places = rng.integers(0, 40, size=shape)
            x = np.select([places == i for i in range(len(values))], values, x)
        arrays.append(jnp.asarray(np.asarray(x, np.float32), dtype))
    return arrays


def bits(x):
    """Return the bits of an array, every NaN with the same ones."""
    x = np.asarray(x)
    if x.dtype not in (np.int8, np.uint8):
        x = np.where(np.isnan(x), np.array(np.nan, x.dtype), x)
    return x.view(f"uint{8 * x.dtype.itemsize}")


def run(
    h,
    mu="float32",
    nu="float32",
    *,
    rounding="nearest",
    params="float32",
    grads="float32",
    nesterov=False,
    eps=1e-8,
    eps_root=0.0,
    corrects=True,
    specials=False,
):
    """Yield, step after step, the grads, the state before, theirs and ours."""
    decays = [i % 3 > 0 for i in range(len(SHAPES))]
    tx = composed(h, mu, nu, rounding, nesterov, eps, eps_root, corrects, decays)

    @jax.jit
    def theirs(params, grads, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def ours(params, grads, state, seen):
        m = moments_of(state, rounding)
        return call(
            leaves_of(params, grads, m),
            scalars(m.count, seen, eps=eps, eps_root=eps_root, corrects=corrects, **h),
            kernels.Counts(m.count, m.count),
            decays,
            rounding=rounding,
            nesterov=nesterov,
            seeds=kernels.Seeds(FORMATS[mu].seed, FORMATS[nu].seed, PARAM_SEED),
        )

    p = random_tree(0, params, False)
    state = tx.init(p)
    for step in range(STEPS):
        g = random_tree(step + 1, grads, specials)
        before = moments_of(state, rounding)
        out, new_state = theirs(p, g, state)
        after = moments_of(new_state, rounding)
        got = ours(p, g, state, after.weights[:, 0])
        expected = leaves_of(out, g, after)
        state = new_state
        yield p, g, before, expected, got
        p = out


def assert_same(expected, got):
    for leaf, ours in zip(expected, got, strict=True):
        assert ours.param.dtype == leaf.param.dtype
        np.testing.assert_array_equal(bits(ours.mu), bits(leaf.mu))
        np.testing.assert_array_equal(bits(ours.nu), bits(leaf.nu))
        np.testing.assert_array_equal(bits(ours.param), bits(leaf.param))
        for name in ("mu_exponents", "nu_exponents"):
            exponents = getattr(leaf, name)
            assert (exponents is None) == (getattr(ours, name) is None)
            if exponents is not None:
                np.testing.assert_array_equal(getattr(ours, name), exponents)


# Halves and quarters multiply exactly, so that it does not matter whether XLA fuses a
# product into a sum: every bit is defined.
@pytest.mark.parametrize("shift", range(2))
@pytest.mark.parametrize("number", range(len(FORMATS)))
def test_every_storage_is_bit_for_bit(number, shift):
    # Alike and unlike: the loads and stores of mu and nu know nothing of each other.
    mu, nu = (list(FORMATS)[(number + i) % len(FORMATS)] for i in (0, shift))
    rounding = ROUNDINGS[(number + shift) % 2]
    for *_, expected, got in run(EXACT, mu, nu, rounding=rounding, grads="bfloat16"):
        assert_same(expected, got)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("params", ["float32", "bfloat16"])
@pytest.mark.parametrize("grads", ["float32", "bfloat16"])
def test_every_dtype_is_bit_for_bit(params, grads, rounding):
    steps = run(EXACT, rounding=rounding, params=params, grads=grads)
    for *_, expected, got in steps:
        assert_same(expected, got)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_infinite_huge_and_subnormal_gradients(dtype, rounding):
    steps = run(
        EXACT,
        "8bit",
        "8bit",
        rounding=rounding,
        params=dtype,
        grads=dtype,
        specials=True,
    )
    for *_, expected, got in steps:
        assert_same(expected, got)


def test_special_gradients_in_wide_moments():
    for *_, expected, got in run(EXACT, "float32", "bfloat16", specials=True):
        assert_same(expected, got)


@pytest.mark.parametrize("options", [{"eps_root": 1e-6}, {"corrects": False}])
def test_options_are_bit_for_bit(options):
    for *_, expected, got in run(EXACT, "bfloat16", "8bit", **options):
        assert_same(expected, got)


def test_many_leaves_in_several_calls(monkeypatch):
    monkeypatch.setattr(native, "_ARRAYS_IN_A_CALL", 40)  # three leaves
    for *_, expected, got in run(EXACT, "8bit", "8bit", params="bfloat16"):
        assert_same(expected, got)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "8bit"])
def test_usual_hyperparameters(storage, nesterov):
    # XLA fuses now one product of mu, now the other, as its loops fall out: mu is off
    # by up to 2^-24 of the products. Every later operation rounds once in each.
    ulp = 2.0**-23
    steps = run(USUAL, storage, storage, nesterov=nesterov)
    b1, b2 = USUAL["b1"], USUAL["b2"]
    rate, decay = USUAL["learning_rate"], USUAL["weight_decay"]
    for t, (params, grads, before, expected, got) in enumerate(steps, 1):
        old = leaves_of(params, grads, before)
        for leaf, theirs, ours in zip(old, expected, got, strict=True):
            old_mu, old_nu = decode(storage, leaf)
            products = np.abs(b1 * old_mu) + np.abs((1 - b1) * leaf.grad)
            nu = b2 * old_nu + (1 - b2) * np.square(np.float64(leaf.grad))
            root = np.sqrt(nu / (1 - b2**t)) + 1e-8
            ratio = (1 + nesterov) * products / ((1 - b1**t) * root)
            param = np.abs(np.float64(leaf.param))
            allowed = rate * ulp * (3 * ratio + decay * param)
            allowed += ulp * (param + rate * ratio)
            error = np.abs(np.float64(ours.param) - np.float64(theirs.param))
            assert (error <= allowed).all(), (error / allowed).max()
            if storage == "float32":
                assert (np.abs(ours.mu - theirs.mu) <= ulp * products).all()
                np.testing.assert_array_max_ulp(ours.nu, theirs.nu, 1)
            elif ours.mu.size:
                assert np.mean(bits(ours.mu) != bits(theirs.mu)) < 1e-3
                assert np.mean(bits(ours.nu) != bits(theirs.nu)) < 1e-3


def decode(storage, leaf):
    """Return both moments of a leaf in float64."""
    kept = [(leaf.mu, leaf.mu_exponents), (leaf.nu, leaf.nu_exponents)]
    wide = [
        x if beside is None else Stored(x, EightBit(beside)).decode()
        for x, beside in kept
    ]
    return [np.float64(x) for x in wide]


def test_zero_gradients_move_nothing():
    leaf = Leaf(*[jnp.zeros(100)] * 4)
    [stepped] = call(
        [leaf],
        scalars(0, (0.1, 0.001), **USUAL, eps=0.0, eps_root=0.0, corrects=True),
        kernels.Counts(0, 0),
        [True],
        rounding="nearest",
    )
    for x in (stepped.param, stepped.mu, stepped.nu):
        assert not x.any()


def test_arguments_that_are_not_donated_stay():
    leaf = Leaf(*[jnp.ones(1000) for _ in range(4)])
    first = jax.jit(one_step)(leaf)
    again = jax.jit(one_step)(leaf)
    assert all((x == 1).all() for x in leaf[:4])
    np.testing.assert_array_equal(first.param, again.param)


def test_a_donated_step_is_in_place():
    def step(kept, grad):
        stepped = one_step(Leaf(kept[0], grad, *kept[1:]))
        return stepped.param, stepped.mu, stepped.nu

    kept = [jnp.ones(1000) for _ in range(3)]
    places = [x.unsafe_buffer_pointer() for x in kept]
    stepped = jax.jit(step, donate_argnums=0)(kept, jnp.ones(1000))
    assert [x.unsafe_buffer_pointer() for x in stepped] == places


def step_group(group, rounding="nearest"):
    [stepped] = native.step(
        [group],
        scalars(0, (0.1, 0.001), **USUAL, eps=1e-8, eps_root=0.0, corrects=True),
        kernels.Counts(0, 0),
        kernels.Options(False, rounding, NO_SEEDS),
    )
    return stepped


def one_step(leaf, **options):
    group = kernels.Group(17, [17], [leaf.param], [leaf.grad], *leaf[2:])
    after = step_group(group, **options)
    return Leaf(*after.params, leaf.grad, *after[1:])


def codes(mu_exponents):
    return {"mu": jnp.zeros((4, 40), "int8"), "mu_exponents": mu_exponents}


WRONG = {
    "mu is F32.4,41., expected the shape of grad": {"mu": jnp.zeros((4, 41))},
    "nu is F32.160., expected the shape of grad": {"nu": jnp.zeros(160)},
    "param is F32.., expected the shape of grad": {"param": jnp.zeros(())},
    "param is F16.4,40., expected float32": {"param": jnp.zeros((4, 40), "float16")},
    "grad is S32.4,40., expected float32": {"grad": jnp.zeros((4, 40), "int32")},
    "nu is F16.4,40., expected float32": {"nu": jnp.zeros((4, 40), "float16")},
    "mu is S8.4,40., expected float32": {"mu": jnp.zeros((4, 40), "int8")},
    "mu is U8.4,40., expected S8, its codes": {
        "mu": jnp.zeros((4, 40), "uint8"),
        "mu_exponents": jnp.zeros((4, 2), "uint8"),
    },
    "mu_exponents is U8.4., expected": codes(jnp.zeros(4, "uint8")),
    "mu_exponents is U8.3,2., expected": codes(jnp.zeros((3, 2), "uint8")),
    "mu_exponents is U8.4,0., expected": codes(jnp.zeros((4, 0), "uint8")),
    "mu_exponents is S8.4,2., expected": codes(jnp.zeros((4, 2), "int8")),
    "nu is F32.4,40., expected U8, its codes": {
        "nu_exponents": jnp.zeros((4, 2), "uint8")
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_operands_are_errors(message):
    leaf = Leaf(*[jnp.zeros((4, 40))] * 4)._replace(**WRONG[message])
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"leaf 17: {message}"):
        jax.block_until_ready(one_step(leaf))


def test_leaves_in_a_group_share_moments():
    shapes = [(3,), (2, 700), (0,), (40,)]
    params, grads = (
        [jax.random.normal(jax.random.key(i + k), s) for i, s in enumerate(shapes)]
        for k in (0, 4)
    )

    def flat(arrays):
        return jnp.concatenate([x.ravel() for x in arrays])

    mu, nu = (x.astype("bfloat16") for x in (flat(grads) / 4, flat(params) ** 2))
    stepped = step_group(kernels.Group(17, [4, 9, 2, 7], params, grads, mu, nu))
    whole = one_step(Leaf(flat(params), flat(grads), mu, nu))
    np.testing.assert_array_equal(bits(stepped.mu), bits(whole.mu))
    np.testing.assert_array_equal(bits(stepped.nu), bits(whole.nu))
    np.testing.assert_array_equal(bits(flat(stepped.params)), bits(whole.param))
    # Parameters are rounded by their own places in the tree.
    narrow = [p.astype("bfloat16") for p in params]
    group = kernels.Group(0, [4, 17, 2, 7], narrow, grads, mu, nu)
    stepped = step_group(group, rounding="stochastic")
    leaf = Leaf(
        narrow[1], grads[1], mu[3:1403].reshape(2, 700), nu[3:1403].reshape(2, 700)
    )
    alone = one_step(leaf, rounding="stochastic").param
    np.testing.assert_array_equal(bits(stepped.params[1]), bits(alone))


def test_moments_that_do_not_fit_their_group_are_errors():
    group = kernels.Group(0, [3, 5], *[[jnp.zeros(4)] * 2] * 2, *[jnp.zeros(8)] * 2)
    wrong = {
        "leaf 3: mu is F32.7., expected .8., the elements of its group": {
            "mu": jnp.zeros(7)
        },
        "leaf 3: nu is F32.2,4., expected .8., the elements of its group": {
            "nu": jnp.zeros((2, 4))
        },
        "leaf 3: mu is S8.8., expected no codes": {
            "mu": jnp.zeros(8, "int8"),
            "mu_exponents": jnp.zeros(1, "uint8"),
        },
        "leaf 5: param is F32.3., expected the shape of grad": {
            "params": [jnp.zeros(4), jnp.zeros(3)]
        },
    }
    for message, change in wrong.items():
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            jax.block_until_ready(step_group(group._replace(**change)))


def test_an_unknown_rounding_is_an_error():
    leaf = Leaf(*[jnp.zeros(4)] * 4)
    with pytest.raises(
        jax.errors.JaxRuntimeError, match="rounding is 'down', expected"
    ):
        jax.block_until_ready(one_step(leaf, rounding="down"))


PRINT_HASH = """
import hashlib, os, jax, test_native as t
digest = hashlib.sha256()
for storage in ("float32", "bfloat16", "8bit"):
    shapes, t.SHAPES, t.STEPS = t.SHAPES, [(100, 1001), (5,)] * 2, 1
    for *_, got in t.run(t.USUAL, storage, storage, params="bfloat16"):
        for x in jax.tree.leaves(got):
            digest.update(t.bits(x).tobytes())
tasks = "/proc/self/task"
names = [open(f"{tasks}/{i}/comm").read() for i in os.listdir(tasks)]
print(digest.hexdigest(), sum("XLAEigen" in name for name in names))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_any_number_of_threads_gives_the_same_bits():
    found = []
    for threads in (1, 2, 8):
        environment = os.environ | {
            "XLA_FLAGS": "",
            "NPROC": str(threads),  # the size of XLA's pool
            "PYTHONPATH": os.path.dirname(__file__),
        }
        printed = subprocess.run(
            [sys.executable, "-c", PRINT_HASH],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        found.append(printed.stdout.split())
    assert [int(pool) for _, pool in found] == [1, 2, 8]
    assert len({digest for digest, _ in found}) == 1
