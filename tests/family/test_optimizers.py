"""Every optimizer against the oracle, against Optax, and against PyTorch."""

import inspect
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from cases import CASES, MAKERS, beside_oracle, first_often, gradients, run
from oracle import trajectory

import adam_jax

FILE = pathlib.Path(__file__).parents[1] / "reference" / "torch.npz"
with np.load(FILE) as file:
    REFERENCE = dict(file)
TORCH_CASES = json.loads(REFERENCE["cases"].item())
WRAPPERS = {"lookahead"}  # around any optimizer there, a chain here
IN_OPTAX = [x for x in adam_jax.OPTIMIZERS if hasattr(optax, x) and x not in WRAPPERS]
IN_CONTRIB = [name for name in adam_jax.OPTIMIZERS if hasattr(optax.contrib, name)]
LEFT_OUT = {"muon": ["preconditioning", "muon_weight_dimension_numbers"]}


@pytest.mark.parametrize("case", first_often(CASES))
def test_float64_follows_the_oracle(case):
    updates, expected = beside_oracle(case, 1000)
    # Relative to the step: sgd's is as large as the gradient. The floor is for the
    # errors of mu where gradients cancel: 1000 roundings of 1e-16.
    size = np.maximum(np.abs(expected), 1e-2)
    assert np.max(np.abs(updates - expected) / size) < 1e-12


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "rmsprop", "amsgrad"])
def test_complex_parameters_follow_the_oracle(name):
    grads = gradients(100) + 1j * gradients(100, seed=1)
    params = np.linspace(-1, 1, 6) * (1 + 1j)
    expected, _ = trajectory(name, grads, params, learning_rate=1e-2)
    with jax.enable_x64(True):
        updates, _, state = run(MAKERS[name](1e-2), jnp.asarray(grads), params)
    assert optax.tree.get(state, "nu").dtype == np.float64
    np.testing.assert_allclose(updates, expected, rtol=0, atol=1e-14)


def float32_error(tx, grads, params, expected):
    updates, _, _ = run(tx, jnp.asarray(grads, jnp.float32), jnp.float32(params))
    error = (np.asarray(updates, np.float64) - expected) / np.maximum(
        np.abs(expected), 1e-3
    )
    return np.sqrt(np.mean(error**2))


@pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated")
@pytest.mark.parametrize("name", IN_OPTAX)
def test_float32_is_no_further_from_the_oracle_than_optax(name):
    grads = gradients(1000).astype(np.float32)  # the oracle sees the rounded ones
    params = np.linspace(-1, 1, 6).astype(np.float32)
    expected, _ = trajectory(name, grads, params, learning_rate=1e-3)
    ours = float32_error(MAKERS[name](1e-3), grads, params, expected)
    theirs = float32_error(getattr(optax, name)(1e-3), grads, params, expected)
    print(f"{name}: float32 RMS error {ours:.1e}, Optax {theirs:.1e}")
    # Where neither has a weight to lose digits in, both round alike, up to chance.
    assert ours <= 1.03 * theirs


@pytest.mark.parametrize("name", IN_OPTAX + IN_CONTRIB)
def test_signature_is_optax_s(name):
    make = getattr(optax, name, None) or getattr(optax.contrib, name)
    ours = inspect.signature(adam_jax.OPTIMIZERS[name]).parameters
    theirs = dict(inspect.signature(make).parameters)
    for left_out in LEFT_OUT.get(name, ()):
        del theirs[left_out]
    assert [n for n in ours if n in theirs] == list(theirs)
    for parameter in theirs.values():
        own = ours[parameter.name]
        if isinstance(parameter.default, type(jnp.float32)):  # a schedule, to Optax
            assert own.default == jnp.dtype(parameter.default).name
        elif not callable(parameter.default):
            assert own.default == parameter.default, parameter
        assert own.kind == parameter.kind, parameter
    for added in ours.keys() - theirs.keys():
        assert ours[added].kind == inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", TORCH_CASES)
def test_float64_follows_pytorch(name):
    case = TORCH_CASES[name]
    tx = MAKERS[case["optimizer"]](**case["kwargs"])
    with jax.enable_x64(True):
        _, params, _ = run(tx, jnp.asarray(REFERENCE["grads"]), REFERENCE["params0"])
    np.testing.assert_allclose(params, REFERENCE[f"params/{name}"], rtol=0, atol=1e-10)


def test_the_three_stage_chain_is_adam():
    chain = optax.chain(
        adam_jax.scale_by_moments(b1=0.9, b2=0.999),
        adam_jax.bias_correct(),
        adam_jax.scale_by_lr(1e-3),
    )
    grads, params = jnp.asarray(gradients(100), jnp.float32), jnp.zeros(6)
    ours, _, _ = run(chain, grads, params)
    named, _, _ = run(adam_jax.adam(1e-3), grads, params)
    assert (ours == named).all()
