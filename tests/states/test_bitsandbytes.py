"""Runs that bitsandbytes began, taken here from its state after 10 steps."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from going_on import assert_close, take_steps

import adam_jax
from adam_jax import (
    add_decayed_weights,
    adopt_state,
    precondition,
    read_torch,
    scale_by_lr,
    scale_by_moments,
    total,
)

FILE = pathlib.Path(__file__).parents[1] / "reference" / "bitsandbytes_states.npz"
with np.load(FILE) as file:
    STORED = dict(file)
HIDDEN = "__bnb_optimizer_quant_state__"
LR, HALFWAY, STEPS = 0.01, 10, 20
PATHS = ["dense/kernel", "dense/bias"]


def as_params(prefix, number=...):
    weight, bias = (STORED[f"{prefix}/{name}"][number] for name in ("weight", "bias"))
    return {"dense": {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}}


def load_case(case):
    """Return a state_dict as bitsandbytes returned it."""
    state = {}
    for key, value in STORED.items():
        if key.startswith(f"{case}/state/"):
            _, _, index, name = key.split("/")
            place = state.setdefault(int(index), {})
            if name.startswith(HIDDEN):
                place = place.setdefault(HIDDEN, {})
            place[name.removeprefix(f"{HIDDEN}.")] = value
    return {
        "state": state,
        "param_groups": json.loads(str(STORED[f"{case}/param_groups"])),
    }


def read(state_dict, params=None):
    params = as_params("params0") if params is None else params
    return read_torch(state_dict, params, PATHS)


RMSPROP = adam_jax.rmsprop(LR, 0.99, eps_in_sqrt=False)
ADAGRAD = optax.chain(
    scale_by_moments(None, total()), precondition(1e-10), scale_by_lr(LR)
)
ADAMW = adam_jax.adamw(LR, weight_decay=0.1)
LION = adam_jax.lion(LR, weight_decay=0.1)
DECAY = add_decayed_weights(0.1)
CASES = {
    "adam": adam_jax.adam(LR),
    "adam_decayed": ADAMW,
    "adamw": ADAMW,
    "lion": LION,
    "rmsprop": optax.chain(DECAY, RMSPROP),
    "adagrad": ADAGRAD,
    "sgd": optax.chain(DECAY, adam_jax.sgd(LR, 0.9)),
    "adam_8bit": adam_jax.adam(LR),
    "adamw_8bit": ADAMW,
    "paged_adamw_8bit": ADAMW,
    "lion_8bit": LION,
    "rmsprop_8bit": RMSPROP,
    "adagrad_8bit": ADAGRAD,
    "sgd_8bit": adam_jax.sgd(LR, 0.9),
}


def go_on(case, last):
    """Take some of the other steps."""
    tx, params = CASES[case], as_params(f"{case}/params10")
    adopted = adopt_state(tx, read(load_case(case)), params)
    assert not adopted.started and not adopted.dropped
    others = (as_params("grads", number) for number in range(HALFWAY, last))
    return take_steps(tx, adopted.state, params, others)[0]


@pytest.mark.parametrize("case", [case for case in CASES if "8bit" not in case])
def test_the_second_half_is_that_of_bitsandbytes(case):
    assert_close(go_on(case, STEPS), as_params(f"{case}/params20"), 2e-6)


@pytest.mark.parametrize("case", [case for case in CASES if "8bit" in case])
def test_the_next_step_from_8_bits_is_that_of_bitsandbytes(case):
    """It steps before it rounds the moments again, so that this step is exact."""
    assert_close(go_on(case, HALFWAY + 1), as_params(f"{case}/params11"), 2e-6)
    moved = go_on(case, STEPS)["dense"]["bias"]  # it has 32 bits
    assert_close(moved, STORED[f"{case}/params20/bias"], 2e-6)


@pytest.mark.parametrize("case", [case for case in CASES if "8bit" in case])
def test_codes_are_decoded_as_bitsandbytes_does(case):
    decoded = [STORED[x] for x in sorted(STORED) if x.startswith(f"{case}/decoded")]
    [state] = read(load_case(case))
    moments = [state.mu, state.nu, state.trace]
    found = [x["dense/kernel"] for x in moments if x is not None]
    assert len(found) == len(decoded) == (2 if "adam" in case else 1)
    for x, y in zip(found, decoded, strict=True):
        np.testing.assert_array_equal(x, y.T)
        assert x.dtype == np.float32 and np.unique(x).size > 50


def test_parameters_may_have_names_as_under_fsdp():
    state_dict = load_case("adamw_8bit")
    [expected] = read(state_dict)
    [group] = state_dict["param_groups"]
    group["params"] = ["0.weight", "0.bias"]
    named = dict(zip(group["params"], state_dict["state"].values(), strict=True))
    [found] = read({"state": named, "param_groups": [group]})
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_older_versions_hide_nothing_and_have_larger_blocks():
    state_dict = load_case("adamw_8bit")
    [expected] = read(state_dict)
    for state in state_dict["state"].values():
        state |= state.pop(HIDDEN)
    [found] = read(state_dict)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

    codes = np.arange(50 * 60).reshape(50, 60) % 256
    qmap = np.linspace(-1, 1, 256, dtype=np.float32)

    def decode(scales):
        old = {
            "step": 2,
            "state1": codes.astype(np.uint8),
            "qmap1": qmap,
            "absmax1": np.asarray(scales, np.float32),
        }
        group = {"params": [0], "betas": (0.9, 0), "eps": 0.0}
        params = {"w": jnp.ones((50, 60))}
        [state] = read_torch({"state": {0: old}, "param_groups": [group]}, params, "w")
        return state.trace["w"]

    x = decode([2, 3])
    scales = np.where(np.arange(3000) < 2048, 2, 3).reshape(50, 60)
    np.testing.assert_array_equal(x, (qmap[codes] * scales).astype(np.float32))
    x = decode(np.arange(12))
    scales = (np.arange(3000) // 256).reshape(50, 60)
    np.testing.assert_array_equal(x, (qmap[codes] * scales).astype(np.float32))
    with pytest.raises(ValueError, match="w are 3000 codes with 3 scales, which are n"):
        decode([1, 2, 3])


@pytest.mark.parametrize("case", ["ademamix", "ademamix_8bit"])
def test_ademamix_is_refused(case):
    with pytest.raises(ValueError, match="AdEMAMix, of dense/kernel, has no counterp"):
        read(load_case(case))


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"'unorm_vec', of dense/kernel, .* LAMB's and"
    ):
        read(load_case("lamb_8bit"))
    whole = load_case("adam_8bit")
    hidden = whole["state"][0][HIDDEN]
    for name in ("max1", "new_max1"):
        hidden[name] = np.ones(1)
    with pytest.raises(ValueError, match=r"'max1', of dense.* tensor .block_wise=F"):
        read(whole)
    for name in ("qmap2", "absmax1"):
        state_dict = load_case("adam_8bit")
        del state_dict["state"][0][HIDDEN][name]
        with pytest.raises(ValueError, match=f"are codes, but have no {name}"):
            read(state_dict)
    state_dict = load_case("lion_8bit")
    del state_dict["param_groups"][0]["betas"]
    with pytest.raises(ValueError, match="group of dense/kernel lacks the eps and bet"):
        read(state_dict)


def test_8_bits_go_on_in_8_bits():
    """Blocks of another format round the moments once more."""
    tx = adam_jax.adam(LR, mu_dtype="8bit", nu_dtype="8bit")
    params = as_params("adam_8bit/params10")
    adopted = adopt_state(tx, read(load_case("adam_8bit")), params)
    assert not adopted.started and not adopted.dropped
    grads = as_params("grads", HALFWAY)
    updates, _ = tx.update(grads, adopted.state, params)
    expected = as_params("adam_8bit/params11")["dense"]["kernel"]
    found = optax.apply_updates(params, updates)["dense"]["kernel"]
    moved = np.abs(expected - params["dense"]["kernel"])
    off = np.abs(found - expected)
    assert np.median(off / moved) < 0.05


def test_states_are_not_written_to_bitsandbytes():
    """Whose groups are like those of Adamax, but for more."""
    state_dict = load_case("adamw")
    params = as_params("adamw/params10")
    shapes = [(20, 15), (20,)]
    with pytest.raises(ValueError, match="of bitsandbytes is read, but not written"):
        adam_jax.write_torch(ADAMW.init(params), state_dict, PATHS, shapes)
