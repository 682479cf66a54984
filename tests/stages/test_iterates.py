"""Stages that move the parameters elsewhere than the step says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import run

import adam_jax
from adam_jax import (
    keep_radius,
    rectification,
    scale_to_params,
    schedule_free,
    step_back,
)


def draw(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 4), "cube": (2, 2, 3), "b": (5,), "s": ()}
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}


def steps(n):
    return [jax.tree.map(lambda x: 0.1 * x, draw(seed)) for seed in range(1, n + 1)]


def follow(tx, n=12, params=None):
    params = draw(0) if params is None else params
    state, path = tx.init(params), [params]
    for update in steps(n):
        moved, state = tx.update(update, state, params)
        params = optax.apply_updates(params, moved)
        path.append(params)
    return path, state


def close(x, y, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), x, y)


@pytest.mark.parametrize("b1", [0.9, 0.5])
@pytest.mark.parametrize("power", [0.0, 2.0])
def test_parameters_lie_between_the_iterate_and_its_average(b1, power):
    def rate(count):
        return 0.1 * jnp.minimum(1.0, (count + 1) / 4)

    path, state = follow(schedule_free(rate, b1, power))
    z, weights, zs = draw(0), [], []
    for t, update in enumerate(steps(12)):
        z = jax.tree.map(jnp.add, z, update)
        zs.append(z)
        weights.append(float(rate(t)) ** power)
        x = jax.tree.map(lambda *z: np.average(z, axis=0, weights=weights), *zs)
        close(path[t + 1], jax.tree.map(lambda x, z: b1 * x + (1 - b1) * z, x, z))
    found = optax.contrib.schedule_free_eval_params(state, path[-1])
    close(found, x, atol=5e-6 / b1)


def test_nothing_moves_while_the_rate_is_zero():
    tx, param = schedule_free(0.0), jnp.float32(3)
    update, state = tx.update(jnp.float32(0), tx.init(param), param)
    assert update == 0 and state.weight_sum == 0


def test_z_outlasts_bfloat16_parameters():
    """Steps of 2^-10 at 1 are lost in them, one by one."""
    tx, param = schedule_free(0.1), jnp.bfloat16(1)
    state = tx.init(param)
    for _ in range(64):
        update, state = tx.update(jnp.float32(-(2.0**-10)), state, param)
        assert update.dtype == jnp.bfloat16
        param = param + update
    assert state.z == 1 - 64 * 2.0**-10
    assert schedule_free(0.1, state_dtype="bfloat16").init(param).z.dtype == "bfloat16"


@pytest.mark.parametrize(("period", "size"), [(1, 0.5), (3, 0.25), (4, 1.0), (5, 0.0)])
def test_steps_are_taken_back_in_part(period, size):
    path, state = follow(step_back(period, size))
    slow = fast = draw(0)
    for t, update in enumerate(steps(12), 1):
        fast = jax.tree.map(jnp.add, fast, update)
        if t % period == 0:
            slow = jax.tree.map(lambda s, f: s + size * (f - s), slow, fast)
            fast = slow
        close(path[t], fast)
    close(state.slow, slow)


def test_matrices_keep_their_norm_and_others_take_the_step():
    path, _ = follow(keep_radius())
    for k in ("w", "cube"):
        norm = jnp.linalg.norm(path[0][k].reshape(-1))
        for before, after, update in zip(path, path[1:], steps(12), strict=False):
            moved = before[k] + update[k]
            expected = norm * moved / jnp.linalg.norm(moved.reshape(-1))
            np.testing.assert_allclose(after[k], expected, atol=1e-6)
    for k in ("b", "s"):
        sums = path[0][k] + sum(update[k] for update in steps(12))
        np.testing.assert_allclose(path[-1][k], sums, atol=1e-6)
    zero = {"w": jnp.zeros((2, 2))}
    update, _ = keep_radius().update(
        {"w": jnp.ones((2, 2))}, keep_radius().init(zero), zero
    )
    assert (update["w"] == 0).all()


def test_updates_of_matrices_are_scaled_to_the_norm_of_their_parameters():
    params, updates = draw(0), draw(1)
    tx = scale_to_params()
    found, _ = tx.update(updates, tx.init(params), params)
    for k in ("w", "cube"):
        norms = [jnp.linalg.norm(x[k].reshape(-1)) for x in (found, params)]
        np.testing.assert_allclose(*norms, rtol=1e-6)
        np.testing.assert_allclose(
            found[k] / jnp.linalg.norm(found[k].reshape(-1)),
            updates[k] / jnp.linalg.norm(updates[k].reshape(-1)),
            atol=1e-6,
        )
    assert (found["b"] == updates["b"]).all() and found["s"] == updates["s"]
    none, _ = tx.update(jax.tree.map(jnp.zeros_like, updates), tx.init(params), params)
    assert not any(x.any() for x in jax.tree.leaves(none))


@pytest.mark.parametrize("silent", [False, True])
def test_the_rectification_is_what_the_division_multiplies_by(silent):
    grads = jnp.ones(12)
    tx = optax.chain(
        adam_jax.scale_by_moments(None, 0.99),
        adam_jax.bias_correct(),
        adam_jax.rectified_precondition(threshold=4.0, silent=silent),
    )
    updates, _, _ = run(tx, grads, jnp.float32(0))
    factors = [rectification(0.99, 4.0, silent=silent)(t) for t in range(12)]
    np.testing.assert_allclose(updates, factors, rtol=1e-5)
    assert (factors[0], factors[3]) == ((0, 0) if silent else (1, 1))
    assert 0 < factors[4] < 1


STAGES = {
    "schedule_free": lambda: schedule_free(0.1),
    "step_back": step_back,
    "keep_radius": keep_radius,
}


@pytest.mark.parametrize("name", STAGES)
def test_states_are_copies_of_their_own_and_come_back_from_a_file(name, tmp_path):
    tx, params = STAGES[name](), draw(0)
    state = tx.init(params)
    jax.jit(lambda p, s: (p, s), donate_argnums=(0, 1))(params, state)  # no alias
    optimizer = optax.chain(adam_jax.sgd(0.1), STAGES[name]())
    _, state = optimizer.update(draw(1), optimizer.init(draw(0)), draw(0))
    adam_jax.save_state(tmp_path / "file", state)
    nodes = adam_jax.read_state(tmp_path / "file")
    adopted = adam_jax.adopt_state(optimizer, nodes, draw(0))
    assert adopted.dropped == adopted.started == ()
    jax.tree.map(np.testing.assert_array_equal, adopted.state, state)


@pytest.mark.parametrize("name", [*STAGES, "scale_to_params"])
def test_what_is_refused(name):
    tx = STAGES[name]() if name in STAGES else scale_to_params()
    with pytest.raises(ValueError, match=rf"{name}\(\) needs the parameters: call"):
        tx.update(draw(1), tx.init(draw(0)))
    if name in STAGES:
        with pytest.raises(TypeError, match=rf"{name}\(\) was given"):
            tx.update(draw(1), optax.EmptyState(), draw(0))


def test_ranges():
    for period in (0, 2.5, -1):
        with pytest.raises(ValueError, match="sync_period must be"):
            step_back(period)
    with pytest.raises(TypeError, match="sync_period must be a number, not a schedule"):
        step_back(lambda count: 6)
    with pytest.raises(ValueError, match="b1 must be > 0"):
        schedule_free(0.1, 0.0)
    with pytest.raises(ValueError, match="slow_step_size must be a finite number >= 0"):
        step_back(6, -0.5)
    for state_dtype in ("8bit", adam_jax.eight_bit()):
        with pytest.raises(TypeError, match="state_dtype must be a dtype, got"):
            schedule_free(0.1, state_dtype=state_dtype)
