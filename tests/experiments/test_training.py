"""The training loop, its schedule and its optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax import FIGURES, OPTIMIZERS
from adam_jax.experiments.config import ModelConfig, OptimizerConfig, TrainConfig
from adam_jax.experiments.optimization import build_optimizer, build_schedule, watch
from adam_jax.experiments.training import Trainer

TINY = TrainConfig(batch_size=718, epochs=3, model=ModelConfig(widths=(8,)))


def test_an_epoch_is_one_scan_and_is_traced_once(monkeypatch):
    traces = []
    run_epoch = Trainer._run_epoch

    def count(self, *args):
        traces.append(args)
        return run_epoch(self, *args)

    monkeypatch.setattr(Trainer, "_run_epoch", count)
    trainer = Trainer(TINY)
    assert [epoch.step for epoch in trainer.epochs()] == [2, 4, 6]
    assert len(traces) == 1

    args = (trainer.params, trainer.opt_state, trainer.dataset, trainer.key)
    jaxpr = jax.make_jaxpr(trainer._run_epoch)(*args)
    loops = [eqn for eqn in jaxpr.eqns if eqn.primitive.name in ("scan", "while")]
    assert [eqn.params["length"] for eqn in loops] == [trainer.steps_per_epoch]


def test_parameters_and_state_are_donated():
    trainer = Trainer(TINY)
    args = jax.tree.map(jnp.copy, (trainer.params, trainer.opt_state))
    trainer._compiled_epoch(*args, trainer.dataset, trainer.key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(args))


def test_batches_are_drawn_anew_in_each_epoch():
    trainer = Trainer(TINY)
    params, state = trainer.params, trainer.opt_state
    losses = []
    for seed in (0, 1):
        key = jax.random.key(seed)
        args = jax.tree.map(jnp.copy, (params, state))
        losses.append(trainer._compiled_epoch(*args, trainer.dataset, key)[2])
    assert losses[0]["train_loss"] != losses[1]["train_loss"]


def test_schedules():
    peak = 0.5

    def rates(schedule, warmup, steps=8):
        config = OptimizerConfig(
            learning_rate=peak, schedule=schedule, warmup_steps=warmup
        )
        return np.array([build_schedule(config, steps)(step) for step in range(steps)])

    np.testing.assert_allclose(rates("constant", 0), peak)
    np.testing.assert_allclose(rates("constant", 2), [0, peak / 2] + [peak] * 6)
    roots = np.sqrt([1, 2, 3, 4, 5, 6, 7, 8])
    np.testing.assert_allclose(rates("inverse_sqrt", 0), peak / roots, rtol=1e-6)
    after = [0, peak / 2, *(peak / roots[:6])]
    np.testing.assert_allclose(rates("inverse_sqrt", 2), after, rtol=1e-6)
    half_cosine = peak * (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    np.testing.assert_allclose(rates("cosine", 0), half_cosine, rtol=1e-5)
    warmed = rates("cosine", 4)
    np.testing.assert_allclose(warmed[:5], peak * np.arange(5) / 4, rtol=1e-6)
    assert np.all(np.diff(warmed[4:]) < 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_can_be_built(name):
    params = {"w": jnp.ones(3)}
    tx = build_optimizer(OptimizerConfig(name=name), 0.1)
    updates, _ = tx.update({"w": jnp.ones(3)}, tx.init(params), params)
    assert np.all(np.asarray(updates["w"]) < 0)


def test_options_reach_the_optimizer():
    config = OptimizerConfig(name="sgd", momentum=0.5, nesterov=True)
    tx = build_optimizer(config, 1.0)
    updates, _ = tx.update(jnp.ones(()), tx.init(jnp.ones(())))
    assert updates == -1.5  # g + momentum * (trace = g)


def test_the_report_gives_the_rate_of_the_last_step():
    config = TrainConfig(
        batch_size=1437,
        epochs=2,
        model=ModelConfig(widths=()),
        optimizer=OptimizerConfig(warmup_steps=1),
    )
    first, second = Trainer(config).epochs()
    assert first.learning_rate == 0
    assert first.figures["effective_step"] == 0  # nothing to divide by
    assert set(first.moved.values()) == {0}
    assert second.learning_rate == pytest.approx(1e-3)
    # The same gradient twice: the ratio is 1, and with it plain Adam's step.
    for figure in ("effective_step_quantiles/q50", "signal_to_noise_quantiles/q50"):
        assert second.figures[figure] == pytest.approx(1, rel=1e-3)
    # Whatever had a gradient moved by the learning rate, and only once.
    assert second.moved["layers/1/bias"] == pytest.approx(1e-3, rel=1e-3)


def test_the_last_step_of_an_epoch_is_measured():
    trainer = Trainer(TINY)
    state = jax.tree.map(jnp.copy, trainer.opt_state)
    for epoch in (1, 2):
        params = jax.tree.map(jnp.copy, trainer.params)
        key = jax.random.key(0)
        _, state, _ = trainer._compiled_epoch(params, state, trainer.dataset, key)
        measured = state.figures["bias_correction_nu"].total
        assert measured == pytest.approx(1 / (1 - 0.999 ** (2 * epoch)), rel=1e-4)


def test_guards_skip_what_they_promise():
    params = {"w": jnp.ones(3)}

    def step(guard, gradients):
        tx = build_optimizer(OptimizerConfig(guard=guard), 0.1)
        state = tx.init(params)
        for g in gradients:
            updates, state = tx.update({"w": jnp.full(3, g)}, state, params)
        return float(updates["w"][0])

    usual = [1.0] * 101
    assert np.isnan(step("none", [jnp.nan]))
    assert step("nonfinite", [jnp.nan]) == step("spikes", [jnp.nan]) == 0
    assert step("nonfinite", [*usual, 100.0]) < 0
    assert step("spikes", [*usual, 100.0]) == 0


@pytest.mark.parametrize(
    ("config", "bound"),
    [
        (OptimizerConfig(), 0.1 / 0.001**0.5),
        (OptimizerConfig(b1=0.5, b2=0.99), 5.0),
    ],
)
def test_the_step_bound_is_that_of_the_decays(config, bound):
    params = {"w": jnp.ones(4)}
    tx = watch(build_optimizer(config, 0.1), config, 0.1, params, every=1)
    assert "at_step_bound" in tx.init(params).figures
    # Silence, then gradients: the longest step there is.
    state = tx.init(params)
    for n in range(300):
        grads = {"w": jnp.full(4, 0.0 if n < 299 else 1.0)}
        _, state = jax.jit(tx.update)(grads, state, params)
    weight = (1 - (config.b2 or 0.999) ** 300) ** 0.5  # of bias correction
    assert state.figures["effective_step"].total == pytest.approx(
        bound * weight, rel=1e-3
    )
    assert state.figures["at_step_bound"].total == (weight > 0.99)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_figure_is_recorded_that_the_optimizer_has(name):
    config, params = OptimizerConfig(name=name), {"w": jnp.ones(4)}
    tx = watch(build_optimizer(config, 0.1), config, 0.1, params, every=1)
    of_moments = {
        "sgd": set(),
        "rmsprop": {"bias_correction_nu"},
        "adagrad": {"bias_correction_nu"},
        "lion": {"bias_correction_mu", "at_step_bound"},
        "adamax": {"bias_correction_mu", "bias_correction_nu"},
        "adamaxw": {"bias_correction_mu", "bias_correction_nu"},
    }
    others = {figure for figure in FIGURES if reads_moments(figure)}
    without = others - of_moments.get(name, others)
    assert set(jax.eval_shape(tx.init, params).figures) == {*FIGURES} - without


def reads_moments(figure):
    """Tell whether a figure speaks of Adam's moments."""
    return figure.startswith(("signal_to_noise", "bias_correction", "at_step_bound"))
