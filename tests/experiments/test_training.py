"""The training loop, its schedule and its optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax import OPTIMIZERS
from adam_jax.experiments.config import ModelConfig, OptimizerConfig, TrainConfig
from adam_jax.experiments.optimization import build_optimizer, build_schedule
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
    assert np.isnan(first.effective_step["q50"])  # nothing to divide by
    assert second.learning_rate == pytest.approx(1e-3)
    # The same gradient twice: the ratio is 1, and with it plain Adam's step.
    assert second.effective_step["q50"] == pytest.approx(1, rel=1e-3)
    assert second.signal_to_noise["q50"] == pytest.approx(1, rel=1e-3)
