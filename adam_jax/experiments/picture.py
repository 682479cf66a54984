"""The picture of a run: how well it learned, and Adam at work."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from adam_jax.experiments.config import TrainConfig
from adam_jax.experiments.training import Epoch

BANDS = (("q05", "q95", 0.2, "5-95%"), ("q25", "q75", 0.35, "25-75%"))


def draw_run(config: TrainConfig, epochs: Sequence[Epoch]) -> Figure:
    """Draw the epochs of a run.

    There is a panel each for loss, test accuracy, effective step and, if the
    optimizer keeps both moments, signal-to-noise ratio.
    """
    numbers = [epoch.epoch for epoch in epochs]
    ratios = [epoch.signal_to_noise for epoch in epochs if epoch.signal_to_noise]
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplot_mosaic(
        [["loss", "accuracy"], ["step", "ratio" if ratios else "step"]]
    )
    optimizer = config.optimizer
    figure.suptitle(
        f"{config.name}: {config.model.name} trained by {optimizer.name}, learning "
        f"rate {optimizer.learning_rate:g} ({optimizer.schedule}), seed {config.seed}",
        weight="bold",
    )
    _draw_loss(panels["loss"], numbers, epochs)
    _draw_accuracy(panels["accuracy"], numbers, epochs)
    panels["step"].set_title("Effective step: how far the parameters move")
    panels["step"].set_ylabel("|update| / learning rate")
    bound = 1.0 if ratios else None  # of plain Adam's step, and of any ratio
    steps = [epoch.effective_step for epoch in epochs]
    _draw_distribution(panels["step"], numbers, steps, bound)
    if ratios:
        panels["ratio"].set_title("Signal-to-noise ratio: how far the gradients agree")
        panels["ratio"].set_ylabel(r"$|\hat\mu|\,/\,\sqrt{\hat\nu}$")
        _draw_distribution(panels["ratio"], numbers, ratios, bound)
        # The step of plain Adam is its ratio: on one scale, what a variant adds shows.
        panels["step"].sharey(panels["ratio"])
    for panel in panels.values():
        panel.grid(alpha=0.3)
        panel.set(xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _draw_loss(panel: Axes, numbers: list[int], epochs: Sequence[Epoch]) -> None:
    panel.set(title="Loss", ylabel="cross-entropy [nats]")
    losses = [epoch.train_loss for epoch in epochs]
    panel.plot(numbers, losses, ".-", label="training")
    panel.plot(numbers, [epoch.test_loss for epoch in epochs], ".-", label="test")
    _scale_log(panel, losses)
    panel.legend()


def _draw_accuracy(panel: Axes, numbers: list[int], epochs: Sequence[Epoch]) -> None:
    accuracies = [epoch.test_accuracy for epoch in epochs]
    panel.set(title=f"Test accuracy: {accuracies[-1]:.2%} at the end")
    panel.set(ylabel="test labels found")
    panel.plot(numbers, accuracies, ".-", color="C2")
    panel.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_distribution(
    panel: Axes,
    numbers: list[int],
    rows: Sequence[dict[str, float]],
    bound: float | None,
) -> None:
    lines = {key: [row[key] for row in rows] for key in rows[0]}
    for low, high, alpha, label in BANDS:
        style = {"color": "C0", "alpha": alpha, "lw": 0, "label": label}
        panel.fill_between(numbers, lines[low], lines[high], **style)
    panel.plot(numbers, lines["q50"], ".-", color="C0", label="median parameter")
    panel.legend(loc="upper right", ncols=3)
    values = [value for line in lines.values() for value in line]
    if bound is not None:
        panel.axhline(bound, color="0.3", lw=1, ls="--")
        values.append(bound)
    if shown := _scale_log(panel, values):
        low, high = min(shown), max(shown)
        panel.set_ylim(low / 2, high * (high / low) ** 0.25)  # room for the legend
        panel.yaxis.set_minor_formatter(NullFormatter())


def _scale_log(panel: Axes, values: Sequence[float]) -> list[float]:
    """Use a log scale for the values that have a place on it, and give them."""
    shown = [value for value in values if 0 < value < math.inf]
    if shown:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        narrow = max(shown) < 10 * min(shown)
        panel.yaxis.set_minor_formatter("{x:g}" if narrow else NullFormatter())
    return shown
