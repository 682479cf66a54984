"""The picture has the panels that the optimizer gives reason for."""

import math

import pytest

from adam_jax.experiments.config import OptimizerConfig, TrainConfig
from adam_jax.experiments.picture import draw_run
from adam_jax.experiments.training import Epoch

QUANTILES = {"q05": 0.01, "q25": 0.03, "q50": 0.1, "q75": 0.3, "q95": 0.8}
NOTHING = dict.fromkeys(QUANTILES, math.nan)


def epochs(steps, ratios, loss=0.5):
    """Make three epochs."""
    return [
        Epoch(n, 2 * n, 1e-3, loss / n, loss / n, 0.9, steps, ratios) for n in (1, 2, 3)
    ]


def titles(figure):
    """Give the first words of the panels' titles."""
    return [panel.get_title().split(":")[0] for panel in figure.axes]


def test_adam_has_four_panels(tmp_path):
    figure = draw_run(TrainConfig(name="mine"), epochs(QUANTILES, QUANTILES))
    expected = ["Loss", "Test accuracy", "Effective step", "Signal-to-noise ratio"]
    assert titles(figure) == expected
    assert "mine" in figure.get_suptitle()
    loss, accuracy, step, ratio = figure.axes
    assert all(panel.get_xlabel() == "epoch" for panel in figure.axes)
    assert [panel.get_yscale() for panel in (loss, step, ratio)] == ["log"] * 3
    assert accuracy.get_yscale() == "linear"
    assert list(ratio.lines[0].get_ydata()) == [0.1, 0.1, 0.1]
    labels = [text.get_text() for text in ratio.get_legend().get_texts()]
    assert labels == ["5-95%", "25-75%", "median parameter"]
    figure.savefig(tmp_path / "run.png")


def test_sgd_has_no_ratio(tmp_path):
    config = TrainConfig(optimizer=OptimizerConfig(name="sgd"))
    figure = draw_run(config, epochs(QUANTILES, None))
    assert titles(figure) == ["Loss", "Test accuracy", "Effective step"]
    figure.savefig(tmp_path / "run.png")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_run_can_be_drawn(tmp_path, loss):
    figure = draw_run(TrainConfig(), epochs(NOTHING, NOTHING, loss))
    figure.savefig(tmp_path / "run.png")
    assert titles(figure)[0] == "Loss"
    assert (tmp_path / "run.png").stat().st_size > 0
