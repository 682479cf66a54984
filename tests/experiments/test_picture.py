"""The picture has the panels that the optimizer gives reason for."""

import math

import pytest
from specs import read_panels, read_picture

from adam_jax import QUANTILES
from adam_jax.experiments.metrics import Epoch
from adam_jax.experiments.pictures.drawing import to_picture
from adam_jax.experiments.pictures.run_charts import RATIO, STEP, draw_run
from adam_jax.experiments.settings.config import OptimizerConfig, TrainConfig

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


def titles(panels):
    """Give the first words of the panels' titles."""
    return [panel.title.split(":")[0] for panel in panels]


def test_adam_has_six_panels():
    picture = draw_run(TrainConfig(name="mine"), epochs(BAND))
    title, panels, _ = read_picture(picture)
    expected = ["Loss", "Test accuracy", "Effective step", "Signal-to-noise ratio"]
    assert titles(panels) == [*expected, "Relative update", "Gradient"]
    assert "mine" in title
    loss, accuracy, step, ratio, update, gradient = panels
    assert all(panel.axis("x")["title"] == "epoch" for panel in panels)
    logs = (loss, step, ratio, update, gradient)
    assert [panel.axis("y")["scale"]["type"] for panel in logs] == ["log"] * 5
    assert "type" not in accuracy.axis("y")["scale"]
    assert step.lines()["mine"] == [0.1, 0.1, 0.1]
    assert step.band(0) == [(n, 0.03, 0.3) for n in (1, 2, 3)]
    assert step.band(1) == [(n, 0.01, 0.8) for n in (1, 2, 3)]
    subtitle = " ".join(step.spec["title"]["subtitle"])
    assert "Line: the median parameter; bands: the middle 50% and 90%." in subtitle
    assert ratio.lines()["all parameters"] == [0.01, 0.01, 0.01]
    assert to_picture(picture).startswith(b"\x89PNG")


def test_of_many_groups_those_are_drawn_that_moved_most_and_least():
    _, panels, legend = read_picture(draw_run(TrainConfig(), epochs(BAND)))
    names = [f"blocks/{n} (moved {n / 10:.2g})" for n in (23, 22, 21, 2, 1, 0)]
    assert legend == ["all parameters", *names]
    for panel in panels[-3:]:
        assert list(panel.lines()) == legend
        dashes = [dash for _, dash, *_ in panel.looks().values()]
        assert dashes == [(1, 0)] * 4 + [(6, 3)] * 3  # those that moved least


def test_a_group_that_stands_still_is_seen():
    picture = draw_run(TrainConfig(), epochs(BAND, ratio=0.0))
    for panel in read_panels(picture)[-3:]:
        scale = panel.axis("y")["scale"]
        assert scale["type"] == "symlog"
        assert scale["domain"][0] < 0
    assert to_picture(picture)


def test_the_ratio_is_not_the_step_once_more():
    made = epochs(BAND)
    ratios = {f"{RATIO}/{group}": n / 100 for n, group in enumerate(GROUPS, start=1)}
    made = [epoch._replace(figures=epoch.figures | ratios) for epoch in made]
    ratio = read_panels(draw_run(TrainConfig(), made))[3]
    drawn = [values[0] for values in ratio.lines().values()]
    # Of all, of the three groups that moved most, and of the three that moved least.
    assert drawn == [0.01, 0.24, 0.23, 0.22, 0.03, 0.02, 0.01]


@pytest.mark.parametrize(("high", "expected"), [(1.9, 1.5), (0.7, 0.65), (19.0, 10)])
def test_a_loss_has_numbers_up_to_its_start(high, expected):
    made = epochs(BAND)
    losses = [high, 0.6, 0.59]
    made = [x._replace(train_loss=y) for x, y in zip(made, losses, strict=True)]
    made = [epoch._replace(test_loss=0.6) for epoch in made]
    axis = read_panels(draw_run(TrainConfig(), made))[0].axis("y")
    low, top = axis["scale"]["domain"]
    assert low <= 0.59 < high <= top
    assert max(axis["axis"]["values"]) >= expected
    assert sum(low <= x <= top for x in axis["axis"]["values"]) >= 3


def test_a_learning_rate_is_not_rounded():
    config = TrainConfig(optimizer=OptimizerConfig(learning_rate=0.99999999))
    title, *_ = read_picture(draw_run(config, epochs(BAND)))
    assert "learning rate 0.99999999 " in title


def test_a_flat_loss_and_accuracy_look_flat():
    flat = [epoch._replace(train_loss=2.3, test_loss=2.3) for epoch in epochs(BAND)]
    loss, accuracy, *_ = read_panels(draw_run(TrainConfig(), flat))
    ends = loss.axis("y")["scale"]["domain"]
    assert ends == pytest.approx([2.3 / 1.05, 2.3 * 1.05])
    assert accuracy.axis("y")["scale"]["domain"] == pytest.approx([0.88, 0.92])


def test_without_accuracy_there_are_five_panels():
    without = [epoch._replace(metrics={}) for epoch in epochs(BAND)]
    picture = draw_run(TrainConfig(), without, "negative ELBO in nats")
    expected = ["Loss", "Effective step", "Signal-to-noise ratio"]
    panels = read_panels(picture)
    assert titles(panels) == [*expected, "Relative update", "Gradient"]
    assert panels[0].axis("y")["title"] == "negative ELBO in nats"
    assert to_picture(picture)


def test_sgd_has_no_ratio():
    config = TrainConfig(optimizer=OptimizerConfig(name="sgd"))
    picture = draw_run(config, epochs(BAND, has_ratio=False))
    expected = ["Loss", "Test accuracy", "Effective step", "Relative update"]
    assert titles(read_panels(picture)) == [*expected, "Gradient"]
    assert to_picture(picture)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_run_can_be_drawn(loss):
    picture = draw_run(TrainConfig(), epochs(NOTHING, loss=loss, ratio=math.nan))
    assert titles(read_panels(picture))[0] == "Loss"
    assert to_picture(picture)


def test_a_single_epoch_has_the_middle_of_its_panels():
    for panel in read_panels(draw_run(TrainConfig(), epochs(BAND)[:1])):
        assert panel.axis("x")["scale"]["domain"] == [0.5, 1.5]
