"""The picture has the panels that the optimizer gives reason for."""

import math

import pytest

from adam_jax import QUANTILES
from adam_jax.experiments.config import ModelConfig, OptimizerConfig, TrainConfig
from adam_jax.experiments.metrics import Epoch
from adam_jax.experiments.picture import RATIO, STEP, draw_run

BAND = dict(zip(QUANTILES, (0.01, 0.03, 0.1, 0.3, 0.8), strict=True))
NOTHING = dict.fromkeys(QUANTILES, math.nan)
GROUPS = [f"blocks/{n}" for n in range(24)]


def epochs(steps, has_ratio=True, loss=0.5, ratio=0.01):
    """Make three epochs of a model with 24 parameter groups."""
    figures = {f"{STEP}/{key}": value for key, value in steps.items()}
    for name in ("update_ratio", "gradient_norm", *([RATIO] if has_ratio else [])):
        figures |= {f"{name}/{group}": ratio for group in GROUPS}
        figures[name] = 0.01
    moved = {group: n / 10 for n, group in enumerate(GROUPS)}
    return [
        Epoch(n, 2 * n, 0, 1e-3, loss / n, loss / n, {"accuracy": 0.9}, figures, moved)
        for n in (1, 2, 3)
    ]


def titles(figure):
    """Give the first words of the panels' titles."""
    return [panel.get_title().split(":")[0] for panel in figure.axes]


def test_adam_has_six_panels(tmp_path):
    figure = draw_run(TrainConfig(name="mine"), epochs(BAND))
    expected = ["Loss", "Test accuracy", "Effective step", "Signal-to-noise ratio"]
    assert titles(figure) == [*expected, "Relative update", "Gradient"]
    assert "mine" in figure.get_suptitle()
    loss, accuracy, step, ratio, update, gradient = figure.axes
    assert all(panel.get_xlabel() == "epoch" for panel in figure.axes)
    logs = (loss, step, ratio, update, gradient)
    assert [panel.get_yscale() for panel in logs] == ["log"] * 5
    assert accuracy.get_yscale() == "linear"
    assert list(step.lines[0].get_ydata()) == [0.1, 0.1, 0.1]
    labels = [text.get_text() for text in step.get_legend().get_texts()]
    assert labels == ["5-95%", "25-75%", "median parameter"]
    assert list(ratio.lines[0].get_ydata()) == [0.01, 0.01, 0.01]
    figure.savefig(tmp_path / "run.png")


def test_of_many_groups_those_are_drawn_that_moved_most_and_least():
    figure = draw_run(TrainConfig(), epochs(BAND))
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [
        "all parameters",
        "blocks/23 (moved most: 2.3)",
        "blocks/22 (moved most: 2.2)",
        "blocks/21 (moved most: 2.1)",
        "blocks/0 (moved least: 0)",
        "blocks/1 (moved least: 0.1)",
        "blocks/2 (moved least: 0.2)",
    ]
    assert [len(panel.lines) for panel in figure.axes[-3:]] == [7, 7, 7]


def test_a_group_that_stands_still_is_seen(tmp_path):
    figure = draw_run(TrainConfig(), epochs(BAND, ratio=0.0))
    for panel in figure.axes[-3:]:
        assert panel.get_yscale() == "symlog"
        assert panel.get_ylim()[0] < 0
    figure.savefig(tmp_path / "run.png")


def test_the_ratio_is_not_the_step_once_more():
    made = epochs(BAND)
    ratios = {f"{RATIO}/{group}": n / 100 for n, group in enumerate(GROUPS, start=1)}
    made = [epoch._replace(figures=epoch.figures | ratios) for epoch in made]
    ratio = draw_run(TrainConfig(), made).axes[3]
    drawn = [line.get_ydata()[0] for line in ratio.lines]
    # Of all, of the three groups that moved most, and of the three that moved least.
    assert drawn == [0.01, 0.24, 0.23, 0.22, 0.01, 0.02, 0.03]


@pytest.mark.parametrize(("high", "expected"), [(1.9, 1.5), (0.7, 0.65), (19.0, 10)])
def test_a_loss_has_numbers_up_to_its_start(high, expected):
    made = epochs(BAND)
    losses = [high, 0.6, 0.59]
    made = [x._replace(train_loss=y) for x, y in zip(made, losses, strict=True)]
    made = [epoch._replace(test_loss=0.6) for epoch in made]
    loss = draw_run(TrainConfig(), made).axes[0]
    low, top = loss.get_ylim()
    assert max(x for x in loss.get_yticks() if x <= top) >= expected
    assert sum(low <= x <= top for x in loss.get_yticks()) >= 3


def test_a_learning_rate_is_not_rounded():
    config = TrainConfig(optimizer=OptimizerConfig(learning_rate=0.99999999))
    assert "learning rate 0.99999999 " in draw_run(config, epochs(BAND)).get_suptitle()


def test_a_flat_loss_and_accuracy_look_flat():
    flat = [epoch._replace(train_loss=2.3) for epoch in epochs(BAND)]
    loss, accuracy, *_ = draw_run(TrainConfig(), flat).axes
    assert loss.get_ylim() == pytest.approx((2.3 / 1.05, 2.3 * 1.05))
    assert accuracy.get_ylim() == pytest.approx((0.88, 0.92))


def test_where_there_is_no_accuracy_the_loss_takes_its_place(tmp_path):
    config = TrainConfig(problem="mnist", model=ModelConfig(name="vae"))
    without = [epoch._replace(metrics={}) for epoch in epochs(BAND)]
    figure = draw_run(config, without)
    expected = ["Loss", "Effective step", "Signal-to-noise ratio"]
    assert titles(figure) == [*expected, "Relative update", "Gradient"]
    loss, *_ = figure.axes
    assert loss.get_ylabel() == "negative ELBO in nats"
    figure.savefig(tmp_path / "run.png")


def test_sgd_has_no_ratio(tmp_path):
    config = TrainConfig(optimizer=OptimizerConfig(name="sgd"))
    figure = draw_run(config, epochs(BAND, has_ratio=False))
    expected = ["Loss", "Test accuracy", "Effective step", "Relative update"]
    assert titles(figure) == [*expected, "Gradient"]
    figure.savefig(tmp_path / "run.png")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_run_can_be_drawn(tmp_path, loss):
    figure = draw_run(TrainConfig(), epochs(NOTHING, loss=loss, ratio=math.nan))
    figure.savefig(tmp_path / "run.png")
    assert titles(figure)[0] == "Loss"
    assert (tmp_path / "run.png").stat().st_size > 0
