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


def epochs(steps, ratios, loss=0.5, ratio=0.01):
    """Make three epochs of a model with 24 parameter groups."""
    figures = {f"{STEP}/{key}": value for key, value in steps.items()}
    figures |= {f"{RATIO}/{key}": value for key, value in ratios.items()}
    for name in ("update_ratio", "gradient_norm"):
        figures |= {f"{name}/{group}": ratio for group in GROUPS}
        figures[name] = 0.01
    moved = {group: n / 10 for n, group in enumerate(GROUPS)}
    return [
        Epoch(n, 2 * n, 0, 1e-3, loss / n, loss / n, 0.9, figures, moved)
        for n in (1, 2, 3)
    ]


def titles(figure):
    """Give the first words of the panels' titles."""
    return [panel.get_title().split(":")[0] for panel in figure.axes]


def test_adam_has_six_panels(tmp_path):
    figure = draw_run(TrainConfig(name="mine"), epochs(BAND, BAND))
    expected = ["Loss", "Test accuracy", "Effective step", "Signal-to-noise ratio"]
    assert titles(figure) == [*expected, "Relative update", "Gradient"]
    assert "mine" in figure.get_suptitle()
    loss, accuracy, step, ratio, update, gradient = figure.axes
    assert all(panel.get_xlabel() == "epoch" for panel in figure.axes)
    logs = (loss, step, ratio, update, gradient)
    assert [panel.get_yscale() for panel in logs] == ["log"] * 5
    assert accuracy.get_yscale() == "linear"
    assert list(ratio.lines[0].get_ydata()) == [0.1, 0.1, 0.1]
    labels = [text.get_text() for text in ratio.get_legend().get_texts()]
    assert labels == ["5-95%", "25-75%", "median parameter"]
    figure.savefig(tmp_path / "run.png")


def test_of_many_groups_those_are_drawn_that_moved_most_and_least():
    figure = draw_run(TrainConfig(), epochs(BAND, BAND))
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
    assert [len(panel.lines) for panel in figure.axes[-2:]] == [7, 7]


def test_a_group_that_stands_still_is_seen(tmp_path):
    figure = draw_run(TrainConfig(), epochs(BAND, BAND, ratio=0.0))
    for panel in figure.axes[-2:]:
        assert panel.get_yscale() == "symlog"
        assert panel.get_ylim()[0] < 0
    figure.savefig(tmp_path / "run.png")


def test_a_flat_loss_and_accuracy_look_flat():
    flat = [epoch._replace(train_loss=2.3) for epoch in epochs(BAND, BAND)]
    loss, accuracy, *_ = draw_run(TrainConfig(), flat).axes
    assert loss.get_ylim() == pytest.approx((2.3 / 1.05, 2.3 * 1.05))
    assert accuracy.get_ylim() == pytest.approx((0.88, 0.92))


def test_where_there_is_no_accuracy_the_loss_takes_its_place(tmp_path):
    config = TrainConfig(data="mnist", model=ModelConfig(name="vae"))
    without = [epoch._replace(test_accuracy=math.nan) for epoch in epochs(BAND, BAND)]
    figure = draw_run(config, without)
    expected = ["Loss", "Effective step", "Signal-to-noise ratio"]
    assert titles(figure) == [*expected, "Relative update", "Gradient"]
    loss, *_ = figure.axes
    assert loss.get_ylabel() == "negative ELBO in nats"
    figure.savefig(tmp_path / "run.png")


def test_sgd_has_no_ratio(tmp_path):
    config = TrainConfig(optimizer=OptimizerConfig(name="sgd"))
    figure = draw_run(config, epochs(BAND, {}))
    expected = ["Loss", "Test accuracy", "Effective step", "Relative update"]
    assert titles(figure) == [*expected, "Gradient"]
    figure.savefig(tmp_path / "run.png")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_run_can_be_drawn(tmp_path, loss):
    figure = draw_run(TrainConfig(), epochs(NOTHING, NOTHING, loss, math.nan))
    figure.savefig(tmp_path / "run.png")
    assert titles(figure)[0] == "Loss"
    assert (tmp_path / "run.png").stat().st_size > 0
