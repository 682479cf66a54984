"""The training loop, its schedule and its optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import often

from adam_jax import FIGURES, OPTIMIZERS
from adam_jax.experiments.problems.data import Examples
from adam_jax.experiments.running import training
from adam_jax.experiments.running.optimization import (
    build_optimizer,
    build_schedule,
    watch,
)
from adam_jax.experiments.running.training import Carry, Trainer
from adam_jax.experiments.settings.config import OptimizerConfig, TrainConfig

TINY = TrainConfig(batch_size=718, epochs=3, arguments={"widths": [8]})


@pytest.fixture(scope="module")
def trainer():
    """Give a trainer of 14 steps an epoch, which counts how often its steps are traced.

    `restart` makes it a new one.
    """
    traces = []
    take_steps = Trainer._take_steps

    def count(self, *args):
        traces.append(args)
        return take_steps(self, *args)

    config = TrainConfig(batch_size=100, epochs=2, arguments={"widths": [8]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_take_steps", count)
        trainer = Trainer(config)
    trainer.traces = traces
    return trainer


def restart(trainer):
    """Set a trainer back to its first step."""
    params = jax.tree.map(jnp.copy, trainer.start)
    trainer.carry = Carry(params, trainer.tx.init(trainer.start), jnp.zeros([]))
    trainer.step = 0
    return trainer


def train(trainer, every=None):
    """Train from the first step, and give the epochs and the steps at the stops."""
    found = [(epoch, trainer.step) for epoch in restart(trainer).segments(every)]
    return [epoch for epoch, _ in found if epoch], [step for _, step in found]


def test_steps_are_one_loop_traced_once(trainer):
    epochs, _ = train(trainer)
    assert [epoch.step for epoch in epochs] == [14, 28]
    (traced,) = trainer.traces

    jaxpr = jax.make_jaxpr(trainer._take_steps)(*traced)
    loops = [eqn for eqn in jaxpr.eqns if eqn.primitive.name in ("scan", "while")]
    # Not a scan, whose length would be that of one segment only.
    assert [eqn.primitive.name for eqn in loops] == ["while"]


def test_where_segments_end_changes_no_bit(trainer, monkeypatch):
    expected, _ = train(trainer)
    whole = jax.tree.map(np.asarray, trainer.carry)
    for every, stops in ((1, list(range(1, 29))), (3, None), (28, None)):
        epochs, steps = train(trainer, every)
        assert steps == (stops or steps)
        assert set(range(every, 29, every)) | {14, 28} <= set(steps)
        assert epochs == expected
        jax.tree.map(np.testing.assert_array_equal, whole, trainer.carry)


def test_a_segment_takes_a_second_or_less(trainer, monkeypatch):
    clock = [0.0]

    def advance(self, *args):
        clock[0] += 0.3 * float(args[-1] - args[-2])  # seconds for a step
        return compiled(*args)

    compiled = trainer._advance
    monkeypatch.setattr(trainer, "_advance", lambda *args: advance(trainer, *args))
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    _, steps = train(trainer)
    assert steps == [1, 3, 6, 9, 12, 14, 17, 20, 23, 26, 28]


def test_parameters_and_state_are_donated(trainer):
    carry = restart(trainer).carry
    next(trainer.segments())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(carry))


def test_batches_are_drawn_anew_in_each_epoch(trainer):
    losses = []
    for seed in (0, 1):
        carry = restart(trainer).carry
        args = (trainer.task.batches.rows, jax.random.key(seed), 0, 14)
        losses.append(trainer._advance(carry, *args).loss_sum)
    assert losses[0] != losses[1]


def test_an_epoch_sees_no_example_twice(trainer, monkeypatch):
    seen = []

    def loss(params, examples, key):
        jax.debug.callback(seen.extend, examples.inputs)
        return jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, params))

    monkeypatch.setattr(trainer, "task", trainer.task._replace(loss=loss))
    monkeypatch.setattr(trainer, "tx", optax.sgd(1.0))
    numbers = jnp.arange(1437)
    carry = Carry({"w": jnp.ones(2)}, trainer.tx.init({"w": jnp.ones(2)}), 0.0)
    args = (Examples(numbers, numbers), jax.random.key(1))
    for start, stop in ((0, 5), (5, 14)):
        jax.block_until_ready(trainer._take_steps(carry, *args, start, stop))
    jax.effects_barrier()
    assert len(seen) == len(set(map(int, seen))) == 1400


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


@pytest.mark.parametrize("name", often(OPTIMIZERS))
def test_every_optimizer_can_be_built(name):
    params = {"w": jnp.ones(3)}
    tx = build_optimizer(OptimizerConfig(name=name), 0.1)
    state = tx.init(params)
    for _ in range(6):  # schedule_free_radam waits for four
        updates, state = tx.update({"w": jnp.ones(3)}, state, params)
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
        arguments={"widths": []},
        optimizer=OptimizerConfig(warmup_steps=1),
    )
    first, second = filter(None, Trainer(config).segments())
    assert first.learning_rate == 0
    assert first.figures["effective_step"] == 0  # nothing to divide by
    assert set(first.moved.values()) == {0}
    assert second.learning_rate == pytest.approx(1e-3)
    # The same gradient twice: the ratio is 1, and with it plain Adam's step.
    for figure in ("effective_step_quantiles/q50", "signal_to_noise_quantiles/q50"):
        assert second.figures[figure] == pytest.approx(1, rel=1e-3)
    # Whatever had a gradient moved by the learning rate, and only once.
    assert second.moved["layers/1/bias"] == pytest.approx(1e-3, rel=1e-3)


def test_the_last_step_of_an_epoch_is_measured(trainer):
    epochs, _ = train(trainer, 5)
    for number, epoch in enumerate(epochs, start=1):
        correction = 1 / (1 - 0.999 ** (14 * number))
        found = epoch.figures["bias_correction_nu"]
        assert found == pytest.approx(correction, rel=1e-4)


def test_the_training_loss_is_the_mean_of_the_batches(trainer):
    losses, total = [], 0.0
    restart(trainer)
    for epoch in trainer.segments(1):
        if epoch:
            break
        losses.append(float(trainer.carry.loss_sum) - total)
        total = float(trainer.carry.loss_sum)
    assert len(losses) == 13
    # The first batch meets the parameters that were drawn.
    order = jax.random.permutation(jax.random.fold_in(trainer.key, 1), 1437)[:100]
    batch = Examples(*(x[order] for x in trainer.task.batches.rows))
    first = trainer.task.loss(trainer.start, batch, trainer.key)
    assert losses[0] == pytest.approx(float(first), rel=1e-5)
    assert min(losses) < 14 * epoch.train_loss - total < max(losses)


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
        (OptimizerConfig("grokfast_adamw", weight_decay=0.0), 0.1 / 0.001**0.5),
        (OptimizerConfig("cautious_decay_adamw", weight_decay=0.0), 0.1 / 0.001**0.5),
    ],
)
def test_the_step_bound_is_that_of_the_decays(config, bound):
    params = {"w": jnp.ones(4)}
    tx = watch(build_optimizer(config, 0.1), 0.1, params, every=1)
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


MATRIX_AND_VECTOR = {"w": np.ones((4, 6), "float32"), "b": np.ones(4, "float32")}
RATIOS = {"signal_to_noise", "signal_to_noise_quantiles"}
NOTHING, OF_MU, OF_NU = set(), {"bias_correction_mu"}, {"bias_correction_nu"}
# Others have all of these, but no bound.
OF_MOMENTS = {
    **dict.fromkeys(("sgd", "lars", "shampoo", "soap", "galore_adamw"), NOTHING),
    **dict.fromkeys(("lion", "signum", "tiger", "aggmo"), OF_MU),
    **dict.fromkeys(("adagrad", "rmsprop", "adadelta", "adopt", "novograd"), OF_NU),
    **dict.fromkeys(("adafactor", "sm3", "rowwise_adagrad"), OF_NU),
    **dict.fromkeys(("schedule_free_adamw", "schedule_free_radam"), OF_NU),
    # Their moments are a maximum, sums, deviations or of something else than gradients.
    **dict.fromkeys(("adamax", "adamaxw", "madgrad"), OF_MU | OF_NU),
    **dict.fromkeys(("simplified_ademamix", "adabelief", "acprop"), OF_MU | OF_NU),
    **dict.fromkeys(("laprop", "adan", "came"), OF_MU | OF_NU),
}
OF_ADAM = ("adam", "adamw", "simplified_adam", "cautious_decay_adamw")
OF_ADAM += ("grokfast_adamw", "mars_adamw")  # which change the gradient


@pytest.mark.parametrize("name", often(OPTIMIZERS))
def test_every_figure_is_recorded_that_means_something(name):
    config, params = OptimizerConfig(name=name), MATRIX_AND_VECTOR
    tx = watch(build_optimizer(config, 0.1), 0.1, params, every=1)
    expected = OF_MOMENTS.get(name, RATIOS | OF_MU | OF_NU)
    expected = expected | ({"at_step_bound"} if name in OF_ADAM else NOTHING)
    found = set(jax.eval_shape(tx.init, params).figures)
    assert {figure for figure in found if reads_moments(figure)} == expected
    assert {figure for figure in FIGURES if not reads_moments(figure)} <= found


@pytest.mark.parametrize("name", often(OPTIMIZERS))
def test_the_signal_to_noise_of_gradients_that_agree_is_1(name):
    """Of whatever optimizer; leaves that it does not speak of are left out."""
    config, params = OptimizerConfig(name=name), MATRIX_AND_VECTOR
    tx = watch(build_optimizer(config, 1e-3), 1e-3, params, every=1)
    state, step = tx.init(params), jax.jit(tx.update)
    if "signal_to_noise" not in state.figures:
        return
    grads = jax.tree.map(lambda x: np.cos(np.arange(x.size)).reshape(x.shape), params)
    for _ in range(40):
        _, state = step(grads, state, params)
    figure = state.figures["signal_to_noise"]
    spoken_of = [x for x in (figure.total, *figure.leaves) if x != 0]
    # Yogi starts elsewhere, Grokfast adds to gradients, Adam-mini has means of rows.
    off = {"yogi": 0.05, "grokfast_adamw": 0.2, "adam_mini": 0.3}.get(name, 1e-3)
    np.testing.assert_allclose(spoken_of, 1.0, rtol=off)
    assert len(spoken_of) == (2 if "muon" in name else 3)


def reads_moments(figure):
    """Tell whether a figure speaks of Adam's moments."""
    return figure.startswith(("signal_to_noise", "bias_correction", "at_step_bound"))
