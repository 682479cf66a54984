"""The picture of a run: how well it learned, and Adam at work."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from adam_jax import QUANTILES
from adam_jax.experiments.config import TrainConfig
from adam_jax.experiments.drawing import choose_looks, label_log
from adam_jax.experiments.metrics import ACCURACY, Epoch, rank_moved

BANDS = (("q05", "q95", 0.2, "5-95%"), ("q25", "q75", 0.35, "25-75%"))
STEP, RATIO = "effective_step_quantiles", "signal_to_noise_quantiles/q50"


def draw_run(config: TrainConfig, epochs: Sequence[Epoch]) -> Figure:
    """Draw the epochs of a run.

    There is a panel each for loss, test accuracy if the model has one, effective step,
    signal-to-noise ratio if the optimizer has one, relative update and gradient. The
    last three show the parameter groups that moved most and least. (The step of plain
    Adam is its ratio, except for eps: the same distribution would say nothing new.)
    """
    numbers = [epoch.epoch for epoch in epochs]
    has_ratio = RATIO in epochs[-1].figures
    has_accuracy = ACCURACY in epochs[0].metrics
    figure = Figure(figsize=(11, 12), layout="constrained")
    panels = figure.subplot_mosaic(
        [
            ["loss", "accuracy" if has_accuracy else "loss"],
            ["step", "ratio" if has_ratio else "step"],
            ["update", "gradient"],
        ]
    )
    optimizer = config.optimizer
    figure.suptitle(
        f"{config.run_name}: {config.subject}, trained by {optimizer.name}, learning "
        f"rate {optimizer.learning_rate} ({optimizer.schedule}), seed {config.seed}",
        weight="bold",
    )
    _draw_loss(panels["loss"], numbers, epochs)
    panels["loss"].set_ylabel(config.loss_name)
    if has_accuracy:
        _draw_accuracy(panels["accuracy"], numbers, epochs)
    panels["step"].set_title("Effective step: how far the parameters move")
    panels["step"].set_ylabel("|update| / learning rate")
    bound = 1.0 if has_ratio else None  # of plain Adam's step
    _draw_distribution(panels["step"], numbers, epochs, STEP, bound)
    if has_ratio:
        panels["ratio"].set_title("Signal-to-noise ratio: how far the gradients agree")
        panels["ratio"].set_ylabel(r"median $|\hat\mu|\,/\,\sqrt{\hat\nu}$ of a group")
        _draw_groups(panels["ratio"], numbers, epochs, RATIO)
    panels["update"].set_title("Relative update: how fast a parameter group changes")
    panels["update"].set_ylabel("norm of update / norm of parameters")
    _draw_groups(panels["update"], numbers, epochs, "update_ratio")
    panels["gradient"].set_title("Gradient: what reaches a parameter group")
    panels["gradient"].set_ylabel("norm of gradient")
    _draw_groups(panels["gradient"], numbers, epochs, "gradient_norm")
    figure.legend(
        *panels["update"].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
    )
    for panel in panels.values():
        panel.grid(alpha=0.3)
        panel.set(xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _draw_loss(panel: Axes, numbers: list[int], epochs: Sequence[Epoch]) -> None:
    panel.set_title("Loss")
    losses = [epoch.train_loss for epoch in epochs]
    training, test = choose_looks(2)
    panel.plot(numbers, losses, marker=".", label="training", **training)
    tests = [epoch.test_loss for epoch in epochs]
    panel.plot(numbers, tests, marker=".", label="test", **test)
    shown = _scale_log(panel, losses)
    if shown and max(shown) < 1.05 * min(shown):  # nor is the last digit of a loss
        panel.set_ylim(min(shown) / 1.05, max(shown) * 1.05)
    if shown:
        label_log(panel.yaxis)
    panel.legend()


def _draw_accuracy(panel: Axes, numbers: list[int], epochs: Sequence[Epoch]) -> None:
    accuracies = [epoch.metrics[ACCURACY] for epoch in epochs]
    panel.set(title=f"Test accuracy: {accuracies[-1]:.2%} at the end")
    panel.set(ylabel="test labels found")
    panel.plot(numbers, accuracies, ".-", color="C2")
    low, high = min(accuracies), max(accuracies)
    if high - low < 0.02:  # a test image more or less is no climb
        panel.set_ylim((low + high) / 2 - 0.02, (low + high) / 2 + 0.02)
    panel.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_distribution(
    panel: Axes,
    numbers: list[int],
    epochs: Sequence[Epoch],
    figure: str,
    bound: float | None,
) -> None:
    # Where nothing moves there is no quantile: 0 has no place on a log scale.
    lines = {
        key: [epoch.figures[f"{figure}/{key}"] or math.nan for epoch in epochs]
        for key in QUANTILES
    }
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
        label_log(panel.yaxis)


def _draw_groups(
    panel: Axes, numbers: list[int], epochs: Sequence[Epoch], figure: str
) -> None:
    """Draw a figure of the whole tree, and of the groups that moved most and least."""

    def draw(name, **style):
        line = [epoch.figures[name] for epoch in epochs]
        values.extend(line)
        panel.plot(numbers, line, **style)

    values: list[float] = []
    # Wide, and behind: where only one group moves, its line is the same.
    draw(figure, color="0.65", lw=4.5, label="all parameters")
    most, least = rank_moved(epochs[-1].moved)
    for words, style, groups in (("most", "-", most), ("least", "--", least)):
        for group in groups:
            label = f"{group} (moved {words}: {epochs[-1].moved[group]:.2g})"
            draw(f"{figure}/{group}", ls=style, marker=".", label=label)
    if shown := _scale_log(panel, values):
        # A rate that falls to zero would take all the room at its end.
        low = max(min(shown), 1e-5 * max(shown))
        if 0 in values:  # a group that stands still must be seen
            low = 10.0 ** math.floor(math.log10(low))
            panel.set_yscale("symlog", linthresh=low)
            panel.set_ylim(bottom=-0.1 * low)
        else:
            panel.set_ylim(bottom=low / 2)
        label_log(panel.yaxis)


def _scale_log(panel: Axes, values: Sequence[float]) -> list[float]:
    """Use a log scale for the values that have a place on it, and give them."""
    shown = [value for value in values if 0 < value < math.inf]
    if shown:
        panel.set_yscale("log")
    return shown
