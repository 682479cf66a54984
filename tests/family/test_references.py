"""Optimizers against trajectories that other libraries made: reference/family.npz."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import from_json, run

import adam_jax

FILE = pathlib.Path(__file__).parents[1] / "reference" / "family.npz"
with np.load(FILE) as file:
    REFERENCE = dict(file)
CASES = json.loads(REFERENCE["cases"].item())
GIVEN = "grads", "params0"


@pytest.mark.parametrize("name", CASES)
def test_float64_follows_the_other_library(name):
    case = CASES[name]
    grads, params0 = (REFERENCE[f"{kind}/{case['leaf']}"] for kind in GIVEN)
    expected = REFERENCE[f"params/{name}"]
    with jax.enable_x64(True):
        tx = adam_jax.OPTIMIZERS[case["optimizer"]](**from_json(case["kwargs"]))
        _, params, _ = run(tx, jnp.asarray(grads), jnp.asarray(params0))
    step = np.abs(np.diff(expected, axis=0, prepend=params0[None])).mean(axis=0)
    # Both round the parameters at every step, by up to half a unit in the last place.
    rounding = len(grads) * np.finfo(np.float64).eps * np.max(np.abs(expected), axis=0)
    excess = np.abs(params - expected) / (case["rtol"] * step + rounding)
    assert np.max(excess) <= 1, f"{case['library']}: {case['reason']}"
