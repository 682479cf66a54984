"""States that were restored without their structure, by Orbax and by Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

import adam_jax
from adam_jax import adopt_state

PARAMS = {"mu": {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(3)}}
MASK = {"mu": {"kernel": True, "bias": False}}


def rate(count):
    return 1e-3 / (1 + count)


CASES = {
    "adam": adam_jax.adam(rate),
    "8bit": adam_jax.adam(1e-3, mu_dtype="bfloat16", nu_dtype="8bit"),
    "factored": adam_jax.adam(1e-3, nu_dtype=adam_jax.factored(8)),
    "maxima": adam_jax.adam(1e-3, nu_dtype=adam_jax.axis_maxima()),
    "sgd": adam_jax.sgd(1e-3, 0.9, accumulator_dtype="8bit"),
    "amsgrad": adam_jax.amsgrad(1e-3),
    "optax_adamw": optax.chain(optax.clip(1.0), optax.adamw(rate)),
    "optax_masked": optax.masked(optax.adamw(rate), MASK),
    "optax_amsgrad": optax.amsgrad(rate),
    "optax_lion": optax.lion(rate),
    "optax_sgd": optax.sgd(rate, 0.9),
    "optax_adagrad": optax.adagrad(rate),
}


def by_orbax(state, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state")


def by_flax(state, folder):
    return serialization.msgpack_restore(serialization.to_bytes(state))


ORBAX = ("8bit", "optax_masked")  # the others in `make crossings`


@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring")
@pytest.mark.parametrize(
    ("case", "restore"),
    [
        *((case, by_flax) for case in CASES),
        *((case, by_orbax) for case in ORBAX),
        *(
            pytest.param(case, by_orbax, marks=pytest.mark.crossing)
            for case in CASES
            if case not in ORBAX
        ),
    ],
)
def test_nothing_is_lost(case, restore, tmp_path):
    tx = CASES[case]
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    # As in a TrainState, whose model has a layer that is called like a moment.
    train_state = {"params": PARAMS, "step": jnp.int32(1), "opt_state": state}
    adopted = adopt_state(tx, restore(train_state, tmp_path), PARAMS)
    assert not adopted.started
    assert adopted.dropped == ("params/mu/bias", "params/mu/kernel", "step")
    jax.tree.map(np.testing.assert_array_equal, adopted.state, state)


LAYER = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
ALIKE = {
    "layers": dict.fromkeys(("mu", "nu", "trace", "count", "weights"), LAYER),
    "arrays": {"mu": jnp.ones(3), "nu": jnp.ones(3), "count": jnp.ones(2)},
    "count": {"mu": LAYER, "nu": LAYER, "count": jnp.ones(())},
    "weights": {"mu": LAYER, "nu": LAYER, "weights": jnp.ones(3)},
    "alone": {"bag": {"count": jnp.float32(9)}, "walk": {"steps": jnp.ones(3)}},
}


@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring")
@pytest.mark.parametrize("restore", [by_orbax, by_flax])
@pytest.mark.parametrize("alike", ALIKE)
def test_parameters_that_are_called_like_parts_of_a_state(alike, restore, tmp_path):
    tx, params = adam_jax.adam(rate), ALIKE[alike]
    _, state = tx.update(params, tx.init(params), params)
    # nnx.Rngs count what they have drawn, too.
    train_state = {"params": params, "rngs": {"count": jnp.uint32(7)}, "state": state}
    adopted = adopt_state(tx, restore(train_state, tmp_path), params)
    assert not adopted.started and "rngs/count" in adopted.dropped
    jax.tree.map(np.testing.assert_array_equal, adopted.state, state)


def test_what_else_a_state_held_is_listed():
    tx = adam_jax.skip_nonfinite(adam_jax.adam(1e-3))
    plain = by_flax(tx.init(PARAMS), None)
    adopted = adopt_state(adam_jax.adam(1e-3), plain, PARAMS)
    assert "mean_norm" in adopted.dropped and not adopted.started


def test_moments_in_the_boxes_of_nnx():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adam_jax.adam(1e-3), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model)))
    plain = nnx.to_pure_dict(nnx.state(optimizer))
    params = nnx.state(model, nnx.Param)
    adopted = adopt_state(adam_jax.adam(1e-3), plain, params)
    assert not adopted.started and adopted.state[0].count == 1


def test_what_holds_no_state_is_refused():
    with pytest.raises(ValueError, match="found no state of an optimizer"):
        adopt_state(adam_jax.adam(1e-3), {"mu": PARAMS, "nu": 3.0, "lr": 1.0}, PARAMS)
